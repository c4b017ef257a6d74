"""Raises a run's alarms: says them, and keeps them in alarms.jsonl for the report."""

from selfcorrect.config import TrainConfig
from selfcorrect.evaluation.alarms import Lessons, Watch, alarms, cut_off_at, first_change
from selfcorrect.evaluation.evaluate import Evaluation
from selfcorrect.evaluation.metrics import Summary, summary_of
from selfcorrect.learning.record import StepResult
from selfcorrect.runs.display import Observer
from selfcorrect.runs.folder import RunFolder


class Sentry:
    """Holds what a run does against the base model's evaluation, and says where nothing can be learned."""

    def __init__(self, config: TrainConfig, folder: RunFolder, observer: Observer) -> None:
        self._config, self._folder, self._observer = config, folder, observer
        self._base: Summary | None = None
        self._base_right: dict[str, bool] = {}
        self._watch = Watch(None)
        self._lessons = Lessons(config.rollouts.max_new_tokens)
        self._told: set[tuple[str, str]] = set()  # where, and the kind of alarm

    def prepare(self) -> None:
        """Once the base model is evaluated."""
        self._told = {(row["where"], _kind(row["alarm"])) for row in self._folder.alarms()}
        base = self._folder.read_evaluation("base")
        self._base, self._base_right = summary_of(base["summary"]), self._folder.first_right("base")
        # the watch holds rewards on training problems against it, which another data set's would not be comparable to
        same_set = getattr(self._config.task, "evaluate_on", None) is None
        live = base["sampled"] if self._config.rollouts.temperature == 1.0 and same_set else None
        self._watch = Watch(summary_of(live) if live else None)
        if not live:
            self._observer.message(
                "note: alarms after evaluations only; live ones need evaluation.controls, rollouts.temperature 1 and "
                "no task.evaluate_on, as they hold training problems against held-out ones"
            )

    def stage_started(self) -> None:
        self._watch.stage_started()
        self._lessons.stage_started()

    def step(self, result: StepResult) -> None:
        """After a step; supervised ones have no rewards to watch."""
        grad_norm = None if result.skipped else result.grad_norm
        for told in self._lessons.step(result.rewards, result.truncated, result.equal_groups, grad_norm):
            if (result.stage, _kind(told)) not in self._told:
                self._told.add((result.stage, _kind(told)))
                self._raise(result.step, result.stage, told)
        if result.rewards:
            several = len(result.rewards) > 1
            unchanged = result.unchanged if several else 0.0  # a single attempt repeats nothing
            for told in self._watch.step(result.rewards[0], result.delta, unchanged):
                self._raise(result.step, result.stage, told)

    def evaluated(self, evaluation: Evaluation) -> None:
        """After an evaluation; all but the base model's are held against that one."""
        for told in cut_off_at(evaluation.summary, evaluation.max_new_tokens):
            self._raise(evaluation.step, evaluation.name, told)
        if self._base:
            change = first_change(evaluation.rollouts, self._base_right)
            for told in alarms(evaluation.summary, self._base, change):
                self._raise(evaluation.step, evaluation.name, told)

    def _raise(self, step: int, where: str, told: str) -> None:
        self._observer.message(f"alarm: {where}: {told}")
        self._folder.log_alarm({"step": step, "where": where, "alarm": told})


def _kind(alarm: str) -> str:
    return alarm.partition(":")[0]
