"""The engine in front of another OpenAI-compatible server: every attempt is one request to it.

Attempt 2's messages extend attempt 1's, so that a prefix cache there (vLLM's) serves them.
"""

import asyncio
import ipaddress
import json
from collections.abc import AsyncIterator, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from selfcorrect.errors import ConfigError
from selfcorrect.models.templates import System
from selfcorrect.serving.engine import Ended, Events, Piece, Post
from selfcorrect.serving.protocol import OWNER, ApiError, Plan

if TYPE_CHECKING:
    import httpx2

_PASSED_ON = ("temperature", "top_p", "max_tokens", "max_completion_tokens")
_LINE = 4 << 20  # bytes
_Queue = asyncio.Queue[Post]
_First = asyncio.Future["ApiError | None"]
_Counts = tuple[int | None, int | None, int | None]  # tokens of prompt and completion, and those that were cached


def is_loopback(host: str) -> bool:
    """Whether a name or address is of this machine alone."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower().rstrip(".") == "localhost"


def make_client(url: str, key: str | None) -> "httpx2.AsyncClient":
    """A client for a base URL like http://localhost:8000/v1. Raises ConfigError where it is none."""
    import httpx2

    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        valid = False
    if not valid or parts.username or parts.query or parts.fragment:
        raise ConfigError(f"--upstream {url!r}: expected a base URL like http://localhost:8000/v1")
    headers = {"authorization": f"Bearer {key}"} if key else {}
    try:
        return httpx2.AsyncClient(
            base_url=url.rstrip("/") + "/", headers=headers, timeout=httpx2.Timeout(600, connect=10),
            limits=httpx2.Limits(max_connections=256), trust_env=not is_loopback(str(parts.hostname)),
        )  # fmt: skip
    except (httpx2.InvalidURL, ValueError, ImportError, OSError):  # the reasons may quote a key
        raise ConfigError(
            f"--upstream {url!a}: cannot be asked; look at the URL, at the key's characters, and at http_proxy, "
            "https_proxy, all_proxy, SSL_CERT_FILE and SSLKEYLOGFILE in the environment"
        ) from None


async def upstream_models(client: "httpx2.AsyncClient") -> list[str]:
    """The models that the server lists. Raises ConfigError where it does not answer as such a server does."""
    import httpx2

    url = f"{client.base_url}models"
    try:
        answer = await client.get("models", timeout=20)
        answer.raise_for_status()
        listed = answer.json()["data"]
        names = [str(one["id"]) for one in listed]
        nested = any(one.get("owned_by") == OWNER for one in listed)
    except httpx2.HTTPStatusError as error:
        raise ConfigError(
            f"--upstream: {url} answers with status {error.response.status_code}; expected an OpenAI-compatible server "
            "(its key goes into SELFCORRECT_UPSTREAM_API_KEY)"
        ) from None
    except (httpx2.HTTPError, ValueError, KeyError, TypeError, AttributeError) as error:
        why = str(error) or type(error).__name__
        raise ConfigError(f"--upstream: {url} does not answer as an OpenAI-compatible server: {why[:200]}") from None
    if nested:
        raise ConfigError(
            f"--upstream: {url} is `selfcorrect serve` itself, whose answers have attempts of their own inside; name "
            "the server of the plain model"
        )
    return names


class UpstreamEngine:
    """models: by the name under which they are asked here, the upstream's own.

    system: what stands before every conversation that has no system turn of its own.
    """

    def __init__(self, client: "httpx2.AsyncClient", models: Mapping[str, str], system: System | None = None) -> None:
        self._client, self._models, self._system = client, dict(models), system
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self, plan: Plan) -> Events:
        queue, first = _Queue(), _First()
        tasks = [asyncio.create_task(self._answer(plan, choice, queue, first)) for choice in range(plan.choices)]
        for task in tasks:
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        try:
            refused = await first  # what the upstream refuses at once is refused here, with a status
        except asyncio.CancelledError:
            _cancel(tasks)
            raise
        if refused is not None:
            _cancel(tasks)
            raise refused
        return Events(queue, len(tasks), lambda: _cancel(tasks))

    def stop(self) -> None:
        _cancel(list(self._tasks))

    async def close(self) -> None:
        self.stop()
        await self._client.aclose()

    async def _answer(self, plan: Plan, choice: int, queue: _Queue, first: _First) -> None:
        """All attempts of one choice, into the queue; None at its end."""
        end: ApiError | None = None
        try:
            messages = [message.model_dump() for message in plan.ask.messages]
            if self._system and not any(message["role"] == "system" for message in messages):
                messages = self._system.before(messages)
            for attempt in range(1, plan.attempts + 1):
                text = await self._attempt(plan, choice, attempt, messages, queue, first)
                messages += [{"role": "assistant", "content": text}, {"role": "user", "content": plan.correction}]
        except ApiError as error:
            end = error
        except asyncio.CancelledError:
            end = ApiError(503, "the server is shutting down", code="shutting_down")
            raise
        finally:
            queue.put_nowait(end)
            if not first.done():
                first.set_result(end)

    async def _attempt(
        self, plan: Plan, choice: int, attempt: int, messages: list[dict[str, str]], queue: _Queue,
        first: _First,
    ) -> str:  # fmt: skip
        import httpx2

        text, finish = "", ""
        counts: _Counts = (None, None, None)
        try:
            async with self._client.stream(
                "POST", "chat/completions", json=self._body(plan, choice, messages)
            ) as reply:
                if reply.status_code != 200:
                    raise _refused(reply.status_code, await reply.aread())
                if not first.done():
                    first.set_result(None)
                async for data in _events_of(reply):
                    counts = _usage(data, counts)
                    new, finish = _choice(data, finish)
                    text += new
                    if new:
                        queue.put_nowait(Piece(choice, attempt, new))
        except httpx2.HTTPError as error:
            why = str(error) or type(error).__name__
            raise ApiError(502, f"the upstream server does not answer: {why[:200]}", code="upstream_failed") from None
        if not finish:
            raise ApiError(502, "the upstream server cut its answer off", code="upstream_failed")
        queue.put_nowait(Ended(choice, attempt, finish, *counts))
        return text

    def _body(self, plan: Plan, choice: int, messages: list[dict[str, str]]) -> dict[str, Any]:
        given = plan.ask.model_dump(include=set(_PASSED_ON), exclude_none=True)
        body = {"model": self._models[plan.model], "messages": messages, **given}
        body |= {"stream": True, "stream_options": {"include_usage": True}}
        if plan.ask.stop:
            body["stop"] = list(plan.ask.stop)
        if plan.ask.seed is not None:
            body["seed"] = (plan.ask.seed + choice) % 2**63
        return body


def _cancel(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()


def _usage(data: Mapping[str, Any], known: _Counts) -> _Counts:
    """Token counts as far as the upstream tells them."""
    usage = data.get("usage")
    if not isinstance(usage, dict):
        return known
    details = usage.get("prompt_tokens_details")
    cached = _count(details.get("cached_tokens")) if isinstance(details, dict) else known[2]
    return _count(usage.get("prompt_tokens")), _count(usage.get("completion_tokens")), cached


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


async def _lines(reply: "httpx2.Response") -> AsyncIterator[bytes]:
    """Lines as the event stream has them: httpx's own also end at U+2028 and the like, which JSON text may hold."""
    left = b""
    async for part in reply.aiter_bytes():
        *lines, left = (left + part).split(b"\n")
        for line in lines:
            yield line.rstrip(b"\r")
        if len(left) > _LINE:
            raise ApiError(502, "the upstream server's stream holds a line without an end", code="upstream_failed")
    yield left


async def _events_of(reply: "httpx2.Response") -> AsyncIterator[dict[str, Any]]:
    """The JSON objects of a stream of server-sent events. Raises ApiError for what is none, and for errors in it."""
    async for line in _lines(reply):
        name, _, value = line.partition(b":")
        if name != b"data":
            continue
        if value.strip() == b"[DONE]":
            return
        try:
            data = json.loads(value)
        except (ValueError, RecursionError):
            data = None
        if not isinstance(data, dict):
            raise ApiError(502, "the upstream server's stream holds what is no JSON object", code="upstream_failed")
        if data.get("error"):
            raise ApiError(502, f"the upstream server failed: {_said(data)}", code="upstream_failed")
        yield data


def _choice(data: Mapping[str, Any], finish: str) -> tuple[str, str]:
    """The new text of a chunk, and why the answer ended, if it has."""
    choices = data.get("choices")
    first = choices[0] if isinstance(choices, list) and choices else None
    if not isinstance(first, dict):
        return "", finish
    delta = first.get("delta")
    content = delta.get("content") if isinstance(delta, dict) else None
    ended = first.get("finish_reason")
    text = content.encode("utf-8", "replace").decode() if isinstance(content, str) else ""
    return text, ended if isinstance(ended, str) and ended else finish


def _refused(status: int, body: bytes) -> ApiError:
    try:
        data = json.loads(body)
    except (ValueError, RecursionError):
        data = {}
    said = _said(data if isinstance(data, dict) else {}) or f"status {status}"
    if status in (400, 404, 413, 422):
        error = data.get("error") if isinstance(data, dict) else None
        code = error.get("code") if isinstance(error, dict) else None
        return ApiError(400, f"the upstream server refuses: {said}", code=code if isinstance(code, str) else None)
    if status == 429:
        return ApiError(429, f"the upstream server is busy: {said}", code="busy")
    if status in (401, 403):
        return ApiError(502, "the upstream server refuses this server's key (SELFCORRECT_UPSTREAM_API_KEY)")
    return ApiError(502, f"the upstream server failed: {said}", code="upstream_failed")


def _said(data: Mapping[str, Any]) -> str:
    error = data.get("error", data)
    told = error.get("message") if isinstance(error, dict) else error
    return str(told)[:500] if told else ""
