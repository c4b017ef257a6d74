"""A causal language model of Hugging Face layout in memory, with its tokenizer and chat template.

Shared by the policy, the reference and the transformers sampler, so that all three compute a token's
log-probability the same way. The forward pass runs under autocast where that is good.
The model always stays in eval mode: dropout would make the policy differ from the one that sampled.
"""

import copy
import functools
import inspect
import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from selfcorrect.models import packed
from selfcorrect.models.adapters import FROZEN, OFF, POLICY, Adapters
from selfcorrect.models.building import without_bars
from selfcorrect.models.chat import Chat
from selfcorrect.models.head import Head, HeadForm, States
from selfcorrect.models.masters import Masters
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
        return self.logits_of(self.states(token_ids, select, **kwargs))

    def logits_of(self, states: States) -> Tensor:
        """Next-token logits [N, V], float32 or better, of what `states` gave."""
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

    def given(self, cache: Any) -> dict[str, Any]:
        """Arguments of a forward pass that goes on from a cache of keys and values (None: begins one)."""
        return {_cache_name(type(self.model).forward): cache, "use_cache": True}

    def cache_in(self, output: Any) -> Any:
        """The cache that such a pass gives back; None where the model keeps none."""
        return getattr(output, _cache_name(type(self.model).forward), None)

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
        with without_bars():
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


def _precise(logits: Tensor) -> Tensor:
    """In float32, or in float64 where they are."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


@functools.cache
def _cache_name(forward: Callable[..., Any]) -> str:
    """Of the two names that transformers has had for it; a model with code of its own may have either."""
    return "cache" if "cache" in inspect.signature(forward).parameters else "past_key_values"
