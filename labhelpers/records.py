"""What one notebook hands to the next, and the committed reference results.

A run is <out>/records/<notebook>.json, readable as it stands, with its models in the folder
<notebook>/ beside it. On Kaggle, the runs of attached notebooks are found by the same call.
"""

from __future__ import annotations

import json
import math
import os
import platform
import re
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import numpy as np

from .baselines import DescriptorMachine
from .corpus import PROJECT, Corpus, kaggle_input, work_folder
from .metrics import Difference, Estimate, verdict
from .models import load_model

PACKAGES = ("torch", "numpy", "librosa", "scikit-learn", "scipy", "pandas", "matplotlib", "seaborn")
REFERENCE = PROJECT / "reports" / "reference"


class RunError(RuntimeError):
    """A record is missing or does not fit; the message says which notebook to run."""


class Run:
    """The record of a notebook. Notebooks: 06 to 10.

    results : key -> Estimate, Difference, number or text; params; histories : name -> rows of a
    training; corpus, versions; folder : where it lies
    """

    def __init__(self, content: dict, folder: Path):
        self.notebook, self.folder, self.content = content["notebook"], folder, content
        self.corpus, self.params = content["corpus"], content["params"]
        self.versions, self.histories = content["versions"], content["histories"]
        self.results = read_results(content["results"])

    def predictions(self, model: str, clips: str) -> tuple[list[str], list[np.ndarray]]:
        """(clip ids, an array (N, k) for each seed) of a model on a set of clips."""
        known = []
        for entry in self.content["predictions"]:
            known.append((entry["model"], entry["set"]))
            if known[-1] == (model, clips):
                return entry["ids"], [np.array(run) for run in entry["runs"]]
        raise RunError(f"{self.notebook} has no predictions of {model} on {clips}; it has {known}")

    def model(self, name: str, device="cpu"):
        """A model of the run, loaded: it knows what it reads."""
        files = self.content["models"]
        if name not in files:
            raise RunError(f"{self.notebook} has no model {name}; it has {sorted(files)}")
        path = self.folder / self.notebook / files[name]
        if path.suffix == ".npz":
            return DescriptorMachine.load(path)
        return load_model(path, device)


def out_folder(corpus: Corpus, out: str | Path | None = None) -> Path:
    """Where a run leaves its results: `out`, else $LABHELPERS_OUT, else reports/<corpus>.

    Raises RunError where it cannot be written, or holds the report on another corpus.
    """
    named = out or os.environ.get("LABHELPERS_OUT")
    folder = Path(str(named)) if named else work_folder() / "reports" / corpus.name
    folder = folder.expanduser().resolve()
    owner = folder / "records" / "corpus.txt"
    try:
        owner.parent.mkdir(parents=True, exist_ok=True)
        if not owner.is_file():
            owner.write_text(str(corpus.root), encoding="utf-8")
        other = Path(owner.read_text(encoding="utf-8"))
    except OSError as error:
        raise RunError(f"{folder}: cannot be written ({error.strerror}); set OUT") from None
    if other != corpus.root and other.is_dir():
        raise RunError(f"{folder} holds the results on {other}; set OUT to another folder")
    return folder


def versions() -> dict[str, str]:
    """Python and the packages that results depend on, with their versions. Notebook: 00."""
    return {"python": platform.python_version()} | {name: version(name) for name in PACKAGES}


def save_run(
    notebook, corpus, out, *, results, params=None, predictions=None, models=None, histories=None
) -> Path:
    """Write the record of a notebook and its models; returns the record's path. Notebooks: all.

    results : key -> Estimate, Difference, number or text, by keys that an answer can cite
    predictions : (model, set) -> (ids, one array (N, k) for each seed); histories : name -> rows
    models : name -> a Model or a DescriptorMachine
    """
    folder = Path(out) / "records"
    files = {name: slug(name) for name in models or {}}
    if len(set(files.values())) < len(files):
        raise ValueError(f"two of these models would share a file: {sorted(files)}")
    for name, model in (models or {}).items():
        files[name] += ".npz" if isinstance(model, DescriptorMachine) else ".pt"
        (folder / notebook).mkdir(parents=True, exist_ok=True)
        model.save(folder / notebook / files[name])
    content = {
        "notebook": notebook,
        "corpus": {"name": corpus.name, "fingerprint": corpus.fingerprint},
        "versions": versions(),
        "params": params or {},
        "results": {key: as_json(value) for key, value in results.items()},
        "models": files,
        "histories": histories or {},
        "predictions": [],
    }
    for (model, clips), (ids, runs) in (predictions or {}).items():
        entry = {"model": model, "set": clips, "ids": list(ids), "runs": list(runs)}
        content["predictions"].append(entry)
    path = folder / f"{notebook}.json"
    text = json.dumps(plain(content), indent=1, allow_nan=False, ensure_ascii=False)
    partial = path.with_suffix(".partial")
    partial.write_text(text + "\n", encoding="utf-8")
    os.replace(partial, path)
    return path


def as_json(value):
    if isinstance(value, Difference):
        return asdict(value) | {"verdict": verdict(value)}
    return asdict(value) if isinstance(value, Estimate) else value


def plain(value):
    """The same in what JSON knows: NumPy's numbers as Python's, NaN as null."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float):
        # Nine digits keep every float32 apart: a tie would cost rank correlation.
        return float(f"{value:.9g}") if math.isfinite(value) else None
    if value is None or isinstance(value, (str, int)):  # True is an int
        return value
    return str(value)


def read_results(content: dict) -> dict:
    """Results as `save_run` took them."""
    results = {}
    for key, value in content.items():
        if isinstance(value, dict):
            fields = {name: number for name, number in value.items() if name != "verdict"}
            if fields.get("deviation", 0) is None:  # of a single seed: JSON knows no NaN
                fields["deviation"] = math.nan
            value = Difference(**fields) if "comparisons" in fields else Estimate(**fields)
        results[key] = value
    return results


def load_run(notebook: str, corpus: Corpus, out: Path) -> Run:
    """The record of a notebook, from `out` or from one attached on Kaggle. Notebooks: 06 to 10.

    Raises RunError that names the notebook to run when there is none for this corpus.
    """
    folder = Path(out) / "records"
    paths = [*folder.glob(f"{notebook}.json")]
    paths += sorted(kaggle_input().glob(f"**/records/{notebook}.json"))
    for path in paths:
        run = read_run(path)
        if run.corpus.get("fingerprint") == corpus.fingerprint:
            return run
    if paths:
        raise RunError(f"{paths[0]} was made on other data; run {notebook}.ipynb again")
    hint = ""
    if kaggle_input().is_dir():
        hint = ": commit it, then Add Input > Your Work > that notebook"
    raise RunError(f"no record of notebook {notebook} in {folder}; run {notebook}.ipynb{hint}")


def read_run(path: Path) -> Run:
    """The record in a file. Raises RunError when it is none."""
    try:
        return Run(json.loads(path.read_text(encoding="utf-8")), path.parent)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        kind = type(error).__name__
        raise RunError(f"{path}: not a record ({kind}); run {path.stem}.ipynb again") from error


def slug(name: str) -> str:
    """A file-name form of a model's name: "LSTM beat mel+" -> "lstm-beat-mel-plus"."""
    return "-".join(re.findall(r"[^\W_]+", name.lower().replace("+", " plus ")))


def series_results(out: Path) -> dict[str, dict]:
    """Notebook -> its results, of every record in a report's folder."""
    paths = sorted((Path(out) / "records").glob("*.json"))
    return {path.stem: read_run(path).results for path in paths}


def reference(corpus: Corpus | None = None, name: str = "emotify") -> dict[str, dict]:
    """Notebook -> results of the committed run on the corpus `name`. Notebooks: all.

    Empty where there is none, and where `corpus` is that corpus: a table has its numbers already.
    """
    path = REFERENCE / f"{name}.json"
    if not path.is_file() or (corpus and corpus.name == name):
        return {}
    content = json.loads(path.read_text(encoding="utf-8"))
    return {notebook: read_results(results) for notebook, results in content["notebooks"].items()}
