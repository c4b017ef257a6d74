"""What a plain value means in a recipe and on the command line: YAML 1.2's core schema, and texts as typed."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from selfcorrect.config import HubConfig, MathConfig
from selfcorrect.config.overrides import apply_override
from selfcorrect.config.recipe import dump, load_recipe
from selfcorrect.errors import ConfigError
from selfcorrect.runs.recipes import train_config
from tests.unit.test_config import RECIPE, recipe, refusal, validate_text

__all__ = ["recipe"]

# What a plain value is, in a file and in an override alike; None: refused.
PLAIN = [
    ("seed", "0100", 100), ("seed", "0042", 42), ("seed", "007", 7), ("seed", "089", 89), ("seed", "+3", 3), ("seed", "1:30", None),
    ("seed", "0o17", 15), ("seed", "0x1F", 31), ("seed", "0b11", None), ("seed", "1_000", None), ("seed", "1e3", None),
    ("seed", "3.0", None), ("seed", "!!int 1_000", None), ("seed", "\N{FULLWIDTH DIGIT TWO}", None), ("seed", "true", None), ("seed", "~", None),
    ("seed", "9" * 5000, None), ("threads", "9" * 12, None), ("threads", "~", None), ("threads", "1:30:00", None),
    ("stages.hold.steps", "0100", 100), ("stages.hold.steps", "1:30", None), ("stages.hold.steps", "0", None),
    ("stages.hold.beta1", ".5", 0.5), ("stages.hold.beta1", "1.", 1.0), ("stages.hold.beta1", "0010", 10.0),
    ("stages.hold.beta1", "1e-5", 1e-5), ("stages.hold.beta1", "4.E-5", 4e-5), ("stages.hold.beta1", "+.4e-04", 4e-5),
    ("stages.hold.beta1", "NaN", None), ("stages.hold.beta1", ".nan", None),
    ("stages.hold.beta1", ".inf", None), ("stages.hold.beta1", "1e999", None), ("stages.hold.beta1", "1:30.5", None),
    ("evaluation.controls", "yes", None), ("evaluation.controls", "off", None), ("evaluation.controls", "TRUE", True),
    ("evaluation.controls", "1", None), ("evaluation.controls", "False", False),
]  # fmt: skip


def at(config: Any, path: str) -> Any:
    for part in path.split("."):
        config = config[0] if isinstance(config, tuple) else getattr(config, part)
    return config


@pytest.mark.parametrize(("path", "text", "value"), PLAIN)
def test_plain_values(recipe: Path, path: str, text: str, value: object) -> None:
    """YAML 1.1 reads 0100 as 64, 1:30 as 90, and yes as true; a file and the command line read the same."""
    *sections, last = path.split(".")
    if sections[:1] == ["stages"]:
        written = RECIPE.replace("    steps: 5\n", "" if last == "steps" else "    steps: 5\n")
        written = written.replace("    objective: stage1", f"    objective: stage1\n    {last}: {text}")
    elif sections:
        written = f"{RECIPE}{sections[0]}: {{{last}: {text}}}\n"
    else:
        written = RECIPE.replace("seed: 3\n", "" if last == "seed" else "seed: 3\n") + f"{last}: {text}\n"
    if (path, text) == ("threads", "~"):
        assert at(validate_text(recipe, written), path) is None
    elif value is None:
        assert re.match(r"(recipe recipe.yaml is not valid YAML|recipe.yaml:\d+): ", refusal(recipe, written))
        assert f"override {f'{path}={text}'!r}" in refusal(recipe, RECIPE, f"{path}={text}")
    else:
        told = at(validate_text(recipe, written), path)
        recipe.write_text(RECIPE, encoding="utf-8")
        assert (told, type(told)) == (value, type(value))
        assert at(load_recipe(recipe, [f"{path}={text}"]), path) == value


TEXTS = [
    "Look again # carefully", "#", "a: b", "- a", "-", "[x", "[a, b]", "{{x}}", "!x", "!!int 3", "&a b", "*a", '"Look" again',
    "'it's", '"quoted"', "yes", "null", "~", "1.0", "007", "1e3", "12e7", "on", "0o17", "1_000", "2024-01-01", " two  spaces ", "tab\tin it", "line\nline", "%", "@x", "`x`",
    "a=b", "\N{SNOWMAN}", "--- x", "<<", "\\n",
]  # fmt: skip


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_is_taken_as_typed(recipe: Path, text: str) -> None:
    """Whole, and so again once the resolved recipe is read; where a number may stand too, what is no number is text."""
    config = train_config(recipe, f"task.correction_prompt={text}")
    assert at(config, "task.correction_prompt") == text
    recipe.write_text(dump(config), encoding="utf-8")
    assert load_recipe(recipe) == config
    compared: dict[str, Any] = {"common": {"task": {}}}
    apply_override(compared, f"common.task.prompt={text}")
    assert compared["common"]["task"]["prompt"] == text


def test_settings_that_may_be_text_or_more() -> None:
    read = {
        "3": 3, "0100": 100, "true": True, "[1, 2]": [1, 2], "{a: b}": {"a": "b"}, "'3'": "3", "~": None,
        "a: b": "a: b", "- 1": "- 1", "x # y": "x # y", "yes": "yes", "2024-01-01": "2024-01-01", "[x": "[x",
        "# x": "# x", "3 # x": "3 # x",
    }  # fmt: skip
    for text, value in read.items():
        data: dict[str, Any] = {"task": {"name": "custom", "file": "t.py"}}
        apply_override(data, f"task.options.x={text}")
        assert data["task"]["options"]["x"] == value, text
    for text, value in (("null", None), ("", None), ("[a, b]", ["a", "b"]), ("a b", "a b"), ("# a", "# a")):
        apply_override(data, f"task.hub.name={text}")
        assert data["task"]["hub"]["name"] == value, text


def test_a_number_where_text_belongs_is_sent_into_quotes(recipe: Path) -> None:
    told = refusal(recipe, RECIPE.replace("name: demo", "name: 007"))
    assert told == "recipe.yaml:1: name = 7: input should be a valid string; put it in quotes as it is meant"
    told = refusal(recipe, RECIPE + "evaluation: {controls: yes}\n")
    assert told.endswith("evaluation.controls = 'yes': input should be a valid boolean; write true or false")


@pytest.mark.parametrize("recipe", ["demo", "lab_base", "compare_lab"])
def test_output_may_begin_at_the_user_s_home(recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for written, meant in (("~/runs", f"{tmp_path}/runs"), ("./runs", "./runs"), ("a~", "a~")):
        assert load_recipe(recipe, [f"output={written}"]).output == meant
    with pytest.raises(ConfigError, match=r"output: '~nobody-here/a': no user of that name has a home here; write"):
        load_recipe(recipe, ["output=~nobody-here/a"])


@pytest.mark.parametrize("setting", [
    "model.path", "model.chat_template", "task.data", "evaluation.external", "checkpoint.held_out", "vllm.sync_folder",
])  # fmt: skip
def test_every_path_may_begin_at_the_user_s_home(
    setting: str, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it does where the recipe lies, and as an override."""
    monkeypatch.setenv("HOME", str(tmp_path))
    rest: dict[str, Any] = {"stages": [], "sampler": "vllm", "checkpoint": {"select": "held_out", "held_out": "h"}}

    def read(path: str, *overrides: str) -> Any:
        section, name = setting.split(".")
        value = [path] if name == "external" else path
        recipe.write_text(yaml.dump({**rest, section: {**rest.get(section, {}), name: value}}))
        found = getattr(getattr(load_recipe(recipe, overrides), section), name)
        return found[0] if name == "external" else found

    assert read("~/a") == f"{tmp_path}/a"
    written = "[~/b]" if setting.endswith("external") else "~/b"
    assert read("a", f"{setting}={written}") == f"{tmp_path}/b"
    with pytest.raises(
        ConfigError, match=rf"{setting}.*: '~nobody-here/a': no user of that name has a home here; write"
    ):
        read("~nobody-here/a")


def test_a_recipe_and_hub_data_may_lie_at_the_user_s_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine.yaml").write_text("stages: []\ntask: {name: math, hub: {path: ~/data}}\n")
    task = train_config("~/mine.yaml").task
    assert isinstance(task, MathConfig)
    assert task.hub == HubConfig(path=f"{tmp_path}/data")


def test_merge_keys_and_keys_that_stand_twice(recipe: Path) -> None:
    """What a merge brings in may be replaced; what stands twice as written may not, however deep or late it is read."""
    stages = "- &a {name: a, objective: stage2, steps: 1, learning_rate: 1.0}\n- {<<: *a, name: b, steps: 0010}\n"
    config = validate_text(recipe, f"stages:\n{stages}")
    assert [(stage.name, stage.steps) for stage in config.stages] == [("a", 1), ("b", 10)]
    assert "'steps' stands twice" in refusal(recipe, f"stages:\n{stages.replace('<<: *a', '<<: *a, steps: 3')}")
    assert "'1' stands twice" in refusal(recipe, RECIPE + "task: {name: custom, file: t, options: {1: a, '1': b}}\n")
