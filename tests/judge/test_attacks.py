"""Programs that are paid for passing, for time, or for being left out; and right ones of the same kinds."""

import os
from collections.abc import Iterator

import pytest

from selfcorrect.grading.judge import Checks, CodeJudge, Reason, Verdict
from tests.judge.attacks import FORGED, LATE, LEFT_OUT, LIMIT, PASS, SHORT, STEADY, everything, steady
from tests.judge.hostile import CHECKS, starved
from tests.support.processes import descendants


def fault(group: str, verdict: Verdict) -> bool:
    if group == "pass":
        return not verdict.passed
    if group == "late" and verdict.reason is not Reason.TIMEOUT:
        return True
    limit = SHORT if group == "late" else LIMIT
    return verdict.passed or verdict.reason is Reason.GRADER_FAILED or verdict.seconds > limit + 0.5


def judged(times: int, workers: int) -> list[str]:
    """What was wrong, and whose verdicts differed."""
    seen: dict[str, set[str]] = {}
    wrong = []
    for limit in (LIMIT, SHORT):
        corpus = [case for case in everything() if (case[0] == "late") == (limit == SHORT)]
        with CodeJudge(workers=workers, time_limit=limit, time_cap=limit, memory_mb=512) as judge:
            if judge.confinement.tier == 3:
                pytest.skip("no seccomp on this machine: programs cannot be confined")
            for _ in range(times):
                found = judge.grade([(source, checks) for *_, source, checks in corpus])
                for (group, name, _, _), verdict in zip(corpus, found, strict=True):
                    seen.setdefault(f"{group}: {name}", set()).add(verdict.reason)
                    wrong += [f"{group}: {name}: {verdict}"] if fault(group, verdict) else []
    return wrong + [f"{name}: verdicts differ: {reasons}" for name, reasons in seen.items() if len(reasons) > 1]


def test_every_attack_fails_and_every_right_program_passes() -> None:
    assert min(map(len, (PASS, FORGED, LATE, LEFT_OUT))) >= 12
    wrong = judged(times=1, workers=2)
    assert wrong == [], "\n".join(wrong)


@pytest.mark.nightly
def test_twenty_times() -> None:
    assert judged(times=20, workers=2) == []


def test_what_is_drawn() -> None:
    """Programs draw alike in every process; what tests draw hangs on the program and the judge."""
    steady_cases = [(steady(source), CHECKS["add"]) for source in STEADY.values()]
    half = Checks("import random\nassert f(random.random()) < 0.5\nassert f(random.randrange(9)) < 9")
    cases = [(f"def f(x): return x  # {number}", half) for number in range(24)]
    alike, drawn = list[list[bool]](), list[list[Reason]]()
    for workers in (1, 2):
        with CodeJudge(workers=workers) as judge:
            alike += [[verdict.passed for verdict in judge.grade(steady_cases)] for _ in range(2)]
            drawn.append([verdict.reason for verdict in judge.grade(cases)])
            assert [verdict.reason for verdict in judge.grade(cases[::-1])] == drawn[-1][::-1]
    assert all(each == alike[0] for each in alike)
    assert set(alike[0]) == {True, False}
    assert set(drawn[0]) == {Reason.PASSED, Reason.WRONG_ANSWER}
    assert drawn[0] != drawn[1]


@pytest.fixture(scope="module")
def one() -> Iterator[CodeJudge]:
    with CodeJudge(workers=1, time_limit=0.8) as judge:
        yield judge


def test_loops_that_other_tests_left_are_not_found(one: CodeJudge) -> None:
    ran, asked = (
        Checks(f"import asyncio\nassert {call}(f(1)) == 1")
        for call in ("asyncio.run", "asyncio.get_event_loop().run_until_complete")
    )
    found = one.grade([("async def f(x): return x", checks) for checks in (asked, ran, asked, ran, asked)])
    assert [verdict.detail for verdict in found if not verdict.passed] == []


@pytest.mark.nightly
def test_a_stalled_judge_does_not_raise_the_limit() -> None:
    stall = "def f(n): return {((1 << 61) - 1) * i for i in range(60_000)}"
    wait = "import time\ndef f(n):\n    time.sleep({})\n    return n"
    for tests in ("assert f(1) == 1", "import numpy as np\nassert np.isclose(f(1), 1)"):
        checks = Checks(tests, reference=wait.format(0.03))
        with CodeJudge(workers=1, time_limit=0.3) as judge:
            found = judge.grade([(stall, checks), (wait.format(0.35), checks), (wait.format(2.5), checks)])
            assert [verdict.reason for verdict in found] == [Reason.TIMEOUT, Reason.PASSED, Reason.TIMEOUT]
            assert found[2].detail.startswith("not done after 0.") or found[2].detail.startswith("not done after 1")
        # Nor does the start of a judge's process count against the first program: numpy takes longer than this.
        for _ in range(4):
            with CodeJudge(workers=1, time_limit=0.1) as judge:
                [verdict] = judge.grade([("def f(n): return n", Checks(tests))])
            if not starved(verdict, 0.1):
                break
        assert verdict.passed, verdict


def test_two_runs_have_one_deadline_and_tell_their_sum(one: CodeJudge) -> None:
    twice = "import time\ntime.sleep({})\nvars()['__buil' + 'tins__']['__imp' + 'ort__']('hmac')\ndef f(x): return 3"
    checks = Checks("assert f(2) == 3", reference="def f(x): return 3")
    short, long = one.grade([(twice.format(0.3), checks), (twice.format(0.5), checks)])
    assert short.passed
    assert 0.58 <= short.seconds <= 0.8
    assert (long.reason, long.detail) == (Reason.TIMEOUT, "not done after 0.8 s")
    assert long.seconds >= 0.75


def test_the_kernel_is_to_take_them_first(one: CodeJudge) -> None:
    assert one.grade([("def add(x, y): return x + y", CHECKS["add"])])[0].passed
    [supervisor] = {each.pid for each in one._open}
    found = {pid: _score(pid) for pid in {supervisor} | descendants(supervisor)}
    scores = {pid: score for pid, score in found.items() if score is not None}
    own = _score(os.getpid())
    assert own is not None
    assert scores.pop(supervisor) == max(900, own)
    assert scores
    assert set(scores.values()) == {1000}


def _score(pid: int) -> int | None:
    try:
        with open(f"/proc/{pid}/oom_score_adj") as file:
            return int(file.read())
    except (FileNotFoundError, ProcessLookupError):  # it has just ended, as programs do
        return None
