"""Batches and windows cut from a split, and the changes that augment a training batch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from .corpora.layout import N_MELS
from .datasets import SpectrogramDataset

N_WINDOWS = 5  # evenly spaced over a clip, averaged wherever a network reads clips by windows


def batches(ds: SpectrogramDataset, batch_size=32, *, shuffle=False, crop=None, device=None):
    """Yield (x (B, T, F), lengths (B,), y) of the split, in its order. Notebook: 05.

    shuffle : a new order each time, from torch's random numbers; whole clips of like length share a
        batch, so that short beat-synced clips are not padded to the longest of all
    crop : a random window of that many frames of each clip instead of all of it
    device : where the batches should lie (default: where the split does)
    """
    device = device or ds.array.device
    lengths = ds.lengths
    crop = crop and min(crop, ds.array.shape[1])
    starts = torch.zeros_like(lengths)
    if crop:
        starts = random_starts(lengths, crop)
        lengths = (lengths - starts).clamp(max=crop)
    order = torch.randperm(len(ds)) if shuffle else torch.arange(len(ds))
    if shuffle and not crop:
        order = _like_lengths_together(order, lengths, 8 * batch_size)
    chunks = list(order.split(batch_size))
    if shuffle:
        chunks = [chunks[i] for i in torch.randperm(len(chunks))]
    # All of an epoch's small numbers are sent to the device at once, not batch by batch.
    at_hand, y = lengths.to(device), ds.y.to(device)
    positions, begin = ds.positions.to(ds.array.device), starts.to(ds.array.device)
    for chunk, here in zip(chunks, _sent(chunks, device), strict=True):
        there = here if ds.array.device == here.device else chunk
        width = crop or int(lengths[chunk].max())
        x = cut(ds, positions[there], begin[there], width)
        yield x.to(device, non_blocking=True), at_hand[here], y[here]


def _sent(chunks: list[torch.Tensor], device) -> list[torch.Tensor]:
    """The same pieces on another device, sent in one go."""
    return torch.cat(chunks).to(device).split([len(chunk) for chunk in chunks])


def _like_lengths_together(order: torch.Tensor, lengths: torch.Tensor, stretch: int):
    """The order, sorted by length within stretches."""
    pieces = order.split(stretch)
    return torch.cat([piece[lengths[piece].argsort(stable=True)] for piece in pieces])


# --- windows --------------------------------------------------------------------------------------


def random_starts(lengths: torch.Tensor, crop: int) -> torch.Tensor:
    """Where a random window of `crop` frames starts in each clip (N,). Notebook: 07."""
    return (torch.rand(len(lengths)) * (lengths - crop + 1).clamp(min=1)).long()


def even_starts(lengths: torch.Tensor, crop: int, n: int = N_WINDOWS) -> torch.Tensor:
    """Where n evenly spaced windows of `crop` frames start in each clip (n, N). Notebook: 07."""
    last = (lengths - crop).clamp(min=0)
    return (torch.linspace(0, 1, n)[:, None] * last).round().long()


def cut(ds: SpectrogramDataset, positions, starts, frames: int) -> torch.Tensor:
    """Windows x (B, frames, F) at `starts` (B,) of the clips at `positions` (B,) of the array.

    What lies behind a clip's end is silence, as the array is padded.
    """
    if ds.array.device.type == "cpu":
        # Clip by clip: a window is contiguous in the mapped file, the clip around it is not read.
        pairs = zip(positions.tolist(), starts.tolist(), strict=True)
        return torch.stack([ds.array[i, s : s + frames, ds.columns] for i, s in pairs])
    when = starts[:, None] + torch.arange(frames, device=starts.device)
    return ds.array[positions[:, None], when][..., ds.columns]


# --- augmentation ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Augment:
    """Changes to a training batch; the zeros are "off". Notebook: 07.

    time_masks, time_width, row_masks, row_width : SpecAugment (Park et al. 2019), masked to each
        row's mean; the widths are the largest, in frames and rows
    mixup : alpha of the Beta distribution that clips and targets are blended by (Zhang et al. 2018)
    gain : deviation in dB of one random level a clip
    roll : up to so many mel rows up or down, one shift a clip
    """

    time_masks: int = 0
    time_width: int = 0
    row_masks: int = 0
    row_width: int = 0
    mixup: float = 0.0
    gain: float = 0.0
    roll: int = 0


def augment_batch(x, lengths, targets, mean, augment: Augment):
    """A changed copy of a batch x (B, T, F), lengths (B,), targets (B, k). Notebook: 07.

    mean : (F,) fills the masks. All random numbers are drawn on the batch's own device, so that a
    step sends nothing there.
    """
    has_mel = x.shape[2] >= N_MELS
    if augment.roll and has_mel:
        x = _roll(x, augment.roll)
    if augment.gain and has_mel:
        x = _change_level(x, lengths, augment.gain)
    for _ in range(augment.time_masks):
        x = torch.where(_bands(lengths, augment.time_width, x.shape[1])[:, :, None], mean, x)
    rows = torch.full_like(lengths, x.shape[2])
    for _ in range(augment.row_masks):
        x = torch.where(_bands(rows, augment.row_width, x.shape[2])[:, None, :], mean, x)
    if augment.mixup:
        x, lengths, targets = _mix(x, lengths, targets, augment.mixup)
    return x, lengths, targets


def _roll(x: torch.Tensor, most: int) -> torch.Tensor:
    """Each clip's mel rows up or down by one random number of rows; edge rows repeat."""
    shifts = torch.randint(-most, most + 1, (len(x), 1), device=x.device)
    source = (torch.arange(N_MELS, device=x.device) - shifts).clamp(0, N_MELS - 1)  # (B, rows)
    moved = x[..., :N_MELS].gather(2, source[:, None].expand(-1, x.shape[1], -1))
    return torch.cat([moved, x[..., N_MELS:]], dim=2)


def _change_level(x: torch.Tensor, lengths: torch.Tensor, deviation: float) -> torch.Tensor:
    """Each clip louder or softer by one random level in dB; padding stays silence."""
    level = deviation * torch.randn(len(x), 1, 1, device=x.device)
    real = torch.arange(x.shape[1], device=x.device) < lengths[:, None]
    louder = x[..., :N_MELS] + level * real[..., None]
    return torch.cat([louder, x[..., N_MELS:]], dim=2)


def _bands(extent: torch.Tensor, width: int, size: int) -> torch.Tensor:
    """(B, size) True in one random stretch of each of B axes, within its extent (B,).

    It is never wider than half of the extent.
    """
    draw = torch.rand(2, len(extent), device=extent.device)
    long = (draw[0] * (width + 1)).floor().minimum(extent // 2)
    start = (draw[1] * (extent - long + 1)).floor()
    steps = torch.arange(size, device=extent.device)
    return (steps >= start[:, None]) & (steps < (start + long)[:, None])


def _mix(x, lengths, targets, alpha: float):
    """Each clip blended with another one of the batch, and its targets likewise."""
    # torch's own Beta distribution cannot be drawn without its global state on some devices.
    draw = np.random.default_rng(int(torch.randint(2**31, ())))
    share = float(draw.beta(alpha, alpha))
    other = torch.randperm(len(x), device=x.device)
    x = share * x + (1 - share) * x[other]
    targets = share * targets + (1 - share) * targets[other]
    return x, torch.maximum(lengths, lengths[other]), targets
