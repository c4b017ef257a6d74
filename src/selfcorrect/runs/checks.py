"""What is tried before a run or an evaluation writes anything."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import torch

from selfcorrect.config import OptimizerConfig, SupervisedStage, TrainConfig
from selfcorrect.errors import ConfigError
from selfcorrect.evaluation.evaluate import evaluated_problems, load_external
from selfcorrect.learning.own import own_objectives
from selfcorrect.learning.policy import check_optimizer
from selfcorrect.learning.supervised import given_traces
from selfcorrect.models import fused
from selfcorrect.models.chat import Chat
from selfcorrect.models.language_model import LanguageModel
from selfcorrect.models.loading import load_model
from selfcorrect.models.sizing import memory_of, parameter_count, size_text, sized, static_of, too_large
from selfcorrect.models.stored import stored_dtype
from selfcorrect.parallel.launch import launched
from selfcorrect.parallel.ranks import Alone
from selfcorrect.planning.work import assumed_lengths, step_of
from selfcorrect.runs.disk import check_room, need_of, try_save, used
from selfcorrect.runs.evaluating import rows_of
from selfcorrect.runs.trackers import tracker_names
from selfcorrect.samplers.choose import make_sampler
from selfcorrect.samplers.vllm_server import UNTOLD, Server
from selfcorrect.tasks import make_task
from selfcorrect.tasks.base import Task
from selfcorrect.tasks.dataset import DataTask
from selfcorrect.types import Problem

_SMALLER = {  # tuning -> what takes less
    "full": "set model.tuning: lora or qlora, with ten times the learning rate",
    "lora": "set model.weights: bfloat16, or model.tuning: qlora",
    "qlora": "set model.weights: bfloat16, or a lower model.lora.rank",
}  # fmt: skip


def tuning_text(config: TrainConfig, lm: LanguageModel) -> str:
    """Which weights train, in words."""
    trained = sum(parameter.numel() for parameter in lm.model.parameters() if parameter.requires_grad)
    stored = f"stored in {config.model.weights}"
    if lm.adapters is None:
        return f"tuning full: all of them train, {stored}"
    base = "in 4 bits" if config.model.tuning == "qlora" else stored
    rank = f"rank {lm.adapters.config.r}"
    return f"tuning {config.model.tuning}: an adapter of {rank}, {trained / 1e6:,.2f} million, over a model {base}"


def fitted(
    config: TrainConfig, lm: LanguageModel, task: Task, *, trains: bool = True, shards: int = 1
) -> tuple[TrainConfig, list[str]]:
    """The config with what it leaves to the model's size settled, and notes on it. trains, shards: see `sized`.

    Raises ConfigError where the attempts at the task's longest problem cannot fit into what the model can read, or a
    micro-batch by far into what the device has.
    """
    tokens = check_context(config, lm, task, task.longest())
    settled, notes = sized(config, lm, tokens, trains, shards=shards)
    if trains and config.optimizer.micro_batch != "auto":
        launch = launched()
        step = step_of(config, assumed_lengths(config), launch.size if launch else 1)
        notes += too_large(settled, lm, step.rows, step.attempts)
    if config.rollouts.rows_at_once == "auto":
        notes.insert(0, f"rollouts.rows_at_once: auto is {_rows_told(settled, lm, task, tokens, trains)}")
    return settled, notes


def _rows_told(config: TrainConfig, lm: LanguageModel, task: Task, tokens: int, trains: bool) -> str:
    """How many rows the model has room for, which the run keeps, and how many are played at the most, if fewer."""
    asked, group, limit = config.evaluation, config.rollouts.rollouts_per_problem, rows_of(config, lm)
    problems = len(task.held_out(asked.problems)) if asked.split == "test" else asked.problems
    found = [limit if asked.external else min(limit, problems * asked.samples)]
    if trains:
        found.append(config.rollouts.problems_per_step * group)
        found += [stage.collect * group for stage in config.stages if isinstance(stage, SupervisedStage)]
    told = f"{config.rollouts.rows} for this model and rollouts of up to {tokens} tokens"
    return told + (f", of which at most {most} are played here" if (most := max(found)) < config.rollouts.rows else "")


def unread(task: Task, chat: Chat) -> list[str]:
    """What to say where the tokenizer cannot write the correction prompt; problems it cannot are told one by one."""
    if chat.readable(task.correction_prompt(task.longest())):
        return []
    return [
        "the model's tokenizer has no token for part of the correction prompt, which it reads with holes; reword it "
        "(task.correction_prompt, or correction_prompt() of a task of your own)"
    ]


def shortages(config: TrainConfig, task: Task, evaluated: int, *, trains: bool = True) -> list[str]:
    """Notes where a recipe asks for more problems than the task has. evaluated: how many it has to evaluate on."""
    asked, notes, step = config.evaluation, list[str](), config.rollouts.problems_per_step
    if evaluated < asked.problems:
        behind = f" behind evaluation.offset = {asked.offset}" if asked.offset else ""
        notes.append(fewer("evaluation.problems", asked.problems, evaluated, behind))
    if trains and isinstance(task, DataTask) and len(task.train) < step:
        there = len(task.train)
        notes.append(
            f"rollouts.problems_per_step = {step}, but there are {there} to train on: a step has some more than once"
        )
    return notes


def fewer(name: str, asked: int, found: int, where: str = "") -> str:
    """A note: fewer problems are taken than were asked for."""
    return f"{name} = {asked:,}, but there are {found:,} problems{where}: all of them are taken"


def check_context(config: TrainConfig, lm: LanguageModel, task: Task, problem: Problem) -> int:
    """The tokens that all attempts at a problem may take. Raises ConfigError where the model cannot read so many."""
    room, prompt = lm.reads, lm.chat.first_prompt(problem.prompt)
    limit, attempts = config.rollouts.max_new_tokens, config.rollouts.attempts
    asked, refine = [task.correction_prompt(problem)], config.rollouts.self_refine
    for name, template in config.evaluation.correction_prompts.items():
        asked.append(task.reworded(problem, template))
        if not lm.chat.readable(asked[-1]):
            raise ConfigError(
                f"evaluation.correction_prompts.{name} = {template[:60]!r}: the model's tokenizer has no token for "
                "part of it; reword it"
            )
    between = max(len(lm.chat.next_prompt(prompt, (), text)) - len(prompt) for text in asked)
    if refine:
        turns = (refine.feedback_prompt, refine.refine_prompt)
        between = sum(len(lm.chat.next_prompt(prompt, (), text)) - len(prompt) for text in turns) + limit
    given = 0 if problem.first_attempt is None else len(lm.chat.written(problem.first_attempt).token_ids) - limit
    need = len(prompt) + given + attempts * limit + (attempts - 1) * between
    if room and need > room:
        if len(prompt) >= room:
            begins = " ".join(problem.prompt.split())[:40]
            raise ConfigError(
                f"problem {problem.id} has a prompt of {len(prompt)} tokens ({begins!r}...), but the model reads "
                f"{room}; leave it out of the data, or shorten it or task.prompt"
            )
        raise ConfigError(
            f"rollouts.max_new_tokens = {limit}: a prompt of {len(prompt)} tokens and {attempts} attempts may take "
            f"{need} tokens, but the model reads {room}; lower max_new_tokens"
        )
    return need


def check_updates(config: OptimizerConfig, lm: LanguageModel) -> None:
    """Raises ConfigError or ModelError where this process cannot make updates as the recipe asks."""
    check_optimizer(config, lm.device)
    if config.compile and (why := fused.hindrance(lm)):
        raise ConfigError(f"optimizer.compile = true: torch.compile fails here ({why}); set false")


@contextmanager
def ready(task: Task, ranks: Alone) -> Iterator[None]:
    """The graders' processes are up, on all hosts. Raises what keeps them from running, before anything is written."""
    ranks.each(lambda: task.grade([]))
    yield


def tried(config: TrainConfig) -> Iterator[str]:
    """Loads what a run of the recipe loads, and tells it line by line. Raises the UserError a run would end with."""
    reads = _server_reads(config)
    with closing(make_task(config.task)) as task:
        held_out = evaluated_problems(config, task)
        yield f"data: {len(held_out)} problems to evaluate on"
        asked = [("the problems to evaluate on", held_out)]
        if config.stages:
            drawn = task.draw(1, config.rollouts.problems_per_step, config.seed)
            asked.append(("the problems of step 1", drawn))
            yield f"data: step 1 draws {len({problem.id for problem in drawn})} problems, the first is {drawn[0].id}"
            own_objectives(config.stages, config.rollouts, task.draw(1, 2, config.seed))
        held_out_file = [config.checkpoint.held_out] if config.checkpoint.held_out else []
        for name, problems in load_external(task, [*config.evaluation.external, *held_out_file]):
            yield f"data: {len(problems)} problems of {name}"
        task.grade([])
        lm = load_model(config.model, config.seed)
        if config.stages:
            check_updates(config.optimizer, lm)
        yield (
            f"model: {parameter_count(lm) / 1e6:,.1f} million parameters on {lm.device}, computed in "
            f"{str(lm.compute_dtype)[6:]}; {tuning_text(config, lm)}"
        )
        yield from (f"data: {line}" for line in given_traces(config, lm))
        _check_readable(config, lm.chat, asked)
        need = check_context(config, lm, task, task.longest())
        yield f"longest rollout: {need} tokens of the {lm.reads or 'unknown number'} that the model reads"
        if reads:
            told = "" if reads >= need else "; a longer one ends the run: start it with a larger --max-model-len"
            limit = f", and reads up to {reads} tokens{told}" if reads < UNTOLD else ""
            yield f"server: {config.vllm.server} answers{limit}"
        settled, sizes = fitted(config, lm, task, trains=bool(config.stages))
        make_sampler(settled, lm)  # an engine that is not installed is told of
        short = [*shortages(config, task, len(held_out), trains=bool(config.stages)), *unread(task, lm.chat)]
        yield from (f"note: {note}" for note in [*short, *task.notes, *lm.chat.notes, *sizes])
        yield f"first prompt: {lm.tokenizer.decode(lm.chat.first_prompt(held_out[0].prompt))!r}"
        if settled.stages:
            yield _memory(settled, lm)
            tracker_names(config)
            yield _disk(config, lm)


def _server_reads(config: TrainConfig) -> int:
    """Tokens that a vLLM server takes, asked once; 0 without one. Raises SamplerFailed where it does not answer."""
    if not config.vllm.server:
        return 0
    once = config.vllm.model_copy(update={"timeout": 1.0})
    return Server(once, Path(), torch.device("cpu"), adapter_only=False).longest


def _check_readable(config: TrainConfig, chat: Chat, asked: Iterable[tuple[str, Sequence[Problem]]]) -> None:
    """Raises ConfigError where the tokenizer can write none of some problems, of which a run would then end."""
    for what, problems in asked:
        if problems and not any(chat.readable(problem.prompt) for problem in problems):
            raise ConfigError(
                f"model.path = {config.model.path!r}: its tokenizer has no token for part of any of {what}; take a "
                "model whose tokenizer can read them, or reword task.prompt"
            )


def _memory(config: TrainConfig, lm: LanguageModel) -> str:
    """What training takes of the device, and what it has. Raises ConfigError where that does not suffice."""
    need, available = static_of(config, lm), memory_of(lm.device)
    there = f"{size_text(available)} are there"
    if need.total > available:
        raise ConfigError(
            f"model.path = {config.model.path!r}: training takes memory of {need}; {there}; "
            f"{_SMALLER[config.model.tuning]}, or take a smaller model"
        )
    return f"memory: {need}; {there}"


def _disk(config: TrainConfig, lm: LanguageModel) -> str:
    """Room where the run will lie, and a save of the model tried; the folder need not be there yet."""
    path = (Path(config.output) / config.name).absolute()
    above = next(folder for folder in (path, *path.parents) if folder.is_dir())
    size = try_save(lm, stored_dtype(config.model.path), above)
    return check_room(above, need_of(config, lm, size), config.checkpoint.keep, used(path))
