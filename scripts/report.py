"""Run the series of notebooks and write the report.   python -m scripts.report --help

Each notebook runs in a process of its own, beside those that it does not depend on. One whose code,
package, parameters, corpus and upstream records are those of its last run is not run again.
A folder that holds `run.json` is a report's. Nothing in it is ever deleted.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import math
import os
import queue
import re
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from graphlib import TopologicalSorter
from multiprocessing.pool import ThreadPool
from pathlib import Path

import joblib
import matplotlib
import nbformat
import numpy as np
import papermill

PROJECT = Path(__file__).resolve().parents[1]
NOTEBOOKS = PROJECT / "notebooks"
PACKAGE = PROJECT / "labhelpers"
AFFECT_STEPS = ("08", "09", "10")  # they need affect labels
MADE = ("index.html", "html", "notebooks", "report.pdf", "*.zip")  # by a report, in its folder
# What runs a notebook: it ends with the report, even if that is killed.
RUN = """
import json, os, sys, threading
import papermill
threading.Thread(target=lambda: os._exit(len(sys.stdin.read())), daemon=True).start()
papermill.execute_notebook(**json.loads(sys.argv[1]))
"""
# A loaded machine may take minutes to start a kernel.
OPTIONS = {"kernel_name": "python3", "start_timeout": 600, "coalesce_streams": True}


class ReportError(ValueError):
    """The report cannot be made; the message says why and what to do."""


# --- the series -----------------------------------------------------------------------------------


@dataclass
class Notebook:
    """A notebook of the series."""

    path: Path
    cells: list[dict]
    code: list[str]  # of its code cells
    needs: list[str]  # names of the earlier notebooks whose records it loads
    seconds: float  # of the run that it was saved from; 0 if unknown


def read_notebook(path: Path) -> tuple[list[dict], dict]:
    """Cells, each with its source as one text, and metadata of a notebook. Raises ReportError."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        cells = [{**cell, "source": "".join(cell["source"])} for cell in content["cells"]]
        return cells, content["metadata"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ReportError(f"{path}: not a notebook in format 4 ({error})") from None


def read_series(folder: Path) -> dict[str, Notebook]:
    """Name -> notebook, in order. Raises ReportError when there is none."""
    series: dict[str, Notebook] = {}
    for path in sorted(folder.resolve().glob("[0-9]*_*.ipynb")):
        cells, metadata = read_notebook(path)
        code = [cell["source"] for cell in cells if cell["cell_type"] == "code"]
        needs = [name for name in series if re.search(f"[\"']{name}[\"']", "\n".join(code))]
        series[path.stem] = Notebook(path, cells, code, needs, metadata.get("seconds", 0))
    if not series:
        raise ReportError(f"{folder}: no numbered notebooks; run this in a checkout")
    return series


def choose(series: dict[str, Notebook], only: str) -> dict[str, Notebook]:
    """The notebooks to run, in order. only : their numbers, with commas between; "" for all."""
    numbers = tuple(text.strip().zfill(2) for text in only.split(",")) if only else ("",)
    for number in numbers:
        if not any(name.startswith(number) for name in series):
            raise ReportError(f"--only {number}: no such notebook; there are {', '.join(series)}")
    return {name: book for name, book in series.items() if name.startswith(numbers)}


def check_parameters(notebooks: dict[str, Notebook], pairs: list) -> dict[str, dict]:
    """Name of a notebook -> its parameters, as values. Raises ReportError for a wrong one."""
    known = {name: papermill.inspect_notebook(book.path) for name, book in notebooks.items()}
    names = sorted(set().union(*known.values()) - {"DATA", "OUT"})
    given: dict[str, dict] = {name: {} for name in notebooks}
    for parameter, text in pairs:
        if parameter not in names:
            raise ReportError(f"-p {parameter}: not among the parameters {', '.join(names)}")
        for name in notebooks:
            if parameter in known[name]:
                default = known[name][parameter]["default"]
                value = value_of(text, ast.literal_eval(default))
                if value is None:
                    kind = "; numbers are finite and not negative, counts at least 1"
                    raise ReportError(f"-p {parameter} {text}: {name} has {default}{kind}")
                given[name][parameter] = value
    return given


def value_of(text: str, default):
    """A parameter's value, of the kind of its default; None for a wrong one."""
    if isinstance(default, str):
        return text
    try:
        value = ast.literal_eval(text)
        numbers, like = np.array(value), np.array(default)
    except (ValueError, SyntaxError):
        return None
    kind = like.dtype.kind
    least = min(1, like.min()) if kind == "i" else 0  # a seed may be 0
    right = numbers.ndim == like.ndim and numbers.dtype.kind in ("if" if kind == "f" else kind)
    return value if right and np.all((numbers >= least) & (numbers < math.inf)) else None


# --- the report folder ----------------------------------------------------------------------------


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def load_state(out: Path) -> dict:
    """The report folder's run.json, or an empty state.

    Raises ReportError for a run.json of something else, and, where there is none, for files with
    the names of a report's.
    """
    path = out / "run.json"
    state = {"corpus": {}, "author": "", "course": "", "note": "", "notebooks": {}, "pages": ""}
    if path.is_file():
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            return {key: content[key] for key in state}
        except (ValueError, KeyError, TypeError):
            raise ReportError(f"{path}: not written by a report; name another --out") from None
    foreign = [path for pattern in MADE for path in out.glob(pattern)]
    if foreign:
        raise ReportError(
            f"{foreign[0]}: not made by a report, and would be overwritten; move it away, or name "
            "another folder with --out"
        )
    return state


def save_state(out: Path, state: dict) -> None:
    write_text(out / "run.json", json.dumps(state, indent=1, ensure_ascii=False))


def digest(*parts) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def record_digest(out: Path, name: str) -> str:
    """State of a notebook's record: content of the JSON and of its checkpoints."""
    folder = out / "records"
    paths = [folder / f"{name}.json", *sorted((folder / name).glob("*"))]
    return digest([(path.name, path.read_bytes()) for path in paths if path.is_file()])


def keep_outputs(book: Notebook, executed: nbformat.NotebookNode, target: Path) -> None:
    """Write a notebook as it stands in the series, with the outputs of an executed one.

    So its text is today's, and nothing of the machine gets into the file.
    """
    code = [cell for cell in executed.cells if cell.cell_type == "code"]
    given = [cell for cell in code if "injected-parameters" in cell.metadata.get("tags", [])]
    ran = [cell for cell in code if cell not in given]
    if [cell.source for cell in ran] != book.code:  # somebody has worked in it
        return
    executed.cells = []
    for cell in map(nbformat.from_dict, book.cells):
        executed.cells.append(cell)
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = ran[0].outputs, ran.pop(0).execution_count
        if "parameters" in cell.metadata.get("tags", []):
            executed.cells += given
    for cell in given:
        cell.metadata = {"tags": ["injected-parameters"]}
    write_text(target, nbformat.writes(executed) + "\n")


# --- running --------------------------------------------------------------------------------------


def kernel_environment(folder: str, data, out) -> dict[str, str]:
    """What a kernel inherits: no settings of the user's IPython, Jupyter and matplotlib.

    folder : an empty one, for their files; data, out : corpus and report
    """
    user = ("MPLBACKEND", "PYTHONSTARTUP", "PYTHONWARNINGS", "JUPYTER_CONFIG_PATH")
    kept = {name: value for name, value in os.environ.items() if name not in user}
    own = dict.fromkeys(("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR"), folder)
    own |= {"MATPLOTLIBRC": matplotlib.get_data_path(), "PYTHONHASHSEED": "0", "PYTHONUTF8": "1"}
    own |= {"PYDEVD_DISABLE_FILE_VALIDATION": "1"}  # it warns of frozen modules
    own |= {"LABHELPERS_DATA": str(data), "LABHELPERS_OUT": str(out)}
    return {"OMP_NUM_THREADS": "1", **kept, **own}


def faults(cells: list) -> tuple[str, list[str]]:
    """What stopped executed cells, or "", and what they wrote to stderr, in words."""
    problems, warnings = [], []
    for cell in cells:
        for output in cell.get("outputs", []):
            place = f"cell In [{cell.execution_count}]"
            if output.output_type == "error":  # that of sys.exit(), too: a success for papermill
                error = " ".join(f"{output.ename}: {output.evalue}".split())
                problems.append(f"{place} failed with {error[:300]}")
            elif output.get("name") == "stderr":
                warnings.append(f"{place} wrote to stderr: {output.text.strip()[-200:]}")
        if cell.source.strip() and cell.get("execution_count", 1) is None:
            problems.append(f"the kernel ended before: {cell.source.splitlines()[0]}")
    return "".join(problems[:1]), warnings


@dataclass
class Run:
    """A run of chosen notebooks into one report folder."""

    notebooks: dict[str, Notebook]
    given: dict[str, dict]  # name -> parameters from the command line
    corpus: object
    out: Path
    state: dict
    fresh: bool = False

    def target(self, name: str) -> Path:
        return self.out / "notebooks" / f"{name}.ipynb"

    def key(self, name: str) -> str:
        """Hash of all that a notebook's outputs follow from."""
        book = self.notebooks[name]
        paths = sorted(set(PACKAGE.glob("*.*")) - set(PACKAGE.glob("*.md")))
        package = [(path.name, path.read_bytes()) for path in paths]
        upstream = [record_digest(self.out, other) for other in book.needs]
        return digest(book.code, package, self.given[name], self.corpus.fingerprint, upstream)

    def is_unchanged(self, name: str) -> bool:
        """Whether the last run had the same key, and notebook and record are as it left them."""
        entry = self.state["notebooks"].get(name, {})
        last = entry.get("key"), entry.get("record")
        now = self.key(name), record_digest(self.out, name)
        return not self.fresh and last == now and self.target(name).is_file()

    def plan(self, jobs: int) -> str:
        """How many notebooks are to run, and how long that takes on the sample."""
        stale = [book for name, book in self.notebooks.items() if not self.is_unchanged(name)]
        minutes = math.ceil(sum(book.seconds for book in stale) / min(jobs, 2) / 60)
        many = f"{len(stale)} of {len(self.notebooks)} notebooks"
        return f"{many} to run, {minutes} min on the sample"

    def execute(self, jobs: int) -> list[str]:
        """Bring all up to date, `jobs` at a time; returns the names of those that failed.

        A failure stops only what depends on it, which counts as failed.
        """
        books, entries = self.notebooks, self.state["notebooks"]
        graph = TopologicalSorter({name: books.keys() & book.needs for name, book in books.items()})
        graph.prepare()
        finished = queue.SimpleQueue()
        put = {"callback": finished.put, "error_callback": finished.put}
        with ThreadPool(jobs) as pool:
            while graph.is_active():
                for name in sorted(graph.get_ready(), key=lambda name: -books[name].seconds):
                    pool.apply_async(self.update, [name], **put)
                outcome = finished.get()
                if isinstance(outcome, Exception):
                    raise outcome
                name, entry = outcome
                result = entry["problem"] or f"{entry['seconds']:.0f} s"
                result = "unchanged" if entry is entries.get(name) else result
                print("\n".join([f"{name:28} {result}", *entry["warnings"]]), flush=True)
                entries[name] = entry
                save_state(self.out, self.state)
                graph.done(name)
        return [name for name in books if entries[name]["problem"]]

    def update(self, name: str) -> tuple[str, dict]:
        """Run a notebook if it has changed and can run; returns its name and entry of run.json."""
        book, entries = self.notebooks[name], self.state["notebooks"]
        missing = [other for other in book.needs if entries.get(other, {}).get("problem")]
        if missing:
            problem = f"not run: it needs {missing[0]}"
            return name, {"seconds": 0, "problem": problem, "warnings": []}
        if self.is_unchanged(name):
            keep_outputs(book, nbformat.read(self.target(name), 4), self.target(name))
            return name, entries[name]
        key = self.key(name)
        executed = self.run(name)
        seconds = executed.metadata.pop("papermill").get("duration") or 0
        executed.metadata["seconds"] = round(seconds)
        problem, warnings = faults(executed.cells)
        keep_outputs(book, executed, self.target(name))
        entry = {"seconds": seconds, "problem": problem, "warnings": warnings}
        entry |= {"date": time.strftime("%Y-%m-%d %H:%M"), "key": "" if problem else key}
        return name, {**entry, "record": record_digest(self.out, name)}

    def run(self, name: str) -> nbformat.NotebookNode:
        """Run a notebook in a process of its own; returns it as papermill left it."""
        path = self.notebooks[name].path
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            options = {"input_path": path.name, "output_path": f"{folder}/{name}.ipynb"}
            options |= {"parameters": self.given[name], **OPTIONS}
            environment = kernel_environment(folder, self.corpus.root, self.out)
            command = [sys.executable, "-c", RUN, json.dumps(options)]
            streams = {"stdin": subprocess.PIPE, "stderr": subprocess.DEVNULL}
            subprocess.Popen(command, cwd=path.parent, env=environment, **streams).wait()
            return nbformat.read(options["output_path"], 4)


# --- the command ----------------------------------------------------------------------------------


def parse(argv) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m scripts.report", allow_abbrev=False)
    add = parser.add_argument
    add("--data", metavar="DIR", help="corpus folder (default: as the notebooks find it)")
    add("--out", metavar="DIR", help="report folder (default: reports/<corpus>)")
    add("--only", default="", metavar="05,06", help="run these notebooks alone")
    form = {"nargs": 2, "action": "append", "default": [], "metavar": ("NAME", "VALUE")}
    add("-p", dest="parameters", **form, help="a parameter of the notebooks; may be repeated")
    cores = joblib.cpu_count()
    add("--jobs", type=int, default=cores, metavar="N", help="side by side (default: the cores)")
    add("--fresh", action="store_true", help="run unchanged notebooks too")
    add("--author", metavar="NAME", help="name on the report")
    add("--course", metavar="TEXT", help="course on the report")
    add("--pages-only", action="store_true", help="run nothing, write the pages again")
    options = parser.parse_args(argv)
    if options.jobs < 1:
        parser.error("--jobs: at least 1")
    return options


def report(options: argparse.Namespace) -> int:
    """Do what the command line asks; returns the exit status.

    Raises ReportError, and CorpusError and RunError of labhelpers.
    """
    from labhelpers.corpus import find_corpus
    from labhelpers.records import out_folder

    series = read_series(NOTEBOOKS)
    notebooks = choose(series, options.only)
    given = check_parameters(notebooks, options.parameters)
    if options.pages_only and options.out:  # from elsewhere, perhaps: its corpus is not needed
        out = Path(options.out).expanduser().resolve()
    else:
        corpus = find_corpus(options.data)
        out = out_folder(corpus, options.out)
    state = load_state(out)
    for key in ("author", "course"):
        if getattr(options, key) is not None:
            state[key] = getattr(options, key)
    failed = []
    if not options.pages_only:
        about = {"name": corpus.name, "root": str(corpus.root), "sample": corpus.is_sample}
        counts = corpus.describe().to_dict("records")
        state["corpus"] = {**about, "fingerprint": corpus.fingerprint, "counts": counts}
        state["note"] = ""
        if not corpus.has("affect"):
            notebooks = {n: book for n, book in notebooks.items() if n[:2] not in AFFECT_STEPS}
            state["note"] = "Steps 8 to 10 are left out: this corpus has no affect labels."
            print(state["note"])
        run = Run(notebooks, given, corpus, out, state, options.fresh)
        print(run.plan(options.jobs), flush=True)
        save_state(out, state)
        failed = run.execute(options.jobs)
    from .pages import write_report  # which imports this module

    print(write_report(out, state))
    return 1 if failed else 0


def main(argv=None) -> int:
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # a terminal of any encoding
    signal.signal(signal.SIGTERM, signal.default_int_handler)
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
