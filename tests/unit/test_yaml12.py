"""Two ways to read YAML, libyaml's and Python's: what one reads the other reads."""

import math
from typing import Any

import pytest
import yaml

from selfcorrect.config import yaml12
from selfcorrect.config.recipe import _places, dump, load_recipe
from selfcorrect.config.shipped import shipped_recipe, shipped_recipes

ODD = """
a: &a {x: 0100, y: [1:30, 4e-5, .inf, ~, on, 2024-01-01, 0x1f]}
b: {<<: *a, x: "true", "y": 'no'}
? c
: |
  two
  lines: not a key
d: >-
  one
  line
"""


def read(text: str) -> Any:
    return yaml12.read(text, lambda node: dict(_places(node, "f")))


@pytest.mark.skipif(yaml12._QUICK is None, reason="this PyYAML comes without libyaml")
@pytest.mark.parametrize("name", ["odd", *shipped_recipes()])
def test_both_read_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    written = ODD if name == "odd" else shipped_recipe(name).read_text(encoding="utf-8")
    resolved = [] if name == "odd" else [dump(load_recipe(shipped_recipe(name)))]
    for text in (written, *resolved):
        quick = read(text)
        with monkeypatch.context() as patch:
            patch.setattr(yaml12, "_QUICK", None)
            assert read(text) == quick
        assert len(quick[1]) > 5


def test_libyaml_reads() -> None:
    """Else nothing above is of it; and the values are 1.2's."""
    node = yaml12._QUICK(ODD).get_single_node() if yaml12._QUICK else None
    assert node is None or node.start_mark.buffer is None
    assert yaml12.load(ODD)["a"] == {"x": 100, "y": ["1:30", 4e-5, math.inf, None, "on", "2024-01-01", 31]}


@pytest.mark.parametrize("text", ["[" * 200_000, "- " * 200_000, "{a: " * 200_000, "? " * 200_000])
def test_what_is_nested_without_end_is_refused(text: str) -> None:
    """libyaml would overflow the stack."""
    with pytest.raises((RecursionError, yaml.YAMLError)):
        yaml12.load(text)


@pytest.mark.parametrize(
    "text", ["a: [1", "a: 1\na: 2", "a: &b [*b]", "a: !!python/object:x.y {}", "a: \x00", "a: \ud800"]
)
def test_what_is_refused_is_refused_in_words_of_pyyaml(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    told = []
    for quick in (yaml12._QUICK, None):
        monkeypatch.setattr(yaml12, "_QUICK", quick)
        with pytest.raises((yaml.YAMLError, ValueError)) as refused:
            yaml12.load(text)
        told.append(str(refused.value))
    assert told[0] == told[1]
