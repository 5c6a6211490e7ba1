"""A split as one array, its parts, and the batches and windows cut from it."""

import numpy as np
import pytest
import torch
from helpers import make_corpus, noise, save

from labhelpers import clips as windows
from labhelpers.clips import Clips, Reads, batches, k_folds, load_clips, train_val_split
from labhelpers.corpus import Corpus, CorpusError, CorpusWarning, load_array


def test_items_are_the_files(shared_corpus):
    for task in ("genre", "affect"):
        for beat in (False, True):
            clips = load_clips(shared_corpus, task, beat=beat)
            table = shared_corpus.labels(task, beat=beat)
            assert clips.ids == table["id"].tolist() and clips.groups == table["group"].tolist()
            for i in (0, 7, -1):
                x, _, length = clips[i]
                array = load_array(table["path"].iloc[i])
                assert length == array.shape[1]
                np.testing.assert_array_equal(x.numpy(), array.T)
    with pytest.raises(IndexError):
        clips[len(clips)]


def test_targets_are_classes_by_name_and_affect_by_axis(shared_corpus, genre, affect):
    assert genre.classes == ["Blues", "Jazz", "Pop", "Rock"]
    names = shared_corpus.labels("genre")["genre"]
    assert [genre.classes[code] for code in genre.y] == names.tolist()
    labels = shared_corpus.labels("affect")[["valence", "energy", "danceability"]]
    np.testing.assert_allclose(affect.y.numpy(), labels, atol=1e-7)
    assert load_clips(shared_corpus, "affect", "test").y.isnan().all()


def test_mapping_merges_and_drops(corpus):
    text = '{"Rock": "Loud", "Blues": "Loud", "Jazz": null}'
    (corpus.root / "class_mapping.json").write_text(text)
    clips = load_clips(Corpus(corpus.root), "genre")
    assert clips.classes == ["Loud"] and len(clips) == 16


def test_a_test_class_without_training_clips_is_an_error(corpus):
    path = corpus.folder("genre") / "test_labels.txt"
    path.write_text(path.read_text().replace("\tJazz", "\tPop"))
    with pytest.raises(CorpusError, match="no training clip of class Pop"):
        load_clips(corpus, "genre", "test")


def test_an_unusable_array_is_left_out_and_an_endless_one_is_cut(corpus):
    path = corpus.root / "fma_genre_spectrograms" / "train" / "13.fused.full.npy"
    path.write_bytes(b"nothing")
    with pytest.warns(CorpusWarning, match="13.fused.full.npy: not usable"):
        clips = load_clips(corpus, "genre")
    assert len(clips) == 23 and "13" not in clips.ids
    assert clips[2][2] == load_array(path.with_name("14.fused.full.npy")).shape[1]
    # One endless clip does not set the size of all.
    save(path, noise(np.random.default_rng(0), 5000, 10, -20, 2, 0.5))
    with pytest.warns(CorpusWarning, match="clip 13 is cut to 1000 frames"):
        clips = load_clips(corpus, "genre")
    assert clips.array.shape[1] == 1000 and clips[2][2] == 1000


def test_subsets_and_selections_keep_ids_labels_and_arrays_together(genre):
    order = np.random.default_rng(0).permutation(len(genre))
    part = genre.subset(order)
    ids = [genre.ids[i] for i in order]
    assert part.ids == ids and part.y.tolist() == genre.y[order].tolist()
    assert genre.select(ids[::-1]).ids == ids[::-1]
    back = part.select(genre.ids)
    for i in (0, 5):
        torch.testing.assert_close(back[i][0], genre[i][0])
    assert genre.subset(genre.y == 1).y.unique().tolist() == [1]
    with pytest.raises(KeyError, match="nobody"):
        genre.select(["nobody"])


def test_clips_of_own_arrays():
    arrays = [noise(np.random.default_rng(i), 20 + i, 10, -20, 2, 0.5) for i in range(3)]
    clips = Clips.of(arrays, ["c", "a", "b"])
    assert clips.ids == ["c", "a", "b"] and clips.lengths.tolist() == [20, 21, 22]
    np.testing.assert_array_equal(clips[1][0].numpy(), arrays[1].T)


# --- splits ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["genre", "affect"])
def test_folds_hold_each_clip_out_once_and_keep_tracks_together(task, request):
    clips = request.getfixturevalue(task)
    folds = k_folds(clips, 4, seed=1)
    assert sorted(np.concatenate([held_out for _, held_out in folds])) == list(range(len(clips)))
    groups = np.array(clips.groups)
    for learned, held_out in folds:
        assert len(learned) + len(held_out) == len(clips)
        assert not set(groups[learned]) & set(groups[held_out])
        if task == "genre":
            assert np.bincount(clips.y[held_out]).tolist() == [4] * 4


def test_splits_depend_on_the_seed_and_on_nothing_else(genre):
    parts = [train_val_split(genre, 0.2, seed)[1].ids for seed in (0, 0, 1)]
    assert parts[0] == parts[1] != parts[2]
    folds = [k_folds(genre, 4, seed)[0][1].tolist() for seed in (0, 0, 1)]
    assert folds[0] == folds[1] != folds[2]


def test_split_has_every_class_on_both_sides_and_no_track_twice(genre):
    train, val = train_val_split(genre, 0.25)
    assert not set(train.groups) & set(val.groups)
    assert set(val.y.tolist()) == set(train.y.tolist()) == {0, 1, 2, 3}
    assert sorted(train.ids + val.ids) == sorted(genre.ids)


def test_too_few_clips_for_a_split_are_told(tmp_path):
    corpus = make_corpus(tmp_path / "c", train=3, test=1, affect=(4, 1))
    train, val = train_val_split(load_clips(corpus, "genre"))
    assert len(train) == 6 and len(val) == 3
    with pytest.raises(CorpusError, match="too few for 5 parts"):
        k_folds(load_clips(corpus, "affect"), 5)


# --- batches and windows --------------------------------------------------------------------------


@pytest.mark.parametrize("features", windows.FEATURES)
def test_batches_hold_every_clip_once_with_its_own_rows_and_label(genre, features):
    reads = Reads(features)
    count = 0
    for x, lengths, y in batches(genre, 10, reads=reads):
        assert x.shape[2] == reads.n_features and x.shape[1] == lengths.max()
        for row, length, target in zip(x, lengths, y):
            expected = genre[count][0][:, reads.columns]
            torch.testing.assert_close(row[:length], expected)
            assert target == genre.y[count]
            count += 1
    assert count == len(genre)


def test_shuffled_batches_are_another_order_each_time_or_that_of_a_generator(genre):
    def order(seed=None):
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        drawn = batches(genre, 10, shuffle=True, generator=generator)
        return [round(float(clip.sum()), 2) for x, _, _ in drawn for clip in x[:, 0]]

    torch.manual_seed(0)
    first, second = order(), order()
    assert sorted(first) == sorted(second) and first != second
    assert order(1) == order(1) != order(2)


def test_shuffled_clips_keep_their_labels(genre):
    bands = [genre.subset(genre.y == code)[0][0][:, :128].mean(0).argmax() for code in range(4)]
    for x, _, y in batches(genre, 10, reads=Reads(window=8), shuffle=True):
        for clip, code in zip(x, y):
            assert abs(clip.mean(0).argmax() - bands[int(code)]) < 30


def test_windows_lie_in_their_clip_and_reach_all_of_it(genre):
    lengths = genre.lengths
    torch.manual_seed(0)
    starts = torch.stack([windows.random_starts(lengths, 16) for _ in range(300)])
    assert (starts >= 0).all() and (starts + 16 <= lengths).all()
    assert (starts.amin(0) == 0).all() and (starts.amax(0) == lengths - 16).all()
    even = windows.even_starts(lengths, 16, 5)
    assert (even[0] == 0).all() and (even[-1] == lengths - 16).all()
    assert (windows.even_starts(torch.tensor([10]), 16, 3) == 0).all()


def test_what_lies_beyond_a_clips_end_is_silence(genre):
    window = genre.array.shape[1] + 10
    x, lengths, _ = next(batches(genre, 64, reads=Reads("fused", window=window)))
    assert x.shape[1] == window and (lengths == genre.lengths).all()
    for row, length in zip([*genre.array, *x], [*lengths, *lengths]):
        assert (row[length:, :128] == -80).all() and (row[length:, 128:] == 0).all()


def test_random_windows_differ_from_epoch_to_epoch(genre):
    torch.manual_seed(0)
    one = genre.subset([0])
    epochs = [next(batches(one, reads=Reads(window=8), shuffle=True))[0] for _ in range(9)]
    assert len({round(float(x.sum()), 3) for x in epochs}) > 3


def test_reads_names_its_input_and_refuses_others():
    assert Reads("mel", beat=True).name == "beat mel" and Reads("chroma").name == "chroma"
    with pytest.raises(ValueError, match="known: mel, chroma, fused"):
        Reads("mfcc")
