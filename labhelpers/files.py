"""Where the project lies, and how its files are written: beside their place, then moved there."""

from __future__ import annotations

import os
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def atomic(path: str | Path):
    """A path beside `path` to write to, which is moved there at the end. Notebook: all.

    A kill leaves the old file or the new one. Raises OSError with a sentence.
    """
    path = Path(path)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        os.replace(partial, path)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
        reason = getattr(error, "strerror", None) or error
        raise OSError(
            f"{path}: cannot be written ({reason}); make room, or name another folder"
        ) from error
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> Path:
    """Write a UTF-8 text file atomically; returns its path. Raises OSError with a sentence.

    Notebook: all.
    """
    with atomic(path) as partial:
        partial.write_text(text, encoding="utf-8", newline="\n")
    return Path(path)


def project_root() -> Path:
    """The checkout that holds the package, else the current folder. Notebook: all."""
    parent = Path(__file__).resolve().parents[1]
    is_checkout = (parent / "pyproject.toml").is_file() and os.access(parent, os.W_OK)
    return parent if is_checkout else Path.cwd()
