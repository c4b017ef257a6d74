"""Raises a run's alarms: says them, and keeps them in alarms.jsonl for the report."""

from collections.abc import Mapping
from typing import Any

from selfcorrect.config import TrainConfig
from selfcorrect.evaluation.alarms import Lessons, Watch, alarms, cut_off_at, unread
from selfcorrect.evaluation.averages import Change, change, means
from selfcorrect.evaluation.caution import ungraded
from selfcorrect.evaluation.evaluate import Evaluation
from selfcorrect.evaluation.metrics import Summary, outcomes_of
from selfcorrect.learning.record import StepResult
from selfcorrect.runs.display import Observer
from selfcorrect.runs.folder import RunFolder, plain


class Sentry:
    """Holds what a run does against the base model's evaluation, and says where nothing can be learned."""

    def __init__(self, config: TrainConfig, folder: RunFolder, observer: Observer) -> None:
        self._config, self._folder, self._observer = config, folder, observer
        self._base: Summary | None = None
        self._base_means: dict[str, tuple[float, float]] = {}
        self._watch = Watch(None)
        self._lessons = Lessons(config.rollouts.max_new_tokens)
        self._told: set[tuple[str, str]] = set()  # where, and the kind of alarm
        self._told_once = set[str]()  # kinds of what is said of one evaluation alone

    def prepare(self) -> None:
        """Once the base model is evaluated."""
        steps = [row for row in self._folder.alarms() if not row.get("evaluation")]
        self._told = {(row["where"], _kind(row["alarm"])) for row in steps}
        self._base, sampled = self._folder.read_summaries("base")
        self._base_means = self._folder.means("base")
        # the watch holds training problems against it, to which another data set's are not comparable
        same_set = getattr(self._config.task, "evaluate_on", None) is None
        live = sampled if self._config.rollouts.temperature == 1.0 and same_set else None
        self._watch = Watch(live)
        if not live:
            self._observer.message(
                "note: alarms after evaluations only; live ones need evaluation.controls, rollouts.temperature 1 and "
                "no task.evaluate_on, as they hold training problems against held-out ones"
            )

    def stage_started(self, stage: str) -> None:
        """A stage begins, or goes on: then what its steps said so far is heard again, without a word."""
        self._watch.stage_started()
        self._lessons.stage_started()
        for row in self._folder.steps(stage):
            self._heard(row)

    def step(self, result: StepResult) -> None:
        """After a step; supervised ones have no rewards to watch."""
        failed = ungraded(outcomes_of(result.rollouts), result.rollouts)
        for told in [*self._heard(plain(result.row())), *([f"grader failed: {failed}"] if failed else [])]:
            if (result.stage, _kind(told)) not in self._told:
                self._told.add((result.stage, _kind(told)))
                self._say(result.stage, told)
                self._folder.log_alarm({"step": result.step, "where": result.stage, "alarm": told})

    def _heard(self, row: Mapping[str, Any]) -> list[str]:
        """What a line of metrics.jsonl gives alarm of."""
        told = self._lessons.step(
            row["rewards"], row["truncated"], row["equal_groups"], row["grad_norm"], row["skip_reason"]
        )
        if row.get("accuracy"):
            several = len(row["accuracy"]) > 1
            unchanged = row["unchanged"] if several else 0.0  # a single attempt repeats nothing
            told += self._watch.step(row["accuracy"][0], row["delta"], unchanged)
        return told

    def against_base(self, evaluation: Evaluation) -> Change | None:
        """An evaluation less the base model's, over the problems that both have; None for the base model's own."""
        if not self._base:
            return None
        single = evaluation.summary.samples == 1
        return change(self._base_means, means(evaluation.rollouts), single=single)

    def evaluated(self, evaluation: Evaluation) -> None:
        """After an evaluation, before it is written; all but the base model's are held against that one."""
        found = once = [*cut_off_at(evaluation.summary, evaluation.max_new_tokens), *unread(evaluation.summary)]
        if self._base:
            found = once + alarms(evaluation.summary, self._base, evaluation.against_base)
        for told in found:
            if told not in once or _kind(told) not in self._told_once:
                self._say(evaluation.name, told)
        self._told_once |= set(map(_kind, once))
        of = {"step": evaluation.step, "where": evaluation.name}
        rows = [{**of, "alarm": told, "evaluation": True} for told in found]
        self._folder.log_evaluation_alarms(evaluation.name, rows)

    def _say(self, where: str, told: str) -> None:
        self._observer.message(f"alarm: {where}: {told}")


def _kind(alarm: str) -> str:
    return alarm.partition(":")[0]
