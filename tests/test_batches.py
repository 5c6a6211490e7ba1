"""Batches, windows and augmentation."""

import numpy as np
import pytest
import torch

from labhelpers.batches import (
    N_WINDOWS,
    Augment,
    augment_batch,
    batches,
    cut,
    even_starts,
    random_starts,
)
from labhelpers.datasets import SpectrogramDataset
from labhelpers.training import set_seed

# --- batches --------------------------------------------------------------------------------------


def test_batches_without_shuffling_keep_the_order(corpus):
    ds = SpectrogramDataset(corpus, "genre", features="mel")
    position = 0
    for x, lengths, y in batches(ds, 7):
        assert x.shape == (len(y), int(lengths.max()), 128)
        for clip, length, code in zip(x, lengths, y, strict=True):
            assert torch.equal(clip[:length], ds[position][0]) and code == ds.y[position]
            assert (clip[length:] == -80).all()
            position += 1
    assert position == 24


@pytest.mark.parametrize("crop", [None, 10])
def test_shuffled_batches_hold_each_clip_once(shared_corpus, crop):
    ds = SpectrogramDataset(shared_corpus, "affect")

    def epoch(seed):
        set_seed(seed)
        return list(batches(ds, 8, shuffle=True, crop=crop))

    def targets(parts):
        return [tuple(row) for _, _, y in parts for row in y.tolist()]

    one, same, other = epoch(0), epoch(0), epoch(1)
    assert sorted(targets(one)) == sorted(tuple(row) for row in ds.y.tolist())
    assert all(torch.equal(a[0], b[0]) for a, b in zip(one, same, strict=True))
    assert targets(one) != targets(other) and targets(one) != [tuple(row) for row in ds.y.tolist()]
    assert len(one) == 8 and sum(len(y) == 8 for *_, y in one) == 7


def test_clips_change_their_company(shared_corpus):
    """It is not whole batches of the split's order that are shuffled."""
    ds = SpectrogramDataset(shared_corpus, "affect")

    def companies(shuffle):
        parts = batches(ds, 8, shuffle=shuffle, crop=10)
        return {frozenset(map(tuple, y.tolist())) for *_, y in parts}

    set_seed(0)
    one, other, own = companies(True), companies(True), companies(False)
    assert not one & other and not one & own


def test_the_order_of_batches_is_shuffled_too(shared_corpus):
    """Otherwise a training would see each stretch's short clips first."""
    ds = SpectrogramDataset(shared_corpus, "affect")
    set_seed(0)
    widths = [x.shape[1] for x, *_ in batches(ds, 8, shuffle=True)]
    assert widths != sorted(widths)


def test_like_lengths_save_padding(shared_corpus):
    ds = SpectrogramDataset(shared_corpus, "genre")

    def area(parts):
        return sum(x.shape[0] * x.shape[1] for x, *_ in parts)

    set_seed(0)
    sorted_ones = area(batches(ds, 8, shuffle=True))
    plain = area(batches(ds.subset(torch.randperm(64)), 8))
    real = int(ds.lengths.sum())
    assert real <= sorted_ones < real + 0.3 * (plain - real)


def test_crops_are_windows_of_the_clip(shared_corpus):
    ds = SpectrogramDataset(shared_corpus, "affect")
    seen = set()
    set_seed(0)
    for x, lengths, y in batches(ds, 16, shuffle=True, crop=24):
        assert x.shape[1:] == (24, 140)
        for clip, length, target in zip(x, lengths.tolist(), y, strict=True):
            source, _, frames = ds[int((ds.y == target).all(1).nonzero())]
            assert length == min(24, frames)
            places = range(frames - length + 1)
            fits = [s for s in places if torch.equal(source[s : s + length], clip[:length])]
            assert len(fits) == 1
            seen.add((fits[0], frames - length))
            assert (clip[length:, :128] == -80).all() and (clip[length:, 128:] == 0).all()
    assert any(start == room > 0 for start, room in seen)
    assert any(start == 0 < room for start, room in seen)
    assert any(room == 0 for _, room in seen)  # some clips are shorter than the window


@pytest.mark.parametrize("features, silence", [("mel", -80), ("chroma", 0)])
def test_crops_of_short_clips_are_padded(corpus, features, silence):
    """A window is never wider than the longest clip of the split."""
    ds = SpectrogramDataset(corpus, "genre", features=features, beat=True)
    short = int(ds.lengths.argmin())
    for crop, width in ((50, int(ds.lengths.max())), (8, 8)):
        pair = ds.subset([short, int(ds.lengths.argmax())])
        x, lengths, _ = next(batches(pair, 2, crop=crop))
        length = int(ds.lengths[short])
        assert x.shape[1] == width and lengths.tolist() == [length, width]
        assert torch.equal(x[0, :length], ds[short][0])
        assert (x[0, length:] == silence).all() and length < width


def test_batches_come_from_a_split_on_another_device(corpus):
    """The meta device holds shapes only: all parts of a batch come from where the clips lie."""
    ds = SpectrogramDataset(corpus, "genre", features="mel", beat=True).subset([5, 3, 9])
    ((x, lengths, y),) = batches(ds.to("meta"), 3)
    assert x.shape == (3, int(ds.lengths.max()), 128)
    assert {x.device.type, lengths.device.type, y.device.type} == {"meta"}
    ((x, _, _),) = batches(ds, 3, device="meta")  # a split that stays on the host
    assert x.device.type == "meta"


# --- windows --------------------------------------------------------------------------------------


def test_random_windows_lie_anywhere_in_a_clip():
    set_seed(0)
    starts = random_starts(torch.tensor([30, 12, 5] * 400), 12).view(400, 3)
    assert set(starts[:, 0].tolist()) == set(range(19))
    assert starts[:, 1:].max() == 0  # as long as the window, and shorter


def test_even_windows_span_the_clip():
    assert even_starts(torch.tensor([30, 8]), 10, 3).tolist() == [[0, 0], [10, 0], [20, 0]]
    assert even_starts(torch.tensor([100]), 20).flatten().tolist() == [0, 20, 40, 60, 80]
    assert N_WINDOWS == 5


def test_windows_are_cut_from_the_array(corpus):
    ds = SpectrogramDataset(corpus, "genre", features="mel")
    positions, starts = torch.tensor([3, 0]), torch.tensor([4, 9])
    x = cut(ds, positions, starts, 6)
    assert torch.equal(x, torch.stack([ds.x[3, 4:10], ds.x[0, 9:15]]))


# --- augmentation ---------------------------------------------------------------------------------


def changed(augment, rows=140, seed=0, lengths=(40, 30, 10), frames=40):
    """A batch before and after, with lengths and targets; the rows' means are -1 … -rows."""
    set_seed(seed)
    x = torch.randn(len(lengths), frames, rows)
    lengths, targets = torch.tensor(lengths), torch.eye(len(lengths))
    mean = -torch.arange(1.0, rows + 1)
    before = x.clone()
    after = augment_batch(x, lengths, targets, mean, augment)
    assert torch.equal(x, before)  # a changed copy
    return x, *after, lengths, targets, mean


def test_no_augmentation_changes_nothing():
    x, new, lengths, targets, old_lengths, old_targets, _ = changed(Augment())
    assert torch.equal(x, new)
    assert torch.equal(lengths, old_lengths) and torch.equal(targets, old_targets)


@pytest.mark.parametrize("rows", [12, 128, 140])
def test_time_masks_lie_in_the_real_frames(rows):
    hit = set()
    masks = Augment(time_masks=1, time_width=9)
    x, new, _, targets, lengths, old_targets, mean = changed(
        masks, rows, lengths=(40, 30, 10) * 300
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
    assert touched.sum(1).max() == 9


def test_row_masks():
    masks = Augment(row_masks=1, row_width=20)
    x, new, *_, mean = changed(masks, lengths=(8,) * 900, frames=8)
    touched = (x != new).any(1)
    assert torch.equal(touched, (x != new).all(1)) and touched.sum(1).max() == 20
    assert torch.equal(new[x != new], mean.expand_as(x)[x != new])
    assert touched.any(0).all()


def test_several_masks():
    x, new, *_ = changed(Augment(time_masks=3, time_width=4), lengths=(40,) * 50)
    assert 4 < (x != new).any(2).sum(1).max() <= 12


def test_gain_shifts_the_level_of_real_mel_frames():
    x, new, _, _, lengths, *_ = changed(Augment(gain=3.0))
    shift = new - x
    assert not shift[..., 128:].any()
    assert all(not shift[i, length:].any() for i, length in enumerate(lengths))
    levels = [shift[i, :length, :128] for i, length in enumerate(lengths)]
    for level in levels:
        assert (level - level[0, 0]).abs().max() < 1e-5 and level[0, 0].abs() > 0.05
    assert len({round(float(level[0, 0]), 3) for level in levels}) == 3  # one a clip
    x, new, *_ = changed(Augment(gain=3.0), lengths=(9,) * 2000, frames=9, rows=128)
    assert float((new - x)[:, 0, 0].std()) == pytest.approx(3.0, rel=0.1)
    x, new, *_ = changed(Augment(gain=3.0), rows=12)
    assert torch.equal(x, new)


def test_roll_shifts_the_mel_rows():
    shifts = set()
    for seed in range(10):
        x, new, *_ = changed(Augment(roll=2), seed=seed)
        assert torch.equal(new[..., 128:], x[..., 128:])
        for before, after in zip(x, new, strict=True):
            moves = range(-2, 3)
            fits = [s for s in moves if torch.equal(after[:, 2:126], before[:, 2 - s : 126 - s])]
            assert len(fits) == 1
            shifts.update(fits)
    assert shifts == {-2, -1, 0, 1, 2}


def test_mixup_blends_clips_targets_and_lengths():
    shares = set()
    for seed in range(5):
        augment = Augment(mixup=0.5)
        x, new, lengths, targets, old_lengths, _, _ = changed(augment, seed=seed)
        torch.testing.assert_close(targets.sum(1), torch.ones(3))
        # Clips are blended in their targets' own shares.
        torch.testing.assert_close(new, torch.einsum("ij,jtf->itf", targets, x))
        for row, length in zip(targets, lengths, strict=True):
            assert length == old_lengths[row > 0].max()
        shares.add(round(float(targets[0].max()), 4))
    assert len(shares) > 2
