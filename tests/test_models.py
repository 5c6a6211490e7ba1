"""The networks: padding never reaches an output, heads and losses mean what they say, checkpoints come back exactly."""

import errno
import math
import os

import numpy as np
import pytest
import torch
from helpers_corpus import save
from scipy.fft import dct
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from labhelpers.batches import batches, pad_to
from labhelpers.datasets import SpectrogramDataset
from labhelpers.models import (
    Classifier,
    CNNBackbone,
    LSTMBackbone,
    MultitaskRegressor,
    Regressor,
    average_frames,
    frame_mask,
    load_backbone,
    load_model,
    reverse_frames,
    save_model,
)

LENGTHS = (37, 5, 21, 1, 40, 16)


def clips(rows=128, lengths=LENGTHS, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(length, rows, generator=generator) * 20 - 40 for length in lengths]


def batch(parts, frames=None):
    """The clips padded to `frames` (default: the longest), and their lengths."""
    frames = frames or max(map(len, parts))
    return torch.stack([pad_to(part, frames) for part in parts]), torch.tensor([len(part) for part in parts])


def same_alone_and_in_any_batch(backbone, rows):
    backbone.eval()
    backbone.mean.fill_(-40)
    backbone.std.fill_(20)
    parts = clips(rows)
    with torch.inference_mode():
        alone = torch.cat([backbone(*batch([part])) for part in parts])
        assert alone.shape == (len(parts), backbone.out_features) and alone.isfinite().all()
        assert (alone[0] - alone[4]).abs().max() > 1e-3  # it tells clips apart
        for order, frames in (([0, 1, 2, 3, 4, 5], None), ([5, 3, 1], None), ([4, 3, 2, 0], 90)):
            x, lengths = batch([parts[i] for i in order], frames)
            torch.testing.assert_close(backbone(x, lengths), alone[order], rtol=1e-5, atol=1e-5)
            noisy = x.clone()  # whatever the padding holds
            for row, length in zip(noisy, lengths, strict=True):
                row[length:] = 1e3
            torch.testing.assert_close(backbone(noisy, lengths), alone[order], rtol=1e-5, atol=1e-5)


# --- the LSTM -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pooling", ["last", "mean", "mean+max", "attention"])
@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_lstm_sees_no_padding(bidirectional, layers, pooling):
    torch.manual_seed(0)
    for average in (1, 3):
        backbone = LSTMBackbone(12, 8, layers, bidirectional, pooling, average=average)
        same_alone_and_in_any_batch(backbone, 12)
    same_alone_and_in_any_batch(LSTMBackbone(140, 8, layers, bidirectional, pooling, average=3, cepstra=20), 140)


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_lstm_is_torchs_bidirectional_lstm_on_packed_sequences(layers):
    torch.manual_seed(0)
    ours = LSTMBackbone(12, 8, layers, dropout=0.0)
    theirs = nn.LSTM(12, 8, layers, bidirectional=True, batch_first=True)
    with torch.no_grad():
        for depth, pair in enumerate(ours.layers):
            for cell, suffix in zip(pair, ("", "_reverse"), strict=True):
                for name, value in cell.named_parameters():
                    getattr(theirs, name.replace("_l0", f"_l{depth}{suffix}")).copy_(value)
    x, lengths = batch(clips(12))
    outputs, (state, _) = theirs(pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False))
    torch.testing.assert_close(ours(x, lengths), torch.cat([state[-2], state[-1]], dim=1), rtol=1e-5, atol=1e-6)
    ours.pooling = "mean"
    mean = pad_packed_sequence(outputs, batch_first=True)[0].sum(1) / lengths[:, None]
    torch.testing.assert_close(ours(x, lengths), mean, rtol=1e-5, atol=1e-6)


def test_lstm_uses_order_and_both_directions():
    torch.manual_seed(0)
    x, lengths = batch(clips(12, (30,)))
    backbone = LSTMBackbone(12, 8, 1).eval()
    backbone.mean.fill_(-40)
    backbone.std.fill_(20)
    y = backbone(x, lengths)
    for at, half in ((0, slice(8, 16)), (29, slice(0, 8))):  # each half was read up to its own end of the clip
        changed = x.clone()
        changed[0, at] += 20
        assert (backbone(changed, lengths) - y)[:, half].abs().max() > 1e-2
    assert (backbone(x.flip(1), lengths) - y).abs().max() > 1e-2


def test_lstm_steps_are_means_and_deviations():
    x, lengths = torch.tensor([[1.0, 3, 5, 9, 9]])[..., None], torch.tensor([3])
    steps, remain = LSTMBackbone(1, 4, average=2).steps(x, lengths)
    torch.testing.assert_close(steps, torch.tensor([[[2.0, 1], [5, 0.01], [0, 0.01]]]))
    assert remain.tolist() == [2]


def test_cepstra_are_the_cosine_transform_of_normalised_mel_rows_each_of_deviation_1(shared_corpus):
    ds = SpectrogramDataset(shared_corpus, "genre", rows="fused")
    plain, backbone = (LSTMBackbone(140, 4, cepstra=n).normalise_from(ds) for n in (0, 20))
    x, lengths, _ = next(batches(ds, len(ds)))
    rows, ours = (b.normalise(x)[frame_mask(lengths, x.shape[1])] for b in (plain, backbone))
    theirs = torch.from_numpy(dct(rows[:, :128].numpy(), norm="ortho"))[:, :20]
    torch.testing.assert_close(ours[:, :20], theirs / theirs.square().mean(0).sqrt(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours[:, 20:], rows[:, 128:])


def test_cepstra_need_mel_rows():
    with pytest.raises(ValueError, match="20 cepstra of 12 rows"):
        LSTMBackbone(12, cepstra=20)


def test_misspelt_pooling():
    with pytest.raises(ValueError, match="pooling 'max'; known: last"):
        LSTMBackbone(12, pooling="max")


def test_reversing_and_averaging_frames():
    x = torch.arange(1.0, 6)[None, :, None].repeat(2, 1, 1)
    lengths = torch.tensor([3, 5])
    assert reverse_frames(x, lengths)[..., 0].tolist() == [[3, 2, 1, 4, 5], [5, 4, 3, 2, 1]]
    means, remain = average_frames(x, lengths, 2)
    assert means[..., 0].tolist() == [[1.5, 3, 0], [1.5, 3.5, 5]] and remain.tolist() == [2, 3]


def test_gradient_of_reversing():
    x = torch.randn(2, 5, 3, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: reverse_frames(x, torch.tensor([3, 5])), x)


# --- the CNN --------------------------------------------------------------------------------------------------------


CNNS = [
    {},
    {"pools": ((2, 2), (2, 2), (3, 2), (1, 2))},
    {"kernel": 5, "pools": (3, 3, 2, 2)},
    {"average": 2},
]


@pytest.mark.parametrize("options", CNNS)
def test_cnn_sees_no_padding(options):
    """Also for clips shorter than one step of the last map (16, 12, 36 and 32 frames)."""
    torch.manual_seed(0)
    backbone = CNNBackbone(128, channels=(4, 6, 8, 10), **options)
    for block in backbone.blocks:  # batch norm at work: a shift makes zeros of the padding non-zero
        nn.init.normal_(block[1].bias)
        block[1].running_mean.normal_()
    same_alone_and_in_any_batch(backbone, 128)


def test_cnn_blocks_are_what_the_assignment_asks():
    backbone = CNNBackbone(140)
    assert [[type(layer).__name__ for layer in block] for block in backbone.blocks] == [
        ["Conv2d", "BatchNorm2d", "ReLU", "MaxPool2d"]
    ] * 4
    assert backbone.time_factor == 16 and backbone.blocks[0][0].in_channels == 1
    assert backbone.out_features == 2 * 256 * (140 // 16)  # mean and maximum, channels, rows that are left
    with pytest.raises(ValueError, match="leave nothing of 12 rows"):
        CNNBackbone(12)
    with pytest.raises(ValueError, match="4 blocks need as many pools, not 3"):
        CNNBackbone(128, pools=(2, 2, 2))


def test_a_block_gives_what_its_layers_give_in_order():
    torch.manual_seed(0)
    block = CNNBackbone(128, channels=(3,), pools=(2,)).blocks[0].eval()
    x = torch.randn(2, 1, 9, 12)
    expected = x
    for layer in block:
        expected = layer(expected)
    torch.testing.assert_close(block(x), expected)


def test_cnn_pools_mean_and_maximum_of_the_real_steps():
    torch.manual_seed(0)
    backbone = CNNBackbone(128, channels=(3,), pools=(4,)).eval()
    parts = clips(128, (18, 40))
    x, lengths = batch(parts)
    features = backbone(x, lengths)
    for part, row in zip(parts, features, strict=True):
        maps = backbone.blocks[0](part[None, None])[0].transpose(1, 2).flatten(0, 1)  # (C F', T // 4)
        torch.testing.assert_close(row, torch.cat([maps.mean(1), maps.amax(1)]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("make", [lambda: LSTMBackbone(128, 8), lambda: CNNBackbone(128, (4, 4, 4, 4))])
def test_half_precision_keeps_the_meaning(make):
    torch.manual_seed(0)
    model = Regressor(make()).eval()
    model.backbone.mean.fill_(-40)
    model.backbone.std.fill_(20)
    x, lengths = batch(clips(128, (40,) * 8))
    with torch.inference_mode():
        exact = model(x, lengths)
        with torch.autocast("cpu", torch.bfloat16):
            rough = model(x, lengths)
    assert rough.dtype == torch.float32 and len(rough.unique()) == 8  # the head is not rounded: no ties
    torch.testing.assert_close(rough, exact, rtol=0.1, atol=0.02)


# --- normalisation --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", ["mel", "chroma", "fused"])
def test_normalisation_is_of_the_real_frames(corpus, rows):
    ds = SpectrogramDataset(corpus, "genre", rows=rows)
    backbone = LSTMBackbone(ds.n_features, 4).normalise_from(ds)
    frames = torch.cat([x for x, *_ in ds]).double()
    torch.testing.assert_close(backbone.mean.double(), frames.mean(0), rtol=1e-4, atol=1e-4)
    floor = torch.full((ds.n_features,), 0.01).double()
    if rows != "chroma":
        floor[:128] = 1.0
    torch.testing.assert_close(backbone.std.double(), frames.std(0, correction=0).maximum(floor), rtol=1e-3, atol=1e-4)


def test_a_row_that_is_silent_in_training_does_not_blow_up(corpus):
    for path in (corpus.root / "fma_genre_spectrograms" / "train").iterdir():
        array = np.load(path)
        array[120:128] = -80
        save(path, array)
    ds = SpectrogramDataset(corpus, "genre")
    backbone = LSTMBackbone(140, 4).normalise_from(ds)
    assert backbone.normalise(torch.zeros(1, 1, 140)).abs().max() <= 100


# --- heads ----------------------------------------------------------------------------------------------------------


def features(model, n=6):
    """Outputs of a model for n clips, and a generator for targets."""
    return model(*batch(clips(12, LENGTHS[:n]))), torch.Generator().manual_seed(1)


def test_classifier_loss_is_cross_entropy():
    torch.manual_seed(0)
    weights = [1.0, 2.0, 0.5]
    for options in ({}, {"class_weights": weights}, {"label_smoothing": 0.1}):
        model = Classifier(LSTMBackbone(12, 4), ["a", "b", "c"], **options)
        outputs, _ = features(model)
        y = torch.tensor([0, 2, 1, 1, 2, 0])
        per_clip = F.cross_entropy(
            outputs, y, torch.tensor(options.get("class_weights", [1.0] * 3)),
            label_smoothing=options.get("label_smoothing", 0.0), reduction="none",
        )  # fmt: skip
        torch.testing.assert_close(model.loss(outputs, model.targets(y)), per_clip.mean())
        torch.testing.assert_close(model.decode(outputs).sum(1), torch.ones(6))


def test_regressor_refuses_flat_targets():
    model = Regressor(LSTMBackbone(12, 4))
    outputs, _ = features(model)
    for y in (torch.rand(6), torch.rand(6, 3), torch.ones(6, 1, dtype=torch.long)):
        with pytest.raises(ValueError, match=r"targets are .* \(B, 1\) values are needed"):
            model.targets(y)
    y = torch.rand(6, 1)
    pairs = zip(outputs[:, 0].tolist(), y[:, 0].tolist(), strict=True)
    expected = sum((1 / (1 + math.exp(-o)) - t) ** 2 for o, t in pairs) / 6
    assert model.loss(outputs, model.targets(y)).item() == pytest.approx(expected, rel=1e-5)


def test_multitask_losses():
    torch.manual_seed(0)
    y = torch.rand(6, 3, generator=torch.Generator().manual_seed(1))
    names = ("equal", "scaled", "uncertainty")
    models = {name: MultitaskRegressor(LSTMBackbone(12, 4), weighting=name) for name in names}
    for model in models.values():
        model.load_state_dict(models["equal"].state_dict())
    models["scaled"].start_from(y)
    outputs, _ = features(models["equal"])
    assert outputs.shape == (6, 3)
    each = (outputs.sigmoid() - y).square().mean(0)
    models["uncertainty"].log_variance.data = torch.tensor([0.5, -1.0, 2.0])
    expected = {
        "equal": each.sum(),
        "scaled": (each / y.var(0)).sum(),
        "uncertainty": (each * torch.exp(torch.tensor([-0.5, 1.0, -2.0])) + torch.tensor([0.5, -1.0, 2.0])).sum(),
    }
    for name, model in models.items():
        torch.testing.assert_close(model.loss(outputs, model.targets(y)), expected[name])
        assert model.log_variance.requires_grad == (name == "uncertainty")
    with pytest.raises(ValueError, match="weighting 'sum'; known: equal"):
        MultitaskRegressor(LSTMBackbone(12, 4), weighting="sum")
    with pytest.raises(ValueError, match="targets are"):
        models["equal"].targets(torch.rand(6))


def test_heads_start_at_the_mean_of_the_targets():
    y = torch.rand(50, 3, generator=torch.Generator().manual_seed(1)) * torch.tensor([0.2, 0.5, 1.0])
    model = MultitaskRegressor(LSTMBackbone(12, 4)).start_from(y)
    torch.testing.assert_close(torch.cat([head.bias for head in model.heads]).sigmoid(), y.mean(0))
    constant = model.start_from(torch.full((5, 3), 0.5))
    assert (constant.scale > 0).all()


@pytest.mark.parametrize("n_classes", [2, 3, 5])
def test_genre_batches_train_the_genre_head_alone(n_classes):
    """With three classes a genre batch is as wide as three axes, and must not be taken for one of affect."""
    torch.manual_seed(0)
    model = MultitaskRegressor(LSTMBackbone(12, 4), genre_classes=list("abcde")[:n_classes], genre_weight=0.25)
    outputs, generator = features(model)
    codes = torch.randint(n_classes, (6,), generator=generator)
    loss = model.loss(outputs, model.targets(codes))
    torch.testing.assert_close(loss, 0.25 * F.cross_entropy(outputs[:, 3:], codes))
    loss.backward(retain_graph=True)
    grads = [head.weight.grad for head in model.heads]
    assert all(grad is None or not grad.any() for grad in grads) and model.genre_head.weight.grad.abs().max() > 0
    y = torch.rand(6, 3, generator=generator)
    affect = model.loss(outputs, model.targets(y))
    torch.testing.assert_close(affect, (outputs[:, :3].sigmoid() - y).square().mean(0).sum())
    assert model.decode(outputs).shape == (6, 3)


# --- checkpoints ----------------------------------------------------------------------------------------------------


def variants():
    torch.manual_seed(0)
    lstm = LSTMBackbone(12, 6, 2, True, "attention", 0.1, average=2)
    cnn = CNNBackbone(128, (3, 4, 5, 6), 3, ((2, 2), (2, 2), (1, 2), (1, 2)))
    return {
        "classifier": Classifier(lstm, np.array(["a", "b"]), class_weights=np.array([1, 2]), label_smoothing=0.1),
        "regressor": Regressor(cnn, ("energy",)),
        "multitask": MultitaskRegressor(lstm, weighting="uncertainty", genre_classes=("x", "y")),
        "scaled": MultitaskRegressor(cnn, ("energy", "valence"), "scaled").start_from(torch.rand(9, 2)),
    }


@pytest.mark.parametrize("name", ["classifier", "regressor", "multitask", "scaled"])
def test_checkpoints_come_back_exactly(tmp_path, name):
    model, path = variants()[name], tmp_path / "m.pt"
    model.backbone.mean.uniform_(-50, -30)
    model.backbone.std.uniform_(5, 20)
    model.train()
    x, lengths = batch(clips(len(model.backbone.mean)))
    model(x, lengths)  # batch-norm statistics move
    save_model(model.eval(), path)
    content = torch.load(path, weights_only=True)
    assert set(content) == {"config", "state"}
    torch.manual_seed(99)
    again = load_model(path)
    assert type(again) is type(model) and again.config == model.config and not again.training
    for key, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[key], value), key
    assert torch.equal(again(x, lengths), model(x, lengths))
    backbone = load_backbone(path)
    assert torch.equal(backbone(x, lengths), model.backbone(x, lengths)) and not backbone.training
    outputs = model(x, lengths)
    y = torch.tensor([0, 1] * 3) if name == "classifier" else torch.rand(6, len(again.axes))
    assert torch.equal(again.loss(outputs, again.targets(y)), model.loss(outputs, model.targets(y)))
    assert list(tmp_path.iterdir()) == [path]


def test_no_checkpoint_or_a_damaged_one(tmp_path):
    path = tmp_path / "05_lstm.mel.pt"
    with pytest.raises(FileNotFoundError, match="05_lstm.mel.pt: no such checkpoint; run the notebook"):
        load_model(path)
    save_model(variants()["classifier"], path)
    good = path.read_bytes()
    torch.save({"config": {"kind": "Transformer"}}, tmp_path / "other.pt")
    torch.save([1], tmp_path / "list.pt")
    for data in (b"", good[: len(good) // 2], b"nonsense" * 99, (tmp_path / "other.pt").read_bytes(),
                 (tmp_path / "list.pt").read_bytes()):  # fmt: skip
        path.write_bytes(data)
        with pytest.raises(ValueError, match="05_lstm.mel.pt: not a checkpoint of this package .*; train it again"):
            load_model(path)


def test_a_pickle_in_a_checkpoint_is_never_run(tmp_path):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "sprung"),)

    torch.save({"config": Trap(), "state": {}}, tmp_path / "m.pt")
    with pytest.raises(ValueError, match="not a checkpoint"):
        load_model(tmp_path / "m.pt")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("unexpected pos 64")])
def test_full_disk_keeps_the_old_checkpoint(tmp_path, monkeypatch, error):
    path = tmp_path / "m.pt"
    save_model(variants()["classifier"], path)
    good = path.read_bytes()

    def full(content, target):
        target.write_bytes(b"half")
        raise error

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="m.pt: cannot be written .*free some room"):
        save_model(variants()["classifier"], path)
    assert path.read_bytes() == good and list(tmp_path.iterdir()) == [path]


def test_learned_weights_start_where_the_losses_weigh_the_same():
    y = torch.tensor([[0.1, 0.4], [0.3, 0.8], [0.8, 0.5]])
    model = MultitaskRegressor(LSTMBackbone(128, 4), ("valence", "energy"), "uncertainty").start_from(y)
    torch.testing.assert_close(model.log_variance.exp().detach(), y.var(0))
    assert model.log_variance.requires_grad
