"""A split of a corpus as one array, read once, and how it is split further.

A split's clips become one contiguous float32 array (N, T_max, 140), padded with silence and kept as
an `.npy` in a cache folder, so that every later load only maps it into memory. The inputs (mel,
chroma, fused) are views of it.
"""

from __future__ import annotations

import copy
import hashlib
import logging
import math
import os
import shutil
import tempfile
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd
import platformdirs
import torch
from sklearn.model_selection import StratifiedGroupKFold

from .corpora.layout import (
    AFFECT,
    N_FEATURES,
    N_MELS,
    SILENCE_DB,
    Corpus,
    CorpusError,
    CorpusWarning,
    array_shape,
    load_array,
)

# Large tensors in huge pages: a CPU otherwise spends up to a third of a training step on page
# faults. torch reads this at its first allocation.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
# Near-zero activations become denormal numbers, which a CPU computes 4 to 10 times slower. The flag
# reaches only threads that start after it is set, so it stands where torch is first needed.
torch.set_flush_denormal(True)

FEATURES = {
    "mel": slice(0, N_MELS),
    "chroma": slice(N_MELS, N_FEATURES),
    "fused": slice(0, N_FEATURES),
}
LARGE = 1e9  # bytes: an array beyond that is announced before it is read
STALE = 3600  # seconds: nobody works for so long on an array that is not whole
SHARE_OF_DEVICE = 0.5  # of a device's free memory that a split may take; the rest is for training


class SpectrogramDataset(torch.utils.data.Dataset):
    """The clips of one split, with one kind of target. Notebook: 04.

    task : "genre" (targets int64 (N,)), one of "valence", "energy", "danceability" ((N, 1) float32)
        or "affect", all three ((N, 3)); the affect test split has no labels, there `.y` is NaN
    split : "train" or "test"
    features : "mel" (F = 128), "chroma" (F = 12) or "fused" (F = 140)
    beat : the beat-synced arrays

    `ds[i]` is (x (T, F) float32, target, T). `.clips` is a table with id, group, length, and the
    position in `.array` (clips, T_max, 140) of each clip. Raises CorpusError. A clip whose array
    cannot be used is left out with a CorpusWarning.
    """

    def __init__(self, corpus: Corpus, task: str, split="train", features="fused", beat=False):
        axes = {"genre": (), "affect": AFFECT, **{axis: (axis,) for axis in AFFECT}}
        if task not in axes:
            raise ValueError(f"task {task!r}; known: {', '.join(axes)}")
        if features not in FEATURES:
            raise ValueError(f"features {features!r}; known: {', '.join(FEATURES)}")
        self.task, self.split, self.features, self.beat = task, split, features, beat
        self.axes = axes[task]
        self.columns = FEATURES[features]
        if task == "genre":
            table, self.classes = genre_classes(corpus, split, beat)
        else:
            table = corpus.labels("affect", split, beat)
            table = table.reindex(columns=["id", "path", "group", *AFFECT])
        self.array, lengths = load_split(list(table["path"]))
        table = table.drop(columns="path").assign(length=lengths, position=range(len(table)))
        self.clips = table[lengths > 0].reset_index(drop=True)

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, i: int):
        if not -len(self) <= i < len(self):
            raise IndexError(i)
        clip = self.clips.iloc[i]
        x = self.array[clip["position"], : clip["length"], self.columns]
        return x, self.subset([i]).y[0], int(clip["length"])

    @property
    def x(self) -> torch.Tensor:
        """(N, T_max, F), padded. A view of the mapped file for a whole split, else a copy."""
        if self.positions.tolist() == list(range(len(self.array))):
            return self.array[..., self.columns]
        return self.array[self.positions][..., self.columns]

    @property
    def y(self) -> torch.Tensor:
        """Class codes (N,) int64, or affect values (N, k) float32."""
        if self.task == "genre":
            return torch.tensor(self.clips["code"].to_numpy(np.int64))
        return torch.tensor(self.clips[list(self.axes)].to_numpy(np.float32))

    @property
    def lengths(self) -> torch.Tensor:
        """Real frames of each clip (N,)."""
        return torch.tensor(self.clips["length"].to_numpy(np.int64))

    @property
    def positions(self) -> torch.Tensor:
        """Where each clip lies in `.array` (N,)."""
        return torch.tensor(self.clips["position"].to_numpy(np.int64))

    @property
    def ids(self) -> list[str]:
        return self.clips["id"].tolist()

    @property
    def groups(self) -> list[str]:
        """A label each clip shares with the other clips of its track."""
        return self.clips["group"].tolist()

    @property
    def n_features(self) -> int:
        return self.columns.stop - self.columns.start

    @property
    def input_name(self) -> str:
        """What a table calls this input: "mel", "beat mel", …"""
        return f"beat {self.features}" if self.beat else self.features

    def subset(self, positions) -> SpectrogramDataset:
        """The clips at those positions (or where a mask is true); shares the array."""
        part = copy.copy(self)
        if isinstance(positions, torch.Tensor):
            positions = positions.cpu()
        positions = np.asarray(positions)
        if positions.dtype == bool:
            positions = np.flatnonzero(positions)
        part.clips = self.clips.iloc[positions].reset_index(drop=True)
        return part

    def select(self, ids: list[str]) -> SpectrogramDataset:
        """The clips with those ids, in that order. Raises CorpusError."""
        where = {clip: i for i, clip in enumerate(self.ids)}
        absent = [clip for clip in ids if clip not in where]
        if absent:
            raise CorpusError(
                f"clip {absent[0]} and {len(absent) - 1} others are not in this split; "
                "use ids of its own"
            )
        return self.subset([where[clip] for clip in ids])

    def with_features(self, features: str) -> SpectrogramDataset:
        """The same clips as another input. Raises ValueError: `to` has left other rows behind."""
        if features not in FEATURES:
            raise ValueError(f"features {features!r}; known: {', '.join(FEATURES)}")
        if self.array.shape[-1] != N_FEATURES:
            raise ValueError("only the rows of its own input were moved; choose features first")
        part = copy.copy(self)
        part.features, part.columns = features, FEATURES[features]
        return part

    def with_axes(self, axes) -> SpectrogramDataset:
        """The same affect clips with some of the targets: (N, len(axes))."""
        part = copy.copy(self)
        part.axes = tuple(axes)
        return part

    def to(self, device) -> SpectrogramDataset:
        """A copy whose features lie on `device`, those of its own clips only.

        Where they lie there already, or would not leave half of its memory free, the dataset itself
        is returned: `batches` then sends its windows one batch at a time.
        """
        device = torch.device(device)
        width = int(self.lengths.max())
        size = 4 * len(self) * width * self.n_features
        if device == self.array.device or device.type == "cpu" or size > room(device):
            return self
        part = copy.copy(self)
        part.array = torch.empty(len(self), width, self.n_features, device=device)
        # Clip by clip: the host never holds a second copy of the split.
        for i, position in enumerate(self.clips["position"]):
            part.array[i] = self.array[position, :width, self.columns].to(device)
        part.columns = slice(0, self.n_features)
        part.clips = self.clips.assign(position=range(len(self)))
        return part


def union(a: SpectrogramDataset, b: SpectrogramDataset) -> SpectrogramDataset:
    """The clips of both, which are parts of one split, in the split's order. Notebooks: 05, 08."""
    if a.array is not b.array:
        raise ValueError("these are parts of different splits; load their union from the corpus")
    whole = copy.copy(a)
    clips = pd.concat([a.clips, b.clips])
    whole.clips = clips.sort_values("position").reset_index(drop=True)
    return whole


def from_arrays(arrays: list[np.ndarray], ids: list[str], features="fused") -> SpectrogramDataset:
    """Clips (140, T) that are not in a corpus, as a split without labels. For own files.

    Notebook: none (labhelpers predict).
    """
    ds = SpectrogramDataset.__new__(SpectrogramDataset)
    ds.task, ds.split, ds.beat, ds.axes = "affect", "test", False, AFFECT
    ds.features, ds.columns = features, FEATURES[features]
    width = max(array.shape[1] for array in arrays)
    ds.array = torch.from_numpy(np.stack([padded(array, width) for array in arrays]))
    lengths = [array.shape[1] for array in arrays]
    ds.clips = pd.DataFrame(
        {"id": ids, "group": ids, "length": lengths, "position": range(len(ids))}
    ).assign(**dict.fromkeys(AFFECT, np.nan))
    return ds


def genre_classes(corpus: Corpus, split: str, beat: bool) -> tuple[pd.DataFrame, list[str]]:
    """The clips whose genre the class mapping keeps, and the classes.

    Returns a table with id, path, group, genre (the class) and code, and the class names, which are
    those of the training split, sorted. Raises CorpusError. Notebook: 04.
    """
    table = corpus.labels("genre", split, beat)
    table["genre"] = table["genre"].map(corpus.mapping)
    table = table.dropna(subset="genre").reset_index(drop=True)
    known = table["genre"]
    if split != "train":
        known = corpus.labels("genre", "train", beat)["genre"].map(corpus.mapping)
    classes = sorted(known.dropna().unique())
    where = corpus.folder("genre", beat) / f"{split}_labels.txt"
    if table.empty:
        raise CorpusError(
            f"{where}: the class mapping drops every genre in it; correct class_mapping.json"
        )
    unknown = sorted(set(table["genre"]) - set(classes))
    if unknown:
        raise CorpusError(
            f"{where}: no training clip has the class {', '.join(unknown)}; "
            "add some, or map it to null"
        )
    table["code"] = pd.Categorical(table["genre"], classes).codes
    return table, classes


def room(device: torch.device) -> float:
    """Bytes of a device's memory that a split may take. Notebook: 05."""
    if device.type != "cuda":
        return math.inf
    return SHARE_OF_DEVICE * torch.cuda.mem_get_info(device)[0]


# --- reading a split once -------------------------------------------------------------------------


def load_split(paths: list[Path]) -> tuple[torch.Tensor, np.ndarray]:
    """(N, T_max, 140) float32, padded with silence, and the clips' lengths (N,). Notebook: 04.

    The array is built once, clip by clip, in a file of the cache folder, and mapped from there.
    That folder holds one array for each folder of clips: a new one replaces it. Where nothing can
    be written it is held in memory. A clip that cannot be read keeps its place with length 0 and
    is named in a CorpusWarning each time. Raises CorpusError when none can be read.
    """
    folder = cache_folder()
    place = folder and folder / _hash(paths[0].parent) / _key(paths)
    cached = place and _from_cache(place)
    if cached:
        array, lengths = cached
        errors = _read_errors([paths[i] for i in np.flatnonzero(lengths == 0)])
    if not cached or (lengths == 0).sum() > len(errors):  # a clip can be read again
        array, lengths, errors = _build(paths, place)
    for error in errors:
        warnings.warn(f"{error}. The clip is left out", CorpusWarning, stacklevel=3)
    return array, lengths


def _hash(content) -> str:
    return hashlib.sha256(repr(content).encode()).hexdigest()[:32]


def _key(paths: list[Path]) -> str:
    """Changes with the names, sizes and dates of the files and with the way of padding."""
    facts = [SILENCE_DB, N_FEATURES]
    for path in paths:
        try:
            stat = os.stat(path)
            facts.append((str(path), stat.st_size, stat.st_mtime_ns))
        except OSError:  # a dangling link, say: reading it will tell
            facts.append((str(path), None, None))
    return _hash(facts)


def _from_cache(place: Path) -> tuple[torch.Tensor, np.ndarray] | None:
    try:
        lengths = np.load(place / "lengths.npy")
        # Copy-on-write: torch wants writable memory, and nobody may change the cache through it.
        return torch.from_numpy(np.load(place / "array.npy", mmap_mode="c")), lengths
    except (OSError, ValueError, EOFError):  # not there, or damaged: it will be built anew
        return None


def _read_errors(paths: list[Path]) -> list[CorpusError]:
    errors = []
    for path in paths:
        try:
            load_array(path)
        except CorpusError as error:
            errors.append(error)
    return errors


def _build(paths: list[Path], place: Path | None):
    """Read every clip into one array, in the cache where it has room; (array, lengths, errors)."""
    frames = [_frames(path) for path in paths]
    shape = (len(paths), max(1, *frames), N_FEATURES)
    size = 4 * math.prod(shape)
    if size > LARGE:
        logging.getLogger("labhelpers").warning(
            "Loading %d clips of up to %d frames: %.1f GB, once", shape[0], shape[1], size / 1e9
        )
    if place:
        try:
            return _build_file(paths, shape, place)
        except OSError as error:
            warnings.warn(
                f"{place.parent}: no room for the array of this split ({error.strerror}), which is "
                "kept in memory instead; free some, or set LABHELPERS_CACHE to another folder",
                CorpusWarning,
                stacklevel=4,
            )
    array = np.empty(shape, np.float32)
    lengths, errors = _fill(paths, shape[1], array.__setitem__)
    return torch.from_numpy(array), lengths, errors


def _frames(path: Path) -> int:
    try:
        return array_shape(path)[1]
    except CorpusError:  # raised again when the clip is read
        return 0


def _build_file(paths: list[Path], shape, place: Path):
    """The array in a folder of its own beside `place`, moved there when it is whole."""
    place.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix="partial-", dir=place.parent))
    try:
        np.lib.format.open_memmap(partial / "array.npy", "w+", np.float32, shape)
        row = 4 * shape[1] * shape[2]
        with open(partial / "array.npy", "r+b") as stream:
            start = os.fstat(stream.fileno()).st_size - row * shape[0]
            # Written, not mapped: a full disk is then an error, and memory stays small.
            lengths, errors = _fill(
                paths,
                shape[1],
                lambda i, clip: os.pwrite(stream.fileno(), clip.tobytes(), start + i * row),
            )
        np.save(partial / "lengths.npy", lengths)
        mapped = _from_cache(partial)  # and it stays mapped, wherever the file is moved
        shutil.rmtree(place, ignore_errors=True)
        with suppress(OSError):  # another process has put the same array there in the meantime
            os.replace(partial, place)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    _remove_others(place)
    return *mapped, errors


def _remove_others(place: Path) -> None:
    """The arrays that this one replaces, and what killed processes left."""
    for other in place.parent.iterdir():
        with suppress(OSError):
            age = time.time() - other.stat().st_mtime
            if other != place and (age > STALE or not other.name.startswith("partial-")):
                shutil.rmtree(other)


def _fill(paths: list[Path], width: int, put) -> tuple[np.ndarray, list[CorpusError]]:
    """put(i, clip (width, 140)) for every clip that can be read; lengths (N,) and errors."""
    lengths = np.zeros(len(paths), np.int64)

    def read(i: int) -> CorpusError | None:
        try:
            clip = load_array(paths[i])
        except CorpusError as error:
            put(i, padded(np.empty((N_FEATURES, 0), np.float32), width))
            return error
        put(i, padded(clip, width))
        lengths[i] = clip.shape[1]
        return None

    # Unpacking leaves the interpreter to other threads.
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        errors = [error for error in pool.map(read, range(len(paths))) if error]
    if not lengths.any():
        raise CorpusError(f"no clip of {paths[0].parent} can be read; the first: {errors[0]}")
    return lengths, errors


def padded(clip: np.ndarray, width: int) -> np.ndarray:
    """(140, T) -> (width, 140) with silence after it: -80 dB, chroma 0. Notebooks: 00, 04."""
    result = np.zeros((width, N_FEATURES), np.float32)
    result[:, :N_MELS] = SILENCE_DB
    result[: clip.shape[1]] = clip.T
    return result


def cache_folder() -> Path | None:
    """Where arrays are cached, which may be deleted at any time; None where nothing can be written.

    $LABHELPERS_CACHE, else the user's cache folder, else a temporary one. Notebook: 04.
    """
    named = os.environ.get("LABHELPERS_CACHE")
    temporary = Path(tempfile.gettempdir()) / "labhelpers"
    for folder in (named, platformdirs.user_cache_path("labhelpers"), temporary):
        try:
            if folder:
                Path(folder).mkdir(parents=True, exist_ok=True)
                with tempfile.TemporaryFile(dir=folder):
                    return Path(folder)
        except OSError:
            continue
    return None


# --- splits ---------------------------------------------------------------------------------------


def strata(ds: SpectrogramDataset) -> np.ndarray:
    """What splits are balanced by (N,): the class, or the quarter of the mean affect.

    Notebook: 05.
    """
    if ds.task == "genre":
        return ds.clips["code"].to_numpy()
    mean = ds.clips[list(AFFECT)].mean(axis=1)  # of all axes: a split is the same for each of them
    return np.searchsorted(np.quantile(mean, [0.25, 0.5, 0.75]), mean)


def train_val_split(ds: SpectrogramDataset, fraction: float = 0.2, seed: int = 0):
    """Two disjoint parts, balanced by `strata`; clips of one group stay together. Notebook: 05.

    fraction : of each stratum's groups, for the second part
    Raises CorpusError when a stratum has a single group, which cannot stand on both sides.
    """
    if not len(ds):
        raise CorpusError("no clips are too few to split; add clips")
    rng = np.random.default_rng(seed)
    groups = pd.Series(strata(ds), ds.groups).groupby(level=0, sort=True).first()
    chosen = set()
    for stratum, members in groups.groupby(groups):
        if len(members) < 2:
            raise CorpusError(
                f"{_stratum_name(ds, stratum)} has clips of a single track ({members.index[0]}) "
                f"among {len(ds)} clips: it cannot stand on both sides of a split; "
                "add clips or drop it"
            )
        count = min(max(1, round(fraction * len(members))), len(members) - 1)
        chosen.update(rng.permutation(members.index)[:count])
    second = ds.clips["group"].isin(chosen).to_numpy()
    return ds.subset(~second), ds.subset(second)


def _stratum_name(ds: SpectrogramDataset, stratum: int) -> str:
    if ds.task == "genre":
        return ds.classes[stratum]
    return "an affect quarter"


def held_out_split(ds: SpectrogramDataset, seed: int = 0):
    """Train, validation and held-out parts, 60 : 20 : 20, for labels without a test set.

    It depends on the corpus and the seed only: all notebooks judge on the same held-out clips.
    Notebook: 08.
    """
    rest, held_out = train_val_split(ds, 0.2, seed)
    train, val = train_val_split(rest, 0.25, seed)
    return train, val, held_out


def k_folds(ds: SpectrogramDataset, k: int, seed: int = 0) -> list[tuple[np.ndarray, np.ndarray]]:
    """k pairs of positions (train, test), balanced by `strata`, whole groups. Notebook: 10.

    Raises CorpusError when there are too few tracks.
    """
    levels = strata(ds)
    if len(set(ds.groups)) < 2 * k or np.bincount(levels).max() < k:
        raise CorpusError(
            f"{len(ds)} clips of {len(set(ds.groups))} tracks are too few to split in {k} parts "
            "by class; add clips"
        )
    folds = StratifiedGroupKFold(k, shuffle=True, random_state=seed)
    with warnings.catch_warnings():  # a class below k clips misses some folds
        warnings.filterwarnings("ignore", message=".*least populated class.*")
        return list(folds.split(np.zeros(len(ds)), levels, ds.groups))
