"""What a comparison is refused for before its first run, what it says first, and what its tables show."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest

from selfcorrect.comparing.compare import _refuse_other_data, _say_whole
from selfcorrect.comparing.execute import refuse_changed
from selfcorrect.comparing.page import search_table
from selfcorrect.comparing.plan import check, paper_table, table_jobs
from selfcorrect.config import CompareConfig
from selfcorrect.config.paths import absolute
from selfcorrect.config.recipe import dump, load_recipe
from selfcorrect.errors import ConfigError
from selfcorrect.evaluation.metrics import share
from selfcorrect.tasks.own import keep
from tests.run.test_compare import METHODS, REPAIR, comparison

SFT = METHODS[1]["settings"]["stages"][0]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"repair": {**REPAIR, "dat": "x"}}, "the comparison: unknown key 'repair.dat'"),
        ({"repair": {**REPAIR, "of": {"name": "math", "worker": 2}}}, "the comparison: unknown key 'repair.of.worker'"),
        ({"repair": {"name": "repair"}}, "the comparison: repair.data is missing"),
        ({"repair": {**REPAIR, "data": "none.jsonl"}}, "repair.data = 'none.jsonl': no such file"),
        (
            {"repair": {**REPAIR, "data": ".", "of": {"name": "math", "data": "none"}}},
            "repair.of.data = 'none': no such",
        ),
        ({"model": {"path": "./none"}}, "method refine: model.path = './none': no such"),
        ({"model": {"chat_template": "none.jinja"}}, "method refine: model.chat_template = 'none.jinja': no such"),
        ({"task": {"name": "math", "data": "none"}}, "method refine: task.data = 'none': no such"),
        ({"evaluation": {"external": ["none.jsonl"]}}, "method refine: evaluation.external = 'none.jsonl': no such"),
        (
            {"checkpoint": {"select": "held_out", "held_out": "none.jsonl"}},
            "method refine: checkpoint.held_out = 'none.jsonl': no such",
        ),
        (
            {"methods": [{**METHODS[4], "settings": {"stages": [{**SFT, "traces": "none.jsonl"}]}}]},
            "method score: stages.sft.traces = 'none.jsonl': no such",
        ),
    ],
)
def test_what_a_run_would_miss_is_told_before_the_first(
    change: dict[str, Any], told: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = comparison(tmp_path, model)
    own = {key: value for key, value in change.items() if key in ("repair", "methods")}
    common = config.common | {key: value for key, value in change.items() if key not in own}
    with pytest.raises(ConfigError, match=rf"^{re.escape(told)}"):
        check(comparison(tmp_path, model, common=common, **own))


@pytest.mark.parametrize(
    ("task", "named", "shown"),
    [
        ({}, None, None),
        ({}, "math", ("math", False)),
        ({"name": "math"}, None, ("math", True)),
        ({"name": "math", "dataset": "gsm8k"}, None, None),
        ({"name": "code"}, None, None),
        ({"name": "code", "evaluate_on": "humaneval"}, None, ("humaneval", True)),
        ({"name": "custom", "file": "mine.py"}, None, None),
        ({**REPAIR, "of": {"name": "math"}}, None, ("math", True)),
    ],
)
def test_the_papers_numbers_stand_beneath_its_own_task(
    task: dict[str, Any], named: str | None, shown: tuple[str, bool] | None, model: Path, tmp_path: Path
) -> None:
    config = comparison(tmp_path, model, methods=METHODS[4:], paper=named)
    config = config.model_copy(update={"common": {**config.common, "task": task or config.common["task"]}})
    assert paper_table(config) == shown


def test_a_row_that_the_paper_does_not_have(model: Path, tmp_path: Path) -> None:
    typo = {**METHODS[4], "paper": "scor"}
    with pytest.raises(ConfigError, match="paper = 'scor' is no row of the paper's tables; they have base, self"):
        check(comparison(tmp_path, model, methods=[typo]))
    star = {**METHODS[4], "paper": "star"}  # which the table of HumanEval lacks
    with pytest.raises(ConfigError, match=r"over the budget: .* sampled completions of 1"):
        check(comparison(tmp_path, model, methods=[star], paper="humaneval", budget={"completions": 1, "updates": 1}))


def test_a_file_of_one_s_own_that_holds_something_else_by_now(model: Path, tmp_path: Path) -> None:
    """Runs that were made with what it held are no runs of this comparison."""
    file = tmp_path / "mine.py"
    file.write_text("import beside")
    (tmp_path / "beside.py").write_text("x = 1")
    stage = {"name": "one", "objective": "custom", "file": str(file), "steps": 2, "learning_rate": 0.003}
    _, (job,) = table_jobs(
        comparison(tmp_path, model, methods=[{**METHODS[4], "settings": {"stages": [stage]}}], seeds=[0]), {}
    )
    job.path.mkdir(parents=True)
    (job.path / "config.yaml").write_text(dump(absolute(job.config)))
    keep(file, job.path / "own" / "stages" / "one")
    refuse_changed([job])
    (tmp_path / "beside.py").write_text("x = 2")
    with pytest.raises(
        ConfigError, match=r"stages.one.file was what own/stages/one in it holds and is something else now"
    ):
        refuse_changed([job])


def test_equal_trials_are_called_so() -> None:
    """And each has its interval."""
    trials = [
        {"method": name, "learning_rate": rate, "beta1": None, "accuracy": dataclasses.asdict(share(right, 60))}
        for name, rights in (("pair", (57, 57, 50)), ("score", (50, 57, 51)))
        for rate, right in zip((0.5, 1.0, 2.0), rights, strict=True)
    ]
    ((_, rows),) = search_table({"pair": "P", "score": "S"}, trials).groups
    assert [row.note for row in rows] == ["2 equal, the first taken", ""]
    assert [[cell.tone for cell in row.cells] for row in rows] == [["good", "", ""], ["", "good", ""]]
    assert rows[0].cells[0].small == "86.3\N{EN DASH}98.3"


def test_the_whole_cost_is_told_before_the_first_run() -> None:
    config = load_recipe("compare_lab")
    assert isinstance(config, CompareConfig)
    said: list[str] = []
    completions = _say_whole(config.model_copy(update={"output": "nowhere"}), said.append)
    (line,) = said
    assert "104 trials of the search" in line
    assert "48 runs; 0 of them are done already" in line
    assert f"{completions:,} completions" in line
    # by hand: a run of 200 steps x 128 rollouts x 2 attempts, less where one attempt is played, and evaluations
    assert 48 * 2000 * 2 < completions < 160 * (200 * 256 * 2 + 4 * 4 * 2000 * 2)


@pytest.mark.parametrize("changed", ["train", "test", "repair"])
def test_data_that_changed_between_runs_is_noticed(changed: str, model: Path, tmp_path: Path) -> None:
    """Once a run is there; where none was made, the data was perhaps mended."""
    rows = {name: f'{{"problem": "{name}?", "answer": "1"}}\n' for name in ("train", "test")}
    failed = {"task_id": "math/test/1", "split": "test", "first_attempt": "2", "failure": "wrong", "model": "x"}
    files = {name: tmp_path / "data" / f"{name}.jsonl" for name in rows} | {"repair": tmp_path / "repair.jsonl"}
    files["train"].parent.mkdir()
    for name, text in {**rows, "repair": json.dumps(failed)}.items():
        files[name].write_text(text)
    task = {"name": "math", "split": "original", "data": str(tmp_path / "data")}
    common = comparison(tmp_path, model).common | {"task": task}
    config = comparison(tmp_path, model, common=common, repair={**REPAIR, "data": str(files["repair"]), "of": task})
    _refuse_other_data(config)
    files[changed].write_text(files[changed].read_text().replace("?", "!").replace('"2"', '"3"'))
    _refuse_other_data(config)
    run = tmp_path / "small" / ("repair/x" if changed == "repair" else "runs/x")
    run.mkdir(parents=True)
    (run / "config.yaml").touch()
    _refuse_other_data(config)
    files[changed].write_text(files[changed].read_text().replace("!", "?").replace('"3"', '"2"'))
    what = {"train": "training", "test": "held-out", "repair": "held-out"}[changed]
    with pytest.raises(
        ConfigError,
        match=rf"^the {what} problems changed since the first runs in {run.parents[1] if changed != 'repair' else run.parent} were",
    ):
        _refuse_other_data(config)
