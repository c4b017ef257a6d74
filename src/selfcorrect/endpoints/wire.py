"""One request and what came of it. Imported only where an endpoint is asked: it needs the OpenAI client."""

import asyncio
import ssl
import zlib
from collections.abc import Mapping
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import httpx2
import openai

from selfcorrect.endpoints.answers import Answer, Failed, by_status, error_text, one_line, read_answer, truncated
from selfcorrect.endpoints.settings import Endpoint
from selfcorrect.errors import ConfigError

_ROOM = 4 << 20  # bytes of a body besides those of an answer
_EACH = 512  # bytes a token, escapes and log-probabilities included


class Wire:
    """A context: the connections to an endpoint."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint, secret = endpoint, endpoint.secret()
        parts = urlsplit(endpoint.url)
        proxy = None if proxy_bypass(str(parts.hostname)) else getproxies().get(parts.scheme)
        limits = httpx2.Limits(max_connections=endpoint.concurrency + 1)
        trusted = _trusted()
        try:
            transport = _Bounded(httpx2.AsyncHTTPTransport(verify=trusted, proxy=proxy, limits=limits))
        except (httpx2.InvalidURL, ValueError, ImportError):
            raise ConfigError(
                f"{parts.scheme}_proxy: the proxy that it names cannot be used; it must be like http://HOST:PORT, "
                f"or be left out by no_proxy={parts.hostname}"
            ) from None
        try:
            self._client = openai.AsyncOpenAI(
                api_key=secret.reveal() or "none",
                base_url=endpoint.url,
                max_retries=0,
                timeout=endpoint.timeout,
                default_headers={"Accept-Encoding": "identity"},
                http_client=httpx2.AsyncClient(transport=transport, follow_redirects=False),
            )
        except (httpx2.InvalidURL, ValueError) as error:
            raise ConfigError(f"--endpoint: cannot be asked: {one_line(str(error))}") from None
        self._bounded = transport
        self._options: Any = {} if secret else {"headers": {"Authorization": openai.Omit()}}

    async def __aenter__(self) -> "Wire":
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._client.close()

    async def ask(self, body: Mapping[str, Any], limit: int) -> Answer:
        """limit: tokens of the answer. Raises Failed."""
        self._bounded.most = _ROOM + _EACH * limit
        try:
            async with asyncio.timeout(self._endpoint.timeout):
                response = await self._client.post(
                    "/chat/completions", cast_to=httpx2.Response, body=dict(body), options=self._options
                )
            return read_answer(response.content, limit)
        except (TimeoutError, openai.APITimeoutError):
            raise Failed(f"no answer within {self._endpoint.timeout:g} s", again=True, served=True) from None
        except openai.APIStatusError as error:
            headers = error.response.headers
            raise by_status(error.response.status_code, error_text(error.response.content), headers) from None
        except openai.APIConnectionError as error:
            raise _unconnected(error.__cause__ or error) from None
        except _TooLarge:
            why = "an answer of more than " + f"{self._bounded.most >> 20} MiB"
            raise Failed(why, served=True, verdict=truncated(why)) from None
        except (openai.OpenAIError, httpx2.HTTPError, zlib.error, RecursionError) as error:
            raise Failed(one_line(str(error)) or type(error).__name__, again=True, served=True) from None

    async def models(self) -> list[str]:
        """The names of the models that the endpoint has, as far as it tells."""
        try:
            async with asyncio.timeout(min(10.0, self._endpoint.timeout)):
                response = await self._client.get("/models", cast_to=httpx2.Response, options=self._options)
            return [one_line(str(each["id"]), 80) for each in response.json()["data"]][:12]
        except (
            openai.OpenAIError,
            httpx2.HTTPError,
            ValueError,
            LookupError,
            TypeError,
            RecursionError,
            TimeoutError,
            _TooLarge,
        ):
            return []


def _unconnected(error: BaseException) -> Failed:
    refused = isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout | httpx2.PoolTimeout)
    told = one_line(str(error)) or type(error).__name__
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return Failed(f"its certificate is not trusted: {told}", stop=True)
        cause = cause.__cause__ or cause.__context__
    if isinstance(error, httpx2.LocalProtocolError | httpx2.UnsupportedProtocol | httpx2.InvalidURL):
        return Failed(f"it cannot be asked: {told}", stop=True)
    return Failed(
        f"no connection: {told}" if refused else f"the connection broke: {told}", again=True, served=not refused
    )


@lru_cache
def _trusted() -> ssl.SSLContext:
    try:
        return httpx2.create_ssl_context()  # reads some hundred certificates
    except OSError as error:
        raise ConfigError(
            f"the certificates that HTTPS needs cannot be read ({error.strerror or error}); mend or unset "
            "SSL_CERT_FILE, SSL_CERT_DIR and SSLKEYLOGFILE"
        ) from None


class _TooLarge(Exception):  # noqa: N818 - says what came
    """A body larger than any answer."""


class _Bounded(httpx2.AsyncBaseTransport):
    """Reads whole bodies, of no more than `most` bytes, also once they are unpacked."""

    def __init__(self, inner: httpx2.AsyncHTTPTransport) -> None:
        self._inner, self.most = inner, _ROOM

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        response = await self._inner.handle_async_request(request)
        packed = response.headers.get("content-encoding", "identity").strip().lower()
        unpack = None if packed not in ("gzip", "x-gzip", "deflate") else zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)
        body = bytearray()
        try:
            async for chunk in response.stream:  # type: ignore[union-attr]
                body += chunk if unpack is None else unpack.decompress(chunk, self.most + 1 - len(body))
                if len(body) > self.most:
                    if response.status_code >= 300:
                        break  # what it means is in the status
                    raise _TooLarge
        finally:
            await response.aclose()
        gone = (b"content-encoding", b"content-length", b"transfer-encoding")
        headers = [(name, value) for name, value in response.headers.raw if name.lower() not in gone]
        return httpx2.Response(response.status_code, headers=headers, content=bytes(body), request=request)

    async def aclose(self) -> None:
        await self._inner.aclose()
