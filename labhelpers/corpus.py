"""A corpus: folders of (140, T) arrays and their label files, and which corpus to take.

A corpus holds `fma_genre_spectrograms`, `fma_genre_spectrograms_beat`, `multitask_dataset` and
`multitask_dataset_beat`, each with `train/` and `test/` arrays and their `*_labels.txt`.
data/README.md describes the layout.
"""

from __future__ import annotations

import csv
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
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd

from .audio import N_FEATURES, load_audio

AFFECT = ("valence", "energy", "danceability")
FOLDERS = {
    ("genre", False): "fma_genre_spectrograms",
    ("genre", True): "fma_genre_spectrograms_beat",
    ("affect", False): "multitask_dataset",
    ("affect", True): "multitask_dataset_beat",
}
MARKER = "fma_genre_spectrograms/train_labels.txt"
ANSWERS = "kept_aside/multitask_test_labels.txt"
PROJECT = Path(__file__).resolve().parents[1]

# The lab's merging of the 20 FMA genres into 10 classes; None drops the genre.
CLASS_MAPPING = json.loads(Path(__file__).with_name("class_mapping.json").read_text())


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
        return [part for part in self.root.parts if part not in ("data", "input")][-1]

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
        except Exception:
            form = '{"genre": "class"}; a class is text, or null'
            raise CorpusError(f"{path}: not JSON of the form {form}") from None
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
        for genre in table.get("genre", ()):
            if genre not in self.mapping:
                own = self.root / "class_mapping.json"
                what = f"genre {genre!r} is not in the class mapping"
                raise CorpusError(f"{file}: {what}; correct the line, or add the genre to {own}")
        table.insert(1, "path", table["id"].map(paths))
        absent = table.loc[table["path"].isna(), "id"].tolist()
        if absent:
            what = f"{len(absent)} of {len(table)} listed clips are not in {folder / split}"
            fix = f"the first is {absent[0]}. They are left out; restore the files, or unlist them"
            warnings.warn(f"{file}: {what}, {fix}", CorpusWarning, stacklevel=2)
        table = table.dropna(subset="path").reset_index(drop=True)
        if table.empty:
            raise CorpusError(f"{folder / split}: no clips; unpack the data set completely")
        # Clips of one track share a group; else each is its own.
        groups = _pairs(folder / "groups.txt", "group")
        table.insert(2, "group", [groups.get(clip) or clip for clip in table["id"]])
        return table

    def audio(self, clip: str) -> Path | None:
        """The audio file of a clip, where `audio.tsv` names one that is there. Notebook: 01."""
        path = self.root / _pairs(self.root / "audio.tsv", "path").get(clip, "")
        return path if path.is_file() else None

    def sound(self, clip: str) -> np.ndarray | None:
        """Samples (n,) at 22,050 Hz of what a clip's array was made of; None without its audio.

        Of a long file `scripts.extract` takes the middle, and notes how much. Raises AudioError.
        Notebooks: 01 to 03, 07.
        """
        path, note = self.audio(clip), self.root / "extract.json"
        if path is None:
            return None
        seconds = json.loads(note.read_text())["seconds"] if note.is_file() else None
        return load_audio(path, seconds)

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
        path = self.root / ANSWERS
        return read_labels(path, AFFECT) if path.is_file() else None

    def describe(self) -> pd.DataFrame:
        """A row for each folder and split: array files, label file or not, MB. Notebook: 00."""
        rows = []
        for name in FOLDERS.values():
            for split in ("train", "test"):
                folder = self.root / name
                sizes = [path.stat().st_size for path in array_paths(folder / split).values()]
                labelled = (folder / f"{split}_labels.txt").is_file()
                row = {"folder": name, "split": split, "files": len(sizes)}
                rows.append(row | {"labels": "yes" if labelled else "no", "MB": sum(sizes) / 1e6})
        return pd.DataFrame(rows)

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
        for (task, beat), split in product(FOLDERS, ("train", "test")):
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
    paths = {}
    for path in sorted(folder.glob("*.npy*"), reverse=True):  # reversed: .npy wins over .npy.gz
        # No hidden and no half-written files.
        if re.fullmatch(r"[^.].*\.npy(\.gz)?", path.name) and path.is_file():
            paths[clip_id(path.name)] = path
    return paths


def clip_id(name: str) -> str:
    """What stands before the first dot, in one Unicode form: file systems differ in theirs."""
    return unicodedata.normalize("NFC", name.strip()).split(".")[0]


def natural_order(text: str) -> list:
    """Sort key by which "9" comes before "10"."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", text)]


def _pairs(file, column):
    """Clip id -> value, of a file of two columns; empty where there is none."""
    if not file.is_file():
        return {}
    return read_labels(file, [column]).set_index("id")[column].to_dict()


def read_labels(file: Path, columns) -> pd.DataFrame:
    """Columns id and `columns` of a label file, by tab (text) or comma (affect). Notebook: 04.

    Raises CorpusError for a file that is absent, no table of so many columns, or has a clip twice
    or an affect value outside 0 to 1.
    """
    if not file.is_file():
        raise CorpusError(f"{file}: no such file; unpack the data set completely")
    numbers = tuple(columns) == AFFECT
    form = {"sep": "," if numbers else "\t", "quoting": csv.QUOTE_NONE, "index_col": False}
    form |= {"dtype": str, "keep_default_na": False, "encoding": "utf-8-sig"}
    try:
        table = pd.read_csv(file, **form)
    except (ValueError, OSError) as error:  # pandas' own errors, and those of the encoding
        reason = str(error).strip().splitlines()[-1]
        raise CorpusError(f"{file}: not a table in UTF-8 ({reason}); save it again") from None
    needed = f"{1 + len(columns)}, separated by {'commas' if numbers else 'tabs'}"
    if len(table.columns) != 1 + len(columns):
        raise CorpusError(f"{file}: {len(table.columns)} columns in the header; give it {needed}")
    table.columns = ["id", *columns]
    table["id"] = table["id"].map(clip_id)
    for name in columns:
        table[name] = table[name].str.strip()
    for clip in table["id"][table["id"].duplicated() | (table["id"] == "")]:
        raise CorpusError(f"{file}: clip {clip!r} is listed twice or has no name; correct the line")
    if numbers:
        values = table[list(columns)].apply(pd.to_numeric, errors="coerce")
        right = ((values >= 0) & (values <= 1)).all(axis=1)
        for row in table[~right].itertuples(index=False):
            line = ", ".join(row)[:80]
            raise CorpusError(f"{file}: {line!r}: affect values are numbers from 0 to 1")
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
    named = str(data or os.environ.get("LABHELPERS_DATA", ""))
    sample = work_folder() / "data" / "sample"
    if named not in ("", "sample"):
        root = locate(Path(named).expanduser())
        if root is None:
            raise CorpusError(f"{named}: no {MARKER} in it or below; name the folder of the data")
    elif not named and kaggle_input().is_dir():
        root = locate(kaggle_input())
        if root is None:
            fix = "Add Input > geoparslp/patreco3-multitask-affective-music, then run all cells"
            raise CorpusError(f'no {MARKER} in {kaggle_input()}. {fix}, or take DATA = "sample"')
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
    passed_by = ("train", "test", skip)
    level = [top]
    for _ in range(6):  # Kaggle's deepest mount: datasets/<owner>/<slug>/data/data
        below = []
        for folder in level:
            if (folder / MARKER).is_file():
                return folder
            if folder.is_dir():
                below += sorted(folder.iterdir())
        level = [path for path in below if path.name not in passed_by and path.name[0] != "."]
    return None
