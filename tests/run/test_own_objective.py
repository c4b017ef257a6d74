"""An objective of the user's own: trains as a shipped one of the same formula does, and is blamed for what it does."""

import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch

from selfcorrect.config import TrainConfig
from selfcorrect.config.stages import OwnObjective
from selfcorrect.errors import CheckpointError, DataError, TrainingInterrupted
from selfcorrect.learning import objectives
from selfcorrect.learning.own import own_objectives
from selfcorrect.runs.display import Observer
from selfcorrect.runs.run import resume
from tests.support.runs import StopAt, brief, config, end_state, go

EXAMPLE = Path(__file__).parents[2] / "examples" / "custom_objective.py"
STAGE_TWO = """
    def credit(rewards_BA, rollouts, step, options):
        assert [[attempt.grade.reward for attempt in each.attempts] for each in rollouts] == rewards_BA.tolist()
        paid_BA = rewards_BA.clone()
        paid_BA[:, 1:] += options["alpha"] * (rewards_BA[:, 1:] - rewards_BA[:, :-1])
        return paid_BA
"""
NOISE = """
    from beside import drawn

    def credit(rewards_BA, rollouts, step, options):
        assert all("target" in rollout.problem.reference for rollout in rollouts)
        return rewards_BA + (step + 1) * drawn(rewards_BA)

    def advantages(credit, rewards_BA, included_B, group, options):
        return drawn(rewards_BA) + credit.returns_BA - credit.returns_BA.reshape(-1, group, 2).mean(1).repeat_interleave(group, 0)
"""


def settings(folder: Path, model: Path, name: str, **stage: Any) -> dict[str, Any]:
    stages = [{"name": "one", "steps": 2, "learning_rate": 0.003, "beta1": 0.02, **stage}]
    return brief(folder, model, name, stages=stages)


def written(folder: Path, code: str) -> str:
    file = folder / "mine.py"
    file.write_text(textwrap.dedent(code))
    return str(file)


@pytest.mark.usefixtures("lucky")
def test_stage_two_s_formula_trains_as_stage_two(tmp_path: Path, model: Path) -> None:
    ran = tmp_path / "ran"
    file = written(tmp_path, f"{STAGE_TWO}\n    open({str(ran)!r}, 'a').write('.')\n")
    own = go(settings(tmp_path, model, "own", objective="custom", file=file, options={"alpha": 10}))
    assert ran.read_text() == ".", "the file runs once: what it sets up may be dear"
    shipped = go(settings(tmp_path, model, "shipped", objective="stage2", alpha=10))
    weights = "final/model.safetensors"
    assert end_state(own)[weights] == end_state(shipped)[weights]


@pytest.mark.usefixtures("lucky")
def test_a_run_goes_on_with_the_same_draws_and_its_copy(tmp_path: Path, model: Path) -> None:
    """Of the file and of what lies beside it, to the same end; another file is refused where it is named."""
    beside = tmp_path / "beside.py"
    beside.write_text("import torch\ndef drawn(like): return torch.rand(like.shape)\n")
    whole = settings(tmp_path, model, "whole", objective="custom", file=written(tmp_path, NOISE))
    cut = {**whole, "name": "cut"}
    expected = end_state(go(whole))
    with pytest.raises(TrainingInterrupted):
        go(cut, StopAt(1))
    kept = tmp_path / "cut" / "own" / "stages" / "one"
    assert {file.name for file in kept.iterdir()} == {"mine.py", "beside.py"}
    beside.write_text("def drawn(like): return 0 * like\n")
    with pytest.raises(CheckpointError, match=r"^the objective of stage one changed since the run in"):
        resume(tmp_path / "cut", Observer(), [f"stages.one.file={tmp_path}/mine.py"])
    found = end_state(go(cut))
    assert [found[name] == expected[name] for name in ("final/model.safetensors", "metrics.jsonl")] == [True, True]


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("return rewards_BA[:, :1]", r"credit must be a tensor of \(8, 2\), rollouts x attempts; got a tensor of \(8, 1\)$"),
        ("return rewards_BA.tolist()", r"credit must be a tensor of \(8, 2\), rollouts x attempts; got list$"),
        ("return rewards_BA / 0", "credit holds what is no finite number$"),
        ("return options['alpha']", r":5: KeyError: 'alpha'$"),
        ("return Credit(rewards_BA, (0.1,))", r"credit: kl_coef_A must be 2 numbers of at least 0, got \(0.1,\)$"),
        ("return Credit(rewards_BA, 0.1)", r"credit: kl_coef_A must be 2 numbers of at least 0, got 0.1$"),
        ("return Credit(rewards_BA, (0.1, 0.1))", "weighs a KL, but stages.mine.beta1 is 0, .*; give the stage a beta1$"),
    ],
)  # fmt: skip
def test_what_cannot_be_trained_on_is_refused_before_anything_is_loaded(tmp_path: Path, body: str, told: str) -> None:
    code = f"""
        from selfcorrect.learning.objectives import Credit

        def credit(rewards_BA, rollouts, step, options):
            {body}
    """
    stage = {"objective": "custom", "file": written(tmp_path, code), "beta1": 0}
    (tmp_path / "no model").mkdir()
    with pytest.raises(DataError, match=rf"^{tmp_path}/mine.py.*{told}"):
        go({**settings(tmp_path, tmp_path / "no model", "run", **stage), "stages": [_named(stage)]})
    assert not (tmp_path / "run").exists()


def _named(stage: dict[str, Any]) -> dict[str, Any]:
    return {"name": "mine", "steps": 4, "learning_rate": 0.003, **stage}


def test_the_example(tmp_path: Path) -> None:
    rewards_BA = torch.tensor([[0.0, 1.0], [1.0, 0.0], [1.0, 1.0], [0.0, 0.0]])
    stage = _named({"objective": "custom", "file": str(EXAMPLE), "options": {"mend": 5, "break": 15}})
    parsed: TrainConfig = config(tmp_path, tmp_path, stages=[stage])
    assert isinstance(parsed.stages[0], OwnObjective)
    (own,) = own_objectives(parsed.stages).values()
    assert own.credit(rewards_BA, (), 0, 0).returns_BA.tolist() == [[0, 6], [1, -15], [1, 1], [0, 0]]
    alike = own_objectives([parsed.stages[0].model_copy(update={"options": {"mend": 10, "break": 10}})])
    expected = objectives.stage_two(rewards_BA, 0.01, 10).returns_BA
    assert torch.equal(alike["mine"].credit(rewards_BA, (), 0, 0).returns_BA, expected)
