"""What a comparison is refused for before its first run."""

import re
from pathlib import Path
from typing import Any

import pytest

from selfcorrect.comparing.plan import check
from selfcorrect.errors import ConfigError
from tests.run.test_compare import METHODS, REPAIR, comparison

SFT = METHODS[1]["settings"]["stages"][0]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"repair": {**REPAIR, "dat": "x"}}, "repair: unknown key 'task.dat'"),
        ({"repair": {**REPAIR, "of": {"name": "math", "worker": 2}}}, "repair: unknown key 'task.of.worker'"),
        ({"repair": {"name": "repair"}}, "repair: task.data is missing"),
        ({"repair": {**REPAIR, "data": "none.jsonl"}}, "repair: task.data = 'none.jsonl': no such file"),
        (
            {"repair": {**REPAIR, "data": ".", "of": {"name": "math", "data": "none"}}},
            "repair: task.of.data = 'none': no such",
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
