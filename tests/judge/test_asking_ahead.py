"""Questions that are sent before their turn change no verdict; modules that a process lacks change none either."""

import os
import socket
import threading
from collections.abc import Iterator

import pytest

from selfcorrect.grading.judge import Checks, CodeJudge, Reason
from selfcorrect.grading.judge.channel import Channel, StoppedError, to_ask_ahead
from selfcorrect.grading.judge.preload import needs_more
from selfcorrect.grading.judge.suspect import serve


@pytest.fixture(scope="module")
def judge() -> Iterator[CodeJudge]:
    with CodeJudge(workers=1, time_limit=0.6) as judge:
        if judge.confinement.tier == 3:
            pytest.skip("no seccomp on this machine: programs cannot be confined")
        yield judge


def reasons(judge: CodeJudge, checks: Checks, *programs: str) -> list[Reason]:
    return [verdict.reason for verdict in judge.grade([(program, checks) for program in programs])]


PASSED, WRONG, TIMEOUT = Reason.PASSED, Reason.WRONG_ANSWER, Reason.TIMEOUT


def test_a_known_sequence_of_calls_is_judged_as_the_first_time(judge: CodeJudge) -> None:
    counts = "n = 0\ndef f(x):\n    global n\n    n += 1\n    return n"
    endless = "def f(x):\n    while x == 2: pass\n    return 0"
    late = "def f(x):\n    while x == 2: pass\n    return 1"
    checks = Checks("assert f(1) == 1\nassert f(2) == 2")
    assert reasons(judge, checks, endless, counts, counts, endless, late, counts) == [
        WRONG, PASSED, PASSED, WRONG, TIMEOUT, PASSED,
    ]  # fmt: skip


def test_a_question_that_hangs_on_an_answer_is_asked_of_a_fresh_process(judge: CodeJudge) -> None:
    checks = Checks("assert f(f(1)) == 3")
    one = "def f(x): return x + 1 if x < 3 else x"  # f(1), f(2)
    other = "def f(x): return {1: 5, 5: 3}[x]"  # f(1), f(5); f(2) raises
    once = "asked = []\ndef f(x):\n    asked.append(x)\n    return 5 if x == 1 else 3 if asked == [1, 5] else 0"
    assert reasons(judge, checks, one.replace("x + 1", "2 * x + 0"), other) == [WRONG, PASSED]
    checks = Checks("assert f(f(1)) == 3 # once more")
    assert (
        reasons(judge, checks, one.replace("< 3", "< 2").replace("else x", "else 3"), once, other, once) == [PASSED] * 4
    )


def test_objects_of_the_program_are_not_asked_ahead(judge: CodeJudge) -> None:
    program = "class P:\n    def __init__(self, x): self.x = x\ndef make(x): return P(x)\ndef read(p): return p.x"
    checks = Checks("assert make(4).x == 4\nassert read(make(5)) == 5\nassert make(6).x == 6")
    assert reasons(judge, checks, program, program, program.replace("p.x", "6"), program) == [
        PASSED,
        PASSED,
        WRONG,
        PASSED,
    ]


def test_what_is_known_goes_along_with_the_program() -> None:
    ours, theirs = socket.socketpair()
    questions = [b'["call","f",null,[1],[]]', b'["call","f",null,[2],[]]']
    channel = Channel(ours.fileno(), 1 << 20, questions)
    thread = threading.Thread(target=channel.open, args=("def f(x): return x * 10", True))
    thread.start()
    sent = theirs.recv(1 << 16, socket.MSG_PEEK)
    assert all(question in sent for question in questions)
    served = threading.Thread(target=serve, args=(os.dup(theirs.fileno()),))
    served.start()
    thread.join()
    assert channel.ask("call", "f", (1,)) == 10
    with pytest.raises(StoppedError):
        channel.ask("call", "f", (3,))
    assert channel.astray
    ours.close()
    theirs.close()


def test_only_so_much_is_asked_ahead() -> None:
    plain = [b'["call","f",null,[%d],[]]' % n for n in range(1000)]
    assert to_ask_ahead(plain) == plain[:256]
    assert to_ask_ahead([*plain[:2], b'["call","f",null,[{"h":0}],[]]', *plain]) == plain[:2]
    assert to_ask_ahead([*plain[:3], b'["get","x",0,[],[]]', *plain]) == plain[:3]
    long = b'["call","f",null,["' + b"x" * 9000 + b'"],[]]'
    assert to_ask_ahead([long, long, plain[0]]) == [long]


@pytest.mark.parametrize(
    ("source", "more"),
    [
        ("import math, re\nfrom typing import List\n", False),
        ("def f(s):\n    '''Decode a token from the array in the queue.'''\n", True),  # costs time, no more
        ("import hashlib", True),
        ("def f():\n    import math, csv as c", True),
        ("if 1: from concurrent import futures", True),
        ("from \\\n  hashlib import md5", True),
        ("import ｈashlib", True),  # noqa: RUF001 - Python reads it as hashlib
        ("m = __import__('hash' + 'lib')", True),
        ("exec('impo' + 'rt hashlib')", True),
        ("x = important(1)\ny = 'socket'", False),
    ],
)
def test_which_programs_get_all_modules(source: str, more: bool) -> None:
    assert needs_more(source) is more


def test_what_was_not_foreseen_is_found_all_the_same(judge: CodeJudge) -> None:
    strptime = "def f(s): return getattr(datetime.datetime, 'strp' + 'time')(s, '%Y').year"
    codec = "def f(s): return int(s.encode('cp' + '1252').decode())"
    inner = "vars()['__buil' + 'tins__']['__imp' + 'ort__']('hmac')\ndef f(s): return int(s)"
    missing = "def f(s):\n    import no_such_module"
    found = reasons(judge, Checks("assert f('1999') == 1999"), strptime, codec, inner, missing)
    assert found == [PASSED, PASSED, PASSED, Reason.EXCEPTION]
