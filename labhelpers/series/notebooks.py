"""The notebooks as files: which there are, their parameters, and what is wrong in executed ones."""

from __future__ import annotations

import ast
import base64
import io
import json
import re
from contextlib import suppress
from pathlib import Path

from PIL import Image

from ..records import RunError

# Parameters of these names count something of which there has to be one at least.
COUNTED = re.compile("EPOCHS|BATCH|CROP|PATIENCE|FOLDS|SEEDS|HIDDEN|CLIPS")
THIS_MACHINE = re.compile(r"site-packages|/(?:home|Users)/\w|/root/|/tmp/")


def read_series(folder: Path) -> dict[str, Path]:
    """Name -> path of the numbered notebooks, in order. Raises RunError when there is none."""
    series = {path.stem: path.resolve() for path in sorted(folder.glob("[0-9]*_*.ipynb"))}
    if not series:
        raise RunError(f"{folder}: no numbered notebooks; run in a checkout, or name their folder")
    return series


def choose(series: dict[str, Path], only=None, start=None) -> list[str]:
    """Names to run, in order. `only`: names or numbers, a list or text with commas.

    Raises RunError for one that is not there.
    """
    names = list(series)
    wanted = only.split(",") if isinstance(only, str) else only
    if wanted:
        found = {_find(names, key.strip()) for key in wanted}
        names = [name for name in names if name in found]
    if start:
        first = list(series).index(_find(list(series), start))
        names = [name for name in names if list(series).index(name) >= first]
    return names


def _find(names: list[str], key: str) -> str:
    """The notebook that is meant by "05", "5", "05_lstm" or "05_lstm.ipynb"."""
    for name in names:
        number = name.split("_")[0]
        if key in (name, f"{name}.ipynb", number, number.lstrip("0") or "0"):
            return name
    raise RunError(f"no notebook {key!r}; there are {', '.join(names)}")


def defaults(path: Path) -> dict:
    """Name -> default of the cell tagged `parameters`.

    A default is a literal or arithmetic on literals (`BATCH = 2 ** 4`), annotated or not.
    Raises RunError with notebook and line for anything else.
    """
    found = {}
    for cell in read_cells(path):
        if "parameters" not in cell["metadata"].get("tags", []):
            continue
        try:
            statements = ast.parse(cell["source"]).body
        except SyntaxError as error:
            raise RunError(f"{path}, parameters, line {error.lineno}: {error.msg}") from None
        for node in statements:
            target = node.targets[0] if isinstance(node, ast.Assign) else node
            target = target.target if isinstance(target, ast.AnnAssign) else target
            if isinstance(target, ast.Name) and node.value is not None:
                found[target.id] = _value(node.value, f"{path}, parameters, line {node.lineno}")
    return found


def _value(node: ast.expr, where: str):
    """The value of a literal, or of arithmetic on literals. Raises RunError."""
    try:
        if any(isinstance(part, (ast.Name, ast.Call)) for part in ast.walk(node)):
            raise ValueError("names and calls are not read")
        return eval(compile(ast.Expression(node), where, "eval"), {"__builtins__": {}})
    except Exception as error:
        raise RunError(
            f"{where}: {ast.unparse(node)} is no value that a report can set ({error}); write a "
            "literal, or arithmetic on literals"
        ) from None


def read_cells(path: Path) -> list[dict]:
    """A notebook's cells, each with its source as one text. Raises RunError."""
    try:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        return [{**cell, "source": "".join(cell["source"])} for cell in cells]
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(f"{path}: not a notebook in format 4 ({error})") from None


def check_parameters(chosen: dict[str, Path], parameters: dict) -> dict:
    """The parameters with text turned into values, checked against the notebooks' defaults.

    Raises RunError for a name that no notebook has, and for a value of another kind.
    """
    for name, option in (("DATA", "--data"), ("OUT", "--out")):
        if name in parameters:
            raise RunError(f"-p {name}: say {option} {parameters[name]}, which all notebooks share")
    known = {name: defaults(path) for name, path in chosen.items()}
    checked = {}
    for key, value in parameters.items():
        having = {name: values[key] for name, values in known.items() if key in values}
        if not having:
            names = sorted(set().union(*known.values()))
            raise RunError(
                f"no chosen notebook has a parameter {key}; known: {', '.join(names) or 'none'}"
            )
        for name, default in having.items():
            checked[key] = _typed(value, default)
            problem = _problem(key, checked[key], default)
            if problem:
                raise RunError(f"{key} = {value!r} {problem}; {name} has {key} = {default!r}")
    return checked


def _typed(value, default):
    """Text as the value it stands for, where the notebook does not want text."""
    if isinstance(value, str) and not isinstance(default, str):
        with suppress(SyntaxError, RunError):
            return _value(ast.parse(value, mode="eval").body, "the command line")
    return value


def _problem(key: str, value, default) -> str:
    """What is wrong with a parameter's value; empty if nothing is."""
    alike = {float: (int, float), tuple: (tuple, list), list: (tuple, list)}
    kinds = alike.get(type(default), type(default))
    mixed = isinstance(value, bool) != isinstance(default, bool)
    if default is not None and (mixed or not isinstance(value, kinds)):
        return f"is no {type(default).__name__}"
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        if value < 1 and COUNTED.search(key):
            return "is too small: 1 or more is needed"
        if value < 0 and isinstance(default, (int, float)) and default >= 0:
            return "is negative"
    return ""


def reads(path: Path, series) -> list[str]:
    """The notebooks whose records this one reads: by their quoted names."""
    sources = [cell["source"] for cell in read_cells(path) if cell["cell_type"] == "code"]
    code = "\n".join(sources)
    others = [name for name in series if name != path.stem]
    return [name for name in others if re.search(f"[\"']{name}[\"']", code)]


# --- executed notebooks ---------------------------------------------------------------------------


def faults(nb) -> list[str]:
    """What a reader of an executed notebook should not meet, a sentence each.

    Code that did not run, warnings and errors, paths of the machine, figures with nothing in them.
    """
    found = []
    for number, cell in enumerate(nb.cells, 1):
        if cell.cell_type != "code":
            continue
        if cell.source.strip() and not cell.execution_count:
            found.append(f"cell {number}: did not run")
        for output in cell.outputs:
            problem = _fault(output)
            if problem:
                found.append(f"cell {number}: {problem}")
    return found


def _fault(output) -> str:
    data = output.get("data", {})
    texts = [data[kind] for kind in data if kind.startswith("text")]
    said = "\n".join([output.get("text", ""), *map(str, texts)])
    if output.output_type == "error":
        return f"ended with {output.ename}"
    if output.get("name") == "stderr":
        return f"wrote to stderr: {output.text.strip()[:100]}"
    if "application/vnd.jupyter.widget-view+json" in data:
        return "shows a widget, which a page cannot"
    if THIS_MACHINE.search(said):
        line = next(line for line in said.splitlines() if THIS_MACHINE.search(line))
        return f"shows a path of this machine: {line.strip()[:100]}"
    if "image/png" in data:
        picture = Image.open(io.BytesIO(base64.b64decode(data["image/png"]))).convert("L")
        darkest, brightest = picture.getextrema()
        if darkest == brightest:
            return "shows an empty figure"
    return ""


def merged(outputs: list) -> list:
    """Outputs in which the pieces of one printed text, as the kernel sent them, are one piece."""
    result: list = []
    for output in outputs:
        last = result[-1] if result else {}
        if output.output_type == "stream" and last.get("name") == output.name:
            last.text += output.text
        else:
            result.append(output)
    return result
