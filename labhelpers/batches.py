"""Batches and windows cut from a split."""

from __future__ import annotations

import torch

from .datasets import N_MELS, ROWS, SILENCE_DB, SpectrogramDataset


def batches(ds: SpectrogramDataset, batch_size: int = 32, *, shuffle=False, generator=None, crop: int | None = None):
    """Yield (x (B, T, F), lengths (B,), y) slices of the split, in its order.

    shuffle : a new order each time, drawn from `generator` (a CPU torch.Generator); clips of like length share a
        batch, so that short beat-synced clips are not padded to the longest of all
    crop : a random window of that many frames of each clip instead of all of it (never wider than the longest clip)
    """
    lengths = ds.lengths.cpu()
    crop = crop and min(crop, int(lengths.max()))
    if shuffle:
        order = torch.randperm(len(ds), generator=generator)
        chunks = list(order.split(batch_size) if crop else _bucketed(order, lengths, batch_size))
        chunks = [chunks[i] for i in torch.randperm(len(chunks), generator=generator)]
    else:
        chunks = torch.arange(len(ds)).split(batch_size)
    for chunk in chunks:
        yield _batch(ds, chunk, lengths[chunk], generator, crop)


def _bucketed(order: torch.Tensor, lengths: torch.Tensor, batch_size: int):
    """Cut the order in batches, sorting by length within stretches of eight batches."""
    for stretch in order.split(8 * batch_size):
        yield from stretch[torch.argsort(lengths[stretch], stable=True)].split(batch_size)


def _batch(ds: SpectrogramDataset, chunk, lengths, generator, crop):
    store, rows, index = ds._fused, ROWS[ds.rows], ds.index[chunk]
    device = store.device
    if crop is None:
        width = int(lengths.max())
        x = store[index.to(device), :width, rows]
    else:
        starts = (torch.rand(len(chunk), generator=generator) * (lengths - crop + 1).clamp(min=1)).long()
        # Cut clip by clip: a window is contiguous in memory, the clip around it is never touched.
        windows = [store[i, start : start + crop, rows] for i, start in torch.stack([index, starts], 1).tolist()]
        x = torch.stack([pad_to(window, crop) for window in windows])
        lengths = (lengths - starts).clamp(max=crop)
    return x, lengths.to(device), ds.y[chunk.to(ds.y.device)]


def pad_to(x: torch.Tensor, frames: int) -> torch.Tensor:
    """A (T, F) window padded with silence to (frames, F)."""
    if len(x) >= frames:
        return x
    padding = x.new_zeros(frames - len(x), x.shape[1])
    padding[:, : min(x.shape[1], N_MELS)] = SILENCE_DB if x.shape[1] >= N_MELS else 0.0
    return torch.cat([x, padding])
