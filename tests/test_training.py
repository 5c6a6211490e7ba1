"""The loop learns what is there, watches without choosing, and gives the same again."""

import math
import random
from functools import partial

import numpy as np
import pytest
import torch
from helpers import small_cnn, watched

from labhelpers import training
from labhelpers.clips import Reads, k_folds, load_clips, train_val_split
from labhelpers.metrics import macro_f1, rho
from labhelpers.models import LSTM, Classifier, Regressor


def classifier(clips, seed=0, window=16):
    torch.manual_seed(seed)
    return Classifier(small_cnn(window), clips.classes).start_from(clips)


def regressor(clips, **options):
    return Regressor(small_cnn(), **options).start_from(clips)


def weights(model):
    return torch.cat([value.flatten().float() for value in model.state_dict().values()])


# --- fit ------------------------------------------------------------------------------------------


def test_learns_the_labels_and_nothing_from_shuffled_ones(shared_corpus, genre):
    test = load_clips(shared_corpus, "genre", "test")
    y, scores = test.y.numpy(), []
    shuffled = genre.subset(range(len(genre)))
    codes = np.random.default_rng(0).permutation(genre.table["code"])
    shuffled.table = genre.table.assign(code=codes)
    for clips in (genre, shuffled):
        model = classifier(genre)
        rows = training.fit(model, clips, epochs=12, lr=1e-2)
        scores.append(macro_f1(y, training.predict(model, test).argmax(1)))
        assert len(rows) == 12 and not model.training
    assert scores[0] > 0.9 and scores[1] < 0.6


def test_affect_is_learned_axis_by_axis(affect):
    train, val = train_val_split(affect, 0.25)
    torch.manual_seed(0)
    model = regressor(train)
    training.fit(model, train, epochs=30, lr=1e-2)
    predictions = training.predict(model, val)
    scores = [[rho(val.y[:, i], predictions[:, j]) for j in range(3)] for i in range(3)]
    assert scores[0][0] > 0.8 and scores[1][1] > 0.8  # mel rows know nothing of danceability
    assert abs(scores[0][1]) < 0.6 and abs(scores[1][0]) < 0.6


OPTIONS = {"seed": 1, "epochs": 2, "lr": 3e-3, "batch_size": 8}


@pytest.mark.parametrize("option", OPTIONS)
def test_same_options_same_weights_other_options_others(genre, option):
    results = []
    for more in ({}, {}, {option: OPTIONS[option]}):
        model = classifier(genre)
        training.fit(model, genre, **{"epochs": 1, "lr": 1e-2, "seed": 0} | more)
        results.append(weights(model))
    assert torch.equal(results[0], results[1]) and not torch.equal(results[0], results[2])


def test_validation_only_watches(genre, capsys):
    train, val = train_val_split(genre, 0.25)
    alone, watched = classifier(train), classifier(train)
    training.fit(alone, train, epochs=3, lr=1e-2)
    rows = training.fit(watched, train, val, epochs=3, lr=1e-2)
    assert torch.equal(weights(alone), weights(watched))
    assert rows[-1].keys() == {"epoch", "train_loss", "val_loss", "val_score"}
    assert capsys.readouterr().out == ""
    training.fit(watched, train, val, epochs=3, lr=1e-2, log=True)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and lines[2].startswith("epoch 3  train_loss ")


def test_the_last_rows_numbers_are_those_of_the_model_that_is_returned(genre):
    train, val = train_val_split(genre, 0.25)
    model = classifier(train)
    rows = training.fit(model, train, val, epochs=4, lr=1e-2)
    probabilities = training.predict(model, val)
    y = val.y.numpy()
    assert rows[-1]["val_score"] == pytest.approx(macro_f1(y, probabilities.argmax(1)))
    one_window = classifier(train, window=None)
    row = training.validate(one_window, val)
    p = training.predict(one_window, val)
    assert row["val_loss"] == pytest.approx(-np.log(p[range(len(y)), y]).mean(), rel=1e-4)


def test_best_keeps_the_best_validation_score_and_last_the_last(genre):
    train, val = train_val_split(genre, 0.25)
    val.table = val.table.assign(code=(val.table["code"] + 1) % 4)  # learning makes it worse
    for keep in ("best", "last"):
        model = classifier(train)
        rows = training.fit(model, train, val, epochs=6, lr=1e-2, keep=keep)
        scores = [row["val_score"] for row in rows]
        score = training.validate(model, val)["val_score"]
        assert score == pytest.approx(max(scores) if keep == "best" else scores[-1])
        assert max(scores) > scores[-1]


def test_the_schedule_rises_and_ends_near_zero(genre, monkeypatch):
    rates = watched(monkeypatch, torch.optim.AdamW, "step", lambda _, it: it.param_groups[0]["lr"])
    training.fit(classifier(genre), genre, epochs=5, lr=1e-2)
    assert len(rates) == 5 * 4 and max(rates) == pytest.approx(1e-2, rel=0.05)
    assert 0.2 < np.argmax(rates) / len(rates) < 0.4 and rates[-1] < 0.03 * max(rates)


def test_losses_are_means_over_clips_not_over_batches(genre, monkeypatch):
    losses = watched(monkeypatch, Classifier, "loss", lambda loss, *given: (loss, len(given[2])))
    row = training.fit(classifier(genre), genre.subset(range(18)), epochs=1, lr=1e-3)[0]
    assert [count for _, count in losses] == [16, 2]
    assert row["train_loss"] == pytest.approx(sum(v.item() * n for v, n in losses) / 18)


def test_the_callers_random_numbers_go_on(genre):
    training.set_seed(3)
    expected = random.random(), np.random.rand(), float(torch.rand(1))
    training.set_seed(3)
    model = classifier(genre)
    training.set_seed(3)
    training.fit(model, genre, epochs=1, lr=1e-3)
    assert (random.random(), np.random.rand(), float(torch.rand(1))) == expected


def test_bad_numbers_are_told(genre):
    model = classifier(genre)
    for options in ({"epochs": 0}, {"batch_size": 0}, {"lr": 0}, {"lr": math.nan}):
        with pytest.raises(ValueError, match="at least 1"):
            training.fit(model, genre, **{"epochs": 1, "lr": 1e-3} | options)
    with pytest.raises(ValueError, match="0 clips"):
        training.fit(model, genre.subset([]), epochs=1, lr=1e-3)
    with torch.no_grad():
        model.head.weight.fill_(math.nan)
    with pytest.raises(FloatingPointError, match="learning rate"):
        training.fit(model, genre, epochs=1, lr=1e-3)


def test_frozen_layers_stay_as_they_are(genre):
    model = classifier(genre)
    block = model.backbone.blocks[0]
    for parameter in block.parameters():
        parameter.requires_grad = False
    before, head = weights(block), weights(model.head)
    training.fit(model, genre, epochs=1, lr=1e-2)
    assert torch.equal(weights(block), before) and not torch.equal(weights(model.head), head)


def test_each_seed_is_another_start_and_another_order(genre):
    starts = []

    def make(train):
        model = classifier(train, seed=torch.initial_seed())
        starts.append(weights(model))
        return model

    models, histories = training.fit_seeds(make, genre, seeds=3, epochs=1, lr=1e-2)
    assert len(models) == len(histories) == 3
    assert len({float(start.sum()) for start in starts}) == 3


# --- folds ----------------------------------------------------------------------------------------


def test_no_clip_is_predicted_by_a_model_that_has_learned_it_or_its_track(affect, monkeypatch):
    def note(_, model, clips):
        known = affect.subset([f"affect {clip}" in model.learned for clip in affect.ids])
        assert len(known) == len(affect) - len(clips)
        assert not set(known.groups) & set(clips.groups)
        return clips.ids

    judged = watched(monkeypatch, training, "predict", note)
    values = training.cross_predict(regressor, affect, k_folds(affect, 5), epochs=1, lr=1e-3)
    assert values.shape == (60, 3) and np.isfinite(values).all()
    assert sorted(sum(judged, [])) == sorted(affect.ids)


def test_folds_predictions_come_in_the_order_of_the_clips(affect):
    folds = k_folds(affect, 4)
    values = training.cross_predict(regressor, affect, folds, epochs=25, lr=1e-2)
    assert rho(affect.y[:, 1], values[:, 1]) > 0.7
    run = partial(training.cross_predict, regressor, affect, epochs=1, lr=1e-2)
    one = run(folds)
    np.testing.assert_array_equal(run(folds[::-1]), one)
    assert np.abs(run(folds, seed=1) - one).max() > 1e-3


# --- checks before a training ---------------------------------------------------------------------


def test_a_dry_run_leaves_the_model_alone(genre):
    model = classifier(genre)
    before = weights(model)
    rows = training.dry_run(model, genre, n_batches=2, epochs=2, lr=1e-2)
    assert [row["epoch"] for row in rows] == [1, 2] and torch.equal(weights(model), before)


def lstm(**_):
    return LSTM(Reads("chroma", window=16), 32)


@pytest.mark.parametrize("make", [small_cnn, lstm])
def test_one_batch_is_learned_by_heart(genre, make):
    torch.manual_seed(0)
    model = Classifier(make(dropout=0.5), genre.classes).start_from(genre)
    before = weights(model)
    losses = training.overfit_batch(model, genre, steps=80, lr=1e-2)
    assert len(losses) == 80 and losses[0] > 1 and losses[-1] < 0.05
    assert torch.equal(weights(model), before)


def test_epochs_for_steps(genre):
    assert [training.epochs_for(100, genre, size) for size in (16, 64)] == [25, 100]  # 64 clips
    assert training.epochs_for(1, genre, 16) == 1


# --- predictions ----------------------------------------------------------------------------------


def test_predictions_come_in_the_order_of_the_clips_whatever_their_batch(genre):
    model = classifier(genre)
    order = np.random.default_rng(0).permutation(len(genre))
    for function in (training.predict, training.embed):
        whole = function(model, genre)
        for part in (order, order[:3]):
            values = function(model, genre.subset(part))
            np.testing.assert_allclose(values, whole[part], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("n", [5, 2])
def test_a_prediction_is_the_mean_over_evenly_spaced_windows(genre, n):
    model = Classifier(small_cnn(n_windows=n), genre.classes).start_from(genre).eval()
    clip = genre.subset([int(genre.lengths.argmax())])
    x, _, length = clip[0]
    starts = torch.linspace(0, 1, n) * (length - 16)
    windows = torch.stack([x[int(start.round()) :][:16, :128] for start in starts])
    with torch.inference_mode():
        outputs = model(windows, torch.full((n,), 16)).mean(0)
        features = model.backbone(windows, torch.full((n,), 16)).mean(0)
    np.testing.assert_allclose(training.predict(model, clip)[0], outputs.softmax(0), rtol=1e-4)
    np.testing.assert_allclose(training.embed(model, clip)[0], features, rtol=1e-4, atol=1e-6)


def test_a_model_refuses_clips_of_the_other_kind(shared_corpus, genre):
    beat = load_clips(shared_corpus, "genre", beat=True)
    model = classifier(genre)
    for action in (training.predict, training.embed):
        with pytest.raises(ValueError, match="load them with beat=False"):
            action(model, beat)
    with pytest.raises(ValueError, match="reads full-length clips"):
        training.fit(model, beat, epochs=1, lr=1e-3)


def test_an_awkward_corpus_passes_every_step(awkward):
    train, val, test = awkward
    model = classifier(train)
    row = training.fit(model, train, val, epochs=2, lr=1e-3)[-1]
    assert 0 <= row["val_score"] <= 1
    values = training.predict(model, test)
    assert np.isfinite(values).all()
    twin = train.ids.index("11")
    np.testing.assert_allclose(values[0], training.predict(model, train)[twin], rtol=1e-5)
    calm = range(2, len(test))  # the outlier changes no other prediction
    np.testing.assert_allclose(training.predict(model, test.subset(calm)), values[2:], rtol=1e-5)


def test_devices_that_are_not_there_are_told():
    for name in ("cuda:99", "gpu", "xyz"):
        with pytest.raises(ValueError, match="'cpu' and 'auto' run everywhere"):
            training.pick_device(name)
    assert training.pick_device("cpu").type == "cpu"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_a_gpu_learns_and_predicts_what_a_cpu_does(genre):
    """On a GPU: half precision trains as well, and float32 predictions are the CPU's."""
    model = classifier(genre)
    rows = training.fit(model, genre, epochs=12, lr=1e-2, device="cuda")
    assert rows[-1]["train_loss"] < 0.5 * rows[0]["train_loss"]
    there = training.predict(model, genre.to("cuda"))
    np.testing.assert_allclose(training.predict(model.cpu(), genre), there, atol=1e-4)
