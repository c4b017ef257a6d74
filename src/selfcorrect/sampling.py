"""The public functions that sample for long and keep every finished problem: `make_repair_set` and `scale`."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from selfcorrect.analysis.scaling import check_votes, cost_of, sample_pools
from selfcorrect.analysis.votes import Point, budgets_up_to, scale_figure, scaling
from selfcorrect.config import CodeConfig, MathConfig, TrainConfig
from selfcorrect.config.paths import at_home, run_above
from selfcorrect.errors import ConfigError, DataError
from selfcorrect.evaluation.counted import Counted, Played, in_chunks
from selfcorrect.evaluation.kept import Kept, json_line, write_durably
from selfcorrect.evaluation.metrics import is_graded, refuse_nothing_graded
from selfcorrect.models.files import model_of
from selfcorrect.rollout import play
from selfcorrect.runs.called import public
from selfcorrect.runs.checks import fewer, fitted
from selfcorrect.runs.display import Observer, PlainObserver
from selfcorrect.runs.evaluating import SIDE, about, loaded, rows_begun, rows_of, sampling_settings
from selfcorrect.runs.interrupts import stoppable
from selfcorrect.runs.recipes import Recipe, config_for, train_config
from selfcorrect.samplers.base import Sampler
from selfcorrect.samplers.choose import make_sampler
from selfcorrect.seeds import derive_seed
from selfcorrect.tasks import Split, make_task
from selfcorrect.tasks.base import Task, fixed_share
from selfcorrect.tasks.dataset import DataTask
from selfcorrect.tasks.repair import repair_rows
from selfcorrect.types import Problem, Rollout, SamplingParams


@public
def make_repair_set(
    model: str | Path, output: str | Path, *overrides: str, recipe: Recipe, split: Split = "train",
    problems: int | None = None, temperature: float = 1.0, observer: Observer | None = None,
) -> int:  # fmt: skip
    """Let a model try a task once, and write its failing attempts to `output` as a repair set; returns how many.

    recipe: one whose task is math or code. split: train, or test for the held-out problems; problems: how many of
    them, by default all. Rows are {"task_id", "split", "first_attempt", "failure", "model"}, one a line.
    """
    config, file = train_config(recipe, *overrides), at_home(output, "output")
    watcher = observer or PlainObserver()
    if file.exists():
        raise ConfigError(f"output = {str(output)!r} is there already; remove it, or choose another")
    task, listed = _listed(config, split, problems)
    if problems and len(listed) < problems:
        watcher.message(f"note: {fewer('problems', problems, len(listed))}")
    lm = loaded(config, model_of(model))
    tried = file.with_name(f".{file.name}.tried.jsonl")
    chunk = rows_begun(config, tried, SIDE, rows_of(fitted(config, lm, task, trains=False)[0], lm, attempts=1))
    what = f"{about(config.task, split)}, split {split}"
    made_with = sampling_settings(config, lm, task, listed, temperature)
    made_with |= {"split": split, "model's name": str(model), SIDE: chunk}
    way_out = f"give the command those settings, or remove {tried} and the .json beside it to begin anew"
    to_come = f"{len(listed):,} problems of {what}, once each, by {model}"
    with (
        closing(task), Kept(tried, made_with, lambda line: line["id"], way_out) as kept,
        _counted(kept, tried, what, to_come, len(listed), len(listed), watcher) as counting,
    ):  # fmt: skip
        counted, rows, ungraded = counting(make_sampler(config, lm, chunk)), list[dict[str, Any]](), list[Rollout]()

        def once(part: Sequence[Problem], start: int) -> Played:
            seed = derive_seed(config.seed, "repair set", start)
            params = SamplingParams(temperature, config.rollouts.max_new_tokens, seed)
            played = play(part, task, counted, lm.chat, params, 1)
            return [{"id": r.problem.id, "rows": repair_rows([r], split, str(model))} for r in played], played

        for lines, played in in_chunks(listed, chunk, 1, kept, counted, once):
            ungraded += [rollout for rollout in played if not is_graded(rollout)]
            rows += [row for line in lines for row in line["rows"]]
        _tell_ungraded(ungraded, len(listed), watcher)
        if rows:
            write_durably(file, "".join(json_line(row) + "\n" for row in rows))
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


@public
def scale(
    model: str | Path,
    *overrides: str,
    output: str | Path | None = None,
    recipe: Recipe | None = None,
    most: int = 64,
    problems: int = 200,
    temperature: float = 0.7,
    observer: Observer | None = None,
) -> list[Point]:
    """Inference-compute scaling of a model (Fig. 1 right): majority votes at budgets 2, 4, ... up to `most` solutions.

    output: a folder for the samples, the drawing and its numbers, by default `scaling_folder`; samples that are there
    already are used again.
    """
    if most < 2 or most & (most - 1):
        raise ConfigError(f"most = {most} must be a power of two, 2 or more")
    config = config_for(model, recipe, overrides, "sample")
    folder, watcher = scaling_folder(model, output), observer or PlainObserver()
    task = make_task(config.task, watcher.message)
    check_votes(config, task)
    listed = task.held_out(problems)
    lm = loaded(config, model_of(model))
    settled, file = fitted(config, lm, task, trains=False)[0], folder / "samples.jsonl"
    chunk = rows_begun(config, file, "problems at once", max(1, rows_of(settled, lm) // most))
    made_with = {
        **sampling_settings(config, lm, task, listed, temperature), "most": most, "problems at once": chunk,
    }  # fmt: skip
    params = SamplingParams(temperature, config.rollouts.max_new_tokens, config.seed)
    total, what = cost_of(most) * len(listed), about(config.task)
    way_out = "choose another output, or remove its samples.json and samples.jsonl to begin anew"
    to_come = f"{len(listed):,} problems of {what} x ({most} first attempts + {most // 2} corrections), by {model}"
    if len(listed) < problems:
        watcher.message(f"note: {fewer('problems', problems, len(listed))}")
    with (
        closing(task), Kept(file, made_with, lambda line: line[0], way_out) as kept,
        _counted(kept, folder, f"sampling {what}", to_come, len(listed), total, watcher) as counting,
    ):  # fmt: skip
        counted = counting(make_sampler(config, lm, max(settled.rollouts.rows, chunk * most)))
        pools = sample_pools(task, listed, counted, lm.chat, params, most, kept, chunk)
    if len(pools) < len(listed):
        watcher.message(f"note: {len(listed) - len(pools):,} problems are left out, with no solutions that were graded")
    points = scaling(pools, budgets_up_to(most))
    scale_figure(points, len(pools), temperature).write(folder)
    return points


def scaling_folder(model: str | Path, output: str | Path | None = None) -> Path:
    """Where `scale` writes: the output that was named, else RUN/scaling, which the run's report shows."""
    run = run_above(at_home(model_of(model), "model"))
    if output is None and run is None:
        raise ConfigError(f"{model} lies in no run; name a folder with output=FOLDER (--output FOLDER)")
    return at_home(output, "output") if output is not None else (run or Path()) / "scaling"


@contextmanager
def _counted(
    kept: Kept, where: Path, title: str, to_come: str, problems: int, total: int, watcher: Observer
) -> Iterator[Callable[[Sampler], Counted]]:
    """Work that may be stopped and says what is kept; gives what counts a sampler's completions, `total` in all."""
    with stoppable() as stopped:
        stopped.told = lambda: f"{kept.count:,} of {problems:,} problems are kept in {where}: the same command goes on"
        watcher.message(
            f"{total:,} completions to come: {to_come}; kept in {where} as they end, so the same command goes on"
        )
        watcher.work(title, 0, total)
        yield lambda sampler: Counted(sampler, partial(watcher.work, title), total)
