"""The measurements run and give numbers; how large they are is for a quiet machine to say."""

import math

from helpers_corpus import make_corpus

from tools import bench


def test_data(corpus, capsys):
    result = bench.data(corpus, rounds=1)
    assert all(math.isfinite(value) and value > 0 for value in result.values())
    assert set(result) == {"first", "second", "plain", "first/plain", "memory/array"}
    assert "plain loop" in capsys.readouterr().out


def test_train(tmp_path, monkeypatch, capsys):
    corpus = make_corpus(tmp_path / "long", frames=(60, 70))  # the plain CNN pools 54 frames
    networks = {name: (*how[:4], 8, 4) for name, how in bench.NETWORKS.items()}
    del networks["LSTM full mel"]
    monkeypatch.setattr(bench, "NETWORKS", networks)
    table = bench.train(corpus, rounds=1)
    assert list(table.index) == list(networks)
    ratios = table[["fit/floor", "fit/skeleton"]].to_numpy()
    assert (ratios > 0).all() and "fit/skeleton" in capsys.readouterr().out
