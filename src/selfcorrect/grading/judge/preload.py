"""Modules that both processes hold from the start: a confined program cannot read the disk (floor 1)."""

import importlib
import random
import re
import sys
from collections.abc import Iterable

MODULES = (
    "__future__", "abc", "array", "ast", "base64", "binascii", "bisect", "builtins", "calendar", "cmath", "collections",
    "collections.abc", "contextlib", "copy", "ctypes", "dataclasses", "datetime", "decimal", "enum", "errno",
    "fractions", "functools", "gc", "hashlib", "heapq", "inspect", "io", "itertools", "json", "keyword", "locale",
    "logging", "math", "numbers", "operator", "os", "os.path", "pathlib", "posix", "pprint", "queue", "random", "re",
    "reprlib", "signal", "statistics", "string", "struct", "sys", "textwrap", "threading", "time", "timeit", "token",
    "tokenize", "traceback", "types", "typing", "unicodedata", "warnings", "weakref", "zlib", "_strptime",
    "encodings.ascii", "encodings.cp1252", "encodings.latin_1", "encodings.rot_13", "encodings.unicode_escape",
    "encodings.utf_16", "encodings.utf_16_le", "encodings.utf_8_sig",
)  # fmt: skip
# For the few programs that name one of them: a process that holds these too takes a quarter longer to fork.
SELDOM = (
    "argparse", "asyncio", "colorsys", "concurrent.futures", "concurrent.futures.thread", "contextvars", "csv",
    "difflib", "doctest", "encodings.idna", "getopt", "glob", "graphlib", "gzip", "hmac", "html", "pickle", "platform",
    "secrets", "shlex", "shutil", "socket", "subprocess", "tempfile", "unittest", "uuid", "zoneinfo",
)  # fmt: skip
NAMES_SELDOM = re.compile("|".join(rf"\b{name.partition('.')[0]}\b" for name in SELDOM))
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


def preload(packages: Iterable[str] = (), *, seldom: bool = True) -> None:
    """Import all of MODULES, those seldom used where asked for, and the packages named (numpy, say).

    Raises ImportError for a package that is missing.
    """
    for name in (*MODULES, *(SELDOM if seldom else ())):
        try:
            importlib.import_module(name)
        except ImportError:  # a build of Python without it
            continue
    for name in packages:
        for part in (name, *_LAZY.get(name, ())):
            importlib.import_module(part)
