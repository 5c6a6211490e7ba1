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
WEIGHT = "blend weight of the CNNs"  # a result of notebook 10
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
        self.about = f"Models that learned from {run.corpus['name']}, in {folder}"
        self.genre, self.affect = models_of(run, "CNN mel", "SVM descriptors"), []
        record = folder / "records" / "10_kaggle_submission.json"
        if record.is_file():
            run = read_run(record)
            self.affect = models_of(run, "CNN three heads", "SVR descriptors")
            self.results = run.results

    def line(self, samples: np.ndarray) -> str:
        """The likely genres of a sound, its affect values, and where the models disagree."""
        clips = Clips.of([extract(samples, beats=False)[0]], ["clip"])
        line = self.genre_line(*values_of(self.genre, clips))
        if self.affect:
            line += "; " + self.affect_line(*values_of(self.affect, clips))
        return line

    def genre_line(self, networks: list, machine: np.ndarray) -> str:
        classes = self.genre[0].classes
        shares = (np.mean(networks, axis=0) + machine) / 2
        likely = [code for code in np.argsort(-shares)[:3] if shares[code] >= LEAST]
        words = ", ".join(f"{classes[code]} {shares[code]:.2f}" for code in likely)
        votes = sum(values.argmax() == likely[0] for values in (*networks, machine))
        return f"{words} ({votes} of {len(self.genre)} models say {classes[likely[0]]})"

    def affect_line(self, networks: list, machine: np.ndarray) -> str:
        words, weight = [], self.results[WEIGHT]
        for i, axis in enumerate(AFFECT):
            scale, shift = (self.results[f"blend {name} {axis}"] for name in ("scale", "shift"))
            network = scale * np.mean(networks, axis=0)[i] + shift
            value = weight * network + (1 - weight) * machine[i]
            doubt = " (models disagree)" * bool(abs(network - machine[i]) > APART)
            words.append(f"{axis} {value:.2f}{doubt}")
        return ", ".join(words)


def models_of(run: Run, network: str, machine: str) -> list:
    """The networks of a record, one for each seed; last its machine on descriptors."""
    names = [name for name in run.content["models"] if name.startswith(f"{network} ")]
    if not names:
        raise RunError(f"{run.folder}: no models of {run.notebook}; run that notebook again")
    return [run.model(name) for name in (*names, machine)]


def values_of(models: list, clips: Clips) -> tuple[list, np.ndarray]:
    """What networks and machine give for the clip: a list of (k,), and (k,)."""
    networks = [predict(model, clips)[0] for model in models[:-1]]
    return networks, models[-1].predict(descriptors(clips))[0]


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
    use_style()
    InteractiveShell.instance()  # without one, what is displayed would be printed
    with capture_output() as captured:
        player(samples, line, S=extract(samples, beats=False)[0][:N_MELS], seconds=SECONDS)
    return captured.outputs[0].data["text/html"]


def judge(paths: list[Path], panel: Panel, page: Path | None) -> int:
    """Print a line for each file, and write the page; returns how many files were left out."""
    failed, parts = 0, []
    for path in paths:
        try:
            samples = load_audio(path, SECONDS)
            line = f"{printable(path)}: {panel.line(samples)}"
            print(line, flush=True)
            if page:
                parts.append(page_part(samples, line))
        except Exception as error:  # one file must not cost the others' answers
            print(f"{printable(path)}: left out ({error})", file=sys.stderr)
            failed += 1
    if page:
        text = PAGE.format(models=html.escape(panel.about), players="\n".join(parts))
        page.write_text(text, encoding="utf-8")
        print(f"To see and hear: {page}")
    return failed


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.predict", description="Genre and affect of audio files."
    )
    parser.add_argument("music", nargs="+", type=Path, help="audio files, or folders of them")
    parser.add_argument("--models", type=Path, metavar="DIR", help="a report folder")
    parser.add_argument("--html", type=Path, metavar="FILE", help="also write a page to hear")
    options = parser.parse_args(argv)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # a terminal of any encoding
    paths = [path for given in options.music for path in files_in(given)]
    try:
        if not paths:
            raise RunError(f"there is no audio in {options.music[0]}")
        panel = Panel(options.models or newest_report())
    except (RunError, ValueError, OSError, KeyError) as error:
        print(f"predict: {error}", file=sys.stderr)
        return 1
    print(panel.about, flush=True)
    return 1 if judge(paths, panel, options.html) else 0


if __name__ == "__main__":
    sys.exit(main())
