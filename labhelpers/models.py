"""The networks: an LSTM and a CNN backbone, and heads for genre and affect.

Shapes: B clips, T frames, F rows of the spectrogram, H hidden units, C channels. Every model takes
x (B, T, F), in dB and padded, with the clips' lengths (B,), and normalises each row itself: mean
and deviation of the training split are buffers of the backbone, and so travel in its checkpoint.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from scipy.fft import dct
from torch import nn
from torch.nn import functional as F

from .batches import batches
from .corpora.layout import AFFECT, N_MELS
from .datasets import SpectrogramDataset
from .files import atomic

LEAST_DEVIATION = {"mel": 1.0, "chroma": 0.01}  # dB, and chroma's own unit


class Backbone(nn.Module):
    """A network from x (B, T, F) to features (B, out_features), behind a normalisation of each row.

    config : what `build_backbone` makes an untrained one of; it travels in checkpoints
    Notebook: 05.
    """

    out_features: int

    def __init__(self, **config):
        super().__init__()
        self.config = {"kind": type(self).__name__, **config}
        self.register_buffer("mean", torch.zeros(config["n_features"]))
        self.register_buffer("std", torch.ones(config["n_features"]))

    @torch.no_grad()
    def normalise_from(self, ds: SpectrogramDataset) -> Backbone:
        """Take each row's mean and deviation over the real frames of a training split.

        Notebook: 05.
        """
        count, total, squares = 0, 0, 0
        for x, lengths, _ in batches(ds, device=self.mean.device):
            real = x[frame_mask(lengths, x.shape[1])].double()  # (B, T, F) -> (frames, F)
            count += len(real)
            total = total + real.sum(0)
            squares = squares + real.square().sum(0)
        mean = total / count
        deviation = (squares / count - mean.square()).clamp(min=0).sqrt()
        # A row that hardly moves in training must not blow up when it does in a test clip.
        mels = N_MELS if len(mean) >= N_MELS else 0
        deviation[:mels].clamp_(min=LEAST_DEVIATION["mel"])
        deviation[mels:].clamp_(min=LEAST_DEVIATION["chroma"])
        self.mean.copy_(mean)
        self.std.copy_(deviation)
        return self

    def normalise(self, x: torch.Tensor) -> torch.Tensor:
        return (x - self.mean) / self.std


def frame_mask(lengths: torch.Tensor, frames: int) -> torch.Tensor:
    """(B, frames) True where a frame is real, not padding. Notebook: 05."""
    return torch.arange(frames, device=lengths.device) < lengths[:, None]


def average_frames(h: torch.Tensor, lengths: torch.Tensor, k: int):
    """Means of k consecutive real frames: (B, T, F) -> (B, ceil(T / k), F), and the lengths then.

    Notebook: 05.
    """
    to_fill = -h.shape[1] % k
    h = F.pad(h, (0, 0, 0, to_fill))
    mask = frame_mask(lengths, h.shape[1])[..., None].to(h.dtype)
    total = (h * mask).unflatten(1, (-1, k)).sum(2)
    count = mask.unflatten(1, (-1, k)).sum(2)
    remain = torch.div(lengths + k - 1, k, rounding_mode="floor")
    return total / count.clamp(min=1), remain


# --- LSTM -----------------------------------------------------------------------------------------


class LSTMBackbone(Backbone):
    """An LSTM over the frames of a clip. Notebook: 05.

    As it stands it reads every row at every frame and is judged by its last state; the rest is what
    step 5 adds to that:
    hidden : units a direction; layers : 1..n; bidirectional : a second LSTM reads backwards
    pooling : "last", the state after the last real frame of each direction, or "mean+max" over all
    dropout : between layers and before the head
    frames_per_step : so many frames become one time step, by their mean and their deviation
    cepstra : so many mel cepstral coefficients (Davis & Mermelstein 1980) stand for the mel rows

    The backward direction reads each clip reversed within its own length, so it never sees padding:
    a clip's output is the same alone and in any batch. Nothing is packed: on a CPU that is about
    four times faster.
    """

    def __init__(
        self,
        n_features,
        hidden=128,
        layers=1,
        bidirectional=False,
        pooling="last",
        dropout=0.0,
        frames_per_step=1,
        cepstra=0,
    ):
        if pooling not in ("last", "mean+max"):
            raise ValueError(f"pooling {pooling!r}; known: last, mean+max")
        if cepstra and not (n_features >= N_MELS >= cepstra > 0):
            raise ValueError(f"{cepstra} cepstra of {n_features} rows; 1 to {N_MELS} of mel rows")
        super().__init__(
            n_features=n_features,
            hidden=hidden,
            layers=layers,
            bidirectional=bidirectional,
            pooling=pooling,
            dropout=dropout,
            frames_per_step=frames_per_step,
            cepstra=cepstra,
        )
        self.pooling, self.frames_per_step, self.cepstra = pooling, frames_per_step, cepstra
        directions = 1 + bidirectional
        width = hidden * directions
        inputs = n_features
        if cepstra:
            inputs = inputs - N_MELS + cepstra
        if frames_per_step > 1:
            inputs = 2 * inputs
        self.out_features = width
        if pooling == "mean+max":
            self.out_features = 2 * width
        self.layers = nn.ModuleList()
        for size in [inputs] + [width] * (layers - 1):
            layer = [nn.LSTM(size, hidden, batch_first=True) for _ in range(directions)]
            self.layers.append(nn.ModuleList(layer))
        self.dropout = nn.Dropout(dropout)
        if cepstra:
            cosines = dct(np.eye(N_MELS, dtype=np.float32), norm="ortho")[:, :cepstra]
            self.register_buffer("cosines", torch.from_numpy(cosines.copy()))  # (rows, cepstra)

    @torch.no_grad()
    def normalise_from(self, ds: SpectrogramDataset) -> LSTMBackbone:
        """Take each row's mean and deviation, and each coefficient's, over a training split."""
        super().normalise_from(ds)
        if self.cepstra:
            count, squares = 0, 0  # the rows have mean 0 by now, and so have the coefficients
            for x, lengths, _ in batches(ds, device=self.mean.device):
                real = self.normalise(x)[frame_mask(lengths, x.shape[1])]
                count += len(real)
                squares = squares + real[:, : self.cepstra].double().square().sum(0)
            self.cosines /= (squares / count).sqrt().clamp(min=0.01)
        return self

    def normalise(self, x: torch.Tensor) -> torch.Tensor:
        x = super().normalise(x)
        if not self.cepstra:
            return x
        mel, chroma = x.split([N_MELS, x.shape[-1] - N_MELS], dim=-1)
        return torch.cat([mel @ self.cosines, chroma], dim=-1)

    def time_steps(self, x: torch.Tensor, lengths: torch.Tensor):
        """Normalised steps (B, T, F) -> (B, T', F'), and how many of them are real (B,)."""
        x = self.normalise(x)
        if self.frames_per_step == 1:
            return x, lengths
        mean, remain = average_frames(x, lengths, self.frames_per_step)
        squares, _ = average_frames(x.square(), lengths, self.frames_per_step)
        deviation = (squares - mean.square()).clamp(min=1e-4).sqrt()
        return torch.cat([mean, deviation], dim=-1), remain

    @torch.autocast("cpu", enabled=False)  # on most CPUs torch has no bf16 LSTM and fails
    def forward(self, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        h, lengths = self.time_steps(x, lengths)
        for depth, layer in enumerate(self.layers):
            h = self.dropout(h) if depth else h
            states = [layer[0](h)[0]]  # (B, T, F) -> (B, T, H)
            if len(layer) == 2:
                backward = layer[1](reverse_frames(h, lengths))[0]
                states.append(reverse_frames(backward, lengths))
            h = torch.cat(states, dim=-1)  # (B, T, H) or (B, T, 2 H)
        return self.dropout(self.pool(h, lengths))

    def pool(self, h: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """(B, T, H) -> (B, H), or (B, 2 H) for mean and maximum."""
        if self.pooling == "mean+max":
            mask = frame_mask(lengths, h.shape[1])[..., None]
            mean = (h * mask).sum(1) / lengths[:, None]
            peak = h.masked_fill(~mask, float("-inf")).amax(1)
            return torch.cat([mean, peak], dim=1)
        last = h[torch.arange(len(h), device=h.device), lengths - 1]
        if len(self.layers[0]) == 1:
            return last
        # The backward direction ends at the first frame: there it has read the whole clip.
        half = h.shape[-1] // 2
        return torch.cat([last[:, :half], h[:, 0, half:]], dim=-1)


def reverse_frames(x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Turn each sequence of x (B, T, F) around within its own length; padding stays at the end.

    Notebook: 05.
    """
    frames = torch.arange(x.shape[1], device=x.device)
    mirrored = lengths[:, None] - 1 - frames
    turned = torch.where(mirrored >= 0, mirrored, frames)  # (B, T)
    first = torch.arange(len(x), device=x.device)[:, None] * x.shape[1]
    return _Reorder.apply(x, (first + turned).flatten())


class _Reorder(torch.autograd.Function):
    """Frames of x (B, T, F) in an order (B T,) that is its own inverse: the gradient is a copy too.

    Autograd's own gradient of an indexing adds entry by entry, a tenth of a training step.
    """

    @staticmethod
    def forward(ctx, x, order):
        ctx.save_for_backward(order)
        return x.flatten(0, 1).index_select(0, order).view(x.shape)

    @staticmethod
    def backward(ctx, gradient):
        (order,) = ctx.saved_tensors
        turned = gradient.flatten(0, 1).index_select(0, order)
        return turned.view(gradient.shape), None


# --- CNN ------------------------------------------------------------------------------------------


class Block(nn.Sequential):
    """Convolution, batch norm, ReLU, max pooling: (B, C, T, F) -> (B, C', T / pool, F / pool).

    Notebook: 07.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, pool: tuple[int, int]):
        super().__init__(
            # Batch norm brings the bias.
            nn.Conv2d(inputs, outputs, kernel, padding="same", bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.MaxPool2d(pool),
        )


class CNNBackbone(Backbone):
    """Blocks of convolution, batch norm, ReLU, max pooling on the spectrogram image. Notebook: 07.

    The image is (B, 1, T, F): time runs down, the rows of the spectrogram across, one channel.
    After the blocks time is reduced to its mean and its maximum, and both are the features
    (2 C F'): when a pattern sounds does not matter, how high does. Beyond the image's edge and a
    clip's end there is zero, each row's mean, in every block: a clip's output is the same alone
    and in any batch.

    channels : output channels of each block; kernel : side of the square kernels
    pools : max-pooling factor of each block, on both axes, or (time, frequency) pairs
    frames_per_step : so many frames are averaged to one column of the image first
    """

    def __init__(
        self,
        n_features,
        channels=(16, 32, 64, 128),
        kernel=3,
        pools=(3, 3, 3, 2),
        dropout=0.3,
        frames_per_step=1,
    ):
        pairs = [[pool, pool] if isinstance(pool, int) else list(pool) for pool in pools]
        super().__init__(
            n_features=n_features,
            channels=list(channels),
            kernel=kernel,
            pools=pairs,
            dropout=dropout,
            frames_per_step=frames_per_step,
        )
        if len(pairs) != len(channels):
            raise ValueError(f"{len(channels)} blocks need as many pools, not {len(pairs)}")
        self.frames_per_step, self.pools = frames_per_step, pairs
        self.blocks = nn.ModuleList()
        rows, self.time_factor, inputs = n_features, 1, 1
        for outputs, (time, frequency) in zip(channels, pairs, strict=True):
            self.blocks.append(Block(inputs, outputs, kernel, (time, frequency)))
            rows //= frequency
            self.time_factor *= time
            inputs = outputs
        if rows == 0:
            raise ValueError(f"pools {pairs} leave nothing of {n_features} rows; take smaller ones")
        self.dropout = nn.Dropout(dropout)
        self.out_features = 2 * channels[-1] * rows
        self.to(memory_format=torch.channels_last)

    def image(self, x: torch.Tensor, lengths: torch.Tensor):
        """Normalised image (B, 1, T', F) and how many of its columns are real (B,)."""
        h = self.normalise(x)
        if self.frames_per_step > 1:
            h, lengths = average_frames(h, lengths, self.frames_per_step)
        h = h * frame_mask(lengths, h.shape[1])[..., None]
        # A clip shorter than one column of the last map counts as that long: the rest is zero.
        too_short = max(0, self.time_factor - h.shape[1])
        h = F.pad(h, (0, 0, 0, too_short))
        h = h.unsqueeze(1).contiguous(memory_format=torch.channels_last)
        return h, lengths.clamp(min=self.time_factor)

    def forward(self, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        h, real = self.image(x, lengths)
        for block, (pool, _) in zip(self.blocks, self.pools, strict=True):
            h = block(h)  # (B, C, T, F) -> (B, C', T / pool, F / pool)
            real = torch.div(real, pool, rounding_mode="floor")
            mask = frame_mask(real, h.shape[2])[:, None]
            h = h * mask[..., None]
        h = h.transpose(2, 3).flatten(1, 2)  # (B, C, T', F') -> (B, C F', T')
        mean = h.sum(2) / real[:, None]
        peak = h.masked_fill(~mask, float("-inf")).amax(2)
        return self.dropout(torch.cat([mean, peak], dim=1))  # (B, 2 C F')


# --- heads ----------------------------------------------------------------------------------------


class Model(nn.Module):
    """A backbone and a head, with the loss that trains it. Notebook: 05.

    forward(x, lengths) -> outputs; targets(y) -> what `loss(outputs, targets)` takes;
    decode(outputs) -> predictions; encode(predictions) -> the outputs that are decoded to them.
    """

    suffix = ".pt"  # of its checkpoints

    def __init__(self, backbone: Backbone, **config):
        super().__init__()
        self.backbone = backbone
        self.config = {"kind": type(self).__name__, **config, "backbone": backbone.config}

    def normalise_from(self, ds: SpectrogramDataset):
        """Take the normalisation from a training split; returns the model."""
        self.backbone.normalise_from(ds)
        return self

    def save(self, path: Path) -> None:
        """Write weights, normalisation and config, as `torch.load(weights_only=True)` reads them.

        Raises OSError with a sentence. Notebook: 09a.
        """
        with atomic(path) as partial:
            torch.save({"config": self.config, "state": self.state_dict()}, partial)

    def forward(self, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        h = self.backbone(x, lengths)
        # The head is cheap, and in half precision its outputs would fall together and lose their
        # rank order.
        with torch.autocast(h.device.type, enabled=False):
            return self.head(h.float())


class Classifier(Model):
    """Genre: outputs are logits (B, n_classes), predictions their softmax. Notebook: 05.

    classes : names in the order of the codes
    """

    def __init__(self, backbone: Backbone, classes):
        classes = [str(name) for name in classes]  # NumPy's strings would not load weights-only
        super().__init__(backbone, classes=classes)
        self.classes = classes
        self.head = nn.Linear(backbone.out_features, len(classes))

    def targets(self, y: torch.Tensor) -> torch.Tensor:
        """(B,) codes -> (B, n_classes) probabilities, so that mixup can blend them."""
        return F.one_hot(y, len(self.classes)).float()

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(outputs, targets)

    def decode(self, outputs: torch.Tensor) -> torch.Tensor:
        return outputs.softmax(-1)

    def encode(self, predictions: torch.Tensor) -> torch.Tensor:
        return predictions.clamp(min=1e-7).log()


REGRESSION_LOSSES = {"mse": F.mse_loss, "l1": F.l1_loss, "bce": F.binary_cross_entropy}


class Regressor(Model):
    """Affect axes from one linear head: outputs (B, k), predictions their sigmoid. Notebook: 08.

    loss : "mse", "l1" or "bce" (cross entropy of a value between 0 and 1)
    """

    def __init__(self, backbone: Backbone, axes=("valence",), loss="mse"):
        if loss not in REGRESSION_LOSSES:
            raise ValueError(f"loss {loss!r}; known: {', '.join(REGRESSION_LOSSES)}")
        super().__init__(backbone, axes=list(axes), loss=loss)
        self.axes, self.loss_name = list(axes), loss
        self.head = nn.Linear(backbone.out_features, len(self.axes))

    @torch.no_grad()
    def start_from(self, y: torch.Tensor):
        """Start the outputs at the mean of targets (N, k): it need not be learned; the model."""
        self.head.bias.copy_(y.mean(0).clamp(0.01, 0.99).logit())
        return self

    def targets(self, y: torch.Tensor) -> torch.Tensor:
        return _checked(y, self.axes)

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return REGRESSION_LOSSES[self.loss_name](self.decode(outputs), targets)

    def decode(self, outputs: torch.Tensor) -> torch.Tensor:
        return outputs.sigmoid()

    def encode(self, predictions: torch.Tensor) -> torch.Tensor:
        return predictions.logit(1e-7)


def _checked(y: torch.Tensor, axes) -> torch.Tensor:
    """Affect targets of the right shape: (B,) against (B, 1) would broadcast to (B, B)."""
    if y.ndim != 2 or y.shape[1] != len(axes) or not y.is_floating_point():
        raise ValueError(
            f"targets are {y.dtype} of shape {tuple(y.shape)}; (B, {len(axes)}) values are needed"
        )
    return y


class MultitaskRegressor(Model):
    """One backbone, a head an affect axis, and on demand one for genre. Notebook: 09b.

    The loss is the sum of the axes' mean squared errors, weighted by
    weighting : "equal" (not at all), "scaled" (each divided by the variance of its targets, see
        `start_from`, so that all start near 1) or "uncertainty" (learned: exp(-s) loss + s,
        Kendall, Gal & Cipolla 2018)
    genre_classes : names, to train on genre batches too, whose loss counts `genre_weight`
    """

    def __init__(
        self,
        backbone: Backbone,
        axes=AFFECT,
        weighting="equal",
        genre_classes=None,
        genre_weight=0.1,
    ):
        if weighting not in ("equal", "scaled", "uncertainty"):
            raise ValueError(f"weighting {weighting!r}; known: equal, scaled, uncertainty")
        classes = [str(name) for name in genre_classes or ()]
        super().__init__(
            backbone,
            axes=list(axes),
            weighting=weighting,
            genre_classes=classes,
            genre_weight=genre_weight,
        )
        self.axes, self.weighting = list(axes), weighting
        self.genre_classes, self.genre_weight = classes, genre_weight
        sizes = [1] * len(self.axes)
        if classes:
            sizes.append(len(classes))
        self.heads = nn.ModuleList(nn.Linear(backbone.out_features, size) for size in sizes)
        self.register_buffer("scale", torch.ones(len(self.axes)))
        learned = weighting == "uncertainty"
        self.log_variance = nn.Parameter(torch.zeros(len(self.axes)), requires_grad=learned)

    @torch.no_grad()
    def start_from(self, y: torch.Tensor):
        """Start the heads at the means of targets (N, k), the losses at their variances."""
        for head, mean in zip(self.heads, y.mean(0), strict=False):
            nn.init.constant_(head.bias, mean.clamp(0.01, 0.99).logit())
        self.scale.copy_(y.var(0).clamp(min=1e-6))
        if self.weighting == "uncertainty":
            self.log_variance.copy_(self.scale.log())  # from there a short training can go on
        return self

    def head(self, h: torch.Tensor) -> torch.Tensor:
        return torch.cat([head(h) for head in self.heads], dim=1)  # (B, k) or (B, k + n_classes)

    def targets(self, y: torch.Tensor) -> torch.Tensor:
        """Affect values (B, k); genre codes (B,) -> (B, k + n_classes), as wide as the outputs."""
        if y.ndim == 1 and self.genre_classes:
            one_hot = F.one_hot(y, len(self.genre_classes)).float()
            return F.pad(one_hot, (len(self.axes), 0))
        return _checked(y, self.axes)

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """The axes' losses, weighted; of a genre batch the loss of its head alone."""
        k = len(self.axes)
        if targets.shape[1] != k:  # a genre batch: it trains the backbone and the genre head
            genre_loss = F.cross_entropy(outputs[:, k:], targets[:, k:])
            return self.genre_weight * genre_loss
        errors = self.decode(outputs) - targets  # (B, k)
        losses = errors.square().mean(0)  # (k,)
        if self.weighting == "scaled":
            losses = losses / self.scale
        elif self.weighting == "uncertainty":
            losses = losses * torch.exp(-self.log_variance) + self.log_variance
        return losses.sum()

    def decode(self, outputs: torch.Tensor) -> torch.Tensor:
        return outputs[:, : len(self.axes)].sigmoid()

    def encode(self, predictions: torch.Tensor) -> torch.Tensor:
        return predictions.logit(1e-7)


# --- checkpoints ----------------------------------------------------------------------------------

BACKBONES = {kind.__name__: kind for kind in (LSTMBackbone, CNNBackbone)}
MODELS = {kind.__name__: kind for kind in (Classifier, Regressor, MultitaskRegressor)}


def build_backbone(config: dict) -> Backbone:
    """An untrained backbone of a `config` as checkpoints carry it. Notebook: 09a."""
    arguments = {**config}
    return BACKBONES[arguments.pop("kind")](**arguments)


def build_model(config: dict) -> Model:
    """An untrained model of a `config` as checkpoints carry it. Notebook: 09a."""
    arguments = {**config}
    kind = MODELS[arguments.pop("kind")]
    return kind(build_backbone(arguments.pop("backbone")), **arguments)


def load_model(path: Path, device="cpu") -> Model:
    """The model of a checkpoint, in evaluation mode. Notebook: 09a.

    Raises FileNotFoundError or ValueError with a sentence.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such checkpoint; run the notebook that its name begins with first"
        )
    try:
        content = torch.load(path, map_location=device, weights_only=True)
        model = build_model(content["config"])
        model.load_state_dict(content["state"])
    except Exception as error:  # torch raises half a dozen kinds for a file that is not its own
        kind = type(error).__name__
        raise ValueError(
            f"{path}: not a checkpoint of this package ({kind}); train it again"
        ) from error
    return model.to(device).eval()
