"""A causal language model of Hugging Face layout, with its tokenizer and chat template.

Shared by the policy, the reference and the transformers sampler, so that all three compute a token's
log-probability the same way. The forward pass runs under autocast where that is good.
The model always stays in eval mode: dropout would make the policy differ from the one that sampled.
"""

import copy
import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from selfcorrect.config import LAB_MODEL, ModelConfig
from selfcorrect.config.paths import is_evaluation
from selfcorrect.errors import ModelError, first_line
from selfcorrect.models import adapters, files, generation, packed, products, templates
from selfcorrect.models.adapters import FROZEN, OFF, POLICY, Adapters
from selfcorrect.models.chat import Chat
from selfcorrect.models.freed import keep_freed_memory
from selfcorrect.models.head import Head, HeadForm, States, head_form
from selfcorrect.models.hollow import fill_with_nothing
from selfcorrect.models.masters import Masters
from selfcorrect.models.text_part import text_part
from selfcorrect.models.windows import layer_windows, sees_all

_ATTENTION = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


@dataclass(slots=True)
class LanguageModel:
    """model: a transformers causal LM; compute_dtype: that of the forward pass; eos_ids: every id that ends a turn.

    adapters: those in the model, if any; view: which of them this LanguageModel computes with. masters: of weights that
    are stored in lower precision than they train in, once they train. copies: whether sampling may lay out copies of
    the weights. part_of: the class of the model that this is the text model of (text_part.py).
    """

    model: Any
    tokenizer: Any
    chat: Chat
    eos_ids: frozenset[int]
    device: torch.device
    compute_dtype: torch.dtype
    head_form: HeadForm | None
    adapters: Adapters | None = None
    view: str = POLICY
    masters: Masters | None = None
    copies: bool = True
    part_of: str = ""

    @contextmanager
    def autocast(self) -> Iterator[None]:
        """Around every forward pass, at sampling and at training: its precision, the adapter it sees, its kernels."""
        enabled = self.compute_dtype != torch.float32
        with (
            torch.autocast(self.device.type, self.compute_dtype if enabled else torch.bfloat16, enabled=enabled),
            self.adapters.shown(self.view) if self.adapters else nullcontext(),
            self.kernels(),
        ):
            yield

    def kernels(self) -> AbstractContextManager[None]:
        """Limits a layer to certain attention kernels. It wraps recomputation in a backward pass too, as the numbers of
        another kernel would differ from those of the forward pass.

        cuDNN's kernel is left out. It makes a new plan for every length of the context, and decoding has a new length
        at every token: sampling then ran at a third of the speed. And for rows with more keys than queries (packed.py)
        it aligns the causal mask with the first key in place of the last.
        """
        allowed = sdpa_kernel(_ATTENTION) if self.device.type == "cuda" else nullcontext()
        return _both(allowed, packed.as_now(self.model.config))

    def logits(self, token_ids: Tensor, select: Tensor | None, **kwargs: Any) -> Tensor:
        """Next-token logits [N, V], float32 or better, where `select` is true, in row-major order.

        select: [B, T], or what broadcasts to it; None: every position. The vocabulary projection runs on those
        positions alone, where what the head does is known.
        """
        states = self.states(token_ids, select, **kwargs)
        if states.head is None:
            return _precise(states.hidden_ND)
        with self.autocast():
            products = self.model.get_output_embeddings()(states.hidden_ND)
        return states.head.form.applied(_precise(torch.as_tensor(products)))

    def states(self, token_ids: Tensor, select: Tensor | None, **kwargs: Any) -> States:
        """What next tokens are predicted from, at the positions that `select` names (see `logits`)."""

        def selected(table_BTX: Tensor) -> Tensor:
            return table_BTX.flatten(0, 1) if select is None else table_BTX[select.expand(table_BTX.shape[:2])]

        with self.autocast():
            if self.head_form is None:
                return States(selected(self.model(input_ids=token_ids, **kwargs).logits))
            hidden = selected(self.model.get_decoder()(input_ids=token_ids, **kwargs).last_hidden_state)
        if self.compute_dtype != torch.float32:
            hidden = hidden.to(self.compute_dtype)  # as autocast would, before the head
        head = self.model.get_output_embeddings()
        return States(hidden, Head(head.weight, head.bias, self.head_form))

    @property
    def reads(self) -> int | None:
        """How many tokens the model can read; None where its config does not say."""
        return getattr(self.model.config.get_text_config(), "max_position_embeddings", None)

    @property
    def windows(self) -> dict[str, int | None] | None:
        """By kind of layer how many tokens back it sees (`layer_windows`)."""
        return layer_windows(self.model.config, self.model.config._attn_implementation)

    @property
    def attends_to_all(self) -> bool:
        """Whether every layer attends to the whole context, through attention code that takes a mask per position."""
        return sees_all(self.windows)

    def parameters(self) -> list[Tensor]:
        """What trains, in float32: an adapter, or all weights, or their masters. Gradients are found there."""
        if self.view != POLICY:
            return []
        if self.masters is None:
            self.masters = Masters(self.model)
        of = self.masters.by_name
        return [of.get(name, weight) for name, weight in self.model.named_parameters() if weight.requires_grad]

    def frozen_copy(self) -> "LanguageModel":
        """The model as it is now, without gradients: a reference.

        With adapters it is the same model with the adapter off, or with a frozen copy of an adapter that does
        something; else the same weights in memory of their own.
        """
        if self.adapters is None:
            return replace(self, model=copy.deepcopy(self.model).requires_grad_(False), masters=None)
        if self.adapters.changes_nothing:
            return replace(self, view=OFF)
        self.adapters.load(self.adapters.tensors(), FROZEN)
        return replace(self, view=FROZEN)

    def save(self, folder: Path, dtype: torch.dtype) -> None:
        """An ordinary folder of Hugging Face layout: weights in `dtype`, config, tokenizer, chat template.

        With adapters it is an adapter's folder, in float32, that names the model it belongs to.
        """
        from transformers.utils import logging

        logging.disable_progress_bar()
        if self.adapters:
            self.adapters.save(folder)
        else:
            self._save_weights(folder, dtype)
        self.tokenizer.save_pretrained(folder)
        mode = next(folder.glob("*.json")).stat().st_mode & 0o777
        for file in folder.glob("*.safetensors"):  # which safetensors lets none but their owner read
            file.chmod(mode)

    def _save_weights(self, folder: Path, dtype: torch.dtype) -> None:
        state = self.model.state_dict()
        # a tied weight stays one tensor, as the saving looks for those
        cast = {t.data_ptr(): self._exact(t).to("cpu", dtype) for t in state.values() if t.is_floating_point()}
        state = {name: cast.get(tensor.data_ptr(), tensor) for name, tensor in state.items()}
        self.model.save_pretrained(folder, state_dict=state)
        _name_dtype(folder / "config.json", str(self.model.dtype), dtype)

    def _exact(self, tensor: Tensor) -> Tensor:
        """A weight's master, where it has one."""
        master = self.masters.of(tensor) if self.masters else None
        return tensor if master is None else master.detach()


@contextmanager
def _both(outer: AbstractContextManager[None], inner: AbstractContextManager[None]) -> Iterator[None]:
    with outer, inner:
        yield


def _name_dtype(file: Path, held: str, dtype: torch.dtype) -> None:
    """config.json names the dtype of the weights in memory; those on disk have this one."""

    def named(value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            return {name: named(item, name) for name, item in value.items()}
        is_ours = key in ("dtype", "torch_dtype") and value == held.removeprefix("torch.")
        return str(dtype).removeprefix("torch.") if is_ours else value

    config = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps(named(config), indent=2, sort_keys=True) + "\n", encoding="utf-8")


def resolve_path(path: str) -> str:
    """The folder or hub name a recipe's model.path stands for. Raises ModelError where a folder is missing."""
    if path == LAB_MODEL:
        return str(resources.files("selfcorrect") / "assets" / "lab_base")
    looks_local = path.startswith((".", "/", "~")) or path.count("/") != 1
    folder = Path(path).expanduser()
    if folder.is_dir():
        if not _is_model(folder):
            if is_evaluation(folder):
                raise ModelError(
                    f"model.path = {path!r} is an evaluation of a model, not a model; name the model itself, the "
                    f"model.path in {folder / 'config.yaml'}"
                )
            kept = [name for name in ("final", "best") if _is_model(folder / name)]
            if kept or (folder / "environment.json").is_file():
                here = f"name its model: {folder / kept[0]}" if kept else "it has kept no model yet"
                raise ModelError(f"model.path = {path!r} is a run, not a model; {here}")
            raise ModelError(
                f"model.path = {path!r}: the folder holds no config.json; name a folder of Hugging Face layout"
            )
        return str(folder)
    if (looks_local and "/" in path) or folder.is_file():
        raise ModelError(
            f"model.path = {path!r}: no such folder; name a folder of Hugging Face layout, a hub name, or lab"
        )
    return path


def _precise(logits: Tensor) -> Tensor:
    """In float32, or in float64 where they are."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _is_model(folder: Path) -> bool:
    """Whether a folder holds a model, or an adapter of one."""
    return any((folder / name).is_file() for name in ("config.json", adapters.CONFIG))


def load_model(config: ModelConfig, seed: int = 0, *, in_memory: bool = False, hollow: bool = False) -> LanguageModel:
    """Load model, tokenizer and chat template; with an adapter, where the path or the tuning names one.

    seed: a fresh adapter's. in_memory: the weights stay in the machine's memory, from where shards go to the device.
    hollow: they are not read, as another process has them (hollow.py); but for 4-bit ones, and where accelerate is not
    there to leave them out.

    Raises ModelError, naming what is missing.
    """
    from transformers.utils import logging

    logging.disable_progress_bar()
    source = files.find(resolve_path(config.path), config.path)
    adapter = None if source.has("config.json") else source.read_json(adapters.CONFIG)
    base = source if adapter is None else _base_of(source, adapter)
    if not config.trust_remote_code:
        source.refuse_code()
        base.refuse_code()
    hollow = hollow and config.tuning != "qlora" and find_spec("accelerate") is not None
    device = pick_device(config.device)
    if device.type == "cpu":
        keep_freed_memory()
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)  # what it reports at length becomes one line here
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            lm, notes = _load(config, source, base, device, in_memory or hollow, hollow)
            if adapter is not None:
                notes += _take_adapter(lm, config, source, base, adapter, seed, hollow)
            elif config.tuning != "full":
                fresh = adapters.fresh_config(config.lora, lm.model)
                lm.adapters = Adapters(lm.model, fresh, _lasting(base.path), seed)
            if lm.adapters:
                from selfcorrect.models.weights import base_digests

                lm.adapters.about = {"tuning": config.tuning, "weights": config.weights, **base_digests(lm)}
                lm.adapters.about |= {"part_of": lm.part_of} if lm.part_of else {}
    finally:
        logging.set_verbosity(verbosity)
    lm.copies = config.sampling_copies
    lm.chat.notes += tuple(notes)
    return lm


def _load(
    config: ModelConfig, source: files.Source, base: files.Source, device: torch.device, in_memory: bool, hollow: bool
) -> tuple[LanguageModel, list[str]]:
    """The model without adapter, with notes. source: where the tokenizer is, if it is there; base: the weights."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    attention = config.attention if config.attention != "auto" else ("eager" if device.type == "cpu" else "sdpa")
    safe = {"trust_remote_code": config.trust_remote_code}  # never None: transformers would ask on stdin
    compute_dtype = pick_dtype(config.precision, device, config.weights)
    try:
        words = source if source.has("tokenizer_config.json") else base
        try:
            tokenizer = AutoTokenizer.from_pretrained(words.path, **words.how, **safe)
        except Exception as error:  # transformers raises many kinds here; all mean the folder is not usable
            raise words.refusal(f"no tokenizer can be loaded: {first_line(error)}") from error
        raw = base.read_json("generation_config.json")
        given, changes = generation.mended(raw) if raw is not None else (None, "")
        model, found = AutoModelForCausalLM.from_pretrained(
            base.path, dtype=getattr(torch, config.weights), attn_implementation=attention, output_loading_info=True,
            generation_config=given, **base.how, **safe, **_in_four_bits(config, device, compute_dtype),
            **({"device_map": "meta"} if hollow else {}),
        )  # fmt: skip
        if raw is None and model.can_generate():  # made from config.json
            model.generation_config, changes = generation.mended(model.generation_config.to_dict())
    except ModelError:
        raise
    except Exception as error:
        raise base.not_loaded(error) from error
    if found["missing_keys"]:
        first, *more = sorted(found["missing_keys"])
        raise base.refusal(
            f"its weights lack {first}" + (f" and {len(more)} more" if more else "")
            + ", which would be left random; the files are not complete, or not of a causal language model"
        )  # fmt: skip
    model, part_of = text_part(model)
    if hollow:
        fill_with_nothing(model)
    elif config.tuning == "qlora":
        adapters.keep_plain(model)
    else:
        model.to("cpu" if in_memory else device)
    templates.choose(tokenizer, config.chat_template)
    lm = wrap(model, tokenizer, compute_dtype, config.template_options, templates.system_of(config))
    lm.device, lm.part_of = device if in_memory else lm.device, part_of
    if lm.head_form is None:
        lm.chat.notes += (
            f"model.path = {config.path!r}: how this model makes logits from its last hidden states is not known, so "
            "the update holds them whole, tokens x vocabulary",
        )
    told = f"the model's generation settings will be saved {changes}; nothing here samples by them" if changes else ""
    of_text = (
        f"of {part_of} the text model alone is loaded, trained and saved, as {type(model).__name__}" if part_of else ""
    )
    return lm, [note for note in (of_text, told) if note]


def _in_four_bits(config: ModelConfig, device: torch.device, compute_dtype: torch.dtype) -> dict[str, Any]:
    """Arguments that quantise the linear layers but the head as they are loaded."""
    if config.tuning != "qlora":
        return {}
    adapters.need_peft()
    adapters.need_bitsandbytes("model.tuning: qlora")
    from transformers import BitsAndBytesConfig

    if device.type == "mps":
        raise ModelError("model.tuning = 'qlora': 4-bit weights need a GPU of CUDA or a CPU; take lora here")
    four = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute_dtype,
    )  # fmt: skip
    return {
        "quantization_config": four,
        "device_map": {"": torch.cuda.current_device() if device.type == "cuda" else device.type},  # of this process
    }


def _base_of(source: files.Source, adapter: Mapping[str, Any]) -> files.Source:
    """Where the model lies that an adapter belongs to."""
    named = adapter.get("base_model_name_or_path")
    if not isinstance(named, str) or not named:
        raise source.refusal(f"{adapters.CONFIG} names no base_model_name_or_path; write there which model it is for")
    shown = f"{source.shown} (its base: {named})"
    try:
        path = resolve_path(named)
    except ModelError as error:
        raise source.refusal(f"its base model is not there: {str(error).partition(': ')[2] or error}") from error
    base = files.find(path, shown)
    if not base.has("config.json"):
        raise source.refusal(f"its base model {named!r} is no model folder; merge adapters that stand on each other")
    return base


def _take_adapter(
    lm: LanguageModel, config: ModelConfig, source: files.Source, base: files.Source, told: Mapping[str, Any],
    seed: int, hollow: bool,
) -> list[str]:  # fmt: skip
    """Puts a stored adapter into the model: live where tuning has one, else merged. Returns notes."""
    from safetensors import SafetensorError, safe_open

    file, described = source.file(adapters.WEIGHTS), source.file(adapters.CONFIG)
    assert described
    if file is None:
        raise source.refusal(f"holds {adapters.CONFIG} and no {adapters.WEIGHTS}; save the adapter as safetensors")
    try:
        stored, changed = adapters.stored_config(told, described.parent)
        with safe_open(file, "pt") as opened:
            state = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        made = Adapters(lm.model, stored, _lasting(base.path), seed)
        made.refuse_other_layers()
        made.load(state)
    except ModelError:
        raise
    except (SafetensorError, ValueError, OSError, TypeError, KeyError) as error:
        raise source.refusal(first_line(error)) from error
    lm.adapters = made
    about = source.read_json(adapters.ABOUT) or {}
    other = "" if hollow else _other_base(lm, about)
    if other:
        raise source.refusal(
            f"its base {base.path} holds other weights than those that the adapter was trained on ({other})"
        )
    notes = [f"the adapter is taken {changed}"] if changed else []
    trained_with = str(about.get("tuning", config.tuning))
    if config.tuning == "full":
        made.merge()
        lm.adapters = None
        lm.model.requires_grad_(True)
    elif difference := adapters.differs(stored, config.lora):
        notes.append(f"model.lora: the adapter that model.path names goes on as it is: {difference}")
    if "qlora" in (trained_with, config.tuning) and trained_with != config.tuning:
        beneath = "4-bit weights" if trained_with == "qlora" else "the model's own weights"
        notes.append(
            f"the adapter was trained over {beneath}, and stands over others here; model.tuning: {trained_with} "
            "computes as it was trained"
        )
    return notes


def _other_base(lm: LanguageModel, about: Mapping[str, str]) -> str:
    """How the base differs from that which the adapter was trained on, by the digests kept with it; empty if not."""
    from selfcorrect.models.weights import base_digests

    found = base_digests(lm)
    return ", ".join(
        f"{name} {found[name]}, not {about[name]}" for name in found if about.get(name, found[name]) != found[name]
    )


def _lasting(path: str) -> str:
    """A model's path as it is named for later: a folder by its whole path, a hub name as it is."""
    return str(Path(path).absolute()) if Path(path).is_dir() else path


def wrap(
    model: Any,
    tokenizer: Any,
    compute_dtype: torch.dtype = torch.float32,
    template_options: Mapping[str, Any] | None = None,
    system: templates.System | None = None,
) -> LanguageModel:
    """A model and tokenizer already in memory -> LanguageModel."""
    model.eval()
    products.serve(model)
    eos_ids = _ids(getattr(getattr(model, "generation_config", None), "eos_token_id", None)) | _ids(
        tokenizer.eos_token_id
    )
    if not eos_ids:
        raise ModelError("neither the tokenizer nor generation_config.json names an end-of-sequence token")
    chat = Chat(tokenizer, eos_ids, template_options, system)
    turn_end = chat.turn_end()
    if turn_end is not None and turn_end not in eos_ids:  # base models often name only the end of a document
        eos_ids |= {turn_end}
        chat = Chat(tokenizer, eos_ids, template_options, system)
    device = next(model.parameters()).device
    return LanguageModel(model, tokenizer, chat, eos_ids, device, compute_dtype, head_form(model))


def _ids(value: int | list[int] | None) -> frozenset[int]:
    return frozenset() if value is None else frozenset([value] if isinstance(value, int) else value)


def use_threads(threads: int | None) -> None:
    """How many threads torch computes with, in the whole process; None leaves it as it is."""
    if threads:
        torch.set_num_threads(threads)


def pick_device(name: str) -> torch.device:
    """A device by its kind; auto: cuda, mps or cpu, the first that is there. Raises ModelError where there is none."""
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        name = next(kind for kind in ("cuda", "mps", "cpu") if available[kind])
    if not available[name]:
        raise ModelError(f"model.device = {name!r}: this machine has none that torch can use; set auto or cpu")
    return torch.device(name)


def pick_dtype(precision: str, device: torch.device, weights: str = "float32") -> torch.dtype:
    """auto: bfloat16 where the hardware multiplies it natively, float32 elsewhere; weights in bfloat16 settle it."""
    if weights == "bfloat16":
        return torch.bfloat16
    if precision != "auto":
        return torch.bfloat16 if precision == "bfloat16" else torch.float32
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    return torch.bfloat16 if native_bfloat16(device) else torch.float32


def native_bfloat16(device: torch.device) -> bool:
    """Whether this CPU multiplies bfloat16 in hardware (AVX-512 BF16 or AMX)."""
    cpu: Any = torch.cpu
    return device.type == "cpu" and (cpu._is_avx512_bf16_supported() or cpu._is_amx_tile_supported())
