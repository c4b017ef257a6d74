"""Evaluations with several samples of a problem and several wordings of the correction prompt, whole and in parts."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import selfcorrect
from selfcorrect.errors import ConfigError
from selfcorrect.evaluation.evaluate import Evaluation
from selfcorrect.runs.display import evaluation_line
from selfcorrect.tasks.countdown import Countdown
from tests.run.test_kept import Heard, contents, evaluate
from tests.support.runs import brief, config, lucky_grade, recipe

PROBLEMS, SAMPLES, ROWS = 5, 4, 3
WORDINGS = {"twice": "? ?", "numbers": "{numbers} ?"}


def settings(output: Path, model: Path, name: str, samples: int = SAMPLES, **changes: Any) -> dict[str, Any]:
    """Chunks of three rollouts: of five problems, so that they cross from one sample to the next."""
    evaluation = {"problems": PROBLEMS, "samples": samples, "temperature": 0.8, "correction_prompts": WORDINGS}
    rollouts = {"problems_per_step": 2, "rollouts_per_problem": 4, "max_new_tokens": 5, "rows_at_once": ROWS}
    return recipe(output, model, name, rollouts=rollouts, evaluation={**evaluation, **changes})


def kept_lines(folder: Path) -> list[dict[str, Any]]:
    (file,) = (folder / "evaluations" / "kept").glob("*.jsonl")
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.fixture(scope="module")
def evaluated(model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Evaluation, Heard]:
    """One that was never stopped, and what it said."""
    heard = Heard()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Countdown, "grade", lucky_grade)
        return evaluate(settings(tmp_path_factory.mktemp("whole"), model, "e"), heard), heard


@pytest.fixture
def whole(evaluated: tuple[Evaluation, Heard]) -> Path:
    assert evaluated[0].folder
    return evaluated[0].folder


def test_samples_and_wordings(whole: Path, evaluated: tuple[Evaluation, Heard], model: Path) -> None:
    found, heard = evaluated
    assert any("5 problems x 2 attempts, 4 samples at temperature 0.8; after the same first attempts, asked as twice, numbers: 40" in told for told in heard.said)  # fmt: skip
    assert any(told.startswith("5 problems x 4 samples can resolve a delta of ") for told in heard.said)
    assert heard.done[-1] == (80, 80)
    (of_wording,) = (whole / "evaluations").glob("*@twice.rollouts.jsonl")
    assert len(selfcorrect.records(whole, of_wording.name.partition(".")[0])) == PROBLEMS * SAMPLES
    lines = kept_lines(whole)
    parts = {
        part: [line for line in lines if line["part"] == part]
        for part in ("samples", "wording twice", "wording numbers")
    }
    assert sum(map(len, parts.values())) == len(lines) == 3 * PROBLEMS * SAMPLES
    for own in parts.values():  # sample by sample, and every first attempt that of the evaluation itself
        assert [line["sample"] for line in own] == [s for s in range(1, SAMPLES + 1) for _ in range(PROBLEMS)]
        assert [line["attempts"][0]["text"] for line in own] == [
            line["attempts"][0]["text"] for line in parts["samples"]
        ]
    assert all(line["attempts"][0]["ids"] for line in parts["samples"])  # what wordings go on from after a stop
    firsts = {line["attempts"][0]["text"] for line in parts["samples"]}
    assert len(firsts) > PROBLEMS  # samples differ
    assert len({json.dumps([line["attempts"][1]["text"] for line in own]) for own in parts.values()}) == 3
    row = json.loads((whole / "evaluations" / f"{model.name}.json").read_text())
    assert row["decoding"] == "4 samples at temperature 0.8"
    assert (row["summary"]["n"], row["summary"]["samples"]) == (PROBLEMS, SAMPLES)
    assert [each["k"] for each in row["summary"]["passes"]] == [2, 4]
    assert row["smallest_delta"]["assumed"] > 0
    names = {each["name"]: each for each in row["wordings"]}
    assert list(names) == ["recipe", "twice", "numbers"]
    assert names["twice"]["prompt"] == "? ?"
    assert {each["summary"]["accuracy"][0]["value"] for each in row["wordings"]} == {
        row["summary"]["accuracy"][0]["value"]
    }
    for one, each in names.items():  # what one is above another, that one is below
        assert set(each["less"]) == set(names) - {one}
        for other, less in each["less"].items():
            gap = each["summary"]["accuracy"][-1]["value"] - names[other]["summary"]["accuracy"][-1]["value"]
            assert less["value"] == pytest.approx(gap)
            assert names[other]["less"][one]["low"] == -less["high"]
    told = evaluation_line(found)
    assert "Avg@4 t1" in told
    assert "asked as twice: t2" in told
    assert "unchanged" in told


@pytest.mark.parametrize("part", [0.8, *(pytest.param(part, marks=pytest.mark.nightly) for part in (0.2, 0.5, 0.99))])
@pytest.mark.usefixtures("lucky")
def test_killed_it_ends_the_same(part: float, whole: Path, model: Path, tmp_path: Path) -> None:
    """A kill leaves what was kept up to somewhere in a line; test_kept.py kills processes."""
    kept = shutil.copytree(whole / "evaluations" / "kept", tmp_path / "e" / "evaluations" / "kept")
    (file,) = kept.glob("*.jsonl")
    file.write_bytes(file.read_bytes()[: int(part * file.stat().st_size)])
    heard = Heard()
    evaluate(settings(tmp_path, model, "e"), heard)
    assert any(told.startswith("going on: ") for told in heard.said)
    assert contents(tmp_path / "e") == contents(whole)


@pytest.mark.usefixtures("lucky")
def test_more_samples_go_on_from_those_that_are_there(whole: Path, model: Path, tmp_path: Path) -> None:
    """Two of each, then four: as if there had been four from the start, and whole chunks are not played again."""
    evaluate(settings(tmp_path, model, "e", samples=2))
    before = kept_lines(tmp_path / "e")
    again = Heard()
    evaluate(settings(tmp_path, model, "e"), again)
    assert contents(tmp_path / "e") == contents(whole)
    stays = 2 * PROBLEMS // ROWS * ROWS * 3  # of each of three wordings
    assert kept_lines(tmp_path / "e")[:stays] == before[:stays]  # with the seconds that they took
    with pytest.raises(ConfigError, match=r"evaluation.samples is 2, but was 4; give the command those settings"):
        evaluate(settings(tmp_path, model, "e", samples=2))
    with pytest.raises(ConfigError, match=r"evaluation.temperature is 0.5, but was 0.8"):
        evaluate(settings(tmp_path, model, "e", temperature=0.5))
    with pytest.raises(ConfigError, match=r"evaluation.correction_prompts.twice is \"\?\", but was \"\? \?\""):
        evaluate(settings(tmp_path, model, "e", correction_prompts={**WORDINGS, "twice": "?"}))


@pytest.mark.usefixtures("lucky")
def test_every_sample_has_draws_of_its_own(model: Path, tmp_path: Path) -> None:
    """Also where a chunk holds every problem once, each at the same place as in the chunk before."""
    asked = settings(tmp_path, model, "e", samples=3, correction_prompts={})
    asked["rollouts"]["rows_at_once"] = PROBLEMS
    evaluate(asked)
    texts = [line["attempts"][0]["text"] for line in kept_lines(tmp_path / "e")]
    assert len({tuple(texts[start : start + PROBLEMS]) for start in range(0, len(texts), PROBLEMS)}) == 3


@pytest.mark.usefixtures("lucky")
def test_a_run_evaluates_so_too(model: Path, tmp_path: Path) -> None:
    """Base and stage with samples; attempt 1 held against the base model's, paired, in JSON and report."""
    first = {**settings(tmp_path, model, "run", samples=2), "stages": brief(tmp_path, model)["stages"]}
    run = selfcorrect.train(first)
    rows = {name: json.loads((run / "evaluations" / f"{name}.json").read_text()) for name in ("base", "one")}
    assert rows["base"]["against_base"] is None
    gap = rows["one"]["summary"]["accuracy"][0]["value"] - rows["base"]["summary"]["accuracy"][0]["value"]
    assert rows["one"]["against_base"]["first"]["value"] == pytest.approx(gap)
    lines = [json.loads(line) for line in (run / "evaluations" / "one.rollouts.jsonl").read_text().splitlines()]
    assert [line.get("sample", 1) for line in lines] == [1] * PROBLEMS + [2] * PROBLEMS
    assert (run / "evaluations" / "one@twice.rollouts.jsonl").exists()
    assert not (run / "evaluations" / "kept").exists()
    page = selfcorrect.write_report(run).read_text()
    for told in ("Avg@2", "pass@2", "How the correction is asked for", "against twice", "2 samples at temperature 0.8"):
        assert told in page


REFUSED: dict[str, tuple[list[str], str]] = {
    "greedy samples": (["evaluation.samples=4"], "samples = 4 at temperature 0 would all be the same"),
    "none": (["evaluation.samples=0"], "evaluation.samples"),
    "negative": (["evaluation.temperature=-1"], "evaluation.temperature"),
    "its own name": (["evaluation.correction_prompts.recipe=x"], "recipe is the task's own correction prompt"),
    "case alone": (["evaluation.correction_prompts={a: x, A: y}"], "names must differ in more than case"),
    "a path": (["evaluation.correction_prompts={../a: x}"], "correction_prompts"),
    "empty": (["evaluation.correction_prompts.a="], "correction_prompts"),
    "fields": (["evaluation.correction_prompts.a={problem}"], "may use only {numbers} and {target}"),
    "braces": (["evaluation.correction_prompts=[a {]"], "correction_prompts"),
    "an attribute": (["evaluation.correction_prompts.a={target.x}"], "may use only"),
    "unknown tokens": (["evaluation.correction_prompts.a=Really now"], "correction_prompts.a = 'Really now': the model's tok"),
    "no text": (["evaluation.correction_prompts=[1]"], "correction_prompts"),
    "recorded": (["sampler=recorded", "recorded=x.jsonl", "evaluation.temperature=1"], "answers each problem once"),
    "recorded, and a set to play": (
        ["sampler=recorded", "recorded=x.jsonl", "evaluation.external=[a.jsonl]"], "; leave out evaluation.external",
    ),
    "recorded, and feedback": (
        ["stages=[]", "sampler=recorded", "recorded=x.jsonl", "rollouts.self_refine={feedback_prompt: x, refine_prompt: y}"],
        "; leave out rollouts.self_refine",
    ),
    "behind training problems": (
        ["evaluation.split=train", "evaluation.offset=5"], "offset is of held-out problems, and evaluation.split is train",
    ),
    "refined": (
        ["stages=[]", "evaluation.correction_prompts=[x]", "rollouts.self_refine={feedback_prompt: x, refine_prompt: y}"],
        "which rollouts.self_refine does not ask",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_refused_in_words(case: str, model: Path, tmp_path: Path) -> None:
    overrides, told = REFUSED[case]
    with pytest.raises(ConfigError) as refused:
        selfcorrect.evaluate(model, *overrides, recipe=recipe(tmp_path, model), output=tmp_path / "e")
    assert told in str(refused.value)
    assert not (tmp_path / "e").exists()


def test_a_list_of_wordings_has_names(model: Path, tmp_path: Path) -> None:
    found = config(tmp_path, model, evaluation={"correction_prompts": ["? ?", "?"]})
    assert found.evaluation.correction_prompts == {"wording-1": "? ?", "wording-2": "?"}
