"""How a corpus is written: arrays, in several processes or on a cluster, then the label files."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pandas as pd
from joblib import Parallel, delayed, parallel_config
from joblib.externals.loky.process_executor import TerminatedWorkerError
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from ..audio import SAMPLE_RATE, extract
from ..files import atomic, write_text
from .layout import AFFECT, FOLDERS, CorpusError

SPLITS = ("test", "train")
CLIP_COLUMNS = ["source", "genre", *AFFECT, "group", "split"]  # of a table of clips, beside the id
TELLING = {"genre": "genre", "affect": "valence"}  # task -> the column that says whether it is one
ANSWERS = FOLDERS["affect", False] + "/test_labels.txt"


def array_name(clip: str) -> str:
    """The file name of a clip's arrays. Notebook: 00."""
    return f"{clip}.fused.full.npy"


def clip_folders(row) -> list[tuple[str, bool]]:
    """Folders that hold a clip's arrays (name, whether beat-synced), for a row of a clip table.

    Notebook: 00.
    """
    found = []
    for (task, beat), folder in FOLDERS.items():
        if pd.notna(getattr(row, TELLING[task], None)):
            found.append((folder, beat))
    return found


def save_array(path: Path, array: np.ndarray) -> None:
    """Write an `.npy` atomically: a killed run leaves no half file under a clip's name.

    Notebook: 00.
    """
    with atomic(path) as partial, open(partial, "wb") as stream:
        np.save(stream, array, allow_pickle=False)


def write_labels(out: Path, table: pd.DataFrame, answers: str = ANSWERS) -> None:
    """Write the lab's label files for a table of clips, in place of those that are there.

    table : columns id, split, source, and of genre, valence, energy, danceability, group those
        there are
    answers : where the affect labels of the test split go, relative to `out`
    Notebook: 00.
    """
    table = table.reindex(columns=["id", *CLIP_COLUMNS])
    sources = [_below(Path(source), out) for source in table["source"]]
    _write_table(out / "audio.tsv", "Id\tPath", table[["id"]].assign(path=sources))
    # The marker file comes last: only then is this a corpus.
    for (task, _), folder in reversed(FOLDERS.items()):
        rows = table[table[TELLING[task]].notna()]
        grouped = rows.loc[rows["group"].notna(), ["id", "group"]]
        _write_table(out / folder / "groups.txt", "Id\tGroup", grouped)
        if task == "affect":
            train = rows.loc[rows["split"] == "train", ["id", *AFFECT]]
            _write_table(out / folder / "train_labels.txt", ",".join(["Id", *AFFECT]), train)
            continue
        for split in SPLITS:
            part = rows.loc[rows["split"] == split, ["id", "genre"]]
            part = part.assign(id=part["id"] + ".fused.full.npy.gz")
            _write_table(out / folder / f"{split}_labels.txt", "Id\tGenre", part, empty=True)
    kept = table[table["valence"].notna() & (table["split"] == "test")]
    _write_table(out / answers, ",".join(["Id", *AFFECT]), kept[["id", *AFFECT]])


def _below(path: Path, folder: Path) -> Path:
    """A path relative to a folder that holds it."""
    if path.is_relative_to(folder):
        return path.relative_to(folder)
    return path


def _write_table(path: Path, header: str, rows: pd.DataFrame, empty: bool = False) -> None:
    """Write rows below a header; of no rows there is no file, also none of before, unless empty."""
    if rows.empty and not empty:
        path.unlink(missing_ok=True)
        return
    separator = "," if "," in header else "\t"
    lines = [header]
    for row in rows.itertuples(index=False):
        lines.append(separator.join(_text(value) for value in row))
    write_text(path, "\n".join([*lines, ""]))


def _text(value) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)


# --- work on many clips ---------------------------------------------------------------------------


def in_processes(work, todo: list[tuple], jobs: int = -1, dask: str | None = None, progress=True):
    """Yield (job, work(*job)) as jobs get done. Raises CorpusError. Notebook: 00.

    jobs : processes of one thread each, -1 = one a core
    dask : or the address of a Dask cluster; what a lost worker had, another one does again
    """
    if len(todo) > 1 and jobs != 1:
        fill_numba_cache()
    with ExitStack() as stack:
        backend = "loky"
        if dask:
            stack.enter_context(_dask_client(dask))
            backend, jobs = "dask", -1
        stack.enter_context(parallel_config(backend=backend))
        pool = Parallel(jobs, batch_size=1, return_as="generator_unordered")
        results = pool(delayed(_one_thread)(work, job) for job in todo)
        silent = not (progress and todo)
        # A terminal's line is rewritten; a log, where each would stay, gets one in half a minute.
        pause = 0.1 if sys.stderr.isatty() else 30
        try:
            yield from tqdm(
                results, "clips", len(todo), disable=silent, unit="clip", mininterval=pause
            )
        except TerminatedWorkerError as error:
            raise CorpusError(
                "a process died, for want of memory or on a damaged file; start again with jobs=1 "
                "to see which file, or with fewer jobs"
            ) from error


def fill_numba_cache() -> None:
    """Have one process compile what librosa compiles, before several need it. Notebook: 00.

    Two processes that fill numba's cache on disk at once can leave files there that do not fit
    together, and then crash (numba issue 10128): this one alone takes a clip through `extract`.
    """
    seconds = np.arange(3 * SAMPLE_RATE, dtype=np.float32) / SAMPLE_RATE
    # An A, struck every half second.
    extract(np.sin(2 * np.pi * 440 * seconds) * np.exp(-8 * (seconds % 0.5)))


def _dask_client(address: str):
    try:
        from dask.distributed import Client

        return Client(address, timeout=10)
    except ImportError as error:
        raise CorpusError("dask is not installed: pip install 'labhelpers[dask]'") from error
    except (OSError, ValueError) as error:
        raise CorpusError(
            f"{address}: no Dask scheduler answers ({error}); start one, or go without"
        ) from error


def _one_thread(work, job: tuple) -> tuple:
    # More threads gain nothing beside the other processes, and their number would change the last
    # bits of a result.
    with threadpool_limits(1):
        return job, work(*job)
