"""The training loop, and what comes before and after it. Shapes as in `models`."""

from __future__ import annotations

import copy
import math
import os
import random

import numpy as np
import torch

from .clips import Clips, batches, cut, even_starts
from .metrics import macro_f1, mean_rho
from .models import Model

LOOKS = 12  # at the validation clips, in a training: each costs as much as a part of an epoch


def set_seed(seed: int) -> None:
    """Seed Python, NumPy and torch. Notebooks: 05 to 10."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def pick_device(name: str | torch.device = "auto") -> torch.device:
    """The device of that name; "auto" takes a GPU where there is one. Notebook: 00.

    On a CPU it also sets one thread (unless OMP_NUM_THREADS is set), so that results do not depend
    on the number of cores and a small LSTM does not wait for its threads, and counts numbers below
    1e-38 as 0, which a CPU computes ten times slower. Raises ValueError.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.ones(1, device=device).sum().item()
    except (RuntimeError, AssertionError) as error:
        what = f"DEVICE = {name!r} cannot be used ({str(error).splitlines()[0]})"
        fix = "On Kaggle: Settings > Accelerator > GPU T4 x2; 'cpu' and 'auto' run everywhere"
        raise ValueError(f"{what}. {fix}") from None
    if device.type == "cpu":
        torch.set_flush_denormal(True)
        if "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(1)
    return device


def epochs_for(steps: int, clips: Clips, batch_size: int = 16) -> int:
    """Epochs that have about so many gradient steps, at least one. Notebook: 05."""
    return max(1, round(steps / math.ceil(len(clips) / batch_size)))


def fit(
    model: Model,
    train: Clips,
    val: Clips | None = None,
    *,
    epochs: int,
    lr: float,
    batch_size=16,
    seed=0,
    device="auto",
    keep="last",
    log=False,
) -> list[dict]:
    """Train `model` in place, and leave it in evaluation mode. Notebook: 05.

    val : clips that are watched, at most 12 times; they choose nothing
    keep : "last", the weights at the end of the schedule; "best", those of the epoch with the best
        validation score (then every epoch is validated)
    Returns a row for each epoch: epoch, train_loss (the mean over its clips), and where validated
    val_loss and val_score.
    The caller's random numbers are left as they were. Raises ValueError for counts below 1,
    FloatingPointError when the loss is no number.
    """
    if min(epochs, batch_size, len(train)) < 1 or not lr > 0:
        given = f"{len(train)} clips, epochs {epochs}, batch_size {batch_size}, lr {lr}"
        raise ValueError(f"{given}: at least 1 of each, and a rate above 0, are needed")
    device = pick_device(device)
    check_reads(model, train)
    train, model = train.to(device), model.to(device)
    steps = epochs * math.ceil(len(train) / batch_size)
    # AdamW: every weight its own step size, and a decay that does not pass through it.
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=lr, weight_decay=1e-2)
    # One cycle: up to `lr` in the first 30 % of the steps, then down to nothing (Smith & Topin
    # 2018). It has one step more than are taken: the last would be at a rate of nearly 0.
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps + 1)
    cuda = device.type == "cuda"
    modern = cuda and torch.cuda.get_device_capability(device) >= (8, 0)
    half = torch.bfloat16 if modern else torch.float16
    # Gradients in float16 would vanish unless the loss is scaled up.
    scaler = torch.amp.GradScaler(device.type, enabled=cuda and not modern)
    every = 1 if keep == "best" else max(1, epochs // LOOKS)
    rows, best, best_score = [], None, -math.inf
    with torch.random.fork_rng([device] if cuda else []):
        torch.manual_seed(seed)
        for epoch in range(1, epochs + 1):
            model.train()
            freeze_statistics(model)
            total = torch.zeros((), device=device)
            drawn = batches(train, batch_size, reads=model.reads, shuffle=True, device=device)
            for x, lengths, y in drawn:
                with torch.autocast(device.type, half, enabled=cuda):
                    outputs = model(x, lengths)
                loss = model.loss(outputs.float(), model.targets(y))
                optimizer.zero_grad()
                scaler.scale(loss).backward()
                scaler.unscale_(optimizer)
                # One odd batch must not throw the weights far away, least of all an LSTM's.
                torch.nn.utils.clip_grad_norm_(weights, 1.0)
                scaler.step(optimizer)
                scaler.update()
                schedule.step()
                # Summed on the device: reading a number each step would make a GPU wait.
                total += loss.detach() * len(x)
            row = {"epoch": epoch, "train_loss": float(total) / len(train)}
            if not math.isfinite(row["train_loss"]):
                fix = "lower the learning rate, or look for bad values in the data"
                raise FloatingPointError(f"the training loss is no longer a number: {fix}")
            if val is not None and (epoch % every == 0 or epoch == epochs):
                row |= validate(model, val)
                if keep == "best" and row["val_score"] > best_score:
                    best, best_score = copy.deepcopy(model.state_dict()), row["val_score"]
                if log:
                    print("  ".join(f"{name} {value:.4g}" for name, value in row.items()))
            rows.append(row)
    model.learned |= train.names
    if best is not None:
        model.load_state_dict(best)
        model.learned |= val.names
    model.eval()
    return rows


def freeze_statistics(model: Model) -> None:
    """A frozen batch norm keeps its running statistics, too. Notebook: 09a."""
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d) and not module.weight.requires_grad:
            module.eval()


def fit_seeds(make, train: Clips, val: Clips | None = None, *, seeds: int, **options):
    """A model for each seed: its start and the order of its clips differ. Notebook: 05.

    make(train) -> a fresh model that has started from these clips; options : of `fit`
    Returns the models and their histories.
    """
    models, histories = [], []
    for seed in range(seeds):
        set_seed(seed)
        models.append(make(train))
        histories.append(fit(models[-1], train, val, seed=seed, **options))
    return models, histories


def cross_predict(make, clips: Clips, folds, *, seed: int = 0, **options) -> np.ndarray:
    """Predictions (N, k), each clip by a model that has learned without its fold. Notebook: 08.

    make(train) -> a fresh model; folds : of `clips.k_folds`; options : of `fit`
    """
    predictions = []
    for learned, held_out in folds:
        set_seed(seed)
        train = clips.subset(learned)
        model = make(train)
        fit(model, train, seed=seed, **options)
        predictions.append(predict(model, clips.subset(held_out)))
    order = np.concatenate([held_out for _, held_out in folds])
    return np.concatenate(predictions)[order.argsort()]


# --- before a training ----------------------------------------------------------------------------


def dry_run(model: Model, clips: Clips, *, n_batches=5, epochs=3, batch_size=8, **options):
    """Train and validate a copy on a few small batches: does it run? Notebook: 05.

    It is validated on the very clips that it learns from: its score says nothing. Returns rows as
    `fit` does.
    """
    few = clips.subset(_draw(clips, n_batches * batch_size))
    return fit(copy.deepcopy(model), few, few, epochs=epochs, batch_size=batch_size, **options)


def overfit_batch(model: Model, clips: Clips, *, steps=100, lr=3e-3, device="auto"):
    """Train a copy on one batch, the same windows each step, until it knows it. Notebook: 05.

    Without dropout and weight decay, which keep a loss from reaching 0, and at a constant rate.
    Returns the losses.
    """
    device = pick_device(device)
    twin = copy.deepcopy(model).to(device).train()
    for module in twin.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    batch = clips.subset(_draw(clips, 16))
    x, lengths, y = next(batches(batch, 16, reads=model.reads, device=device))
    optimizer = torch.optim.Adam(twin.parameters(), lr)
    losses = []
    for _ in range(steps):
        loss = twin.loss(twin(x, lengths), twin.targets(y))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(twin.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    return losses


def _draw(clips, n):
    return np.random.default_rng(0).permutation(len(clips))[:n]


# --- after a training -----------------------------------------------------------------------------


def check_reads(model: Model, clips: Clips) -> None:
    """Raise ValueError when clips are beat-synced and the model reads full ones, or the reverse."""
    if model.reads.beat != clips.beat:
        kinds = {True: "beat-synced", False: "full-length"}
        told = f"the model reads {kinds[model.reads.beat]} clips, these are {kinds[clips.beat]}"
        raise ValueError(f"{told}; load them with beat={model.reads.beat}")


@torch.inference_mode()
def over_windows(model: Model, part, clips: Clips) -> torch.Tensor:
    """part(x (B, T, F), lengths (B,)) of each clip (N, k), the mean over its windows.

    part : the model, or its backbone
    """
    check_reads(model, clips)
    model.eval()
    device, reads = model.head.weight.device, model.reads
    order = clips.lengths.argsort(stable=True)  # clips of like length share a batch
    values = []
    for chunk in order.split(32):
        some = clips.subset(chunk.numpy())
        positions = some.positions.to(clips.array.device)
        longest = int(some.lengths.max())
        frames = reads.window or longest
        n = reads.n_windows if longest > frames else 1  # a clip no longer than a window has one
        lengths = some.lengths.clamp(max=frames).to(device)
        total = 0
        for starts in even_starts(some.lengths, frames, n).to(clips.array.device):
            x = cut(clips, positions, starts, frames, reads.columns).to(device)
            total = total + part(x, lengths)
        values.append(total / n)
    return torch.cat(values)[order.argsort().to(device)]


def predict(model: Model, clips: Clips) -> np.ndarray:
    """Probabilities (N, n_classes) or affect values (N, k). Notebooks: 05 to 10."""
    outputs = over_windows(model, model, clips)
    return model.decode(outputs).detach().cpu().numpy()


def embed(model: Model, clips: Clips) -> np.ndarray:
    """The backbone's features of each clip (N, out_features). Notebooks: 06, 09a."""
    return over_windows(model, model.backbone, clips).cpu().numpy()


@torch.inference_mode()
def validate(model: Model, clips: Clips) -> dict:
    """val_loss, and val_score (macro-F1, or mean Spearman's rho), once over all clips."""
    outputs = over_windows(model, model, clips)
    targets = model.targets(clips.y.to(outputs.device))
    loss = float(model.loss(outputs, targets))
    predictions = model.decode(outputs).cpu().numpy()
    if clips.task == "genre":
        score = macro_f1(clips.y.numpy(), predictions.argmax(1))
    else:
        score = mean_rho(targets.cpu().numpy(), predictions)
    return {"val_loss": loss, "val_score": score}
