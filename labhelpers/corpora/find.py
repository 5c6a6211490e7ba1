"""Which corpus to work on: the one that is named, Kaggle's, one in data/, else the sample."""

from __future__ import annotations

import os
from pathlib import Path

from ..files import project_root
from .layout import MARKER, Corpus, CorpusError
from .sample import make_sample

KAGGLE_INPUT = Path(os.environ.get("LABHELPERS_KAGGLE_INPUT", "/kaggle/input"))


def kaggle_reports(corpus: str) -> list[Path]:
    """Folders reports/<corpus> in the outputs of notebooks attached on Kaggle."""
    return sorted(KAGGLE_INPUT.glob(f"**/reports/{corpus}"))


def find_corpus(data: str | Path | None = None, say=print) -> Corpus:
    """The corpus to work on: `data`, else $LABHELPERS_DATA, else Kaggle's mounts, else data/, else the sample.

    data : the corpus folder or one above it
    Returns a Corpus, and says which one it took. The sample is built on first use (about two minutes).
    Raises CorpusError when a named folder holds no corpus.
    """
    named = [("DATA", data), ("LABHELPERS_DATA", os.environ.get("LABHELPERS_DATA"))]
    for source, folder in named:
        if folder:
            root = locate(Path(folder).expanduser())
            if root is None:
                raise CorpusError(f"{source} = {folder}: no {MARKER} in or below it; name the data's folder")
            return _take(root, f"named by {source}", say)
    project = project_root()
    places = {"Kaggle input": KAGGLE_INPUT, "../input": Path("../input"), "the data folder": project / "data"}
    for how, folder in places.items():
        # The sample lives in data/ too: it is the last resort, not a find.
        root = locate(folder, skip=("sample",))
        if root is not None:
            return _take(root, f"found in {how}", say)
    sample = project / "data" / "sample"
    if locate(sample) is None:
        say("No corpus found: building the sample of synthesised music (about two minutes, once) …")
        make_sample(sample)
    return _take(sample, "no real corpus found", say)


def _take(root: Path, how: str, say) -> Corpus:
    corpus = Corpus(root.resolve(), how)
    say(f"Corpus: {corpus.name} ({how})")
    if corpus.is_sample:
        say("Note: this is the sample, synthesised music of 10 s a clip. Its numbers say nothing about real music.")
    return corpus


def locate(folder: Path, skip: tuple[str, ...] = (), depth: int = 6) -> Path | None:
    """The first folder at or below `folder` (breadth first, by name) that holds the marker file, or None."""
    level = [folder]
    for _ in range(depth):
        for candidate in level:
            if (candidate / MARKER).is_file():
                return candidate
        level = [child for parent in level for child in _folders(parent) if child.name not in ("train", "test", *skip)]
    return None


def _folders(parent: Path) -> list[Path]:
    try:
        return sorted(child for child in parent.iterdir() if child.is_dir() and not child.name.startswith("."))
    except OSError:  # absent, a file, or not ours to read: nothing to find there
        return []
