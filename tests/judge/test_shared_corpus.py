"""The corpus of hostile programs and the benchmarks' own solutions, where they lie beside the project.

Canaries stand in /tmp/sandbox_canary while the programs run: files, a victim process, and two listening sockets.
"""

import contextlib
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from selfcorrect.grading.judge import Checks, CodeJudge, Reason, Verdict
from selfcorrect.tasks.code import load_set
from tests.judge.hostile import starved
from tests.support.data import EACH, PUBLIC, public_rows
from tests.support.processes import alive

CANARY = Path("/tmp/sandbox_canary")
LIMIT = 2.0
CORPUS = PUBLIC.parent / "hostile" / "programs"
pytestmark = pytest.mark.skipif(not PUBLIC.is_dir() or not CORPUS.is_dir(), reason="shared data is not there")


def programs() -> list[tuple[str, str, str, Checks]]:
    """Name, what is expected, source, tests."""
    problems = {row["task_id"]: row for row in public_rows("humaneval/HumanEval.jsonl.gz")}
    found = []
    for file in sorted(CORPUS.glob("*.py")):
        source = file.read_text()
        row = problems[match(r"# problem: (\S+)", source)]
        checks = Checks(row["test"], entry_point=row["entry_point"], helpers=row["prompt"])
        found.append((file.stem, match(r"# expected: (.*)", source), source, checks))
    return found


def match(pattern: str, text: str) -> str:
    found = re.search(pattern, text)
    assert found
    return str(found[1])


class Canaries:
    """What no program may read, change, reach or kill."""

    def __init__(self) -> None:
        shutil.rmtree(CANARY, ignore_errors=True)
        CANARY.mkdir(mode=0o777)
        CANARY.chmod(0o777)
        for name in ("secret.txt", "victim.txt"):
            (CANARY / name).write_text("whole")
            (CANARY / name).chmod(0o666)
        self.victim = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"])
        self.reached: list[str] = []
        self.listeners = [socket.socket(), socket.socket(socket.AF_UNIX)]
        self.listeners[0].setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.listeners[0].bind(("127.0.0.1", 47653))
        self.listeners[1].bind("\0sandbox_canary")
        for listener in self.listeners:
            listener.listen()
            threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                listener.accept()
                self.reached.append(repr(listener))

    def harmed(self) -> list[str]:
        files = sorted(path.name for path in CANARY.iterdir())
        found = [] if files == ["secret.txt", "victim.txt"] else [f"files: {files}"]
        found += [name for name in ("secret.txt", "victim.txt") if (CANARY / name).read_text() != "whole"]
        return found + self.reached + ([] if alive({self.victim.pid}) else ["victim killed"])

    def close(self) -> None:
        self.victim.kill()
        self.victim.wait()
        for listener in self.listeners:
            listener.shutdown(socket.SHUT_RDWR)
            listener.close()
        shutil.rmtree(CANARY, ignore_errors=True)


@pytest.fixture
def canaries() -> Iterator[Canaries]:
    watched = Canaries()
    yield watched
    watched.close()


def faults(expected: str, verdict: Verdict) -> str:
    if expected == "pass":
        return "" if verdict.passed else "should pass"
    if verdict.passed and not expected.startswith("same"):
        return "passed"
    if expected == "fail (crash)" and "RecursionError" in verdict.detail and sys.version_info >= (3, 12):
        return ""  # a C stack overflow up to 3.11; an error of Python's own since
    if ran_out_before_its_crash(expected, verdict):
        return ""
    reason = re.match(r"fail \((\w+)", expected)
    if reason and verdict.reason != reason[1]:
        return f"should be {reason[1]}"
    return "grader failed" if verdict.reason is Reason.GRADER_FAILED else ""


def ran_out_before_its_crash(expected: str, verdict: Verdict) -> bool:
    """A program that overflows its stack needs 1.5 to 2.7 s of an idle core: a slower one reaches the limit first."""
    return expected == "fail (crash)" and verdict.reason is Reason.TIMEOUT and verdict.seconds >= LIMIT


def judge_corpus(times: int, workers: int) -> list[str]:
    """Every program `times` times, one after the other; then what was wrong."""
    corpus = programs()
    wrong = []
    with CodeJudge(workers=workers, time_limit=LIMIT) as judge:
        seen: dict[str, set[str]] = {}
        for _ in range(times):
            found = judge.grade([(source, checks) for _, _, source, checks in corpus])
            for at, (_, expected, source, checks) in enumerate(corpus):
                for _ in range(3 if faults(expected, found[at]) else 0):
                    if starved(found[at], LIMIT):
                        found[at] = judge.grade([(source, checks)])[0]
            for (name, expected, _, _), verdict in zip(corpus, found, strict=True):
                if not ran_out_before_its_crash(expected, verdict):
                    seen.setdefault(name, set()).add(verdict.reason)
                if fault := faults(expected, verdict):
                    wrong.append(f"{name}: {fault}: {verdict}")
                if verdict.seconds > LIMIT + 0.5:
                    wrong.append(f"{name}: took {verdict.seconds:.2f} s")
        wrong += [f"{name}: verdicts differ: {reasons}" for name, reasons in seen.items() if len(reasons) > 1]
    return wrong


@pytest.mark.nightly
def test_corpus_in_parallel(canaries: Canaries) -> None:
    assert len(programs()) == 58
    assert judge_corpus(times=1, workers=2) == []
    assert canaries.harmed() == []


@pytest.mark.nightly
def test_corpus_twenty_times_in_one_worker(canaries: Canaries) -> None:
    assert judge_corpus(times=20, workers=1) == []
    assert canaries.harmed() == []


def test_corpus_as_an_ordinary_user(canaries: Canaries) -> None:
    if os.geteuid() != 0:
        pytest.skip("not root: the other tests of this file are this one")
    python = next((p for p in (sys.executable, "/usr/bin/python3") if usable_by_nobody(p)), None)
    if python is None:
        pytest.skip("no Python 3.11 or newer that another user may run")
    root = Path(__file__).parents[2]
    code = (
        "import os, sys; sys.path[:0] = sys.argv[1:3]; assert os.geteuid() != 0\n"
        "from tests.judge.ordinary_user import main; main()"
    )
    done = subprocess.run(
        [python, "-B", "-c", code, str(root / "src"), str(root)],
        input=dump_programs(), user=65534, group=65534, extra_groups=[], cwd="/", env={}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().splitlines() == ["52 programs judged"], done.stdout
    assert canaries.harmed() == []


def usable_by_nobody(python: str) -> bool:
    test = "import sys; sys.exit(sys.version_info < (3, 11))"
    with contextlib.suppress(OSError):
        return subprocess.run([python, "-c", test], user=65534, group=65534, cwd="/", check=False).returncode == 0
    return False


def dump_programs() -> str:
    """All but six that use a second or more: one that never ends is among the others."""
    import json
    from dataclasses import asdict

    out = (
        "res_slow_calls", "res_bigint_c_loop", "res_hash_collision_return", "res_infinite_generator",
        "res_c_stack_overflow", "ok_slow",
    )  # fmt: skip
    return json.dumps(
        [[name, expected, source, asdict(checks)] for name, expected, source, checks in programs() if name not in out]
    )


@pytest.fixture(scope="module")
def usual() -> Iterator[CodeJudge]:
    with CodeJudge() as judge:
        yield judge


def passes_all(cases: list[tuple[int, str, Checks]], judge: CodeJudge) -> list[str]:
    found = judge.grade([(source, checks) for _, source, checks in cases])
    return [f"{name}: {verdict}" for (name, _, _), verdict in zip(cases, found, strict=True) if not verdict.passed]


def solutions(dataset: str) -> list[tuple[int, str, Checks]]:
    """Number, the data set's own solution, tests."""
    items = load_set(dataset, str(PUBLIC / dataset.partition("_")[0]), None, "the data")
    checks = [Checks(i.tests, i.entry_point or None, i.before, i.setup, i.solution) for i in items]
    return [(item.number, item.solution, each) for item, each in zip(items, checks, strict=True)]


@EACH
def test_every_canonical_solution_passes(step: int, usual: CodeJudge) -> None:
    assert passes_all(solutions("humaneval")[::step], usual) == []
    assert passes_all(solutions("mbpp")[::step], usual) == []


@pytest.mark.nightly
def test_every_sanitized_solution_passes(usual: CodeJudge) -> None:
    """Nearly all of them are among MBPP's."""
    assert passes_all(solutions("mbpp_sanitized"), usual) == []


@pytest.mark.nightly
@pytest.mark.alone
def test_plus_sets_but_for_what_the_data_names(usual: CodeJudge) -> None:
    # Three solutions take 3 to 8 s by themselves (83, 130, 139), too near to the usual cap of 10 s on a busy machine.
    with CodeJudge(time_cap=40.0) as patient:
        failed = passes_all(solutions("humaneval_plus"), patient)
    assert [line.split(":")[0] for line in failed] == ["32"]
    failed = passes_all(solutions("mbpp_plus"), usual)
    # Over 2 GB (255), over 10 s (599), and about 10 s, by machine (392).
    assert {line.split(":")[0] for line in failed} - {"392"} == {"255", "599"}


@EACH
def test_constants_and_identities_pass_nothing(step: int, usual: CodeJudge) -> None:
    bodies = ["return None", "return True", "return 0", "return a[0] if a else []"]
    for whole in (solutions("humaneval"), solutions("mbpp_sanitized")):
        rows = whole[::step]
        for body in bodies:
            cases = [(f"def {called(checks)}(*a, **k): {body}", checks) for _, _, checks in rows]
            passed = [row[0] for row, v in zip(rows, usual.grade(cases), strict=True) if v.passed]
            # MBPP 404 asks for the lesser of two numbers, and its tests always give that one first.
            assert passed in ([], [404]), (body, passed)


def called(checks: Checks) -> str:
    if checks.entry_point:
        return checks.entry_point
    defined: list[str] = re.findall(r"^def[ \t]+(\w+)", checks.reference, re.MULTILINE)
    return next(name for name in defined if re.search(rf"\b{name}\s*\(", checks.code))


@EACH
def test_real_programs_agree_with_a_plain_run(step: int, usual: CodeJudge) -> None:
    references = {number: source for number, source, _ in solutions("mbpp")}
    problems = {f"HumanEval/{number}": checks for number, _, checks in solutions("humaneval")}
    rows = public_rows("labelled_code/programs.jsonl.gz")
    assert len(rows) == 1626
    rows, cases = rows[::step], []
    for row in rows:
        if row["benchmark"] == "mbpp":
            cases.append((row["program"], Checks(row["tests"], reference=references[row["task_id"]])))
        else:
            cases.append((row["program"], problems[row["task_id"]]))
    found = usual.grade(cases)
    differ = [f"{row['task_id']}: {v}" for row, v in zip(rows, found, strict=True) if v.passed != row["label_rerun"]]
    # The one that may differ needs several seconds where its reference needs a millisecond.
    assert [line.split(":")[0] for line in differ] in ([], ["HumanEval/129"])
