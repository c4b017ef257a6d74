"""A bar with time left, for the commands that sample for long without training."""

from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from selfcorrect.runs.display import Observer, PlainObserver, clock


class BarObserver(PlainObserver):
    """Messages as they come, and beneath them one bar for the work under way."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        columns = (
            SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(),
            TextColumn("{task.fields[far]}", markup=False), TimeElapsedColumn(),
        )  # fmt: skip
        self._bar = Progress(*columns, console=console, transient=True)
        self._task = self._bar.add_task("", total=1, visible=False, far="")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def work(self, title: str, done: int, total: int, now: str = "", share: float = 0.0) -> None:
        before = self._work
        self._work = self._work.reach(title, done, total, now, share)
        if self._work is not before:
            self._bar.reset(self._task)
        left = self._work.left()
        far = f"{done:,}/{total:,} completions, {clock(left) if left is not None else '-:--'} left"
        self._bar.update(
            self._task, description=title, completed=done + share, total=max(1, total), visible=done < total,
            far=f"{far}; {now}" if now else far,
        )  # fmt: skip


def on_stderr() -> Observer:
    """Notes and progress, apart from what a command prints: a bar in a terminal, lines elsewhere."""
    console = Console(stderr=True, highlight=False, soft_wrap=True, markup=False)
    return BarObserver(console) if console.is_terminal else PlainObserver(console)
