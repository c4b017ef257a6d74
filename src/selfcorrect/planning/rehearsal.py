"""The update and the sampling of a recipe, run on fake tensors: what of them is alive at once, in bytes.

The project's own code (shared prompts, packed rows, the pass over the vocabulary, the cache of lanes) runs twice over
transformers' model, with few layers and with one more. Tensors are fake: they have shapes and no numbers, so it takes a
second or two and hardly any memory. The difference is what a layer adds, and the bytes of L layers follow in a line. As
the code itself runs, this stays true when the code changes.

It works for architectures whose layers run on fake tensors, and whose config counts them in num_hidden_layers; for
others a ModelError is raised.

Axes: U prefixes, P tokens of a prefix, B rows of a micro-batch, T tokens of the rest of a row, N tokens in all.
"""

import copy
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import astuple, dataclass, fields
from functools import lru_cache, partial
from threading import RLock
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from selfcorrect.errors import ModelError, first_line
from selfcorrect.learning import vocabulary
from selfcorrect.learning.packing import PackedPrompts, _Interleaved
from selfcorrect.learning.prompts import Prefixed, SharedPrompts
from selfcorrect.learning.vocabulary import Tiles, score
from selfcorrect.models import packed
from selfcorrect.models.building import building
from selfcorrect.models.head import HeadForm, States
from selfcorrect.models.language_model import LanguageModel
from selfcorrect.models.packed import Packing
from selfcorrect.models.recompute import recomputed
from selfcorrect.models.tables import InPlace, begin
from selfcorrect.models.weights import cast_weights
from selfcorrect.planning.casts import CardsCasts
from selfcorrect.planning.live import Live
from selfcorrect.planning.work import Sampling, Update
from selfcorrect.samplers.attention import grouped_attention
from selfcorrect.samplers.draws import draw
from selfcorrect.samplers.lanes import DRAWN
from selfcorrect.samplers.prepacked import LEAST_ADAPTED, least
from selfcorrect.samplers.slots import SlotCache


@dataclass(frozen=True, slots=True)
class Costume:
    """How the model is dressed. config: transformers' own; attention: its implementation; rank: of adapters, 0 without.

    targets: names of the layers that get one, None for all linear ones but the head. reference: whether there is one.
    on_card: as on a GPU packed rows attend in one call, and not row by row, and embeddings have whole gradients.
    copies: model.sampling_copies.
    """

    config: Any
    weights: torch.dtype
    compute: torch.dtype
    attention: str
    tiles: Tiles
    rank: int = 0
    targets: tuple[str, ...] | None = None
    four_bits: bool = False
    reference: bool = True
    on_card: bool = False
    copies: bool = True


class CostumeKey:
    """A costume as a key of a cache, by its texts: transformers' configs have no hash."""

    def __init__(self, costume: Costume) -> None:
        self.costume = costume
        others = [str(getattr(costume, field.name)) for field in fields(costume) if field.name != "config"]
        self._texts = (costume.config.to_json_string(use_diff=False), *others)

    def __hash__(self) -> int:
        return hash(self._texts)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CostumeKey) and other._texts == self._texts


@dataclass(frozen=True, slots=True)
class Line:
    """Bytes, or a count, by number of layers: of the first layer with all around it, and of each one more."""

    first: float
    more: float

    def at(self, layers: int) -> float:
        return self.first + self.more * (layers - 1)


def by_layers(costume: Costume, measure: Callable[[LanguageModel], dict[str, float]]) -> dict[str, Line]:
    """What `measure` finds for a model of a layer of each kind, and of one more, as lines."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    def faked(makers: Sequence[Callable[[], LanguageModel]]) -> list[dict[str, float]]:
        found = []
        for make in makers:
            with FakeTensorMode(), torch.random.fork_rng(devices=[]):
                found.append(measure(make()))
        return found

    return through(costume, faked)


def through(
    costume: Costume, measure: Callable[[Sequence[Callable[[], LanguageModel]]], list[dict[str, float]]],
    layers: tuple[int, int] | None = None,
) -> dict[str, Line]:  # fmt: skip
    """The lines through what `measure` finds of two models, which it is given to make. layers: of each; else one of
    each kind (of an adapted model two at least), and one more.

    Raises ModelError where the architecture's own code fails at that.
    """
    # Beneath adapters no gradient goes on to the embeddings, so that the first layer takes less than any other.
    least = max(kinds(costume.config), 2 if costume.rank else 1)
    few, many = layers or (least, least + 1)
    try:
        fewer, more = measure([partial(stand_in, costume, count) for count in (few, many)])
    except Exception as error:  # models fail here in their own ways
        raise ModelError(
            f"model.path: no plan for a model of type {costume.config.model_type}, as {few} and {many} of "
            f"its layers cannot be run by themselves ({first_line(error)}); take another model, or train without a plan"
        ) from error
    slopes = {name: (more[name] - fewer[name]) / (many - few) for name in fewer}
    return {name: Line(fewer[name] - (few - 1) * slope, slope) for name, slope in slopes.items()}


def kinds(config: Any) -> int:
    """How many kinds of layers a model of this config has."""
    return max(1, len(set(getattr(config, "layer_types", None) or ())))


def of_layers(config: Any, layers: int) -> Any:
    """The config of the same model with so many layers: one of each kind, as masks are made by kind, and more of the
    commonest.
    """
    made = copy.deepcopy(config)
    kinds = getattr(made, "layer_types", None)
    made.num_hidden_layers = layers
    if kinds:
        common = [kind for kind, _ in Counter(kinds).most_common()]
        made.layer_types = [*common, *common[:1] * layers][:layers]
    return made


def stand_in(costume: Costume, layers: int) -> LanguageModel:
    """The model with random weights, or fake ones inside of a FakeTensorMode; no tokenizer, no chat."""
    from transformers import AutoModelForCausalLM

    config = of_layers(costume.config, layers)
    with building():
        model = AutoModelForCausalLM.from_config(config, attn_implementation=costume.attention, dtype=costume.weights)
    model.eval()
    # Made-up tokens are one and the same, and may be the one for padding, which has no gradient.
    model.get_input_embeddings().padding_idx = None
    if costume.rank:
        model.requires_grad_(False)
        _adapt(model, costume)
    form = HeadForm() if type(model.get_output_embeddings()) is nn.Linear else None
    none: Any = None
    return LanguageModel(
        model, none, none, frozenset({0}), torch.device("cpu"), costume.compute, form,
        copies=costume.copies and not costume.four_bits,
    )  # fmt: skip


class _Adapted(nn.Module):
    """A frozen linear layer and its adapter, as PEFT computes them."""

    def __init__(self, base: nn.Module, rank: int) -> None:
        super().__init__()
        self.base = base
        shape: Any = base.weight.shape
        outer, inner = shape if isinstance(base, nn.Linear) else reversed(shape)
        self.down, self.up = nn.Linear(inner, rank, bias=False), nn.Linear(rank, outer, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.base(x)
        both: Tensor = result + self.up(self.down(x.to(self.down.weight.dtype))) * 2.0
        return both


def _adapt(model: Any, costume: Costume) -> None:
    from transformers.pytorch_utils import Conv1D

    head, targets = model.get_output_embeddings(), costume.targets
    linear = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if isinstance(child, (nn.Linear, Conv1D)) and child is not head and (targets is None or name in targets)
    ]
    for parent, name, child in linear:
        if costume.four_bits:
            # What it multiplies with is made anew at every use, and not kept.
            child.weight = nn.Parameter(child.weight.detach().to(costume.compute), requires_grad=False)
        setattr(parent, name, _Adapted(child, costume.rank))


# The update


def update(costume: Costume, work: Update) -> Callable[[LanguageModel], dict[str, float]]:
    """Measures an update's most bytes at once beside weights, and the gradients, which it leaves.

    `peak 0`, `peak 1` and so on are of its parts (prompts, forward and head, layers, embeddings, those of the prompts).
    Which of them is the highest depends on the number of layers, so each has a line of its own (`highest`).
    """

    def measure(lm: LanguageModel) -> dict[str, float]:
        trained = lm.parameters()
        with _as_on_device(costume.on_card), Live() as live:
            live.known([*lm.model.parameters(), *lm.model.buffers(), *trained])
            if work.micro_batches > 1:  # as at the second of them
                for tensor in trained:
                    tensor.grad = torch.zeros_like(tensor)
            with _backward_at_embeddings(lm, live.mark):
                run_update(lm, work, costume, live.mark, fewer=True)
            gradients = sum(t.grad.nbytes for t in trained if t.grad is not None)
        peaks = {f"peak {number}": peak for number, peak in enumerate(live.peaks)}
        return {**peaks, "gradients": gradients}

    return measure


def highest(found: dict[str, float]) -> float:
    """Of the parts of an update."""
    return max(size for name, size in found.items() if name.startswith("peak"))


@contextmanager
def _backward_at_embeddings(lm: LanguageModel, mark: Callable[[], None]) -> Iterator[None]:
    """Meanwhile a backward pass marks where it has left the layers."""

    def forward(module: nn.Module, given: Any, out: Tensor) -> None:
        if out.requires_grad:
            out.register_hook(lambda _: mark())  # type: ignore[no-untyped-call]

    handle = lm.model.get_input_embeddings().register_forward_hook(forward)
    try:
        yield
    finally:
        handle.remove()


def run_update(
    lm: LanguageModel, work: Update, costume: Costume, mark: Callable[[], None], *, fewer: bool = False
) -> None:
    """Trainer.update on one micro-batch of made-up rollouts, all of them equally long. Adds to the gradients.

    mark is called as the prompts' forward pass is over, as the head's backward pass is, as the rollouts' is, and as the
    prompts' is. fewer: packed prefixes are put together to a few, which take the same memory and are sooner rehearsed,
    and tiles like those before them are left out.
    """
    tiles = FewTiles(*astuple(costume.tiles)) if fewer else costume.tiles
    kind: Any = _Packed if work.packed else _Padded
    if fewer and work.packed and work.prefixes > _FEW:
        prefixes = [(number,) * (work.prefixes * work.prefix // _FEW) for number in range(_FEW)]
    else:
        prefixes = [(number,) * work.prefix for number in range(work.prefixes)]
    in_place = begin(lm, on_card=costume.on_card) if work.in_place else InPlace()
    with in_place.forward(), recomputed(lm.model, work.again, lm.kernels):
        prompts = kind(lm, prefixes) if prefixes else None
    with torch.no_grad():
        ref_prompts = kind(lm, prefixes) if prefixes and costume.reference else None
    mark()
    with torch.no_grad():
        theirs = _states(lm, work, ref_prompts) if costume.reference else None
    with in_place.forward(), recomputed(lm.model, work.again, lm.kernels):
        mine = _states(lm, work, prompts)
    mine.hidden_ND.register_hook(lambda _: mark())  # type: ignore[no-untyped-call]
    ids_N = torch.zeros(len(mine.hidden_ND), dtype=torch.long)
    logprobs_N, kl_N = score(mine, theirs, ids_N, 1.0, "analytic", tiles, in_place=in_place.head)
    (logprobs_N + kl_N).sum().backward()  # type: ignore[no-untyped-call]
    del mine, theirs, logprobs_N, kl_N
    mark()
    if prompts:
        prompts.backward()
    mark()


def _states(lm: LanguageModel, work: Update, prompts: Any) -> States:
    if prompts:
        states = prompts.made_up(work)
    elif work.packed:
        lengths = (work.rest,) * work.rows
        with Packing(lengths, lengths).shown(lm.model.config):
            states = lm.states(
                _ids(1, work.rest * work.rows), None, position_ids=_ids(1, work.rest * work.rows), use_cache=False
            )
    else:
        states = lm.states(_ids(work.rows, work.rest), None, use_cache=False)
    return States(states.hidden_ND[torch.arange(work.scored)], states.head)


_FEW = 4
_ONE = RLock()  # rehearsal at a time


class FewTiles(Tiles):
    """Those that are kept for the backward pass, and two whole ones that are not. A tile is made while the one before
    it still lies there, so the second of these is as any whole one after it; others take less.
    """

    def spans(self, tokens: int, vocabulary: int) -> Iterator[tuple[slice, list[slice]]]:
        room, more, whole = self.kept, 2, 0
        for rows, columns in Tiles.spans(self, tokens, vocabulary):
            few = []
            for at in columns:
                size = (rows.stop - rows.start) * (at.stop - at.start)
                whole, room = whole or size, room - size
                few.append(at)
                more -= room < 0 and size == whole
                if not more:
                    yield rows, few
                    return
            yield rows, few


@contextmanager
def _as_on_device(on_card: bool) -> Iterator[None]:
    """Meanwhile what a card does in a way of its own is done so, as the device that is planned for need not be this
    one: packed rows attend in one call, products of bfloat16 are added to float32 sums as they are made, and autocast
    has other lists. Of fake tensors alone: other threads may train.
    """
    with _ONE, CardsCasts() if on_card else nullcontext():
        rows, mixed = packed._row_by_row, vocabulary._add_mixed
        if on_card:
            packed._row_by_row, vocabulary._add_mixed = _of_fakes(_all_rows, rows), _of_fakes(_added, mixed)
        try:
            yield
        finally:
            packed._row_by_row, vocabulary._add_mixed = rows, mixed


def _of_fakes(card: Callable[..., Any], own: Callable[..., Any]) -> Callable[..., Any]:
    from torch._subclasses.fake_tensor import FakeTensor

    return lambda *given: (card if any(isinstance(each, FakeTensor) for each in given) else own)(*given)


def _added(sum_: Tensor, left: Tensor, right: Tensor, anew: bool) -> bool:
    return sum_.dtype != left.dtype  # and takes no memory


def _all_rows(packing: Packing, query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
    q, k, v = (t.to(torch.bfloat16) for t in (query, key, value))
    causal = q.shape[2] == k.shape[2]
    return scaled_dot_product_attention(q, k, v, is_causal=causal, scale=scale, enable_gqa=True).transpose(1, 2)


def _ids(*shape: int) -> Tensor:
    return torch.zeros(*shape, dtype=torch.long)


class _Padded(SharedPrompts):
    def made_up(self, work: Update) -> States:
        rows = torch.arange(work.rows) % work.prefixes
        length_B = torch.full((work.rows,), work.prefix)
        return self._lm.states(
            _ids(work.rows, work.rest), None, position_ids=_ids(work.rows, work.rest),
            attention_mask=self._mask(length_B, work.rest), **self._lm.given(Prefixed(self._leaves, rows)),
        )  # fmt: skip


class _Packed(PackedPrompts):
    def made_up(self, work: Update) -> States:
        own, both = (work.rest,) * work.rows, (work.prefix + work.rest,) * work.rows
        past = _Interleaved(self._leaves, _ids(sum(both)))
        with Packing(own, both).shown(self._lm.model.config):
            return self._lm.states(_ids(1, sum(own)), None, position_ids=_ids(1, sum(own)), **self._lm.given(past))


# Sampling


def sampling(costume: Costume, work: Sampling) -> Callable[[LanguageModel], dict[str, float]]:
    """Measures what attempt 2 needs beside weights and cache: to read the turn between, and for a step of all rows."""

    def measure(lm: LanguageModel) -> dict[str, float]:
        lm.model.requires_grad_(False)
        words = int(lm.model.config.vocab_size)
        found = {"prefill": 0, "step": 0}
        if lm.windows is None:  # sampled in a plain way (samplers/transformers.py, `generate`), which is not rehearsed
            return {**found}
        if lm.compute_dtype != torch.float32:
            for module, name, weight in cast_weights(lm.model):  # as lent by samplers/inference.py
                module._parameters[name] = nn.Parameter(weight.to(lm.compute_dtype), requires_grad=False)
        cache = SlotCache(lm, work.lanes, work.slots)
        with torch.no_grad(), grouped_attention(lm.model.config), _as_on_device(costume.on_card), Live() as live:
            live.known([*lm.model.parameters(), *lm.model.buffers()])
            _feed(lm, cache, work.lanes, 1, work.slots)  # makes the cache's tables
            for name, rows, tokens in (("prefill", work.prefilled, work.turn), ("step", work.lanes, work.ahead)):
                live.restart()
                states = _feed(lm, cache, rows, tokens, work.slots)
                _drawn(lm, states, work, words)
                del states
                found[name] = live.peak - live.now  # beside the cache, and where its rows lie
        return {**found}

    return measure


def _feed(lm: LanguageModel, cache: SlotCache, rows: int, tokens: int, width: int) -> States:
    place_RT = _ids(rows, tokens)
    cache.open(slice(rows), place_RT, width)
    return lm.states(
        _ids(rows, tokens), None, position_ids=place_RT, attention_mask=cache.mask(), **lm.given(cache)
    )  # fmt: skip


def _drawn(lm: LanguageModel, states: States, work: Sampling, words: int) -> None:
    """As many as are drawn at once, from logits that are made and widened to float32."""
    rows = min(work.lanes * work.ahead, max(DRAWN, work.lanes))
    last = States(states.hidden_ND[torch.arange(rows) % len(states.hidden_ND)], states.head)
    with lm.autocast():
        logits_RV = lm.model.get_output_embeddings()(last.hidden_ND).float() if last.head else last.hidden_ND.float()
    assert logits_RV.shape == (rows, words)
    draw(logits_RV, 0.0 if work.greedy else 1.0, torch.zeros(rows, dtype=torch.float64))


# Weights


@dataclass(frozen=True, slots=True)
class Numbers:
    """How many numbers a model has. all: of its own weights; trained: those that train; linear: of linear layers but
    the head; packed: of those that sampling on a CPU makes laid out copies of; cast: of those that autocast casts.
    idle: of experts that a token is not sent to; largest: of one layer, which FSDP gathers; outer: outside of layers.
    """

    all: float
    trained: float
    linear: float
    packed: float
    cast: float
    idle: float
    largest: float
    outer: float


def numbers(costume: Costume, layers: int) -> Numbers:
    """Of the model of so many layers."""
    lines = _counted(CostumeKey(costume))
    found = {name: line.at(layers) for name, line in lines.items()}
    return Numbers(**found, largest=lines["all"].more, outer=lines["all"].at(0))


@lru_cache(maxsize=64)
def _counted(key: CostumeKey) -> dict[str, Line]:
    costume = key.costume

    def count(lm: LanguageModel) -> dict[str, float]:
        model = lm.model
        adapter = {id(half.weight) for _, _, layer in adapters(model) for half in (layer.down, layer.up)}
        head = model.get_output_embeddings()
        base = {id(layer.base) for _, _, layer in adapters(model)}
        linear = [m for m in model.modules() if type(m) is nn.Linear and m is not head and id(m.weight) not in adapter]
        wraps = costume.compute == torch.float32
        packed = [
            m.weight.numel() for m in [*linear, head]
            if m.weight.numel() >= (LEAST_ADAPTED if wraps and id(m) in base else least(costume.compute))
        ]  # fmt: skip
        own = [t for t in model.parameters() if id(t) not in adapter]
        return {
            "all": sum(t.numel() for t in own),
            "trained": sum(t.numel() for t in model.parameters() if t.requires_grad),
            "linear": sum(m.weight.numel() for m in linear),
            "packed": 0 if costume.four_bits or not costume.copies else sum(packed),
            "cast": sum(m.weight.numel() for m in [*([] if costume.four_bits else linear), head]),
            "idle": _idle(costume.config) * sum(t.numel() for t in own if t.dim() == 3),
        }  # fmt: skip

    return by_layers(costume, count)


def _idle(config: Any) -> float:
    """The share of experts that a token is not sent to, or 0; transformers has all of a layer in one table."""
    of = _named(config, "num_experts", "num_local_experts", "n_routed_experts")
    sent = _named(config, "num_experts_per_tok", "top_k_experts")
    return 1 - sent / of if of and sent else 0.0


def _named(config: Any, *names: str) -> int:
    return next((n for name in names if isinstance(n := getattr(config, name, None), int)), 0)


def adapters(model: Any) -> list[tuple[Any, str, _Adapted]]:
    return [(p, n, c) for p in model.modules() for n, c in p.named_children() if isinstance(c, _Adapted)]
