r"""Grading of answers to math problems (floor 1): find the declared answer, compare it with the gold answer.

    with MathGrader() as grader:
        grades = grader.grade([(text, gold), ...])

What counts as an answer, when two answers are the same, and what was measured: docs/grading.md. The text of a model is
never evaluated in this process: easy cases are settled by reading (math_fast.py), the others by math-verify in worker
processes that can be killed (math_pool.py, math_worker.py).
"""

import os
import re
import threading
import weakref
from collections import OrderedDict
from collections.abc import Sequence
from functools import lru_cache
from types import TracebackType
from typing import Any, Self

from selfcorrect.grading.math_compare import BadGold, check_gold, compare
from selfcorrect.grading.math_extract import FINAL_FORM, Found, find_answer, gold_answer
from selfcorrect.grading.math_fast import canonical, fast_scalar
from selfcorrect.grading.math_normal import Unreadable, normalize, readings
from selfcorrect.grading.math_pool import Reply, WorkerPool
from selfcorrect.types import Grade, Outcome

__all__ = ["FINAL_FORM", "MathGrader", "gold_answer"]

CACHE_SIZE = 65_536  # pairs of answer and gold whose verdict is kept
MAX_WORKERS = 8
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]+")
_Key = tuple[str, str]


class MathGrader:
    """Grades texts against gold answers; the same text and gold always get the same verdict.

    workers: processes for what the fast path cannot settle, started when first needed; None: one for each core, at
    most 8. seconds: CPU time for one comparison (twice that on the clock). max_chars: of a longer text the last
    `max_chars` characters are read. fast: False sends every comparison of scalars to the workers (for tests).
    """

    def __init__(
        self, *, workers: int | None = None, seconds: float = 3.0, max_chars: int = 200_000, fast: bool = True
    ) -> None:
        if workers is not None and workers < 1:
            raise ValueError(f"workers is {workers}: at least one process is needed")
        if not seconds > 0 or max_chars < 1:
            raise ValueError(f"seconds ({seconds}) and max_chars ({max_chars}) must be above 0")
        self.max_chars = max_chars
        self.fast = fast
        self._pool = WorkerPool(workers or min(MAX_WORKERS, os.cpu_count() or 1), seconds)
        self._cache: OrderedDict[_Key, Grade] = OrderedDict()
        self._lock = threading.Lock()
        self._finalizer = weakref.finalize(self, WorkerPool.close, self._pool)

    def grade(self, answers: Sequence[tuple[str, str]]) -> list[Grade]:
        """A grade for each (text of the model, gold answer), in order. Never raises on any text.

        Outcomes: correct, wrong, no_answer; timeout where the comparison used up its time or memory; grader_failed
        where the gold answer cannot be read, or a worker died twice over the answer.
        """
        with self._lock:
            grades: list[Grade | None] = [None] * len(answers)
            undecided: dict[_Key, list[int]] = {}
            found_by_key: dict[_Key, Found] = {}
            for index, (text, gold) in enumerate(answers):
                bad = _gold_trouble(gold)
                found = Found("", "") if bad else find_answer(text[-self.max_chars :])
                key = (found.answer, gold)
                if bad or not found.answer:
                    grades[index] = _failed(bad) if bad else _no_answer(found)
                elif key in undecided:
                    undecided[key].append(index)
                else:
                    grades[index] = self._recall(key) or self._at_once(key, found)
                    if grades[index] is None:
                        undecided[key], found_by_key[key] = [index], found
            self._slow(undecided, found_by_key, grades)
            return [grade if grade is not None else _failed("no verdict") for grade in grades]

    def close(self) -> None:
        """End the workers; a later call of grade starts new ones."""
        with self._lock:
            self._pool.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _recall(self, key: _Key) -> Grade | None:
        grade = self._cache.get(key)
        if grade is not None:
            self._cache.move_to_end(key)
        return grade

    def _keep(self, key: _Key, grade: Grade) -> Grade:
        self._cache[key] = grade
        if len(self._cache) > CACHE_SIZE:
            self._cache.popitem(last=False)
        return grade

    def _at_once(self, key: _Key, found: Found) -> Grade | None:
        """The fast path's verdict, kept; None where a worker has to look."""
        answer, gold = key
        try:
            same = compare(gold, answer, fast_scalar if self.fast else lambda *_: None)
        except BadGold as error:
            return self._keep(key, _failed(str(error)))
        except Unreadable as error:
            return self._keep(key, Grade(Outcome.WRONG, 0.0, _readable(answer), f"{found.way}: {error}"))
        return None if same is None else self._keep(key, _verdict(found, gold, same))

    def _slow(self, undecided: dict[_Key, list[int]], found: dict[_Key, Found], grades: list[Grade | None]) -> None:
        keys = list(undecided)
        jobs: list[dict[str, Any]] = [{"gold": gold, "given": answer, "fast": self.fast} for answer, gold in keys]
        for key, reply in zip(keys, self._pool.run(jobs) if jobs else [], strict=True):
            grade = _from_reply(found[key], key[1], reply)
            if "failed" not in reply:  # a crash may pass; everything else would come out the same again
                self._keep(key, grade)
            for index in undecided[key]:
                grades[index] = grade


@lru_cache(maxsize=16_384)
def _gold_trouble(gold: str) -> str:
    """Why this gold answer cannot be used; "" where it can."""
    try:
        check_gold(gold)
    except BadGold as error:
        return _UNPRINTABLE.sub("?", str(error))
    return ""


def _from_reply(found: Found, gold: str, reply: Reply) -> Grade:
    if "same" in reply:
        return _verdict(found, gold, bool(reply["same"]), str(reply.get("detail", "")))
    if "timeout" in reply or "spent" in reply:
        why = str(reply.get("timeout") or reply["spent"])
        return Grade(Outcome.TIMEOUT, 0.0, _readable(found.answer), f"{found.way}: {why}")
    return _failed(str(reply.get("bad_gold") or reply.get("failed")))


def _verdict(found: Found, gold: str, same: bool, detail: str = "") -> Grade:
    if same:
        return Grade(Outcome.CORRECT, 1.0, _readable(found.answer), found.way)
    why = detail or f"differs from {_UNPRINTABLE.sub('?', gold)[:60]}"
    return Grade(Outcome.WRONG, 0.0, _readable(found.answer), f"{found.way}: {why}")


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
