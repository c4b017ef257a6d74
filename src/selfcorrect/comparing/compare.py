"""A comparison from its file to its page: what is done already stays, the rest is run."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from selfcorrect.comparing.budget import Account
from selfcorrect.comparing.data import refuse_other_data
from selfcorrect.comparing.execute import (
    JobError,
    Launch,
    Runner,
    is_done,
    is_done_at,
    launch,
    refuse_changed,
)
from selfcorrect.comparing.pace import sampled_by
from selfcorrect.comparing.page import write_pages
from selfcorrect.comparing.plan import (
    BASE,
    Choice,
    Job,
    bases,
    check,
    chosen_methods,
    folder_of,
    in_folder,
    recipes,
    repair_jobs,
    repair_recipe,
    search_jobs,
    single_turn,
    table_jobs,
    way,
)
from selfcorrect.comparing.results import Answers, Result, read_answers, summarize
from selfcorrect.config import CompareConfig
from selfcorrect.errors import ConfigError, DataError
from selfcorrect.evaluation.kept import write_durably
from selfcorrect.evaluation.metrics import Estimate
from selfcorrect.runs.folder import environment, plain
from selfcorrect.runs.interrupts import alone, stoppable
from selfcorrect.waiting import cores

Say = Callable[[str], None]


def compare(config: CompareConfig, say: Say = print, launch: Launch = launch) -> Path:
    """Run all that is not done yet, then write the folder's page, table and numbers; returns the folder.

    Raises ConfigError for a file that contradicts itself or the budget. Where runs failed it writes the page from the
    others, which names them, and raises JobError; the same command tries them again. Raises TrainingInterrupted on
    Ctrl-C and SIGTERM, once the runs under way have ended their step.
    """
    config = chosen_methods(config)
    accounts = check(config)
    config = _with_threads(config)
    folder = folder_of(config)
    if (folder / "config.yaml").exists():
        raise ConfigError(f"{folder} holds a run or an evaluation; choose another name=... for the comparison")
    with stoppable() as stopped, alone(folder):
        stopped.told = lambda: "the same command goes on: finished runs stay, the others go on from their last step"
        _say_budget(config, accounts, say)
        runner = Runner(config.parallel, _say_whole(config, say), say, launch)
        refuse_changed(search_jobs(config)[1] or table_jobs(config, {})[1])  # settings first, as they say more
        _refuse_other_data(config)
        chosen, searched = _search(config, runner, say)
        shared, jobs = table_jobs(config, chosen)
        refuse_changed(jobs)
        say(f"table: {len(jobs)} runs of {len(config.methods)} methods, {len(shared)} shared first stages")
        failed = runner.run(shared) | runner.run([job for job in jobs if not job.shared or is_done_at(job.shared)])
        done = [job for job in jobs if is_done(job)]
        failed |= runner.run(repair_jobs(config, done))
        told: dict[str, Any] = {
            "environment": _environment(config, done), "seeds": list(config.seeds), "against": config.against,
            "budget": config.budget.model_dump(), "accounts": {name: asdict(cost) for name, cost in accounts.items()},
            "chosen": {name: asdict(choice) for name, choice in chosen.items()}, "search": searched,
            "failed": list(failed.values()),
        }  # fmt: skip
        results = _results(config, done, failed)
        text = json.dumps(plain({**told, "results": [asdict(result) for result in results]}), indent=1)
        write_durably(folder / "compare.json", text + "\n")
        write_pages(folder, config, told, results)
    if failed:
        raise JobError("\n".join([*failed.values(), f"{folder}/compare.html shows the others; run again to retry"]))
    return folder


def _refuse_other_data(config: CompareConfig) -> None:
    """Raises ConfigError where runs that are there were made with other data than is there now."""
    folder, made = folder_of(config), list(recipes(config).values())
    refuse_other_data(folder, made)
    if config.repair is not None:
        refuse_other_data(folder / "repair", [repair_recipe(config, made[0])])


def _environment(config: CompareConfig, done: Sequence[Job]) -> dict[str, Any]:
    """As of a run, with the threads, device and precision that the runs had: several where they differ."""
    found = environment(config.seeds[0])
    files = [job.path / "environment.json" for job in done]
    machines = [json.loads(file.read_text(encoding="utf-8"))["machine"] for file in files if file.is_file()]
    for name in ("threads", "device", "precision"):
        values = dict.fromkeys(machine[name] for machine in machines if machine.get(name) is not None)
        if values:
            found["machine"][name] = next(iter(values)) if len(values) == 1 else ", ".join(map(str, values))
    return found


def _with_threads(config: CompareConfig) -> CompareConfig:
    """Runs side by side share the cores."""
    if config.parallel == 1 or "threads" in config.common:
        return config
    each = max(1, cores() // config.parallel)
    return config.model_copy(update={"common": {**config.common, "threads": each}})


def _say_budget(config: CompareConfig, accounts: dict[str, Account], say: Say) -> None:
    say(f"budget of each run: {config.budget.completions:,} sampled completions, {config.budget.updates:,} updates")
    for name, cost in accounts.items():
        less = cost.completions < config.budget.completions or cost.updates < config.budget.updates
        say(
            f"  {name}: {cost.completions:,} completions, {cost.updates:,} updates" + (" (needs fewer)" if less else "")
        )


def _say_whole(config: CompareConfig, say: Say) -> int:
    """Tells all that is to come, search and table; returns the completions that are left to sample."""
    shared_trials, trials = search_jobs(config)
    shared_runs, runs = table_jobs(config, {})  # what the search chooses changes no run's cost
    parts = {
        "shared first stages of the search": shared_trials, "trials of the search": trials,
        "shared first stages": shared_runs, "runs": runs,
    }  # fmt: skip
    jobs = [job for found in parts.values() for job in found]
    left = [job for job in jobs if not (is_done_at(job.path) if job.trains else is_done(job))]
    completions = sum(map(sampled_by, left))
    listed = ", ".join(f"{len(found)} {what}" for what, found in parts.items() if found)
    if not left:
        say(f"in all: {listed}; all of them are done already")
        return 0
    say(
        f"in all: {listed}; {len(jobs) - len(left)} of them are done already, the others sample {completions:,} "
        f"completions, evaluations included, {config.parallel} at a time. How long that takes is told after a minute "
        "or two and at every run's end"
    )
    return completions


def _search(config: CompareConfig, runner: Runner, say: Say) -> tuple[dict[str, Choice], list[dict[str, Any]]]:
    """The best choice of every method, and what each trial came to; a trial that failed is no choice."""
    shared, trials = search_jobs(config)
    if trials:
        say(f"search: {len(trials)} trials, {len(shared)} shared first stages")
    open_to_choice = [trial for trial in trials if not _begun(config, trial.method)]
    wanted = {job.shared for job in open_to_choice}
    runner.run([job for job in shared if job.path in wanted])
    runner.run([job for job in open_to_choice if not job.shared or is_done_at(job.shared)])
    found: dict[str, list[tuple[Estimate, Choice]]] = {trial.method: [] for trial in trials}
    told = []
    for trial in trials:
        accuracy = _accuracy(trial) if is_done(trial) else None
        told.append(
            {"method": trial.method, **asdict(trial.choice), "accuracy": asdict(accuracy) if accuracy else None}
        )
        found[trial.method] += [(accuracy, trial.choice)] if accuracy else []
    best = dict[str, Choice]()
    for name, tried in found.items():
        if not tried:
            say(f"  {name}: every trial failed; its own settings are taken")
            continue
        highest = max(accuracy.value for accuracy, _ in tried)
        equal = [pair for pair in tried if pair[0].value == highest]
        accuracy, best[name] = equal[0]
        which = f", the first of {len(equal)} equal trials, which the search does not tell apart" if equal[1:] else ""
        interval = f"[{100 * accuracy.low:.1f}, {100 * accuracy.high:.1f}]"
        say(f"  {name}: {best[name]}{which} ({highest:.1%} {interval} in the search)")
    return best, told


def _begun(config: CompareConfig, method: str) -> bool:
    """Whether the table holds a run of the method: then its choice stands, and no failed trial is tried again."""
    return any((folder_of(config) / "runs" / f"{method}-{seed}").is_dir() for seed in config.seeds)


def _accuracy(trial: Job) -> Estimate:
    """Greedy accuracy of the last attempt after the trial's last stage, with its interval."""
    file = trial.path / "evaluations" / f"{trial.config.stages[-1].name}.json"
    return Estimate(**json.loads(file.read_text(encoding="utf-8"))["summary"]["accuracy"][-1])


def _results(config: CompareConfig, done: Sequence[Job], failed: Mapping[str, str]) -> list[Result]:
    """A line of the base model in each way that methods begin with it, and one of every method with a finished run.

    Raises JobError where too few have one.
    """
    paths = {job.name: job.path for job in done}
    answers, lines = dict[str, Answers](), bases(config)
    for each, name in lines.items():
        if base := _base_of([job for job in done if job.trains and way(job.config.model) == each]):
            answers[name] = base
    if not answers or not any(f"{config.against}-{seed}" in paths for seed in config.seeds):
        raise JobError("\n".join([*failed.values(), f"no run of {config.against} was finished, so there is no table"]))
    ids = next(iter(answers.values())).ids
    began: dict[str, str | None] = {name: name for name in answers}  # the base model's line that a line is held against
    for method, recipe in recipes(config).items():
        runs: dict[int | None, Path] = {
            seed: paths[name] for seed in config.seeds if (name := f"{method}-{seed}") in paths
        }
        if runs:
            answers[method] = read_answers(runs, ids=ids)
            began[method] = lines.get(way(recipe.model))
    against, single = answers[config.against], answers.get(single_turn(config) or "")

    def line(name: str) -> Result:
        base, repair = answers.get(began[name] or ""), _repairs(config, name, failed)
        result = summarize(name, answers[name], base, against, config.resamples, repair, single)
        return replace(result, base=began[name] if base else None)

    return [line(name) for name in answers]


def _base_of(jobs: Sequence[Job]) -> Answers | None:
    """Of runs that began with the same base model in the same way; None without any.

    Raises DataError where the model's folder held other weights for some of them.
    """
    if not jobs:
        return None
    held = {json.loads((job.path / "environment.json").read_text(encoding="utf-8"))["base_model"]: job for job in jobs}
    if len(held) > 1:
        runs = " and ".join(str(job.path) for job in held.values())
        raise DataError(
            f"model.path = {jobs[0].config.model.path!r} held other weights when some runs began than for others "
            f"({runs}), so they cannot be compared; choose another name for the comparison, or remove those of the old"
        )
    return read_answers({None: jobs[0].path}, BASE)


def _repairs(config: CompareConfig, name: str, failed: Mapping[str, str]) -> Answers | None:
    if config.repair is None:
        return None
    folder = folder_of(config) / "repair"
    is_base = name in bases(config).values()
    named = {None: in_folder(name)} if is_base else {seed: f"{name}-{seed}" for seed in config.seeds}
    found = {
        seed: folder / each
        for seed, each in named.items()
        if (folder / each / "evaluations").exists() and each not in failed
    }
    return read_answers(found) if found else None
