"""What answers a plan, piece by piece; the local model and an upstream server are engines (no torch)."""

import asyncio
from collections.abc import Callable
from typing import NamedTuple, Protocol

from selfcorrect.serving.protocol import ApiError, Plan


class Piece(NamedTuple):
    """New text of an attempt. choice: from 0; attempt: from 1."""

    choice: int
    attempt: int
    text: str


class Ended(NamedTuple):
    """An attempt has ended. Token counts are None where an upstream server does not tell them.

    prompt_tokens: of its whole context, of which `cached_tokens` were known and not computed again.
    """

    choice: int
    attempt: int
    finish: str
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cached_tokens: int | None = None


Event = Piece | Ended


Post = Event | ApiError | None


class Events:
    """What a plan's work posts, until all of its `parts` have posted None. Raises the ApiError that is posted.

    close: ends the work where nobody reads on; called once the events are closed, read to the end or not.
    """

    def __init__(self, queue: "asyncio.Queue[Post]", parts: int, close: Callable[[], None]) -> None:
        self._queue, self._left, self.close = queue, parts, close

    def __aiter__(self) -> "Events":
        return self

    async def __anext__(self) -> Event:
        while self._left:
            event = await self._queue.get()
            if isinstance(event, ApiError):
                raise event
            if event is not None:
                return event
            self._left -= 1
        raise StopAsyncIteration


class Engine(Protocol):
    """Plays attempt after attempt. Closing the events ends the work."""

    async def start(self, plan: Plan) -> Events:
        """Raises ApiError where the plan cannot be played; later troubles rise from the iterator."""
        ...

    def stop(self) -> None:
        """End all work under way; whoever waits gets an ApiError."""
        ...

    async def close(self) -> None:
        """Give back what is held."""
        ...


class Spoken:
    """The text of a growing row of tokens, in pieces that nothing later takes back.

    Held back: the first bytes of a character that is not complete, and what a stop sequence may begin with.
    """

    def __init__(self, decode: Callable[[list[int]], str], stop: tuple[str, ...]) -> None:
        self._decode, self._stop = decode, stop
        self._ids: list[int] = []
        self._begin = self._read = 0  # what stands before decides how the next token is written (its leading space)
        self._held = ""
        self.stopped = False

    def add(self, token: int) -> str:
        self._ids.append(token)
        return self._passed(self._new(whole=False))

    def end(self) -> str:
        """What was held back to the last."""
        text = self._passed(self._new(whole=True))
        rest, self._held = self._held, ""
        return text + ("" if self.stopped else rest)

    def _new(self, whole: bool) -> str:
        if self.stopped or self._read == len(self._ids):
            return ""
        before, now = self._decode(self._ids[self._begin : self._read]), self._decode(self._ids[self._begin :])
        upto = len(self._ids)
        if not whole and now.endswith("\ufffd"):
            # What may still become a character lies in the last three tokens: it has at most three of its bytes.
            # What stands before is told, so that of a long run of bytes that are none not all is read again each time.
            upto = max(self._read, upto - 3)
            told = self._decode(self._ids[self._begin : upto])
            now = told if now.startswith(told) else before
        if len(now) > len(before):
            self._begin, self._read = self._read, upto
        return now[len(before) :]

    def _passed(self, new: str) -> str:
        if self.stopped or not self._stop:
            return new
        text = self._held + new
        found = [place for stop in self._stop if (place := text.find(stop)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        keep = max(_overlap(text, stop) for stop in self._stop)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of `text` may be the beginning of `stop`."""
    return next((size for size in range(min(len(stop) - 1, len(text)), 0, -1) if stop.startswith(text[-size:])), 0)
