"""Numbers -> sentences (pure). What a sentence claims is decided here, by intervals, never by hope.

Two evaluations are compared as independent shares by Newcombe's interval. They mostly ask the same problems, so
this is on the careful side: it claims a difference later than a paired interval would.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from selfcorrect.evaluation.metrics import Estimate, Summary, difference
from selfcorrect.report.load import Evaluation, Run

MINUS = "\N{MINUS SIGN}"
NBSP = "\N{NO-BREAK SPACE}"


@dataclass(frozen=True, slots=True)
class Headline:
    """The result in one sentence, its tone (good, even, bad, none) for the colour, and what to know beside it."""

    sentence: str
    tone: str
    findings: tuple[str, ...]


def percent(value: float) -> str:
    """0.685 -> "68.5"."""
    return f"{100 * value:.1f}".replace("-", MINUS)


def points(value: float) -> str:
    """A difference of shares in percentage points, always with its sign: 0.044 -> "+4.4"."""
    text = f"{100 * value:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text.replace("-", MINUS)


def together(text: str) -> str:
    """A number and its unit, and the ends of an interval, stay on one line."""
    text = text.replace(" %", f"{NBSP}%").replace(" points", f"{NBSP}points")
    return re.sub(f" to (?=[+{MINUS}])", f"{NBSP}to{NBSP}", text)


def capital(text: str) -> str:
    """The first letter in upper case; unlike str.capitalize the rest stays, as it may hold a name."""
    return text[:1].upper() + text[1:]


def sign(estimate: Estimate) -> int:
    """+1 or -1 where the interval excludes zero, else 0."""
    return (estimate.low > 0) - (estimate.high < 0)


def interval(estimate: Estimate) -> str:
    return f"{points(estimate.low)} to {points(estimate.high)}"


def headline(run: Run) -> Headline:
    """The page's first sentence, from the latest evaluation."""
    final = run.final or run.base
    if final is None:
        return Headline(_without_evaluation(run), "none", ())
    if final.summary.n == 0 or not final.summary.accuracy:
        return Headline(f"The evaluation {final.label} could grade no problem.", "none", tuple(_progress(run)))
    summary = final.summary
    sentence = _result(capital(final.label), summary)
    tone = {1: "good", 0: "even", -1: "bad"}[sign(summary.delta)]
    base = run.base if run.base and run.base is not final and run.base.summary.n else None
    if base and base.summary.accuracy and sign(difference(summary.accuracy[0], base.summary.accuracy[0])) < 0:
        tone = "bad"
        sentence = f"{sentence[:-1]}; but attempt 1 fell under the base model's (sandbagging)."
    findings = [
        *(_against_base(summary, base.summary) if base and base.summary.accuracy else ()),
        _repairs(summary, base.summary if base and base.summary.accuracy else None),
        *_progress(run),
    ]
    return Headline(together(sentence), tone, tuple(map(together, findings)))


def _without_evaluation(run: Run) -> str:
    if not run.steps:
        return "Nothing to show yet: no evaluation and no training step has been recorded."
    return f"No evaluation yet: training stands at step {run.steps[-1].step:,}."


def _result(when: str, summary: Summary) -> str:
    first, last, delta = summary.accuracy[0], summary.accuracy[-1], summary.delta
    if len(summary.accuracy) == 1:
        return f"{when}, {percent(first.value)} % of the problems are solved; only one attempt was played."
    more = "a second attempt" if len(summary.accuracy) == 2 else f"{len(summary.accuracy) - 1} further attempts"
    s, be = ("s", "is") if len(summary.accuracy) == 2 else ("", "are")
    span = f"{percent(first.value)} % to {percent(last.value)} %"
    match sign(delta):
        case 1:
            return f"{when}, {more} lift{s} accuracy from {span}: {points(delta.value)} points by self-correction."
        case -1:
            do = "does" if s else "do"
            return f"{when}, {more} {do} harm: accuracy falls from {span}, by {percent(-delta.value)} points."
        case _:
            return (
                f"{when}, {more} {be} not measurably better or worse than the first: {percent(first.value)} % against "
                f"{percent(last.value)} %, and the interval of the difference includes zero."
            )


def _against_base(summary: Summary, base: Summary) -> list[str]:
    before, after = base.accuracy[0], summary.accuracy[0]
    change = difference(after, before)
    moved = f"{percent(before.value)} % before training, {percent(after.value)} % now ({points(change.value)} points"
    first = {
        1: f"Attempt 1 itself became better: {moved}, {interval(change)}).",
        0: f"Attempt 1 itself did not measurably change: {moved}, {interval(change)}).",
        -1: (
            f"Sandbagging: attempt 1 became worse than the base model's, {moved}, {interval(change)}). "
            "A weaker first attempt makes correction look better than it is."
        ),
    }[sign(change)]
    if len(base.accuracy) == 1:
        return [first]
    return [
        f"Before training, attempt {len(base.accuracy)} moved accuracy from {percent(before.value)} % to "
        f"{percent(base.accuracy[-1].value)} % ({points(base.delta.value)} points, {interval(base.delta)}).",
        first,
    ]


def _repairs(summary: Summary, base: Summary | None) -> str:
    if len(summary.accuracy) == 1:
        return f"{summary.n:,} problems were graded."
    before = ("", "")
    if base and len(base.accuracy) > 1:  # a model can gain by breaking less alone: say which it was
        before = (f" ({percent(base.fix_rate.value)} % before training)", f" ({percent(base.broken.value)} % before)")
    return (
        f"Of the first attempts that were wrong, {percent(summary.fix_rate.value)} % end right{before[0]}; "
        f"{percent(summary.broken.value)} % of all {summary.n:,} problems went from right to wrong{before[1]}. The "
        f"last attempt repeats the first one's answer on {percent(summary.unchanged.value)} %."
    )


def _progress(run: Run) -> list[str]:
    """One line while the evaluations lag behind the recipe."""
    total, done = run.total_steps, run.steps[-1].step if run.steps else 0
    reached = run.final.step if run.final else 0
    if total is None or reached >= total or (run.final and not run.steps and not reached):
        return []
    return [f"This run is not finished: training stands at step {done:,} of {total:,}."]


def control_sentence(evaluation: Evaluation) -> str:
    """Whether attempt 2 depends on attempt 1, as far as the swapped and independent controls say."""
    own = evaluation.summary.accuracy[-1] if evaluation.summary.accuracy else None
    parts: list[str] = []
    for name, clause in (("swapped", _swapped), ("independent", _independent)):
        control = evaluation.controls.get(name)
        if own and control and control.n and control.accuracy:
            parts.append(clause(own, control))
    return together(f"{capital('; '.join(parts))}.") if parts else ""


def _swapped(own: Estimate, control: Summary) -> str:
    last = control.accuracy[-1]
    change = difference(last, own)
    moved = f"{percent(own.value)} % to {percent(last.value)} %, {points(change.value)} points"
    verdict = {
        -1: f"gets worse ({moved}), so it depends on what it reads",
        0: f"is right about as often ({moved}; the interval includes zero), so it hardly uses what attempt 1 says",
        1: f"gets better ({moved}), so its own attempt misleads it",
    }[sign(change)]
    return f"shown an attempt at another problem, the last attempt {verdict}"


def _independent(own: Estimate, control: Summary) -> str:
    last = control.accuracy[-1]
    change = difference(last, own)
    verdict = {-1: "less often than", 0: "about as often as", 1: "more often than"}[sign(change)]
    return (
        f"shown another sampled attempt at the same problem, right on {percent(control.accuracy[0].value)} %, it ends "
        f"right {verdict} from its own ({percent(last.value)} %, {points(change.value)} points)"
    )


def run_list(numbers: Sequence[int]) -> str:
    """[3, 4, 5, 9] -> "3-5, 9", for lists of skipped steps."""
    spans: list[list[int]] = []
    for number in numbers:
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ", ".join(f"{a}" if a == b else f"{a}\N{EN DASH}{b}" for a, b in spans)
