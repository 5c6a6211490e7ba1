"""Wrong changes that nobody has thought of: comparisons, arithmetic, indices, one at a time.

    python -m tools.mutate metrics clips --count 40 --seed 0

Each change is made in a copy of the project, and the module's own test file runs on it. What no
test notices is printed: read each, it is a gap in the tests or makes no difference.
"""

from __future__ import annotations

import argparse
import ast
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
OPERATORS = {
    ast.Lt: ("<", "<="),
    ast.LtE: ("<=", "<"),
    ast.Gt: (">", ">="),
    ast.GtE: (">=", ">"),
    ast.Eq: ("==", "!="),
    ast.NotEq: ("!=", "=="),
    ast.In: ("in", "not in"),
    ast.NotIn: ("not in", "in"),
    ast.Add: ("+", "-"),
    ast.Sub: ("-", "+"),
    ast.Mult: ("*", "/"),
    ast.Div: ("/", "*"),
    ast.FloorDiv: ("//", "*"),
    ast.Mod: ("%", "*"),
    ast.BitAnd: ("&", "|"),
    ast.BitOr: ("|", "&"),
}
LIMIT = 180  # seconds of a test run: what hangs is noticed


def changes(source: str):
    """Yield (line number, changed source) of every small change to a module's code."""
    starts = [0]
    for line in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(line.encode()))
    data = source.encode()

    def place(line, column):
        return starts[line - 1] + column

    def between(left, right, operator):
        """The change of the operator that stands between two operands."""
        old, new = OPERATORS[type(operator)]
        begin = place(left.end_lineno, left.end_col_offset)
        end = place(right.lineno, right.col_offset)
        middle = data[begin:end].replace(old.encode(), new.encode(), 1)
        return left.lineno, (data[:begin] + middle + data[end:]).decode()

    def constant(node, value):
        begin = place(node.lineno, node.col_offset)
        end = place(node.end_lineno, node.end_col_offset)
        return node.lineno, (data[:begin] + str(value).encode() + data[end:]).decode()

    tree = ast.parse(source)
    hints = {id(n) for part in ast.walk(tree) for h in _annotations(part) for n in ast.walk(h)}
    for node in ast.walk(tree):
        if id(node) in hints:
            continue
        if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
            yield between(node.left, node.right, node.op)
        elif isinstance(node, ast.Compare) and type(node.ops[0]) in OPERATORS:
            yield between(node.left, node.comparators[0], node.ops[0])
        elif isinstance(node, ast.Constant) and type(node.value) is int:
            yield constant(node, node.value + 1)
        elif isinstance(node, ast.Constant) and type(node.value) is bool:
            yield constant(node, not node.value)


def _annotations(node):
    hints = [getattr(node, "annotation", None), getattr(node, "returns", None)]
    return [hint for hint in hints if hint is not None]


def survives(module: str, source: str, copy: Path) -> bool:
    """Whether the module's tests pass with that source."""
    path = copy / "labhelpers" / f"{module}.py"
    original = path.read_text(encoding="utf-8")
    path.write_text(source, encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-q", "-x", f"tests/test_{module}.py"]
    try:
        done = subprocess.run(command, cwd=copy, capture_output=True, timeout=LIMIT)
        return done.returncode == 0
    except subprocess.TimeoutExpired:
        return False
    finally:
        path.write_text(original, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("modules", nargs="+")
    parser.add_argument("--count", type=int, default=30, help="changes drawn for each module")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, "project")
        parts = shutil.ignore_patterns(".git", ".venv*", "data", "reports", "notebooks")
        shutil.copytree(ROOT, copy, ignore=parts)
        for module in options.modules:
            source = (copy / "labhelpers" / f"{module}.py").read_text(encoding="utf-8")
            drawn = list(changes(source))
            random.Random(options.seed).shuffle(drawn)
            drawn = drawn[: options.count]
            lines = source.splitlines()
            alive = [(line, text) for line, text in drawn if survives(module, text, copy)]
            print(f"{module}: {len(drawn) - len(alive)} of {len(drawn)} noticed", flush=True)
            for line, text in alive:
                before, after = lines[line - 1].strip(), text.splitlines()[line - 1].strip()
                print(f"  line {line}: {before}\n        now: {after}", flush=True)


if __name__ == "__main__":
    main()
