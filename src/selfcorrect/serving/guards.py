"""Who may ask: the key, the host name, the size and kind of a body (ASGI, no framework's magic).

A page of any site may send requests to a server on this machine. Three things keep it out: host names that are not this
machine's are refused (a name that was made to point here), bodies must be JSON (which a browser asks about first), and
no other origin is allowed unless `--cors` names it.
"""

import asyncio
import hmac
import json
from collections.abc import Collection
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from selfcorrect.serving.protocol import ApiError
from selfcorrect.serving.upstream import is_loopback

BODY_BYTES = 4 << 20
BODY_SECONDS = 60.0


class Json(Response):
    """JSON in ASCII: model text and a client's may hold what UTF-8 has no bytes for."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return json.dumps(content, allow_nan=False).encode("ascii")


def refuse(error: ApiError) -> Json:
    """An error object as an answer."""
    headers = {"www-authenticate": "Bearer"} if error.status == 401 else {}
    if error.status == 429:
        headers["retry-after"] = "1"
    return Json(error.body(), error.status, headers)


class Slashes:
    """Paths with doubled or trailing slashes are those without: base URLs are written with and without one."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope = {**scope, "path": "/" + "/".join(filter(None, scope["path"].split("/")))}
        await self._app(scope, receive, send)


class KnownHosts:
    """Lets requests pass whose Host header is a name of this machine, or one of `names`; all of them where None."""

    def __init__(self, app: ASGIApp, names: Collection[str] | None) -> None:
        self._app = app
        self._names = None if names is None else {name.lower().rstrip(".") for name in names}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self._names is not None:
            hosts = [value for name, value in scope["headers"] if name == b"host"]
            host = host_name(hosts[0].decode("latin-1")) if len(hosts) == 1 else ""
            if host not in self._names and not is_loopback(host):
                error = ApiError(403, "this host name is not this server's; ask it as localhost", code="unknown_host")
                await refuse(error)(scope, receive, send)
                return
        await self._app(scope, receive, send)


def host_name(header: str) -> str:
    """The name in a Host header, without its port; empty where it is none."""
    if header.startswith("["):
        name, bracket, port = header.partition("]")
        return name[1:].lower() if bracket and (not port or (port[0] == ":" and port[1:].isdigit())) else ""
    name, colon, port = header.partition(":")
    return name.lower().rstrip(".") if not colon or port.isdigit() else ""


def check_key(request: Request, key: str | None) -> None:
    """Raises ApiError where there is a key and the request does not bring it. It is compared in constant time."""
    if key is None:
        return
    given = next((value for name, value in request.scope["headers"] if name == b"authorization"), b"")
    scheme, _, brought = given.partition(b" ")
    if not hmac.compare_digest(brought.strip(), key.encode()) or scheme.lower() != b"bearer":
        what = "the key is not this server's" if given else "this server wants a key (Authorization: Bearer KEY)"
        raise ApiError(401, what, code="invalid_api_key")


async def read_body(request: Request) -> bytes:
    """A JSON request's body. Raises ApiError where it is of another kind, too large, or too slow."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise ApiError(415, f"content-type {kind[:60]!r}: must be application/json", code="unsupported_media_type")
    too_large = ApiError(413, f"the body is larger than {BODY_BYTES >> 20} MiB", code="request_too_large")
    length = request.headers.get("content-length", "")
    if length.isdigit() and (len(length) > 12 or int(length) > BODY_BYTES):
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for part in request.stream():
                body += part
                if len(body) > BODY_BYTES:
                    raise too_large
    except TimeoutError:
        raise ApiError(408, "the body did not arrive in time", code="request_timeout") from None
    return bytes(body)
