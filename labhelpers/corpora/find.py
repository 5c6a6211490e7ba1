"""Which corpus to work on: the one that is named, Kaggle's, one in data/, else the sample."""

from __future__ import annotations

import os
import time
from pathlib import Path

from ..files import project_root
from .layout import MARKER, Corpus, CorpusError
from .sample import make_sample

KAGGLE_INPUT = Path(os.environ.get("LABHELPERS_KAGGLE_INPUT", "/kaggle/input"))
MOUNT_WAIT = float(os.environ.get("LABHELPERS_MOUNT_WAIT", 60))  # seconds that an empty input gets
LAB_DATA = "geoparslp/patreco3-multitask-affective-music"  # the lab's data set on Kaggle
CLICKS = f"""
1. Add Input, search {LAB_DATA}, press +; or the lab's contest, its rules accepted.
   An input that stays empty: remove it, add it again.
2. Run > Restart & clear cell outputs, then Run All.
(A push drops a source that Kaggle does not know, and prints which.)
To see the notebook on synthesised music instead: DATA = "sample"."""


def find_corpus(data: str | Path | None = None) -> Corpus:
    """The corpus to work on, and prints which one. Notebook: 00.

    data : a corpus or a folder above it; "sample"; None takes $LABHELPERS_DATA, else Kaggle's
        inputs, else a corpus in ../input or data/, else the sample
    The sample is built on first use (about a minute); on Kaggle only where it is named.
    Raises CorpusError when the named folder holds no corpus, or none is attached on Kaggle.
    """
    source = "DATA" if data else "LABHELPERS_DATA"
    named = data or os.environ.get("LABHELPERS_DATA")
    if named == "sample":
        return _sample(f"named by {source}")
    if named:
        root = locate(Path(named).expanduser())
        if root is None:
            raise CorpusError(f"{source} = {named}: no {MARKER} below it; name the data's folder")
        return _take(root, f"named by {source}")
    if KAGGLE_INPUT.is_dir() or "KAGGLE_KERNEL_RUN_TYPE" in os.environ:
        if not (root := find_attached(lambda: locate(KAGGLE_INPUT))):
            raise CorpusError(f"no data ({MARKER}) here. {attached()}{CLICKS}")
        return _take(root, "found in Kaggle input")
    places = {"../input": Path("../input"), "the data folder": project_root() / "data"}
    for how, folder in places.items():
        # The sample lives in data/ too: it is the last resort, not a find.
        root = locate(folder, skip="sample")
        if root is not None:
            return _take(root, f"found in {how}")
    return _sample("no real corpus found")


def _sample(how: str) -> Corpus:
    folder = project_root() / "data" / "sample"
    if locate(folder) is None:
        print("Building the sample of synthesised music (about a minute, once) …")
        make_sample(folder)
    return _take(folder, how)


def _take(root: Path, how: str) -> Corpus:
    corpus = Corpus(root.resolve(), how)
    print(f"Corpus: {corpus.name} ({how})")
    if corpus.is_sample:
        caution = "Its numbers say nothing about real music."
        print(f"Note: this is the sample, synthesised music of 10 s a clip. {caution}")
    return corpus


def locate(folder: Path, skip: str = "") -> Path | None:
    """The first folder at or below `folder` (breadth first, by name) with a corpus, or None.

    skip : the name of folders to pass by. Links are followed; no folder is looked into twice.
    Notebook: 00.
    """
    level, seen = [folder], set()
    for _ in range(6):  # a corpus lies no deeper than that
        below = []
        for candidate in level:
            if os.path.isfile(candidate / MARKER):
                return candidate
            if os.path.realpath(candidate) not in seen:
                below += [child for child in _folders(candidate) if child.name != skip]
            seen.add(os.path.realpath(candidate))
        level = below
    return None


def _folders(parent: Path) -> list[Path]:
    """The folders in `parent`, by name, without hidden ones and those of arrays."""
    try:
        names = {entry.name for entry in os.scandir(parent) if entry.is_dir()}
    except OSError:  # absent, a file, or not ours to read: nothing to find there
        return []
    return [parent / name for name in sorted(names - {"train", "test"}) if name[0] != "."]


def mounts() -> list[Path]:
    """What is attached on Kaggle, by path: <slug>, or datasets/<owner>/<slug> and the like.

    Notebook: 00.
    """
    deeper = {"notebooks": "*/*", "datasets": "*/*", "competitions": "*"}
    found = []
    for top in _folders(KAGGLE_INPUT):
        if top.name in deeper:
            found += sorted(top.glob(deeper[top.name]))
        else:
            found.append(top)
    return found


def kaggle_reports(corpus_name: str) -> list[Path]:
    """Where attached notebooks may have left a report on that corpus, by path.

    Notebooks: 06 to 10.
    """
    return [mount / "reports" / corpus_name for mount in mounts()]


def find_attached(look):
    """What `look()` finds; as long as that is nothing, an empty input on Kaggle is waited for.

    Notebook: 00.
    """
    end = time.monotonic() + MOUNT_WAIT
    while not (found := look()) and _empty_mounts() and time.monotonic() < end:
        time.sleep(MOUNT_WAIT / 20)
    return found


def attached() -> str:
    """What is attached on Kaggle, and what of it stayed empty, in words. Notebook: 00."""
    names = ", ".join(map(str, mounts())) or "nothing"
    empty = ", ".join(map(str, _empty_mounts())) or "none"
    return f"Attached: {names}. Empty after {MOUNT_WAIT:.0f} s: {empty}."


def _empty_mounts() -> list[Path]:
    return [mount for mount in mounts() if not any(mount.glob("*"))]
