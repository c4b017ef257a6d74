"""A model as a planner needs it: its config, and its numbers by kind of weight."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from selfcorrect.config import ModelConfig
from selfcorrect.errors import ModelError, UserError, first_line
from selfcorrect.models import adapters, files
from selfcorrect.models.files import resolve_path
from selfcorrect.models.windows import shape_of
from selfcorrect.planning.known import known_config, known_names


@dataclass(frozen=True, slots=True)
class Spec:
    """path: a recipe's model.path; config: transformers' own, of the text model."""

    path: str
    config: Any

    @property
    def layers(self) -> int:
        return int(self.config.num_hidden_layers)

    @property
    def hidden(self) -> int:
        return int(self.config.hidden_size)

    @property
    def vocabulary(self) -> int:
        return int(self.config.vocab_size)

    @property
    def heads(self) -> int:
        return int(self.config.num_attention_heads)

    def token_bytes(self, compute: torch.dtype) -> int:
        """Of a token's keys and values in all layers."""
        return shape_of(self.config).token_bytes(compute.itemsize)


def described(model: ModelConfig) -> Spec:
    """From the folder's config.json, from the table of known models, or else from the hub.

    Raises ModelError where there is none, or it is not one of a text model that transformers can build.
    """
    from transformers import AutoConfig

    path = resolve_path(model.path)
    known = None if Path(path).is_dir() else known_config(path)
    try:
        if known is not None:
            return Spec(model.path, AutoConfig.for_model(**known))
        source = files.find(path, model.path)
        if not source.has("config.json") and (adapter := source.read_json(adapters.CONFIG)):
            return described(model.model_copy(update={"path": str(adapter["base_model_name_or_path"])}))
        if not model.trust_remote_code:
            source.refuse_code()
        config = AutoConfig.from_pretrained(source.path, trust_remote_code=model.trust_remote_code, **source.how)
        return Spec(model.path, config.get_text_config())
    except UserError as error:
        if Path(path).is_dir():
            raise
        raise ModelError(f"{error}; without the hub, these are known: {', '.join(known_names())}") from error
    except Exception as error:  # transformers checks configs with exceptions of many kinds
        raise ModelError(f"model.path = {model.path!r}: no plan from its config.json ({first_line(error)})") from error
