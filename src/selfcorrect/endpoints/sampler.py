"""A sampler whose completions come from an endpoint: each its own request, several at once, kept as they come."""

import asyncio
import hashlib
import json
import random
import re
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfcorrect.endpoints.answers import Answer, Failed, redacted, too_long
from selfcorrect.endpoints.budget import Budget, BudgetReached, Spent
from selfcorrect.endpoints.counting import Counting
from selfcorrect.endpoints.journal import Journal
from selfcorrect.endpoints.settings import LIMITS, Endpoint
from selfcorrect.errors import ConfigError, EndpointError
from selfcorrect.models.messages import answered, messages, plain_text
from selfcorrect.seeds import derive_seed
from selfcorrect.types import Completion, Grade, Outcome, SamplingParams

if TYPE_CHECKING:
    from selfcorrect.endpoints.wire import Wire

_LONGEST_WAIT = 60.0  # seconds between two tries, where the server does not ask for more
_MOST_ASKED = 900.0  # seconds to wait at a server's wish; for longer the work stops
GOES_ON = ", and the same command goes on"
_HELLO = "Say yes."  # asked where one conversation has no answer, to see whether any would


@dataclass(slots=True)
class Ask:
    """One request. key: of all that it holds, and of its seed, whether or not that is sent."""

    key: str
    body: dict[str, Any]
    messages: list[dict[str, str]]
    limit: int
    since: int = 0  # answers there were when it was first tried


@dataclass(slots=True)
class _Now:
    """One call of `sample`."""

    wire: "Wire"
    waiting: list[Ask]
    found: dict[str, Completion]
    before: int  # answers that were there
    stop: str = ""
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    pause: float = 0.0  # until when nothing is sent
    told: str = ""
    asked: int = 0

    def end(self, why: str) -> None:
        self.stop = self.stop or why
        self.stopping.set()


class EndpointSampler:
    """model: its name there. file: the journal, opened at the first call, under the evaluation's lock.

    say: told what a user should know, each thing once. `sample` raises EndpointError where no more can be had; what
    was answered is kept, and the same calls go on.
    """

    def __init__(self, endpoint: Endpoint, model: str, file: Path, say: Callable[[str], None]) -> None:
        try:
            import openai  # noqa: F401
        except ImportError:
            raise ConfigError("--endpoint needs the OpenAI client; pip install 'selfcorrect[endpoint]'") from None
        if not model.strip() or plain_text(model) != model:
            raise ConfigError(f"--model {model!a}: must be text; what is in it is no name")
        self._endpoint, self._model, self._file = endpoint, model, file
        self._secret = endpoint.secret()
        self._counting = Counting(endpoint.tokenizer)
        self._say, self._said = say, set[str]()
        self._journal: Journal | None = None
        self._budget = Budget(endpoint)
        self._ids = dict[str, str]()
        self._answers = self._retries = self._fresh = 0
        self.tell: Callable[[int, str], None] | None = None

    def load_weights(self, model: Any) -> None:
        """Nothing to load: the endpoint has its own."""

    def told(self) -> str:
        """What was asked, and what it took, in words."""
        self._opened()
        return (
            f"{self._endpoint.url} answered {self._fresh:,} requests now ({self._retries:,} retries); "
            f"{self._budget.told()} in all"
        )

    def kept(self) -> str:
        """How many answers are there, in words; empty where none is."""
        count = len(self._opened().answers)
        return f"{count:,} answer{'s are' if count > 1 else ' is'} kept" if count else ""

    def sample(self, prompts: Sequence[tuple[int, ...]], params: SamplingParams) -> list[Completion]:
        """One answer per conversation, in order: those that are kept, and the rest as they come."""
        journal = self._opened()
        asks = [self._ask(prompt, params, derive_seed(params.seed, place)) for place, prompt in enumerate(prompts)]
        known = {ask.key: _completion(journal.answers[ask.key]) for ask in asks if ask.key in journal.answers}
        rest = [ask for ask in asks if ask.key not in known]
        if rest:
            try:
                asyncio.get_running_loop()
            except RuntimeError:
                known |= asyncio.run(self._all(rest, len(known)))
            else:  # called from a notebook, whose loop is busy with the call
                with ThreadPoolExecutor(1) as thread:
                    known |= thread.submit(asyncio.run, self._all(rest, len(known))).result()
        return [known[ask.key] for ask in asks]

    def _opened(self) -> Journal:
        if self._journal is None:
            self._journal = Journal(self._file)
            self._budget = Budget(self._endpoint, self._journal.spent)
        return self._journal

    def _ask(self, prompt: Sequence[int], params: SamplingParams, seed: int) -> Ask:
        turns = messages(prompt, send_reasoning=self._endpoint.send_reasoning)
        body: dict[str, Any] = {
            "model": self._model, "messages": turns, "temperature": params.temperature, "top_p": 1,
            "max_tokens": params.max_new_tokens, "seed": seed % 2**31,
        }  # fmt: skip
        body = {name: value for name, value in {**body, **self._endpoint.body}.items() if value is not None}
        told = json.dumps(
            [self._endpoint.url, body, seed], sort_keys=True
        )  # samples differ, also where no seed is sent
        limits = (body.get(name) for name in LIMITS)
        limit = max((limit for limit in limits if limit is not None), default=params.max_new_tokens)
        return Ask(hashlib.sha256(told.encode()).hexdigest()[:32], body, turns, limit)

    async def _all(self, asks: Sequence[Ask], before: int) -> dict[str, Completion]:
        from selfcorrect.endpoints.wire import Wire

        async with Wire(self._endpoint) as wire:
            now = _Now(wire, list(reversed(asks)), {}, before)
            workers = min(self._endpoint.concurrency, len(asks))
            await asyncio.gather(*(self._work(now) for _ in range(workers)))
        if now.stop:
            why, kept = self._secret.without(now.stop), f"{self.kept()} in {self._file}" if self.kept() else ""
            raise EndpointError("; ".join(filter(None, [f"{self._endpoint.url}: {why}", kept])) + GOES_ON * bool(kept))
        return now.found

    async def _work(self, now: _Now) -> None:
        try:
            while now.waiting and not now.stop:
                ask = now.waiting.pop()
                now.asked += 1
                self._tell(now)
                found = await self._answered(now, ask)
                now.asked -= 1
                if found is not None:
                    now.found[ask.key] = found
                    self._tell(now)
        except BudgetReached as reached:
            now.end(f"stopped by the budget, {reached}; raise it to go on")

    async def _answered(self, now: _Now, ask: Ask) -> Completion | None:
        """The answer, after as many tries as it takes; None where the work stops. Raises BudgetReached."""
        ask.since = self._answers
        for number in range(self._endpoint.retries + 1):
            while not now.stop and (pause := now.pause - time.monotonic()) > 0:
                await _unless(now.stopping, pause)
            if now.stop:
                return None
            try:
                return await self._try(now, ask)
            except Failed as failed:
                failure = failed
            if failure.stop:
                now.end(await self._explained(now, failure))
                return None
            if not failure.again:
                break
            self._retries += number < self._endpoint.retries
            await self._wait(now, failure, number)
        return None if now.stop else await self._given_up(now, ask, failure)

    async def _try(self, now: _Now, ask: Ask, *, keep: bool = True) -> Completion:
        """One request. Raises Failed, BudgetReached."""
        journal = self._opened()
        worst = self._counting.worst(ask.messages, ask.limit)
        await self._budget.hold(worst)
        charged, began = worst, time.monotonic()
        try:
            journal.sent(ask.key, worst)
            answer = redacted(await now.wire.ask(ask.body, ask.limit), self._clean)
            charged, odd = self._counting.spent(ask.messages, answer, worst, ask.limit)
            line = _line(answer, time.monotonic() - began)
            journal.answer(ask.key, charged, line) if keep else journal.failed(ask.key, charged, "")
        except Failed as failed:
            charged = worst if failed.served else Spent()
            journal.failed(ask.key, charged, self._secret.without(failed.why))
            raise
        finally:
            self._budget.settle(worst, charged)
        self._answers += 1
        self._fresh += keep
        self._tell_odd(ask, answer, odd)
        return _completion(line)

    async def _given_up(self, now: _Now, ask: Ask, failure: Failed) -> Completion | None:
        """A conversation without an answer: its outcome where others have answers, else the end of the work."""
        if self._answers == (0 if failure.verdict else ask.since):
            hello = [each for each in ask.messages if each["role"] == "system"] + [{"role": "user", "content": _HELLO}]
            probe = Ask(f"{ask.key[:24]}-probe", {**ask.body, "messages": hello}, hello, ask.limit)
            try:
                await self._try(now, probe, keep=False)
            except Failed as failed:
                tries = f" after {self._endpoint.retries + 1} tries" if failure.again else ""
                now.end(f"no answer{tries}: {failed.why}{_hint(failed.why)}")
                return None
        why = self._secret.without(failure.why)
        if failure.verdict is None:  # not kept: another call of the command may have an answer
            self._once(f"warning: the endpoint has no answer to some conversations, which are left out: {why}")
            grade = Grade(Outcome.GRADER_FAILED, 0.0, "", f"the endpoint gave no answer: {why}")
            return Completion((), (), "", "stop", grade)
        verdict = redacted(Answer("", verdict=failure.verdict), self._secret.without)
        line = _line(verdict, 0.0)
        self._opened().answer(ask.key, Spent(), line)
        return _completion(line)

    async def _explained(self, now: _Now, failure: Failed) -> str:
        """Why all ends; of a model that is not there, with those that are."""
        there = await now.wire.models() if failure.why.startswith("HTTP 404") else []
        if there and self._model not in there:
            return f"{failure.why}: --model {self._model}; it has {', '.join(there)}"
        if failure.why.startswith("HTTP 404") and not there:
            return f"{failure.why}; is the URL its base, as in {self._endpoint.url.removesuffix('/v1')}/v1?"
        return failure.why

    async def _wait(self, now: _Now, failure: Failed, number: int) -> None:
        """Before the next try: longer each time, by chance a little less, and never shorter than was asked for."""
        seconds = min(_LONGEST_WAIT, self._endpoint.first_wait * 2**number) * random.uniform(0.5, 1.0)
        if failure.wait is not None:
            if failure.wait > _MOST_ASKED:
                now.end(f"{failure.why}: asks to wait for {failure.wait / 60:,.0f} minutes")
                return
            seconds = max(failure.wait, seconds)
        if number == self._endpoint.retries:
            return
        if failure.busy:
            now.pause = max(now.pause, time.monotonic() + seconds)
        now.told = f"waiting {seconds:.0f} s after {self._secret.without(failure.why)[:80]}"
        self._tell(now)
        await _unless(now.stopping, seconds)
        now.told = ""

    def _clean(self, text: str) -> str:
        return self._secret.without(text, written=True)

    def _tell(self, now: _Now) -> None:
        if self.tell:
            self.tell(now.before + len(now.found), now.told or f"{now.asked:,} asked at once; {self._budget.told()}")

    def _tell_odd(self, ask: Ask, answer: Answer, odd: str) -> None:
        model, name = answer.about.get("model"), answer.about.get("id")
        if model and model != self._model:
            self._once(f"the endpoint answers as model {model}", "model")
        if name and self._ids.setdefault(name, ask.key) != ask.key:
            self._once("the endpoint gives different answers the same id", "id")
        for told in (*answer.odd, odd):
            if told:
                self._once(told, re.sub(r"[0-9,]+", "", told.partition("(")[0])[:40])

    def _once(self, text: str, kind: str = "") -> None:
        if (kind or text) not in self._said:
            self._said.add(kind or text)
            self._say(text if text.startswith("warning") else f"note: {text}")


async def _unless(stopping: asyncio.Event, seconds: float) -> None:
    """Sleep, but not where the work stops."""
    try:
        async with asyncio.timeout(seconds):
            await stopping.wait()
    except TimeoutError:
        return


def _line(answer: Answer, seconds: float) -> dict[str, Any]:
    """An answer as it is kept."""
    grade = answer.verdict
    return {
        "text": answer.text, "reasoning": answer.reasoning, "cut": answer.cut,
        "verdict": None if grade is None else [str(grade.outcome), grade.detail],
        "seconds": round(seconds, 3), **answer.about,
    }  # fmt: skip


def _completion(line: Mapping[str, Any]) -> Completion:
    found = answered(line["text"], line["reasoning"], cut=line["cut"])
    if line["verdict"] is None:
        return found
    outcome, detail = line["verdict"]
    return replace(found, verdict=Grade(Outcome(outcome), 0.0, "", detail))


def _hint(why: str) -> str:
    """What can be done about a field that an endpoint does not take, or a limit beyond what its model has."""
    if not why.startswith("HTTP 4"):
        return ""
    if too_long(why):
        return "; lower rollouts.max_new_tokens, or serve the model with a longer context"
    for name in ("max_tokens", "temperature", "top_p", "seed"):
        if name in why:
            other = ', "max_completion_tokens": 512' if name == "max_tokens" else ""
            return f"; --body '{{\"{name}\": null{other}}}' sends none"
    return ""
