"""Which process a program gets: a small one, or one with more modules. Its verdict must not hang on that."""

from collections.abc import Iterator

import pytest

from selfcorrect.grading.judge import Checks, CodeJudge, Reason
from selfcorrect.grading.judge.preload import needs_more

YEAR = Checks("assert f('1999') == 1999")


@pytest.fixture(scope="module")
def judge() -> Iterator[CodeJudge]:
    with CodeJudge(workers=1, time_limit=0.6) as judge:
        if judge.confinement.tier == 3:
            pytest.skip("no seccomp on this machine: programs cannot be confined")
        yield judge


@pytest.mark.parametrize(
    ("source", "more"),
    [
        ("import math, re\nfrom typing import List\n", False),
        ("def f(s):\n    '''Take it from the list, and from this.'''\n", False),
        ("def f(s):\n    '''Take it from the array.'''\n", True),  # costs time, no more
        ("import hashlib", True),
        ("def f():\n    import math, csv as c", True),
        ("import linecache", True),  # comes along with those of MORE
        ("if 1: from concurrent import futures", True),
        ("from \\\n  hashlib import md5", True),
        ("import \\\r\n hashlib", True),
        ("import ｈashlib", True),  # noqa: RUF001 - Python reads it as hashlib
        ("m = __import__('hash' + 'lib')", True),
        ("exec('impo' + 'rt hashlib')", True),
        ("x = important(1)\ny = 'socket'", False),
        ("async def f(): pass", True),
    ],
)
def test_which_programs_get_all_modules(source: str, more: bool) -> None:
    assert needs_more(source) is more


def test_what_was_not_foreseen_is_found_all_the_same(judge: CodeJudge) -> None:
    strptime = "def f(s): return getattr(datetime.datetime, 'strp' + 'time')(s, '%Y').year"
    inner = "vars()['__buil' + 'tins__']['__imp' + 'ort__']('hmac')\ndef f(s): return int(s)"
    missing = "def f(s):\n    import no_such_module"
    found = [verdict.reason for verdict in judge.grade([(program, YEAR) for program in (strptime, inner, missing)])]
    assert found == [Reason.PASSED, Reason.PASSED, Reason.EXCEPTION]


def test_a_program_that_catches_what_is_missing_misses_nothing(judge: CodeJudge) -> None:
    """No error that could send it to the larger process ever shows."""
    template = "def f(s):\n    try:\n        {}\n    except Exception:\n        return None\n    return int(s)"
    attempts = [
        "s.encode('cp1252')", "s.encode('utf_16_le')", "import linecache, fnmatch", "import \\\r\n hashlib",
        "datetime.datetime.strptime(s, '%Y')", "str(10 ** 4000)", "(10 ** 40000) // 3 ** 20000", "warnings = __import__('csv')",
    ]  # fmt: skip
    programs = ["def f(s): return 1999 if '\\N{BULLET}' else 0", *(template.format(attempt) for attempt in attempts)]
    found = judge.grade([(program, YEAR) for program in programs])
    assert [verdict.detail for verdict in found if not verdict.passed] == []
