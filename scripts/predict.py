"""Genre and affect of audio files, by recorded models.   python -m scripts.predict MUSIC

The models are those of the newest report on recorded music; where there is none, the committed
ones, which learned from Emotify: four genres, 30 s clips. They are mixed as notebooks 07 and 10 do.
"""

from __future__ import annotations

import argparse
import html
import sys
from pathlib import Path

import numpy as np
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output

from labhelpers.audio import N_MELS, extract, load_audio, printable
from labhelpers.baselines import descriptors
from labhelpers.clips import Clips
from labhelpers.corpus import AFFECT, PROJECT, work_folder
from labhelpers.plots import player, use_style
from labhelpers.records import Run, RunError, read_run
from labhelpers.training import predict

AUDIO = (".aac", ".aif", ".aiff", ".au", ".caf", ".flac", ".m4a", ".mp3", ".mp4", ".oga", ".ogg")
AUDIO += (".opus", ".wav", ".webm", ".wma")
COMMITTED = PROJECT / "reports" / "reference" / "emotify"
SECONDS = 30  # of a longer file, its middle: what the models learned from
LEAST = 0.1  # probability of a genre that is listed
APART = 0.15  # affect values go from 0 to 1; further apart than that, two models disagree
PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>Genre and affect</title>
<body style="font:16px/1.5 sans-serif;max-width:52rem;margin:2rem auto;padding:0 1rem">
<h1>Genre and affect</h1><p>{models}</p>{players}</body></html>
"""


class Panel:
    """The models of a report folder: genre by those of notebook 07, affect by those of 10.

    A report on music without affect labels has none of affect. Raises RunError, ValueError or
    OSError when models are absent or damaged.
    """

    def __init__(self, folder: Path):
        run = read_run(folder / "records" / "07_cnn.json")
        self.genre, self.affect = models_of(run, "CNN mel", "SVM descriptors"), []
        genres = ", ".join(self.genre[0].classes)
        self.about = f"Models that learned from {run.corpus['name']}, in {folder}. "
        self.about += f"They know these genres alone: {genres}."
        record = folder / "records" / "10_kaggle_submission.json"
        if record.is_file():
            run = read_run(record)
            self.blend = run.results
            self.affect = models_of(run, "CNN three heads", "SVR descriptors")
            self.about += " Affect goes from 0 to 1."

    def line(self, samples: np.ndarray) -> str:
        """The likely genres of a sound, its affect values, and where the models disagree."""
        clips = Clips.of([extract(samples, beats=False)[0]], ["clip"])
        line = self.genre_line(values_of(self.genre, clips))
        if self.affect:
            line += "; " + self.affect_line(values_of(self.affect, clips))
        return line

    def genre_line(self, values: np.ndarray) -> str:
        classes = self.genre[0].classes
        shares = (values[:-1].mean(axis=0) + values[-1]) / 2
        likely = [code for code in np.argsort(-shares)[:3] if shares[code] >= LEAST]
        words = ", ".join(f"{classes[code]} {shares[code]:.2f}" for code in likely)
        votes = (values.argmax(axis=1) == likely[0]).sum()
        return f"{words} ({votes} of {len(values)} models say {classes[likely[0]]})"

    def affect_line(self, values: np.ndarray) -> str:
        weight = self.blend["blend weight of the CNNs"]
        words = []
        for axis, network, machine in zip(AFFECT, values[:-1].mean(axis=0), values[-1]):
            network = (
                self.blend[f"blend scale {axis}"] * network + self.blend[f"blend shift {axis}"]
            )
            value = weight * network + (1 - weight) * machine
            words.append(f"{axis} {np.clip(value, 0, 1):.2f}")
            if abs(network - machine) > APART:
                words[-1] += " (models disagree)"
        return ", ".join(words)


def models_of(run: Run, network: str, machine: str) -> list:
    """The networks of a record, one for each seed; last its machine on descriptors."""
    names = [name for name in run.content["models"] if name.startswith(f"{network} ")]
    if not names:
        raise RunError(f"{run.folder}: no models of {run.notebook}; run that notebook again")
    return [run.model(name) for name in (*names, machine)]


def values_of(models: list, clips: Clips) -> np.ndarray:
    """What each model gives for the clip, (models, k); the last is the machine's."""
    networks = [predict(model, clips)[0] for model in models[:-1]]
    return np.array([*networks, models[-1].predict(descriptors(clips))[0]])


def newest_report() -> Path:
    """The newest report on recorded music, else the folder of the committed models.

    A report on the sample knows little of recorded music, and the tests' is on the sample.
    """
    paths = (work_folder() / "reports").glob("*/records/07_cnn.json")
    for path in sorted(paths, key=lambda path: path.stat().st_mtime, reverse=True):
        if read_run(path).corpus["name"] != "sample":
            return path.parents[1]
    return COMMITTED


def files_in(given: Path) -> list[Path]:
    """The audio in a folder and below, by name; a file stands for itself."""
    if not given.is_dir():
        return [given]
    return sorted(path for path in given.rglob("[!.]*.*") if path.suffix.lower() in AUDIO)


def page_part(samples: np.ndarray, line: str) -> str:
    """HTML of a spectrogram with its sound."""
    InteractiveShell.instance()  # without one, what is displayed would be printed
    with capture_output() as captured:
        player(samples, line, S=extract(samples, beats=False)[0][:N_MELS], seconds=SECONDS)
    return captured.outputs[0].data["text/html"]


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(prog="python -m scripts.predict")
    parser.add_argument("music", nargs="+", type=Path, help="audio files, or folders of them")
    parser.add_argument("--models", type=Path, metavar="DIR", help="a report folder")
    parser.add_argument("--html", type=Path, metavar="FILE", help="also write a page to hear")
    options = parser.parse_args(argv)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # a terminal of any encoding
    paths = [path for given in options.music for path in files_in(given)]
    if not paths:
        sys.exit(f"predict: there is no audio in {options.music[0]}")
    try:
        panel = Panel(options.models or newest_report())
    except (RunError, ValueError, OSError, KeyError) as error:
        sys.exit(f"predict: {error}")
    print(panel.about, flush=True)
    use_style()
    parts, failed = [], 0
    for path in paths:
        try:
            samples = load_audio(path, SECONDS)
            line = f"{printable(path)}: {panel.line(samples)}"
            print(line, flush=True)
            if options.html:
                parts.append(page_part(samples, line))
        except Exception as error:  # one file must not cost the others' answers
            print(f"{printable(path)}: left out ({error})", file=sys.stderr)
            failed = 1
    if options.html:
        page = PAGE.format(models=html.escape(panel.about), players="\n".join(parts))
        options.html.write_text(page, encoding="utf-8")
        print(f"To see and hear: {options.html}")
    return failed


if __name__ == "__main__":
    sys.exit(main())
