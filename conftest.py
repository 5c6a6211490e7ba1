"""How nbval runs and compares the notebooks: `pytest --nbval notebooks/`.

They run whole, on the sample, with one thread each, and leave their records in reports/tests,
which tests/test_results.py holds to the reference. The user's settings of Jupyter, IPython and
matplotlib do not count. In each kernel tests/watch.py fails a model that judges what it learned.
"""

import os
import shutil
import tempfile
from pathlib import Path

import pytest

from scripts.report import kernel_environment

ROOT = Path(__file__).parent
# Pictures are never compared by nbval. The text beside each table and figure holds its numbers.
NOT_COMPARED = ("text/html", "image/svg+xml")


def pytest_configure(config):
    if getattr(config.option, "nbval", False):
        folder = tempfile.TemporaryDirectory(prefix="labhelpers-tests-")
        config.add_cleanup(folder.cleanup)
        startup = Path(folder.name, "profile_default", "startup")  # of IPython
        startup.mkdir(parents=True)
        shutil.copy(ROOT / "tests" / "watch.py", startup)
        environment = kernel_environment(folder.name, "sample", ROOT / "reports" / "tests")
        os.environ.clear()
        os.environ.update(environment)


def pytest_collectstart(collector):
    if collector.path.suffix == ".ipynb":
        collector.skip_compare += NOT_COMPARED


def pytest_collection_modifyitems(items):
    """Results are looked at when the notebooks have recorded them."""
    items.sort(key=lambda item: item.path.name == "test_results.py")


@pytest.hookimpl(trylast=True)
def pytest_runtest_call(item):
    """A warning in a notebook is a fault, also where outputs are not compared."""
    for output in getattr(item, "test_outputs", None) or []:
        assert output.get("name") != "stderr", f"the cell wrote to stderr: {output.text}"
