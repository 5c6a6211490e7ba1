"""The measurement of the extractor runs, and holds its arrays to librosa's own."""

import numpy as np
import pytest
import soundfile

from tools import bench_extract


def test_extraction(tmp_path, monkeypatch):
    noise = np.random.default_rng(0).normal(0, 0.1, 44100)
    noise[::11025] += 0.5
    soundfile.write(tmp_path / "a.wav", noise, 22050)
    said = []
    result = bench_extract.extraction([tmp_path / "a.wav"], rounds=1, say=said.append)
    assert set(result) == {"plain", "ours", "plain/ours", "two/one"}
    assert all(value > 0 for value in result.values()) and "two processes" in said[-1]
    monkeypatch.setattr(bench_extract, "extract", lambda y: (np.zeros(1), np.zeros(1)))
    with pytest.raises(AssertionError, match="arrays differ"):
        bench_extract.extraction([tmp_path / "a.wav"], rounds=1)
