"""What the series needs at the size of the lab's data: memory and loading time of each notebook. Run by hand:

    python tests/real_size.py FOLDER [--only 05,07]

FOLDER takes a corpus of noise with the real data's counts, names and label-file quirks, float64 as on Kaggle
(3069 + 765 genre clips, of which 2305 + 575 remain after merging, and 1122 + 375 affect clips), and the caches: 8 GB
and 3 GB. A corpus that lies there already is taken as it is. The notebooks run in order through papermill with one
epoch, one seed and two folds, so what they score means nothing. Each starts with an empty cache, as on Kaggle: loading
reads every file.

The table: peak resident memory of the largest of the notebook's processes (pages of mapped cache files count, though
the system may drop them), the seconds of the slowest cell that loads arrays, and of the whole notebook. It ends with an
error when a notebook fails, needs 13 GB or more, or loads for more than a minute. FOLDER may be deleted afterwards.
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
from helpers_corpus import noise, save, write_lines

from labhelpers.corpora.layout import AFFECT, MARKER
from labhelpers.series.run import choose, defaults, read_series

NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"
CHEAP = {"EPOCHS": 1, "SEEDS": 1, "FREEZE_SEEDS": 1, "FOLDS": 2, "DIGIT_EPOCHS": 1}
MEMORY, LOADING = 13, 60  # GB, seconds: what a notebook may take
# Clips of each genre before merging, as the lab's label files have them.
EQUAL = ("Rock", "Psych-Rock", "Indie-Rock", "Psych-Folk", "Folk", "Punk", "Post-Punk", "Pop", "Electronic", "Hip-Hop",
         "Classical", "Blues", "Chiptune", "Jazz", "International", "Old-Time")  # fmt: skip
COUNTS = {
    "train": dict.fromkeys(EQUAL, 160) | {"Metal": 153, "Trip-Hop": 137, "Soundtrack": 124, "Post-Rock": 95},
    "test": dict.fromkeys(EQUAL, 40) | {"Metal": 38, "Trip-Hop": 34, "Soundtrack": 30, "Post-Rock": 23},
}
AFFECT_COUNTS = {"train": 1122, "test": 375}


def write_corpus(root: Path) -> None:
    """A genre is a loud band, as in the unit tests' corpora: of pure noise some figures would have nothing to show."""
    rng = np.random.default_rng(0)
    genres = {split: rng.permutation(np.repeat(list(n), list(n.values()))) for split, n in COUNTS.items()}
    affect = {split: rng.uniform(0, 1, (count, 3)) for split, count in AFFECT_COUNTS.items()}
    for part in ("", "_beat"):
        folder, first = root / f"fma_genre_spectrograms{part}", 2
        for split, names in genres.items():
            suffix = "full.fused" if split == "test" else "beatsync.fused" if part else "fused.full"
            for clip, genre in enumerate(names, first):
                place = EQUAL.index(genre) if genre in EQUAL else len(EQUAL)
                frames = rng.integers(*((29, 130) if part else (1291, 1294)))
                save(folder / split / f"{clip}.fused.full.npy", noise(rng, frames, 5 * place, -20, place % 12, 0.9))
            lines = [f"{clip}.{suffix}.npy.gz\t{genre}" for clip, genre in enumerate(names, first)]
            write_lines(folder / f"{split}_labels.txt", ["Id\tGenre", *lines])
            first += len(names)
        folder, first = root / f"multitask_dataset{part}", 1
        for split, values in affect.items():
            for clip, (valence, energy, dance) in enumerate(values, first):
                frames = rng.integers(*((14, 105) if part else (1291, 1294)))
                array = noise(rng, frames, int(100 * valence), 50 * energy - 70, 3, dance)
                save(folder / split / f"{clip}.fused.full.npy", array)
            first += len(values)
        lines = [f"{clip},{','.join(f'{value:.3f}' for value in row)}" for clip, row in enumerate(affect["train"], 1)]
        write_lines(folder / "train_labels.txt", [f"Id,{','.join(AFFECT)}", *lines])


def run(path: Path, folder: Path) -> tuple[float, float, float, bool]:
    """Peak memory in GB, longest loading cell and whole run in seconds, and whether it ran through."""
    target = folder / "executed" / path.name
    target.parent.mkdir(exist_ok=True)
    given = {"DATA": folder / "corpus", "OUT": folder / "out", **CHEAP}
    parameters = [text for key in defaults(path) if key in given for text in ("-p", key, str(given[key]))]
    with tempfile.TemporaryDirectory(dir=folder) as cache, open(target.with_suffix(".log"), "w") as log:
        command = [sys.executable, "-m", "papermill", path, target, "-k", "python3", "--cwd", path.parent, *parameters]
        began = time.perf_counter()
        own = os.environ | {"LABHELPERS_CACHE": cache}
        process = subprocess.Popen([*map(str, command), "--no-progress-bar"], env=own, stdout=log, stderr=log)
        _, status, used = os.wait4(process.pid, 0)  # of the kernel too, which papermill has waited for
        seconds = time.perf_counter() - began
    cells = [cell for cell in nbformat.read(target, 4).cells if "SpectrogramDataset(" in cell.source]
    loading = max((cell.metadata.papermill.duration or 0 for cell in cells if cell.cell_type == "code"), default=0.0)
    return used.ru_maxrss * 1024 / 1e9, loading, seconds, status == 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", help="numbers of the notebooks to run, with commas; those before must have run")
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
        problems = [text for text, bad in {
            f"failed, see {folder / 'executed' / name}.log": not done,
            f"needs {MEMORY} GB or more": peak >= MEMORY,
            f"loads for more than {LOADING} s": loading > LOADING,
        }.items() if bad]  # fmt: skip
        failed += problems
        print(f"{name:28s} {peak:8.1f} {loading:10.1f} {seconds:8.0f}  {'; '.join(problems)}", flush=True)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
