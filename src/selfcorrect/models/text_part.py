"""The language model within one that reads pictures too: an ordinary one, which is what trains here and is saved."""

from typing import Any

import torch

from selfcorrect.models.adapters import noted_quantised


def text_part(model: Any) -> tuple[Any, str]:
    """The model's decoder and head as a causal LM of the text config, and the class of the whole.

    The model itself and nothing where it is one already, or where transformers has no class for its text alone.
    """
    from transformers import AutoModelForCausalLM

    text = model.config.get_text_config()
    kind = None if text is model.config else AutoModelForCausalLM._model_mapping.get(type(text), None)
    if kind is None or isinstance(model, kind):
        return model, ""
    with torch.device("meta"):
        alone = kind(text)
    decoder = model.get_decoder()
    if type(alone.get_decoder()) is not type(decoder):
        return model, ""
    setattr(alone, alone.base_model_prefix, decoder)
    head = model.get_output_embeddings()
    alone.set_output_embeddings(head)
    text.tie_word_embeddings = head.weight is decoder.get_input_embeddings().weight
    alone.generation_config = model.generation_config
    alone.eval()
    text.architectures = [kind.__name__]
    for of, name in noted_quantised(model):
        setattr(alone if of is model else text, name, vars(of)[name])
    return alone, type(model).__name__
