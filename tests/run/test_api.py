"""What the public functions take from a recipe, beside what each of them is tested for elsewhere."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import selfcorrect
from selfcorrect import api
from selfcorrect.errors import ConfigError, DataError, NothingGraded
from selfcorrect.samplers import choose
from selfcorrect.samplers.transformers import TransformersSampler
from selfcorrect.types import Completion
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


@pytest.mark.parametrize("function", ["play", "scale", "make_repair_set", "train"])
def test_threads_are_the_recipe_s_until_the_call_returns(
    function: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: set[int] = set()

    class Noted(TransformersSampler):
        def sample(self, prompts: Any, params: Any) -> list[Completion]:
            seen.add(torch.get_num_threads())
            return super().sample(prompts, params)

    monkeypatch.setattr(choose, "TransformersSampler", Noted)
    settings = recipe(tmp_path, model, threads=2)
    calls: dict[str, Callable[[], Any]] = {
        "play": lambda: api.play("5 2 1 = 8", model=model, recipe=settings),
        "scale": lambda: api.scale(model, recipe=settings, output=tmp_path / "s", most=2, problems=1),
        "make_repair_set": lambda: api.make_repair_set(
            model, tmp_path / "set.jsonl", problems=1,
            recipe={**settings, "task": {"name": "math", "data": str(math_folder(tmp_path / "math"))}},
        ),
        "train": lambda: api.train({**settings, "stages": settings["stages"][:1]}, "stages.0.steps=1"),
    }  # fmt: skip
    assert torch.get_num_threads() == 1
    try:
        calls[function]()
    except NothingGraded:  # the tiny model can read no problem of math, so it samples none
        assert function == "make_repair_set"
        seen.add(2)
    assert seen == {2}
    assert torch.get_num_threads() == 1


def test_settings_in_another_form_are_told_in_the_right_one() -> None:
    """In place of a TypeError and an AttributeError."""
    train: Any = api.train
    scale: Any = api.scale
    evaluate: Any = api.evaluate
    settings = {"seed": 1, "task": {"limit": 9}}
    calls: dict[str, Callable[[], Any]] = {
        r"""train\(\.\.\., 'seed=1', 'task={"limit": 9}'\)""": lambda: train("x.yaml", settings),
        r"train\(\) has no argument seed; it has recipe, observer, .*'seed=1'\)": lambda: train("x.yaml", seed=1),
        r"scale\(\) has no argument rate.*'rate=fast'": lambda: scale("lab", rate="fast", most=2),
        r"override 3 must be text of the form key=value": lambda: evaluate("lab", 3),
        r"lab lies in no run; name a folder with output=FOLDER": lambda: scale("lab", most=2),
        r"^output = '~nobody-here/x': no user of that name": lambda: evaluate("lab", output="~nobody-here/x"),
        r"^run = '~nobody-here/x': no user of that name": lambda: train("~nobody-here/x", resume_run=True),
        r"method score: paper = 'scor' is no row": lambda: api.check("compare_lab", "methods.score.paper=scor"),
        r"^temperature = -1 must be 0 or more": lambda: scale("lab", temperature=-1, most=2),
        r"^gpus = 0 must be 1 or more": lambda: api.plan("demo", gpus=0),
    }
    for told, call in calls.items():
        with pytest.raises(ConfigError, match=told):
            call()


def test_a_session_hears_of_a_run_in_lines_unless_it_is_silenced(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = recipe(tmp_path, model)
    settings["stages"] = [{**settings["stages"][0], "steps": 1}]
    selfcorrect.train(settings)
    said = capsys.readouterr().out
    assert "note: " in said
    assert "one 1/1" in said
    selfcorrect.train({**settings, "name": "silent"}, observer=selfcorrect.Observer())
    assert capsys.readouterr().out == ""


def test_feedback_is_written_where_the_recipe_asks_for_it(model: Path, tmp_path: Path) -> None:
    refine = {"feedback_prompt": "7", "refine_prompt": "8"}
    settings = recipe(tmp_path, model, stages=[], rollouts={"max_new_tokens": 5, "self_refine": refine})
    first, second = api.play("5 2 1 = 8", model=model, recipe=settings, temperature=1.0).attempts
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
