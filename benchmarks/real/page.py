"""summary.json as a page that a person reads."""

from typing import Any

COLUMNS = (
    "model", "data", "decoding", "n", "Accuracy@t1", "Accuracy@t2", "delta(t1,t2)", "i->c", "c->i", "unchanged",
    "cut off",
)  # fmt: skip


def page(summary: dict[str, Any]) -> str:
    """Markdown: how it was run, a table of every model and data set, what training did."""
    machine, plan = summary["machine"], summary["plan"]
    lines = [
        f"# {summary['model']['name']}: {summary['options']['task']}, {summary['options']['tuning']} tuning", "",
        f"`{summary['command']}`, {summary['minutes_used']} minutes on "
        f"{machine['accelerator'] or machine['processor']}, torch {summary['versions']['torch']}, "
        f"seeds {summary['options']['seeds']}; {plan['steps']} steps an arm planned. "
        f"Percent, 95 % intervals; samples at temperature {summary['options']['temperature']}.", "",
        f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|",
    ]  # fmt: skip
    for model, sets in summary["evaluations"].items():
        for data, found in sets.items():
            for decoding, told in found.items():
                label = "greedy" if decoding == "greedy" else f"Avg@{told['samples']}"
                lines.append(_row(model, data, label, told))
                lines += [_pass_row(model, data, each) for each in told["passes"][-1:]]
    lines.append("")
    for model, sets in summary["against_base"].items():
        for data, found in sets.items():
            lines.append(f"- {model} less base on {data}, greedy: t1 {_signed(found['t1'])}, t2 {_signed(found['t2'])}")
    for model, told in summary["training"].items():
        if told:
            first, last = (_arrow(told[f"rewards_{end}_quarter"]) for end in ("first", "last"))
            lines.append(
                f"- {model}: {told['steps']} steps, {told['completions']} attempts, {told['seconds']:.0f} s; "
                f"training rewards {first} in the first quarter, {last} in the last"
            )
    return "\n".join(lines) + "\n"


def _row(model: str, data: str, decoding: str, found: dict[str, Any]) -> str:
    cut = [100 * counts.get("truncated", 0) / max(1, sum(counts.values())) for counts in found["outcomes"]]
    cells = [
        model, data, decoding, str(found["n"]), _percent(found["accuracy"][0]), _percent(found["accuracy"][-1]),
        _signed(found["delta"]), *(f"{100 * found[key]['value']:.1f}" for key in ("fixed", "broken", "unchanged")),
        " / ".join(f"{share:.1f}" for share in cut),
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def _pass_row(model: str, data: str, found: dict[str, Any]) -> str:
    cells = [
        model, data, f"pass@{found['k']}", str(found["n"]), _percent(found["accuracy"][0]),
        _percent(found["accuracy"][-1]), _signed(found["delta"]),
        *(f"{100 * found[key]['value']:.1f}" for key in ("fixed", "broken")), "", "",
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def _percent(estimate: dict[str, float]) -> str:
    return f"{100 * estimate['value']:.1f} ({100 * estimate['low']:.1f} to {100 * estimate['high']:.1f})"


def _signed(estimate: dict[str, float]) -> str:
    return f"{100 * estimate['value']:+.1f} ({100 * estimate['low']:+.1f} to {100 * estimate['high']:+.1f})"


def _arrow(rewards: list[float]) -> str:
    return " -> ".join(f"{reward:.3f}" for reward in rewards)
