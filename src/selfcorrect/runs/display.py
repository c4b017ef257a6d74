"""What a person sees while a run goes on: a live panel in a terminal, plain lines elsewhere."""

import math
import time
from collections.abc import Collection
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from selfcorrect.evaluation.alarms import CUT, EQUAL
from selfcorrect.evaluation.caution import caution, ungraded
from selfcorrect.evaluation.evaluate import Evaluation
from selfcorrect.evaluation.metrics import LEFT_OUT, Summary
from selfcorrect.evaluation.resolution import after
from selfcorrect.evaluation.told import change_text, estimate_text, summary_line
from selfcorrect.learning.record import StepResult

_TELLING = 0.02  # the share of a piece of work from which its pace can be told


class Observer:
    """Told what happens in a run: the callback of other trainers. This one says nothing, and is there to build on."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the terminal as it was found."""

    def message(self, text: str) -> None:
        """A line for the user: a warning, a resume."""

    def stage_started(self, name: str, steps: int, done: int) -> None:
        """A stage of `steps` steps begins, `done` of them already done."""

    def step_done(self, result: StepResult) -> None:
        """A training step has ended."""

    def evaluating(self, name: str) -> None:
        """An evaluation begins."""

    def evaluated(self, evaluation: Evaluation) -> None:
        """An evaluation has ended."""

    def work(self, title: str, done: int, total: int, now: str = "", share: float = 0.0) -> None:
        """`done` of the `total` completions of a long piece of work are there; told again and again.

        now: what goes on, in words. share: of completions that is done of it, as in 2.5 for five half-written ones.
        """

    def finished(self, path: Path) -> None:
        """The run is complete."""


class PlainObserver(Observer):
    """One line every few steps; for logs, pipes and notebooks.

    console: rich's; by default standard output. seconds_between: of lines about steps, and about long work.
    """

    def __init__(self, console: Console | None = None, seconds_between: float = 10.0) -> None:
        self.console = console or Console(highlight=False, soft_wrap=True, force_jupyter=False)
        self._between = seconds_between
        self._last = 0.0
        self._pace = _Pace()
        self._work = Work("", 0)
        self._said: set[str] = set()

    def _print(self, text: str, style: str | None = None) -> None:
        """As it is: the words of a user's grader, or brackets in a path, are no markup on any console."""
        self.console.print(text, style=style, markup=False)

    def message(self, text: str) -> None:
        self._print(text, style="yellow")

    def stage_started(self, name: str, steps: int, done: int) -> None:
        self._pace = _Pace(steps, done)
        self._last = 0.0
        self._print(f"stage {name}: {steps} steps" + (f", {done} done" if done else ""))

    def step_done(self, result: StepResult) -> None:
        self._pace.step(result.stage_step)
        if result.skipped:
            self.message(f"step {result.step} skipped: {result.skip_reason}")
        self._show_step(result)

    def _show_step(self, result: StepResult) -> None:
        if time.monotonic() - self._last >= self._between or result.stage_step == self._pace.steps:
            self._last = time.monotonic()
            self._print(step_line(result, self._pace))

    def evaluating(self, name: str) -> None:
        self._print(f"evaluating {name} ...")

    def evaluated(self, evaluation: Evaluation) -> None:
        """What can be concluded is not said again in the same words of a later evaluation; its figures are."""
        self._print(evaluation_line(evaluation, self._said))
        self._said.add(_concluded(evaluation.summary))

    def work(self, title: str, done: int, total: int, now: str = "", share: float = 0.0) -> None:
        self._work = self._work.reach(title, done, total, now, share)
        if self._work.due(self._between):
            self._print(self._work.line())

    def finished(self, path: Path) -> None:
        self._print(f"done: {path}")


class LiveObserver(PlainObserver):
    """A panel that stays in place: stage, step, time left, and how both attempts fare."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._live = Live(console=console, refresh_per_second=4, transient=False)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._live.stop()

    def stage_started(self, name: str, steps: int, done: int) -> None:
        self._pace = _Pace(steps, done)
        self._wait(f"{name}: step {min(done + 1, steps)}/{steps} is under way ...")

    def _show_step(self, result: StepResult) -> None:
        self._live.update(self._panel(result))

    def evaluating(self, name: str) -> None:
        self._wait(f"evaluating {name} on held-out problems ...")

    def evaluated(self, evaluation: Evaluation) -> None:
        super().evaluated(evaluation)
        self._wait(f"evaluated {evaluation.name}; going on ...")

    def work(self, title: str, done: int, total: int, now: str = "", share: float = 0.0) -> None:
        self._work = self._work.reach(title, done, total, now, share)
        bar = ProgressBar(total=max(1, total), completed=done + share, width=66)
        text = Text(self._work.line(), style="dim")
        self._live.update(Panel(Group(text, bar), border_style="dim", width=76))

    def finished(self, path: Path) -> None:
        self._live.update(Panel(Text(f"done: {path}", style="bold green"), border_style="green"))

    def _wait(self, text: str) -> None:
        self._live.update(Panel(Text(text, style="dim"), border_style="dim", width=76))

    def _panel(self, result: StepResult) -> Panel:
        title = Text.assemble(
            (f"{result.stage} ", "bold cyan"),
            f"step {result.stage_step}/{self._pace.steps}",
            (f"   {clock(self._pace.left())} left in this stage", "dim"),
        )
        table = Table.grid(padding=(0, 2))
        table.add_column(style="dim", min_width=22)
        table.add_column(min_width=10)
        table.add_column()
        for number, reward in enumerate(result.rewards, 1):
            bar = ProgressBar(total=1.0, completed=reward, width=30)
            table.add_row(f"reward, attempt {number}", f"{reward:.3f}", bar)
        if len(result.rewards) > 1:
            colour = "green" if result.delta >= 0 else "red"
            table.add_row("delta", Text(f"{result.delta:+.3f}", style=colour), _flow(result))
            table.add_row("unchanged answers", f"{result.unchanged:.1%}")
        if result.rewards:
            cut = max(result.truncated, default=0.0)
            table.add_row("cut off", _warned(cut, 2 * CUT), Text("of an attempt, at max_new_tokens", style="dim"))
        if result.equal_groups is not None:
            told = "nothing learned: gradient zero" if learned_nothing(result) else "of problems, which teach nothing"
            table.add_row("equal rewards", _warned(result.equal_groups, EQUAL), Text(told, style="dim"))
        if result.kl:
            table.add_row("KL of attempt 1", f"{result.kl[0]:.3f}", Text("nats to the reference", style="dim"))
        else:
            table.add_row("loss", f"{result.loss:.4f}", Text("cross entropy a token", style="dim"))
        table.add_row("sampled tokens/s", f"{result.tokens_per_second:,.0f}", Text(_parts(result), style="dim"))
        table.add_row("waiting for grader", f"{grader_share(result):.1%}", Text("of the step", style="dim"))
        whole = ProgressBar(total=self._pace.steps, completed=result.stage_step, width=66)
        return Panel(Group(table, Text(""), whole), title=title, title_align="left", border_style="cyan", width=76)


class _Pace:
    """Time left in a stage, from the mean of the steps done since it (re)started."""

    def __init__(self, steps: int = 0, done: int = 0) -> None:
        self.steps, self._first, self._done, self._began = steps, done, done, time.monotonic()

    def step(self, done: int) -> None:
        self._done = done

    def left(self) -> float:
        spent = time.monotonic() - self._began
        return spent / max(1, self._done - self._first) * (self.steps - self._done)


class Work:
    """How far a long piece of work is, and how long the rest takes at the pace since it (re)started."""

    def __init__(self, title: str, total: int, expected: float = math.inf) -> None:
        """expected: the seconds that it takes at the pace of the work before it, where there was any."""
        self.title, self.total, self.done, self._expected = title, total, 0, expected
        self._now, self._share = "", 0.0
        self._first, self._began = 0, time.monotonic()
        self._said = self._ended = self._began
        self._begun = False

    def reach(self, title: str, done: int, total: int, now: str = "", share: float = 0.0) -> "Work":
        """The same work further on, or another one's beginning."""
        same = (self.title, self.total) == (title, total) and self.done <= done
        work = self if same else Work(title, total, self._each() * total)
        work.done, work._now, work._share, work._ended = done, now, share, time.monotonic()
        if time.monotonic() - work._began < 0.5 and not share:  # that much at once was kept from before
            work._first = done
        return work

    def _each(self) -> float:
        """Seconds a completion took; endless where the work is not done, or all of it was kept from before."""
        return (self._ended - self._began) / self.total if self._begun and self.done == self.total else math.inf

    def left(self) -> float | None:
        """Seconds; None where nothing tells yet: a first few tokens, behind the reading of prompts, do not."""
        spent, fresh = time.monotonic() - self._began, self.done + self._share - self._first
        if self.done == self._first and fresh <= _TELLING * (self.total - self._first):
            return None
        return spent / fresh * (self.total - self._first - fresh)

    def due(self, between: float) -> bool:
        """Whether another line is worth it: as work begins that may take long, then ever more rarely, the longer it
        takes.
        """
        now = time.monotonic()
        if not self._begun and self._now:
            self._begun = True
            return self._expected >= between
        if now - self._said < max(between, (now - self._began) / 20) or self.done == self.total:
            return False
        self._said = now
        return True

    def line(self) -> str:
        left = self.left()
        rest = f"{clock(left)} left" if left is not None else "time left not known yet"
        now = f" ({self._now})" if self._now else ""
        return f"{self.title}: {self.done:,} of {self.total:,} completions{now}, {rest}"


def make_observer() -> Observer:
    """Live in a terminal, plain lines when the output goes to a file or a pipe."""
    console = Console(highlight=False, markup=False)
    return LiveObserver(console) if console.is_terminal else PlainObserver()


def step_line(result: StepResult, pace: _Pace) -> str:
    """One training step as a line of text."""
    cut = "/".join(f"{share:.0%}" for share in result.truncated)
    nothing = "  nothing learned: the gradient is zero" if learned_nothing(result) else ""
    begins = f"{result.stage} {result.stage_step}/{pace.steps}  {clock(pace.left())} left "
    if not result.rewards:
        return f"{begins} loss={result.loss:.4f} grad_norm={result.grad_norm:.3f}{nothing}"
    rewards = " ".join(f"r{number}={reward:.3f}" for number, reward in enumerate(result.rewards, 1))
    return (
        f"{begins} {rewards} delta={result.delta:+.3f} kl1={result.kl[0]:.3f} unchanged={result.unchanged:.0%} "
        f"cut_off={cut} equal_rewards={result.equal_groups or 0.0:.0%} "
        f"{result.tokens_per_second:,.0f} tokens/s grader_wait={grader_share(result):.0%}{nothing}"
    )


def learned_nothing(result: StepResult) -> bool:
    """Whether a step made an update without a gradient."""
    return result.grad_norm == 0 and not result.skipped


def _warned(share: float, high: float) -> Text:
    return Text(f"{share:.1%}", style="red" if share >= high else "")


def grader_share(result: StepResult) -> float:
    """The share of a step in which nothing was done but wait for the grader."""
    return result.seconds_by_part.get("grader_wait", 0.0) / max(1e-9, result.seconds)


_NONE = "\N{EN DASH}"  # of a number that is not defined


def evaluation_line(evaluation: Evaluation, said: Collection[str] = ()) -> str:
    """One evaluation as text: percent with 95 % intervals, and what can be concluded from so many problems.

    said: conclusions that need not be said again.
    """
    summary, name = evaluation.summary, evaluation.name + (f" on {evaluation.about}" if evaluation.about else "")
    lines = [f"{name}: {summary_line(summary)} ({evaluation.seconds:.0f} s)"]
    lines += flow_lines(summary) + passes_lines(summary)
    concluded = _concluded(summary)
    told = ("" if concluded in said else concluded, ungraded(summary.outcomes, evaluation.rollouts))
    return "\n".join([*lines, *(f"  {each}" for each in told if each), *wording_lines(evaluation)])


def _concluded(summary: Summary) -> str:
    """Why nothing can be concluded, or else what can be resolved."""
    why = caution(summary)
    return f"nothing can be concluded: {why}" if why else after(summary)


def passes_lines(summary: Summary) -> list[str]:
    """pass@k of every attempt, a line each k."""
    return [
        f"  pass@{each.k}: "
        + "  ".join(f"t{number} {estimate_text(value)}" for number, value in enumerate(each.accuracy, 1))
        + f"  {change_text(each)}  n={each.n}"
        for each in summary.passes
    ]


def flow_lines(summary: Summary) -> list[str]:
    """What each attempt does to the one before, a line each, where there are more than two."""
    return [
        f"  t{place} -> t{place + 1}: {change_text(flow)}  unchanged {flow.unchanged.value:.1%}"
        for place, flow in enumerate(summary.flows, 1)
    ]


def wording_lines(evaluation: Evaluation) -> list[str]:
    """Every wording of the correction prompt after the same first attempts; the first one is the task's own."""
    lines = []
    for each in evaluation.wordings:
        summary = each.summary
        less = [f"{estimate_text(value, signed=True)} against {name}" for name, value in each.less.items()]
        lines.append(
            f"  asked as {each.name}: t{len(summary.accuracy)} {estimate_text(summary.accuracy[-1])}  "
            f"{change_text(summary)}  unchanged {summary.unchanged.value:.1%}  ({', '.join(less)})"
        )
    return lines


def summary_lines(summary: Summary) -> list[str]:
    """The metrics in words, a line each: of one attempt its accuracy alone."""
    if not summary.accuracy:
        return ["no attempts"]
    lines = [f"Accuracy@t{number}  {estimate_text(value)}" for number, value in enumerate(summary.accuracy, 1)]
    if len(summary.accuracy) > 1:
        lines += [
            f"delta        {estimate_text(summary.delta, signed=True)}",
            f"i->c         {estimate_text(summary.fixed)}",
            f"c->i         {estimate_text(summary.broken)}",
            f"fix rate     {estimate_text(summary.fix_rate) if summary.wrong_first else _NONE}",
            f"unchanged    {estimate_text(summary.unchanged)}",
            *(line.strip() for line in flow_lines(summary)),
        ]
    lines += [
        f"reward@t{number}    {value.value:.3f} [{value.low:.3f}, {value.high:.3f}]"
        for number, value in enumerate(summary.rewards, 1)
    ]
    for number, outcomes in enumerate(summary.outcomes, 1):
        told = ", ".join(f"{count} {name}" for name, count in sorted(outcomes.items(), key=lambda kv: -kv[1]))
        lines.append(f"attempt {number}:   {told}")
    lines.append(f"n = {summary.n}{_left_out(summary)}; 95 % intervals in brackets")
    return [*lines, f"nothing can be concluded: {told}"] if (told := caution(summary)) else lines


def _left_out(summary: Summary) -> str:
    """How many attempts have no verdict that counts, by outcome; empty where all have one."""
    counts = {name: sum(outcomes.get(name, 0) for outcomes in summary.outcomes) for name in sorted(LEFT_OUT)}
    told = " and ".join(f"{count} {name}" for name, count in counts.items() if count)
    return f" (left out: rollouts with attempts that are {told})" if told else ""


def clock(seconds: float) -> str:
    """Seconds as 1:23 or 1:02:03."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _flow(result: StepResult) -> Text:
    return Text.assemble(
        ("fixed ", "dim"), (f"{result.fixed:.1%}", "green"), ("  broken ", "dim"), (f"{result.broken:.1%}", "red")
    )


def _parts(result: StepResult) -> str:
    return ", ".join(f"{name} {seconds:.2f} s" for name, seconds in result.seconds_by_part.items() if seconds > 0.005)
