"""Models that read pictures too: the text model within is loaded, trained and saved."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from selfcorrect.config import VllmConfig
from selfcorrect.errors import ConfigError
from selfcorrect.exporting import export
from selfcorrect.models.sizing import sized
from selfcorrect.samplers.choose import make_sampler
from tests.support.runs import valid
from tests.support.tiny import loaded, tiny_lm


@pytest.mark.parametrize(("tuning", "tied"), [("full", True), ("full", False), ("lora", False), ("qlora", True)])
def test_of_a_model_that_reads_pictures_the_text_model_is_loaded(tuning: str, tied: bool, tmp_path: Path) -> None:
    """Gemma 3 from 4 billion weights on: the same logits, each layer's window known, saved as an ordinary model."""
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    lm = tiny_lm("gemma3", "eager")
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    seeing = {**sizes, "image_size": 14, "patch_size": 14}
    whole = Gemma3ForConditionalGeneration(
        Gemma3Config(
            text_config=lm.model.config.to_dict(), vision_config=seeing, mm_tokens_per_image=1, tie_word_embeddings=tied
        )
    ).eval()
    whole.model.language_model.load_state_dict(lm.model.model.state_dict())
    whole.save_pretrained(tmp_path / "whole")
    lm.tokenizer.save_pretrained(tmp_path / "whole")
    told = {"path": str(tmp_path / "whole"), "tuning": tuning, "device": "cpu", "precision": "float32"}
    found = loaded(tmp_path / "whole", tuning)
    assert any("the text model alone is loaded, trained and saved, as Gemma3ForCausalLM" in n for n in found.chat.notes)
    assert found.windows == lm.windows == {"sliding_attention": 6, "full_attention": None}
    assert found.head_form is not None
    ids = torch.arange(1, 13).view(2, 6)
    with torch.no_grad():
        logits, expected = found.logits(ids, None, use_cache=False), whole(ids, use_cache=False).logits.flatten(0, 1)
    if tuning != "qlora":
        torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
    config = valid({"model": told, "stages": [{"name": "a", "objective": "stage2", "steps": 1, "learning_rate": 1.0}]})
    assert isinstance(sized(config, found, 64)[0].rollouts.rows_at_once, int)
    served = config.model_copy(update={"sampler": "vllm", "vllm": VllmConfig(server="http://localhost:1")})
    with pytest.raises(ConfigError, match="a Gemma3ForConditionalGeneration, whose weights have other names"):
        make_sampler(served, found)
    if found.adapters:
        (tmp_path / "adapter").mkdir()
        found.save(tmp_path / "adapter", torch.float32)
        again = loaded(tmp_path / "adapter", tuning)
        with torch.no_grad():
            torch.testing.assert_close(again.logits(ids, None, use_cache=False), logits)
        with pytest.raises(ConfigError, match="other tools would load nothing of it; --merge writes"):
            export(tmp_path / "adapter", tmp_path / "out")
        found.adapters.merge()
        found = replace(found, adapters=None)
    found.save(tmp_path / "saved", torch.float32)
    again = loaded(tmp_path / "saved")
    assert type(again.model) is type(lm.model)
    assert not any("text model" in note for note in again.chat.notes)
    with torch.no_grad():
        torch.testing.assert_close(again.logits(ids, None, use_cache=False), logits, rtol=1e-4, atol=1e-4)
