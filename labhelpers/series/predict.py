"""Genre and affect of any audio file, by the models of a finished run.

A record says what predicts in `facts["predict"]`: task ("genre" or "affect") -> {"checkpoint": a model's name in that
run, "rows": its input, "crop": frames of a window or None, "n_crops": windows averaged}. See `describe_predictor`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from ..audio import AudioError, extract
from ..corpora.layout import AFFECT
from ..datasets import ROWS
from ..files import project_root
from ..models import load_model
from ..records import Run, RunError
from ..training import windows_of

PREDICTORS = {"genre": "07_cnn", "affect": "09b_multitask_learning"}  # task -> the notebook that trains for it
TOP = 3  # genres told of a file


def describe_predictor(checkpoint: str, rows: str = "mel", crop: int | None = None, n_crops: int = 9) -> dict:
    """What a notebook writes as `facts["predict"][task]`, so that `predict_files` can use its model."""
    return {"checkpoint": checkpoint, "rows": rows, "crop": crop, "n_crops": n_crops}


def predict_files(files: list[Path], out: Path | None = None, as_json: bool = False) -> int:
    """Print genre probabilities and affect values of each audio file; returns 1 if a file could not be used, else 0.

    out : the report folder of the run (default: the newest in reports/); as_json : a JSON object a file, in a list
    Raises RunError when there is no run.
    """
    models, told = {}, set()
    for task in PREDICTORS:
        *models[task], folder = _load(task, out)
        told.add(folder.name)
    sample = " (synthesised music: they know little of real music)" if "sample" in told else ""
    print(f"by the models of {' and '.join(sorted(told))}{sample}", file=sys.stderr)
    found, failed = [], 0
    for file in files:
        try:
            full = extract(file, beats=False)[0]
        except (AudioError, OSError) as error:
            print(f"labhelpers: {error}", file=sys.stderr)
            failed = 1
            continue
        genre, affect = (_predict(*models[task], full) for task in PREDICTORS)
        genre = dict(sorted(zip(models["genre"][0].classes, genre, strict=True), key=lambda pair: -pair[1]))
        found.append({"file": str(file), "genre": genre, "affect": dict(zip(AFFECT, affect, strict=True))})
    if as_json:
        print(json.dumps(found, indent=1, ensure_ascii=False))
    elif found:
        print(_table(found))
    return failed


def _load(task: str, out: Path | None):
    """(model, description, report folder) from the record in `out`, or in the newest report folder that has it."""
    notebook = PREDICTORS[task]
    folders = [Path(out)] if out else sorted((project_root() / "reports").glob("*"))
    records = [path for folder in folders if (path := folder / "records" / f"{notebook}.json").is_file()]
    if not records:
        where = out or project_root() / "reports"
        raise RunError(f"{where}: no trained model for {task}; run notebook {notebook} first, or `labhelpers report`")
    path = max(records, key=lambda path: path.stat().st_mtime)
    run = Run(json.loads(path.read_text(encoding="utf-8")), path.parent)
    how = run["facts"].get("predict", {}).get(task)
    if how is None:
        raise RunError(f"{path} does not say what predicts {task}; run notebook {notebook} again")
    return load_model(run.checkpoint(how["checkpoint"])), how, path.parents[1]


@torch.inference_mode()
def _predict(model, how: dict, full) -> list[float]:
    """Decoded outputs for one clip (140, T), averaged over windows where the model was trained on windows."""
    clip = torch.from_numpy(full.T.copy())[:, ROWS[how["rows"]]]
    x = torch.stack(windows_of(clip, how["crop"], how["n_crops"])) if how["crop"] else clip[None]
    lengths = torch.full((len(x),), min(len(clip), x.shape[1]))
    return [round(value, 4) for value in model.decode(model(x, lengths)).mean(0).tolist()]


def _table(found: list[dict]) -> str:
    width = max(len(Path(row["file"]).name) for row in found + [{"file": "file"}])
    best = [", ".join(f"{name} {p:.2f}" for name, p in list(row["genre"].items())[:TOP]) for row in found]
    genres = max(map(len, [*best, "genre"]))
    lines = [f"{'file':{width}}  {'genre':{genres}}  " + "  ".join(f"{axis:>12}" for axis in AFFECT)]
    for row, genre in zip(found, best, strict=True):
        values = "  ".join(f"{row['affect'][axis]:12.2f}" for axis in AFFECT)
        lines.append(f"{Path(row['file']).name:{width}}  {genre:{genres}}  {values}")
    return "\n".join(lines)
