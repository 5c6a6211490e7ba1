"""The baselines, and classical descriptors: what they should notice, and what they should not."""

import os
import warnings
from functools import partial

import numpy as np
import pytest

from labhelpers import baselines
from labhelpers.audio import FRAME_RATE
from labhelpers.baselines import DescriptorMachine, descriptors, svm_baseline
from labhelpers.clips import load_clips
from labhelpers.metrics import mean_rho

BLOCKS = ("rows", "modulation", "rhythm", "tonality", "chords", "timbre")


def clip(frames=431, seed=0):
    rng = np.random.default_rng(seed)
    mel, chroma = rng.uniform(-80, 0, (frames, 128)), rng.uniform(0, 1, (frames, 12))
    return np.concatenate([mel, chroma], axis=1).astype(np.float32)


@pytest.fixture(scope="module")
def genres(shared_corpus, genre):
    return genre, load_clips(shared_corpus, "genre", "test")


@pytest.fixture(scope="module")
def affects(affect):
    return affect.subset(range(40)), affect.subset(range(40, 60))


# --- baselines ------------------------------------------------------------------------------------


def test_majority_is_the_commonest_class_or_the_mean(genres, affects):
    train, test = genres
    rare = np.flatnonzero(train.y != 2)[:20]
    common = np.flatnonzero(train.y == 2)
    decisions = baselines.majority_baseline(train.subset([*rare, *common, *common]), test)
    np.testing.assert_array_equal(decisions, np.tile([0, 0, 1, 0], (16, 1)))
    train, test = affects
    constant = baselines.majority_baseline(train, test)
    np.testing.assert_allclose(constant, np.tile(train.y.mean(0), (20, 1)), rtol=1e-5)
    assert mean_rho(test.y.numpy(), constant) == 0


def test_row_statistics_are_of_the_real_frames_of_the_rows_asked_for(genre):
    part = genre.subset([20, 0])
    for i, features, rows in ((0, "fused", slice(None)), (1, "chroma", slice(128, 140))):
        x = part[i][0].numpy()[:, rows]
        expected = np.concatenate([x.mean(0), x.std(0), np.abs(np.diff(x, axis=0)).mean(0)])
        np.testing.assert_allclose(baselines.row_statistics(part, features)[i], expected, rtol=1e-5)
    assert baselines.row_statistics(part, "mel").shape == (2, 384)


def test_svm_learns_the_labels_and_nothing_from_shuffled_ones(genres, affects):
    train, test = genres
    for features in ("mel", "chroma", "fused"):
        decisions = svm_baseline(train, test, features)
        assert decisions.shape == (16, 4) and (decisions.sum(1) == 1).all()
        assert (decisions.argmax(1) == test.y.numpy()).mean() > 0.9
    shuffled = train.subset(range(len(train)))
    codes = np.tile(np.arange(4), 16)  # each class stands for every genre alike
    shuffled.table = shuffled.table.assign(code=codes)
    assert (svm_baseline(shuffled, test).argmax(1) == test.y.numpy()).mean() < 0.7
    train, test = affects
    assert mean_rho(test.y.numpy(), svm_baseline(train, test)) > 0.6


def test_a_clip_is_judged_alike_whatever_other_clips_are(genres, affects):
    """So nothing, such as a mean to subtract, is learned from test clips."""
    for train, test in (genres, affects):
        whole = svm_baseline(train, test)
        order = [9, 2, 14]
        np.testing.assert_allclose(svm_baseline(train, test.subset(order)), whole[order])


def test_a_class_without_training_clips_is_never_decided(genres):
    train, test = genres
    part = train.subset(train.y.numpy() != 1)
    blocks, unseen = descriptors(part), descriptors(test)
    scores = DescriptorMachine(blocks, part.y.numpy(), part.classes).predict(unseen)
    for decisions in (svm_baseline(part, test), baselines.majority_baseline(part, test), scores):
        assert decisions.shape == (16, 4) and (decisions.argmax(1) != 1).all()


# --- descriptors ----------------------------------------------------------------------------------


def test_sizes_do_not_depend_on_the_length_and_numbers_are_finite():
    sizes = {name: block.shape for name, block in baselines.describe_clip(clip()).items()}
    assert tuple(sizes) == BLOCKS
    silence = np.concatenate([np.full((300, 128), -80), np.zeros((300, 12))], axis=1)
    constant = np.tile(clip(1), (300, 1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for x in (*(clip(frames) for frames in (1, 2, 9, 100, 1292)), silence, constant):
            blocks = baselines.describe_clip(x)
            assert {name: block.shape for name, block in blocks.items()} == sizes
            assert all(np.isfinite(block).all() for block in blocks.values())


def test_descriptors_come_in_the_order_of_the_clips_without_padding(genre):
    part = genre.subset([40, 7, 23])
    blocks = descriptors(part)
    for i, position in enumerate((40, 7, 23)):
        for name, expected in baselines.describe_clip(genre[position][0].numpy()).items():
            np.testing.assert_array_equal(blocks[name][i], expected)


def test_rhythm_finds_the_tempo_of_a_click():
    mel = np.full((860, 128), -60.0)
    period = round(0.5 * FRAME_RATE)  # 120 beats per minute
    mel[::period] = 0
    clarity, tempo = baselines.rhythm(mel)[:2]
    assert tempo == pytest.approx(60 * FRAME_RATE / period)
    assert clarity > 0.8 > baselines.rhythm(clip()[:, :128].astype(float))[0]


def test_modulation_peaks_at_the_rate_of_a_tremolo():
    time = np.arange(860) / FRAME_RATE
    for rate in (2.0, 8.0):
        mel = np.tile(-30 + 10 * np.sin(2 * np.pi * rate * time)[:, None], (1, 128))
        peak = baselines.modulation(mel).reshape(10, 16).mean(1).argmax()
        assert baselines.MODULATIONS[peak] <= rate <= baselines.MODULATIONS[peak + 1]


def test_keys_are_named_from_their_tonic():
    for mode, key in enumerate((baselines.MAJOR, baselines.MINOR)):
        for tonic in range(12):
            fits = baselines.key_fit(np.roll(key, tonic))
            assert fits[mode].argmax() == tonic and fits[mode].max() > 1 - 1e-9
            assert fits[1 - mode].max() < 0.99
    assert not np.any(baselines.key_fit(np.ones(12)))


def test_harmony_is_the_same_in_every_key_and_knows_major_from_minor():
    harmonies = np.array([list(keys) for keys in baselines.HARMONIES.values()]) == "x"
    major, minor = harmonies[:1].astype(float), harmonies[1:2].astype(float)
    song = np.repeat(np.concatenate([major, np.roll(major, 5), minor, np.roll(major, 7)]), 86, 0)
    song += np.random.default_rng(0).uniform(0, 0.1, song.shape)
    described = [baselines.tonality]
    described += [partial(baselines.chords, frames=n) for n in baselines.CHORD_WINDOWS]
    for describe in described:
        for shift in range(12):
            moved = describe(np.roll(song, shift, axis=1))
            np.testing.assert_allclose(moved, describe(song), atol=1e-9)
    fits = [baselines.chords(np.repeat(triad, 200, 0), 43)[:2] for triad in (major, minor)]
    assert fits[0][0] > 0.99 > fits[0][1] and fits[1][1] > 0.99 > fits[1][0]
    changed = baselines.chords(song, 43)[-1]
    assert changed == pytest.approx(3 / 8)  # three changes of chord in eight windows


# --- the machine ----------------------------------------------------------------------------------


def useful_and_noise(n=120):
    """Blocks in which one of 2 columns says everything, and the others are noise."""
    rng = np.random.default_rng(0)
    blocks = {"rows": rng.normal(size=(n, 2))}
    blocks |= {name: rng.normal(size=(n, 200)) for name in BLOCKS[1:]}
    return blocks, blocks["rows"][:, 0]


def part(blocks, positions):
    return {name: block[positions] for name, block in blocks.items()}


def test_blocks_weigh_alike_and_the_machine_learns():
    blocks, target = useful_and_noise()
    values = 0.5 + 0.1 * np.column_stack([target, -target])
    train, rest = part(blocks, slice(80)), part(blocks, slice(80, None))
    predicted = DescriptorMachine(train, values[:80]).predict(rest)
    # A thousand columns of noise do not drown two of signal.
    assert np.corrcoef(predicted[:, 0], target[80:])[0, 1] > 0.5
    assert np.corrcoef(predicted[:, 1], -target[80:])[0, 1] > 0.5
    codes = (target > 0).astype(int)
    scores = DescriptorMachine(train, codes[:80], ["low", "high"]).predict(rest)
    np.testing.assert_allclose(scores.sum(1), 1)
    assert scores.min() >= 0 and (scores.argmax(1) == codes[80:]).mean() > 0.7
    order = [30, 3, 17]
    again = DescriptorMachine(train, codes[:80], ["low", "high"]).predict(part(rest, order))
    np.testing.assert_allclose(again, scores[order])
    affect = DescriptorMachine(train, codes[:80, None].astype(float)).predict(train)
    assert affect.min() >= 0 and affect.max() <= 1


def test_one_outlier_does_not_make_a_clip_unlike_all_others():
    blocks, _ = useful_and_noise(60)
    machine = DescriptorMachine(blocks, np.linspace(0, 1, 60)[:, None])
    odd = part(blocks, [5])
    odd["timbre"][0, 0] = 1e9
    assert machine.likeness(odd)[0, 5] > 0.95


@pytest.mark.parametrize("classes", [(), ["low", "Ροκ <b>"]])
def test_the_machine_is_saved_and_loaded_without_pickle(tmp_path, classes):
    blocks, target = useful_and_noise(60)
    some = {name: blocks[name] for name in ("rows", "chords", "rhythm")}
    targets = (target > 0).astype(int) if classes else 0.5 + 0.1 * target[:, None]
    machine, path = DescriptorMachine(some, targets, classes), tmp_path / "m.npz"
    machine.save(path)
    again = DescriptorMachine.load(path)
    turned = dict(reversed(blocks.items()))  # more blocks than it learned from, in another order
    np.testing.assert_array_equal(again.predict(turned), machine.predict(some))
    assert again.classes == list(classes) and list(tmp_path.iterdir()) == [path]


def test_what_is_no_machine_is_named_and_a_pickle_in_it_never_run(tmp_path):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "sprung"),)

    path = tmp_path / "08.svr.npz"
    blocks = dict.fromkeys([*BLOCKS, "targets"], np.array([Trap()], object))
    np.savez(path, classes=np.array([]), names=BLOCKS, **blocks)
    pickled = path.read_bytes()
    np.savez(path, targets=np.zeros(3))
    other = path.read_bytes()
    for content in (other, other[:40], b"", b"PK nonsense", pickled):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="08.svr.npz: not a descriptor machine .*run the note"):
            DescriptorMachine.load(path)
    assert not (tmp_path / "sprung").exists()
