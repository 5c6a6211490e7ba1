"""The measurements run and give numbers; how large they are is for a quiet machine to say."""

import math

import pytest

from labhelpers import bench


@pytest.fixture
def said():
    return []


def test_data(corpus, said, capsys):
    result = bench.data(corpus, rounds=1, say=said.append)
    assert all(math.isfinite(value) and value > 0 for value in result.values())
    assert set(result) == {"first", "second", "plain", "first/plain", "memory/array"}
    assert "plain loop" in "\n".join(said) and capsys.readouterr().out == ""


def test_train(corpus, said, monkeypatch):
    networks = {name: (*how[:3], 8) for name, how in bench.NETWORKS.items() if name != "LSTM full mel"}
    monkeypatch.setattr(bench, "NETWORKS", networks)
    table = bench.train(corpus, rounds=1, say=said.append)
    assert list(table.index) == list(networks)
    ratios = table[["fit/floor", "fit/skeleton"]].to_numpy()
    assert (ratios > 0).all() and "fit/skeleton" in said[-1]


def test_quality_gives_mean_and_spread(corpus, said):
    recipes = {"a": lambda corpus, seed: {"accuracy": 0.5 + 0.1 * seed, "macro_f1": 0.4}}
    table = bench.quality(corpus, seeds=3, recipes=recipes, say=said.append)
    accuracy = table.iloc[0]
    assert (accuracy["mean"], accuracy["lowest"], accuracy["highest"]) == pytest.approx((0.6, 0.5, 0.7))
    assert list(table["metric"]) == ["accuracy", "macro_f1"] and len(said) == 4


def test_the_recipes_train(corpus, said, monkeypatch):
    monkeypatch.setattr(bench, "LSTM", bench.LSTM | {"epochs": 1})
    short = {"epochs": 1, "crop": 16}
    monkeypatch.setattr(bench, "AFFECT_CNN", bench.AFFECT_CNN | short)
    for name, recipe in bench.RECIPES.items():
        if hasattr(recipe, "keywords"):
            recipe.keywords["options"].update(epochs=1)
            recipe.keywords["options"].update({"crop": 16} if "crop" in recipe.keywords["options"] else {})
        metrics = recipe(corpus, seed=0)
        assert all(-1 <= value <= 1 for value in metrics.values()), name
