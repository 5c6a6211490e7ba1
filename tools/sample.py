"""The sample as its maker makes it today: built where there is none, and anew when that changed.

python -m tools.sample
"""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import labhelpers
from labhelpers.corpora.layout import MARKER
from labhelpers.corpora.sample import make_sample
from labhelpers.files import project_root, write_text

MAKER = ("audio.py", "decode.py", "corpora/sample.py", "corpora/synth.py", "corpora/write.py")
STAMP = "maker.txt"


def fingerprint() -> str:
    """Changes with the modules that make the sample."""
    folder = Path(labhelpers.__path__[0])
    digest = hashlib.sha256()
    for name in MAKER:
        digest.update((folder / name).read_bytes())
    return digest.hexdigest()


def bring_up_to_date(sample: Path | None = None) -> bool:
    """Build the sample if there is none of today's maker; returns whether it did."""
    sample = sample or project_root() / "data" / "sample"
    stamp = sample / STAMP
    made_by = stamp.read_text(encoding="utf-8") if stamp.is_file() else ""
    if (sample / MARKER).is_file() and made_by == fingerprint():
        return False
    print(f"{sample}: building the sample (about a minute)", flush=True)
    fresh = sample.with_name(f".{sample.name}-of-today")
    shutil.rmtree(fresh, ignore_errors=True)
    make_sample(fresh)
    write_text(fresh / STAMP, fingerprint())
    # Only now is the old one removed; of a link, the link alone.
    if sample.is_symlink():
        sample.unlink()
    shutil.rmtree(sample, ignore_errors=True)
    fresh.rename(sample)
    return True


if __name__ == "__main__":
    bring_up_to_date()
