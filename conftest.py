"""What every test run shares: a quiet, windowless matplotlib, and how nbval compares the notebooks."""

import os

import matplotlib

matplotlib.use("Agg")
# Kernels that nbval starts must choose their inline backend themselves, or the figures are lost.
os.environ.pop("MPLBACKEND", None)
os.environ.setdefault("PYTHONHASHSEED", "0")
os.environ.setdefault("PYDEVD_DISABLE_FILE_VALIDATION", "1")


def pytest_collectstart(collector):
    """PNG is never compared by nbval; SVG differs by drawing ids, stderr by machine. All else is compared strictly."""
    if collector.path is not None and collector.path.suffix == ".ipynb":
        collector.skip_compare += ("image/svg+xml", "stderr")


def pytest_collection_modifyitems(config, items):
    """The results are held to the reference once the notebooks have recorded them: that test goes last."""
    items.sort(key=lambda item: item.path.name == "test_reference.py")
    ran = {item.path.name for item in items if item.path.suffix == ".ipynb"}
    series = {path.name for path in (config.rootpath / "notebooks").glob("*.ipynb")}
    config.stash["notebooks_ran"] = bool(series) and ran >= series
