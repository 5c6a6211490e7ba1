"""The baselines, and classical descriptors: what they should notice, and what they should not."""

import os

import numpy as np
import pytest

from labhelpers.baselines import (
    BLOCKS,
    FRAME_RATE,
    MAJOR,
    MINOR,
    DescriptorMachine,
    describe_clip,
    descriptors,
    key_fit,
    majority_baseline,
    modulation_spectrum,
    rhythm,
    row_statistics,
    svm_baseline,
    tonality,
)
from labhelpers.datasets import SpectrogramDataset
from labhelpers.metrics import mean_rho


def clip(frames=431, seed=0):
    rng = np.random.default_rng(seed)
    mel, chroma = rng.uniform(-80, 0, (frames, 128)), rng.uniform(0, 1, (frames, 12))
    return np.concatenate([mel, chroma], axis=1).astype(np.float32)


@pytest.fixture
def clips(shared_corpus):
    return [SpectrogramDataset(shared_corpus, "genre", split) for split in ("train", "test")]


# --- baselines ------------------------------------------------------------------------------------


def test_row_statistics(clips):
    part = clips[0].subset([0, 20])
    x = part[1][0].numpy()
    expected = np.concatenate([x.mean(0), x.std(0), np.abs(np.diff(x, axis=0)).mean(0)])
    np.testing.assert_allclose(row_statistics(part)[1], expected, rtol=1e-5)
    assert row_statistics(part.with_features("chroma")).shape == (2, 36)


def test_baselines(clips, shared_corpus):
    train, test = clips
    decisions = svm_baseline(train, test)
    assert (decisions.argmax(1) == test.y.numpy()).mean() > 0.9
    assert decisions.shape == (16, 4) and (decisions.sum(1) == 1).all()
    lopsided = train.subset(range(20))  # 16 clips of one genre, 4 of another
    assert (majority_baseline(lopsided, test).argmax(1) == int(lopsided.y[0])).all()
    affect = SpectrogramDataset(shared_corpus, "affect")
    first, rest = affect.subset(range(45)), affect.subset(range(45, 60))
    assert mean_rho(rest.y.numpy(), svm_baseline(first, rest)) > 0.6
    constant = majority_baseline(first, rest)
    np.testing.assert_allclose(constant, np.tile(first.y.mean(0), (15, 1)), rtol=1e-5)
    assert mean_rho(rest.y.numpy(), constant) == 0


def test_the_machine_learns_from_the_training_clips_alone(clips):
    """Its decisions on a clip are the same whatever other clips are judged with it."""
    train, test = clips
    whole = svm_baseline(train, test)
    for part in (range(3), range(5, 16)):
        np.testing.assert_array_equal(svm_baseline(train, test.subset(part)), whole[list(part)])
    flipped = train.subset(range(64))
    flipped.clips = flipped.clips.assign(code=3 - flipped.clips["code"])
    assert (svm_baseline(flipped, test).argmax(1) == 3 - whole.argmax(1)).mean() > 0.9


# --- descriptors ----------------------------------------------------------------------------------


def test_sizes_do_not_depend_on_the_length_and_short_clips_are_finite():
    sizes = {name: block.shape for name, block in describe_clip(clip()).items()}
    assert tuple(sizes) == BLOCKS
    for frames in (1, 2, 9, 100, 1292):
        with np.errstate(all="ignore"):
            blocks = describe_clip(clip(frames))
        assert {name: block.shape for name, block in blocks.items()} == sizes


# Weighted sums of each block of a clip of noise, as the first version of the project gave them.
SUMS = {
    "rows": 9.75036357,
    "modulation": 4.90516207,
    "rhythm": 14.39835728,
    "tonality": 0.19351249,
    "chords": 0.41179219,
    "timbre": 4.51832165,
}


def test_descriptors_are_those_that_results_were_reported_with():
    for name, block in describe_clip(clip()).items():
        order = np.linspace(0.5, 1.5, block.size)
        assert (block * order).mean() == pytest.approx(SUMS[name], abs=2e-6), name


def test_descriptors_are_of_all_rows_of_the_real_frames(clips):
    part = clips[0].with_features("mel").subset([2, 7])
    blocks = descriptors(part)
    assert tuple(blocks) == BLOCKS
    expected = describe_clip(clips[0][7][0].numpy())
    for name, block in blocks.items():
        np.testing.assert_allclose(block[1], np.nan_to_num(expected[name]), rtol=1e-6)
        assert np.isfinite(block).all()


def test_rhythm_finds_the_tempo_of_a_click():
    mel = np.full((860, 128), -60.0)
    period = round(0.5 * FRAME_RATE)  # 120 beats a minute
    mel[::period] = 0
    strength, tempo = rhythm(mel)[:2]
    assert tempo == pytest.approx(60 * FRAME_RATE / period)
    assert strength > 0.8 > rhythm(clip()[:, :128].astype(float))[0]


def test_modulation_spectrum_peaks_at_the_rate_of_a_tremolo():
    time = np.arange(860) / FRAME_RATE
    mel = np.tile(-30 + 10 * np.sin(2 * np.pi * 4 * time)[:, None], (1, 128))
    by_rate = modulation_spectrum(mel).reshape(10, 16).mean(1)
    edges = np.geomspace(0.3, 16, 11)
    assert edges[by_rate.argmax()] <= 4 <= edges[by_rate.argmax() + 1]


def test_keys_are_named_from_their_tonic():
    for tonic in range(12):
        major, minor = key_fit(np.roll(MAJOR, tonic))
        assert major.argmax() == tonic and major.max() > 1 - 1e-9 and minor.max() < 0.99
        major, minor = key_fit(np.roll(MINOR, tonic))
        assert minor.argmax() == tonic and minor.max() > 1 - 1e-9 and major.max() < 0.99
    assert not np.any(key_fit(np.ones(12)))


def test_tonality_is_the_same_in_every_key_and_knows_major_from_minor():
    chroma = np.tile(MAJOR / MAJOR.max(), (300, 1))
    for shift in range(12):
        moved = tonality(np.roll(chroma, shift, axis=1))
        np.testing.assert_allclose(moved, tonality(chroma), atol=1e-9)
        assert moved[0] == pytest.approx(1) and moved[2] > 0


# --- the machine ----------------------------------------------------------------------------------


def useful_and_noise(n=120):
    """Blocks in which one of 2 columns says everything, and the others are noise."""
    rng = np.random.default_rng(0)
    blocks = {"rows": rng.normal(size=(n, 2))}
    blocks |= {name: rng.normal(size=(n, 200)) for name in BLOCKS[1:]}
    return blocks, blocks["rows"][:, 0]


def split(blocks, n):
    first = {name: block[:n] for name, block in blocks.items()}
    return first, {name: block[n:] for name, block in blocks.items()}


def test_machine_weighs_blocks_alike_and_learns():
    blocks, target = useful_and_noise()
    values = 0.5 + 0.1 * np.column_stack([target, -target])
    train, rest = split(blocks, 80)
    predicted = DescriptorMachine(train, values[:80]).predict(rest)
    # A thousand columns of noise do not drown two of signal.
    assert np.corrcoef(predicted[:, 0], target[80:])[0, 1] > 0.5
    assert np.corrcoef(predicted[:, 1], -target[80:])[0, 1] > 0.5
    codes = (target > 0).astype(int)
    decided = DescriptorMachine(train, codes[:80], classes=["low", "high"]).predict(rest)
    assert decided.shape == (40, 2) and (decided.sum(1) == 1).all()
    assert (decided.argmax(1) == codes[80:]).mean() > 0.7


def test_machine_stays_between_0_and_1():
    blocks, target = useful_and_noise()
    extreme = (target > 0).astype(float)[:, None]
    predicted = DescriptorMachine(blocks, extreme).predict(blocks)
    assert predicted.min() >= 0 and predicted.max() <= 1


@pytest.mark.parametrize("classes", [(), ["low", "high"]])
def test_machine_is_saved_and_loaded_without_pickle(tmp_path, classes):
    blocks, target = useful_and_noise(60)
    targets = (target > 0).astype(int) if classes else 0.5 + 0.1 * target[:, None]
    machine, path = DescriptorMachine(blocks, targets, classes), tmp_path / "m.npz"
    machine.save(path)
    again = DescriptorMachine.load(path)
    np.testing.assert_array_equal(again.predict(blocks), machine.predict(blocks))
    assert again.classes == list(classes) and list(tmp_path.iterdir()) == [path]


def test_machine_of_some_blocks_in_any_order(tmp_path):
    blocks, target = useful_and_noise(60)
    some = {name: blocks[name] for name in ("rows", "chords", "rhythm")}
    machine = DescriptorMachine(some, 0.5 + 0.1 * target[:, None])
    machine.save(tmp_path / "m.npz")
    for each in (machine, DescriptorMachine.load(tmp_path / "m.npz")):
        turned = {name: blocks[name] for name in ("timbre", "rhythm", "rows", "chords")}
        np.testing.assert_array_equal(each.predict(turned), machine.predict(some))


def test_what_is_no_machine(tmp_path):
    path = tmp_path / "08.svr.npz"
    np.savez(path, targets=np.zeros(3))
    good = path.read_bytes()
    for content in (good, good[:40], b"", b"PK nonsense"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="08.svr.npz: not a descriptor machine .*run the note"):
            DescriptorMachine.load(path)


def test_a_pickle_in_a_machine_is_never_run(tmp_path):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "sprung"),)

    path = tmp_path / "m.npz"
    blocks = dict.fromkeys(BLOCKS, np.array([Trap()], object))
    np.savez(path, targets=np.array([Trap()], object), classes=np.array([]), names=BLOCKS, **blocks)
    with pytest.raises(ValueError, match="not a descriptor machine"):
        DescriptorMachine.load(path)
    assert not (tmp_path / "sprung").exists()
