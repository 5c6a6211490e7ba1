"""The training loop, as plain functions, and the two debugging runs that come before it."""

from __future__ import annotations

import copy
import hashlib
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
from scipy.stats import ConstantInputWarning, spearmanr
from sklearn.metrics import f1_score
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from .batches import batches, pad_to
from .datasets import N_MELS, SpectrogramDataset
from .files import atomic
from .models import Model, frame_mask


@dataclass
class History:
    """What a training left: the best epoch, and of each its number, train_loss, val_loss, val_score, lr and seconds."""

    rows: list[dict] = field(default_factory=list)
    best_epoch: int = 0

    def frame(self) -> pd.DataFrame:
        return pd.DataFrame(self.rows)


@dataclass(frozen=True)
class Augment:
    """Changes to a training batch; the zeros are "off".

    time_masks, time_width, row_masks, row_width : SpecAugment (Park et al. 2019), masked to each row's mean;
        widths are the largest, in frames and rows
    mixup : alpha of the Beta distribution that clips and targets are blended with (Zhang et al. 2018)
    gain : deviation in dB of one random level a clip on the mel rows of its real frames
    roll : up to so many mel rows up or down, one shift a clip
    """

    time_masks: int = 0
    time_width: int = 0
    row_masks: int = 0
    row_width: int = 0
    mixup: float = 0.0
    gain: float = 0.0
    roll: int = 0


def set_seed(seed: int) -> None:
    """Seed Python, NumPy and torch."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def pick_device(name: str = "auto") -> torch.device:
    """The device of that name; "auto" takes a GPU where there is one. Raises ValueError."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(
            f"DEVICE = {name!r}, but torch finds no GPU; on Kaggle: Settings > Accelerator > GPU. 'auto' runs without"
        )
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"DEVICE = {name!r}; known: 'auto', 'cpu', 'cuda', 'cuda:0', …") from None
    if device.type == "cuda":
        try:
            torch.ones(1, device=device).sum().item()
        except RuntimeError as error:  # Kaggle's P100 is there, but its torch has no code for it
            raise ValueError(
                f"torch cannot use the GPU ({str(error).splitlines()[0]}); "
                "on Kaggle: Settings > Accelerator > GPU T4 x2, or DEVICE = 'cpu'"
            ) from None
    return device


def autocast(device: torch.device):
    """Mixed precision where the hardware has it: bf16, or fp16 on a GPU without bf16; float32 otherwise."""
    if device.type == "cuda":
        return torch.autocast("cuda", torch.bfloat16 if _has_bf16() else torch.float16)
    if getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)():
        return torch.autocast("cpu", torch.bfloat16)
    return nullcontext()


def _has_bf16() -> bool:
    return torch.cuda.is_bf16_supported(including_emulation=False)


def fit(
    model: Model, train, val: SpectrogramDataset | None = None, *, epochs: int, lr: float = 1e-3, batch_size: int = 32,
    seed: int = 0, weight_decay: float = 1e-2, schedule: str = "one-cycle", patience: int | None = None,
    clip: float = 1.0, crop: int | None = None, val_crop: int | None = None, augment: Augment | None = None,
    device="auto", checkpoint: Path | None = None, log=print, ema: float = 0.0,
) -> History:  # fmt: skip
    """Train `model` in place with AdamW, and leave it at the epoch with the best validation score.

    train : a SpectrogramDataset, or several whose batches alternate (multitask with a genre task)
    val : chooses the epoch by macro-F1 (genre) or mean Spearman's rho (affect), ties by the loss; without it the last
        epoch stays
    schedule : "one-cycle", "cosine" or "constant"; patience : stop after so many epochs without a better score
    ema : epochs, about, over which the weights are averaged as they move (exponentially, by step); then that average is
        what is validated and kept. 0 is off
    clip : largest gradient norm; crop : train on random windows of that many frames; val_crop : validate on windows too
    checkpoint : a file that holds the state after each epoch; a killed run that is started again with the same model
        and arguments goes on from there and ends as an unbroken one would; it is removed at the end
    log : gets one line an epoch; None is silent

    Returns the History. Losses and scores are over all examples, never a mean of batch means. Raises ValueError on an
    empty split, FloatingPointError when the loss is no longer a number.
    """
    set_seed(seed)
    device = pick_device(device) if isinstance(device, str) else device
    parts = list(train) if isinstance(train, (list, tuple)) else [train]
    if not all(len(part) for part in [*parts, *([] if val is None else [val])]):
        raise ValueError("a split is empty: give fit clips to train on, and to validate on or val=None")
    parts, val = [part.to(device) for part in parts], None if val is None else val.to(device)
    model.to(device)
    run = _Run(model, parts, epochs, lr, batch_size, seed, weight_decay, schedule, clip, crop, augment, device, ema)
    arguments = _describe(model, parts + ([] if val is None else [val]), epochs, lr, batch_size, seed, weight_decay,
                          schedule, patience, clip, crop, val_crop, augment, device, ema)  # fmt: skip
    if checkpoint is not None and Path(checkpoint).is_file():
        run.resume(checkpoint, arguments)
    while len(run.history.rows) < epochs and not run.exhausted(patience):
        start = time.perf_counter()
        row = {"epoch": len(run.history.rows) + 1, "train_loss": run.epoch()}
        if val is not None:
            row |= validate(run.judged, val, crop=val_crop, batch_size=batch_size)
        row |= {"lr": run.optimizer.param_groups[0]["lr"], "seconds": time.perf_counter() - start}
        run.keep(row)
        if checkpoint is not None:
            checkpoint = run.save(checkpoint, arguments)
        if log is not None:
            log(describe_epoch(row, epochs))
    model.load_state_dict(run.best_state or run.judged.state_dict())
    if checkpoint is not None:
        Path(checkpoint).unlink(missing_ok=True)
    model.eval()
    return run.history


def _describe(model: Model, parts, *arguments) -> str:
    """What makes two runs the same one: the arguments, the clips and inputs, and the weights they begin with."""
    weights = hashlib.sha256()
    for value in model.state_dict().values():
        weights.update(value.cpu().numpy().tobytes())
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    inputs = [(part.task, part.split, part.input_name, part.ids) for part in parts]
    return repr((model.config, trained, weights.hexdigest(), inputs, arguments))


def describe_epoch(row: dict, epochs: int) -> str:
    """One line on one epoch."""
    score = f"  val loss {row['val_loss']:.3f}  val score {row['val_score']:.3f}" if "val_loss" in row else ""
    return f"epoch {row['epoch']:3d}/{epochs}  loss {row['train_loss']:.3f}{score}  {row['seconds']:.1f} s"


class _Run:
    """The moving parts of one `fit`, apart so that they can be saved and brought back."""

    def __init__(
        self, model, parts, epochs, lr, batch_size, seed, weight_decay, schedule, clip, crop, augment, device, ema
    ):
        self.model, self.parts, self.batch_size, self.clip, self.crop = model, parts, batch_size, clip, crop
        self.augment, self.device, self.history = augment, device, History()
        self.generator = torch.Generator().manual_seed(seed)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=lr, weight_decay=weight_decay, fused=True)
        steps = epochs * sum(math.ceil(len(part) / batch_size) for part in parts)
        self.schedule = _schedule(self.optimizer, schedule, lr, steps)
        self.scaler = torch.amp.GradScaler(enabled=device.type == "cuda" and not _has_bf16())
        self.average = None
        if ema:
            decay = max(0.0, 1 - epochs / (steps * ema))
            self.average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
        self.judged = self.average.module if ema else model
        self.best_state, self.best_key = None, (-math.inf, -math.inf)

    def epoch(self) -> float:
        """One pass over the training batches; returns the mean loss over its clips."""
        self.model.train()
        # A frozen backbone keeps its batch-norm statistics too.
        for module in self.model.modules():
            if isinstance(module, torch.nn.BatchNorm2d) and not module.weight.requires_grad:
                module.eval()
        total, count = torch.zeros((), device=self.device), 0
        for x, lengths, y in self._batches():
            targets = self.model.targets(y)
            if self.augment is not None:
                mean = self.model.backbone.mean
                x, lengths, targets = change_batch(x, lengths, targets, mean, self.augment, self.generator)
            with autocast(self.device):
                outputs = self.model(x, lengths)
            loss = self.model.loss(outputs.float(), targets)
            self.optimizer.zero_grad(set_to_none=True)
            self.scaler.scale(loss).backward()
            self.scaler.unscale_(self.optimizer)
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
            self.scaler.step(self.optimizer)
            self.scaler.update()
            self.schedule.step()
            if self.average is not None:
                self.average.update_parameters(self.model)
            total += loss.detach() * len(x)
            count += len(x)
        mean = float(total / count)
        if not math.isfinite(mean):
            raise FloatingPointError(
                f"the training loss of epoch {len(self.history.rows) + 1} is not finite: "
                "lower the learning rate, or look for bad values in the data"
            )
        return mean

    def _batches(self):
        options = {"shuffle": True, "generator": self.generator, "crop": self.crop}
        streams = [batches(part, self.batch_size, **options) for part in self.parts]
        if len(streams) == 1:
            yield from streams[0]
            return
        owners = torch.cat([torch.full((math.ceil(len(p) / self.batch_size),), i) for i, p in enumerate(self.parts)])
        for i in owners[torch.randperm(len(owners), generator=self.generator)].tolist():
            yield next(streams[i])

    def keep(self, row: dict) -> None:
        """Note the epoch, and its weights if it is the best so far."""
        self.history.rows.append(row)
        key = (row["val_score"], -row["val_loss"]) if "val_score" in row else (row["epoch"], 0.0)
        if key > self.best_key:
            self.best_key, self.history.best_epoch = key, row["epoch"]
            if "val_score" in row:  # a clone: state_dict() alone is an alias of the live weights
                self.best_state = {name: value.clone() for name, value in self.judged.state_dict().items()}

    def exhausted(self, patience: int | None) -> bool:
        return patience is not None and len(self.history.rows) - self.history.best_epoch >= patience

    def save(self, path: Path, arguments: str) -> Path | None:
        """Write the state; returns the path, or None where it cannot be written: the training goes on without."""
        random_states = {"cpu": torch.get_rng_state(), "batches": self.generator.get_state()}
        if self.device.type == "cuda":
            random_states["cuda"] = torch.cuda.get_rng_state(self.device)
        state = {
            "arguments": arguments, "model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(), "scaler": self.scaler.state_dict(), "best": self.best_state,
            "best_key": list(self.best_key), "rows": self.history.rows, "best_epoch": self.history.best_epoch,
            "random": random_states, "average": self.average and self.average.state_dict(),
        }  # fmt: skip
        try:
            with atomic(path) as partial:
                torch.save(state, partial)
            return path
        except OSError as error:
            warnings.warn(f"{error}. The training goes on, but a killed run would start anew", stacklevel=3)
            return None

    def resume(self, path: Path, arguments: str) -> None:
        """Go on from a saved state; one of another training (or half a file) is ignored and overwritten."""
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            if state["arguments"] != arguments:
                return
        except Exception:  # whatever is wrong with it, training from the start is right
            return
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.scaler.load_state_dict(state["scaler"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.best_state, self.best_key = state["best"], tuple(state["best_key"])
        self.history = History(state["rows"], state["best_epoch"])
        torch.set_rng_state(state["random"]["cpu"])
        self.generator.set_state(state["random"]["batches"])
        if "cuda" in state["random"] and self.device.type == "cuda":
            torch.cuda.set_rng_state(state["random"]["cuda"], self.device)


def _schedule(optimizer, name: str, lr: float, steps: int):
    if name == "one-cycle":
        return torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps + 1)
    if name == "cosine":
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    if name == "constant":
        return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    raise ValueError(f"schedule {name!r}; known: one-cycle, cosine, constant")


# --- augmentation ---------------------------------------------------------------------------------------------------


def change_batch(x, lengths, targets, mean, augment: Augment, generator):
    """A changed copy of a batch x (B, T, F) with its lengths and targets; `mean` (F,) fills the masks."""
    size, frames, rows = x.shape
    uniform = lambda *shape: torch.rand(*shape, generator=generator).to(x.device)  # noqa: E731
    mels = min(rows, N_MELS) if rows >= N_MELS else 0
    if augment.roll and mels:
        shifts = torch.randint(-augment.roll, augment.roll + 1, (size,), generator=generator).to(x.device)
        source = (torch.arange(mels, device=x.device) - shifts[:, None]).clamp(0, mels - 1)  # edge rows repeat
        x = torch.cat([x[..., :mels].gather(2, source[:, None].expand(-1, frames, -1)), x[..., mels:]], dim=2)
    if augment.gain and mels:
        level = augment.gain * torch.randn(size, 1, 1, generator=generator).to(x.device)
        level = level * frame_mask(lengths, frames)[..., None]  # padding stays silence
        x = torch.cat([x[..., :mels] + level, x[..., mels:]], dim=2)
    for axis, masks, width, extent in (
        (1, augment.time_masks, augment.time_width, lengths[:, None].float()),
        (2, augment.row_masks, augment.row_width, torch.full((size, 1), float(rows), device=x.device)),
    ):
        for _ in range(masks):
            long = (uniform(size, 1) * (width + 1)).floor().minimum(extent // 2)  # never more than half of a short clip
            start = (uniform(size, 1) * (extent - long + 1)).floor()
            steps = torch.arange(x.shape[axis], device=x.device)
            mask = (steps >= start) & (steps < start + long)  # (B, T) or (B, F)
            x = torch.where(mask.unsqueeze(3 - axis), mean, x)
    if augment.mixup:
        # NumPy's Beta is seeded from our generator: one source of randomness, one state to save
        draw = np.random.default_rng(int(torch.randint(2**31, (), generator=generator)))
        share = float(draw.beta(augment.mixup, augment.mixup))
        other = torch.randperm(size, generator=generator).to(x.device)
        x, targets = share * x + (1 - share) * x[other], share * targets + (1 - share) * targets[other]
        lengths = torch.maximum(lengths, lengths[other])
    return x, lengths, targets


# --- looking at a model ---------------------------------------------------------------------------------------------


@torch.inference_mode()
def run_model(model: Model, ds: SpectrogramDataset, *, crop: int | None = None, n_crops=9, batch_size=32):
    """The model's outputs (N, k) for every clip of `ds`, in order, in evaluation mode.

    crop : average the decoded predictions over `n_crops` evenly spaced windows of that many frames each
    Returns decoded predictions with `crop`, raw outputs without.
    """
    model.eval()
    device = next(model.parameters()).device
    result, lengths = [], ds.lengths.cpu()
    order = torch.argsort(lengths, stable=True)
    crop = crop and min(crop, int(lengths.max()))
    for chunk in order.split(batch_size):
        part = ds.subset(chunk)
        if crop is None:
            (batch,) = batches(part, len(chunk))
            with autocast(device):
                result.append(model(batch[0].to(device), batch[1].to(device)).float())
        else:
            n = n_crops if part.lengths.max() > crop else 1  # a clip no longer than a window has one
            windows = [windows_of(part[i][0], crop, n) for i in range(len(chunk))]
            total = 0
            for i in range(n):  # one window of every clip at a time: a batch stays a batch in memory
                x = torch.stack([clip[i] for clip in windows]).to(device)
                real = part.lengths.to(device).clamp(max=crop)
                with autocast(device):
                    total = total + model.decode(model(x, real).float())
            result.append(total / n)
    return torch.cat(result)[torch.argsort(order)].cpu()


def windows_of(x: torch.Tensor, crop: int, n: int) -> list[torch.Tensor]:
    """n evenly spaced windows (crop, F) of a clip (T, F), padded with silence if it is shorter."""
    starts = np.linspace(0, max(0, len(x) - crop), n).round().astype(int)
    return [pad_to(x[start : start + crop], crop) for start in starts]


@torch.inference_mode()
def validate(model: Model, ds: SpectrogramDataset, *, crop: int | None = None, batch_size: int = 32) -> dict:
    """val_loss and val_score (macro-F1, or mean Spearman's rho) over all clips of `ds`."""
    device = next(model.parameters()).device
    targets = model.targets(ds.y.to(device))
    if crop is None:
        outputs = run_model(model, ds, batch_size=batch_size).to(device)
        loss, predictions = float(model.loss(outputs, targets)), model.decode(outputs).cpu()
    else:  # averaged predictions have no outputs of their own: take those that would be decoded to them
        predictions = run_model(model, ds, crop=crop, n_crops=3, batch_size=batch_size)
        shares = predictions.to(device).clamp(1e-7, 1 - 1e-7)
        loss = float(model.loss(shares.log() if ds.task == "genre" else shares.logit(), targets))
    return {"val_loss": loss, "val_score": score(ds.y.cpu(), predictions)}


def score(y: torch.Tensor, predictions: torch.Tensor) -> float:
    """Macro-F1 over the classes present for codes (N,), mean Spearman's rho over the columns for values (N, k)."""
    if y.ndim == 1:
        return float(f1_score(y, predictions.argmax(1), labels=y.unique(), average="macro", zero_division=0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConstantInputWarning)  # a constant prediction has no rank order: rho 0
        rhos = [spearmanr(y[:, i], predictions[:, i]).statistic for i in range(y.shape[1])]
    return float(np.nan_to_num(rhos).mean())


def without_regularisation(model: Model) -> Model:
    """A copy of the model with dropout and label smoothing off, which keep a loss from reaching 0."""
    twin = copy.deepcopy(model)
    if hasattr(twin, "label_smoothing"):
        twin.label_smoothing = 0.0
    for module in twin.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return twin


def dry_run(model: Model, ds: SpectrogramDataset, *, n_batches=5, epochs=3, batch_size=8, **options) -> History:
    """Train and validate a copy of the model for a few epochs on 4-5 small batches: does everything run at all?"""
    few = ds.subset(torch.randperm(len(ds), generator=torch.Generator().manual_seed(0))[: n_batches * batch_size])
    return fit(copy.deepcopy(model), few, few, epochs=epochs, batch_size=batch_size, **options)


def overfit_batch(model: Model, ds: SpectrogramDataset, *, size=16, steps=100, lr=3e-3, seed=0, **options) -> list:
    """Train a copy of the model, without dropout and label smoothing, on one batch; its losses should go to about 0."""
    batch = ds.subset(torch.randperm(len(ds), generator=torch.Generator().manual_seed(seed))[:size])
    options = {"batch_size": size, "weight_decay": 0.0, "log": None, **options}
    history = fit(without_regularisation(model), batch, epochs=steps, lr=lr, seed=seed, **options)
    return [row["train_loss"] for row in history.rows]


def predict(model, ds: SpectrogramDataset, *, crop: int | None = None, n_crops=9, batch_size=32) -> np.ndarray:
    """Probabilities (N, n_classes) or affect values (N, k) for the clips of `ds`, in order.

    crop : average over `n_crops` windows of that many frames; None takes each clip whole
    """
    outputs = run_model(model, ds, crop=crop, n_crops=n_crops, batch_size=batch_size)
    return (outputs if crop else model.decode(outputs)).numpy()


class _Features(torch.nn.Module):
    """A backbone in the place of a model: its features are the outputs."""

    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone

    def forward(self, x, lengths):
        return self.backbone(x, lengths)

    def decode(self, features):
        return features


def embed(backbone, ds: SpectrogramDataset, *, crop: int | None = None, n_crops: int = 5) -> np.ndarray:
    """What a trained backbone says about each clip (N, out_features), averaged over windows as in `predict`."""
    return run_model(_Features(backbone), ds, crop=crop, n_crops=n_crops).numpy()
