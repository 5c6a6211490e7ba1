"""Run the series of notebooks through papermill, skipping what has not changed."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import deque
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import nbformat
import papermill
from filelock import FileLock, Timeout

from ..corpora.find import find_corpus
from ..files import write_text
from ..records import RunError, out_folder, versions
from .notebooks import (
    check_parameters,
    choose,
    defaults,
    faults,
    merged,
    read_cells,
    read_series,
    reads,
)
from .pages import can_set, duration, load_state, write_report
from .results import headlines, read_records

log = logging.getLogger("labhelpers")
SERIES = Path(__file__).parent
PACKAGE = SERIES.parent
LOG_EVERY = 60  # seconds between lines on one notebook where the output is no terminal
KERNEL_START = 600  # seconds that a kernel may take to answer, on a loaded machine


def run_series(
    data=None,
    out=None,
    *,
    only=None,
    start=None,
    parameters=None,
    fresh=False,
    report=True,
    notebooks=None,
    author="",
    course="",
    code=False,
) -> Path:
    """Run the notebooks that changed and write the report; returns the path of its index.html.

    data, out : corpus and report folder (default: as `find_corpus` and `out_folder` choose)
    only : numbers ("00", "9a") or names of the notebooks to run; start : the first to run
    parameters : name -> value, for the notebooks that have that parameter; text is read as Python
    fresh : run unchanged ones too; report : write pages, PDFs and zip; notebooks : their folder
    author, course : for the hand-in; code : keep the code in the full PDF
    Raises RunError for an unknown notebook or parameter, a wrong value, and a failing notebook.
    """
    series = read_series(Path(notebooks) if notebooks else PACKAGE.parent / "notebooks")
    chosen = choose(series, only, start)
    given = check_parameters({name: series[name] for name in chosen}, parameters or {})
    data = data or os.environ.get("LABHELPERS_DATA")
    corpus = find_corpus(data)
    if data:
        given["DATA"] = str(corpus.root)
    if out:
        given["OUT"] = str(Path(out).expanduser().resolve())
    out = out_folder(corpus, out)
    with _alone_in(out):
        state = load_state(out)
        state["corpus"] = {
            "name": corpus.name,
            "sample": corpus.is_sample,
            "root": str(corpus.root),
            "counts": corpus.describe().to_dict("records"),
        }
        _sign(state, author, course)
        try:
            _run_all(chosen, series, given, corpus, out, state, fresh)
        except RunError:
            if report:
                try:
                    _write(series, out, state, code)
                except Exception as error:  # it must not hide what stopped the run
                    log.warning("The report could not be written either: %s", error)
            raise
        if report:
            _write(series, out, state, code)
    return _told(out)


def rewrite_report(out: Path, *, author="", course="", code=False) -> Path:
    """Write pages, PDFs and zip again from what a run left in `out`; returns its index.html.

    Neither corpus nor models are needed: `out` may come from Kaggle. Raises RunError.
    """
    out = Path(out).expanduser().resolve()
    folder = PACKAGE.parent / "notebooks"
    series = read_series(folder) if folder.is_dir() else {}
    if not any((out / "records").glob("*.json")):
        raise RunError(f"{out}: no records; name a report folder, as in reports/sample")
    with _alone_in(out):
        state = load_state(out)
        _sign(state, author, course)
        write_report(out, series, state, code=code)
        _save({**state, "report": ""}, out)
    return _told(out)


def _sign(state: dict, author: str, course: str) -> None:
    """Put name and course on a report; without new ones those of the last time stay."""
    for key, value in (("author", author), ("course", course)):
        state[key] = value or state.get(key, "")


def _told(out: Path) -> Path:
    for sentence in headlines(read_records(out)):
        log.info(sentence)
    return out / "index.html"


@contextmanager
def _alone_in(out: Path):
    """Hold the report folder, which two runs at a time would spoil. Raises RunError."""
    lock = FileLock(out / "records" / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise RunError(
            f"{out}: another report is being written there; wait for it, or name another --out"
        ) from None
    try:
        yield
    finally:
        lock.release()


def _write(series: dict[str, Path], out: Path, state: dict, code: bool) -> None:
    """Write the report on what lies in `out`, unless nothing in it has changed."""
    files = [*(out / "notebooks").glob("*.ipynb"), *(out / "records").glob("*.json")]
    files += [*PACKAGE.rglob("*.py"), *(SERIES / "templates").iterdir()]
    contents = [(path.name, path.read_bytes()) for path in sorted(files)]
    key = _hash(code, {**state, "report": ""}, list(series), contents)
    results = ["index.html", "deliverable.zip"]
    if can_set():
        results += ["report.pdf", "appendix.pdf"]
    if state.get("report") == key and all((out / name).is_file() for name in results):
        return
    missing = "" if can_set() else " (no pages and PDF: pip install pypandoc_binary typst)"
    log.info("Writing the report%s …", missing)
    write_report(out, series, state, code=code)
    state["report"] = key
    _save(state, out)


# --- what has changed -----------------------------------------------------------------------------


def _unchanged(name: str, series, own: dict, corpus, out: Path, state: dict) -> bool:
    """Whether the last run of a notebook was on all that it depends on now, and is still there."""
    before = state["notebooks"].get(name, {})
    return (
        before.get("state") == "done"
        and before.get("key") == _key(series[name], series, own, corpus, out)
        and before.get("record") == _record(out, name)
        and (out / "notebooks" / f"{name}.ipynb").is_file()
    )


def _key(path: Path, series, own: dict, corpus, out: Path) -> str:
    """Hash of all that a notebook's outputs follow from."""
    source = [cell["source"] for cell in read_cells(path) if cell["cell_type"] == "code"]
    upstream = [(name, _record(out, name)) for name in reads(path, series)]
    return _hash(source, _package(), own, corpus.fingerprint, upstream, versions())


def _package() -> str:
    """State of the modules that a notebook may use."""
    files = [*PACKAGE.glob("*.py"), *(PACKAGE / "corpora").glob("*.py")]
    return _hash([(path.name, path.read_text(encoding="utf-8")) for path in sorted(files)])


def _take_text(path: Path, executed: Path) -> None:
    """Give an executed notebook the text of its source: a sentence that changed needs no run."""
    book = nbformat.read(executed, 4)
    ran = deque(cell for cell in book.cells if cell.cell_type == "code")
    cells = []
    for cell in nbformat.read(path, 4).cells:
        cells.append(ran.popleft() if cell.cell_type == "code" else cell)
        if ran and "injected-parameters" in ran[0].metadata.get("tags", []):
            cells.append(ran.popleft())
    before, book.cells = book.cells, cells

    def text(cell):
        return cell.source, cell.metadata.get("tags", [])

    if [text(cell) for cell in before] != [text(cell) for cell in cells]:
        write_text(executed, nbformat.writes(book) + "\n")


def _record(out: Path, name: str) -> str:
    """State of a notebook's record: the JSON's content, the checkpoints' names and sizes."""
    files = []
    for path in sorted((out / "records").glob(f"{name}.*")):
        content = path.read_bytes() if path.suffix == ".json" else path.stat().st_size
        files.append((path.name, content))
    return _hash(files)


def _hash(*parts) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def _save(state: dict, out: Path) -> None:
    write_text(out / "run.json", json.dumps(state, indent=1))


# --- running --------------------------------------------------------------------------------------


def _run_all(chosen, series, given: dict, corpus, out: Path, state: dict, fresh: bool) -> None:
    """Run those of the chosen notebooks that changed; keeps `run.json` up to date."""
    owned = {}
    for name in chosen:
        known = defaults(series[name])
        owned[name] = {key: value for key, value in given.items() if key in known}
    stale: list[str] = []
    for name in chosen:
        again = fresh or not _unchanged(name, series, owned[name], corpus, out, state)
        if again or set(reads(series[name], series)) & set(stale):
            stale.append(name)
    seconds = {name: state["notebooks"].get(name, {}).get("seconds") for name in stale}
    progress = Progress(seconds)
    for name in chosen:
        # Once more: what it reads may have come out as it was.
        if not fresh and _unchanged(name, series, owned[name], corpus, out, state):
            progress.skip(name)
            _take_text(series[name], out / "notebooks" / f"{name}.ipynb")
            took = state["notebooks"][name].get("seconds", 0)
            log.info("%s: unchanged, kept (%s when it ran)", name, duration(took))
            continue
        _run_one(name, series, owned[name], corpus, out, state, progress)


def _run_one(name, series, own: dict, corpus, out: Path, state: dict, progress: Progress) -> None:
    path, target = series[name], out / "notebooks" / f"{name}.ipynb"
    entry = {
        "state": "failed",
        "date": f"{datetime.now():%Y-%m-%d %H:%M}",
        "device": _device(own.get("DEVICE", "auto")),
    }
    key = _key(path, series, own, corpus, out)
    state["notebooks"][name] = entry
    _save(state, out)  # first, so that an interrupted run is not taken for a finished one
    begun = time.perf_counter()
    try:
        with progress.running(name):
            nb = _execute(path, target, own, progress)
        entry.update(key=key, record=_record(out, name), state="done")
    finally:
        entry["seconds"] = round(time.perf_counter() - begun, 1)
        _save(state, out)
    log.info("%s: %d cells in %s", name, len(nb.cells), duration(entry["seconds"]))
    for fault in faults(nb):
        log.warning("%s, %s", name, fault)


def _execute(path: Path, target: Path, own: dict, progress: Progress):
    """Run one notebook in its own folder and keep it; returns it. Raises RunError."""
    with tempfile.TemporaryDirectory() as folder:
        running = Path(folder, path.name)  # papermill writes in place: a kill would leave half
        problem = None
        try:
            with _kernel_environment():
                papermill.execute_notebook(
                    path,
                    running,
                    own,
                    cwd=path.parent,
                    kernel_name="python3",
                    language="python",
                    progress_bar=False,
                    start_timeout=KERNEL_START,
                    on_cell_start=progress.cell,
                    # Kernels listen on this machine alone: no word on unencrypted channels.
                    extra_arguments=["--log-level=CRITICAL"],
                )
        except papermill.PapermillExecutionError as error:
            if error.ename == "KeyboardInterrupt":
                raise KeyboardInterrupt from None
            failed = f"cell In [{error.exec_count}] failed with {error.ename}: {error.evalue}"
            problem = f"{path.stem}, {failed}"
        except Exception as error:  # a dead kernel, a full disk: whatever it is, say where
            problem = f"{path.stem} stopped with {type(error).__name__}: {error}"
        kept = _keep(running, target, problem)
    if problem:
        raise RunError(f"{problem}\nIts output so far: {target}" if kept else problem)
    unrun = [fault for fault in faults(kept) if "did not run" in fault]
    if unrun:  # sys.exit() in a cell passes for success
        raise RunError(f"{path.stem} ended early: {unrun[0]}, nor what follows\nSee {target}")
    return kept


def _keep(running: Path, target: Path, problem: str | None):
    """Move what papermill left to its place, without times and paths of this run."""
    try:
        nb = nbformat.read(running, 4)
        nb.metadata.pop("papermill", None)
        for cell in nb.cells:
            if cell.cell_type == "code":
                cell.outputs = merged(cell.outputs)
            for key in ("papermill", "execution"):
                cell.metadata.pop(key, None)
        write_text(target, nbformat.writes(nb) + "\n")
        return nb
    except (OSError, ValueError) as error:
        if problem is None:
            raise
        log.warning("What %s did until then is lost: %s", running.stem, error)
        return None


@contextmanager
def _kernel_environment():
    """What a kernel inherits; and SIGTERM ends it with us, instead of leaving it to itself."""
    before = dict(os.environ)
    os.environ.pop("MPLBACKEND", None)  # the kernel's inline backend, or there are no figures
    os.environ.setdefault("PYTHONHASHSEED", "0")
    os.environ.setdefault("PYDEVD_DISABLE_FILE_VALIDATION", "1")
    # Set outside, "error" would kill a kernel at its start. Where ipywidgets is not installed, a
    # progress bar that nobody sees warns in red of its absence.
    os.environ["PYTHONWARNINGS"] = "ignore:IProgress not found"
    main = threading.current_thread() is threading.main_thread()
    handler = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143)) if main else None
    try:
        yield
    finally:
        if main:
            signal.signal(signal.SIGTERM, handler)
        os.environ.clear()
        os.environ.update(before)


def _device(name: str) -> str:
    """The device that a notebook with DEVICE = `name` computes on, in words. Raises RunError."""
    import torch

    from ..training import pick_device

    try:
        device = pick_device(name)
        if device.type == "cuda":
            return torch.cuda.get_device_name(device)
    except (ValueError, RuntimeError) as error:
        raise RunError(f"DEVICE: {error}") from None
    return f"CPU ({platform.machine()}, {os.cpu_count()} cores)"


class Progress:
    """What is running: a line that ticks each second on a terminal, else a line a minute.

    seconds : name -> seconds of its last run or None, of the notebooks that are to run
    """

    def __init__(self, seconds: dict[str, float | None]):
        self.left, self.total = dict(seconds), len(seconds)
        self.live = sys.stdout.isatty()
        self.place = ""

    def skip(self, name: str) -> None:
        if name in self.left:
            del self.left[name]
            self.total -= 1

    @contextmanager
    def running(self, name: str):
        """Tell of a notebook until its end."""
        self.place, begun, done = "", time.perf_counter(), threading.Event()
        ticking = threading.Thread(target=self._tick, args=(name, begun, done), daemon=True)
        ticking.start()
        try:
            yield
        finally:
            done.set()
            ticking.join()
            self.left.pop(name, None)
            if self.live:
                print("\r\033[K", end="", flush=True)

    def cell(self, cell, cell_index: int, **_) -> None:
        """papermill's word that a cell begins."""
        heading = re.search(r"^#+ *(.+)", cell.source, re.M)
        if cell.cell_type == "markdown" and heading:
            self.place = heading[1]

    def line(self, name: str, passed: float) -> str:
        """As in "05_lstm, notebook 3 of 12 · 1 min 4 s, about 6 min left · 5α. LSTM on mel"."""
        number = self.total - len(self.left) + 1
        text = f"{name}, notebook {number} of {self.total} · {duration(passed)}"
        if None not in self.left.values():
            expected = max(self.left[name] - passed, 0)
            expected += sum(self.left.values()) - self.left[name]
            text += f", about {duration(expected)} left" if expected else ", longer than last time"
        return f"{text} · {self.place}" if self.place else text

    def _tick(self, name: str, begun: float, done: threading.Event) -> None:
        told = None
        while not done.is_set():
            now = time.perf_counter()
            text = self.line(name, now - begun)
            if self.live:
                width = shutil.get_terminal_size().columns - 1
                print(f"\r\033[K{text[:width]}", end="", flush=True)
            elif told is None or now - told >= LOG_EVERY:
                log.info(text)
                told = now
            done.wait(1)
