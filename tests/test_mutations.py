"""The mutation check itself takes minutes (`make mutations`); here: its texts are still those of the package."""

import ast

import pytest

from tools.mutations import MUTATIONS, ROOT


@pytest.mark.parametrize("wrong", MUTATIONS)
def test_a_mutation_changes_one_place_and_leaves_python(wrong):
    name, old, new = MUTATIONS[wrong]
    source = (ROOT / "labhelpers" / name).read_text(encoding="utf-8")
    assert source.count(old) == 1 and old != new
    ast.parse(source.replace(old, new))
