"""The public functions: the commands of the same names, callable."""

import json
from collections.abc import Callable, Mapping
from contextlib import closing
from importlib import resources
from pathlib import Path
from typing import Any

from selfcorrect.analysis import analyse
from selfcorrect.analysis.votes import Point, budgets_up_to, scale_figure, scaling
from selfcorrect.config import LAB_MODEL, CodeConfig, Config, LabBaseConfig, MathConfig, TrainConfig
from selfcorrect.config.paths import absolute
from selfcorrect.config.recipe import load_recipe, validate
from selfcorrect.errors import ConfigError, DataError, TrainingInterrupted
from selfcorrect.evaluation.evaluate import Evaluation, Evaluator, evaluated_problems, load_external
from selfcorrect.evaluation.metrics import Summary, summarize
from selfcorrect.models.loading import LanguageModel, load_model, use_threads
from selfcorrect.models.weights import fingerprint
from selfcorrect.report import write_report
from selfcorrect.rollout import play as play_problems
from selfcorrect.runs.checks import check_context
from selfcorrect.runs.display import Observer
from selfcorrect.runs.folder import keep_evaluation
from selfcorrect.runs.run import resume, start
from selfcorrect.samplers.recorded import TextChat
from selfcorrect.samplers.transformers import TransformersSampler
from selfcorrect.seeds import derive_seed
from selfcorrect.tasks import Split, make_task
from selfcorrect.tasks.base import Task, fixed_share
from selfcorrect.tasks.dataset import DataTask
from selfcorrect.tasks.files import stem_of
from selfcorrect.tasks.repair import repair_rows
from selfcorrect.types import Rollout, SamplingParams

__all__ = ["analyse", "evaluate", "grade", "make_repair_set", "play", "read_config", "scale", "train", "write_report"]

Recipe = str | Path | Mapping[str, Any] | Config


def train(recipe: Recipe, *overrides: str, observer: Observer | None = None, resume_run: bool = False) -> Path:
    """Run a recipe (a YAML file, a mapping of the same shape, or a config); returns the run's folder.

    overrides: `key=value` as on the command line. resume_run: `recipe` is a run folder to go on with, as it was
    begun. Raises UserError kinds (selfcorrect.errors) for everything the caller can mend.
    """
    watcher = observer or Observer()
    if resume_run:
        if overrides:
            raise ConfigError(f"a run goes on with the settings it was begun with; {overrides[0]!r} cannot be applied")
        return resume(Path(str(recipe)), watcher)
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
) -> Evaluation:
    """Greedy two-attempt evaluation with intervals of a model folder, hub name or "lab", or of a recipe's model.

    recipe: where task, prompts, limits and number of problems come from; by default the recipe of the run that
    `model` lies in, that of the lab for the lab's models, and recipes/countdown.yaml for every other. output: a folder
    for the evaluation's files and report.html; a recipe in place of the model writes to its own output/name. With
    sampler=recorded no model is loaded: the recorded attempts are evaluated.
    """
    named = _is_recipe(model)
    config = _train_config(model if named else recipe if recipe is not None else _recipe_beside(model), *overrides)
    path = config.model.path if named else str(model)
    target = Path(output) if output is not None else evaluation_folder(model, *overrides)
    if target is not None and (target / "config.yaml").exists():  # before the work, not after it
        raise ConfigError(f"{target} already holds a run; choose another name=..., or another output")
    say = (observer or Observer()).message
    task = make_task(config.task)
    with closing(task):
        how = _evaluate_recorded if config.sampler == "recorded" else _evaluate_model
        named_model = config.model.model_copy(update={"path": path})
        evaluation, notes = how(config.model_copy(update={"model": named_model}), task, say)
    if target is not None:
        keep_evaluation(target, absolute(config), evaluation, notes)
        write_report(target)
    return evaluation


def _is_recipe(model: str | Path) -> bool:
    return str(model).endswith((".yaml", ".yml"))


def evaluation_folder(model: str | Path, *overrides: str) -> Path | None:
    """Where `evaluate` keeps the evaluation of a recipe's model; None for a model that was named itself."""
    if not _is_recipe(model):
        return None
    config = _train_config(model, *overrides)
    return Path(config.output) / config.name


def _evaluate_model(config: TrainConfig, task: Task, say: Callable[[str], None]) -> tuple[Evaluation, list[str]]:
    """Greedy rollouts of the recipe's model; and what was told about task and model."""
    evaluation = config.evaluation
    evaluator = Evaluator(
        task=task, problems=evaluated_problems(config, task), attempts=config.rollouts.attempts,
        max_new_tokens=config.rollouts.max_new_tokens, seed=config.seed, controls=evaluation.controls,
        external=load_external(task, evaluation.external), refine=config.rollouts.self_refine, split=evaluation.split,
    )  # fmt: skip
    use_threads(config.threads)
    lm = load_model(config.model)
    check_context(config, lm, task, task.longest())
    sampler = TransformersSampler(lm, max_rows=config.rollouts.rows_at_once)
    task.grade([])
    notes = _tell([*task.notes, *lm.chat.notes], say)
    return evaluator.run(Path(config.model.path).name, 0, sampler, lm.chat), notes


def _evaluate_recorded(config: TrainConfig, task: Task, say: Callable[[str], None]) -> tuple[Evaluation, list[str]]:
    """The recorded attempts, through the same rollouts, graders and metrics as a model's."""
    from selfcorrect.evaluation.recorded import replay

    chat = TextChat()
    problems, sampler, recorded = replay(str(config.recorded), task, chat, config.rollouts.attempts)
    task.grade([])
    notes = _tell([*task.notes, *recorded], say)
    evaluator = Evaluator(
        task=task, problems=problems, attempts=config.rollouts.attempts,
        max_new_tokens=config.rollouts.max_new_tokens, seed=config.seed, controls=False, decoding="recorded",
    )  # fmt: skip
    return evaluator.run("recorded", 0, sampler, chat), notes


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

    task: math or code; overrides: settings of it, like task.dataset=humaneval. output: by default beside the
    recordings, with .graded.jsonl in the name; what it holds already is not graded again. progress(done, all) is
    called with numbers of attempts.
    """
    from selfcorrect.evaluation.recorded import grade_recorded, read_recorded

    # A recipe's stages do not matter here.
    stage = {"name": "none", "objective": "single_turn", "steps": 1, "learning_rate": 1.0}
    config = validate({"task": {"name": task}, "stages": [stage]}, "grade", overrides=overrides)
    assert isinstance(config, TrainConfig)
    rows = read_recorded(recorded)
    target = Path(output) if output is not None else _verdicts_beside(Path(recorded))
    done, total = 0, sum(len(row.texts) for row in rows)

    def told(count: int) -> None:
        nonlocal done
        done += count
        if progress:
            progress(done, total)

    judge = make_task(config.task)
    with closing(judge):
        rollouts = grade_recorded(rows, judge, target, told)
        _tell(list(judge.notes), (observer or Observer()).message)
    return summarize(rollouts), target


def _verdicts_beside(recorded: Path) -> Path:
    return recorded.with_name(f"{stem_of(recorded.name)}.graded.jsonl")


def play(
    problem: str, model: str | Path = "lab", recipe: Recipe | None = None, *, temperature: float = 0.0, seed: int = 0
) -> Rollout:
    """One problem, all attempts. problem: "30 7 2 = 39" or an id like "countdown-30-7-2-to-39"."""
    config = _train_config(recipe if recipe is not None else _recipe_beside(model))
    lm: LanguageModel = load_model(config.model.model_copy(update={"path": str(model)}))
    task = make_task(config.task)
    params = SamplingParams(temperature, config.rollouts.max_new_tokens, derive_seed(seed, "play"))
    sampler = TransformersSampler(lm)
    with closing(task):
        return play_problems([task.parse(problem)], task, sampler, lm.chat, params, config.rollouts.attempts)[0]


def make_repair_set(
    model: str | Path,
    output: str | Path,
    *overrides: str,
    recipe: Recipe,
    split: Split = "train",
    problems: int | None = None,
    temperature: float = 1.0,
    observer: Observer | None = None,
) -> int:
    """Let a model try a task once, and write its failing attempts to `output` as a repair set; returns how many.

    recipe: one whose task is math or code. split: train, or test for the held-out problems; problems: how many of
    them, by default all. Rows are {"task_id", "split", "first_attempt", "failure", "model"}, one a line.
    """
    config = _train_config(recipe, *overrides)
    say, file = (observer or Observer()).message, Path(output).expanduser()
    if file.exists():
        raise ConfigError(f"output = {str(output)!r} is there already; remove it, or choose another")
    if not isinstance(config.task, MathConfig | CodeConfig):
        raise ConfigError(f"task.name is {config.task.name}; a repair set is made from math or code")
    task = make_task(config.task)
    assert isinstance(task, DataTask)
    listed = list(task.train) if split == "train" else task.test
    listed = listed if problems is None else fixed_share(listed, problems)
    lm = load_model(config.model.model_copy(update={"path": str(model)}))
    sampler = TransformersSampler(lm, max_rows=config.rollouts.rows_at_once)
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{file.name}.partial")
    tried = kept = 0
    with closing(task), partial.open("w", encoding="utf-8") as out:
        try:
            for tried in range(0, len(listed), config.rollouts.rows_at_once):
                draws = derive_seed(config.seed, "repair set", tried)
                params = SamplingParams(temperature, config.rollouts.max_new_tokens, draws)
                chunk = listed[tried : tried + config.rollouts.rows_at_once]
                rows = repair_rows(play_problems(chunk, task, sampler, lm.chat, params, 1), split, str(model))
                out.writelines(json.dumps(row) + "\n" for row in rows)
                out.flush()
                kept += len(rows)
                say(f"{tried + len(chunk)} of {len(listed)} problems tried, {kept} failed attempts")
        except KeyboardInterrupt:
            if kept:
                partial.replace(file)
            told = f"the {kept} failed attempts so far are in {file}" if kept else "nothing was written yet"
            raise TrainingInterrupted(f"stopped after {tried} of {len(listed)} problems; {told}") from None
    if not kept:
        partial.unlink()
        raise DataError(
            f"{model} failed at none of {len(listed)} problems, or ended none of its attempts: no set to write"
        )
    partial.replace(file)
    return kept


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
    from selfcorrect.analysis.scaling import sample_pools

    if most < 2 or most & (most - 1):
        raise ConfigError(f"most = {most} must be a power of two, 2 or more")
    config = _train_config(recipe if recipe is not None else _recipe_beside(model), *overrides)
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    say = (observer or Observer()).message
    task = make_task(config.task)
    lm = load_model(config.model.model_copy(update={"path": str(model)}))
    about = folder / "samples.json"
    told = {
        "model": fingerprint(lm), "task": config.task.model_dump(mode="json"), "seed": config.seed, "most": most,
        "temperature": temperature, "max_new_tokens": config.rollouts.max_new_tokens,
    }  # fmt: skip
    if about.exists() and json.loads(about.read_text(encoding="utf-8")) != told:
        raise ConfigError(f"{folder}: holds samples made with other settings ({about}); choose another output")
    about.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    params = SamplingParams(temperature, config.rollouts.max_new_tokens, config.seed)
    with closing(task):
        pools = sample_pools(
            task, task.held_out(problems), TransformersSampler(lm, max_rows=config.rollouts.rows_at_once), lm.chat,
            params, most, folder / "samples.jsonl", config.rollouts.rows_at_once, say,
        )  # fmt: skip
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


def _recipe_beside(model: str | Path) -> Recipe:
    """The recipe of the run that a model folder lies in; else the lab's for the lab's models; else countdown.yaml."""
    folder = Path(str(model)).expanduser()
    if str(model) == LAB_MODEL:
        return lab_recipe()
    if folder.is_dir():
        for run in list(folder.absolute().parents)[:2]:  # runs/NAME/final, runs/NAME/models/STAGE
            if (run / "config.yaml").is_file() and (run / "environment.json").is_file():
                return run / "config.yaml"
        if (folder / "recipe.json").is_file():  # written by lab/base.py
            return lab_recipe()
    return shipped_recipe("countdown")


def lab_recipe() -> Path:
    """The recipe of the demo."""
    return shipped_recipe("demo")


def shipped_recipe(name: str) -> Path:
    """A recipe as shipped in the package (recipes/ at the root of the repository leads there)."""
    return Path(str(resources.files("selfcorrect") / "recipes" / f"{name}.yaml"))
