"""`make mutations` takes minutes; here: its changes are still ones to the files as they are."""

import ast
import shlex
from pathlib import Path

import pytest

from tools.mutations import MUTATIONS, ROOT, chosen

EVERY = chosen([])


@pytest.mark.parametrize("name, change", EVERY, ids=[change.what for _, change in EVERY])
def test_a_wrong_change_is_to_one_place_and_leaves_python(name, change):
    source = (ROOT / name).read_text(encoding="utf-8")
    assert source.count(change.right) == 1 and change.right != change.wrong
    if name.endswith(".py"):
        ast.parse(source.replace(change.right, change.wrong))
    for word in shlex.split(change.near.partition(" -k ")[0]):
        assert (ROOT / "tests" / word).is_file()


def test_there_are_many_in_all_rooms():
    assert len(EVERY) >= 60
    assert len({change.what for _, change in EVERY}) == len(EVERY)
    rooms = {Path(name).stem for name in MUTATIONS}
    assert rooms >= {
        "audio", "layout", "datasets", "batches", "models", "training", "metrics", "baselines",
        "plots", "records", "files", "run",
    }  # fmt: skip
