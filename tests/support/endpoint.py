"""A chat endpoint on loopback that behaves as it is told: well, or in any way that a server can misbehave."""

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

Body = dict[str, Any]


@dataclass(frozen=True)
class Raw:
    """Bytes to send, a piece at a time, with seconds between two; then the connection is closed, or reset."""

    pieces: tuple[bytes, ...]
    between: float = 0.0
    reset: bool = False


def http(status: int, body: str | bytes | Mapping[str, Any], **headers: str) -> Raw:
    """A whole response; header names are written with _ for -."""
    content = body if isinstance(body, bytes) else body.encode() if isinstance(body, str) else json.dumps(body).encode()
    told = {"content-type": "application/json", "content-length": str(len(content)), "connection": "close"}
    told |= {name.replace("_", "-"): value for name, value in headers.items()}
    lines = "".join(f"{name}: {value}\r\n" for name, value in told.items())
    return Raw((f"HTTP/1.1 {status} Whatever\r\n{lines}\r\n".encode() + content,))


def chat(content: Any, finish: Any = "stop", usage: Any = None, **message: Any) -> Body:
    """The body of an answer."""
    return {
        "id": f"id-{time.monotonic_ns()}", "object": "chat.completion", "model": "m",
        "choices": [
            {"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": content, **message}}
        ],
        "usage": {"prompt_tokens": 30, "completion_tokens": 5, "total_tokens": 35} if usage is None else usage,
    }  # fmt: skip


@dataclass
class Server:
    """answer(request, n): what is sent for the n-th request (from 0) for the same body."""

    answer: Callable[[Body, int], Raw | Body]
    url: str = ""
    requests: list[Body] = field(default_factory=list)
    headers: list[str] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    most: int = 0  # requests under way at once
    now: int = 0

    def asked(self, text: str) -> int:
        """How many requests hold a text."""
        return sum(text in json.dumps(request["messages"]) for request in self.requests)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            length = next(
                (int(v.split(":")[1]) for v in head.split("\r\n") if v.lower().startswith("content-length")), 0
            )
            request = (
                json.loads(await reader.readexactly(length)) if length else {"messages": [], "path": head.split()[1]}
            )
            count = self.requests.count(request)
            self.requests.append(request)
            self.headers.append(head)
            self.times.append(time.monotonic())
            self.now += 1
            self.most = max(self.most, self.now)
            try:
                found = self.answer(request, count)
                raw = found if isinstance(found, Raw) else http(200, found)
                for piece in raw.pieces:
                    writer.write(piece)
                    await writer.drain()
                    await asyncio.sleep(raw.between)
            finally:
                self.now -= 1
            if raw.reset:
                writer.transport.abort()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()


@contextmanager
def served(answer: Callable[[Body, int], Raw | Body]) -> Iterator[Server]:
    """The server, in a thread, until the block ends."""
    server, loop, ready = Server(answer), asyncio.new_event_loop(), threading.Event()

    async def run() -> None:
        listening = await asyncio.start_server(server.serve, "127.0.0.1", 0, limit=1 << 22)
        server.url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}/v1"
        ready.set()
        await stop.wait()
        listening.close()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()

    stop = asyncio.Event()
    thread = threading.Thread(target=loop.run_until_complete, args=(run(),), daemon=True)
    thread.start()
    assert ready.wait(10)
    try:
        yield server
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)
        loop.close()
