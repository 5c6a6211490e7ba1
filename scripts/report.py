"""Run the series of notebooks and write the report.   python -m scripts.report --help

Each notebook runs in a process of its own, beside those that it does not depend on. One whose code,
package, parameters, corpus and upstream records are those of its last run is not run again.
`run.json` in the report folder holds what ran, and the list of the files that the report made.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import importlib.metadata
import importlib.util
import json
import math
import multiprocessing
import os
import re
import signal
import sys
import tempfile
import threading
import time
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from datetime import datetime
from graphlib import TopologicalSorter
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]
NOTEBOOKS = PROJECT / "notebooks"
PACKAGE = PROJECT / "labhelpers"
AFFECT_STEPS = ("08", "09", "10")  # they need affect labels
LIBRARIES = ("numpy", "scipy", "scikit-learn", "librosa", "torch")
SUFFIXES = (".html", ".ipynb", ".pdf", ".zip", ".json")  # of the files that a report makes
KERNEL_START = 600  # seconds that a kernel may take to answer on a loaded machine


class ReportError(ValueError):
    """The report cannot be made; the message says why and what to do."""


@dataclass(frozen=True)
class Notebook:
    """A notebook of the series: its code, and the earlier notebooks whose records it loads."""

    path: Path
    cells: list[dict]
    needs: tuple[str, ...]
    seconds: float  # of the run that it was saved from; 0 if unknown

    @property
    def name(self) -> str:
        return self.path.stem

    @property
    def number(self) -> str:
        return self.name.split("_")[0]

    @property
    def numbers(self) -> tuple[str, str]:
        """As in 05 and 5."""
        return self.number, self.number.lstrip("0") or "0"

    @property
    def code(self) -> list[str]:
        return code_of(self.cells)


# --- the series -----------------------------------------------------------------------------------


def read_notebook(path: Path) -> tuple[list[dict], dict]:
    """Cells, each with its source as one text, and metadata of a notebook. Raises ReportError."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        cells = [{**cell, "source": "".join(cell["source"])} for cell in content["cells"]]
        return cells, content["metadata"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ReportError(f"{path}: not a notebook in format 4 ({error})") from None


def code_of(cells: list[dict]) -> list[str]:
    return [cell["source"] for cell in cells if cell["cell_type"] == "code"]


def read_series(folder: Path) -> dict[str, Notebook]:
    """Name -> notebook, in order. Raises ReportError when there is none."""
    series: dict[str, Notebook] = {}
    for path in sorted(folder.glob("[0-9]*_*.ipynb")):
        cells, metadata = read_notebook(path)
        code = "\n".join(code_of(cells))
        needs = tuple(name for name in series if re.search(f"[\"']{name}[\"']", code))
        series[path.stem] = Notebook(path.resolve(), cells, needs, metadata.get("seconds", 0))
    if not series:
        raise ReportError(f"{folder}: no numbered notebooks; run this in a checkout")
    return series


def choose(series: dict[str, Notebook], only: str | None) -> list[str]:
    """The names to run, in order. only : numbers or names with commas between; None for all."""
    if only is None:
        return list(series)
    chosen = set()
    for key in only.split(","):
        key = key.strip().removesuffix(".ipynb")
        names = [name for name, book in series.items() if key in (name, *book.numbers)]
        if not names:
            numbers = ", ".join(book.number for book in series.values())
            raise ReportError(f"--only {only}: there is no notebook {key!r}; there are {numbers}")
        chosen.add(names[0])
    return [name for name in series if name in chosen]


# --- parameters -----------------------------------------------------------------------------------


def check_parameters(notebooks: list[Notebook], pairs: list) -> dict[str, dict]:
    """Name of a notebook -> its parameters, as values. Raises ReportError for a wrong one."""
    if not pairs:
        return {book.name: {} for book in notebooks}
    import papermill

    known = {book.name: papermill.inspect_notebook(book.path) for book in notebooks}
    given: dict[str, dict] = {book.name: {} for book in notebooks}
    for parameter, text in pairs:
        if parameter in ("DATA", "OUT"):
            raise ReportError(f"-p {parameter}: use --{parameter.lower()}, all notebooks share it")
        owners = [name for name, parameters in known.items() if parameter in parameters]
        if not owners:
            names = ", ".join(sorted(set().union(*known.values()) - {"DATA", "OUT"}))
            raise ReportError(f"no chosen notebook has a parameter {parameter}; there are {names}")
        for name in owners:
            default = literal(known[name][parameter]["default"])
            value = text if isinstance(default, str) else literal(text)
            problem = fault(parameter, value, default)
            if problem:
                raise ReportError(
                    f"{parameter} = {text}: {problem}; notebook {name} has {parameter} = {default}"
                )
            given[name][parameter] = value
    return given


def literal(text: str):
    """The value of a Python literal; any other text stands for itself."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text


def fault(name: str, value, default) -> str:
    """What is wrong with a parameter's value, in words; empty when nothing is."""
    if default is None:
        return ""
    if isinstance(default, (tuple, list)):
        if not isinstance(value, (tuple, list)) or not value:
            return f"not a {type(default).__name__}"
        if isinstance(default, tuple) and len(value) != len(default):
            return f"{len(default)} values are needed"
        return next(filter(None, (fault(name, part, default[0]) for part in value)), "")
    if isinstance(default, float) and type(value) is int:
        value = float(value)
    if type(value) is not type(default):
        return f"not of type {type(default).__name__}"
    if isinstance(value, (bool, str)):
        return ""
    if not math.isfinite(value) or value < 0:
        return "a finite number of at least 0 is needed"
    if isinstance(default, float):
        if name.startswith("LR") and value == 0:
            return "a learning rate is above 0"
        return "a number from 0 to 1 is needed" if default <= 1 < value else ""
    least = 2 if "FOLDS" in name else min(default, 1)
    return "" if value >= least else f"{least} or more is needed"


# --- what has changed -----------------------------------------------------------------------------


def digest(*parts) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def record_digest(out: Path, name: str) -> str:
    """State of a notebook's record: content of the JSON and of its checkpoints."""
    folder = out / "records"
    paths = [folder / f"{name}.json", *sorted((folder / name).glob("*"))]
    return digest([(path.name, path.read_bytes()) for path in paths if path.is_file()])


def refresh_text(book: Notebook, executed: Path) -> None:
    """Give an executed notebook the text of its source, if its code is the same: no run needed."""
    before, _ = read_notebook(executed)
    ran = [cell for cell in before if cell["cell_type"] == "code"]
    injected = [cell for cell in ran if "injected-parameters" in cell["metadata"].get("tags", [])]
    if [cell["source"] for cell in ran if cell not in injected] != book.code:
        return
    cells = []
    for cell in book.cells:
        if cell["cell_type"] != "code":
            cells.append(cell)
            continue
        cells.append({**ran.pop(0), "metadata": cell["metadata"]})
        if ran and ran[0] in injected:
            cells.append(ran.pop(0))
    if cells != before:
        content = json.loads(executed.read_text(encoding="utf-8")) | {"cells": cells}
        write_text(executed, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


# --- the report folder ----------------------------------------------------------------------------


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def load_state(out: Path) -> dict:
    """The report folder's run.json, or an empty state. Raises ReportError for a strange file."""
    path = out / "run.json"
    empty = {"corpus": {}, "author": "", "course": "", "notebooks": {}, "files": []}
    empty |= {"pages": "", "note": ""}
    if not path.is_file():
        return empty
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
        right = all(isinstance(state[key], type(value)) for key, value in empty.items())
        right = right and all(isinstance(entry, dict) for entry in state["notebooks"].values())
    except (ValueError, KeyError, TypeError):
        right = False
    if not right:
        raise ReportError(f"{path}: not as a report writes it; move it away, or name another --out")
    return state


def save_state(out: Path, state: dict) -> None:
    write_text(out / "run.json", json.dumps(state, indent=1, ensure_ascii=False))


def claim(out: Path, state: dict, names) -> None:
    """Enter files (relative paths) as the report's own before they are written.

    Raises ReportError for one that is there already and was made by somebody else.
    """
    foreign = [name for name in names if name not in state["files"] and (out / name).exists()]
    if foreign:
        raise ReportError(
            f"{out / foreign[0]} was not made by a report and is left as it is; move it away, or "
            "name another folder with --out"
        )
    state["files"] = sorted({*state["files"], *names})
    save_state(out, state)


def remove_old(out: Path, state: dict, names) -> None:
    """Delete files that the report made and that are no longer part of it."""
    for name in names:
        path = (out / name).resolve()
        if path.is_relative_to(out.resolve()) and path.suffix in SUFFIXES:
            path.unlink(missing_ok=True)
    state["files"] = sorted(set(state["files"]) - set(names))
    save_state(out, state)


def describe(corpus) -> dict:
    """What the pages say of a corpus, which need not be at hand when they are written again."""
    counts = corpus.describe().to_dict("records")
    about = {"name": corpus.name, "root": str(corpus.root), "sample": corpus.is_sample}
    return {**about, "fingerprint": corpus.fingerprint, "counts": counts}


# --- running --------------------------------------------------------------------------------------


def kernel_environment(folder: str, data: Path, out: Path) -> dict[str, str]:
    """What a kernel inherits: no settings of the user's IPython, Jupyter and matplotlib."""
    matplotlib = importlib.util.find_spec("matplotlib")
    environment = dict(os.environ)
    for name in ("MPLBACKEND", "PYTHONSTARTUP", "PYTHONWARNINGS", "JUPYTER_CONFIG_PATH"):
        environment.pop(name, None)
    for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR"):
        environment[name] = folder
    if matplotlib:
        environment["MATPLOTLIBRC"] = str(Path(matplotlib.origin).parent / "mpl-data/matplotlibrc")
    environment["PYTHONHASHSEED"] = "0"
    environment["PYTHONUTF8"] = "1"
    environment["PYDEVD_DISABLE_FILE_VALIDATION"] = "1"
    environment.setdefault("OMP_NUM_THREADS", "1")
    environment |= {"LABHELPERS_DATA": str(data), "LABHELPERS_OUT": str(out)}
    return environment


def prepare_worker(environment: dict[str, str]) -> None:
    """Prepare a worker process; it ends with the report, even if that is killed."""
    os.environ.clear()
    os.environ.update(environment)
    threading.Thread(target=end_with_parent, daemon=True).start()


def end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)


def execute(path: Path, target: Path, own: dict) -> dict:
    """Run one notebook in its folder and keep it at `target`; seconds, problem and warnings.

    Runs in a worker process. problem : one sentence; empty when all cells ran
    """
    import papermill

    began, problem = time.perf_counter(), ""
    with tempfile.TemporaryDirectory() as folder:
        running = Path(folder, path.name)  # papermill writes in place: a kill would leave half
        try:
            papermill.execute_notebook(
                path,
                running,
                own,
                cwd=path.parent,
                kernel_name="python3",
                language="python",
                progress_bar=False,
                start_timeout=KERNEL_START,
                extra_arguments=["--log-level=CRITICAL"],
            )
        except papermill.PapermillExecutionError as error:
            last = f"{error.ename}: {error.evalue}".strip().splitlines()[-1]
            if not last.startswith(error.ename):
                last = f"{error.ename} … {last}"
            problem = f"cell In [{error.exec_count}] failed with {last[:300]}"
        except Exception as error:  # a kernel that died, a full disk
            problem = f"stopped with {type(error).__name__}: {error}"
        seconds = round(time.perf_counter() - began, 1)
        cells = keep(running, target, seconds) if running.is_file() else []
    places = {id(cell): f"cell In [{cell.get('execution_count')}]" for cell in cells}
    unrun = [cell for cell in cells if cell["source"] and not cell.get("execution_count")]
    if unrun and not problem:  # sys.exit() in a cell passes for success
        problem = f"ended early; not run: {unrun[0]['source'].splitlines()[0]}"
    warnings = [
        f"{places[id(cell)]} wrote to stderr: {output['text'].strip().splitlines()[-1][:200]}"
        for cell in cells
        for output in cell["outputs"]
        if output.get("name") == "stderr" and output["text"].strip()
    ]
    return {"seconds": seconds, "problem": problem, "warnings": warnings}


def keep(running: Path, target: Path, seconds: float) -> list[dict]:
    """Move what papermill left to its place, without this machine's times and paths.

    Returns the code cells.
    """
    import nbformat

    book = nbformat.read(running, 4)
    book.metadata.pop("papermill", None)
    book.metadata["seconds"] = round(seconds)
    cells = []
    for cell in book.cells:
        tags = cell.metadata.get("tags", [])
        if "papermill-error-cell-tag" in tags:
            continue
        for key in ("papermill", "execution"):
            cell.metadata.pop(key, None)
        if not tags:
            cell.metadata.pop("tags", None)
        if cell.cell_type == "code":
            cell.outputs = merge_streams(cell.outputs)
        cells.append(cell)
    book.cells = cells
    write_text(target, nbformat.writes(book) + "\n")
    return [cell for cell in cells if cell.cell_type == "code"]


def merge_streams(outputs: list) -> list:
    """Outputs in which the pieces of one printed text, as the kernel sent them, are one piece."""
    merged: list = []
    for output in outputs:
        last = merged[-1] if merged else {}
        if output.output_type == "stream" and last.get("name") == output.name:
            last.text += output.text
        else:
            merged.append(output)
    return merged


@dataclass
class Run:
    """A run of chosen notebooks into one report folder."""

    notebooks: dict[str, Notebook]
    given: dict[str, dict]  # name -> parameters from the command line
    corpus: object
    out: Path
    state: dict
    fresh: bool = False
    failed: list[str] = field(default_factory=list)

    def needs(self, name: str) -> list[str]:
        return [other for other in self.notebooks[name].needs if other in self.notebooks]

    def target(self, name: str) -> Path:
        return self.out / "notebooks" / f"{name}.ipynb"

    def key(self, name: str) -> str:
        """Hash of all that a notebook's outputs follow from."""
        book = self.notebooks[name]
        package = [(path.name, path.read_bytes()) for path in sorted(PACKAGE.glob("*.py"))]
        upstream = [record_digest(self.out, other) for other in book.needs]
        versions = [importlib.metadata.version(library) for library in LIBRARIES]
        fingerprint = self.corpus.fingerprint
        return digest(book.code, package, self.given[name], fingerprint, upstream, versions)

    def is_unchanged(self, name: str) -> bool:
        """Whether the last run had the same key, and notebook and record are as it left them."""
        entry = self.state["notebooks"].get(name, {})
        return (
            not self.fresh
            and entry.get("key") == self.key(name)
            and entry.get("record") == record_digest(self.out, name)
            and self.target(name).is_file()
        )

    def plan(self, jobs: int) -> str:
        """How many notebooks are to run, and about how long that takes where it is known."""
        stale: dict[str, float] = {}  # name -> seconds until it is done
        total = 0.0
        for name, book in self.notebooks.items():
            earlier = [stale[other] for other in self.needs(name) if other in stale]
            if earlier or not self.is_unchanged(name):
                seconds = self.state["notebooks"].get(name, {}).get("seconds") or book.seconds
                stale[name] = max(earlier, default=0) + seconds
                total += seconds
        text = f"{len(self.notebooks)} notebooks, {len(stale)} to run"
        if total:
            longest = max(stale.values())
            text += f", about {math.ceil(max(longest, total / jobs) / 60)} min"
        return text

    def execute(self, jobs: int) -> None:
        """Run what changed, `jobs` at a time; a failure stops only what depends on it."""
        graph = TopologicalSorter({name: self.needs(name) for name in self.notebooks})
        graph.prepare()
        claim(self.out, self.state, [f"notebooks/{name}.ipynb" for name in self.notebooks])
        with tempfile.TemporaryDirectory() as folder:
            pool = ProcessPoolExecutor(
                jobs,
                mp_context=multiprocessing.get_context("spawn"),
                initializer=prepare_worker,
                initargs=(kernel_environment(folder, self.corpus.root, self.out),),
            )
            running: dict = {}
            try:
                while graph.is_active():
                    for name in sorted(graph.get_ready()):
                        if self.skip(name):
                            graph.done(name)
                        else:
                            running[self.start(pool, name)] = name, self.key(name)
                    done, _ = wait(running, return_when=FIRST_COMPLETED)
                    for future in done:
                        name, key = running.pop(future)
                        self.finish(name, key, future.result())
                        graph.done(name)
            except BaseException as error:
                for process in multiprocessing.active_children():
                    process.terminate()
                if isinstance(error, BrokenProcessPool):
                    raise ReportError("a process of the report died; too little memory?") from None
                raise
            finally:
                pool.shutdown(cancel_futures=True)

    def skip(self, name: str) -> bool:
        """Whether a notebook need not or cannot run; prints which."""
        missing = [other for other in self.needs(name) if other in self.failed]
        if missing:
            print(f"{name:28} not run: it needs {missing[0]}", flush=True)
            self.failed.append(name)
        elif self.is_unchanged(name):
            print(f"{name:28} unchanged", flush=True)
        else:
            return False
        return True

    def start(self, pool, name: str):
        """Send a notebook to a worker process; returns the future of its result."""
        entry = self.state["notebooks"].get(name, {})
        entry = {"state": "running", "seconds": entry.get("seconds", 0)}
        self.state["notebooks"][name] = entry  # a kill from here on is no success
        save_state(self.out, self.state)
        return pool.submit(execute, self.notebooks[name].path, self.target(name), self.given[name])

    def finish(self, name: str, key: str, result: dict) -> None:
        """Note and print what became of a notebook."""
        entry = {"seconds": result["seconds"], "date": f"{datetime.now():%Y-%m-%d %H:%M}"}
        if result["problem"]:
            self.failed.append(name)
            entry |= {"state": "failed", "problem": result["problem"]}
        else:
            entry |= {"state": "done", "key": key, "record": record_digest(self.out, name)}
        self.state["notebooks"][name] = entry
        save_state(self.out, self.state)
        print(f"{name:28} {result['problem'] or seconds(result['seconds'])}", flush=True)
        for warning in result["warnings"]:
            print(f"{'':28} {warning}", flush=True)


def seconds(number: float) -> str:
    return f"{number:.0f} s"


# --- the command ----------------------------------------------------------------------------------


def cores() -> int:
    """Those that this process may use; macOS tells only how many there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def positive(text: str) -> int:
    if int(text) < 1:
        raise ValueError
    return int(text)


def parse(argv) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.report",
        description="Run the series of notebooks and write the report.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--data", metavar="DIR", help="corpus folder (default: as the notebooks find it)")
    add("--out", metavar="DIR", help="report folder (default: reports/<corpus>)")
    add("--only", metavar="05,06", help="run these notebooks alone")
    add(
        "-p",
        dest="parameters",
        nargs=2,
        action="append",
        default=[],
        metavar=("NAME", "VALUE"),
        help="a parameter of the notebooks that have it; may be repeated",
    )
    add(
        "--jobs",
        type=positive,
        default=cores(),
        metavar="N",
        help="notebooks side by side (default: the cores)",
    )
    add("--fresh", action="store_true", help="run unchanged notebooks too")
    add("--author", metavar="NAME", help="name on the report")
    add("--course", metavar="TEXT", help="course on the report")
    add("--pages-only", action="store_true", help="run nothing, write the pages again")
    return parser.parse_args(argv)


def report(options: argparse.Namespace) -> int:
    """Do what the command line asks; returns the exit status. Raises ReportError."""
    series = read_series(NOTEBOOKS)
    names = choose(series, options.only)
    if options.data not in (None, "sample") and not Path(options.data).expanduser().is_dir():
        raise ReportError(f"--data {options.data}: no such folder")
    given = check_parameters([series[name] for name in names], options.parameters)
    from labhelpers.corpus import find_corpus
    from labhelpers.records import out_folder

    failed: list[str] = []
    if options.pages_only and options.out:  # from elsewhere, perhaps: its corpus is not needed
        out = Path(options.out).expanduser().resolve()
        state = load_state(out)
    else:
        corpus = find_corpus(options.data)
        out = out_folder(corpus, options.out)
        state = load_state(out)
    for key in ("author", "course"):
        if getattr(options, key) is not None:
            state[key] = getattr(options, key)
    if not options.pages_only:
        state |= {"corpus": describe(corpus), "note": ""}
        if not corpus.has("affect"):
            names = [name for name in names if not name.startswith(AFFECT_STEPS)]
            state["note"] = "Steps 8 to 10 are left out: this corpus has no affect labels."
            print(state["note"])
        notebooks = {name: series[name] for name in names}
        run = Run(notebooks, given, corpus, out, state, options.fresh)
        print(run.plan(options.jobs), flush=True)
        run.execute(options.jobs)
        failed = run.failed
    for book in series.values():
        place = f"notebooks/{book.path.name}"
        if place in state["files"] and (out / place).is_file():
            refresh_text(book, out / place)
    from .pages import write_report

    print(write_report(out, state))
    return 1 if failed else 0


def stop(*_):
    raise KeyboardInterrupt


def main(argv=None) -> int:
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # a terminal of any encoding
    signal.signal(signal.SIGTERM, stop)
    try:
        return report(parse(argv))
    except KeyboardInterrupt:
        print("Stopped. What is finished is kept; the same command goes on from there.")
        return 130
    except (OSError, ValueError, RuntimeError) as error:
        if type(error) in (ValueError, RuntimeError):  # a fault of the program
            raise
        print(f"report: {error}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
