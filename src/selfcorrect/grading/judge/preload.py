"""Modules that both processes hold from the start: a confined program cannot read the disk (floor 1)."""

import importlib
import random
import sys
from collections.abc import Iterable

MODULES = (
    "abc", "argparse", "array", "ast", "base64", "binascii", "bisect", "builtins", "calendar", "cmath", "collections",
    "collections.abc", "contextlib", "copy", "csv", "dataclasses", "datetime", "decimal", "difflib", "doctest", "enum",
    "errno", "fractions", "functools", "gc", "hashlib", "heapq", "html", "inspect", "io", "itertools", "json",
    "keyword", "locale", "logging", "math", "numbers", "operator", "os", "os.path", "pathlib", "pickle", "platform",
    "posix", "pprint", "queue", "random", "re", "reprlib", "secrets", "shlex", "signal", "socket", "statistics",
    "string", "struct", "subprocess", "sys", "tempfile", "textwrap", "threading", "time", "timeit", "token",
    "tokenize", "traceback", "types", "typing", "unicodedata", "unittest", "uuid", "warnings", "weakref", "zlib",
    "concurrent.futures", "concurrent.futures.thread", "encodings.idna", "encodings.latin_1", "encodings.utf_16",
    "encodings.ascii", "_strptime", "ctypes",
)  # fmt: skip

_LAZY = {"numpy": ("numpy.random", "numpy.linalg", "numpy.fft")}  # loaded at first use, which would be too late

PRELUDE = (
    "import bisect, cmath, collections, copy, datetime, functools, heapq, itertools, math, operator, random, re, "
    "statistics, string, sys\n"
    "from collections import Counter, OrderedDict, defaultdict, deque, namedtuple\n"
    "from typing import Any, Callable, Dict, Iterable, List, Optional, Sequence, Set, Tuple, Union\n"
)


def seed() -> None:
    """Programs and tests that draw numbers draw the same ones every time."""
    random.seed(0)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(0)


def preload(packages: Iterable[str] = ()) -> None:
    """Import all of MODULES, and the packages named (numpy, say).

    Raises ImportError for a package that is missing.
    """
    for name in MODULES:
        try:
            importlib.import_module(name)
        except ImportError:  # a build of Python without it
            continue
    for name in packages:
        for part in (name, *_LAZY.get(name, ())):
            importlib.import_module(part)
