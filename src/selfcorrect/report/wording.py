"""Numbers -> sentences (pure). What a sentence claims is decided here, by intervals, never by hope.

Where figures allow no conclusion at all (evaluation/caution.py says when), that is the sentence.

An evaluation is held against the base model's problem by problem, where the run kept that; otherwise, and against
controls, two count as independent shares by Newcombe's interval, which claims a difference later than a paired one.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath

from selfcorrect.evaluation.averages import Change
from selfcorrect.evaluation.caution import MOST, RARE, SOME, bought, caution, is_narrow, outcome_shares, spaced
from selfcorrect.evaluation.evaluate import Evaluation
from selfcorrect.evaluation.metrics import FEW, Estimate, Summary, difference
from selfcorrect.evaluation.resolution import after
from selfcorrect.report.load import Run
from selfcorrect.types import Outcome

# An absolute path of two parts or more, or one of the home: "/no_think" is a word to a model.
_AT_A_PLACE = re.compile(r"(?<![\w.:/~-])(?:~[\w.-]*(?:/[\w.@%+-]+)+|(?:/[\w.@%+-]+){2,})/?")
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


def with_minus(text: str) -> str:
    """A sentence of evaluation/ with the page's minus signs."""
    return re.sub(r"(?<![\w.])-(?=\d)", MINUS, text)


def without_folders(text: str, mark: str = "") -> str:
    """The text, of each path in it the last part alone, behind a mark: folders say nothing elsewhere, or who one is."""
    return _AT_A_PLACE.sub(lambda found: f"{mark}{PurePath(found[0]).name}", text)


def capital(text: str) -> str:
    """The first letter in upper case; unlike str.capitalize the rest stays, as it may hold a name."""
    return text[:1].upper() + text[1:]


TONE = {1: "good", 0: "even", -1: "bad"}  # of a sign: how the pages colour it


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
    tone = "none" if caution(summary) else TONE[sign(summary.delta)]
    base = run.base if run.base and run.base is not final and run.base.summary.n else None
    paired = final.against_base if base else None
    if base and base.summary.accuracy and (_first_change(summary, base.summary, paired) or 0) < 0:
        tone = "bad"
        sentence = f"{sentence[:-1]}; but attempt 1 fell under the base model's (sandbagging)."
    findings = [
        *(_against_base(summary, base.summary, paired) if base and base.summary.accuracy else ()),
        _repairs(summary, base.summary if base and base.summary.accuracy else None),
        *_cut_off(summary),
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
        told = f"; {few}" if (few := caution(summary)) else ""
        return f"{when}, {percent(first.value)} % of the problems are solved; only one attempt was played{told}."
    if told := caution(summary):
        return (
            f"{when}, nothing can be concluded on self-correction: {told} (accuracy {percent(first.value)} % at "
            f"attempt 1, {percent(last.value)} % at attempt {len(summary.accuracy)})."
        )
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


def _first_change(summary: Summary, base: Summary, paired: Change | None) -> int | None:
    """The sign of attempt 1's change since the base model; None where too little was asked, or all or none is right."""
    asked = [(s.n, s.accuracy[0].value) for s in (summary, base)]
    if min(summary.n, base.n) < FEW or _at_end(asked):
        return None
    return sign(paired.first if paired else difference(summary.accuracy[0], base.accuracy[0]))


def _against_base(summary: Summary, base: Summary, paired: Change | None) -> list[str]:
    before, now = base.accuracy[0], summary.accuracy[0]
    change, known = paired.first if paired else difference(now, before), _first_change(summary, base, paired)
    moved = f"{percent(before.value)} % before training, {percent(now.value)} % now ({points(change.value)} points"
    first = {
        None: f"Attempt 1: {percent(before.value)} % before training, {percent(now.value)} % now.",
        1: f"Attempt 1 itself became better: {moved}, {interval(change)}).",
        0: f"Attempt 1 itself did not measurably change: {moved}, {interval(change)}).",
        -1: (
            f"Sandbagging: attempt 1 became worse than the base model's, {moved}, {interval(change)}). "
            "A weaker first attempt makes correction look better than it is."
        ),
    }[known]
    if len(base.accuracy) == 1:
        return [first]
    if paired and known is not None and (price := bought(paired, "the base model")):
        first = f"{first} {capital(with_minus(price))}."
    if told := caution(base):
        return [f"Of the model before training nothing can be concluded either: {told}.", first]
    return [
        f"Before training, attempt {len(base.accuracy)} moved accuracy from {percent(before.value)} % to "
        f"{percent(base.accuracy[-1].value)} % ({points(base.delta.value)} points, {interval(base.delta)}).",
        first,
    ]


def _repairs(summary: Summary, base: Summary | None) -> str:
    if len(summary.accuracy) == 1:
        return f"{summary.n:,} problems were graded."
    wrong = summary.wrong_first
    if caution(summary) or wrong < FEW:
        right = round(summary.n * summary.accuracy[-1].value)
        return (
            f"Of {summary.n:,} problems attempt 1 solved {summary.n - wrong:,} and the last attempt {right:,}; "
            f"{round(summary.n * summary.fixed.value):,} went from wrong to right and "
            f"{round(summary.n * summary.broken.value):,} from right to wrong."
        )
    before = ("", "")
    if (
        base and len(base.accuracy) > 1 and base.wrong_first and not caution(base)
    ):  # a gain may be less that is broken: say which it was
        before = (f" ({percent(base.fix_rate.value)} % before training)", f" ({percent(base.broken.value)} % before)")
    return (
        f"Of the first attempts that were wrong, {percent(summary.fix_rate.value)} % end right{before[0]}; "
        f"{percent(summary.broken.value)} % of all {summary.n:,} problems went from right to wrong{before[1]}. The "
        f"last attempt repeats the first one's answer on {percent(summary.unchanged.value)} %."
    )


def _cut_off(summary: Summary) -> list[str]:
    """Attempts without room to end count as wrong; where they are some, the reader is told."""
    cut = outcome_shares(summary, Outcome.TRUNCATED)
    if max(cut, default=0.0) < SOME:
        return []
    each = ", ".join(f"{percent(share)} % of attempts {number}" for number, share in enumerate(cut, 1))
    return [
        f"Cut off at the token limit, and so not right: {each}. A higher rollouts.max_new_tokens would let them end."
    ]


def _progress(run: Run) -> list[str]:
    """One line while the evaluations lag behind the recipe."""
    total, done = run.total_steps, run.steps[-1].step if run.steps else 0
    reached = run.final.step if run.final else 0
    if total is None or reached >= total or (run.final and not run.steps and not reached):
        return []
    return [f"This run is not finished: training stands at step {done:,} of {total:,}."]


def wording_sentence(evaluation: Evaluation) -> str:
    """Which wording of the correction prompt does better than the task's own, and how often each only repeats."""
    if not evaluation.wordings or not evaluation.summary.n:
        return ""
    own, *others = evaluation.wordings
    told = [
        f"asked as {w.name}, the last attempt repeats the first on {percent(w.summary.unchanged.value)} %"
        for w in evaluation.wordings
    ]
    sentence = f"{capital('; '.join(told))}."
    if why := caution(evaluation.summary):
        return together(f"{sentence} Which wording is better cannot be concluded: {why}.")
    for way, word in ((1, "better"), (-1, "worse")):
        names = [w.name for w in others if own.name in w.less and sign(w.less[own.name]) == way]
        if names:
            sentence += f" Measurably {word} than the task's own wording: {', '.join(names)}."
    if not any(sign(less) for w in evaluation.wordings for less in w.less.values()):
        sentence += " No two wordings differ measurably in accuracy."
    return together(sentence)


def resolved_sentence(evaluation: Evaluation) -> str:
    """The smallest delta that could be shown; empty where the run does not say."""
    told = after(evaluation.summary)
    if not told:
        return ""
    first = "" if evaluation.assumed is None else f" Before, {percent(evaluation.assumed)} points were assumed."
    return together(f"{told}.{first}")


def control_sentence(evaluation: Evaluation) -> str:
    """Whether attempt 2 depends on attempt 1, as far as the swapped and independent controls say."""
    own = evaluation.summary
    parts: list[str] = []
    for name, clause in (("swapped", _swapped), ("independent", _independent)):
        control = evaluation.controls.get(name)
        if own.accuracy and control and control.n and control.accuracy:
            if told := caution(own) or _untold(own, control):
                return together(f"Nothing can be concluded on what the last attempt reads: {told}.")
            parts.append(clause(own.accuracy[-1], control))
    return together(f"{capital('; '.join(parts))}.") if parts else ""


def _untold(own: Summary, control: Summary) -> str:
    """Why a control shows nothing; empty where it shows something."""
    if control.n < FEW:
        return f"only {control.n} problems were graded with another attempt shown"
    if end := _at_end([(s.n, s.accuracy[-1].value) for s in (own, control)]):
        return f"the last attempt is hardly ever {end}, whatever it is shown"
    cut = outcome_shares(control, Outcome.TRUNCATED)
    return f"{spaced(cut[-1])} of the last attempts were cut off in a control" if cut and cut[-1] >= MOST else ""


def _at_end(asked: Sequence[tuple[int, float]]) -> str:
    """Which of right and wrong is too rare in all of them to compare by, if one is. asked: (n, share right)."""
    if max(n * share for n, share in asked) < RARE:
        return "right"
    return "wrong" if max(n * (1 - share) for n, share in asked) < RARE else ""


def _swapped(own: Estimate, control: Summary) -> str:
    last = control.accuracy[-1]
    change = difference(last, own)
    moved = f"{percent(own.value)} % to {percent(last.value)} %, {points(change.value)} points"
    verdict = {
        -1: f"gets worse ({moved}), so it depends on what it reads",
        0: f"is right about as often ({moved}; the interval includes zero), so it hardly uses what attempt 1 says"
        if is_narrow(change)
        else f"is not measurably more or less often right ({moved}, {interval(change)}), which leaves open whether it "
        "uses what attempt 1 says",
        1: f"gets better ({moved}), so its own attempt misleads it",
    }[sign(change)]
    return f"shown an attempt at another problem, the last attempt {verdict}"


def _independent(own: Estimate, control: Summary) -> str:
    last = control.accuracy[-1]
    change = difference(last, own)
    even = "about as often as" if is_narrow(change) else "not measurably more or less often than"
    verdict = {-1: "less often than", 0: even, 1: "more often than"}[sign(change)]
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
