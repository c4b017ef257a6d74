"""summary.json as a page that a person reads: of run.py, and of base.py."""

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
        f"`{summary['command']}`, {summary['minutes_used']} minutes of evaluating and training on "
        f"{machine['accelerator'] or machine['processor']}, torch {summary['versions']['torch']}, "
        f"seeds {summary['options']['seeds']}; {plan['steps']} steps an arm planned. "
        f"Percent, 95 % intervals; samples at temperature {summary['options']['temperature']}.", "",
        f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|",
    ]  # fmt: skip
    for model, sets in summary["evaluations"].items():
        for data, found in sets.items():
            for decoding, told in found.items():
                label = f"Avg@{told['samples']}" if decoding == "sampled" else decoding
                lines.append(_row(model, data, label, told))
                lines += [_pass_row(model, data, each) for each in told["passes"][-1:]]
    lines.append("")
    for other, models in summary["against"].items():
        for model, sets in models.items():
            for data, found in sets.items():
                for decoding, told in found.items():
                    shown = ", ".join(f"{name} {_signed(each)}" for name, each in told.items())
                    lines.append(f"- {model} less {other} on {data}, {decoding}: {shown}")
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
        _signed(found["delta"]), *(_percent(found[key]) for key in ("fixed", "broken", "unchanged")),
        " / ".join(f"{share:.1f}" for share in cut),
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def _pass_row(model: str, data: str, found: dict[str, Any]) -> str:
    cells = [
        model, data, f"pass@{found['k']}", str(found["n"]), _percent(found["accuracy"][0]),
        _percent(found["accuracy"][-1]), _signed(found["delta"]),
        *(_percent(found[key]) for key in ("fixed", "broken")), "", "",
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def _percent(estimate: dict[str, float]) -> str:
    return f"{100 * estimate['value']:.1f} ({100 * estimate['low']:.1f} to {100 * estimate['high']:.1f})"


def _signed(estimate: dict[str, float]) -> str:
    return f"{100 * estimate['value']:+.1f} ({100 * estimate['low']:+.1f} to {100 * estimate['high']:+.1f})"


def _arrow(rewards: list[float]) -> str:
    return " -> ".join(f"{reward:.3f}" for reward in rewards)


BASE_COLUMNS = (
    "n", "Accuracy@t1", "Accuracy@t2", "delta(t1,t2)", "i->c", "c->i", "same answer", "same text", "cut off",
    "no answer",
)  # fmt: skip


def base_page(summary: dict[str, Any]) -> str:
    """Markdown: how it was run, a table of the test problems, a table of the wordings tried before."""
    machine, how = summary["machine"], summary["how"]
    lines = [
        f"# {summary['model']['name']} before any training", "",
        f"`{summary['command']}`, {summary['processor_minutes_used']} processor minutes on "
        f"{machine['accelerator'] or machine['processor']}, {how['precision']}, {how['threads']} threads, torch "
        f"{summary['versions']['torch']}. Two greedy attempts of at most {how['tokens']['code']} tokens at a program, "
        f"{how['tokens']['math']} at a word problem. Percent, with 95 % intervals; cut off and no answer: of attempt "
        "1 / 2.", "",
        f"| data | {' | '.join(BASE_COLUMNS)} |", "|---" * (len(BASE_COLUMNS) + 1) + "|",
    ]  # fmt: skip
    for name, told in summary["evaluations"].items():
        count = summary["asked_for"][name]
        lines.append(_base_row(name if told["n"] == count else f"{name}, of {count}", told))
    for name, told in summary["read_to_next_turn"].items():
        lines.append(_base_row(f"{name}, read up to the next turn that it writes itself", told))
    if summary["wordings"]:
        lines += [
            "",
            f"Wordings of the correction prompt, on training problems; taken: {summary['wordings']['rule']}.",
            "",
        ]
        lines += [f"| wording | {' | '.join(BASE_COLUMNS)} |", "|---" * (len(BASE_COLUMNS) + 1) + "|"]
        for kind, found in summary["wordings"]["kinds"].items():
            for name, told in found["tried"].items():
                lines.append(_base_row(f"{kind}, {name}" + (" (taken)" if name == found["taken"] else ""), told))
    lines += ["", "Correction prompts:", ""]
    lines += [f"- {name}: {asked['correction']}" for name, asked in summary["prompts"].items()]
    return "\n".join(lines) + "\n"


def _base_row(label: str, told: dict[str, Any]) -> str:
    if not told["n"]:
        return f"| {label} | 0 |" + " |" * (len(BASE_COLUMNS) - 1)
    cells = [
        label, str(told["n"]), _percent(told["accuracy"][0]), _percent(told["accuracy"][-1]), _signed(told["delta"]),
        *(_percent(told[key]) for key in ("fixed", "broken", "unchanged", "word_for_word")),
        *(" / ".join(f"{100 * each['value']:.1f}" for each in told[key]) for key in ("cut_off", "no_answer")),
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"
