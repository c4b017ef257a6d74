"""Modules that both processes hold from the start: a confined program cannot read the disk."""

import importlib
import os
import random
import re
import sys
from collections.abc import Callable, Iterable
from typing import Any

# Every program's process holds these; a process that holds MORE too takes longer to fork. What Python itself loads at
# first use belongs here (unicodedata for \N{...}, _pylong for long integers, codecs): a program that catches the error
# of its absence would go on, and be judged as if it were wrong.
ALWAYS = (
    "__future__", "abc", "bisect", "builtins", "cmath", "collections", "collections.abc", "contextlib", "copy",
    "datetime", "decimal", "enum", "errno", "fractions", "functools", "gc", "heapq", "io", "itertools", "json",
    "math", "numbers", "operator", "os", "os.path", "posix", "random", "re", "reprlib", "statistics", "string",
    "struct", "sys", "time", "types", "typing", "unicodedata", "warnings", "weakref", "_pylong", "encodings.ascii",
    "encodings.cp1252", "encodings.latin_1", "encodings.rot_13", "encodings.unicode_escape", "encodings.utf_16",
    "encodings.utf_16_le", "encodings.utf_8_sig",
)  # fmt: skip
# For programs that name a module besides those, or may import by a name that they put together.
MORE = (
    "argparse", "array", "ast", "asyncio", "base64", "binascii", "calendar", "colorsys", "concurrent.futures",
    "concurrent.futures.thread", "contextvars", "csv", "ctypes", "dataclasses", "difflib", "doctest",
    "encodings.idna", "getopt", "glob", "graphlib", "gzip", "hashlib", "hmac", "html", "inspect", "keyword",
    "locale", "logging", "pathlib", "pickle", "platform", "pprint", "queue", "secrets", "shlex", "shutil", "signal",
    "socket", "subprocess", "tempfile", "textwrap", "threading", "timeit", "token", "tokenize", "traceback",
    "unittest", "uuid", "zlib", "zoneinfo", "_strptime",
)  # fmt: skip
_OTHERS = sys.stdlib_module_names - {name.partition(".")[0] for name in ALWAYS} - {"this"}
_IMPORTS = re.compile(r"\b(?:import|from)\s([^\n\r;#]*)")
_WORD = re.compile(r"\w+")
_BY_OTHER_WAYS = re.compile(
    r"\b(?:__import__|__builtins__|importlib|modules|exec|eval|compile|codecs|strptime|idna|async)\b|\\[\r\n]"
)
_LAZY = {"numpy": ("numpy.random", "numpy.linalg", "numpy.fft")}  # loaded at first use, which would be too late

PRELUDE = (
    "import bisect, cmath, collections, copy, datetime, functools, heapq, itertools, math, operator, random, re, "
    "statistics, string, sys\n"
    "from collections import Counter, OrderedDict, defaultdict, deque, namedtuple\n"
    "from typing import Any, Callable, Dict, Iterable, List, Optional, Sequence, Set, Tuple, Union\n"
)


def needs_more(source: str) -> bool:
    """Whether a program may want modules besides ALWAYS. Text that only looks like it costs time and nothing else."""
    if not source.isascii() or _BY_OTHER_WAYS.search(source):  # names can be written in many ways
        return True
    return any(not _OTHERS.isdisjoint(_WORD.findall(named)) for named in _IMPORTS.findall(source))


def preload(packages: Iterable[str] = (), *, more: bool = True) -> None:
    """Import all of ALWAYS, of MORE where asked for, and the packages named (numpy, say).

    Raises ImportError for a package that is missing.
    """
    for name in (*ALWAYS, *(MORE if more else ())):
        try:
            importlib.import_module(name)
        except ImportError:  # a build of Python without it
            continue
    for name in packages:
        for part in (name, *_LAZY.get(name, ())):
            importlib.import_module(part)


def fix_draws() -> None:
    """In the process that programs are forked from: all of them draw alike, `uuid4` and `secrets` too."""
    random.seed(0)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(0)
    replace_entropy(random.Random(1).randbytes)
    seeded = random.Random.seed

    def seed(self: random.Random, a: Any = None, version: int = 2) -> None:
        seeded(self, os.urandom(32) if a is None else a, version)

    random.Random.seed = seed  # type: ignore[method-assign]
    expose(vars(random)["_inst"])


def replace_entropy(draw: Callable[[int], bytes]) -> None:
    """The kernel gives a confined process none."""
    os.urandom = draw
    vars(random)["_urandom"] = draw
    if hasattr(os, "getrandom"):
        os.getrandom = lambda size, flags=0: draw(size)


def expose(generator: random.Random) -> None:
    """The module's functions become this generator's."""
    usual = vars(random)["_inst"]
    for name, value in list(vars(random).items()):
        if getattr(value, "__self__", None) is usual:
            setattr(random, name, getattr(generator, name))
    vars(random)["_inst"] = generator
