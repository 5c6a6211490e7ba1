"""Make each wrong change of tools/wrong/ in a copy, and show that the tests notice it.

    python -m tools.wrong_changes [WORD …]     only those whose name or file has a word

A patch begins with a line `tests: FILE …`: the tests that are expected to fail.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PATCHES = sorted((ROOT / "tools" / "wrong").glob("*.patch"))


def noticed(patch: Path, copy: Path) -> str:
    """What became of one wrong change: "noticed", "PASSES" or "does not apply"."""
    tests = patch.read_text(encoding="utf-8").splitlines()[0].removeprefix("tests: ").split()
    if subprocess.run(["git", "apply", patch], cwd=copy, capture_output=True).returncode:
        return "does not apply"
    command = [sys.executable, "-m", "pytest", "-q", "-x", *tests]
    passed = subprocess.run(command, cwd=copy, capture_output=True).returncode == 0
    subprocess.run(["git", "apply", "-R", patch], cwd=copy, check=True)
    return "PASSES" if passed else "noticed"


def main(words: list[str]) -> int:
    wanted = [p for p in PATCHES if all(word in p.read_text("utf-8") + p.name for word in words)]
    outcomes = []
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, "project")
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".git", ".venv*", "reports/*/h*"))
        for patch in wanted:
            outcomes.append(noticed(patch, copy))
            print(f"{outcomes[-1]:14s} {patch.stem}", flush=True)
    print(f"{outcomes.count('noticed')} of {len(outcomes)} wrong changes noticed")
    return int(outcomes.count("noticed") < len(outcomes))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
