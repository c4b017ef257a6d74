"""Models behind an endpoint: every way in which a server can misbehave ends in an outcome or in one clear line."""

import gzip
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from email.utils import formatdate
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from selfcorrect.config import CountdownConfig
from selfcorrect.endpoints.answers import error_text, retry_after
from selfcorrect.endpoints.journal import Journal
from selfcorrect.endpoints.sampler import EndpointSampler
from selfcorrect.endpoints.secret import Secret
from selfcorrect.endpoints.settings import Endpoint, read_body
from selfcorrect.errors import ConfigError, EndpointError
from selfcorrect.models.messages import MessageChat, answered, messages
from selfcorrect.models.templates import System
from selfcorrect.rollout import play
from selfcorrect.tasks.countdown import Countdown
from selfcorrect.types import Grade, Outcome, Problem, Rollout, SamplingParams
from tests.support.endpoint import Body, Raw, Server, chat, http, served

pytestmark = pytest.mark.skipif(find_spec("openai") is None, reason="openai is not installed")
KEY = "sk-test-0123456789abcdef"
LIMIT = 20
PARAMS = SamplingParams(0.0, LIMIT, 7)
RIGHT = "so it is 42"
FINE = chat(RIGHT)


class FortyTwo(Countdown):
    """Right is what ends with 42."""

    def correction_prompt(self, problem: Problem) -> str:
        return "Again."

    def grade(self, answers: Sequence[tuple[Problem, str]]) -> list[Grade]:
        return [
            Grade(Outcome.CORRECT, 1.0, "42") if text.endswith("42") else Grade(Outcome.WRONG, 0.0, text[-2:])
            for _, text in answers
        ]


PROBLEMS = [Problem(name, "forty-two", f"Question {name}", {}) for name in ("good-1", "odd", "good-2")]


def quick(url: str, **changes: Any) -> Endpoint:
    return Endpoint(url, **{"timeout": 20.0, "retries": 2, "first_wait": 0.01, **changes})


def played(endpoint: Endpoint, file: Path, said: list[str] | None = None, attempts: int = 2) -> list[Rollout]:
    sampler = EndpointSampler(endpoint, "m", file, (said if said is not None else []).append)
    return play(PROBLEMS, FortyTwo(CountdownConfig()), sampler, MessageChat(), PARAMS, attempts)


def odd_only(what: Raw | Body, times: int = 10**6, first: bool = True) -> Callable[[Body, int], Raw | Body]:
    """`what` for the first tries at the odd problem's first attempt; all else is answered."""

    def answer(request: Body, n: int) -> Raw | Body:
        asked = request["messages"]
        return what if asked[0]["content"] == "Question odd" and len(asked) == 1 and n < times else FINE

    return answer


def body(text: bytes, **headers: str) -> Raw:
    return http(200, text, **headers)


GOOD = json.dumps(FINE).encode()
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
TRUNCATED, NONE, LEFT = Outcome.TRUNCATED, Outcome.NO_ANSWER, Outcome.GRADER_FAILED
# What one problem's first request is answered with, how that attempt ends, and what its detail says.
ODD: dict[str, tuple[Raw | Body, Outcome, str]] = {
    "refusal": (chat(None, refusal="I can't help with that."), NONE, "refused: I can't help"),
    "refusal as a part": (chat([{"type": "refusal", "refusal": "No."}]), NONE, "refused: No."),
    "empty": (chat(""), NONE, "the answer is empty"),
    "blank": (chat(" \n\t"), NONE, "the answer is empty"),
    "null": (chat(None), NONE, "the answer is empty"),
    "parts": (chat([{"type": "text", "text": "so "}, {"type": "text", "text": {"value": "42"}}]), Outcome.CORRECT, ""),
    "thinking parts": (chat([{"type": "thinking", "thinking": [{"text": "7"}]}, {"text": "42"}]), Outcome.CORRECT, ""),
    "cut off": (chat("it is 42", "length"), TRUNCATED, "ran into max_new_tokens"),
    "cut off in reasoning": (chat(None, "length", reasoning_content="hm"), TRUNCATED, "before the answer began"),
    "content filter": (chat("it is 42", "content_filter"), NONE, "content filter"),
    "no finish reason": (chat(RIGHT, None), Outcome.CORRECT, ""),
    "cut off, in other words": (chat("it is 42", "MAX_TOKENS"), TRUNCATED, "ran into max_new_tokens"),
    "content filter, in other words": (chat("it is 42", "SAFETY"), NONE, "content filter"),
    "content filter, no message": ({**FINE, "choices": [{"finish_reason": "content_filter"}]}, NONE, "content filter"),
    "always broken off": (chat("it is 4", "abort"), LEFT, "broken off (finish_reason abort)"),
    "odd finish reason": (chat(RIGHT, {"why": 1}), Outcome.CORRECT, ""),
    "reasoning apart": (chat("41", reasoning_content="surely 42"), Outcome.WRONG, ""),
    "only reasoning": (chat("", reasoning="surely 42"), NONE, "nothing but reasoning apart"),
    "thoughts": (chat("<think>surely 41</think>it is 42"), Outcome.CORRECT, ""),
    "nothing but thoughts": (chat("<think>surely 42"), NONE, "nothing follows the thoughts"),
    "tool call": (chat(None, "tool_calls", tool_calls=[{"id": "1"}]), NONE, "a call of a tool"),
    "more choices": ({**FINE, "choices": [{"index": 1, "message": {"content": "1"}}, *FINE["choices"]]}, Outcome.CORRECT, ""),
    "wrong types": ({**chat(RIGHT), "id": 3, "model": [], "usage": "many", "created": {}}, Outcome.CORRECT, ""),
    "far too much": (chat("42 " * 9000 + "42"), TRUNCATED, "far longer than max_new_tokens"),
    "too large a body": (body(b'{"choices": "' + b"x" * (5 << 20)), TRUNCATED, "more than 4 MiB"),
    "a bomb": (body(gzip.compress(b" " * (64 << 20), 1), content_encoding="gzip"), TRUNCATED, "more than 4 MiB"),
    "packed": (body(gzip.compress(GOOD), content_encoding="gzip"), Outcome.CORRECT, ""),
    "a byte order mark": (body(b"\xef\xbb\xbf" + GOOD), Outcome.CORRECT, ""),
    "headers of bytes": (body(GOOD, x="\xff\xe9"), Outcome.CORRECT, ""),
    "not UTF-8": (body(GOOD.replace(b"so it", b"\xff\xfe")), Outcome.CORRECT, ""),
    "half a surrogate pair": (body(GOOD.replace(b"so it", rb"\ud83d x \udc00\u0000\u001b[2J")), Outcome.CORRECT, ""),
    "too long": (http(400, {"error": {"message": "This model's maximum context length is 99 tokens", "code": 400}}), TRUNCATED, "does not fit"),
    "too long, llama.cpp": (http(400, {"error": {"message": "request (300 tokens) exceeds the available context size"}}), TRUNCATED, "exceeds the available"),
    "too large": (http(413, "<html><h1>413 Entity Too Large</h1>"), TRUNCATED, "413 Entity Too Large"),
    "422": (http(422, {"detail": [{"loc": ["body"], "msg": "prompt is too long"}]}), TRUNCATED, "prompt is too long"),
    "filtered": (http(400, {"error": {"code": "content_filter", "message": "content management policy"}}), NONE, "kept from the model"),
    "moderated": (http(403, {"error": {"message": "input flagged"}}), NONE, "input flagged"),
    "always 400": (http(400, {"error": {"message": "odd"}}), LEFT, "HTTP 400: odd"),
    "Azure's filter": (http(400, {"error": {"code": "content_filter", "innererror": {}, "message": "The response was filtered due to the prompt triggering the policy"}}), NONE, "kept from the model"),
    "an empty list of parts": (chat([]), NONE, "the answer is empty"),
    "parts of nonsense": (chat([None, 3, {"type": []}, {"text": None}]), NONE, "the answer is empty"),
    "refusal of another type": (chat(None, refusal={"why": 1}), NONE, "the answer is empty"),
    "reasoning of another type": (chat(RIGHT, reasoning_content=["a"]), Outcome.CORRECT, ""),
    "an empty error beside": ({**FINE, "error": None}, Outcome.CORRECT, ""),
    "a body of errors": (http(400, b"\xff\xfe\x00"), LEFT, "HTTP 400"),
    "an error of lists": (http(400, {"error": [[{"message": {"a": []}}]]}), LEFT, "HTTP 400: no more is said"),
    "always 500": (http(500, "boom"), LEFT, "HTTP 500: boom"),
    "always a large 500": (http(500, b"boom " * (1 << 20)), LEFT, "HTTP 500: boom boom"),
    "always a bomb with 429": (http(429, gzip.compress(b" " * (64 << 20), 1), content_encoding="gzip"), LEFT, "HTTP 429"),
    "an error without a name": ({"message": "overloaded"}, LEFT, "without a choice: overloaded"),
    "always resets": (Raw((b"HTTP/1.1 200 OK\r\n",), reset=True), LEFT, "the connection broke"),
    "always silent": (Raw((b"",), 5.0), LEFT, "no answer within 0.3 s"),
    "no choices": ({**FINE, "choices": []}, LEFT, "without a choice"),
    "no message": ({**FINE, "choices": [{"text": "42"}]}, LEFT, "without a message"),
    "content of another type": (chat(42), LEFT, "content is of type int"),
    "deep": (body(b"[" * 100_000), LEFT, "no JSON"),
    "an endless number": (body(b'{"choices": ' + b"9" * 5000 + b"}"), LEFT, "no JSON"),
    "deep parts": (body(b'{"choices": [{"message": {"content": ' + b'[{"text": ' * 600 + b'""' + b"}]" * 600 + b"}}]}"), LEFT, "the endpoint gave no answer"),
    "a deep error": (http(500, '{"error": ' * 1200 + "1" + "}" * 1200), LEFT, "HTTP 500"),
}  # fmt: skip


@pytest.mark.parametrize("name", ODD)
def test_an_odd_answer_has_an_outcome(name: str, tmp_path: Path) -> None:
    what, outcome, detail = ODD[name]
    file, slow = tmp_path / "answers.jsonl", {"timeout": 0.3} if "silent" in name else {}
    with served(odd_only(what)) as server:
        rollouts = played(quick(server.url, **slow), file)
        grade = rollouts[1].attempts[0].grade
        assert grade.outcome is outcome
        assert detail in grade.detail
        assert all(a.grade.correct for r in (rollouts[0], rollouts[2]) for a in r.attempts)
        json.dumps([a.completion.text for r in rollouts for a in r.attempts]).encode()
        asked = len(server.requests)
        if outcome is not LEFT:  # nothing that was answered is asked twice
            assert played(quick(server.url), file) == rollouts
            assert len(server.requests) == asked


def odd_request(server: Server) -> Body:
    """The one that is not answered at first."""
    return next(r for r in server.requests if [turn["content"] for turn in r["messages"]] == ["Question odd"])


# What the first two tries of a problem meet; the third has an answer.
PASSING: dict[str, Raw | Body] = {
    "429": http(429, {"error": {"message": "slow down"}}, retry_after="0.4"),
    "429 with a date": http(429, "", retry_after="Thu, 01 Jan 1970 00:00:00 GMT"),
    "429 with nonsense": http(429, "", retry_after="soon"),
    "500": http(500, {"error": "oh"}),
    "502 page": http(502, "<html><title>Bad Gateway</title></html>", content_type="text/html"),
    "503 negative": http(503, "", retry_after="-3"),
    "529": http(529, {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}),
    "408": http(408, ""),
    "200 with an error": {"error": {"message": "upstream", "code": 429}},
    "200 with an error, no code": {"error": "upstream", "choices": None},
    "200 with an error in its choice": {**FINE, "choices": [{"error": {"code": 502, "message": "x"}, "message": {"content": ""}}]},
    "broken off": chat("so it", "error"),
    "200 page": body(b"<!DOCTYPE html><p>Log in"),
    "200 empty": body(b""),
    "200 null": body(b"null"),
    "events": body(b"data: {}\n\n", content_type="text/event-stream"),
    "half a JSON": body(GOOD[:60]),
    "half a body": Raw((HEAD % len(GOOD) + GOOD[:50],)),
    "reset in the body": Raw((HEAD % len(GOOD) + GOOD[:50],), 0.01, reset=True),
    "reset at once": Raw((), reset=True),
    "no HTTP": Raw((b"220 smtp ready\r\n",)),
    "bad chunks": Raw((b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nZZ\r\n",)),
    "bad gzip": body(b"not packed", content_encoding="gzip"),
    "drip": Raw((HEAD % len(GOOD), *(GOOD[i : i + 1] for i in range(len(GOOD)))), 0.05),
    "silence": Raw((b"",), 2.0),
}  # fmt: skip


@pytest.mark.parametrize("name", PASSING)
def test_a_passing_fault_is_tried_again(name: str, tmp_path: Path) -> None:
    with served(odd_only(PASSING[name], times=2)) as server:
        slow = {"timeout": 0.3} if name in ("drip", "silence") else {}
        rollouts = played(quick(server.url, **slow), tmp_path / "answers.jsonl")
        assert all(attempt.grade.correct for rollout in rollouts for attempt in rollout.attempts)
        assert len(server.requests) == 8
        tries = [
            at for at, request in zip(server.times, server.requests, strict=True) if request == odd_request(server)
        ]
        assert name != "429" or all(b - a >= 0.4 for a, b in pairwise(tries))  # what it asked for


def test_how_long_a_server_asks_to_wait() -> None:
    soon = formatdate(time.time() + 60, usegmt=True)
    told = [
        {"retry-after": "7"},
        {"retry-after-ms": "250", "retry-after": "9"},
        {"retry-after-ms": "x", "retry-after": "2"},
    ]
    assert [retry_after(headers) for headers in told] == [7.0, 0.25, 2.0]
    assert 50 < (retry_after({"retry-after": soon}) or 0) <= 60
    for nonsense in ("soon", "-1", "nan", "inf", "", "Thu, 99 Foo 2020"):
        assert retry_after({"retry-after": nonsense}) is None


@pytest.mark.parametrize("piece", [b"<script>", b"<style <script ", b"<"])
def test_long_pages_are_read_in_linear_time(piece: bytes) -> None:
    """With quadratic time this would not end."""
    assert error_text(piece * 100_000)


# What every request meets, and what the one line says.
ENDS: dict[str, tuple[Raw | Body, str]] = {
    "401": (http(401, {"error": {"message": f"Incorrect API key provided: {KEY}"}}), "HTTP 401: Incorrect API key provided: [key]: the key is refused"),
    "402": (http(402, "pay"), "HTTP 402: pay"),
    "403": (http(403, {"message": "not your country"}), "HTTP 403: not your country"),
    "404 of a model": (http(404, {"error": {"message": "The model `m` does not exist"}}), "does not exist"),
    "400 of a field": (http(400, {"error": {"message": "Unsupported parameter: 'max_tokens'"}}), """--body '{"max_tokens": null, "max_completion_tokens": 512}'"""),
    "limit beyond the context": (http(400, {"error": {"message": "max_tokens=20 is too large: the context length is 9"}}), "too large"),
    "405": (http(405, ""), "HTTP 405: no more is said"),
    "redirect": (http(308, "", location=f"https://example.org/v1?key={KEY}"), "a redirect to https://example.org/v1?key=[key]"),
    "always 429": (http(429, "quota"), "no answer after 3 tries: HTTP 429: quota"),
    "429 for a day": (http(429, "quota", retry_after="86400"), "asks to wait for 1,440 minutes"),
    "always 503": (http(503, "<h1>down\x1b[31m</h1>"), "HTTP 503: down [31m"),
    "pages": (body(b"<html>Log in</html>"), "a web page in place of JSON (Log in)"),
}  # fmt: skip


@pytest.mark.parametrize("name", ENDS)
def test_what_ends_all_is_told_in_one_line_and_goes_on_later(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    what, told = ENDS[name]
    at_once = name == "limit beyond the context"  # told later, it is the conversation that is too long
    file, down = tmp_path / "answers.jsonl", [at_once]

    def answer(request: Body, n: int) -> Raw | Body:
        down[0] = down[0] or len(request["messages"]) > 1
        return what if down[0] else FINE

    with served(answer) as server:
        with pytest.raises(EndpointError) as ended:
            played(quick(server.url), file)
        line = str(ended.value)
        assert told in line
        assert ("3 answers are kept in" in line) is not at_once
        assert "\n" not in line
        assert KEY not in repr(ended.value) + file.read_text()
        assert ended.value.__cause__ is None
        server.answer = lambda request, n: FINE
        rollouts = played(quick(server.url), file)
        assert all(attempt.grade.correct for rollout in rollouts for attempt in rollout.attempts)
        firsts = sum(len(request["messages"]) == 1 for request in server.requests if "path" not in request)
        assert at_once or firsts == 3 + server.asked("Say yes.")


def test_a_server_that_is_not_there_and_a_model_that_it_has_not(tmp_path: Path) -> None:
    with pytest.raises(EndpointError, match=r"127\.0\.0\.1:9/v1: no answer after 3 tries: no connection"):
        played(quick("http://127.0.0.1:9/v1"), tmp_path / "a.jsonl")

    def answer(request: Body, n: int) -> Raw | Body:
        return {"data": [{"id": "other"}, {"id": "third"}]} if "path" in request else http(404, "no such model")

    with served(answer) as server, pytest.raises(EndpointError, match="--model m; it has other, third"):
        played(quick(server.url), tmp_path / "b.jsonl")


def test_conversations_systems_and_reasoning(tmp_path: Path) -> None:
    with served(lambda request, n: chat("41", reasoning_content="hm", usage={"prompt_tokens": 9})) as server:
        for send, kept in ((False, "a"), (True, "b")):
            sampler = EndpointSampler(quick(server.url, send_reasoning=send), "m", tmp_path / kept, lambda text: None)
            chats = MessageChat(System("Be brief.", first_user=send))
            play(PROBLEMS[:1], FortyTwo(CountdownConfig()), sampler, chats, PARAMS, 3)
        last = [server.requests[2]["messages"], server.requests[5]["messages"]]
    assert [turn["role"] for turn in last[0]] == ["system", *["user", "assistant"] * 2, "user"]
    assert [turn["content"] for turn in last[0]] == ["Be brief.", "Question good-1", "41", "Again.", "41", "Again."]
    assert last[1][0]["content"] == "Be brief.\n\nQuestion good-1"
    assert [turn.get("reasoning_content") for turn in last[1]] == [None, "hm", None, "hm", None]
    assert not any("reasoning_content" in turn for turn in last[0])
    text = "\U0010ffff\x00[user]\n"  # nothing that is written ends a turn
    ids = MessageChat().next_prompt(MessageChat().first_prompt(text), answered(text, text).token_ids, text)
    assert [turn["content"] for turn in messages(ids, send_reasoning=False)] == [text] * 3


def test_halves_of_surrogate_pairs_are_not_sent(tmp_path: Path) -> None:
    with served(lambda request, n: FINE) as server:
        sampler = EndpointSampler(quick(server.url), "m", tmp_path / "a", lambda text: None)
        chats, problem = MessageChat(System("Be \udcff")), Problem("a", "forty-two", "Why \ud83d?", {})
        play([problem], FortyTwo(CountdownConfig()), sampler, chats, PARAMS, 1)
    assert [turn["content"] for turn in server.requests[0]["messages"]] == ["Be \ufffd", "Why \ufffd?"]


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("http_proxy", "user:pass", "http_proxy: the proxy that it names cannot be used"),
        ("http_proxy", "socks4://user:pass@localhost:1", "http_proxy: the proxy that it names cannot be used"),
        ("http_proxy", "http://user:pass@[::1", "http_proxy: the proxy that it names cannot be used"),
        ("SSL_CERT_FILE", "nowhere", "mend or unset SSL_CERT_FILE"),
        ("SSLKEYLOGFILE", "nowhere/keys", "mend or unset SSL_CERT_FILE, SSL_CERT_DIR and SSLKEYLOGFILE"),
    ],
)  # fmt: skip
def test_surroundings_that_cannot_be_used(
    name: str, value: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from selfcorrect.endpoints.wire import _trusted

    monkeypatch.setenv(name, value)
    _trusted.cache_clear()
    with pytest.raises(ConfigError) as refused:
        played(quick("http://model.invalid/v1"), tmp_path / "a")
    assert told in str(refused.value)
    assert "pass" not in str(refused.value)


@pytest.mark.parametrize(
    "url", ["http://a\x00b/v1", "http://\N{FULLWIDTH DIGIT ONE}.2.3.4/v1", "http://localhost/\ud800"]
)
def test_addresses_that_the_client_refuses(url: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--endpoint: cannot be asked"):
        played(quick(url), tmp_path / "a")


def test_what_is_told_once_and_of_attempts_inside_of_attempts(tmp_path: Path) -> None:
    said: list[str] = []

    def answer(request: Body, n: int) -> Body:
        written = 30 + len(json.dumps(request))  # another number in every note
        return chat(RIGHT, usage={"prompt_tokens": 300, "completion_tokens": written}, selfcorrect={"attempts": []})

    with served(answer) as server:
        played(quick(server.url), tmp_path / "answers.jsonl", said)
    assert [line[:40] for line in said if "attempts" in line] == ["warning: the endpoint is `selfcorrect se"]
    assert "--body '{\"attempts\": 1}'" in said[0]
    assert len([line for line in said if "are the limit" in line]) == 1


def test_samples_are_kept_apart_where_no_seed_is_sent(tmp_path: Path) -> None:
    with served(lambda request, n: chat(f"answer {n}")) as server:
        sampler = EndpointSampler(Endpoint(server.url, body={"seed": None}), "m", tmp_path / "a", lambda text: None)
        prompts, params = [MessageChat().first_prompt("q")] * 3, SamplingParams(0.7, LIMIT, 1)
        texts = [found.text for found in sampler.sample(prompts, params)]
        assert sorted(texts) == ["answer 0", "answer 1", "answer 2"]
        assert [found.text for found in sampler.sample(prompts, params)] == texts
        assert len(server.requests) == 3


def test_a_torn_journal_goes_on_and_what_was_sent_counts(tmp_path: Path) -> None:
    file = tmp_path / "answers.jsonl"
    with served(lambda request, n: FINE) as server:
        played(quick(server.url, concurrency=1), file)
        lines = file.read_bytes().splitlines(keepends=True)
        file.write_bytes(b"".join(lines[:5]) + lines[5][:40])  # two answered, the third sent and its answer torn
        assert Journal(file).spent.written == 2 * 5 + LIMIT
        played(quick(server.url), file)
        assert len(server.requests) == 6 + 4
        assert sorted(json.dumps(line) for line in Journal(file).answers) == sorted(
            json.dumps(json.loads(line)["answer"]) for line in lines if b'"answer"' in line
        )


def test_a_disk_that_is_full_is_told_with_its_file_and_goes_on(tmp_path: Path) -> None:
    import resource

    file, limits = tmp_path / "answers.jsonl", resource.getrlimit(resource.RLIMIT_FSIZE)
    with served(lambda request, n: FINE) as server:
        resource.setrlimit(resource.RLIMIT_FSIZE, (600, limits[1]))
        try:
            with pytest.raises(OSError, match=r"answers\.jsonl"):
                played(quick(server.url, concurrency=1), file)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert 1 <= (asked := len(server.requests)) < 6
        played(quick(server.url), file)
        assert len(server.requests) <= asked + 6 - 1
    assert len(Journal(file).answers) == 6


def test_so_many_requests_at_once_and_no_more(tmp_path: Path) -> None:
    def answer(request: Body, n: int) -> Raw:
        return Raw((HEAD % len(GOOD), GOOD), 0.02)

    with served(answer) as server:
        sampler = EndpointSampler(Endpoint(server.url, concurrency=4), "m", tmp_path / "a", lambda text: None)
        far: list[tuple[int, str]] = []
        sampler.tell = lambda ended, now: far.append((ended, now))
        prompts = [MessageChat().first_prompt(f"q{i}") for i in range(20)] + [MessageChat().first_prompt("q0")] * 2
        found = sampler.sample(prompts, SamplingParams(0.7, LIMIT, 1))
        assert len(found) == 22 == len(server.requests)
        assert server.most == 4
        assert len({request["seed"] for request in server.requests}) == 22
        assert far[-1][0] == 22


def test_a_key_is_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINE", f" {KEY}\n")
    said: list[str] = []
    echo = {
        **chat(f"your key is {KEY} and {KEY[:15].upper()} 42"),
        "id": KEY,
        "model": f"m-{KEY}",
        "system_fingerprint": KEY,
    }
    with served(lambda request, n: echo) as server:
        rollouts = played(quick(server.url, key_env="MINE"), tmp_path / "a", said)
        assert all(f"authorization: bearer {KEY}" in head.lower() for head in server.headers)
        monkeypatch.delenv("MINE")
        played(quick(server.url), tmp_path / "b")
        assert "authorization" not in server.headers[-1].lower()
    assert rollouts[0].attempts[0].completion.text == "your key is [key] and [key] 42"
    assert KEY[:12] not in (tmp_path / "a").read_text() + "".join(said) + str([asdict(rollout) for rollout in rollouts])
    secret = Secret(KEY)
    assert KEY not in f"{secret!r} {secret}"
    assert secret.without(f"a {KEY} b{KEY[3:17]}c") == "a [key] b[key]c"
    assert Secret("EMPTY").without("EMPTY is empty", written=True) == "EMPTY is empty"


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"url": "localhost:8000/v1"}, "must be a URL"),
        ({"url": f"https://user:{KEY}@host/v1"}, "without user"),
        ({"url": f"https://host/v1?key={KEY}"}, "without user, query"),
        ({"url": "http://[::1/v1"}, "must be a URL"),
        ({"key_env": KEY}, "the name of an environment variable, not the key"),
        ({"concurrency": 0}, "--concurrency 0"),
        ({"timeout": float("nan")}, "--timeout nan"),
        ({"max_cost": 1.0, "price_in": 2.0}, "needs --price-in and --price-out"),
        ({"price_in": -1.0}, "--price-in -1.0"),
        ({"max_tokens_total": 0}, "--max-tokens-total 0"),
        ({"body": {"n": 4}}, "n is set by the evaluation"),
        ({"body": {"max_tokens": -1}}, "--body: max_tokens -1: must be a whole number"),
        ({"body": {"max_completion_tokens": 1e6}}, "--body: max_completion_tokens 1000000.0"),
        ({"body": {"max_tokens": "9999"}}, '--body: max_tokens "9999"'),
        ({"body": {"max_tokens": True}}, "--body: max_tokens true"),
        ({"body": {"x": float("nan")}}, "--body: holds what cannot be sent"),
        ({"body": {"x": [float("inf")]}}, "--body: holds what cannot be sent"),
        ({"body": {"x": "\ud800"}}, "--body: holds what cannot be sent"),
        ({"body": {"max_tokens": None}, "max_tokens_total": 9}, "no budget could be kept"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be_are_refused(changes: Any, told: str) -> None:
    with pytest.raises(ConfigError) as refused:
        Endpoint(**{"url": "http://localhost/v1", **changes})
    assert told in str(refused.value)
    assert KEY not in str(refused.value)


def test_keys_and_bodies_that_cannot_be_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="not set"):
        Endpoint("http://localhost/v1", key_env="NOT_THERE").secret()
    monkeypatch.setenv("OPENAI_API_KEY", "a\nb")
    with pytest.raises(ConfigError, match="no header may hold"):
        Endpoint("http://localhost/v1").secret()
    for text in ("{", "[]", '{"x": ' + "[" * 9000):
        with pytest.raises(ConfigError, match="--body"):
            read_body(text)
    for name in ("", " ", "m\udcff"):
        with pytest.raises(ConfigError, match="--model"):
            EndpointSampler(Endpoint("http://localhost/v1"), name, Path("a"), print)
    assert Endpoint("http://localhost/v1/chat/completions/").url == "http://localhost/v1"
