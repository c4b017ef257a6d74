"""Loading a causal language model of Hugging Face layout: a folder, or a name on the hub."""

import mmap
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from selfcorrect.config import ModelConfig
from selfcorrect.errors import ModelError, first_line
from selfcorrect.models import adapters, files, generation, products, templates
from selfcorrect.models.adapters import Adapters
from selfcorrect.models.building import building
from selfcorrect.models.chat import Chat
from selfcorrect.models.files import resolve_path
from selfcorrect.models.freed import keep_freed_memory
from selfcorrect.models.head import head_form
from selfcorrect.models.language_model import LanguageModel
from selfcorrect.models.text_part import text_part


def load_model(config: ModelConfig, seed: int = 0, *, in_memory: bool = False, hollow: bool = False) -> LanguageModel:
    """Load model, tokenizer and chat template; with an adapter, where the path or the tuning names one.

    seed: a fresh adapter's. in_memory: the weights stay in the machine's memory, from where shards go to the device.
    hollow: they are not read, as another process has them; but for 4-bit ones, and where accelerate is not there to
    leave them out.

    Raises ModelError, naming what is missing.
    """
    with building():
        return _load_whole(config, seed, in_memory, hollow)


def _load_whole(config: ModelConfig, seed: int, in_memory: bool, hollow: bool) -> LanguageModel:
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
        _fill_with_nothing(model)
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
    return lm, [note for note in (of_text, told, _emulated(config, device, compute_dtype)) if note]


def _fill_with_nothing(model: Any) -> None:
    """Of a model whose weights another process has: zeros in the place of its meta tensors.

    The system gives them memory once something is written there. Tied weights stay tied. Weights and buffers are all
    the tensors that a model has: transformers loads no others.
    """
    made: dict[int, Tensor] = {}
    for module in model.modules():
        for held in (module._parameters, module._buffers):
            for key, tensor in held.items():
                if tensor is not None and tensor.is_meta:
                    held[key] = made.setdefault(id(tensor), _nothing(tensor))


def _nothing(like: Tensor) -> Tensor:
    size = like.numel() * like.element_size()
    pages = mmap.mmap(-1, max(1, size), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    tensor = torch.frombuffer(pages, dtype=torch.uint8)[:size].view(like.dtype).view(like.shape)
    if isinstance(like, torch.nn.Parameter):
        return torch.nn.Parameter(tensor, requires_grad=like.requires_grad)
    return tensor


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
    except SafetensorError as error:
        raise source.not_loaded(error) from error
    except (ValueError, OSError, TypeError, KeyError) as error:
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
    return torch.bfloat16 if native_bfloat16(device) else torch.float32


def native_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 in hardware; of CPUs those with AVX-512 BF16 or AMX."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    cpu: Any = torch.cpu
    return device.type == "cpu" and (cpu._is_avx512_bf16_supported() or cpu._is_amx_tile_supported())


def _emulated(config: ModelConfig, device: torch.device, compute_dtype: torch.dtype) -> str:
    """A note where products of bfloat16 are asked of a device that makes them of float32's, slowly; else empty."""
    if compute_dtype != torch.bfloat16 or device.type == "mps" or native_bfloat16(device):
        return ""
    where = "card" if device.type == "cuda" else "processor"
    field, instead = ("precision", "auto") if config.weights == "float32" else ("weights", "float32 (twice the memory)")
    return (
        f"model.{field} = bfloat16: this {where} does not multiply in bfloat16, so a step may take ten times as long "
        f"as in float32; set model.{field}: {instead}"
    )
