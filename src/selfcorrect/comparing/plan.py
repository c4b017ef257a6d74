"""A comparison file -> the runs it needs: which they are, what they share, what they cost."""

import copy
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from operator import attrgetter
from pathlib import Path
from typing import Any

from selfcorrect.comparing.budget import Account, account
from selfcorrect.config import (
    CompareConfig,
    EvaluationConfig,
    ModelConfig,
    RepairConfig,
    RLStage,
    SearchConfig,
    SingleTurn,
    SupervisedStage,
    TrainConfig,
)
from selfcorrect.config.paths import check_paths
from selfcorrect.config.recipe import validate
from selfcorrect.errors import ConfigError
from selfcorrect.models.files import ADAPTER
from selfcorrect.report.paper import PAPER

BASE = "base"  # the base model's line of the table
_TUNED = ("tuning", "lora", "weights", "precision", "reference")  # of model: what leaves the base model the same one


@dataclass(frozen=True, slots=True)
class Choice:
    """Settings that the search tries: a factor on every stage's learning rate, and beta1 of its RL stages."""

    learning_rate: float = 1.0
    beta1: float | None = None

    def __str__(self) -> str:
        return f"learning rate x {self.learning_rate:g}" + ("" if self.beta1 is None else f", beta1 {self.beta1:g}")


@dataclass(frozen=True, slots=True)
class Job:
    """One run. shared: a run whose first stage this one goes on from; after: a run whose traces it may use;
    base: one whose evaluation of the base model is the same. method: whose run it is; empty for one that is shared.
    choice: what a trial of the search tries.
    """

    name: str
    config: TrainConfig
    path: Path
    shared: Path | None = None
    after: Path | None = None
    base: Path | None = None
    method: str = ""
    choice: Choice = Choice()

    @property
    def trains(self) -> bool:
        return bool(self.config.stages)


def folder_of(config: CompareConfig) -> Path:
    return Path(config.output) / config.name


def recipes(config: CompareConfig, **settings: Any) -> dict[str, TrainConfig]:
    """Every method's validated recipe, by its name. Raises ConfigError that names the method."""
    found = dict[str, TrainConfig]()
    for method in config.methods:
        made = validate(merge(merge(config.common, method.settings), settings), f"method {method.name}")
        assert isinstance(made, TrainConfig)
        found[method.name] = made
    return found


def merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Mappings laid over each other, key by key; everything else replaces."""
    result = copy.deepcopy(dict(below))
    for key, value in above.items():
        both = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
        result[key] = merge(result[key], value) if both else copy.deepcopy(value)
    return result


def chosen_methods(config: CompareConfig) -> CompareConfig:
    """The comparison with the methods of `only` alone."""
    if config.only is None:
        return config
    wanted = tuple(method for method in config.methods if method.name in config.only)
    return config.model_copy(update={"methods": wanted, "only": None})


def single_turn(config: CompareConfig) -> str | None:
    """The first method that trains single attempts by RL and nothing else; None where there is none."""
    for name, recipe in recipes(config).items():
        if recipe.stages and all(isinstance(stage, SingleTurn) for stage in recipe.stages):
            return name
    return None


def paper_table(config: CompareConfig) -> tuple[str, bool] | None:
    """Which of the paper's tables stands beneath ours, and whether it is of the same task; None where none does."""
    task = next(iter(recipes(config).values())).task
    task = task.of if isinstance(task, RepairConfig) else task
    own = getattr(task, "evaluate_on", None) or getattr(task, "dataset", None)
    name = config.paper or (own if own in PAPER else None)
    return (name, name == own) if name else None


def _check_rows(config: CompareConfig) -> None:
    """Raises ConfigError where a method names a row that no table of the paper has; one may lack what another has."""
    rows = dict.fromkeys(row for table in PAPER.values() for row in table)
    for method in config.methods:
        if method.paper is not None and method.paper not in rows:
            raise ConfigError(
                f"method {method.name}: paper = {method.paper!r} is no row of the paper's tables; they have "
                f"{', '.join(rows)}"
            )


def costs(config: CompareConfig) -> list[str]:
    """What each chosen method takes, in words. Raises ConfigError as `check` does."""
    accounts = check(chosen_methods(config))
    return [f"{name}: {of.completions:,} sampled completions, {of.updates:,} updates" for name, of in accounts.items()]


def check(config: CompareConfig) -> dict[str, Account]:
    """Every method's account. Raises ConfigError where a method's settings are wrong, or over the budget.

    All methods must answer the same problems, one at least must train, and files that are named must be there. What
    the runs would find out one by one, and the repair task after all of them, is told before the first.
    """
    accounts, found = {}, recipes(config)
    other, first = next(iter(found.items()))
    if not any(recipe.stages for recipe in found.values()):
        raise ConfigError("methods: none of them trains; `selfcorrect evaluate` is for that")
    _check_rows(config)
    for name, recipe in found.items():
        check_paths(recipe, f"method {name}: ")
        if config.repair is not None:
            check_paths(repair_recipe(config, recipe), task="repair")
        for field in ("task", "evaluation", "rollouts.max_new_tokens"):
            if attrgetter(field)(recipe) != attrgetter(field)(first):
                raise ConfigError(
                    f"method {name}: settings.{field} differs from {other}'s, but all must answer the same problems; "
                    "set it under common"
                )
        _check_base(name, recipe.model, other, first.model)
        cost = accounts[name] = account(recipe)
        over = [
            f"{used:,} {what} of {allowed:,}"
            for what, used, allowed in (
                ("sampled completions", cost.completions, config.budget.completions),
                ("updates", cost.updates, config.budget.updates),
            )
            if used > allowed
        ]
        if over:
            raise ConfigError(
                f"method {name} is over the budget: {' and '.join(over)}; lower its steps, its rollouts or what "
                "it collects, or raise budget for all"
            )
    return accounts


def _check_base(name: str, mine: ModelConfig, other: str, theirs: ModelConfig) -> None:
    """Raises ConfigError where two methods begin with different models, or ask the same one differently."""
    for field in ModelConfig.model_fields:
        here, there = (_place(model.path) if field == "path" else getattr(model, field) for model in (mine, theirs))
        if field not in _TUNED and here != there:
            what = "is another base model than" if field == "path" else "differs from"
            raise ConfigError(
                f"method {name}: settings.model.{field} = {getattr(mine, field)!r} {what} {other}'s, which is "
                f"{getattr(theirs, field)!r}; all must begin with the same model, and differ at most in how it is "
                f"tuned and stored ({', '.join(f'model.{each}' for each in _TUNED)}); set it under common"
            )


def _place(path: str) -> str:
    """A folder by its whole path, however it is written; a hub name as it is."""
    folder = Path(path)
    return str(folder.resolve()) if folder.is_dir() else path


def way(model: ModelConfig) -> str:
    """How the base model computes beneath a method, in words: full tuning and LoRA begin with the same numbers."""
    told = ("4 bits, the rest " if model.tuning == "qlora" else "") + model.weights
    if model.weights == "float32" and model.precision != "auto":
        told += f", computed in {model.precision}"
    merged = model.tuning == "full" and (Path(model.path) / ADAPTER).is_file()
    return told + (", adapter merged" if merged else "")


def bases(config: CompareConfig) -> dict[str, str]:
    """Every way in which methods that train begin with the base model -> the name of its line in the table."""
    ways = list(dict.fromkeys(way(recipe.model) for recipe in recipes(config).values() if recipe.stages))
    return {each: f"{BASE} in {each}" if number else BASE for number, each in enumerate(ways)}


def choices(search: SearchConfig, recipe: TrainConfig) -> list[Choice]:
    """What the search tries for a method: nothing where it is not trained, no beta1 where it has none."""
    if not recipe.stages:
        return []
    uses_beta1 = any(isinstance(stage, RLStage) for stage in recipe.stages)
    betas: Sequence[float | None] = search.beta1 if uses_beta1 else [None]
    return [Choice(rate, beta1) for rate in search.learning_rate for beta1 in betas]


def search_jobs(config: CompareConfig) -> tuple[list[Job], list[Job]]:
    """The runs that trials share, and the trials of every method."""
    search, folder = config.search, folder_of(config) / "search"
    if search is None:
        return [], []
    jobs: list[Job] = []
    for method, recipe in recipes(config, seed=search.seed, output=str(folder)).items():
        between = recipe.evaluation.problems_between
        judged = EvaluationConfig(problems=search.problems, split="train", problems_between=between)
        for number, choice in enumerate(choices(search, recipe), 1):
            name = f"{method}-{number}"
            made = _shortened(_chosen(recipe, choice), search.share)
            made = made.model_copy(update={"name": name, "evaluation": judged})
            jobs.append(Job(name, made, folder / name, method=method, choice=choice))
    return _sharing(jobs, folder / "shared")


def table_jobs(config: CompareConfig, chosen: Mapping[str, Choice]) -> tuple[list[Job], list[Job]]:
    """The runs that others share, and the runs of the table, seed by seed: an unfinished one then has whole seeds."""
    folder = folder_of(config)
    jobs: list[Job] = []
    for seed in config.seeds:
        for method, recipe in recipes(config, seed=seed, output=str(folder / "runs")).items():
            name, made = f"{method}-{seed}", _chosen(recipe, chosen.get(method, Choice()))
            jobs.append(Job(name, made.model_copy(update={"name": name}), folder / "runs" / name, method=method))
    return _sharing(jobs, folder / "shared")


def repair_jobs(config: CompareConfig, jobs: Sequence[Job]) -> list[Job]:
    """Evaluations on the repair task, of the base model and of every run's last one."""
    folder, found = folder_of(config) / "repair", list[Job]()
    if config.repair is None:
        return []
    for each, line in bases(config).items():
        if trained := next((job for job in jobs if job.trains and way(job.config.model) == each), None):
            found.append(_on_repair(config, trained.config, in_folder(line), folder, None))
    for job in jobs if found else ():
        found.append(_on_repair(config, job.config, job.name, folder, job.path / "final" if job.trains else None))
    return found


def in_folder(line: str) -> str:
    """The name of a base model's line as that of a run."""
    return "".join(letter if letter.isalnum() else "-" for letter in line)


def repair_recipe(config: CompareConfig, recipe: TrainConfig) -> TrainConfig:
    """An evaluation of a recipe's model on the repair task. Raises ConfigError where that is none."""
    return _on_repair(config, recipe, recipe.name, folder_of(config) / "repair", None).config


def _on_repair(config: CompareConfig, recipe: TrainConfig, name: str, folder: Path, model: Path | None) -> Job:
    told = recipe.model_dump(mode="json") | {"task": config.repair, "stages": [], "name": name, "output": str(folder)}
    told["evaluation"] |= {"offset": 0, "external": [], "correction_prompts": {}}  # those are the other task's
    if model:
        told["model"]["path"] = str(model)
    try:
        made = validate(told, "the comparison")
    except ConfigError as error:  # by the name that the section has there
        raise ConfigError(re.sub(r"\btask\.", "repair.", str(error))) from None
    assert isinstance(made, TrainConfig)
    return Job(name, made, folder / name)


def _chosen(recipe: TrainConfig, choice: Choice) -> TrainConfig:
    stages = []
    for stage in recipe.stages:
        changed: dict[str, Any] = {"learning_rate": stage.learning_rate * choice.learning_rate}
        if isinstance(stage, RLStage) and choice.beta1 is not None:
            changed["beta1"] = choice.beta1
        stages.append(stage.model_copy(update=changed))
    return recipe.model_copy(update={"stages": tuple(stages)})


def _shortened(recipe: TrainConfig, share: float) -> TrainConfig:
    """The same with fewer steps, and traces to match; STaR's still a multiple of its iterations."""
    stages = []
    for stage in recipe.stages:
        unit = getattr(stage, "iterations", 1)
        changed: dict[str, Any] = {"steps": max(1, round(stage.steps * share / unit)) * unit}
        if isinstance(stage, SupervisedStage):
            changed["collect"] = max(1, round(stage.collect * share))
        stages.append(stage.model_copy(update=changed))
    warmup = round(recipe.optimizer.warmup_steps * share)
    optimizer = recipe.optimizer.model_copy(update={"warmup_steps": warmup})
    return recipe.model_copy(update={"stages": tuple(stages), "optimizer": optimizer})


def _sharing(jobs: Sequence[Job], folder: Path) -> tuple[list[Job], list[Job]]:
    """Runs of a first stage that several jobs have, and the jobs, each knowing what it may take over."""
    by_first: dict[str, list[int]] = {}
    for index, job in enumerate(jobs):
        if job.trains:
            by_first.setdefault(_first_stage_key(job.config), []).append(index)
    shared, known = [], list(jobs)
    for key, places in by_first.items():
        first = known[places[0]].config
        stage = first.stages[0]
        if isinstance(stage, SupervisedStage):
            for earlier, place in pairwise(places):
                known[place] = replace(known[place], after=known[earlier].path)
        elif len(places) > 1:
            path = folder / f"{stage.name}-{first.seed}-{key[:6]}"
            alone = first.model_copy(update={"name": path.name, "output": str(folder), "stages": (stage,)})
            shared.append(Job(path.name, alone, path))
            for place in places:
                known[place] = replace(known[place], shared=path)
    return _sharing_base(shared, {}), _sharing_base(known, {_base_key(job.config): job.path for job in shared})


def _sharing_base(jobs: Sequence[Job], first: dict[str, Path]) -> list[Job]:
    """The jobs, each knowing the earliest run that evaluates the same base model on the same problems."""
    known = []
    for job in jobs:
        key = _base_key(job.config)
        known.append(replace(job, base=first[key]) if key in first else job)
        if job.trains:
            first.setdefault(key, job.path)
    return known


def _base_key(config: TrainConfig) -> str:
    told = config.model_dump(mode="json")
    draws = {key: told["rollouts"][key] for key in ("attempts", "max_new_tokens", "self_refine")}
    model = {key: value for key, value in told["model"].items() if key not in _TUNED}
    same = [draws, model, way(config.model), *(told[key] for key in ("seed", "task", "evaluation"))]
    return json.dumps(same, sort_keys=True)


def _first_stage_key(config: TrainConfig) -> str:
    """A digest of all that the first stage depends on; of a supervised one, all that its first traces do."""
    told = config.model_dump(mode="json")
    stage = told.pop("stages")[0]
    if isinstance(config.stages[0], SupervisedStage):
        stage = {key: stage[key] for key in ("objective", "collect", "traces")}
    for key in ("name", "output"):
        del told[key]
    return hashlib.sha256(json.dumps([told, stage], sort_keys=True).encode()).hexdigest()
