"""The measurements run and give numbers; how large they are is for a quiet machine to say."""

import math

import nbformat
import pytest

from tools import bench


@pytest.fixture
def said():
    return []


def test_data(corpus, said, capsys):
    result = bench.data(corpus, rounds=1, say=said.append)
    assert all(math.isfinite(value) and value > 0 for value in result.values())
    assert set(result) == {"first", "second", "plain", "first/plain", "memory/array"}
    assert "plain loop" in "\n".join(said) and capsys.readouterr().out == ""


def test_train(corpus, said, monkeypatch):
    networks = {name: (*how[:3], 8, 4) for name, how in bench.NETWORKS.items() if name != "LSTM full mel"}
    monkeypatch.setattr(bench, "NETWORKS", networks)
    table = bench.train(corpus, rounds=1, say=said.append)
    assert list(table.index) == list(networks)
    ratios = table[["fit/floor", "fit/skeleton"]].to_numpy()
    assert (ratios > 0).all() and "fit/skeleton" in said[-1]


def test_quality_runs_the_notebooks_for_each_seed(corpus, said, tmp_path, monkeypatch):
    cells = [
        "from labhelpers.corpora.find import find_corpus\nfrom labhelpers.metrics import Estimate, rows_for\n"
        "from labhelpers.records import out_folder, save_run",
        "corpus = find_corpus(DATA)\nvalue = 0.5 + 0.1 * SEED\n"
        "rows = rows_for('a', 'genre', 'mel', 'test', accuracy=Estimate(value, 0, 1, 9))\n"
        "save_run('05_toy', corpus, out_folder(corpus, OUT), results=rows);",
    ]
    parameters = nbformat.v4.new_code_cell("DATA = None\nOUT = None\nSEED = 0", metadata={"tags": ["parameters"]})
    notebook = nbformat.v4.new_notebook(cells=[parameters, *map(nbformat.v4.new_code_cell, cells)])
    nbformat.write(notebook, tmp_path / "05_toy.ipynb")
    monkeypatch.setattr(bench, "out_folder", lambda corpus: tmp_path / "report")
    table = bench.quality(corpus, seeds=3, only=["05_toy"], notebooks=tmp_path, say=said.append)
    row = table.iloc[0]
    assert (row["mean"], row["lowest"], row["highest"], row["seeds"]) == pytest.approx((0.6, 0.5, 0.7, 3))
    assert row["deviation"] == pytest.approx(0.1)
    assert (tmp_path / "report" / "seeds" / "quality.csv").is_file()
