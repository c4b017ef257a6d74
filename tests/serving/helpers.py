"""A server in a thread of the test's own process, on a free port."""

import asyncio
import json
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any

import httpx2
import uvicorn
from starlette.applications import Starlette

from selfcorrect.models.language_model import LanguageModel
from selfcorrect.serving.app import Served, make_app
from selfcorrect.serving.engine import Engine
from selfcorrect.serving.local import LocalEngine
from selfcorrect.serving.page import About, Page
from selfcorrect.serving.words import Words, literal
from selfcorrect.tasks import Task
from selfcorrect.types import Problem

AGAIN = literal("?", "the test")


class Running:
    """An application that listens until it is closed. make: called in its event loop."""

    def __init__(self, make: Callable[[], Starlette]) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run(make)), daemon=True)
        self._thread.start()
        self.http = httpx2.Client(base_url=self.url, timeout=60, trust_env=False, verify=False)  # by plain HTTP
        until(lambda: hasattr(self, "_server") and self._server.started)

    async def _run(self, make: Callable[[], Starlette]) -> None:
        config = uvicorn.Config(make(), log_level="critical", timeout_graceful_shutdown=2)
        self._server = uvicorn.Server(config)
        await self._server.serve(sockets=[self._socket])

    def ask(self, **body: Any) -> Any:
        reply = self.http.post("/v1/chat/completions", json=body)
        assert reply.status_code == 200, reply.text
        return reply.json()

    def stream(self, **body: Any) -> list[Any]:
        """The JSON objects of a stream, which must end as it should."""
        reply = self.http.post("/v1/chat/completions", json={**body, "stream": True})
        assert reply.status_code == 200, reply.text
        lines = [line for line in reply.text.split("\n") if line.startswith("data: ")]
        assert lines.pop() == "data: [DONE]"
        return [json.loads(line[6:]) for line in lines]

    def close(self) -> None:
        self.http.close()
        self._server.should_exit = True
        self._thread.join(20)
        assert not self._thread.is_alive()


def until(true: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def serving(
    models: Mapping[str, LanguageModel] | Engine, *, names: Sequence[str] = (), words: Words = AGAIN,
    task: Task | None = None, problems: Sequence[Problem] = (), base: str | None = None, key: str | None = None,
    cors: Sequence[str] = (), rows: int = 8, limit: int = 16, hosts: Sequence[str] | None = ("127.0.0.1",),
) -> tuple[Running, Any]:  # fmt: skip
    """A server of these models, or of another engine's `names`; and the engine."""
    engine: Engine = LocalEngine(models, rows, limit) if isinstance(models, Mapping) else models
    listed = tuple(models) if isinstance(models, Mapping) else tuple(names)
    about = About(listed[0], base, 2, words.shown, words.source, own_words=task is not None)
    served = Served(listed, 2, words, {})
    page = Page(about, task, list(problems))
    return Running(lambda: make_app(served, engine, page, key=key, hosts=hosts, cors=cors)), engine


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


async def said(*chunks: str) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk.encode()
