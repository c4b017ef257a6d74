"""The settings of each task; a recipe's `task.name` says which one it is. docs/tasks.md has the data's shapes.

Every prompt is a template that a recipe may replace. What it fills in is checked when the recipe is read.
"""

from typing import Annotated, Any, Literal, Self, assert_never

from pydantic import Field, model_validator

from selfcorrect.config.base import LocalPath, NonNegative, Paper, Positive, Rate, Strict, check_template, kinds_of


class HubConfig(Strict):
    """A data set of the Hugging Face hub, or a local folder of the hub's layout."""

    path: LocalPath
    """Its name on the hub, or the folder."""
    name: str | tuple[str, ...] | None = None
    """Its configuration, or several of them, one after the other."""
    revision: str | None = None
    """The branch, tag or commit; by default the newest."""


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
    """Countdown: three numbers and a target, each number used exactly once. Problems are generated."""

    name: Literal["countdown"] = "countdown"
    """countdown: the generated task of the lab."""
    max_number: Annotated[int, Field(ge=5, le=10_000)] = 100
    """The largest number and target that the generator draws."""
    limit: Annotated[int, Field(ge=5, le=1_000_000)] = 200
    """The largest result of a step in the answers that the generator builds problems from."""
    data: LocalPath | None = None
    """A file of {"input": "3,7,12", "output": "22"} or {"nums": [3, 7, 12], "target": 22} rows in place of the
    generator (evaluation only)."""
    prompt: str = (
        "Reach the target {target} from the numbers {numbers}. Use each number exactly once, with +, -, * and /, "
        "whole numbers only. Write one step a line in the form `a op b = c` and nothing else."
    )
    """What asks for attempt 1; may fill in {numbers} and {target}, and must hold both."""
    correction_prompt: Annotated[str, Paper("p1, the correction instruction")] = (
        "Go over your steps again: they may hold a mistake. If they do, mend it. Write the whole solution once "
        "more, one step a line in the form `a op b = c` and nothing else."
    )
    """What asks for the next attempt, without a word on whether the last one was right; may fill in {numbers} and
    {target}."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        fields = {"numbers", "target"}
        check_template("correction_prompt", self.correction_prompt, fields)
        check_template("prompt", self.prompt, fields, frozenset(fields))
        if self.limit < self.max_number:
            raise ValueError(f"limit ({self.limit}) must not be under max_number ({self.max_number})")
        return self


class MathConfig(Strict):
    """MATH, GSM8K, or your own problems with a stated answer."""

    name: Literal["math"]
    """math: problems whose answer is compared with a reference."""
    dataset: Literal["math", "gsm8k"] = "math"
    """Which data set, and so which form its rows have."""
    split: Annotated[Literal["paper", "original"] | None, Paper("12,000 to train on, MATH-500 to report")] = None
    """paper is MATH's train and test without MATH-500, evaluated on MATH-500; original is the data set's own. By
    default paper for math."""
    data: LocalPath | None = None
    """A folder of train.*, test.* (and math500.*), or one file to evaluate on; else the hub."""
    hub: HubConfig | None = None
    """Another data set of the hub, of the same form."""
    hub_500: HubConfig = HubConfig(path="HuggingFaceH4/MATH-500")
    """Where MATH-500 comes from, for split: paper."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Names of your own for the data's fields: our name, then the column's, as in problem: exercise."""
    workers: Positive | None = None
    """Processes that grade; by default one a core, at most 8."""
    seconds: Rate = 3.0
    """The grader's limit for one answer."""
    prompt: str = (
        "Work out the answer to this problem step by step, and show your reasoning. {final_form}\n\nProblem:\n{problem}"
    )
    """What asks for attempt 1; must hold {problem}, and may fill in {final_form}, the sentence that fixes how an answer
    is stated."""
    correction_prompt: Annotated[str, Paper("p1, the correction instruction")] = (
        "Your solution may contain a mistake. Read it again critically; if you find an error, put it right. Then "
        "write out the complete solution once more, from the start. {final_form}"
    )
    """What asks for the next attempt, without a word on whether the last one was right; may fill in {problem} and
    {final_form}."""

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
    """Programs that tests decide on: MBPP (tests shown, solved examples first) or HumanEval (a function to complete,
    tests hidden).

    A program may take max(time_limit, time_factor x the data set's own solution) seconds, at most time_cap.
    """

    name: Literal["code"]
    """code: programs that are run against tests."""
    dataset: CodeSet = "mbpp"
    """Which data set, and so which form its rows have."""
    data: LocalPath | None = None
    """A folder that holds the data set's file, or the file; else the hub."""
    hub: HubConfig | None = None
    """Another data set of the hub, of the same form."""
    evaluate_on: Annotated[CodeSet | None, Paper("trained on MBPP, reported on HumanEval")] = None
    """Another data set to evaluate on, as the paper trains on mbpp and reports on humaneval."""
    evaluate_data: LocalPath | None = None
    """The folder or file of the data set in evaluate_on."""
    evaluate_hub: HubConfig | None = None
    """A data set of the hub for evaluate_on."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Names of your own for the fields of dataset's rows: our name, then the column's, as in text: task."""
    shots: Annotated[int, Field(ge=0, le=3), Paper("three-shot prompt of MBPP")] = 3
    """How many solved examples stand before an MBPP task."""
    workers: Positive | None = None
    """Processes that grade; by default, and at most, one a core."""
    time_limit: Rate = 0.5
    """Seconds a program may take in any case."""
    time_factor: NonNegative = 20.0
    """How many times the time of the data set's own solution it may take."""
    time_cap: Rate | None = None
    """The most seconds a program may take, however slow the data set's own solution is; by default 10."""
    memory_mb: Positive | None = None
    """Address space a program may take, in MiB; by default 1,024 (docs/grading.md)."""
    prelude: bool = True
    """Import common modules before the program (docs/grading.md)."""
    packages: tuple[str, ...] = ()
    """What a program may import besides the standard library, such as [numpy]."""
    allow_unsandboxed: bool = False
    """Run untrusted programs even where this machine cannot confine them."""
    prompt: str = (
        "You write Python functions. For each task, reply with one block of code that holds the whole program; it "
        "must pass the tests shown.\n\n{examples}Task: {task}\nTests:\n{tests}"
    )
    """What asks for attempt 1 at MBPP; must hold {task}, and may fill in {examples} and {tests}."""
    example: str = "Task: {task}\nTests:\n{tests}\nAnswer:\n```python\n{code}\n```\n\n"
    """One solved example; must hold {task} and {code}, and may fill in {tests}."""
    completion_prompt: str = (
        "Complete this Python function. Reply with one block of code that holds the whole program, imports and "
        "signature included.\n\n```python\n{code}\n```"
    )
    """What asks for attempt 1 at HumanEval; must hold {code}."""
    correction_prompt: Annotated[str, Paper("p1, the correction instruction")] = (
        "The program above may be wrong. Check it, and mend it if you find a fault. Reply with the whole corrected "
        "program in one block of code, and with nothing else."
    )
    """What asks for the next attempt, without a word on whether the last one was right; fills in nothing."""

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
    """Offline repair: attempt 1 is a recorded text, the model writes the next one."""

    name: Annotated[Literal["repair"], Paper("MBPP-R, Table 3")]
    """repair: mend recorded first attempts."""
    data: LocalPath
    """Rows as `selfcorrect make-repair-set` writes them, or of MBPP-R's shape (docs/tasks.md)."""
    of: Annotated[MathConfig | CodeConfig, Field(discriminator="name")] = CodeConfig(name="code")
    """The task that the first attempts are at, math or code, with its data, prompts and grader."""


class CustomConfig(Strict):
    """A task of your own, in one Python file; docs/tasks.md says what the file defines."""

    name: Literal["custom"]
    """custom: a task of your own."""
    file: LocalPath
    """The Python file."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Handed to the file's problems() as they are."""
    seconds: Rate = 60.0
    """How long a call of grade() or grade_many() may take. One that takes longer is left to itself: a timeout, and of
    grade_many() grader_failed."""
    workers: Positive = 1
    """Threads that grade, each another answer (grade_many(): another share of them); more than one where the function
    waits for others, as a judge behind HTTP, and may be called by several threads at once."""


TaskConfig = Annotated[
    CountdownConfig | MathConfig | CodeConfig | RepairConfig | CustomConfig, Field(discriminator="name")
]
TASK_KINDS: dict[str, type[Strict]] = kinds_of(TaskConfig, "name")


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
        case CodeConfig() | CustomConfig():
            return set()
        case other:
            assert_never(other)
