"""The networks: no padding in an output, losses mean what they say, checkpoints come back."""

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

from labhelpers.batches import batches
from labhelpers.datasets import SpectrogramDataset
from labhelpers.models import (
    Classifier,
    CNNBackbone,
    LSTMBackbone,
    MultitaskRegressor,
    Regressor,
    average_frames,
    build_backbone,
    frame_mask,
    load_model,
    reverse_frames,
)

LENGTHS = (37, 5, 21, 1, 40, 16)


def clips(rows=128, lengths=LENGTHS, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(length, rows, generator=generator) * 20 - 40 for length in lengths]


def batch(parts, frames=None):
    """The clips padded to `frames` (default: the longest), and their lengths."""
    frames = frames or max(map(len, parts))
    x = torch.zeros(len(parts), frames, parts[0].shape[1])
    x[..., :128] = -80.0
    for row, part in zip(x, parts, strict=True):
        row[: len(part)] = part
    return x, torch.tensor([len(part) for part in parts])


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


# --- the LSTM -------------------------------------------------------------------------------------


def test_the_plain_lstm_is_the_assignments():
    """One layer, one direction, every row at every frame, judged by its last state."""
    backbone = LSTMBackbone(12, 8)
    assert [[type(cell) for cell in layer] for layer in backbone.layers] == [[nn.LSTM]]
    assert backbone.layers[0][0].input_size == 12 and backbone.out_features == 8
    x, lengths = batch(clips(12))
    outputs, _ = backbone.layers[0][0](x)
    last = torch.stack([row[length - 1] for row, length in zip(outputs, lengths, strict=True)])
    torch.testing.assert_close(backbone.eval()(x, lengths), last)


@pytest.mark.parametrize("pooling", ["last", "mean+max"])
@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_lstm_sees_no_padding(bidirectional, layers, pooling):
    torch.manual_seed(0)
    shape = {"layers": layers, "bidirectional": bidirectional, "pooling": pooling}
    for frames_per_step in (1, 3):
        backbone = LSTMBackbone(12, 8, frames_per_step=frames_per_step, **shape)
        same_alone_and_in_any_batch(backbone, 12)
    same_alone_and_in_any_batch(LSTMBackbone(140, 8, frames_per_step=3, cepstra=20, **shape), 140)


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_lstm_is_torchs_bidirectional_lstm_on_packed_sequences(layers):
    torch.manual_seed(0)
    ours = LSTMBackbone(12, 8, layers, bidirectional=True)
    theirs = nn.LSTM(12, 8, layers, bidirectional=True, batch_first=True)
    with torch.no_grad():
        for depth, pair in enumerate(ours.layers):
            for cell, suffix in zip(pair, ("", "_reverse"), strict=True):
                for name, value in cell.named_parameters():
                    getattr(theirs, name.replace("_l0", f"_l{depth}{suffix}")).copy_(value)
    x, lengths = batch(clips(12))
    packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    outputs, (state, _) = theirs(packed)
    last = torch.cat([state[-2], state[-1]], dim=1)
    torch.testing.assert_close(ours(x, lengths), last, rtol=1e-5, atol=1e-6)
    ours.pooling = "mean+max"
    outputs, _ = pad_packed_sequence(outputs, batch_first=True, padding_value=-9.0)
    real = frame_mask(lengths, outputs.shape[1])[..., None]
    mean = (outputs * real).sum(1) / lengths[:, None]
    expected = torch.cat([mean, outputs.amax(1)], dim=1)
    torch.testing.assert_close(ours(x, lengths), expected, rtol=1e-5, atol=1e-6)


def test_lstm_uses_order_and_both_directions():
    torch.manual_seed(0)
    x, lengths = batch(clips(12, (30,)))
    backbone = LSTMBackbone(12, 8, bidirectional=True).eval()
    backbone.mean.fill_(-40)
    backbone.std.fill_(20)
    y = backbone(x, lengths)
    for at, half in ((0, slice(8, 16)), (29, slice(0, 8))):  # each half ends at its own end
        changed = x.clone()
        changed[0, at] += 20
        assert (backbone(changed, lengths) - y)[:, half].abs().max() > 1e-2
    assert (backbone(x.flip(1), lengths) - y).abs().max() > 1e-2


@pytest.mark.parametrize("layers", [1, 2])
def test_lstm_drops_out_between_layers_and_before_the_head(layers):
    torch.manual_seed(0)
    x, lengths = batch(clips(12, (30,) * 64))
    backbone = LSTMBackbone(12, 32, layers, dropout=0.5).train()
    backbone.mean.fill_(-40)
    backbone.std.fill_(20)
    share = (backbone(x, lengths) == 0).float().mean()
    assert 0.4 < share < 0.6 and (backbone.eval()(x, lengths) != 0).all()
    if layers == 2:  # the second layer reads the first one's states with half of them at zero
        seen = []
        backbone.layers[1][0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        backbone.train()(x, lengths)
        assert 0.4 < (seen[0] == 0).float().mean() < 0.6


def test_lstm_steps_are_means_and_deviations():
    x, lengths = torch.tensor([[1.0, 3, 5, 9, 9]])[..., None], torch.tensor([3])
    steps, remain = LSTMBackbone(1, 4, frames_per_step=2).time_steps(x, lengths)
    torch.testing.assert_close(steps, torch.tensor([[[2.0, 1], [5, 0.01], [0, 0.01]]]))
    assert remain.tolist() == [2]


def test_cepstra_are_the_cosine_transform_of_normalised_rows_each_of_deviation_1(shared_corpus):
    ds = SpectrogramDataset(shared_corpus, "genre", features="fused")
    plain, backbone = (LSTMBackbone(140, 4, cepstra=n).normalise_from(ds) for n in (0, 20))
    x, lengths, _ = next(batches(ds, len(ds)))
    rows, ours = (b.normalise(x)[frame_mask(lengths, x.shape[1])] for b in (plain, backbone))
    theirs = torch.from_numpy(dct(rows[:, :128].numpy(), norm="ortho"))[:, :20]
    theirs = theirs / theirs.square().mean(0).sqrt()
    torch.testing.assert_close(ours[:, :20], theirs, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours[:, 20:], rows[:, 128:])


def test_cepstra_need_mel_rows():
    with pytest.raises(ValueError, match="20 cepstra of 12 rows"):
        LSTMBackbone(12, cepstra=20)


def test_misspelt_pooling():
    with pytest.raises(ValueError, match=r"pooling 'max'; known: last, mean\+max"):
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


# --- the CNN --------------------------------------------------------------------------------------


CNNS = [
    {},
    {"pools": ((2, 2), (2, 2), (3, 2), (1, 2))},
    {"kernel": 5, "pools": (3, 3, 2, 2)},
    {"kernel": 4, "pools": (2, 2, 2, 2)},
    {"frames_per_step": 2},
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
    backbone = CNNBackbone(140, pools=(2, 2, 2, 2))
    assert [[type(layer).__name__ for layer in block] for block in backbone.blocks] == [
        ["Conv2d", "BatchNorm2d", "ReLU", "MaxPool2d"]
    ] * 4
    assert backbone.time_factor == 16 and backbone.blocks[0][0].in_channels == 1
    # Mean and maximum, channels, rows that are left.
    assert backbone.out_features == 2 * 128 * (140 // 16)
    assert [block[0].out_channels for block in backbone.blocks] == [16, 32, 64, 128]
    with pytest.raises(ValueError, match="leave nothing of 12 rows"):
        CNNBackbone(12)
    with pytest.raises(ValueError, match="4 blocks need as many pools, not 3"):
        CNNBackbone(128, pools=(2, 2, 2))


@pytest.mark.parametrize("kernel", [3, 4])
def test_cnn_says_how_many_features_it_gives(kernel):
    backbone = CNNBackbone(128, (2, 3), kernel, (3, 2)).eval()
    x, lengths = batch(clips(128, (40, 30)))
    assert backbone(x, lengths).shape == (2, backbone.out_features)


def test_a_block_gives_what_its_layers_give_in_order():
    torch.manual_seed(0)
    block = CNNBackbone(128, channels=(3,), pools=(2,)).blocks[0].eval()
    x = torch.randn(2, 1, 9, 12)
    expected = F.conv2d(x, block[0].weight, padding=1)
    expected = F.batch_norm(expected, block[1].running_mean, block[1].running_var)
    torch.testing.assert_close(block(x), F.max_pool2d(expected.relu(), 2))


def test_cnn_pools_mean_and_maximum_of_the_real_steps():
    torch.manual_seed(0)
    backbone = CNNBackbone(128, channels=(3,), pools=(4,)).eval()
    parts = clips(128, (18, 40))
    x, lengths = batch(parts)
    features = backbone(x, lengths)
    for part, row in zip(parts, features, strict=True):
        maps = backbone.blocks[0](part[None, None])[0].transpose(1, 2).flatten(0, 1)  # (C F', T/4)
        expected = torch.cat([maps.mean(1), maps.amax(1)])
        torch.testing.assert_close(row, expected, rtol=1e-4, atol=1e-4)


def test_cnn_drops_out_before_the_head():
    torch.manual_seed(0)
    backbone = CNNBackbone(128, (4, 8), pools=(4, 4), dropout=0.5)
    for block in backbone.blocks:
        nn.init.ones_(block[1].bias)  # otherwise ReLU gives zeros too
    x, lengths = batch(clips(128, (40,) * 16))
    backbone.mean.fill_(-40)
    backbone.std.fill_(20)
    real = backbone.eval()(x, lengths) != 0
    assert 0.4 < (backbone.train()(x, lengths) == 0)[real].float().mean() < 0.6


@pytest.mark.parametrize("make", [lambda: LSTMBackbone(128, 8), lambda: CNNBackbone(128, (4,) * 4)])
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
    # The head is not rounded: no ties.
    assert rough.dtype == torch.float32 and len(rough.unique()) == 8
    torch.testing.assert_close(rough, exact, rtol=0.1, atol=0.02)


# --- normalisation --------------------------------------------------------------------------------


@pytest.mark.parametrize("features", ["mel", "chroma", "fused"])
def test_normalisation_is_of_the_real_frames(corpus, features):
    ds = SpectrogramDataset(corpus, "genre", features=features)
    backbone = LSTMBackbone(ds.n_features, 4).normalise_from(ds)
    frames = torch.cat([x for x, *_ in ds]).double()
    torch.testing.assert_close(backbone.mean.double(), frames.mean(0), rtol=1e-4, atol=1e-4)
    floor = torch.full((ds.n_features,), 0.01).double()
    if features != "chroma":
        floor[:128] = 1.0
    deviation = frames.std(0, correction=0).maximum(floor)
    torch.testing.assert_close(backbone.std.double(), deviation, rtol=1e-3, atol=1e-4)
    expected = (frames.float() - backbone.mean) / backbone.std
    torch.testing.assert_close(backbone.normalise(frames.float()), expected)


def test_a_row_that_is_silent_in_training_does_not_blow_up(corpus):
    for path in (corpus.root / "fma_genre_spectrograms" / "train").iterdir():
        array = np.load(path)
        array[120:128] = -80
        save(path, array)
    ds = SpectrogramDataset(corpus, "genre")
    backbone = LSTMBackbone(140, 4).normalise_from(ds)
    assert backbone.normalise(torch.zeros(1, 1, 140)).abs().max() <= 100


# --- heads ----------------------------------------------------------------------------------------


def outputs_of(model, n=6):
    """Outputs of a model for n clips, and a generator for targets."""
    return model(*batch(clips(12, LENGTHS[:n]))), torch.Generator().manual_seed(1)


def test_classifier_loss_is_cross_entropy():
    torch.manual_seed(0)
    model = Classifier(LSTMBackbone(12, 4), ["a", "b", "c"])
    outputs, _ = outputs_of(model)
    y = torch.tensor([0, 2, 1, 1, 2, 0])
    expected = F.cross_entropy(outputs, y)
    torch.testing.assert_close(model.loss(outputs, model.targets(y)), expected)
    torch.testing.assert_close(model.decode(outputs), outputs.softmax(1))


@pytest.mark.parametrize("loss", ["mse", "l1", "bce"])
def test_regressor_refuses_flat_targets(loss):
    torch.manual_seed(0)
    model = Regressor(LSTMBackbone(12, 4), loss=loss)
    outputs, _ = outputs_of(model)
    for y in (torch.rand(6), torch.rand(6, 3), torch.ones(6, 1, dtype=torch.long)):
        with pytest.raises(ValueError, match=r"targets are .* \(B, 1\) values are needed"):
            model.targets(y)
    y = torch.rand(6, 1)
    each = []
    for output, target in zip(outputs[:, 0].tolist(), y[:, 0].tolist(), strict=True):
        value = 1 / (1 + math.exp(-output))
        each.append(
            {
                "mse": (value - target) ** 2,
                "l1": abs(value - target),
                "bce": -target * math.log(value) - (1 - target) * math.log(1 - value),
            }[loss]
        )
    assert model.loss(outputs, model.targets(y)).item() == pytest.approx(np.mean(each), rel=1e-5)
    with pytest.raises(ValueError, match="loss 'l2'; known: mse"):
        Regressor(LSTMBackbone(12, 4), loss="l2")


def test_outputs_are_decoded_and_encoded_back():
    outputs = torch.tensor([[-1.0, 2.0, 0.5], [0.0, 1.0, -2.0]])
    backbone = LSTMBackbone(12, 4)
    for kind in (Regressor, MultitaskRegressor):
        model = kind(backbone, ("a", "b", "c"))
        torch.testing.assert_close(model.decode(outputs), outputs.sigmoid())
        torch.testing.assert_close(model.encode(model.decode(outputs)), outputs)
    model = Classifier(backbone, ["a", "b", "c"])
    back = model.encode(model.decode(outputs))  # logits are known up to a constant
    torch.testing.assert_close(back - back[:, :1], outputs - outputs[:, :1])


def test_multitask_losses():
    torch.manual_seed(0)
    y = torch.rand(6, 3, generator=torch.Generator().manual_seed(1))
    names = ("equal", "scaled", "uncertainty")
    models = {name: MultitaskRegressor(LSTMBackbone(12, 4), weighting=name) for name in names}
    for model in models.values():
        model.load_state_dict(models["equal"].state_dict())
    models["scaled"].start_from(y)
    outputs, _ = outputs_of(models["equal"])
    assert outputs.shape == (6, 3)
    each = (outputs.sigmoid() - y).square().mean(0)
    models["uncertainty"].log_variance.data = torch.tensor([0.5, -1.0, 2.0])
    weights = torch.exp(torch.tensor([-0.5, 1.0, -2.0]))
    expected = {
        "equal": each.sum(),
        "scaled": (each / y.var(0)).sum(),
        "uncertainty": (each * weights + torch.tensor([0.5, -1.0, 2.0])).sum(),
    }
    for name, model in models.items():
        torch.testing.assert_close(model.loss(outputs, model.targets(y)), expected[name])
        assert model.log_variance.requires_grad == (name == "uncertainty")
    with pytest.raises(ValueError, match="weighting 'sum'; known: equal"):
        MultitaskRegressor(LSTMBackbone(12, 4), weighting="sum")
    with pytest.raises(ValueError, match="targets are"):
        models["equal"].targets(torch.rand(6))


def test_heads_start_at_the_mean_of_the_targets():
    y = torch.rand(50, 3, generator=torch.Generator().manual_seed(1))
    y = y * torch.tensor([0.2, 0.5, 1.0])
    model = MultitaskRegressor(LSTMBackbone(12, 4)).start_from(y)
    biases = torch.cat([head.bias for head in model.heads])
    torch.testing.assert_close(biases.sigmoid(), y.mean(0))
    single = Regressor(LSTMBackbone(12, 4), ("a", "b", "c")).start_from(y)
    torch.testing.assert_close(single.head.bias.sigmoid(), y.mean(0))
    constant = model.start_from(torch.full((5, 3), 0.5))
    assert (constant.scale > 0).all()


def test_learned_weights_start_where_the_losses_weigh_the_same():
    y = torch.tensor([[0.1, 0.4], [0.3, 0.8], [0.8, 0.5]])
    model = MultitaskRegressor(LSTMBackbone(128, 4), ("valence", "energy"), "uncertainty")
    model.start_from(y)
    torch.testing.assert_close(model.log_variance.exp().detach(), y.var(0))
    assert model.log_variance.requires_grad


@pytest.mark.parametrize("n_classes", [2, 3, 5])
def test_genre_batches_train_the_genre_head_alone(n_classes):
    """With three classes a genre batch is as wide as three axes: not to be taken for affect's."""
    torch.manual_seed(0)
    classes = list("abcde")[:n_classes]
    model = MultitaskRegressor(LSTMBackbone(12, 4), genre_classes=classes, genre_weight=0.25)
    outputs, generator = outputs_of(model)
    codes = torch.randint(n_classes, (6,), generator=generator)
    loss = model.loss(outputs, model.targets(codes))
    torch.testing.assert_close(loss, 0.25 * F.cross_entropy(outputs[:, 3:], codes))
    loss.backward(retain_graph=True)
    for head in model.heads[:3]:
        assert head.weight.grad is None or not head.weight.grad.any()
    assert model.heads[3].weight.grad.abs().max() > 0
    y = torch.rand(6, 3, generator=generator)
    affect = model.loss(outputs, model.targets(y))
    torch.testing.assert_close(affect, (outputs[:, :3].sigmoid() - y).square().mean(0).sum())
    assert model.decode(outputs).shape == (6, 3)


# --- checkpoints ----------------------------------------------------------------------------------


def variants():
    torch.manual_seed(0)
    lstm = LSTMBackbone(12, 6, 2, True, "mean+max", 0.1, frames_per_step=2)
    cnn = CNNBackbone(128, (3, 4, 5, 6), 3, ((2, 2), (2, 2), (1, 2), (1, 2)))
    scaled = MultitaskRegressor(cnn, ("energy", "valence"), "scaled")
    return {
        "classifier": Classifier(lstm, np.array(["a", "b"])),
        "regressor": Regressor(cnn, ("energy",), loss="bce"),
        "multitask": MultitaskRegressor(lstm, weighting="uncertainty", genre_classes=("x", "y")),
        "scaled": scaled.start_from(torch.rand(9, 2)),
    }


@pytest.mark.parametrize("name", ["classifier", "regressor", "multitask", "scaled"])
def test_checkpoints_come_back_exactly(tmp_path, name):
    model, path = variants()[name], tmp_path / "m.pt"
    model.backbone.mean.uniform_(-50, -30)
    model.backbone.std.uniform_(5, 20)
    model.train()
    x, lengths = batch(clips(len(model.backbone.mean)))
    model(x, lengths)  # batch-norm statistics move
    model.eval().save(path)
    content = torch.load(path, weights_only=True)
    assert set(content) == {"config", "state"}
    torch.manual_seed(99)
    again = load_model(path)
    assert type(again) is type(model) and again.config == model.config and not again.training
    for key, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[key], value), key
    assert torch.equal(again(x, lengths), model(x, lengths))
    outputs = model(x, lengths)
    y = torch.tensor([0, 1] * 3) if name == "classifier" else torch.rand(6, len(again.axes))
    loss = model.loss(outputs, model.targets(y))
    assert torch.equal(again.loss(outputs, again.targets(y)), loss)
    fresh = build_backbone(again.backbone.config)
    assert {key: v.shape for key, v in fresh.state_dict().items()} == {
        key: v.shape for key, v in model.backbone.state_dict().items()
    }
    assert list(tmp_path.iterdir()) == [path]


def test_no_checkpoint_or_a_damaged_one(tmp_path):
    path = tmp_path / "05_lstm.mel.pt"
    with pytest.raises(FileNotFoundError, match="05_lstm.mel.pt: no such checkpoint; run the note"):
        load_model(path)
    variants()["classifier"].save(path)
    good = path.read_bytes()
    torch.save({"config": {"kind": "Transformer"}}, tmp_path / "other.pt")
    torch.save([1], tmp_path / "list.pt")
    others = [(tmp_path / name).read_bytes() for name in ("other.pt", "list.pt")]
    for data in (b"", good[: len(good) // 2], b"nonsense" * 99, *others):
        path.write_bytes(data)
        with pytest.raises(ValueError, match="05_lstm.mel.pt: not a checkpoint of this package"):
            load_model(path)


def test_a_pickle_in_a_checkpoint_is_never_run(tmp_path):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "sprung"),)

    torch.save({"config": Trap(), "state": {}}, tmp_path / "m.pt")
    with pytest.raises(ValueError, match="not a checkpoint"):
        load_model(tmp_path / "m.pt")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("unexpected pos 64")]
)
def test_full_disk_keeps_the_old_checkpoint(tmp_path, monkeypatch, error):
    path = tmp_path / "m.pt"
    variants()["classifier"].save(path)
    good = path.read_bytes()

    def full(content, target):
        target.write_bytes(b"half")
        raise error

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="m.pt: cannot be written .*make room"):
        variants()["classifier"].save(path)
    assert path.read_bytes() == good and list(tmp_path.iterdir()) == [path]
