"""The settings of each task; a recipe's `task.name` says which one it is. docs/tasks.md has the data's shapes.

Every prompt is a template that a recipe may replace. What it fills in is checked when the recipe is read.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from selfcorrect.config.base import NonNegative, Positive, Rate, Strict, check_template


class HubConfig(Strict):
    """A data set of the Hugging Face hub, or a local folder of the hub's layout. name: its configuration(s)."""

    path: str
    name: str | tuple[str, ...] | None = None
    revision: str | None = None


MATH_FIELDS = ("problem", "solution", "answer", "level", "subject", "type", "unique_id", "question")
CODE_FIELDS = (
    "task_id", "text", "prompt", "code", "test_list", "test", "test_imports", "test_setup_code", "entry_point",
    "canonical_solution",
)  # fmt: skip


def check_columns(columns: dict[str, str], known: tuple[str, ...]) -> None:
    """Raises ValueError where `columns` names a field that the task does not read."""
    if unknown := [name for name in columns if name not in known]:
        raise ValueError(
            f"columns.{unknown[0]} is no field that this task reads (columns: FIELD: COLUMN OF YOUR FILE); the fields "
            f"are {', '.join(known)}"
        )


class CountdownConfig(Strict):
    """Three numbers and a target. Templates may use {numbers} and {target}.

    max_number bounds numbers and targets that the generator draws; limit bounds every result of the answers
    it builds problems from. data: a JSONL file of {"input": "3,7,12", "output": "22"} or
    {"nums": [3, 7, 12], "target": 22} rows in place of the generator (evaluation only).
    """

    name: Literal["countdown"] = "countdown"
    max_number: Annotated[int, Field(ge=5, le=10_000)] = 100
    limit: Annotated[int, Field(ge=5, le=1_000_000)] = 200
    data: str | None = None
    prompt: str = (
        "Reach the target {target} from the numbers {numbers}. Use each number exactly once, with +, -, * and /, "
        "whole numbers only. Write one step a line in the form `a op b = c` and nothing else."
    )
    correction_prompt: str = (
        "Go over your steps again: they may hold a mistake. If they do, mend it. Write the whole solution once "
        "more, one step a line in the form `a op b = c` and nothing else."
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        fields = {"numbers", "target"}
        check_template("correction_prompt", self.correction_prompt, fields)
        check_template("prompt", self.prompt, fields, frozenset(fields))
        if self.limit < self.max_number:
            raise ValueError(f"limit ({self.limit}) must not be under max_number ({self.max_number})")
        return self


class MathConfig(Strict):
    """MATH or GSM8K. Templates may use {problem} and {final_form}, the sentence that fixes how an answer is stated.

    split: paper is MATH's train and test without MATH-500, evaluated on MATH-500; original is the data set's own.
    data: a folder of train.*, test.* (and math500.*), or one file to evaluate on; else the hub. columns: names of your
    own for the data's fields, as problem: exercise. seconds: the grader's limit for an answer; workers: its processes,
    by default one a core.
    """

    name: Literal["math"]
    dataset: Literal["math", "gsm8k"] = "math"
    split: Literal["paper", "original"] | None = None
    data: str | None = None
    hub: HubConfig | None = None
    hub_500: HubConfig = HubConfig(path="HuggingFaceH4/MATH-500")
    columns: dict[str, str] = Field(default_factory=dict)
    workers: Positive | None = None
    seconds: Rate = 3.0
    prompt: str = (
        "Work out the answer to this problem step by step, and show your reasoning. {final_form}\n\nProblem:\n{problem}"
    )
    correction_prompt: str = (
        "Your solution may contain a mistake. Read it again critically; if you find an error, put it right. Then "
        "write out the complete solution once more, from the start. {final_form}"
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_template("prompt", self.prompt, {"problem", "final_form"}, frozenset({"problem"}))
        check_template("correction_prompt", self.correction_prompt, {"problem", "final_form"})
        check_columns(self.columns, MATH_FIELDS)
        if self.dataset == "gsm8k" and self.split == "paper":
            raise ValueError("split paper is MATH's; gsm8k has only the original one (task.split=original)")
        if self.data is not None and self.hub is not None:
            raise ValueError("data and hub both name where the problems come from; leave one out")
        return self


CodeSet = Literal["mbpp", "mbpp_sanitized", "mbpp_plus", "humaneval", "humaneval_plus"]


class CodeConfig(Strict):
    """MBPP (tests shown, `shots` solved examples first) or HumanEval (a function to complete, tests hidden).

    data: a folder that holds the data set's file, or the file; else the hub. evaluate_on, evaluate_data and
    evaluate_hub: another data set to evaluate on, as the paper trains on mbpp and reports on humaneval.
    columns: names of your own for the fields of `dataset`'s rows, as text: task.
    Templates: prompt may use {examples}, {task} and {tests}; example {task}, {tests} and {code}; completion_prompt,
    for HumanEval, {code}; correction_prompt nothing.
    A program may take max(time_limit, time_factor x the data set's own solution) seconds, at most time_cap, and
    memory_mb. prelude: common modules are imported before it (docs/grading.md). packages: what it may import besides
    the standard library, such as [numpy]. workers: processes that grade, by default one a core. allow_unsandboxed: run
    untrusted programs even where this machine cannot confine them.
    """

    name: Literal["code"]
    dataset: CodeSet = "mbpp"
    data: str | None = None
    hub: HubConfig | None = None
    evaluate_on: CodeSet | None = None
    evaluate_data: str | None = None
    evaluate_hub: HubConfig | None = None
    columns: dict[str, str] = Field(default_factory=dict)
    shots: Annotated[int, Field(ge=0, le=3)] = 3
    workers: Positive | None = None
    time_limit: Rate = 0.5
    time_factor: NonNegative = 20.0
    time_cap: Rate | None = None
    memory_mb: Positive | None = None
    prelude: bool = True
    packages: tuple[str, ...] = ()
    allow_unsandboxed: bool = False
    prompt: str = (
        "You write Python functions. For each task, reply with one block of code that holds the whole program; it "
        "must pass the tests shown.\n\n{examples}Task: {task}\nTests:\n{tests}"
    )
    example: str = "Task: {task}\nTests:\n{tests}\nAnswer:\n```python\n{code}\n```\n\n"
    completion_prompt: str = (
        "Complete this Python function. Reply with one block of code that holds the whole program, imports and "
        "signature included.\n\n```python\n{code}\n```"
    )
    correction_prompt: str = (
        "The program above may be wrong. Check it, and mend it if you find a fault. Reply with the whole corrected "
        "program in one block of code, and with nothing else."
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_template("prompt", self.prompt, {"examples", "task", "tests"}, frozenset({"task"}))
        check_template("example", self.example, {"task", "tests", "code"}, frozenset({"task", "code"}))
        check_template("completion_prompt", self.completion_prompt, {"code"}, frozenset({"code"}))
        check_template("correction_prompt", self.correction_prompt, set())
        check_columns(self.columns, CODE_FIELDS)
        if self.data is not None and self.hub is not None:
            raise ValueError("data and hub both name where the problems come from; leave one out")
        if self.evaluate_on is None and (self.evaluate_data is not None or self.evaluate_hub is not None):
            raise ValueError("evaluate_data and evaluate_hub belong to evaluate_on, which is not set")
        if self.evaluate_data is not None and self.evaluate_hub is not None:
            raise ValueError("evaluate_data and evaluate_hub both name where the problems come from; leave one out")
        return self


class RepairConfig(Strict):
    """Offline repair: attempt 1 is a recorded text, the model writes the next one.

    data: rows as `selfcorrect make-repair-set` writes them, or of MBPP-R's shape (docs/tasks.md). of: the task the
    first attempts are at, with its data, prompts and grader.
    """

    name: Literal["repair"]
    data: str
    of: Annotated[MathConfig | CodeConfig, Field(discriminator="name")] = CodeConfig(name="code")


class CustomConfig(Strict):
    """A task of the user's own, in one Python file; docs/tasks.md says what the file defines. options: passed to it."""

    name: Literal["custom"]
    file: str
    options: dict[str, Any] = Field(default_factory=dict)


TaskConfig = Annotated[
    CountdownConfig | MathConfig | CodeConfig | RepairConfig | CustomConfig, Field(discriminator="name")
]
TASK_KINDS: dict[str, type[Strict]] = {
    "countdown": CountdownConfig,
    "math": MathConfig,
    "code": CodeConfig,
    "repair": RepairConfig,
    "custom": CustomConfig,
}


ATTEMPT_TOKENS = {"math": 1024, "code": 512, "repair": 512}  # where no recipe says, as in the shipped ones


def correction_fields(task: TaskConfig) -> set[str]:
    """What a correction prompt of this task may fill in."""
    match task:
        case MathConfig():
            return {"problem", "final_form"}
        case CountdownConfig():
            return {"numbers", "target"}
        case RepairConfig():
            return correction_fields(task.of)
    return set()
