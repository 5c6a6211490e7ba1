"""The networks: no padding in an output, losses mean what they say, checkpoints come back."""

from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from labhelpers.clips import Reads, batches, load_clips
from labhelpers.models import CNN, LSTM, Classifier, Regressor, average_frames, load_model

LENGTHS = (37, 5, 21, 1, 40, 16)
BACKBONES = [
    partial(LSTM, Reads("chroma"), 8),
    partial(LSTM, Reads("chroma"), 8, pooling="mean+max"),
    partial(CNN, Reads("mel"), (2, 3, 4, 5)),
    partial(CNN, Reads("mel"), (2, 3), ((3, 3), (1, 2)), frames_per_column=1),
]


def clips(rows, lengths=LENGTHS, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(length, rows, generator=generator) * 20 - 40 for length in lengths]


def batch(parts, frames=None):
    """The clips padded to `frames` (default: the longest), and their lengths."""
    x = torch.full((len(parts), frames or max(map(len, parts)), parts[0].shape[1]), -80.0)
    for row, part in zip(x, parts):
        row[: len(part)] = part
    return x, torch.tensor([len(part) for part in parts])


def ready(backbone):
    backbone.mean.fill_(-40)
    backbone.deviation.fill_(20)
    return backbone.eval()


@pytest.mark.parametrize("make", BACKBONES)
def test_a_clips_output_is_the_same_alone_and_in_any_batch(make):
    torch.manual_seed(0)
    backbone = ready(make())
    parts = clips(backbone.reads.n_features)
    with torch.inference_mode():
        alone = torch.cat([backbone(*batch([part])) for part in parts])
        assert alone.shape == (len(parts), backbone.out_features) and alone.isfinite().all()
        assert (alone[0] - alone[4]).abs().max() > 1e-3  # it tells clips apart
        for order, frames in (([0, 1, 2, 3, 4, 5], None), ([5, 3, 1], None), ([4, 3, 2, 0], 90)):
            x, lengths = batch([parts[i] for i in order], frames)
            for row, length in zip(x, lengths):
                row[length:] = 1e3  # whatever the padding holds
            torch.testing.assert_close(backbone(x, lengths), alone[order], rtol=1e-5, atol=1e-5)


# --- the LSTM -------------------------------------------------------------------------------------


def test_the_plain_lstm_is_the_assignments():
    """One layer, one direction, every row at every frame, judged by its last state."""
    backbone = ready(LSTM(Reads("chroma"), 8))
    lstm = backbone.lstm
    assert lstm.input_size == 12 and lstm.num_layers == 1 and not lstm.bidirectional
    x, lengths = batch(clips(12))
    outputs, _ = lstm(backbone.normalise(x))
    last = torch.stack([row[length - 1] for row, length in zip(outputs, lengths)])
    torch.testing.assert_close(backbone(x, lengths), last)


def test_pooling_is_mean_and_maximum_over_real_frames():
    backbone = ready(LSTM(Reads("chroma"), 8, pooling="mean+max"))
    (part,) = clips(12, (30,))
    states = backbone.lstm(backbone.normalise(part[None]))[0]
    expected = torch.cat([states.mean(1), states.amax(1)], dim=1)
    torch.testing.assert_close(backbone(*batch([part], 50)), expected)
    with pytest.raises(ValueError, match=r"known: last, mean\+max"):
        LSTM(Reads("chroma"), pooling="max")


def test_averaging_frames():
    x = torch.arange(1.0, 6)[None, :, None].repeat(2, 1, 1)
    lengths = torch.tensor([3, 5])
    means, remain = average_frames(x, lengths, 2)
    assert means[..., 0].tolist() == [[1.5, 3, 0], [1.5, 3.5, 5]] and remain.tolist() == [2, 3]


def test_dropout_acts_in_training_alone():
    torch.manual_seed(0)
    x, lengths = batch(clips(128, (30,) * 16))
    backbone = CNN(Reads("mel"), dropout=0.5).train()
    dropped = (backbone(x, lengths) == 0).float().mean()
    assert 0.4 < dropped < 0.7 and (backbone.eval()(x, lengths) == 0).float().mean() < 0.3


# --- the CNN --------------------------------------------------------------------------------------


def test_cnn_is_blocks_of_four_layers_then_mean_and_maximum_over_time():
    torch.manual_seed(0)
    backbone = ready(CNN(Reads("mel"), (2, 3, 4, 5), frames_per_column=2))
    (part,) = clips(128, (64,))
    h = ((part + 40) / 20).unflatten(0, (-1, 2)).mean(1)[None, None]
    for block in backbone.blocks:
        h = block(h)
        kinds = [nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.MaxPool2d]
        assert [type(part) for part in block] == kinds and block[0].kernel_size == (3, 3)
    h = h.transpose(2, 3).flatten(1, 2)
    expected = torch.cat([h.mean(2), h.amax(2)], dim=1)
    torch.testing.assert_close(backbone(*batch([part])), expected, rtol=1e-5, atol=1e-6)


def test_cnn_refuses_pools_that_do_not_fit():
    with pytest.raises(ValueError, match="4 blocks need as many pools"):
        CNN(Reads("mel"), pools=((2, 2),))
    with pytest.raises(ValueError, match="leave nothing of 12 rows"):
        CNN(Reads("chroma"))


# --- normalisation, heads -------------------------------------------------------------------------


@pytest.mark.parametrize("features", ["mel", "chroma", "fused"])
def test_rows_are_normalised_over_the_real_frames_of_the_training_clips(shared_corpus, features):
    ds = load_clips(shared_corpus, "genre").subset(range(20))
    reads = Reads(features, window=8)
    backbone = CNN(reads, (2,), ((2, 1),))
    backbone.start_from(ds)
    rows = torch.cat([ds[i][0][:, reads.columns] for i in range(len(ds))])
    torch.testing.assert_close(backbone.mean, rows.mean(0), rtol=1e-4, atol=1e-4)
    floor = torch.full_like(rows[0], 0.01)
    floor[: 128 if features != "chroma" else 0] = 1.0
    expected = rows.std(0, correction=0).maximum(floor)
    torch.testing.assert_close(backbone.deviation, expected, rtol=1e-3, atol=1e-4)


def test_classifier_is_softmax_and_cross_entropy():
    model = Classifier(LSTM(Reads("chroma"), 4), np.array(["a", "b", "c"]))
    x, lengths = batch(clips(12))
    outputs, y = model(x, lengths), torch.tensor([0, 1, 2, 0, 1, 2])
    probabilities = model.decode(outputs)
    torch.testing.assert_close(probabilities.sum(1), torch.ones(6))
    expected = -probabilities[range(6), y].log().mean()
    torch.testing.assert_close(model.loss(outputs, model.targets(y)), expected)


def test_regressors_loss_is_in_variances_of_the_labels_or_plain(shared_corpus):
    ds = load_clips(shared_corpus, "affect")
    y = ds.y
    for scaled in (True, False):
        model = Regressor(LSTM(Reads("chroma"), 4), scaled=scaled).start_from(ds)
        mean = torch.zeros(len(y), 3)  # outputs that predict the mean of the labels
        torch.testing.assert_close(model.decode(mean), y.mean(0).expand(len(y), 3))
        outputs = torch.randn(len(y), 3)
        errors = (model.decode(outputs) - y) / (y.std(0) if scaled else 1)
        torch.testing.assert_close(model.loss(outputs, y), errors.square().mean(0).sum())


def test_a_regressor_learns_its_own_axes_in_its_own_order(shared_corpus):
    ds = load_clips(shared_corpus, "affect")
    model = Regressor(LSTM(Reads("chroma"), 4), ("danceability", "valence")).start_from(ds)
    torch.testing.assert_close(model.targets(ds.y), ds.y[:, [2, 0]])
    torch.testing.assert_close(model.label_mean, ds.y[:, [2, 0]].mean(0))
    for wrong in (ds.y[:, 0], ds.y[:, :1]):
        with pytest.raises(ValueError, match=r"\(B, 3\) are needed"):
            model.targets(wrong)


# --- checkpoints ----------------------------------------------------------------------------------


SAVED = [
    lambda: Classifier(CNN(Reads("mel", window=16, n_windows=3), (2, 2), ((2, 4), (2, 4))), "ab"),
    lambda: Classifier(LSTM(Reads("fused", beat=True), 4, pooling="mean+max"), "abc"),
    lambda: Regressor(CNN(Reads("mel"), (2,), ((2, 2),)), ("energy",), scaled=False),
]


@pytest.mark.parametrize("make", SAVED)
def test_a_checkpoint_brings_back_the_model_and_what_it_reads(make, tmp_path, shared_corpus):
    torch.manual_seed(0)
    model = make()
    task = "genre" if isinstance(model, Classifier) else "affect"
    ds = load_clips(shared_corpus, task, beat=model.reads.beat)
    model.start_from(ds)
    model.save(tmp_path / "model.pt")
    twin = load_model(tmp_path / "model.pt")
    assert twin.reads == model.reads and twin.config == model.config and not twin.training
    x, lengths, _ = next(batches(ds, reads=model.reads))
    model.eval()
    torch.testing.assert_close(twin.decode(twin(x, lengths)), model.decode(model(x, lengths)))
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt"]


def test_a_file_that_is_no_checkpoint_is_named(tmp_path):
    path = tmp_path / "model.pt"
    with pytest.raises(FileNotFoundError, match="run its notebook"):
        load_model(path)
    model = Classifier(LSTM(Reads("chroma"), 4), "ab")
    model.save(path)
    content = path.read_bytes()
    with torch.no_grad():
        model.head.bias[0] = float("nan")
    model.save(path)
    for spoilt in (path.read_bytes(), b"", b"text", content[: len(content) // 2]):
        path.write_bytes(spoilt)
        with pytest.raises(ValueError, match="model.pt: not a checkpoint"):
            load_model(path)
