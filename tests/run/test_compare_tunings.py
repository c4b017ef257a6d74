"""Methods of one comparison that tune the same model in several ways: one table, each held against what it began with."""

import json
from pathlib import Path
from typing import Any

import pytest

from selfcorrect.comparing.compare import compare
from selfcorrect.comparing.plan import bases, check, repair_jobs, table_jobs
from selfcorrect.errors import ConfigError, DataError
from selfcorrect.runs.loop import Loop
from tests.run.test_compare import METHODS, REPAIR, InProcess, comparison

pytestmark = pytest.mark.usefixtures("lucky")


def with_model(name: str, **changes: Any) -> dict[str, Any]:
    """SCoRe with other settings of the model."""
    return {"name": name, "label": name.upper(), "settings": {**METHODS[4]["settings"], "model": changes}}


def test_full_lora_and_qlora_in_one_table(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Full tuning and LoRA begin with one base model, evaluated once; a model in 4 bits is another, with its own line."""
    evaluated: list[tuple[str, str]] = []
    run = Loop._evaluation

    def noted(loop: Loop, evaluator: Any, name: str) -> Any:
        evaluated.append((name, loop.config.name))
        return run(loop, evaluator, name)

    monkeypatch.setattr(Loop, "_evaluation", noted)
    methods = [
        with_model("full"),
        with_model("lora", tuning="lora", lora={"rank": 4}),
        with_model("four", tuning="qlora"),
    ]
    tuned: dict[str, Any] = {"methods": methods, "against": "lora", "seeds": [0], "problems": 8}
    folder = compare(comparison(tmp_path, model, **tuned), lambda text: None, InProcess())
    assert [run for name, run in evaluated if name == "base"] == ["full-0", "four-0"]
    told = {row["name"]: row for row in json.loads((folder / "compare.json").read_text())["results"]}
    four = "base in 4 bits, the rest float32, computed in float32"
    assert {name: row["base"] for name, row in told.items()} == {
        "base": "base", four: four, "full": "base", "lora": "base", "four": four,
    }  # fmt: skip
    for name, row in told.items():
        first = row["t1"]["value"] - told[row["base"]]["t1"]["value"]
        found = row["against_base"] and row["against_base"]["first"]["value"]
        assert found == (None if row["base"] == name else pytest.approx(first))
    assert told["base"]["t1"] != told[four]["t1"]
    page = (folder / "compare.html").read_text()
    assert "Base model (4 bits, the rest float32, computed in float32)" in page
    assert "Base model (float32, computed in float32)" in page
    found = repair_jobs(
        comparison(tmp_path, model, **tuned, repair=REPAIR), table_jobs(comparison(tmp_path, model, **tuned), {})[1]
    )
    assert [(job.config.name, job.config.model.tuning) for job in found[:2]] == [
        ("base", "full"), ("base-in-4-bits--the-rest-float32--computed-in-float32", "qlora"),
    ]  # fmt: skip
    environment = folder / "runs" / "lora-0" / "environment.json"
    environment.write_text(json.dumps({**json.loads(environment.read_text()), "base_model": "another"}))
    with pytest.raises(
        DataError, match=r"held other weights when some runs began than for others \(.*full-0 and .*lora"
    ):
        compare(comparison(tmp_path, model, **tuned), lambda text: None, InProcess())


@pytest.mark.parametrize(
    ("mine", "told"),
    [
        ({"path": "another"}, r"settings.model.path = 'another' is another base model than full's, which is '.*'; all"),
        ({"attention": "sdpa"}, r"settings.model.attention = 'sdpa' differs from full's, which is 'auto'; all must"),
        ({"system_prompt": "Be brief."}, r"settings.model.system_prompt = 'Be brief.' differs from full's.* is None"),
        ({"weights": "bfloat16", "precision": "auto"}, None),
        ({"tuning": "lora", "precision": "bfloat16"}, None),
        ({"reference": "cpu"}, None),
    ],
)
def test_methods_begin_with_the_same_model(mine: dict[str, Any], told: str | None, model: Path, tmp_path: Path) -> None:
    config = comparison(tmp_path, model, methods=[with_model("full"), with_model("other", **mine)], against="full")
    if told is None:
        check(config)
        assert len(bases(config)) == 2 - ("reference" in mine)
    else:
        with pytest.raises(ConfigError, match=f"method other: {told}"):
            check(config)
    (link := tmp_path / "link").symlink_to(model)
    check(comparison(tmp_path, model, methods=[with_model("full"), with_model("o", path=f"{link}/")], against="full"))


def test_a_merged_adapter_is_rounded_and_a_live_one_is_not(model: Path, tmp_path: Path) -> None:
    (folder := tmp_path / "adapter").mkdir()
    methods = [with_model("full"), with_model("lora", tuning="lora")]
    for expected in (1, 2):
        assert len(bases(comparison(tmp_path, folder, methods=methods, against="full"))) == expected
        (folder / "adapter_config.json").touch()
