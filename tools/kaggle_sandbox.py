"""A stand-in for a session on Kaggle:

    unshare -r -m -n python kaggle_sandbox.py INPUT WORKING NOTEBOOK

As on Kaggle, papermill runs the notebook without parameters and by the kernel that its metadata
name. /kaggle/input is INPUT, read-only; /kaggle/working is WORKING; there is no network, HOME is
read-only, and neither the checkout nor an installation of it is in sight, nor the packages that
Kaggle's image lacks (kaggle_site/). LABHELPERS_MOUNT_WAIT is handed on.

Where namespaces are not permitted, `python kaggle_sandbox.py --plain INPUT WORKING NOTEBOOK` comes
as near as it can: the notebook is told INPUT instead of /kaggle/input, and Python itself refuses
the network. INPUT is not protected from root then: the caller compares it before and after.
"""

import fcntl
import os
import site
import socket
import struct
import subprocess
import sys
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]


def mount(*arguments) -> None:
    subprocess.run(["mount", *map(str, arguments)], check=True)


def build_root(root: Path, attached: Path, working: Path) -> None:
    """The machine's own folders under `root`, without the checkout's package, and Kaggle's."""
    mount("-t", "tmpfs", "none", root)
    for entry in Path("/").iterdir():
        if entry.is_symlink():
            (root / entry.name).symlink_to(entry.readlink())
        elif entry.is_dir() and entry.name != "kaggle":
            (root / entry.name).mkdir()
            mount("--rbind", entry, root / entry.name)
    for hidden in (CHECKOUT / "labhelpers", CHECKOUT / "data", CHECKOUT / "reports"):
        if hidden.is_dir():
            mount("-t", "tmpfs", "none", root / hidden.relative_to("/"))
    for packages in site.getsitepackages():
        for installed in Path(packages).glob("__editable__*labhelpers*.pth"):
            mount("--bind", "/dev/null", root / installed.relative_to("/"))
    for name, source in (("input", attached), ("working", working), ("home", None)):
        folder = root / "kaggle" / name
        folder.mkdir(parents=True)
        mount("--bind", source or folder, folder)
        if name != "working":
            mount("-o", "remount,bind,ro", folder)


def loopback_up() -> None:
    """A new network namespace has its loopback down, and notebook kernels talk over it."""
    with socket.socket() as any_socket:
        fcntl.ioctl(any_socket, 0x8914, struct.pack("16sH14x", b"lo", 1))  # SIOCSIFFLAGS, IFF_UP


def run(notebook: Path, working: Path, **own) -> None:
    """Become papermill, with Kaggle's environment and nothing of the user's."""
    os.chdir(working)
    environment = {
        "PATH": os.environ["PATH"],
        "LANG": "C.UTF-8",
        "KAGGLE_KERNEL_RUN_TYPE": "Batch",
        "PYTHONPATH": str(CHECKOUT / "tools" / "kaggle_site"),
        "PYTHONHASHSEED": "0",
        "OMP_NUM_THREADS": "1",
        "JUPYTER_RUNTIME_DIR": f"{working}/.runtime",
        "LABHELPERS_CACHE": f"{working}/.cache",
    }
    for name in ("OMP_NUM_THREADS", "LABHELPERS_MOUNT_WAIT"):
        if name in os.environ:
            environment[name] = os.environ[name]
    command = ["-m", "papermill", str(notebook), "__notebook__.ipynb", "--no-progress-bar"]
    os.execve(sys.executable, [sys.executable, *command], environment | own)


def act(attached: Path, working: Path, notebook: Path) -> None:
    root = working.with_name(f"{working.name}.root")
    root.mkdir()
    build_root(root, attached, working)
    loopback_up()
    os.chroot(root)
    run(notebook, Path("/kaggle/working"), HOME="/kaggle/home")


def act_plainly(attached: Path, working: Path, notebook: Path) -> None:
    told = working / "__told__.ipynb"
    text = notebook.read_text(encoding="utf-8").replace("/kaggle/input", str(attached))
    told.write_text(text, encoding="utf-8")
    own = {
        "HOME": "/dev/null/home",  # nobody can write there, root included
        "PYTHONDONTWRITEBYTECODE": "1",  # else beside the package, where it can
        "LABHELPERS_KAGGLE_INPUT": str(attached),
    }
    run(told, working, **own)


if __name__ == "__main__":
    if sys.argv[1] == "--plain":
        act_plainly(*map(Path, sys.argv[2:]))
    else:
        act(*map(Path, sys.argv[1:]))
