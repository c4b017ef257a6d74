"""A causal language model of Hugging Face layout, with its tokenizer and chat template.

Shared by the policy, the reference and the transformers sampler, so that all three compute a token's
log-probability the same way. Weights are float32; the forward pass runs under autocast where that is good.
The model always stays in eval mode: dropout would make the policy differ from the one that sampled.
"""

import copy
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from selfcorrect.config import LAB_MODEL, ModelConfig
from selfcorrect.errors import ModelError
from selfcorrect.models import files, generation, templates
from selfcorrect.models.chat import Chat


@dataclass(slots=True)
class LanguageModel:
    """model: a transformers causal LM; compute_dtype: that of the forward pass; eos_ids: every id that ends a turn."""

    model: Any
    tokenizer: Any
    chat: Chat
    eos_ids: frozenset[int]
    device: torch.device
    compute_dtype: torch.dtype
    head_is_plain: bool

    @contextmanager
    def autocast(self) -> Iterator[None]:
        """The precision, and on CUDA the attention kernels, of every forward pass at sampling and at training."""
        enabled = self.compute_dtype != torch.float32
        with torch.autocast(self.device.type, self.compute_dtype if enabled else torch.bfloat16, enabled=enabled):
            if self.device.type == "cuda":
                # cuDNN plans anew for every length, and decoding is nothing but new lengths: a third of the speed.
                with sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]):
                    yield
            else:
                yield

    def logits(self, token_ids: Tensor, select: Tensor | None, **kwargs: Any) -> Tensor:
        """Next-token logits, float32 [N, V], at the positions where `select` is true, in row-major order.

        select: [B, T], or what broadcasts to it; None: every position. The vocabulary projection runs on those
        positions alone, where the model's head is a plain projection.
        """

        def selected(table_BTX: Tensor) -> Tensor:
            return table_BTX.flatten(0, 1) if select is None else table_BTX[select.expand(table_BTX.shape[:2])]

        with self.autocast():
            if self.head_is_plain:
                hidden = self.model.get_decoder()(input_ids=token_ids, **kwargs).last_hidden_state
                logits = self.model.get_output_embeddings()(selected(hidden))
            else:
                logits = selected(self.model(input_ids=token_ids, **kwargs).logits)
        return torch.as_tensor(logits).float()

    @property
    def windows(self) -> dict[str, int | None] | None:
        """By kind of layer how many tokens back it sees, itself included (None: all of them).

        None where some layer works otherwise, or takes no mask of its own for each position.
        """
        config = self.model.config
        if config._attn_implementation not in ("eager", "sdpa"):
            return None
        if getattr(config, "num_kv_shared_layers", 0):
            return None  # layers that read the keys of others
        if config.model_type in ("bloom", "mpt", "gpt_neo") or getattr(config, "alibi", False):
            return None  # their position bias, or window, is built from a plain mask
        window = getattr(config, "sliding_window", None)
        kinds = getattr(config, "layer_types", None)
        if kinds is None:
            kind = "full_attention" if window is None else "sliding_attention"
            kinds = [kind] if hasattr(config, "num_attention_heads") else ["unknown"]
        seen = {"full_attention": None, "sliding_attention": window}
        return {kind: seen[kind] for kind in dict.fromkeys(kinds)} if set(kinds) <= set(seen) else None

    @property
    def attends_to_all(self) -> bool:
        """Whether every layer attends to the whole context, through attention code that takes a mask per position."""
        return self.windows == {"full_attention": None}

    def parameters(self) -> list[Tensor]:
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    def frozen_copy(self) -> "LanguageModel":
        """The same weights in memory of their own, without gradients: a reference model."""
        model = copy.deepcopy(self.model).requires_grad_(False)
        return LanguageModel(
            model, self.tokenizer, self.chat, self.eos_ids, self.device, self.compute_dtype, self.head_is_plain
        )

    def save(self, folder: Path, dtype: torch.dtype = torch.float32) -> None:
        """An ordinary folder of Hugging Face layout: weights in `dtype`, config, tokenizer, chat template."""
        from transformers.utils import logging

        logging.disable_progress_bar()
        state = self.model.state_dict()
        # a tied weight stays one tensor, as the saving looks for those
        cast = {t.data_ptr(): t.to("cpu", dtype) for t in state.values() if t.is_floating_point()}
        state = {name: cast.get(tensor.data_ptr(), tensor) for name, tensor in state.items()}
        self.model.save_pretrained(folder, state_dict=state)
        _name_dtype(folder / "config.json", dtype)
        self.tokenizer.save_pretrained(folder)


def _name_dtype(file: Path, dtype: torch.dtype) -> None:
    """config.json names the dtype of the weights in memory; those on disk have this one."""

    def named(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: named(item) for key, item in value.items()}
        return str(dtype).removeprefix("torch.") if value == "float32" else value

    config = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps(named(config), indent=2, sort_keys=True) + "\n", encoding="utf-8")


def resolve_path(path: str) -> str:
    """The folder or hub name a recipe's model.path stands for. Raises ModelError where a folder is missing."""
    if path == LAB_MODEL:
        return str(resources.files("selfcorrect") / "assets" / "lab_base")
    looks_local = path.startswith((".", "/", "~")) or path.count("/") != 1
    folder = Path(path).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            kept = [name for name in ("final", "best") if (folder / name / "config.json").is_file()]
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


def load_model(config: ModelConfig) -> LanguageModel:
    """Load model, tokenizer and chat template. Raises ModelError, naming what is missing."""
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    source = files.find(resolve_path(config.path), config.path)
    if not config.trust_remote_code:
        source.refuse_code()
    device = pick_device(config.device)
    attention = config.attention if config.attention != "auto" else ("eager" if device.type == "cpu" else "sdpa")
    how = {**source.how, "trust_remote_code": config.trust_remote_code}  # never None: transformers would ask on stdin
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)  # what it reports at length becomes one line here
    try:
        try:
            tokenizer = AutoTokenizer.from_pretrained(source.path, **how)
        except Exception as error:  # transformers raises many kinds here; all mean the folder is not usable
            raise source.refusal(f"no tokenizer can be loaded: {files.first_line(error)}") from error
        raw = source.read_json("generation_config.json")
        given, changes = generation.mended(raw) if raw is not None else (None, "")
        model, found = AutoModelForCausalLM.from_pretrained(
            source.path, dtype=torch.float32, attn_implementation=attention, output_loading_info=True,
            generation_config=given, **how,
        )  # fmt: skip
        if raw is None and model.can_generate():  # made from config.json
            model.generation_config, changes = generation.mended(model.generation_config.to_dict())
    except ModelError:
        raise
    except Exception as error:
        raise source.not_loaded(error) from error
    finally:
        logging.set_verbosity(verbosity)
    if found["missing_keys"]:
        first, *more = sorted(found["missing_keys"])
        raise ModelError(
            f"model.path = {config.path!r}: its weights lack {first}" + (f" and {len(more)} more" if more else "")
            + ", which would be left random; the files are not complete, or not of a causal language model"
        )  # fmt: skip
    templates.choose(tokenizer, config.chat_template)
    lm = wrap(model.to(device), tokenizer, pick_dtype(config.precision, device), config.template_options)
    if changes:
        lm.chat.notes += (f"the model's generation settings will be saved {changes}; nothing here samples by them",)
    return lm


def wrap(
    model: Any,
    tokenizer: Any,
    compute_dtype: torch.dtype = torch.float32,
    template_options: Mapping[str, Any] | None = None,
) -> LanguageModel:
    """A model and tokenizer already in memory -> LanguageModel."""
    model.eval()
    eos_ids = _ids(getattr(getattr(model, "generation_config", None), "eos_token_id", None)) | _ids(
        tokenizer.eos_token_id
    )
    if not eos_ids:
        raise ModelError("neither the tokenizer nor generation_config.json names an end-of-sequence token")
    chat = Chat(tokenizer, eos_ids, template_options)
    turn_end = chat.turn_end()
    if turn_end is not None and turn_end not in eos_ids:  # base models often name only the end of a document
        eos_ids |= {turn_end}
        chat = Chat(tokenizer, eos_ids, template_options)
    device = next(model.parameters()).device
    return LanguageModel(model, tokenizer, chat, eos_ids, device, compute_dtype, _head_is_plain(model))


def _ids(value: int | list[int] | None) -> frozenset[int]:
    return frozenset() if value is None else frozenset([value] if isinstance(value, int) else value)


@torch.no_grad()
def _head_is_plain(model: Any) -> bool:
    """Whether logits are head(hidden) and nothing more (some models cap or scale them): tried, not guessed."""
    try:
        probe = torch.arange(1, 5, device=next(model.parameters()).device)[None] % model.config.vocab_size
        hidden = model.get_decoder()(input_ids=probe).last_hidden_state
        return torch.equal(model.get_output_embeddings()(hidden), model(input_ids=probe).logits)
    except Exception:  # noqa: BLE001 - models of other shapes fail here in their own ways; the whole forward serves
        return False


def use_threads(threads: int | None) -> None:
    """How many threads torch computes with, in the whole process; None leaves it as it is."""
    if threads:
        torch.set_num_threads(threads)


def pick_device(name: str) -> torch.device:
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        name = next(kind for kind in ("cuda", "mps", "cpu") if available[kind])
    if not available[name]:
        raise ModelError(f"model.device = {name!r}: this machine has none that torch can use; set auto or cpu")
    return torch.device(name)


def pick_dtype(precision: str, device: torch.device) -> torch.dtype:
    """auto: bfloat16 where the hardware multiplies it natively, float32 elsewhere."""
    if precision != "auto":
        return torch.bfloat16 if precision == "bfloat16" else torch.float32
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    return torch.bfloat16 if native_bfloat16(device) else torch.float32


def native_bfloat16(device: torch.device) -> bool:
    """Whether this CPU multiplies bfloat16 in hardware (AVX-512 BF16 or AMX)."""
    cpu: Any = torch.cpu
    return device.type == "cpu" and (cpu._is_avx512_bf16_supported() or cpu._is_amx_tile_supported())
