"""A corpus: folders of (140, T) arrays and their label files, and which corpus to take.

A corpus holds `fma_genre_spectrograms`, `fma_genre_spectrograms_beat`, `multitask_dataset` and
`multitask_dataset_beat`, each with `train/` and `test/` arrays and their `*_labels.txt`.
data/README.md describes the layout.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import re
import subprocess
import sys
import unicodedata
import warnings
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from .audio import N_FEATURES

AFFECT = ("valence", "energy", "danceability")
FOLDERS = {
    ("genre", False): "fma_genre_spectrograms",
    ("genre", True): "fma_genre_spectrograms_beat",
    ("affect", False): "multitask_dataset",
    ("affect", True): "multitask_dataset_beat",
}
MARKER = "fma_genre_spectrograms/train_labels.txt"
PROJECT = Path(__file__).resolve().parents[1]

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
    """A corpus is wrong; the message names the file, what is wrong with it and what to do."""


class CorpusWarning(UserWarning):
    """A clip was left out or cut; the message names it and why."""


@dataclass(frozen=True)
class Corpus:
    """A corpus in the lab's layout. Notebook: 00.

    root : the folder that holds `fma_genre_spectrograms` and its siblings
    """

    root: Path

    @property
    def name(self) -> str:
        """Short name from the folder: `emotify`, `sample`, or the slug of a Kaggle data set."""
        names = [part for part in self.root.parts if part not in ("data", "input", os.sep)]
        return names[-1] if names else "corpus"

    @property
    def is_sample(self) -> bool:
        return (self.root / "kept_aside").is_dir()

    @cached_property
    def mapping(self) -> dict[str, str | None]:
        """Original genre -> class, None = dropped: the lab's, or the own `class_mapping.json`."""
        path = self.root / "class_mapping.json"
        if not path.is_file():
            return CLASS_MAPPING
        try:
            mapping = json.loads(path.read_text(encoding="utf-8-sig"))
            assert all(isinstance(name, str | None) for name in mapping.values())
        except (ValueError, AssertionError, AttributeError, RecursionError):
            raise CorpusError(
                f'{path}: not JSON of the form {{"genre": "class"}}; a class is text, or null'
            ) from None
        return mapping

    def folder(self, task: str, beat: bool = False) -> Path:
        return self.root / FOLDERS[task, beat]

    def has(self, task: str, split: str = "train", beat: bool = False) -> bool:
        """Whether the corpus holds any clip of that part."""
        return bool(array_paths(self.folder(task, beat) / split))

    def labels(self, task: str, split: str = "train", beat: bool = False) -> pd.DataFrame:
        """The clips of one part in the label file's order, checked. Notebooks: 02, 04.

        task : "genre" or "affect"; split : "train" or "test"; beat : the beat-synced arrays
        Returns columns id, path, group, and genre (original name) or valence, energy, danceability.
        The affect test split has no label file: its rows are the clips of the folder.
        Raises CorpusError. A listed clip without a file is left out with a CorpusWarning.
        """
        folder = self.folder(task, beat)
        paths = array_paths(folder / split)
        file = folder / f"{split}_labels.txt"
        if task == "affect" and split == "test" and not file.exists():
            table = pd.DataFrame({"id": sorted(paths, key=natural_order)})
        else:
            table = read_labels(file, ["genre"] if task == "genre" else AFFECT)
        if task == "genre":
            self._check_genres(file, table["genre"])
        table.insert(1, "path", table["id"].map(paths))
        absent = table.loc[table["path"].isna(), "id"].tolist()
        if absent:
            warnings.warn(
                f"{file}: {len(absent)} of {len(table)} listed clips are not in {folder / split} "
                f"and are left out (the first: {absent[0]}); restore the files, or unlist them",
                CorpusWarning,
                stacklevel=2,
            )
        table = table.dropna(subset="path").reset_index(drop=True)
        if table.empty:
            raise CorpusError(f"{folder / split}: no clips; unpack the data set completely")
        table.insert(2, "group", self._groups(folder, table["id"]))
        return table

    def _check_genres(self, file: Path, genres: pd.Series) -> None:
        unknown = sorted(set(genres) - set(self.mapping))
        if unknown:
            raise CorpusError(
                f"{file}: genre {unknown[0]!r} is not in the class mapping; correct the line, or "
                f"add the genre to {self.root / 'class_mapping.json'}"
            )

    def _groups(self, folder: Path, ids: pd.Series) -> list[str]:
        """The track of each clip: clips of one track share a group; else each is its own."""
        file = folder / "groups.txt"
        groups = {}
        if file.is_file():
            table = read_labels(file, ["group"])
            groups = dict(zip(table["id"], table["group"]))
        return [groups.get(clip) or clip for clip in ids]

    def audio(self, clip: str) -> Path | None:
        """The audio file of a clip, where `audio.tsv` names one that is there. Notebook: 01."""
        path = self._audio.get(clip)
        return path if path and path.is_file() else None

    @cached_property
    def _audio(self) -> dict[str, Path]:
        listing = self.root / "audio.tsv"
        if not listing.is_file():
            return {}
        table = read_labels(listing, ["path"])
        return {clip: self.root / path for clip, path in zip(table["id"], table["path"])}

    def truth(self) -> pd.DataFrame | None:
        """What the generator of the sample knows of each clip (tempo, beats, key, chords …).

        Indexed by id; data/README.md has the columns. None on real music. Notebooks: 02, 03.
        """
        path = self.root / "truth.tsv"
        if not path.is_file():
            return None
        return pd.read_csv(path, sep="\t", dtype={"Id": str}).set_index("Id")

    def answers(self) -> pd.DataFrame | None:
        """The affect labels of the test clips, which the sample keeps aside; None elsewhere.

        Notebook: 10.
        """
        path = self.root / "kept_aside" / "multitask_test_labels.txt"
        return read_labels(path, AFFECT) if path.is_file() else None

    def describe(self) -> pd.DataFrame:
        """A row for each folder and split: array files, label file or not, MB. Notebook: 00."""
        rows = []
        for (task, beat), name in FOLDERS.items():
            for split in ("train", "test"):
                paths = array_paths(self.folder(task, beat) / split).values()
                size = sum(path.stat().st_size for path in paths) / 1e6
                labelled = (self.root / name / f"{split}_labels.txt").is_file()
                rows.append((name, split, len(paths), "yes" if labelled else "no", size))
        return pd.DataFrame(rows, columns=["folder", "split", "files", "labels", "MB"])

    @cached_property
    def fingerprint(self) -> str:
        """Changes with a label file, and with the name, size or content of an array.

        Of an array the first, middle and last kilobytes are read: the end of a `.npy.gz` has a
        checksum of the whole. It does not depend on where the corpus lies.
        """
        digest = hashlib.sha256()
        for path in sorted(self.root.glob("*/*.txt")) + sorted(self.root.glob("*.*")):
            if path.is_file():
                digest.update(path.name.encode() + path.read_bytes())
        for task, beat in FOLDERS:
            for split in ("train", "test"):
                for clip, path in sorted(array_paths(self.folder(task, beat) / split).items()):
                    size = path.stat().st_size
                    digest.update(f"{task} {beat} {split} {clip} {size}".encode())
                    with open(path, "rb") as stream:
                        for start in (0, size // 2, max(0, size - 1024)):
                            stream.seek(start)
                            digest.update(stream.read(1024))
        return digest.hexdigest()[:16]


# --- files ----------------------------------------------------------------------------------------


def array_paths(folder: Path) -> dict[str, Path]:
    """Clip id -> array file. Names vary (`.full.fused`, `beatsync.fused`); the id comes first."""
    if not folder.is_dir():
        return {}
    paths = sorted(folder.glob("*.npy*"), reverse=True)  # reversed: .npy wins over .npy.gz
    names = re.compile(r"[^.].*\.npy(\.gz)?")  # no hidden and no half-written files
    return {clip_id(p.name): p for p in paths if names.fullmatch(p.name) and p.is_file()}


def clip_id(name: str) -> str:
    """What stands before the first dot, in one Unicode form: file systems differ in theirs."""
    return unicodedata.normalize("NFC", name.strip()).split(".")[0]


def natural_order(text: str) -> list:
    """Sort key by which "9" comes before "10"."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", text)]


def read_labels(file: Path, columns) -> pd.DataFrame:
    """Columns id and `columns` of a label file, by tab (text) or comma (affect). Notebook: 04.

    Raises CorpusError for a file that is absent, no table of so many columns, or has a clip twice
    or an affect value outside 0 to 1.
    """
    if not file.is_file():
        raise CorpusError(f"{file}: no such file; unpack the data set completely")
    numbers = tuple(columns) == AFFECT
    try:
        table = pd.read_csv(
            file,
            sep="," if numbers else "\t",
            dtype=str,
            encoding="utf-8-sig",
            keep_default_na=False,
            quoting=3,
            index_col=False,
        )
    except (ValueError, OSError) as error:  # pandas' own errors, and those of the encoding
        reason = str(error).strip().splitlines()[-1]
        raise CorpusError(f"{file}: not a table in UTF-8 ({reason}); save it again") from None
    if len(table.columns) != 1 + len(columns):
        kind = "commas" if numbers else "tabs"
        raise CorpusError(
            f"{file}: {len(table.columns)} columns in the header, {1 + len(columns)} are needed, "
            f"separated by {kind}"
        )
    table.columns = ["id", *columns]
    table["id"] = table["id"].map(clip_id)
    for name in columns:
        table[name] = table[name].str.strip()
    bad = table.index[table["id"].duplicated() | (table["id"] == "")]
    if len(bad):
        clip = table["id"][bad[0]]
        raise CorpusError(f"{file}: clip {clip!r} is listed twice or has no name; correct the line")
    if numbers:
        values = table[list(columns)].apply(pd.to_numeric, errors="coerce")
        wrong = table.index[~values.apply(lambda column: column.between(0, 1)).all(axis=1)]
        if len(wrong):
            line = ", ".join(table.loc[wrong[0]])
            raise CorpusError(f"{file}: {line[:80]!r}: affect values are numbers from 0 to 1")
        table[list(columns)] = values
    return table


def load_array(path: Path) -> np.ndarray:
    """One clip: (140, T) float32, 128 mel rows in dB, then 12 chroma rows. Notebook: 01.

    Reads `.npy` and `.npy.gz`, never pickles. Raises CorpusError.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as stream:
            array = np.load(stream, allow_pickle=False)
        if array.ndim != 2 or len(array) != N_FEATURES or array.shape[1] == 0:
            raise ValueError(f"its shape is {array.shape}, not (140, T)")
        if array.dtype.kind not in "fiu":
            raise ValueError(f"it holds {array.dtype}, not numbers")
        with np.errstate(over="ignore"):  # what is beyond float32 becomes infinite
            array = array.astype(np.float32)
        if not np.isfinite(array).all():
            raise ValueError("it holds NaN or infinite values")
        return array
    except Exception as error:  # NumPy and zlib raise half a dozen kinds for damaged bytes
        reason = str(error) or type(error).__name__
        raise CorpusError(f"{path}: not usable ({reason}); copy or extract it again") from None


# --- which corpus ---------------------------------------------------------------------------------


def kaggle_input() -> Path:
    """Where Kaggle mounts data; tests name another folder."""
    return Path(os.environ.get("LABHELPERS_KAGGLE_INPUT", "/kaggle/input"))


def work_folder() -> Path:
    """Where corpora and reports go: the checkout; on Kaggle, where that is read-only, the cwd."""
    checkout = (PROJECT / "pyproject.toml").is_file() and os.access(PROJECT, os.W_OK)
    return PROJECT if checkout else Path.cwd()


def find_corpus(data: str | Path | None = None) -> Corpus:
    """The corpus to work on; prints its name. Notebook: 00.

    data : a corpus or a folder above one; "sample"; None takes $LABHELPERS_DATA, else what is
        attached on Kaggle, else a corpus in data/, else the sample
    The sample is built on first use, in a process of its own. Raises CorpusError where the named
    folder holds no corpus, or none is attached on Kaggle.
    """
    named = data or os.environ.get("LABHELPERS_DATA")
    sample = work_folder() / "data" / "sample"
    if named and str(named) != "sample":
        root = locate(Path(str(named)).expanduser())
        if root is None:
            raise CorpusError(f"{named}: no {MARKER} in it or below; name the folder of the data")
    elif not named and kaggle_input().is_dir():
        root = locate(kaggle_input())
        if root is None:
            raise CorpusError(
                f"no {MARKER} in {kaggle_input()}. Add Input > geoparslp/"
                "patreco3-multitask-affective-music, then run all cells again (an input that stays "
                'empty: remove it and add it again). DATA = "sample" runs on synthesised music'
            )
    else:
        root = None if named else locate(work_folder() / "data", skip="sample")
        root = root or locate(sample) or build_sample(sample)
    corpus = Corpus(root.resolve())
    print(f"Corpus: {corpus.name}")
    return corpus


def build_sample(folder: Path) -> Path:
    print("Building the sample of synthesised music, once: a few minutes …", flush=True)
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    command = [sys.executable, "-m", "labhelpers.sample", str(folder)]
    if subprocess.run(command, env=environment).returncode or locate(folder) is None:
        raise CorpusError(f"{folder}: the sample could not be built; run: {' '.join(command)}")
    return folder


def locate(top: Path, skip: str = "") -> Path | None:
    """The first corpus at or below `top`, breadth first and by name, or None. Links are followed.

    skip : the name of folders to pass by
    """
    level, visited = [top], set()
    for _ in range(6):  # Kaggle's deepest mount: datasets/<owner>/<slug>/data/data
        children = []
        for folder in level:
            if (folder / MARKER).is_file():
                return folder
            if folder.is_dir() and folder.resolve() not in visited:
                visited.add(folder.resolve())
                children += sorted(path for path in folder.iterdir() if _may_hold(path, skip))
        level = children
    return None


def _may_hold(path: Path, skip: str) -> bool:
    return path.name not in ("train", "test", skip) and path.name[0] != "." and path.is_dir()
