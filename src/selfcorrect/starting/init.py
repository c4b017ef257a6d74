"""`selfcorrect init`: a commented recipe from a model, data and columns."""

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from selfcorrect.analysis.read import json_object
from selfcorrect.config.commented import commented
from selfcorrect.config.paths import anchored, at_home, check_paths
from selfcorrect.config.recipe import validate
from selfcorrect.config.run import PLAIN_TEMPLATE, TrainConfig
from selfcorrect.config.tasks import ATTEMPT_TOKENS
from selfcorrect.errors import ConfigError
from selfcorrect.evaluation.metrics import FEW
from selfcorrect.starting.columns import Found, Kind, answer_of, look, question_of, states_answer
from selfcorrect.tasks.code import SHOTS, TRAIN_IDS
from selfcorrect.tasks.files import Row

_PACES = {"math": (5.0e-6, 0.1), "code": (1.0e-5, 0.25), "custom": (5.0e-6, 0.1)}  # learning rate and beta2, Table 5
_ADAPTER_PACE = 10  # times the learning rate: what an adapter wants, as in the shipped recipes
_SMALL = {
    "weights": "bfloat16",
    "lora": {"rank": 32, "alpha": 64},
}  # of a new adapter, as there; but see _settle_weights
_TEMPLATES = ("chat_template.jinja", "chat_template.json", "additional_chat_templates")

Tuning = Literal["full", "lora", "qlora"]

_TASK_FILE = '''"""The task of {recipe}: a question, and an answer compared word for word. Change it as you like."""

import json
from pathlib import Path
from typing import Any

FORM = "Think it through, and end with a line of the form `Answer: ...`."
DATA = Path(__file__).parent / {data!r}
WIDE = {{code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}} | {{0x3002: "."}}  # full-width signs, full stop


def problems(split: str, options: dict[str, Any]) -> list[dict[str, Any]]:
    with (DATA / f"{{split}}.jsonl").open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    return [
        {{"id": f"{{split}}-{{number}}", "prompt": f"{{row['problem']}}\\n\\n{{FORM}}", "answer": row["answer"]}}
        for number, row in enumerate(rows)
    ]


def correction_prompt(problem: dict[str, Any]) -> str:
    """It never learns whether the last answer was right."""
    return f"Your answer may be wrong. Check it, and put right what you find. {{FORM}}"


def grade(problem: dict[str, Any], text: str) -> bool:
    """The last line that states an answer counts. The text is whatever the model wrote: expect anything."""
    lines = text.translate(WIDE).splitlines()
    stated = [line.partition(":")[2] for line in lines if line.strip().casefold().startswith("answer:")]
    return bool(stated) and _plain(stated[-1]) == _plain(problem["answer"])


def _plain(text: str) -> str:
    return " ".join(text.translate(WIDE).strip().strip(".`*").casefold().split())
'''


@dataclass
class Draft:
    """What is to be written. files: beside the recipe. notes: further words on a setting, by dotted key."""

    recipe: dict[str, Any]
    files: dict[Path, str] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    told: list[str] = field(default_factory=list)


def init(
    model: str, data: Path, to: Path, *, question: str | None = None, answer: str | None = None,
    task: Kind | None = None, tuning: Tuning | None = None,
) -> list[str]:  # fmt: skip
    """Writes a recipe, and data in the form it reads where the user's is in another; returns lines to show.

    tuning: by default full, or lora where the model is an adapter. Nothing is written over. Raises ConfigError and
    DataError.
    """
    if to.suffix not in (".yaml", ".yml"):
        raise ConfigError(f"--to {to}: a recipe's name ends with .yaml")
    to, data = at_home(to, "--to"), at_home(data, "--data")
    draft = _draft(_model(model, to, tuning), data, to, look(data, question, answer, task))
    for file in (to, *draft.files):
        if file.exists():
            raise ConfigError(f"{file} is there already; remove it, or name another recipe with --to")
    _settle_weights(draft)
    config = validate(anchored(draft.recipe, to.parent), str(to))
    assert isinstance(config, TrainConfig)
    text = _head(to, draft) + commented(draft.recipe, draft.notes)
    made = []
    for file, content in {**draft.files, to: text}.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content, encoding="utf-8")
        made.append(file)
    check_paths(config)
    return [*draft.told, *(f"written: {file}" for file in made)]


def _draft(model: dict[str, Any], data: Path, to: Path, found: Found) -> Draft:
    rate, beta2 = _PACES[found.kind]
    rate *= 1 if model["tuning"] == "full" else _ADAPTER_PACE
    pace, trains = {"steps": 200, "learning_rate": rate, "beta1": 0.01}, len(found.train)
    system = {"system_prompt": found.system} if found.system else {}
    recipe: dict[str, Any] = {
        "name": re.sub(r"[^A-Za-z0-9._-]", "-", to.stem).strip("-.")[:80] or "mine",
        "seed": 0,
        "model": {**model, **system},
        "task": {},
        "rollouts": {
            "problems_per_step": max(1, min(32, trains)), "rollouts_per_problem": 8, "attempts": 2, "temperature": 1.0,
            "max_new_tokens": ATTEMPT_TOKENS.get(found.kind, 256), "rows_at_once": "auto",
        },
        "stages": [
            {"name": "stage1", "objective": "stage1", **pace, "beta2": beta2},
            {"name": "stage2", "objective": "stage2", **pace, "alpha": 10.0},
        ],
        "optimizer": {"micro_batch": "auto"},
        "evaluation": {"problems": max(1, min(500, len(found.test)))},
    }  # fmt: skip
    draft = Draft(recipe, notes={
        "model.tuning": "lora and qlora take less memory, and ten times the learning rate.",
        "rollouts.max_new_tokens": "Raise it where a run says that attempts are cut off.",
        "stages.0.steps": "The paper takes 3,000 (MATH) or 1,500 (MBPP) in both stages together.",
    })  # fmt: skip
    if found.without and not (found.plain and found.kind == "math"):  # that task says so itself, of a folder
        draft.told.append(f"left out, as they hold no answer: {found.without:,} rows")
    if found.again:
        draft.told.append(f"warning: rows held out whose questions are trained on: {found.again:,}")
    if "chat_template" in recipe["model"]:
        draft.told.append(
            f"{model['path']} has no chat template, so the recipe takes model.chat_template: {PLAIN_TEMPLATE}"
        )
    {"math": _math, "code": _code, "custom": _custom}[found.kind](draft, data, to, found)
    return draft


def _model(model: str, to: Path, tuning: Tuning | None) -> dict[str, Any]:
    folder = at_home(model, "--model")
    settings: dict[str, Any] = {"path": model, "tuning": tuning or "full"}
    small = _SMALL if settings["tuning"] != "full" else {}
    if folder.is_dir():
        names = {file.name for file in folder.iterdir()}
        if not names & {"config.json", "adapter_config.json"}:
            raise ConfigError(f"--model {model}: the folder holds no model (no config.json)")
        settings["path"] = _relative(folder, to)
        if "adapter_config.json" in names:  # an adapter brings its own rank
            settings["tuning"], small = tuning or "lora", {}
        elif not names & set(_TEMPLATES) and not json_object(folder / "tokenizer_config.json").get("chat_template"):
            settings["chat_template"] = PLAIN_TEMPLATE
    elif model.startswith((".", "/", "~")):
        raise ConfigError(f"--model {model}: no such folder")
    elif model == "lab":
        raise ConfigError(
            "--model lab: the lab's model reads countdown alone; `selfcorrect recipes demo` copies its recipe"
        )
    return {**settings, **small}


def _settle_weights(draft: Draft) -> None:
    """Last of all, as torch is what knows this machine."""
    if draft.recipe["model"].get("weights") != "bfloat16":
        return
    from selfcorrect.models.loading import native_bfloat16, pick_device

    device = pick_device("auto")
    if device.type != "mps" and not native_bfloat16(device):  # of Apple's nothing tells that it is slow
        draft.recipe["model"]["weights"] = "float32"
        draft.notes["model.weights"] = (
            "For a card set bfloat16: half the memory. This machine does not multiply in it, and would be far slower."
        )


def _relative(path: Path, to: Path) -> str:
    """A path as the recipe has it: of its folder where it lies beneath it, else whole."""
    beneath = os.path.relpath(path.absolute(), to.absolute().parent)
    return str(path.absolute()) if beneath.startswith("..") else f"./{beneath}"


def _math(draft: Draft, data: Path, to: Path, found: Found) -> None:
    """The data as it is where it is a folder of texts; else divided into one, as {"problem", "answer"} rows."""
    texts = [answer_of(row, found.answer) for row in found.train]
    states = 2 * sum(map(states_answer, texts)) > len(texts)
    gsm8k = 2 * sum("####" in text for text in texts) > len(texts)
    names = ("question", "answer") if gsm8k else ("problem", "solution" if states else "answer")
    draft.recipe["task"] = {"name": "math", "dataset": "gsm8k" if gsm8k else "math", "split": "original"}
    own = (found.question, found.answer)
    if found.plain:
        draft.recipe["task"]["data"] = _relative(data, to)
        if columns := {ours: theirs for ours, theirs in zip(names, own, strict=True) if ours != theirs}:
            draft.recipe["task"]["columns"] = columns
    else:
        draft.recipe["task"]["data"] = f"./{_divide(draft, data, to, found, names)}"
    draft.told.append(_seen("math", found))


def _custom(draft: Draft, data: Path, to: Path, found: Found) -> None:
    folder = _divide(draft, data, to, found, ("problem", "answer"))
    file = to.parent / f"{to.stem.replace('-', '_')}_task.py"
    draft.files[file] = _TASK_FILE.format(recipe=draft.recipe["name"], data=folder)
    draft.recipe["task"] = {"name": "custom", "file": f"./{file.name}"}
    draft.told.append(f"{_seen('custom', found)}; {file.name} compares answers word for word: change it as you like")


def _code(draft: Draft, data: Path, to: Path, found: Found) -> None:
    """MBPP's own ids divide its rows; HumanEval's are evaluated on, beside MBPP from the hub."""
    rows = (*found.train, *found.test)
    place = _relative(data, to)
    if rows[0].has("entry_point"):
        draft.recipe["task"] = {"name": "code", "dataset": "mbpp", "evaluate_on": "humaneval", "evaluate_data": place}
        draft.told.append(
            f"task code: {len(rows):,} rows of HumanEval's form to evaluate on; MBPP, to train on, comes from the hub"
        )
        draft.recipe["evaluation"]["problems"] = min(500, len(rows))
        return
    ids = {row.integer("task_id") for row in rows}
    if not ids & set(TRAIN_IDS):
        raise ConfigError(
            f"--data {data}: the task code trains on MBPP's task_id {TRAIN_IDS[0]} to {TRAIN_IDS[-1]}, and there is "
            "none among these rows; number yours so, or write a task of your own (docs/tasks.md)"
        )
    draft.recipe["task"] = {"name": "code", "dataset": "mbpp", "data": place, "shots": 3 if ids >= set(SHOTS) else 0}
    draft.recipe["rollouts"]["problems_per_step"] = min(16, len(ids & set(TRAIN_IDS)))
    draft.told.append(f"task code: {len(rows):,} rows of MBPP's form, divided by their task_id as MBPP is")


def _divide(draft: Draft, data: Path, to: Path, found: Found, names: Sequence[str]) -> str:
    """Puts train.jsonl and test.jsonl among the draft's files; returns their folder's name."""
    folder = f"{to.stem}-data"
    for split, rows in (("train", found.train), ("test", found.test)):
        draft.files[to.parent / folder / f"{split}.jsonl"] = "".join(_line(row, found, names) for row in rows)
    if data.is_file():
        draft.told.append(
            f"{data.name} is divided: {len(found.train):,} rows to train on, {len(found.test):,} held out (every tenth "
            "question)"
        )
        if len(found.test) < FEW:
            draft.told.append(
                f"warning: of {len(found.test)} problems held out nothing can be concluded ({FEW} are the least); take "
                "more rows, or a folder of train.* and test.*"
            )
        if 4 * len(found.test) > len(found.train) + len(found.test):
            draft.told.append(
                "warning: more than a quarter of the rows is held out, as a question is held out with all its rows; "
                "a folder of train.* and test.* is taken as you divide it"
            )
    return folder


def _line(row: Row, found: Found, names: Sequence[str]) -> str:
    values = (question_of(row, found.question), answer_of(row, found.answer))
    return json.dumps(dict(zip(names, values, strict=True)), ensure_ascii=False) + "\n"


def _seen(task: str, found: Found) -> str:
    return f"task {task}: question in column {found.question}, answer in {found.answer}"


def _head(to: Path, draft: Draft) -> str:
    name, told = " ".join(to.name.split()), "".join(f"# {' '.join(line.split())}.\n" for line in draft.told)
    return (
        f"# Written by `selfcorrect init`: `selfcorrect check {name} --load` tries it, `selfcorrect train {name}`\n"
        f"# runs it. What is not named has its default (`selfcorrect check {name}`); `selfcorrect explain KEY` tells.\n"
        f"{told}"
    )
