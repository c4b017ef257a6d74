"""Programs that are paid for passing, for time, or for being left out; and right ones of the same kinds."""

import pytest

from selfcorrect.grading.judge import CodeJudge, Reason, Verdict
from tests.judge.attacks import FORGED, LATE, LEFT_OUT, LIMIT, PASS, STEADY, everything, steady
from tests.judge.hostile import CHECKS


def fault(group: str, verdict: Verdict) -> bool:
    if group == "pass":
        return not verdict.passed
    if group == "late" and verdict.reason is not Reason.TIMEOUT:
        return True
    return verdict.passed or verdict.reason is Reason.GRADER_FAILED or verdict.seconds > LIMIT + 0.5


def judged(times: int, workers: int) -> list[str]:
    """What was wrong, and whose verdicts differed."""
    corpus = everything()
    seen: dict[str, set[str]] = {}
    wrong = []
    with CodeJudge(workers=workers, time_limit=LIMIT, time_cap=LIMIT, memory_mb=512) as judge:
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


def test_what_programs_draw_they_draw_alike() -> None:
    cases = [(steady(source), CHECKS["add"]) for source in STEADY.values()]
    found = []
    for workers in (1, 2):
        with CodeJudge(workers=workers) as judge:
            found += [[verdict.passed for verdict in judge.grade(cases)] for _ in range(3)]
    assert all(each == found[0] for each in found)
    assert set(found[0]) == {True, False}
