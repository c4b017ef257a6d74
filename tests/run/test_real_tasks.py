"""Whole runs on files of the shapes of MATH, MBPP and HumanEval, with a Qwen2 of our own, and with the real graders."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from selfcorrect import make_repair_set
from selfcorrect.config import CodeConfig, MathConfig, TaskConfig
from selfcorrect.errors import ConfigError, TrainingInterrupted
from selfcorrect.models.chat import Chat
from selfcorrect.models.loading import load_model
from selfcorrect.rollout import play
from selfcorrect.runs.recipes import train_config
from selfcorrect.samplers.scripted import ScriptedSampler
from selfcorrect.tasks import make_task
from selfcorrect.types import SamplingParams
from tests.conftest import Called, Command
from tests.run.test_kept import Heard
from tests.support.data import code_folder, math_folder, write
from tests.support.graders import put_in_place
from tests.support.hf_model import save_qwen2
from tests.support.runs import read_rows
from tests.support.templates import PLAIN, QWEN3_LIKE, byte_tokenizer


@pytest.fixture(scope="module")
def qwen2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_qwen2(tmp_path_factory.mktemp("models") / "qwen2")


def recipe(folder: Path, model: Path, task: dict[str, Any], **changes: Any) -> Path:
    """Two steps of Stage II."""
    stage = {"name": "two", "objective": "stage2", "steps": 2, "learning_rate": 0.001}
    settings = {
        "name": "run", "output": str(folder), "threads": 1, "task": task, "stages": [stage],
        "model": {"path": str(model), "device": "cpu", "precision": "float32"},
        "rollouts": {"problems_per_step": 2, "rollouts_per_problem": 2, "max_new_tokens": 12},
        "evaluation": {"controls": False}, "checkpoint": {"every": 1},
        "log": {"trackers": [], "rollouts_every": 1}, **changes,
    }  # fmt: skip
    file = folder / "recipe.yaml"
    file.write_text(yaml.dump(settings))
    return file


BRIEF = {"name": "code", "shots": 0, "prompt": "{task}", "correction_prompt": "Again.", "workers": 1}
TASKS: dict[str, tuple[dict[str, Any], int]] = {
    "math": ({"name": "math"}, 2),
    "mbpp": ({"name": "code", "workers": 1}, 3),
    "mbpp, then humaneval": ({"name": "code", "evaluate_on": "humaneval", "shots": 1, "workers": 1}, 4),
}


HEAVY = [pytest.param(name, marks=pytest.mark.nightly) if name == "mbpp" else name for name in TASKS]


@pytest.mark.parametrize("name", HEAVY)
def test_train_and_evaluate(name: str, qwen2: Path, tmp_path: Path, command: Command) -> None:
    task, held_out = TASKS[name]
    data = math_folder(tmp_path / "data") if task["name"] == "math" else code_folder(tmp_path / "data")
    file = recipe(tmp_path, qwen2, {**task, "data": str(data)})
    out = command("train", str(file))
    assert "grader_wait=" in out
    rows = read_rows(tmp_path / "run" / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2]
    for row in rows:
        assert row["seconds_by_part"]["grader_wait"] >= 0
        assert sum(row["seconds_by_part"].values()) == pytest.approx(row["seconds"])
        assert (row["grader_failed"], row["skipped"]) == (0, False)
    outcomes = {
        attempt["outcome"]
        for rollout in read_rows(tmp_path / "run" / "rollouts.jsonl")
        for attempt in rollout["attempts"]
    }
    assert outcomes & {"no_answer", "wrong"}  # some attempts ended, and reached the grader
    evaluation = json.loads(command("evaluate", str(tmp_path / "run" / "final"), "--json"))
    assert (evaluation["task"], evaluation["summary"]["n"]) == (task["name"], held_out)
    for part in ("summary", "task"):
        assert json.loads((tmp_path / "run" / "evaluations" / "two.json").read_text())[part] == evaluation[part]
    assert command("evaluate", str(qwen2), "--recipe", str(file), "task.shots=0" if "mbpp" in name else "seed=1")


RIGHT = "```python\ndef add_11(x):\n    return x + 11\n```"
WRONG = RIGHT.replace("+ 11", "- 11")


@pytest.mark.parametrize("name", ["math", "code"])
def test_right_and_wrong_texts_by_the_real_graders(name: str, tmp_path: Path) -> None:
    """Through template, sampler and play, as a model would have written them."""
    task_config: TaskConfig = CodeConfig(name="code", data=str(code_folder(tmp_path)), workers=1)
    turns = [WRONG, RIGHT, "I do not know.", RIGHT.replace("return", "while True: pass\n    return")]
    expected = ["wrong", "correct", "no_answer", "timeout"]
    if name == "math":
        task_config = MathConfig(name="math", data=str(math_folder(tmp_path)), workers=1)
        turns = [rf"Final answer: \boxed{{{n}}}" for n in ("2", "20", "", "40/2")]
        expected = ["wrong", "correct", "no_answer", "correct"]
    tokenizer = byte_tokenizer(PLAIN)
    end = tokenizer.convert_tokens_to_ids("</turn>")
    chat, script = Chat(tokenizer, frozenset({end})), iter(turns)
    sampler = ScriptedSampler(
        lambda ids, params: [*tokenizer(next(script), add_special_tokens=False)["input_ids"], end],
        chat.decode, frozenset({end}),
    )  # fmt: skip
    task = make_task(task_config)
    try:
        (rollout,) = play(task.held_out(2000)[:1], task, sampler, chat, SamplingParams(1.0, 500, 0), 4)
    finally:
        task.close()
    assert [str(attempt.grade.outcome) for attempt in rollout.attempts] == expected
    assert [attempt.completion.text for attempt in rollout.attempts] == turns


def test_a_repair_set_is_made_trained_on_and_evaluated(qwen2: Path, tmp_path: Path, command: Command) -> None:
    source = recipe(tmp_path, qwen2, {**BRIEF, "data": str(code_folder(tmp_path / "data"))})
    for split, rows, purpose in (("train", 4, "train on"), ("test", 3, "evaluate on")):
        out = command(
            "make-repair-set", str(source), "--output", str(tmp_path / f"{split}.jsonl"), "--split", split,
            "rollouts.max_new_tokens=300",
        )  # fmt: skip
        assert out == f"repair set: {tmp_path}/{split}.jsonl ({rows} of split {split}, to {purpose})\n"
    made = read_rows(tmp_path / "train.jsonl") + read_rows(tmp_path / "test.jsonl")
    assert {row["failure"] for row in made} == {"no_answer: no program in the text"}
    assert {row["model"] for row in made} == {str(qwen2)}
    both = write(tmp_path / "both.jsonl", made)
    of = {**BRIEF, "data": str(tmp_path / "data")}
    file = recipe(tmp_path, qwen2, {"name": "repair", "data": str(both), "of": of})
    command("train", str(file))
    logged = read_rows(tmp_path / "run" / "rollouts.jsonl")
    recorded = {row["first_attempt"] for row in made}
    assert {rollout["attempts"][0]["text"] for rollout in logged} <= recorded
    (first, _) = read_rows(tmp_path / "run" / "metrics.jsonl")
    assert (first["kl"][0], first["entropy"][0], first["truncated"][0]) == (0, 0, 0)  # attempt 1 trains nothing
    assert first["kl"][1] >= 0
    assert first["entropy"][1] > 0
    evaluation = json.loads(
        command("evaluate", str(qwen2), "evaluation.controls=true", "--recipe", str(file), "--json")
    )
    assert evaluation["summary"]["n"] == 3
    assert list(evaluation["controls"]) == ["swapped"]  # a recorded attempt has no other draw


def test_a_template_s_options_reach_the_prompts(tmp_path: Path, command: Command) -> None:
    model = save_qwen2(tmp_path / "model", QWEN3_LIKE, room=400)
    data = write(tmp_path / "rows.jsonl", [{"problem": "1 + 1?", "answer": "2"}])
    file = recipe(tmp_path, model, {"name": "math", "data": str(data), "prompt": "{problem}"})
    thinking = "model.template_options={enable_thinking: false}"
    assert json.loads(command("evaluate", str(model), thinking, "--recipe", str(file), "--json"))["summary"]["n"] == 1
    chat = load_model(train_config(file, thinking).model).chat
    assert chat.decode(chat.first_prompt("Q")).endswith("assistant\n<think>\n\n</think>\n\n")


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ({"name": "code", "dataset": "humaneval"}, "task.dataset = 'humaneval' is for evaluation only"),
        ({"name": "math", "data": "nowhere"}, r"task.data = '.*/nowhere': no such file or folder"),
        (
            {"name": "code", "prompt": "{task} " + "long " * 9000},
            r"problem \S+ has a prompt of \d+ tokens .*, or shorten it or task.prompt",
        ),
    ],
)
def test_what_cannot_be_trained_on_is_refused_before_anything_is_written(
    task: dict[str, Any], message: str, qwen2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, called: Called
) -> None:
    monkeypatch.chdir(tmp_path)
    data = {} if task["name"] != "code" else {"data": str(code_folder(tmp_path / "data"))}
    file = recipe(tmp_path, qwen2, {**data, **task})
    (line,) = called("train", str(file)).err.splitlines()
    assert re.match(f"error: {message}", line), line
    assert not (tmp_path / "run").exists()


def test_a_custom_task_is_trained_on(qwen2: Path, tmp_path: Path, command: Command) -> None:
    example = Path(__file__).parents[2] / "examples" / "custom_task.py"
    task = {"name": "custom", "file": str(example), "options": {"letters": 3, "count": 60}}
    command("train", str(recipe(tmp_path, qwen2, task, evaluation={"controls": False, "problems": 4})))
    evaluation = json.loads((tmp_path / "run" / "evaluations" / "two.json").read_text())
    assert (evaluation["task"], evaluation["summary"]["n"]) == ("custom", 4)


def test_a_repair_set_that_is_stopped_goes_on(qwen2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_in_place(monkeypatch)
    source = recipe(tmp_path, qwen2, {**BRIEF, "data": str(code_folder(tmp_path / "data"))})
    whole, parts, few = tmp_path / "whole.jsonl", tmp_path / "parts.jsonl", "rollouts.rows_at_once=2"
    rows = make_repair_set(qwen2, whole, few, recipe=source)
    with pytest.raises(TrainingInterrupted, match=r"stopped; 2 of 4 problems are kept in .*: the same command"):
        make_repair_set(qwen2, parts, few, recipe=source, observer=Heard(3))  # in the second chunk
    assert not parts.exists()
    with pytest.raises(
        ConfigError, match=r"temperature is 0.5, but was 1.0; give the command those settings, or remove"
    ):
        make_repair_set(qwen2, parts, few, recipe=source, temperature=0.5)
    assert make_repair_set(qwen2, parts, few, recipe=source) == rows
    assert parts.read_bytes() == whole.read_bytes()
    assert not list(tmp_path.glob(".parts*"))


def test_a_template_whose_file_is_gone_is_the_models_own(
    qwen2: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_in_place(monkeypatch)
    template = tmp_path / "mine.jinja"
    template.write_text(PLAIN)
    file = recipe(tmp_path, qwen2, {"name": "math", "data": str(math_folder(tmp_path / "math"))})
    command("train", str(file), "stages.two.steps=1", f"model.chat_template={template}")
    final = str(tmp_path / "run" / "final")
    shown = json.loads(command("evaluate", final, "--json"))
    template.rename(tmp_path / "elsewhere.jinja")
    shutil.rmtree(tmp_path / "evaluations")
    again = json.loads(command("evaluate", final, "--json"))
    assert (again["summary"], again["about"]) == (shown["summary"], shown["about"])
    assert "attempt 2" in command("play", "1 + 1?", "--model", final)
