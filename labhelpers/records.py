"""What one notebook hands to the next, and the only way it does.

A run is <out>/records/<notebook>.json with its checkpoints <notebook>.<model>.pt beside it. On Kaggle, runs of
attached notebooks are found under /kaggle/input by the same call.
"""

from __future__ import annotations

import json
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

from .corpora.find import KAGGLE_INPUT
from .corpora.layout import AFFECT, Corpus, CorpusError
from .files import project_root, write_text

PACKAGES = ("torch", "numpy", "librosa", "scikit-learn", "scipy", "pandas", "matplotlib", "seaborn")
COLUMNS = ("model", "task", "input", "set", "metric", "value", "low", "high", "n")

# Header -> the first line's first field, and the form of a clip's name below it. The assignment's contest took
# "full"; entries to the later one have "id".
HEADERS = {"full": ("Id.fused.full.npy.gz", "{}.fused.full.npy.gz"), "id": ("Id", "{}")}


class RunError(RuntimeError):
    """A record is missing or does not fit; the message says which notebook to run."""


class Run(dict):
    """A loaded record: its content as a dict, and where it lies."""

    def __init__(self, content: dict, folder: Path):
        super().__init__(content)
        self.folder = folder

    def checkpoint(self, model: str) -> Path:
        """The checkpoint of one of the run's models. Raises RunError."""
        path = self.folder / f"{self['notebook']}.{slug(model)}.pt"
        if not path.is_file():
            raise RunError(f"{path} is missing; run notebook {self['notebook']} again")
        return path

    def prediction(self, key: str) -> np.ndarray:
        """The stored predictions under `key`, (N, k), for the clips of `ids(key)`."""
        return np.array(self["predictions"][key]["values"])

    def ids(self, key: str) -> list[str]:
        return self["predictions"][key]["ids"]


def out_folder(corpus: Corpus, out: str | Path | None = None) -> Path:
    """Where a run leaves its results: `out`, else reports/<corpus> under /kaggle/working, else in the checkout."""
    if out is None:
        kaggle = KAGGLE_INPUT.is_dir() and os.access("/kaggle/working", os.W_OK)
        out = (Path("/kaggle/working") if kaggle else project_root()) / "reports" / corpus.name
    folder = Path(out).expanduser().resolve()
    try:
        (folder / "records").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{folder}: cannot be written ({error.strerror}); set OUT to a folder that can") from error
    return folder


def versions() -> dict[str, str]:
    """Python and the packages that results depend on, with their versions."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def save_run(
    notebook: str, corpus: Corpus, out: Path, *, results: list[dict] = (), params: dict | None = None,
    facts: dict | None = None, predictions: dict | None = None, histories: dict | None = None,
    models: dict | None = None,
) -> Path:  # fmt: skip
    """Write a notebook's record and checkpoints; returns the record's path.

    results : rows with the fields of COLUMNS; params : the notebook's parameters; facts : anything else worth keeping
        (counts, choices), JSON values; predictions : key -> (ids, array (N, k)); histories : model -> History;
    models : name -> Model, saved as checkpoints
    """
    from .models import save_model

    for row in results:
        if set(row) != set(COLUMNS):
            raise ValueError(f"a result row has the fields {', '.join(COLUMNS)}; found {', '.join(row)}")
    folder = Path(out) / "records"
    folder.mkdir(parents=True, exist_ok=True)
    for name, model in (models or {}).items():
        save_model(model, folder / f"{notebook}.{slug(name)}.pt")
    content = {
        "notebook": notebook,
        "corpus": {"name": corpus.name, "sample": corpus.is_sample, "fingerprint": corpus.fingerprint},
        "versions": versions(),
        "params": params or {},
        "facts": facts or {},
        "results": list(results),
        "histories": {name: history.rows for name, history in (histories or {}).items()},
        "predictions": {
            key: {"ids": list(ids), "values": np.round(np.asarray(values, float), 5).tolist()}
            for key, (ids, values) in (predictions or {}).items()
        },
    }
    return write_text(folder / f"{notebook}.json", json.dumps(content, indent=1, default=_plain))


def load_run(notebook: str, corpus: Corpus, out: Path) -> Run:
    """The record of a notebook, from `out` or from a notebook attached on Kaggle.

    Raises RunError that names the notebook to run when there is none, or when it was made on another corpus.
    """
    name = f"records/{notebook}.json"
    other = None
    for path in [Path(out) / name, *sorted(KAGGLE_INPUT.glob(f"**/reports/{corpus.name}/{name}"))]:
        if path.is_file():
            run = _read(path, notebook)
            if run["corpus"]["fingerprint"] == corpus.fingerprint:
                return run
            other = path
    if other is not None:
        raise RunError(
            f"{other} was made on another state of the corpus {corpus.name} (or on another corpus); "
            f"run {notebook}.ipynb again"
        )
    raise RunError(
        f"no record of notebook {notebook} in {Path(out) / 'records'}; run {notebook}.ipynb first "
        f"(on Kaggle: Add Input > Your Work > the committed notebook {notebook})"
    )


def _read(path: Path, notebook: str) -> Run:
    try:
        run = Run(json.loads(path.read_text(encoding="utf-8")), path.parent)
        run["corpus"]["fingerprint"], run["results"]  # noqa: B018
        return run
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{path}: not a record ({type(error).__name__}: {error}); run {notebook}.ipynb again") from error


def compare_runs(a: dict, b: dict, tolerance: dict[str, float]) -> list[str]:
    """Sentences on the results in which two records of one notebook differ by more than `tolerance[metric]`.

    A result that only one of them has is a difference too.
    """
    key = lambda row: tuple(row[field] for field in COLUMNS[:5])  # noqa: E731
    left, right = ({key(row): row["value"] for row in run["results"]} for run in (a, b))
    said = [f"{' / '.join(k)}: only in one of the two records" for k in left.keys() ^ right.keys()]
    for k in left.keys() & right.keys():
        allowed = tolerance.get(k[4], 0.0)
        if not abs(left[k] - right[k]) <= allowed:  # so that NaN differs from everything
            said.append(f"{' / '.join(k)}: {left[k]:.3f} against {right[k]:.3f}, more than {allowed} apart")
    return sorted(said)


def slug(name: str) -> str:
    """A file-name form of a model's name: "LSTM beat mel" -> "lstm-beat-mel"."""
    return "-".join("".join(c if c.isalnum() else " " for c in name.lower()).split())


def _plain(value):
    """NumPy scalars and arrays, paths and the like as JSON."""
    return value.tolist() if hasattr(value, "tolist") else str(value)


# --- submission -----------------------------------------------------------------------------------------------------


def write_submission(path: Path, ids, values, test_folder: Path, header: str = "full") -> Path:
    """Write predictions in the contest's format, after checking them against the test folder; returns the path.

    ids : the clips' ids (N,); values : valence, energy, danceability from 0 to 1 (N, 3); test_folder : its arrays are
        the clips that the contest scores; header : "full" or "id", see HEADERS
    Raises CorpusError when a clip is missing, doubled or unknown, or a value is not finite or outside 0 to 1.
    """
    if header not in HEADERS:
        raise ValueError(f"header {header!r}; known: {', '.join(HEADERS)}")
    ids, values = [str(clip) for clip in ids], np.asarray(values, float)
    _check(ids, values, Path(test_folder))
    first, name = HEADERS[header]
    digits = _digits(values)
    rows = [",".join([name.format(clip), *(f"{value:.{digits}f}" for value in row)]) for clip, row in zip(ids, values)]  # noqa: B905
    return write_text(Path(path), "\n".join([",".join([first, *AFFECT]), *rows, ""]))


def _check(ids: list[str], values: np.ndarray, folder: Path) -> None:
    wanted = {entry.name.split(".")[0] for entry in os.scandir(folder) if ".npy" in entry.name}
    if values.shape != (len(ids), len(AFFECT)):
        raise CorpusError(f"predictions of shape {values.shape} for {len(ids)} clips; ({len(ids)}, 3) are needed")
    for problem, clips in {
        "predicted twice": {clip for clip in ids if ids.count(clip) > 1},
        f"in {folder} but not predicted": wanted - set(ids),
        f"predicted but not in {folder}": set(ids) - wanted,
    }.items():
        if clips:
            some = ", ".join(sorted(clips)[:5])
            raise CorpusError(f"{len(clips)} clips are {problem} ({some}, …); predict each test clip once")
    bad = np.argwhere(~((values >= 0) & (values <= 1)))  # NaN is in no order, so it is bad too
    if len(bad):
        i, axis = bad[0]
        said = f"clip {ids[i]}: {AFFECT[axis]} is {values[i, axis]}; a number from 0 to 1 is needed"
        raise CorpusError(f"{said} ({len(bad)} such values)")


def _digits(values: np.ndarray) -> int:
    """The fewest decimals, at least 3, that keep different values different: a tie costs rank correlation."""
    distinct = [len(np.unique(column)) for column in values.T]
    kept = (n for n in range(3, 9) if [len(np.unique(column.round(n))) for column in values.T] == distinct)
    return next(kept, 9)


def submission(corpus: Corpus, out: Path | None = None, header: str = "full") -> Path:
    """Write <out>/solution.txt again from the record of notebook 10. Raises RunError where there is none."""
    folder = out_folder(corpus, out)
    run = load_run("10_kaggle_submission", corpus, folder)
    test = corpus.folder("affect") / "test"
    return write_submission(folder / "solution.txt", run.ids("test"), run.prediction("test"), test, header)
