"""A split as one array: shapes, padding, the cache, and how it is split further."""

import errno
import gc
import logging
import os
import tempfile
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers_corpus import change_line, make_corpus, real_music, save, write_lines

from labhelpers import datasets
from labhelpers.baselines import majority_baseline, svm_baseline
from labhelpers.corpora.layout import AFFECT, Corpus, CorpusError, CorpusWarning, load_array
from labhelpers.datasets import (
    SpectrogramDataset,
    from_arrays,
    held_out_split,
    k_folds,
    train_val_split,
    union,
)

GENRE = "fma_genre_spectrograms"


def clip_path(corpus, clip, folder=GENRE, split="train"):
    return corpus.root / folder / split / f"{clip}.fused.full.npy"


# --- what a data set returns ----------------------------------------------------------------------


@pytest.mark.parametrize("beat", [False, True])
@pytest.mark.parametrize(
    "features, part",
    [("mel", slice(0, 128)), ("chroma", slice(128, 140)), ("fused", slice(0, 140))],
)
def test_items_are_the_files(corpus, features, part, beat):
    ds = SpectrogramDataset(corpus, "genre", features=features, beat=beat)
    table = corpus.labels("genre", beat=beat)
    assert len(ds) == 24 and ds.ids == list(table["id"])
    assert ds.input_name == ("beat " if beat else "") + features
    for i in (0, 11, -1):
        x, y, length = ds[i]
        clip = load_array(table["path"].iloc[i])[part]
        assert x.dtype == torch.float32 and x.shape == (length, ds.n_features)
        assert length == ds.lengths[i] == ds.clips["length"].iloc[i]
        np.testing.assert_array_equal(x, clip.T)
        assert ds.classes[y] == table["genre"].iloc[i]
    assert len(list(ds)) == 24  # iteration ends


def test_padding_is_silence(corpus):
    ds = SpectrogramDataset(corpus, "genre")
    assert ds.x.shape == (24, int(ds.lengths.max()), 140) and ds.lengths.min() < ds.lengths.max()
    for x, length in zip(ds.x, ds.lengths, strict=True):
        assert (x[length:, :128] == -80).all() and (x[length:, 128:] == 0).all()
        assert x[length - 1, 128:].max() > 0.5  # the last real frame is not padding


@pytest.mark.parametrize(
    "task, columns", [("affect", [0, 1, 2]), *((axis, [i]) for i, axis in enumerate(AFFECT))]
)
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
    assert train.y.dtype == torch.int64
    assert train.y.bincount().tolist() == [8, 16]  # merged; Indie-Rock dropped
    assert not set(train.ids) & {str(i) for i in range(27, 35)}


def test_a_test_split_without_one_of_the_classes(corpus):
    path = corpus.root / GENRE / "test_labels.txt"
    write_lines(path, [line for line in path.read_text().splitlines() if "Blues" not in line])
    test = SpectrogramDataset(corpus, "genre", "test")
    assert test.classes == ["Blues", "Jazz", "Rock"] and set(test.y.tolist()) == {1, 2}


def test_test_class_that_was_never_trained(corpus):
    change_line(corpus.root / GENRE / "test_labels.txt", 2, "501.full.fused.npy.gz\tPop")
    with pytest.raises(CorpusError, match="test_labels.txt: no training clip has the class Pop; "):
        SpectrogramDataset(corpus, "genre", "test")


def test_mapping_that_drops_everything(corpus):
    mapping = '{"Rock": null, "Blues": null, "Jazz": null}'
    (corpus.root / "class_mapping.json").write_text(mapping)
    with pytest.raises(CorpusError, match="train_labels.txt: the class mapping drops every genre"):
        SpectrogramDataset(Corpus(corpus.root), "genre")


@pytest.mark.parametrize("arguments", [("gerne",), ("genre", "train", "mels")])
def test_misspelt_arguments(corpus, arguments):
    with pytest.raises(ValueError, match="known: "):
        SpectrogramDataset(corpus, *arguments)


def test_subsets(corpus):
    ds = SpectrogramDataset(corpus, "genre", features="chroma")
    mixed = torch.randperm(24, generator=torch.Generator().manual_seed(0))
    part = ds.subset(mixed)
    for a, b in enumerate(mixed.tolist()):
        torch.testing.assert_close(part[a][0], ds[b][0], rtol=0, atol=0)
        # Though it is as long as the whole, its features are in its own order.
        torch.testing.assert_close(part.x[a], ds.x[b], rtol=0, atol=0)
        assert (part.ids[a], part.y[a], part.lengths[a]) == (ds.ids[b], ds.y[b], ds.lengths[b])
    assert ds.subset(np.asarray(ds.y) == 1).y.tolist() == [1] * 8  # a mask
    assert part.subset([3, 1]).ids == [part.ids[3], part.ids[1]]
    assert part.select(["20", "11"]).ids == ["20", "11"] and len(ds.subset([])) == 0
    assert part.with_features("mel").x.shape[2] == 128 and part.n_features == 12
    with pytest.raises(CorpusError, match="clip nope .*not in this split"):
        ds.select(["11", "nope"])


def test_union_is_in_the_order_of_the_split(corpus):
    """Whatever part a clip comes from: a refit on train + validation sees what the split has."""
    ds = SpectrogramDataset(corpus, "genre", features="mel", beat=True)
    train, val = train_val_split(ds, 0.25)
    whole = union(val, train)
    assert whole.ids == ds.ids and torch.equal(whole.y, ds.y) and torch.equal(whole.x, ds.x)
    few = union(val.subset([2, 0]), train.subset([1]))
    assert sorted(few.ids) == sorted([val.ids[2], val.ids[0], train.ids[1]]) and len(few) == 3
    with pytest.raises(ValueError, match="parts of different splits"):
        union(train, SpectrogramDataset(corpus, "genre", "test"))


def test_arrays_that_are_in_no_corpus():
    generator = np.random.default_rng(0)
    arrays = [generator.normal(size=(140, n)).astype(np.float32) for n in (7, 12)]
    ds = from_arrays(arrays, ["a.mp3", "b.mp3"], features="mel")
    assert ds.ids == ["a.mp3", "b.mp3"] and ds.lengths.tolist() == [7, 12] and ds.n_features == 128
    np.testing.assert_array_equal(ds[0][0], arrays[0][:128].T)
    assert (ds.x[0, 7:] == -80).all() and ds.y.isnan().all()


# --- the cache ------------------------------------------------------------------------------------


def test_second_load_maps_the_file(corpus, own_cache, monkeypatch):
    first = SpectrogramDataset(corpus, "genre").x.clone()
    for name in ("load_array", "array_shape"):
        monkeypatch.setattr(datasets, name, lambda path: pytest.fail(f"{path} was read again"))
    second = SpectrogramDataset(corpus, "genre")
    torch.testing.assert_close(second.x, first, rtol=0, atol=0)
    (stored,) = own_cache.rglob("array.npy")
    assert str(stored.resolve()) in Path("/proc/self/maps").read_text()
    before = stored.read_bytes()
    second.x[0] = 7  # nobody changes the cache through a tensor
    assert stored.read_bytes() == before


def test_a_large_load_is_announced_before_it_starts(corpus, monkeypatch, caplog):
    caplog.set_level(logging.INFO, "labhelpers")
    SpectrogramDataset(corpus, "genre")
    assert caplog.messages == []  # the notebooks' outputs on the sample have no such line
    monkeypatch.setattr(datasets, "LARGE", 1)
    ds = SpectrogramDataset(corpus, "genre", "test")
    size = f"{ds.x.numel() * 4 / 1e9:.1f} GB"
    assert caplog.messages == [f"Loading 9 clips of up to {ds.x.shape[1]} frames: {size}, once"]
    SpectrogramDataset(corpus, "genre", "test")
    assert len(caplog.messages) == 1  # mapped, not loaded


@pytest.mark.parametrize("gz", [False, True])
def test_float64_becomes_float32(tmp_path, own_cache, gz):
    wide = make_corpus(tmp_path / "wide", dtype=np.float64, gz=gz)
    ds = SpectrogramDataset(wide, "genre")
    assert ds.x.dtype == torch.float32
    (stored,) = own_cache.rglob("array.npy")
    assert stored.stat().st_size == 128 + 4 * ds.x.numel()
    narrow = SpectrogramDataset(make_corpus(tmp_path / "narrow"), "genre")
    torch.testing.assert_close(ds.x, narrow.x, rtol=0, atol=0)


@pytest.mark.parametrize("what", ["time", "size"])
def test_a_changed_file_is_read_anew_and_replaces_the_old_array(corpus, own_cache, what):
    """A new time with the size kept, or a new size with the time kept: either is enough."""
    SpectrogramDataset(corpus, "genre")
    path = clip_path(corpus, 11)
    before = path.stat()
    frames = np.load(path).shape[1] - (what == "size")
    save(path, np.full((140, frames), 0.25, np.float32))
    assert (path.stat().st_size == before.st_size) == (what == "time")
    stamp = before.st_mtime_ns + (what == "time")
    os.utime(path, ns=(stamp, stamp))
    ds = SpectrogramDataset(corpus, "genre")
    assert len(ds[0][0]) == frames and (ds[0][0] == 0.25).all()
    assert len(list(own_cache.rglob("array.npy"))) == 1


def test_a_changed_way_of_padding_is_read_anew(corpus, monkeypatch):
    SpectrogramDataset(corpus, "genre")
    monkeypatch.setattr(datasets, "SILENCE_DB", -79.0)
    ds = SpectrogramDataset(corpus, "genre")
    short = int(ds.lengths.argmin())
    assert (ds.x[short, ds.lengths[short] :, :128] == -79).all()


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
            assert ds[i][1:] == (y, length) and torch.equal(ds[i][0], x)
            assert torch.equal(ds.x[i, :length], x)


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


def test_clips_read_at_once_do_not_disturb_each_other(corpus):
    """Garbage collected while a header is parsed lets another thread parse: 3.11 cannot bear it."""

    def pause(*_):
        time.sleep(1e-5)

    path, threshold = clip_path(corpus, 13), gc.get_threshold()
    gc.callbacks.append(pause)
    gc.set_threshold(5)
    try:
        with ThreadPoolExecutor(4) as pool:
            assert len(list(pool.map(load_array, [path] * 500))) == 500
    finally:
        gc.set_threshold(*threshold)
        gc.callbacks.remove(pause)


def test_dangling_link(corpus, tmp_path):
    clip_path(corpus, 13).unlink()
    clip_path(corpus, 13).symlink_to(tmp_path / "nowhere.npy")
    with pytest.warns(CorpusWarning, match="13.fused.full.npy: cannot be read"):
        assert len(SpectrogramDataset(corpus, "genre")) == 23


def test_no_readable_clip(corpus, own_cache):
    for path in (corpus.root / GENRE / "train").iterdir():
        path.write_bytes(b"")
    words = f"no clip of .*{GENRE}.train can be read; the first: .*11.fused"
    with pytest.raises(CorpusError, match=words):
        SpectrogramDataset(corpus, "genre")
    assert not [path for path in own_cache.rglob("*") if path.is_file()]


def test_full_disk(corpus, tmp_path, monkeypatch):
    good = SpectrogramDataset(corpus, "genre", features="mel", beat=True).x.clone()
    folder = tmp_path / "other-cache"
    monkeypatch.setenv("LABHELPERS_CACHE", str(folder))

    def full(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.warns(CorpusWarning, match="no room .*No space left.*in memory.*LABHELPERS_CACHE"):
        ds = SpectrogramDataset(corpus, "genre", features="mel", beat=True)
    torch.testing.assert_close(ds.x, good, rtol=0, atol=0)
    assert not [path for path in folder.rglob("*") if path.is_file()]


def test_unwritable_cache_folder(corpus, tmp_path, monkeypatch):
    """The named folder cannot be made: the user's is next; then none: the array stays in memory."""
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


@pytest.mark.parametrize("name, kept", [("array.npy", 200), ("lengths.npy", 50)])
def test_damaged_cache_is_built_anew(corpus, own_cache, name, kept):
    good = SpectrogramDataset(corpus, "genre").x.clone()
    (path,) = own_cache.rglob(name)
    path.write_bytes(path.read_bytes()[:kept])
    torch.testing.assert_close(SpectrogramDataset(corpus, "genre").x, good, rtol=0, atol=0)


def test_several_at_once_share_one_array_and_sweep_what_killed_ones_left(corpus, own_cache):
    paths = list(corpus.labels("genre")["path"])
    folder = own_cache / datasets._hash(paths[0].parent)
    old, new = folder / "partial-old", folder / "partial-new"
    for left in (old, new):
        left.mkdir(parents=True)
    os.utime(old, (0, 0))
    with ThreadPoolExecutor(4) as pool, warnings.catch_warnings():
        warnings.simplefilter("error")
        results = list(pool.map(lambda _: datasets.load_split(paths), range(8)))
    for array, lengths in results:
        assert torch.equal(array, results[0][0]) and lengths.all()
        assert np.array_equal(lengths, results[0][1])
    assert len(list(own_cache.rglob("array.npy"))) == 1
    assert list(own_cache.rglob("partial-*")) == [new]


# --- splits ---------------------------------------------------------------------------------------


def test_split_is_stratified_disjoint_and_seeded(shared_corpus):
    ds = SpectrogramDataset(shared_corpus, "genre", beat=True)
    train, val = train_val_split(ds, 0.25, seed=3)
    assert val.y.bincount().tolist() == [4] * 4 and sorted(train.ids + val.ids) == sorted(ds.ids)
    assert train_val_split(ds, 0.25, seed=3)[1].ids == val.ids
    assert train_val_split(ds, 0.25, seed=4)[1].ids != val.ids


@pytest.mark.parametrize("fraction, count", [(0.2, 3), (0.3, 5), (0.4, 6), (0.8, 13)])
def test_split_takes_the_fraction_that_was_asked_for(shared_corpus, fraction, count):
    ds = SpectrogramDataset(shared_corpus, "genre", beat=True)
    assert train_val_split(ds, fraction)[1].y.bincount().tolist() == [count] * 4


def test_a_class_of_two_clips_stands_on_both_sides(shared_corpus):
    ds = SpectrogramDataset(shared_corpus, "genre", beat=True)
    few = np.concatenate([np.flatnonzero(ds.y == 0)[:2], np.flatnonzero(ds.y != 0)])
    for seed in range(20):
        for part in train_val_split(ds.subset(few), seed=seed):
            assert part.y.bincount(minlength=4).min() >= 1


def test_split_keeps_groups_together(tmp_path):
    corpus = make_corpus(tmp_path / "c", train=20)
    lines = ["Id\tGroup", *(f"{i}\t{i // 2}" for i in range(10, 72))]
    for folder in (GENRE, GENRE + "_beat"):
        write_lines(corpus.root / folder / "groups.txt", lines)
    ds = SpectrogramDataset(corpus, "genre", beat=True)
    assert len(set(ds.groups)) < len(ds)
    for seed in range(3):
        train, val = train_val_split(ds, seed=seed)
        assert not set(train.groups) & set(val.groups) and len(train) + len(val) == 60
        assert val.y.bincount(minlength=3).min() >= 2 and 9 <= len(val) <= 15
        for rest, fold in k_folds(ds, 3, seed):
            assert not set(ds.subset(rest).groups) & set(ds.subset(fold).groups)


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
    folds = k_folds(ds, 5)
    assert sorted(i for _, test in folds for i in test) == list(range(60))
    assert all(not set(train) & set(test) and len(train) + len(test) == 60 for train, test in folds)


def test_class_with_a_single_clip(corpus):
    ds = SpectrogramDataset(corpus, "genre", beat=True)
    alone = ds.subset([i for i in range(24) if ds.classes[ds.y[i]] != "Jazz" or ds.ids[i] == "30"])
    words = r"Jazz has clips of a single track \(30\) among 17 clips.*drop it"
    with pytest.raises(CorpusError, match=words):
        train_val_split(alone)


def test_class_whose_clips_are_of_one_track(corpus):
    lines = ["Id\tGroup", *(f"{i}\tone" for i in range(27, 35))]
    write_lines(corpus.root / (GENRE + "_beat") / "groups.txt", lines)
    with pytest.raises(CorpusError, match=r"Jazz has clips of a single track \(one\)"):
        train_val_split(SpectrogramDataset(corpus, "genre", beat=True))


@pytest.mark.parametrize("count", [0, 1, 3])
def test_too_few_clips_to_split(corpus, count):
    ds = SpectrogramDataset(corpus, "affect", beat=True).subset(range(count))
    with pytest.raises(CorpusError, match="too few to split|cannot stand on both sides"):
        train_val_split(ds)


def test_too_few_clips_to_fold(corpus):
    ds = SpectrogramDataset(corpus, "genre", beat=True)
    few = ds.subset(np.concatenate([np.flatnonzero(ds.y == genre)[:4] for genre in range(3)]))
    words = "12 clips of 12 tracks are too few to split in 5 parts"
    with pytest.raises(CorpusError, match=words):
        k_folds(few, 5)


# --- on a device ----------------------------------------------------------------------------------


def test_moved_to_a_device(corpus):
    """The meta device holds shapes only: what is sent there is the split's own clips and rows."""
    whole = SpectrogramDataset(corpus, "genre", features="mel", beat=True)
    ds = whole.subset([5, 3, 9])
    assert ds.to("cpu") is ds
    moved = ds.to("meta")
    assert moved.array.device.type == "meta" and len(moved) == 3 and moved.ids == ds.ids
    assert moved.array.shape == (3, int(ds.lengths.max()), 128)
    assert moved.positions.tolist() == [0, 1, 2] and moved.x.shape == moved.array.shape
    assert moved.to("meta") is moved and torch.equal(moved.y, ds.y)
    with pytest.raises(ValueError, match="choose features first"):
        moved.with_features("fused")  # those rows were left behind
    with pytest.raises(ValueError, match="features 'chrome'; known: mel, chroma, fused"):
        ds.with_features("chrome")


def test_a_split_that_would_fill_a_device_is_not_sent_there(corpus, monkeypatch):
    ds = SpectrogramDataset(corpus, "genre", features="mel", beat=True)
    size = 4 * len(ds) * int(ds.lengths.max()) * 128
    for free, sent in ((2 * size + 2, True), (2 * size - 2, False)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, free=free: (free, 8 * free))
        room = datasets.room(torch.device("cuda"))
        assert (size <= room) == sent
    assert datasets.room(torch.device("cpu")) == float("inf")


# --- real music -----------------------------------------------------------------------------------


def test_real_music():
    corpus = Corpus(real_music() / "emotify")
    train = SpectrogramDataset(corpus, "genre", beat=True)
    test = SpectrogramDataset(corpus, "genre", "test", beat=True)
    assert train.x.shape == (636, int(train.lengths.max()), 140) and train.classes == test.classes
    part, val = train_val_split(train)
    assert not set(part.groups) & set(val.groups) and 110 <= len(val) <= 145
    for baseline, low, high in ((majority_baseline, 0.1, 0.45), (svm_baseline, 0.6, 0.8)):
        assert low < (baseline(train, test).argmax(1) == test.y.numpy()).mean() < high
