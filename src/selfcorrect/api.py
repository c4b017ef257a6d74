"""The public functions: the commands of the same names, callable."""

import dataclasses
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import Any

from selfcorrect import __version__
from selfcorrect.analysis import analyse
from selfcorrect.analysis.votes import Point, budgets_up_to, scale_figure, scaling
from selfcorrect.config import LAB_MODEL, TASK_KINDS, CodeConfig, Config, LabBaseConfig, MathConfig, TrainConfig
from selfcorrect.config.paths import absolute, run_above
from selfcorrect.config.recipe import load_recipe, validate
from selfcorrect.config.shipped import shipped_recipe, shipped_recipes
from selfcorrect.config.tasks import ATTEMPT_TOKENS
from selfcorrect.endpoints.job import endpoint_job
from selfcorrect.endpoints.settings import Endpoint
from selfcorrect.errors import ConfigError, DataError
from selfcorrect.evaluation.counted import Counted
from selfcorrect.evaluation.evaluate import Evaluation, Evaluator, grader_lives
from selfcorrect.evaluation.kept import Kept, write_durably
from selfcorrect.evaluation.metrics import Summary, is_graded, refuse_nothing_graded
from selfcorrect.models.loading import LanguageModel, load_model, resolve_path, use_threads
from selfcorrect.models.messages import MessageChat
from selfcorrect.models.sizing import parameter_count
from selfcorrect.report import write_report
from selfcorrect.rollout import play as play_problems
from selfcorrect.runs.asked import file_digest
from selfcorrect.runs.checks import fewer, fitted, shortages, unread
from selfcorrect.runs.display import Observer
from selfcorrect.runs.evaluating import (
    SIDE,
    Job,
    about,
    check_free,
    collapse,
    default_folder,
    kept_file,
    kept_in,
    make_evaluator,
    model_settings,
    name_of,
    rows_begun,
    rows_of,
    run_kept,
    sampling_settings,
    settings,
    task_settings,
    unused,
)
from selfcorrect.runs.folder import keep_evaluation
from selfcorrect.runs.interrupts import alone, stoppable
from selfcorrect.runs.run import resume, start
from selfcorrect.samplers.choose import make_sampler
from selfcorrect.seeds import derive_seed
from selfcorrect.tasks import Split, make_task
from selfcorrect.tasks.base import Task, fixed_share
from selfcorrect.tasks.dataset import DataTask
from selfcorrect.tasks.files import stem_of
from selfcorrect.tasks.repair import repair_rows
from selfcorrect.types import Problem, Rollout, SamplingParams

__all__ = ["analyse", "evaluate", "grade", "make_repair_set", "play", "read_config", "scale", "train", "write_report"]

Recipe = str | Path | Mapping[str, Any] | Config


def train(recipe: Recipe, *overrides: str, observer: Observer | None = None, resume_run: bool = False) -> Path:
    """Run a recipe (a YAML file, a mapping of the same shape, or a config); returns the run's folder.

    overrides: `key=value` as on the command line. resume_run: `recipe` is a run folder to go on with; overrides may
    then extend it, or change what changes no result. Raises UserError kinds (selfcorrect.errors) for everything the
    caller can mend.
    """
    watcher = observer or Observer()
    if resume_run:
        return resume(Path(str(recipe)), watcher, overrides)
    config = read_config(recipe, *overrides)
    if isinstance(config, LabBaseConfig):
        from selfcorrect.lab.base import train_base

        return train_base(config, watcher.message)
    return start(_train_config(config), watcher)


def evaluate(
    model: str | Path,
    *overrides: str,
    recipe: Recipe | None = None,
    observer: Observer | None = None,
    output: str | Path | None = None,
    endpoint: Endpoint | None = None,
) -> Evaluation:
    """Two-attempt evaluation with intervals of a model folder, hub name or "lab", or of a recipe's model.

    Greedy; with evaluation.samples=k and evaluation.temperature=T, Avg@k and pass@k of every attempt.
    recipe: where task, prompts, limits and number of problems come from; by default the recipe of the run that
    `model` lies in, that of the lab for the lab's models; for every other, an override names the task (task.name=math).
    output: a folder for the evaluation's files and report.html; by default output/name for a recipe in place of the
    model, else a folder under output/evaluations. Every finished problem is kept there at once: the same call goes on
    after a stop, and gives the same result once it is done. With sampler=recorded no model is loaded: the recorded
    attempts are evaluated. endpoint: where `model` is a name that it knows, asked and not loaded (docs/endpoints.md).
    Raises TrainingInterrupted on Ctrl-C and SIGTERM, EndpointError where an endpoint answers no more.
    """
    watcher = observer or Observer()
    named = endpoint is None and is_recipe(model)
    here, what = endpoint is None, "evaluate it on"
    config = _train_config(model, *overrides) if named else _config_for(model, recipe, overrides, what, here=here)
    config = _with_sampler(config, endpoint)
    _tell([] if named else unused(overrides), watcher.message)
    path = config.model.path if named else str(model)
    config = config.model_copy(update={"model": config.model.model_copy(update={"path": path})})
    folder = Path(output).expanduser() if output is not None else Path(config.output) / config.name if named else None
    name = "recorded" if config.sampler == "recorded" else name_of(path)
    if folder is not None:
        check_free(folder, name)
    if config.sampler == "transformers":
        resolve_path(path)  # a folder that is not there, or holds no model, is the first thing to say
    if config.sampler != "recorded":
        watcher.message(f"evaluating {path} on {about(config.task, config.evaluation.split)}")
    task = make_task(config.task)
    with stoppable() as stopped, closing(task):
        if endpoint:
            job = endpoint_job(config, task, folder, name, endpoint, watcher.message)
        elif config.sampler == "recorded":
            job = _recorded_job(config, task)
        else:
            job = _model_job(config, task, folder, name)
        folder = folder or default_folder(config, job.made_with)
        notes = _tell([*task.notes, *job.notes], watcher.message)
        with ExitStack() as stack:
            stack.enter_context(alone(folder))
            check_free(folder, name)  # while the model was loaded another command may have begun there
            kept = stack.enter_context(kept_in(folder, name, job.made_with, watcher))
            there = f"of {job.evaluator.rollouts:,} rollouts are kept in {folder}"
            stopped.told = lambda: f"{kept.count:,} {there}{job.beside()}: the same command goes on"
            _say_plan(job, folder, kept.count, watcher)
            evaluation = run_kept(job.evaluator, name, 0, job.sampler, job.chat, kept, watcher)
            notes += _tell(job.after(), watcher.message)
            fallen = collapse(evaluation.summary, _trained_attempts(path))
            if fallen is not None:
                watcher.message(f"warning: {fallen}")
            keep_evaluation(folder, absolute(config), evaluation, notes, fallen)
    write_report(folder)
    return dataclasses.replace(evaluation, folder=folder)


def _with_sampler(config: TrainConfig, endpoint: Endpoint | None) -> TrainConfig:
    if endpoint:
        return config.model_copy(update={"sampler": "endpoint", "recorded": None})
    if config.sampler == "endpoint":
        raise ConfigError("sampler: endpoint stands for one whose URL is named with --endpoint; name it")
    return config


def _say_plan(job: Job, folder: Path, count: int, watcher: Observer) -> None:
    """What is to come, and how much of it is there already. count: whole rollouts that are."""
    total, chunk = job.evaluator.rollouts, min(job.evaluator.rows, len(job.evaluator.problems))
    watcher.message(
        f"{job.evaluator.plan()}; kept in {folder}, {chunk:,} problems at a time, so the same command goes on"
    )
    if told := job.evaluator.resolution():
        watcher.message(told)
    if count == total:
        watcher.message(f"all {total:,} rollouts are there already; remove {folder} to evaluate anew")
    elif count or job.beside():
        watcher.message(f"going on: {count:,} of {total:,} rollouts are there already{job.beside()}")


def is_recipe(model: str | Path) -> bool:
    """Whether what stands in a model's place is a recipe: a YAML file, or the name of a shipped one."""
    shipped = str(model) in shipped_recipes() and not Path(model).exists()
    return shipped or str(model).endswith((".yaml", ".yml"))


def _model_job(asked: TrainConfig, task: Task, folder: Path | None, name: str) -> Job:
    """The recipe's model. folder: where the evaluation is kept under `name`; by default the weights' own."""
    use_threads(asked.threads)
    evaluator, lm = make_evaluator(asked, task), load_model(asked.model)
    config, sizes = fitted(asked, lm, task, trains=False)
    evaluator = dataclasses.replace(evaluator, rows=rows_of(config, lm))
    made_with = settings(config, evaluator, lm.chat, model_settings(lm))
    file = kept_file(folder or default_folder(config, made_with), name)
    begun = rows_begun(asked, file, SIDE, evaluator.rows)
    if begun != evaluator.rows:
        sizes = [f"rollouts.rows_at_once: auto stays {begun}, with which this evaluation was begun"]
        evaluator = dataclasses.replace(evaluator, rows=begun)
    sampler = make_sampler(config, lm, max(config.rollouts.rows, evaluator.rows))
    task.grade([])
    size = parameter_count(lm)
    precision = str(lm.compute_dtype).removeprefix("torch.")
    told = (
        f"task {evaluator.about}, {len(evaluator.problems):,} problems of split {evaluator.split}; model "
        f"{config.model.path}, {size / 1e6:,.1f} million parameters, {lm.device.type}, {precision}"
    )
    trained = _trained_attempts(config.model.path)
    short = shortages(config, task, len(evaluator.problems), trains=False)
    notes = [told, *short, *(unread(task, lm.chat) if config.rollouts.attempts > 1 else ()), *lm.chat.notes, *sizes]
    if config.rollouts.attempts > trained:
        notes.append(
            f"rollouts.attempts is {config.rollouts.attempts}, but {config.model.path} was trained with {trained}: "
            f"from attempt {trained + 1} on it reads conversations longer than any it learned from"
        )
    return Job(evaluator, sampler, lm.chat, made_with | {SIDE: evaluator.rows}, notes)


def _recorded_job(config: TrainConfig, task: Task) -> Job:
    """The recorded attempts, through the same rollouts, graders and metrics as a model's."""
    from selfcorrect.bridges.logs import read_log
    from selfcorrect.evaluation.recorded import replay

    chat, log = MessageChat(), read_log(str(config.recorded))
    attempts, file = config.rollouts.attempts, str(config.recorded)
    problems, samples, sampler, notes = replay(log.rows, file, task, chat, attempts)
    task.grade([])
    evaluator = Evaluator(
        task=task, problems=problems, attempts=config.rollouts.attempts,
        max_new_tokens=config.rollouts.max_new_tokens, seed=config.seed, controls=False, recorded=True,
        rows=len(problems) * samples,  # problems with the same prompt are answered in turn, so all are played at once
        about=about(config.task), samples=samples,
    )  # fmt: skip
    made_with = settings(config, evaluator, chat, {"selfcorrect": __version__, "recorded": file_digest(file)})
    return Job(evaluator, sampler, chat, made_with, [f"task {evaluator.about}", *notes, *log.notes])


def _tell(notes: list[str], say: Callable[[str], None]) -> list[str]:
    for note in notes:
        say(f"note: {note}")
    return notes


def grade(
    recorded: str | Path,
    task: str,
    *overrides: str,
    output: str | Path | None = None,
    observer: Observer | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Summary, Path]:
    """Grade recorded attempts (docs/recorded.md); returns the metrics, and the file of verdicts, a line a row.

    task: math, code, countdown or custom; overrides: settings of it, like task.dataset=humaneval. output: by default
    beside the recordings, with .graded.jsonl in the name; what it holds already is not graded again, and said.
    progress(done, all) is called with numbers of attempts.
    """
    from selfcorrect.bridges.logs import read_log
    from selfcorrect.evaluation.averages import summary_over
    from selfcorrect.evaluation.recorded import arranged, grade_recorded

    config = validate({"task": {"name": task}, "stages": []}, "grade", overrides=overrides)
    assert isinstance(config, TrainConfig)
    log, file, say = read_log(recorded), Path(recorded).expanduser(), (observer or Observer()).message
    target = Path(output).expanduser() if output is not None else _verdicts_beside(file)
    if target.exists() and target.samefile(file):
        raise ConfigError(f"output = {str(output)!r} is the file that is to be graded; name another")
    done, total = 0, sum(len(row.texts) for row in log.rows)

    def told(count: int) -> None:
        nonlocal done
        done += count
        if progress:
            progress(done, total)

    judge = make_task(config.task)
    grader = {"selfcorrect": __version__, "task": task_settings(config.task)}
    with closing(judge):
        rollouts = grade_recorded(log.rows, judge, target, grader, told, lambda text: say(f"note: {text}"))
        places, samples, left_out = arranged([rollout.problem for rollout in rollouts])
        _tell([*judge.notes, *log.notes, *left_out], say)
    refuse_nothing_graded(rollouts, str(recorded))
    return summary_over([rollouts[place] for place in places], samples), target


def _verdicts_beside(recorded: Path) -> Path:
    return recorded.with_name(f"{stem_of(recorded.name)}.graded.jsonl")


def play(
    problem: str, model: str | Path = "lab", recipe: Recipe | None = None, *, temperature: float = 0.0, seed: int = 0
) -> Rollout:
    """One problem, all attempts. problem: "30 7 2 = 39" or an id like "countdown-30-7-2-to-39"."""
    config = _config_for(model, recipe, None, "play")
    lm: LanguageModel = load_model(config.model.model_copy(update={"path": str(model)}))
    task = make_task(config.task)
    params = SamplingParams(temperature, config.rollouts.max_new_tokens, derive_seed(seed, "play"))
    sampler = make_sampler(config, lm)
    with closing(task):
        return play_problems([task.parse(problem)], task, sampler, lm.chat, params, config.rollouts.attempts)[0]


def make_repair_set(
    model: str | Path, output: str | Path, *overrides: str, recipe: Recipe, split: Split = "train",
    problems: int | None = None, temperature: float = 1.0, observer: Observer | None = None,
) -> int:  # fmt: skip
    """Let a model try a task once, and write its failing attempts to `output` as a repair set; returns how many.

    recipe: one whose task is math or code. split: train, or test for the held-out problems; problems: how many of
    them, by default all. Rows are {"task_id", "split", "first_attempt", "failure", "model"}, one a line.
    """
    config, file = _train_config(recipe, *overrides), Path(output).expanduser()
    watcher = observer or Observer()
    if file.exists():
        raise ConfigError(f"output = {str(output)!r} is there already; remove it, or choose another")
    task, listed = _listed(config, split, problems)
    if problems and len(listed) < problems:
        watcher.message(f"note: {fewer('problems', problems, len(listed))}")
    lm = load_model(config.model.model_copy(update={"path": str(model)}))
    tried = file.with_name(f".{file.name}.tried.jsonl")
    chunk = rows_begun(config, tried, SIDE, rows_of(fitted(config, lm, task, trains=False)[0], lm, attempts=1))
    what = f"{about(config.task, split)}, split {split}"
    made_with = sampling_settings(config, lm, task, listed, temperature)
    made_with |= {"split": split, "model's name": str(model), SIDE: chunk}
    way_out = f"give the command those settings, or remove {tried} and the .json beside it to begin anew"
    with stoppable() as stopped, closing(task), Kept(tried, made_with, lambda line: line["id"], way_out) as kept:
        stopped.told = lambda: (
            f"{kept.count:,} of {len(listed):,} problems are tried, and kept in {tried}: the same command goes on"
        )
        watcher.message(
            f"{len(listed):,} completions to come: {len(listed):,} problems of {what}, once each, by {model}; kept as "
            "they end, so the same command goes on"
        )
        watcher.work(what, 0, len(listed))
        counted = Counted(make_sampler(config, lm, chunk), partial(watcher.work, what), len(listed))
        rows, ungraded = list[dict[str, Any]](), list[Rollout]()
        for start in range(0, len(listed), chunk):
            part = listed[start : start + chunk]
            lines = kept.take([problem.id for problem in part])
            if lines is None:
                seed = derive_seed(config.seed, "repair set", start)
                params = SamplingParams(temperature, config.rollouts.max_new_tokens, seed)
                played = play_problems(part, task, counted, lm.chat, params, 1)
                ungraded += [r for r in played if not is_graded(r)]
                lines = [{"id": r.problem.id, "rows": repair_rows([r], split, str(model))} for r in played]
                kept.add(lines, graded=grader_lives(played))
            rows += [row for line in lines for row in line["rows"]]
            counted.reach(len(part))
        _tell_ungraded(ungraded, len(listed), watcher)
        if rows:
            write_durably(file, "".join(json.dumps(row) + "\n" for row in rows))
        kept.remove()
    if not rows:
        raise DataError(
            f"{model} failed at none of {len(listed)} problems, or ended none of its attempts: no set to write"
        )
    return len(rows)


def _tell_ungraded(ungraded: list[Rollout], total: int, watcher: Observer) -> None:
    """Problems of a repair set without a verdict are told. Raises NothingGraded where those are all of them."""
    if len(ungraded) == total:
        refuse_nothing_graded(ungraded, "repair set")
    if ungraded:
        watcher.message(f"warning: {len(ungraded)} problems could not be sampled or graded, and are left out")


def _listed(config: TrainConfig, split: Split, count: int | None) -> tuple[Task, list[Problem]]:
    """The task of a repair set, and the problems to try."""
    if not isinstance(config.task, MathConfig | CodeConfig):
        raise ConfigError(f"task.name is {config.task.name}; a repair set is made from math or code")
    task = make_task(config.task)
    assert isinstance(task, DataTask)
    listed = list(task.train) if split == "train" else task.test
    return task, listed if count is None else fixed_share(listed, count)


def scale(
    model: str | Path,
    *overrides: str,
    output: str | Path,
    recipe: Recipe | None = None,
    most: int = 64,
    problems: int = 200,
    temperature: float = 0.7,
    observer: Observer | None = None,
) -> list[Point]:
    """Inference-compute scaling of a model (Fig. 1 right): majority votes at budgets 2, 4, ... up to `most` solutions.

    output: a folder for the samples, the drawing and its numbers; samples that are there already are used again.
    """
    from selfcorrect.analysis.scaling import check_votes, cost_of, sample_pools

    if most < 2 or most & (most - 1):
        raise ConfigError(f"most = {most} must be a power of two, 2 or more")
    config = _config_for(model, recipe, overrides, "sample")
    folder, watcher = Path(output).expanduser(), observer or Observer()
    task = make_task(config.task)
    check_votes(task)
    listed = task.held_out(problems)
    lm = load_model(config.model.model_copy(update={"path": str(model)}))
    settled, file = fitted(config, lm, task, trains=False)[0], folder / "samples.jsonl"
    chunk = rows_begun(config, file, "problems at once", max(1, rows_of(settled, lm) // most))
    made_with = {
        **sampling_settings(config, lm, task, listed, temperature), "most": most, "problems at once": chunk,
    }  # fmt: skip
    params = SamplingParams(temperature, config.rollouts.max_new_tokens, config.seed)
    total, what = cost_of(most) * len(listed), about(config.task)
    way_out = "choose another output, or remove its samples.json and samples.jsonl to begin anew"
    with stoppable() as stopped, closing(task), Kept(file, made_with, lambda line: line[0], way_out) as kept:
        stopped.told = lambda: (
            f"{kept.count:,} of {len(listed):,} problems are kept in {folder}: the same command goes on"
        )
        watcher.message(
            f"{total:,} completions to come: {len(listed):,} problems of {what} x ({most} first attempts + {most // 2} "
            f"corrections), by {model}; kept in {folder} as they end, so the same command goes on"
        )
        if len(listed) < problems:
            watcher.message(f"note: {fewer('problems', problems, len(listed))}")
        watcher.work(f"sampling {what}", 0, total)
        sampler = make_sampler(config, lm, max(settled.rollouts.rows, chunk * most))
        pools = sample_pools(
            task, listed, sampler, lm.chat, params, most,
            kept, chunk, partial(watcher.work, f"sampling {what}"),
        )  # fmt: skip
    if len(pools) < len(listed):
        watcher.message(f"note: {len(listed) - len(pools):,} problems are left out, with no solutions that were graded")
    points = scaling(pools, budgets_up_to(most))
    scale_figure(points, len(pools), temperature).write(folder)
    return points


def read_config(recipe: Recipe, *overrides: str) -> Config:
    """Anything that stands for a recipe -> the validated config."""
    if isinstance(recipe, Config):
        return validate(recipe.model_dump(mode="json"), overrides=overrides) if overrides else recipe
    if isinstance(recipe, Mapping):
        return validate(recipe, overrides=overrides)
    return load_recipe(recipe, overrides)


def _train_config(recipe: Recipe, *overrides: str) -> TrainConfig:
    config = read_config(recipe, *overrides)
    if not isinstance(config, TrainConfig):
        raise ConfigError(f"this recipe is of kind {config.kind}; name one of kind train")
    return config


def _config_for(
    model: str | Path, recipe: Recipe | None, overrides: Sequence[str] | None, purpose: str, *, here: bool = True
) -> TrainConfig:
    """The recipe that was named, or that goes with a model, or a task's defaults where an override names the task.

    overrides: None where the command takes none. here: whether the model is to be loaded. Raises ConfigError where
    nothing names the task.
    """
    if recipe is not None:
        return _train_config(recipe, *(overrides or ()))
    if here:
        resolve_path(str(model))  # a folder that is not there, or holds no model, is the first thing to say
    beside = recipe_beside(model)
    if beside is not None:
        config = _train_config(beside, *(overrides or ()))
        if any(override.startswith("model.chat_template=") for override in overrides or ()):
            return config
        # the recipe's template was saved with the model, and its file may be gone
        return config.model_copy(update={"model": config.model.model_copy(update={"chat_template": None})})
    tasks = [value for key, _, value in (o.partition("=") for o in overrides or ()) if key == "task.name"]
    if not tasks:
        kinds = ", ".join(f"task.name={name}" for name in TASK_KINDS)
        also = "" if overrides is None else f", or a task ({kinds}; `selfcorrect tasks` says what they are)"
        known = "" if not here or Path(str(model)).expanduser().exists() else "is no folder here and "
        raise ConfigError(
            f"{model} {known}lies in no run, so nothing says what to {purpose}; name a recipe with --recipe FILE{also}"
        )
    limits = {"max_new_tokens": ATTEMPT_TOKENS[tasks[-1]]} if tasks[-1] in ATTEMPT_TOKENS else {}
    return _train_config({"stages": [], "rollouts": limits}, *(overrides or ()))


def recipe_beside(model: str | Path) -> Path | None:
    """The recipe of the run that a model folder lies in; the lab's for the lab's models; None for every other."""
    folder = Path(str(model)).expanduser()
    if str(model) == LAB_MODEL:
        return lab_recipe()
    if folder.is_dir():
        if run := run_above(folder):
            return run / "config.yaml"
        if (folder / "recipe.json").is_file():  # written by lab/base.py
            return lab_recipe()
    return None


def _trained_attempts(model: str | Path) -> int:
    """How many attempts a conversation had where a model was trained; without a bound where nothing tells."""
    beside = recipe_beside(model)
    try:
        return _train_config(beside).rollouts.attempts if beside else sys.maxsize
    except ConfigError:  # a recipe of another version; another one may have been named
        return sys.maxsize


def lab_recipe() -> Path:
    """The recipe of the demo."""
    return shipped_recipe("demo")
