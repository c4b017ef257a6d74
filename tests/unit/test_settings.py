"""Every setting says what it is, in one place that the reference, `explain`, `check` and errors share."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

import pytest
import yaml
from pydantic import BaseModel, Field

from selfcorrect.config import CompareConfig, LabBaseConfig, TrainConfig
from selfcorrect.config.base import Paper, Strict
from selfcorrect.config.commented import commented
from selfcorrect.config.explain import explain, overview
from selfcorrect.config.paths import PATHS
from selfcorrect.config.recipe import load_recipe
from selfcorrect.config.reference import reference
from selfcorrect.config.settings import _members, _setting, sections, settings
from selfcorrect.config.shipped import shipped_recipes
from selfcorrect.config.yaml12 import Loader
from selfcorrect.errors import ConfigError

ROOT = Path(__file__).parents[2]


def models(top: type[BaseModel]) -> Iterator[type[BaseModel]]:
    """A model and those anywhere inside it, found by themselves and not by settings.py."""
    yield top
    for info in top.model_fields.values():
        for kind in _members(info.annotation):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from models(kind)


def test_every_setting_says_what_it_means() -> None:
    silent = {
        f"{model.__name__}.{name}"
        for top in (TrainConfig, LabBaseConfig, CompareConfig)
        for model in models(top)
        for name, info in model.model_fields.items()
        if not (info.description or "").strip().endswith(".")
    }
    assert not silent, f"write a sentence in three quotes beneath: {', '.join(sorted(silent))}"


def test_every_model_is_a_section_and_every_field_a_setting() -> None:
    told = {setting.name for setting in settings()}
    for top in (TrainConfig, LabBaseConfig, CompareConfig):
        for model in models(top):
            assert set(model.model_fields) <= told, model.__name__
    assert all(section.meaning.endswith(".") for section in sections())


def test_every_path_is_known_as_one() -> None:
    """So that a recipe's is of its folder, and a run's whole. `path` may be a hub name; `output` is of the current folder."""
    found = {
        name
        for top in (TrainConfig, LabBaseConfig, CompareConfig)
        for model in models(top)
        for name, info in model.model_fields.items()
        if "AfterValidator" in repr(info)
    }
    assert found == {*PATHS, "path", "output"}


def test_the_reference_is_what_the_models_say() -> None:
    page = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    assert page == reference(), "docs/settings.md is of other settings: `make reference` writes it anew"


def test_the_reference_has_every_setting_and_whole_tables() -> None:
    page = reference()
    rows = [line for line in page.splitlines() if line.startswith("|")]
    assert all(len(re.split(r"(?<!\\)\|", row)) == 7 for row in rows)
    assert {setting.key for setting in settings()} == {
        found for row in rows for found in re.findall(r"^\| `([^`]+)`", row)
    }
    spans = re.findall(r"(?<!`)`([^`]+)`(?!`)", page)
    assert not [span for span in spans if r"\_" in span]  # a code span shows its backslashes


class Shapes(Strict):
    """What the walk must tell of types."""

    whole: Annotated[int, Field(ge=2, le=9)] = 3
    share: Annotated[float, Field(gt=0, le=1)] = 0.5
    either: Annotated[int, Field(gt=0)] | Literal["auto"] = "auto"
    many: tuple[Literal["a", "b"], ...] | None = None
    pair: Annotated[tuple[float, float], Paper("tau")] = (0.0, 1.0)
    texts: dict[str, str] = Field(default_factory=dict)
    odd: str = "yes"
    named: Annotated[str, Field(pattern=r"^[a-z][a-z.]*$")] = "a"
    must: bool


@pytest.mark.parametrize(
    ("name", "takes", "default", "paper"),
    [
        ("whole", "whole number from 2 to 9", "3", ""),
        ("share", "number above 0, to 1", "0.5", ""),
        ("either", "whole number from 1 | auto", "auto", ""),
        ("many", "list of a | b | null", "null", ""),
        ("pair", "2 of number", "[0.0, 1.0]", "tau"),
        ("texts", "mapping to text", "{}", ""),
        ("odd", "text", "'yes'", ""),  # without quotes, YAML 1.1 reads true
        ("named", "name of letters, digits, -, _ and (not first) dots", "a", ""),
        ("must", "true | false", None, ""),
    ],
)
def test_types_in_words(name: str, takes: str, default: str | None, paper: str) -> None:
    found = _setting("", "", name, Shapes.model_fields[name])
    assert (found.takes, found.default, found.paper) == (takes, default, paper)


@pytest.mark.parametrize("recipe", list(shipped_recipes()))
def test_a_commented_recipe_is_the_recipe(recipe: str) -> None:
    plain = load_recipe(recipe).model_dump(mode="json")
    text = commented(plain)
    assert yaml.load(text, Loader=Loader) == plain
    assert max(map(len, re.findall(r"^\s*#.*$", text, re.MULTILINE))) <= 120


@pytest.mark.parametrize(
    ("key", "told"),
    [
        ("rollouts.temperature", ["rollouts.temperature", "number above 0", "default  1.0", "Table 5", "math_gemma-3-1b-it"]),
        ("stages.stage2.alpha", ["(objective stage2)", "default  10.0", "Eq. 4", "0: compare_lab/no_shaping"]),
        ("stages.mine.alpha", ["objective stage2", "objective annealed"]),
        ("alpha", ["model.lora.alpha", "stages.NAME.alpha"]),
        ("gamma=0.5", ["App. A.2", "stage2, multi_turn"]),
        ("lora.alpha", ["math_qwen2.5-1.5b-instruct_lora"]),
        ("stages.0.steps", ["every objective", "it must be given"]),
        ("beta2", ["Eq. 3", "0.25: code_gemma-3-1b-it"]),
        ("checkpoint", ["smoothing", "held_out"]),
        ("stage1", ["objective: stage1", "beta2"]),
        ("task.math", ["name: math", "columns"]),
        ("task.of.dataset", ["gsm8k", "humaneval_plus"]),
        ("common.model.tuning", ["full | lora | qlora"]),
        ("compare", ["kind: compare", "against"]),
        ("search.beta1", ["list of number", "[0.001, 0.01]: compare_lab"]),
        ("num_generations", ["what others call num_generations", "takes    whole number from 1", "default  8"]),
        ("model.lora.r", ["here: model.lora.rank", "default  16"]),
        ("beta", ["beta1 (every attempt)", "stages.NAME.beta2", "Eq. 3"]),
        ("lr", ["stages.NAME.learning_rate", "Table 5"]),
        ("evaluation.correction_prompts.plain", ["evaluation.correction_prompts", "mapping to text"]),
        ("task.columns.problem", ["task.columns", "task math"]),
        ("task.code.shots", ["three-shot", "from 0 to 3"]),
        ("stages.annealed.begin", ["objective annealed"]),
        ("methods.score.label", ["How the table calls it."]),
        ("--Rollouts.Max-New-Tokens", ["rollouts.max_new_tokens", "default  256"]),
        ("stages.NAME.adaptive.target", ["nats an attempt"]),
        ("stages.sft", ["objective: pair_sft", "objective: stage1"]),
        ("batch", ["kind lab_base", "objective pair_sft, star"]),
        ("stages[0].steps", ["every objective", "it must be given"]),
        ("rollouts / temperature", ["number above 0"]),
        ("\N{GREEK SMALL LETTER BETA}2", ["Eq. 3", "0.25: code_gemma-3-1b-it"]),
    ],
)  # fmt: skip
def test_explain(key: str, told: list[str]) -> None:
    text = "\n".join(explain(key))
    assert not [part for part in told if part not in text], text


@pytest.mark.parametrize(
    ("key", "told"),
    [
        ("temprature", "did you mean rollouts.temperature or evaluation.temperature"),
        ("rollout.temperature", "did you mean rollouts.temperature"),
        ("stages.stage2.alhpa", "did you mean stages.NAME.alpha"),
        ("alhpa", "did you mean model.lora.alpha or stages.NAME.alpha?"),
        ("checkpiont", "did you mean checkpoint"),
        ("", "`selfcorrect explain` lists the sections"),
        ("zzzz.qqqq", "`selfcorrect explain` lists the sections"),
        ("micro", "did you mean optimizer.micro_batch?"),
        ("q" * 5000, "qqq...' is no setting"),
        ("{}[*", "`selfcorrect explain` lists the sections"),
    ],
)
def test_what_is_no_setting(key: str, told: str) -> None:
    with pytest.raises(ConfigError) as error:
        explain(key)
    assert told in str(error.value)
    assert "\n" not in str(error.value)


def test_explain_alone_lists_sections_each_of_which_it_explains() -> None:
    for line in overview():
        assert explain(line.split()[0])
    assert explain("stages.stage2") == explain("stage2")  # the objective alone, as a stage of that name would be


def test_explain_brings_in_nothing_heavy() -> None:
    code = """
import sys
from selfcorrect.cli import app
try:
    app(["explain", "alpha"], standalone_mode=False)
finally:
    assert not {"torch", "transformers", "numpy", "datasets"} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Eq. 4" in done.stdout
