"""An evaluation whose every finished problem is kept at once: what it depends on, where it is kept, how it is told."""

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from selfcorrect import __version__
from selfcorrect.config import CodeConfig, CustomConfig, MathConfig, RepairConfig, TaskConfig, TrainConfig
from selfcorrect.config.paths import FILE_HOLDS, absolute, has_begun_training
from selfcorrect.errors import ConfigError
from selfcorrect.evaluation.evaluate import Evaluation, Evaluator, digest, evaluated_problems, line_key, load_external
from selfcorrect.evaluation.kept import Kept, begun_with
from selfcorrect.evaluation.metrics import Summary
from selfcorrect.models.chat import Chat
from selfcorrect.models.language_model import LanguageModel
from selfcorrect.models.loading import load_model, use_threads
from selfcorrect.models.sizing import parameter_count
from selfcorrect.models.weights import fingerprint
from selfcorrect.runs.display import Observer
from selfcorrect.runs.untrained import check_not_others
from selfcorrect.samplers.base import Sampler
from selfcorrect.tasks.base import Task
from selfcorrect.tasks.own import digest_of
from selfcorrect.types import Problem

_CPU_CHUNK = 3e12  # floating point operations between two writes on a processor: half a minute or so on two cores
SIDE = "problems side by side (rollouts.rows_at_once)"
_MACHINE = ("selfcorrect", "model", "threads", SIDE)
_GROWS = "evaluation.samples"  # more of them only lengthen an evaluation
_FEWEST = 16  # rows; a step over fewer takes a processor nearly as long


@dataclass(frozen=True, slots=True)
class Job:
    """What is evaluated by what; made_with: all that its numbers depend on.

    after: notes once it is done. beside: what is kept besides whole rollouts, in words that begin with a comma.
    """

    evaluator: Evaluator
    sampler: Sampler
    chat: Chat
    made_with: dict[str, Any]
    notes: list[str]
    after: Callable[[], list[str]] = list
    beside: Callable[[], str] = str


def loaded(config: TrainConfig, model: str | Path) -> LanguageModel:
    """The model in place of the recipe's, computing with the recipe's threads."""
    use_threads(config.threads)
    return load_model(config.model.model_copy(update={"path": str(model)}))


def rows_of(config: TrainConfig, lm: LanguageModel, attempts: int | None = None) -> int:
    """How many rollouts are played, and kept, at once: rollouts.rows_at_once, and less where those would take long.

    An accelerator takes as long for few rows as for many; a processor does not.
    """
    most = config.rollouts.rows
    if lm.device.type != "cpu":
        return most
    cost = 2 * parameter_count(lm) * config.rollouts.max_new_tokens * (attempts or config.rollouts.attempts)
    fitting = 1 << max(0, int(_CPU_CHUNK / cost).bit_length() - 1)
    return min(most, max(_FEWEST, fitting))


def rows_begun(config: TrainConfig, file: Path, name: str, rows: int) -> int:
    """`rows`, or the number that work kept in `file` was begun with, where the recipe leaves it open.

    A card may have other memory free by now, and the work must go on as it was begun. name: of it in the settings.
    """
    begun = begun_with(file, name) if config.rollouts.rows_at_once == "auto" else None
    return begun if isinstance(begun, int) and begun > 0 else rows


def make_evaluator(config: TrainConfig, task: Task) -> Evaluator:
    """By a recipe. How many rows the model is good for is known once it is loaded (`rows_of`)."""
    evaluation = config.evaluation
    return Evaluator(
        task=task,
        problems=evaluated_problems(config, task),
        attempts=config.rollouts.attempts,
        max_new_tokens=config.rollouts.max_new_tokens,
        seed=config.seed,
        controls=evaluation.controls,
        external=load_external(task, evaluation.external),
        refine=config.rollouts.self_refine,
        split=evaluation.split,
        about=about(config.task, evaluation.split),
        samples=evaluation.samples,
        temperature=evaluation.temperature,
        wordings=evaluation.correction_prompts,
    )


def about(task: TaskConfig, split: str = "test") -> str:
    """A task and its data in words: `math (gsm8k)`, `code (humaneval)`, `countdown`."""
    match task:
        case MathConfig():
            return f"{task.name} ({task.dataset})"
        case CodeConfig():
            return f"{task.name} ({(task.evaluate_on if split == 'test' else None) or task.dataset})"
        case RepairConfig():
            return f"repair ({Path(task.data).name}: {about(task.of)})"
        case CustomConfig():
            return f"custom ({Path(task.file).name})"
    return f"{task.name} ({Path(task.data).name})" if task.data else task.name


def model_settings(lm: LanguageModel) -> dict[str, Any]:
    """What a model's completions depend on besides prompts and limits; `weights` is its fingerprint."""
    return {
        "selfcorrect": __version__,
        "model": {
            "weights": fingerprint(lm),
            "device": lm.device.type,
            "precision": str(lm.compute_dtype).removeprefix("torch."),
            "attention": lm.model.config._attn_implementation,
        },
        "threads": torch.get_num_threads() if lm.device.type == "cpu" else None,
    }


def settings(config: TrainConfig, evaluator: Evaluator, chat: Chat, of: dict[str, Any]) -> dict[str, Any]:
    """Everything an evaluation's numbers depend on, by the names that a recipe has for it. of: the model's part."""
    evaluation, rollouts = config.evaluation.model_dump(mode="json"), config.rollouts.model_dump(mode="json")
    return {
        **of,
        "seed": config.seed,
        "task": task_settings(config.task),
        "rollouts": {name: rollouts[name] for name in ("attempts", "max_new_tokens", "self_refine")},
        SIDE: evaluator.rows,
        "evaluation": {
            "problems": len(evaluator.problems),
            "split": evaluator.split,
            "offset": evaluation["offset"],
            "controls": evaluator.controls,
            "external": [label for label, _ in evaluator.external],
            "samples": evaluator.samples,
            "temperature": evaluator.temperature,
            "correction_prompts": dict(evaluator.wordings),
        },
        "model.system_prompt": config.model.system_prompt,
        "decoding": "recorded" if evaluator.recorded else evaluator.main,
        **({"sampler": config.sampler} if config.has_engine else {}),
        "what the problems say": evaluator.digest(chat),
    }


def sampling_settings(
    config: TrainConfig, lm: LanguageModel, task: Task, problems: Sequence[Problem], temperature: float
) -> dict[str, Any]:
    """What samples of some problems depend on, by the names that a recipe or an option has for it."""
    return {
        **model_settings(lm),
        "seed": config.seed,
        "task": task_settings(config.task),
        "max_new_tokens": config.rollouts.max_new_tokens,
        "temperature": temperature,
        "problems": len(problems),
        "what the problems say": digest(problems, task, lm.chat),
    }


def task_settings(task: TaskConfig) -> dict[str, Any]:
    """All that verdicts depend on besides the problems. Of a task of one's own, wherever its file lies by now."""
    if isinstance(task, CustomConfig):
        told = task.model_dump(mode="json", exclude={"workers", "file"})
        return told | {FILE_HOLDS: digest_of(task.file)}
    return absolute(task).model_dump(mode="json", exclude={"workers"})


def default_folder(config: TrainConfig, made_with: dict[str, Any]) -> Path:
    """Where an evaluation without --output is kept: OUTPUT/evaluations/MODEL-DIGEST.

    One folder for the same weights and recipe; on another device, or with other threads, the folder's settings refuse.
    """
    of = {name: value for name, value in made_with.items() if name not in _MACHINE}
    of["evaluation"] = {name: value for name, value in of.get("evaluation", {}).items() if name != "samples"}
    of["model"] = made_with.get("model", {}).get("weights")
    of_settings = hashlib.sha256(json.dumps(of, sort_keys=True).encode()).hexdigest()[:8]
    path = Path(config.model.path).expanduser()
    parts = path.absolute().parts[-2:] if path.is_dir() and path.name in ("final", "best") else (path.name,)
    name = "-".join("".join(c if c.isalnum() or c in "._" else "-" for c in part) for part in parts)
    return Path(config.output) / "evaluations" / f"{name}-{of_settings}"


def unused(overrides: Sequence[str]) -> list[str]:
    """What to say of overrides that no evaluation of a model reads."""
    idle = [given for given in overrides if given.partition(".")[0] in ("stages", "optimizer", "algorithm")]
    return [f"{', '.join(idle)}: of training, and nothing of it is used here"] if idle else []


def check_free(folder: Path, name: str) -> None:
    """Raises ConfigError, before the work and not after it, where `folder` is or holds anything but this evaluation."""
    written = (folder / "config.yaml").exists()
    if not written:
        check_not_others(folder, name)
    if has_begun_training(folder) or (written and not kept_file(folder, name).with_suffix(".json").exists()):
        raise ConfigError(f"{folder} already holds a run; choose another name=..., or another output")


def name_of(model: str) -> str:
    """What an evaluation of a model folder, or of a name, is called; not what a run calls that of its base model."""
    folder = Path(model).expanduser()
    name = folder.absolute().name if folder.is_dir() else folder.name
    name = "".join(c if c.isalnum() or c in "._-" else "-" for c in name) or "model"
    return "base-model" if name == "base" else name


def kept_file(folder: Path, name: str) -> Path:
    return folder / "evaluations" / "kept" / f"{name}.jsonl"


def drop_kept(folder: Path, name: str) -> None:
    """Once the evaluation itself is written."""
    file = kept_file(folder, name)
    for path in (file, file.with_suffix(".json")):
        path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # others are kept there
        file.parent.rmdir()


@contextmanager
def kept_in(
    folder: Path, name: str, made_with: dict[str, Any], observer: Observer, afresh: bool = False
) -> Iterator[Kept]:
    """What is kept of an evaluation in a run folder or a folder of its own.

    afresh: in a training run, which has settings of its own, kept problems of others are dropped instead of refused.
    """
    file = kept_file(folder, name)
    way_out = f"give the command those settings, name another --output, or remove {folder} to evaluate anew"

    def begins_anew(why: str) -> None:
        observer.message(f"warning: {why}; evaluation {name} begins anew")

    with Kept(file, made_with, line_key, way_out, _GROWS, begins_anew if afresh else None) as kept:
        yield kept


def run_kept(
    evaluator: Evaluator, name: str, step: int, sampler: Sampler, chat: Chat, kept: Kept, observer: Observer
) -> Evaluation:
    """Evaluate, telling how far it is."""
    title = f"evaluating {name}" + (f" on {evaluator.about}" if evaluator.about else "")
    observer.work(title, 0, evaluator.completions)
    return evaluator.run(name, step, sampler, chat, kept, partial(observer.work, title))


def collapse(summary: Summary, trained: int) -> str | None:
    """A warning where accuracy falls to less than half after the attempts that a model was trained with; else None."""
    within = summary.accuracy[:trained]
    if not within or summary.n == 0:
        return None
    floor = min(estimate.low for estimate in within) / 2
    fallen = next((a for a, e in enumerate(summary.accuracy[trained:], trained + 1) if e.high < floor), None)
    if fallen is None:
        return None
    last, there = len(summary.accuracy), [f"{estimate.value:.1%}" for estimate in summary.accuracy]
    end = f" and {there[-1]} at attempt {last}" if last > fallen else ""
    return (
        f"accuracy collapses from {there[trained - 1]} at attempt {trained} to {there[fallen - 1]} at attempt "
        f"{fallen}{end}: the model was trained with {trained} attempts (rollouts.attempts), so later ones lie in "
        "conversations longer than any it learned from, and say nothing about correction; train with more attempts "
        "to measure them"
    )
