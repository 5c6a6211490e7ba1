"""The training loop, as plain functions, and what comes before and after it."""

from __future__ import annotations

import copy
import hashlib
import html
import math
import random
import time
import warnings
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from IPython import get_ipython
from IPython.display import display
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from .batches import N_WINDOWS, Augment, augment_batch, batches, cut, even_starts
from .datasets import SpectrogramDataset, union
from .files import atomic
from .metrics import macro_f1, mean_rho
from .models import Backbone, Model

WARM_UP = 0.3  # of the steps, in which the one-cycle schedule raises the learning rate
SMOOTHED = 3  # epochs whose validation losses are averaged to judge the last of them


@dataclass
class History:
    """What a training left. Notebook: 05.

    epochs : of each its number (epoch), train_loss, val_loss, val_score, lr and seconds
    best_epoch : the one whose weights the model has; parameters : trained ones; batches : an epoch
    """

    epochs: list[dict] = field(default_factory=list)
    best_epoch: int = 0
    parameters: int = 0
    batches: int = 0

    def frame(self) -> pd.DataFrame:
        return pd.DataFrame(self.epochs)

    def first(self, n: int = 3) -> str:
        """What is the same on every processor: the sizes, and the losses of the first n epochs."""
        lines = [f"{self.parameters:,} parameters, {self.batches} batches an epoch"]
        for row in self.epochs[:n]:
            line = f"epoch {row['epoch']}: training loss {row['train_loss']:.3f}"
            if "val_loss" in row:
                line += f", validation loss {row['val_loss']:.3f}"
            lines.append(line)
        return "\n".join(lines)


def set_seed(seed: int) -> None:
    """Seed Python, NumPy and torch. Notebooks: 05 to 10."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def pick_device(name: str = "auto") -> torch.device:
    """The device of that name; "auto" takes a GPU where there is one. Notebook: 00.

    Raises ValueError when there is none of that name, or torch has no code for it.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        known = "'auto', 'cpu', 'cuda', 'cuda:1', …"
        raise ValueError(f"DEVICE = {name!r}; known: {known}") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            f"DEVICE = {name!r}, but torch finds no GPU; on Kaggle: Settings > Accelerator > GPU. "
            "'auto' runs without"
        )
    if device.type == "cuda":
        try:
            torch.ones(1, device=device).sum().item()
        except RuntimeError as error:  # a GPU may be there, and torch have no code for it
            raise ValueError(
                f"torch cannot use the GPU {name} ({str(error).splitlines()[0]}); "
                "on Kaggle: Settings > Accelerator > GPU T4 x2, or DEVICE = 'cpu'"
            ) from None
    return device


def half_type(device: torch.device, half: bool | None = None) -> torch.dtype | None:
    """The half precision to train in, None for float32. Notebook: 05.

    half : None takes it on a GPU alone, so that a CPU's losses are the same on every processor;
        bf16 on a CPU is two to three times faster for a CNN where the processor has it
    """
    if half is False or (half is None and device.type != "cuda"):
        return None
    old = device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0)
    return torch.float16 if old else torch.bfloat16


# --- the loop -------------------------------------------------------------------------------------


def fit(
    model: Model,
    train,
    val: SpectrogramDataset | None = None,
    *,
    epochs: int,
    lr: float = 1e-3,
    batch_size: int = 32,
    seed: int = 0,
    crop: int | None = None,
    augment: Augment | None = None,
    ema: float = 0.0,
    weight_decay: float = 1e-2,
    device="auto",
    half: bool | None = None,
    checkpoint: Path | None = None,
    log: bool = True,
) -> History:
    """Train `model` in place, and leave it in evaluation mode at its best epoch. Notebook: 05.

    train : a SpectrogramDataset, or several whose batches alternate (multitask with a genre task)
    val : chooses the epoch, see `best_epoch`; without it the last epoch stays
    crop : train on random windows of that many frames, validate on evenly spaced ones
    ema : epochs, about, over which the weights are averaged as they move; then that average is
        validated and kept. 0 is off
    half : see `half_type`; whatever is validated is computed in float32
    checkpoint : a file that holds the state after each epoch: a killed run that is started again
        with the same arguments goes on from there. It is removed at the end
    log : show the epochs as they go, in one output

    Losses and scores are over all examples, never a mean of batch means. Raises ValueError on an
    empty split or a count below 1, FloatingPointError when the loss is no longer a number. An
    interrupted training leaves the model at its best epoch so far, its history in `model.history`.
    """
    _check_counts(epochs=epochs, batch_size=batch_size, crop=crop)
    if isinstance(device, str):
        device = pick_device(device)
    splits = _moved(_listed(train), device)
    if val is not None:
        (val,) = _moved([val], device)
    state = start_training(
        model.to(device),
        splits,
        epochs=epochs,
        lr=lr,
        batch_size=batch_size,
        ema=ema,
        weight_decay=weight_decay,
        dtype=half_type(device, half),
    )
    history, kept = state["history"], model
    if ema:
        kept = state["average"].module
    arguments = fingerprint(
        model, splits, val, epochs, lr, batch_size, seed, crop, augment, ema, weight_decay, half
    )
    _resume(state, checkpoint, arguments)
    shown = EpochLog(epochs, log)
    try:
        for epoch in range(len(history.epochs) + 1, epochs + 1):
            start = time.perf_counter()
            # Each epoch has random numbers of its own: a resumed run draws what it would have.
            set_seed(10_000 * seed + epoch)
            stream = alternate(splits, batch_size, crop, device)
            row = {"epoch": epoch, "train_loss": train_epoch(state, stream, augment)}
            if val:
                row |= validate(kept, val, crop=crop, batch_size=batch_size)
            row["lr"] = state["schedule"].get_last_lr()[0]
            row["seconds"] = time.perf_counter() - start
            history.epochs.append(row)
            if best_epoch(history.epochs, epochs) == epoch:
                history.best_epoch = epoch
                # Clones: state_dict() alone is an alias of the live weights.
                state["best"] = {name: v.clone() for name, v in kept.state_dict().items()}
            checkpoint = _save(state, checkpoint, arguments)
            shown.add(row, history.best_epoch)
    finally:  # whatever stops it, a person too, leaves the best so far
        if state["best"]:
            model.load_state_dict(state["best"])
        model.eval()
        model.history = history
    if checkpoint:
        Path(checkpoint).unlink(missing_ok=True)
    return history


def start_training(
    model: Model,
    splits,
    *,
    epochs: int,
    lr: float,
    batch_size: int,
    ema: float,
    weight_decay: float,
    dtype,
) -> dict:
    """What moves in a training, by name: each has a state_dict of its own. Notebook: 05."""
    device = next(model.parameters()).device
    steps = sum(math.ceil(len(split) / batch_size) for split in splits)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    # AdamW: every weight its own step size, and a decay that does not pass through it.
    optimizer = torch.optim.AdamW(trained, lr=lr, weight_decay=weight_decay, fused=True)
    # One cycle: up to `lr` in the first 30 % of the steps, then down to nothing (Smith & Topin
    # 2018); AdamW's momentum goes the other way, .95 to .85 and back.
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, lr, total_steps=epochs * steps + 1, pct_start=WARM_UP
    )
    # Gradients in float16 would vanish unless the loss is scaled up.
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
    decay = 0.0
    if ema:
        decay = max(0.0, 1 - 1 / (steps * ema))
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
    return {
        "model": model,
        "average": average,
        "optimizer": optimizer,
        "schedule": schedule,
        "scaler": scaler,
        "dtype": dtype,
        "averaging": ema > 0,
        "best": {},
        "history": History(parameters=sum(map(torch.numel, trained)), batches=steps),
    }


def train_epoch(state: dict, stream, augment: Augment | None = None) -> float:
    """One pass over the batches of `stream`; returns the mean loss over its clips. Notebook: 05."""
    model, optimizer, scaler = state["model"], state["optimizer"], state["scaler"]
    dtype = state["dtype"]
    model.train()
    keep_frozen_statistics(model)
    device = next(model.parameters()).device
    total, count = torch.zeros(2, device=device), 0
    for x, lengths, y in stream:
        targets = model.targets(y)
        if augment:
            x, lengths, targets = augment_batch(x, lengths, targets, model.backbone.mean, augment)
        with torch.autocast(device.type, dtype) if dtype else nullcontext():
            outputs = model(x, lengths)
        loss = model.loss(outputs.float(), targets)
        optimizer.zero_grad(set_to_none=True)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        # One odd batch must not throw the weights far away, least of all an LSTM's.
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)  # float16: leaves out a step whose gradients overflowed
        scaler.update()
        state["schedule"].step()
        if state["averaging"]:
            state["average"].update_parameters(model)
        # Summed on the device: reading a number each step would make a GPU wait for the CPU.
        finite = loss.detach().isfinite()
        total += torch.stack([loss.detach().nan_to_num(0, 0, 0), finite.float()]) * len(x)
        count += len(x)
    loss, finite = total.tolist()
    spoilt = count - finite
    if spoilt and not (scaler.is_enabled() and finite):
        raise FloatingPointError(
            "the training loss is no longer a finite number: lower the learning rate, or look for "
            "bad values in the data"
        )
    return loss / finite


def alternate(splits: list[SpectrogramDataset], batch_size: int, crop: int | None, device):
    """Shuffled batches of several splits, in a random order of turns. Notebook: 09b."""
    streams = [
        batches(split, batch_size, shuffle=True, crop=crop, device=device) for split in splits
    ]
    turns = []
    for i, split in enumerate(splits):
        turns += [i] * math.ceil(len(split) / batch_size)
    order = range(len(turns))
    if len(splits) > 1:
        order = torch.randperm(len(turns))
    for i in order:
        yield next(streams[turns[i]])


def best_epoch(epochs: list[dict], planned: int) -> int:
    """The epoch to keep: the lowest validation loss, averaged with the two before. Notebook: 05.

    The loss, not the score, which jumps with every clip; an average, since a loss jumps too; and
    never an epoch of the warm-up, when the weights are still close to where chance put them.
    Without validation losses the last one.
    """
    if "val_loss" not in epochs[-1]:
        return epochs[-1]["epoch"]
    losses = pd.Series([row["val_loss"] for row in epochs])
    smooth = losses.rolling(SMOOTHED, min_periods=1).mean()
    first = min(math.ceil(WARM_UP * planned), planned - 1)
    return int(smooth[first:].idxmin()) + 1 if len(losses) > first else 0


def keep_frozen_statistics(model: Model) -> None:
    """A frozen batch norm keeps its running statistics too. Notebook: 09a."""
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d) and not module.weight.requires_grad:
            module.eval()


def _listed(train) -> list[SpectrogramDataset]:
    if isinstance(train, (list, tuple)):
        return list(train)
    return [train]


def _check_counts(**counts) -> None:
    for name, count in counts.items():
        if count is not None and count < 1:
            raise ValueError(f"{name} = {count}; a whole number from 1 is needed")


def _moved(splits, device) -> list[SpectrogramDataset]:
    for split in splits:
        if not len(split):
            raise ValueError(
                "a split is empty: give fit clips to train on, and to validate on or val=None"
            )
    return [split.to(device) for split in splits]


def fit_seeds(make, train, val: SpectrogramDataset, *, seeds: int, epochs: int, **options):
    """Choose the number of epochs on `val`, then train a network a seed on both. Notebook: 05.

    make : (split) -> a fresh model, normalised from that split; train : as for `fit`
    options : go to `fit`
    Returns the models (one a seed), their histories (the choosing run's first), and the number of
    epochs. This is how every network of the series that is compared with another comes about.
    """
    splits = _listed(train)
    set_seed(0)
    chosen = fit(make(splits[0]), train, val, epochs=epochs, seed=0, **options)
    both = [union(splits[0], val), *splits[1:]]
    models, histories = [], [chosen]
    for seed in range(seeds):
        set_seed(seed)
        models.append(make(both[0]))
        histories.append(fit(models[-1], both, epochs=chosen.best_epoch, seed=seed, **options))
    return models, histories, chosen.best_epoch


# --- saving and resuming --------------------------------------------------------------------------


def fingerprint(model: Model, splits, val, *arguments) -> str:
    """What makes two trainings the same one: arguments, clips, targets, and the first weights.

    Notebook: 05.
    """
    digest = hashlib.sha256(repr((model.config, arguments)).encode())
    for name, parameter in model.named_parameters():
        digest.update(f"{name} {parameter.requires_grad}".encode())
    for value in model.state_dict().values():
        digest.update(value.cpu().numpy().tobytes())
    if val is not None:
        splits = [*splits, val]
    for split in splits:
        digest.update(repr((split.task, split.split, split.input_name, split.ids)).encode())
        digest.update(split.y.numpy().tobytes())
    return digest.hexdigest()


def _save(state: dict, path: Path | None, told: str) -> Path | None:
    """Write the state; returns the path, or None where it cannot be written: then without."""
    if path is None:
        return None
    moving = ("model", "average", "optimizer", "schedule", "scaler")
    content = {name: state[name].state_dict() for name in moving}
    content |= {"arguments": told, "best": state["best"], "history": vars(state["history"])}
    try:
        with atomic(path) as partial:
            torch.save(content, partial)
        return path
    except OSError as error:
        warnings.warn(
            f"{error}. The training goes on, but a killed run would start anew", stacklevel=3
        )
        return None


def _resume(state: dict, path: Path | None, told: str) -> None:
    """Go on from a saved state; one of another training, or half a file, is ignored."""
    if path is None or not Path(path).is_file():
        return
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        if content["arguments"] != told:
            return
    except Exception:  # whatever is wrong with it, training from the start is right
        return
    for name in ("model", "average", "optimizer", "schedule", "scaler"):
        state[name].load_state_dict(content[name])
    vars(state["history"]).update(content["history"])
    state["best"] = content["best"]


# --- before a training ----------------------------------------------------------------------------


def dry_run(model: Model, ds: SpectrogramDataset, *, n_batches=5, epochs=3, batch_size=8, **more):
    """Train and validate a copy for a few epochs on 4-5 small batches: does it run? Notebook: 05.

    It is validated on the very clips it learns from: its score says nothing. Returns the History.
    """
    few = _draw(ds, n_batches * batch_size, seed=0)
    return fit(copy.deepcopy(model), few, few, epochs=epochs, batch_size=batch_size, **more)


def overfit_batch(model: Model, ds: SpectrogramDataset, *, size=16, epochs=100, lr=3e-3, **options):
    """Train a copy on one batch until it knows it by heart: can it learn at all? Notebook: 05.

    Dropout and weight decay, which keep a loss from reaching 0, are off. Returns the losses.
    """
    twin = copy.deepcopy(model)
    for module in twin.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    batch = _draw(ds, size, seed=0)
    options = {"batch_size": size, "weight_decay": 0.0, "log": False, **options}
    history = fit(twin, batch, epochs=epochs, lr=lr, **options)
    return [row["train_loss"] for row in history.epochs]


def _draw(ds: SpectrogramDataset, n: int, seed: int) -> SpectrogramDataset:
    order = torch.randperm(len(ds), generator=torch.Generator().manual_seed(seed))
    return ds.subset(order[:n])


# --- after a training -----------------------------------------------------------------------------


@torch.inference_mode()
def over_windows(function, ds: SpectrogramDataset, device, crop=None, batch_size=32):
    """function(x (B, T, F), lengths (B,)) of every clip (N, k), in order. Notebook: 07.

    crop : the mean of its values over `N_WINDOWS` evenly spaced windows of that many frames
    """
    ds = ds.to(device)
    lengths, positions = ds.lengths, ds.positions
    crop = crop and min(crop, ds.array.shape[1])
    order = lengths.argsort(stable=True)
    values = []
    for chunk in order.split(batch_size):
        longest = int(lengths[chunk].max())
        frames = crop or longest
        n = N_WINDOWS if longest > frames else 1  # a clip no longer than a window has one
        real = lengths[chunk].clamp(max=frames).to(device)
        where = positions[chunk].to(ds.array.device)
        total = 0
        # One window of every clip at a time: a batch stays a batch in memory.
        for starts in even_starts(lengths[chunk], frames, n).to(ds.array.device):
            x = cut(ds, where, starts, frames).to(device)
            total = total + function(x, real)
        values.append(total / n)
    return torch.cat(values)[order.argsort().to(device)].cpu()


def predict(model: Model, ds: SpectrogramDataset, *, crop=None, batch_size=32) -> np.ndarray:
    """Probabilities (N, n_classes) or affect values (N, k), in float32. Notebooks: 05 to 10.

    crop : the frames of the windows that the model was trained on, averaged over; None takes each
        clip whole
    """
    model.eval()
    device = next(model.parameters()).device

    def decoded(x, lengths):
        return model.decode(model(x, lengths))

    return over_windows(decoded, ds, device, crop, batch_size).numpy()


def embed(backbone: Backbone, ds: SpectrogramDataset, *, crop=None, batch_size=32) -> np.ndarray:
    """What a trained backbone says of each clip (N, out_features), in float32. Notebook: 07."""
    backbone.eval()
    return over_windows(backbone, ds, backbone.mean.device, crop, batch_size).numpy()


def validate(model: Model, ds: SpectrogramDataset, *, crop=None, batch_size=32) -> dict:
    """val_loss and val_score (macro-F1, or mean Spearman's rho) over all clips. Notebook: 05."""
    device = next(model.parameters()).device
    predictions = torch.from_numpy(predict(model, ds, crop=crop, batch_size=batch_size))
    with torch.inference_mode():
        targets = model.targets(ds.y.to(device))
        # The loss of the averaged predictions: of the outputs that would be decoded to them.
        loss = float(model.loss(model.encode(predictions.to(device)), targets))
    if ds.task == "genre":
        score = macro_f1(ds.y, predictions.argmax(1))
    else:
        score = mean_rho(ds.y, predictions)
    return {"val_loss": loss, "val_score": score}


class EpochLog:
    """The epochs of a training as one output that is rewritten as it goes, folded in a page.

    Its plain text is the same whatever happened, so that nbval does not compare it. Without a
    notebook the lines are printed. Notebook: 05.
    """

    def __init__(self, epochs: int, wanted: bool = True):
        self.epochs, self.lines, self.wanted = epochs, [], wanted
        self.handle = None
        if wanted and get_ipython():
            self.handle = display(self._content("starting"), raw=True, display_id=True)

    def add(self, row: dict, best: int) -> None:
        """One line more; the last one is the summary of all."""
        line = f"epoch {row['epoch']:3d}/{self.epochs}  loss {row['train_loss']:.3f}"
        if "val_loss" in row:
            line += f"  val loss {row['val_loss']:.3f}  val score {row['val_score']:.3f}"
        self.lines.append(f"{line}  {row['seconds']:.1f} s")
        content = self._content(f"{line}; kept: epoch {best}")
        if self.handle:
            self.handle.update(content, raw=True)
        elif self.wanted:
            print(self.lines[-1])

    def _content(self, summary: str) -> dict:
        lines = html.escape("\n".join(self.lines))
        page = (
            f'<details class="epochs"><summary>{html.escape(summary)}</summary>'
            f"<pre>{lines}</pre></details>"
        )
        return {"text/html": page, "text/plain": "training log"}
