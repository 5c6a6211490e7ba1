"""A split as one array, read once, and batches cut from it.

A split's clips become one contiguous float32 array (N, T_max, 140), padded with silence and kept as an `.npy` in a
cache folder, so that every later load only maps it into memory. All inputs (mel, chroma, fused) are views of it.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import math
import os
import tempfile
import time
import uuid
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from .corpora.layout import (
    AFFECT,
    N_ROWS,
    Corpus,
    CorpusError,
    CorpusWarning,
    array_shape,
    load_array,
)

N_MELS = 128
ROWS = {"mel": slice(0, N_MELS), "chroma": slice(N_MELS, N_ROWS), "fused": slice(0, N_ROWS)}
LARGE = 1e9  # bytes: an array beyond that is announced before it is read
SILENCE_DB = -80.0  # the extractor's floor; zero padding would be the loudest value there is


def _genre_table(corpus: Corpus, split: str, beat: bool, merge: bool) -> pd.DataFrame:
    """The labels of one part with `genre` as a categorical of the training split's classes. Raises CorpusError."""
    table = corpus.labels("genre", split, beat)
    names = table["genre"] if split == "train" else corpus.labels("genre", "train", beat)["genre"]
    if merge:
        names, table["genre"] = names.map(corpus.mapping), table["genre"].map(corpus.mapping)
        table = table.dropna(subset="genre").reset_index(drop=True)
    where = corpus.folder("genre", beat) / f"{split}_labels.txt"
    if table.empty:
        raise CorpusError(f"{where}: the class mapping drops every genre in it; correct class_mapping.json")
    unknown = sorted(set(table["genre"]) - set(names))
    if unknown:
        raise CorpusError(f"{where}: no training clip has the class {', '.join(unknown)}; add some, or map it to null")
    table["genre"] = pd.Categorical(table["genre"], sorted(names.dropna().unique()))
    return table


class SpectrogramDataset(torch.utils.data.Dataset):
    """The clips of one split with one kind of target.

    corpus : a Corpus
    task : "genre" (targets int64 (N,)), one of "valence", "energy", "danceability" ((N, 1) float32) or
        "affect", all three ((N, 3))
    split : "train" or "test"; the affect test split has no labels, there `.y` is NaN
    rows : "mel" (F = 128), "chroma" (F = 12) or "fused" (F = 140)
    beat : the beat-synced arrays
    merge : apply the corpus's class mapping (merge and drop genres); False keeps the original genres

    `ds[i]` is (x (T, F) float32, target, T). `.x` (N, T_max, F) is padded with silence (-80 dB, chroma 0), `.lengths`
    (N,) says how many frames are real. Raises CorpusError. A clip whose array cannot be used is left out with a
    CorpusWarning.
    """

    def __init__(self, corpus: Corpus, task: str, split="train", rows="fused", beat=False, merge=True):
        if task not in ("genre", "affect", *AFFECT):
            raise ValueError(f"task {task!r}; known: genre, affect, {', '.join(AFFECT)}")
        if rows not in ROWS:
            raise ValueError(f"rows {rows!r}; known: {', '.join(ROWS)}")
        self.task, self.split, self.rows, self.beat = task, split, rows, beat
        self.axes = () if task == "genre" else AFFECT if task == "affect" else (task,)
        table = _genre_table(corpus, split, beat, merge) if task == "genre" else corpus.labels("affect", split, beat)
        self._fused, lengths, good = load_split(list(table["path"]))
        self.index = torch.from_numpy(np.flatnonzero(good))
        self.all_lengths = torch.from_numpy(lengths)
        if task == "genre":
            self.classes = table["genre"].cat.categories.to_list()
        table = table[good]
        self.ids, self.groups = list(table["id"]), list(table["group"])
        if task == "genre":
            self.y = torch.from_numpy(table["genre"].cat.codes.to_numpy(np.int64))
            self.strata = self.y
        else:
            values = torch.from_numpy(table.reindex(columns=list(AFFECT)).to_numpy(np.float32, copy=True))
            self.y = values[:, [AFFECT.index(axis) for axis in self.axes]]
            self.strata = values.mean(1)  # of all axes, whichever are the targets: a split is the same for each

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, i: int):
        if not -len(self) <= i < len(self):
            raise IndexError(i)
        length = int(self.lengths[i])
        return self._fused[self.index[i], :length, ROWS[self.rows]], self.y[i], length

    @property
    def x(self) -> torch.Tensor:
        """(N, T_max, F), padded. A view of the mapped file for the whole split, a copy for a subset."""
        whole = torch.equal(self.index, torch.arange(len(self._fused)))
        return (self._fused if whole else self._fused[self.index])[..., ROWS[self.rows]]

    @property
    def lengths(self) -> torch.Tensor:
        return self.all_lengths[self.index.to(self.all_lengths.device)]

    @property
    def n_features(self) -> int:
        return len(range(N_ROWS)[ROWS[self.rows]])

    @property
    def input_name(self) -> str:
        """What a table calls this input: "mel", "beat mel", …"""
        return f"beat {self.rows}" if self.beat else self.rows

    def subset(self, positions) -> SpectrogramDataset:
        """The clips at those positions (or where a mask is true); shares the arrays."""
        part = copy.copy(self)
        positions = torch.as_tensor(positions)
        positions = positions.nonzero()[:, 0] if positions.dtype == torch.bool else positions.long()
        part.index, part.y = self.index[positions], self.y[positions.to(self.y.device)]
        part.strata = self.strata[positions]
        part.ids = [self.ids[i] for i in positions]
        part.groups = [self.groups[i] for i in positions]
        return part

    def select(self, ids: list[str]) -> SpectrogramDataset:
        """The clips with those ids, in that order."""
        where = {clip: i for i, clip in enumerate(self.ids)}
        absent = [clip for clip in ids if clip not in where]
        if absent:
            raise CorpusError(f"clip {absent[0]} and {len(absent) - 1} others are not in this split; use the ids' own")
        return self.subset([where[clip] for clip in ids])

    def with_rows(self, rows: str) -> SpectrogramDataset:
        """The same clips as another input."""
        part = copy.copy(self)
        part.rows = rows
        return part

    def with_axes(self, axes) -> SpectrogramDataset:
        """The same affect clips with some of the targets: (N, len(axes))."""
        part = copy.copy(self)
        part.y, part.axes = self.y[:, [self.axes.index(axis) for axis in axes]], tuple(axes)
        return part

    def to(self, device) -> SpectrogramDataset:
        """A copy whose clips lie on `device`, only those in use; where they lie there already nothing is copied."""
        if torch.device(device).type == self._fused.device.type:
            return self
        part = copy.copy(self)
        part._fused = torch.zeros(len(self), int(self.lengths.max()), N_ROWS, device=device)
        for i, source in enumerate(self.index):  # clip by clip: the host never holds a second copy of the split
            part._fused[i] = self._fused[source, : part._fused.shape[1]].to(device)
        part.all_lengths, part.y = self.lengths.to(device), self.y.to(device)
        part.index = torch.arange(len(self))
        return part


# --- reading a split once -------------------------------------------------------------------------------------------


def load_split(paths: list[Path]) -> tuple[torch.Tensor, np.ndarray, np.ndarray]:
    """(N, T_max, 140) float32 tensor padded with silence, lengths (N,), and which clips could be read (N,).

    The array is built once in the cache folder, clip by clip (so that memory stays at one array), and mapped from
    there afterwards. Where no folder can be written it is held in memory. Clips left out keep their place, with
    length 0, and are named in a CorpusWarning each time. Raises CorpusError when none can be read.
    """
    folder, key = cache_folder(), _key(paths)
    cached = None if folder is None else _from_cache(folder, key)
    if cached is not None:
        array, lengths = cached
        errors = _check(paths, np.flatnonzero(lengths == 0))
    if cached is None or (lengths == 0).sum() > len(errors):  # a clip can be read again
        array, lengths, errors = _build(paths, folder, key)
    for error in errors:
        warnings.warn(f"{error}. The clip is left out", CorpusWarning, stacklevel=3)
    return array, lengths, lengths > 0


def _key(paths: list[Path]) -> str:
    """The name of an array in the cache: another file, size, date or way of padding gives another."""
    facts = [SILENCE_DB, N_ROWS]
    for path in paths:
        try:
            stat = os.stat(path)
            facts.append((str(path), stat.st_size, stat.st_mtime_ns))
        except OSError:  # a dangling link, say: reading it will tell
            facts.append((str(path), None, None))
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:32]


def _from_cache(folder: Path, key: str) -> tuple[torch.Tensor, np.ndarray] | None:
    try:
        lengths = np.load(folder / f"{key}.lengths.npy")
        # Copy-on-write: torch wants writable memory, and nobody may change the cache through a tensor.
        return torch.from_numpy(np.load(folder / f"{key}.npy", mmap_mode="c")), lengths
    except (OSError, ValueError, EOFError):  # not there, or damaged: it will be built anew
        return None


def _check(paths: list[Path], positions) -> list[CorpusError]:
    errors = []
    for i in positions:
        try:
            load_array(paths[i])
        except CorpusError as error:
            errors.append(error)
    return errors


def _build(paths: list[Path], folder: Path | None, key: str) -> tuple[torch.Tensor, np.ndarray, list[CorpusError]]:
    """Read every clip into one array, in the cache if possible; returns also lengths and errors."""
    lengths = np.zeros(len(paths), np.int64)
    for i, path in enumerate(paths):
        with contextlib.suppress(CorpusError):  # raised again when the clip is read
            lengths[i] = array_shape(path)[1]
    shape = (len(paths), max(1, int(lengths.max())), N_ROWS)
    size = 4 * math.prod(shape)
    if size > LARGE:
        print(f"Loading {shape[0]} clips of up to {shape[1]} frames: {size / 1e9:.1f} GB in memory")
    target, partial = _new_array(folder, shape)

    def fill(i: int) -> CorpusError | None:
        try:
            clip, error = load_array(paths[i]), None
        except CorpusError as found:
            clip, error = np.empty((N_ROWS, 0), np.float32), found
        lengths[i] = _place(target[i], clip)
        return error

    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:  # unpacking leaves the interpreter to other threads
        errors = [error for error in pool.map(fill, range(len(paths))) if error is not None]
    if not lengths.any():
        if partial is not None:
            partial.unlink()
        raise CorpusError(f"no clip of {paths[0].parent} can be read; the first: {errors[0]}")
    if partial is None:
        return torch.from_numpy(target), lengths, errors
    target.flush()
    with open(partial.with_suffix(".lengths"), "wb") as stream:
        np.save(stream, lengths)
    os.replace(partial.with_suffix(".lengths"), folder / f"{key}.lengths.npy")
    os.replace(partial, folder / f"{key}.npy")
    return *_from_cache(folder, key), errors


def _place(row: np.ndarray, clip: np.ndarray) -> int:
    """Write a (140, T) clip into its (T_max, 140) row, silence after it; returns T."""
    frames = clip.shape[1]
    row[:frames] = clip.T
    row[frames:, :N_MELS] = SILENCE_DB
    row[frames:, N_MELS:] = 0
    return frames


def _new_array(folder: Path | None, shape: tuple[int, int, int]) -> tuple[np.ndarray, Path | None]:
    """A writable array of that shape, in a file of the cache folder where there is room, and that file."""
    if folder is not None:
        _sweep(folder)
        partial = folder / f"{uuid.uuid4().hex}.partial"  # two processes may build the same array: each its own file
        try:
            array = np.lib.format.open_memmap(partial, "w+", np.float32, shape)
            with open(partial, "r+b") as stream:
                # Reserve the room now: on a disk that fills, writing to mapped memory would kill the process.
                if hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(stream.fileno(), 0, partial.stat().st_size)
            return array, partial
        except OSError as error:
            partial.unlink(missing_ok=True)
            warnings.warn(
                f"{folder}: no room for the array of this split ({error.strerror}), which is kept in memory instead; "
                "free some, or set LABHELPERS_CACHE to another folder",
                CorpusWarning,
                stacklevel=5,
            )
    return np.empty(shape, np.float32), None


def _sweep(folder: Path) -> None:
    """Remove what killed runs left half-built, more than a day ago."""
    for partial in folder.glob("*.partial"):
        with contextlib.suppress(OSError):
            if time.time() - partial.stat().st_mtime > 86_400:
                partial.unlink()


def cache_folder() -> Path | None:
    """Where arrays are cached: $LABHELPERS_CACHE, else the user's cache folder, else a temporary one, or None.

    A cache may be deleted at any time. None means that none of the three can be written.
    """
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    named = os.environ.get("LABHELPERS_CACHE")
    for parent in filter(None, [named, home, tempfile.gettempdir()]):
        folder = Path(parent) / ("" if parent == named else "labhelpers")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                return folder
        except OSError:
            continue
    return None


# --- splits and batches ---------------------------------------------------------------------------------------------


def train_val_split(ds: SpectrogramDataset, fraction: float = 0.2, seed: int = 0):
    """Two disjoint parts, stratified by class (or by mean target in quarters), clips of one group on one side.

    fraction : share of the second part, which is rounded to one of k equal folds
    Raises CorpusError when a class is too small to stand on both sides or a part would be empty.
    """
    folds = max(2, round(1 / fraction))
    train, val = next(iter(k_folds(ds, folds, seed)))
    return ds.subset(train), ds.subset(val)


def held_out_split(ds: SpectrogramDataset, seed: int = 0):
    """Train, validation and held-out parts, 60 : 20 : 20, for labels that have no test set (steps 8 and 9).

    The held-out part depends on the corpus and seed only, so that all notebooks judge on the same clips.
    """
    rest, held_out = train_val_split(ds, 0.2, seed)
    train, val = train_val_split(rest, 0.25, seed)
    return train, val, held_out


def k_folds(ds: SpectrogramDataset, k: int, seed: int = 0):
    """Yield k pairs of positions (train, test), stratified, by group where clips share one. Raises CorpusError."""
    n_tracks = len(set(ds.groups))
    few = f"{len(ds)} clips of {n_tracks} tracks are too few to split in {k} parts by class; add clips"
    if n_tracks < 2 * k:
        raise CorpusError(few)
    strata = _strata(ds)
    for stratum in np.unique(strata):
        tracks = {ds.groups[i] for i in np.flatnonzero(strata == stratum)}
        if len(tracks) < 2:
            name = ds.classes[stratum] if ds.task == "genre" else "an affect quarter"
            raise CorpusError(
                f"{name} has clips of a single track ({tracks.pop()}) among {len(ds)} clips: "
                "it cannot stand on both sides of a split; add clips or drop it"
            )
    if np.bincount(strata).max() < k:
        raise CorpusError(few)
    kind = StratifiedGroupKFold if n_tracks < len(ds) else StratifiedKFold
    with warnings.catch_warnings():  # classes below k clips are fine: they miss some folds
        warnings.filterwarnings("ignore", message=".*least populated class.*|.*groups parameter is ignored.*")
        yield from list(kind(k, shuffle=True, random_state=seed).split(np.arange(len(ds)), strata, ds.groups))


def _strata(ds: SpectrogramDataset) -> np.ndarray:
    """A class for each clip: its genre, or the quarter of its mean affect."""
    levels = ds.strata.numpy()
    return levels if ds.task == "genre" else np.searchsorted(np.quantile(levels, [0.25, 0.5, 0.75]), levels)
