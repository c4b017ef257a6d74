"""What is said of long work where there is no terminal: seldom, and with the time left."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
from rich.console import Console

from selfcorrect.evaluation.counted import Counted
from selfcorrect.runs.display import PlainObserver
from selfcorrect.samplers.base import Far
from selfcorrect.types import Completion, SamplingParams


def test_lines_where_there_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """One every ten seconds at first, ever fewer later, with the time left at the pace since what was kept."""
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    observer = PlainObserver(console := Console(width=200))
    with console.capture() as shown:
        for second in range(1001):
            now = 100.0 + second
            observer.work("evaluating m", 500 + second, 2000)
    lines = shown.get().splitlines()
    assert lines[0] == "evaluating m: 510 of 2,000 completions, 24:50 left"
    assert 30 < len(lines) < 70


def test_quick_work_is_announced_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where one evaluation took a second, the next needs no line before its result; a long one does."""
    now = 0.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    observer = PlainObserver(console := Console(width=200))
    with console.capture() as shown:
        for name, total, kept in (("a", 120, False), ("b", 120, False), ("c", 5000, False), ("d", 120, True)):
            for done in (0, total // 2, total):
                observer.work(f"evaluating {name}", done, total, "" if kept or done == total else "reading 60 prompts")
                now += 0.1 if kept else 0.5
        observer.work("evaluating e", 0, 120, "reading 60 prompts")
    lines = [line.partition(":")[0] for line in shown.get().splitlines()]
    assert lines == ["evaluating a", "evaluating c", "evaluating e"]  # what was kept tells nothing of e


def test_what_goes_on_within_a_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight rows of sixteen, a token in a second: told as they begin, and with the time left long before one ends."""
    now = 0.0
    monkeypatch.setattr("time.monotonic", lambda: now)

    class Slow:
        watch: Callable[[Far], None] | None = None

        def sample(self, prompts: Sequence[tuple[int, ...]], params: SamplingParams) -> list[Completion]:
            nonlocal now
            now += 5  # reading
            for token in range(1, 49):
                now += 1
                assert self.watch
                self.watch(Far(3, 5, 5 * token))
            return []

        def load_weights(self, model: Any) -> None: ...

    console = Console(width=200)
    observer, slow = PlainObserver(console), Slow()
    with console.capture() as shown:
        observer.work("evaluating m", 0, 16)
        counted = Counted(slow, partial(observer.work, "evaluating m"), 16)
        counted.sample([(1,) * 300, *[(1,)] * 7], SamplingParams(0.0, 48, 0))
    assert slow.watch is None
    lines = shown.get().splitlines()
    reading = "evaluating m: 0 of 16 completions (reading 8 prompts of up to 300 tokens), time left not known yet"
    assert lines[:2] == [
        reading, "evaluating m: 3 of 16 completions (5 side by side at token 5 of up to 48), 0:35 left"
    ]  # fmt: skip
    assert len(lines) == 6
