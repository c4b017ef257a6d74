"""The engine that has the model itself: requests side by side in lanes, token by token, in one thread.

    queue -> lane: attempt 1, correction turn, attempt 2, ... -> free for the next, first come first served

A lane keeps its cache, so a correction turn and a further request of the same conversation compute only what is new.
Long prompts are fed in parts, between which the others go on. Where a row repeats what was said before, a step takes
several of its tokens (samplers/ahead.py).
"""

import asyncio
import random
import secrets
import sys
import threading
import traceback
from collections import deque
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field

import torch
from torch import Tensor

from selfcorrect.errors import ModelError, first_line
from selfcorrect.models.language_model import LanguageModel
from selfcorrect.models.sizing import is_out_of_memory
from selfcorrect.samplers.ahead import CARD, PROCESSOR, pace_of
from selfcorrect.samplers.inference import InferenceWeights
from selfcorrect.seeds import derive_seed
from selfcorrect.serving.engine import Ended, Events, Piece, Post, Spoken
from selfcorrect.serving.lanes import Lanes, make_lanes, pick, shared
from selfcorrect.serving.protocol import ApiError, Plan, invalid

_FED_AT_ONCE = 512  # tokens of a prompt
_DRAWN = 256  # tokens of all rows in a step, or one of each: their logits are its memory
_MOST_WAITING = 128  # answers in the queue
_STOPPED = ApiError(503, "the server is shutting down", code="shutting_down")


class Job:
    """One request. Its events go to the event loop that asked."""

    def __init__(self) -> None:
        self._loop, self.events, self.gone = asyncio.get_running_loop(), asyncio.Queue[Post](), False

    def post(self, event: Post) -> None:
        try:
            self._loop.call_soon_threadsafe(self.events.put_nowait, event)
        except RuntimeError:  # the loop has ended, and nobody waits any more
            self.gone = True

    def leave(self) -> None:
        """Nobody waits for it any more."""
        self.gone = True


@dataclass(slots=True, eq=False)
class Row:
    """One choice of a request on its way through its attempts. todo: ids that are not fed yet."""

    job: Job
    plan: Plan
    choice: int
    limit: int
    seed: int
    prompt: tuple[int, ...]
    spoken: Spoken
    draws: random.Random
    attempt: int = 1
    cached: int = 0
    todo: list[int] = field(default_factory=list)
    drawn: list[int] = field(default_factory=list)


class Station:
    """One model's lanes and queue. Everything but `waiting` belongs to the engine's thread."""

    def __init__(self, lm: LanguageModel, count: int, reading: threading.Lock) -> None:
        self.lm, self._count, self._reading = lm, count, reading
        self._lanes: Lanes = make_lanes(lm, count)
        self.waiting: deque[Row] = deque()
        self._seats: dict[int, Row] = {}
        self._pace = pace_of(lm.model, CARD if lm.device.type == "cuda" else PROCESSOR)
        self._guesses = [0, 0]  # right ones, all
        self.window = lm.reads or sys.maxsize

    @property
    def busy(self) -> bool:
        return bool(self.waiting or self._seats)

    def step(self) -> None:
        """Every lane goes on by a token or some, or by one part of its prompt."""
        for lane in [lane for lane, row in self._seats.items() if row.job.gone]:
            del self._seats[lane]
        self._seat()
        beginning = {lane: row for lane, row in sorted(self._seats.items()) if len(row.todo) > 1}
        going_on = {lane: row for lane, row in sorted(self._seats.items()) if len(row.todo) == 1}
        if beginning:
            self._begin(beginning)
        if going_on:
            self._go_on(going_on)

    def fail(self, error: ApiError) -> None:
        """All requests end with this error; the lanes begin anew."""
        waiting = [self.waiting.popleft() for _ in range(len(self.waiting))]
        for job in {id(row.job): row.job for row in [*self._seats.values(), *waiting]}.values():
            job.gone = True
            job.post(error)
        self._seats = {}
        self._lanes.reset()

    def _seat(self) -> None:
        while self.waiting and len(self._seats) < self._count:
            row = self.waiting.popleft()
            if row.job.gone:
                continue
            free = [lane for lane in range(self._count) if lane not in self._seats]
            lane = max(free, key=lambda lane: shared(self._lanes.held[lane], row.prompt))
            row.cached = self._lanes.begin(lane, row.prompt)
            row.todo = list(row.prompt[row.cached :])
            self._seats[lane] = row

    def _begin(self, rows: dict[int, Row]) -> None:
        added = [row.todo[:_FED_AT_ONCE] for row in rows.values()]
        logits_RV = self._lanes.feed(list(rows), added)
        ready = []
        for number, (lane, row) in enumerate(rows.items()):
            del row.todo[: len(added[number])]
            if not row.todo:
                ready.append((number, lane, row))
        if ready:
            tokens = self._draw(logits_RV[[number for number, _, _ in ready]], [row for _, _, row in ready])
            for (_, lane, row), token in zip(ready, tokens, strict=True):
                self._take(lane, row, token)

    def _go_on(self, rows: dict[int, Row]) -> None:
        """Each row's last token and guesses of its next ones are fed; what comes after a wrong guess does not count."""
        most = min(self._pace.tokens(len(rows)), _DRAWN // len(rows))
        guesses, added, held, first = {}, {}, {}, {}
        for lane, row in rows.items():
            count = min(max(1, most), row.limit - len(row.drawn))
            guesses[lane] = self._lanes.guess(lane, row.todo[0], count) if most else []
            added[lane] = [*row.todo, *guesses[lane][: count - 1]]
            first[lane], held[lane] = sum(map(len, added.values())) - len(added[lane]), len(self._lanes.held[lane])
        logits_NV = self._lanes.feed(list(rows), list(added.values()), everywhere=True)
        going, number = list(rows), 0
        while going:
            tokens = self._draw(logits_NV[[first[lane] + number for lane in going]], [rows[lane] for lane in going])
            going, drawn = [], zip(going, tokens, strict=True)
            for lane, token in drawn:
                if not self._take(lane, rows[lane], token):
                    continue
                right = guesses[lane][number : number + 1] == [token]
                self._guesses = [self._guesses[0] + right, self._guesses[1] + bool(guesses[lane])]
                if right and number + 1 < len(added[lane]):
                    going.append(lane)
                else:
                    self._lanes.keep(lane, held[lane] + number + 1)
            number += 1
        self._pace.hear(*self._guesses)

    def _draw(self, logits_RV: Tensor, rows: list[Row]) -> list[int]:
        if not bool(torch.isfinite(logits_RV).all()):
            raise ArithmeticError("the model's logits are not finite")
        asks = [row.plan.ask for row in rows]
        return pick(
            logits_RV,
            [1.0 if ask.temperature is None else ask.temperature for ask in asks],
            [ask.top_p or 1.0 for ask in asks],
            [row.draws.random() for row in rows],
        )

    def _take(self, lane: int, row: Row, token: int) -> bool:
        """Whether the attempt goes on after it."""
        row.drawn.append(token)
        ends = token in self.lm.eos_ids
        with self._reading:
            text = "" if ends else row.spoken.add(token)
            ended = ends or row.spoken.stopped or len(row.drawn) >= row.limit
            text += row.spoken.end() if ended else ""
        if text:
            row.job.post(Piece(row.choice, row.attempt, text))
        if not ended:
            row.todo = [token]
            return True
        finish = "stop" if ends or row.spoken.stopped else "length"
        row.job.post(Ended(row.choice, row.attempt, finish, len(row.prompt), len(row.drawn), row.cached))
        if row.attempt < row.plan.attempts:
            self._ask_again(lane, row)
        else:
            del self._seats[lane]
            row.job.post(None)
        return False

    def _ask_again(self, lane: int, row: Row) -> None:
        with self._reading:
            row.prompt = self.lm.chat.next_prompt(row.prompt, row.drawn, row.plan.correction)
        row.cached = self._lanes.begin(lane, row.prompt)
        row.attempt, row.drawn, row.todo = row.attempt + 1, [], list(row.prompt[row.cached :])
        row.spoken = Spoken(self.lm.chat.decode, row.plan.ask.stop or ())
        row.draws = random.Random(derive_seed(row.seed, "serve", row.choice, row.attempt))


class LocalEngine:
    """models: by the name under which they are asked. rows: how many answers are written side by side by each.

    limit: tokens of an attempt where a request names none. A tokenizer is no thread's alone: one lock for all reading.
    """

    def __init__(self, models: Mapping[str, LanguageModel], rows: int, limit: int) -> None:
        self._limit, self._reading = limit, threading.Lock()
        self._stations = {name: Station(lm, rows, self._reading) for name, lm in models.items()}
        self._changed, self._stopping = threading.Condition(), False
        self._lent = self._prepared()
        self._thread = threading.Thread(target=self._run, name="attempts", daemon=True)
        self._thread.start()

    def _prepared(self) -> ExitStack:
        """Copies of the weights, where there is memory for them; what else fails here fails before anybody asks."""
        own = [id(station.lm.model) for station in self._stations.values()]
        with ExitStack() as lent, torch.no_grad():
            for name, station in self._stations.items():
                if own.count(id(station.lm.model)) > 1 or station.lm.windows is None:
                    continue
                try:
                    lent.enter_context(InferenceWeights(station.lm).lent(station.lm))
                except (RuntimeError, MemoryError) as error:
                    if not is_out_of_memory(error):
                        raise
                    told = f"no memory for copies of its weights ({first_line(error)})"
                    print(f"note: {name}: {told}, so it is served more slowly without them", file=sys.stderr)
            return lent.pop_all()

    async def start(self, plan: Plan) -> Events:
        station = self._stations[plan.model]
        prompt, limit = await asyncio.to_thread(self._read, station, plan)
        job = Job()
        seed = secrets.randbits(63) if plan.ask.seed is None else plan.ask.seed
        rows = [
            Row(
                job, plan, choice, limit, seed, prompt, Spoken(station.lm.chat.decode, plan.ask.stop or ()),
                random.Random(derive_seed(seed, "serve", choice, 1)),
            )
            for choice in range(plan.choices)
        ]  # fmt: skip
        with self._changed:
            if self._stopping:
                raise _STOPPED
            if len(station.waiting) + len(rows) > _MOST_WAITING:
                raise ApiError(429, f"{len(station.waiting)} answers wait already; try again later", code="busy")
            station.waiting.extend(rows)
            self._changed.notify()
        return Events(job.events, plan.choices, job.leave)

    def stop(self) -> None:
        with self._changed:
            self._stopping = True
            self._changed.notify()

    async def close(self) -> None:
        self.stop()
        await asyncio.to_thread(self._thread.join, 30)

    def _read(self, station: Station, plan: Plan) -> tuple[tuple[int, ...], int]:
        """The first prompt's ids, and how many tokens each attempt may have. Raises ApiError where they do not fit."""
        chat, attempts = station.lm.chat, plan.attempts
        with self._reading:
            try:
                prompt = chat.conversation([message.model_dump() for message in plan.ask.messages])
            except ModelError as error:
                told = str(error)
                param = told.partition(":")[0] if told.startswith("messages[") else "messages"
                raise invalid(told, param) from None
            turn = 0
            if attempts > 1:
                try:
                    chat.conversation([{"role": "user", "content": plan.correction}])
                    turn = len(chat.next_prompt((), (), plan.correction))
                except ModelError as error:
                    told = str(error).partition(": ")[2] or str(error)
                    raise invalid(f"correction_prompt: {told}", "correction_prompt") from None
        left = station.window - len(prompt) - (attempts - 1) * turn
        asked = plan.ask.limit
        if left < attempts * (asked or 1):
            each = f" of {asked} tokens" if asked else ""
            turns = f", {attempts - 1} correction turns of {turn}" if attempts > 1 else ""
            where = (
                "messages" if left < attempts else ("max_tokens" if plan.ask.max_tokens else "max_completion_tokens")
            )
            raise invalid(
                f"the model's context holds {station.window} tokens; the messages take {len(prompt)}{turns}, which "
                f"leaves no room for {attempts} attempts{each}", where, "context_length_exceeded",
            )  # fmt: skip
        return prompt, asked or max(1, min(self._limit, left // attempts))

    def _run(self) -> None:
        """The thread: all stations in turn, a step of each."""
        with self._lent, torch.no_grad():
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: self._stopping or any(s.busy for s in self._stations.values()))
                    if self._stopping:
                        break
                for station in self._stations.values():
                    if station.busy:
                        self._step(station)
            for station in self._stations.values():
                station.fail(_STOPPED)

    def _step(self, station: Station) -> None:
        try:
            station.step()
        except Exception as error:  # noqa: BLE001 - whatever a model raises, the others and the next requests go on
            traceback.print_exc()
            what = "ran out of memory" if is_out_of_memory(error) else "failed"
            station.fail(ApiError(500, f"the model {what}; the server's output says more", code="model_failed"))
