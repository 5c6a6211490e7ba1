"""What one notebook hands to the next, and the only way it does.

A run is <out>/records/<notebook>.json with its checkpoints <notebook>.<model>.pt beside it. On
Kaggle, the runs of attached notebooks are found by the same call.
"""

from __future__ import annotations

import json
import math
import os
import platform
import re
from collections import Counter
from dataclasses import asdict, dataclass, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

from .corpora.find import KAGGLE_INPUT, attached, find_attached, kaggle_reports
from .corpora.layout import AFFECT, Corpus, CorpusError, array_files
from .files import project_root, write_text
from .metrics import Estimate

PACKAGES = ("torch", "numpy", "librosa", "scikit-learn", "scipy", "pandas", "matplotlib", "seaborn")
RESULT_FIELDS = {"model", "task", "input", "set", "metric", "baseline"}
RESULT_FIELDS |= {number.name for number in fields(Estimate)}
RECORD_FIELDS = {
    "notebook": str,
    "corpus": dict,
    "versions": dict,
    "params": dict,
    "facts": dict,
    "results": list,
    "histories": dict,
    "predictions": list,
    "predictors": dict,
}
# Header -> the first line's first field, and the form of a clip's name below it. The assignment's
# contest took "full"; entries to the later one have "id".
HEADERS = {"full": ("Id.fused.full.npy.gz", "{}.fused.full.npy.gz"), "id": ("Id", "{}")}


class RunError(RuntimeError):
    """A record is missing or does not fit; the message says which notebook to run.

    Notebooks: 06 to 10.
    """


@dataclass(frozen=True)
class Predictor:
    """How a model of a run reads clips, for those who use it later. Notebooks: 07, 10.

    checkpoint : the model's name in the run; features : its input
    crop : frames of the windows it averages over, None for whole clips
    """

    checkpoint: str
    features: str = "mel"
    crop: int | None = None


class Run:
    """A loaded record. Notebooks: 06 to 10.

    results (list of dicts with RESULT_FIELDS), params, facts, histories (name -> epochs),
    predictors (task -> list of Predictor, to be averaged), corpus, versions; folder : where it lies
    """

    def __init__(self, content: dict, folder: Path):
        self.notebook, self.folder = content["notebook"], folder
        self.corpus, self.versions = content["corpus"], content["versions"]
        self.params, self.facts = content["params"], content["facts"]
        self.results, self.histories = content["results"], content["histories"]
        self.predictors = {
            task: [Predictor(**members) for members in listed]
            for task, listed in content["predictors"].items()
        }
        self._predictions = {
            (entry["model"], entry["set"]): (entry["ids"], entry["runs"])
            for entry in content["predictions"]
        }

    def checkpoint(self, model: str) -> Path:
        """The checkpoint of one of the run's models. Raises RunError."""
        for path in sorted(self.folder.glob(f"{self.notebook}.{slug(model)}.*")):
            return path
        raise RunError(
            f"{self.folder}: no checkpoint {self.notebook}.{slug(model)}; "
            f"run notebook {self.notebook} again"
        )

    def predictions(self, model: str, test_set: str) -> tuple[list[str], list[np.ndarray]]:
        """(clip ids, one array (N, k) a seed) of a model on a set of clips. Raises RunError."""
        if (model, test_set) not in self._predictions:
            raise RunError(
                f"{self.notebook} has no predictions of {model} on {test_set}; "
                f"it has {sorted(self._predictions)}"
            )
        ids, runs = self._predictions[model, test_set]
        return ids, [np.array(values) for values in runs]


def out_folder(corpus: Corpus, out: str | Path | None = None) -> Path:
    """Where a run leaves its results: `out`, else reports/<corpus>. Notebook: all.

    On Kaggle that is under /kaggle/working, else in the checkout. Raises RunError.
    """
    if not out:
        top = project_root()
        if KAGGLE_INPUT.is_dir() and os.access("/kaggle/working", os.W_OK):
            top = Path("/kaggle/working")
        out = top / "reports" / corpus.name
    folder = Path(out).expanduser().resolve()
    try:
        (folder / "records").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(
            f"{folder}: cannot be written ({error.strerror}); set OUT to a folder that can"
        ) from error
    return folder


def versions() -> dict[str, str]:
    """Python and the packages that results depend on, with their versions. Notebook: 00."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def save_run(
    notebook: str,
    corpus: Corpus,
    out: Path,
    *,
    results=(),
    params=None,
    facts=None,
    predictions=None,
    histories=None,
    models=None,
    predictors=None,
) -> Path:
    """Write a notebook's record and checkpoints; returns the record's path. Notebook: all.

    results : dicts with RESULT_FIELDS, see `metrics.result_rows`; params : the parameters
    facts : anything else worth keeping (counts, choices)
    predictions : (model, set) -> ids and one array (N, k) a seed; histories : name -> History
    models : name -> what has `save(path)`: a Model or a DescriptorMachine
    predictors : task -> list of Predictor
    Raises OSError with a sentence, ValueError when a result has other fields.
    """
    for row in results:
        if set(row) != RESULT_FIELDS:
            odd = ", ".join(sorted(set(row) ^ RESULT_FIELDS))
            raise ValueError(f"a result has the fields of RESULT_FIELDS; missing or unknown: {odd}")
    folder = Path(out) / "records"
    written = {folder / f"{notebook}.json"}
    for name, model in (models or {}).items():
        path = folder / f"{notebook}.{slug(name)}{model.suffix}"
        model.save(path)
        written.add(path)
    listed = {}
    for task, members in (predictors or {}).items():
        listed[task] = [asdict(member) for member in members]
    predicted = [
        {"model": model, "set": test_set, "ids": ids, "runs": list(runs)}
        for (model, test_set), (ids, runs) in (predictions or {}).items()
    ]
    content = {
        "notebook": notebook,
        "corpus": {
            "name": corpus.name,
            "sample": corpus.is_sample,
            "fingerprint": corpus.fingerprint,
        },
        "versions": versions(),
        "params": params or {},
        "facts": facts or {},
        "results": list(results),
        "histories": {name: history.epochs for name, history in (histories or {}).items()},
        "predictions": predicted,
        "predictors": listed,
    }
    text = json.dumps(plain(content), indent=1, allow_nan=False, ensure_ascii=False)
    path = write_text(folder / f"{notebook}.json", text)
    for old in set(folder.glob(f"{notebook}.*")) - written:  # an earlier run's, by other names
        old.unlink()
    return path


def plain(value):
    """The same in what JSON knows: NumPy's numbers as Python's, NaN as null. Notebook: all."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float):
        if not math.isfinite(value):
            return None
        # Nine digits keep every float32 apart: a tie would cost rank correlation.
        return float(f"{value:.9g}")
    if value is None or isinstance(value, (str, int)):  # True is an int
        return value
    return str(value)


def load_run(notebook: str, corpus: Corpus, out: Path) -> Run:
    """The record of a notebook, from `out` or from one attached on Kaggle. Notebooks: 06 to 10.

    Raises RunError that names the notebook to run when there is none, or when it was made on
    another corpus.
    """
    own = Path(out) / "records" / f"{notebook}.json"

    def look():
        folders = kaggle_reports(corpus.name)
        paths = [own, *(folder / "records" / own.name for folder in folders)]
        return list(filter(Path.is_file, paths))

    paths = find_attached(look)
    for path in paths:
        run = read_run(path)
        if run.corpus["fingerprint"] == corpus.fingerprint:
            return run
    if paths:
        raise RunError(
            f"{paths[-1]} was made on another state of the corpus {corpus.name} (or on another "
            f"corpus); run {notebook}.ipynb again"
        )
    missing = f"no record of notebook {notebook} in {own.parent}; run {notebook}.ipynb first"
    if KAGGLE_INPUT.is_dir():
        missing += f": Add Input > Your Work > the committed notebook {notebook}. {attached()}"
    raise RunError(missing)


def read_run(path: Path) -> Run:
    """The record in a file. Raises RunError when it is none, or an older version's.

    Notebooks: 06 to 10.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        for field, kind in RECORD_FIELDS.items():
            if not isinstance(content[field], kind):
                raise TypeError(f"{field} is no {kind.__name__}")
        if "fingerprint" not in content["corpus"]:
            raise KeyError("fingerprint")
        return Run(content, path.parent)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(
            f"{path}: not a record ({type(error).__name__}: {error}); run {path.stem}.ipynb again"
        ) from error


def slug(name: str) -> str:
    """A file-name form of a model's name: "LSTM beat mel+" -> "lstm-beat-mel-plus".

    Notebook: all.
    """
    words = name.lower().replace("+", " plus ")
    return "-".join(re.findall(r"[^\W_]+", words))


# --- submission -----------------------------------------------------------------------------------


def write_submission(path: Path, ids, values, test_folder: Path, header: str = "full") -> Path:
    """Write predictions in the contest's format, after checking them. Notebook: 10.

    ids : the clips' ids (N,); values : valence, energy, danceability from 0 to 1 (N, 3)
    test_folder : its arrays are the clips that the contest scores; header : see HEADERS
    Raises CorpusError when a clip is missing, doubled or unknown, or a value is not from 0 to 1.
    """
    if header not in HEADERS:
        raise ValueError(f"header {header!r}; known: {', '.join(HEADERS)}")
    ids, values = [str(clip) for clip in ids], np.asarray(values, float)
    _check(ids, values, Path(test_folder))
    first, name = HEADERS[header]
    digits = _digits(values)
    lines = [",".join([first, *AFFECT])]
    for clip, row in zip(ids, values, strict=True):
        numbers = [f"{value:.{digits}f}" for value in row]
        lines.append(",".join([name.format(clip), *numbers]))
    return write_text(Path(path), "\n".join([*lines, ""]))


def _check(ids: list[str], values: np.ndarray, folder: Path) -> None:
    wanted = set(array_files(folder))
    if values.shape != (len(ids), len(AFFECT)):
        raise CorpusError(
            f"predictions of shape {values.shape} for {len(ids)} clips; ({len(ids)}, 3) are needed"
        )
    doubled = {clip for clip, times in Counter(ids).items() if times > 1}
    for problem, clips in {
        "predicted twice": doubled,
        f"in {folder} but not predicted": wanted - set(ids),
        f"predicted but not in {folder}": set(ids) - wanted,
    }.items():
        if clips:
            first = min(clips)
            raise CorpusError(
                f"clip {first} and {len(clips) - 1} others are {problem}; "
                "predict each test clip once"
            )
    bad = np.argwhere(~((values >= 0) & (values <= 1)))  # NaN is in no order, so it is bad too
    if len(bad):
        i, axis = bad[0]
        raise CorpusError(
            f"clip {ids[i]}: {AFFECT[axis]} is {values[i, axis]}; a number from 0 to 1 is needed "
            f"({len(bad)} such values)"
        )


def _digits(values: np.ndarray) -> int:
    """The fewest decimals, at least 3, that keep different values different: a tie costs rank."""
    distinct = [len(np.unique(column)) for column in values.T]
    for digits in range(3, 9):
        if [len(np.unique(column.round(digits))) for column in values.T] == distinct:
            return digits
    return 9
