"""The settings of a run: model, rollouts, stages, optimiser, evaluation, logs."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from selfcorrect.config.base import Decay, LocalPath, NonNegative, Paper, Positive, Rate, Share, Strict, check_template
from selfcorrect.config.compare import CompareConfig, Name
from selfcorrect.config.engines import VllmConfig
from selfcorrect.config.parallel import Parallel, not_in_shards
from selfcorrect.config.stages import RLStage, SingleTurn, Stage, SupervisedStage
from selfcorrect.config.tasks import CountdownConfig, RepairConfig, TaskConfig, correction_fields

LAB_MODEL = "lab"  # the name under which the shipped base model of the lab goes
PLAIN_TEMPLATE = "plain"  # the name under which the shipped chat template goes

Device = Literal["auto", "cpu", "cuda", "mps"]


class LoraConfig(Strict):
    """The adapter of tuning lora and qlora. No bias and no dropout, with which the policy would differ from the one
    that sampled.
    """

    rank: Annotated[int, Field(ge=1, le=4096)] = 16
    """Rank of the two matrices of each adapted layer."""
    alpha: Rate = 32.0
    """The adapter's output counts alpha / rank times."""
    targets: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """Names of linear layers that get an adapter, as in [q_proj, v_proj]; by default all of them but the head."""


class ModelConfig(Strict):
    """The model: where it comes from, which of its weights train, its chat template and its arithmetic."""

    path: Annotated[LocalPath, Field(min_length=1)] = LAB_MODEL
    """A local folder of Hugging Face layout, a hub name, an adapter's folder, or lab for the shipped base model."""
    tuning: Literal["full", "lora", "qlora"] = "full"
    """Which weights train: all of them; an adapter over the frozen model; an adapter over the model in 4 bits (NF4,
    double quantisation)."""
    lora: LoraConfig = LoraConfig()
    """The adapter's shape, with tuning lora and qlora."""
    weights: Literal["float32", "bfloat16"] = "float32"
    """How weights are stored; those that train have float32 masters in any case, and an adapter is float32."""
    reference: Literal["auto", "device", "cpu"] = "auto"
    """Where the copy lies that full tuning measures its KL to; auto decides by memory (docs/tuning.md)."""
    device: Device = "auto"
    """Where the model runs; auto takes CUDA or Apple silicon where there is one."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """That of the forward pass (autocast); auto is bfloat16 where the device multiplies it natively. The optimiser's
    state stays float32, but for its 8-bit kinds."""
    attention: Literal["auto", "eager", "sdpa", "flash_attention_2"] = "auto"
    """The implementation of attention, by transformers' names; auto is eager on a CPU and sdpa
    elsewhere."""
    chat_template: Annotated[LocalPath, Field(min_length=1)] | None = None
    """plain, or a file with a Jinja template, in place of the model's own; base models have none."""
    template_options: dict[str, bool | int | float | str | None] = Field(default_factory=dict)
    """Variables for the chat template, like enable_thinking: false or date_string: "26 Jul 2024"."""
    sampling_copies: bool = True
    """On a CPU: while sampling, copies of the weights, laid out for decoding, where twice their memory is free. Without
    them less memory and a slower sampling; on other devices there are none."""
    trust_remote_code: bool = False
    """Whether Python code that comes with the model may run, with your rights."""
    system_prompt: str | None = None
    """A system turn before every conversation, at training and at evaluation; an empty text sends an empty turn, and
    none leaves the template to its own."""
    system_as: Literal["system", "first_user"] = "system"
    """first_user writes the system prompt before the first question instead, with a blank line between, for templates
    that have no system turn."""

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
            raise ValueError("lora is of tuning: lora and qlora, and tuning is full; set tuning, or model.lora={}")
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
    """Self-Refine: between two attempts the model writes feedback on the first, then refines."""

    feedback_prompt: Annotated[str, Field(min_length=1)]
    """What asks for the feedback, as text."""
    refine_prompt: Annotated[str, Field(min_length=1)]
    """What asks for the attempt after the feedback, as text."""


class RolloutConfig(Strict):
    """How a step samples: problems_per_step x rollouts_per_problem rollouts, each of `attempts` attempts."""

    problems_per_step: Positive = 48
    """How many problems a training step draws."""
    rollouts_per_problem: Annotated[Positive, Paper("batch / problems; not stated")] = 8
    """How many rollouts of each problem a step plays; baselines compare them."""
    attempts: Annotated[int, Field(ge=2), Paper("i of Eq. 1; 2 in training")] = 2
    """How many attempts a rollout has, the first included."""
    temperature: Annotated[Rate, Paper("temperature, Table 5")] = 1.0
    """Sampling temperature while training; the KL is taken at it too, as that is the policy that acted."""
    max_new_tokens: Positive = 256
    """The most tokens of one attempt; one that runs into it is cut off and earns nothing."""
    rows_at_once: Positive | Literal["auto"] = "auto"
    """How many rollouts are sampled side by side, at training and at evaluation, which bounds the memory of the cache;
    auto follows from the model's size."""
    self_refine: Annotated[SelfRefineConfig | None, Paper("Self-Refine, Tables 1 and 3")] = None
    """Ask for feedback between attempts, in place of the task's correction prompt; evaluation only."""

    @property
    def rows(self) -> int:
        """rows_at_once, once the model's size has settled it."""
        assert self.rows_at_once != "auto"
        return self.rows_at_once


class OptimizerConfig(Strict):
    """The optimiser and what a micro-batch does; every stage begins with a fresh one."""

    name: Annotated[Literal["adamw", "adamw_8bit", "paged_adamw_8bit"], Paper("Adam, Table 5")] = "adamw"
    """AdamW with float32 moments; or bitsandbytes', whose moments take 8 bits, and which pages them out of a GPU."""
    betas: tuple[Decay, Decay] = (0.9, 0.95)
    """AdamW's decay of its two moments."""
    epsilon: Rate = 1e-8
    """AdamW's, under the fraction: gradients far below it move little, and above it a rate's worth."""
    weight_decay: NonNegative = 0.0
    """AdamW's decoupled weight decay."""
    warmup_steps: Annotated[int, Field(ge=0)] = 10
    """Steps over which each stage's learning rate rises in a line."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """What the learning rate does after the warm-up: stay, or fall towards nothing at the stage's end."""
    max_grad_norm: Rate = 1.0
    """Gradients of a larger norm are scaled down to it."""
    micro_batch: Positive | Literal["auto"] = "auto"
    """Rollouts in one forward and backward pass; where they are laid end to end (padding_free), as many as take no more
    room than so many of the longest. No gradient depends on it. auto follows from the model's size."""
    gradient_checkpointing: bool | Literal["auto"] = "auto"
    """Run each layer again in the backward pass rather than keep what it computed: less memory, about a third more
    computation, the same gradient. auto: where a micro-batch would not fit otherwise."""
    padding_free: bool | Literal["auto"] = "auto"
    """Lay a micro-batch's rollouts end to end rather than pad them to the longest. auto: where the model's attention
    allows it, and where there is no GPU, for models of 256 hidden numbers and more."""
    compile: bool = False
    """Compile the small operations of the update (norms, gated units, what the loss does with a tile of logits) into
    kernels of their own by torch.compile: meant for GPUs; the first step takes longer. The same gradient."""

    @property
    def rows(self) -> int:
        """micro_batch, once the model's size has settled it."""
        assert self.micro_batch != "auto"
        return self.micro_batch


class AlgorithmConfig(Strict):
    """Choices the paper leaves open; docs/method.md defends each default."""

    baseline: Annotated[
        Literal["leave_one_out", "leave_one_out_given_history", "none"], Paper("baseline of Eq. 2; not stated")
    ] = "leave_one_out"
    """What an attempt's return is compared with: all other rollouts of its problem; those whose earlier attempts earned
    the same; or nothing."""
    normalize_std: bool = False
    """Divide advantages by the group's standard deviation per attempt, which cancels most of alpha."""
    kl_estimator: Annotated[Literal["analytic", "k1"], Paper("D_KL of Eq. 2 to 4; estimator not stated")] = "analytic"
    """How the KL's gradient is estimated: over the whole vocabulary at every token, or by the sampled log-ratio."""
    reference: Annotated[Literal["base", "previous_stage"], Paper("pi_ref, Eq. 2 to 4")] = "base"
    """Which weights the KL of a later stage is measured to."""
    importance_cap: Annotated[float, Field(ge=1, allow_inf_nan=False)] | Literal["auto", "none"] = "auto"
    """The highest importance weight of a token, where another engine samples than trains (docs/vllm.md); none leaves
    the weights out; auto is 2 for sampler: vllm, and none for transformers."""


class EvaluationConfig(Strict):
    """Evaluation before, between and after the stages, and by `selfcorrect evaluate`; greedy by default."""

    problems: Positive = 2000
    """How many held-out problems are evaluated; always the same, spread over the whole set."""
    split: Literal["test", "train"] = "test"
    """train takes training problems, to choose settings by without a look at the test split; of a finite data set they
    are trained on as well."""
    offset: Annotated[int, Field(ge=0)] = 0
    """Leaves out the first so many of the held-out problems."""
    every: Annotated[Positive | None, Paper("Fig. 5")] = None
    """Steps between smaller evaluations while training, each once with the model's own first attempts and once with the
    base model's; none by default."""
    problems_between: Positive = 300
    """How many problems those smaller evaluations take, spread over the ones that are evaluated."""
    controls: bool = False
    """Also sample every attempt at temperature 1, which live alarms need, and write the second one after the attempt of
    another problem (swapped) and after another one at the same problem (independent): three times the cost."""
    external: tuple[LocalPath, ...] = ()
    """Further files of the task's shape to evaluate on."""
    samples: Positive = 1
    """Samples of each problem: accuracies are then means over samples (Avg@k), with pass@k beside them."""
    temperature: Annotated[NonNegative, Paper("greedy; 0.7 in Sec. 6.2")] = 0.0
    """Sampling temperature of an evaluation; 0 is greedy."""
    correction_prompts: dict[Name, Annotated[str, Field(min_length=1)]] = Field(default_factory=dict)
    """Other wordings of the task's correction prompt, by name, to see beside it after the same first attempts; a list
    gets the names wording-1, wording-2, ..."""

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
    """What is kept to resume from, and which weights a stage ends with.

    `best` is the checkpoint of a stage with the highest smoothed training reward of the last attempt. Supervised
    stages, which have no training reward, end with their last weights unless held_out chooses.
    """

    every: Positive = 50
    """Steps between checkpoints, which are also the candidates for `best`."""
    minutes: Rate | None = 15.0
    """One more checkpoint once so many minutes have passed since the last, so that slow steps are kept; it is no
    candidate for `best`."""
    keep: Annotated[int, Field(ge=2)] = 2
    """How many checkpoints stay on disk."""
    smoothing: Decay = 0.95
    """Weight on the past where the training reward is smoothed over steps."""
    select: Annotated[
        Literal["best", "last", "held_out"], Paper("highest training reward, or a small held-out set")
    ] = "best"
    """Which checkpoint a stage ends with: best, last, or the one with the highest greedy accuracy of the last attempt
    on the file `held_out`."""
    held_out: LocalPath | None = None
    """A file of problems of the task's shape, for select: held_out."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.select == "held_out") != (self.held_out is not None):
            raise ValueError("select: held_out and held_out: FILE belong together; set both, or neither")
        return self


class LogConfig(Strict):
    """What is logged beside the run folder's own files."""

    trackers: tuple[Literal["tensorboard", "trackio", "wandb"], ...] | None = None
    """Which trackers get the metrics; by default tensorboard where it is installed, the others when named."""
    project: Annotated[str, Field(min_length=1)] = "selfcorrect"
    """The project that trackio and wandb put the run into."""
    rollouts_every: Positive = 25
    """Steps between training rollouts that are written to rollouts.jsonl."""
    rollouts_kept: Annotated[int, Field(ge=0)] = 16
    """How many rollouts of such a step are written."""
    rollouts_tracked: Annotated[int, Field(ge=0)] = 0
    """How many of those, and of each evaluation's, go to the trackers as a table: texts, outcomes, rewards. None by
    default, as they hold your problems' texts, and wandb keeps what it is given on machines of others."""


class TrainConfig(Strict):
    """A whole run: a model, a task, and the stages one after the other."""

    kind: Literal["train"] = "train"
    """The kind of recipe: train, lab_base or compare."""
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9_.-]{0,79}$")] = "score"
    """The run's name; its folder is output/name."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Every random draw of the run follows from it and the step."""
    threads: Positive | None = None
    """Threads of the processor's arithmetic; by default all cores. Results may differ in the last digit with it."""
    parallel: Parallel = "auto"
    """How training is spread over the processes that torchrun or accelerate starts (docs/parallel.md)."""
    output: LocalPath = "runs"
    """The folder that holds the run's."""
    model: ModelConfig = ModelConfig()
    """The model that is trained."""
    task: TaskConfig = CountdownConfig()
    """What is solved and graded; name says which task."""
    rollouts: RolloutConfig = RolloutConfig()
    """How a step samples."""
    stages: tuple[Stage, ...]
    """The training, stage after stage; empty for an evaluation alone."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """The optimiser and what a micro-batch does."""
    algorithm: AlgorithmConfig = AlgorithmConfig()
    """Choices the paper leaves open."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """Evaluation before, between and after the stages."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """What is kept to resume from, and which weights a stage ends with."""
    log: LogConfig = LogConfig()
    """What is logged beside the run folder's own files."""
    sampler: Literal["transformers", "recorded", "vllm", "endpoint"] = "transformers"
    """Who answers: the model by transformers; the model by vLLM, in this process or on a server (docs/vllm.md); a file
    of attempts recorded earlier, to evaluate them (docs/recorded.md). endpoint stands in what `evaluate --endpoint`
    writes."""
    recorded: LocalPath | None = None
    """The file of recorded attempts, for sampler: recorded."""
    vllm: VllmConfig = VllmConfig()
    """The engine of sampler: vllm."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.sampler == "recorded") != (self.recorded is not None):
            raise ValueError("sampler: recorded and recorded: FILE belong together; set both, or neither")
        if self.sampler != "vllm" and self.vllm != VllmConfig():
            raise ValueError(f"vllm is for sampler: vllm, not for {self.sampler}; set sampler=vllm, or leave vllm out")
        if self.vllm.adapter == "only" and self.model.tuning == "full":
            raise ValueError("vllm.adapter: only sends an adapter, and model.tuning is full; set it to auto")
        if self.parallel in ("fsdp2", "hsdp") and (why := not_in_shards(self)):
            raise ValueError(why)
        self._check_evaluation()
        self._check_file_names()
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
        if self.stages and isinstance(self.task, CountdownConfig) and self.task.data is not None:
            raise ValueError("task.data is for evaluation; training draws its problems from the generator")
        for stage in self.stages:
            self._check_stage(stage)
        if self.evaluation.every and self.algorithm.reference != "base":
            raise ValueError("algorithm.reference must be base for evaluation.every: the base's attempts are replayed")
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
        if evaluation.offset and evaluation.split == "train":
            raise ValueError("evaluation.offset is of held-out problems, and evaluation.split is train; leave one out")
        idle = {
            "evaluation.samples": evaluation.samples > 1, "evaluation.temperature": evaluation.temperature > 0,
            "evaluation.correction_prompts": evaluation.correction_prompts, "evaluation.external": evaluation.external,
            "rollouts.self_refine": self.rollouts.self_refine,
        }  # fmt: skip
        if self.sampler == "recorded" and any(idle.values()):
            named = " and ".join(name for name, is_set in idle.items() if is_set)
            raise ValueError(f"sampler recorded answers each problem once, as it was recorded; leave out {named}")

    def _check_file_names(self) -> None:
        """Figures and the ids of problems go by a file's name without its folder."""
        seen: dict[str, tuple[str, str]] = {}
        if isinstance(self.task, RepairConfig):
            seen[Path(self.task.data).name] = ("task.data", self.task.data)
        for path in self.evaluation.external:
            _refuse_same_name(seen, "evaluation.external", path)
            seen[Path(path).name] = ("evaluation.external", path)
        held_out = self.checkpoint.held_out
        if held_out is not None and held_out not in {path for _, path in seen.values()}:
            _refuse_same_name(seen, "checkpoint.held_out", held_out)

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
            return None if self.sampler == "transformers" else 2.0
        return None if cap == "none" else cap

    @property
    def uses_reference(self) -> bool:
        """Whether anything is measured to, or sampled from, the model that training begins with."""
        rl = [stage for stage in self.stages if isinstance(stage, RLStage)]
        return self.samples_reference or any(stage.beta1 or getattr(stage, "beta2", 0) for stage in rl)

    @property
    def samples_reference(self) -> bool:
        """Whether that model writes attempts too."""
        return self.evaluation.every is not None or any(isinstance(s, RLStage) and s.offline_first for s in self.stages)

    @property
    def has_engine(self) -> bool:
        """Whether an engine samples the policy, here or behind `vllm.server`; transformers at most the base model."""
        return self.sampler == "vllm"

    @property
    def samples_elsewhere(self) -> bool:
        """Whether a server alone samples, so that processes that train need no whole model for it."""
        return bool(self.vllm.server) and not self.samples_reference

    @property
    def total_steps(self) -> int:
        return sum(stage.steps for stage in self.stages)


def _refuse_same_name(seen: dict[str, tuple[str, str]], setting: str, path: str) -> None:
    """Raises ValueError where a file seen before has the name of this one."""
    if Path(path).name in seen:
        other, there = seen[Path(path).name]
        raise ValueError(
            f"{setting} = {path!r}: has the file name of {other} = {there!r}, and by file names figures and problems "
            "are told apart; rename one, or name it once"
        )


class LabBaseConfig(Strict):
    """The lab's base model: a small Llama, and the corpus it learns from (lab/corpus.py)."""

    kind: Literal["lab_base"]
    """lab_base: builds the lab's base model."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Every random draw follows from it."""
    threads: Positive | None = None
    """Threads of the processor's arithmetic; by default all cores."""
    output: LocalPath = "runs/lab_base"
    """The folder that the model is written to."""
    device: Device = "auto"
    """Where it trains."""
    task: CountdownConfig = CountdownConfig()
    """The countdown task whose problems fill the corpus."""
    hidden_size: Positive = 128
    """Width of the network."""
    layers: Positive = 5
    """Layers of the network."""
    heads: Positive = 4
    """Attention heads; hidden_size must be a multiple of them."""
    steps: Positive = 2000
    """Updates."""
    batch: Positive = 128
    """Conversations in an update."""
    learning_rate: Rate = 1.5e-3
    """AdamW's, for embeddings, norms and head."""
    matrix_learning_rate: Rate = 7.0e-3
    """Muon's, for the layers' matrices."""
    first_solved: Share = 0.6
    """Share of the corpus's first attempts that are right."""
    right_copied: Share = 0.35
    """Share of right first attempts that the second repeats."""
    wrong_copied: Share = 0.2
    """Share of wrong first attempts that the second repeats."""
    second_solved: Share = 0.45
    """Share of second attempts that are right among those that repeat nothing."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.hidden_size % self.heads:
            raise ValueError(f"hidden_size ({self.hidden_size}) must be a multiple of heads ({self.heads})")
        return self


Config = TrainConfig | LabBaseConfig | CompareConfig
