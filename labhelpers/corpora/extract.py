"""A folder of music becomes a corpus in the lab's layout."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import unicodedata
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from joblib import Parallel, delayed, parallel_config
from joblib.externals.loky.process_executor import TerminatedWorkerError
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from ..audio import SAMPLE_RATE, AudioError, _extract, extract, load_audio
from ..files import atomic, write_text
from .layout import AFFECT, CLASS_MAPPING, FOLDERS, MARKER, CorpusError

AUDIO_SUFFIXES = (".mp3", ".wav", ".flac", ".ogg", ".m4a")
SPLITS = ("test", "train")
MANIFEST = "extracted.jsonl"  # [id, [source, size, modification time, seconds]] of each clip that is done
COLUMNS = ["source", "genre", *AFFECT, "group", "split"]  # of a table of clips



@dataclass
class Summary:
    """What `extract_folder` did: clips extracted, clips found done already, and (file, reason) of those left out."""

    done: int
    skipped: int
    failed: list[tuple[str, str]]

    def __str__(self) -> str:
        counts = f"{self.done} clips extracted, {self.skipped} were there already, {len(self.failed)} left out"
        return "\n".join([counts] + [f"  left out: {reason}" for _, reason in self.failed])


def extract_folder(
    audio: str | Path,
    out: str | Path,
    *,
    labels: str | Path | None = None,
    jobs: int = -1,
    dask: str | None = None,
    test_fraction: float = 0.2,
    seed: int = 0,
    seconds: float | None = 30,
    progress: bool = True,
) -> Summary:
    """Turn a folder of music into a corpus in the lab's layout.

    audio : folder with one subfolder a genre (mp3, wav, flac, ogg, m4a)
    labels : or a csv/tsv with column path (relative to `audio`) and genre and/or valence, energy, danceability (0-1);
        optional columns group (clips of one track, kept on one side of the split) and split (train or test)
    jobs : processes, -1 = one a core; dask : address of a running cluster (tcp://…) that sees the same folders
    seconds : of longer files, the middle that is used; None = all of it
    A second call does what is missing or whose source changed. Returns a Summary. Raises CorpusError.
    """
    audio, out = Path(audio).expanduser().resolve(), Path(out).expanduser().resolve()
    if (out / MARKER).exists() and not (out / MANIFEST).exists():
        raise CorpusError(f"{out}: holds a corpus that was not extracted here; choose another folder")
    table = _plan(_read_labels(Path(labels), audio) if labels else _scan(audio), audio, test_fraction, seed)
    try:
        return _bring_up_to_date(out, table, seconds, jobs=jobs, dask=dask, progress=progress)
    except OSError as error:
        why = f"cannot be written ({error}); make room or name another folder, then repeat: what is done is kept"
        raise CorpusError(f"{out}: {why}") from error


def _bring_up_to_date(out: Path, table: pd.DataFrame, seconds: float | None, **how) -> Summary:
    out.mkdir(parents=True, exist_ok=True)
    rows = list(table.itertuples())
    before, stamps = _read_manifest(out / MANIFEST), {row.id: _stamp(row.source, seconds) for row in rows}
    paths = {row.id: clip_paths(out, row) for row in rows}
    kept = {i for i in stamps if before.get(i) == stamps[i] and all(path.is_file() for path, _ in paths[i])}
    todo = [(row.id, row.source, seconds, paths[row.id]) for row in rows if row.id not in kept]
    done, failed = set(), []
    with open(out / MANIFEST, "a", encoding="utf-8") as log:
        log.write("\n")  # after a kill the last line may be cut
        for (clip, source, *_), reason in in_processes(_work, todo, **how):
            if reason:
                failed.append((source, reason))
            else:
                done.add(clip)
                print(json.dumps([clip, stamps[clip]]), file=log, flush=True)
    table = table[table["id"].isin(kept | done)]
    if table.empty:
        raise CorpusError(f"{out}: no corpus, for none of {len(todo)} files could be used; the first: {failed[0][1]}")
    wanted = {path for clip in table["id"] for path, _ in paths[clip]}
    # Arrays of earlier calls that this one does not list: moved to the other split, or gone from the source.
    for folder, split, clip in itertools.product(FOLDERS.values(), SPLITS, {*before, *stamps}):
        path = out / folder / split / f"{clip}.fused.full.npy"
        if path not in wanted:
            path.unlink(missing_ok=True)
    write_labels(out, table)
    write_text(out / MANIFEST, "".join(json.dumps([i, stamps[i]]) + "\n" for i in sorted(table["id"])))
    return Summary(len(done), len(kept), sorted(failed))


def _scan(audio: Path) -> pd.DataFrame:
    files = [path for path in sorted(audio.glob("*/**/[!.]*")) if path.suffix.lower() in AUDIO_SUFFIXES]
    rows = [(str(path), path.relative_to(audio).parts[0]) for path in files if path.is_file()]
    if not rows:
        kinds = ", ".join(suffix[1:] for suffix in AUDIO_SUFFIXES)
        raise CorpusError(f"{audio}: no audio; one subfolder a genre with {kinds} files is needed, or a labels file")
    return pd.DataFrame(rows, columns=["source", "genre"])


def _read_labels(labels: Path, audio: Path) -> pd.DataFrame:
    """Columns source, genre, AFFECT, group, split; what the file leaves out is NaN."""
    try:
        separator = "\t" if labels.suffix.lower() in (".tsv", ".txt") else ","
        options = {"skip_blank_lines": False, "skipinitialspace": True, "keep_default_na": False, "na_values": [""]}
        table = pd.read_csv(labels, sep=separator, dtype=str, encoding="utf-8-sig", **options)
    except (OSError, ValueError) as error:
        raise CorpusError(f"{labels}: cannot be read ({error}); a csv or tsv with a header is needed") from error
    table.columns = table.columns.str.strip().str.lower()
    if "path" not in table or not {"genre", *AFFECT} & set(table):
        raise CorpusError(f"{labels}, line 1: columns path and genre, or path and {', '.join(AFFECT)}, are needed")
    table = table.dropna(how="all").reindex(columns=["path", *COLUMNS[1:]])
    values = table[list(AFFECT)].apply(pd.to_numeric, errors="coerce")
    given = table[list(AFFECT)].notna().any(axis=1)
    checks = {
        "no path; fill it in": table["path"].isna(),
        "a file listed twice; remove one of the lines": table["path"].duplicated(),
        f"{', '.join(AFFECT)} must all be numbers from 0 to 1": given & ~(values.ge(0) & values.le(1)).all(axis=1),
        "neither a genre nor affect; fill one in": table["genre"].isna() & ~given,
        "split must be train or test, on every line or none": ~table["split"].isin(SPLITS) & table["split"].any(),
    }
    for problem, wrong in checks.items():
        if wrong.any():
            raise CorpusError(f"{labels}, line {wrong.idxmax() + 2}: {problem}")
    if table.empty:
        raise CorpusError(f"{labels}: no lines below the header; list the audio files there")
    table[list(AFFECT)] = values
    table["source"] = [str((audio / path).resolve()) for path in table["path"]]
    return table


def _plan(table: pd.DataFrame, audio: Path, test_fraction: float, seed: int) -> pd.DataFrame:
    """Add id (safe, unique) and split: a share of each genre's groups, by hash, so that adding files moves few.

    Of two groups or more one goes to the test split, however small the share: without it nothing could be judged.
    """
    table = table.reindex(columns=COLUMNS).reset_index(drop=True)
    for column in ("genre", "group"):  # a tab or a line end in a name would break the label files
        table[column] = table[column].map(lambda name: " ".join(name.split()), na_action="ignore").astype(object)
    relative = [os.path.relpath(source, audio) for source in table["source"]]
    ids = pd.Series([safe_id(Path(source).stem) for source in table["source"]])
    clash = ids.str.casefold().duplicated(keep=False)
    table["id"] = ids.where(~clash, ids + "-" + pd.Series([_hash(path) for path in relative]).str[:8])
    if table["split"].isna().all():
        groups = table["group"].fillna(table["id"])
        stratum = table["genre"].fillna("").groupby(groups).first()
        order = pd.Series({group: _hash(f"{seed}/{group}") for group in stratum.index})
        rank, size = order.groupby(stratum).rank(), stratum.groupby(stratum).transform("size")
        least = ((size > 1) & (test_fraction > 0)).astype(int)
        test = groups.map(rank <= (size * test_fraction).round().clip(lower=least))
        table["split"] = np.where(test, "test", "train")
    return table


def safe_id(stem: str) -> str:
    """A file's stem as a clip id: letters, digits, _ and - only, beginning with an ASCII letter or digit."""
    text = re.sub(r"[^\w-]+", "-", unicodedata.normalize("NFC", stem)).strip("-")[:80]
    return text if re.match(r"[A-Za-z0-9]", text) else f"clip-{text or 'x'}"


def _hash(text: str) -> str:
    return hashlib.sha1(text.encode(errors="surrogateescape")).hexdigest()


def _stamp(source: str, seconds: float | None) -> list:
    """What must not have changed for an array to still be good."""
    stat = os.stat(source) if os.path.exists(source) else None
    return [source, stat and stat.st_size, stat and stat.st_mtime_ns, seconds]


def _read_manifest(path: Path) -> dict[str, list]:
    stamps = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            stamps.update([json.loads(line)])
        except (ValueError, TypeError):  # a kill may cut a line short: that clip is done again
            continue
    return stamps


def clip_paths(out: Path, row) -> list[tuple[Path, bool]]:
    """Where the arrays of a row (id, split, genre and/or valence) go: (path, whether beat-synced)."""
    columns = {"genre": "genre", "affect": "valence"}
    return [
        (out / folder / row.split / f"{row.id}.fused.full.npy", beat)
        for (task, beat), folder in FOLDERS.items()
        if pd.notna(getattr(row, columns[task], None))
    ]


def in_processes(work, todo: list[tuple], jobs: int = -1, dask: str | None = None, progress: bool = True):
    """Yield (job, work(*job)) as jobs get done, on processes of one thread each or on a Dask cluster (its address)."""
    if len(todo) > 1 and jobs != 1:
        fill_numba_cache()
    with ExitStack() as stack:
        if dask:
            stack.enter_context(_dask_client(dask))
        stack.enter_context(parallel_config(backend="dask" if dask else "loky"))
        pool = Parallel(n_jobs=-1 if dask else jobs, batch_size=1, return_as="generator_unordered")
        results = pool(delayed(_one_thread)(work, job) for job in todo)
        try:
            yield from tqdm(results, "clips", len(todo), disable=not (progress and todo), unit="clip")
        except TerminatedWorkerError as error:
            why = "a process died, for want of memory or on a damaged file"
            raise CorpusError(f"{why}; start again with jobs=1 to see which file, or with fewer jobs") from error


def fill_numba_cache() -> None:
    """Have one process compile what librosa compiles, before several need it.

    Two processes that fill numba's cache on disk at once can leave files there that do not fit together, and then
    crash (numba issue 10128): so this process, alone, takes a clip through all of `extract` first.
    """
    seconds = np.arange(3 * SAMPLE_RATE, dtype=np.float32) / SAMPLE_RATE
    extract(np.sin(2 * np.pi * 440 * seconds) * np.exp(-8 * (seconds % 0.5)))  # an A, struck every half second


def _dask_client(address: str):
    try:
        from dask.distributed import Client

        return Client(address, timeout=10)
    except ImportError as error:
        raise CorpusError("dask is not installed: pip install 'labhelpers[dask]'") from error
    except (OSError, ValueError) as error:
        raise CorpusError(f"{address}: no Dask scheduler answers ({error}); start one, or go without") from error


def _one_thread(work, job: tuple) -> tuple:
    # More threads gain nothing beside the other processes, and their number would change the last bits of a result.
    with threadpool_limits(1):
        return job, work(*job)


def _work(clip: str, source: str, seconds: float | None, paths: list[tuple[Path, bool]]) -> str | None:
    """Extract one file and write its arrays; returns why not, or None."""
    try:
        arrays = _extract(load_audio(source, seconds), source)
    except AudioError as error:
        return str(error)
    except Exception as error:  # whatever one file does, the others go on
        return f"{source}: {type(error).__name__}: {error}; leave it out"
    for path, beat in paths:
        save_array(path, arrays[beat])
    return None


def save_array(path: Path, array: np.ndarray) -> None:
    """Write an `.npy` atomically: a killed run leaves no half file under a clip's name."""
    with atomic(path) as partial, open(partial, "wb") as stream:
        np.save(stream, array, allow_pickle=False)


def write_labels(out: Path, table: pd.DataFrame, answers: str = FOLDERS["affect", False] + "/test_labels.txt") -> None:
    """Write the lab's label files for a table of clips, and what goes with them.

    table : columns id, split, source, and of genre, valence, energy, danceability, group those there are
    answers : where the affect labels of the test split go, relative to `out`
    """

    def write(name: str, header: str, rows: pd.DataFrame) -> None:
        between = "," if "," in header else "\t"
        lines = [between.join(f"{v:.3f}" if isinstance(v, float) else str(v) for v in row) for row in rows.values]
        write_text(out / name, "\n".join([header, *lines, ""]))

    table = table.reindex(columns=["id", *COLUMNS])
    genres = sorted(table["genre"].dropna().unique())
    if not set(genres) <= set(CLASS_MAPPING):
        mapping = {genre: genre for genre in genres}
        write_text(out / "class_mapping.json", json.dumps(mapping, indent=1, ensure_ascii=False))
    sources = [Path(source) for source in table["source"]]
    listed = [path.relative_to(out) if path.is_relative_to(out) else path for path in sources]
    write("audio.tsv", "Id\tPath", table[["id"]].assign(path=listed))
    affect = ",".join(["Id", *AFFECT])
    for (task, _), folder in reversed(FOLDERS.items()):  # the marker file comes last: only then is this a corpus
        rows = table[table["genre" if task == "genre" else "valence"].notna()]
        if rows["group"].notna().any():
            write(f"{folder}/groups.txt", "Id\tGroup", rows.loc[rows["group"].notna(), ["id", "group"]])
        for split in SPLITS:
            part, name = rows[rows["split"] == split], f"{folder}/{split}_labels.txt"
            if task == "genre":
                write(name, "Id\tGenre", part[["id", "genre"]].assign(id=part["id"] + ".fused.full.npy.gz"))
            elif split == "train" and len(part):
                write(name, affect, part[["id", *AFFECT]])
    kept = table[table["valence"].notna() & (table["split"] == "test")]
    if len(kept):
        write(answers, affect, kept[["id", *AFFECT]])
