r"""Grading of answers to math problems: find the declared answer, compare it with the gold answer.

    with MathGrader() as grader:
        grades = grader.grade([(text, gold, problem), ...])

What counts as an answer, when two answers are the same, and what was measured: docs/grading.md. The text of a model is
never evaluated in this process: easy cases are settled by reading (math_fast.py), the others by math-verify in worker
processes that can be killed (math_pool.py, math_worker.py).
"""

import re
import weakref
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple, Self

from selfcorrect.grading.math_compare import BadGold, check_gold, compare
from selfcorrect.grading.math_copy import copied, dressings
from selfcorrect.grading.math_extract import FINAL_FORM, Found, find_answer, gold_answer
from selfcorrect.grading.math_fast import canonical, fast_scalar
from selfcorrect.grading.math_form import other_form
from selfcorrect.grading.math_normal import Unreadable, last_side, normalize, readings
from selfcorrect.grading.math_pool import Reply, WorkerPool
from selfcorrect.grading.math_units import asked_units
from selfcorrect.types import Grade, Outcome
from selfcorrect.waiting import cores

__all__ = ["FINAL_FORM", "MathGrader", "gold_answer"]

MAX_CHARS = 200_000  # the last ones of a text are read
CACHE_SIZE = 65_536  # pairs of answer and gold whose verdict is kept, the newest
MAX_WORKERS = 8
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]+")
_HARMLESS = r"x+\sqrt{y}"  # an answer that a worker can compare with anything


class _Key(NamedTuple):
    """All that a verdict depends on; how the answer was declared is told, but changes nothing."""

    answer: str
    gold: str
    problem: str


class _Kept(NamedTuple):
    outcome: Outcome
    why: str


class MathGrader:
    """Grades texts against gold answers; the same text and gold always get the same verdict.

    workers: processes for what the fast path cannot settle, started when first needed; None: one for each core, at
    most 8. seconds: CPU time for one comparison (twice that on the clock). fast: False sends every comparison of
    scalars to the workers (for tests).
    """

    def __init__(self, *, workers: int | None = None, seconds: float = 3.0, fast: bool = True) -> None:
        if workers is not None and workers < 1:
            raise ValueError(f"workers is {workers}: at least one process is needed")
        if not seconds > 0:
            raise ValueError(f"seconds is {seconds}: it must be above 0")
        self.fast = fast
        self._pool = WorkerPool(workers or min(MAX_WORKERS, cores()), seconds)
        self._cache: dict[_Key, _Kept] = {}
        self._finalizer = weakref.finalize(self, WorkerPool.close, self._pool)

    def grade(self, answers: Sequence[tuple[str, str] | tuple[str, str, str]]) -> list[Grade]:
        """A grade for each (text of the model, gold answer, problem), in order. Never raises on any text.

        The problem's statement may be left out; with it, answers that are copied from it are refused.

        Outcomes: correct, wrong, no_answer; timeout where the comparison used up its time or memory, or ended its
        worker twice; grader_failed where the gold answer cannot be read, or workers end under any answer to it.
        """
        with self._pool.lock:
            grades: dict[int, Grade] = {}
            undecided: dict[_Key, list[tuple[int, Found]]] = {}
            for index, (text, gold, *problem) in enumerate(answers):
                bad = _gold_trouble(gold)
                found = Found("", "") if bad else find_answer(text[-MAX_CHARS:])
                key = _Key(found.answer, gold, problem[0] if problem else "")
                if bad or not found.answer:
                    grades[index] = _failed(bad) if bad else _no_answer(found)
                elif key in undecided:
                    undecided[key].append((index, found))
                else:
                    kept = self._cache.get(key) or self._at_once(key)
                    if kept is None:
                        undecided[key] = [(index, found)]
                    else:
                        grades[index] = _grade(found, kept)
            self._slow(undecided, grades)
            return [grades[index] for index in range(len(answers))]

    def close(self) -> None:
        """End the workers; a later call of grade starts new ones."""
        with self._pool.lock:
            self._pool.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _keep(self, key: _Key, kept: _Kept) -> _Kept:
        self._cache[key] = kept
        if len(self._cache) > CACHE_SIZE:
            del self._cache[next(iter(self._cache))]
        return kept

    def _at_once(self, key: _Key) -> _Kept | None:
        """The fast path's verdict, kept; None where a worker has to look."""
        scalar = fast_scalar if self.fast else lambda *_: None
        try:
            same = compare(key.gold, key.answer, scalar, asked_units(key.problem))
        except BadGold as error:
            return self._keep(key, _Kept(Outcome.GRADER_FAILED, str(error)))
        except Unreadable as error:  # found at once, and as long as it likes: not kept
            return _Kept(Outcome.WRONG, str(error))
        kept = None if same is None else _verdict(key, same)
        if kept is None or (kept.outcome is Outcome.CORRECT and dressings(key.problem, key.gold, key.answer)):
            return None
        return self._keep(key, kept)

    def _slow(self, undecided: dict[_Key, list[tuple[int, Found]]], grades: dict[int, Grade]) -> None:
        keys = list(undecided)
        replies = self._pool.run([self._job(key) for key in keys]) if keys else []
        deadly = [key for key, reply in zip(keys, replies, strict=True) if "died" in reply]
        controls = self._pool.run([self._job(key, _HARMLESS) for key in deadly]) if deadly else []
        for key, control in zip(deadly, controls, strict=True):
            if "same" in control:  # the worker ends under this answer alone: it is the answer's doing
                replies[keys.index(key)] = {"spent": "it ended its worker twice"}
        for key, reply in zip(keys, replies, strict=True):
            kept = _from_reply(key, reply)
            if "failed" not in reply:  # a crash may pass; everything else would come out the same again
                self._keep(key, kept)
            for index, found in undecided[key]:
                grades[index] = _grade(found, kept)

    def _job(self, key: _Key, given: str | None = None) -> dict[str, Any]:
        fast, harmless = self.fast and given is None, given is not None
        return {
            "gold": key.gold, "given": given or key.answer, "units": sorted(asked_units(key.problem)), "fast": fast,
            "dressings": () if harmless else dressings(key.problem, key.gold, key.answer),
        }  # fmt: skip


@lru_cache(maxsize=16_384)
def _gold_trouble(gold: str) -> str:
    """Why this gold answer cannot be used; "" where it can."""
    try:
        check_gold(gold)
    except BadGold as error:
        return _UNPRINTABLE.sub("?", str(error))
    return ""


def _from_reply(key: _Key, reply: Reply) -> _Kept:
    if reply.get("dressed"):
        return _Kept(Outcome.WRONG, "copies an expression of the problem")
    if "same" in reply:
        return _verdict(key, bool(reply["same"]), str(reply.get("detail", "")))
    if "timeout" in reply or "spent" in reply:
        return _Kept(Outcome.TIMEOUT, str(reply.get("timeout") or reply["spent"]))
    return _Kept(Outcome.GRADER_FAILED, str(reply["failed"]))


def _verdict(key: _Key, same: bool, detail: str = "") -> _Kept:
    if not same:
        return _Kept(Outcome.WRONG, detail or f"differs from {_UNPRINTABLE.sub('?', key.gold)[:60]}")
    why = _refused(key) if key.problem else ""
    return _Kept(Outcome.WRONG, why) if why else _Kept(Outcome.CORRECT, "")


def _refused(key: _Key) -> str:
    """Why an answer of the right value is none to this problem."""
    gold, given = normalize(key.gold), normalize(key.answer)  # both could be compared, so they can be read
    return copied(key.problem, gold, given) or other_form(key.problem, gold, last_side(given))


def _grade(found: Found, kept: _Kept) -> Grade:
    if kept.outcome is Outcome.GRADER_FAILED:
        return _failed(kept.why)
    detail = f"{found.way}: {kept.why}" if kept.why else found.way
    return Grade(kept.outcome, float(kept.outcome is Outcome.CORRECT), _readable(found.answer), detail)


def _no_answer(found: Found) -> Grade:
    return Grade(Outcome.NO_ANSWER, 0.0, "", "the last box is empty" if found.way else "no answer is declared")


def _failed(why: str) -> Grade:
    return Grade(Outcome.GRADER_FAILED, 0.0, "", _UNPRINTABLE.sub("?", why))


def _readable(answer: str) -> str:
    """The answer in a normal form that is safe to print and to compare: equal answers mostly have equal forms."""
    try:
        form = canonical(readings(normalize(answer))[0])
    except Unreadable:
        form = answer[:200]
    return _UNPRINTABLE.sub("?", form)
