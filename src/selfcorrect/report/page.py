"""Run -> the page. Everything the template shows is put together here; the template only lays it out.

Model text is hostile: it reaches the page escaped by Jinja's autoescape, or as JSON whose < > & are escaped, which
page.js puts in place as text alone. A content policy with the script's own hash stands behind both.
"""

import base64
import hashlib
import math
import shlex
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from selfcorrect.analysis.figure import Figure
from selfcorrect.analysis.svg import attempt_class
from selfcorrect.report import tables
from selfcorrect.report.curves import Curve, Line, Value, curve, reader, window
from selfcorrect.report.load import Run, Step
from selfcorrect.report.pictures import accuracy_picture, attempt_colours
from selfcorrect.report.rollouts import CATEGORIES, RolloutSource, script_json
from selfcorrect.report.wording import (
    capital,
    control_sentence,
    headline,
    resolved_sentence,
    run_list,
    without_folders,
    wording_sentence,
)

_HERE = Path(__file__).parent
_NAMES = {
    "fixed": "Fixed",
    "broken": "Broken",
    "kept_right": "Kept right",
    "kept_wrong": "Kept wrong",
    "left_out": "Not graded",
}
# What the paper leaves open, and what each choice means; keys are those of the recipe's `algorithm`.
_CHOICES = {
    ("baseline", "leave_one_out"): "a rollout is compared with the mean of the others at the same problem",
    (
        "baseline",
        "leave_one_out_given_history",
    ): "compared with the others at the same problem whose earlier attempts earned the same",
    ("baseline", "none"): "returns are used as they are",
    ("normalize_std", False): "advantages keep their size; dividing them would cancel most of alpha",
    ("normalize_std", True): "advantages are divided by their standard deviation, attempt by attempt",
    ("kl_estimator", "analytic"): "the KL is summed over the whole vocabulary at every token",
    ("kl_estimator", "k1"): "the KL is estimated from the sampled tokens alone, inside the return",
    ("reference", "base"): "the KL of every stage is measured to the base model",
    ("reference", "previous_stage"): "the KL of a later stage is measured to the stage before it",
    ("importance_cap", "none"): "tokens have no importance weights, whichever engine sampled them",
    ("importance_cap", "auto"): "importance weights, of 2 at most, where vLLM samples; none elsewhere",
}


def render(run: Run, figures: Sequence[Figure] = ()) -> str:
    """The whole page as one text, with styles, script, drawings and rollouts inside."""
    shown = [e for e in run.evaluations if e.summary.n and e.summary.accuracy]
    return fill(
        "page.html.jinja",
        run=run,
        headline=headline(run),
        results=tables.results_table(run.evaluations, run.repaired) if run.evaluations else None,
        picture=accuracy_picture([(capital(e.label), e.summary) for e in shown]) if shown else None,
        attempt_colours=attempt_colours([e.summary for e in shown]),
        earlier=tables.earlier_table(run.earlier),
        details=[t for t in (tables.sampled_table(shown), tables.outcome_table(shown)) if t],
        rewards=tables.rewards_table(shown),
        turns=tables.flows_table(shown),
        passes=tables.passes_table(shown),
        wordings=tables.wordings_table(shown),
        wording_says=[(capital(e.label), says) for e in reversed(shown) if (says := wording_sentence(e))][:1],
        resolved=[(capital(e.label), says) for e in reversed(shown) if (says := resolved_sentence(e))][:1],
        controls=tables.control_table(run.evaluations),
        control_says=[(capital(e.label), says) for e in reversed(shown) if (says := control_sentence(e))][:1],
        external=tables.external_sets(run.evaluations),
        flows=[figure for figure in figures if figure.name.startswith("flow_")],
        figures=[figure for figure in figures if not figure.name.startswith(("flow_", "training_"))],
        curves=_curves(run.steps),
        engine=_engine(run.steps),
        curve_note=_curve_note(run),
        skipped=_skipped(run.steps),
        sources=run.sources,
        rollout_json=Markup(script_json(_rollout_data(run.sources))),
        made=_made(run),
        stages=_stages(run.config),
        changes=tables.changes_table(run.changes, lambda value: tidy(_plain(value))),
        choices=_choices(run.config),
        recipe=tidy(run.config_text),
    )


def fill(template: str, **values: Any) -> str:
    """A page with styles and script inside; the script's digest is what the content policy lets run."""
    script = with_common(_HERE / "page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    style = with_common(_HERE / "page.css")
    return (
        _environment()
        .get_template(template)
        .render(**values, style=Markup(style), script=Markup(script), digest=digest)
    )


@cache
def _environment() -> Environment:
    """Made once, as it keeps its templates compiled, which takes longer than a page."""
    return Environment(
        loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )


def with_common(file: Path) -> str:
    """A page's own script or styles, after what all pages share."""
    return "".join(part.read_text(encoding="utf-8") for part in (_HERE / f"common{file.suffix}", file))


def tidy(text: str) -> str:
    """Paths cut to their last part, and marked as cut."""
    return without_folders(text, "…/")


def _rollout_data(sources: Sequence[RolloutSource]) -> dict[str, Any]:
    return {
        "names": _NAMES,
        "order": CATEGORIES,
        "sources": [{"label": s.label, "totals": s.totals, "items": s.items} for s in sources],
    }


def _attempts(steps: Sequence[Step], key: str) -> int:
    return max((len(s.series.get(key, ())) for s in steps), default=0)


def _per_attempt(steps: Sequence[Step], key: str) -> list[Line]:
    count = _attempts(steps, key)
    return [Line(f"attempt {a + 1}", attempt_class(a, count, "a"), reader(key, a)) for a in range(count)]


def _curves(steps: Sequence[Step]) -> list[Curve]:
    """What the policy learns."""
    last = max(2, _attempts(steps, "rewards"))
    flows = [
        Line("fixed (i→c)", "fixed", reader("fixed", 0, 100.0)),
        Line("broken (c→i)", "broken", reader("broken", 0, 100.0)),
    ]
    copies = [Line("unchanged", "kept_wrong", reader("unchanged", 0, 100.0))]
    gain = [Line(f"Δ(t1,t{last})", "a2", reader("delta", 0, 100.0))]
    wanted = (
        ("Reward of each attempt", "mean reward", _per_attempt(steps, "rewards")),
        (f"Delta: attempt {last} against attempt 1", "percentage points", gain),
        ("Answers fixed and broken", "% of rollouts", flows),
        ("KL to the reference", "nats per attempt", _per_attempt(steps, "kl")),
        ("Last attempt repeats the first", "% of rollouts", copies),
        ("Entropy of the policy", "nats", _per_attempt(steps, "entropy")),
    )
    return [drawn for each in wanted if (drawn := curve(*each, steps))]


def _engine(steps: Sequence[Step]) -> list[Curve]:
    """Whether the machinery is well."""
    empty = [
        Line("cut off", "broken", _worst("truncated")),
        Line("equal rewards", "quiet", reader("equal_groups", 0, 100.0)),
    ]
    rest = (
        ("Gradient norm", "before clipping", "grad_norm"),
        ("Speed", "tokens per second", "tokens_per_second"),
        ("Sampler against policy", "gap of log-probabilities, nats", "sampler_gap"),
    )
    wanted = [
        ("What teaches nothing", "% of attempts cut off, of problems with equal rewards", empty),
        *((title, unit, [Line(title, "quiet", reader(key))]) for title, unit, key in rest),
    ]
    return [drawn for each in wanted if (drawn := curve(*each, steps, 164.0))]


def _worst(key: str) -> Value:
    """How to read the highest of a metric's attempts, in percent."""
    return lambda step: 100 * max(step.series.get(key, ()), default=math.nan)


def _curve_note(run: Run) -> str:
    if not run.steps:
        return ""
    rollouts = run.config.get("rollouts")
    shape = rollouts if isinstance(rollouts, dict) else {}
    problems, each = shape.get("problems_per_step"), shape.get("rollouts_per_problem")
    n = ""
    if isinstance(problems, int) and isinstance(each, int):
        n = f" Every step plays n = {problems * each:,} rollouts ({problems:,} problems, {each:,} each)."
    width = window(len(run.steps))
    return (
        f"{len(run.steps):,} steps.{n} Faint: the step's own value; strong: the mean over {width} steps around it, "
        "within a stage. Dashed lines: a stage begins. Training samples at temperature "
        f"{shape.get('temperature', 1):g}, so these values may differ from the evaluations'."
    )


def _skipped(steps: Sequence[Step]) -> list[tuple[str, int, str]]:
    """(reason, how many, which) of steps without an update."""
    reasons: dict[str, list[int]] = {}
    for step in steps:
        if step.skipped:
            reasons.setdefault(step.skip_reason or "no reason recorded", []).append(step.step)
    return [(reason, len(numbers), run_list(numbers)) for reason, numbers in reasons.items()]


def _made(run: Run) -> list[tuple[str, list[tuple[str, str]]]]:
    """Groups of (name, value) on where the run comes from."""
    env = run.environment
    command = env.get("command", "")
    if isinstance(command, list):
        command = shlex.join(str(part) for part in command)
    facts = {"Command": command, "Seed": env.get("seed", run.config.get("seed")), "Started": env.get("started")}
    facts["Steps recorded"] = f"{len(run.steps):,}" if run.steps else None
    seconds, tokens = _total(run.steps, "seconds"), _total(run.steps, "sampled_tokens")
    facts["Training time"] = _duration(seconds) if seconds else None
    facts["Tokens sampled"] = f"{int(tokens):,}" if tokens else None
    groups = [("Run", _pairs(facts))]
    for name in ("versions", "machine"):
        value = env.get(name)
        if isinstance(value, dict) and value:
            groups.append((name.capitalize(), _pairs(value)))
    return [(name, pairs) for name, pairs in groups if pairs]


def _total(steps: Sequence[Step], key: str) -> float:
    return sum(v for s in steps for v in s.series.get(key, ()) if not math.isnan(v))


def _pairs(values: Mapping[Any, Any]) -> list[tuple[str, str]]:
    return [(str(k), tidy(_plain(v))) for k, v in values.items() if v is not None and v != ""]


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k} {_plain(v)}" for k, v in value.items())
    if isinstance(value, list):
        return ", ".join(map(_plain, value))
    return str(value).lower() if isinstance(value, bool) or value is None else str(value)  # as YAML writes them


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def _stages(config: Mapping[str, Any]) -> tables.Table | None:
    """The stages with every setting that any of them has."""
    found = config.get("stages")
    stages = [s for s in found if isinstance(s, dict)] if isinstance(found, list) else []
    if not stages:
        return None
    columns = [key for key in dict.fromkeys(key for s in stages for key in s) if key != "name"]
    rows = tuple(
        tables.Row(
            str(s.get("name", "")), "", tuple(tables.Cell(_plain(s[c]) if c in s else tables.NONE) for c in columns)
        )
        for s in stages
    )
    return tables.Table("The stages, one after the other.", "Stage", tuple(map(str, columns)), (("", rows),))


def _choices(config: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(setting, value, meaning) of what the paper does not state."""
    algorithm = config.get("algorithm")
    if not isinstance(algorithm, dict):
        return []
    return [
        (str(key), _plain(value), _CHOICES.get((key, value), "") if isinstance(value, str | bool) else "")
        for key, value in algorithm.items()
    ]
