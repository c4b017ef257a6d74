"""An evaluation in a few words and figures (pure)."""

from typing import TYPE_CHECKING

from selfcorrect.evaluation.caution import outcome_shares
from selfcorrect.evaluation.metrics import Estimate, Flow, Passes, Summary
from selfcorrect.types import Outcome

if TYPE_CHECKING:
    from selfcorrect.evaluation.evaluate import Evaluation

# What attempt 2 was shown in the place of attempt 1.
CONTROLS = {"independent": "an independent attempt", "swapped": "an attempt at another problem"}


def estimate_text(estimate: Estimate, signed: bool = False, unit: str = "%") -> str:
    """Percent with the 95 % interval in brackets, and no minus sign before nothing."""
    ends = (estimate.value, estimate.low, estimate.high)
    value, low, high = (f"{100 * each:{'+' if signed else ''}z.1f}" for each in ends)
    return f"{value}{unit} [{low}, {high}]"


def change_text(of: Summary | Passes | Flow) -> str:
    """Delta with its interval, i->c and c->i."""
    return f"delta {estimate_text(of.delta, signed=True)}  i->c {of.fixed.value:.1%}  c->i {of.broken.value:.1%}"


def summary_line(summary: Summary) -> str:
    """Accuracy at each attempt, delta, i->c and c->i in percent of all problems, mean rewards where some are partial,
    and what was cut off.
    """
    cut = outcome_shares(summary, Outcome.TRUNCATED)
    told = "  cut off " + ", ".join(f"t{number} {share:.1%}" for number, share in enumerate(cut, 1)) if any(cut) else ""
    accuracy = "  ".join(f"t{number} {estimate_text(value)}" for number, value in enumerate(summary.accuracy, 1))
    rewards = " ".join(f"t{number} {value.value:.3f}" for number, value in enumerate(summary.rewards, 1))
    earned = f"  reward {rewards}" if rewards else ""
    many = f"Avg@{summary.samples} " if summary.samples > 1 else ""
    return f"{many}{accuracy}  {change_text(summary)}{earned}  n={summary.n}{told}"


def shown(evaluation: "Evaluation") -> str:
    """An evaluation as a session shows it: what was measured and how, a line of figures for each part, and where."""
    parts = [
        ("", evaluation.summary), *evaluation.controls.items(), *evaluation.external,
        *((f"asked as {each.name}", each.summary) for each in evaluation.wordings[1:]),  # the first is the task's own
    ]  # fmt: skip
    lines = [
        f"<Evaluation {evaluation.name}: {evaluation.about or evaluation.task}, split {evaluation.split}, "
        f"{evaluation.decoding}, {len(evaluation.rollouts):,} rollouts>",
        *(f"  {f'{name}: ' if name else ''}{summary_line(summary)}" for name, summary in parts),
    ]
    return "\n".join([*lines, f"  in {evaluation.folder}"] if evaluation.folder else lines)
