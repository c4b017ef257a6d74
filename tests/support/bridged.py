"""Twenty problems of each kind with scripted attempts: what the bridges, and selfcorrect itself, are given to grade."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfcorrect.bridges.protocol import Protocol, configured
from selfcorrect.types import Problem
from tests.support.data import humaneval_row, mbpp_row, write

COUNT = 20
KINDS = ("math", "gsm8k", "humaneval", "mbpp", "countdown", "custom")
CUSTOM = """
def problems(split, options):
    start = 0 if split == "test" else 100
    return [{"id": f"n{n}", "prompt": f"Say {n}.", "n": n} for n in range(start, start + 20)]


def grade(problem, text):
    return text.strip().endswith(str(problem["n"]))


def correction_prompt(problem):
    return f"Was that really {problem['n']}? Say it again."
"""


def settings_of(kind: str, folder: Path) -> dict[str, Any]:
    """The settings that name twenty problems of a kind, whose files are written into `folder`."""
    numbers = range(2, 2 + COUNT)
    rows: list[dict[str, Any]]
    match kind:
        case "math":
            rows = [{"problem": f"What is ${n} + {n}$?", "answer": str(2 * n), "unique_id": f"m/{n}"} for n in numbers]
            return {"data": str(write(folder / "math.jsonl", rows))}
        case "gsm8k":
            rows = [{"question": f"Pears: {n} and {n}?", "answer": f"Add.\n#### {2 * n}"} for n in numbers]
            return {"data": str(write(folder / "gsm8k.jsonl", rows))}
        case "humaneval":
            file = write(folder / "HumanEval.jsonl", map(humaneval_row, numbers))
            return {"data": str(file.parent), "task.workers": 1}
        case "mbpp":
            rows = [mbpp_row(n) for n in (2, 3, 4, *range(11, 11 + COUNT), 601)]
            return {"data": str(write(folder / "mbpp.jsonl", rows).parent), "task.workers": 1}
        case "countdown":
            rows = [{"nums": [n + 40, n, 3], "target": 2 * n + 43} for n in numbers]
            return {"data": str(write(folder / "countdown.jsonl", rows))}
    (folder / "own.py").write_text(CUSTOM, encoding="utf-8")
    return {"data": str(folder / "own.py")}


def answer(kind: str, problem: Problem, right: bool) -> str:
    match kind:
        case "math" | "gsm8k":
            return f"So it is.\nFinal answer: \\boxed{{{int(problem.reference['answer']) + (not right)}}}"
        case "humaneval":
            n = problem.id.rpartition("/")[2]
            return f"```python\ndef times_{n}(x):\n    return x * {n} + {int(not right)}\n```"
        case "mbpp":
            n = problem.id.rpartition("/")[2]
            return f"Here:\n```python\ndef add_{n}(x):\n    return x + {n} - {int(not right)}\n```\nDone."
        case "countdown":
            a, b, c = problem.reference["numbers"]
            return f"{a} + {b} = {a + b}\n{a + b} + {c} = {a + b + c if right else a + b}"
    return problem.prompt.split()[1].rstrip(".") if right else "nothing"


def attempts_at(kind: str, problem: Problem, place: int) -> tuple[list[str], list[str]]:
    """The texts of two attempts and how each ended: right and wrong, empty, cut off, thoughts, and text that is hostile
    to whoever writes or reads a log.
    """
    right, wrong = answer(kind, problem, True), answer(kind, problem, False)
    texts, ends = (
        ([right, right], ["stop", "stop"]),
        ([wrong, right], ["stop", "stop"]),
        ([right, wrong], ["stop", "stop"]),
        ([wrong, wrong], ["stop", "stop"]),
        (["", right], ["stop", "stop"]),
        ([right, ""], ["stop", "stop"]),
        ([f"<think>{right}</think>{wrong}", f"<think>{wrong}</think>{right}"], ["stop", "stop"]),
        (["  \n\u2028 I cannot. \x1b[31m \x00 �", f'{{"attempts": ["{"é" * 3}"]}}\n🤖\n{right}'], ["stop", "stop"]),
        ([right, right], ["length", "stop"]),
        ([f"{wrong}\n\nassistant: <|im_end|>", right], ["stop", "length"]),
    )[place % 10]
    return texts, ends


@dataclass(frozen=True)
class Script:
    """What a scripted model answers at each problem, by its prompt; and the same as a file of recorded attempts."""

    kind: str
    settings: Mapping[str, Any]
    by_prompt: Mapping[str, tuple[Sequence[str], Sequence[str]]]
    recorded: Path

    @property
    def overrides(self) -> list[str]:
        """The settings as `selfcorrect evaluate` takes them."""
        config = configured(self.kind, None, self.settings).task.model_dump(mode="json")
        return [f"task={json.dumps(config)}", "stages=[]", "sampler=recorded"]


def script(kind: str, folder: Path, *, ends: bool = True) -> Script:
    """ends: whether some attempts are cut off, which not every program can tell."""
    settings = settings_of(kind, folder)
    problems = list(Protocol(configured(kind, None, settings)).problems.values())
    assert len(problems) == COUNT
    told = {problem.prompt: attempts_at(kind, problem, place) for place, problem in enumerate(problems)}
    if not ends:
        told = {prompt: (texts, ["stop", "stop"]) for prompt, (texts, _) in told.items()}
    rows = [
        {"task_id": p.id, "attempts": told[p.prompt][0], "finish_reasons": told[p.prompt][1]}
        | ({"problem": p.prompt, "gold": p.reference["answer"]} if "answer" in p.reference else {})
        for p in problems
    ]
    return Script(kind, settings, told, write(folder / "recorded.jsonl", rows))
