"""The HTTP interface: /v1/chat/completions, /v1/models, /health, and the page at /."""

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from selfcorrect.serving.answers import as_events, chunks, whole
from selfcorrect.serving.engine import Engine, Events
from selfcorrect.serving.guards import Json, KnownHosts, Slashes, check_key, read_body, refuse
from selfcorrect.serving.page import Page
from selfcorrect.serving.protocol import OFFERED, OWNER, ApiError, Ask, Plan, read_ask, read_json
from selfcorrect.serving.words import Words

T = TypeVar("T")
Handler = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class Served:
    """What is served. models: the first is asked where a request names none; attempts: where it names no number."""

    models: tuple[str, ...]
    attempts: int
    words: Words
    also_called: dict[str, str]

    def plan(self, ask: Ask) -> Plan:
        """Raises ApiError where the model is unknown, or the correction prompt cannot be filled in."""
        name = self.models[0] if ask.model is None else self.also_called.get(ask.model, ask.model)
        if name not in self.models:
            listed = ", ".join(self.models)
            raise ApiError(404, f"model {name[:80]!r}: not served; there is {listed}", "model", "model_not_found")
        attempts = ask.attempts or self.attempts
        if ask.correction_prompt is not None:
            correction = ask.correction_prompt
        else:
            correction = self.words.fill(ask.messages[-1].content) if attempts > 1 else ""
        return Plan(ask, name, attempts, correction)


def make_app(
    served: Served, engine: Engine, page: Page, *, key: str | None, hosts: Sequence[str] | None, cors: Sequence[str]
) -> Starlette:
    """The whole application. key: of requests, if they must bring one; it is shown nowhere.

    hosts: names of its own beside this machine's; None lets every name pass.
    """
    models, model = _listing(served)
    told: set[str] = set()

    async def health(request: Request) -> Response:
        return Json({"status": "ok"})

    async def chat(request: Request) -> Response:
        data = read_json(await read_body(request))
        ask = read_ask(data)
        _tell_unused(data, told)
        plan = served.plan(ask)
        events = await _unless_gone(request, engine.start(plan))
        if ask.stream:
            return _Stream(plan, events)
        try:
            return Json(await _unless_gone(request, whole(plan, events)))
        finally:
            events.close()

    def guarded(handler: Handler) -> Handler:
        async def checked(request: Request) -> Response:
            check_key(request, key)
            return await handler(request)

        return checked

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        await engine.close()
        await page.close()

    routes = [
        Route("/", page.show),
        Route("/health", health),
        Route("/v1/models", guarded(models)),
        Route("/v1/models/{name:path}", guarded(model)),
        Route("/v1/chat/completions", guarded(chat), methods=["POST"]),
        *[Route(path, guarded(handler), methods=[verb]) for verb, path, handler in page.routes()],
    ]
    middleware = [Middleware(KnownHosts, names=hosts), Middleware(Slashes)]
    if cors:
        middleware.append(
            Middleware(CORSMiddleware, allow_origins=list(cors), allow_methods=["GET", "POST"], allow_headers=["*"])
        )
    handlers: dict[Any, Any] = {ApiError: _api_error, HTTPException: _http_error, ClientDisconnect: _gone}
    app = Starlette(routes=routes, middleware=middleware, exception_handlers=handlers, lifespan=lifespan)
    app.add_exception_handler(Exception, _failed)
    return app


def _tell_unused(data: dict[str, Any], told: set[str]) -> None:
    """Says once, in the server's output, that tools are offered for nothing."""
    for name in OFFERED:
        if data.get(name) and name not in told:
            told.add(name)
            print(f"note: a client offers {name}, of which the model is not told", file=sys.stderr, flush=True)


def _listing(served: Served) -> tuple[Handler, Handler]:
    """What is served, all and one."""
    started = int(time.time())

    async def models(request: Request) -> Response:
        return Json({"object": "list", "data": [_model(name, started) for name in served.models]})

    async def model(request: Request) -> Response:
        name = request.path_params["name"]
        name = served.also_called.get(name, name)
        if name not in served.models:
            raise ApiError(404, f"model {name[:80]!r}: not served", "model", "model_not_found")
        return Json(_model(name, started))

    return models, model


def _model(name: str, created: int) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": created, "owned_by": OWNER}


class _Stream(StreamingResponse):
    """The events as they come. A client that has gone is written for no longer."""

    def __init__(self, plan: Plan, events: Events) -> None:
        headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
        super().__init__(as_events(chunks(plan, events)), media_type="text/event-stream", headers=headers)
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._events.close()


async def _unless_gone(request: Request, work: Awaitable[T]) -> T:
    """The work's result; it ends early where the client has gone. Raises ClientDisconnect then."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    task, watch = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientDisconnect
    finally:
        for each in (task, watch):
            each.cancel()
        await asyncio.wait({task, watch})


async def _api_error(request: Request, error: ApiError) -> Response:
    return refuse(error)


async def _http_error(request: Request, error: HTTPException) -> Response:
    path = f"{request.method} {request.url.path[:100]}"
    what = {
        404: "there is no such path; of OpenAI's interface /v1/chat/completions and /v1/models are served",
        405: "the path takes another method",
    }.get(error.status_code, error.detail)
    answer = refuse(ApiError(error.status_code, f"{path}: {what}", code="not_found"))
    answer.headers.update(error.headers or {})
    return answer


async def _gone(request: Request, error: ClientDisconnect) -> Response:
    return Response(status_code=499)  # nobody reads it


async def _failed(request: Request, error: Exception) -> Response:
    # the framework raises it on, so that its traceback is in the server's output
    return refuse(ApiError(500, "the server failed; its own output says more", code="internal_error"))
