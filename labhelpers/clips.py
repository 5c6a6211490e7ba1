"""A split of a corpus as one array, how it is split further, and the batches cut from it."""

from __future__ import annotations

import copy
import warnings
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from sklearn.model_selection import StratifiedGroupKFold

from .audio import N_FEATURES, N_MELS, SILENCE_DB
from .corpus import AFFECT, Corpus, CorpusError, CorpusWarning, load_array

FEATURES = {
    "mel": slice(0, N_MELS),
    "chroma": slice(N_MELS, N_FEATURES),
    "fused": slice(0, N_FEATURES),
}
LONGEST = 8  # medians of a split's lengths: one endless clip must not set the size of all


@dataclass(frozen=True)
class Reads:
    """What a model reads of a clip; it travels in the model's checkpoint. Notebook: 05.

    features : "mel" (128 rows), "chroma" (12) or "fused" (140); beat : the beat-synced arrays
    window : frames of the random windows of a training; None = whole clips
    n_windows : evenly spaced windows that are averaged in a prediction
    """

    features: str = "mel"
    beat: bool = False
    window: int | None = None
    n_windows: int = 5

    def __post_init__(self):
        if self.features not in FEATURES:
            raise ValueError(f"features {self.features!r}; known: {', '.join(FEATURES)}")

    @property
    def columns(self) -> slice:
        return FEATURES[self.features]

    @property
    def n_features(self) -> int:
        return self.columns.stop - self.columns.start

    @property
    def name(self) -> str:
        """What a table calls this input: "mel", "beat mel", …"""
        return f"beat {self.features}" if self.beat else self.features


class Clips(torch.utils.data.Dataset):
    """Clips of one split, all 140 rows of each; a model picks the rows that it reads. Notebook: 04.

    array : (n, T_max, 140) float32, padded with silence (-80 dB, chroma 0)
    table : a row for each clip: id, group, length, position in the array, and code or affect axes
    task : "genre" or "affect"; classes : names in the order of the codes

    `clips[i]` is (x (T, 140), target, T).
    """

    def __init__(self, array, table, task="genre", beat=False, classes=()):
        self.array, self.table = array, table
        self.task, self.beat, self.classes = task, beat, list(classes)

    @classmethod
    def of(cls, arrays, ids) -> Clips:
        """Arrays (140, T) that are in no corpus, as clips without labels."""
        table = pd.DataFrame({"id": ids, "group": ids}).reindex(columns=["id", "group", *AFFECT])
        return cls(*padded(arrays, table), task="affect")

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, i: int):
        row = self.table.iloc[i]
        return self.array[row["position"], : row["length"]], self.y[i], int(row["length"])

    @property
    def y(self) -> torch.Tensor:
        """Class codes (N,) int64, or affect values (N, 3) float32, NaN where withheld."""
        if self.task == "genre":
            return torch.tensor(self.table["code"].to_numpy(np.int64))
        return torch.tensor(self.table[list(AFFECT)].to_numpy(np.float32))

    @property
    def lengths(self) -> torch.Tensor:
        """Real frames of each clip (N,)."""
        return torch.tensor(self.table["length"].to_numpy(np.int64))

    @property
    def positions(self) -> torch.Tensor:
        """Where each clip lies in the array (N,)."""
        return torch.tensor(self.table["position"].to_numpy(np.int64))

    @property
    def ids(self) -> list[str]:
        return self.table["id"].tolist()

    @property
    def names(self) -> set[str]:
        """The clips by task and id: both tasks count from 1."""
        return {f"{self.task} {clip}" for clip in self.ids}

    @property
    def groups(self) -> list[str]:
        """The track of each clip."""
        return self.table["group"].tolist()

    def subset(self, positions) -> Clips:
        """The clips at those positions, or where a mask is true; they share the array."""
        part = copy.copy(self)
        part.table = self.table.iloc[np.arange(len(self))[positions]].reset_index(drop=True)
        return part

    def select(self, ids) -> Clips:
        """The clips with those ids, in that order. Raises KeyError for an id not there."""
        part = copy.copy(self)
        part.table = self.table.set_index("id").loc[list(ids)].reset_index()
        return part

    def to(self, device) -> Clips:
        """A copy whose array lies on the device."""
        moved = copy.copy(self)
        moved.array = self.array.to(device)
        return moved


def load_clips(corpus: Corpus, task: str, split: str = "train", beat: bool = False) -> Clips:
    """Read a split. Notebook: 04.

    task : "genre" (merged classes; dropped genres are left out) or "affect"
    An array that cannot be used is left out with a CorpusWarning; raises CorpusError when none is
    left, or a test clip's class has no training clip.
    """
    table = corpus.labels(task, split, beat)
    classes = []
    if task == "genre":
        table["class"] = table["genre"].map(corpus.mapping)
        table = table.dropna(subset="class").reset_index(drop=True)
        training = table if split == "train" else corpus.labels("genre", "train", beat)
        classes = sorted({corpus.mapping[genre] for genre in training["genre"]} - {None})
        for name in set(table["class"]) - set(classes):
            folder = corpus.folder("genre", beat)
            fix = "add some, or map it to null"
            raise CorpusError(f"{folder}: no training clip of class {name}, but test clips; {fix}")
        table["code"] = pd.Categorical(table["class"], classes).codes
    else:
        table = table.reindex(columns=["id", "path", "group", *AFFECT])
    arrays = {}
    for i, path in enumerate(table["path"]):
        try:
            arrays[i] = load_array(path)
        except CorpusError as error:
            warnings.warn(f"{error}. The clip is left out", CorpusWarning, stacklevel=2)
    if not arrays:
        raise CorpusError(f"{corpus.folder(task, beat) / split}: no clip can be used")
    table = table.drop(columns="path").loc[list(arrays)].reset_index(drop=True)
    return Clips(*padded(list(arrays.values()), table), task=task, beat=beat, classes=classes)


def padded(arrays, table: pd.DataFrame) -> tuple[torch.Tensor, pd.DataFrame]:
    """Arrays (140, T) as one (n, T_max, 140), with silence after each; the table with lengths.

    A clip of more than LONGEST median lengths is cut there, with a CorpusWarning. Notebook: 04.
    """
    lengths = np.array([array.shape[1] for array in arrays])
    limit = max(1000, int(LONGEST * np.median(lengths)))
    for clip in table["id"][lengths > limit]:
        warnings.warn(f"clip {clip} is cut to {limit} frames", CorpusWarning, stacklevel=3)
    lengths = lengths.clip(max=limit)
    array = torch.zeros(len(arrays), int(lengths.max()), N_FEATURES)
    array[:, :, :N_MELS] = SILENCE_DB
    for i, length in enumerate(lengths):
        array[i, :length] = torch.from_numpy(arrays[i][:, :length].T.copy())
    return array, table.assign(length=lengths, position=range(len(table)))


# --- splits ---------------------------------------------------------------------------------------


def k_folds(clips: Clips, n_splits: int = 5, seed: int = 0) -> list[tuple[np.ndarray, np.ndarray]]:
    """Pairs of positions (train, held out); each clip is held out once. Notebook: 08.

    Folds are balanced by class, or by quarters of the mean affect; clips of a track stay together.
    Raises CorpusError when there are too few tracks.
    """
    strata, tracks = _strata(clips)
    if tracks.sum() < 2 * n_splits or tracks.max() < n_splits:
        few = f"{len(clips)} clips of {tracks.sum()} tracks"
        raise CorpusError(f"{few} are too few for {n_splits} parts; add clips")
    folds = StratifiedGroupKFold(n_splits, shuffle=True, random_state=seed)
    with warnings.catch_warnings():  # a class of fewer clips than folds misses some of them
        warnings.filterwarnings("ignore", message=".*least populated class.*")
        return list(folds.split(np.zeros(len(clips)), strata, clips.groups))


def _strata(clips):
    """What splits are balanced by (N,), and how many tracks each stratum has."""
    if clips.task == "genre":
        strata = clips.table["code"].to_numpy()
    else:
        mean = clips.table[list(AFFECT)].mean(axis=1)
        strata = np.searchsorted(np.quantile(mean, [0.25, 0.5, 0.75]), mean)
    of_tracks = pd.Series(strata, clips.groups).groupby(level=0).first()
    return strata, of_tracks.value_counts()


def train_val_split(clips: Clips, fraction: float = 0.2, seed: int = 0) -> tuple[Clips, Clips]:
    """Two disjoint parts, balanced as `k_folds`; clips of a track stay together. Notebook: 05.

    Where no class has enough tracks for that fraction, the second part is larger.
    """
    n_splits = min(round(1 / fraction), int(_strata(clips)[1].max()))
    train, val = k_folds(clips, n_splits, seed)[0]
    return clips.subset(train), clips.subset(val)


# --- batches and windows --------------------------------------------------------------------------


def batches(
    clips: Clips, batch_size=16, *, reads=Reads(), shuffle=False, generator=None, device=None
):
    """Yield (x (B, T, F), lengths (B,), y) of the clips, in their order. Notebook: 05.

    shuffle : a random order, and a random window of each clip where `reads` has windows; else the
        window in its middle
    generator : of the random numbers (None: torch's own); device : where the batches should lie
    """
    own = clips.array.device
    device = device or own
    lengths, order = clips.lengths, torch.arange(len(clips))
    if shuffle:
        order = torch.randperm(len(clips), generator=generator)
    starts = torch.zeros_like(lengths)
    if reads.window and shuffle:
        starts = random_starts(lengths, reads.window, generator)
    elif reads.window:
        starts = even_starts(lengths, reads.window, 3)[1]
    lengths = lengths.clamp(max=reads.window or clips.array.shape[1])
    widths = [reads.window or int(lengths[chunk].max()) for chunk in order.split(batch_size)]
    # The small numbers of an epoch are sent to the device at once, not batch by batch.
    small = [(clips.positions, own), (starts, own), (lengths, device), (clips.y, device)]
    chunks = [numbers[order].to(place).split(batch_size) for numbers, place in small]
    for width, where, begin, real, y in zip(widths, *chunks):
        x = cut(clips, where, begin, width, reads.columns)
        yield x.to(device, non_blocking=True), real, y


def random_starts(lengths: torch.Tensor, window: int, generator=None) -> torch.Tensor:
    """Where a random window starts in each clip (N,)."""
    choices = (lengths - window + 1).clamp(min=1)
    return (torch.rand(len(lengths), generator=generator) * choices).long()


def even_starts(lengths: torch.Tensor, window: int, n: int) -> torch.Tensor:
    """Where n evenly spaced windows start in each clip (n, N). Notebook: 05."""
    last = (lengths - window).clamp(min=0)
    shares = torch.linspace(0, 1, n)[:, None] if n > 1 else torch.full((1, 1), 0.5)
    return (shares * last).round().long()


def cut(clips: Clips, positions, starts, frames: int, columns: slice) -> torch.Tensor:
    """Windows x (B, frames, F) at `starts` (B,) of the clips at `positions` (B,) of the array.

    Behind the end of a clip, and of the array, is silence.
    """
    array, last = clips.array, clips.array.shape[1] - 1
    when = starts[:, None] + torch.arange(frames, device=array.device)
    if array.device.type == "cuda" or when.max() > last:
        x = array[positions[:, None], when.clamp(max=last)][..., columns]
    else:  # on a CPU whole windows are copied faster than single frames
        pairs = zip(positions.tolist(), starts.tolist())
        x = torch.stack([array[i, start : start + frames, columns] for i, start in pairs])
    silence = torch.zeros(N_FEATURES, device=array.device)
    silence[:N_MELS] = SILENCE_DB
    outside = (when > last)[..., None]  # a window may be longer than the array
    return torch.where(outside, silence[columns], x)
