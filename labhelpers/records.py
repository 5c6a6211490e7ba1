"""What one notebook hands to the next, and the only way it does.

A run is <out>/records/<notebook>.json with its checkpoints <notebook>.<model>.pt beside it. On Kaggle, runs of
attached notebooks are found under /kaggle/input by the same call.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

from .corpora import KAGGLE_INPUT, Corpus, project_root

PACKAGES = ("torch", "numpy", "librosa", "scikit-learn", "scipy", "pandas", "matplotlib", "seaborn")
COLUMNS = ("model", "task", "input", "set", "metric", "value", "low", "high", "n")


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
    from .models import save_model  # late: a notebook without networks needs no torch model here

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


def write_text(path: Path, text: str) -> Path:
    """Write beside the place, then move there. Raises RunError where that cannot be written."""
    partial = path.with_name(f"{path.name}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise RunError(f"{path}: cannot be written ({error.strerror}); free some room, or set OUT elsewhere") from error
    return path


def _plain(value):
    """NumPy scalars and arrays, paths and the like as JSON."""
    return value.tolist() if hasattr(value, "tolist") else str(value)
