"""Oracle 6: what TransformersSampler records is what the policy says of the same ids, whatever happens inside.

The other side of every comparison is one plain forward pass over the whole sequence, without cache or mask.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from weakref import WeakSet

import pytest
import torch
from torch import Tensor

from selfcorrect.config import LoraConfig
from selfcorrect.errors import SamplerFailed
from selfcorrect.learning.batching import make_batch
from selfcorrect.learning.losses import token_loss
from selfcorrect.learning.policy import trained_states
from selfcorrect.models.adapters import Adapters, fresh_config
from selfcorrect.models.language_model import LanguageModel
from selfcorrect.samplers import prepacked
from selfcorrect.samplers.ahead import ONE_BY_ONE
from selfcorrect.samplers.base import Far
from selfcorrect.samplers.graphs import AS_THEY_ARE, Graphs, Shapes
from selfcorrect.samplers.transformers import TransformersSampler
from selfcorrect.types import Attempt, Completion, Grade, Outcome, Problem, Rollout, SamplingParams
from tests.support.tiny import ARCHITECTURES, tiny_lm

ENDS = (3, 5, 7, 9)  # these numbers end a turn beside the tokenizer's own end token: attempts of every length
PROMPTS = ("5 2 1 : 8", "5 2 1 : 8", "12 11 10 9 8 7 : 2", "4 : 4", "4 : 4", "4 : 4", "9 6 : 3", "1 1 1 : 1")
ATTEMPTS, LIMIT = 3, 12
PLAIN = replace(AS_THEY_ARE, cost=ONE_BY_ONE)  # what is fed can be counted
FIXED = Shapes(fixed=True, every=5)  # as on a card: 5 does not divide LIMIT, so rows end between two looks
Played = list[tuple[tuple[int, ...], Completion]]  # context and completion, one a row


def play(
    lm: LanguageModel, sampler: TransformersSampler, temperature: float, attempts: int = ATTEMPTS,
    prompts: Sequence[str] = PROMPTS,
) -> list[Played]:  # fmt: skip
    """All rows, attempt after attempt; the correction turns differ in length."""
    contexts = [lm.chat.first_prompt(prompt) for prompt in prompts]
    played = []
    for attempt in range(attempts):
        params = SamplingParams(temperature, LIMIT, 1 + 100 * attempt)
        played.append(list(zip(contexts, sampler.sample(contexts, params), strict=True)))
        contexts = [
            lm.chat.next_prompt(context, completion.token_ids, "?" if row % 2 else "? 1 2 ?")
            for row, (context, completion) in enumerate(played[-1])
        ]
    return played


def plain_logits(lm: LanguageModel, context: Sequence[int], completion: Completion) -> Tensor:
    """Logits that predict each token of the completion [L, V]."""
    ids = torch.tensor([[*context, *completion.token_ids]])
    with torch.no_grad():
        logits: Tensor = lm.model(input_ids=ids, use_cache=False).logits[0, len(context) - 1 : -1]
    return logits


def rollouts_of(played: list[Played]) -> list[Rollout]:
    problem, grade = Problem("p", "toy", "", {}), Grade(Outcome.WRONG, 0.0)
    return [
        Rollout(problem, tuple(Attempt(context, completion, grade) for context, completion in row))
        for row in zip(*played, strict=True)
    ]


@contextmanager
def fed(lm: LanguageModel) -> Iterator[list[tuple[int, int]]]:
    """The shapes of the token ids fed to the model meanwhile."""
    shapes: list[tuple[int, int]] = []

    def note(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        shapes.append(tuple(kwargs["input_ids"].shape))

    handle = lm.model.get_decoder().register_forward_pre_hook(note, with_kwargs=True)
    yield shapes
    handle.remove()


WAYS = (("eager", 3, AS_THEY_ARE), ("sdpa", 512, AS_THEY_ARE), ("sdpa", 5, FIXED))  # attention, rows at once, shapes
PAIRS = [  # every architecture in every way, and each of both at every temperature
    pytest.param(architecture, *way, temperature, id=f"{architecture}-{way[0]}-{way[1]}-{temperature}")
    for a, architecture in enumerate(ARCHITECTURES)
    for way, temperature in zip(WAYS, ((1.0, 0.7, 0.0) * 2)[a % 3 :], strict=False)
]


@pytest.mark.parametrize(("architecture", "attention", "max_rows", "shapes", "temperature"), PAIRS)
def test_recorded_logprobs_are_the_policys(
    architecture: str, attention: str, max_rows: int, shapes: Shapes, temperature: float
) -> None:
    lm = tiny_lm(architecture, attention, ENDS)
    played = play(lm, TransformersSampler(lm, max_rows, shapes), temperature)
    for context, completion in (pair for attempt in played for pair in attempt):
        logits = plain_logits(lm, context, completion)
        recorded, ids = torch.tensor(completion.logprobs), torch.tensor(completion.token_ids)
        expected = (logits / (temperature or 1.0)).log_softmax(-1).gather(1, ids[:, None]).squeeze(1)
        torch.testing.assert_close(recorded, expected, rtol=0, atol=2e-5)
        if temperature == 0:
            assert ids.tolist() == logits.argmax(-1).tolist()
        ended = [token in lm.eos_ids for token in completion.token_ids]
        assert not any(ended[:-1])
        assert ended[-1] == (completion.finish_reason == "stop")
        assert ended[-1] or len(ended) == LIMIT
    if temperature:
        lengths = {len(completion.token_ids) for attempt in played for _, completion in attempt}
        assert len(lengths) > 2  # ragged, or the above says little


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_training_path_sees_the_same_logprobs(architecture: str) -> None:
    lm = tiny_lm(architecture, "eager", ENDS)
    rollouts = rollouts_of(play(lm, TransformersSampler(lm), 0.7))
    batch = make_batch(rollouts, torch.ones(len(rollouts), ATTEMPTS), (0.0,) * ATTEMPTS, torch.ones(len(rollouts)) > 0)
    with torch.no_grad():
        result = token_loss(trained_states(lm, batch), None, batch, 0.7)
    torch.testing.assert_close(result.logprobs_BT, batch.sampler_logprobs_BT, rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    ("architecture", "ways"),
    [
        ("llama", [(512, AS_THEY_ARE), (4, FIXED), (2, Shapes(True, 1))]), ("qwen2", [(3, AS_THEY_ARE)]),
        ("gpt2", [(4, FIXED)]), ("gemma3", [(3, AS_THEY_ARE), (512, FIXED)]),
    ],
    ids=ARCHITECTURES,
)  # fmt: skip
def test_neither_neighbours_nor_shapes_change_what_a_row_says(
    architecture: str, ways: list[tuple[int, Shapes]]
) -> None:
    """Its tokens follow from its prompt, its number and the seed, however rows are batched, replaced and moved."""
    lm = tiny_lm(architecture, "eager", ENDS)
    alone = play(lm, TransformersSampler(lm, 1), 1.0, attempts=2)
    for max_rows, shapes in ways:
        found = play(lm, TransformersSampler(lm, max_rows, shapes), 1.0, attempts=2)
        for mine, theirs in zip(found, alone, strict=True):
            assert [(context, c.token_ids) for context, c in mine] == [(context, c.token_ids) for context, c in theirs]
    contexts = [context for context, _ in alone[0][:3]]
    fewer = TransformersSampler(lm).sample(contexts, SamplingParams(1.0, LIMIT, seed=1))
    assert [c.token_ids for c in fewer] == [c.token_ids for _, c in alone[0][:3]]
    assert fewer != TransformersSampler(lm).sample(contexts, SamplingParams(1.0, LIMIT, seed=2))


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma3", pytest.param("qwen2", marks=pytest.mark.nightly)])
def test_greedy_is_what_generate_writes(architecture: str) -> None:
    lm = tiny_lm(architecture, "eager", ENDS)
    found = [play(lm, TransformersSampler(lm, 3, shapes), 0.0) for shapes in (AS_THEY_ARE, FIXED)]
    texts = {
        (context, completion.token_ids) for played in found for attempt in played for context, completion in attempt
    }
    assert len(texts) > len(set(PROMPTS))  # each context once
    for context, token_ids in texts:
        ids = torch.tensor([context])
        written = lm.model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=LIMIT, pad_token_id=0,
            eos_token_id=sorted(lm.eos_ids),
        )  # fmt: skip
        assert list(token_ids) == written[0, len(context) :].tolist()


@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
def test_the_cache_is_kept_from_attempt_to_attempt(architecture: str) -> None:
    lm = tiny_lm(architecture, "eager", ENDS)
    sampler = TransformersSampler(lm, shapes=PLAIN)
    with fed(lm) as shapes:
        first = play(lm, sampler, 1.0, attempts=1)[0]
    prompts = [context for context, _ in first]
    # A prompt that a group shares is fed once.
    assert [shape for shape in shapes if shape[1] > 1] == [(len(set(prompts)), max(map(len, prompts)))]

    nexts = [lm.chat.next_prompt(context, completion.token_ids, "?") for context, completion in first]
    params = SamplingParams(1.0, LIMIT, seed=9)
    with fed(lm) as shapes:
        reused = sampler.sample(nexts, params)
    # The last token of attempt 1, its end where it was cut off, and <|user|> ? <|end|> <|assistant|>.
    (prefill,) = [shape for shape in shapes if shape[1] > 1]
    assert prefill[0] == len(prompts)
    assert prefill[1] in {5, 6}
    fresh = TransformersSampler(lm).sample(nexts, params)
    assert [c.token_ids for c in reused] == [c.token_ids for c in fresh]
    for mine, theirs in zip(reused, fresh, strict=True):
        assert mine.logprobs == pytest.approx(theirs.logprobs, abs=2e-5)


@pytest.mark.parametrize("max_rows", [1, 3])
def test_waiting_rows_keep_their_cache_and_their_groups_prompt(max_rows: int) -> None:
    """Of rows that begin later, too, each prompt is fed once, and attempt 2 feeds the correction turn alone."""
    lm = tiny_lm("llama", "eager", ENDS)
    sampler = TransformersSampler(lm, max_rows, PLAIN)
    with fed(lm) as shapes:
        first = play(lm, sampler, 1.0, attempts=1)[0]
    longest = max(len(context) for context, _ in first)
    whole = sum(rows for rows, width in shapes if 6 < width <= longest)
    assert whole <= len({context for context, _ in first})
    assert max(rows for rows, _ in shapes) == max_rows
    nexts = [lm.chat.next_prompt(context, completion.token_ids, "?") for context, completion in first]
    with fed(lm) as shapes:
        sampler.sample(nexts, SamplingParams(1.0, LIMIT, seed=9))
    assert max(width for _, width in shapes) <= 6


def test_a_card_keeps_the_cache_of_as_many_rows_as_run_side_by_side() -> None:
    """So its memory is bounded by rows_at_once, whatever the rows of a step; the others are fed their whole context."""
    lm = tiny_lm("llama", "eager", ENDS)
    sampler = TransformersSampler(lm, 3, FIXED)
    first = play(lm, sampler, 1.0, attempts=1)[0]
    assert len(sampler._kept) == 3 < len(first)
    nexts = [lm.chat.next_prompt(context, completion.token_ids, "?") for context, completion in first]
    params = SamplingParams(1.0, LIMIT, seed=9)
    with fed(lm) as shapes:
        again = sampler.sample(nexts, params)
    assert max(width for _, width in shapes) == max(map(len, nexts))
    assert [c.token_ids for c in again] == [c.token_ids for c in TransformersSampler(lm).sample(nexts, params)]


def test_lanes_of_an_evaluation_are_not_held_beside_an_update() -> None:
    """Those of a step's own calls are, whichever of them is the widest."""
    lm = tiny_lm("llama", "eager", ENDS)
    sampler, wide, few = TransformersSampler(lm, 32, FIXED), [(5, 6, 7)] * 32, [(5, 6, 7)] * 8
    params = SamplingParams(1.0, LIMIT, 1)
    expected, held = sampler.sample(few, params), []
    for calls in ([few, few], [wide], [few], [few]):
        for prompts in calls:
            assert sampler.sample(prompts, params)[:8] == expected
        sampler.rest()
        held.append(sampler._lanes.size[0] if sampler._lanes else 0)
    assert held == [8, 32, 0, 8]


@pytest.mark.parametrize("max_rows", [512, 8])
def test_rows_that_have_ended_make_room(max_rows: int) -> None:
    lm = tiny_lm("llama", "eager", ENDS)
    prompts = [lm.chat.first_prompt(prompt) for prompt in PROMPTS] * 4
    with fed(lm) as shapes:
        completions = TransformersSampler(lm, max_rows, PLAIN).sample(prompts, SamplingParams(1.0, LIMIT, 1))
    needed = sum(len(completion.token_ids) - 1 for completion in completions)
    steps = [rows for rows, width in shapes if width == 1]
    prefilled_alone = len(prompts) if max_rows == 8 else 0  # a prompt's last token, where its group has begun before
    assert needed <= sum(steps) <= needed / 0.875 + prefilled_alone  # never more than an eighth of the lanes is idle
    go_on = sum(len(completion.token_ids) > 1 for completion in completions)
    assert max(steps) == min(max_rows, go_on)


def test_threads_that_sample_from_one_model_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each would compute with what the other has put in the model, and leave it there."""
    monkeypatch.setattr(prepacked, "least", lambda _: 0)
    lm = replace(tiny_lm("llama", "sdpa", ENDS), compute_dtype=torch.bfloat16)
    expected = said(play(lm, TransformersSampler(lm, 3), 1.0, attempts=1))
    with ThreadPoolExecutor(4) as threads:
        played = threads.map(lambda _: said(play(lm, TransformersSampler(lm, 3), 1.0, attempts=1)), range(4))
        assert all(each == expected for each in played)
    assert all(isinstance(tensor, torch.nn.Parameter) for tensor in lm.model.parameters())
    assert {tensor.dtype for tensor in lm.model.parameters()} == {torch.float32}


@pytest.mark.parametrize("architecture", ["gpt2", "gemma3"])
def test_bfloat16_logprobs_are_the_policys(architecture: str) -> None:
    lm = replace(tiny_lm(architecture, "sdpa", ENDS), compute_dtype=torch.bfloat16)
    for context, completion in (pair for attempt in play(lm, TransformersSampler(lm, 3), 1.0) for pair in attempt):
        ids = torch.tensor([[*context, *completion.token_ids]])
        with torch.no_grad():
            logits = lm.logits(ids, None, use_cache=False)[len(context) - 1 : -1]
        expected = logits.log_softmax(-1).gather(1, torch.tensor(completion.token_ids)[:, None]).squeeze(1)
        # bfloat16 keeps 8 bits: one rounding of a logit of up to 16 is 0.06, and the order of sums differs
        torch.testing.assert_close(torch.tensor(completion.logprobs), expected, rtol=0, atol=0.25)


class Recorder:
    """Stands for CUDA graphs: "plays" the step as it is. fails: after so many were recorded.

    As with CUDA, a pool of memory is used up with the last of its graphs.
    """

    def __init__(self, fails: int = 10**6) -> None:
        self.recorded, self.played, self.fails = 0, 0, fails
        self.of_pool: dict[Any, WeakSet[Any]] = {}

    def __call__(self, step: Callable[[], None], pool: Any) -> Callable[[], None]:
        if self.recorded == self.fails:
            raise RuntimeError("operation not permitted when stream is capturing\nlong details")
        if not self.of_pool.get(pool, True):
            raise RuntimeError("use_count > 0 INTERNAL ASSERT FAILED")
        self.recorded += 1

        def play() -> None:
            self.played += 1
            step()

        self.of_pool.setdefault(pool, WeakSet()).add(play)
        return play


@pytest.mark.parametrize("fails", [10**6, 0, 1])
def test_recorded_steps_say_the_same(fails: int) -> None:
    lm = tiny_lm("llama", "sdpa", ENDS)
    expected = play(lm, TransformersSampler(lm), 1.0, attempts=2)
    told: list[str] = []
    sampler, recorder = TransformersSampler(lm, 4, FIXED), Recorder(fails)
    sampler._graphs = Graphs(told.append, recorder, object)
    for _ in range(2):  # the second time nothing is recorded anew
        again = play(lm, sampler, 1.0, attempts=2)
        assert said(again) == said(expected)
        recorded = recorder.recorded
        sampler.load_weights(lm.model)
    assert recorder.recorded == recorded
    assert recorder.played > 0 or fails == 0
    assert len(told) == (fails < 10**6)
    assert all("\n" not in line and "cannot be recorded (operation not permitted" in line for line in told)


@pytest.mark.parametrize(
    ("least", "dtype", "adapter"),  # each two of them in all ways
    [
        (prepacked.LEAST_ADAPTED, torch.float32, True),
        pytest.param(prepacked.LEAST_ADAPTED, torch.bfloat16, False, marks=pytest.mark.nightly),
        pytest.param(1, torch.bfloat16, True, marks=pytest.mark.nightly),
        (1, torch.float32, False),
    ],
)  # fmt: skip
def test_a_sampler_beside_another_takes_no_memory_of_its_own(
    least: int, adapter: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Policy and reference in turn, as with offline_first: each writes what it would alone, in the policy's lanes."""
    monkeypatch.setattr(prepacked, "LEAST_ADAPTED", least)
    lm = tiny_lm("llama", "sdpa", ENDS)
    lm.compute_dtype = dtype
    if adapter:
        lm.adapters = Adapters(lm.model, fresh_config(LoraConfig(), lm.model), "base", seed=0)
    reference = lm.frozen_copy()
    with torch.no_grad():
        for weight in lm.parameters():
            weight.normal_(0.0, 0.2)
    alone = [
        said(play(each, TransformersSampler(each, 4, FIXED), 1.0, attempts=attempts, prompts=PROMPTS[:5]))
        for each, attempts in ((lm, 2), (reference, 1))
    ]
    assert alone[0][:1] != alone[1]
    sampler, recorder = TransformersSampler(lm, 4, FIXED), Recorder()
    sampler._graphs = Graphs(pytest.fail, recorder, object)
    other = TransformersSampler(reference, beside=sampler)
    first = [lm.chat.first_prompt(prompt) for prompt in PROMPTS[:3]]
    seen = list[Any]()
    for _ in range(3):
        sampler.load_weights(lm.model)
        other.load_weights(reference.model)
        other.sample(first, SamplingParams(0.0, 4, 1))  # fewer and shorter: lanes grow for the policy's rows
        assert said(play(lm, sampler, 1.0, attempts=2, prompts=PROMPTS[:5])) == alone[0]
        assert sampler._kept
        assert said(play(reference, other, 1.0, attempts=1, prompts=PROMPTS[:5])) == alone[1]
        assert (other._lanes, other._kept, sampler._kept, other._graphs) == (None, {}, {}, sampler._graphs)
        assert (other._weights is sampler._weights) == adapter
        seen.append((sampler._rooms, recorder.recorded))
    assert seen[1] == seen[2]  # once the lanes are large enough, nothing is made or recorded anew
    if not adapter:
        other._weights.moves += 1  # as where a reference passes through a card: the policy's steps stay
        play(reference, other, 1.0, attempts=1, prompts=PROMPTS[:5])
        assert (recorded := recorder.recorded) > seen[2][1]
        play(lm, sampler, 1.0, attempts=2, prompts=PROMPTS[:5])
        assert recorder.recorded == recorded


def said(attempts: Any) -> list[Any]:
    return [[completion.token_ids for _, completion in attempt] for attempt in attempts]


def test_new_weights_drop_the_cache() -> None:
    lm = tiny_lm("llama", "eager", ENDS)
    sampler = TransformersSampler(lm)
    first = play(lm, sampler, 1.0, attempts=1)[0]
    nexts = [lm.chat.next_prompt(context, completion.token_ids, "?") for context, completion in first]
    with torch.no_grad():
        for parameter in lm.parameters():
            parameter.mul_(1.1)
    sampler.load_weights(lm.model)
    for context, completion in zip(nexts, sampler.sample(nexts, SamplingParams(1.0, LIMIT, 5)), strict=True):
        logprobs = plain_logits(lm, context, completion).log_softmax(-1)
        expected = logprobs.gather(1, torch.tensor(completion.token_ids)[:, None]).squeeze(1)
        assert completion.logprobs == pytest.approx(expected.tolist(), abs=2e-5)


@pytest.mark.parametrize("plainly", [False, True])
def test_numbers_that_are_not_finite_are_told_and_do_not_last(plainly: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lanes of fixed shapes live on: keys that are not finite would spoil every later call, whatever its weights."""
    lm = tiny_lm("llama", "eager", ENDS)
    if plainly:
        monkeypatch.setattr(LanguageModel, "windows", None)
    sampler, contexts = TransformersSampler(lm, 4, FIXED), [lm.chat.first_prompt(prompt) for prompt in PROMPTS]
    params = SamplingParams(1.0, LIMIT, 1)
    before, weight = sampler.sample(contexts, params), lm.model.get_decoder().layers[0].self_attn.k_proj.weight.detach()
    good = weight.clone()
    weight.fill_(float("nan"))
    sampler.load_weights(lm.model)
    with pytest.raises(SamplerFailed, match=r"not finite.*; take weights from before$"):
        sampler.sample(contexts, params)
    weight.copy_(good)
    sampler.load_weights(lm.model)
    assert sampler.sample(contexts, params) == before


def test_contexts_that_do_not_continue_start_afresh() -> None:
    """Attempts swapped between rows (the `swapped` control), all of one length: the cache must not be taken for theirs."""
    lm = replace(tiny_lm("llama"), eos_ids=frozenset({-1}))
    sampler, prompt = TransformersSampler(lm), tiny_lm("llama").chat.first_prompt("5 2 1 : 8")
    first = sampler.sample([prompt] * 4, SamplingParams(1.0, LIMIT, 1))
    assert len({completion.token_ids for completion in first}) == 4
    nexts = [(*prompt, *completion.token_ids, 4, 5) for completion in [*first[1:], first[0]]]
    params = SamplingParams(1.0, LIMIT, 5)
    assert sampler.sample(nexts, params) == TransformersSampler(lm).sample(nexts, params)
    fewer = nexts[:-1]
    assert sampler.sample(fewer, params) == TransformersSampler(lm).sample(fewer, params)


def test_draws_follow_the_tempered_softmax() -> None:
    lm = tiny_lm("llama", "eager", ENDS)
    context, draws, temperature = lm.chat.first_prompt("5 2 1 : 8"), 20_000, 1.3
    sampler = TransformersSampler(lm, max_rows=draws)
    drawn = sampler.sample([context] * draws, SamplingParams(temperature, 1, seed=3))
    shares = (plain_logits(lm, context, drawn[0])[0].double() / temperature).softmax(-1)
    counts = torch.tensor([c.token_ids[0] for c in drawn]).bincount(minlength=len(shares)).double()
    common = shares * draws >= 5  # the chi-square law asks for that much; the rare ones go into one cell
    expected = torch.cat([shares[common], shares[~common].sum()[None]]) * draws
    found = torch.cat([counts[common], counts[~common].sum()[None]])
    assert common.sum() > 8
    statistic = float(((found - expected) ** 2 / expected.clamp(min=1)).sum())
    from scipy.stats import chi2

    assert chi2.sf(statistic, df=len(found) - 1) > 0.001


@pytest.mark.parametrize("plainly", [False, True])
def test_one_who_watches_changes_nothing(plainly: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that have ended only become more; of those side by side, never more than there may be."""
    lm = tiny_lm("llama", "eager", ENDS)
    if plainly:
        monkeypatch.setattr(LanguageModel, "windows", None)
    prompts = [lm.chat.first_prompt(prompt) for prompt in PROMPTS * 3]
    params = SamplingParams(1.0, LIMIT, 0)
    expected = TransformersSampler(lm, max_rows=4).sample(prompts, params)
    sampler, seen = TransformersSampler(lm, max_rows=4), list[Far]()
    sampler.watch = seen.append
    assert sampler.sample(prompts, params) == expected
    ended = [far.ended for far in seen]
    assert ended == sorted(ended)
    assert ended[-1] == len(prompts)
    assert all(far.rows <= 4 and far.ended + far.rows <= len(prompts) for far in seen)
    assert all(far.rows <= far.tokens <= far.rows * LIMIT for far in seen)
    assert max(far.tokens for far in seen) > 4


def test_no_prompts_no_completions() -> None:
    for architecture in ("llama", "gemma3"):
        assert TransformersSampler(tiny_lm(architecture)).sample([], SamplingParams(1.0, LIMIT, 0)) == []


@pytest.mark.parametrize("always_ends", [True, False])
def test_attempts_of_one_token_are_continued(always_ends: bool) -> None:
    """Nothing of such an attempt was ever fed to the model, whether it ended there or was cut off."""
    lm = tiny_lm("llama")
    ends = frozenset(range(lm.model.config.vocab_size)) if always_ends else frozenset({-1})
    sampler = TransformersSampler(replace(lm, eos_ids=ends))
    params = SamplingParams(1.0, LIMIT if always_ends else 1, 0)
    first = sampler.sample([lm.chat.first_prompt(prompt) for prompt in PROMPTS], params)
    assert {(len(c.token_ids), c.finish_reason) for c in first} == {(1, "stop" if always_ends else "length")}
    nexts = [(*lm.chat.first_prompt(p), *c.token_ids, 4, 5) for p, c in zip(PROMPTS, first, strict=True)]
    for context, completion in zip(nexts, sampler.sample(nexts, params), strict=True):
        logprob = plain_logits(lm, context, completion).log_softmax(-1)[0, completion.token_ids[0]]
        assert completion.logprobs == pytest.approx([float(logprob)], abs=2e-5)


def test_a_model_of_another_kind_goes_the_plain_way_and_says_so_once(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = tiny_lm("llama", "eager", ENDS)
    expected = play(lm, TransformersSampler(lm), 1.0, attempts=2)
    lm.model.config._attn_implementation = "flex_attention"
    TransformersSampler(lm).sample([], SamplingParams(1.0, LIMIT, 5))
    assert "slower: model.attention = flex_attention takes no mask" in capsys.readouterr().err
    lm.model.config._attn_implementation = "eager"
    monkeypatch.setattr(LanguageModel, "windows", None)
    played = play(lm, TransformersSampler(lm, max_rows=3), 1.0, attempts=2)
    assert said(played) == said(expected)
    assert capsys.readouterr().err.count("\n") == 1
