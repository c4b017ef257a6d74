"""KEY=VALUE: what it sets, and what is refused with its own words."""

import re
from pathlib import Path

import pytest

from selfcorrect.config import (
    StageTwo,
    TrainConfig,
)
from selfcorrect.config.recipe import load_recipe
from tests.unit.test_config import RECIPE, recipe, refusal

__all__ = ["recipe"]


def test_overrides(recipe: Path) -> None:
    config = load_recipe(
        recipe,
        [
            "seed=9",
            "stages.correct.alpha=0",
            "stages.0.steps=2",
            "optimizer.betas=[0.8, 0.9]",
            "model.path=a=b",
            "name=x",
        ],
    )
    assert isinstance(config, TrainConfig)
    assert (config.seed, config.name, config.model.path, config.optimizer.betas) == (9, "x", "a=b", (0.8, 0.9))
    assert config.stages[0].steps == 2
    assert isinstance(config.stages[1], StageTwo)
    assert config.stages[1].alpha == 0.0


@pytest.mark.parametrize(
    ("override", "pattern"),
    [
        ("seed", r"'seed' must have the form key=value"),
        ("=3", r"'=3' must have the form key=value"),
        ("sede=3", r"unknown key 'sede'; did you mean 'seed'"),
        ("seed=three", r"seed = 'three': input should be a valid integer"),
        ("seed=[1", r"'seed=\[1': the value is not valid YAML"),
        ("seed.x=3", r"seed is a single value"),
        ("stages.nope.steps=3", r"no entry 'nope'; there are hold, correct"),
        ("stages.2.steps=3", r"no entry '2'; there are hold, correct"),
        ("stages.².steps=3", r"no entry '²'; there are hold, correct"),
        ("rollouts.rollouts_per_problem=1", r"rollouts_per_problem is 1"),
        ("name=a/b", r"name = 'a/b': must be letters, digits, -, _ and \(not first\) dots"),
        ("stages.hold.name=a.b", r"stages.hold.name = 'a.b': must be letters, digits, - and _$"),
        ("optimizer.betas=0.9", r"optimizer.betas = 0.9: must be a list \("),
        ("stages=null", r"stages( = None)?: must be a list \("),
        ("log.trackers=wandb", r"log.trackers = 'wandb': must be a list; write \[wandb\]"),
        ("x.y.z=1", r"override 'x.y.z=1': unknown key 'x'"),
        ("checkpoint.x.y=1", r"override 'checkpoint.x.y=1': unknown key 'checkpoint.x'"),
        ("stages.hold.x.y=1", r"override 'stages.hold.x.y=1': unknown key 'stages.hold.x'"),
        ("task.correction_prompt= ", r"correction_prompt is blank: the model would be asked nothing"),
        (
            "evaluation.external=[a/t.jsonl, b/t.jsonl]",
            r"external = 'b/t.jsonl': has the file name of evaluation.external = 'a/t.jsonl'",
        ),
        ("model.path=", r"model.path = '': "),
        ("learning_rate=1e-5", r"a setting of every stage \(stages.NAME.learning_rate\)$"),
    ],
)
def test_wrong_overrides(recipe: Path, override: str, pattern: str) -> None:
    assert re.search(pattern, refusal(recipe, RECIPE, override))


def test_a_wrong_override_is_not_blamed_on_a_line_of_the_file(recipe: Path) -> None:
    assert not refusal(recipe, RECIPE, "seed=three").startswith("recipe.yaml:2")
