"""The networks: an LSTM and a CNN backbone, and heads for genre and affect.

Shapes: B clips, T frames, F rows of the spectrogram, H hidden units, C channels. Every model takes x (B, T, F), in dB
and padded, with the clips' lengths (B,), and normalises each row itself: mean and deviation of the training split
are buffers of the backbone, and so travel in its checkpoint.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from scipy.fft import dct
from torch import nn
from torch.nn import functional as F

from .batches import batches
from .corpora.layout import AFFECT
from .datasets import N_MELS, SpectrogramDataset
from .files import atomic


class Backbone(nn.Module):
    """A network from x (B, T, F) to features (B, out_features), behind a normalisation of each row."""

    out_features: int

    def __init__(self, **config):
        super().__init__()
        self.config = {"kind": type(self).__name__, **config}
        self.register_buffer("mean", torch.zeros(config["n_features"]))
        self.register_buffer("std", torch.ones(config["n_features"]))

    @torch.no_grad()
    def normalise_from(self, ds: SpectrogramDataset) -> Backbone:
        """Take each row's mean and deviation over the real frames of a (training) split."""
        count, total, squares = 0, 0, 0
        for x, lengths, _ in batches(ds, 32):
            real = x[frame_mask(lengths, x.shape[1])].double()  # (B, T, F) -> (frames, F)
            count, total, squares = count + len(real), total + real.sum(0), squares + real.square().sum(0)
        mean = total / count
        self.mean.copy_(mean)
        self.std.copy_((squares / count - mean.square()).clamp(min=0).sqrt())
        # A row that hardly moves in training (1 dB, 0.01 of chroma) must not blow up when it does in a test clip.
        mels = N_MELS if len(self.std) >= N_MELS else 0
        self.std[:mels].clamp_(min=1.0)
        self.std[mels:].clamp_(min=0.01)
        return self

    def normalise(self, x: torch.Tensor) -> torch.Tensor:
        return (x - self.mean) / self.std

    def steps(self, x: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Normalised time steps: (B, T, F) -> (B, ceil(T / average), F), and the lengths that remain."""
        average = self.config["average"]
        return average_frames(self.normalise(x), lengths, average) if average > 1 else (self.normalise(x), lengths)


def frame_mask(lengths: torch.Tensor, frames: int) -> torch.Tensor:
    """(B, frames) True where a frame is real, not padding."""
    return torch.arange(frames, device=lengths.device) < lengths[:, None]


def reverse_frames(x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Turn each sequence of x (B, T, F) around within its own length; padding stays at the end."""
    steps = torch.arange(x.shape[1], device=x.device)
    turned = torch.where(steps < lengths[:, None], lengths[:, None] - 1 - steps, steps)  # (B, T)
    first = torch.arange(len(x), device=x.device)[:, None] * x.shape[1]
    return _Reorder.apply(x, (first + turned).flatten())


class _Reorder(torch.autograd.Function):
    """Frames of x (B, T, F) in an order (B T,) that is its own inverse, so that the gradient is the same copy of rows.

    Autograd's own gradient of an indexing adds entry by entry, which costs a tenth of a training step.
    """

    @staticmethod
    def forward(ctx, x, order):
        ctx.save_for_backward(order)
        return x.flatten(0, 1).index_select(0, order).view(x.shape)

    @staticmethod
    def backward(ctx, gradient):
        return gradient.flatten(0, 1).index_select(0, ctx.saved_tensors[0]).view(gradient.shape), None


class LSTMBackbone(Backbone):
    """A uni- or bidirectional LSTM over the frames of a clip.

    hidden : units a direction; layers : 1..n; dropout : between layers and before the head
    pooling : "last" (the state after the last real frame of each direction), "mean", "mean+max" or "attention"
        over real frames
    average : so many frames become one time step first, by their mean and their deviation (1 = each frame is one)
    cepstra : so many mel cepstral coefficients, of a cosine transform over the mel rows, stand for these rows
        (0 = the rows themselves). Neighbouring rows nearly repeat each other, coefficients do not (Davis &
        Mermelstein 1980): a few clips teach an LSTM more through them.

    The backward direction reads each clip reversed within its own length, so it never sees padding: a clip's output
    is the same alone and in any batch. Nothing is packed: on a CPU that is about four times faster.
    """

    def __init__(
        self, n_features, hidden=128, layers=2, bidirectional=True, pooling="last", dropout=0.2, average=1, cepstra=0
    ):
        if pooling not in ("last", "mean", "mean+max", "attention"):
            raise ValueError(f"pooling {pooling!r}; known: last, mean, mean+max, attention")
        if not 0 <= cepstra <= (N_MELS if n_features >= N_MELS else 0):
            raise ValueError(f"{cepstra} cepstra of {n_features} rows; up to {N_MELS}, and of mel rows only")
        super().__init__(
            n_features=n_features, hidden=hidden, layers=layers, bidirectional=bidirectional,
            pooling=pooling, dropout=dropout, average=average, cepstra=cepstra,
        )  # fmt: skip
        self.pooling = pooling
        directions = 2 if bidirectional else 1
        width = hidden * directions
        self.out_features = 2 * width if pooling == "mean+max" else width
        inputs = n_features - N_MELS + cepstra if cepstra else n_features
        sizes = [inputs * (2 if average > 1 else 1)] + [width] * (layers - 1)
        self.layers = nn.ModuleList(
            nn.ModuleList(nn.LSTM(size, hidden, batch_first=True) for _ in range(directions)) for size in sizes
        )
        self.dropout = nn.Dropout(dropout)
        self.attention = nn.Linear(width, 1) if pooling == "attention" else None
        if cepstra:
            transform = dct(np.eye(N_MELS, dtype=np.float32), norm="ortho")[:, :cepstra]  # (mel rows, coefficients)
            self.register_buffer("transform", torch.from_numpy(transform.copy()))

    @torch.no_grad()
    def normalise_from(self, ds: SpectrogramDataset) -> LSTMBackbone:
        """Take each row's mean and deviation, and each coefficient's, over the real frames of a (training) split."""
        super().normalise_from(ds)
        if cepstra := self.config["cepstra"]:
            count, squares = 0, 0  # the rows have mean 0 by now, and so have the coefficients
            for x, lengths, _ in batches(ds, 32):
                real = self.normalise(x)[frame_mask(lengths, x.shape[1])][:, :cepstra].double()
                count, squares = count + len(real), squares + real.square().sum(0)
            self.transform /= (squares / count).sqrt().clamp(min=0.01)
        return self

    def normalise(self, x: torch.Tensor) -> torch.Tensor:
        x = super().normalise(x)
        if not self.config["cepstra"]:
            return x
        return torch.cat([x[..., :N_MELS] @ self.transform, x[..., N_MELS:]], dim=-1)

    def steps(self, x: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Normalised time steps: (B, T, F) -> (B, T, F') or (B, ceil(T / average), 2 F'), and their number."""
        x, average = self.normalise(x), self.config["average"]
        if average == 1:
            return x, lengths
        mean, remain = average_frames(x, lengths, average)
        squares, _ = average_frames(x.square(), lengths, average)
        deviation = (squares - mean.square()).clamp(min=1e-4).sqrt()
        return torch.cat([mean, deviation], dim=-1), remain

    @torch.autocast("cpu", enabled=False)  # on a CPU in float32: on most, torch has no bf16 LSTM and fails
    def forward(self, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        h, lengths = self.steps(x, lengths)
        for depth, layer in enumerate(self.layers):
            h = self.dropout(h) if depth else h
            outputs = [layer[0](h)[0]]  # (B, T, F) -> (B, T, H)
            if len(layer) == 2:
                backward = layer[1](reverse_frames(h, lengths))[0]
                outputs.append(reverse_frames(backward, lengths))
            h = torch.cat(outputs, dim=-1)  # (B, T, H) or (B, T, 2H)
        return self.dropout(self.pool(h, lengths))

    def pool(self, h: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """(B, T, H) -> (B, H), or (B, 2 H) for mean and maximum"""
        if self.pooling == "last":
            forward = h[torch.arange(len(h), device=h.device), lengths - 1]
            half = h.shape[-1] // 2
            # The backward direction ends at the first frame: there it has read the whole clip.
            return torch.cat([forward[:, :half], h[:, 0, half:]], dim=-1) if len(self.layers[0]) == 2 else forward
        mask = frame_mask(lengths, h.shape[1])
        if self.pooling == "attention":
            weights = self.attention(h).squeeze(-1).masked_fill(~mask, float("-inf")).softmax(dim=1)
        else:
            weights = mask / lengths[:, None]
        pooled = (h * weights[..., None]).sum(1)
        if self.pooling == "mean+max":
            pooled = torch.cat([pooled, h.masked_fill(~mask[..., None], float("-inf")).amax(1)], dim=1)
        return pooled


def average_frames(h: torch.Tensor, lengths: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Means of k consecutive real frames: (B, T, F) -> (B, ceil(T / k), F), and the lengths that remain."""
    mask = frame_mask(lengths, h.shape[1])[..., None]
    h = F.pad(h * mask, (0, 0, 0, -h.shape[1] % k)).unflatten(1, (-1, k)).sum(2)
    count = F.pad(mask.to(h.dtype), (0, 0, 0, -mask.shape[1] % k)).unflatten(1, (-1, k)).sum(2)
    return h / count.clamp(min=1), torch.div(lengths + k - 1, k, rounding_mode="floor")


class Block(nn.Sequential):
    """Convolution, batch norm, ReLU, max pooling: x (B, C, T, F) -> (B, C', T / pool, F / pool)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        convolution, norm, relu, pool = self
        # ReLU keeps order, so it gives the same after the pooling as before it, at a quarter of the work or less.
        return relu(pool(norm(convolution(x))))


class CNNBackbone(Backbone):
    """Four (or len(channels)) blocks of convolution 2D -> batch norm -> ReLU -> max pooling on the spectrogram image.

    The image is (B, 1, T, F): time runs down, the rows of the spectrogram across, one channel. After the blocks time is
    reduced to its mean and its maximum, and both are the features (2 C F'): when a pattern sounds does not matter, how
    high does. Padding is zero in every block, as beyond the image's edge: a clip's output is the same alone and in any
    batch.

    channels : output channels of each block; kernel : side of the square kernels
    pools : max-pooling factor of each block, on both axes, or (time, frequency) pairs
    average : so many frames are averaged to one column of the image first (1 = none)
    """

    def __init__(self, n_features, channels=(32, 64, 128, 256), kernel=3, pools=(2, 2, 2, 2), dropout=0.3, average=1):
        pairs = [list(pool) if isinstance(pool, (tuple, list)) else [pool, pool] for pool in pools]
        super().__init__(
            n_features=n_features, channels=list(channels), kernel=kernel, pools=pairs, dropout=dropout, average=average
        )
        if len(pairs) != len(channels):
            raise ValueError(f"{len(channels)} blocks need as many pools, not {len(pairs)}")
        self.blocks = nn.ModuleList(
            Block(
                nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False),  # batch norm brings the bias
                nn.BatchNorm2d(outputs),
                nn.ReLU(),
                nn.MaxPool2d(tuple(pool)),
            )
            for inputs, outputs, pool in zip([1, *channels], channels, pairs)  # noqa: B905
        )
        self.time_factor = torch.tensor(pairs).prod(0)[0].item()
        self.dropout = nn.Dropout(dropout)
        rows = n_features
        for _, pool in pairs:
            rows //= pool
        if rows == 0:
            raise ValueError(f"pools {pairs} leave nothing of {n_features} rows; take smaller ones")
        self.out_features = 2 * channels[-1] * rows
        self.to(memory_format=torch.channels_last)

    def forward(self, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        h, lengths = self.steps(x, lengths)
        h = h * frame_mask(lengths, h.shape[1])[..., None]
        # A clip shorter than one step of the last map is taken as that long: the rest stays zero, each row's mean.
        h = F.pad(h, (0, 0, 0, max(0, self.time_factor - h.shape[1])))
        real = lengths.clamp(min=self.time_factor)
        padded = bool((real < h.shape[1]).any())
        h = h.unsqueeze(1).contiguous(memory_format=torch.channels_last)  # (B, T, F) -> (B, 1, T, F)
        for block, (pool, _) in zip(self.blocks, self.config["pools"], strict=True):
            h = block(h)  # (B, C, T, F) -> (B, C', T / pool, F / pool)
            real = torch.div(real, pool, rounding_mode="floor")
            mask = frame_mask(real, h.shape[2])[:, None]
            h = h * mask[..., None] if padded else h
        h = h.transpose(2, 3).flatten(1, 2)  # (B, C, T', F') -> (B, C F', T')
        mean = h.sum(2) / real[:, None]
        peak = h.masked_fill(~mask, float("-inf")).amax(2)
        return self.dropout(torch.cat([mean, peak], dim=1))  # (B, 2 C F')


# --- heads ----------------------------------------------------------------------------------------------------------


class Model(nn.Module):
    """A backbone and a head, with the loss that trains it.

    forward(x, lengths) -> outputs; targets(y) -> what `loss(outputs, targets)` takes; decode(outputs) -> predictions.
    """

    def __init__(self, backbone: Backbone, **config):
        super().__init__()
        self.backbone = backbone
        self._config = {"kind": type(self).__name__, **config}

    @property
    def config(self) -> dict:
        return {**self._config, "backbone": self.backbone.config}

    def normalise_from(self, ds: SpectrogramDataset):
        self.backbone.normalise_from(ds)
        return self

    def forward(self, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        h = self.backbone(x, lengths)
        # The head is cheap, and in half precision its outputs would fall together and lose their rank order.
        with torch.autocast(h.device.type, enabled=False):
            return self.head(h.float())


class Classifier(Model):
    """Genre: outputs are logits (B, n_classes), predictions their softmax.

    classes : names in the order of the codes
    class_weights : one factor a class in the loss, or None; label_smoothing : share of a target spread over all
    """

    def __init__(self, backbone: Backbone, classes, class_weights=None, label_smoothing=0.0):
        weights = None if class_weights is None else [float(weight) for weight in class_weights]
        classes = [str(name) for name in classes]  # NumPy's strings would not load weights-only
        super().__init__(backbone, classes=classes, class_weights=weights, label_smoothing=label_smoothing)
        self.classes, self.label_smoothing = classes, label_smoothing
        self.head = nn.Linear(backbone.out_features, len(self.classes))
        self.register_buffer("class_weights", None if weights is None else torch.tensor(weights), persistent=False)

    def targets(self, y: torch.Tensor) -> torch.Tensor:
        """(B,) codes -> (B, n_classes) probabilities, so that mixup can blend them."""
        return F.one_hot(y, len(self.classes)).float()

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(outputs, targets, weight=self.class_weights, label_smoothing=self.label_smoothing)

    def decode(self, outputs: torch.Tensor) -> torch.Tensor:
        return outputs.softmax(-1)


class Regressor(Model):
    """One affect axis or several from one linear head: outputs (B, k), predictions their sigmoid, loss MSE."""

    def __init__(self, backbone: Backbone, axes=("valence",)):
        super().__init__(backbone, axes=list(axes))
        self.axes = list(axes)
        self.head = nn.Linear(backbone.out_features, len(self.axes))

    @torch.no_grad()
    def start_from(self, y: torch.Tensor):
        """Start the outputs at the mean of training targets (N, k): the network need not learn that first."""
        self.head.bias.copy_(y.mean(0).clamp(0.01, 0.99).logit())
        return self

    def targets(self, y: torch.Tensor) -> torch.Tensor:
        return _affect_targets(y, self.axes)

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return F.mse_loss(self.decode(outputs), targets)

    def decode(self, outputs: torch.Tensor) -> torch.Tensor:
        return outputs.sigmoid()


def _affect_targets(y: torch.Tensor, axes) -> torch.Tensor:
    if y.ndim != 2 or y.shape[1] != len(axes) or not y.is_floating_point():
        # (B,) against (B, 1) would broadcast to (B, B) in the loss, and the model would learn the mean.
        raise ValueError(f"targets are {y.dtype} of shape {tuple(y.shape)}; (B, {len(axes)}) values are needed")
    return y


class MultitaskRegressor(Model):
    """One backbone, a head for each affect axis, and on demand one for genre; the loss is the sum of the tasks' losses.

    weighting : "equal" (plain sum), "scaled" (each divided by its targets' variance, see `start_from`, so that all
        start near 1) or "uncertainty" (learned: exp(-s) loss + s, after Kendall, Gal & Cipolla 2018)
    genre_classes : names, to train on genre batches too; `genre_weight` scales that loss
    """

    def __init__(self, backbone: Backbone, axes=AFFECT, weighting="equal", genre_classes=None, genre_weight=0.1):
        if weighting not in ("equal", "scaled", "uncertainty"):
            raise ValueError(f"weighting {weighting!r}; known: equal, scaled, uncertainty")
        classes = None if genre_classes is None else [str(name) for name in genre_classes]
        super().__init__(
            backbone, axes=list(axes), weighting=weighting, genre_classes=classes, genre_weight=genre_weight
        )
        self.axes, self.weighting, self.genre_classes, self.genre_weight = list(axes), weighting, classes, genre_weight
        self.heads = nn.ModuleList(nn.Linear(backbone.out_features, 1) for _ in self.axes)
        self.genre_head = nn.Linear(backbone.out_features, len(classes)) if classes else None
        self.register_buffer("scale", torch.ones(len(self.axes)))
        self.log_variance = nn.Parameter(torch.zeros(len(self.axes)), requires_grad=weighting == "uncertainty")

    @torch.no_grad()
    def start_from(self, y: torch.Tensor):
        """Start the heads at the means of training targets (N, k); their variances become the losses' scales."""
        for head, mean in zip(self.heads, y.mean(0), strict=True):
            nn.init.constant_(head.bias, mean.clamp(0.01, 0.99).logit())
        self.scale.copy_(y.var(0).clamp(min=1e-6))
        if self.weighting == "uncertainty":
            self.log_variance.copy_(self.scale.log())  # from there a short training can go on
        return self

    def head(self, h: torch.Tensor) -> torch.Tensor:
        heads = [*self.heads, self.genre_head] if self.genre_head is not None else self.heads
        return torch.cat([head(h) for head in heads], dim=1)  # (B, k) or (B, k + n_classes)

    def targets(self, y: torch.Tensor) -> torch.Tensor:
        """Affect values (B, k) as they are; genre codes (B,) -> (B, k + n_classes), as wide as the outputs."""
        if y.ndim == 1 and self.genre_classes:
            return F.pad(F.one_hot(y, len(self.genre_classes)).float(), (len(self.axes), 0))
        return _affect_targets(y, self.axes)

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        k = len(self.axes)
        if targets.shape[1] != k:  # a genre batch: it trains the backbone and the genre head
            return self.genre_weight * F.cross_entropy(outputs[:, k:], targets[:, k:])
        losses = (outputs[:, :k].sigmoid() - targets).square().mean(0)  # (B, k) -> (k,)
        if self.weighting == "scaled":
            losses = losses / self.scale
        elif self.weighting == "uncertainty":
            losses = losses * torch.exp(-self.log_variance) + self.log_variance
        return losses.sum()

    def decode(self, outputs: torch.Tensor) -> torch.Tensor:
        return outputs[:, : len(self.axes)].sigmoid()


# --- checkpoints ----------------------------------------------------------------------------------------------------

_BACKBONES = {kind.__name__: kind for kind in (LSTMBackbone, CNNBackbone)}
_MODELS = {kind.__name__: kind for kind in (Classifier, Regressor, MultitaskRegressor)}


def build_backbone(config: dict) -> Backbone:
    """A fresh backbone from a `config` as checkpoints carry it."""
    return _BACKBONES[config["kind"]](**{key: value for key, value in config.items() if key != "kind"})


def build_model(config: dict) -> Model:
    """A fresh model from a `config` as checkpoints carry it."""
    head = {key: value for key, value in config.items() if key not in ("kind", "backbone")}
    return _MODELS[config["kind"]](build_backbone(config["backbone"]), **head)


def save_model(model: Model, path: Path) -> None:
    """Write weights, normalisation and config; readable by `torch.load(weights_only=True)`."""
    with atomic(path) as partial:
        torch.save({"config": model.config, "state": model.state_dict()}, partial)


def load_model(path: Path, device="cpu") -> Model:
    """The model of a checkpoint, in evaluation mode. Raises FileNotFoundError or ValueError with a sentence."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such checkpoint; run the notebook that its name begins with first")
    try:
        content = torch.load(path, map_location=device, weights_only=True)
        model = build_model(content["config"])
        model.load_state_dict(content["state"])
    except Exception as error:  # torch raises half a dozen kinds for a file that is not its own
        reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        raise ValueError(f"{path}: not a checkpoint of this package ({reason}); train it again") from error
    return model.to(device).eval()


def load_backbone(path: Path, device="cpu") -> Backbone:
    """The trained backbone of a checkpoint, with its normalisation, to put another head on."""
    return load_model(path, device).backbone
