"""The measurements run and give numbers; how large they are is for a quiet machine to say."""

import math

import nbformat
import pytest
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


def test_quality_runs_the_notebooks_for_each_seed(corpus, tmp_path, monkeypatch):
    cells = [
        "from labhelpers.corpora.find import find_corpus\n"
        "from labhelpers.metrics import Estimate, result_rows\n"
        "from labhelpers.records import out_folder, save_run",
        "corpus = find_corpus(DATA)\nvalue = 0.5 + 0.1 * SEED\n"
        "estimate = Estimate(value, 0, 1, float('nan'), 1, 9)\n"
        "rows = result_rows('a', 'genre', 'mel', 'test', accuracy=estimate)\n"
        "save_run('05_toy', corpus, out_folder(corpus, OUT), results=rows);",
    ]
    parameters = nbformat.v4.new_code_cell("DATA = None\nOUT = None\nSEED = 0")
    parameters.metadata.tags = ["parameters"]
    code = [parameters, *map(nbformat.v4.new_code_cell, cells)]
    nbformat.write(nbformat.v4.new_notebook(cells=code), tmp_path / "05_toy.ipynb")
    monkeypatch.setattr(bench, "out_folder", lambda corpus: tmp_path / "report")
    table = bench.quality(corpus, seeds=3, only=["05_toy"], notebooks=tmp_path)
    row = table.iloc[0]
    expected = (0.6, 0.5, 0.7, 3)
    assert (row["mean"], row["lowest"], row["highest"], row["seeds"]) == pytest.approx(expected)
    assert row["deviation"] == pytest.approx(0.1)
    assert (tmp_path / "report" / "seeds" / "quality.csv").is_file()
