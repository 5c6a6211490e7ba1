"""Printed outputs are compared strictly, up to a step in the last place; the sample is today's."""

import pytest

from tools import sample
from tools.printed import as_compared


@pytest.mark.parametrize(
    "one, other, same",
    [
        ("loss 0.499, 3 batches", "loss 0.500, 3 batches", True),
        ("loss 0.499", "loss 0.501", False),
        ("loss -0.0005", "loss 0.0005", False),
        ("loss 0.499", "loss 0.4990", False),
        ("loss 0.499", "lost 0.499", False),
        ("0.499", "0.499 0.499", False),
        ("accuracy .49", "accuracy .50", False),  # too few places to be told from a result
        ("3 clips", "4 clips", False),
        ("1.0004 2.500", "1.0005 2.499", True),
    ],
)
def test_a_step_in_the_last_place_is_no_difference(one, other, same):
    assert (as_compared(one) == as_compared(other)) is same
    assert (as_compared(one) != as_compared(other)) is not same


def test_how_the_sample_was_found_is_no_difference():
    found, named = "Corpus: sample (found)\nx", "Corpus: sample (named by LABHELPERS_DATA)\nx"
    assert as_compared(found) == as_compared(named)
    assert as_compared(found) != as_compared("Corpus: emotify (found)\nx")


def test_the_sample_is_built_where_there_is_none_and_anew_when_its_maker_changed(
    tmp_path, monkeypatch
):
    made, folder = [], tmp_path / "sample"

    def make(root):
        made.append(root)
        assert not folder.exists() or (folder / sample.MARKER).is_file()  # the old one is there yet
        (root / sample.MARKER).parent.mkdir(parents=True)
        (root / sample.MARKER).touch()

    monkeypatch.setattr(sample, "make_sample", make)
    assert sample.bring_up_to_date(folder) and len(made) == 1
    assert not sample.bring_up_to_date(folder)
    (folder / "old").touch()
    monkeypatch.setattr(sample, "MAKER", sample.MAKER[:2])  # as if one of them had changed
    assert sample.bring_up_to_date(folder) and len(made) == 2 and not (folder / "old").exists()
    assert not list(tmp_path.glob(".*"))
    elsewhere = tmp_path / "elsewhere"
    folder.rename(elsewhere)
    folder.symlink_to(elsewhere)
    (folder / sample.STAMP).unlink()
    assert sample.bring_up_to_date(folder)  # what a link leads to is left alone
    assert elsewhere.is_dir() and not folder.is_symlink()
