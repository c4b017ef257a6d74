"""`sampler: vllm` on several ranks. Every rank asks an engine for its own rows, and all know that it is the policy's.

One server, which rank 0 alone sends to (`Served`), or an engine in each rank's own process (`Own`):

    gather, on all ranks -> send -> probe -> compare -> all ranks sample from what was sent

Nothing is sent before all of it is gathered, so no rank stands in a collective operation while another waits for an
engine. What one rank's engine comes to, or raises, is everyone's.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from selfcorrect.errors import EngineFailed, SamplerFailed, UserError
from selfcorrect.parallel.ranks import Several
from selfcorrect.samplers.base import note
from selfcorrect.samplers.compared import PROBES, Probed, policy_logprobs
from selfcorrect.samplers.vllm import VllmSampler, failed_again, started_again
from selfcorrect.types import Completion, SamplingParams

T = TypeVar("T")


class Served:
    """The sampler of each rank. gather: on all ranks, the model that is sent; here alone others are waited for.

    lm: whose log-probabilities the engine's are held against; where it is in shards all ranks compute them.
    prompts: what the comparison's rows are made of, the same on all ranks.
    """

    def __init__(
        self, ranks: Several, sampler: VllmSampler, lm: Any, prompts: Sequence[tuple[int, ...]],
        gather: Callable[[], Any],
    ) -> None:  # fmt: skip
        self._ranks, self._sampler, self._lm, self._prompts, self._gather = ranks, sampler, lm, prompts, gather
        self._failed = ""  # how, for the first time

    def load_weights(self, model: Any) -> None:
        """The policy as it is now; on all ranks together. Raises SamplerFailed on all of them. model: not read."""
        self._once_more(self._send, self._send)

    def sample(self, prompts: Sequence[tuple[int, ...]], params: SamplingParams) -> list[Completion]:
        """Rows of this rank; no other is waited for. Raises EngineFailed."""
        return self._sampler.sample_once(prompts, params)

    def twice(self, deed: Callable[[], T]) -> T:
        """What all ranks do together; once more with the current weights sent anew, where the engine fails in it."""

        def anew() -> T:
            self._send()
            return deed()

        return self._once_more(deed, anew)

    def _send(self) -> None:
        gathered, sampler = self._gather(), self._sampler

        def send() -> tuple[list[Probed], str]:
            sampler.begin()
            sampler.send_once(gathered)
            return sampler.probe_once(self._prompts), sampler.serves

        probed, serves = self._ranks.first(send)
        own = self._own(probed, mine=self._ranks.rank == 0)
        self._ranks.first(lambda: sampler.judge(probed, own))
        self._ranks.every(lambda: sampler.follow(serves))

    def _once_more(self, deed: Callable[[], T], again: Callable[[], T]) -> T:
        """The deed, or `again` after all engines were given up, where one fails for the first time in the run."""
        while True:
            try:
                return deed()
            except EngineFailed as error:
                if self._failed:
                    raise failed_again(self._failed, str(error)) from error
                self._failed = str(error)  # on every rank, as it was raised on all
            self._ranks.lifeline.agreed = False  # and is dealt with
            if self._ranks.rank == 0:
                note(started_again(self._failed))
            self._sampler.stop()
            deed = again

    def _own(self, probed: Sequence[Probed], *, mine: bool) -> list[list[float]]:
        """The policy's log-probabilities, on a rank that has whole weights where they are `mine` to compare."""
        if self._ranks.sharded:
            found = policy_logprobs(self._lm, probed)
            self._lm.model.reshard()  # as no backward pass follows, which would
            return found
        return policy_logprobs(self._lm, probed) if mine else []


class Own(Served):
    """An engine in each rank's process, beside the policy; each is sent what was gathered, and compared."""

    def rest(self) -> None:
        """On all ranks together: engines are given up, and begun anew, by all."""
        self._once_more(lambda: self._ranks.each(self._sampler.rest_once), lambda: None)

    def _send(self) -> None:
        gathered, sampler = self._gather(), self._sampler
        # Engines begin groups of processes in step: where one cannot start, the others are not to wait for an answer,
        # nor this rank for them to keep the step, as it would where the sampler failed on all.
        try:
            sampler.begin()
        except SamplerFailed as error:
            raise UserError(str(error)) from error

        def send() -> list[Probed]:
            sampler.send_once(gathered)
            return sampler.probe_once(self._prompts)

        probed = self._ranks.every(send)[self._ranks.rank]
        own = self._own(probed, mine=True)
        self._ranks.every(lambda: sampler.judge(probed, own))


def served(ranks: Several, trainer: Any, lm: Any, gather: Callable[[], Any]) -> Served:
    """Over a trainer's own sampler. lm: the policy, in shards or not."""
    config, chat = trainer.config, trainer.lm.chat
    drawn = trainer.task.draw(1, PROBES, config.seed)
    prompts = [chat.first_prompt(problem.prompt) for problem in drawn if chat.readable(problem.prompt)]
    kind = Served if config.vllm.server else Own
    return kind(ranks, trainer.sampler, lm, prompts or [tuple(sorted(trainer.lm.eos_ids))], gather)
