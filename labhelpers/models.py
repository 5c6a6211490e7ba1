"""The networks: an LSTM and a CNN backbone, a classifier of genre and a regressor of affect.

Shapes of tensors: B clips, T frames, F rows of the spectrogram, H hidden units, C channels. Every
model takes x (B, T, F), in dB and padded, with the clips' lengths (B,), and normalises each row
itself: mean and deviation of the training clips are buffers, and so travel in its checkpoint. So
does what the model reads: the rows, full or beat-synced clips, and the windows.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from .audio import N_FEATURES, N_MELS
from .clips import Clips, Reads, batches
from .corpus import AFFECT

LEAST_DEVIATION = {"mel": 1.0, "chroma": 0.01}  # dB, and chroma's own unit
CHANNELS = (16, 32, 64, 128)  # of the CNN's blocks
POOLS = ((2, 2), (2, 2), (2, 4), (2, 4))


def frame_mask(lengths, frames: int):
    """(B, frames) True where a frame is real, not padding. Notebook: 05."""
    return torch.arange(frames, device=lengths.device) < lengths[:, None]


def average_frames(h, lengths, k: int):
    """Means of k consecutive real frames: (B, T, F) -> (B, ceil(T / k), F), and the lengths then.

    Notebooks: 05, 07.
    """
    h = F.pad(h, (0, 0, 0, -h.shape[1] % k))
    mask = frame_mask(lengths, h.shape[1])[..., None].to(h.dtype)
    total = (h * mask).unflatten(1, (-1, k)).sum(2)
    count = mask.unflatten(1, (-1, k)).sum(2)
    return total / count.clamp(min=1), (lengths + k - 1) // k


class Backbone(nn.Module):
    """A network from x (B, T, F) to features (B, out_features), behind a normalisation of each row.

    reads : what it reads of a clip; config : what `build_model` makes an untrained one of
    """

    out_features: int

    def __init__(self, reads: Reads, **config):
        super().__init__()
        self.reads = reads
        self.config = {"kind": type(self).__name__, "reads": asdict(reads), **config}
        self.register_buffer("mean", torch.zeros(reads.n_features))
        self.register_buffer("deviation", torch.ones(reads.n_features))

    @torch.no_grad()
    def start_from(self, clips: Clips) -> None:
        """Take each row's mean and deviation over the real frames of the training clips."""
        whole = Reads(self.reads.features, self.reads.beat)
        count, total, squares = 0, 0.0, 0.0
        for x, lengths, _ in batches(clips, reads=whole, device=self.mean.device):
            real = x[frame_mask(lengths, x.shape[1])].double()  # (B, T, F) -> (frames, F)
            count += len(real)
            total = total + real.sum(0)
            squares = squares + real.square().sum(0)
        mean = total / count
        deviation = (squares / count - mean.square()).clamp(min=0).sqrt()
        # A row that hardly moves in training must not blow up when it does in a test clip.
        least = deviation.new_full((N_FEATURES,), LEAST_DEVIATION["chroma"])
        least[:N_MELS] = LEAST_DEVIATION["mel"]
        self.mean.copy_(mean)
        self.deviation.copy_(deviation.maximum(least[self.reads.columns]))

    def normalise(self, x):
        return (x - self.mean) / self.deviation


class LSTM(Backbone):
    """An LSTM over the frames of a clip. Notebook: 05.

    It reads every row at every frame. A clip's output is the same alone and in any batch.

    pooling : what is read of the states: "last", that of the last real frame, or "mean+max" of all
    """

    def __init__(self, reads, hidden=128, pooling="last"):
        if pooling not in ("last", "mean+max"):
            raise ValueError(f"pooling {pooling!r}; known: last, mean+max")
        super().__init__(reads, hidden=hidden, pooling=pooling)
        self.pooling = pooling
        self.lstm = nn.LSTM(reads.n_features, hidden, batch_first=True)
        self.out_features = hidden * (2 if pooling == "mean+max" else 1)

    @torch.autocast("cpu", enabled=False)  # on most CPUs torch has no bf16 LSTM and fails
    def forward(self, x, lengths):
        h = self.lstm(self.normalise(x))[0]  # (B, T, F) -> (B, T, H)
        if self.pooling == "last":
            return h[torch.arange(len(h), device=h.device), lengths - 1]
        mask = frame_mask(lengths, h.shape[1])[..., None]
        mean = (h * mask).sum(1) / lengths[:, None]
        return torch.cat([mean, h.masked_fill(~mask, float("-inf")).amax(1)], dim=1)


class Block(nn.Sequential):
    """Convolution, batch norm, ReLU, max pooling: (B, C, T, F) -> (B, C', T / pool, F / pool).

    Notebook: 07.
    """

    def __init__(self, inputs: int, outputs: int, pool: tuple[int, int]):
        super().__init__(
            # Batch norm brings the bias.
            nn.Conv2d(inputs, outputs, 3, padding="same", bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.MaxPool2d(pool),
        )


class CNN(Backbone):
    """Blocks of convolution, batch norm, ReLU, max pooling on the spectrogram image. Notebook: 07.

    The image is (B, 1, T, F): time runs down, the rows of the spectrogram across, one channel.
    After the blocks time is reduced to its mean and its maximum (2 C F' features): when a pattern
    sounds does not matter. Beyond the edge and a clip's end there is zero, each row's mean, in
    every block: a clip's output is the same alone and in any batch.

    channels : of each block; pools : (time, rows) max-pooling factors of each block
    frames_per_column : so many frames are averaged to one column of the image; dropout : at the end
    """

    def __init__(self, reads, channels=CHANNELS, pools=POOLS, frames_per_column=4, dropout=0.3):
        channels, pools = list(channels), [list(pair) for pair in pools]
        options = {"frames_per_column": frames_per_column, "dropout": dropout}
        super().__init__(reads, channels=channels, pools=pools, **options)
        if len(pools) != len(channels):
            raise ValueError(f"{len(channels)} blocks need as many pools, not {len(pools)}")
        self.frames_per_column, self.pools = frames_per_column, pools
        self.blocks = nn.ModuleList()
        rows, self.time_factor, inputs = reads.n_features, 1, 1
        for outputs, (time, frequency) in zip(channels, pools):
            self.blocks.append(Block(inputs, outputs, (time, frequency)))
            rows //= frequency
            self.time_factor *= time
            inputs = outputs
        if rows == 0:
            raise ValueError(f"pools {pools} leave nothing of {reads.n_features} rows; take less")
        self.dropout = nn.Dropout(dropout)
        self.out_features = 2 * channels[-1] * rows
        self.to(memory_format=torch.channels_last)

    def image(self, x, lengths):
        """Normalised image (B, 1, T', F) and how many of its columns are real (B,)."""
        h, real = average_frames(self.normalise(x), lengths, self.frames_per_column)
        # A clip shorter than one column of the last map counts as that long: the rest is zero.
        h = F.pad(h, (0, 0, 0, max(0, self.time_factor - h.shape[1])))
        h = h.unsqueeze(1).contiguous(memory_format=torch.channels_last)
        return h, real.clamp(min=self.time_factor)

    def forward(self, x, lengths):
        h, real = self.image(x, lengths)
        for block, (time, _) in zip(self.blocks, self.pools):  # rows are never padded
            h = block(h)  # (B, C, T, F) -> (B, C', T / pool, F / pool)
            real = real // time
            mask = frame_mask(real, h.shape[2])[:, None]
            h = h * mask[..., None]
        h = h.transpose(2, 3).flatten(1, 2)  # (B, C, T', F') -> (B, C F', T')
        mean = h.sum(2) / real[:, None]
        peak = h.masked_fill(~mask, float("-inf")).amax(2)
        return self.dropout(torch.cat([mean, peak], dim=1))  # (B, 2 C F')


# --- models ---------------------------------------------------------------------------------------


class Model(nn.Module):
    """A backbone and a linear head, with the loss that trains them. Notebook: 05.

    forward(x, lengths) -> outputs (B, k); targets(y) -> what `loss(outputs, targets)` takes;
    decode(outputs) -> predictions
    learned : the clips that it was trained or chosen on ("genre 11"); it travels in the checkpoint,
        so that a test can tell when one of them is judged
    """

    def __init__(self, backbone: Backbone, n_outputs: int, **config):
        super().__init__()
        self.backbone, self.head = backbone, nn.Linear(backbone.out_features, n_outputs)
        self.config = {"kind": type(self).__name__, **config, "backbone": backbone.config}
        self.learned: set[str] = set()

    @property
    def reads(self) -> Reads:
        return self.backbone.reads

    def start_from(self, clips: Clips) -> Model:
        """Take the normalisation from the training clips; returns the model."""
        self.backbone.start_from(clips)
        return self

    def forward(self, x, lengths):
        h = self.backbone(x, lengths)
        # Outputs in half precision would fall together and lose their rank order.
        with torch.autocast(h.device.type, enabled=False):
            return self.head(h.float())

    def save(self, path: Path) -> None:
        """Write config, normalisation and weights. Notebook: 09a."""
        content = {"config": self.config, "state": self.state_dict()}
        torch.save({**content, "learned": sorted(self.learned)}, path)


class Classifier(Model):
    """Genre: outputs are logits (B, n_classes), predictions their softmax. Notebook: 05.

    classes : names in the order of the codes
    """

    def __init__(self, backbone: Backbone, classes):
        self.classes = [str(name) for name in classes]
        super().__init__(backbone, len(self.classes), classes=self.classes)

    def targets(self, y):
        return y

    def loss(self, outputs, targets):
        return F.cross_entropy(outputs, targets)

    def decode(self, outputs):
        return outputs.softmax(-1)


class Regressor(Model):
    """Affect axes: outputs (B, k) are linear, in deviations of the labels. Notebooks: 08, 09b.

    axes : those of valence, energy, danceability that it learns, an output each
    scaled : the loss is the sum of the axes' mean squared errors in variances of the labels, so
        each counts alike; False: the plain sum, in the labels' own unit
    """

    def __init__(self, backbone: Backbone, axes=AFFECT, scaled=True):
        self.axes, self.scaled = list(axes), scaled
        super().__init__(backbone, len(self.axes), axes=self.axes, scaled=scaled)
        self.register_buffer("label_mean", torch.zeros(len(self.axes)))
        self.register_buffer("label_deviation", torch.ones(len(self.axes)))

    @torch.no_grad()
    def start_from(self, clips: Clips) -> Regressor:
        """Take row normalisation, and the labels' mean and deviation, from the training clips."""
        super().start_from(clips)
        y = self.targets(clips.y)
        self.label_mean.copy_(y.mean(0))
        self.label_deviation.copy_(y.std(0).clamp(min=1e-3))
        return self

    def targets(self, y):
        """Its own axes (B, k) of affect values (B, 3)."""
        if y.ndim != 2 or y.shape[1] != len(AFFECT):
            raise ValueError(f"labels of shape {tuple(y.shape)}; affect values (B, 3) are needed")
        return y[:, [AFFECT.index(axis) for axis in self.axes]]

    def loss(self, outputs, targets):
        errors = self.decode(outputs) - targets  # (B, k): (B,) against (B, 1) would be (B, B)
        if self.scaled:
            errors = errors / self.label_deviation
        return errors.square().mean(0).sum()

    def decode(self, outputs):
        return self.label_mean + self.label_deviation * outputs


KINDS = {kind.__name__: kind for kind in (LSTM, CNN, Classifier, Regressor)}


def build_model(config: dict) -> Model:
    """An untrained model of a `config` as checkpoints carry it. Notebook: 09a."""
    options, inner = {**config}, {**config["backbone"]}
    reads = Reads(**inner.pop("reads"))
    options["backbone"] = KINDS[inner.pop("kind")](reads, **inner)
    return KINDS[options.pop("kind")](**options)


def load_model(path: Path, device="cpu") -> Model:
    """The model of a checkpoint, in evaluation mode; nothing is unpickled. Notebook: 09a.

    Raises FileNotFoundError, or ValueError for a file of another kind or with bad weights.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such checkpoint; run its notebook first")
    try:
        content = torch.load(path, map_location=device, weights_only=True)
        model = build_model(content["config"])
        model.load_state_dict(content["state"])
        model.learned = set(content["learned"])
        assert all(value.isfinite().all() for value in model.state_dict().values())
    except Exception as error:  # torch raises half a dozen kinds for a file that is not its own
        kind = type(error).__name__
        raise ValueError(f"{path}: not a checkpoint ({kind}); train it again") from error
    return model.to(device).eval()
