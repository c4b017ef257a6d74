"""A run with an adapter: what it keeps, what others load of it, and what is refused."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from selfcorrect import api
from selfcorrect.errors import CheckpointError, ConfigError, ModelError
from selfcorrect.exporting import export
from selfcorrect.models import adapters
from selfcorrect.models.language_model import LanguageModel
from selfcorrect.models.plain import PlainWeights
from selfcorrect.runs.display import Observer
from selfcorrect.runs.run import resume
from selfcorrect.samplers.transformers import TransformersSampler
from selfcorrect.tasks.countdown import Countdown
from selfcorrect.types import SamplingParams
from tests.conftest import Command
from tests.run.conftest import ENDS
from tests.support.engines import learn
from tests.support.hub import stand_in_hub
from tests.support.runs import brief, go, lucky_grade, read_rows, recipe, tuned
from tests.support.tiny import loaded, tiny_lm

QUESTION, AGAIN, TOKENS = "1 2 3 : 6", "?", 12


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Callable[[str], Path]:
    """trained(tuning): a finished run."""
    kept: dict[str, Path] = {}

    def run(tuning: str) -> Path:
        if tuning not in kept:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(Countdown, "grade", lucky_grade)
                few = {"problems": 4, "controls": False}
                settings = tuned(recipe(tmp_path_factory.mktemp(tuning), model, evaluation=few), tuning)
                settings["stages"] = settings["stages"][:1]
                settings["stages"][0]["learning_rate"] = 0.02
                kept[tuning] = go(settings)
        return kept[tuning]

    return run


def two_attempts(lm: LanguageModel) -> list[tuple[int, ...]]:
    """Greedy, by our sampler."""
    sampler, params = TransformersSampler(lm), SamplingParams(0.0, TOKENS, 0)
    prompt = lm.chat.first_prompt(QUESTION)
    (first,) = sampler.sample([prompt], params)
    (second,) = sampler.sample([lm.chat.next_prompt(prompt, first.token_ids, AGAIN)], params)
    return [first.token_ids, second.token_ids]


def plainly(model: Any, lm: LanguageModel) -> list[tuple[int, ...]]:
    """The same by transformers' own generate. lm: for the tokenizer and its ends of turn."""
    prompt, written = lm.chat.first_prompt(QUESTION), list[tuple[int, ...]]()
    for _ in range(2):
        out = model.generate(
            torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long), do_sample=False,
            max_new_tokens=TOKENS, eos_token_id=sorted(lm.eos_ids), pad_token_id=0,
        )  # fmt: skip
        written.append(tuple(out[0, len(prompt) :].tolist()))
        prompt = lm.chat.next_prompt(prompt, written[-1], AGAIN)
    return written


def logits_of(lm: LanguageModel) -> Tensor:
    ids = torch.arange(1, 20)[None]
    with torch.no_grad():
        return lm.logits(ids, torch.ones(1, 19, dtype=torch.bool), use_cache=False)


@pytest.mark.parametrize("tuning", ["lora", "qlora"])
def test_sampler_and_policy_see_the_same_adapter(tuning: str, trained: Callable[[str], Path]) -> None:
    rows = read_rows(trained(tuning) / "metrics.jsonl")
    assert all(row["sampler_gap"] < 5e-6 for row in rows)
    moved = [before["grad_norm"] > 0 for before in rows]
    assert any(moved[:-1])
    for step in range(1, len(rows)):  # the reference is without it
        assert (rows[step]["kl"][0] > 1e-3) == any(moved[:step])
    assert rows[0]["kl"] == [0.0, 0.0]


def test_a_sampler_without_the_adapter_is_seen(
    model: Path, tmp_path: Path, lucky: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The planted bug: the figure above shows it."""
    sample = TransformersSampler.sample

    def without(self: TransformersSampler, *args: Any) -> Any:
        assert self._lm.adapters
        with self._lm.adapters.shown(adapters.OFF):
            monkeypatch.setattr(self._lm.adapters, "shown", lambda view: torch.no_grad())
            try:
                return sample(self, *args)
            finally:
                monkeypatch.delattr(self._lm.adapters, "shown")

    monkeypatch.setattr(TransformersSampler, "sample", without)
    run = go(tuned(brief(tmp_path, model), "lora"))
    assert read_rows(run / "metrics.jsonl")[-1]["sampler_gap"] > 1e-3


def test_checkpoints_hold_what_trains(trained: Callable[[str], Path]) -> None:
    from safetensors.torch import load_file

    checkpoint = trained("lora") / "checkpoints" / "step-000004"
    names = {
        name.rpartition(".lora_")[1] or name
        for name in load_file(checkpoint / "tensors.safetensors")
        if name.startswith("model/")
    }
    assert names == {".lora_"}
    assert json.loads((checkpoint / "state.json").read_text())["base"]


@pytest.mark.parametrize("tuning", ["lora", "qlora"])
def test_what_is_exported_gives_the_same_two_attempts(
    tuning: str, model: Path, trained: Callable[[str], Path], tmp_path: Path
) -> None:
    """In plain transformers; with PEFT over the plain model; and here, by the adapter's folder and the merged one."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    final = trained(tuning) / "final"
    assert not (final / "model.safetensors").exists()
    policy = loaded(final, tuning)
    expected = two_attempts(policy)
    assert expected != two_attempts(loaded(model))
    said: list[str] = []
    merged = export(trained(tuning), tmp_path / "merged", merge=True, say=said.append)
    assert re.fullmatch(rf"merging .*/final with the weights of .+, into {re.escape(str(merged))}", said[0])
    assert {path.name for path in merged.iterdir()} >= {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "README.md",
    }
    assert "quantization_config" not in (merged / "config.json").read_text()
    plain = AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32)
    assert plainly(plain, policy) == expected == two_attempts(loaded(merged))
    torch.testing.assert_close(logits_of(loaded(merged)), logits_of(policy), rtol=0, atol=2e-5)
    told = "trained over 4-bit weights, and stands over others here; model.tuning: qlora"
    assert any(told in note for note in loaded(final).chat.notes) is (tuning == "qlora")
    adapter = export(final, tmp_path / "adapter")
    base = json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert base == str(model)
    if tuning == "lora":
        over = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), adapter)
        assert plainly(over, policy) == expected == two_attempts(loaded(adapter))


def test_layers_in_four_bits_that_no_adapter_is_on_become_ordinary_ones_too(model: Path) -> None:
    """As an engine is sent them, and merged; by the names and in the values of the plain model, up to 4 bits."""
    plain = dict(loaded(model).model.state_dict())
    lm = loaded(model, "qlora", lora={"targets": ("q_proj",)})
    assert lm.adapters
    learn(lm, 0.02)
    before, listed = logits_of(lm), list(PlainWeights(lm, torch.float32, merged=True))
    sent = dict(listed)
    assert len(sent) == len(listed)  # none twice, which would be sent without its adapter
    lm.adapters.merge()
    assert all(torch.equal(sent[name], tensor) for name, tensor in lm.model.state_dict().items())
    for found in (sent, lm.model.state_dict()):
        assert found.keys() == plain.keys()
        assert all((found[name] - plain[name]).norm() <= 0.2 * plain[name].norm() for name in plain)
    lm.adapters = None
    torch.testing.assert_close(logits_of(lm), before, rtol=0, atol=2e-5)


def test_merged_weights_quantised_back_are_seen(trained: Callable[[str], Path]) -> None:
    """The planted bug that the comparison of logits above shows."""
    from bitsandbytes import functional

    policy = loaded(trained("qlora") / "final", "qlora")
    before = logits_of(policy)
    assert policy.adapters
    policy.adapters.merge(exact=True)
    policy.adapters = None
    torch.testing.assert_close(logits_of(policy), before, rtol=0, atol=2e-5)
    for module in policy.model.get_decoder().layers.modules():
        if isinstance(module, torch.nn.Linear):
            packed, state = functional.quantize_4bit(module.weight.data, quant_type="nf4", compress_statistics=True)
            module.weight.data = functional.dequantize_4bit(packed, state)
    assert (logits_of(policy) - before).abs().max() > 1e-2


def test_the_card_tells_results_recipe_and_command(trained: Callable[[str], Path], tmp_path: Path) -> None:
    text = (export(trained("lora"), tmp_path / "out") / "README.md").read_text()
    assert 'library_name: "peft"' in text
    assert "| Before training | " in text
    assert "| After one | " in text
    assert text.count(" to ") > 8  # intervals
    assert "tuning: lora" in text
    assert "This is `final` of the run, the row of which says: after one." in text
    assert "of which no row is" in (export(trained("lora") / "best", tmp_path / "best") / "README.md").read_text()


def test_it_is_sent_by_the_hubs_own_interface(
    trained: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = stand_in_hub(monkeypatch)
    out = export(trained("lora"), tmp_path / "out", push="some/one")
    assert [name for name, _ in calls] == ["create_repo", "upload_folder"]
    assert calls[0][1]["private"] is True
    assert (calls[1][1]["repo_id"], calls[1][1]["folder_path"]) == ("some/one", out)


@pytest.mark.parametrize(
    ("push", "told"), [("a/b/c", "--push a/b/c: "), ("some one", "--push some one: "), ("x/.y", "--push x/.y")]
)
def test_a_name_that_the_hub_refuses_writes_nothing(
    push: str, told: str, trained: Callable[[str], Path], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=told):
        export(trained("lora"), tmp_path / "out", push=push)
    assert not (tmp_path / "out").exists()


def test_export_refuses_in_one_line(trained: Callable[[str], Path], tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(ConfigError, match="there is there already; remove it"):
        export(trained("lora"), tmp_path / "there")
    unfinished = shutil.copytree(trained("lora"), tmp_path / "run")
    shutil.rmtree(unfinished / "final")
    with pytest.raises(ConfigError, match=r"run is not finished, .*best so far is .*run/best; finish it"):
        export(unfinished, tmp_path / "out")
    with pytest.raises(ModelError, match=r"no such folder"):
        export(tmp_path / "nowhere", tmp_path / "out")
    file = shutil.copytree(trained("lora"), tmp_path / "damaged") / "final" / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ModelError, match=r"adapter_model.safetensors is damaged \(.*\); copy or download it again$"):
        loaded(file.parent)
    with pytest.raises(CheckpointError, match=r"final is damaged \(adapter_model.safetensors does not match"):
        export(tmp_path / "damaged", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_model_of_no_run_is_claimed_by_none(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Named relative to where one is."""
    shutil.copytree(model, tmp_path / "mine")
    monkeypatch.chdir(tmp_path)
    text = (export("mine", "out") / "README.md").read_text(encoding="utf-8")
    assert "nothing is known here of its training" in text
    assert "Trained with selfcorrect" not in text


def test_an_adapter_over_another_base_is_refused(trained: Callable[[str], Path], tmp_path: Path) -> None:
    other = tmp_path / "other"
    tiny_lm("llama", "eager", ENDS, seed=5).save(other, torch.float32)
    folder = Path(shutil.copytree(trained("lora") / "final", tmp_path / "adapter"))
    config = json.loads((folder / "adapter_config.json").read_text())
    for base, told in (
        (str(other), r"its base .*other holds other weights than those that the adapter was trained on"),
        (str(tmp_path / "gone"), r"its base model is not there: .*no such folder"),
        (str(folder), r"is no model folder"),
        ("", "names no base_model_name_or_path"),
    ):
        (folder / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": base}))
        for tuning in ("lora", "full", "qlora"):
            with pytest.raises(ModelError, match=told):
                loaded(folder, tuning)


ODD: list[tuple[str, dict[str, Any], str]] = [  # architecture, PEFT's settings, what is told; nothing: it is computed
    ("llama", {"target_modules": ["q_proj", "lm_head"]}, "its adapter is on lm_head, which is the head"),
    ("qwen2", {"target_modules": ["lm_head"]}, "its adapter is on lm_head, which is the head"),
    ("llama", {"target_modules": ["embed_tokens"]}, "its adapter is on embed_tokens, which is no linear layer"),
    ("gpt2", {"target_modules": ["c_attn", "wte"]}, "its adapter is on wte, which is no linear layer"),
    ("gpt2", {"target_modules": ["wpe"]}, "its adapter is on wpe, which is no linear layer"),
    ("llama", {"init_lora_weights": "pissa"}, "init_lora_weights = 'pissa', which changes the model beneath it"),
    ("llama", {"init_lora_weights": "pissa_niter_4"}, "init_lora_weights = 'pissa_niter_4'"),
    ("llama", {"init_lora_weights": "olora"}, "init_lora_weights = 'olora'"),
    ("llama", {"init_lora_weights": "gaussian", "use_rslora": True}, ""),
    ("llama", {"rank_pattern": {"q_proj": 3}, "alpha_pattern": {"up_proj": 7}, "layers_to_transform": [1]}, ""),
]  # fmt: skip


@pytest.mark.filterwarnings("ignore::UserWarning:peft")
@pytest.mark.parametrize(("architecture", "settings", "told"), ODD)
def test_adapters_of_other_tools_are_computed_or_refused(
    architecture: str, settings: dict[str, Any], told: str, tmp_path: Path
) -> None:
    """One on the head would be sampled with and not trained with; one that begins inside the weights changes them."""
    import peft

    base, folder = tmp_path / "base", tmp_path / "adapter"
    tiny_lm(architecture, "eager", ENDS).save(base, torch.float32)
    made = peft.LoraConfig(r=2, task_type="CAUSAL_LM", **{"target_modules": ["q_proj", "up_proj"], **settings})
    wrapped = peft.get_peft_model(loaded(base).model, made)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_" in name and not told:
                parameter.normal_(0.0, 0.3)
    wrapped.peft_config["default"].base_model_name_or_path = str(base)
    wrapped.save_pretrained(str(folder), save_embedding_layers=False)
    ways = ("lora", "full", "qlora") if settings is ODD[0][1] else ("full",) if told else ("lora", "full")
    for tuning in ways:
        if told:
            with pytest.raises(ModelError, match=re.escape(told)):
                loaded(folder, tuning)
            continue
        lm = loaded(folder, tuning)
        reference, expected = lm.frozen_copy(), wrapped(input_ids=torch.arange(1, 20)[None]).logits[0]
        for found in (lm, reference):
            torch.testing.assert_close(logits_of(found), expected, rtol=0, atol=1e-4)


def test_a_resumed_run_refuses_another_base(trained: Callable[[str], Path], model: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(trained("lora"), tmp_path / "run"))
    other = tmp_path / "other"
    tiny_lm("llama", "eager", ENDS, seed=5).save(other, torch.float32)
    for file in (run / "config.yaml", run / "config.used.yaml"):
        file.write_text(file.read_text().replace(str(model), str(other)))
    with pytest.raises(CheckpointError, match=r"other' holds other weights than when"):
        resume(run, Observer())


@pytest.mark.usefixtures("lucky")
def test_training_goes_on_from_an_adapter(trained: Callable[[str], Path], model: Path, tmp_path: Path) -> None:
    """Its KL is to the adapter as it was; what it ends with stands on the same base."""
    settings = tuned(recipe(tmp_path, trained("lora") / "final"), "lora")
    warm = {**settings["rollouts"], "temperature": 5.0}  # some machines' adapter always writes the same by now
    run = go({**settings, "stages": settings["stages"][:1], "rollouts": warm})
    rows = read_rows(run / "metrics.jsonl")
    assert rows[0]["kl"] == [0.0, 0.0]
    assert all(row["sampler_gap"] < 5e-6 for row in rows)
    assert rows[-1]["kl"][0] > 1e-4
    assert json.loads((run / "final" / "adapter_config.json").read_text())["base_model_name_or_path"] == str(model)


def test_the_commands_take_an_adapters_folder(trained: Callable[[str], Path], command: Command, lucky: None) -> None:
    final = trained("qlora") / "final"
    assert len(api.play("1 2 3 = 6", model=final).attempts) == 2
    evaluation = api.evaluate(str(final), "evaluation.problems=4", "output=" + str(final.parent.parent))
    assert evaluation.summary.n == 4
    told = command("check", str(final.parent / "config.yaml"), "--load")
    assert "tuning qlora: an adapter of rank 16, 0.01 million, over a model in 4 bits" in told
