"""Events -> answers of OpenAI's chat interface: whole, or as chunks of a stream (no torch).

`content` is the last attempt's alone; the earlier ones are in `selfcorrect`, which other clients pass over.
"""

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from selfcorrect.serving.engine import Ended, Event, Piece
from selfcorrect.serving.protocol import ApiError, Plan

Json = dict[str, Any]
_SIGN_OF_LIFE = 15.0  # seconds; proxies give up on silent connections


@dataclass(slots=True)
class Counted:
    """Tokens of a request by attempt; the first prompt counts once, however many choices it has."""

    attempts: dict[int, list[Ended]] = field(default_factory=dict)

    def add(self, ended: Ended) -> None:
        self.attempts.setdefault(ended.attempt, []).append(ended)

    def usage(self) -> Json | None:
        """None where an upstream did not tell all of it."""
        rows = [self._row(attempt, ended) for attempt, ended in sorted(self.attempts.items())]
        if not rows or any(row["prompt_tokens"] is None or row["completion_tokens"] is None for row in rows):
            return None
        prompt, completion = (sum(row[key] for row in rows) for key in ("prompt_tokens", "completion_tokens"))
        return {
            "prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion,
            "prompt_tokens_details": {"cached_tokens": sum(row["cached_tokens"] for row in rows)},
            "selfcorrect": {"attempts": rows},
        }  # fmt: skip

    @staticmethod
    def _row(attempt: int, ended: list[Ended]) -> Json:
        once = ended[:1] if attempt == 1 else ended
        known = all(one.prompt_tokens is not None and one.completion_tokens is not None for one in ended)
        return {
            "attempt": attempt,
            "prompt_tokens": sum(one.prompt_tokens or 0 for one in once) if known else None,
            "completion_tokens": sum(one.completion_tokens or 0 for one in ended) if known else None,
            "cached_tokens": sum(one.cached_tokens or 0 for one in once),
        }


def _head(plan: Plan, kind: str) -> Json:
    """What every chunk, or the whole answer, begins with."""
    return {"id": f"chatcmpl-{secrets.token_hex(12)}", "object": kind, "created": int(time.time()), "model": plan.model}


async def whole(plan: Plan, events: AsyncIterator[Event]) -> Json:
    """One answer, once all attempts of all choices have ended."""
    counted = Counted()
    texts: dict[tuple[int, int], str] = {}
    finishes: dict[tuple[int, int], str] = {}
    async for event in events:
        key = (event.choice, event.attempt)
        if isinstance(event, Piece):
            texts[key] = texts.get(key, "") + event.text
        else:
            finishes[key] = event.finish
            counted.add(event)
    choices = []
    for choice in range(plan.choices):
        message: Json = {"role": "assistant", "content": texts.get((choice, plan.attempts), ""), "refusal": None}
        if plan.attempts > 1:
            earlier = [
                {"attempt": a, "content": texts.get((choice, a), ""), "finish_reason": finishes[choice, a]}
                for a in range(1, plan.attempts)
            ]
            message["selfcorrect"] = {"attempts": earlier, "correction_prompt": plan.correction}
        finish = finishes[choice, plan.attempts]
        choices.append({"index": choice, "message": message, "finish_reason": finish, "logprobs": None})
    return {**_head(plan, "chat.completion"), "choices": choices, "usage": counted.usage()}


async def chunks(plan: Plan, events: AsyncIterator[Event]) -> AsyncIterator[Json]:
    """The same as a stream. Raises what `events` raises."""
    head, counted = _head(plan, "chat.completion.chunk"), Counted()
    more: Json = {"usage": None} if plan.ask.usage_wanted else {}

    def chunk(choice: int, delta: Json, finish: str | None = None) -> Json:
        told = {"index": choice, "delta": delta, "finish_reason": finish, "logprobs": None}
        return {**head, "choices": [told], **more}

    for choice in range(plan.choices):
        yield chunk(choice, {"role": "assistant", "content": ""})
    async for event in events:
        last = event.attempt == plan.attempts
        if isinstance(event, Piece):
            earlier = {"selfcorrect": {"attempt": event.attempt, "content": event.text}}
            yield chunk(event.choice, {"content": event.text} if last else earlier)
            continue
        counted.add(event)
        if last:
            yield chunk(event.choice, {}, event.finish)
        else:
            yield chunk(event.choice, {"selfcorrect": {"attempt": event.attempt, "finish_reason": event.finish}})
    if plan.ask.usage_wanted:
        yield {**head, "choices": [], "usage": counted.usage()}


async def as_events(stream: AsyncIterator[Json]) -> AsyncIterator[str]:
    """Chunks as server-sent events. An error on the way is one too, and the last; a wait is told by comments."""
    pending: asyncio.Future[Json] | None = None
    try:
        while True:
            pending = pending or asyncio.ensure_future(anext(stream))
            done, _ = await asyncio.wait({pending}, timeout=_SIGN_OF_LIFE)
            if not done:
                yield ": waiting\n\n"
                continue
            chunk, pending = pending.result(), None
            yield f"data: {json.dumps(chunk)}\n\n"
    except StopAsyncIteration:
        yield "data: [DONE]\n\n"
    except ApiError as error:
        yield f"data: {json.dumps(error.body())}\n\n"
    finally:
        if pending is not None and pending.cancel():
            await asyncio.wait({pending})
