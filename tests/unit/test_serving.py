"""What the server reads and writes, without a model: requests, stop sequences, host names, correction prompts."""

import json
import random
from pathlib import Path
from typing import Any

import pytest

from selfcorrect.config import CountdownConfig, CustomConfig, MathConfig
from selfcorrect.errors import ConfigError
from selfcorrect.grading.math import FINAL_FORM
from selfcorrect.serving.engine import Spoken
from selfcorrect.serving.guards import host_name
from selfcorrect.serving.protocol import ApiError, read_ask, read_json
from selfcorrect.serving.upstream import is_loopback, make_client
from selfcorrect.serving.words import recipe_of_card, words_of_task
from selfcorrect.tasks import make_task

HI = [{"role": "user", "content": "hi"}]

REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({}, "messages", "missing"),
    ({"messages": []}, "messages", "must have at least 1 item, not 0"),
    ({"messages": "hi"}, "messages", "must be a list"),
    ({"messages": ["hi"]}, "messages[0]", "must be an object"),
    ({"messages": [{"role": "user"}]}, "messages[0].content", "missing"),
    ({"messages": [{"role": "user", "content": None}]}, "messages[0].content", "valid string"),
    ({"messages": [{"role": "robot", "content": "a"}]}, "messages[0].role", "'system', 'user' or 'assistant'"),
    ({"messages": [{"role": "tool", "content": "a"}]}, "messages[0].role", "tools are not supported"),
    ({"messages": [*HI, {"role": "assistant", "content": "a"}]}, "messages[1].role", "the last message must be the user's"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, "messages[0].content[0].type", "only parts of type 'text'"),
    ({"messages": [{"role": "user", "content": ["a"]}]}, "messages[0].content[0].type", "only parts"),
    ({"messages": [{"role": "assistant", "content": "a", "tool_calls": [{}]}, *HI]}, "messages[0].tool_calls", "not supported"),
    ({"messages": [{**HI[0], "colour": 1}]}, "messages[0].colour", "unknown field"),
    ({"messages": [{"role": "user", "content": "\ud800"}]}, "messages[0].content", "surrogate"),
    ({"messages": HI, "attempts": 0}, "attempts", "greater than or equal to 1"),
    ({"messages": HI, "attempts": 17}, "attempts", "less than or equal to 16"),
    ({"messages": HI, "attempts": True}, "attempts", "integer"),
    ({"messages": HI, "attempts": 2.0}, "attempts", "integer"),
    ({"messages": HI, "atempts": 3}, "atempts", "did you mean attempts"),
    ({"messages": HI, "\ud800": 1}, "\ud800", "unknown field"),
    ({"messages": HI, "temperature": -0.1}, "temperature", "greater than or equal to 0"),
    ({"messages": HI, "temperature": "0"}, "temperature", "valid number"),
    ({"messages": HI, "top_p": -0.1}, "top_p", "greater than or equal to 0"),
    ({"messages": HI, "max_tokens": 0}, "max_tokens", "greater than or equal to 1"),
    ({"messages": HI, "max_tokens": 5, "max_completion_tokens": 6}, "max_tokens", "different things"),
    ({"messages": HI, "n": 9}, "n", "less than or equal to 8"),
    ({"messages": HI, "seed": 2**70}, "seed", "less than"),
    ({"messages": HI, "stop": ["a"] * 5}, "stop", "at most 4"),
    ({"messages": HI, "stop": [""]}, "stop[0]", "at least 1 character"),
    ({"messages": HI, "stop": [1]}, "stop[0]", "valid string"),
    ({"messages": HI, "correction_prompt": ""}, "correction_prompt", "at least 1 character"),
    ({"messages": HI, "stream": "yes"}, "stream", "valid boolean"),
    ({"messages": HI, "stream_options": {"include_usage": True}}, "stream_options", "stream: true"),
    ({"messages": HI, "stream": True, "stream_options": {"usage": True}}, "stream_options.usage", "unknown field"),
    ({"messages": HI, "tools": {"type": "function"}}, "tools", "must be a list"),
    ({"messages": HI, "tools": [{}], "tool_choice": "required"}, "tool_choice", 'only "none" or "auto"'),
    ({"messages": HI, "functions": [{}], "function_call": {"name": "f"}}, "function_call", "not supported"),
    ({"messages": HI, "tool": []}, "tool", "did you mean tools?"),
    ({"messages": HI, "response_format": {"type": "json_object"}}, "response_format", "not supported"),
    ({"messages": HI, "logprobs": True}, "logprobs", "only false"),
    ({"messages": HI, "presence_penalty": 0.5}, "presence_penalty", "only 0"),
    ({"messages": HI, "reasoning_effort": "high"}, "reasoning_effort", "leave it out"),
    ({"messages": HI, "top_k": 40}, "top_k", "only -1 or 0"),
    ({"messages": HI, "logit_bias": {"5": 100}}, "logit_bias", "only {}"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("body", "param", "why"), REFUSED, ids=lambda value: str(value)[:40] if isinstance(value, str) else ""
)
def test_what_is_not_served_is_refused_by_name(body: dict[str, Any], param: str, why: str) -> None:
    with pytest.raises(ApiError) as caught:
        read_ask(body)
    told = caught.value.body()["error"]
    assert (caught.value.status, told["type"], told["param"]) == (400, "invalid_request_error", param)
    assert why in told["message"]
    json.dumps(told).encode("ascii")  # whatever a client wrote


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[1]", b"null", b'{"a": NaN}', b'{"a": -Infinity}', b"\xff{}", b"[" * 100_000, b'{"a": ' + b"9" * 5000 + b"}"],
)  # fmt: skip
def test_a_body_that_is_no_json_object_is_refused(body: bytes) -> None:
    with pytest.raises(ApiError, match="the body") as caught:
        read_json(body)
    assert caught.value.code == "invalid_json"


def test_what_clients_send_beside_is_taken() -> None:
    """Neutral settings; an earlier answer as the official client dumps it, extension and all; text in parts."""
    earlier: dict[str, Any] = {
        "role": "assistant", "content": "an answer", "refusal": None, "annotations": [], "audio": None,
        "function_call": None, "tool_calls": None, "selfcorrect": {"attempts": []}, "reasoning": "hm", "prefix": None,
    }  # fmt: skip
    parts = [{"type": "text", "text": "so"}, {"type": "text", "text": "?"}]
    ask = read_ask({
        "model": "m", "messages": [{"role": "developer", "content": "be brief"}, {**HI[0], "id": "a", "metadata": {"b": 1}, "files": []}, earlier, {"role": "user", "content": parts}],
        "frequency_penalty": 0.0, "presence_penalty": 0, "logit_bias": {}, "tools": [{"type": "function"}], "tool_choice": "auto", "user": "me",
        "metadata": {"a": "b"}, "logprobs": False, "response_format": {"type": "text"}, "store": False, "stop": "x",
        "temperature": None, "top_p": 0, "max_completion_tokens": 7, "n": None, "service_tier": "auto",
    })  # fmt: skip
    assert [message.model_dump() for message in ask.messages] == [
        {"role": "system", "content": "be brief"}, *HI, {"role": "assistant", "content": "an answer"}, {"role": "user", "content": "so?"},
    ]  # fmt: skip
    assert (ask.stop, ask.limit, ask.temperature) == (("x",), 7, None)
    assert 0 < (ask.top_p or 0) < 1e-3
    called = {"role": "assistant", "content": None}
    assert read_ask({"messages": [*HI, called, *HI]}).messages[1].content == ""


def _decode(ids: list[int]) -> str:
    """Bytes as tokens."""
    return bytes(ids).decode("utf-8", "replace")


@pytest.mark.parametrize(
    ("text", "stop", "pieces"),
    [
        ("añb", (), ["a", "", "ñ", "b", ""]),
        ("a\N{GRINNING FACE}", (), ["a", "", "", "", "\N{GRINNING FACE}", ""]),
        ("abcd", ("cx",), ["a", "b", "", "cd", ""]),
        ("abcd", ("bc",), ["a", "", "", "", ""]),
        ("aab", ("ab",), ["", "a", "", ""]),
        ("abac", ("abc", "ac"), ["", "", "ab", "", ""]),
        ("ab", ("abc",), ["", "", "ab"]),
    ],
)
def test_text_comes_in_pieces_that_nothing_takes_back(text: str, stop: tuple[str, ...], pieces: list[str]) -> None:
    spoken = Spoken(_decode, stop)
    assert [*map(spoken.add, text.encode()), spoken.end()] == pieces
    assert spoken.stopped == any(one in text for one in stop)


def test_a_text_that_ends_in_half_a_character_keeps_its_beginning() -> None:
    spoken = Spoken(_decode, ("z",))
    assert [*map(spoken.add, "bñ".encode()[:2]), spoken.end()] == ["b", "", "\ufffd"]


def test_bytes_that_are_no_text_are_told_and_read_a_few_times_each() -> None:
    """Pieces of any bytes add up to what all of them say, however long a run of invalid ones is."""
    rng, read = random.Random(0), 0

    def counted(ids: list[int]) -> str:
        nonlocal read
        read += len(ids)
        return _decode(ids)

    parts = ["añ\ufffd😀".encode(), b"\xff", b"\xf0\x90", b"\xe4\xbd", b"\x80"]
    for raw in (b"\xff" * 2000, b"\xf0\x9f" * 1000, *(b"".join(rng.choices(parts, k=40)) for _ in range(50))):
        spoken = Spoken(counted, ())
        assert "".join([*map(spoken.add, raw), spoken.end()]) == raw.decode("utf-8", "replace")
    assert read < 30 * 9000


@pytest.mark.parametrize(
    ("header", "ours"),
    [
        ("localhost", True), ("LOCALHOST:80", True), ("localhost.", True), ("127.0.0.1:8000", True), ("[::1]:8000", True),
        ("[::1]", True), ("127.9.9.9", True), ("evil.example", False), ("localhost.evil.example", False), ("", False),
        ("127.0.0.1.evil.example", False), ("localhost@evil.example", False), ("localhost:80@evil.example", False),
        ("evil.example:localhost", False), ("0.0.0.0", False), ("[::1].evil.example", False), ("localhost:", False), ("[::1", False),
        ("2130706433", False), ("::1", False),
    ],
)  # fmt: skip
def test_which_host_names_are_this_machines(header: str, ours: bool) -> None:
    assert is_loopback(host_name(header)) == ours


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost:8000",
        "ftp://a/v1",
        "http://",
        "http://a:99999/v1",
        "http://u:p@a/v1",
        "http://a/v1?x=1",
        "http://[::1/v1",
    ],
)
def test_an_upstream_that_is_no_url_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="expected a base URL"):
        make_client(url, None)


def test_a_correction_prompt_is_filled_in_from_the_conversation() -> None:
    prompt = "Reach {target} from {numbers}."
    numbers = CountdownConfig(prompt=prompt, correction_prompt="Is that {target}? Use {numbers}.")
    words = words_of_task(make_task(numbers), numbers, "the test")
    assert words.fill("Reach 39 from 30 7 2.") == "Is that 39? Use 30 7 2."
    for other in ("Reach it.", "Reach x from 30 7 2.", "Reach 39 from 30 7 2. And more", "Reach 39 from {target}."):
        with pytest.raises(ApiError, match=r"fills in \{numbers\}"):
            words.fill(other)
    math = MathConfig(name="math", correction_prompt="Again: {problem} {final_form}")
    words = words_of_task(make_task(math), math, "the test")
    task_prompt = math.prompt.format(problem="1 + {x}\n= ?", final_form=FINAL_FORM)
    assert words.fill(task_prompt) == f"Again: 1 + {{x}}\n= ? {FINAL_FORM}"
    assert words.fill("What is {0}?") == f"Again: What is {{0}}? {FINAL_FORM}"
    plain = CountdownConfig(correction_prompt="Set {{x}}.")
    assert words_of_task(make_task(plain), plain, "the test").fill("anything") == "Set {x}."


def test_a_custom_task_that_needs_its_own_fields_says_so(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "def problems(split, options): return []\ndef grade(problem, text): return True\n"
        "def correction_prompt(problem): return problem['hint']\n"
    )
    config = CustomConfig(name="custom", file=str(file))
    with pytest.raises(ApiError, match="cannot serve this conversation"):
        words_of_task(make_task(config), config, "the test").fill("hi")


CARD = "# mine\n\nThe recipe:\n\n```yaml\n{}\n```\n"


@pytest.mark.parametrize(
    ("recipe", "prompt"),
    [
        ("task: {name: countdown, prompt: '{numbers} : {target}', correction_prompt: Again}\nstages: [{name: x}]", "Again"),
        ("task: {name: custom, file: /tmp/evil.py}", None),
        ("task: !!python/object/apply:os.system [true]", None),
        ("task: {name: countdown, correction_prompt: 7}", None),
        ("[" * 800, None),
        ("just text", None),
        ("model: {path: x}", None),
    ],
)  # fmt: skip
def test_a_card_gives_words_and_nothing_else(tmp_path: Path, recipe: str, prompt: str | None) -> None:
    (tmp_path / "README.md").write_text(CARD.format(recipe))
    config = recipe_of_card(tmp_path)
    assert (config.task.correction_prompt if config and isinstance(config.task, CountdownConfig) else None) == prompt


def test_a_card_lets_nothing_run(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(CARD.format(
        "model: {path: evil, trust_remote_code: true, system_prompt: Be brief}\n"
        "task: {name: code, allow_unsandboxed: true, data: /etc/passwd, packages: [os]}\nrollouts: {attempts: 3}"
    ))  # fmt: skip
    config = recipe_of_card(tmp_path)
    assert config is not None
    assert (config.model.trust_remote_code, config.model.system_prompt, config.model.path) == (False, "Be brief", "lab")
    task = config.task.model_dump()
    assert (task["allow_unsandboxed"], task["data"], task["packages"], config.rollouts.attempts) == (False, None, (), 3)
