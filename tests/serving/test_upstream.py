"""In front of another server: what it is sent, and what becomes of all it may answer."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from selfcorrect.errors import ConfigError
from selfcorrect.serving import command, sources
from selfcorrect.serving.upstream import UpstreamEngine, make_client, upstream_models

from .helpers import Running, said, serving, until, user

USAGE = {"prompt_tokens": 9, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 4}}


def event(data: Any) -> str:
    return f"data: {json.dumps(data, ensure_ascii=False)}\n\n"


def piece(text: str | None, finish: str | None = None) -> str:
    return event({"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": finish}]})


END = piece(None, "stop") + event({"choices": [], "usage": USAGE}) + "data: [DONE]\n\n"


class Other:
    """A server that answers with what it is told to, and keeps what it was sent."""

    def __init__(self) -> None:
        self.answers: list[Response] = []
        self.asked: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.running = Running(self._app)

    def _app(self) -> Starlette:
        async def chat(request: Request) -> Response:
            self.asked.append(await request.json())
            self.keys.append(request.headers.get("authorization"))
            return self.answers.pop(0)

        async def models(request: Request) -> Response:
            return JSONResponse({"data": [{"id": "theirs"}]})

        return Starlette(routes=[Route("/v1/chat/completions", chat, methods=["POST"]), Route("/v1/models", models)])

    def will_say(self, *answers: str | Response) -> None:
        """Strings are whole streams."""
        self.asked, self.keys = [], []
        self.answers = [
            one if isinstance(one, Response) else StreamingResponse(said(one), media_type="text/event-stream")
            for one in answers
        ]  # fmt: skip


@pytest.fixture(scope="module")
def other() -> Iterator[Other]:
    made = Other()
    yield made
    made.running.close()


@pytest.fixture(scope="module")
def server(other: Other) -> Iterator[Running]:
    engine = UpstreamEngine(make_client(f"{other.running.url}/v1/", "their-key"), {"ours": "theirs"})
    running, _ = serving(engine, names=["ours"])
    yield running
    running.close()


def test_every_attempt_is_a_request_that_extends_the_one_before(server: Running, other: Other) -> None:
    other.will_say(piece("on") + piece("e") + END, piece("two\u2028\x85\U0001f600") + END)
    answer = server.ask(messages=user("hi"), temperature=0.5, max_completion_tokens=9, stop=["x"], seed=3)
    message = answer["choices"][0]["message"]
    assert message["content"] == "two\u2028\x85\U0001f600"
    assert [one["content"] for one in message["selfcorrect"]["attempts"]] == ["one"]
    assert answer["usage"]["total_tokens"] == 22
    assert answer["usage"]["prompt_tokens_details"] == {"cached_tokens": 8}
    first, second = other.asked
    assert first == {
        "model": "theirs", "messages": user("hi"), "temperature": 0.5, "max_completion_tokens": 9, "stop": ["x"], "seed": 3,
        "stream": True, "stream_options": {"include_usage": True},
    }  # fmt: skip
    assert second["messages"] == [*user("hi"), {"role": "assistant", "content": "one"}, *user("?")]
    assert other.keys == ["Bearer their-key"] * 2


@pytest.mark.parametrize(
    ("setting", "first"),
    [
        ("system", [{"role": "system", "content": "Be brief."}, *user("hi")]),
        ("first_user", user("Be brief.\n\nhi")),
    ],
)
def test_the_recipe_s_system_prompt_goes_before_every_conversation(
    other: Other, setting: str, first: list[dict[str, str]], capsys: pytest.CaptureFixture[str]
) -> None:
    """But for one with a system turn of its own; template options are told of."""
    overrides = ["model.system_prompt=Be brief.", f"model.system_as={setting}", "model.template_options={deep: true}"]
    source = sources.find("theirs", None, overrides, upstream=True)
    names, made, _ = asyncio.run(command._upstream(f"{other.running.url}/v1", source, None, None))
    assert isinstance(made, UpstreamEngine)
    assert "note: model.chat_template and model.template_options are the affair of" in capsys.readouterr().err
    engine = UpstreamEngine(make_client(f"{other.running.url}/v1", None), made._models, made._system)
    running, _ = serving(engine, names=names)
    other.will_say(piece("one") + END, piece("two") + END, piece("three") + END)
    running.ask(messages=user("hi"))
    own = [{"role": "system", "content": "Be long."}, *user("hi")]
    running.ask(messages=own, attempts=1)
    answer = {"role": "assistant", "content": "one"}
    assert [asked["messages"] for asked in other.asked] == [first, [*first, answer, *user("?")], own]
    running.close()


def test_a_stream_and_choices(server: Running, other: Other) -> None:
    other.will_say(piece("one") + END, piece("two") + END)
    chunks = server.stream(messages=user("hi"))
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas[1:] == [
        {"selfcorrect": {"attempt": 1, "content": "one"}}, {"selfcorrect": {"attempt": 1, "finish_reason": "stop"}}, {"content": "two"}, {},
    ]  # fmt: skip
    other.will_say(*[piece("a") + END] * 3)
    answer = server.ask(messages=user("hi"), n=3, attempts=1, seed=5)
    assert [choice["message"]["content"] for choice in answer["choices"]] == ["a"] * 3
    assert sorted(asked["seed"] for asked in other.asked) == [5, 6, 7]


def _status(status: int, body: Any = None) -> Response:
    return JSONResponse({"error": {"message": "because", "code": "why"}} if body is None else body, status)


@pytest.mark.parametrize(
    ("answer", "status", "why"),
    [
        (_status(400), 400, "refuses: because"), (_status(422), 400, "because"), (_status(404), 400, "because"),
        (_status(401), 502, "SELFCORRECT_UPSTREAM_API_KEY"), (_status(403), 502, "key"), (_status(429), 429, "busy"),
        (_status(500), 502, "failed: because"), (_status(503, {"detail": "x"}), 502, "failed"), (_status(500, [1]), 502, "status 500"),
        (_status(302, {}), 502, "failed"), (Response("<html>", 502), 502, "failed: status 502"), (_status(500, {"error": "text"}), 502, "text"),
        ("", 502, "cut its answer off"), (piece("half"), 502, "cut its answer off"), ("data: [DONE]\n\n", 502, "cut"),
        ("data: {not json\n\n", 502, "no JSON object"), ("data: [1]\n\n", 502, "no JSON object"),
        (f"data: {'[' * 100_000}\n\n", 502, "no JSON object"), (event({"error": {"message": "died"}}), 502, "died"),
        (Response("<html>hello", 200), 502, "cut its answer off"),
        (Response("data: " + "x" * (9 << 20), 200), 502, "a line without an end"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("stream", [False, True])
def test_what_goes_wrong_there_is_told_here(
    server: Running, other: Other, answer: str | Response, status: int, why: str, stream: bool
) -> None:
    """At attempt 1, and (in a stream as its last event) at attempt 2."""
    other.will_say(answer)
    reply = server.http.post("/v1/chat/completions", json={"messages": user("hi"), "stream": stream})
    if not stream or isinstance(answer, JSONResponse):
        assert reply.status_code == status
    assert why in reply.text.strip().split("\n")[-1]
    other.will_say(piece("one") + END, answer)
    reply = server.http.post("/v1/chat/completions", json={"messages": user("hi"), "stream": stream})
    assert reply.status_code == (200 if stream else status)
    last = reply.text.strip().split("\n")[-1].removeprefix("data: ")
    assert why in json.loads(last)["error"]["message"]


@pytest.mark.parametrize(
    "oddity",
    [
        event({"choices": []}), event({"choices": None}), event({"choices": [5]}), event({"choices": [{"delta": None}]}), event({}), ": comment\n\n",
        event({"choices": [{"delta": {"content": 5}}]}), event({"choices": [{"delta": {"reasoning_content": "hm"}}]}), "event: x\r\nretry: 5\r\n\r\n",
    ],
)  # fmt: skip
def test_odd_events_do_no_harm(server: Running, other: Other, oddity: str) -> None:
    other.will_say(
        oddity + piece("one") + oddity + END, oddity + piece('\ud83d"', None).replace("\ud83d", "\\ud83d") + END
    )
    answer = server.ask(messages=user("hi"))
    assert answer["choices"][0]["message"]["content"] == '?"'


@pytest.mark.parametrize(
    "usage", [None, {"prompt_tokens": -5, "completion_tokens": 1}, {"prompt_tokens": "9"}, {}, [1]]
)
def test_a_usage_that_is_not_told_is_not_made_up(server: Running, other: Other, usage: Any) -> None:
    other.will_say(piece("one", "stop") + event({"choices": [], "usage": usage}))
    assert server.ask(messages=user("hi"), attempts=1)["usage"] is None


@pytest.mark.parametrize(
    ("url", "key", "surroundings"),
    [
        ("http://a\x00b/v1", None, {}), ("http://localhost/\ud800", None, {}), ("http://localhost", "caf\N{COMBINING ACUTE ACCENT}", {}),
        ("http://model.invalid", None, {"HTTP_PROXY": "socks9://user:secret"}),
        ("https://model.invalid", None, {"SSL_CERT_FILE": "nowhere"}),
    ],
)  # fmt: skip
def test_what_no_client_can_be_made_of(
    url: str, key: str | None, surroundings: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in surroundings.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=r"--upstream .*: cannot be asked") as refused:
        make_client(url, key)
    assert "caf" not in str(refused.value)
    assert "secret" not in str(refused.value)


def test_a_server_that_is_not_there(other: Other) -> None:
    engine = UpstreamEngine(make_client("http://127.0.0.1:9/v1", None), {"ours": "theirs"})
    running, _ = serving(engine, names=["ours"])
    reply = running.http.post("/v1/chat/completions", json={"messages": user("hi")})
    assert (reply.status_code, reply.json()["error"]["code"]) == (502, "upstream_failed")
    running.close()
    assert asyncio.run(upstream_models(make_client(f"{other.running.url}/v1", None))) == ["theirs"]
    for url, why in [("http://127.0.0.1:9/v1", "does not answer"), (f"{other.running.url}/nothing", "status 404")]:
        with pytest.raises(ConfigError, match=why):
            asyncio.run(upstream_models(make_client(url, None)))
    ours, _ = serving(engine, names=["ours"])
    with pytest.raises(ConfigError, match="is `selfcorrect serve` itself"):
        asyncio.run(upstream_models(make_client(f"{ours.url}/v1", None)))
    ours.close()


def test_a_client_that_has_gone_is_told_on(server: Running, other: Other) -> None:
    """The upstream's connection is closed, which ends its work."""
    gone: list[bool] = []

    async def endless() -> Any:
        try:
            while True:
                yield piece("on and on ").encode()
                await asyncio.sleep(0.01)
        finally:
            gone.append(True)

    other.will_say(StreamingResponse(endless(), media_type="text/event-stream"))
    with (
        httpx2.Client(trust_env=False) as client,
        client.stream(
            "POST", f"{server.url}/v1/chat/completions", json={"messages": user("hi"), "stream": True, "attempts": 1}
        ) as reply,
    ):
        next(reply.iter_raw())
    until(lambda: bool(gone))
