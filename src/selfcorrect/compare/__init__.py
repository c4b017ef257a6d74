"""`selfcorrect compare` (floor 9): many methods and seeds under one budget, one table.

file -> plan (runs, what they share, budget) -> search -> runs -> answers -> page, Markdown, CSV
"""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from selfcorrect.compare.budget import Account
from selfcorrect.compare.execute import Launch, Runner, launch, threads_each
from selfcorrect.compare.plan import Choice, Trial, check, folder_of, repair_jobs, search_jobs, table_jobs
from selfcorrect.compare.results import Answers, Result, read_answers, summarize
from selfcorrect.config import CompareConfig
from selfcorrect.errors import ConfigError
from selfcorrect.run import alone
from selfcorrect.runlog import environment

__all__ = ["compare"]

Say = Callable[[str], None]
BASE = "base"


def compare(config: CompareConfig, say: Say = print, launch: Launch = launch) -> Path:
    """Run all that is not done yet, then write the folder's page, table and numbers; returns the folder.

    Raises ConfigError for a file that contradicts itself or the budget, JobError where a run failed.
    """
    accounts = check(config)
    config = _with_threads(config)
    folder = folder_of(config)
    with alone(folder):
        _say_budget(config, accounts, say)
        runner = Runner(config.parallel, say, launch)
        chosen, searched = _search(config, runner, say)
        shared, jobs = table_jobs(config, chosen)
        say(f"table: {len(jobs)} runs of {len(config.methods)} methods, {len(shared)} shared first stages")
        runner.run(shared)
        runner.run(jobs)
        runner.run(repair_jobs(config, jobs))
        results = _results(config)
        told: dict[str, Any] = {
            "environment": environment(config.seeds[0]), "seeds": list(config.seeds), "against": config.against,
            "budget": config.budget.model_dump(), "accounts": {name: asdict(cost) for name, cost in accounts.items()},
            "chosen": {name: asdict(choice) for name, choice in chosen.items()}, "search": searched,
            "results": [asdict(result) for result in results],
        }  # fmt: skip
        (folder / "compare.json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
        from selfcorrect.compare.page import write_pages

        write_pages(folder, config, told, results)
    return folder


def _with_threads(config: CompareConfig) -> CompareConfig:
    """Runs side by side share the cores."""
    if config.parallel == 1 or "threads" in config.common:
        return config
    return config.model_copy(update={"common": {**config.common, "threads": threads_each(config.parallel)}})


def _say_budget(config: CompareConfig, accounts: dict[str, Account], say: Say) -> None:
    say(f"budget of each run: {config.budget.completions:,} sampled completions, {config.budget.updates:,} updates")
    for name, cost in accounts.items():
        less = cost.completions < config.budget.completions or cost.updates < config.budget.updates
        say(
            f"  {name}: {cost.completions:,} completions, {cost.updates:,} updates" + (" (needs fewer)" if less else "")
        )


def _search(config: CompareConfig, runner: Runner, say: Say) -> tuple[dict[str, Choice], list[dict[str, Any]]]:
    """The best choice of every method, and what each trial came to."""
    shared, trials = search_jobs(config)
    if trials:
        say(f"search: {len(trials)} trials, {len(shared)} shared first stages")
    runner.run(shared)
    runner.run([trial.job for trial in trials])
    best: dict[str, tuple[float, Trial]] = {}
    told = []
    for trial in trials:
        accuracy = _accuracy(trial)
        told.append({"method": trial.method, **asdict(trial.choice), "accuracy": accuracy})
        if trial.method not in best or accuracy > best[trial.method][0]:
            best[trial.method] = (accuracy, trial)
    for name, (accuracy, trial) in best.items():
        say(f"  {name}: {trial.choice} ({accuracy:.1%} in the search)")
    return {name: trial.choice for name, (_, trial) in best.items()}, told


def _accuracy(trial: Trial) -> float:
    """Greedy accuracy of the last attempt after the trial's last stage."""
    file = trial.job.path / "evaluations" / f"{trial.job.config.stages[-1].name}.json"
    return float(json.loads(file.read_text(encoding="utf-8"))["summary"]["accuracy"][-1]["value"])


def _results(config: CompareConfig) -> list[Result]:
    """The base model's line, and one of every method."""
    runs = folder_of(config) / "runs"
    trained = next((method.name for method in config.methods if method.settings.get("stages")), None)
    if trained is None:
        raise ConfigError("methods: none of them trains; `selfcorrect evaluate` is for that")
    answers: dict[str, Answers] = {BASE: read_answers([runs / f"{trained}-{seed}" for seed in config.seeds[:1]], BASE)}
    for method in config.methods:
        answers[method.name] = read_answers([runs / f"{method.name}-{seed}" for seed in config.seeds])
    repairs = {name: _repairs(config, name) for name in answers}
    against = answers[config.against]
    return [summarize(name, found, against, config.resamples, repairs[name]) for name, found in answers.items()]


def _repairs(config: CompareConfig, name: str) -> Answers | None:
    if config.repair is None:
        return None
    names = [BASE] if name == BASE else [f"{name}-{seed}" for seed in config.seeds]
    return read_answers([folder_of(config) / "repair" / each for each in names])
