"""The code judge on programs of our own: honest, forged, escaping, greedy and unstable ones."""

import inspect
import os
import signal
import threading
import time
from collections.abc import Iterator

import pytest

from selfcorrect.errors import SandboxError
from selfcorrect.grading import judge as package
from selfcorrect.grading.judge import Checks, CodeJudge, Reason, selftest
from tests.judge.hostile import CHECKS, ESCAPE, EXHAUST, FORGE, OK, REFUSED, STATE, checks_for
from tests.support.processes import alive, children, descendants, resident_pages

LIMIT = 0.5
ADD = CHECKS["add"]


@pytest.fixture(scope="module")
def judge() -> Iterator[CodeJudge]:
    with CodeJudge(workers=2, time_limit=LIMIT, memory_mb=512) as judge:
        if judge.confinement.tier == 3:
            pytest.skip("no seccomp on this machine: programs cannot be confined")
        yield judge


@pytest.fixture(scope="module")
def one() -> Iterator[CodeJudge]:
    """What happens to its processes, it starts others."""
    with CodeJudge(workers=1, time_limit=1.0) as judge:
        yield judge


def verdicts(judge: CodeJudge, programs: dict[str, str]) -> dict[str, tuple[Reason, str, float]]:
    found = judge.grade([(source, checks_for(source)) for source in programs.values()])
    return {name: (v.reason, v.detail, v.seconds) for name, v in zip(programs, found, strict=True)}


def test_no_forged_or_escaping_program_passes(judge: CodeJudge) -> None:
    found = verdicts(judge, {**FORGE, **ESCAPE, **REFUSED})
    assert len(found) + len(STATE) + len(EXHAUST) + len(OK) >= 58
    assert {name: v for name, v in found.items() if v[0] in (Reason.PASSED, Reason.GRADER_FAILED)} == {}


def test_right_programs_pass_however_they_are_written(judge: CodeJudge) -> None:
    assert {name: v for name, v in verdicts(judge, OK).items() if v[0] is not Reason.PASSED} == {}


def test_no_greedy_program_passes_outlives_its_deadline_or_leaves_anything(judge: CodeJudge) -> None:
    """The right program that comes next finds nothing of it."""
    bad, limit = {**STATE, **EXHAUST}, 0.25
    after = [program for source in bad.values() for program in (source, "def add(x, y): return x + y")]
    with CodeJudge(workers=1, time_limit=limit, memory_mb=256) as alone:
        found = alone.grade([(source, checks_for(source)) for source in after])
    assert {v.reason for v in found[1::2]} == {Reason.PASSED}
    seen = dict(zip(bad, found[::2], strict=True))
    assert {name: v for name, v in seen.items() if v.reason in (Reason.PASSED, Reason.GRADER_FAILED)} == {}
    timeouts = sorted(v.seconds for v in seen.values() if v.reason is Reason.TIMEOUT)
    assert len(timeouts) >= 8
    assert timeouts[-1] < limit + 0.5


def test_reasons(judge: CodeJudge) -> None:
    expected = {
        "def add(x, y): return x + y": Reason.PASSED,
        "def add(x, y): return x - y": Reason.WRONG_ANSWER,
        "def add(x, y): return [x": Reason.EXCEPTION,
        "def add(x, y): return x / 0": Reason.EXCEPTION,
        "def plus(x, y): return x + y": Reason.EXCEPTION,
        "def add(x, y): raise MemoryError": Reason.MEMORY,
        "def add(x, y): return bytearray(1 << 40)": Reason.MEMORY,
        "def add(x, y):\n    while True: pass": Reason.TIMEOUT,
        "import itertools\ndef add(x, y): return itertools.count()": Reason.TIMEOUT,
        "def add(x, y): raise ExceptionGroup('two', [ValueError(), KeyError()])": Reason.EXCEPTION,
        "def add(x, y): return b'\\xff'.decode()": Reason.EXCEPTION,
        "import os\ndef add(x, y): os._exit(0)": Reason.CRASH,
        "import ctypes\ndef add(x, y): ctypes.string_at(0)": Reason.CRASH,
        "import os\ndef add(x, y): os.write(3, b'xxxxxxxx')": Reason.PROTOCOL,
        "\0": Reason.REFUSED,
    }
    found = judge.grade([(source, ADD) for source in expected])
    assert {source: v.reason for source, v in zip(expected, found, strict=True)} == expected
    assert "NameError: name 'add' is not defined" in found[4].detail
    assert "ended with exit status 0" in found[11].detail
    assert "SIGSEGV" in found[12].detail


def test_the_data_sets_own_trouble_is_no_verdict(judge: CodeJudge) -> None:
    good = "def add(x, y): return x + y"
    for checks in (
        Checks("assert add("),
        Checks("add(1, 2)\nraise SystemExit"),
        Checks("assert 1 == 1"),
        Checks("x = 1", entry_point="add"),
        Checks("assert add(object(), 1)"),
    ):
        [verdict] = judge.grade([(good, checks)])
        assert verdict.reason is Reason.GRADER_FAILED, checks
        assert verdict.detail


TREE = Checks(
    setup="root = Node(1)\nroot.left = Node(2)\nroot.left.right = Node(3)",
    code="assert depth(root) == 3\nassert root.left.data == 2",
)
SUM = "def sum(a, b): return a * 10 + b"


def test_what_programs_answered_does_not_pile_up(judge: CodeJudge) -> None:
    """Tests keep what they were given; when they fail, their frames hold it, and a later program would lack the memory."""
    large = "def f(i):\n    if i == 3: raise ValueError\n    return 'x' * (4 << 20) + '\U0001f600'"
    checks = Checks("kept = []\ndef check(c):\n    for i in range(4): kept.append(c(i))", "f")
    with CodeJudge(workers=1, time_limit=5) as one:
        one.grade([(large, checks)])
        before = resident_pages(descendants(os.getpid()))
        assert {verdict.reason for verdict in one.grade([(large, checks)] * 4)} == {Reason.EXCEPTION}
        assert resident_pages(descendants(os.getpid())) - before < 33 << 8  # 33 MiB; one program's answers take 48


def test_forms_of_tests(judge: CodeJudge) -> None:
    node = "class Node:\n    def __init__(self, data): self.data, self.left, self.right = data, None, None\n"
    depth = "def depth(n): return 0 if n is None else 1 + max(depth(n.left), depth(n.right))"
    helper = "def twice(x):\n    return 2 * x\n\ndef solve(x):\n    '''Undo twice.'''\n"
    cases: list[tuple[str, Checks, bool]] = [
        (node + depth, TREE, True),
        (node + "def depth(n): return 2", TREE, False),
        # the prompt's helper is the judge's; the program's own version of it is not asked
        ("def twice(x): return 0\ndef solve(x): return 0", Checks("def check(c):\n    assert c(twice(4)) == 4", "solve", helper), False),
        ("def solve(x): return x // 2", Checks("def check(c):\n    assert c(twice(4)) == solve(8)", "solve", helper), True),
        (SUM, Checks("assert sum(1, 2) == 12", reference=SUM), True),  # a function that bears a builtin's name
        (SUM, Checks("assert sum(1, 2) == 12"), True),
        ("def total(n): return sum(n)", Checks("assert total([1, 2]) == sum([1, 2])"), True),
        ("def sum(n): return 0\ndef total(n): return 0", Checks("assert total([1, 2]) == sum([1, 2])"), False),
        ("import sys\ndef size(x): return sys.getsizeof(x)", Checks("assert size((1, 2)) == sys.getsizeof((1, 2))"), True),
        ("def drop(t, k): return [x for x in t if not isinstance(x, k)]", Checks("assert drop((1, 'a'), int) == ['a']"), True),
        ("import re\ndef find(s): return re.search('b+', s)", Checks("m = find('abbc')\nassert m and m.group() == 'bb'"), True),
        ("def f(): raise KeyError('k')", Checks("try:\n    f()\n    assert False\nexcept KeyError:\n    pass"), True),
        ("def f(): return {(1, 'a'): {2.5}, None: b'x'}, frozenset({1j}), range(3)", Checks("assert f() == ({(1, 'a'): {2.5}, None: b'x'}, frozenset({1j}), range(3))"), True),
        ("def f(n): return 7 ** n", Checks("assert f(9000) == 7 ** 9000"), True),
        ("def f(x): return (i for i in x)", Checks("assert list(f([1, 2])) == [1, 2]"), True),
        ("def f(x): return (i for i in x)", Checks("assert f([1, 2]) == [1, 2]"), False),
        ("def f(s): return s[::-1]", Checks("assert f('\\ud800\\0é') == 'é\\0\\ud800'"), True),
        ("def f(x): return np.mean(x)", Checks("assert f([1, 2]) == 1.5"), False),  # not a module of the prelude
        ("def f(x): return sum(x) / 2", Checks("import numpy as np\nassert np.isclose(f(np.array([1.0, 2.0])), 1.5)"), True),
        ("def f(x): return sum(x) / 2", Checks("import numpy as np\nassert np.isclose(f([1.0, 2.0]), 1.5)"), True),
    ]  # fmt: skip
    found = judge.grade([(source, checks) for source, checks, _ in cases])
    assert [v.passed for v in found] == [right for _, _, right in cases], [str(v) for v in found]


def test_prelude_can_be_left_out(judge: CodeJudge) -> None:
    source = "def add(x, y): return math.floor(x + y)"
    assert judge.grade([(source, ADD)])[0].passed
    with CodeJudge(workers=1, prelude=False) as one:
        assert not one.grade([(source, ADD)])[0].passed


def test_the_reference_sets_the_limit() -> None:
    slow = "import time\ndef add(x, y):\n    time.sleep({})\n    return x + y"
    checks = Checks("assert add(1, 2) == 3", reference=slow.format(0.05))
    with CodeJudge(workers=1, time_limit=0.2) as one:
        assert [v.reason for v in one.grade([(slow.format(0.5), checks), (slow.format(3), checks)])] == [
            Reason.PASSED,
            Reason.TIMEOUT,
        ]
        [verdict] = one.grade([(slow.format(0.5), Checks(checks.code))])
        assert verdict.reason is Reason.TIMEOUT


def test_supervisor_killed_in_mid_batch_leaves_no_orphan(one: CodeJudge) -> None:
    assert one.grade([("def add(x, y): return x + y", ADD)])[0].passed
    [supervisor] = [pid for pid in children(os.getpid()) if pid in {s.pid for s in one._open}]
    family = descendants(supervisor)
    results: list[Reason] = []
    batch = threading.Thread(
        target=lambda: results.extend(
            v.reason for v in one.grade([("while True: pass", ADD), ("def add(x, y): return x + y", ADD)])
        )
    )
    batch.start()
    time.sleep(0.5)
    family |= descendants(supervisor)
    assert len(family) >= 3  # zygote, judge, program
    os.kill(supervisor, signal.SIGKILL)
    time.sleep(0.9)
    assert not alive(family)
    batch.join(30)
    assert results == [Reason.TIMEOUT, Reason.PASSED]
    assert one.grade([("def add(x, y): return x + y", ADD)])[0].passed


def test_floods_leave_memory_flat(one: CodeJudge) -> None:
    flood = "import os\ndef add(x, y):\n    for _ in range(20): os.write(2, b'x' * 100_000)\n    return x + y"
    one.grade([(flood, ADD)] * 5)
    [supervisor] = {s.pid for s in one._open}

    def memory() -> int:
        time.sleep(0.1)  # the last program's end
        return resident_pages({supervisor} | descendants(supervisor))

    before = memory()
    found = one.grade([(flood, ADD)] * 60)  # each writes 2 MB
    assert {v.reason for v in found} == {Reason.PASSED}
    assert memory() - before < 256  # pages of 4 KiB


def test_self_test_refuses_a_leaking_sandbox(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selftest, "holes", inspect.unwrap(selftest.holes))
    leak = "def broke_out(): return True"
    monkeypatch.setattr(selftest, "_FORK", leak)
    with pytest.raises(SandboxError, match="starts processes"), CodeJudge(workers=1) as one:
        one.grade([("def add(x, y): return x + y", ADD)])


def test_weak_machines_refuse_unless_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(package.pool, "_SETTINGS", {"unconfined": True})
    with pytest.raises(SandboxError, match="--allow-unsandboxed"), CodeJudge(workers=1) as one:
        one.grade([("def add(x, y): return x + y", ADD)])
    with CodeJudge(workers=1, allow_unsandboxed=True) as one:
        assert one.confinement.tier == 3
        assert [
            v.passed
            for v in one.grade([("def add(x, y): return x + y", ADD), (FORGE["int subclass equal to all"], ADD)])
        ] == [True, False]


def test_closed_in_the_middle_a_batch_ends(one: CodeJudge) -> None:
    assert one.grade([("def add(x, y): return x + y", ADD)])[0].passed
    found: list[Reason] = []
    batch = threading.Thread(target=lambda: found.extend(v.reason for v in one.grade([("while True: pass", ADD)] * 4)))
    batch.start()
    time.sleep(0.3)
    one.close()
    batch.join(10)
    assert not batch.is_alive()
    assert len(found) == 4
    assert one.grade([("def add(x, y): return x + y", ADD)])[0].passed  # it may be used again


def test_a_launch_that_fails_costs_nothing_later(one: CodeJudge, monkeypatch: pytest.MonkeyPatch) -> None:
    assert one.grade([("def add(x, y): return x + y", ADD)])[0].passed
    [supervisor] = one._open
    os.kill(supervisor.pid, signal.SIGKILL)
    with monkeypatch.context() as broken:
        broken.setattr(package.pool, "_BOOT", "raise SystemExit(1)")
        with pytest.raises(SandboxError, match="does not start"):
            one.grade([("def add(x, y): return x + y", ADD)])
    assert one.grade([("def add(x, y): return x + y", ADD)])[0].passed


def test_a_forked_process_has_a_judge_of_its_own(one: CodeJudge) -> None:
    assert one.grade([("def add(x, y): return x + y", ADD)])[0].passed
    pid = os.fork()
    if pid == 0:
        passed = one.grade([("def add(x, y): return x + y", ADD)])[0].passed
        one.close()
        os._exit(0 if passed else 1)
    assert one.grade([("def add(x, y): return x + y", ADD)] * 5)[4].passed
    assert os.waitpid(pid, 0)[1] == 0
