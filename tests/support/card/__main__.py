"""`python -m tests.support.card MODULE|SCRIPT ARGUMENTS`: runs it in a process that has a stand-in for a card.

What that starts as `sys.executable SCRIPT` or `sys.executable -m MODULE` has one too, each of its own.
"""

import ctypes
import hashlib
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent


def library() -> Path:
    """device.cpp, compiled once for this torch."""
    import torch

    root = Path(torch.__file__).parent
    source = hashlib.sha256((HERE / "device.cpp").read_bytes()).hexdigest()[:8]
    made = Path(tempfile.gettempdir()) / f"selfcorrect-card-{torch.__version__}-{source}.so"
    if not made.exists():
        making = made.with_suffix(f".{os.getpid()}")
        subprocess.run(
            ["g++", "-std=c++20", "-shared", "-fPIC", f"-I{root}/include", HERE / "device.cpp", "-o", making,
             f"-L{root}/lib", "-lc10", "-ltorch_cpu", f"-Wl,-rpath,{root}/lib"],
            check=True,
        )  # fmt: skip
        making.rename(made)
    return made


# Other commands, such as the judge's and multiprocessing's (-c, -I, ...), get the interpreter itself.
_PYTHON = """#!/bin/sh
case "$1" in
  -m) shift; [ "$1" = tests.support.card ] && shift ;;
  *.py) ;;
  *) exec "{python}" "$@" ;;
esac
PYTHONPATH="{root}:$PYTHONPATH" exec "{python}" -m tests.support.card "$@"
"""


def interpreter() -> Path:
    """What takes the place of sys.executable."""
    text = _PYTHON.format(python=sys.executable, root=HERE.parents[2])
    name = f"selfcorrect-card-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
    made = Path(tempfile.gettempdir()) / name / "python"
    if not made.exists():
        made.parent.mkdir(exist_ok=True)
        making = made.with_suffix(f".{os.getpid()}")
        making.write_text(text)
        making.chmod(0o755)
        making.rename(made)
    return made


def main() -> None:
    if not os.environ.get("LD_PRELOAD"):
        os.execve(
            sys.executable,
            [sys.executable, "-m", "tests.support.card", *sys.argv[1:]],
            {**os.environ, "LD_PRELOAD": str(library())},
        )
    made = os.environ.pop("LD_PRELOAD")
    import torch  # noqa: F401

    ctypes.CDLL(made).plug_in()
    from tests.support.card.machine import plug_in

    plug_in()
    multiprocessing.set_executable(sys.executable)
    sys.executable = str(interpreter())
    sys.argv = sys.argv[1:]
    if sys.argv[0].endswith(".py"):
        sys.path.insert(0, str(Path(sys.argv[0]).parent))
        runpy.run_path(sys.argv[0], run_name="__main__")
    else:
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
