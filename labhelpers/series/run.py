"""Run the series of notebooks through papermill, skipping what has not changed, and have `pages` write the report."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import json
import logging
import os
import platform
import re
import sys
import time
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from ..corpora.find import find_corpus
from ..files import write_text
from ..records import RunError, out_folder

SERIES = Path(__file__).parent
PACKAGE = SERIES.parent
LOG_EVERY = 60  # seconds between progress lines within one notebook when the output is no terminal


def run_series(
    data=None, out=None, only=None, start=None, parameters=None, fresh=False, code=False, report=True, notebooks=None,
    say=print,
) -> Path:  # fmt: skip
    """Run the notebooks that changed and write the report; returns the path of its index.html.

    data, out : the corpus folder and the report's (default: as `find_corpus` and `out_folder` choose)
    only : numbers ("00", "09a") or names of the notebooks to run; start : the first to run; both None runs all
    parameters : name -> value, for the notebooks that have that parameter; text is read as Python where it can be
    fresh : run unchanged ones too; code : keep the code in the PDF; report : write the pages, the PDF and the zip;
    notebooks : their folder
    Raises RunError for an unknown notebook or parameter, an ill-typed value, and a notebook that fails.
    """
    series = read_series(Path(notebooks) if notebooks else PACKAGE.parent / "notebooks")
    chosen = choose(series, only, start)
    given = check_parameters({name: series[name] for name in chosen}, parameters or {})
    data = data or os.environ.get("LABHELPERS_DATA")
    corpus = find_corpus(data)
    given |= {"DATA": str(corpus.root)} if data else {}
    given |= {"OUT": str(Path(out).expanduser().resolve())} if out else {}
    out = out_folder(corpus, out)
    state = {"notebooks": {}, **_load(out / "run.json")}
    try:
        for name in chosen:
            _run_if_changed(name, series, given, corpus, out, state, fresh, say)
    except RunError:
        if report:
            _write(series, corpus, out, state, code, say)  # what was done so far
        raise
    return _write(series, corpus, out, state, code, say) if report else out / "index.html"


def _write(series, corpus, out: Path, state: dict, code: bool, say) -> Path:
    """The report on what lies in `out`, made again only when something in it has changed; returns its index."""
    files = [path for folder in ("notebooks", "records") for path in sorted((out / folder).glob("*.[ij]*"))]
    files += [*sorted(PACKAGE.rglob("*.py")), *sorted((SERIES / "templates").iterdir())]
    key = _hash(code, state["notebooks"], list(series), [(path.name, path.read_bytes()) for path in files])
    results = [out / name for name in ("index.html", "deliverable.zip", "report.pdf")][: 3 if can_set() else 2]
    if state.get("report") != key or not all(path.is_file() for path in results):
        from .pages import write_report

        missing = "" if can_set() else " (no pages and PDF: pip install pypandoc_binary typst)"
        say(f"Writing the report{missing} …")
        write_report(series, corpus, out, state["notebooks"], code=code)
        _save(state | {"report": key}, out)
    return results[0]


# --- which notebooks, with which parameters ---------------------------------------------------------------------------


def read_series(folder: Path) -> dict[str, Path]:
    """Name -> path of the numbered notebooks, in order. Raises RunError when there is none."""
    series = {path.stem: path.resolve() for path in sorted(folder.glob("[0-9]*_*.ipynb"))}
    if not series:
        raise RunError(f"{folder}: no numbered notebooks; run from a checkout, or name their folder")
    return series


def choose(series: dict[str, Path], only=None, start=None) -> list[str]:
    """Names to run, in order. `only`: names or numbers, a list or text with commas. Raises RunError."""

    def find(key):
        found = [name for name in series if key in (name, name.split("_")[0], series[name].name)]
        if not found:
            raise RunError(f"no notebook {key!r}; there are {', '.join(series)}")
        return found[0]

    wanted = only.split(",") if isinstance(only, str) else only
    names = [name for name in series if name in {find(key.strip()) for key in wanted}] if wanted else list(series)
    return [name for name in names if list(series).index(name) >= list(series).index(find(start))] if start else names


def defaults(path: Path) -> dict:
    """Name -> default of the cell tagged `parameters`."""
    for cell in _cells(path):
        if "parameters" in cell["metadata"].get("tags", []):
            assigned = [node for node in ast.parse(cell["source"]).body if isinstance(node, ast.Assign)]
            return {node.targets[0].id: ast.literal_eval(node.value) for node in assigned}
    return {}


def _cells(path: Path) -> list[dict]:
    """A notebook's cells, each with its source as one text. By hand: importing nbformat takes 2 s. Raises RunError."""
    try:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(f"{path}: not a notebook in format 4 ({error})") from None
    return [{**cell, "source": "".join(cell["source"])} for cell in cells]


def check_parameters(chosen: dict[str, Path], parameters: dict) -> dict:
    """The parameters with text turned into values, checked against the notebooks' defaults. Raises RunError."""
    known = {name: defaults(path) for name, path in chosen.items()}
    checked = {}
    for key, value in parameters.items():
        having = {name: values[key] for name, values in known.items() if key in values}
        if not having:
            names = sorted({key for values in known.values() for key in values})
            raise RunError(f"no chosen notebook has a parameter {key}; known: {', '.join(names) or 'none'}")
        for name, default in having.items():
            checked[key] = _typed(value, default)
            if not _fits(checked[key], default):
                raise RunError(f"{key} = {value!r} is no {type(default).__name__}; {name} has {key} = {default!r}")
    return checked


def _typed(value, default):
    if not isinstance(value, str) or isinstance(default, str):
        return value
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return value


def _fits(value, default) -> bool:
    if default is None or isinstance(value, bool) or isinstance(default, bool):
        return default is None or type(value) is type(default)
    alike = {float: (int, float), tuple: (tuple, list), list: (tuple, list)}
    return isinstance(value, alike.get(type(default), type(default)))


# --- running ----------------------------------------------------------------------------------------------------------


def _run_if_changed(name, series, given, corpus, out, state, fresh, say):
    """Run one notebook unless nothing it depends on has changed; keeps `run.json` up to date."""
    path, target = series[name], out / "notebooks" / f"{name}.ipynb"
    own = {key: value for key, value in given.items() if key in defaults(path)}
    key, before = _key(path, series, own, corpus, out), state["notebooks"].get(name, {})
    unchanged = before.get("key") == key and before.get("record") == _record(out, name) and target.is_file()
    if unchanged and before.get("state") == "done" and not fresh:
        say(f"{name}: unchanged, kept ({duration(before['seconds'])} when it ran)")
        return
    begun = time.perf_counter()
    entry = {
        "state": "failed",
        "date": f"{datetime.now():%Y-%m-%d %H:%M}",
        "device": _device(own.get("DEVICE", "auto")),
    }
    state["notebooks"][name] = entry
    _save(state, out)  # first, so that an interrupted run is not taken for a finished one
    try:
        cells = _execute(path, target, own, _Progress(name, before.get("seconds"), say))
        entry.update(key=key, record=_record(out, name), state="done")
    finally:
        entry["seconds"] = round(time.perf_counter() - begun, 1)
        _save(state, out)
    _Progress(name, None, say).end(f"{name}: {cells} cells in {duration(entry['seconds'])}")


def _key(path: Path, series, own: dict, corpus, out: Path) -> str:
    """Hash of all that a notebook's outputs follow from."""
    source = [(cell["cell_type"], cell["source"]) for cell in _cells(path)]
    # A notebook reads the record of another by its quoted name.
    code = "\n".join(text for kind, text in source if kind == "code")
    others = [name for name in series if name != path.stem and re.search(f"[\"']{name}[\"']", code)]
    upstream = [(name, _record(out, name)) for name in others]
    return _hash(source, _package(), own, corpus.fingerprint, upstream)


def _package() -> str:
    """State of the modules that a notebook may use."""
    files = [*PACKAGE.glob("*.py"), *(PACKAGE / "corpora").glob("*.py")]
    return _hash([(path.name, path.read_text()) for path in sorted(files)])


def _record(out: Path, name: str) -> str:
    """State of a notebook's record: the JSON's content, the checkpoints' names and sizes."""
    files = sorted((out / "records").glob(f"{name}.*"))
    return _hash([(f.name, f.read_text() if f.suffix == ".json" else f.stat().st_size) for f in files])


def merged(outputs: list) -> list:
    """Outputs in which the pieces of one printed text, as the kernel happened to send them, are one piece."""
    result: list = []
    for output in outputs:
        if output.output_type == "stream" and result and result[-1].get("name") == output.name:
            result[-1].text += output.text
        else:
            result.append(output)
    return result


def _execute(path: Path, target: Path, own: dict, progress: _Progress) -> int:
    """Run one notebook in its own folder; returns the number of cells. Raises RunError, KeyboardInterrupt."""
    import nbformat
    import papermill
    from papermill.engines import NBClientEngine, papermill_engines

    class Told(NBClientEngine):
        """papermill's own engine, telling which cell begins."""

        @classmethod
        def execute_managed_notebook(cls, nb_man, *args, **kwargs):
            begin = nb_man.cell_start

            def cell_start(cell, cell_index=None, **more):
                progress.cell(nb_man.nb, cell_index)
                begin(cell, cell_index, **more)

            nb_man.cell_start = cell_start
            return super().execute_managed_notebook(nb_man, *args, **kwargs)

    papermill_engines.register("told", Told)
    os.environ.pop("MPLBACKEND", None)  # the kernel's inline backend, or there are no figures
    os.environ.setdefault("PYTHONHASHSEED", "0")
    os.environ.setdefault("PYDEVD_DISABLE_FILE_VALIDATION", "1")
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        # Kernels listen on this machine only, so their warnings of unencrypted channels are dropped.
        quiet = {"progress_bar": False, "extra_arguments": ["--log-level=CRITICAL"]}
        python = {"kernel_name": "python3", "language": "python"}
        with progress.listening():
            nb = papermill.execute_notebook(
                path, target, own, engine_name="told", cwd=path.parent, log_output=True, **python, **quiet
            )
    except papermill.PapermillExecutionError as error:
        if error.ename == "KeyboardInterrupt":
            raise KeyboardInterrupt from None
        said = f"{path.stem}, cell In [{error.exec_count}] failed with {error.ename}: {error.evalue}"
        raise RunError(f"{said}\nIts output so far: {target}") from None
    except Exception as error:  # a dead kernel, a full disk: whatever it is, say where
        said = f"{path.stem} stopped with {type(error).__name__}: {error}"
        raise RunError(f"{said}\nIts output so far: {target}") from error
    unrun = [
        i for i, cell in enumerate(nb.cells, 1) if cell.cell_type == "code" and cell.source and not cell.execution_count
    ]
    if unrun:  # sys.exit() in a cell passes for success
        raise RunError(f"{path.stem} ended early: cell {unrun[0]} did not run, nor what follows\nIts output: {target}")
    nb.metadata.pop("papermill", None)
    for cell in nb.cells:
        if cell.cell_type == "code":
            cell.outputs = merged(cell.outputs)
        for key in ("papermill", "execution"):  # times and paths of this run
            cell.metadata.pop(key, None)
    write_text(target, nbformat.writes(nb))
    return len(nb.cells)


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


class _Progress:
    """Which cell runs and what it printed last: one line rewritten on a terminal, a line a minute in a log."""

    def __init__(self, name: str, expected: float | None, say):
        self.name, self.say = name, say
        self.live = say is print and sys.stdout.isatty()
        self.begun = self.told = time.perf_counter()
        self.expected = f", {duration(expected)} last time" if expected else ""
        self.place = ("", "")

    def cell(self, nb, index: int):
        prose = "\n".join(cell.source for cell in nb.cells[: index + 1] if cell.cell_type == "markdown")
        heading = ([""] + re.findall(r"^#+ *(.+)", prose, re.M))[-1]
        self.place = f"cell {index + 1} of {len(nb.cells)}", heading
        self._tell(first=index == 0)

    def printed(self, text: str):
        """What the cell under way has just printed."""
        last = re.split(r"[\r\n]+", text.strip())[-1]
        if last and not last.startswith("<"):  # "<Figure size …>" is no news
            self._tell(last)

    def _tell(self, printed: str = "", first: bool = False):
        now = time.perf_counter()
        cell, heading = self.place
        text = f"{self.name}: {cell} ({duration(now - self.begun)}{self.expected})  {heading}"
        text += f" · {' '.join(printed.split())}" if printed else ""
        if self.live:
            print(f"\r\033[K{text[: os.get_terminal_size().columns - 1]}", end="", flush=True)
        elif first or now - self.told > LOG_EVERY:
            self.say(text)
            self.told = now

    @contextmanager
    def listening(self):
        """Hear what cells print: papermill, with log_output, logs it."""

        class Heard(logging.Handler):
            def emit(_, record):
                if record.funcName == "log_output_message":
                    self.printed(record.getMessage())

        log, handler = logging.getLogger("papermill"), Heard()
        level, propagate = log.level, log.propagate
        log.addHandler(handler)
        log.setLevel(logging.INFO)
        log.propagate = False  # papermill's own words stay out of the terminal
        try:
            yield
        finally:
            log.removeHandler(handler)
            log.setLevel(level)
            log.propagate = propagate

    def end(self, text: str):
        self.say(f"\r\033[K{text}" if self.live else text)


def duration(seconds: float) -> str:
    """As in "42 s" or "3 min 20 s"."""
    return f"{seconds:.0f} s" if seconds < 59.5 else "{} min {} s".format(*divmod(round(seconds), 60))


def can_set() -> bool:
    """Whether pandoc and typst, which set pages and PDF, are installed; Kaggle's image lacks them."""
    return all(importlib.util.find_spec(name) for name in ("pypandoc", "typst"))


def _hash(*parts) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def _load(path: Path) -> dict:
    """The state of the last run; a missing or damaged file only means that everything runs again."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _save(state: dict, out: Path):
    write_text(out / "run.json", json.dumps(state, indent=1))
