"""Sampling with a transformers model, for groups of rollouts over several attempts.

Five things keep the work down, all inside one call or between two:
- a prompt shared by a group is prefilled once, and its keys and values are handed to every row;
- the cache is kept from attempt to attempt, so attempt 2 prefills the correction turn only (on CUDA of as many rows as
  run side by side: the memory of a card does not grow with a step's rows, and the others are soon prefilled anew);
- rows that have ended make room for waiting ones, so that the longest does not hold up the rest;
- where a row repeats what it said before, as second attempts do, a step takes several of its tokens (ahead.py);
- on CUDA a step is a recorded graph over shapes that recur (graphs.py), with weights cast beforehand (inference.py).

    prompts -> waiting -> lane: prefill what is new, step, step, ... -> kept for the next attempt -> completions
"""

import math
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import RLock
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from selfcorrect.errors import ModelError, SamplerFailed
from selfcorrect.models.language_model import LanguageModel
from selfcorrect.models.windows import layer_windows
from selfcorrect.samplers.ahead import pace_of
from selfcorrect.samplers.base import Far, note
from selfcorrect.samplers.draws import draw, uniforms
from selfcorrect.samplers.graphs import AS_THEY_ARE, FIXED, Graphs, Shapes
from selfcorrect.samplers.inference import InferenceWeights
from selfcorrect.samplers.lanes import KEPT, Lanes
from selfcorrect.samplers.slots import Tables
from selfcorrect.types import Completion, SamplingParams

# By model: while one thread samples, its weights and attention are other ones, and another thread waits.
_turns: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()


class TransformersSampler:
    """Works with any causal LM whose layers attend to all or to a window of the context; others go through `generate`.

    max_rows: how many run side by side; further ones wait until some have ended. shapes: those of a decoding step.
    beside: another sampler, of a model of the same shape. This one then has no memory of its own: it samples in that
    one's lanes, with its rows and shapes. A call here drops what the other had kept for its next attempt, and nothing
    is kept for one of this sampler.
    """

    def __init__(
        self, language_model: LanguageModel, max_rows: int = 512, shapes: Shapes | None = None,
        beside: "TransformersSampler | None" = None,
    ) -> None:  # fmt: skip
        self._lm, self._beside = language_model, beside
        on_card = language_model.device.type == "cuda"
        self._max_rows: int = beside._max_rows if beside else max_rows
        self._shapes: Shapes = beside._shapes if beside else shapes or (FIXED if on_card else AS_THEY_ARE)
        self._weights = InferenceWeights(language_model)
        if beside and beside._weights.are_of(language_model):
            self._weights = beside._weights
        self._graphs: Graphs | None = beside._graphs if beside else Graphs(note) if on_card else None
        self._recorded_on = (0, 0)  # which lanes and which weights the graphs know by their address
        self._lanes: Lanes | None = None
        self._rooms = 0  # how often lanes were made
        self._asked = 0  # the most slots of lanes that a call needed since the last rest
        self._kept: dict[int, Kept] = {}
        self._told = False
        self.watch: Callable[[Far], None] | None = None

    def load_weights(self, model: Any) -> None:
        """Sample from `model` (a transformers causal LM, shared with the policy) as it is now."""
        self._lm.model = model
        self._kept = {}
        self._weights.new_version()

    def rest(self) -> None:
        """Let go of what was kept for another attempt, and of lanes more than twice as large as any call since the last
        rest needed: no update is made beside those of a far wider evaluation.
        """
        self._kept = {}
        if self._lanes is not None and self._lanes.slots > KEPT * self._asked:
            self._lanes = None
            if self._graphs:
                self._graphs.forget()
        self._asked = 0

    def sample(self, prompts: Sequence[tuple[int, ...]], params: SamplingParams) -> list[Completion]:
        """Raises SamplerFailed where the model's log-probabilities are not finite."""
        with _turns.setdefault(self._lm.model, RLock()), torch.no_grad():
            done = self._sample(prompts, params)
            if not all(math.isfinite(number) for completion in done for number in completion.logprobs):
                self._forget()
                precise = self._lm.compute_dtype == torch.float32
                raise SamplerFailed(
                    "sampler: transformers: log-probabilities of sampled tokens are not finite, so the model's weights "
                    "are not, or its numbers overflow; " + ("" if precise else "set model.precision=float32, or ")
                    + "take weights from before"
                )  # fmt: skip
        return done

    def _forget(self) -> None:
        """All that lasts from call to call: of keys that are not finite, no mask hides any from later rows."""
        for sampler in (self, self._beside or self):
            sampler._kept, sampler._lanes = {}, None
        if self._graphs:
            self._graphs.forget()

    def _sample(self, prompts: Sequence[tuple[int, ...]], params: SamplingParams) -> list[Completion]:
        uniform_NL = uniforms(len(prompts), params, self._lm.device)
        if self._lm.windows is None:
            if not self._told:
                kind, config = type(self._lm.model).__name__, self._lm.model.config
                why = "some layer is of another kind"
                if layer_windows(config, "sdpa") is not None:
                    why = f"model.attention = {config._attn_implementation} takes no mask for each position, sdpa does"
                note(f"{kind} is sampled without a cache between attempts, slower: {why}")
            self._told = True
            starts = range(0, len(prompts), self._max_rows)
            parts = [slice(start, start + self._max_rows) for start in starts]
            return [
                done for part in parts
                for done in generate(self._lm, prompts[part], params, uniform_NL[part], self._after(part.start))
            ]  # fmt: skip
        if not prompts:
            return []
        owner = self._beside or self
        if self._beside:
            owner._kept = {}
        lanes = owner._room(prompts, params).of(self._lm)
        if self._graphs and self._recorded_on != (known := (owner._rooms, self._weights.moves)):
            self._graphs.forget(id(self._lm))
            self._recorded_on = known
        lanes.begin(uniform_NL, params.temperature)
        kept, self._kept = self._kept, {}
        with self._weights.lent(self._lm):
            call = _Call(lanes, self._shapes, self._graphs, prompts, params, kept, min(self._max_rows, len(prompts)))
            left = call.run(self.watch)
        rows, limit = len(prompts), params.max_new_tokens
        done = completions(
            self._lm, lanes.ids_NL[:rows, :limit], lanes.logprobs_NL[:rows, :limit], lanes.length_N[:rows]
        )
        for row, (tables, index) in left.items() if owner is self else ():
            # The last token sampled was never fed to the model, so the cache does not hold it.
            self._kept[row] = Kept((*prompts[row], *done[row].token_ids[:-1]), tables, index)
        if not self._shapes.fixed:
            owner._lanes = None
        return done

    def _after(self, before: int) -> Callable[[Far], None] | None:
        """What watches rows of a call that others came before."""
        watch = self.watch
        return (lambda far: watch(far._replace(ended=before + far.ended))) if watch else None

    def _room(self, prompts: Sequence[tuple[int, ...]], params: SamplingParams) -> Lanes:
        """Lanes for these prompts: those of the last call, where they suffice."""
        slots = self._shapes.width(max(map(len, prompts)) + params.max_new_tokens)
        lanes = self._shapes.lanes(min(self._max_rows, len(prompts)))
        self._asked = max(self._asked, lanes * slots)
        need = (lanes, slots, len(prompts), params.max_new_tokens)
        if self._lanes is not None:
            if all(has >= needed for has, needed in zip(self._lanes.size, need, strict=True)):
                return self._lanes
            need = tuple(map(max, self._lanes.size, need))  # type: ignore[assignment]
            self._lanes = None  # before the new ones are made
        self._lanes, self._rooms = Lanes(self._lm, *need), self._rooms + 1
        return self._lanes


@dataclass(frozen=True, slots=True)
class Kept:
    """A sequence whose keys and values are kept outside of the lanes: row `index` of tables it shares with others."""

    ids: tuple[int, ...]
    tables: Tables
    index: int


class _Call:
    """The rows of one call on their way through the lanes.

    kept: by row what the cache held of it after the last call; what a row's prompt does not extend is not used.
    """

    def __init__(
        self, lanes: Lanes, shapes: Shapes, graphs: Graphs | None, prompts: Sequence[tuple[int, ...]],
        params: SamplingParams, kept: dict[int, Kept], at_once: int,
    ) -> None:  # fmt: skip
        self._lanes, self._shapes, self._graphs = lanes, shapes, graphs
        self._prompts, self._params = prompts, params
        self._kept = {row: have for row, have in kept.items() if row < len(prompts) and _extends(prompts[row], have)}
        self._waiting = deque(range(len(prompts)))
        self._ahead = Counter(prompts)  # how many rows with this prompt still wait
        self._shared: dict[tuple[int, ...], Kept] = {}  # prompts that waiting rows share with rows that have begun
        self._seats: list[int | None] = [None] * at_once  # the row that each lane has
        self._room = at_once if shapes.fixed else len(prompts)  # rows whose keys and values may be kept
        self._width = 0  # slots in use
        self._pace = pace_of(lanes.lm.model, shapes.cost)
        self._left: dict[int, tuple[Tables, int]] = {}

    def run(self, watch: Callable[[Far], None] | None = None) -> dict[int, tuple[Tables, int]]:
        """Decode every row to its end. Returns where the keys and values of each are."""
        self._fill()
        while self._seats:
            alive, counts, places, right, guesses = self._lanes.look(len(self._seats))
            self._pace.hear(right, guesses)
            if watch:
                rows = sum(alive)
                tokens = sum(count for count, goes_on in zip(counts, alive, strict=True) if goes_on)
                watch(Far(len(self._prompts) - len(self._waiting) - rows, rows, tokens))
            ended = [lane for lane, goes_on in enumerate(alive) if not goes_on]
            if len(ended) >= max(1, math.ceil(self._shapes.refill * len(alive))):
                self._leave(ended, places)
                self._fill()
                continue
            self._steps(min(self._shapes.every, self._params.max_new_tokens - min(counts)), max(places))
        return self._left

    def _steps(self, tokens: int, place: int) -> None:
        """About so many tokens of each row, of which none is further than `place`."""
        rows = self._shapes.lanes(len(self._seats))
        ahead = self._pace.tokens(rows)
        steps = math.ceil(tokens / self._pace.yields(ahead))
        self._width = min(place + steps * max(1, ahead), self._lanes.cache.slots)
        width = min(self._shapes.width(self._width), self._lanes.cache.slots)
        for _ in range(steps):
            if self._graphs:
                key = (id(self._lanes.lm), rows, width, self._params.temperature, ahead)
                self._graphs.run(key, lambda: self._lanes.step(rows, width, ahead))
            else:
                self._lanes.step(rows, width, ahead)

    def _leave(self, ended: list[int], places: list[int]) -> None:
        """Rows that have ended leave their lanes; what the cache holds of them goes with them, while there is room."""
        keep = ended[: self._room - len(self._left)]
        if keep:
            tables = self._lanes.cache.take(self._index(keep), max(places[lane] for lane in keep))
            for number, lane in enumerate(keep):
                row = self._seats[lane]
                assert row is not None
                self._left[row] = (tables, number)
        for lane in ended:
            self._seats[lane] = None
        self._lanes.clear(self._index(ended))

    def _fill(self) -> None:
        """Waiting rows take the free lanes; where none waits, the last lanes move up into the free ones."""
        free = [lane for lane, row in enumerate(self._seats) if row is None]
        begin = [self._waiting.popleft() for _ in free[: len(self._waiting)]]
        if begin:
            self._begin(begin, free)
        free = free[len(begin) :]
        count = len(self._seats) - len(free)
        source = [lane for lane in range(count, len(self._seats)) if self._seats[lane] is not None]
        target = [lane for lane in free if lane < count]
        if source:
            self._lanes.move(self._index(source), self._index(target), self._width)
        for old, new in zip(source, target, strict=True):
            self._seats[new] = self._seats[old]
        del self._seats[count:]

    def _begin(self, rows: list[int], lanes: list[int]) -> None:
        """Rows get the first of these lanes: what is known of each is put there, the rest of its prompt prefilled."""
        self._ahead.subtract(self._prompts[row] for row in rows)
        fed: list[int] = []  # rows
        lane_of, known = {}, {}
        leader: dict[tuple[int, ...], int] = {}  # a prompt that is fed whole -> the first row with it
        for row, lane in zip(rows, lanes, strict=False):
            self._seats[lane], lane_of[row] = row, lane
            prompt = self._prompts[row]
            have = self._kept.pop(row, None) or self._shared.get(prompt)
            if have:
                known[row] = have
            elif leader.setdefault(prompt, row) != row:
                continue
            fed.append(row)
        self._put({lane_of[row]: have for row, have in known.items()})
        lengths = [len(known[row].ids) if row in known else 0 for row in fed]
        added = [self._prompts[row][length:] for row, length in zip(fed, lengths, strict=True)]
        logits_FV = self._lanes.prefill([lane_of[row] for row in fed], lengths, added)
        self._width = max(self._width, *(len(self._prompts[row]) for row in fed))

        number = {row: place for place, row in enumerate(fed)}
        leads = [row if row in number else leader[self._prompts[row]] for row in rows]
        follow = [(lane_of[lead], lane_of[row]) for row, lead in zip(rows, leads, strict=True) if row != lead]
        if follow:
            source, target = (self._index(list(side)) for side in zip(*follow, strict=True))
            self._lanes.cache.copy(source, target, max(map(len, leader)))
        self._share([(prompt, lane_of[row]) for prompt, row in leader.items()])
        places = self._index([len(self._prompts[row]) for row in rows])
        logits_RV = logits_FV[self._index([number[lead] for lead in leads])] if follow else logits_FV
        begun = self._index([lane_of[row] for row in rows])
        self._lanes.know(begun, [self._prompts[row] for row in rows])
        self._lanes.start(begun, self._index(rows), places, logits_RV)

    def _put(self, known: dict[int, Kept]) -> None:
        """Lane -> what it begins with; one copy for all that share tables."""
        groups: dict[int, list[int]] = {}
        for lane, have in known.items():
            groups.setdefault(id(have.tables), []).append(lane)
        for lanes in groups.values():
            index = self._index([known[lane].index for lane in lanes])
            self._lanes.cache.put(self._index(lanes), known[lanes[0]].tables, index)

    def _share(self, begun: list[tuple[tuple[int, ...], int]]) -> None:
        """Keep the prompts for which further rows wait, all but their last token, and drop those without any."""
        self._shared = {prompt: have for prompt, have in self._shared.items() if self._ahead[prompt] > 0}
        begun = [(prompt, lane) for prompt, lane in begun if self._ahead[prompt] > 0 and len(prompt) > 1]
        if begun:
            tables = self._lanes.cache.take(self._index([lane for _, lane in begun]), max(len(p) for p, _ in begun))
            self._shared |= {prompt: Kept(prompt[:-1], tables, index) for index, (prompt, _) in enumerate(begun)}

    def _index(self, numbers: list[int]) -> Tensor:
        return torch.tensor(numbers, device=self._lanes.ids_NL.device)


def _extends(prompt: tuple[int, ...], have: Kept) -> bool:
    return len(prompt) > len(have.ids) and prompt[: len(have.ids)] == have.ids


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
    lm: LanguageModel, prompts: Sequence[tuple[int, ...]], params: SamplingParams, uniform_RL: Tensor,
    watch: Callable[[Far], None] | None = None,
) -> list[Completion]:  # fmt: skip
    """The plain way, without a cache between attempts: for models of other kinds than attention, and the like.

    Raises ModelError for models that keep no cache of keys and values (recurrent ones).
    """
    width, device = max(map(len, prompts)), lm.device
    ids_RT = torch.tensor([[*[0] * (width - len(p)), *p] for p in prompts], device=device)
    mask_RT = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
    eos_E = torch.tensor(sorted(lm.eos_ids), device=device)
    tokens, logprobs = [], []
    alive_R = torch.ones(len(prompts), dtype=torch.bool, device=device)
    length_R = torch.zeros(len(prompts), dtype=torch.long, device=device)
    past, feed = None, ids_RT
    for step in range(params.max_new_tokens):
        with lm.autocast():
            position_ids = (mask_RT.cumsum(1) - 1).clamp(min=0)[:, -feed.shape[1] :]
            output = lm.model(
                input_ids=feed,
                attention_mask=mask_RT,
                position_ids=position_ids,
                logits_to_keep=1,
                **lm.given(past),
            )
        past = lm.cache_in(output)
        if past is None:
            raise ModelError(
                f"{type(lm.model).__name__} keeps no cache of keys and values, which sampling needs; use another model"
            )
        token_R, logprob_R = draw(output.logits[:, -1].float(), params.temperature, uniform_RL[:, step])
        tokens.append(torch.where(alive_R, token_R, 0))
        logprobs.append(torch.where(alive_R, logprob_R, 0.0))
        length_R += alive_R
        alive_R = alive_R & ~torch.isin(token_R, eos_E)
        alive = int(alive_R.sum())
        if watch:
            watch(Far(len(prompts) - alive, alive, alive * (step + 1)))
        if not alive:
            break
        feed = token_R[:, None]
        mask_RT = torch.nn.functional.pad(mask_RT, (0, 1), value=1)
    return completions(lm, torch.stack(tokens, 1), torch.stack(logprobs, 1), length_R)
