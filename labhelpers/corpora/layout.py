"""What a corpus is: its folders, label files and arrays, and the sentence each kind of fault gets.

A corpus holds `fma_genre_spectrograms`, `fma_genre_spectrograms_beat`, `multitask_dataset` and
`multitask_dataset_beat`, each with `train/` and `test/` arrays and their `*_labels.txt`.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import re
import threading
import warnings
import zlib
from contextlib import suppress
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
    "Rock": "Rock",
    "Psych-Rock": "Rock",
    "Post-Rock": "Rock",
    "Indie-Rock": None,
    "Folk": "Folk",
    "Psych-Folk": "Folk",
    "Metal": "Metal",
    "Punk": "Metal",
    "Post-Punk": None,
    "Electronic": "Electronic",
    "Chiptune": "Electronic",
    "Trip-Hop": "Trip-Hop",
    "Hip-Hop": "Hip-Hop",
    "Pop": "Pop",
    "Classical": "Classical",
    "Blues": "Blues",
    "Jazz": "Jazz",
    "Soundtrack": None,
    "International": None,
    "Old-Time": None,
}


class CorpusError(ValueError):
    """A corpus is wrong; the message names the file, what is wrong with it and what to do.

    Notebook: 04.
    """


class CorpusWarning(UserWarning):
    """A clip was left out; the message names it and why. Notebook: 04."""


@dataclass(frozen=True)
class Corpus:
    """A corpus in the lab's layout. Notebook: 00.

    root : the folder that holds `fma_genre_spectrograms` and its siblings
    how : one sentence on how it was found
    """

    root: Path
    how: str = ""

    @property
    def name(self) -> str:
        """Short name, from the folder: `emotify`, `sample`, or a Kaggle slug."""
        telling = [part for part in self.root.parts if part not in ("data", "input", os.sep)]
        return telling[-1] if telling else "corpus"

    @property
    def is_sample(self) -> bool:
        return (self.root / "kept_aside").is_dir()

    @cached_property
    def mapping(self) -> dict[str, str | None]:
        """Original genre -> class, None = dropped: the lab's, or own `class_mapping.json`."""
        own = self.root / "class_mapping.json"
        if not own.is_file():
            return CLASS_MAPPING
        try:
            mapping = json.loads(own.read_text(encoding="utf-8-sig"))
        except ValueError as error:
            raise CorpusError(
                f"{own}: not valid JSON ({error}); write genre: class pairs, null to drop"
            ) from error
        if not isinstance(mapping, dict) or any(
            not isinstance(name, str | None) for name in mapping.values()
        ):
            raise CorpusError(
                f"{own}: not an object of genre: class pairs; a class is a string, or null to drop"
            )
        return mapping

    def folder(self, task: str, beat: bool = False) -> Path:
        return self.root / FOLDERS[task, beat]

    def has(self, task: str, split: str = "train", beat: bool = False) -> bool:
        """Whether the corpus holds that part at all."""
        return (self.folder(task, beat) / split).is_dir()

    def parts(self) -> list[tuple[str, str, bool]]:
        """(task, split, beat) of all that the corpus holds."""
        every = [(task, split, beat) for task, beat in FOLDERS for split in ("train", "test")]
        return [part for part in every if self.has(*part)]

    def labels(self, task: str, split: str = "train", beat: bool = False) -> pd.DataFrame:
        """The clips of one part, in the label file's order, checked. Notebooks: 02, 04.

        task : "genre" or "affect"; split : "train" or "test"; beat : the beat-synced arrays
        Returns columns id, path, group, and genre (original name) or valence, energy, danceability.
        The affect test split has no label file: its rows are the clips of the folder, by id.
        Raises CorpusError. A listed clip that is absent is left out with a CorpusWarning.
        """
        folder, files = self.folder(task, beat), array_files(self.folder(task, beat) / split)
        label_file = folder / f"{split}_labels.txt"
        if task == "affect" and split == "test" and not label_file.is_file():
            table = pd.DataFrame({"id": sorted(files, key=natural_key)})
        elif task == "genre":
            table = read_genre_labels(label_file, self.mapping)
        else:
            table = read_affect_labels(label_file)
        there = table["id"].isin(files.keys())
        if not there.all():
            absent = table["id"][~there].tolist()
            shown = ", ".join(absent[:5])
            if len(absent) > 5:
                shown += ", …"
            warnings.warn(
                f"{label_file}: {len(absent)} of {len(table)} listed clips are absent from "
                f"{folder / split} and left out ({shown}); restore the files or unlist them",
                CorpusWarning,
                stacklevel=2,
            )
            table = table[there].reset_index(drop=True)
        if table.empty:
            raise CorpusError(f"{folder / split}: no clips; {UNPACKED}")
        table.insert(1, "path", table["id"].map(files))
        groups = read_groups(folder / "groups.txt")
        table.insert(2, "group", [groups.get(clip, clip) for clip in table["id"]])
        return table

    def audio(self, clip: str) -> Path | None:
        """The clip's audio file, if the corpus has it (`audio.tsv`), else None. Notebook: 01."""
        path = self._audio.get(clip)
        return path if path and path.is_file() else None

    @cached_property
    def _audio(self) -> dict[str, Path]:
        listing = self.root / "audio.tsv"
        if not listing.is_file():
            return {}
        try:
            table = pd.read_csv(listing, sep="\t", dtype=str, keep_default_na=False)
            return {clip: self.root / path for clip, path in zip(table["Id"], table["Path"])}
        except (ValueError, KeyError) as error:
            raise CorpusError(
                f"{listing}: not a table with columns Id and Path, tab-separated ({error})"
            ) from None

    def answers(self) -> pd.DataFrame | None:
        """The affect labels of the test clips that the sample keeps aside; None on real corpora.

        Notebook: 10.
        """
        path = self.root / "kept_aside" / "multitask_test_labels.txt"
        return read_affect_labels(path) if path.is_file() else None

    def describe(self) -> pd.DataFrame:
        """One row a folder and split: array files, labelled clips, size in MB. Notebook: 00."""
        rows = []
        for task, split, beat in self.parts():
            folder, sizes = self.folder(task, beat), _sizes(self.folder(task, beat) / split)
            labelled = "yes" if (folder / f"{split}_labels.txt").is_file() else "no"
            rows.append((folder.name, split, len(sizes), labelled, sum(sizes.values()) / 1e6))
        return pd.DataFrame(rows, columns=["folder", "split", "files", "labels", "MB"])

    @cached_property
    def fingerprint(self) -> str:
        """Changes when a label file or the name or size of an array changes."""
        digest = hashlib.sha256()
        texts = ("class_mapping.json", "audio.tsv", "*/*_labels.txt", "*/groups.txt")
        for path in sorted(found for pattern in texts for found in self.root.glob(pattern)):
            digest.update(path.relative_to(self.root).as_posix().encode() + path.read_bytes())
        for task, split, beat in self.parts():
            sizes = _sizes(self.folder(task, beat) / split)
            digest.update(repr(sorted(sizes.items())).encode())
        return digest.hexdigest()[:16]

    def check(self):
        """Read every label file and array; yields (path, what is wrong with it or None) of each."""
        for task, split, beat in self.parts():
            try:
                paths = self.labels(task, split, beat)["path"]
            except CorpusError as error:
                yield self.folder(task, beat) / f"{split}_labels.txt", error
                continue
            for path in paths:
                try:
                    yield path, _odd_values(path, load_array(path))
                except CorpusError as error:
                    yield path, error


def array_files(folder: Path) -> dict[str, Path]:
    """Clip id -> array file. Names vary (`.full.fused`, `beatsync.fused`); the id leads all.

    Raises CorpusError where there is no such folder. Notebook: 10.
    """
    if not folder.is_dir():
        raise CorpusError(f"{folder}: no such folder; {UNPACKED}")
    found = {}
    for name in sorted(os.listdir(folder), reverse=True):  # reversed: .npy wins over .npy.gz
        match = _NAME.fullmatch(name)  # leaves aside half-written and hidden files
        if match and match[2]:
            found[match[1]] = folder / name
    return found


def _sizes(folder: Path) -> dict[str, int]:
    """Bytes of each file of a folder; 0 for a link that leads nowhere."""
    sizes = {}
    with os.scandir(folder) as entries:
        for entry in entries:
            sizes[entry.name] = 0
            with suppress(OSError):
                sizes[entry.name] = entry.stat().st_size
    return sizes


def _odd_values(path: Path, array: np.ndarray) -> CorpusError | None:
    """What is said of values that cannot be an extractor's."""
    mel, chroma = array[:N_MELS], array[N_MELS:]
    if mel.max() > 1e-3 or mel.min() < 2 * SILENCE_DB or mel.min() > -1:
        return CorpusError(
            f"{path}: rows 0-127 reach from {mel.min():.4g} to {mel.max():.4g}; mel rows are dB "
            f"below the clip's maximum ({SILENCE_DB:g} to 0); extract the clip again"
        )
    if chroma.min() < -1e-3 or chroma.max() > 1 + 1e-3:
        return CorpusError(
            f"{path}: rows 128-139 reach from {chroma.min():.4g} to {chroma.max():.4g}; "
            "chroma is from 0 to 1; extract the clip again"
        )
    return None


# --- label files ----------------------------------------------------------------------------------

UNPACKED = "check that the data set was unpacked completely"
# An id, which is what stands before the first dot, and what may follow it. Any script will do, but
# nothing that a path or a label file would stumble over.
_ID = r"[^\s./\\,:*?\"<>|\x00-\x1f]+"
_NAME = re.compile(rf"({_ID})((\.(fused|full|beatsync))*\.npy(\.gz)?)?")


def natural_key(text: str) -> list:
    """Sort key by which "9" comes before "10". Notebook: 04."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", text)]


def read_genre_labels(path: Path, mapping: dict[str, str | None] = CLASS_MAPPING) -> pd.DataFrame:
    """Columns id and genre (original name) from a tab-separated `Id Genre` file. Notebook: 04.

    Raises CorpusError.
    """
    rows = []
    for line, (clip, genre) in _rows(path, ["Id", "Genre"], "\t"):
        if genre not in mapping:
            known = ", ".join(sorted(mapping))
            raise CorpusError(
                f"{path}, line {line}: no genre {genre!r} in the class mapping; known: {known}"
            )
        rows.append((clip, genre))
    return pd.DataFrame(rows, columns=["id", "genre"])


def read_affect_labels(path: Path) -> pd.DataFrame:
    """Columns id, valence, energy, danceability (0 to 1) from a comma-separated file. Notebook: 04.

    Raises CorpusError.
    """
    rows = []
    for line, (clip, *texts) in _rows(path, ["Id", *AFFECT], ","):
        values = [_share(text) for text in texts]
        if None in values:
            axis = values.index(None)
            raise CorpusError(
                f"{path}, line {line}: {AFFECT[axis]} is {texts[axis]!r}; "
                "a number from 0 to 1 is needed"
            )
        rows.append((clip, *values))
    return pd.DataFrame(rows, columns=["id", *AFFECT])


def _share(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    if 0 <= value <= 1:
        return value
    return None


def read_groups(path: Path) -> dict[str, str]:
    """Clip id -> group (clips of one track share it); empty where there is no file.

    Notebook: 04.
    """
    if not path.is_file():
        return {}
    return {clip: group for _, (clip, group) in _rows(path, ["Id", "Group"], "\t")}


def _rows(path: Path, header: list[str], separator: str):
    """Yield (line number, [id, fields…]) of a label file; BOM, CRLF and blank lines are fine."""
    lines = _text(path).splitlines()
    name = {"\t": "a tab", ",": "a comma"}[separator]
    found = _fields(lines[0], separator) if lines else []
    # The contest's affect header also occurs with the file name pattern as its first field.
    if [field.lower() for field in found[1:]] != [field.lower() for field in header[1:]]:
        shown = repr(lines[0][:80]) if lines else "an empty file"
        raise CorpusError(
            f"{path}, line 1: the header should read {separator.join(header)!r} "
            f"({name} between fields); found {shown}"
        )
    seen: dict[str, int] = {}
    for number, text in enumerate(lines[1:], start=2):
        if not text.strip():
            continue
        where, fields = f"{path}, line {number}", _fields(text, separator)
        if len(fields) != len(header):
            raise CorpusError(
                f"{where}: write {len(header)} fields separated by {name}, as in the header; "
                f"found {text[:80]!r}"
            )
        match = _NAME.fullmatch(fields[0])
        if match is None:
            raise CorpusError(
                f"{where}: {fields[0]!r} is no clip name: use letters, digits, _ and -"
            )
        clip = match[1]
        if clip in seen:
            raise CorpusError(
                f"{where}: clip {clip} stands on line {seen[clip]} too; remove one of them"
            )
        seen[clip] = number
        yield number, [clip, *fields[1:]]


def _fields(line: str, separator: str) -> list[str]:
    return [field.strip() for field in line.split(separator)]


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise CorpusError(f"{path}: no such label file; {UNPACKED}") from None
    except UnicodeDecodeError as error:
        raise CorpusError(
            f"{path}: not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8"
        ) from None
    except OSError as error:
        raise CorpusError(
            f"{path}: cannot be read ({error.strerror}); check the file and its permissions"
        ) from None


# --- arrays ---------------------------------------------------------------------------------------

AGAIN = "copy or extract the clip again"


def load_array(path: Path) -> np.ndarray:
    """One clip: (140, T) float32, 128 mel rows in dB then 12 chroma rows. Notebooks: 00 to 04.

    Reads `.npy` and `.npy.gz`, never pickles. Raises CorpusError when the file is truncated, no
    array, of another shape or type, or holds NaN or inf.
    """
    with _open(path) as stream:
        shape, fortran, dtype = _header(path, stream)
        wanted = shape[0] * shape[1] * dtype.itemsize
        data = _read(path, stream, wanted + 1)
    if len(data) < wanted:
        raise CorpusError(f"{path}: the array is truncated; {AGAIN}")
    if len(data) > wanted:
        raise CorpusError(f"{path}: the array is longer than its header says; {AGAIN}")
    array = np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")
    array = array.astype(np.float32)
    if not np.isfinite(array).all():
        raise CorpusError(f"{path}: holds NaN or infinite values; extract the clip again")
    return array


def array_shape(path: Path) -> tuple[int, int]:
    """(140, T) from the file's header alone. Raises CorpusError. Notebook: 02."""
    with _open(path) as stream:
        return _header(path, stream)[0]


def _open(path: Path):
    try:
        if path.suffix == ".gz":
            return gzip.open(path, "rb")
        return open(path, "rb")
    except OSError as error:
        raise CorpusError(f"{path}: cannot be read ({error.strerror}); {AGAIN}") from None


def _read(path: Path, stream, size: int) -> bytes:
    try:
        return stream.read(size)
    except (OSError, EOFError, zlib.error) as error:
        raise CorpusError(f"{path}: cannot be read ({error}); {AGAIN}") from None


# NumPy reads a header with `ast`, and Python 3.11 counts the depth of all threads' trees together:
# two at once can end in a SystemError (github.com/python/cpython/issues/106905).
_one_header = threading.Lock()


def _header(path: Path, stream) -> tuple[tuple[int, int], bool, np.dtype]:
    try:
        if np.lib.format.read_magic(stream) != (1, 0):  # later versions allow headers of gigabytes
            raise ValueError("format version 1.0 is needed, as np.save writes it")
        with _one_header:
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
    except Exception as error:  # NumPy's parser lets half a dozen kinds through on damaged bytes
        raise CorpusError(f"{path}: not a NumPy array file ({error}); {AGAIN}") from None
    if dtype.kind not in "fiu":
        raise CorpusError(f"{path}: holds {dtype} values, not numbers; extract the clip again")
    if len(shape) != 2 or shape[0] != N_FEATURES or not 0 < shape[1] <= MAX_FRAMES:
        want = f"({N_FEATURES}, T) with 0 < T <= {MAX_FRAMES}"
        raise CorpusError(
            f"{path}: the array has shape {shape}, not {want}; extract the clip again"
        )
    return shape, fortran, dtype
