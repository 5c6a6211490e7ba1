"""Classical descriptors: what they should notice, and what they should not."""

import numpy as np
import pytest

from labhelpers.baselines import (
    FRAME_RATE,
    MAJOR,
    describe_clip,
    descriptor_machine,
    join,
    modulation_spectrum,
    rhythm,
    tonality,
)


def clip(frames=431, seed=0):
    rng = np.random.default_rng(seed)
    return np.concatenate([rng.uniform(-80, 0, (frames, 128)), rng.uniform(0, 1, (frames, 12))], axis=1).astype(
        np.float32
    )


def test_sizes_do_not_depend_on_the_length_and_short_clips_are_finite():
    sizes = {name: block.shape for name, block in describe_clip(clip()).items()}
    for frames in (1, 2, 9, 100, 1292):
        with np.errstate(all="ignore"):
            blocks = describe_clip(clip(frames))
        assert {name: block.shape for name, block in blocks.items()} == sizes


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


def test_tonality_is_the_same_in_every_key_and_knows_major_from_minor():
    chroma = np.tile(MAJOR / MAJOR.max(), (300, 1))
    for shift in range(12):
        moved = tonality(np.roll(chroma, shift, axis=1))
        np.testing.assert_allclose(moved, tonality(chroma), atol=1e-9)
        assert moved[0] == pytest.approx(1) and moved[2] > 0


def test_machine_weighs_blocks_alike_and_learns():
    rng = np.random.default_rng(0)
    useful, noise = rng.normal(size=(120, 2)), rng.normal(size=(120, 200))
    target = useful[:, 0]
    blocks = {"useful": useful, "noise": noise}
    predicted = descriptor_machine(blocks, "affect").fit(join(blocks)[:80], target[:80]).predict(join(blocks)[80:])
    assert np.corrcoef(predicted, target[80:])[0, 1] > 0.8  # 200 columns of noise do not drown 2 of signal
