"""Find a corpus in the lab's layout, read its label files, and check what they say.

A corpus is a folder with `fma_genre_spectrograms`, `fma_genre_spectrograms_beat`, `multitask_dataset` and
`multitask_dataset_beat`, each with `train/` and `test/` arrays and their `*_labels.txt`.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import math
import os
import re
import warnings
import zlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

AFFECT = ("valence", "energy", "danceability")
N_MELS = 128  # rows in dB, at most 0
N_CHROMA = 12  # rows from 0 to 1, below them
N_FEATURES = N_MELS + N_CHROMA
SILENCE_DB = -80.0  # the extractor's floor; zero padding would be the loudest value there is
MAX_FRAMES = 100_000  # 39 minutes at the lab's hop: beyond this a file is no clip
MARKER = "fma_genre_spectrograms/train_labels.txt"
FOLDERS = {
    ("genre", False): "fma_genre_spectrograms",
    ("genre", True): "fma_genre_spectrograms_beat",
    ("affect", False): "multitask_dataset",
    ("affect", True): "multitask_dataset_beat",
}

# The lab's merging of the 20 FMA genres into 10 classes; None drops the genre.
CLASS_MAPPING: dict[str, str | None] = {
    "Rock": "Rock", "Psych-Rock": "Rock", "Post-Rock": "Rock", "Indie-Rock": None,
    "Folk": "Folk", "Psych-Folk": "Folk",
    "Metal": "Metal", "Punk": "Metal", "Post-Punk": None,
    "Electronic": "Electronic", "Chiptune": "Electronic",
    "Trip-Hop": "Trip-Hop", "Hip-Hop": "Hip-Hop",
    "Pop": "Pop", "Classical": "Classical", "Blues": "Blues", "Jazz": "Jazz",
    "Soundtrack": None, "International": None, "Old-Time": None,
}  # fmt: skip


class CorpusError(ValueError):
    """Something in a corpus is wrong; the message names the file, what is wrong with it and what to do."""


class CorpusWarning(UserWarning):
    """A clip was left out; the message names it and why."""


@dataclass(frozen=True)
class Corpus:
    """A corpus in the lab's layout.

    root : the folder that holds `fma_genre_spectrograms` and its siblings
    how : one sentence on how it was found
    """

    root: Path
    how: str = ""

    @property
    def name(self) -> str:
        """Short name, from the folder: `emotify`, `sample`, or a Kaggle slug."""
        return next((part for part in reversed(self.root.parts) if part not in ("data", "input", os.sep)), "corpus")

    @property
    def is_sample(self) -> bool:
        return (self.root / "kept_aside").is_dir()

    @cached_property
    def mapping(self) -> dict[str, str | None]:
        """Original genre -> class, None = dropped: the lab's, or the corpus's own `class_mapping.json`."""
        own = self.root / "class_mapping.json"
        if not own.is_file():
            return CLASS_MAPPING
        try:
            mapping = json.loads(own.read_text(encoding="utf-8-sig"))
        except ValueError as error:
            raise CorpusError(f"{own}: not valid JSON ({error}); write genre: class pairs, null to drop") from error
        if not isinstance(mapping, dict) or not all(isinstance(c, str | None) for c in mapping.values()):
            raise CorpusError(f"{own}: not an object of genre: class pairs; a class is a string, or null to drop it")
        return mapping

    def folder(self, task: str, beat: bool = False) -> Path:
        return self.root / FOLDERS[task, beat]

    def has(self, task: str, split: str = "train", beat: bool = False) -> bool:
        """Whether the corpus holds that part at all."""
        return (self.folder(task, beat) / split).is_dir()

    def labels(self, task: str, split: str = "train", beat: bool = False) -> pd.DataFrame:
        """The clips of one part, in the label file's order, checked.

        task : "genre" or "affect"; split : "train" or "test"; beat : the beat-synced arrays
        Returns columns id, path, group, and genre (original name) or valence, energy, danceability. The affect
        test split has no label file: its rows are the clips of the folder, by id, without labels.
        Raises CorpusError. A listed clip that is absent is left out with a CorpusWarning.
        """
        folder, files = self.folder(task, beat), self._files(task, split, beat)
        label_file = folder / f"{split}_labels.txt"
        if task == "affect" and split == "test" and not label_file.is_file():
            table = pd.DataFrame({"id": sorted(files, key=natural_key)})
        elif task == "genre":
            table = read_genre_labels(label_file, self.mapping)
        else:
            table = read_affect_labels(label_file)
        absent = [clip for clip in table["id"] if clip not in files]
        if absent:
            shown = ", ".join(absent[:5]) + (", …" if len(absent) > 5 else "")
            warnings.warn(
                f"{label_file}: {len(absent)} of {len(table)} listed clips are absent from {folder / split} "
                f"and left out ({shown}); restore the files or unlist them",
                CorpusWarning,
                stacklevel=2,
            )
            table = table[~table["id"].isin(absent)].reset_index(drop=True)
        if table.empty:
            raise CorpusError(f"{folder / split}: no clips; check that the data set was unpacked completely")
        table.insert(1, "path", [files[clip] for clip in table["id"]])
        groups = read_groups(folder / "groups.txt")
        table.insert(2, "group", [groups.get(clip, clip) for clip in table["id"]])
        return table

    def _files(self, task: str, split: str, beat: bool) -> dict[str, Path]:
        """Clip id -> array file. Names vary (`.full.fused`, `beatsync.fused`, `.npy`, `.npy.gz`): the id leads all."""
        folder = self.folder(task, beat) / split
        if not folder.is_dir():
            raise CorpusError(f"{folder}: no such folder; check that the data set was unpacked completely")
        found = {}
        for name in sorted(os.listdir(folder), reverse=True):  # reversed, so that .npy wins over .npy.gz
            match = _NAME.fullmatch(name)  # leaves aside what else lies there: half-written and hidden files
            if match and match[2]:
                found[match[1]] = folder / name
        return found

    def audio(self, clip: str) -> Path | None:
        """The clip's audio file, if the corpus has it (`audio.tsv`), else None."""
        path = self._audio.get(clip)
        return path if path and path.is_file() else None

    @cached_property
    def _audio(self) -> dict[str, Path]:
        listing = self.root / "audio.tsv"
        if not listing.is_file():
            return {}
        try:
            table = pd.read_csv(listing, sep="\t", dtype=str, keep_default_na=False)
            return {clip: self.root / path for clip, path in zip(table["Id"], table["Path"], strict=True)}
        except (ValueError, KeyError) as error:
            raise CorpusError(f"{listing}: not a table with columns Id and Path, tab-separated ({error})") from None

    def answers(self) -> pd.DataFrame | None:
        """The affect labels of the test clips that the sample keeps aside for step 10; None on real corpora."""
        path = self.root / "kept_aside" / "multitask_test_labels.txt"
        return read_affect_labels(path) if path.is_file() else None

    def describe(self) -> pd.DataFrame:
        """One row a folder and split: array files, labelled clips, size in MB."""
        rows = []
        for (task, beat), name in FOLDERS.items():
            for split in ("train", "test"):
                if self.has(task, split, beat):
                    files = [entry.stat().st_size for entry in os.scandir(self.folder(task, beat) / split)]
                    labelled = (self.folder(task, beat) / f"{split}_labels.txt").is_file()
                    rows.append((name, split, len(files), "yes" if labelled else "no", sum(files) / 1e6))
        return pd.DataFrame(rows, columns=["folder", "split", "files", "labels", "MB"])

    @cached_property
    def fingerprint(self) -> str:
        """Changes when a label file or the name or size of an array changes."""
        digest = hashlib.sha256()
        texts = ("class_mapping.json", "audio.tsv", "*/*_labels.txt", "*/groups.txt")
        for path in sorted(found for pattern in texts for found in self.root.glob(pattern)):
            digest.update(path.relative_to(self.root).as_posix().encode() + path.read_bytes())
        for task, beat in FOLDERS:
            for split in ("train", "test"):
                if self.has(task, split, beat):
                    entries = os.scandir(self.folder(task, beat) / split)
                    digest.update(repr(sorted((entry.name, entry.stat().st_size) for entry in entries)).encode())
        return digest.hexdigest()[:16]


# --- label files ----------------------------------------------------------------------------------------------------

_NAME = re.compile(r"([A-Za-z0-9][\w-]*)((\.(fused|full|beatsync))*\.npy(\.gz)?)?")


def natural_key(text: str) -> list:
    """Sort key by which "9" comes before "10"."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", text)]


def read_genre_labels(path: Path, mapping: dict[str, str | None] = CLASS_MAPPING) -> pd.DataFrame:
    """Columns id and genre (original name) from a tab-separated `Id Genre` file. Raises CorpusError."""
    rows = []
    for line, (clip, genre) in _rows(path, ["Id", "Genre"], "\t"):
        if genre not in mapping:
            known = ", ".join(sorted(mapping))
            raise CorpusError(f"{path}, line {line}: no genre {genre!r} in the class mapping; known: {known}")
        rows.append((clip, genre))
    return pd.DataFrame(rows, columns=["id", "genre"])


def read_affect_labels(path: Path) -> pd.DataFrame:
    """Columns id, valence, energy, danceability (0 to 1) from a comma-separated file. Raises CorpusError."""
    rows = []
    for line, (clip, *values) in _rows(path, ["Id", *AFFECT], ","):
        for axis, text in zip(AFFECT, values, strict=True):
            try:
                value = float(text)
            except ValueError:
                value = math.nan
            if not 0 <= value <= 1:
                raise CorpusError(f"{path}, line {line}: {axis} is {text!r}; a number from 0 to 1 is needed")
        rows.append((clip, *map(float, values)))
    return pd.DataFrame(rows, columns=["id", *AFFECT])


def read_groups(path: Path) -> dict[str, str]:
    """Clip id -> group (clips of one track share it); empty where there is no file."""
    return {clip: group for _, (clip, group) in _rows(path, ["Id", "Group"], "\t")} if path.is_file() else {}


def _rows(path: Path, header: list[str], separator: str):
    """Yield (line number, [id, fields…]) of a label file, with BOM, CRLF and blank lines accepted."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise CorpusError(f"{path}: no such label file; check that the data set was unpacked completely") from None
    except UnicodeDecodeError as error:
        raise CorpusError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8") from None
    except OSError as error:
        raise CorpusError(f"{path}: cannot be read ({error.strerror}); check the file and its permissions") from None
    name = {"\t": "a tab", ",": "a comma"}[separator]
    want = separator.join(header)
    found = [field.strip() for field in lines[0].split(separator)] if lines else []
    # The contest's affect header also occurs with the file name pattern as its first field.
    if [field.lower() for field in found[1:]] != [field.lower() for field in header[1:]]:
        shown = repr(lines[0][:80]) if lines else "an empty file"
        raise CorpusError(f"{path}, line 1: the header should read {want!r} ({name} between fields); found {shown}")
    seen: dict[str, int] = {}
    for number, text in enumerate(lines[1:], start=2):
        if not text.strip():
            continue
        fields = [field.strip() for field in text.split(separator)]
        if len(fields) != len(header):
            wanted = f"{len(header)} fields separated by {name}"
            raise CorpusError(f"{path}, line {number}: write {wanted}, as in the header; found {text[:80]!r}")
        match = _NAME.fullmatch(fields[0])
        if match is None:
            raise CorpusError(f"{path}, line {number}: {fields[0]!r} is no clip name: use letters, digits, _ and -")
        clip = match[1]
        if clip in seen:
            raise CorpusError(f"{path}, line {number}: clip {clip} stands on line {seen[clip]} too; remove one of them")
        seen[clip] = number
        yield number, [clip, *fields[1:]]


# --- arrays ---------------------------------------------------------------------------------------------------------


def load_array(path: Path) -> np.ndarray:
    """One clip: (140, T) float32, 128 mel rows in dB then 12 chroma rows.

    Reads `.npy` and `.npy.gz`, never pickles. Raises CorpusError when the file is truncated, no array, of another
    shape or type, or holds NaN or inf.
    """
    with _open(path) as stream:
        shape, fortran, dtype = _header(path, stream)
        wanted = shape[0] * shape[1] * dtype.itemsize
        data = _read(path, stream, wanted + 1)
    if len(data) != wanted:
        problem = "truncated" if len(data) < wanted else "longer than its header says"
        raise CorpusError(f"{path}: the array is {problem}; copy or extract the clip again")
    array = np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C").astype(np.float32)
    if not np.isfinite(array).all():
        raise CorpusError(f"{path}: holds NaN or infinite values; extract the clip again")
    return array


def array_shape(path: Path) -> tuple[int, int]:
    """(140, T) from the file's header alone. Raises CorpusError."""
    with _open(path) as stream:
        return _header(path, stream)[0]


def _open(path: Path):
    try:
        return gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb")
    except OSError as error:
        raise CorpusError(f"{path}: cannot be read ({error.strerror}); copy or extract the clip again") from None


def _read(path: Path, stream, size: int) -> bytes:
    try:
        return stream.read(size)
    except (OSError, EOFError, zlib.error) as error:
        raise CorpusError(f"{path}: cannot be read ({error}); copy or extract the clip again") from None


def _header(path: Path, stream) -> tuple[tuple[int, int], bool, np.dtype]:
    try:
        if np.lib.format.read_magic(stream) != (1, 0):  # later versions allow headers of gigabytes
            raise ValueError("format version 1.0 is needed, as np.save writes it")
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
    except Exception as error:  # NumPy's parser lets half a dozen kinds through on damaged bytes
        raise CorpusError(f"{path}: not a NumPy array file ({error}); copy or extract the clip again") from None
    if dtype.kind not in "fiu":
        raise CorpusError(f"{path}: holds {dtype} values, not numbers; extract the clip again")
    if len(shape) != 2 or shape[0] != N_FEATURES or not 0 < shape[1] <= MAX_FRAMES:
        want = f"({N_FEATURES}, T) with 0 < T <= {MAX_FRAMES}"
        raise CorpusError(f"{path}: the array has shape {shape}, not {want}; extract the clip again")
    return shape, fortran, dtype
