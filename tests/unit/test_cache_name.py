"""Transformers has had two names for the cache of keys and values: a pass goes by that of the model's own code."""

from types import SimpleNamespace
from typing import Any

import pytest

from selfcorrect.models.language_model import LanguageModel
from selfcorrect.samplers.transformers import TransformersSampler
from selfcorrect.types import SamplingParams
from tests.support.tiny import tiny_lm


def test_the_cache_is_handed_on_and_taken_back_by_either_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LanguageModel, "windows", None)  # the plain way, where the model makes the cache
    lm = tiny_lm()
    prompts, params = [lm.chat.first_prompt("5 2 1 : 8"), lm.chat.first_prompt("4 : 4")], SamplingParams(1.0, 8, 5)
    expected = TransformersSampler(lm).sample(prompts, params)
    kind, handed = type(lm.model), list[Any]()
    name = next(iter(lm.given(None)))
    other = {"past_key_values": "cache", "cache": "past_key_values"}[name]

    def renamed(self: Any, past: Any, **kwargs: Any) -> Any:
        handed.append(past)
        output = kind.forward(self, **{name: past}, **kwargs)
        return SimpleNamespace(logits=output.logits, **{other: getattr(output, name)})

    takes: dict[str, Any] = {
        "cache": lambda self, cache=None, **kwargs: renamed(self, cache, **kwargs),
        "past_key_values": lambda self, past_key_values=None, **kwargs: renamed(self, past_key_values, **kwargs),
    }
    lm.model.__class__ = type("Renamed", (kind,), {"forward": takes[other]})
    assert TransformersSampler(lm).sample(prompts, params) == expected
    assert [past is None for past in handed] == [True] + [False] * (len(handed) - 1)
    assert len(handed) > 1
