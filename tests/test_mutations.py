"""`make mutations` takes minutes; here: its changes are still ones to the files as they are."""

import ast
import json
import shlex
from pathlib import Path

import pytest

from tools.mutations import MUTATIONS, ROOT, changed, chosen

EVERY = chosen([])


@pytest.mark.parametrize("name, change", EVERY, ids=[change.what for _, change in EVERY])
def test_a_wrong_change_is_to_one_place_and_leaves_python(name, change):
    source = (ROOT / name).read_text(encoding="utf-8")
    if name.endswith(".ipynb"):
        cells = [cell for cell in json.loads(source)["cells"] if cell["cell_type"] == "code"]
        text = "\n".join("".join(cell["source"]) for cell in cells)
        assert text.count(change.right) == 1 and changed(source, change, name) != source
    else:
        assert source.count(change.right) == 1 and change.right != change.wrong
        ast.parse(changed(source, change, name))
    for word in shlex.split(change.near.partition(" -k ")[0]):
        assert (ROOT / (word if "/" in word else f"tests/{word}")).is_file()


def test_there_are_many_in_all_rooms():
    assert len(EVERY) >= 60
    assert len({change.what for _, change in EVERY}) == len(EVERY)
    rooms = {Path(name).stem for name in MUTATIONS}
    assert rooms >= {
        "audio",
        "layout",
        "datasets",
        "batches",
        "models",
        "training",
        "metrics",
        "baselines",
        "plots",
        "records",
        "files",
        "run",
    }
