"""The commands of README and docs, run one after the other as a reader would, a page in a folder of its own, at a tiny size.

Every command is run, or stands in NOT_RUN or HOLDS with why it is only read by the parser (test_pages.py). The quick ones run in the suite,
the others by night. A command of a new name gets a line in RUN or in NOT_RUN.
"""

import gzip
import json
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from selfcorrect import cli
from tests.docs.around import asked, launch, small_comparison, start_and_ask
from tests.docs.shell import ELSEWHERE, LAUNCHERS, ROOT, Command, commands, pages
from tests.support import data

NOT_RUN = {  # how a command begins -> why it is not run here
    "make ": "installs into .venv, and asks a package index; its target must exist",
    "pip ": "asks a package index; the extra must exist",
    "source ": "enters .venv",
    "python ": "benchmarks take minutes; tests/benchmarks runs what it can",
    "python3 ": "makes an environment",
    **dict.fromkeys((f"{program} " for program in ELSEWHERE), "another program"),
}
HOLDS = {  # a word that a command holds -> why it is not run here
    "looked.yaml": "its log needs inspect_ai; make test-bridges reads and grades logs of it",
    "logs/gsm8k.eval": "needs inspect_ai; make test-bridges reads and grades logs of it",
}
SMALL = [
    "model.device=cpu", "threads=1", "rollouts.problems_per_step=1", "rollouts.rollouts_per_problem=2", "rollouts.max_new_tokens=4",
    "rollouts.rows_at_once=8", "optimizer.micro_batch=2", "evaluation.problems=2", "log.trackers=[]",
]  # fmt: skip
ONE_STEP = ["stages.stage1.steps=1", "stages.stage2.steps=1"]
TRACE = {
    "id": "a", "prompt": "2 + 2?", "correction_prompt": "Again.", "first": {"text": "5", "outcome": "wrong"},
    "second": {"text": "4", "outcome": "correct"},
}  # fmt: skip
XTUNER = [
    {"data_source": "x", "prompt": [{"role": "user", "content": f"2 + {n}? After ####."}],
     "reward_model": {"ground_truth": str(2 + n), "style": "rule"}, "extra_info": {"question": f"2 + {n}?"}} for n in range(10)
]  # fmt: skip
# Pages whose runs/mine is another one.
RUNS_MINE = {
    "docs/tuning.md": ["model.tuning=lora"],
    "docs/serve.md": ["task.prompt={numbers} : {target}", "task.correction_prompt=?"],
}


def _train(words: list[str]) -> list[str]:
    if "runs/NAME" in words:
        return [*words, "stages.stage2.steps=2"]
    if "--resume" in words:
        return [re.sub(r"steps=\d+", "steps=2", word) for word in words]
    if "recipes/lab_base.yaml" in words:
        return [*words, "steps=2", "batch=4", "threads=1"]
    data = ["task.data=./math"] if any("recipes/math" in word for word in words) else []
    return [*words, *SMALL, *ONE_STEP, *data, "model.path=./my-model"]


def _plan(words: list[str]) -> list[str]:
    small = [text for text in SMALL if not text.startswith(("model", "evaluation", "log"))]
    return [*words, *small, *ONE_STEP, "model.path=./my-model"]


def _launched(words: list[str]) -> list[str]:
    """`torchrun ... -m selfcorrect.cli train RECIPE`: what stands behind `train` as without it, and each run its name."""
    place = words.index("train")
    ours = [word for word in words[place:] if not word.startswith("output=")]
    name = [] if "--resume" in ours else ["name=NAME"] if words[1:3] == ["--nproc-per-node", "8"] and len(ours) == 2 else [
        f"name={re.sub(r'[^a-z0-9]', '', ''.join(words[:place] + ours[2:]))[-40:]}"
    ]  # fmt: skip
    return [*words[:place], *_train(ours), *name]


def _evaluate(words: list[str]) -> list[str]:
    if "sampler=recorded" in words:
        return words
    return [*words, *_data(words), *(text for text in SMALL if not text.startswith(("optimizer", "log")))]


def _data(words: Sequence[str]) -> list[str]:
    """Where a data set of the hub would be asked for, a file here."""
    if not any(word.startswith("task.name=math") for word in words) or any(
        word.startswith("task.data=") for word in words
    ):
        return []
    return ["task.data=./gsm8k" if "task.dataset=gsm8k" in words else "task.data=./math"]


def _grade(words: list[str]) -> list[str]:
    known = any(word.startswith("task.data=") for word in words)
    return [*words, "task.workers=1", *([] if "math" in words or known else ["task.data=./humaneval"])]


def _as_it_is(words: list[str]) -> list[str]:
    return words


RUN: dict[str, Callable[[list[str]], list[str]]] = {
    "train": _train,
    "evaluate": _evaluate,
    "check": lambda words: [*words, *(SMALL if "--load" in words else [])],
    "grade": _grade,
    "plan": _plan,
    "compare": small_comparison,
    "serve": lambda words: words,
    **dict.fromkeys(LAUNCHERS, _launched),
    "scale": lambda words: [*words, "--most", "2", "--problems", "2"],
    "make-repair-set": lambda words: [*["2" if word == "500" else word for word in words], "task.data=./math", *SMALL],
    **dict.fromkeys(("play", "report", "export", "analyse", "diff", "prune", "traces", "init", "explain", "recipes", "tasks", "completion"), _as_it_is),
}  # fmt: skip
QUICK = ("init", "explain", "recipes", "tasks", "completion", "traces", "check")


def reason(command: Command) -> str | None:
    """Why a command is not run; None for one that is."""
    text = f"{' '.join(command.words)} "
    held = next((why for word, why in HOLDS.items() if word in command.words), None)
    return held or next((why for begin, why in NOT_RUN.items() if text.startswith(begin)), None)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a reader has: recipes, data, recordings, and a model as far as files tell."""
    here = tmp_path_factory.mktemp("reader")
    (here / "my-model").mkdir()
    (here / "my-model" / "config.json").write_text("{}")
    (here / "recipes").symlink_to(ROOT / "src" / "selfcorrect" / "recipes")
    for split, rows in (("train", data.MATH[:8]), ("test", data.MATH[8:10]), ("math500", data.MATH[10:])):
        data.write(here / "math" / f"{split}.jsonl", rows)
    for split, some in (("train", data.GSM8K[:4]), ("test", data.GSM8K[4:])):
        data.write(here / "gsm8k" / f"{split}.jsonl", some)
    data.write(here / "mbpp" / "mbpp.jsonl", data.MBPP)
    for place in ("humaneval", "data/humaneval"):
        data.write(here / place / "HumanEval.jsonl", data.HUMANEVAL)
    data.write(here / "problems.jsonl", [{"question": row["problem"], "answer": row["answer"]} for row in data.MATH])
    data.write(here / "xtuner.jsonl", XTUNER)
    data.write(here / "traces.jsonl", [TRACE])
    return here


@pytest.fixture
def reader(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    here = tmp_path / "reader"
    shutil.copytree(folder, here, symlinks=True)
    monkeypatch.chdir(here)
    return here


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.support.hf_model import save_qwen2

    return save_qwen2(tmp_path_factory.mktemp("model"))


def _prepare(command: Command, call: Callable[[list[str]], None]) -> None:
    """What the text before a command has told the reader to have, or what one of two ways would leave behind."""
    text = " ".join(command.words)
    if "outputs.jsonl" in text:
        code = "--task code" in text
        rows = [{"task_id": "HumanEval/0", "attempts": ["```python\nx = 1\n```"] * 2}] if code else [
            {"problem": "1 + 1?", "answer": "2", "attempts": ["The answer is 3.", "The answer is \\boxed{2}."]}
        ]  # fmt: skip
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        Path("outputs.jsonl").write_text(lines)
        Path("outputs.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
        Path("outputs.graded.jsonl").unlink(missing_ok=True)
    if command.words[1] == "export":
        shutil.rmtree("mine", ignore_errors=True)
    if command.words[1] == "init":
        told = [*command.words, "--to", "mine.yaml"]  # where the page names none, or this
        recipe = Path(told[told.index("--to") + 1])
        shutil.rmtree(f"{recipe.stem}-data", ignore_errors=True)
        recipe.unlink(missing_ok=True)
    if "runs/mine" in text and not Path("runs/mine").exists():
        call(
            [
                "train",
                "countdown",
                "name=mine",
                *SMALL,
                *ONE_STEP,
                "model.path=./my-model",
                *RUNS_MINE.get(command.file, []),
            ]
        )


def _run_one(
    page: Path, command: Command, words: list[str], call: Callable[[list[str]], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, asked(words, patch) as told:
        if told[0] in LAUNCHERS:
            launch(command, _launched(told))
        elif told[1] == "serve":
            start_and_ask(page, told[1:])
        else:
            call(RUN[told[1]](told[1:]))


def _run(page: Path, chosen: Callable[[Command], bool], monkeypatch: pytest.MonkeyPatch) -> int:
    """Runs a page's commands in their order; returns how many."""

    def call(words: list[str]) -> None:
        monkeypatch.setattr(sys, "argv", ["selfcorrect", *words])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert not ended.value.code, f"selfcorrect {' '.join(words)} ended with {ended.value.code}"

    count = 0
    for command in commands(page):
        if command.inline or reason(command) is not None or not chosen(command):
            continue
        placeholders = {"MODEL": "./my-model", "RECIPE": "recipes/math_qwen2.5-1.5b-instruct.yaml", "RUN": "runs/mine"}
        words = [placeholders.get(word, word) for word in command.words]
        _prepare(command, call)
        _run_one(page, command, words, call, monkeypatch)
        count += 1
    return count


def _runnable(page: Path) -> list[Command]:
    return [command for command in commands(page) if not command.inline and reason(command) is None]


PAGES = [page for page in pages() if _runnable(page)]
NAMES = [page.relative_to(ROOT).as_posix() for page in PAGES]


def test_every_command_is_run_or_has_a_reason() -> None:
    untold = [
        command
        for page in PAGES
        for command in _runnable(page)
        if command.words[0 if command.words[0] in LAUNCHERS else 1] not in RUN
    ]
    assert not untold, (
        "give RUN (how it is run small) or NOT_RUN (why it is not) of tests/docs/test_run.py a line for:\n"
        + "\n".join(map(str, untold))
    )
    assert len(PAGES) >= 8


def _quick(command: Command) -> bool:
    return command.words[0] == "selfcorrect" and command.words[1] in QUICK and "--load" not in command.words


@pytest.mark.parametrize(
    "page", [page for page in PAGES if any(map(_quick, _runnable(page)))], ids=lambda page: page.name
)
def test_quick_commands_run(page: Path, reader: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert _run(page, _quick, monkeypatch)


@pytest.mark.nightly
@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_all_commands_run(page: Path, reader: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(model, reader / "my-model", dirs_exist_ok=True)
    assert _run(page, lambda command: True, monkeypatch) == len(_runnable(page))
