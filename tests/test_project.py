"""What holds the project together: lists of packages, links, commands, and the order of imports."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from scripts.report import check_parameters, read_series
from tools import results
from tools.packages import environment

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("*/README.md"))]
PAGES += sorted((ROOT / "docs").glob("*.md"))
PYPROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
TREE = (ROOT / "labhelpers" / "README.md").read_text(encoding="utf-8")
SERIES = read_series(ROOT / "notebooks")
# name of a module -> name of its package, where they differ
PACKAGES = {"sklearn": "scikit-learn", "PIL": "pillow", "pypandoc": "pypandoc-binary"}
NEVER_IMPORTED = {"ipykernel", "ipywidgets", "jupyterlab", "ruff", "kaggle", "nbval"}


def declared():
    """Name -> requirement of each package of pyproject.toml."""
    lines = re.findall(r'^    "([^"]+)",  #', PYPROJECT, re.M)
    return {canonicalize_name(Requirement(line).name): Requirement(line) for line in lines}


def imported(source):
    """Top names that a source imports from outside."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add(node.module.split(".")[0])
    return names - set(sys.stdlib_module_names)


# --- packages -------------------------------------------------------------------------------------


def test_environment_yml_is_what_pyproject_gives():
    assert (ROOT / "environment.yml").read_text(encoding="utf-8") == environment(PYPROJECT)


def test_what_is_imported_is_declared_and_the_reverse():
    sources = [path.read_text(encoding="utf-8") for path in ROOT.glob("[lst]*/*.py")]
    sources += ["\n".join(book.code) for book in SERIES.values()]
    sources.append((ROOT / "conftest.py").read_text(encoding="utf-8"))
    own = {path.stem for path in ROOT.glob("*/*.py")} | {"labhelpers", "scripts", "tools"}
    names = set().union(*map(imported, sources)) - own
    packages = {canonicalize_name(PACKAGES.get(name, name)) for name in names} - {"packaging"}
    assert packages == set(declared()) - NEVER_IMPORTED


@pytest.mark.parametrize("python", ["3.10", "3.11", "3.12", "3.13"])
@pytest.mark.parametrize("file", sorted(path.name for path in ROOT.glob("constraints*.txt")))
def test_pinned_versions_lie_in_the_ranges(file, python):
    here = {"python_version": python, "python_full_version": f"{python}.9"}
    here |= {"sys_platform": "linux", "platform_machine": "x86_64"}
    lines = (ROOT / file).read_text(encoding="utf-8").splitlines()
    pins = [Requirement(line) for line in lines if not line.startswith("#")]
    pins = [pin for pin in pins if pin.marker is None or pin.marker.evaluate(here)]
    versions = {canonicalize_name(pin.name): str(pin.specifier)[2:] for pin in pins}
    assert len(versions) == len(pins), "a package is pinned twice"
    for name, requirement in declared().items():
        assert name not in versions or requirement.specifier.contains(versions[name]), name


def test_the_version_is_the_same_everywhere():
    version = re.search(r'^version = "(.+)"', PYPROJECT, re.M)[1]
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")


# --- pages ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    targets = re.findall(r"\]\(([^)\s#]+)[^)]*\)", page.read_text(encoding="utf-8"))
    local = [target for target in targets if not re.match(r"https?:|mailto:", target)]
    assert [target for target in local if not (page.parent / target).exists()] == []


def commands(page):
    """What stands in code blocks, a command a line, and between backticks in prose."""
    text = page.read_text(encoding="utf-8")
    blocks = re.findall(r"^ *```\w*\n(.*?)^ *```", text, re.M | re.S)
    lines = [line.partition("  #")[0].strip() for block in blocks for line in block.splitlines()]
    inline = re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.S))
    return [line for line in lines + inline if re.match(r"make \w|\S*python -m \w", line)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_are_known(page):
    targets = set(re.findall(r"^([\w-]+):", MAKEFILE, re.M)) | set(SERIES)
    for command in commands(page):
        goals, _, options = command.removeprefix("make ").partition(" ARGS=")
        script = "scripts.report"
        if command.startswith("make "):
            assert set(goals.split()) <= targets, command
        else:
            script, *_ = command.partition(" -m ")[2].split()
            options = command.partition(" -m ")[2]
        options = re.findall(r"(?<![\w-])--?[a-z][\w-]*", options)
        if script.startswith("scripts."):
            source = (ROOT / (script.replace(".", "/") + ".py")).read_text(encoding="utf-8")
            known = set(re.findall(r'"(--?[a-z][\w-]*)"', source)) | {"--help"}
            assert set(options) <= known, command


def test_parameters_that_pages_name_are_those_of_a_notebook():
    pages = "\n".join(page.read_text("utf-8") for page in PAGES)
    given = set(re.findall(r"-p ([A-Z_]+) ([\w,.-]+)", pages))
    assert given and check_parameters(SERIES, list(given))


def test_the_tables_of_results_are_those_of_the_reference():
    text = results.PAGE.read_text(encoding="utf-8")
    assert results.page(text) == text


# --- the package ----------------------------------------------------------------------------------


def test_the_tree_has_a_line_for_each_file():
    block = TREE.split("```")[1]
    listed = set(re.findall(r"^  (\w+)\.py ", block, re.M))
    assert listed == {p.stem for p in ROOT.glob("[ls]*/*.py")} - {"__init__"}


def test_modules_import_only_from_those_above_them():
    order = re.findall(r"^  (\w+)\.py ", TREE.split("```")[1].split("scripts/")[0], re.M)
    for place, name in enumerate(order):
        source = (ROOT / "labhelpers" / f"{name}.py").read_text(encoding="utf-8")
        nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom)]
        own = {node.module for node in nodes if node.level}
        assert own <= set(order[:place]), f"{name} imports {own}"
        assert not imported(source) & {"scripts", "tools"}


IMPORTS = """
import os, random, sys
import matplotlib, numpy, pandas, sklearn, torch  # which change settings of their own

def state():
    options = [pandas.get_option(name) for name in ("display.precision", "display.width")]
    tiny = torch.tensor([1e-310], dtype=torch.float64) * 1, numpy.array([1e-310]) * 1
    draws = random.getstate(), numpy.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    settings = dict(os.environ), str(matplotlib.rcParams), torch.get_num_threads(), os.getcwd()
    return options, [float(number[0]) for number in tiny], draws, settings

before = state()
for name in sys.argv[1:]:
    __import__(f"labhelpers.{name}")
assert min(before[1]) > 0
for old, new in zip(before, state()):
    assert old == new, (old, new)
"""


def test_importing_the_package_changes_nothing_in_the_process():
    names = [path.stem for path in (ROOT / "labhelpers").glob("*.py")]
    command = [sys.executable, "-c", IMPORTS, *names]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and not done.stdout, done.stdout + done.stderr


# --- tests of the notebooks -----------------------------------------------------------------------


def test_a_notebook_is_tested_after_those_it_needs():
    before = {name: set() for name in SERIES}
    for left, right in re.findall(r"^(\d\w[\w ]*): ([\w ]+)$", MAKEFILE, re.M):
        for name in left.split():
            before[name] |= set(right.split())
    for _ in SERIES:
        for name in SERIES:
            before[name] |= set().union(*(before[other] for other in before[name]))
    for name, book in SERIES.items():
        assert set(book.needs) <= before[name], f"Makefile: {name} needs {book.needs}"


@pytest.mark.parametrize("name", SERIES)
def test_a_notebook_says_what_the_readme_says_it_needs(name):
    row = rf"\(notebooks/{name}\.ipynb\).*\| ([\d, ab]*)\|$"
    said = re.search(row, PAGES[0].read_text("utf-8"), re.M)[1].strip()
    assert said == ", ".join(need.split("_")[0] for need in SERIES[name].needs)
