"""What `auto` works out from a model's shape: smaller for larger models and longer rollouts, never what the recipe set."""

import copy
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import Qwen2Config
from transformers.modeling_layers import GradientCheckpointingLayer

from selfcorrect.comparing.plan import merge
from selfcorrect.config import TrainConfig
from selfcorrect.errors import ConfigError
from selfcorrect.learning.vocabulary import Tiles
from selfcorrect.models import packed, products, sizing
from selfcorrect.models.head import HeadForm
from selfcorrect.models.sizing import sized
from selfcorrect.planning.hardware import CARDS
from selfcorrect.planning.rehearsal import Costume, by_layers, stand_in, update
from selfcorrect.planning.settled import dressed
from selfcorrect.planning.settled import settled as planned_sizes
from selfcorrect.planning.spec import described
from selfcorrect.planning.work import Update
from tests.support.plans import recipe
from tests.support.runs import valid

STAGE = {"name": "a", "objective": "stage1", "steps": 1, "learning_rate": 1.0}
SHAPES: dict[str, dict[str, int]] = {  # layers, widths and vocabularies of real models
    "lab": {"hidden_size": 128, "num_hidden_layers": 5, "num_attention_heads": 4, "num_key_value_heads": 4, "intermediate_size": 344, "vocab_size": 140},
    "135M": {"hidden_size": 576, "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3, "intermediate_size": 1536, "vocab_size": 49152},
    "1.5B": {"hidden_size": 1536, "num_hidden_layers": 28, "num_attention_heads": 12, "num_key_value_heads": 2, "intermediate_size": 8960, "vocab_size": 151936},
}  # fmt: skip


@pytest.fixture(autouse=True)
def packable(monkeypatch: pytest.MonkeyPatch) -> None:
    """The models here have no layers to try."""
    monkeypatch.setattr(sizing, "hindrance", lambda lm: "")
    monkeypatch.setattr(products, "faster", lambda: True)  # whatever processor this is


class Model(torch.nn.Module):
    """A shape, with a layer that can be run again or without."""

    def __init__(self, shape: str, able: bool) -> None:
        super().__init__()
        self.config = Qwen2Config(**SHAPES[shape])
        self.layer = GradientCheckpointingLayer() if able else torch.nn.Identity()


def settle(
    shape: str, tokens: int, *, able: bool = True, known: bool = True, **settings: Any
) -> tuple[TrainConfig, list[str]]:
    lm: Any = SimpleNamespace(
        model=Model(shape, able), device=torch.device("cpu"), compute_dtype=torch.float32,
        head_form=HeadForm() if known else None,
    )  # fmt: skip
    config = valid({"stages": [STAGE], "rollouts": {"max_new_tokens": max(1, tokens // 3)}, **settings})
    return sized(config, lm, tokens)


@pytest.mark.parametrize(
    ("shape", "tokens", "expected"),
    [
        ("lab", 45, (512, 128, False)), ("135M", 300, (128, 1, False)), ("1.5B", 300, (64, 1, False)),
        ("1.5B", 1000, (32, 2, True)), ("1.5B", 100_000, (1, 1, True)),
    ],
)  # fmt: skip
def test_sizes_follow_from_the_shape(shape: str, tokens: int, expected: tuple[int, int, bool]) -> None:
    settled, notes = settle(shape, tokens)
    again = settled.optimizer.gradient_checkpointing
    assert (settled.rollouts.rows, settled.optimizer.rows, again) == expected
    assert len(notes) == 1 + expected[2]
    settled, _ = settle(shape, tokens, optimizer={"micro_batch": 7})
    assert (settled.rollouts.rows, settled.optimizer.rows) == (expected[0], 7)


def test_a_micro_batch_is_larger_where_mkl_multiplies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "faster", lambda: False)
    assert [settle(shape, 300)[0].optimizer.rows for shape in ("135M", "1.5B")] == [4, 2]
    # up to eight rows, and beyond those only what keeps 1 GiB
    assert [settle("lab", tokens)[0].optimizer.rows for tokens in (300, 1000, 3000)] == [32, 8, 8]


def test_gradient_checkpointing_by_memory() -> None:
    def told(**optimizer: Any) -> tuple[Any, list[str]]:
        able = optimizer.pop("able", True)
        settled, notes = settle("1.5B", 300, able=able, optimizer={"micro_batch": 8, **optimizer})
        return settled.optimizer.gradient_checkpointing, notes

    size = "8 rollouts of up to 300 tokens would keep 15.2 GiB without it"
    assert told() == (True, [f"optimizer.gradient_checkpointing: auto is on: {size}"])
    assert told(micro_batch=1) == (False, [])
    assert told(gradient_checkpointing=False) == (False, [])
    assert told(gradient_checkpointing=True, micro_batch=1) == (True, [])
    unmarked = "off, as this model's code does not mark its layers for it"
    assert told(able=False) == (False, [f"optimizer.gradient_checkpointing: auto is {unmarked}: {size}"])
    with pytest.raises(ConfigError, match="gradient_checkpointing = true: this model's code does not mark its layers"):
        told(able=False, gradient_checkpointing=True)


def test_whole_logits_count_where_the_head_is_not_known() -> None:
    rows = [settle("135M", 130, known=known)[0].optimizer.rows for known in (True, False)]
    assert rows == [4, 2]


def on_a_card(
    patch: pytest.MonkeyPatch, gigabytes: int, trains: bool = True, shards: int = 1, **settings: Any
) -> TrainConfig:
    """1.5 billion weights that train take 27 GB beside themselves, and rollouts of 2,400 tokens 69 MB each."""
    card = SimpleNamespace(total_memory=80 << 30)
    patch.setattr(torch.cuda, "get_device_properties", lambda device: card)
    patch.setattr(torch.cuda, "mem_get_info", lambda device: (gigabytes << 30, card.total_memory))
    model = Model("1.5B", able=True)
    model.layers = torch.nn.ModuleList(torch.nn.Linear(1_500_000, 10, bias=False, device="meta") for _ in range(100))
    lm: Any = SimpleNamespace(
        model=model, device=torch.device("cuda"), compute_dtype=torch.bfloat16, head_form=HeadForm(), adapters=None
    )
    config = valid(merge({"stages": [{**STAGE, "beta1": 0.01}], "rollouts": {"max_new_tokens": 800}}, settings))
    settled, notes = sized(config, lm, 2400, trains, shards=shards)
    assert len(notes) >= 1 if trains else not notes
    return settled


@pytest.mark.parametrize(("gigabytes", "most", "sampled"), [(80, 128, 256), (40, 32, 128), (24, 1, 64), (5, 1, 8)])
def test_on_a_card_what_is_free_beside_training_counts(
    gigabytes: int, most: int, sampled: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """sampled: where nothing trains, as in an evaluation."""
    settled = on_a_card(monkeypatch, gigabytes)
    assert settled.rollouts.rows == most
    assert settled.optimizer.padding_free is True
    assert on_a_card(monkeypatch, gigabytes, trains=False).rollouts.rows == sampled


BETWEEN = {"every": 10, "problems_between": 16}


@pytest.mark.parametrize(
    ("rows", "settings"),
    [
        (32, {}),
        (32, {"stages": [{**STAGE, "beta1": 0.01, "offline_first": 0.5}]}),  # casts of the reference's weights
        (32, {"evaluation": BETWEEN}),
        (64, {"evaluation": BETWEEN, "model": {"reference": "cpu"}}),
        # a card keeps as many rows as are at work, while no activations are there
        (64, {"evaluation": {**BETWEEN, "problems_between": 300}, "model": {"reference": "cpu"}}),
        # vLLM queues what its own cache has no room for; the base model it does not sample
        (512, {"sampler": "vllm"}),
        (32, {"sampler": "vllm", "vllm": {"server": "http://localhost:8000"}, "evaluation": BETWEEN}),
    ],
)
def test_what_the_reference_samples_counts(
    rows: int, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    few = {"problems_per_step": 2, "rollouts_per_problem": 8}
    assert on_a_card(monkeypatch, 40, **merge({"rollouts": few}, settings)).rollouts.rows == rows


OWN_CODE = "its code does not take its attention from without"
CARD = {"device": torch.device("cuda"), "compute_dtype": torch.bfloat16}


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({}, ""),
        ({"own_code": True}, OWN_CODE),
        ({**CARD, "own_code": True}, OWN_CODE),
        ({"attends_to_all": False}, "its attention is not plain attention to the whole context"),
        ({"capped": 50.0}, "its attention is not plain attention to the whole context"),
        (CARD, ""),
        ({**CARD, "compute_dtype": torch.float32}, "takes bfloat16 alone"),
        ({**CARD, "width": 12}, "this model's have 12"),
        ({**CARD, "width": 512}, "this model's have 512"),
        ({**CARD, "old_card": True}, "compute capability 8.0"),
        ({**CARD, "old_torch": True}, "has no variable-length attention"),
    ],
)
def test_rows_are_packed_where_model_card_and_torch_allow_it(
    changed: dict[str, Any], why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7 if changed.get("old_card") else 9, 0))
    if changed.get("old_torch"):
        monkeypatch.setattr(packed, "_variable_length", lambda: None)
    monkeypatch.setattr(packed, "_found_on_trial", lambda lm: OWN_CODE if changed.get("own_code") else "")
    config = Qwen2Config(head_dim=changed.get("width", 64), attn_logit_softcapping=changed.get("capped"))
    lm: Any = SimpleNamespace(
        model=SimpleNamespace(config=config), device=changed.get("device", torch.device("cpu")),
        compute_dtype=changed.get("compute_dtype", torch.float32), attends_to_all=changed.get("attends_to_all", True),
    )  # fmt: skip
    found = packed.hindrance(lm)
    assert why in found if why else not found


def test_packed_rows_are_refused_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sizing, "hindrance", lambda lm: "it cannot")
    assert settle("lab", 45)[0].optimizer.padding_free is False  # a CPU pads a small model's rows where nobody asks
    assert "it cannot" in " ".join(settle("1.5B", 45)[1])  # and would not those of a large one
    with pytest.raises(ConfigError, match=r"optimizer\.padding_free = true: it cannot; set auto"):
        settle("lab", 45, optimizer={"padding_free": True})


@pytest.mark.parametrize(
    ("settings", "width", "packs"),
    [({}, 64, True), ({"precision": "float32"}, 64, False), ({}, 36, False), ({"precision": "bfloat16"}, 512, False)],
)
def test_rows_are_packed_on_a_card_where_its_kernel_takes_them(
    settings: dict[str, Any], width: int, packs: bool
) -> None:
    """A run there asks the same."""
    config, spec = recipe(model=settings), described(recipe().model)
    shape = copy.deepcopy(spec.config)
    shape.head_dim = width
    model = dressed(config, replace(spec, config=shape), CARDS["h100"])
    assert planned_sizes(config, model, CARDS["h100"], 500).optimizer.padding_free is packs
    asked = config.model_copy(update={"optimizer": config.optimizer.model_copy(update={"padding_free": True})})
    with nullcontext() if packs else pytest.raises(ConfigError, match="variable-length attention takes"):
        planned_sizes(asked, model, CARDS["h100"], 500)


def test_what_adapters_keep_under_checkpointing_is_what_a_plan_counts() -> None:
    """A plan counts the input of each layer, and no more; a token's share of it all is what sizes reckon with. In bytes,
    of so many tokens that nothing else counts.
    """
    shape = Qwen2Config(
        hidden_size=256, intermediate_size=1408, num_hidden_layers=24, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=64,
    )  # fmt: skip
    half, tokens = torch.bfloat16, 1 << 20
    costume = Costume(shape, half, half, "sdpa", Tiles(1, 1, 1), rank=8, reference=False, on_card=True)
    work = Update(1, tokens, tokens, 1, 0, 0, 1, packed=True, again=True, in_place=True)
    line = by_layers(costume, update(costume, work))["peak 2"]
    assert line.more == pytest.approx(tokens * shape.hidden_size * half.itemsize, rel=0.02)
    with torch.device("meta"):
        reckoned = sizing._activation_bytes(stand_in(costume, 24), tokens, again=True, packs=True)
    assert reckoned == pytest.approx(line.at(24) / tokens + 12 * shape.hidden_size, rel=0.1)
