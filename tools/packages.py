"""environment.yml out of pyproject.toml, for conda users.

python -m tools.packages    (make packages)
"""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
REQUIREMENT = re.compile(r'^    "([\w.-]+)([^";]*)[^"]*",  # (.+)$', re.M)
PYTHON = re.compile(r'^requires-python = "(.+)"$', re.M)
CONDA_NAMES = {"torch": "pytorch", "soundfile": "pysoundfile", "matplotlib": "matplotlib-base"}
PIP_ONLY = ("pypandoc_binary", "typst")  # conda-forge has them in another form, or not at all

HEAD = """\
# conda env create -f environment.yml && conda activate labhelpers
# Written by `make packages` from pyproject.toml. After each package: who needs it.
name: labhelpers
channels: [conda-forge]
dependencies:
  - python{python}
  - pip
"""


def environment(project: str) -> str:
    """The text of environment.yml for the text of pyproject.toml."""
    conda, pip = [], []
    for name, versions, reason in REQUIREMENT.findall(project):
        if name in PIP_ONLY:
            pip.append(f"      - {name}{versions}  # {reason}\n")
        else:
            conda.append(f"  - {CONDA_NAMES.get(name, name)}{versions}  # {reason}\n")
    head = HEAD.format(python=PYTHON.search(project)[1])
    return head + "".join(conda) + "  - pip:\n" + "".join(pip) + "      - -e .\n"


if __name__ == "__main__":
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (ROOT / "environment.yml").write_text(environment(project), encoding="utf-8")
