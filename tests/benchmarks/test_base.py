"""benchmarks/real/base.py: wordings, then test problems; killed within, and gone on."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from selfcorrect.types import Attempt, Completion, Grade, Outcome, Problem, Rollout
from tests.benchmarks.conftest import Script
from tests.support.data import GSM8K, code_folder, write
from tests.support.graders import put_in_place
from tests.support.hf_model import save_qwen2


@pytest.fixture(scope="module")
def call_of(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    model = save_qwen2(tmp_path_factory.mktemp("base") / "model", ends=20)
    state = load_file(model / "model.safetensors")  # louder, so that what is written depends on what was asked
    loud = {name: 10 * weight if "proj" in name else weight for name, weight in state.items()}
    save_file(loud, model / "model.safetensors", metadata={"format": "pt"})
    data = code_folder(tmp_path_factory.mktemp("data"))
    write(data / "gsm8k" / "train.jsonl", GSM8K[:3])
    write(data / "gsm8k" / "test.jsonl", GSM8K[3:])
    tiny = ["--code-tokens", "8", "--math-tokens", "6", "--rows", "1", "--threads", "1", "--precision", "float32"]
    return ["--model", str(model), "--data", str(data), "--sets", "humaneval=3,mbpp=2,gsm8k=3", *tiny]


def texts(folder: Path) -> dict[str, str]:
    return {file.name: gzip.open(file, "rt").read() for file in sorted((folder / "texts").iterdir())}


@pytest.mark.nightly
def test_wordings_first_then_the_tables_through_a_kill(
    script: Script, call_of: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = script("benchmarks/real/base.py")
    whole, parts = tmp_path / "whole", tmp_path / "parts"

    def call(output: Path, *more: str) -> int:
        status: int = base.main([*call_of, "--output", str(output), *more])
        return status

    assert call(whole) == 2
    assert "says no wording of the correction prompt for humaneval; run the same command" in capsys.readouterr().err
    assert not whole.exists()
    assert call(whole, "--wordings", "2") == 0
    tried = json.loads((whole / "wordings.json").read_text())["kinds"]
    assert {kind: found["tried_on"] for kind, found in tried.items()} == {
        "code": "mbpp, training problems",
        "math": "gsm8k, training problems",
    }
    seen = {name for found in tried.values() for told in found["tried"].values() for name in told["ids"]}
    assert {name.partition("/")[2] for name in seen if name.startswith("mbpp")} <= {"601", "602", "603", "604"}
    assert call(whole) == 0
    summary = json.loads((whole / "summary.json").read_text())
    assert {name: told["n"] for name, told in summary["evaluations"].items()} == summary["asked_for"]
    assert summary["asked_for"] == {"humaneval": 3, "mbpp": 2, "gsm8k": 3}
    assert not seen & {name for told in summary["evaluations"].values() for name in told["ids"]}
    assert summary["prompts"]["humaneval"]["correction"] == tried["code"]["correction"]
    page = (whole / "page.md").read_text()
    assert page.count("(taken)") == 2
    assert "| humaneval | 3 |" in page

    parts.mkdir()
    (parts / "wordings.json").write_bytes((whole / "wordings.json").read_bytes())
    play, left = base.Evaluating._play, [3]

    def killed(self: Any, unit: Any, lm: Any) -> list[Rollout]:
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt
        found: list[Rollout] = play(self, unit, lm)
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(base.Evaluating, "_play", killed)
        with pytest.raises(KeyboardInterrupt):
            call(parts)
    begun = {file: file.stat().st_mtime_ns for file in sorted((parts / "texts").iterdir())}
    assert [file.name for file in begun] == ["humaneval.greedy.000.jsonl.gz", "humaneval.greedy.001.jsonl.gz"]
    assert "| humaneval, of 3 | 2 |" in (parts / "page.md").read_text()
    assert call(parts) == 0
    assert {file: file.stat().st_mtime_ns for file in begun} == begun  # nothing is played twice
    assert texts(parts) == texts(whole)
    rows = [json.loads(line) for text in texts(parts).values() for line in text.splitlines()]
    assert len({attempt["text"] for row in rows for attempt in row["attempts"]}) > 8
    assert all(set(row) == {"id", "attempts"} for row in rows)  # no words of the data sets
    assert call(parts, "--correction", "Once more.") == 2
    assert "was begun with sets = " in (said := capsys.readouterr().err)
    assert "'Once more.'" in said
    assert texts(parts) == texts(whole)


def test_what_a_base_model_writes_after_its_turn(script: Script, call_of: list[str], tmp_path: Path) -> None:
    """Cut off all the same; besides, its texts are graded up to the next turn."""
    base = script("benchmarks/real/base.py")
    answer = "```python\ndef add_11(x):\n    return x + 11\n```\n\nUser:\nAnd now"

    def runs_on(self: Any, unit: Any, lm: Any) -> list[Rollout]:
        attempt = Attempt((), Completion((1,), (), answer, "length"), Grade(Outcome.TRUNCATED, 0.0))
        return [Rollout(problem, (attempt, attempt)) for problem in unit.problems]

    with pytest.MonkeyPatch.context() as patch:
        put_in_place(patch)
        patch.setattr(base.Evaluating, "_play", runs_on)
        more = ["--output", str(tmp_path / "out"), "--plain", "--correction", "Once more.", "--sets", "mbpp=2"]
        assert base.main([*call_of, *more]) == 0
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    whole, to_turn = (summary[name]["mbpp"] for name in ("evaluations", "read_to_next_turn"))
    assert [found["accuracy"][1]["value"] for found in (whole, to_turn)] == [0.0, 0.5]
    assert [found["cut_off"][0]["value"] for found in (whole, to_turn)] == [1.0, 0.0]


def rollout(first: str, last: str, right: bool) -> Rollout:
    attempts = (
        Attempt((), Completion((), (), text, "stop"), Grade(outcome, 0.0))
        for text, outcome in ((first, Outcome.WRONG), (last, Outcome.CORRECT if right else Outcome.WRONG))
    )
    return Rollout(Problem("mbpp/601", "code", "", {}), tuple(attempts))


def test_the_rule_that_fixes_a_wording(script: Script) -> None:
    chosen = script("benchmarks/real/prompts.py").chosen
    same, other, solved = rollout("a", "a", False), rollout("a", "b", False), rollout("a", "b", True)
    assert chosen({"one": [same, other], "two": [same, solved]}) == "two"
    assert chosen({"one": [same, other], "two": [other, other]}) == "two"
    assert chosen({"one": [same, other], "two": [other, same]}) == "one"
