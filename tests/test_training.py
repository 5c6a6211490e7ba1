"""The loop: seeds, the best epoch, kill and resume; and predictions, in float32 everywhere."""

import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from sklearn.metrics import f1_score
from torch.nn import functional as F

from labhelpers import training
from labhelpers.batches import N_WINDOWS, Augment
from labhelpers.corpora.layout import Corpus
from labhelpers.datasets import SpectrogramDataset, train_val_split
from labhelpers.models import Classifier, CNNBackbone, LSTMBackbone, MultitaskRegressor, Regressor
from labhelpers.training import (
    History,
    best_epoch,
    dry_run,
    embed,
    fit,
    fit_seeds,
    half_type,
    overfit_batch,
    pick_device,
    predict,
    set_seed,
    validate,
)

ALL = Augment(time_masks=1, time_width=4, row_masks=1, row_width=8, mixup=0.3, gain=2.0, roll=2)


def lstm(ds, seed=0, **options):
    set_seed(seed)
    options = {"hidden": 8, "bidirectional": True, "pooling": "mean+max"} | options
    return Classifier(LSTMBackbone(ds.n_features, **options), ds.classes).normalise_from(ds)


def cnn(ds, seed=0):
    set_seed(seed)
    backbone = CNNBackbone(ds.n_features, (4, 8, 8, 8), pools=(2, 2, 2, 2))
    return Classifier(backbone, ds.classes).normalise_from(ds)


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def numbers(history):
    """The history without the seconds."""
    rows = [{key: row[key] for key in row if key != "seconds"} for row in history.epochs]
    return rows, history.best_epoch


def quiet(model, train, val=None, **options):
    """`fit` as most tests call it."""
    return fit(model, train, val, log=False, **({"epochs": 3, "lr": 0.01} | options))


@pytest.fixture
def genre(shared_corpus):
    return train_val_split(SpectrogramDataset(shared_corpus, "genre", features="mel"), 0.25)


@pytest.fixture
def affect(shared_corpus):
    return train_val_split(SpectrogramDataset(shared_corpus, "affect", beat=True), 0.25)


@pytest.fixture
def after_epochs(monkeypatch):
    """The raw weights after each epoch of the trainings of a test."""
    seen, own = [], training.train_epoch

    def watched(state, *arguments):
        loss = own(state, *arguments)
        seen.append(weights(state["model"]))
        return loss

    monkeypatch.setattr(training, "train_epoch", watched)
    return seen


# --- what training does ---------------------------------------------------------------------------


@pytest.mark.parametrize("make, options", [(lstm, {"lr": 0.02}), (cnn, {"lr": 0.01, "crop": 24})])
def test_learns_the_labels_and_nothing_from_shuffled_ones(genre, make, options):
    train, val = genre
    model = make(train)
    quiet(model, train, val, epochs=15, batch_size=8, **options)
    learned = validate(model, val)["val_score"]
    mixed = torch.randperm(len(train), generator=torch.Generator().manual_seed(1)).numpy()
    train.clips = train.clips.assign(code=train.clips["code"].to_numpy()[mixed])
    model = make(train)
    quiet(model, train, epochs=15, batch_size=8, **options)
    chance = validate(model, val)["val_score"]
    assert learned > 0.9 and chance < 0.5


def test_learns_affect(shared_corpus):
    train, val = train_val_split(SpectrogramDataset(shared_corpus, "affect"), 0.25)
    set_seed(0)
    backbone = LSTMBackbone(140, 16, bidirectional=True, pooling="mean+max")
    model = MultitaskRegressor(backbone, weighting="scaled")
    model.normalise_from(train).start_from(train.y)
    history = quiet(model, train, val, epochs=25, lr=0.02, batch_size=16)
    assert max(row["val_score"] for row in history.epochs) > 0.7
    assert history.epochs[-1]["train_loss"] < 0.5 * history.epochs[0]["train_loss"]


@pytest.mark.parametrize("make", [lstm, cnn])
def test_same_seed_same_numbers(genre, make):
    def run(seed):
        model = make(genre[0])
        options = {"epochs": 2, "batch_size": 16, "crop": 24, "augment": ALL}
        history = quiet(model, *genre, seed=seed, **options)
        return numbers(history), weights(model)

    (one, a), (same, b), (other, c) = run(0), run(0), run(1)
    assert one == same and equal(a, b)
    assert one != other and not equal(a, c)


def test_losses_and_scores_are_over_all_examples(genre, affect):
    """The last batch is smaller than the others: a mean of batch means would differ."""
    train, val = genre
    model = lstm(train)
    each = []
    for x, y, length in train:
        each.append(F.cross_entropy(model(x[None], torch.tensor([length])), y[None]).item())
    history = quiet(model, train, val, epochs=1, lr=0.0, batch_size=13)
    assert history.epochs[0]["train_loss"] == pytest.approx(np.mean(each), rel=1e-5)
    results = [validate(model, val, batch_size=size) for size in (3, 16)]
    assert results[0]["val_loss"] == pytest.approx(results[1]["val_loss"], rel=1e-5)
    chosen = predict(model, val).argmax(1)
    expected = f1_score(val.y, chosen, average="macro", labels=val.y.unique())
    assert results[0]["val_score"] == results[1]["val_score"] == expected
    assert history.epochs[0]["val_score"] == expected
    set_seed(0)
    regressor = Regressor(LSTMBackbone(140, 4), affect[1].axes).normalise_from(affect[0])
    values = predict(regressor, affect[1], batch_size=4)
    rhos = [spearmanr(affect[1].y[:, i], values[:, i]).statistic for i in range(3)]
    assert validate(regressor, affect[1], batch_size=4)["val_score"] == pytest.approx(np.mean(rhos))


@pytest.mark.parametrize("crop", [None, 16])
def test_validation_loss_is_that_of_the_predictions(genre, affect, crop):
    val = genre[1]
    model = lstm(val)
    shares = torch.from_numpy(predict(model, val, crop=crop))
    loss = F.nll_loss(shares.log(), val.y).item()
    assert validate(model, val, crop=crop)["val_loss"] == pytest.approx(loss, rel=1e-5)
    model = Regressor(LSTMBackbone(140, 4), affect[1].axes).normalise_from(affect[1])
    values = torch.from_numpy(predict(model, affect[1], crop=crop))
    loss = F.mse_loss(values, affect[1].y).item()
    assert validate(model, affect[1], crop=crop)["val_loss"] == pytest.approx(loss, rel=1e-4)


def test_each_epoch_shuffles_the_clips_anew(genre, monkeypatch):
    train, _ = genre
    model, seen = lstm(train), []
    targets = model.targets
    monkeypatch.setattr(model, "targets", lambda y: seen.append(y) or targets(y))
    quiet(model, train, epochs=2, batch_size=16)
    orders = [torch.cat(seen[:3]).tolist(), torch.cat(seen[3:]).tolist()]
    assert sorted(orders[0]) == sorted(orders[1]) == sorted(train.y.tolist())
    assert orders[0] != orders[1] and train.y.tolist() not in orders


def test_training_has_dropout_augmentation_and_windows_and_validation_has_none(genre, monkeypatch):
    model, seen, changed = lstm(genre[0]), [], []
    model.backbone.register_forward_pre_hook(
        lambda module, inputs: seen.append((module.training, torch.is_grad_enabled(), inputs))
    )
    own = training.augment_batch
    monkeypatch.setattr(training, "augment_batch", lambda *a: changed.append(1) or own(*a))
    quiet(model, *genre, epochs=2, batch_size=16, crop=20, augment=ALL)
    learning = [inputs for trains, graded, inputs in seen if trains and graded]
    judging = [inputs for trains, graded, inputs in seen if not trains and not graded]
    assert len(learning) == len(changed) == 6 and len(learning) + len(judging) == len(seen)
    assert all(x.shape[1] == 20 for x, _ in learning + judging)
    windows = torch.cat([x for x, _ in judging])
    whole = genre[1].x.unfold(1, 20, 1)  # (N, starts, F, 20): what is judged is the clips' own
    for window in windows[:5]:
        assert (whole == window.T).all(3).all(2).any()


def test_gradients_are_clipped(genre, monkeypatch):
    model, norms = lstm(genre[0]), []
    own_loss, own_step = model.loss, torch.optim.AdamW.step
    monkeypatch.setattr(model, "loss", lambda *arguments: 1e4 * own_loss(*arguments))

    def step(optimizer, *arguments, **options):
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"]]
        norms.append(torch.nn.utils.get_total_norm(gradients).item())
        return own_step(optimizer, *arguments, **options)

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    quiet(model, genre[0], epochs=1, batch_size=16)
    assert norms == pytest.approx([1.0] * 3, rel=1e-3)


def test_weights_decay_apart_from_the_gradient(genre, monkeypatch):
    """AdamW's: each weight loses the same share, whatever its gradient was."""
    shares = {}
    for decay in (0.0, 0.5):
        model = lstm(genre[0])
        own = model.loss
        monkeypatch.setattr(model, "loss", lambda *arguments, own=own: 0 * own(*arguments))
        before = model.head.weight.detach().clone()
        quiet(model, genre[0], epochs=2, lr=0.1, weight_decay=decay)
        shares[decay] = model.head.weight.detach() / before
    assert (shares[0.0] == 1).all()
    assert shares[0.5].max() < 0.95 and float(shares[0.5].std()) < 1e-5


def test_learning_rate_goes_up_and_down(genre):
    history = quiet(lstm(genre[0]), genre[0], epochs=10, lr=0.01)
    rates = history.frame()["lr"]
    assert rates.idxmax() == 2 and rates.max() == pytest.approx(0.01, rel=0.02)  # 30 %
    assert rates.iloc[-1] < 1e-4 and (rates.diff()[3:] < 0).all()


def history_of(*losses):
    return [{"epoch": i + 1, "val_loss": loss} for i, loss in enumerate(losses)]


@pytest.mark.parametrize(
    "losses, planned, best",
    [
        ((3, 2, 1, 2, 3, 3), 6, 4),  # of means over three epochs: 3, 2.5, 2, 1.67, 2, 2.67
        ((0, 0, 3, 2, 2, 2), 6, 3),  # the warm-up's two epochs are never kept, though they count
        ((1, 1, 1, 1), 4, 3),  # ties: the first
        ((5,), 1, 1),
        ((5, 4), 10, 0),  # none yet
    ],
)
def test_best_epoch(losses, planned, best):
    assert best_epoch(history_of(*losses), planned) == best


def test_best_epoch_without_validation_is_the_last():
    assert best_epoch([{"epoch": i} for i in (1, 2, 3)], 9) == 3


def losses_are(monkeypatch, *values):
    """Make the validation losses of epochs 1, 2, … these."""
    given = iter(values)

    def told(*_, **__):
        return {"val_loss": next(given), "val_score": 0.5}

    monkeypatch.setattr(training, "validate", told)


def test_best_epoch_is_restored_and_no_alias(genre, monkeypatch, after_epochs):
    losses_are(monkeypatch, 3, 2, 0, 9, 9)
    model = lstm(genre[0])
    history = quiet(model, *genre, epochs=5)
    assert history.best_epoch == 3 and len(after_epochs) == 5 and not model.training
    assert equal(weights(model), after_epochs[2]) and not equal(after_epochs[2], after_epochs[4])


def test_without_validation_the_last_epoch_stays(genre, after_epochs):
    model = lstm(genre[0])
    history = quiet(model, genre[0])
    assert history.best_epoch == len(history.epochs) == 3
    assert equal(weights(model), after_epochs[-1])
    assert list(history.frame()) == ["epoch", "train_loss", "lr", "seconds"]


@pytest.mark.parametrize("name", ["epochs", "batch_size", "crop"])
@pytest.mark.parametrize("count", [0, -3])
def test_a_count_below_1_is_a_sentence(genre, name, count):
    with pytest.raises(ValueError, match=f"{name} = {count}; a whole number from 1 is needed"):
        quiet(lstm(genre[0]), *genre, **{name: count})


def test_an_interrupted_training_leaves_the_best_so_far(genre, monkeypatch, after_epochs):
    """Ctrl-C in the fifth epoch: the weights are those of the best one, ready to predict."""
    given = iter([3, 2, 0, 9])

    def told(*_, **__):
        loss = next(given, None)
        if loss is None:
            raise KeyboardInterrupt
        return {"val_loss": loss, "val_score": 0.5}

    monkeypatch.setattr(training, "validate", told)
    model = lstm(genre[0])
    with pytest.raises(KeyboardInterrupt):
        quiet(model, *genre, epochs=6)
    assert equal(weights(model), after_epochs[2]) and not model.training
    assert model.history.best_epoch == 3 and len(model.history.epochs) == 4


def test_one_line_an_epoch(genre, capsys):
    fit(lstm(genre[0]), *genre, epochs=2)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and lines[1].startswith("epoch   2/2  loss ") and "val score" in lines[1]


def test_a_notebook_has_one_output_whose_text_never_changes(genre, monkeypatch):
    shown = []

    class Handle:
        def update(self, content, raw):
            shown.append(content)

    monkeypatch.setattr(training, "get_ipython", lambda: object())
    monkeypatch.setattr(training, "display", lambda content, **_: shown.append(content) or Handle())
    fit(lstm(genre[0]), *genre, epochs=2)
    assert len(shown) == 3 and {content["text/plain"] for content in shown} == {"training log"}
    last = shown[-1]["text/html"]
    assert "epoch   1/2" in last and "epoch   2/2" in last and "<script" not in last


def test_what_is_printed_of_a_history_is_what_holds_everywhere(genre):
    history = quiet(lstm(genre[0]), *genre, epochs=4, batch_size=16)
    size = sum(p.numel() for p in lstm(genre[0]).parameters())
    lines = history.first(2).splitlines()
    assert lines[0] == f"{size:,} parameters, 3 batches an epoch" and len(lines) == 3
    row = history.epochs[1]
    losses = f"training loss {row['train_loss']:.3f}, validation loss {row['val_loss']:.3f}"
    assert lines[2] == f"epoch 2: {losses}"
    frozen = lstm(genre[0])
    frozen.backbone.requires_grad_(False)
    assert quiet(frozen, genre[0], epochs=1).parameters == sum(
        p.numel() for p in frozen.head.parameters()
    )


def test_a_frozen_backbone_does_not_move(genre):
    model = cnn(genre[0])
    model.backbone.requires_grad_(False)
    before = weights(model)
    quiet(model, genre[0], epochs=2)
    after = weights(model)
    moved = {name for name in after if not torch.equal(after[name], before[name])}
    assert moved == {"head.weight", "head.bias"}  # batch-norm statistics neither


@pytest.mark.parametrize("make", [lstm, cnn])
def test_one_batch_can_be_learned_by_heart(genre, make):
    model = make(genre[0])
    before = weights(model)
    losses = overfit_batch(model, genre[0], size=8, epochs=40, lr=0.02)
    assert len(losses) == 40 and losses[-1] < 0.05 < 0.5 < losses[0]
    assert equal(weights(model), before)  # a copy was trained


def test_dry_run_trains_a_copy_on_a_few_small_batches(genre):
    model = lstm(genre[0])
    before = weights(model)
    history = dry_run(model, genre[0], n_batches=4, epochs=2, batch_size=5, log=False)
    assert len(history.epochs) == 2 and history.batches == 4
    assert "val_loss" in history.epochs[0] and equal(weights(model), before)


def test_genre_and_affect_batches_alternate(shared_corpus, affect, monkeypatch):
    clips = SpectrogramDataset(shared_corpus, "genre", beat=True)
    set_seed(0)
    model = MultitaskRegressor(LSTMBackbone(140, 4), genre_classes=clips.classes)
    model.normalise_from(clips)
    seen, targets = [], model.targets
    monkeypatch.setattr(model, "targets", lambda y: seen.append(y) or targets(y))
    before = weights(model)
    history = quiet(model, [affect[0], clips], epochs=1, batch_size=16)
    assert sum(len(y) for y in seen if y.ndim == 1) == 64
    assert sum(len(y) for y in seen if y.ndim == 2) == len(affect[0])
    kinds = [y.ndim for y in seen]
    assert history.batches == len(kinds) == 7
    # Mixed, not one after the other.
    assert kinds != sorted(kinds) and kinds != sorted(kinds, reverse=True)
    after = weights(model)
    for name in ("heads.3.weight", "heads.0.weight"):
        assert not torch.equal(after[name], before[name])


def test_a_loss_that_is_no_number(shared_corpus):
    unlabelled = SpectrogramDataset(shared_corpus, "affect", "test", beat=True)
    model = Regressor(LSTMBackbone(140, 4), unlabelled.axes)
    with pytest.raises(FloatingPointError, match="no longer a finite number: lower the learning"):
        quiet(model, unlabelled)


def test_empty_splits(genre):
    train, val = genre
    empty = train.subset([])
    for parts in ((empty, None), (train, val.subset([])), ([train, empty], None)):
        with pytest.raises(ValueError, match="a split is empty"):
            quiet(lstm(train), *parts)


@pytest.mark.parametrize("make", [lstm, cnn])
def test_the_moving_average_of_the_weights_is_kept(genre, make, after_epochs):
    """Its decay is a step's: one batch an epoch, averaged over about four."""
    batch, model = genre[0].subset(range(8)), make(genre[0])
    quiet(model, batch, batch_size=8, ema=4)
    for name, kept in weights(model).items():
        first, second, third = (state[name] for state in after_epochs)
        average = 0.75 * (0.75 * first + 0.25 * second) + 0.25 * third
        if kept.is_floating_point():
            torch.testing.assert_close(kept, average)
    assert not equal(weights(model), after_epochs[-1])


def test_the_average_moves_with_every_step(genre, monkeypatch):
    """Over 2 epochs of 3 batches each, a step keeps 5/6 of it."""
    seen, own = [], torch.optim.AdamW.step
    model = lstm(genre[0])

    def step(optimizer, *arguments, **options):
        result = own(optimizer, *arguments, **options)
        seen.append(model.head.weight.detach().clone())
        return result

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    quiet(model, genre[0], epochs=2, batch_size=16, ema=2)
    average = seen[0]
    for value in seen[1:]:
        average = 5 / 6 * average + 1 / 6 * value
    torch.testing.assert_close(model.head.weight.detach(), average)


def test_the_average_is_what_is_validated(genre, after_epochs):
    model = lstm(genre[0])
    history = quiet(model, *genre, epochs=4, lr=0.05, ema=2)
    again = validate(model, genre[1])
    row = history.epochs[history.best_epoch - 1]
    assert row["val_loss"] == pytest.approx(again["val_loss"], rel=1e-6)
    model.load_state_dict(after_epochs[history.best_epoch - 1])
    assert validate(model, genre[1])["val_loss"] != pytest.approx(row["val_loss"], rel=1e-3)


# --- several seeds --------------------------------------------------------------------------------


def test_seeds_are_trained_on_both_parts_for_as_long_as_validation_chose(genre, monkeypatch):
    train, val = genre
    calls, made, own = [], [], training.fit

    def watched(model, splits, val=None, **options):
        history = own(model, splits, val, **options)
        calls.append((splits, val, options, history))
        return history

    def make(split):
        model = lstm(split, seed=int(torch.randint(99, ())))
        made.append((split, weights(model)))
        return model

    monkeypatch.setattr(training, "fit", watched)
    # The choice is an epoch before the last: otherwise both trainings would be as long anyway.
    monkeypatch.setattr(training, "best_epoch", lambda epochs, planned: min(len(epochs), 3))
    models, histories, n_epochs = fit_seeds(
        make, train, val, seeds=2, epochs=4, lr=0.01, batch_size=16, log=False
    )
    (first, first_val, first_options, chosen), *others = calls
    assert first_val is val and first_options["epochs"] == 4
    assert n_epochs == chosen.best_epoch == 3
    whole = sorted(train.ids + val.ids, key=int)
    for seed, (splits, none, options, _) in enumerate(others):
        assert none is None and sorted(splits[0].ids, key=int) == whole
        assert options["epochs"] == n_epochs and options["seed"] == seed and options["lr"] == 0.01
    assert len(models) == 2 and histories == [call[3] for call in calls]
    assert [len(split) for split, _ in made] == [len(train), len(whole), len(whole)]
    assert not equal(made[1][1], made[2][1]) and not equal(weights(models[0]), weights(models[1]))


# --- devices and precision ------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["cuda", "cuda:1", "gpu"])
def test_devices(name, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device().type == pick_device("cpu").type == "cpu"
    with pytest.raises(ValueError, match=f"DEVICE = '{name}'.*'auto'"):
        pick_device(name)


def test_a_gpu_that_torch_cannot_use_is_a_sentence(monkeypatch):
    def no_code(*shape, device):
        words = "CUDA error: no kernel image is available for execution on the device\nmore"
        raise RuntimeError(words)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "ones", no_code)
    with pytest.raises(ValueError, match="no kernel image .*; on Kaggle: Settings > Accelerator"):
        pick_device()


def test_a_cpu_trains_in_float32_unless_it_is_told_to(monkeypatch):
    cpu = torch.device("cpu")
    for has in (False, True):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda has=has: has)
        assert half_type(cpu) is None and half_type(cpu, False) is None
        assert half_type(cpu, True) == torch.bfloat16


@pytest.mark.parametrize(
    "capability, half",
    [((7, 5), torch.float16), ((8, 0), torch.bfloat16), ((9, 0), torch.bfloat16)],
)
def test_a_gpu_trains_in_the_half_precision_that_it_has(monkeypatch, capability, half):
    """Of the device in question, not of the current one: T4s say bf16, and emulate it."""
    asked = []
    monkeypatch.setattr(
        torch.cuda, "get_device_capability", lambda device: asked.append(device) or capability
    )
    device = torch.device("cuda:1")
    assert half_type(device) == half and asked == [device] and half_type(device, False) is None


@pytest.mark.parametrize("make", [lstm, cnn])
def test_half_precision_trains_and_is_judged_in_float32(genre, make):
    exact = quiet(make(genre[0]), *genre, batch_size=16, half=False)
    model, seen = make(genre[0]), set()
    model.backbone.register_forward_hook(
        lambda module, _, y: seen.add((module.training, torch.is_autocast_enabled("cpu")))
    )
    rough = quiet(model, *genre, batch_size=16, half=True)
    for a, b in zip(exact.epochs, rough.epochs, strict=True):
        assert a["train_loss"] == pytest.approx(b["train_loss"], rel=0.1)
    assert rough.epochs[-1]["train_loss"] < rough.epochs[0]["train_loss"]
    assert all(value.dtype != torch.bfloat16 for value in model.state_dict().values())
    # The LSTM, which has no half precision on a CPU, leaves it by itself.
    assert seen == {(True, True), (False, False)}
    again = validate(model, genre[1])
    row = rough.epochs[rough.best_epoch - 1]
    assert row["val_loss"] == pytest.approx(again["val_loss"], rel=1e-6)


PROCESSOR = """
import sys, torch
sys.path[:0] = {path!r}
torch.set_num_threads({threads})
import test_training
test_training.small_predictions({root!r}, {weights!r}, {out!r})
"""


def small_predictions(root, folder, out):
    """What the processes of the next test run: predictions of known weights, and a training."""
    ds = SpectrogramDataset(Corpus(Path(root)), "genre", features="mel")
    content = {}
    for make in (lstm, cnn):
        model = make(ds)
        model.load_state_dict(torch.load(Path(folder) / f"{make.__name__}.pt"))
        content[make.__name__] = torch.from_numpy(predict(model, ds, crop=24))
        content[f"{make.__name__} features"] = torch.from_numpy(embed(model.backbone, ds))
        history = quiet(make(ds), *train_val_split(ds, 0.25), batch_size=16, crop=24)
        losses = [[row["train_loss"], row["val_loss"]] for row in history.epochs]
        content[f"{make.__name__} losses"] = torch.tensor(losses)
    torch.save(content, out)


def test_numbers_do_not_depend_on_the_processor(shared_corpus, tmp_path):
    """Instruction sets with and without bf16, one thread and two: predictions, and first losses."""
    ds = SpectrogramDataset(shared_corpus, "genre", features="mel")
    for make in (lstm, cnn):
        torch.save(make(ds, seed=3).state_dict(), tmp_path / f"{make.__name__}.pt")
    path = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]
    results = []
    for number, (isa, threads) in enumerate([("DEFAULT", 1), ("AVX2", 1), ("AVX2", 2)]):
        out = str(tmp_path / f"{number}.out")
        capability = {"ONEDNN_MAX_CPU_ISA": isa}
        if isa != "DEFAULT":
            capability["ATEN_CPU_CAPABILITY"] = isa.lower()
        code = PROCESSOR.format(
            path=path, threads=threads, root=str(shared_corpus.root), weights=str(tmp_path), out=out
        )
        environment = os.environ | capability
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True)
        assert done.returncode == 0, done.stderr.decode()
        results.append(torch.load(out))
    for other in results[1:]:
        for name, values in results[0].items():
            tolerance = 1e-3 if "losses" in name else 1e-5
            torch.testing.assert_close(other[name], values, rtol=0, atol=tolerance, msg=name)


# --- kill and resume ------------------------------------------------------------------------------

OPTIONS = {"epochs": 5, "lr": 0.01, "batch_size": 16, "crop": 24, "augment": ALL, "ema": 2}


class Killed(Exception):
    pass


def train_until(epoch, genre, path, make=lstm, kill=None, **options):
    """`fit` that is killed once it has saved `epoch` epochs (None: never).

    Returns the model, its history (None where it was killed), and the number of epochs it did.
    """
    model, own, done = make(genre[0]), training._save, []

    def save(*arguments):
        written = own(*arguments)
        done.append(written)
        if len(done) == epoch:
            if kill:
                kill()
            raise Killed
        return written

    training._save = save
    try:
        return model, quiet(model, *genre, checkpoint=path, **(OPTIONS | options)), len(done)
    except Killed:
        return model, None, len(done)
    finally:
        training._save = own


@pytest.mark.parametrize("make", [lstm, cnn])
@pytest.mark.parametrize("epochs", [(2,), (1, 1, 2), (5,)])
def test_resumed_is_as_unbroken(genre, tmp_path, make, epochs):
    path = tmp_path / "run.pt"
    whole, history, _ = train_until(None, genre, None, make)
    for epoch in epochs:
        assert train_until(epoch, genre, path, make)[1] is None and path.is_file()
    model, again, done = train_until(None, genre, path, make)
    assert done == 5 - sum(epochs)  # only the rest was done
    assert numbers(again) == numbers(history) and equal(weights(model), weights(whole))
    assert not list(tmp_path.iterdir())


def test_the_best_epoch_before_the_kill_is_not_lost(genre, tmp_path, monkeypatch):
    path, losses = tmp_path / "run.pt", [3, 2, 0, 9, 9]
    losses_are(monkeypatch, *losses)
    whole, history, _ = train_until(None, genre, None)
    assert history.best_epoch == 3
    losses_are(monkeypatch, *losses)
    train_until(4, genre, path)
    losses_are(monkeypatch, *losses[4:])
    model, again, done = train_until(None, genre, path)
    assert done == 1 and again.best_epoch == 3 and equal(weights(model), weights(whole))


def small_training(root, path, kill_after=None):
    """What the killed process of the next test runs."""
    torch.set_num_threads(1)
    ds = SpectrogramDataset(Corpus(Path(root)), "genre", features="mel")
    kill = (lambda: os.kill(os.getpid(), signal.SIGKILL)) if kill_after else None
    return train_until(kill_after, train_val_split(ds, 0.25), Path(path), kill=kill)


def test_killed_process_resumes(shared_corpus, genre, tmp_path):
    path = tmp_path / "run.pt"
    call = f"small_training({str(shared_corpus.root)!r}, {str(path)!r}, 3)"
    done = subprocess.run(
        [sys.executable, "-c", f"import test_training; test_training.{call}"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert path.is_file()
    whole, history, _ = train_until(None, genre, None)
    model, again, epochs = small_training(shared_corpus.root, path)
    assert epochs == 2 and numbers(again) == numbers(history)
    assert equal(weights(model), weights(whole))


CHANGES = ["lr", "weights", "frozen", "clips", "labels", "input", "half", "other", "list"]


@pytest.mark.parametrize("change", CHANGES)
def test_a_checkpoint_of_another_training_is_not_taken(shared_corpus, genre, tmp_path, change):
    path, (train, val), make = tmp_path / "run.pt", genre, lstm
    train_until(2, genre, path)
    options = {"lr": 0.02} if change == "lr" else {}
    if change == "weights":
        make = lambda ds: lstm(ds, seed=7)  # noqa: E731
    elif change == "frozen":
        make = lambda ds: frozen(lstm(ds))  # noqa: E731
    elif change == "clips":
        train = train.subset(range(len(train) - 1))
        make = lambda _: lstm(genre[0])  # noqa: E731
    elif change == "labels":
        train = train.subset(range(len(train)))
        train.clips = train.clips.assign(code=train.clips["code"].to_numpy()[::-1])
    elif change == "input":
        make = lambda _: lstm(genre[0])  # noqa: E731
        beat = SpectrogramDataset(shared_corpus, "genre", features="mel", beat=True)
        train, val = beat.select(train.ids), beat.select(val.ids)
    elif change == "half":
        path.write_bytes(path.read_bytes()[:999])
    elif change in ("other", "list"):
        torch.save({"epoch": 1} if change == "other" else [1], path)
    model, history, done = train_until(None, (train, val), path, make, **options)
    fresh, expected, _ = train_until(None, (train, val), None, make, **options)
    assert done == 5 and numbers(history) == numbers(expected)
    assert equal(weights(model), weights(fresh))


def frozen(model):
    model.backbone.requires_grad_(False)
    return model


def test_a_pickle_in_the_place_of_a_saved_state_is_never_run(genre, tmp_path):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "sprung"),)

    path = tmp_path / "run.pt"
    train_until(2, genre, path)
    content = torch.load(path, weights_only=True)
    for write in (
        lambda: torch.save(content | {"best": Trap()}, path),
        lambda: path.write_bytes(pickle.dumps(Trap())),
    ):
        write()
        assert train_until(None, genre, path)[2] == 5
        assert not (tmp_path / "sprung").exists()


def test_a_checkpoint_that_cannot_be_written_does_not_stop_the_training(genre, tmp_path):
    (tmp_path / "file").touch()
    with pytest.warns(UserWarning, match="run.pt: cannot be written .*goes on") as caught:
        _, history, _ = train_until(None, genre, tmp_path / "file" / "run.pt")
    assert len(history.epochs) == 5 and len(caught) == 1
    assert numbers(history) == numbers(train_until(None, genre, None)[1])


def test_augmentation_leaves_the_data_set_alone(genre):
    before = genre[0].x.clone()
    quiet(lstm(genre[0]), genre[0], epochs=1, augment=ALL)
    assert torch.equal(genre[0].x, before)


# --- predictions ----------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [lstm, cnn])
@pytest.mark.parametrize("size", [1, 5, 64])
def test_predictions_come_in_the_order_of_the_clips(genre, make, size):
    ds = genre[0].subset(torch.randperm(48, generator=torch.Generator().manual_seed(0)))
    model = make(ds)
    model.train()
    values = predict(model, ds, batch_size=size)
    assert not model.training and values.dtype == np.float32
    features = embed(model.backbone.train(), ds, batch_size=size)
    assert features.shape == (48, model.backbone.out_features) and not model.backbone.training
    with torch.inference_mode():
        for i in (0, 17, 47):
            x, _, length = ds[i]
            lengths = torch.tensor([length])
            expected = model(x[None], lengths).softmax(1)[0]
            np.testing.assert_allclose(values[i], expected, rtol=1e-4, atol=1e-6)
            expected = model.backbone(x[None], lengths)[0]
            np.testing.assert_allclose(features[i], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("crop", [16, 24, 99])
def test_windows_are_averaged(genre, crop):
    """24 frames: some clips are shorter; 99: all are, and a clip is then taken once, whole."""
    ds = genre[0]
    model = lstm(ds)
    model.eval()
    values = predict(model, ds, crop=crop, batch_size=7)
    features = embed(model.backbone, ds, crop=crop, batch_size=7)
    for i in (0, 30, 47):
        x, _, length = ds[i]
        starts = np.linspace(0, max(0, length - crop), N_WINDOWS).round().astype(int)
        lengths = torch.tensor([min(length, crop)])
        with torch.inference_mode():
            parts = [model(x[None, s : s + crop], lengths).softmax(1) for s in starts]
            states = [model.backbone(x[None, s : s + crop], lengths) for s in starts]
        np.testing.assert_allclose(values[i], torch.cat(parts).mean(0), rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(features[i], torch.cat(states).mean(0), rtol=1e-4, atol=1e-5)
    result = validate(model, ds, crop=crop)
    assert 0 < result["val_loss"] < 5 and 0 <= result["val_score"] <= 1


def test_predictions_of_heads(shared_corpus, genre):
    affect = SpectrogramDataset(shared_corpus, "affect", "test")
    set_seed(0)
    backbone = LSTMBackbone(140, 4).normalise_from(affect)
    shared = MultitaskRegressor(backbone, genre_classes=["a", "b"])
    values = predict(shared, affect, crop=16)
    assert values.shape == (10, 3) and (values > 0).all() and (values < 1).all()
    shares = predict(lstm(genre[0]), genre[0])
    assert shares.shape == (48, 4)
    np.testing.assert_allclose(shares.sum(1), 1, rtol=1e-5)


def test_an_empty_history_has_a_first_line():
    assert History(parameters=5, batches=2).first() == "5 parameters, 2 batches an epoch"
