"""Model folders as they are found: what is mended, what is refused in one line, and what a saved one carries on."""

import json
import socket
import threading
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
import transformers

from selfcorrect import hub
from selfcorrect.config import ModelConfig, TrainConfig
from selfcorrect.config.paths import absolute, check_paths
from selfcorrect.config.recipe import load_recipe, validate
from selfcorrect.errors import ConfigError, ModelError
from selfcorrect.exporting import export
from selfcorrect.models import weights as stored
from selfcorrect.models.files import resolve_path
from selfcorrect.models.language_model import LanguageModel
from selfcorrect.models.loading import load_model
from selfcorrect.models.stored import stored_dtype
from selfcorrect.runs.checkpoint import check_manifest
from selfcorrect.runs.disk import save_model, share_model
from tests.support.hf_model import save_qwen2
from tests.support.templates import LLAMA2_LIKE, QWEN3_LIKE
from tests.support.tiny import loaded, tiny_lm


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_qwen2(tmp_path_factory.mktemp("good"), ends=0)


@pytest.fixture
def folder(good: Path, tmp_path: Path) -> Path:
    """A copy to be spoiled; the weights are linked."""
    target = tmp_path / "model"
    target.mkdir()
    for file in good.iterdir():
        if file.suffix == ".safetensors":
            (target / file.name).symlink_to(file)
        else:
            (target / file.name).write_bytes(file.read_bytes())
    return target


def edit(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


GENERATION: list[tuple[dict[str, Any], dict[str, Any], str]] = [  # what the file has, what is saved of it, the note
    ({"temperature": 0.6, "top_p": 0.9}, {"do_sample": True, "temperature": 0.6, "top_p": 0.9}, "temperature = 0.6, top_p = 0.9 needs"),
    ({"min_p": 0.1}, {"do_sample": True, "min_p": 0.1}, "with do_sample: true, which min_p = 0.1 needs"),
    ({"temperature": 0.0, "top_p": 0.5}, {"temperature": None, "top_p": None}, "which greedy decoding does not use"),
    ({"do_sample": False, "temperature": 0.7}, {"do_sample": False, "temperature": None}, "without temperature = 0.7"),
    ({"do_sample": True, "temperature": 0.7}, {"do_sample": True, "temperature": 0.7}, ""),
    ({"num_beams": 4, "early_stopping": True}, {"num_beams": 4, "early_stopping": True}, ""),
    ({"length_penalty": 2.0, "output_scores": True}, {"length_penalty": None, "output_scores": None}, "output_scores"),
    ({"cache_implementation": "nonsense"}, {"cache_implementation": None}, "nonsense"),
    ({"num_return_sequences": 4}, {"num_return_sequences": None}, "without num_return_sequences = 4"),
    ({"pad_token_id": -1}, {"pad_token_id": None}, "without pad_token_id = -1, which is no token's number"),
    ({"eos_token_id": "</turn>"}, {"eos_token_id": None}, "without eos_token_id = '</turn>'"),
    ({"transformers_version": "4.2.0.dev0", "my_field": 3, "repetition_penalty": 1.1}, {"repetition_penalty": 1.1}, ""),
]  # fmt: skip


@pytest.mark.parametrize(("found", "saved", "note"), GENERATION, ids=[str(row[0]) for row in GENERATION])
def test_what_is_loaded_can_be_saved_and_means_the_same(
    folder: Path, tmp_path: Path, found: dict[str, Any], saved: dict[str, Any], note: str
) -> None:
    edit(folder / "generation_config.json", **found)
    lm = loaded(folder)
    assert (note in " ".join(lm.chat.notes)) if note else not lm.chat.notes
    lm.save(tmp_path / "out", torch.float32)
    assert (
        len({file.stat().st_mode for file in (tmp_path / "out").iterdir()}) == 1
    )  # weights are as readable as the rest
    kept = json.loads((tmp_path / "out/generation_config.json").read_text())
    assert {name: kept.get(name) for name in saved} == saved
    assert loaded(tmp_path / "out").eos_ids == lm.eos_ids


def test_settings_that_older_models_keep_in_config_json(folder: Path, tmp_path: Path) -> None:
    (folder / "generation_config.json").unlink()
    edit(folder / "config.json", temperature=0.7, pad_token_id=-1)
    lm = loaded(folder)
    lm.save(tmp_path / "out", torch.float32)
    kept = json.loads((tmp_path / "out/generation_config.json").read_text())
    assert (kept["do_sample"], kept["temperature"], kept.get("pad_token_id")) == (True, 0.7, None)


@pytest.mark.parametrize("text", ["", '{"a": ', "[]", "null", '{"a": "\udcff"}'])
@pytest.mark.parametrize("name", ["generation_config.json", "config.json"])
def test_a_broken_file_is_named(folder: Path, name: str, text: str) -> None:
    """transformers takes a broken generation_config.json for a missing one, and the ends of turns with it."""
    (folder / name).write_text(text, errors="surrogateescape")
    with pytest.raises(ModelError, match=rf"^model.path = '.*': {name} (is not valid JSON|must hold an object)"):
        loaded(folder)


def with_code(folder: Path, name: str, auto_map: Any, **changes: Any) -> Path:
    """Names a file of Python in `auto_map`; where the file runs, a canary is left."""
    canary = folder.parent / "canary"
    (folder / "own.py").write_text(
        f"open({str(canary)!r}, 'w').close()\n"
        "from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM\n"
        "class C(Qwen2Config): model_type = 'unheard_of'\n"
        "class M(Qwen2ForCausalLM): config_class = C\n"
        "class T(PreTrainedTokenizerFast): pass\n"
    )
    edit(folder / name, auto_map=auto_map, **changes)
    return canary


CODE: dict[str, tuple[str, Any, dict[str, str]]] = {
    "model": ("config.json", {"AutoConfig": "own.C", "AutoModelForCausalLM": "own.M"}, {"model_type": "unheard_of"}),
    "config only": ("config.json", {"AutoConfig": "own.C"}, {"model_type": "unheard_of"}),
    "another repository's": ("config.json", {"AutoConfig": "some/one--own.C"}, {"model_type": "unheard_of"}),
    "a type without a causal model": ("config.json", {"AutoModelForCausalLM": "own.M"}, {"model_type": "vit"}),
    "tokenizer": ("tokenizer_config.json", {"AutoTokenizer": ["own.T", None]}, {}),
    "tokenizer, old form": ("tokenizer_config.json", ["own.T", None], {}),
}


@pytest.mark.parametrize("kind", CODE)
def test_code_of_a_model_is_not_run_and_nobody_is_asked(
    kind: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, auto_map, changes = CODE[kind]
    canary = with_code(folder, name, auto_map, **changes)
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("stdin was read"))
    with pytest.raises(ModelError, match=r"^model.path = '.*Python code of its own.*model.trust_remote_code: true"):
        loaded(folder)
    assert not canary.exists()


def test_code_runs_where_it_is_trusted_or_is_not_needed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    auto_map = {"AutoConfig": "own.C", "AutoModelForCausalLM": "own.M"}
    canary = with_code(folder, "config.json", auto_map)
    loaded(folder)  # its model_type is one that transformers has a class for
    assert not canary.exists()
    edit(folder / "config.json", model_type="unheard_of")
    lm = loaded(folder, trust_remote_code=True)
    assert canary.exists()
    lm.save(tmp_path / "out", torch.float32)
    assert loaded(tmp_path / "out", trust_remote_code=True).chat.first_prompt("Q") == lm.chat.first_prompt("Q")
    with pytest.raises(ModelError, match="Python code of its own"):
        loaded(tmp_path / "out")


def without_template(folder: Path) -> Path:
    (folder / "chat_template.jinja").unlink()
    return folder


def test_a_base_model_gets_the_template_that_is_named(folder: Path, tmp_path: Path) -> None:
    """And carries it on: transformers alone then writes the same conversation."""
    from transformers import AutoTokenizer

    with pytest.raises(ModelError, match=r"no chat template.* model.chat_template: plain .* model.chat_template: FILE"):
        loaded(without_template(folder))
    (tmp_path / "own.jinja").write_text("\ufeff" + LLAMA2_LIKE)
    for choice, begins in (("plain", "User:\nQ\n\nAssistant:\n"), (str(tmp_path / "own.jinja"), "<bos>[Q] Q [/Q]")):
        lm = loaded(folder, chat_template=choice)
        lm.save(tmp_path / "out", torch.float32)
        alone = AutoTokenizer.from_pretrained(tmp_path / "out")
        turns = [
            {"role": "user", "content": "Q"},
            {"role": "assistant", "content": "A"},
            {"role": "user", "content": "R"},
        ]
        first = lm.chat.first_prompt("Q")
        assert lm.tokenizer.decode(first) == begins
        assert first == tuple(alone.apply_chat_template(turns[:1], add_generation_prompt=True)["input_ids"])
        space = () if choice == "plain" else lm.chat.written(" ").token_ids
        sampled = (*space, *lm.chat.written("A").token_ids, *space, lm.tokenizer.eos_token_id)
        whole = tuple(alone.apply_chat_template(turns, add_generation_prompt=True)["input_ids"])
        assert lm.chat.next_prompt(first, sampled, "R") == whole
        assert loaded(tmp_path / "out").chat.first_prompt("Q") == first  # without being named again


def test_of_several_templates_the_one_used_is_saved(folder: Path, tmp_path: Path) -> None:
    """As `best` is saved, shared with a stage, checked on resuming and exported."""
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates/tool_use.jinja").write_text(LLAMA2_LIKE)
    lm = loaded(folder)
    save_model(lm, torch.float32, tmp_path / "best")
    share_model(tmp_path / "best", tmp_path / "final")
    check_manifest(tmp_path / "final")
    again = loaded(export(tmp_path / "final", tmp_path / "out"))
    assert again.tokenizer.chat_template == (folder / "chat_template.jinja").read_text()
    assert again.chat.first_prompt("Q") == lm.chat.first_prompt("Q")


def test_a_template_file_belongs_to_the_recipes_folder(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes/own.jinja").write_text(LLAMA2_LIKE)
    recipe = tmp_path / "recipes/mine.yaml"
    recipe.write_text(f"model: {{path: {folder}, chat_template: own.jinja, device: cpu}}\nstages: []\n")
    found = load_recipe(recipe)
    assert isinstance(found, TrainConfig)
    check_paths(found)
    kept = absolute(found)
    (tmp_path / "else").mkdir()
    monkeypatch.chdir(tmp_path / "else")
    for config in (kept, load_recipe("../recipes/mine.yaml")):
        assert isinstance(config, TrainConfig)
        lm = load_model(config.model)
        assert lm.tokenizer.decode(lm.chat.first_prompt("Q")) == "<bos>[Q] Q [/Q]"
    given = load_recipe("../recipes/mine.yaml", ["model.chat_template=own.jinja"])  # an override's is of this folder
    assert isinstance(given, TrainConfig)
    with pytest.raises(ConfigError, match=r"^model.chat_template = 'own.jinja': no such file"):
        check_paths(given)


def test_plain_begins_as_the_tokenizer_does(folder: Path) -> None:
    from tokenizers.processors import TemplateProcessing

    lm = loaded(folder, chat_template="plain")
    lm.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 0)])
    lm.tokenizer.save_pretrained(folder)
    first = lm.chat.first_prompt("Q")
    assert loaded(folder, chat_template="plain").tokenizer.decode(first) == "User:\nQ\n\nAssistant:\n"
    lm = loaded(folder, chat_template="plain")
    assert (lm.tokenizer.decode(lm.chat.first_prompt("Q")), lm.chat.notes) == ("<bos>User:\nQ\n\nAssistant:\n", ())
    (note,) = loaded(folder, chat_template=str(folder / "chat_template.jinja")).chat.notes
    assert note.startswith("the tokenizer puts <bos> before every text, and the chat template writes none")


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda file: None, r"^model.chat_template = '.*': no such file; name a file with a Jinja template, write plain, or null"),
        (lambda file: file.write_text(" \n"), r"^model.chat_template = '.*': the file is empty"),
        (lambda file: file.write_bytes(b"\xff\xfe\x00"), r"^model.chat_template = '.*': cannot be read: 'utf-8'"),
        (lambda file: file.mkdir(), r"^model.chat_template = '.*': cannot be read: .*directory"),
        (lambda file: file.write_text("{% for x in %}"), r"^the chat template fails on a plain conversation: .*\(turns: user"),
        (lambda file: file.write_text("{% if messages[0].role != 'system' %}{{ raise_exception('system first') }}{% endif %}"), "fails on a plain conversation: system first"),
    ],
)  # fmt: skip
def test_a_template_file_that_cannot_serve(folder: Path, write: Callable[[Path], Any], message: str) -> None:
    write(folder / "own.jinja")
    with pytest.raises(ModelError, match=message):
        loaded(folder, chat_template=str(folder / "own.jinja"))


OPTIONS: list[tuple[Any, str]] = [
    (
        {"enable_thinkin": False},
        r"template_options.enable_thinkin is nothing that the chat template reads.*; it reads enable_thinking$",
    ),
    ({"padding": True}, "template_options.padding is nothing that the chat template reads"),
    ({"tokenize": True}, "template_options.tokenize is nothing that the chat template reads"),
    ({"messages": "x"}, "template_options.messages is set by the program"),
    ({"enable_thinking": 0}, "enable_thinking = 0 changes nothing .* where false would; write enable_thinking: false"),
    ({"enable_thinking": "off"}, "enable_thinking = 'off' changes nothing .* where false would"),
    ({"enable_thinking": None}, "enable_thinking = None changes nothing .* where false would"),
]


@pytest.mark.parametrize(("options", "message"), OPTIONS)
def test_a_template_option_that_does_nothing_is_refused(folder: Path, options: dict[str, Any], message: str) -> None:
    (folder / "chat_template.jinja").write_text(
        QWEN3_LIKE.replace("and not enable_thinking", "and enable_thinking is false")
    )
    with pytest.raises(ModelError, match=message):
        loaded(folder, template_options=options)


def test_template_options_that_do_something_or_say_so(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text(QWEN3_LIKE + "{% generation %}{{ effort }}{% endgeneration %}")
    assert not any(
        "changes nothing" in note
        for note in loaded(folder, template_options={"enable_thinking": 0, "effort": "no"}).chat.notes
    )
    notes = loaded(folder, template_options={"enable_thinking": True}).chat.notes
    assert "model.template_options.enable_thinking = True changes nothing in what the chat template writes" in notes


@pytest.mark.parametrize("value", ["false", "true", "False", " TRUE "])
def test_the_words_true_and_false_in_quotes_are_refused(value: str) -> None:
    stage = {"name": "a", "objective": "single_turn", "steps": 1, "learning_rate": 1e-3}
    data = {"stages": [stage], "model": {"template_options": {"enable_thinking": value}}}
    word = value.strip().lower()
    with pytest.raises(
        ConfigError, match=rf"enable_thinking = '{value}' is text.*write enable_thinking: {word}, without"
    ):
        validate(data)


class Answers(BaseHTTPRequestHandler):
    """A hub that gives one status to everything."""

    status = 0

    def do_HEAD(self) -> None:
        self.send_response(self.status)
        if self.status == 404:
            self.send_header("X-Error-Code", "RepoNotFound")
        self.end_headers()

    do_GET = do_HEAD

    def log_message(self, *_: Any) -> None:
        """Nothing is logged."""


@pytest.fixture
def no_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(hub, "_SECONDS", 0.5)


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (503, r"the hub \(.*\) does not answer \(status 503\); name a folder, or mend that$"),
        (407, r"the hub \(.*\) does not answer \(status 407\)"),
        (404, r"cannot be loaded: some/one is not a local folder and is not a valid model identifier"),
    ],
)
def test_what_a_hub_answers_is_told(status: int, message: str, no_hub: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Answers, "status", status)
    with HTTPServer(("127.0.0.1", 0), Answers) as server:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setattr(
            "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE",
            f"http://127.0.0.1:{server.server_port}/{{repo_id}}/resolve/{{revision}}/{{filename}}",
        )
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        with pytest.raises(ModelError, match=rf"^model.path = 'some/one': .*{message}"):
            load_model(ModelConfig(path="some/one"))
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("answers", [False, True], ids=["refuses", "hangs"])
def test_a_hub_that_cannot_be_reached_is_told_in_seconds(
    answers: bool, no_hub: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        if not answers:
            server.close()
        began = time.monotonic()
        with pytest.raises(
            ModelError, match=r"^model.path = 'some/one': is no folder here and not in the hub's cache, and"
        ):
            load_model(ModelConfig(path="some/one"))
        assert time.monotonic() - began < 30  # transformers alone takes minutes


def test_the_stored_dtype_of_a_cached_model_does_not_wait_for_the_hub(
    no_hub: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched = Mock(wraps=transformers.utils.hub.cached_file)
    snapshot = tmp_path / "models--some--one" / "snapshots" / "1"
    tiny_lm().save(snapshot, torch.bfloat16)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("1")

    monkeypatch.setattr("transformers.utils.cached_file", watched)
    monkeypatch.setattr("transformers.utils.hub.cached_file", watched)
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
    assert stored_dtype("some/one") == torch.bfloat16
    assert {call.kwargs.get("local_files_only") for call in watched.call_args_list} == {True}


def test_an_error_without_words_is_told_by_its_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("peft.inject_adapter_in_model", Mock(side_effect=ValueError("")))
    with pytest.raises(ModelError, match=r"^model.lora fits no layer of the model: ValueError$"):
        load_model(ModelConfig(path="lab", tuning="lora"))


def test_on_cuda_no_forward_pass_takes_cudnns_attention() -> None:
    """It plans anew for every length. The switch is the flag torch reads, with or without a card."""
    backends: Any = torch.backends.cuda
    enabled = backends.cudnn_sdp_enabled
    before, lm = enabled(), tiny_lm()
    with lm.autocast():
        assert enabled() == before
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # autocast's word on a machine without a card
        with replace(lm, device=torch.device("cuda")).autocast():
            assert not enabled()
            assert backends.flash_sdp_enabled()
            assert backends.mem_efficient_sdp_enabled()
    assert enabled() == before


def test_a_saved_config_names_the_stored_dtype_and_nothing_else(tmp_path: Path) -> None:
    lm: LanguageModel = tiny_lm("llama")
    lm.model.config.made_for = "float32"
    lm.save(tmp_path, torch.bfloat16)
    told = json.loads((tmp_path / "config.json").read_text())
    assert (told["dtype"], told["made_for"]) == ("bfloat16", "float32")


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gpt2", "gemma3"])
def test_a_hollow_model_has_names_and_shapes_and_no_numbers(architecture: str, tmp_path: Path) -> None:
    """What another process reads: the same weights and buffers, tied ones still, all of them 0, and they compute."""
    tiny_lm(architecture).save(tmp_path, torch.float32)
    config = ModelConfig(path=str(tmp_path), device="cpu", precision="float32")
    whole, hollow = load_model(config), load_model(config, hollow=True)
    for of in ("named_parameters", "named_buffers"):
        mine, theirs = ({name: t.shape for name, t in getattr(lm.model, of)()} for lm in (hollow, whole))
        assert mine == theirs
        assert not any(tensor.any() for _, tensor in getattr(hollow.model, of)())
    assert hollow.eos_ids == whole.eos_ids
    ids = torch.tensor([[1, 2]])
    assert hollow.logits(ids, None).shape == whole.logits(ids, None).shape


@pytest.mark.parametrize("renamed", [False, True])
def test_stored_weights_need_no_second_model(
    renamed: bool, good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But where transformers saves them under other names than the model has."""
    lm, again = loaded(good), list[str]()
    lm.save(tmp_path / "saved", torch.bfloat16)
    wanted = {name: tensor.to(torch.bfloat16).float() for name, tensor in stored.weights(lm).items()}

    def loads(config: ModelConfig, **settings: Any) -> LanguageModel:
        again.append(config.path)
        return load_model(config.model_copy(update={"path": str(good)}), **settings)

    monkeypatch.setattr(stored, "load_model", loads)
    if renamed:
        from safetensors.torch import load_file, save_file

        file = tmp_path / "saved" / "model.safetensors"
        save_file({f"language_{name}": tensor for name, tensor in load_file(file).items()}, file)
    state = stored.stored_weights(tmp_path / "saved", lm, ModelConfig(path=str(good)))
    assert bool(again) == renamed
    assert state.keys() == wanted.keys()
    if not renamed:
        for parameter in lm.parameters():
            parameter.data.zero_()
        stored.load_weights(lm, state)
        assert all(torch.equal(tensor, wanted[name]) for name, tensor in stored.weights(lm).items())


def test_a_mistyped_run_is_not_asked_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the folder above holds runs; a folder of models by their makers' names stands in no one's way."""
    for run in ("first", "second"):
        (tmp_path / "runs" / run).mkdir(parents=True)
        for name in ("config.yaml", "environment.json"):
            (tmp_path / "runs" / run / name).write_text("{}")
    (tmp_path / "maker" / "other").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match=r"'runs/fisrt': no such folder, and runs holds runs: (first|second), "):
        resolve_path("runs/fisrt")
    names = ["maker/model", "nobody/model", "gpt2"]
    assert [resolve_path(name) for name in names] == names
