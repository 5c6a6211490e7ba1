"""The loop: seeds, kill and resume, the best epoch, early stopping, augmentation."""

import os
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
from labhelpers.corpora.layout import Corpus
from labhelpers.datasets import SpectrogramDataset, train_val_split
from labhelpers.models import Classifier, CNNBackbone, LSTMBackbone, MultitaskRegressor, Regressor
from labhelpers.training import (
    Augment,
    autocast,
    change_batch,
    dry_run,
    fit,
    overfit_batch,
    pick_device,
    run_model,
    score,
    set_seed,
    validate,
    windows_of,
)

ALL = Augment(time_masks=1, time_width=4, row_masks=1, row_width=8, mixup=0.3, gain=2.0, roll=2)


def lstm(ds, seed=0, **options):
    set_seed(seed)
    options = {"hidden": 8, "layers": 1, "pooling": "mean"} | options
    return Classifier(LSTMBackbone(ds.n_features, **options), ds.classes).normalise_from(ds)


def cnn(ds, seed=0):
    set_seed(seed)
    return Classifier(CNNBackbone(ds.n_features, (4, 8, 8, 8)), ds.classes).normalise_from(ds)


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def numbers(history):
    """The history without the seconds."""
    return [{key: value for key, value in row.items() if key != "seconds"} for row in history.rows], history.best_epoch


@pytest.fixture
def genre(shared_corpus):
    return train_val_split(SpectrogramDataset(shared_corpus, "genre", rows="mel"), 0.25)


@pytest.fixture
def affect(shared_corpus):
    return train_val_split(SpectrogramDataset(shared_corpus, "affect", beat=True), 0.25)


# --- what training does ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make, options", [(lstm, {"lr": 0.02}), (cnn, {"lr": 0.01, "crop": 24})])
def test_learns_the_labels_and_nothing_from_shuffled_ones(genre, make, options):
    train, val = genre
    model = make(train)
    fit(model, train, val, epochs=15, batch_size=8, log=None, **options)
    learned = validate(model, val)["val_score"]
    train.y = train.y[torch.randperm(len(train), generator=torch.Generator().manual_seed(1))]
    model = make(train)
    fit(model, train, None, epochs=15, batch_size=8, log=None, **options)
    chance = validate(model, val)["val_score"]
    assert learned > 0.9 and chance < 0.5


def test_learns_affect(shared_corpus):
    train, val = train_val_split(SpectrogramDataset(shared_corpus, "affect"), 0.25)
    set_seed(0)
    model = MultitaskRegressor(LSTMBackbone(140, 16, 1, pooling="mean"), weighting="scaled")
    model.normalise_from(train).start_from(train.y)
    history = fit(model, train, val, epochs=25, lr=0.02, batch_size=16, log=None)
    assert max(row["val_score"] for row in history.rows) > 0.7
    assert history.rows[-1]["train_loss"] < 0.5 * history.rows[0]["train_loss"]


@pytest.mark.parametrize("make", [lstm, cnn])
def test_same_seed_same_numbers(genre, make):
    def run(seed):
        model = make(genre[0])
        history = fit(model, *genre, epochs=2, lr=0.01, batch_size=16, seed=seed, crop=24, augment=ALL, log=None)
        return numbers(history), weights(model)

    (one, a), (same, b), (other, c) = run(0), run(0), run(1)
    assert one == same and equal(a, b)
    assert one != other and not equal(a, c)


def test_losses_and_scores_are_over_all_examples(genre, affect):
    """The last batch is smaller than the others: a mean of batch means would differ."""
    train, val = genre
    model = lstm(train, dropout=0.0)
    exact = [F.cross_entropy(model(x[None], torch.tensor([n])), y[None]).item() for x, y, n in train]
    history = fit(model, train, val, epochs=1, lr=0.0, schedule="constant", batch_size=13, log=None)
    assert history.rows[0]["train_loss"] == pytest.approx(np.mean(exact), rel=1e-5)
    results = [validate(model, val, batch_size=size) for size in (3, 16)]
    assert results[0]["val_loss"] == pytest.approx(results[1]["val_loss"], rel=1e-5)
    pred = run_model(model, val).argmax(1)
    assert (
        results[0]["val_score"]
        == results[1]["val_score"]
        == f1_score(val.y, pred, average="macro", labels=val.y.unique())
    )
    assert history.rows[0]["val_score"] == results[0]["val_score"]
    set_seed(0)
    regressor = Regressor(LSTMBackbone(140, 4), affect[1].axes).normalise_from(affect[0])
    values = regressor.decode(run_model(regressor, affect[1], batch_size=4))
    rhos = [spearmanr(affect[1].y[:, i], values[:, i]).statistic for i in range(3)]
    assert validate(regressor, affect[1], batch_size=4)["val_score"] == pytest.approx(np.mean(rhos))


def test_score():
    y, confident = torch.tensor([0, 0, 1, 2]), torch.eye(4)[[0, 3, 1, 1]]
    assert score(y, confident) == pytest.approx((2 / 3 + 2 / 3 + 0) / 3)  # class 3 is not among the labels
    values = torch.rand(9, 2, generator=torch.Generator().manual_seed(0))
    assert score(values, values) == pytest.approx(1)
    assert score(values, torch.stack([values[:, 0], torch.full((9,), 0.5)], 1)) == pytest.approx(0.5)


def scores(monkeypatch, *values):
    """Make validation give these scores, one after the other."""
    given = iter(values)
    monkeypatch.setattr(training, "validate", lambda *_, **__: {"val_loss": 1.0, "val_score": next(given)})


def test_best_epoch_is_restored_and_no_alias(genre, monkeypatch):
    scores(monkeypatch, 0.1, 0.9, 0.9, 0.2)
    model, seen = lstm(genre[0]), []
    history = fit(model, *genre, epochs=4, lr=0.01, log=lambda _: seen.append(weights(model)))
    assert history.best_epoch == 2 and len(seen) == 4 and not model.training
    assert equal(weights(model), seen[1]) and not equal(seen[1], seen[3])


def test_ties_are_broken_by_the_loss(genre, monkeypatch):
    given = iter([(0.5, 1.0), (0.5, 0.8), (0.5, 0.9)])
    keys = ("val_score", "val_loss")
    monkeypatch.setattr(training, "validate", lambda *_, **__: dict(zip(keys, next(given), strict=True)))
    assert fit(lstm(genre[0]), *genre, epochs=3, log=None).best_epoch == 2


def test_early_stopping(genre, monkeypatch):
    scores(monkeypatch, 0.1, 0.5, 0.4, 0.45, 0.9)
    history = fit(lstm(genre[0]), *genre, epochs=5, patience=2, log=None)
    assert len(history.rows) == 4 and history.best_epoch == 2


def test_without_validation_the_last_epoch_stays(genre):
    model, seen = lstm(genre[0]), []
    history = fit(model, genre[0], epochs=3, lr=0.01, patience=1, log=lambda _: seen.append(weights(model)))
    assert history.best_epoch == len(history.rows) == 3 and equal(weights(model), seen[-1])
    assert list(history.frame()) == ["epoch", "train_loss", "lr", "seconds"]


def test_one_line_an_epoch(genre, capsys):
    fit(lstm(genre[0]), *genre, epochs=2)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and lines[1].startswith("epoch   2/2  loss ") and "val score" in lines[1]


@pytest.mark.parametrize("schedule, falls", [("constant", False), ("cosine", True), ("one-cycle", True)])
def test_schedules(genre, schedule, falls):
    rates = [row["lr"] for row in fit(lstm(genre[0]), genre[0], epochs=4, lr=0.01, schedule=schedule, log=None).rows]
    assert max(rates) <= 0.01 and (rates[-1] < 0.003) == falls
    with pytest.raises(ValueError, match="schedule 'cyclic'; known: one-cycle"):
        fit(lstm(genre[0]), genre[0], epochs=1, schedule="cyclic", log=None)


def test_a_frozen_backbone_does_not_move(genre):
    model = cnn(genre[0])
    model.backbone.requires_grad_(False)
    before = weights(model)
    fit(model, genre[0], epochs=2, lr=0.01, log=None)
    moved = {name for name, value in weights(model).items() if not torch.equal(value, before[name])}
    assert moved == {"head.weight", "head.bias"}  # batch-norm statistics neither


@pytest.mark.parametrize("make", [lstm, cnn])
def test_one_batch_can_be_learned_by_heart(genre, make):
    model = make(genre[0])
    model.label_smoothing = 0.1
    before = weights(model)
    losses = overfit_batch(model, genre[0], size=8, steps=40, lr=0.02)
    assert len(losses) == 40 and losses[-1] < 0.05 < 0.5 < losses[0]
    assert equal(weights(model), before)  # a copy was trained


def test_dry_run_trains_a_copy(genre):
    model = lstm(genre[0])
    before = weights(model)
    history = dry_run(model, genre[0], n_batches=4, epochs=2, batch_size=5, log=None)
    assert len(history.rows) == 2 and "val_loss" in history.rows[0] and equal(weights(model), before)


def test_genre_and_affect_batches_alternate(shared_corpus, affect, monkeypatch):
    clips = SpectrogramDataset(shared_corpus, "genre", beat=True)
    set_seed(0)
    model = MultitaskRegressor(LSTMBackbone(140, 4, 1), genre_classes=clips.classes).normalise_from(clips)
    seen, targets = [], model.targets
    monkeypatch.setattr(model, "targets", lambda y: seen.append(y) or targets(y))
    before = weights(model)
    fit(model, [affect[0], clips], epochs=1, batch_size=16, log=None)
    assert sum(len(y) for y in seen if y.ndim == 1) == 64 and sum(len(y) for y in seen if y.ndim == 2) == 45
    kinds = [y.ndim for y in seen]
    assert kinds != sorted(kinds) and kinds != sorted(kinds, reverse=True)  # mixed, not one after the other
    after = weights(model)
    assert all(not torch.equal(after[name], before[name]) for name in ("genre_head.weight", "heads.0.weight"))


def test_a_loss_that_is_no_number(shared_corpus):
    unlabelled = SpectrogramDataset(shared_corpus, "affect", "test", beat=True)
    model = Regressor(LSTMBackbone(140, 4), unlabelled.axes)
    with pytest.raises(FloatingPointError, match="loss of epoch 1 is not finite: lower the learning rate"):
        fit(model, unlabelled, epochs=2, log=None)


def test_empty_splits(genre):
    train, val = genre
    for parts in ((train.subset([]), None), (train, val.subset([])), ([train, train.subset([])], None)):
        with pytest.raises(ValueError, match="a split is empty"):
            fit(lstm(train), *parts, epochs=1, log=None)


@pytest.mark.parametrize("name", ["cuda", "gpu"])
def test_devices(name, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device().type == pick_device("cpu").type == "cpu"
    with pytest.raises(ValueError, match=f"DEVICE = '{name}'.*'auto'"):
        pick_device(name)


def test_a_gpu_that_torch_cannot_use_is_a_sentence(monkeypatch):
    def no_code(*shape, device):
        raise RuntimeError("CUDA error: no kernel image is available for execution on the device\nmore")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "ones", no_code)
    with pytest.raises(ValueError, match="no kernel image .*; on Kaggle: Settings > Accelerator > GPU T4 x2"):
        pick_device()


@pytest.mark.parametrize("make", [lstm, cnn])
def test_half_precision_trains(genre, make, monkeypatch):
    exact = fit(make(genre[0]), *genre, epochs=3, lr=0.01, batch_size=16, log=None)
    monkeypatch.setattr(training, "autocast", lambda device: torch.autocast("cpu", torch.bfloat16))
    model = make(genre[0])
    rough = fit(model, *genre, epochs=3, lr=0.01, batch_size=16, log=None)
    for a, b in zip(exact.rows, rough.rows, strict=True):
        assert a["train_loss"] == pytest.approx(b["train_loss"], rel=0.1)
    assert rough.rows[-1]["train_loss"] < rough.rows[0]["train_loss"]
    assert all(value.dtype != torch.bfloat16 for value in model.state_dict().values())
    assert run_model(model, genre[1]).dtype == torch.float32


def test_autocast_follows_the_processor(monkeypatch):
    for has in (False, True):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda has=has: has)
        with autocast(torch.device("cpu")):
            assert torch.is_autocast_enabled("cpu") == has


@pytest.mark.parametrize("make", [lstm, cnn])
def test_the_moving_average_of_the_weights_is_kept(genre, make):
    batch, model, seen = genre[0].subset(range(8)), make(genre[0]), []
    fit(model, batch, epochs=3, batch_size=8, lr=0.01, ema=4, log=lambda _: seen.append(weights(model)))
    for name, kept in weights(model).items():
        first, second, third = (state[name] for state in seen)
        average = 0.75 * (0.75 * first + 0.25 * second) + 0.25 * third
        if kept.is_floating_point():
            torch.testing.assert_close(kept, average)
    assert not equal(weights(model), seen[-1])


# --- kill and resume ------------------------------------------------------------------------------------------------

OPTIONS = {"epochs": 5, "lr": 0.01, "batch_size": 16, "crop": 24, "augment": ALL, "patience": 4, "ema": 2}


class Killed(Exception):
    pass


def train_until(epoch, genre, path, make=lstm, kill=None, **options):
    """`fit` that is killed after `epoch` epochs (None: never); returns the model and the history, or None."""
    model = make(genre[0])
    lines = []

    def log(line):
        lines.append(line)
        if len(lines) == epoch:
            if kill:
                kill()
            raise Killed

    try:
        return model, fit(model, *genre, checkpoint=path, log=log, **(OPTIONS | options))
    except Killed:
        return model, None


@pytest.mark.parametrize("make", [lstm, cnn])
@pytest.mark.parametrize("epochs", [(2,), (1, 1, 2), (5,)])
def test_resumed_is_as_unbroken(genre, tmp_path, make, epochs):
    path = tmp_path / "run.pt"
    whole, history = train_until(None, genre, None, make)
    for epoch in epochs:
        assert train_until(epoch, genre, path, make)[1] is None and path.is_file()
    lines = []
    model = make(genre[0])
    again = fit(model, *genre, checkpoint=path, log=lines.append, **OPTIONS)
    assert len(lines) == 5 - sum(epochs)  # only the rest was done
    assert numbers(again) == numbers(history) and equal(weights(model), weights(whole))
    assert not list(tmp_path.iterdir())


def small_training(root, path, kill_after=None):
    """What the killed process of the next test runs."""
    torch.set_num_threads(1)
    genre = train_val_split(SpectrogramDataset(Corpus(Path(root)), "genre", rows="mel"), 0.25)
    kill = (lambda: os.kill(os.getpid(), signal.SIGKILL)) if kill_after else None
    return train_until(kill_after, genre, Path(path), kill=kill)


def test_killed_process_resumes(shared_corpus, genre, tmp_path):
    path = tmp_path / "run.pt"
    code = f"import test_training; test_training.small_training({str(shared_corpus.root)!r}, {str(path)!r}, 3)"
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert path.is_file()
    whole, history = train_until(None, genre, None)
    model, again = small_training(shared_corpus.root, path)
    assert numbers(again) == numbers(history) and equal(weights(model), weights(whole))


@pytest.mark.parametrize("change", ["lr", "weights", "frozen", "clips", "input", "half", "other", "list"])
def test_a_checkpoint_of_another_training_is_not_taken(shared_corpus, genre, tmp_path, change):
    path, (train, val), make = tmp_path / "run.pt", genre, lstm
    train_until(2, genre, path)
    options = {"lr": 0.02} if change == "lr" else {}
    if change == "weights":
        make = lambda ds: lstm(ds, seed=7)  # noqa: E731
    elif change == "frozen":
        make = lambda ds: lstm(ds).requires_grad_(False).train() and unfrozen_head(lstm(ds))  # noqa: E731
    elif change == "clips":
        train = train.subset(range(len(train) - 1))
    elif change == "input":
        make = lambda _: lstm(genre[0])  # noqa: E731
        beat = SpectrogramDataset(shared_corpus, "genre", rows="mel", beat=True)
        train, val = beat.select(train.ids), beat.select(val.ids)
    elif change == "half":
        path.write_bytes(path.read_bytes()[:999])
    elif change in ("other", "list"):
        torch.save({"epoch": 1} if change == "other" else [1], path)
    model, history = train_until(None, (train, val), path, make, **options)
    fresh, expected = train_until(None, (train, val), None, make, **options)
    assert numbers(history) == numbers(expected) and equal(weights(model), weights(fresh))


def unfrozen_head(model):
    model.backbone.requires_grad_(False)
    return model


def test_a_checkpoint_that_cannot_be_written_does_not_stop_the_training(genre, tmp_path):
    (tmp_path / "file").touch()
    with pytest.warns(UserWarning, match="run.pt: cannot be written .*goes on") as caught:
        _, history = train_until(None, genre, tmp_path / "file" / "run.pt")
    assert len(history.rows) == 5 and len(caught) == 1
    assert numbers(history) == numbers(train_until(None, genre, None)[1])


# --- augmentation ---------------------------------------------------------------------------------------------------


def changed(augment, rows=140, seed=0, lengths=(40, 30, 10), frames=40):
    """A batch before and after, with its lengths and targets; the rows' means are -1 … -rows."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(len(lengths), frames, rows, generator=generator)
    lengths, targets = torch.tensor(lengths), torch.eye(len(lengths))
    mean = -torch.arange(1.0, rows + 1)
    return x, *change_batch(x, lengths, targets, mean, augment, generator), lengths, targets, mean


def test_no_augmentation_changes_nothing():
    x, new, lengths, targets, old_lengths, old_targets, _ = changed(Augment())
    assert torch.equal(x, new) and torch.equal(lengths, old_lengths) and torch.equal(targets, old_targets)


@pytest.mark.parametrize("rows", [12, 128, 140])
def test_time_masks_lie_in_the_real_frames(rows):
    hit = set()
    x, new, _, targets, lengths, old_targets, mean = changed(
        Augment(time_masks=1, time_width=9), rows, lengths=(40, 30, 10) * 300
    )
    touched = (x != new).any(2)
    assert torch.equal(touched, (x != new).all(2)) and torch.equal(targets, old_targets)
    assert torch.equal(new[touched], mean.expand(int(touched.sum()), -1))
    for row, length in zip(touched, lengths.tolist(), strict=True):
        places = row.nonzero()[:, 0].tolist()
        assert len(places) <= min(9, length // 2) and max(places, default=0) < length
        assert np.all(np.diff(places) == 1)
        hit.update(places)
    assert hit == set(range(40))  # any place can be hit, both ends included


def test_row_masks():
    x, new, *_, mean = changed(Augment(row_masks=1, row_width=20), lengths=(8,) * 900, frames=8)
    touched = (x != new).any(1)
    assert torch.equal(touched, (x != new).all(1)) and touched.sum(1).max() == 20
    assert torch.equal(new[x != new], mean.expand_as(x)[x != new])
    assert touched.any(0).all()


def test_gain_shifts_the_level_of_real_mel_frames():
    x, new, _, _, lengths, *_ = changed(Augment(gain=3.0))
    shift = new - x
    assert not shift[..., 128:].any()
    levels = [shift[i, :length, :128] for i, length in enumerate(lengths)]
    assert all(not shift[i, length:].any() for i, length in enumerate(lengths))
    assert all((level - level[0, 0]).abs().max() < 1e-5 and level[0, 0].abs() > 0.05 for level in levels)
    x, new, *_ = changed(Augment(gain=3.0), rows=12)
    assert torch.equal(x, new)


def test_roll_shifts_the_mel_rows():
    shifts = set()
    for seed in range(10):
        x, new, *_ = changed(Augment(roll=2), seed=seed)
        assert torch.equal(new[..., 128:], x[..., 128:])
        for before, after in zip(x, new, strict=True):
            fits = [s for s in range(-2, 3) if torch.equal(after[:, 2:126], before[:, 2 - s : 126 - s])]
            assert len(fits) == 1
            shifts.update(fits)
    assert shifts == {-2, -1, 0, 1, 2}


def test_mixup_blends_clips_targets_and_lengths():
    for seed in range(5):
        x, new, lengths, targets, old_lengths, _, _ = changed(Augment(mixup=0.5), seed=seed)
        torch.testing.assert_close(targets.sum(1), torch.ones(3))
        torch.testing.assert_close(new, torch.einsum("ij,jtf->itf", targets, x))  # in the targets' own shares
        for row, length in zip(targets, lengths, strict=True):
            assert length == old_lengths[row > 0].max()


def test_augmentation_leaves_the_data_set_alone(genre):
    before = genre[0].x.clone()
    fit(lstm(genre[0]), genre[0], epochs=1, augment=ALL, log=None)
    assert torch.equal(genre[0].x, before)


# --- predictions ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [lstm, cnn])
@pytest.mark.parametrize("size", [1, 5, 64])
def test_outputs_come_in_the_order_of_the_clips(genre, make, size):
    ds = genre[0].subset(torch.randperm(48, generator=torch.Generator().manual_seed(0)))
    model = make(ds)
    model.train()
    outputs = run_model(model, ds, batch_size=size)
    assert not model.training and not outputs.requires_grad
    for i in (0, 17, 47):
        x, _, length = ds[i]
        torch.testing.assert_close(outputs[i], model(x[None], torch.tensor([length]))[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("crop", [16, 24, 99])
def test_crops_are_averaged(genre, crop):
    """24 frames: some clips are shorter; 99: all are, and a clip is then taken once, whole."""
    ds = genre[0]
    model = lstm(ds)
    model.eval()
    predictions = run_model(model, ds, crop=crop, n_crops=4, batch_size=7)
    for i in (0, 30, 47):
        x, _, length = ds[i]
        starts = np.linspace(0, max(0, length - crop), 4).round().astype(int)
        with torch.inference_mode():
            parts = [model(x[None, s : s + crop], torch.tensor([min(length, crop)])).softmax(1) for s in starts]
        torch.testing.assert_close(predictions[i], torch.cat(parts).mean(0), rtol=1e-4, atol=1e-5)
    result = validate(model, ds, crop=crop)
    assert 0 < result["val_loss"] < 5 and 0 <= result["val_score"] <= 1


def test_windows_span_the_clip():
    x = torch.arange(30.0)[:, None].expand(-1, 128)
    windows = windows_of(x, 10, 3)
    assert [window[0, 0].item() for window in windows] == [0, 10, 20] and all(len(window) == 10 for window in windows)
    assert (windows_of(x, 40, 2)[1][30:] == -80).all()
