"""KEY=VALUE: what it sets; and that a mistake is told as it was typed, with none of the recipe's own lines blamed."""

import re
from pathlib import Path

import pytest

from selfcorrect.config import StageTwo
from selfcorrect.config.recipe import load_recipe
from selfcorrect.errors import ConfigError
from selfcorrect.runs.recipes import train_config
from tests.unit.test_config import RECIPE, recipe, refusal

__all__ = ["recipe"]


def test_overrides(recipe: Path) -> None:
    stages = ("stages.correct.alpha=0", "stages.0.steps=2")
    config = train_config(recipe, "seed=9", *stages, "optimizer.betas=[0.8, 0.9]", "model.path=a=b", "name=x")
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


MATH = r"override 'task.name=math': task.name is now math, and the recipe's {} are of another kind and do not fit it; write 'task=\{{name: math\}}' instead"


def refused(recipe: str | Path, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as told:
        load_recipe(recipe, overrides)
    return str(told.value).splitlines()


@pytest.mark.parametrize(
    ("overrides", "lines"),
    [
        (["task.name=math", "task.data=rows.jsonl"], [MATH.format("task.max_number, task.limit")]),
        (["task.name=custom"], [r"'task.name=custom': .*task.max_number, task.limit, task.prompt, task.correction_prompt are",
                                r"^override 'task.name=custom': task.file is missing; add it \(The Python file\)$"]),
        (["task.name=math", "task.dataset=gms8k"], [MATH.format(".*"), r"override 'task.dataset=gms8k': task.dataset = 'gms8k'"]),
        (["stages.stage1.objective=single_turn"],
         [r"stages.stage1.beta2 are .* write 'stages.stage1=\{name: stage1, objective: single_turn, steps: 300, learning_rate: 0.00015\}'"]),
        (["stages.0.objective=pair_sft"], [r"^override 'stages.0.objective=pair_sft': stages.0.objective is now pair_sft, .*stages.0.beta1, st"]),
        (["stages.stage2.steps=x"], [r"^override 'stages.stage2.steps=x': stages.stage2.steps = 'x': input should be a valid"]),
        (["stages.1.steps=0"], [r"^override 'stages.1.steps=0': stages.1.steps = 0: "]),
        (["stages.stage2.alhpa=1"], [r"unknown key 'stages.stage2.alhpa'; did you mean 'alpha'\?$"]),
        (["stages.stage1.name=a/b"], [r"^override 'stages.stage1.name=a/b': stages.stage1.name = 'a/b': must be"]),
        (["stages.stage2={name: two}"], [r"^override 'stages.stage2=\{name: two\}': stages.stage2: objective is missing"]),
        (["stages.0.objective=pair_sft", "stages.0.beta1=1"], ["beta2 are of", "unknown key 'stages.0.beta1'"]),
        (["stages.stage2={name: two, objective: x}"], [r"^override .stages.stage2=\{name: two, objective: x\}.: stages.stage2: objective = .x. must be"]),
        (["task.max_number=x", "task={max_number: y}"], [r"^override .task=\{max_number: y\}.: task.max_number = .y.: input"]),
        (["stages={name: x}"], [r"^override 'stages=\{name: x\}': stages: "]),
        (["stages.stage2.objective=multi_turn", "stages.stage2.rewarded=9"], ["is now multi_turn, and .*alpha", "stages.stage2.rewarded = '9'"]),
        (["vllm.timeout=9"], [r"^override 'vllm.timeout=9': the recipe: vllm is for sampler: vllm, not .* set sampler=vllm, or"]),
    ],
)  # fmt: skip
def test_told_as_typed(overrides: list[str], lines: list[str]) -> None:
    told = refused("demo", *overrides)
    assert len(told) == len(lines), told
    for pattern, line in zip(lines, told, strict=True):
        assert re.search(pattern, line), line


def test_a_contradiction_is_the_overrides_where_it_made_it() -> None:
    (line,) = refused("math_qwen2.5-1.5b-instruct", "task.dataset=gsm8k")
    assert line.startswith("override 'task.dataset=gsm8k': task: split paper is MATH's")


def test_the_recipes_own_mistake_stays_its_own(tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_text("task: {name: countdown,\n  max_nmber: 3}\nstages: []\n")
    for overrides in ([], ["task.name=countdown"], ["seed=1"]):
        (line,) = refused(file, *overrides)
        assert line.startswith(f"{file}:2: unknown key 'task.max_nmber'; did you mean 'max_number'")


def test_what_the_hint_says_works() -> None:
    whole = "stages.stage1={name: stage1, objective: single_turn, steps: 300, learning_rate: 0.00015}"
    config = load_recipe("demo", ["task={name: math}", "task.dataset=gsm8k", "task.split=original", whole])
    assert config.model_dump()["task"]["dataset"] == "gsm8k"
