"""A split as one array: shapes, padding, the cache, splits and batches."""

import errno
import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers_corpus import change_line, make_corpus, real_music, save, write_lines

from labhelpers import datasets
from labhelpers.baselines import majority_baseline, svm_baseline
from labhelpers.batches import batches
from labhelpers.corpora.layout import AFFECT, Corpus, CorpusError, CorpusWarning, load_array
from labhelpers.datasets import SpectrogramDataset, held_out_split, k_folds, train_val_split

GENRE = "fma_genre_spectrograms"


def clip_path(corpus, clip, folder=GENRE, split="train"):
    return corpus.root / folder / split / f"{clip}.fused.full.npy"


# --- what a data set returns ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("beat", [False, True])
@pytest.mark.parametrize("rows, part", [("mel", slice(0, 128)), ("chroma", slice(128, 140)), ("fused", slice(0, 140))])
def test_items_are_the_files(corpus, rows, part, beat):
    ds = SpectrogramDataset(corpus, "genre", rows=rows, beat=beat)
    table = corpus.labels("genre", beat=beat)
    assert len(ds) == 24 and ds.ids == list(table["id"]) and ds.input_name == ("beat " if beat else "") + rows
    for i in (0, 11, -1):
        x, y, length = ds[i]
        clip = load_array(table["path"].iloc[i])[part]
        assert x.dtype == torch.float32 and x.shape == (length, ds.n_features) and length == ds.lengths[i]
        np.testing.assert_array_equal(x, clip.T)
        assert ds.classes[y] == table["genre"].iloc[i]
    assert len(list(ds)) == 24  # iteration ends


def test_padding_is_silence(corpus):
    ds = SpectrogramDataset(corpus, "genre")
    assert ds.x.shape == (24, int(ds.lengths.max()), 140) and ds.lengths.min() < ds.lengths.max()
    for x, length in zip(ds.x, ds.lengths, strict=True):
        assert (x[length:, :128] == -80).all() and (x[length:, 128:] == 0).all()
        assert x[length - 1, 128:].max() > 0.5  # the last real frame is not padding


@pytest.mark.parametrize("task, columns", [("affect", [0, 1, 2]), *((axis, [i]) for i, axis in enumerate(AFFECT))])
def test_affect_targets(corpus, task, columns):
    ds = SpectrogramDataset(corpus, task)
    labels = corpus.labels("affect")[list(AFFECT)].to_numpy(np.float32)
    assert ds.y.dtype == torch.float32 and ds.axes == tuple(AFFECT[i] for i in columns)
    np.testing.assert_array_equal(ds.y, labels[:, columns])
    np.testing.assert_array_equal(SpectrogramDataset(corpus, "affect").with_axes(ds.axes).y, ds.y)


def test_withheld_labels_are_nan(corpus):
    ds = SpectrogramDataset(corpus, "affect", "test")
    assert ds.y.shape == (6, 3) and ds.y.isnan().all() and ds.ids[0] == "27"


def test_classes_are_sorted_names_of_the_training_split(tmp_path):
    corpus = make_corpus(tmp_path / "c", genres=("Rock", "Psych-Rock", "Indie-Rock", "Blues"))
    train, test = (SpectrogramDataset(corpus, "genre", split) for split in ("train", "test"))
    assert train.classes == test.classes == ["Blues", "Rock"]
    assert train.y.dtype == torch.int64 and train.y.bincount().tolist() == [8, 16]  # merged; Indie-Rock dropped
    assert not set(train.ids) & {str(i) for i in range(27, 35)}
    whole = SpectrogramDataset(corpus, "genre", merge=False)
    assert whole.classes == ["Blues", "Indie-Rock", "Psych-Rock", "Rock"] and len(whole) == 32


def test_a_test_split_without_one_of_the_classes(corpus):
    path = corpus.root / GENRE / "test_labels.txt"
    write_lines(path, [line for line in path.read_text().splitlines() if "Blues" not in line])
    test = SpectrogramDataset(corpus, "genre", "test")
    assert test.classes == ["Blues", "Jazz", "Rock"] and set(test.y.tolist()) == {1, 2}


def test_test_class_that_was_never_trained(corpus):
    change_line(corpus.root / GENRE / "test_labels.txt", 2, "501.full.fused.npy.gz\tPop")
    with pytest.raises(CorpusError, match="test_labels.txt: no training clip has the class Pop; add"):
        SpectrogramDataset(corpus, "genre", "test")


def test_mapping_that_drops_everything(corpus):
    (corpus.root / "class_mapping.json").write_text('{"Rock": null, "Blues": null, "Jazz": null}')
    with pytest.raises(CorpusError, match="train_labels.txt: the class mapping drops every genre"):
        SpectrogramDataset(Corpus(corpus.root), "genre")


@pytest.mark.parametrize("arguments", [("gerne",), ("genre", "train", "mels")])
def test_misspelt_arguments(corpus, arguments):
    with pytest.raises(ValueError, match="known: "):
        SpectrogramDataset(corpus, *arguments)


def test_subsets(corpus):
    ds = SpectrogramDataset(corpus, "genre", rows="chroma")
    mixed = torch.randperm(24, generator=torch.Generator().manual_seed(0))
    part = ds.subset(mixed)
    for a, b in enumerate(mixed.tolist()):
        torch.testing.assert_close(part[a][0], ds[b][0], rtol=0, atol=0)
        torch.testing.assert_close(part.x[a], ds.x[b], rtol=0, atol=0)  # though it is as long as the whole
        assert (part.ids[a], part.y[a], part.lengths[a]) == (ds.ids[b], ds.y[b], ds.lengths[b])
    assert ds.subset(np.asarray(ds.y) == 1).y.tolist() == [1] * 8  # a mask
    assert part.subset([3, 1]).ids == [part.ids[3], part.ids[1]]
    assert part.select(["20", "11"]).ids == ["20", "11"] and len(ds.subset([])) == 0
    assert part.with_rows("mel").x.shape[2] == 128 and part.n_features == 12
    with pytest.raises(CorpusError, match="clip nope .*not in this split"):
        ds.select(["11", "nope"])


# --- the cache ------------------------------------------------------------------------------------------------------


def test_second_load_maps_the_file(corpus, own_cache, monkeypatch):
    first = SpectrogramDataset(corpus, "genre").x.clone()
    for name in ("load_array", "array_shape"):
        monkeypatch.setattr(datasets, name, lambda path: pytest.fail(f"{path} was read again"))
    second = SpectrogramDataset(corpus, "genre")
    torch.testing.assert_close(second.x, first, rtol=0, atol=0)
    assert sorted(path.suffixes[0] for path in own_cache.iterdir()) == [".lengths", ".npy"]
    (stored,) = (path for path in own_cache.iterdir() if ".lengths" not in path.suffixes)
    assert str(stored.resolve()) in Path("/proc/self/maps").read_text()
    before = stored.read_bytes()
    second.x[0] = 7  # nobody changes the cache through a tensor
    assert stored.read_bytes() == before


def test_a_large_load_is_announced_before_it_starts(corpus, monkeypatch, capsys):
    SpectrogramDataset(corpus, "genre")
    assert capsys.readouterr().out == ""  # the notebooks' outputs on the sample have no such line
    monkeypatch.setattr(datasets, "LARGE", 1)
    ds = SpectrogramDataset(corpus, "genre", "test")
    size = f"{ds.x.numel() * 4 / 1e9:.1f} GB"
    assert capsys.readouterr().out == f"Loading 9 clips of up to {ds.x.shape[1]} frames: {size} in memory\n"
    SpectrogramDataset(corpus, "genre", "test")
    assert capsys.readouterr().out == ""  # mapped, not loaded


@pytest.mark.parametrize("gz", [False, True])
def test_float64_becomes_float32(tmp_path, own_cache, gz):
    wide = make_corpus(tmp_path / "wide", dtype=np.float64, gz=gz)
    ds = SpectrogramDataset(wide, "genre")
    assert ds.x.dtype == torch.float32
    assert max(path.stat().st_size for path in own_cache.iterdir()) == 128 + 4 * ds.x.numel()
    narrow = SpectrogramDataset(make_corpus(tmp_path / "narrow"), "genre")
    torch.testing.assert_close(ds.x, narrow.x, rtol=0, atol=0)


def test_a_changed_file_is_read_anew(corpus):
    SpectrogramDataset(corpus, "genre")
    path = clip_path(corpus, 11)
    stamp = path.stat().st_mtime_ns
    save(path, np.full((140, np.load(path).shape[1]), 0.25))
    os.utime(path, ns=(stamp + 1, stamp + 1))
    assert (SpectrogramDataset(corpus, "genre")[0][0] == 0.25).all()


def test_two_corpora_do_not_share(tmp_path):
    a, b = (make_corpus(tmp_path / name, seed=seed) for seed, name in enumerate("ab"))
    one, other = SpectrogramDataset(a, "genre"), SpectrogramDataset(b, "genre")
    assert not torch.equal(one[0][0][:5], other[0][0][:5])
    assert not torch.equal(one[0][0][:5], SpectrogramDataset(a, "genre", "test")[0][0][:5])


def test_bad_clip_is_left_out_every_time(corpus):
    good = SpectrogramDataset(corpus, "genre")
    save(clip_path(corpus, 13), np.full((140, 50), np.nan))
    clip_path(corpus, 20).write_bytes(b"not an array")
    for _ in range(2):  # read, then mapped
        with pytest.warns(CorpusWarning) as caught:
            ds = SpectrogramDataset(corpus, "genre")
        said = " ".join(str(warning.message) for warning in caught)
        assert "13.fused.full.npy: holds NaN" in said and "20.fused.full.npy: not a NumPy" in said
        assert "left out" in said and caught[0].filename == __file__
        assert ds.ids == [clip for clip in good.ids if clip not in ("13", "20")]
        assert len(ds) == len(ds.x) == len(ds.y) == len(ds.lengths) == 22
        for i, clip in enumerate(ds.ids):
            x, y, length = good[good.ids.index(clip)]
            assert ds[i][1:] == (y, length) and torch.equal(ds[i][0], x) and torch.equal(ds.x[i, :length], x)


def test_a_clip_that_can_be_read_again_comes_back(corpus, monkeypatch):
    def failing(path):
        if path.name.startswith("13."):
            raise CorpusError(f"{path}: cannot be read (Input/output error)")
        return load_array(path)

    monkeypatch.setattr(datasets, "load_array", failing)
    with pytest.warns(CorpusWarning, match="Input/output"):
        assert len(SpectrogramDataset(corpus, "genre")) == 23
    monkeypatch.undo()
    assert len(SpectrogramDataset(corpus, "genre")) == 24


def test_dangling_link(corpus, tmp_path):
    clip_path(corpus, 13).unlink()
    clip_path(corpus, 13).symlink_to(tmp_path / "nowhere.npy")
    with pytest.warns(CorpusWarning, match="13.fused.full.npy: cannot be read"):
        assert len(SpectrogramDataset(corpus, "genre")) == 23


def test_no_readable_clip(corpus, own_cache):
    for path in (corpus.root / GENRE / "train").iterdir():
        path.write_bytes(b"")
    with pytest.raises(CorpusError, match=f"no clip of .*{GENRE}.train can be read; the first: .*11.fused"):
        SpectrogramDataset(corpus, "genre")
    assert not list(own_cache.iterdir())


def test_full_disk(corpus, own_cache, monkeypatch):
    good = SpectrogramDataset(corpus, "genre", rows="mel", beat=True).x

    def full(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for path in own_cache.iterdir():
        path.unlink()
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.warns(CorpusWarning, match="no room .*No space left.*in memory.*LABHELPERS_CACHE"):
        ds = SpectrogramDataset(corpus, "genre", rows="mel", beat=True)
    torch.testing.assert_close(ds.x, good, rtol=0, atol=0)
    assert not list(own_cache.iterdir())


def test_unwritable_cache_folder(corpus, tmp_path, monkeypatch):
    """The named folder cannot be made: the user's is next; then none can be written: the array stays in memory."""
    good = SpectrogramDataset(corpus, "genre").x
    (tmp_path / "file").touch()
    monkeypatch.setenv("LABHELPERS_CACHE", str(tmp_path / "file" / "cache"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    assert datasets.cache_folder() == tmp_path / "home" / "labhelpers"

    def read_only(*arguments, **options):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(tempfile, "TemporaryFile", read_only)
    assert datasets.cache_folder() is None
    torch.testing.assert_close(SpectrogramDataset(corpus, "genre").x, good, rtol=0, atol=0)


def test_damaged_cache_is_built_anew(corpus, own_cache):
    good = SpectrogramDataset(corpus, "genre").x.clone()
    for name in ("array", "lengths"):
        for path in own_cache.iterdir():
            if (".lengths" in path.suffixes) == (name == "lengths"):
                path.write_bytes(path.read_bytes()[:200][: 200 if name == "array" else 50])
        torch.testing.assert_close(SpectrogramDataset(corpus, "genre").x, good, rtol=0, atol=0)


def test_several_at_once_and_what_killed_ones_left(corpus, own_cache):
    old, new = own_cache / "old.partial", own_cache / "new.partial"
    for path in (old, new):
        path.touch()
    os.utime(old, (0, 0))
    paths = list(corpus.labels("genre")["path"])
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: datasets.load_split(paths), range(8)))
    for array, lengths, good in results:
        assert torch.equal(array, results[0][0]) and good.all() and np.array_equal(lengths, results[0][1])
    assert not old.exists() and list(own_cache.glob("*.partial")) == [new]


# --- splits ---------------------------------------------------------------------------------------------------------


def test_split_is_stratified_disjoint_and_seeded(shared_corpus):
    ds = SpectrogramDataset(shared_corpus, "genre", beat=True)
    train, val = train_val_split(ds, 0.25, seed=3)
    assert val.y.bincount().tolist() == [4] * 4 and sorted(train.ids + val.ids) == sorted(ds.ids)
    assert train_val_split(ds, 0.25, seed=3)[1].ids == val.ids
    assert train_val_split(ds, 0.25, seed=4)[1].ids != val.ids


def test_split_keeps_groups_together(tmp_path):
    corpus = make_corpus(tmp_path / "c", train=20)
    for folder in (GENRE, GENRE + "_beat"):
        write_lines(corpus.root / folder / "groups.txt", ["Id\tGroup", *(f"{i}\t{i // 2}" for i in range(10, 72))])
    ds = SpectrogramDataset(corpus, "genre", beat=True)
    assert len(set(ds.groups)) < len(ds)
    for seed in range(3):
        train, val = train_val_split(ds, seed=seed)
        assert not set(train.groups) & set(val.groups) and len(train) + len(val) == 60
        assert val.y.bincount(minlength=3).min() >= 2 and 9 <= len(val) <= 15


def test_held_out_parts_are_the_same_for_every_axis(shared_corpus):
    parts = held_out_split(SpectrogramDataset(shared_corpus, "affect", beat=True), seed=1)
    assert [len(part) for part in parts] == [36, 12, 12]
    assert len({clip for part in parts for clip in part.ids}) == 60
    means = [part.y.mean(1).mean() for part in parts]
    assert max(means) - min(means) < 0.06  # stratified
    for axis in AFFECT:
        alone = held_out_split(SpectrogramDataset(shared_corpus, axis, beat=True), seed=1)
        assert [part.ids for part in alone] == [part.ids for part in parts]


def test_folds_judge_each_clip_once(shared_corpus):
    ds = SpectrogramDataset(shared_corpus, "affect", beat=True)
    folds = list(k_folds(ds, 5))
    assert sorted(i for _, test in folds for i in test) == list(range(60))
    assert all(not set(train) & set(test) and len(train) + len(test) == 60 for train, test in folds)


def test_class_with_a_single_clip(corpus):
    ds = SpectrogramDataset(corpus, "genre", beat=True)
    alone = ds.subset([i for i in range(24) if ds.classes[ds.y[i]] != "Jazz" or ds.ids[i] == "30"])
    with pytest.raises(CorpusError, match=r"Jazz has clips of a single track \(30\) among 17 clips.*drop it"):
        train_val_split(alone)


def test_class_whose_clips_are_of_one_track(corpus):
    write_lines(corpus.root / (GENRE + "_beat") / "groups.txt", ["Id\tGroup", *(f"{i}\tone" for i in range(27, 35))])
    with pytest.raises(CorpusError, match=r"Jazz has clips of a single track \(one\)"):
        train_val_split(SpectrogramDataset(corpus, "genre", beat=True))


@pytest.mark.parametrize("count", [0, 4, 9])
def test_too_few_clips_to_split(corpus, count):
    ds = SpectrogramDataset(corpus, "affect", beat=True).subset(range(count))
    with pytest.raises(CorpusError, match="too few to split|cannot stand on both sides"):
        train_val_split(ds)


def test_classes_smaller_than_the_number_of_folds(corpus):
    ds = SpectrogramDataset(corpus, "genre", beat=True)
    few = ds.subset([i for genre in range(3) for i in np.flatnonzero(ds.y == genre)[:4]])
    with pytest.raises(CorpusError, match="12 clips of 12 tracks are too few to split in 5 parts"):
        train_val_split(few)


# --- batches --------------------------------------------------------------------------------------------------------


def test_batches_without_shuffling_keep_the_order(corpus):
    ds = SpectrogramDataset(corpus, "genre", rows="mel")
    position = 0
    for x, lengths, y in batches(ds, 7):
        assert x.shape == (len(y), int(lengths.max()), 128)
        for clip, length, code in zip(x, lengths, y, strict=True):
            assert torch.equal(clip[:length], ds[position][0]) and code == ds.y[position]
            assert (clip[length:] == -80).all()
            position += 1
    assert position == 24


@pytest.mark.parametrize("crop", [None, 10])
def test_shuffled_batches_hold_each_clip_once(shared_corpus, crop):
    ds = SpectrogramDataset(shared_corpus, "affect")

    def epoch(seed, crop=crop):
        return list(batches(ds, 8, shuffle=True, generator=torch.Generator().manual_seed(seed), crop=crop))

    rows = lambda parts: [tuple(row) for _, _, y in parts for row in y.tolist()]  # noqa: E731
    one, same, other = epoch(0), epoch(0), epoch(1)
    assert sorted(rows(one)) == sorted(tuple(row) for row in ds.y.tolist())
    assert all(torch.equal(a[0], b[0]) for a, b in zip(one, same, strict=True)) and rows(one) != rows(other)
    assert len(one) == 8 and sum(len(y) == 8 for *_, y in one) == 7


def test_buckets_save_padding(shared_corpus):
    ds = SpectrogramDataset(shared_corpus, "genre")
    area = lambda parts: sum(x.shape[0] * x.shape[1] for x, *_ in parts)  # noqa: E731
    generator = torch.Generator().manual_seed(0)
    bucketed = area(batches(ds, 8, shuffle=True, generator=generator))
    plain = area(batches(ds.subset(torch.randperm(64, generator=generator)), 8))
    assert int(ds.lengths.sum()) <= bucketed < int(ds.lengths.sum()) + 0.3 * (plain - int(ds.lengths.sum()))


def test_crops_are_windows_of_the_clip(shared_corpus):
    ds = SpectrogramDataset(shared_corpus, "affect")
    starts = set()
    for x, lengths, y in batches(ds, 16, shuffle=True, generator=torch.Generator().manual_seed(0), crop=24):
        assert x.shape[1:] == (24, 140)
        for clip, length, target in zip(x, lengths.tolist(), y, strict=True):
            source, _, frames = ds[int((ds.y == target).all(1).nonzero())]
            assert length == min(24, frames)
            fits = [s for s in range(frames - length + 1) if torch.equal(source[s : s + length], clip[:length])]
            assert len(fits) == 1
            starts.add((fits[0], frames - length))
            assert (clip[length:, :128] == -80).all() and (clip[length:, 128:] == 0).all()
    assert any(start == room > 0 for start, room in starts) and any(start == 0 < room for start, room in starts)
    assert any(room == 0 for _, room in starts)  # some clips are shorter than the window


@pytest.mark.parametrize("rows, silence", [("mel", -80), ("chroma", 0)])
def test_crops_of_short_clips_are_padded(corpus, rows, silence):
    """A window is never wider than the longest clip of the split."""
    ds = SpectrogramDataset(corpus, "genre", rows=rows, beat=True)
    short = int(ds.lengths.argmin())
    for crop, width in ((50, int(ds.lengths.max())), (8, 8)):
        x, lengths, _ = next(batches(ds.subset([short, int(ds.lengths.argmax())]), 2, crop=crop))
        length = int(ds.lengths[short])
        assert x.shape[1] == width and lengths.tolist() == [length, width]
        assert torch.equal(x[0, :length], ds[short][0]) and (x[0, length:] == silence).all() and length < width


def test_moved_to_a_device(corpus):
    """The meta device holds shapes only: it shows that all parts of a batch come from where the clips lie."""
    ds = SpectrogramDataset(corpus, "genre", rows="mel", beat=True).subset([5, 3, 9])
    assert ds.to("cpu") is ds
    moved = ds.to("meta")
    assert moved.x.shape[0] == 3 and moved._fused.device.type == "meta" and len(moved) == 3 and moved.ids == ds.ids
    moved.all_lengths = ds.lengths  # meta tensors have no values; batches need the lengths'
    ((x, lengths, y),) = batches(moved, 3)
    assert x.shape == (3, int(ds.lengths.max()), 128) and {x.device.type, lengths.device.type, y.device.type} == {
        "meta"
    }


# --- real music -----------------------------------------------------------------------------------------------------


def test_real_music():
    corpus = Corpus(real_music() / "emotify")
    train, test = (SpectrogramDataset(corpus, "genre", split, beat=True) for split in ("train", "test"))
    assert train.x.shape == (636, int(train.lengths.max()), 140) and train.classes == test.classes
    part, val = train_val_split(train)
    assert not set(part.groups) & set(val.groups) and 110 <= len(val) <= 145
    for baseline, low, high in ((majority_baseline, 0.1, 0.45), (svm_baseline, 0.6, 0.8)):
        assert low < (baseline(train, test).argmax(1) == test.y.numpy()).mean() < high
