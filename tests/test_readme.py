"""Every command that README.md gives is run here, on small things in the place of its capitals."""

import importlib.metadata
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile
from helpers_corpus import make_corpus
from test_extract import tone

from labhelpers.records import RunError
from labhelpers.series import cli
from labhelpers.series import run as report
from labhelpers.series.kaggle import bundle

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PROGRAMS = ("make", "labhelpers", ".venv/bin/labhelpers", ".venv/bin/kaggle")


def commands():
    """What stands in code blocks, a command a line, and between backticks in prose."""
    blocks = re.findall(r"^```\n(.*?)^```", README, re.M | re.S)
    lines = [line for block in blocks for line in block.splitlines()]
    inline = re.findall(r"`([^`\n]+)`", re.sub(r"^```\n.*?^```", "", README, flags=re.M | re.S))
    found = [text.partition("  #")[0].strip() for text in [*lines, *inline]]
    return sorted({text for text in found if text.split(" ")[0] in PROGRAMS and " " in text})


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with music and a corpus, and what the README's names in capitals stand for there."""
    folder = tmp_path_factory.mktemp("readme")
    for number, genre in enumerate(("Blues", "Metal") * 3):
        (folder / "MUSIC" / genre).mkdir(parents=True, exist_ok=True)
        samples = tone(2, pitch=110 * (1 + number), seed=number)
        soundfile.write(folder / "MUSIC" / genre / f"{number}.mp3", samples, 22050)
    soundfile.write(folder / "SONG.mp3", tone(5), 22050)
    make_corpus(folder / "DIR", genres=("Rock", "Blues"), train=6, test=2)
    return folder


def run(text, place, *more):
    """Run a command in the checkout, its paths leading to `place`; `more` goes to the report."""
    text = re.sub(
        r"\b(MUSIC|DIR|SONG.mp3|corpora/mine|bundle(?= *$))\b", lambda m: str(place / m[1]), text
    )
    words = shlex.split(text)
    if words[0] == "make":
        if not (ROOT / ".venv" / ".installed").is_file():
            pytest.skip("make would set up an environment first")
        arguments = " ".join(
            [word.partition("=")[2] for word in words if word.startswith("ARGS=")] + list(more)
        )
        words = ["make", words[1], f"ARGS={arguments}"]
    else:
        words = [sys.executable, "-m", "labhelpers.series.cli", *words[1:]]
    env = {
        name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))
    }
    done = subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


# Of the series the first notebook: all of it is what `make test` itself runs.
FIRST = ("--only", "00")
ON_SMALL_THINGS = {
    'make report ARGS="--data DIR"': (FIRST, "reports"),
    ".venv/bin/labhelpers extract MUSIC corpora/mine": ((), "corpora/mine"),
    'make report ARGS="--data corpora/mine"': (FIRST, "reports"),
    ".venv/bin/labhelpers kaggle bundle --user NAME bundle": ((), "bundle/push.sh"),
}


@pytest.mark.parametrize("text", ON_SMALL_THINGS)
def test_command(text, place, tmp_path):
    more, leaves = ON_SMALL_THINGS[text]
    said = run(text, place, *more, *(("--out", str(tmp_path / "reports")) if more else ()))
    assert (place / leaves).exists() or (tmp_path / leaves / "index.html").is_file(), said


def test_predict(place, trained):
    assert "Jazz" in run(f".venv/bin/labhelpers predict SONG.mp3 --run {trained}", place)


def test_a_changed_parameter_reaches_the_notebook(place, tmp_path, monkeypatch):
    given = []

    def execute(path, target, own, progress):
        given.append((path.stem, own["FRAMES_PER_STEP"]))
        raise RunError("far enough")

    monkeypatch.setattr(report, "_execute", execute)
    words = shlex.split("report --from 07 -p FRAMES_PER_STEP 4")
    assert cli.main([*words, "--data", str(place / "DIR"), "--out", str(tmp_path)]) == 1
    assert given == [("07_cnn", 4)]


def test_kaggle_commands_are_ones_the_client_knows():
    """What push.sh has the client do, test_kaggle.py runs."""
    if importlib.metadata.version("kaggle") < "2":
        pytest.skip("the README's are commands of the client 2 and later")
    given = [text for text in commands() if "/kaggle " in text]
    assert len(given) == 2
    for text in given:
        words = [word.replace("NAME", "me") for word in shlex.split(text)[1:]]
        done = subprocess.run(
            [sys.executable, "-m", "kaggle", *words, "--help"], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert all(word in done.stdout for word in words if word.startswith("-"))


def test_push_is_told_names_of_kernels(place):
    bundle(place / "pushed", "me")
    (given,) = [text.split()[2:] for text in re.findall(r"`(sh bundle/push.sh [^`]+)`", README)]
    assert given and all((place / "pushed" / "kernels" / name).is_dir() for name in given)


ELSEWHERE = {
    "make setup": "the commands above begin with it",
    "make report": "the same as with ARGS; its whole series is what nbval runs",
    "make test": "runs this",
    "labhelpers report": "what make report calls",
    ".venv/bin/labhelpers pages OUT": "test_pages.py",
    "make reference": "test_reference.py",
    "make reference-real REAL=DIR": "test_reference.py",
    "make mutations": "test_mutations.py",
    ".venv/bin/labhelpers predict SONG.mp3": "test_predict",
    """make report ARGS="--author 'Maria E.' --course Patterns\"""": "test_cli.py",
    'make report ARGS="--from 07 -p FRAMES_PER_STEP 4"': (
        "test_a_changed_parameter_reaches_the_notebook"
    ),
}


def test_no_command_of_the_readme_is_left_out():
    here = {text for text in commands() if "/kaggle " not in text}
    assert here == set(ON_SMALL_THINGS) | set(ELSEWHERE)
