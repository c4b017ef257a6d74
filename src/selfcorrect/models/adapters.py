"""LoRA adapters inside a model's own modules, and which of them a forward pass sees.

The model stays the transformers model that it was: PEFT replaces its linear layers in place. So policy, reference and
sampler are views of the same modules, and the reference takes no memory: it is the model with the adapter off, or with
a frozen second one, where training began with an adapter or a later stage measures to an earlier one's end.
"""

import contextlib
import importlib.util
import json
import logging
import math
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from selfcorrect.config import LoraConfig
from selfcorrect.errors import ModelError, first_line
from selfcorrect.models.files import ADAPTER
from selfcorrect.models.sharded import fill, whole

POLICY, FROZEN, OFF = "default", "frozen", ""  # the first is the name that PEFT gives the only adapter of a folder
CONFIG, WEIGHTS, ABOUT = ADAPTER, "adapter_model.safetensors", "selfcorrect.json"
_PREFIX = "base_model.model."  # of every name in an adapter's file, from the wrapper that PeftModel is
_PLAIN = {  # what an adapter may not have, with the value that means it has not
    "use_dora": False, "bias": "none", "modules_to_save": None, "trainable_token_indices": None, "lora_bias": False,
    "target_parameters": None, "alora_invocation_tokens": None,
}  # fmt: skip
_BEGINS = (True, False, "gaussian", "orthogonal")  # others take what they begin with out of the model's own weights


def need_peft() -> Any:
    """PEFT. Raises ModelError that names the extra where it is missing."""
    if importlib.util.find_spec("bitsandbytes"):  # PEFT would import it in its own way
        with contextlib.suppress(ModelError):
            need_bitsandbytes("model.tuning")
    return _import("peft", "model.tuning: lora and qlora", "lora")


def need_bitsandbytes(what: str) -> Any:
    """bitsandbytes, kept from fetching a kernel from a hub and running it as it is imported; ours computes without.

    what: the setting that needs it. Raises ModelError where it is missing.
    """
    fetcher, log = sys.modules.get("kernels"), logging.getLogger("bitsandbytes")
    level = log.level
    try:
        log.setLevel(logging.ERROR)
        sys.modules["kernels"] = None  # type: ignore[assignment]
        return _import("bitsandbytes", what, "qlora")
    finally:
        log.setLevel(level)
        del sys.modules["kernels"]
        if fetcher is not None:
            sys.modules["kernels"] = fetcher


def _import(module: str, what: str, extra: str) -> Any:
    try:
        return importlib.import_module(module)
    except Exception as error:  # noqa: BLE001 - a build without this machine's libraries fails in ways of its own
        missing = isinstance(error, ModuleNotFoundError) and error.name == module
        why = "is not installed" if missing else f"cannot be used here ({error})"
        raise ModelError(f"{what}: {module} {why}; pip install 'selfcorrect[{extra}]'") from None


class Adapters:
    """The adapters of one model: POLICY trains, FROZEN does not.

    config: PEFT's settings. base: where the model's weights are. about: texts kept with a saved adapter.
    """

    def __init__(self, model: Any, config: Any, base: str, seed: int) -> None:
        """Puts a fresh POLICY adapter into the model: it changes nothing yet. Raises ModelError where none fits."""
        self.config, self.base, self._model = config, base, model
        self.about: dict[str, str] = {}
        self._shown = POLICY
        self._add(POLICY, seed)

    @contextmanager
    def shown(self, view: str) -> Iterator[None]:
        """Forward passes inside see this adapter, or none. Outside, and so in every backward pass, it is POLICY."""
        before = self._shown
        if view == before:
            yield
            return
        self._show(view)
        try:
            yield
        finally:
            self._show(before)

    def tensors(self, adapter: str = POLICY) -> dict[str, Tensor]:
        """The adapter's weights, float32, by the names that its file has for them."""
        found = {}
        for name, parameter in self._model.named_parameters():
            head, mark, tail = name.rpartition(f".{adapter}")
            if mark and "lora_" in head and tail in ("", ".weight", ".bias"):
                found[f"{_PREFIX}{head}{tail}"] = parameter
        return found

    def refuse_other_layers(self) -> None:
        """Raises ValueError where an adapted layer is no linear one, or the head.

        Log-probabilities are computed from the head's own weight, which embeddings may share.
        """
        from transformers.pytorch_utils import Conv1D

        head = self._model.get_output_embeddings()
        for name, layer in adapted_layers(self._model):
            if layer is head or not isinstance(layer.get_base_layer(), (torch.nn.Linear, Conv1D)):
                on = f"{name.rpartition('.')[2]}, which is {'the head' if layer is head else 'no linear layer'}"
                raise ValueError(f"its adapter is on {on}; merge it with PEFT first")

    def load(self, state: Mapping[str, Tensor], adapter: str = POLICY) -> None:
        """Put weights named as in a file into the adapter. Raises ValueError where they are another one's."""
        if adapter == FROZEN and FROZEN not in self._model.peft_config:
            self._add(FROZEN, 0)
        mine = self.tensors(adapter)
        other = sorted(mine.keys() ^ state.keys()) or [n for n, t in mine.items() if t.shape != state[n].shape]
        if other:
            raise ValueError(f"its weights do not fit the model: {', '.join(other[:3])}")
        with torch.no_grad():
            for name, tensor in mine.items():
                fill(tensor, state[name])

    @property
    def changes_nothing(self) -> bool:
        """Whether the model computes what it would without the policy's adapter: a fresh one does."""
        return not any(whole(tensor).any() for name, tensor in self.tensors().items() if "lora_B" in name)

    def save(self, folder: Path) -> None:
        """adapter_config.json and adapter_model.safetensors, as PeftModel.from_pretrained reads them."""
        from safetensors.torch import save_file

        self.config.base_model_name_or_path = self.base
        told = self.config.to_dict() | {"inference_mode": True}
        # sorted, as a set's order differs from process to process
        plain = {key: sorted(value) if isinstance(value, set) else value for key, value in told.items()}
        (folder / CONFIG).write_text(json.dumps(plain, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        (folder / ABOUT).write_text(json.dumps(self.about, indent=1) + "\n", encoding="utf-8")
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in self.tensors().items()}
        save_file(state, folder / WEIGHTS, metadata={"format": "pt"})

    def merge(self, *, exact: bool = False) -> None:
        """The policy's adapter goes into the weights; a 4-bit base is dequantised first, and stays so.

        exact: all weights become float32, so that no sum is rounded to what the base was stored in.
        """
        for name, layer in list(adapted_layers(self._model)):
            merged = dequantised(layer.get_base_layer())
            delta = layer.get_delta_weight(POLICY).float()
            with torch.no_grad():
                merged.weight.data = (merged.weight.float() + delta).to(torch.float32 if exact else merged.weight.dtype)
            self._model.set_submodule(name, merged)
        for name, layer in list(four_bit_layers(self._model)):  # that no adapter was on
            self._model.set_submodule(name, dequantised(layer))
        if exact:
            for tensor in (*self._model.parameters(), *self._model.buffers()):
                tensor.data = tensor.data.float() if tensor.is_floating_point() else tensor.data
        _forget(self._model)

    def _add(self, adapter: str, seed: int) -> None:
        peft = need_peft()
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.manual_seed(seed)
            try:
                peft.inject_adapter_in_model(self.config, self._model, adapter)
            except (ValueError, TypeError, NotImplementedError) as error:
                raise ModelError(f"model.lora fits no layer of the model: {first_line(error)}") from error
        for tensor in self.tensors(adapter).values():
            if tensor.dtype.itemsize < torch.float32.itemsize:
                tensor.data = tensor.data.float()
        self._show(self._shown)

    def _show(self, view: str) -> None:
        for _, layer in adapted_layers(self._model):
            if view != OFF:
                layer.set_adapter(view, inference_mode=view != POLICY)
            # Not by `enable_adapters`, which freezes weights that a graph under way has gradients for.
            layer._disable_adapters = view == OFF
        self._shown = view


def _forget(model: Any) -> None:
    """That the model was quantised, or had adapters, so that it is saved as an ordinary one."""
    model.peft_config.clear()
    del model.peft_config
    if getattr(model, "hf_quantizer", None) is not None:
        for of, name in noted_quantised(model):
            delattr(of, name)


def noted_quantised(model: Any) -> Iterator[tuple[Any, str]]:
    """What transformers noted as it quantised a model while loading it: the model or its config, and a name there."""
    return (
        (of, name)
        for of, names in (
            (model, ("hf_quantizer", "is_quantized", "is_loaded_in_4bit", "quantization_method")),
            (model.config, ("quantization_config", "_pre_quantization_dtype")),
        )
        for name in names
        if name in vars(of)
    )


def stored_about(folder: Path) -> tuple[dict[str, str], str]:
    """What was kept with an adapter (empty where other tools saved it), and the model that it is for.

    Raises ModelError where a file cannot be read.
    """
    try:
        named = json.loads((folder / CONFIG).read_text(encoding="utf-8"))["base_model_name_or_path"]
        file = folder / ABOUT
        found = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        return {str(key): str(value) for key, value in found.items()}, str(named)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{folder}: not the folder of an adapter ({error})") from None


def adapted_layers(model: Any) -> Iterator[tuple[str, Any]]:
    """Every adapted layer with its whole name."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return ((name, module) for name, module in model.named_modules() if isinstance(module, BaseTunerLayer))


def four_bit_layers(model: Any) -> Iterator[tuple[str, Any]]:
    """Every linear layer with 4-bit weights, with its whole name; those beneath an adapter too."""
    return (
        (name, module)
        for name, module in model.named_modules()
        if getattr(module._parameters.get("weight"), "quant_state", None) is not None  # its own, not that beneath it
    )


def keep_plain(model: Any) -> None:
    """4-bit layers compute alike in every forward pass.

    On some processors bitsandbytes would repack the weights at the first pass without gradients and compute in another
    way from then on: sampler and policy would differ, and the kernel comes from a hub.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def dequantised(layer: Any) -> Any:
    """A linear layer with float32 weights, where it has 4-bit ones; others as they are."""
    state = getattr(layer.weight, "quant_state", None)
    if state is None:
        return layer
    weight = need_bitsandbytes("model.tuning: qlora").functional.dequantize_4bit(layer.weight.data, state).float()
    plain = torch.nn.Linear(layer.in_features, layer.out_features, layer.bias is not None, weight.device)
    with torch.no_grad():
        plain.weight.copy_(weight)
        if layer.bias is not None:
            plain.bias.copy_(layer.bias)
    return plain.requires_grad_(False)


def fresh_config(lora: LoraConfig, model: Any) -> Any:
    """PEFT's settings for a recipe's. Raises ModelError where a target is no linear layer, or the head."""
    peft = need_peft()
    if lora.targets is not None:
        _check_targets(lora.targets, model)
    return peft.LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, lora_dropout=0.0, bias="none", task_type="CAUSAL_LM",
        target_modules="all-linear" if lora.targets is None else list(lora.targets),
        fan_in_fan_out=any(type(module).__name__ == "Conv1D" for module in model.modules()),
    )  # fmt: skip


def _check_targets(targets: tuple[str, ...], model: Any) -> None:
    head = model.get_output_embeddings()
    linear: dict[str, bool] = {}  # last part of a layer's name -> whether it is the head
    for name, module in model.named_modules():
        if getattr(module, "weight", None) is not None and type(module).__name__ in ("Linear", "Conv1D", "Linear4bit"):
            linear[name.rpartition(".")[2]] = module is head
    known = ", ".join(sorted(name for name, is_head in linear.items() if not is_head))
    for target in targets:
        if target not in linear:
            raise ModelError(f"model.lora.targets: {target!r} is no linear layer of the model; it has {known}")
        if linear[target]:
            raise ModelError(
                f"model.lora.targets: {target!r} is the head, whose weights log-probabilities are computed from "
                f"directly; name others ({known})"
            )


def stored_config(told: Mapping[str, Any], folder: Path) -> tuple[Any, str]:
    """PEFT's settings of an adapter folder, and in words what was changed. Raises ValueError where it cannot serve."""
    peft = need_peft()
    if told.get("peft_type") != "LORA":
        raise ValueError(f"an adapter of kind {told.get('peft_type')!r}; only LORA is used here")
    odd = [name for name, plain in _PLAIN.items() if told.get(name, plain) not in (plain, [], {})]
    if odd:
        raise ValueError(
            f"its adapter has {odd[0]} = {told[odd[0]]!r}, which is not computed here; merge it with PEFT first"
        )
    begins = told.get("init_lora_weights", True)
    if begins not in _BEGINS:
        raise ValueError(
            f"its adapter has init_lora_weights = {begins!r}, which changes the model beneath it; convert it with PEFT "
            "(path_initial_model_for_weight_conversion), or merge it, first"
        )
    config = peft.PeftConfig.from_pretrained(str(folder))
    changed = f"without its dropout of {config.lora_dropout:g}" if config.lora_dropout else ""
    config.lora_dropout, config.inference_mode = 0.0, False
    return config, changed


def differs(config: Any, lora: LoraConfig) -> str:
    """In words, where an adapter's settings are not the recipe's; empty where they are."""
    pairs = {"rank": (config.r, lora.rank), "alpha": (config.lora_alpha, lora.alpha)}
    found = {name: pair for name, pair in pairs.items() if not math.isclose(*pair)}
    return ", ".join(f"{name} {have:g} in place of {want:g}" for name, (have, want) in found.items())
