"""Every file is written beside its place and moved there: the old one, or the new one, whole."""

import errno
import os

import pytest

from labhelpers import files
from labhelpers.files import atomic, project_root, write_text


def test_text_is_written_whole_as_utf8(tmp_path):
    path = write_text(tmp_path / "new" / "a.txt", "α\n")
    assert path.read_bytes() == "α\n".encode() and list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    "error, words",
    [
        (
            OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
            "a.txt: cannot be written .No space left",
        ),
        (RuntimeError("unexpected pos 64"), "a.txt: cannot be written .unexpected pos 64"),
    ],
)
def test_a_failure_keeps_the_old_file_and_says_which(tmp_path, error, words):
    path = write_text(tmp_path / "a.txt", "old")
    with pytest.raises(OSError, match=words), atomic(path) as partial:
        partial.write_text("half")
        raise error
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_an_interruption_keeps_the_old_file(tmp_path):
    path = write_text(tmp_path / "a.txt", "old")
    with pytest.raises(KeyboardInterrupt), atomic(path) as partial:
        partial.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_two_processes_do_not_share_a_partial_file(tmp_path, monkeypatch):
    with atomic(tmp_path / "a.txt") as one:
        one.write_text("one")
        monkeypatch.setattr(os, "getpid", lambda: 1)
        with atomic(tmp_path / "a.txt") as other:
            assert one != other
            other.write_text("other")
    assert (tmp_path / "a.txt").read_text() == "one"


def test_a_folder_that_cannot_be_made_is_a_sentence(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="a.txt: cannot be written .*name another folder"):
        write_text(tmp_path / "file" / "a.txt", "")


def test_the_project_is_the_checkout_or_the_current_folder(tmp_path, monkeypatch):
    assert (project_root() / "labhelpers" / "files.py").is_file()
    monkeypatch.setattr(files, "__file__", str(tmp_path / "site" / "labhelpers" / "files.py"))
    monkeypatch.chdir(tmp_path)
    assert project_root() == tmp_path
