"""Sampling with a transformers model, for groups of rollouts over several attempts.

Three things keep the work down, all inside one call or between two:
- a prompt shared by a group is prefilled once, and its keys and values are handed to every row;
- the cache is kept from attempt to attempt, so attempt 2 prefills the correction turn only;
- rows that have ended leave the batch, and come back when the next attempt starts.

Axes: R rows of a call, U distinct prompts, S cache slots, T new tokens, V vocabulary. Every row writes to the same
slot at the same time; a slot that holds nothing of a row is masked for it, and positions are counted per row.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from selfcorrect.errors import ModelError
from selfcorrect.models.loading import LanguageModel
from selfcorrect.samplers.slots import SlotCache
from selfcorrect.types import Completion, SamplingParams

# Rows leave the batch when at least this share of it has ended: copying the cache must pay for itself.
_NARROW_AT = 0.25


class TransformersSampler:
    """Works with any causal LM whose layers all attend to the whole context; others go through `generate`.

    max_rows: prompts beyond that are sampled one batch after the other.
    """

    def __init__(self, language_model: LanguageModel, max_rows: int = 512) -> None:
        self._lm = language_model
        self._max_rows = max_rows
        self._sessions: list[_Session] = []

    @property
    def eos_ids(self) -> frozenset[int]:
        return self._lm.eos_ids

    def load_weights(self, model: Any) -> None:
        """Sample from `model` (a transformers causal LM, shared with the policy) as it is now."""
        self._lm.model = model
        self._sessions = []

    @torch.no_grad()
    def sample(self, prompts: Sequence[tuple[int, ...]], params: SamplingParams) -> list[Completion]:
        generator = torch.Generator(self._lm.device).manual_seed(params.seed)
        batches = [prompts[start : start + self._max_rows] for start in range(0, len(prompts), self._max_rows)]
        if not self._lm.attends_to_all:
            return [done for rows in batches for done in generate(self._lm, rows, params, generator)]
        kept, self._sessions = self._sessions, []
        completions: list[Completion] = []
        for number, rows in enumerate(batches):
            session = kept[number] if number < len(kept) and kept[number].continues(rows) else None
            session = session or _Session(self._lm)
            with self._lm.autocast():  # one context for the whole call: weights are cast once, not at every token
                completions += session.sample(rows, params, generator)
            self._sessions.append(session)
        return completions


class _Session:
    """The rows of one batch over all their attempts: what the cache holds (`known`) and the cache itself."""

    def __init__(self, language_model: LanguageModel) -> None:
        self._lm = language_model
        self.known: list[tuple[int, ...]] = []
        self._cache = SlotCache(language_model.device)

    def continues(self, prompts: Sequence[tuple[int, ...]]) -> bool:
        """Whether every prompt extends what the cache holds of its row by at least one token."""
        return len(prompts) == len(self.known) and all(
            len(prompt) > len(known) and prompt[: len(known)] == known
            for prompt, known in zip(prompts, self.known, strict=True)
        )

    def sample(
        self, prompts: Sequence[tuple[int, ...]], params: SamplingParams, generator: torch.Generator
    ) -> list[Completion]:
        if self.known:
            logits_RV = self._prefill(prompts, self.known, params.max_new_tokens)
        else:
            index = {prompt: i for i, prompt in enumerate(dict.fromkeys(prompts))}
            logits_UV = self._prefill(list(index), [()] * len(index), params.max_new_tokens)
            rows = torch.tensor([index[prompt] for prompt in prompts], device=self._lm.device)
            self._cache.expand(rows)
            logits_RV = logits_UV[rows]
        completions = self._decode(logits_RV, params, generator)
        # The last token sampled was never fed to the model, so the cache does not hold it.
        self.known = [(*p, *c.token_ids[:-1]) for p, c in zip(prompts, completions, strict=True)]
        return completions

    def _prefill(self, prompts: Sequence[tuple[int, ...]], known: Sequence[tuple[int, ...]], room: int) -> Tensor:
        """Feed what each prompt adds to `known`, padded on the right; logits [R, V] after its last token."""
        device = self._lm.device
        added = [prompt[len(done) :] for prompt, done in zip(prompts, known, strict=True)]
        width = max(map(len, added))
        ids_RT = torch.tensor([[*ids, *[0] * (width - len(ids))] for ids in added], device=device)
        length_R = torch.tensor([len(ids) for ids in added], device=device)
        known_R = torch.tensor([len(ids) for ids in known], device=device)
        steps_T = torch.arange(width, device=device)
        self._cache.open_slots(len(prompts), width, room, steps_T[None] < length_R[:, None])
        logits_RV = self._lm.logits(
            ids_RT,
            steps_T[None] == length_R[:, None] - 1,
            position_ids=(known_R[:, None] + steps_T[None]),
            attention_mask=self._cache.mask(width),
            past_key_values=self._cache,
            use_cache=True,
        )
        self._cache.position_R = known_R + length_R
        return logits_RV

    def _decode(self, logits_RV: Tensor, params: SamplingParams, generator: torch.Generator) -> list[Completion]:
        rows, limit, device = len(logits_RV), params.max_new_tokens, self._lm.device
        ids_RL = torch.zeros(rows, limit, dtype=torch.long, device=device)
        logprobs_RL = torch.zeros(rows, limit, device=device)
        length_R = torch.zeros(rows, dtype=torch.long, device=device)
        eos_E = torch.tensor(sorted(self._lm.eos_ids), device=device)
        active = torch.arange(rows, device=device)  # rows in the batch; some of them may have ended
        alive = torch.ones(rows, dtype=torch.bool, device=device)
        for step in range(limit):
            token_R, logprob_R = draw(logits_RV, params.temperature, generator)
            ids_RL[active, step] = torch.where(alive, token_R, 0)
            logprobs_RL[active, step] = torch.where(alive, logprob_R, 0.0)
            length_R[active] += alive
            alive = alive & ~torch.isin(token_R, eos_E)
            left = int(alive.sum())
            if left == 0 or step == limit - 1:
                break
            if left <= (1 - _NARROW_AT) * len(active):
                self._cache.narrow(alive)
                active, token_R, alive = active[alive], token_R[alive], alive[alive]
            self._cache.open_slots(len(active), 1, 0, alive[:, None])
            logits_RV = self._lm.logits(
                token_R[:, None],
                torch.ones(len(active), 1, dtype=torch.bool, device=device),
                position_ids=self._cache.position_R[:, None],
                attention_mask=self._cache.mask(1),
                past_key_values=self._cache,
                use_cache=True,
            )
            self._cache.position_R += 1
        self._cache.widen()
        return completions(self._lm, ids_RL, logprobs_RL, length_R)


def draw(logits_RV: Tensor, temperature: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """One token a row and its log-probability under softmax(logits / temperature); temperature 0 is greedy."""
    if temperature == 0:
        logprobs_RV = logits_RV.log_softmax(-1)
        token_R = logprobs_RV.argmax(-1)
    else:
        logprobs_RV = (logits_RV / temperature).log_softmax(-1)
        # argmin of Exp(1)/p is a draw from p (exponential race): one pass, exact on every device.
        race_RV = torch.empty_like(logprobs_RV).exponential_(generator=generator)
        token_R = (race_RV.log() - logprobs_RV).argmin(-1)
    return token_R, logprobs_RV.gather(1, token_R[:, None]).squeeze(1)


def completions(lm: LanguageModel, ids_RL: Tensor, logprobs_RL: Tensor, length_R: Tensor) -> list[Completion]:
    """Tables of sampled tokens -> Completions."""
    result = []
    for ids, logprobs, length in zip(ids_RL.tolist(), logprobs_RL.tolist(), length_R.tolist(), strict=True):
        tokens = ids[:length]
        ended = bool(tokens) and tokens[-1] in lm.eos_ids
        text, kept = lm.chat.said(tokens), tuple(logprobs[:length])
        result.append(Completion(tuple(tokens), kept, text, "stop" if ended else "length"))
    return result


def generate(
    lm: LanguageModel, prompts: Sequence[tuple[int, ...]], params: SamplingParams, generator: torch.Generator
) -> list[Completion]:
    """The plain way, without a cache between attempts: for sliding-window and hybrid models, and the like.

    Raises ModelError for models that keep no `past_key_values` (recurrent ones).
    """
    width, device = max(map(len, prompts)), lm.device
    ids_RT = torch.tensor([[*[0] * (width - len(p)), *p] for p in prompts], device=device)
    mask_RT = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
    eos_E = torch.tensor(sorted(lm.eos_ids), device=device)
    tokens, logprobs = [], []
    alive_R = torch.ones(len(prompts), dtype=torch.bool, device=device)
    length_R = torch.zeros(len(prompts), dtype=torch.long, device=device)
    past, feed = None, ids_RT
    for _ in range(params.max_new_tokens):
        with lm.autocast():
            position_ids = (mask_RT.cumsum(1) - 1).clamp(min=0)[:, -feed.shape[1] :]
            output = lm.model(
                input_ids=feed,
                attention_mask=mask_RT,
                position_ids=position_ids,
                past_key_values=past,
                use_cache=True,
                logits_to_keep=1,
            )
        past = getattr(output, "past_key_values", None)
        if past is None:
            raise ModelError(
                f"{type(lm.model).__name__} keeps no past_key_values, which sampling needs; use another model"
            )
        token_R, logprob_R = draw(output.logits[:, -1].float(), params.temperature, generator)
        tokens.append(torch.where(alive_R, token_R, 0))
        logprobs.append(torch.where(alive_R, logprob_R, 0.0))
        length_R += alive_R
        alive_R = alive_R & ~torch.isin(token_R, eos_E)
        if not alive_R.any():
            break
        feed = token_R[:, None]
        mask_RT = torch.nn.functional.pad(mask_RT, (0, 1), value=1)
    return completions(lm, torch.stack(tokens, 1), torch.stack(logprobs, 1), length_R)
