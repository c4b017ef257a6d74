"""Every shipped recipe is accepted by `selfcorrect check`, and fits the devices that its first lines name."""

import re
from pathlib import Path

import pytest
import yaml

from selfcorrect.cli import check
from selfcorrect.config import TrainConfig
from selfcorrect.config.recipe import load_recipe
from selfcorrect.planning.hardware import CARDS
from selfcorrect.planning.page import lines
from selfcorrect.planning.plan import Devices, devices_for, make_plan
from selfcorrect.planning.settled import dressed, static
from selfcorrect.planning.spec import described

RECIPES = Path(__file__).parents[2] / "recipes"
SOLD = {24: "rtx-4090", 40: "a100-40", 48: "l40s", 80: "h100"}  # GB that cards are called by


def card_of(stem: str) -> Devices:
    """Which devices a recipe's first lines say that it is for, in words and as a command."""
    head = (RECIPES / f"{stem}.yaml").read_text(encoding="utf-8").partition("\nname:")[0]
    config = load_recipe(RECIPES / f"{stem}.yaml")
    assert isinstance(config, TrainConfig)
    told = re.search(rf"`selfcorrect plan {re.escape(stem)} --gpu (\S+?)((?: --[a-z]+ \d+)*)` says what it takes", head)
    words = re.search(r"(?:one|eight|of eight) (\d+) GB cards?", head)
    assert told, "no command"
    assert words, "no card"
    assert told[1] == SOLD[int(words[1])]
    many = dict(re.findall(r"--(gpus|nodes|serving) (\d+)", told[2]))
    devices = devices_for(config, told[1], **{name: int(count) for name, count in many.items()})
    named = {"8x80gb": 8, "4x8x80gb": 32}.get(stem.rpartition("_")[2], 1)
    assert devices.count + (devices.serving or 0) == named
    return devices


NIGHTLY = pytest.mark.nightly
DAILY = {"code_qwen2.5-7b-instruct_qlora", "code_qwen2.5-32b-instruct_full_4x8x80gb"}  # one card; many, and a server
PLANNED = [file.stem for file in sorted(RECIPES.glob("*.yaml")) if file.stem not in ("compare_lab", "demo", "lab_base")]


@pytest.mark.parametrize("stem", [pytest.param(stem, marks=[] if stem in DAILY else NIGHTLY) for stem in PLANNED])
def test_a_shipped_recipe_fits_the_card_it_is_for(stem: str) -> None:
    config, devices = load_recipe(RECIPES / f"{stem}.yaml"), card_of(stem)
    assert isinstance(config, TrainConfig)
    made = make_plan(config, devices)
    assert made.fits, "\n".join(lines(made))
    assert made.config.rollouts.rows >= 16
    told = "\n".join(lines(made))
    assert "fits" in told
    for phase in made.memory.phases:  # by part, in each of them
        parts = made.memory.parts(phase)
        assert sum(parts.values()) == pytest.approx(made.memory.at(phase))
        assert all(f"  {part} " in told for part in parts)
        assert f"{made.memory.at(phase) / 2**30:.2f}" in told
    if config.vllm.server:
        assert f"vllm on {devices.serving} more" in told
        assert {"engine's weights", "whole copy for sampling", "casts for sampling"}.isdisjoint(made.memory.parts())
        assert 0 < made.server < devices.bytes / 2
        assert made.dollars == pytest.approx(
            made.hours * CARDS["h100"].price * (devices.count + (devices.serving or 0))
        )


@pytest.mark.nightly
@pytest.mark.parametrize("stem", PLANNED)
def test_models_of_up_to_two_billion_weights_fit_24_gb(stem: str) -> None:
    """As they are, or with the settings that a recipe's first lines name."""
    file, devices = RECIPES / f"{stem}.yaml", card_of(stem)
    config = load_recipe(file)
    assert isinstance(config, TrainConfig)
    if devices.count > 1 or devices.bytes < 2**35:  # larger models; those for such a card, as the test above says
        return
    spec = described(config.model)
    if dressed(config, spec, devices.card).numbers.all > 2e9:
        return
    told = re.search(r"^# With one card of 24 GB.*?: (.+)$", file.read_text(encoding="utf-8"), re.MULTILINE)
    assert told, "no settings"
    changed = load_recipe(file, told[1].split())
    assert isinstance(changed, TrainConfig)
    made = make_plan(changed, devices_for(changed, SOLD[24]))
    assert made.fits, "\n".join(lines(made))


@pytest.mark.parametrize("stem", PLANNED)
def test_what_a_shipped_recipe_always_holds_leaves_room(stem: str) -> None:
    config, devices = load_recipe(RECIPES / f"{stem}.yaml"), card_of(stem)
    assert isinstance(config, TrainConfig)
    model = dressed(config, described(config.model), devices.card)
    assert static(config, model, devices.card, devices.shards).total < 0.7 * devices.bytes


@pytest.mark.parametrize("file", sorted(RECIPES.glob("*.yaml")), ids=lambda file: file.stem)
def test_check_accepts_a_shipped_recipe(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check(file)
    told, written = yaml.safe_load(capsys.readouterr().out), yaml.safe_load(file.read_text(encoding="utf-8"))
    assert told["kind"] == written.get("kind", "train")
    assert told["name" if "name" in written else "kind"] == written.get("name", told["kind"])
