"""The public functions: the commands of the same names, callable."""

import dataclasses
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path

from selfcorrect import __version__
from selfcorrect.analysis import analyse
from selfcorrect.analysis.read import records
from selfcorrect.comparing.compare import compare as run_comparison
from selfcorrect.comparing.plan import costs
from selfcorrect.config import CompareConfig, Config, LabBaseConfig, TrainConfig
from selfcorrect.config.paths import absolute, at_home, check_paths
from selfcorrect.endpoints.job import endpoint_job
from selfcorrect.endpoints.settings import Endpoint
from selfcorrect.errors import ConfigError
from selfcorrect.evaluation.evaluate import Evaluation, Evaluator
from selfcorrect.evaluation.metrics import Summary, refuse_nothing_graded
from selfcorrect.exporting import export as write_export
from selfcorrect.learning.formats import FORMATS, Converted, convert
from selfcorrect.models.files import model_of
from selfcorrect.models.messages import MessageChat
from selfcorrect.models.sizing import parameter_count
from selfcorrect.planning import page
from selfcorrect.planning.plan import Plan, devices_for, make_plan, turns
from selfcorrect.planning.work import assumed_lengths
from selfcorrect.report import write_report
from selfcorrect.rollout import play as play_problems
from selfcorrect.runs.asked import file_digest
from selfcorrect.runs.called import public
from selfcorrect.runs.checks import fitted, shortages, tried, unread
from selfcorrect.runs.display import Observer, PlainObserver
from selfcorrect.runs.evaluating import (
    SIDE,
    Job,
    about,
    check_free,
    collapse,
    default_folder,
    kept_file,
    kept_in,
    loaded,
    make_evaluator,
    model_settings,
    name_of,
    rows_begun,
    rows_of,
    run_kept,
    settings,
    task_settings,
    unused,
)
from selfcorrect.runs.folder import keep_evaluation
from selfcorrect.runs.interrupts import alone, stoppable
from selfcorrect.runs.recipes import (
    Recipe,
    config_for,
    is_recipe,
    read_config,
    to_evaluate,
    to_grade,
    train_config,
    trained_attempts,
)
from selfcorrect.runs.run import resume, start
from selfcorrect.samplers.choose import make_sampler
from selfcorrect.sampling import make_repair_set, scale
from selfcorrect.seeds import derive_seed
from selfcorrect.tasks import make_task
from selfcorrect.tasks.base import Task
from selfcorrect.tasks.files import stem_of
from selfcorrect.types import Rollout, SamplingParams

__all__ = [
    "Observer", "PlainObserver", "analyse", "check", "compare", "evaluate", "export", "grade",
    "make_repair_set", "plan", "play", "read_config", "records", "scale", "traces", "train", "write_report",
]  # fmt: skip


@public
def train(recipe: Recipe, *overrides: str, observer: Observer | None = None, resume_run: bool = False) -> Path:
    """Run a recipe (a YAML file, a mapping of the same shape, or a config); returns the run's folder.

    overrides: `key=value` as on the command line. resume_run: `recipe` is a run folder to go on with; overrides may
    then extend it, or change what changes no result. Raises UserError kinds (selfcorrect.errors) for everything the
    caller can mend.
    """
    watcher = observer or PlainObserver()
    if resume_run:
        return resume(Path(str(recipe)), watcher, overrides)
    config = read_config(recipe, *overrides)
    if isinstance(config, LabBaseConfig):
        from selfcorrect.lab.base import train_base

        return train_base(config, watcher.message)
    return start(train_config(config), watcher)


@public
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
    watcher = observer or PlainObserver()
    named = endpoint is None and is_recipe(model)
    config = _with_sampler(to_evaluate(model, recipe, overrides, here=endpoint is None), endpoint)
    path = config.model.path
    _tell([] if named else unused(overrides), watcher.message)
    folder = at_home(output, "output") if output is not None else Path(config.output) / config.name if named else None
    name = "recorded" if config.sampler == "recorded" else name_of(path)
    if folder is not None:
        check_free(folder, name)
    if config.sampler != "recorded":
        watcher.message(f"evaluating {path} on {about(config.task, config.evaluation.split)}")
    task = make_task(config.task, watcher.message)
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
            fallen = collapse(evaluation.summary, trained_attempts(path))
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


def _model_job(asked: TrainConfig, task: Task, folder: Path | None, name: str) -> Job:
    """The recipe's model. folder: where the evaluation is kept under `name`; by default the weights' own."""
    evaluator, lm = make_evaluator(asked, task), loaded(asked, asked.model.path)
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
    trained = trained_attempts(config.model.path)
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


@public
def grade(
    recorded: str | Path,
    task: str,
    *overrides: str,
    output: str | Path | None = None,
    observer: Observer | None = None,
) -> tuple[Summary, Path]:
    """Grade recorded attempts (docs/recorded.md); returns the metrics, and the file of verdicts, a line a row.

    task: math, code, countdown or custom; overrides: settings of it, like task.dataset=humaneval. output: by default
    beside the recordings, with .graded.jsonl in the name; what it holds already is not graded again, and said.
    """
    from selfcorrect.bridges.logs import read_log
    from selfcorrect.evaluation.averages import summary_over
    from selfcorrect.evaluation.recorded import arranged, grade_recorded

    config = to_grade(task, overrides)
    log, file, watcher = read_log(recorded), Path(recorded).expanduser(), observer or PlainObserver()
    beside = file.with_name(f"{stem_of(file.name)}.graded.jsonl")
    target = at_home(output, "output") if output is not None else beside
    if target.exists() and target.samefile(file):
        raise ConfigError(f"output = {str(output)!r} is the file that is to be graded; name another")
    done, total = 0, sum(len(row.texts) for row in log.rows)

    def told(count: int) -> None:
        nonlocal done
        done += count
        watcher.work("grading", done, total)

    judge = make_task(config.task, watcher.message)
    grader = {"selfcorrect": __version__, "task": task_settings(config.task)}
    with closing(judge):
        rollouts = grade_recorded(log.rows, judge, target, grader, told, lambda text: watcher.message(f"note: {text}"))
        places, samples, left_out = arranged([rollout.problem for rollout in rollouts])
        _tell([*judge.notes, *log.notes, *left_out], watcher.message)
    refuse_nothing_graded(rollouts, str(recorded))
    return summary_over([rollouts[place] for place in places], samples), target


@public
def play(
    problem: str, *overrides: str, model: str | Path = "lab", recipe: Recipe | None = None, temperature: float = 0.0,
    seed: int | None = None,
) -> Rollout:  # fmt: skip
    """One problem, all attempts. problem: "30 7 2 = 39" or an id like "countdown-30-7-2-to-39"; model: or a run's.

    seed: of the draws, by default the recipe's.
    """
    config = config_for(model, recipe, overrides, "play")
    lm, rollouts = loaded(config, model_of(model)), config.rollouts
    task = make_task(config.task)
    params = SamplingParams(
        temperature, rollouts.max_new_tokens, derive_seed(config.seed if seed is None else seed, "play")
    )
    sampler = make_sampler(config, lm)
    with closing(task):
        posed = [task.parse(problem)]
        return play_problems(
            posed, task, sampler, lm.chat, params, rollouts.attempts, refine=rollouts.self_refine
        )[0]  # fmt: skip


@public
def check(recipe: Recipe, *overrides: str, load: bool = False, observer: Observer | None = None) -> Config:
    """Validate a recipe; returns it with every setting. load: try data, model, template, memory and disk too.

    What is found is told to the observer. Raises UserError kinds.
    """
    config, watcher = read_config(recipe, *overrides), observer or PlainObserver()
    if isinstance(config, CompareConfig):
        for line in costs(config):
            watcher.message(line)
    if isinstance(config, TrainConfig):
        check_paths(config)
        for line in tried(config) if load else ():
            watcher.message(line)
    elif load:
        raise ConfigError(f"load=True tries recipes of kind train, and this one is of kind {config.kind}")
    return config


@public
def plan(
    recipe: Recipe, *overrides: str, gpu: str = "h100", gpus: int = 1, nodes: int = 1, price: float | None = None,
    serving: int | None = None, observer: Observer | None = None,
) -> Plan:  # fmt: skip
    """Predict what a recipe takes: `fits`, `hours`, `dollars`, `memory.peak` (bytes of a card) and more.

    gpu: a card of docs/plan.md, or cpu for this machine's; gpus: of one machine; nodes: machines; price: dollars for
    one card and hour; serving: further cards for the recipe's vllm.server, as few as hold it by default. The observer
    is told what `selfcorrect plan` prints. No weights are loaded. Raises UserErrors.
    """
    config, watcher = train_config(recipe, *overrides), observer or PlainObserver()
    lengths = assumed_lengths(config)
    made = make_plan(config, devices_for(config, gpu, gpus, nodes, price, serving), lengths)
    for line in (*page.lines(made), *page.turned(made, list(turns(made, lengths)))):
        watcher.message(line)
    return made


@public
def compare(recipe: Recipe, *overrides: str, observer: Observer | None = None) -> Path:
    """Run every method of a comparison on every seed under one budget; returns the folder of its page and table.

    A call that was stopped goes on. Raises UserError kinds.
    """
    config, watcher = read_config(recipe, *overrides), observer or PlainObserver()
    if not isinstance(config, CompareConfig):
        raise ConfigError(f"this recipe is of kind {config.kind}; a comparison has kind: compare")
    return run_comparison(config, watcher.message)


@public
def export(
    source: str | Path, target: str | Path, *, merge: bool = False, push: str | None = None,
    observer: Observer | None = None,
) -> Path:  # fmt: skip
    """Write the model of a run, or of a folder, for others, with a card of what it scored; returns the folder.

    merge: an adapter goes into its base's weights. push: OWNER/NAME on the hub, private. Raises UserError kinds.
    """
    return write_export(source, target, merge=merge, push=push, say=(observer or PlainObserver()).message)


@public
def traces(source: str | Path, target: str | Path, form: str = "messages", *, everything: bool = False) -> Converted:
    """Write what a run was fine-tuned on, or one of its files of traces, for other trainers; returns how many.

    form: messages (JSON Lines) or conversation (one JSON list). everything: what a run collected and did not train on,
    too. Raises UserError kinds.
    """
    if form not in FORMATS:
        raise ConfigError(f"form = {form!r} must be one of {', '.join(FORMATS)}")
    return convert(source, target, form, everything=everything)
