"""Do the tests notice a wrong program? `make mutations` makes small wrong changes, one at a time, and shows that each
fails them. The changes are the mistakes that music machine learning is known for: they run, and give plausible numbers.

Each change is made in a copy of the working tree; the copy without a change must pass.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TESTS = [f"tests/test_{name}.py" for name in ("datasets", "training", "models", "evaluation")]
# What is wrong: (file, the right text, the wrong text).
MUTATIONS = {
    "swapped axis: an array reshaped instead of transposed": (
        "datasets.py", "row[:frames] = clip.T", "row[:frames] = clip.reshape(frames, -1)",
    ),
    "swapped axis: recall where precision belongs": (
        "evaluation.py", "fscore_support(y, pred, labels=codes", "fscore_support(pred, y, labels=codes",
    ),
    "labels off by one": (
        "datasets.py", 'table["genre"].cat.codes.to_numpy(np.int64)',
        '(table["genre"].cat.codes.to_numpy(np.int64) + 1) % len(table["genre"].cat.categories)',
    ),
    "padding with 0 dB, the loudest there is": ("datasets.py", "SILENCE_DB = -80.0", "SILENCE_DB = 0.0"),
    "evaluation mode forgotten": ("training.py", "    model.eval()\n    device = next", "    device = next"),
    "the score averaged over batches": (
        "training.py", '"val_score": score(ds.y.cpu(), predictions)',
        '"val_score": float(np.mean([score(*pair) for pair in zip(ds.y.cpu().split(4), predictions.split(4))]))',
    ),
    "the loss averaged over batches": ("training.py", "count += len(x)", "count += len(x) * len(x) / self.batch_size"),
    "rows not normalised": ("models.py", "return (x - self.mean) / self.std", "return x"),
    "the backward LSTM reads the padding first": (
        "models.py", "reverse_frames(h, lengths))[0]", "h.flip(1))[0]",
    ),
    "clips of one track on both sides of a split": ("datasets.py", "strata, ds.groups)", "strata, np.arange(len(ds)))"),
}  # fmt: skip


def copy_tree(target: Path) -> None:
    """The files that git knows or would add."""
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    for name in filter(None, names):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, target / name)


def first_failure(tree: Path) -> str | None:
    """The first test that fails in a copy of the tree, or None."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "--no-header", "-rfE", *TESTS]
    done = subprocess.run(
        command, cwd=tree, env={**os.environ, "PYTHONPATH": str(tree)}, capture_output=True, text=True
    )
    if done.returncode == 0:
        return None
    failed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    if done.returncode != 1 or not failed:
        raise RuntimeError(f"pytest did not get as far as a test:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return failed[0].split()[1]


def main() -> int:
    survived = 0
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder)
        copy_tree(tree)
        for wrong, (name, old, new) in {"nothing": ("datasets.py", "", ""), **MUTATIONS}.items():
            path = tree / "labhelpers" / name
            source = path.read_text(encoding="utf-8")
            path.write_text(source.replace(old, new) if old else source, encoding="utf-8")
            start = time.monotonic()
            failure = first_failure(tree)
            path.write_text(source, encoding="utf-8")
            survived += (failure is None) != (wrong == "nothing")
            verdict = f"fails in {failure.removeprefix('tests/')}" if failure else "passes"
            print(f"{wrong:54} {verdict}  ({time.monotonic() - start:.0f} s)", flush=True)
    print("all changes were noticed" if not survived else f"{survived} of the lines above are not as they should be")
    return survived


if __name__ == "__main__":
    sys.exit(main())
