"""What the public functions take from a recipe, beside what each of them is tested for elsewhere."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from selfcorrect import api
from selfcorrect.errors import ConfigError, DataError, NothingGraded
from tests.support.data import math_folder
from tests.support.runs import recipe

BOOL = """
def problems(split, options):
    return [{"id": f"{split}{n}", "prompt": f"{n}"} for n in range(4)]


def correction_prompt(problem):
    return "?"


def grade(problem, text):
    return VERDICT
"""


@pytest.mark.parametrize("function", ["play", "scale", "make_repair_set"])
def test_threads_are_the_recipe_s(function: str, model: Path, tmp_path: Path) -> None:
    settings = recipe(tmp_path, model, threads=2)
    calls: dict[str, Callable[[], Any]] = {
        "play": lambda: api.play("5 2 1 = 8", model, settings),
        "scale": lambda: api.scale(model, recipe=settings, output=tmp_path / "s", most=2, problems=1),
        "make_repair_set": lambda: api.make_repair_set(
            model, tmp_path / "set.jsonl", problems=1,
            recipe={**settings, "task": {"name": "math", "data": str(math_folder(tmp_path / "math"))}},
        ),
    }  # fmt: skip
    assert torch.get_num_threads() == 1
    try:
        calls[function]()
    except NothingGraded:  # the tiny model can read no problem of math
        assert function == "make_repair_set"
    assert torch.get_num_threads() == 2


def test_feedback_is_written_where_the_recipe_asks_for_it(model: Path, tmp_path: Path) -> None:
    refine = {"feedback_prompt": "7", "refine_prompt": "8"}
    settings = recipe(tmp_path, model, stages=[], rollouts={"max_new_tokens": 5, "self_refine": refine})
    first, second = api.play("5 2 1 = 8", model, settings, temperature=1.0).attempts
    assert (first.feedback, bool(second.feedback)) == ("", True)
    with pytest.raises(ConfigError, match=r"^rollouts.self_refine: .*rollouts.self_refine=null"):
        api.scale(model, recipe=settings, output=tmp_path / "s", most=2, problems=1)
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(("verdict", "told"), [("True", True), ("False", False)])
def test_a_vote_needs_answers(verdict: str, told: bool, model: Path, tmp_path: Path) -> None:
    """Where no solution is right, none is by a vote either."""
    file = tmp_path / "mine.py"
    file.write_text(BOOL.replace("VERDICT", verdict))
    settings = recipe(tmp_path, model, task={"name": "custom", "file": str(file)})

    def scale() -> Any:
        return api.scale(model, recipe=settings, output=tmp_path / "s", most=2, problems=2)

    if told:
        for _ in range(2):
            with pytest.raises(
                DataError, match=r"problem 'test\d': .* tells no answer.* return a Grade with its answer"
            ):
                scale()
    else:
        assert [point.parallel.value for point in scale()] == [0.0]
