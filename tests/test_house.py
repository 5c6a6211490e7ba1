"""The house: small where notebooks call it, one thing a line, arrows of imports in one direction.

What a reader of a notebook may have to read is counted, so that it does not grow unseen. A number
that has to rise is raised here, with a reason.
"""

import ast
import importlib
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "labhelpers"
EVERY = sorted(PACKAGE.rglob("*.py"))
CALLED = [path for path in EVERY if "series" not in path.parts]  # what notebooks may call
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
NUMBERS = [path.stem.split("_")[0] for path in NOTEBOOKS]
# Aimed at: 2,500 lines, 11 nodes a line, 15 conditional expressions and 7 nested comprehensions.
# The formatter gives every argument of a long call its own line: a tenth of the lines.
LIMITS = {"code lines": 3271, "nodes a line": 10.9, "conditional expressions": 7, "nested": 5}


def name_of(path):
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def docstring_lines(tree):
    documented = (ast.FunctionDef, ast.ClassDef, ast.Module)
    nodes = [node for node in ast.walk(tree) if isinstance(node, documented)]
    return sum(len((ast.get_docstring(node) or "").splitlines()) for node in nodes)


def is_nested(node):
    comprehensions = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
    if not isinstance(node, comprehensions):
        return False
    return len(node.generators) > 1 or any(generator.ifs for generator in node.generators)


def test_what_notebooks_call_is_small_and_says_one_thing_a_line():
    code = nodes = conditional = nested = 0
    for path in CALLED:
        text = path.read_text(encoding="utf-8")
        tree = ast.parse(text)
        lines = [line.strip() for line in text.splitlines()]
        full = [line for line in lines if line and not line.startswith("#")]
        code += len(full) - docstring_lines(tree)
        for node in ast.walk(tree):
            nodes += 1
            conditional += isinstance(node, ast.IfExp)
            nested += is_nested(node)
    measured = {
        "code lines": code,
        "nodes a line": round(nodes / code, 1),
        "conditional expressions": round(1000 * conditional / code),  # in 1,000 lines
        "nested": round(1000 * nested / code),  # comprehensions with a filter or two loops
    }
    above = {what: number for what, number in measured.items() if number > LIMITS[what]}
    assert not above, f"measured {measured}, at most {LIMITS}"


def test_no_line_is_over_100_characters():
    folders = ("labhelpers", "tests", "tools")
    paths = list(ROOT.glob("*.py"))
    for folder in folders:
        paths += (ROOT / folder).rglob("*.py")
    long = []
    for path in paths:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if len(line) > 100:
                long.append(f"{path.relative_to(ROOT)}:{number}")
    assert not long


def imports(path):
    """Modules that a file imports, late imports too, as "series.run", and what it takes of them."""
    inside = ["labhelpers", *path.relative_to(PACKAGE).parts[:-1]]
    known = {name_of(other) for other in EVERY if other.name != "__init__.py"}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            base = inside[: len(inside) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            # What is taken from a package may be a module.
            taken = {f"{module}.{alias.name}": [] for alias in node.names}
            taken[module] = [alias.name for alias in node.names]
            for name, names in taken.items():
                name = name.removeprefix("labhelpers.")
                if name in known:
                    yield name, names


MODULES = {name_of(path): path for path in EVERY if path.name != "__init__.py"}


def test_no_import_goes_round_in_a_circle():
    """Nor does a late one: what a module needs lies below it."""
    below = {name: {module for module, _ in imports(path)} for name, path in MODULES.items()}
    placed: set[str] = set()
    while len(placed) < len(below):
        ready = {name for name, needs in below.items() if name not in placed and needs <= placed}
        assert ready, f"a circle among {sorted(set(below) - placed)}"
        placed |= ready


@pytest.mark.parametrize("name", MODULES)
def test_imports_point_downwards_and_at_public_names(name):
    """That are there: a late import of what has gone would fail only when it is needed."""
    for module, names in imports(MODULES[name]):
        inside = name.startswith("series.") or not module.startswith("series.")
        assert inside, f"{name}, which notebooks call, imports {module}, which runs notebooks"
        private = [private for private in names if private.startswith("_")]
        assert not private, f"{name} reads {private} of {module}"
        there = importlib.import_module(f"labhelpers.{module}")
        absent = [gone for gone in names if not hasattr(there, gone)]
        assert not absent, f"{name} imports {absent} of {module}"


def test_importing_the_package_does_nothing():
    assert all(not path.read_text().strip() for path in EVERY if path.name == "__init__.py")


def public(tree):
    """(name, node) of the functions and classes that a module offers."""
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            yield node.name, node


@pytest.mark.parametrize("name", MODULES)
def test_what_is_public_says_what_it_is_for(name):
    tree = ast.parse(MODULES[name].read_text(encoding="utf-8"))
    assert ast.get_docstring(tree)
    bare = [name for name, node in public(tree) if not ast.get_docstring(node)]
    for name, node in public(tree):
        methods = node.body if isinstance(node, ast.ClassDef) else []
        for method in methods:
            if isinstance(method, ast.FunctionDef) and not method.name.startswith("_"):
                long = method.end_lineno - method.lineno > 6
                if long and method.name != "forward" and not ast.get_docstring(method):
                    bare.append(f"{name}.{method.name}")
    assert not bare


def notebook_code(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return "\n".join("".join(cell["source"]) for cell in cells)


def numbers_in(docstring):
    """The notebooks that a docstring names: "05", "01, 03", "06 to 10", "all" or "none"."""
    found = re.search(r"\bNotebooks?: (all|none|\d[^.]*)", docstring or "")
    if not found:
        return None
    if found[1] in ("all", "none"):
        return {"all": NUMBERS, "none": []}[found[1]]
    ends = [NUMBERS.index(number) for number in re.findall(r"\d\d[ab]?", found[1])]
    if " to " in found[1]:
        return NUMBERS[ends[0] : ends[1] + 1]
    return [NUMBERS[i] for i in ends]


def called_by_notebooks(module, name):
    """Numbers of the notebooks that take a name from a module, imported or through the module."""
    users = []
    last = module.rpartition(".")[2]
    imported = rf"from labhelpers\.{module} import (\([^)]*|.*)\b{name}\b"
    for path, number in zip(NOTEBOOKS, NUMBERS, strict=True):
        code = notebook_code(path)
        names = [last, *re.findall(rf"import {last} as (\w+)", code)]
        through = rf"\b({'|'.join(names)})\.{name}\b"
        if re.search(imported, code) or re.search(through, code):
            users.append(number)
    return users


@pytest.mark.parametrize("name", [name for name in MODULES if not name.startswith("series.")])
def test_what_notebooks_may_call_names_its_notebook(name):
    """The one that teaches it, or for whose sake it is there; "none" is for commands alone."""
    for public_name, node in public(ast.parse(MODULES[name].read_text(encoding="utf-8"))):
        told, users = numbers_in(ast.get_docstring(node)), called_by_notebooks(name, public_name)
        assert told is not None, f"{public_name}: say which notebook, as in 'Notebook: 05'"
        assert not users or set(told) & set(users), f"{public_name}: {users} call it, not {told}"


def test_what_is_public_has_a_user():
    """A notebook, another module, or a tool: what only its own file uses is private."""
    texts = {path: path.read_text(encoding="utf-8") for path in EVERY}
    texts |= {path: notebook_code(path) for path in NOTEBOOKS}
    for path in (*(ROOT / "tools").rglob("*.py"), ROOT / "pyproject.toml", ROOT / "Makefile"):
        texts[path] = path.read_text(encoding="utf-8")
    unused = []
    for path in CALLED:
        for name, node in public(ast.parse(texts[path])):
            lines = texts[path].splitlines()
            rest = lines[: node.lineno - 1] + lines[node.end_lineno :]
            others = [text for other, text in texts.items() if other != path]
            if not any(re.search(rf"\b{name}\b", text) for text in ["\n".join(rest), *others]):
                unused.append(f"{name_of(path)}.{name}")
    assert not unused


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_imports_what_it_may(path):
    code = notebook_code(path)
    for module in re.findall(r"^from labhelpers\.([\w.]+) import", code, re.M):
        assert module in MODULES and not module.startswith("series"), module
    assert not re.search(r"^(from|import) tools\b", code, re.M)
