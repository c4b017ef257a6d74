"""Every way to tune a model, through whole runs: stopped and resumed they end bit for bit as if they had not been."""

import copy
import importlib
import logging
import re
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from selfcorrect.config import ModelConfig, TrainConfig
from selfcorrect.errors import ConfigError, ModelError, TrainingInterrupted
from selfcorrect.learning.policy import check_optimizer, make_optimizer, make_reference
from selfcorrect.models import loading, sizing
from selfcorrect.models.adapters import need_bitsandbytes
from selfcorrect.models.language_model import LanguageModel
from selfcorrect.models.loading import load_model
from selfcorrect.models.placement import stream
from selfcorrect.models.sizing import parameter_count, static_of
from selfcorrect.runs import checks
from selfcorrect.runs.checks import _memory, tried
from selfcorrect.runs.folder import arithmetic
from selfcorrect.tasks.countdown import Countdown
from selfcorrect.types import Problem
from tests.run.conftest import ENDS, Listener
from tests.support.runs import StopAt, brief, check_same, end_state, go, read_rows, recipe, valid
from tests.support.tiny import tiny_lm

RATE = {"steps": 2, "learning_rate": 0.003}
ONE, TWO = {"name": "one", "objective": "stage1", **RATE}, {"name": "two", "objective": "stage2", **RATE}
STAR = {"name": "s", "objective": "star", **RATE, "iterations": 2, "collect": 6, "keep_right": True, "batch": 4}
PAIR = {"name": "p", "objective": "pair_sft", **RATE, "collect": 6, "keep_right": True, "batch": 4}
ARMS = [
    {"name": name, "objective": objective, "steps": 2, "learning_rate": 0.003}
    for name, objective in (("single", "single_turn"), ("multi", "multi_turn"), ("annealed", "annealed"))
]
BFLOAT = {"weights": "bfloat16", "precision": "auto"}
CASES: dict[str, dict[str, Any]] = {  # model: what differs in it; the rest: other sections of the recipe
    "qlora": {"model": {"tuning": "qlora"}},
    "lora over bfloat16, some layers": {
        "model": {"tuning": "lora", **BFLOAT, "lora": {"rank": 3, "targets": ["q_proj", "down_proj"]}},
    },
    "full in bfloat16": {"model": BFLOAT},
    "8-bit moments": {"optimizer": {"name": "adamw_8bit"}},
    "8-bit moments of masters": {"model": BFLOAT, "optimizer": {"name": "adamw_8bit"}},
    "lora to the previous stage": {"model": {"tuning": "lora"}, "algorithm": {"reference": "previous_stage"}},
    "lora, offline first attempts": {
        "model": {"tuning": "lora"}, "stages": [{**ONE, "offline_first": 0.5}], "evaluation": {"every": 2},
    },
    "lora, star": {"model": {"tuning": "lora"}, "stages": [STAR]},
    "qlora, pair_sft": {"model": {"tuning": "qlora"}, "stages": [PAIR]},
    "lora, the other arms": {"model": {"tuning": "lora"}, "stages": ARMS},
    "full, star without a reference": {"stages": [STAR]},
}  # fmt: skip
# Of what other cases have too: for the night.
NIGHT = (
    "full in bfloat16",
    "8-bit moments",
    "lora, the other arms",
    "lora over bfloat16, some layers",
    "lora, star",
    "lora to the previous stage",
)


def settings_of(case: str, output: Path, model: Path, name: str = "run") -> dict[str, Any]:
    settings = recipe(output, model, name=name)
    settings["checkpoint"]["every"] = 1  # so that those which are kept are the same, wherever a run was stopped
    settings |= {"stages": [ONE, TWO], "evaluation": {"problems": 4, "controls": False}}
    for section, changed in CASES[case].items():
        settings[section] = changed if section == "stages" else {**settings.get(section, {}), **changed}
    return settings


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Wide enough for moments of 8 bits, which small tensors do not get."""
    folder = tmp_path_factory.mktemp("wide")
    tiny_lm("llama", "eager", ENDS, hidden=64).save(folder, torch.float32)
    return folder


@pytest.mark.usefixtures("lucky")
@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=pytest.mark.nightly) if case in NIGHT else case for case in CASES]
)
def test_n_and_n_steps_are_2n(case: str, model: Path, wide: Path, tmp_path: Path) -> None:
    base, listener = wide if "8-bit" in case else model, Listener()
    whole = go(settings_of(case, tmp_path / "whole", base), listener)
    stopped = settings_of(case, tmp_path / "stopped", base)
    with pytest.raises(TrainingInterrupted):
        go(stopped, StopAt(3 if len(stopped["stages"]) > 1 else 1))
    go(stopped)
    check_same(tmp_path / "stopped" / "run", end_state(whole))
    rows = read_rows(whole / "metrics.jsonl")
    assert not any(row["skipped"] for row in rows)
    assert sum(row["grad_norm"] > 0 for row in rows) >= len(rows) / 2  # luck can leave a step without a right answer
    if case == "qlora":
        told = "\n".join(listener.messages)
        assert "note: tuning qlora: an adapter of rank 16" in told
        assert "note: reference: the same model, with its adapter off; no second copy of the weights" in told
    if "previous" in case:  # measured to the adapter that the first stage ended with
        assert rows[2]["kl"] == [0.0, 0.0]
        assert rows[1]["kl"][0] > 1e-3
        assert rows[3]["kl"][0] > 1e-3


def lm_of(path: Path, **settings: Any) -> LanguageModel:
    return load_model(ModelConfig.model_validate({"path": str(path), "device": "cpu", **settings}))


def config_of(**settings: Any) -> TrainConfig:
    return valid({"stages": [ONE], **settings})


def test_bfloat16_weights_keep_what_a_step_adds(model: Path) -> None:
    """Steps far below a weight's precision add up in its master; without masters they would all be rounded away."""
    lm = lm_of(model, weights="bfloat16")
    optimizer = make_optimizer(lm, config_of().optimizer)
    weight = lm.model.model.layers[0].mlp.up_proj.weight
    assert weight.dtype == torch.bfloat16
    before, masters = weight.detach().clone(), {p.dtype for p in lm.parameters()}
    assert masters == {torch.float32}
    for group in optimizer.param_groups:
        group["lr"] = 1e-5
    for _ in range(400):
        optimizer.zero_grad(set_to_none=True)
        for _ in range(2):  # as two micro-batches; the second one's gradient is added in float32
            (weight.float().sum() * 0.5).backward()
        assert weight.grad is None
        optimizer.step()
    moved = before.float() - weight.float()
    torch.testing.assert_close(moved.mean(), torch.tensor(4e-3), rtol=0.05, atol=0)
    one_step = (before.float() - 1e-5).bfloat16()
    assert (one_step == before).float().mean() > 0.9  # what it would have been


def test_gradients_of_micro_batches_add_up_in_float32(model: Path) -> None:
    lm = lm_of(model, weights="bfloat16")
    master = lm.parameters()[0]
    weight = next(lm.model.parameters())
    for scale in (1.0, *[2**-9] * 64):
        (weight.float().sum() * scale).backward()
    assert master.grad is not None
    assert torch.equal(master.grad, torch.full_like(master.grad, 1.125))  # bfloat16 would have stayed at 1


def test_a_streamed_reference_computes_the_same(model: Path) -> None:
    """Layer by layer from the machine's memory. On a processor nothing moves, but all of the way is gone."""
    lm = lm_of(model)
    reference = lm.frozen_copy()
    ids, select = torch.arange(1, 12)[None], torch.ones(1, 11, dtype=torch.bool)
    with torch.no_grad():
        expected = reference.logits(ids, select, use_cache=False)
        stream(reference)
        assert torch.equal(reference.logits(ids, select, use_cache=False), expected)
        moved = [name for name, p in reference.model.named_parameters() if p.device != lm.device]
        assert not moved


@pytest.mark.parametrize(
    ("memory", "wanted", "device", "told"),
    [
        (10**12, "auto", "meta", "a copy of the weights on the meta"),
        (100_000, "auto", "meta", "in the machine's memory, .* passed through the meta layer by layer"),
        (10**12, "cpu", "meta", "in the machine's memory"),
        (100_000, "device", "meta", "on the meta"),
        (100_000, "auto", "cpu", "on the cpu"),
    ],
)
def test_where_the_reference_lies(
    memory: int, wanted: str, device: str, told: str, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device without memory of its own stands in for a GPU."""
    monkeypatch.setattr(sizing, "memory_of", lambda device: memory)
    lm = lm_of(model)
    lm.device = torch.device(device)
    reference, line = make_reference(config_of(model={"reference": wanted}), lm)
    assert reference is not None
    assert re.search(told, line)
    assert "\n" not in line


@pytest.mark.parametrize(
    ("stage", "needed"),
    [
        ({**ONE, "beta1": 0.0, "beta2": 0.0}, False), ({**ONE, "beta1": 0.0}, True),
        ({**TWO, "beta1": 0.0}, False), (STAR, False), (PAIR, False), (TWO, True),
        ({**TWO, "beta1": 0.0, "offline_first": 0.5}, True), ({**ARMS[2], "beta1": 0.0, "beta2": 0.1}, True),
    ],
)  # fmt: skip
def test_no_reference_where_nothing_is_measured_to_it(stage: dict[str, Any], needed: bool, model: Path) -> None:
    reference, line = make_reference(config_of(stages=[stage]), lm_of(model))
    assert (reference is not None) is needed
    assert line.startswith("reference: none" if not needed else "reference: a copy")


def test_memory_of_each_tuning(model: Path) -> None:
    """Bytes, worked out by hand from the count of numbers."""
    config, four = config_of(), config_of(optimizer={"name": "adamw_8bit"})
    lm = lm_of(model)
    count = parameter_count(lm)
    plain = static_of(config, lm)
    assert (plain.gradients, plain.optimizer) == (4 * count, 8 * count)
    assert plain.reference == plain.weights >= 4 * count
    assert static_of(four, lm).optimizer == 2 * count
    half = static_of(config, lm_of(model, weights="bfloat16"))
    assert (half.gradients, half.optimizer, half.masters) == (4 * count, 8 * count, 4 * count)
    assert half.weights < 0.6 * plain.weights
    for tuning in ("lora", "qlora"):
        adapted = lm_of(model, tuning=tuning, lora={"rank": 2})
        assert parameter_count(adapted) == count
        trained = sum(p.numel() for p in adapted.parameters())
        memory = static_of(config_of(model={"tuning": tuning}), adapted)
        assert (memory.gradients, memory.optimizer, memory.reference) == (4 * trained, 8 * trained, 0)
    assert memory.weights < plain.weights


def test_check_tells_memory_and_refuses_in_one_line(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = {"max_number": 12, "limit": 12, "prompt": "{numbers} : {target}", "correction_prompt": "?"}
    config = config_of(
        model={"path": str(model), "tuning": "lora"},
        output=str(tmp_path),
        rollouts={"max_new_tokens": 9},
        task=task,
        evaluation={"problems": 8},
    )
    lines = list(tried(config))
    assert any("tuning lora: an adapter of rank 16, 0.01 million, over a model stored in float32" in x for x in lines)
    assert any(line.startswith("memory: ") and "reference" not in line for line in lines)
    monkeypatch.setattr(checks, "memory_of", lambda device: 1000)
    with pytest.raises(ConfigError, match=r"training takes memory of .* kB .*1.0 kB are there; set model.weights"):
        list(tried(config))


def test_check_refuses_what_the_tokenizer_cannot_write(model: Path, tmp_path: Path) -> None:
    """A run would end at its first evaluation, or step, with nothing graded."""
    task = {"name": "countdown", "prompt": "Reach \N{SNOWMAN} {numbers} {target}", "correction_prompt": "?"}
    with pytest.raises(ConfigError, match="its tokenizer has no token for part of any of the problems to evaluate on"):
        list(tried(config_of(model={"path": str(model)}, output=str(tmp_path), task=task, evaluation={"problems": 8})))


def test_check_refuses_what_step_1_alone_cannot_write(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = Countdown.draw

    def unreadable(task: Countdown, *given: Any) -> list[Problem]:
        return [replace(problem, prompt="\N{SNOWMAN}") for problem in own(task, *given)]

    monkeypatch.setattr(Countdown, "draw", unreadable)
    task = {"max_number": 12, "limit": 12, "prompt": "{numbers} : {target}", "correction_prompt": "?"}
    with pytest.raises(ConfigError, match="its tokenizer has no token for part of any of the problems of step 1"):
        list(tried(config_of(model={"path": str(model)}, output=str(tmp_path), task=task, evaluation={"problems": 8})))


@pytest.mark.parametrize(("reference", "fits"), [("device", False), ("cpu", True), ("auto", True)])
def test_a_reference_that_a_card_does_not_hold_is_not_counted(
    model: Path, reference: str, fits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With room for nearly all. auto puts it elsewhere, as less than half would be left."""
    config, lm = config_of(model={"path": str(model), "reference": reference}), lm_of(model)
    layers = lm.model.model.layers
    layers.extend(copy.deepcopy(layers[0]) for _ in range(6))
    need = static_of(config, lm)
    for module in (sizing, checks):
        monkeypatch.setattr(module, "memory_of", lambda device: need.total - 1)
    card: Any = SimpleNamespace(model=lm.model, device=torch.device("cuda"), compute_dtype=torch.float32)
    with nullcontext() if fits else pytest.raises(ConfigError, match="training takes memory of"):
        assert _memory(config, card).startswith("memory: ")


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"lora": {"rank": 4}}, "lora is of tuning: lora and qlora, and tuning is full; set tuning, or model.lora={}"),
    ({"weights": "bfloat16", "precision": "float32"}, "weights: bfloat16 are computed with in bfloat16"),
    ({"tuning": "lora", "reference": "cpu"}, "reference is for tuning: full"),
    ({"tuning": "dora"}, "model.tuning = 'dora'"),
    ({"tuning": "lora", "lora": {"rank": 0}}, "model.lora.rank = 0"),
    ({"tuning": "lora", "lora": {"alpha": -1.0}}, "model.lora.alpha = -1.0"),
    ({"tuning": "lora", "lora": {"targets": []}}, "model.lora.targets"),
    ({"tuning": "lora", "lora": {"dropout": 0.1}}, "unknown key 'model.lora.dropout'"),
    ({"tuning": "lora", "lora": {"lora_dropout": 0.1}}, "dropout would make the policy differ"),
    ({"tuning": "lora", "lora": {"targets": "q_proj"}}, r"model.lora.targets = 'q_proj': must be a list; write \[q_"),
    ({"tuning": "lora", "lora": {"targets": ["q_proj", 7]}}, "model.lora.targets.1 = 7: input should be a valid str"),
    ({"weights": "float16"}, "model.weights = 'float16'"),
]


@pytest.mark.parametrize(("changed", "told"), REFUSED)
def test_contradictions_are_refused(changed: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told) as refused:
        config_of(model=changed)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("tuning", "targets", "told"),
    [
        ("qlora", ["q_pro"], "'q_pro' is no linear layer of the model; it has down_proj, gate_proj, k_proj"),
        ("lora", ["q_proj", "lm_head"], "'lm_head' is the head"),
        ("lora", ["embed_tokens"], "'embed_tokens' is no linear layer"),
        ("lora", ["all-linear"], "'all-linear' is no linear layer"),
        ("lora", ["self_attn"], "'self_attn' is no linear layer"),
    ],
)
def test_targets_that_are_none(tuning: str, targets: list[str], told: str, model: Path) -> None:
    with pytest.raises(ModelError, match=f"model.lora.targets: {told}"):
        lm_of(model, tuning=tuning, lora={"targets": tuple(targets)})


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gpt2", "gemma3"])
def test_every_architecture_takes_an_adapter(architecture: str, tmp_path: Path) -> None:
    """All layers but the head, float32 over whatever is beneath; it begins by changing nothing."""
    tiny_lm(architecture, "eager", ENDS).save(tmp_path, torch.float32)
    plain, lm = lm_of(tmp_path), lm_of(tmp_path, tuning="lora")
    ids, select = torch.arange(1, 12)[None], torch.ones(1, 11, dtype=torch.bool)
    assert torch.equal(lm.logits(ids, select), plain.logits(ids, select))
    assert not any("head" in name for name, p in lm.model.named_parameters() if p.requires_grad)
    assert len(lm.parameters()) == {"gpt2": 16, "llama": 28, "qwen2": 28, "gemma3": 28}[architecture]
    assert not any(p.requires_grad for name, p in lm.model.named_parameters() if "lora_" not in name)
    half = lm_of(tmp_path, tuning="lora", weights="bfloat16")
    assert {p.dtype for p in half.parameters()} == {torch.float32}
    assert {p.dtype for n, p in half.model.named_parameters() if "lora_" not in n} == {torch.bfloat16}


def test_seeds_begin_with_adapters_of_their_own(model: Path) -> None:
    config = ModelConfig(path=str(model), device="cpu", tuning="lora")
    state = torch.get_rng_state()
    first, again, other = ([p.detach() for p in load_model(config, seed).parameters()] for seed in (0, 0, 1))
    assert all(map(torch.equal, first, again))
    assert not all(map(torch.equal, first, other))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("missing", "tuning", "told"),
    [
        ("peft", "lora", r"^model.tuning: lora and qlora: peft is not installed; pip install 'selfcorrect\[lora\]'$"),
        ("peft", "qlora", r"^model.tuning: lora and qlora: peft is not installed; pip install 'selfcorrect\[lora\]'$"),
        ("bitsandbytes", "qlora", r"^model.tuning: qlora: bitsandbytes is not .*pip install 'selfcorrect\[qlora\]'$"),
    ],
)
def test_a_missing_extra_is_one_line(
    missing: str, tuning: str, told: str, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ModelError, match=told):
        lm_of(model, tuning=tuning)


def test_without_bitsandbytes_there_is_lora(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    assert lm_of(model, tuning="lora").adapters


def test_no_kernel_is_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    """bitsandbytes asks a hub for one as it is first imported, and would run it; here it finds no way to ask."""
    fetcher, seen = ModuleType("kernels"), dict[str, object]()
    monkeypatch.setitem(sys.modules, "kernels", fetcher)

    def load(name: str) -> object:
        seen[name] = sys.modules["kernels"], logging.getLogger("bitsandbytes.backends").isEnabledFor(logging.WARNING)
        raise OSError("no library for this machine")

    monkeypatch.setattr(importlib, "import_module", load)
    with pytest.raises(ModelError, match=r"^optimizer.name: bitsandbytes cannot be used here \(no library for this"):
        need_bitsandbytes("optimizer.name")
    assert seen == {"bitsandbytes": (None, False)}
    assert sys.modules["kernels"] is fetcher
    assert logging.getLogger("bitsandbytes.backends").isEnabledFor(logging.WARNING)


def test_optimizers_that_a_device_has_not() -> None:
    paged, small = (config_of(optimizer={"name": name}).optimizer for name in ("paged_adamw_8bit", "adamw_8bit"))
    with pytest.raises(
        ConfigError, match=r"optimizer.name = 'paged_adamw_8bit' pages .* device is cpu; set adamw_8bit"
    ):
        check_optimizer(paged, torch.device("cpu"))
    with pytest.raises(ConfigError, match=r"bitsandbytes has none on mps; set adamw"):
        check_optimizer(small, torch.device("mps"))
    check_optimizer(paged, torch.device("cuda"))


@pytest.mark.parametrize(("weights", "told"), [("bfloat16", "bfloat16"), ("float32", "float32")])
def test_what_auto_came_to_is_told(weights: str, told: str, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a processor that does not multiply bfloat16, weights that are stored in it are computed with in it."""
    monkeypatch.setattr(loading, "native_bfloat16", lambda device: False)
    settings = {"weights": weights, "precision": "auto"}
    lm, config = lm_of(model, **settings), config_of(model={"path": str(model), "device": "cpu", **settings})
    assert arithmetic(config) == {"device": "cpu", "precision": told}
    assert str(lm.compute_dtype) == f"torch.{told}"


@pytest.mark.parametrize(
    ("settings", "remedy"),
    [
        ({"weights": "bfloat16"}, r"weights = bfloat16: .*; set model\.weights: float32 \(twice the memory\)"),
        ({"precision": "bfloat16"}, r"precision = bfloat16: .*; set model\.precision: auto"),
        ({"precision": "auto"}, None),
    ],
)
def test_bfloat16_is_said_to_be_slow_where_it_is(
    settings: dict[str, str], remedy: str | None, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def notes() -> str:
        return "\n".join(lm_of(model, **settings).chat.notes)

    monkeypatch.setattr(loading, "native_bfloat16", lambda device: False)
    assert re.search(rf"^model\.{remedy}$", notes(), re.MULTILINE) if remedy else "bfloat16" not in notes()
    monkeypatch.setattr(loading, "native_bfloat16", lambda device: True)
    assert "does not multiply" not in notes()


@pytest.mark.usefixtures("lucky")
def test_a_run_goes_on_with_the_sizes_that_it_began_with(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Less memory is free when it is resumed, as on a card that others use too: `auto` would come to other sizes."""

    def settings(output: Path) -> dict[str, Any]:
        changed = brief(output, model)
        changed["rollouts"]["rows_at_once"] = changed["optimizer"]["micro_batch"] = "auto"
        return changed

    whole = go(settings(tmp_path / "whole"))
    with pytest.raises(TrainingInterrupted):
        go(settings(tmp_path / "stopped"), StopAt(1))
    monkeypatch.setattr(sizing, "_CPU_BUDGET", 1)
    go(settings(tmp_path / "stopped"))
    check_same(tmp_path / "stopped" / "run", end_state(whole))
