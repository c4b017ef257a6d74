"""Traces in other trainers' formats: written and read back, read as they come, and refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from selfcorrect.config import ModelConfig, TrainConfig
from selfcorrect.config.paths import check_paths
from selfcorrect.errors import ConfigError, DataError
from selfcorrect.evaluation.kept import json_line
from selfcorrect.learning.formats import FORMATS, Converted, convert
from selfcorrect.learning.traces import fixes, read_traces
from selfcorrect.models.chat import Chat
from selfcorrect.models.loading import load_model
from tests.support.hf_model import save_qwen2
from tests.support.templates import PLAIN

TURNS = [{"system": "", "input": "2 + 2?", "output": "5"}, {"input": "Sure?", "output": "4"}]
SAID = [
    {"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "5"}, {"role": "user", "content": "Sure?"},
    {"role": "assistant", "content": "4"},
]  # fmt: skip


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Chat:
    return load_model(ModelConfig(path=str(save_qwen2(tmp_path_factory.mktemp("m"))), device="cpu")).chat


def own(first: str, second: str, outcome: str = "wrong") -> dict[str, Any]:
    said = {"first": {"text": first, "outcome": outcome}, "second": {"text": second, "outcome": "correct"}}
    return {"id": "p1", "prompt": "2 + 2?", "correction_prompt": "Sure?", **said}


@pytest.mark.parametrize("form", FORMATS)
def test_written_and_read_back(form: str, chat: Chat, tmp_path: Path) -> None:
    """Token ids and all; texts of any kind."""
    rows = [own("5", "4"), own("4", " 4 \u2028\n", "correct"), own('"}],\\', "\u00e9\U0001f600</turn>", "truncated")]
    run = tmp_path / "run"
    (run / "traces").mkdir(parents=True)
    (run / "traces" / "sft-1.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (run / "traces" / "star-1.jsonl").touch()  # nothing was right
    stage = {"name": "sft", "objective": "pair_sft", "steps": 1, "learning_rate": 0.1, "keep_right": True}
    (run / "config.yaml").write_text(json.dumps({"name": "run", "task": {"name": "math"}, "stages": [stage]}))
    assert convert(run, tmp_path / "out" / "t", form) == Converted(2, 1, 0)
    text = (tmp_path / "out" / "t").read_text()
    assert "\u00e9\U0001f600" in text  # as it is read and edited by eye
    assert (" 4 \\u2028\\n" in text, json_line("\ud800")) == (True, '"\\ud800"')
    if form == "conversation":  # as a reader of that format sees it
        first, second = json.loads(text)[0]["conversation"]
        assert (first["system"], first["input"], first["output"], first["output_with_loss"]) == (
            "",
            "2 + 2?",
            "5",
            False,
        )
        assert (second["input"], second["output"], second["output_with_loss"]) == ("Sure?", "4", True)
    else:
        assert json.loads(text.splitlines()[0])["messages"] == SAID
    assert read_traces(tmp_path / "out" / "t", chat, "math") == read_traces(
        run / "traces" / "sft-1.jsonl", chat, "math"
    )


@pytest.mark.parametrize("form", FORMATS)
def test_a_run_hands_on_what_it_trained_on(form: str, chat: Chat, tmp_path: Path) -> None:
    """Its files hold both kinds: Pair-SFT on what is read back is on the same set. All of it where that is asked for."""
    stages: list[dict[str, Any]] = [
        {"name": "a", "objective": "pair_sft", "steps": 1, "learning_rate": 0.1},
        {"name": "a-b", "objective": "star", "steps": 3, "learning_rate": 0.1, "keep_right": True},
    ]
    (tmp_path / "traces").mkdir()
    (tmp_path / "config.yaml").write_text(json.dumps({"name": "run", "task": {"name": "math"}, "stages": stages}))
    rows = [own("5", "4"), own("4", "2 * 2", "correct"), own("", "4", "no_answer")]
    for name in ("a-1", "a-b-1", "a-b-2"):
        (tmp_path / "traces" / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = convert(tmp_path, tmp_path / "t", form)
    assert found == Converted(2 + 2 * 2, 2 * 1, 1)
    told = "6 wrong-then-right and 2 right-then-right; left out: 1 not trained on (--all takes them too)"
    assert str(found) == told
    kept = read_traces(tmp_path / "traces" / "a-1.jsonl", chat, "math")
    assert read_traces(tmp_path / "t", chat, "math") == [kept[0], kept[2], *kept, *kept]
    assert convert(tmp_path, tmp_path / "all", form, everything=True) == Converted(6, 3, 0)
    assert convert(tmp_path / "traces" / "a-1.jsonl", tmp_path / "one", form) == Converted(2, 1, 0)


@pytest.mark.parametrize(
    "text",
    [
        json.dumps([{"conversation": TURNS}]),
        json.dumps([{"conversation": TURNS}], indent=2),
        json.dumps({"conversation": TURNS}),
        json.dumps({"messages": SAID}),
        json.dumps([{"messages": SAID}]),
        "\ufeff" + json.dumps({"messages": SAID}) + "\r\n\n",
        json.dumps(
            {"messages": [{"role": m["role"], "content": [{"type": "text", "text": m["content"]}]} for m in SAID]}
        ),
        json.dumps({"messages": [{**m, "loss": False, "name": "x"} for m in SAID], "source": "elsewhere"}),
    ],
)
def test_read_as_they_come(text: str, chat: Chat, tmp_path: Path) -> None:
    (tmp_path / "t").write_text(text, encoding="utf-8")
    (trace,) = read_traces(tmp_path / "t", chat, "math")
    assert [attempt.completion.text for attempt in trace.attempts] == ["5", "4"]
    assert [attempt.sampled for attempt in trace.attempts] == [False, True]
    assert trace.attempts[0].prompt_ids == chat.first_prompt("2 + 2?")
    assert trace.attempts[1].prompt_ids == chat.next_prompt(
        chat.first_prompt("2 + 2?"), trace.attempts[0].completion.token_ids, "Sure?"
    )
    assert fixes(trace)


def test_the_same_text_twice_is_right_then_right(chat: Chat, tmp_path: Path) -> None:
    (tmp_path / "t").write_text(json.dumps([{"conversation": [TURNS[0] | {"output": "4 "}, TURNS[1]]}]))
    assert not fixes(read_traces(tmp_path / "t", chat, "math")[0])


def test_a_system_text_is_read(tmp_path: Path, chat: Chat) -> None:
    with_system = [{"role": "system", "content": "Be brief."}, *SAID]
    for value in ([{"conversation": [TURNS[0] | {"system": "Be brief."}, TURNS[1]]}], {"messages": with_system}):
        (tmp_path / "t").write_text(json.dumps(value))
        (trace,) = read_traces(tmp_path / "t", chat, "math")
        assert "Be brief." in chat.decode(trace.attempts[0].prompt_ids)
        assert trace.attempts[0].prompt_ids != chat.first_prompt("2 + 2?")
        assert trace.attempts[1].prompt_ids[: len(trace.attempts[0].prompt_ids)] == trace.attempts[0].prompt_ids
    deaf = PLAIN.replace("{% for message in messages %}", "{% for message in messages if message.role != 'system' %}")
    assert deaf != PLAIN
    other = load_model(ModelConfig(path=str(save_qwen2(tmp_path / "m", deaf)), device="cpu")).chat
    with pytest.raises(
        DataError, match=r"t:1: its system text cannot be written: .*leaves out a system turn; leave it"
    ):
        read_traces(tmp_path / "t", other, "math")


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ([{"conversation": TURNS[:1]}], r"t: entry 1: conversation must hold two turns .*, got 1 turns; a trace is a"),
        ([{"conversation": TURNS}, {"conversation": [*TURNS, TURNS[1]]}], r"entry 2: conversation must .*got 3 turns"),
        ([{"conversation": "x"}], r"entry 1: conversation must hold two turns .*, got 'x'"),
        ([{"conversation": [TURNS[0], {"input": "Sure?"}]}], r"entry 1: turn 2: output must be text, got None"),
        ([{"conversation": [TURNS[0] | {"input": 4}, TURNS[1]]}], r"entry 1: turn 1: input must be text, got 4"),
        ([{"conversation": [TURNS[0], TURNS[1] | {"system": "no"}]}], r"turn 2: system = 'no' changes in the middle"),
        ([3], r"entry 1: expected a JSON object, got int"),
        ([], r"t: holds no traces"),
        ({"messages": SAID[:2]}, r"t:1: messages must be of user, assistant, .* not of \['user', 'assistant'\]"),
        ({"messages": [*SAID, SAID[0]]}, r"t:1: messages must be of user"),
        ({"messages": [{"role": "tool", "content": "x"}, *SAID]}, r"t:1: messages must be of user"),
        ({"messages": [SAID[0] | {"content": None}, *SAID[1:]]}, r"t:1: message 1: content must be text, got None"),
        ({"messages": [SAID[0] | {"content": [{"type": "image"}]}, *SAID[1:]]}, r"message 1: content must be text, got"),
        ({"messages": {}}, r"t:1: messages must be a list"),
        ({"messages": SAID, "outcomes": ["wrong"]}, r"t:1: outcomes must be a list of two, like \['wrong', 'correct'\]"),
        ({"messages": SAID, "outcomes": ["wrong", "perhaps"]}, r"t:1: second: outcome 'perhaps' must be one of"),
        ({"messages": SAID, "outcomes": ["correct", "wrong"]}, r"t:1: a trace ends right"),
        ({"conversations": []}, r"t:1: field 'prompt' must be text, got None"),
    ],
)  # fmt: skip
def test_refused_with_the_place(value: Any, told: str, chat: Chat, tmp_path: Path) -> None:
    (tmp_path / "t").write_text(json.dumps(value))
    with pytest.raises(DataError, match=told) as refused:
        read_traces(tmp_path / "t", chat, "math")
    assert "\n" not in str(refused.value)


def test_what_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text(json.dumps(own("5", "4")) + "\n")
    (tmp_path / "nan.jsonl").write_text(json.dumps({**own("5", "4"), "id": float("nan")}) + "\n")
    for source, target, told in (
        (tmp_path, "out", "holds no traces/"),
        (tmp_path / "t.jsonl", "t.jsonl", "is there already"),
        (tmp_path / "gone.jsonl", "out", "cannot be read"),
        (tmp_path / "nan.jsonl", "out", "holds what JSON has not"),
    ):
        with pytest.raises((DataError, OSError), match=told):
            convert(source, tmp_path / target, "messages")


def test_a_stage_may_read_what_an_earlier_one_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only of the run's own folder, and not the first."""
    monkeypatch.chdir(tmp_path)
    stage = {"objective": "pair_sft", "steps": 1, "learning_rate": 0.1}

    def recipe(*traces: str) -> TrainConfig:
        stages = [stage | {"name": f"s{at}", "traces": path} for at, path in enumerate(traces)]
        return TrainConfig.model_validate_json(json.dumps({"name": "x", "task": {"name": "math"}, "stages": stages}))

    Path("mine.jsonl").touch()
    for own in ("runs/x/traces/s0-1.jsonl", str(tmp_path / "runs/x/traces/s0-1.jsonl")):
        check_paths(recipe("mine.jsonl", own))
    for traces in (
        ("runs/x/traces/s0-1.jsonl",),
        ("mine.jsonl", "runs/xy/a.jsonl"),
        ("mine.jsonl", "runs/x/../a.jsonl"),
    ):
        with pytest.raises(ConfigError, match=rf"^stages\.s{len(traces) - 1}\.traces = .*: no such file"):
            check_paths(recipe(*traces))


@pytest.mark.parametrize("config", [None, "stages: 3", "kind: lab_base\n"])
def test_of_a_copied_folder_all_traces_are_taken(config: str | None, tmp_path: Path) -> None:
    (tmp_path / "traces").mkdir()
    rows = [own("5", "4"), own("4", "4", "correct")]
    (tmp_path / "traces" / "sft-1.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if config:
        (tmp_path / "config.yaml").write_text(config)
    found = convert(tmp_path, tmp_path / "t", "messages")
    assert found == Converted(1, 1, 0, unknown=True)
    assert str(found).endswith("; all that is there: no settings beside them tell what was trained on")
    stage: dict[str, Any] = {"name": "sft", "objective": "pair_sft", "steps": 1, "learning_rate": 0.1}
    for name, keeps in (("config.used.yaml", False), ("config.yaml", True)):  # edited later
        told = {"name": "x", "task": {"name": "math"}, "stages": [stage | {"keep_right": keeps}]}
        (tmp_path / name).write_text(json.dumps(told))
    assert convert(tmp_path, tmp_path / "u", "messages") == Converted(1, 0, 1)
