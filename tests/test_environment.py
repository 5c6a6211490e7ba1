"""pyproject.toml, environment.yml, constraints.txt tell one story, which admits Kaggle's image."""

from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10; pytest brings tomli there
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
CONDA_NAMES = {"pytorch": "torch", "pysoundfile": "soundfile", "matplotlib-base": "matplotlib"}
KAGGLE_IMAGE = {
    "torch": "2.10.0",
    "numpy": "2.0.2",
    "pandas": "2.2.2",
    "scikit-learn": "1.6.1",
    "librosa": "0.11.0",
    "matplotlib": "3.10.0",
    "scipy": "1.16.3",
    "soundfile": "0.13.1",
    "seaborn": "0.13.2",
    "ipython": "7.34.0",
}
NEXT_IMAGE = {"torch": "2.11.0", "pandas": "2.2.3", "soundfile": "0.14.0"}  # and Python 3.13
PYTHONS = ("3.10", "3.11", "3.12", "3.13")


def ranges(lines):
    """Requirement strings -> {canonical name: range}."""
    requirements = [Requirement(line) for line in lines]
    return {canonicalize_name(r.name): r.specifier for r in requirements}


@pytest.fixture(scope="module")
def declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return ranges(project["dependencies"] + sum(project["optional-dependencies"].values(), []))


def test_environment_yml_names_the_same_packages_and_ranges(declared):
    entries = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    pip = next(entry["pip"] for entry in entries if isinstance(entry, dict))
    conda = ranges(line for line in entries if isinstance(line, str))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert conda.pop("python") == project["requires-python"]
    conda.pop("pip")
    conda = {CONDA_NAMES.get(name, name): spec for name, spec in conda.items()}
    assert {**conda, **ranges(line for line in pip if line != "-e .")} == declared


def test_each_package_of_environment_yml_says_who_needs_it():
    lines = (ROOT / "environment.yml").read_text().split("- pip\n")[1].splitlines()
    bare = []
    for line in lines:
        if line.strip() not in ("", "- pip:", "- -e .") and "#" not in line:
            bare.append(line)
    assert not bare


@pytest.mark.parametrize("python", PYTHONS)
def test_constraints_lie_in_the_ranges(declared, python):
    environment = {
        "python_version": python,
        "python_full_version": python + ".9",
        "sys_platform": "linux",
        "platform_machine": "x86_64",
        "implementation_name": "cpython",
    }
    lines = [Requirement(line) for line in (ROOT / "constraints.txt").read_text().splitlines()]
    here = [r for r in lines if r.marker is None or r.marker.evaluate(environment)]
    pins = {canonicalize_name(r.name): str(r.specifier).removeprefix("==") for r in here}
    assert len(pins) == len(here), "a package is pinned twice"
    for name, spec in declared.items():
        assert spec.contains(pins[name]), f"{name} {pins[name]} is pinned, {spec} is declared"


@pytest.mark.parametrize("image", [KAGGLE_IMAGE, NEXT_IMAGE])
def test_kaggles_images_lie_in_the_ranges(declared, image):
    for name, version in image.items():
        said = f"{name} {version} is what Kaggle has, {declared[name]} is declared"
        assert declared[name].contains(version), said


@pytest.mark.parametrize(
    "file, python, image, other",
    [
        ("constraints-kaggle.txt", "3.12", KAGGLE_IMAGE, set()),
        ("constraints-kaggle.txt", "3.11", KAGGLE_IMAGE, {"torch"}),  # the file's head says why
        ("constraints-kaggle-next.txt", "3.13", NEXT_IMAGE, set()),
    ],
)
def test_constraints_kaggle_are_its_image_in_the_ranges(declared, file, python, image, other):
    lines = filter(is_requirement, (ROOT / file).read_text().splitlines())
    here = [Requirement(line) for line in lines]
    here = [r for r in here if r.marker is None or r.marker.evaluate({"python_version": python})]
    pins = {canonicalize_name(r.name): str(r.specifier).removeprefix("==") for r in here}
    assert len(pins) == len(here), "a package is pinned twice"
    assert {name for name, version in image.items() if pins[name] != version} == other
    # What only make setup installs is left out there.
    absent = {name for name in declared if name not in pins}
    assert absent == {"jupyterlab", "dask"}
    for name in declared.keys() - absent:
        said = f"{name} {pins[name]} is pinned, {declared[name]} is declared"
        assert declared[name].contains(pins[name]), said


def is_requirement(line):
    return line and not line.startswith("#")
