"""What an interpreter of the acted session (kaggle_sandbox.py) may not see or do.

Python loads me at its start. Hidden: installed packages that Kaggle's image lacks, and the
checkout's package however it was installed. Sockets reach this machine only, as kernels need.
"""

import socket
import sys
from importlib.machinery import PathFinder
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
ABSENT = ("typst", "pypandoc")
HERE = ("localhost", "127.0.0.1", "::1")


class KaggleFinder(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        hidden = {"labhelpers": CHECKOUT, **dict.fromkeys(ABSENT, sys.prefix)}
        if name in hidden:
            path = [place for place in sys.path if not Path(place).is_relative_to(hidden[name])]
        return super().find_spec(name, path, target)


# An editable installation has a finder of its own.
for finder in list(sys.meta_path):
    if "__editable__" in getattr(finder, "__module__", ""):
        sys.meta_path.remove(finder)
sys.meta_path[sys.meta_path.index(PathFinder)] = KaggleFinder


def refuse_far_sockets(event, arguments):
    far = event == "socket.getaddrinfo" and arguments[0] not in (None, "", *HERE)
    if event == "socket.connect":
        opened, address = arguments
        inet = opened.family in (socket.AF_INET, socket.AF_INET6)
        far = inet and address[0] not in HERE
    if far:
        raise OSError(f"no internet in this session: {arguments}")


sys.addaudithook(refuse_far_sockets)
