"""What every test run shares: matplotlib without windows, and how nbval compares the notebooks."""

import os

import matplotlib

from tools.printed import as_compared
from tools.sample import bring_up_to_date

matplotlib.use("Agg")
# Kernels that nbval starts must choose their inline backend themselves, or the figures are lost.
os.environ.pop("MPLBACKEND", None)
os.environ.setdefault("PYTHONHASHSEED", "0")
os.environ.setdefault("PYDEVD_DISABLE_FILE_VALIDATION", "1")
# The notebooks are compared on the sample, whatever corpora lie in data/ or are named outside.
os.environ["LABHELPERS_DATA"] = "sample"
# PNG is never compared by nbval; the text beside each picture and page holds what they show.
NOT_COMPARED = ("text/html", "image/svg+xml", "stderr")


def pytest_collectstart(collector):
    if collector.path is not None and collector.path.suffix == ".ipynb":
        collector.skip_compare += NOT_COMPARED


def pytest_itemcollected(item):
    if item.path.suffix == ".ipynb":
        own = item.sanitize

        def sanitized(content):
            content = own(content)
            return as_compared(content) if isinstance(content, str) else content

        item.sanitize = sanitized


def pytest_collection_modifyitems(config, items):
    """The results are held to the reference once the notebooks have recorded them: at the end."""
    items.sort(key=lambda item: item.path.name == "test_reference.py")
    ran = {item.path.stem for item in items if item.path.suffix == ".ipynb"}
    config.stash["notebooks"] = ran
    if ran:
        bring_up_to_date()
