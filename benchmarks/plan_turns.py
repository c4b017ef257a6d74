"""`selfcorrect train` on a CPU, whose layers are timed in turns with its last steps, as benchmarks/plan.py starts it.

    python benchmarks/plan_turns.py RECIPE [KEY=VALUE ...]     # as many steps as STEPS, of one stage

What else a machine does moves its times by a tenth and more from minute to minute, and a plan that is made before a run
or after it meets another minute. So from step BEFORE on the plan is made anew after every step; turns.json of the run
folder has all of them, and the seconds of the steps between. Memory is read before the first of them.
"""

import json
import sys
from statistics import fmean
from typing import Any

from selfcorrect.cli import main as command
from selfcorrect.parallel.launch import is_first
from selfcorrect.planning import beside, cpu
from selfcorrect.planning.page import row
from selfcorrect.planning.plan import Plan
from selfcorrect.runs.loop import Loop

BEFORE, STEPS = 3, 5  # the first one is no measure: memory is taken for the first time in it
FILE = "turns.json"


def main() -> None:
    """Runs the command in this process; of several, each times its own share, and the first one writes."""
    made, own_plan, own_step = list[Plan](), beside._plan, Loop._step
    plans, peak = list[dict[str, Any]](), 0.0

    def planned(*given: Any, **named: Any) -> Plan:
        made.append(own_plan(*given, **named))
        return made[-1]

    def step(loop: Loop) -> Any:
        nonlocal peak
        result = own_step(loop)
        if result.step >= BEFORE:
            peak = peak or beside.measured_peak(None)  # before anything is timed
            cpu._timings.cache_clear()
            steps = beside.sampled_steps(loop.folder.path)
            plans.append(row(beside.at_lengths_that_came(made[0], loop.config, steps, timed=True)))
            if is_first():
                found = turns(plans, peak, steps[1:])
                (loop.folder.path / FILE).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        return result

    beside._plan = planned
    Loop._step = step  # type: ignore[assignment,method-assign]
    sys.argv[1:1] = ["train"]
    command()


def turns(plans: list[dict[str, Any]], peak: float, steps: list[dict[str, Any]]) -> dict[str, Any]:
    """In plan.json's words, means of all. plans: its rows; peak: bytes; steps: of metrics.jsonl."""
    planned = {phase: fmean(plan["seconds"][phase] for plan in plans) for phase in plans[0]["seconds"]}
    took = {phase: fmean(step["seconds_by_part"][phase] for step in steps) for phase in beside.PHASES}
    return {
        "predicted_at_lengths": plans[0] | {"seconds": planned, "step_seconds": sum(planned.values())},
        "measured": {"peak_bytes": peak, "step_seconds": fmean(step["seconds"] for step in steps), "seconds": took},
        "planned": [plan["step_seconds"] for plan in plans], "took": [step["seconds"] for step in steps],
    }  # fmt: skip


if __name__ == "__main__":
    main()
