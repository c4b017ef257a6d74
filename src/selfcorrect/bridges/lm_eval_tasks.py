"""The two attempts as tasks of lm-evaluation-harness: selfcorrect_gsm8k and its sisters. docs/bridges.md.

The harness asks a task's requests all at once, each for itself, so attempt 2 cannot be a request: what it reads is not
there yet. But it hands every task the model's chat template, a method of the model, before it asks, and calls
`apply_filters` once the answers are there. Attempt 2 is asked between the two, through the same model and in the same
batches. So any model of the harness that has a chat template plays, as it is.
"""

import copy
from collections.abc import Callable, Sequence
from typing import Any

from selfcorrect.bridges.logs import OWN
from selfcorrect.bridges.protocol import Protocol, configured, is_setting, missing
from selfcorrect.errors import ConfigError, ModelError, one_line
from selfcorrect.models.messages import plain_text
from selfcorrect.types import Completion

try:
    from lm_eval.api.instance import Instance
    from lm_eval.api.metrics import mean
    from lm_eval.api.model import LM
    from lm_eval.api.task import Task
    from lm_eval.config.task import TaskConfig
    from lm_eval.models.dummy import DummyLM
except ImportError:
    raise missing("lm_eval", "lm-eval") from None

PREFIX = "selfcorrect_"
Turns = list[dict[str, str]]


class TwoAttempts(Task):
    """One task; lm_eval_yaml/ names them all. Settings are the harness's `--metadata`, by a recipe's names."""

    VERSION = 1
    OUTPUT_TYPE = "generate_until"

    def __init__(
        self, data_dir: Any = None, cache_dir: Any = None, download_mode: Any = None, config: Any = None
    ) -> None:
        told = dict(config or {})
        settings = {k: v for k, v in (told.get("metadata") or {}).items() if is_setting(k)}
        recipe = settings.pop("recipe", None)
        self._protocol = Protocol(configured(told["task"].removeprefix(PREFIX), recipe, settings))
        played, evaluation = self._protocol.config.rollouts, self._protocol.config.evaluation
        if evaluation.samples > 1:
            raise ConfigError("evaluation.samples: lm-eval plays one sample of each problem; leave it out")
        super().__init__()
        hot = evaluation.temperature > 0
        self._config = TaskConfig(
            task=told["task"],
            num_fewshot=0,
            metadata={"version": self.VERSION, **settings},
            generation_kwargs={
                "until": [],
                "max_gen_toks": played.max_new_tokens,
                "do_sample": hot,
                **({"temperature": evaluation.temperature} if hot else {}),
            },
        )
        self._docs = [
            {
                "id": name,
                "prompt": problem.prompt,
                "correction_prompt": self._protocol.correction(name),
                "target": str(problem.reference.get("answer", problem.reference.get("target", ""))),
                OWN: self._protocol.told(name),
            }
            for name, problem in self._protocol.problems.items()
        ]
        self._template: Callable[[Turns], Any] | None = None
        self._system: str | None = None
        self._verdicts: dict[str, dict[str, float] | None] | None = None

    def download(self, *args: Any, **options: Any) -> None:
        """The problems are read as selfcorrect reads them."""

    def has_training_docs(self) -> bool:
        return False

    def has_validation_docs(self) -> bool:
        return False

    def has_test_docs(self) -> bool:
        return True

    def test_docs(self) -> list[dict[str, Any]]:
        return self._docs

    def doc_to_text(self, doc: dict[str, Any]) -> str:
        return str(doc["prompt"])

    def doc_to_target(self, doc: dict[str, Any]) -> str:
        return str(doc["target"])

    def build_all_requests(self, **options: Any) -> None:
        """What the harness does, once it is clear that the model can be asked twice and the grader works."""
        self._template, self._system = options.get("chat_template"), options.get("system_instruction")
        if self._model is None:
            raise ModelError(
                f"{self.config.task}: attempt 2 is a turn of a conversation, so the model's chat template is needed: "
                "add --apply_chat_template (apply_chat_template=True)"
            )
        options["cache_requests"] = False  # the harness's keys know nothing of our settings
        self._protocol.grader.start()
        super().build_all_requests(**options)

    def fewshot_context(self, doc: dict[str, Any], num_fewshot: int, **options: Any) -> Any:
        """The conversation that attempt 1 answers, as the model's template writes it."""
        if num_fewshot:
            raise ConfigError(
                f"{self.config.task}: num_fewshot = {num_fewshot}: the attempts are asked without examples"
            )
        return self._written(self._opening(doc))

    def construct_requests(self, doc: dict[str, Any], ctx: Any, **options: Any) -> Any:
        return self._request(doc, ctx, options["metadata"])

    def apply_filters(self) -> Any:
        """Every later attempt is asked here, of all problems at once. An instance then holds all attempts, in order."""
        turns = [[*self._opening(instance.doc)] for instance in self._instances]
        said = [[_text(instance.resps[0])] for instance in self._instances]
        for _ in range(1, self._protocol.attempts):
            for conversation, texts, instance in zip(turns, said, self._instances, strict=True):
                conversation += [_turn("assistant", texts[-1]), _turn("user", instance.doc["correction_prompt"])]
            requests = [
                self._request(instance.doc, self._written(conversation), instance.metadata)
                for conversation, instance in zip(turns, self._instances, strict=True)
            ]
            assert self._model is not None
            for texts, answer in zip(said, self._model.generate_until(requests), strict=True):
                texts.append(_text(answer))
        for instance, texts in zip(self._instances, said, strict=True):
            instance.resps = texts
            instance.filtered_resps = {"none": texts}
        return self._instances

    def process_results(self, doc: dict[str, Any], results: Sequence[Sequence[str]]) -> dict[str, float]:
        """What a problem adds to each metric; nothing where the grader failed, so that it counts nowhere."""
        if self._verdicts is None:
            self._verdicts = self._graded()
        return self._verdicts[doc["id"]] or {}

    def aggregation(self) -> dict[str, Any]:
        return dict.fromkeys(self.higher_is_better(), mean)

    def higher_is_better(self) -> dict[str, bool]:
        numbers = range(1, self._protocol.attempts + 1)
        return dict.fromkeys([*(f"accuracy@t{number}" for number in numbers), "delta", "i->c"], True) | {
            "c->i": False,
            "unchanged": False,
        }

    @property
    def _model(self) -> Any:
        """The model whose template this is; None where it is nobody's."""
        owner = getattr(self._template, "__self__", None)
        return owner if isinstance(owner, LM) else None

    def _graded(self) -> dict[str, dict[str, float] | None]:
        """All problems that were played, in one call of the grader."""
        played = [(instance.doc["id"], instance.resps) for instance in self._instances]
        answers = [
            (self._protocol.problems[name], [Completion((), (), text, "stop") for text in texts])
            for name, texts in played
        ]
        grades = self._protocol.grader.grade_all(answers)
        return {
            name: self._protocol.verdicts(name, each, texts) for (name, texts), each in zip(played, grades, strict=True)
        }

    def _opening(self, doc: dict[str, Any]) -> Turns:
        turns = [_turn(role, text) for role, text in self._protocol.messages(doc["id"])]
        if self._system:  # said on the command line, so it counts before the recipe's
            return [_turn("system", self._system), *(turn for turn in turns if turn["role"] != "system")]
        return turns

    def _written(self, turns: Turns) -> Any:
        assert self._template is not None
        if isinstance(self._model, DummyLM):  # reads nothing, and its template would have to come from the hub
            return "\n".join(turn["content"] for turn in turns)
        try:
            return self._template(turns)
        except Exception as error:
            raise ModelError(
                f"{self.config.task}: the model's chat template cannot be used: {one_line(error)}"
            ) from error

    def _request(self, doc: dict[str, Any], context: Any, metadata: Any) -> Any:
        # A model may change what it is given to generate by.
        return Instance("generate_until", doc, (context, copy.deepcopy(self.config.generation_kwargs)), 0, metadata)


def _turn(role: str, text: str) -> dict[str, str]:
    return {"role": role, "content": text}


def _text(answer: Any) -> str:
    """What a model answered; nothing where its server gave no text."""
    return plain_text(answer) if isinstance(answer, str) else ""
