"""What both bridges share: which problems, what is asked, how attempts are graded, what of one problem counts.

A setting goes by the name that a recipe has for it (task.data, rollouts.attempts, evaluation.problems); `data` is short
for task.data. The problems are those that `selfcorrect evaluate` takes by the same settings.
"""

import atexit
import json
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from threading import Lock
from typing import Any, get_args

from selfcorrect.config import TrainConfig
from selfcorrect.config.overrides import is_text
from selfcorrect.config.recipe import load_recipe, validate
from selfcorrect.config.tasks import ATTEMPT_TOKENS, CodeSet, RepairConfig
from selfcorrect.errors import ConfigError, UserError
from selfcorrect.evaluation.evaluate import evaluated_problems
from selfcorrect.evaluation.metrics import is_graded, is_unchanged
from selfcorrect.rollout import grade_texts
from selfcorrect.tasks import MathTask, Task, make_task
from selfcorrect.types import Attempt, Completion, Grade, Problem, Rollout

NAMES: dict[str, dict[str, Any]] = {
    "math": {"name": "math"},
    "gsm8k": {"name": "math", "dataset": "gsm8k"},
    **{dataset: {"name": "code", "dataset": dataset} for dataset in get_args(CodeSet)},
    "countdown": {"name": "countdown"},
    "custom": {"name": "custom"},
}
_SECTIONS = ("task.", "rollouts.", "evaluation.")
_SYSTEM = "model.system_prompt"


def missing(package: str, extra: str) -> UserError:
    """The one line where an optional package is not installed."""
    return UserError(f"{package} is not installed, which this needs; pip install 'selfcorrect[{extra}]'")


def is_setting(name: str) -> bool:
    """Whether a name means a setting of the protocol: other programs hand theirs over with it."""
    return name in ("data", "recipe", _SYSTEM) or name.startswith(_SECTIONS)


def configured(task: str | None, recipe: str | None, settings: Mapping[str, Any]) -> TrainConfig:
    """The config by a task's name (NAMES), or by a recipe, and settings over it. Raises ConfigError."""
    unknown = [name for name in settings if not is_setting(name)]
    if unknown:
        raise ConfigError(
            f"{unknown[0]} is no setting of the two attempts; settings are data, those of {', '.join(_SECTIONS)} and "
            f"{_SYSTEM}, as in a recipe"
        )
    changed = {name: value for name, value in settings.items() if name != "data"}
    if "data" in settings:
        changed["task.file" if task == "custom" else "task.data"] = settings["data"]
    overrides = [f"{name}={_typed(name, value)}" for name, value in changed.items()]
    if recipe is not None:
        config = load_recipe(recipe, overrides)
    elif task not in NAMES:
        raise ConfigError(f"task = {task!r}: must be one of {', '.join(NAMES)}, or name a recipe with recipe=FILE")
    else:
        chosen = NAMES[task]
        limits = {"max_new_tokens": tokens} if (tokens := ATTEMPT_TOKENS.get(chosen["name"])) else {}
        config = validate({"task": dict(chosen), "stages": [], "rollouts": limits}, f"task {task}", overrides=overrides)
    if not isinstance(config, TrainConfig):
        raise ConfigError(f"recipe {recipe} is of kind {config.kind}; name one of kind train")
    _refuse_what_is_not_played(config)
    return config


def _typed(name: str, value: Any) -> str:
    """A value as it was typed before another program read it: inspect takes a comma for the end of a list's entry."""
    if isinstance(value, str) or value is None or not is_text(name):
        return value if isinstance(value, str) else json.dumps(value)
    if isinstance(value, list) and all(isinstance(part, str) for part in value):
        return ",".join(value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    raise ConfigError(
        f"{name} = {value!r}: is text, but was read as {type(value).__name__}; name it in a recipe instead"
    )


def _refuse_what_is_not_played(config: TrainConfig) -> None:
    evaluation = config.evaluation
    asked = {
        "task.name = repair": isinstance(config.task, RepairConfig),
        "rollouts.self_refine": config.rollouts.self_refine is not None,
        "evaluation.controls": evaluation.controls,
        "evaluation.external": bool(evaluation.external),
        "evaluation.correction_prompts": bool(evaluation.correction_prompts),
        "model.system_as": config.model.system_as != "system",
    }
    for name, there in asked.items():
        if there:
            raise ConfigError(f"{name} is played by `selfcorrect evaluate` only; leave it out here")


class Protocol:
    """Problems, prompts and grader of one configured task.

    problems: by id, of which every task has one a problem. Two threads may grade at once.
    """

    def __init__(self, config: TrainConfig) -> None:
        """Reads the data. Raises DataError."""
        self.config = config
        self.attempts = config.rollouts.attempts
        self.task: Task = make_task(config.task)
        self.problems = {problem.id: problem for problem in evaluated_problems(config, self.task)}
        self.grader = Grader(self.task)

    def messages(self, name: str) -> list[tuple[str, str]]:
        """(role, text) pairs that attempt 1 answers."""
        system = self.config.model.system_prompt
        opening = [("system", system)] if system is not None else []
        return [*opening, ("user", self.problems[name].prompt)]

    def correction(self, name: str) -> str:
        """What asks for the next attempt: the same whether the one before was right or wrong."""
        return self.task.correction_prompt(self.problems[name])

    def told(self, name: str) -> dict[str, Any]:
        """What a log should hold of a problem, so that its attempts can be graded again: plain values."""
        problem = self.problems[name]
        found: dict[str, Any] = {"task": problem.task, "task_id": problem.id}
        if isinstance(self.task, MathTask):
            found |= {"problem": self.task.question(problem), "gold": problem.reference["answer"]}
        return found

    def verdicts(self, name: str, grades: Sequence[Grade], texts: Sequence[str]) -> dict[str, float] | None:
        """What this problem adds to each metric; None where an attempt could not be graded: it counts nowhere."""
        attempts = tuple(
            Attempt((), Completion((), (), text, "stop"), grade) for text, grade in zip(texts, grades, strict=True)
        )
        return verdicts_of(Rollout(self.problems[name], attempts))


def verdicts_of(rollout: Rollout) -> dict[str, float] | None:
    """One rollout's part in each metric, by the metric's name; their means are those of `summarize`."""
    if not is_graded(rollout):
        return None
    right = [attempt.grade.correct for attempt in rollout.attempts]
    first, last = right[0], right[-1]
    return {
        **{f"accuracy@t{number}": float(value) for number, value in enumerate(right, 1)},
        "delta": float(last) - float(first),
        "i->c": float(last and not first),
        "c->i": float(first and not last),
        "unchanged": float(is_unchanged(rollout)),
    }


def averaged(verdicts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of each metric over problems; nothing where there are none."""
    names = dict.fromkeys(name for each in verdicts for name in each)
    return {name: sum(each[name] for each in verdicts) / len(verdicts) for name in names}


class Grader:
    """A task's graders for callers in many threads: whoever's turn it is grades all that wait, as graders like it."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._turn, self._started = Lock(), False
        self._waiting: deque[tuple[Problem, Sequence[Completion], Future[list[Grade]]]] = deque()

    def start(self) -> None:
        """Before anything is sampled, so that what keeps the grader from working is told then."""
        with self._turn:
            if not self._started:
                self._task.grade([])
                atexit.register(self._task.close)
                self._started = True

    def grade(self, problem: Problem, completions: Sequence[Completion]) -> list[Grade]:
        """One grade an attempt; blocks until they are there. Raises what the grader raises."""
        mine: Future[list[Grade]] = Future()
        self._waiting.append((problem, completions, mine))
        with self._turn:
            batch = []
            while self._waiting:
                batch.append(self._waiting.popleft())
            try:
                grades = self._grade([(problem, completions) for problem, completions, _ in batch])
            except BaseException as error:  # noqa: BLE001 - each caller raises it
                for _, _, future in batch:
                    future.set_exception(error)
            else:
                for (_, _, future), each in zip(batch, grades, strict=True):
                    future.set_result(each)
        return mine.result()

    def grade_all(self, answers: Sequence[tuple[Problem, Sequence[Completion]]]) -> list[list[Grade]]:
        """The same of many problems' attempts at once."""
        with self._turn:
            return self._grade(answers)

    def _grade(self, answers: Sequence[tuple[Problem, Sequence[Completion]]]) -> list[list[Grade]]:
        problems = [problem for problem, completions in answers for _ in completions]
        texts = [completion for _, completions in answers for completion in completions]
        grades = iter(grade_texts(self._task, problems, texts, [True] * len(texts)) if texts else [])
        return [[next(grades) for _ in completions] for _, completions in answers]
