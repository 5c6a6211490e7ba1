"""What the series needs at the size of the lab's data: memory and loading time of each notebook.

    python -m tools.real_size FOLDER [--only 05,07]

FOLDER takes a corpus of noise with the real data's counts, names and label-file quirks, float64 as
on Kaggle (3069 + 765 genre clips, of which 2305 + 575 remain after merging, and 1122 + 375 affect
clips), and the caches: 8 GB and 3 GB. A corpus that lies there already is taken as it is. The
notebooks run in order through papermill with one epoch, one seed and two folds, so what they score
means nothing. Each starts with an empty cache, as on Kaggle: loading reads every file.

The table: peak resident memory of the largest of the notebook's processes (pages of mapped cache
files count, though the system may drop them), the seconds of the slowest cell that loads arrays,
and of the whole notebook. It ends with an error when a notebook fails, needs 13 GB or more, or
loads for more than a minute. FOLDER may be deleted afterwards.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nbformat
import numpy as np

from labhelpers.corpora.layout import AFFECT, MARKER
from labhelpers.series.notebooks import choose, defaults, read_series

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "tests"))
from helpers_corpus import noise, save, write_lines  # noqa: E402

NOTEBOOKS = ROOT / "notebooks"
CHEAP = {"EPOCHS": 1, "SEEDS": 1, "FREEZE_SEEDS": 1, "FOLDS": 2, "DIGIT_EPOCHS": 1}
MEMORY, LOADING = 13, 60  # GB, seconds: what a notebook may take
# Clips of each genre before merging, as the lab's label files have them.
EQUAL = (
    "Rock",
    "Psych-Rock",
    "Indie-Rock",
    "Psych-Folk",
    "Folk",
    "Punk",
    "Post-Punk",
    "Pop",
    "Electronic",
    "Hip-Hop",
    "Classical",
    "Blues",
    "Chiptune",
    "Jazz",
    "International",
    "Old-Time",
)
FEWER = {"Metal": (153, 38), "Trip-Hop": (137, 34), "Soundtrack": (124, 30), "Post-Rock": (95, 23)}
COUNTS = {
    "train": dict.fromkeys(EQUAL, 160) | {genre: train for genre, (train, _) in FEWER.items()},
    "test": dict.fromkeys(EQUAL, 40) | {genre: test for genre, (_, test) in FEWER.items()},
}
AFFECT_COUNTS = {"train": 1122, "test": 375}


def write_corpus(root: Path) -> None:
    """A genre is a loud band, as in the unit tests' corpora: figures need something to show."""
    rng = np.random.default_rng(0)
    genres, affect = {}, {}
    for split, counts in COUNTS.items():
        genres[split] = rng.permutation(np.repeat(list(counts), list(counts.values())))
        affect[split] = rng.uniform(0, 1, (AFFECT_COUNTS[split], 3))
    for part, lengths in (("", (1291, 1294)), ("_beat", (29, 130))):
        _write_genre(root / f"fma_genre_spectrograms{part}", genres, rng, lengths)
    for part, lengths in (("", (1291, 1294)), ("_beat", (14, 105))):
        _write_affect(root / f"multitask_dataset{part}", affect, rng, lengths)


def _write_genre(folder: Path, genres: dict, rng, lengths) -> None:
    first = 2
    for split, names in genres.items():
        suffix = "fused.full"
        if folder.name.endswith("_beat"):
            suffix = "beatsync.fused"
        if split == "test":
            suffix = "full.fused"
        lines = ["Id\tGenre"]
        for clip, genre in enumerate(names, first):
            place = EQUAL.index(genre) if genre in EQUAL else len(EQUAL)
            array = noise(rng, rng.integers(*lengths), 5 * place, -20, place % 12, 0.9)
            save(folder / split / f"{clip}.fused.full.npy", array)
            lines.append(f"{clip}.{suffix}.npy.gz\t{genre}")
        write_lines(folder / f"{split}_labels.txt", lines)
        first += len(names)


def _write_affect(folder: Path, affect: dict, rng, lengths) -> None:
    first = 1
    for split, values in affect.items():
        for clip, (valence, energy, dance) in enumerate(values, first):
            level = 50 * energy - 70
            array = noise(rng, rng.integers(*lengths), int(100 * valence), level, 3, dance)
            save(folder / split / f"{clip}.fused.full.npy", array)
        first += len(values)
    lines = [",".join(["Id", *AFFECT])]
    for clip, row in enumerate(affect["train"], 1):
        lines.append(",".join([str(clip), *(f"{value:.3f}" for value in row)]))
    write_lines(folder / "train_labels.txt", lines)


def run(path: Path, folder: Path) -> tuple[float, float, float, bool]:
    """Peak memory in GB, longest loading cell and whole run in seconds, whether it ran through."""
    target = folder / "executed" / path.name
    target.parent.mkdir(exist_ok=True)
    given = {"DATA": folder / "corpus", "OUT": folder / "out", **CHEAP}
    command = [sys.executable, "-m", "papermill", path, target, "-k", "python3"]
    command += ["--cwd", path.parent, "--no-progress-bar"]
    for name in defaults(path):
        if name in given:
            command += ["-p", name, given[name]]
    with (
        tempfile.TemporaryDirectory(dir=folder) as cache,
        open(target.with_suffix(".log"), "w") as log,
    ):
        began = time.perf_counter()
        own = os.environ | {"LABHELPERS_CACHE": cache}
        process = subprocess.Popen(list(map(str, command)), env=own, stdout=log, stderr=log)
        _, status, used = os.wait4(process.pid, 0)  # of the kernel too, which papermill waited for
        seconds = time.perf_counter() - began
    loading = 0.0
    for cell in nbformat.read(target, 4).cells:
        if cell.cell_type == "code" and "SpectrogramDataset(" in cell.source:
            loading = max(loading, cell.metadata.papermill.duration or 0)
    return used.ru_maxrss * 1024 / 1e9, loading, seconds, status == 0


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", help="numbers, with commas; those before must have run")
    args = parser.parse_args()
    folder = args.folder.resolve()
    marker = folder / "corpus" / MARKER
    if not marker.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        if shutil.disk_usage(folder).free < 13e9:
            sys.exit(f"{folder}: 13 GB of free room are needed; free some, or name another folder")
        write_corpus(folder / "corpus")
    series, failed = read_series(NOTEBOOKS), []
    print(f"{'notebook':28s} {'peak GB':>8s} {'loading s':>10s} {'whole s':>8s}", flush=True)
    for name in choose(series, args.only):
        peak, loading, seconds, done = run(series[name], folder)
        problems = []
        if not done:
            problems.append(f"failed, see {folder / 'executed' / name}.log")
        if peak >= MEMORY:
            problems.append(f"needs {MEMORY} GB or more")
        if loading > LOADING:
            problems.append(f"loads for more than {LOADING} s")
        failed += problems
        told = "; ".join(problems)
        print(f"{name:28s} {peak:8.1f} {loading:10.1f} {seconds:8.0f}  {told}", flush=True)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
