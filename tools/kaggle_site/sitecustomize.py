"""What an interpreter of the acted Kaggle session (kaggle_sandbox.py) may not see or do; Python loads me at its start.

Hidden: packages that Kaggle's image lacks, and the checkout's package however it was installed. Sockets reach this
machine only, as the notebooks' kernels need.
"""

import socket
import sys
from importlib.machinery import PathFinder
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
ABSENT = ("typst", "pypandoc")


class KaggleFinder(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        spec = super().find_spec(name, path, target)
        own = spec and spec.origin and name == "labhelpers" and Path(spec.origin).is_relative_to(CHECKOUT)
        return None if own or name.partition(".")[0] in ABSENT else spec


# An editable installation has a finder of its own.
sys.meta_path[:] = [finder for finder in sys.meta_path if "__editable__" not in getattr(finder, "__module__", "")]
sys.meta_path[sys.meta_path.index(PathFinder)] = KaggleFinder


def refuse_far_sockets(event, arguments):
    far = event == "socket.getaddrinfo" and arguments[0] not in (None, "", "localhost", "127.0.0.1", "::1")
    if event == "socket.connect":
        opened, address = arguments
        far = opened.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in ("localhost", "127.0.0.1", "::1")
    if far:
        raise OSError(f"no internet in this session: {arguments}")


sys.addaudithook(refuse_far_sockets)
