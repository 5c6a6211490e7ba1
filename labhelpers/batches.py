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
        lengths = lengths.clamp(max=crop)
    chunks = torch.arange(len(ds)).split(batch_size)
    if shuffle:
        chunks = _shuffled(lengths, batch_size, by_length=not crop)
    order = torch.cat(chunks)
    sizes = [len(chunk) for chunk in chunks]
    widths = [crop or int(lengths[chunk].max()) for chunk in chunks]
    # An epoch's small numbers are put in order and sent to the devices once, not batch by batch.
    epoch = [
        ds.positions[order].to(ds.array.device),
        starts[order].to(ds.array.device),
        lengths[order].to(device),
        ds.y[order].to(device),
    ]
    pieces = zip(*(numbers.split(sizes) for numbers in epoch), strict=True)
    for width, (positions, begin, real, y) in zip(widths, pieces, strict=True):
        x = cut(ds, positions, begin, width)
        yield x.to(device, non_blocking=True), real, y


def _shuffled(lengths: torch.Tensor, batch_size: int, by_length: bool) -> list[torch.Tensor]:
    """Positions of each batch in a random order; of like lengths together within eight batches."""
    order = torch.randperm(len(lengths))
    if by_length:
        stretches = order.split(8 * batch_size)
        order = torch.cat([part[lengths[part].argsort(stable=True)] for part in stretches])
    chunks = order.split(batch_size)
    turns = torch.randperm(len(chunks))
    return [chunks[turn] for turn in turns]


# --- windows --------------------------------------------------------------------------------------


def random_starts(lengths: torch.Tensor, crop: int) -> torch.Tensor:
    """Where a random window of `crop` frames starts in each clip (N,). Notebook: 07."""
    choices = (lengths - crop + 1).clamp(min=1)
    return (torch.rand(len(lengths)) * choices).long()


def even_starts(lengths: torch.Tensor, crop: int, n: int = N_WINDOWS) -> torch.Tensor:
    """Where n evenly spaced windows of `crop` frames start in each clip (n, N). Notebook: 07."""
    last = (lengths - crop).clamp(min=0)
    shares = torch.linspace(0, 1, n)[:, None]
    return (shares * last).round().long()


def cut(ds: SpectrogramDataset, positions, starts, frames: int) -> torch.Tensor:
    """Windows x (B, frames, F) at `starts` (B,) of the clips at `positions` (B,) of the array.

    What lies behind a clip's end is silence, as the array is padded. Notebook: 07.
    """
    if ds.array.device.type == "cpu":
        # Clip by clip: a window is contiguous in the mapped file, the clip around it is not read.
        windows = []
        for position, start in zip(positions.tolist(), starts.tolist(), strict=True):
            windows.append(ds.array[position, start : start + frames, ds.columns])
        return torch.stack(windows)
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
    _, frames, rows = x.shape
    for _ in range(augment.time_masks):
        masked = _bands(lengths, augment.time_width, frames)
        x = torch.where(masked[:, :, None], mean, x)
    for _ in range(augment.row_masks):
        masked = _bands(torch.full_like(lengths, rows), augment.row_width, rows)
        x = torch.where(masked[:, None, :], mean, x)
    if augment.mixup:
        x, lengths, targets = _mix(x, lengths, targets, augment.mixup)
    return x, lengths, targets


def _roll(x: torch.Tensor, most: int) -> torch.Tensor:
    """Each clip's mel rows up or down by one random number of rows; edge rows repeat."""
    mel, chroma = x.split([N_MELS, x.shape[2] - N_MELS], dim=2)
    shifts = torch.randint(-most, most + 1, (len(x), 1), device=x.device)
    rows = torch.arange(N_MELS, device=x.device)
    source = (rows - shifts).clamp(0, N_MELS - 1)  # (B, rows)
    moved = mel.gather(2, source[:, None].expand_as(mel))
    return torch.cat([moved, chroma], dim=2)


def _change_level(x: torch.Tensor, lengths: torch.Tensor, deviation: float) -> torch.Tensor:
    """Each clip louder or softer by one random level in dB; padding stays silence."""
    mel, chroma = x.split([N_MELS, x.shape[2] - N_MELS], dim=2)
    level = deviation * torch.randn(len(x), 1, device=x.device)
    frames = torch.arange(x.shape[1], device=x.device)
    level = level * (frames < lengths[:, None])  # (B, T)
    return torch.cat([mel + level[..., None], chroma], dim=2)


def _bands(extent: torch.Tensor, width: int, size: int) -> torch.Tensor:
    """(B, size) True in one random stretch of each of B axes, within its extent (B,).

    It is never wider than half of the extent.
    """
    draw = torch.rand(2, len(extent), 1, device=extent.device)
    extent = extent[:, None]
    long = (draw[0] * (width + 1)).floor().minimum(extent // 2)
    start = (draw[1] * (extent - long + 1)).floor()
    steps = torch.arange(size, device=extent.device)
    return (steps >= start) & (steps < start + long)


def _mix(x, lengths, targets, alpha: float):
    """Each clip blended with another one of the batch, and its targets likewise."""
    # NumPy's Beta distribution, drawn on the host: a number, not a tensor to send.
    share = np.random.beta(alpha, alpha)
    other = torch.randperm(len(x), device=x.device)
    x = share * x + (1 - share) * x[other]
    targets = share * targets + (1 - share) * targets[other]
    return x, torch.maximum(lengths, lengths[other]), targets
