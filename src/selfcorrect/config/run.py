"""The settings of a run: model, rollouts, stages, optimiser, evaluation, logs."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from selfcorrect.config.base import Decay, NonNegative, Positive, Rate, Share, Strict, check_template
from selfcorrect.config.compare import CompareConfig, Name
from selfcorrect.config.engines import VllmConfig
from selfcorrect.config.stages import RLStage, SingleTurn, Stage, SupervisedStage
from selfcorrect.config.tasks import CountdownConfig, RepairConfig, TaskConfig, correction_fields

LAB_MODEL = "lab"  # the name under which the shipped base model of the lab goes
PLAIN_TEMPLATE = "plain"  # the name under which the shipped chat template goes

Device = Literal["auto", "cpu", "cuda", "mps"]


class LoraConfig(Strict):
    """Of tuning lora and qlora. targets: names of linear layers that get an adapter, as in [q_proj, v_proj];
    by default all of them but the head. The adapter's output counts alpha / rank times. No bias and no dropout, with
    which the policy would differ from the one that sampled.
    """

    rank: Annotated[int, Field(ge=1, le=4096)] = 16
    alpha: Rate = 32.0
    targets: Annotated[tuple[str, ...], Field(min_length=1)] | None = None


class ModelConfig(Strict):
    """path: a local folder of Hugging Face layout, a hub name, or "lab" for the shipped base model; or an adapter.

    tuning: which weights train: full, all of them; lora, an adapter over the frozen model; qlora, an adapter over the
    model in 4 bits (NF4, double quantisation).
    weights: how they are stored. Those that train have float32 masters in any case; an adapter is float32.
    reference: where the copy lies that full tuning measures its KL to; auto decides by memory (docs/tuning.md).

    chat_template: plain, or a file with a Jinja template, in place of the model's own; base models have none.
    template_options: variables for the chat template, like enable_thinking: false or date_string: "26 Jul 2024".
    trust_remote_code: whether Python code that comes with the model may run, with your rights.
    system_prompt: a system turn before every conversation, at training and at evaluation; empty sends an empty one,
    where none leaves the template to its own. system_as: first_user writes it before the first question instead, with a
    blank line between, for templates that have no system turn.
    precision is that of the forward pass (autocast); the optimiser's state stays float32, but for its 8-bit kinds.
    """

    path: str = LAB_MODEL
    tuning: Literal["full", "lora", "qlora"] = "full"
    lora: LoraConfig = LoraConfig()
    weights: Literal["float32", "bfloat16"] = "float32"
    reference: Literal["auto", "device", "cpu"] = "auto"
    device: Device = "auto"
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    attention: Literal["auto", "eager", "sdpa", "flash_attention_2"] = "auto"
    chat_template: Annotated[str, Field(min_length=1)] | None = None
    template_options: dict[str, bool | int | float | str | None] = Field(default_factory=dict)
    trust_remote_code: bool = False
    system_prompt: str | None = None
    system_as: Literal["system", "first_user"] = "system"

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.system_as != "system" and not self.system_prompt:
            raise ValueError("system_as = 'first_user' says where system_prompt goes, and there is none; set both")
        if self.weights == "bfloat16" and self.precision == "float32":
            raise ValueError(
                "weights: bfloat16 are computed with in bfloat16, against precision: float32; set precision: auto, or "
                "weights: float32"
            )
        if self.tuning == "full" and self.lora != LoraConfig():
            raise ValueError("lora is of tuning: lora and qlora, and tuning is full; set tuning, or leave lora out")
        if self.tuning != "full" and self.reference != "auto":
            raise ValueError(
                f"reference is for tuning: full; with tuning: {self.tuning} it is the same model with its adapter off, "
                "and takes no memory; leave it out"
            )
        for name, value in self.template_options.items():
            word = value.strip().casefold() if isinstance(value, str) else ""
            if word in ("true", "false"):
                raise ValueError(
                    f"template_options.{name} = {value!r} is text, which a template takes for true whatever it says; "
                    f"write {name}: {word}, without quotes"
                )
        return self


class SelfRefineConfig(Strict):
    """Self-Refine: between two attempts the model writes feedback on the first, then refines. Both prompts, as text."""

    feedback_prompt: Annotated[str, Field(min_length=1)]
    refine_prompt: Annotated[str, Field(min_length=1)]


class RolloutConfig(Strict):
    """problems_per_step x rollouts_per_problem rollouts a step, each of `attempts` attempts.

    rows_at_once: how many are sampled side by side, at training and at evaluation; bounds the memory of the cache; auto
    follows from the model's size (models/sizing.py).
    self_refine: ask for feedback between attempts, in place of the task's correction prompt; evaluation only.
    """

    problems_per_step: Positive = 48
    rollouts_per_problem: Positive = 8
    attempts: Annotated[int, Field(ge=2)] = 2
    temperature: Rate = 1.0
    max_new_tokens: Positive = 256
    rows_at_once: Positive | Literal["auto"] = "auto"
    self_refine: SelfRefineConfig | None = None

    @property
    def rows(self) -> int:
        """rows_at_once, once the model's size has settled it."""
        assert self.rows_at_once != "auto"
        return self.rows_at_once


class OptimizerConfig(Strict):
    """name: AdamW with float32 moments; or bitsandbytes', whose moments take 8 bits, and which pages them out of a GPU.

    gradient_checkpointing: run each layer again in the backward pass rather than keep what it computed: less memory,
    about a third more computation, the same gradient. auto: where a micro-batch would not fit otherwise.
    micro_batch: rollouts in one forward; no gradient depends on it. auto follows from the model's size.
    padding_free: lay a micro-batch's rollouts end to end rather than pad them to the longest. auto: where the model's
    attention allows it, and where there is no GPU, for models of 256 hidden numbers and more.
    """

    name: Literal["adamw", "adamw_8bit", "paged_adamw_8bit"] = "adamw"
    betas: tuple[Decay, Decay] = (0.9, 0.95)
    weight_decay: NonNegative = 0.0
    warmup_steps: Annotated[int, Field(ge=0)] = 10
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    max_grad_norm: Rate = 1.0
    micro_batch: Positive | Literal["auto"] = "auto"
    gradient_checkpointing: bool | Literal["auto"] = "auto"
    padding_free: bool | Literal["auto"] = "auto"

    @property
    def rows(self) -> int:
        """micro_batch, once the model's size has settled it."""
        assert self.micro_batch != "auto"
        return self.micro_batch


class AlgorithmConfig(Strict):
    """Choices the paper leaves open; docs/method.md defends each default.

    reference: which weights the KL of a later stage is measured to. importance_cap: the highest importance weight of a
    token, where another engine samples than trains (learning/losses.py); none leaves the weights out; auto is 2 for
    sampler: vllm, and none for transformers, whose log-probabilities are the policy's own.
    """

    baseline: Literal["leave_one_out", "leave_one_out_given_history", "none"] = "leave_one_out"
    normalize_std: bool = False
    kl_estimator: Literal["analytic", "k1"] = "analytic"
    reference: Literal["base", "previous_stage"] = "base"
    importance_cap: Annotated[float, Field(ge=1, allow_inf_nan=False)] | Literal["auto", "none"] = "auto"


class EvaluationConfig(Strict):
    """Evaluation before, between and after the stages, greedy by default. external: JSONL files of the task's shape.

    samples: of each problem, at `temperature`: accuracies are then means over samples (Avg@k), with pass@k beside them.
    correction_prompts: other wordings of the task's correction prompt, by name, to see beside it after the same first
    attempts; a list gets the names wording-1, wording-2, ...
    split: train takes training problems, to choose settings by without a look at the test split; of a finite data set
    they are trained on as well. offset: leaves out the first so many of the held-out problems.
    every: steps between smaller evaluations on `problems_between` problems while training, each once with the model's
    own first attempts and once with the base model's (Fig. 5); none by default.
    controls: also sample every attempt at temperature 1, which live alarms need, and write the second one after the
    attempt of another problem (swapped) and after another one at the same problem (independent): three times the cost.
    """

    problems: Positive = 2000
    split: Literal["test", "train"] = "test"
    offset: Annotated[int, Field(ge=0)] = 0
    every: Positive | None = None
    problems_between: Positive = 300
    controls: bool = False
    external: tuple[str, ...] = ()
    samples: Positive = 1
    temperature: NonNegative = 0.0
    correction_prompts: dict[Name, Annotated[str, Field(min_length=1)]] = Field(default_factory=dict)

    @field_validator("correction_prompts", mode="before")
    @classmethod
    def _named(cls, given: Any) -> Any:
        """A list of texts, each by its place."""
        if isinstance(given, list | tuple):
            return {f"wording-{place}": text for place, text in enumerate(given, 1)}
        return given

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.samples > 1 and self.temperature == 0:
            raise ValueError(
                f"samples = {self.samples} at temperature 0 would all be the same attempt; set temperature (such as "
                "0.7), or leave samples at 1"
            )
        names = [name.casefold() for name in self.correction_prompts]
        if "recipe" in names or len(set(names)) < len(names):
            raise ValueError(
                "correction_prompts: names must differ in more than case, and recipe is the task's own correction "
                f"prompt; got {', '.join(self.correction_prompts)}"
            )
        return self


class CheckpointConfig(Strict):
    """every: steps between checkpoints; keep: how many of them stay. minutes: one more once so long has passed since
    the last, so that slow steps are kept; it is no candidate for `best`.

    `best` is the checkpoint of a stage with the highest training reward of the last attempt, smoothed over steps
    with weight `smoothing` on the past. select: which one a stage ends with; held_out takes the one with the highest
    greedy accuracy of the last attempt on the problems of the file `held_out`. Supervised stages, which have no
    training reward, end with their last weights unless held_out chooses.
    """

    every: Positive = 50
    minutes: Rate | None = 15.0
    keep: Annotated[int, Field(ge=2)] = 2
    smoothing: Decay = 0.95
    select: Literal["best", "last", "held_out"] = "best"
    held_out: str | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.select == "held_out") != (self.held_out is not None):
            raise ValueError("select: held_out and held_out: FILE belong together; set both, or neither")
        return self


class LogConfig(Strict):
    """trackers: tensorboard is used by default where it is installed; trackio and wandb when named, in `project`."""

    trackers: tuple[Literal["tensorboard", "trackio", "wandb"], ...] | None = None
    project: Annotated[str, Field(min_length=1)] = "selfcorrect"
    rollouts_every: Positive = 25
    rollouts_kept: Annotated[int, Field(ge=0)] = 16


class TrainConfig(Strict):
    """A whole run: a model, a task, and the stages one after the other.

    sampler: recorded replays the attempts that the file `recorded` holds (docs/recorded.md), to evaluate them; vllm
    samples with that engine, in this process or on a server (docs/vllm.md).
    """

    kind: Literal["train"] = "train"
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9_.-]{0,79}$")] = "score"
    seed: Annotated[int, Field(ge=0)] = 0
    threads: Positive | None = None
    output: str = "runs"
    model: ModelConfig = ModelConfig()
    task: TaskConfig = CountdownConfig()
    rollouts: RolloutConfig = RolloutConfig()
    stages: tuple[Stage, ...]
    optimizer: OptimizerConfig = OptimizerConfig()
    algorithm: AlgorithmConfig = AlgorithmConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    log: LogConfig = LogConfig()
    sampler: Literal["transformers", "recorded", "vllm"] = "transformers"
    recorded: str | None = None
    vllm: VllmConfig = VllmConfig()

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.sampler == "recorded") != (self.recorded is not None):
            raise ValueError("sampler: recorded and recorded: FILE belong together; set both, or neither")
        if self.sampler != "vllm" and self.vllm != VllmConfig():
            raise ValueError(f"vllm is of sampler: vllm, and sampler is {self.sampler}; set it, or leave vllm out")
        if self.vllm.adapter == "only" and self.model.tuning == "full":
            raise ValueError("vllm.adapter: only sends an adapter, and model.tuning is full; set it to auto")
        self._check_evaluation()
        names = [stage.name.casefold() for stage in self.stages]
        if len(set(names)) < len(names):
            raise ValueError(f"stages: names must differ in more than case, got {', '.join(names)}")
        if "base" in names:
            raise ValueError("stages: base is the name of the evaluation before training; choose another")
        if self.algorithm.baseline != "none" and self.rollouts.rollouts_per_problem < 2:
            raise ValueError(
                "rollouts.rollouts_per_problem is 1, but algorithm.baseline compares rollouts of the "
                "same problem; set it to 2 or more, or the baseline to none"
            )
        if self.algorithm.normalize_std and self.algorithm.baseline != "leave_one_out":
            raise ValueError("algorithm.normalize_std needs algorithm.baseline leave_one_out")
        if isinstance(self.task, CountdownConfig) and self.task.data is not None:
            raise ValueError("task.data is for evaluation; training draws its problems from the generator")
        for stage in self.stages:
            self._check_stage(stage)
        if self.evaluation.every and self.algorithm.reference != "base":
            raise ValueError(
                "algorithm.reference must be base for evaluation.every: the base model's attempts are replayed"
            )
        if self.rollouts.self_refine and self.stages:
            raise ValueError("rollouts.self_refine is prompting only; leave stages empty: []")
        return self

    def _check_evaluation(self) -> None:
        evaluation = self.evaluation
        for name, text in evaluation.correction_prompts.items():
            check_template(f"evaluation.correction_prompts.{name}", text, correction_fields(self.task))
        if evaluation.correction_prompts and self.rollouts.self_refine:
            raise ValueError(
                "evaluation.correction_prompts stand in for the task's correction prompt, which rollouts.self_refine "
                "does not ask; leave one out"
            )
        sampled = evaluation.samples > 1 or evaluation.temperature > 0 or evaluation.correction_prompts
        if self.sampler == "recorded" and sampled:
            raise ValueError(
                "sampler recorded answers each problem once, as it was recorded; leave out evaluation.samples, "
                "evaluation.temperature and evaluation.correction_prompts"
            )

    def _check_stage(self, stage: Stage) -> None:
        offline = isinstance(stage, RLStage) and stage.offline_first > 0
        if isinstance(stage, RLStage) and offline:
            groups = stage.offline_first * self.rollouts.problems_per_step
            if round(groups) == 0:
                raise ValueError(
                    f"stages.{stage.name}.offline_first = {stage.offline_first:g} of rollouts.problems_per_step = "
                    f"{self.rollouts.problems_per_step} is no whole problem; raise either"
                )
        nothing_left = isinstance(stage, SingleTurn | SupervisedStage) or offline
        if isinstance(self.task, RepairConfig) and nothing_left:
            raise ValueError(f"task.name repair gives attempt 1, so stage {stage.name} has no first attempts to sample")
        if offline and self.algorithm.reference != "base":
            raise ValueError("algorithm.reference must be base where a stage has offline_first: one model serves both")

    @property
    def importance_cap(self) -> float | None:
        """Of the importance weights of sampled tokens (learning/losses.py); None where the policy itself samples."""
        cap = self.algorithm.importance_cap
        if cap == "auto":
            return 2.0 if self.sampler == "vllm" else None
        return None if cap == "none" else cap

    @property
    def uses_reference(self) -> bool:
        """Whether anything is measured to, or sampled from, the model that training begins with."""
        rl = [stage for stage in self.stages if isinstance(stage, RLStage)]
        return self.samples_reference or any(stage.beta1 or getattr(stage, "beta2", 0) for stage in rl)

    @property
    def samples_reference(self) -> bool:
        """Whether that model writes attempts too."""
        given = any(isinstance(stage, RLStage) and stage.offline_first for stage in self.stages)
        return given or self.evaluation.every is not None

    @property
    def total_steps(self) -> int:
        return sum(stage.steps for stage in self.stages)


class LabBaseConfig(Strict):
    """The lab's base model: a small Llama, and the corpus it learns from (lab/corpus.py)."""

    kind: Literal["lab_base"]
    seed: Annotated[int, Field(ge=0)] = 0
    threads: Positive | None = None
    output: str = "runs/lab_base"
    device: Device = "auto"
    task: CountdownConfig = CountdownConfig()
    hidden_size: Positive = 128
    layers: Positive = 5
    heads: Positive = 4
    steps: Positive = 2000
    batch: Positive = 128
    learning_rate: Rate = 1.5e-3
    matrix_learning_rate: Rate = 7.0e-3
    first_solved: Share = 0.6
    right_copied: Share = 0.35
    wrong_copied: Share = 0.2
    second_solved: Share = 0.45

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.hidden_size % self.heads:
            raise ValueError(f"hidden_size ({self.hidden_size}) must be a multiple of heads ({self.heads})")
        return self


Config = TrainConfig | LabBaseConfig | CompareConfig
