"""MBPP and HumanEval: a program, judged by the data set's own tests. docs/tasks.md has the data's shapes.

MBPP's tests are shown and three solved examples stand first; HumanEval gives a function to complete, its tests hidden.
"""

import ast
import builtins
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfcorrect.config import CodeConfig, HubConfig
from selfcorrect.errors import DataError
from selfcorrect.tasks.dataset import DataTask
from selfcorrect.tasks.files import Row, find_files, read_rows, renamed, unique
from selfcorrect.tasks.programs import complete_function, defined_names, extract_program
from selfcorrect.tasks.sources import check_there, rows_of_folder, rows_of_hub
from selfcorrect.types import Grade, Outcome, Problem

if TYPE_CHECKING:
    from selfcorrect.grading.judge import CodeJudge, Verdict

PROMPT_IDS, TEST_IDS, TRAIN_IDS = range(1, 11), range(11, 511), range(601, 975)  # MBPP's splits; 511-600: validation
SHOTS = (2, 3, 4)  # the tasks that the canonical three-shot prompt shows
STEMS = {
    "mbpp": ("mbpp",),
    "mbpp_sanitized": ("sanitized-mbpp", "mbpp_sanitized"),
    "mbpp_plus": ("MbppPlus-OriginFmt", "mbpp_plus"),
    "humaneval": ("HumanEval",),
    "humaneval_plus": ("HumanEvalPlus-OriginFmt", "humaneval_plus"),
}
HUBS = {
    "mbpp": HubConfig(path="google-research-datasets/mbpp", name="full"),
    "mbpp_sanitized": HubConfig(path="google-research-datasets/mbpp", name="sanitized"),
    "mbpp_plus": HubConfig(path="evalplus/mbppplus"),
    "humaneval": HubConfig(path="openai/openai_humaneval"),
    "humaneval_plus": HubConfig(path="evalplus/humanevalplus"),
}
MBPP_SPLITS = ("prompt", "test", "validation", "train")


@dataclass(frozen=True, slots=True)
class Item:
    """A row as a task needs it. tests: what the judge runs; shown: what a prompt shows; before: HumanEval's prompt."""

    number: int
    text: str
    shown: str
    tests: str
    solution: str
    setup: str = ""
    before: str = ""
    entry_point: str = ""


class CodeTask(DataTask):
    """The task `code`. A problem's reference names its row, with a digest of all that is graded against; the tests
    themselves stay here, out of every log.
    """

    name = "code"

    def __init__(self, config: CodeConfig) -> None:
        super().__init__()
        self._config = config
        self._items: dict[str, Item] = {}
        self._judge: CodeJudge | None = None

    def correction_prompt(self, problem: Problem) -> str:
        return self.reworded(problem, self._config.correction_prompt)

    def reworded(self, problem: Problem, template: str) -> str:
        return template.format()

    def grade(self, answers: Sequence[tuple[Problem, str]]) -> list[Grade]:
        """Verdicts as grades; texts without a program never reach the judge."""
        from selfcorrect.grading.judge import Checks

        programs = [self.program(problem, text) for problem, text in answers]
        asked = [row for row, program in enumerate(programs) if program]
        jobs = []
        for row in asked:
            item = self._item(answers[row][0])
            jobs.append(
                (
                    programs[row],
                    Checks(
                        code=item.tests,
                        entry_point=item.entry_point or None,
                        helpers=item.before,
                        setup=item.setup,
                        reference=item.solution,
                    ),
                )
            )
        judge = self._started()
        verdicts = dict(zip(asked, judge.grade(jobs) if jobs else [], strict=True))
        nothing = Grade(Outcome.NO_ANSWER, 0.0, "", "no program in the text")
        return [grade_of(verdicts[row], programs[row]) if row in verdicts else nothing for row in range(len(answers))]

    def program(self, problem: Problem, text: str) -> str:
        """The whole program that a text means for this problem; "" where it holds none."""
        item = self._item(problem)
        found = extract_program(text, names=asked_for(item), body=bool(item.before))
        return complete_function(item.before, item.entry_point, found) if found and item.before else found

    def close(self) -> None:
        if self._judge is not None:
            self._judge.close()
            self._judge = None

    def load(self, path: str) -> list[Problem]:
        """Rows of MBPP's or HumanEval's shape, by their fields."""
        items = _items(renamed(read_rows(check_there(path, "file")), self._config.columns))
        return [self.problem(item, f"{Path(path).name}/{item.number}") for item in items]

    def problem(self, item: Item, name: str, examples: bool = True) -> Problem:
        """The problem of a row, its prompt filled in; from now on it can be graded."""
        config = self._config
        if item.before:
            prompt = config.completion_prompt.format(code=item.before.strip("\n"))
        else:
            shots = self._examples if examples else ""
            prompt = config.prompt.format(examples=shots, task=item.text, tests=item.shown)
        self._items[name] = item
        digest = hashlib.sha256(repr(item).encode()).hexdigest()[:16]
        return Problem(name, self.name, prompt, {"task_id": name, "row": digest})

    def _item(self, problem: Problem) -> Item:
        return self._items[problem.reference["task_id"]]

    def _started(self) -> "CodeJudge":
        if self._judge is None:
            from selfcorrect.grading.judge import CodeJudge

            config = self._config
            named = {"time_cap": config.time_cap, "memory_mb": config.memory_mb}
            limits: dict[str, Any] = {name: value for name, value in named.items() if value is not None}
            self._judge = CodeJudge(
                workers=config.workers,
                time_limit=config.time_limit,
                time_factor=config.time_factor,
                prelude=config.prelude,
                preload=config.packages,
                allow_unsandboxed=config.allow_unsandboxed,
                **limits,
            )
            self._notes.append(f"untrusted programs are confined by {self._judge.confinement}")
        return self._judge

    def _load_train(self) -> list[Problem]:
        name = self._config.dataset
        if name not in ("mbpp", "mbpp_sanitized"):
            raise DataError(
                f"task.dataset = {name!r} is for evaluation only; to train, set task.dataset to mbpp and "
                f"task.evaluate_on to {name}"
            )
        return [self.problem(item, f"{name}/{item.number}") for item in self._own if item.number in TRAIN_IDS]

    def _load_test(self) -> list[Problem]:
        name = self._config.evaluate_on or self._config.dataset
        items = self._evaluated
        if name == "mbpp_plus":
            # Its ids are MBPP's: whoever trains on MBPP must not be evaluated on what was trained on.
            trains = self._config.dataset in ("mbpp", "mbpp_sanitized")
            out = {*PROMPT_IDS, *(TRAIN_IDS if trains else ())}
            items = [item for item in items if item.number not in out]
        elif name in ("mbpp", "mbpp_sanitized"):
            items = [item for item in items if item.number in TEST_IDS]
        return [self.problem(item, f"{name}/{item.number}") for item in items]

    @cached_property
    def _own(self) -> list[Item]:
        config = self._config
        return load_set(config.dataset, config.data, config.hub, "task.data", config.columns)

    @cached_property
    def _evaluated(self) -> list[Item]:
        config = self._config
        if config.evaluate_on is None:
            return self._own
        data, folder = config.evaluate_data, Path(config.data or "")
        if data is None and config.evaluate_hub is None and config.data is not None and folder.is_dir():
            # Data sets that lie in one folder need naming once.
            data = config.data if find_files(folder, STEMS[config.evaluate_on]) else None
        return load_set(config.evaluate_on, data, config.evaluate_hub, "task.evaluate_data")

    @cached_property
    def _examples(self) -> str:
        """The solved examples, from the prompt split of the data set that the problems come from."""
        config = self._config
        if not config.shots:
            return ""
        source = self._own if config.dataset.startswith("mbpp") else self._evaluated
        by_number = {item.number: item for item in source if not item.before}
        missing = [number for number in SHOTS[: config.shots] if number not in by_number]
        if missing:
            raise DataError(
                f"task.shots = {config.shots}: the data holds no task {missing[0]} to show as an example (MBPP's "
                "prompt split); add it, or set task.shots=0"
            )
        shown = [by_number[number] for number in SHOTS[: config.shots]]
        return "".join(config.example.format(task=i.text, tests=i.shown, code=i.solution.strip()) for i in shown)


@cache
def asked_for(item: Item) -> frozenset[str]:
    """The names that the tests want of a program: those they use and define nowhere, and that the solution defines."""
    if item.entry_point:
        return frozenset({item.entry_point})
    try:
        nodes = list(ast.walk(ast.parse(item.shown or item.tests)))  # the data set's own, so they may be parsed
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return frozenset()
    used = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    for node in nodes:
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            used.discard(node.id)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            used.discard(node.name)
        elif isinstance(node, ast.arg):
            used.discard(node.arg)
        elif isinstance(node, ast.alias):
            used.discard((node.asname or node.name).partition(".")[0])
    used -= set(dir(builtins))
    return frozenset(used & defined_names(item.solution) or used)


def grade_of(verdict: "Verdict", program: str) -> Grade:
    """A judge's verdict on a program -> Grade. The answer is the program, for telling whether it changed."""
    reason = str(verdict.reason)
    outcome = {
        "passed": Outcome.CORRECT,
        "timeout": Outcome.TIMEOUT,
        "grader_failed": Outcome.GRADER_FAILED,
    }.get(reason, Outcome.WRONG)
    detail = f"{reason}: {verdict.detail}" if verdict.detail else reason
    return Grade(outcome, float(outcome is Outcome.CORRECT), program.strip(), detail)


def load_set(
    name: str, data: str | None, hub: HubConfig | None, setting: str, columns: Mapping[str, str] | None = None
) -> list[Item]:
    """All rows of a data set, from a file, a folder or the hub, its columns renamed. Raises DataError."""
    rows = _rows_of_set(name, data, hub, setting)
    return _items(rows if columns is None else renamed(rows, columns), name)


def _rows_of_set(name: str, data: str | None, hub: HubConfig | None, setting: str) -> list[Row]:
    if data is None:
        source = hub or HUBS[name]
        splits = MBPP_SPLITS if name in ("mbpp", "mbpp_sanitized") else ("test",)
        return [row for split in splits for row in rows_of_hub(source, split)]
    path = check_there(data, setting)
    if path.is_file():
        return read_rows(path)
    files = find_files(path, STEMS[name])
    if files:
        return [row for file in files for row in read_rows(file)]
    by_split = rows_of_folder(data, {split: (split,) for split in MBPP_SPLITS})
    if not by_split:
        raise DataError(
            f"{setting} = {data!r}: the folder holds neither {STEMS[name][0]}.* nor test.*, as the hub's do"
        )
    return [row for rows in by_split.values() for row in rows]


def _items(rows: list[Row], name: str = "") -> list[Item]:
    """name: the data set they belong to; without one, each row's fields say what it is."""
    for row in rows:
        if "plus_input" in row.fields:
            raise row.wrong("plus_input", "is of EvalPlus' own form, which is not read; use the OriginFmt file")
    rows = unique(rows, lambda row: row.integer("task_id"), "task_id")
    complete = name.startswith("humaneval")
    return [
        humaneval_item(row) if complete or (not name and row.has("entry_point")) else mbpp_item(row) for row in rows
    ]


def mbpp_item(row: Row) -> Item:
    """A row of MBPP, its sanitized form or MBPP+: task_id, text or prompt, code, test_list, and test for MBPP+."""
    listed = [plain(test) for test in row.texts("test_list")]
    if not listed:
        raise row.wrong("test_list", "is empty, so nothing could be graded")
    imports = row.texts("test_imports") if row.has("test_imports") else []
    tests = plain(row.text("test")) if row.has("test") else "\n".join(listed)
    return Item(
        number=row.integer("task_id"),
        text=plain(row.text("text" if "text" in row.fields else "prompt")).strip(),
        shown="\n".join(listed),
        tests="\n".join([*imports, tests]),
        solution=plain(row.text("code")),
        setup=plain(row.text("test_setup_code", empty=True)) if row.has("test_setup_code") else "",
    )


def humaneval_item(row: Row) -> Item:
    """A row of HumanEval or HumanEval+ (in HumanEval's own form): the test defines check(candidate)."""
    tests, prompt = plain(row.text("test")), plain(row.text("prompt"))
    if "def check(" not in tests:
        raise row.wrong("test", "defines no check(candidate)")
    entry_point = row.text("entry_point")
    if f"def {entry_point}" not in prompt:
        raise row.wrong("entry_point", f"= {entry_point!r} is not defined in the prompt")
    return Item(
        number=row.integer("task_id"),
        text="",
        shown="",
        tests=tests,
        solution=prompt + plain(row.text("canonical_solution")),
        before=prompt,
        entry_point=entry_point,
    )


def plain(text: str) -> str:
    """Line ends as they are everywhere else: 972 of MBPP's programs have those of Windows, 4 end in half of one."""
    return text.replace("\r\n", "\n").replace("\r", "\n")
