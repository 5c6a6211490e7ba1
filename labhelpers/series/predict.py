"""Genre and affect of any audio file, by the models of a finished run."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ..audio import AudioError, extract
from ..baselines import DescriptorMachine, descriptors
from ..batches import even_starts
from ..corpora.layout import AFFECT
from ..corpora.write import in_processes
from ..datasets import from_arrays
from ..files import project_root
from ..models import load_model
from ..records import Predictor, Run, RunError, read_run
from ..training import predict
from .music import audio_files

SECONDS = 30  # of a file, its middle: what `labhelpers extract` takes, and the lab's clips are
TOP = 3  # genres told of a file
TASKS = {"genre": "07_cnn", "affect": "09b_multitask_learning"}  # task -> who trains for it


@dataclass
class Panel:
    """The models that are averaged for a task, as a run names them. Raises RunError.

    names : what the columns of `values` mean: classes, or the affect axes
    """

    run: Run
    task: str

    def __post_init__(self):
        self.members = [(how, self._load(how)) for how in self.run.predictors[self.task]]
        columns = [self._columns(model) for _, model in self.members]
        self.names = columns[0]
        if any(other != self.names for other in columns):
            raise RunError(
                f"{self.run.folder}: the models for {self.task} of {self.run.notebook} tell "
                "different things; run that notebook again"
            )

    def _load(self, how: Predictor):
        path = self.run.checkpoint(how.checkpoint)
        try:
            if path.suffix == DescriptorMachine.suffix:
                return DescriptorMachine.load(path)
            return load_model(path)
        except (ValueError, OSError) as error:
            raise RunError(str(error)) from None

    def _columns(self, model) -> list[str]:
        return list(model.classes) if self.task == "genre" else list(AFFECT)

    def values(self, clip: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean (k,) of a clip (140, T), each model counting as one, and its doubt (k,).

        The doubt is the deviation over all windows of all models.
        """
        means, every = [], []
        for how, model in self.members:
            parts = cuts(clip, how.crop)
            windows = from_arrays(parts, [str(i) for i in range(len(parts))], how.features)
            if isinstance(model, DescriptorMachine):
                found = model.predict(descriptors(windows))
            else:
                found = predict(model, windows)
            if found.shape[1] != len(self.names) or not np.isfinite(found).all():
                raise RunError(
                    f"{self.run.checkpoint(how.checkpoint)}: tells no {self.task}; "
                    f"run notebook {self.run.notebook} again"
                )
            means.append(found.mean(axis=0))
            every.extend(found)
        return np.mean(means, axis=0), np.std(every, axis=0)


def cuts(clip: np.ndarray, crop: int | None) -> list[np.ndarray]:
    """The windows of a clip (140, T) that notebooks average over: even ones, or the whole."""
    frames = clip.shape[1]
    if crop is None or frames <= crop:
        return [clip]
    starts = even_starts(torch.tensor([frames]), crop)[:, 0].tolist()
    return [clip[:, start : start + crop] for start in starts]


def predict_files(
    files: list[Path],
    out: Path | None = None,
    as_json: bool = False,
    *,
    seconds: float | None = SECONDS,
    jobs: int = -1,
) -> int:
    """Print genre probabilities and affect values (0-1) of audio files; returns 1 if one failed.

    files : files, or folders of them
    out : the report folder of the run (default: the newest in reports/)
    as_json : a list with an object a file; seconds : of longer files, the middle that is used
    Raises RunError when there is no run, or what it left cannot be used.
    """
    panels = {task: Panel(_newest_run(task, out), task) for task in TASKS}
    _say_whose(panels)
    paths = []
    for file in files:
        paths += audio_files(file) if file.is_dir() else [file]
    todo = [(position, path, seconds) for position, path in enumerate(paths)]
    found, failed = {}, 0
    for (position, path, _), clip in in_processes(_clip, todo, jobs if len(todo) > 1 else 1):
        if isinstance(clip, str):
            print(f"labhelpers: {clip}", file=sys.stderr)
            failed = 1
            continue
        row = {"file": str(path)}
        for task, panel in panels.items():
            means, doubts = panel.values(clip)
            order = np.argsort(-means, kind="stable") if task == "genre" else range(len(AFFECT))
            row[task] = {panel.names[i]: round(float(means[i]), 4) for i in order}
            row[f"{task}_doubt"] = {panel.names[i]: round(float(doubts[i]), 4) for i in order}
        found[position] = row
    rows = [found[position] for position in sorted(found)]
    if as_json:
        print(json.dumps(rows, indent=1, ensure_ascii=False))
    elif rows:
        print(_table(rows))
    return failed


def _clip(position: int, path: Path, seconds: float | None) -> np.ndarray | str:
    """The spectrogram of a file, or why there is none."""
    try:
        return extract(path, beats=False, seconds=seconds)[0]
    except (AudioError, OSError) as error:
        return str(error)


def _newest_run(task: str, out: Path | None) -> Run:
    """The last notebook that names models for a task, in `out` or in the newest report."""
    folders = [Path(out)] if out else sorted((project_root() / "reports").glob("*"))
    found = []
    for folder in folders:
        for path in sorted((folder / "records").glob("*.json"), reverse=True):
            run = read_run(path)
            if run.predictors.get(task):
                found.append((path.stat().st_mtime, path, run))
                break
    if not found:
        where = out or project_root() / "reports"
        raise RunError(
            f"{where}: no trained model for {task}; run notebook {TASKS[task]} first, "
            "or `labhelpers report`"
        )
    return max(found, key=lambda entry: entry[0])[2]


def _say_whose(panels: dict[str, Panel]) -> None:
    told, sample = [], False
    for task, panel in panels.items():
        models = len(panel.members)
        name = panel.run.corpus["name"]
        told.append(f"{task} by {models} model(s) of {panel.run.notebook} on {name}")
        sample = sample or panel.run.corpus["sample"]
    print("; ".join(told), file=sys.stderr)
    if sample:
        caution = "They were trained on synthesised music and know little of real music."
        print(caution, file=sys.stderr)


def _table(rows: list[dict]) -> str:
    files = [Path(row["file"]).name for row in rows]
    genres = []
    for row in rows:
        best = list(row["genre"].items())[:TOP]
        doubt = list(row["genre_doubt"].values())[0]
        genres.append(", ".join(f"{name} {p:.2f}" for name, p in best) + f" (± {doubt:.2f})")
    wide, wider = (max(map(len, column)) for column in ([*files, "file"], [*genres, "genre"]))
    axes = "  ".join(f"{axis:>12}" for axis in AFFECT)
    lines = [f"{'file':{wide}}  {'genre, 0 to 1':{wider}}  {axes}"]
    for row, file, genre in zip(rows, files, genres, strict=True):
        cells = []
        for axis in AFFECT:
            cells.append(f"{row['affect'][axis]:.2f} ± {row['affect_doubt'][axis]:.2f}")
        values = "  ".join(f"{cell:>12}" for cell in cells)
        lines.append(f"{file:{wide}}  {genre:{wider}}  {values}")
    lines.append("± is the deviation over a file's windows and the models, the first genre's here.")
    return "\n".join(lines)
