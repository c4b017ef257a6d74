"""Losses and gradients that are not finite: the step is left out and told of; ten in a row end the run."""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from selfcorrect.config import ModelConfig
from selfcorrect.errors import NumericalError
from selfcorrect.learning import losses, training
from selfcorrect.learning.losses import TokenLoss
from selfcorrect.learning.record import StepResult
from selfcorrect.learning.training import Trainer
from selfcorrect.models.head import States
from selfcorrect.runs.loop import Loop
from tests.support.runs import go, read_rows, recipe

pytestmark = pytest.mark.usefixtures("lucky")
Spoil = Callable[[TokenLoss, States], Tensor]
SPOILS: dict[str, tuple[Spoil, str]] = {
    "loss": (lambda result, states: result.loss_B * float("nan"), "the loss is nan"),
    "infinite": (lambda result, states: result.loss_B + float("inf"), "the loss is inf"),
    # A finite loss: the square root of 0 has a slope without end.
    "gradient": (
        lambda result, states: result.loss_B + (states.hidden_ND.sum() * 0).abs().sqrt(),
        "the gradient norm is nan",
    ),
}

SMALL = {"problems_per_step": 1, "rollouts_per_problem": 4, "max_new_tokens": 4, "rows_at_once": 512}


class Watch:
    """Spoils the loss of chosen steps, in their first micro-batch only, and notes each step's weights and moments."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, spoils: Mapping[int, Spoil]) -> None:
        self.before: dict[int, list[Tensor]] = {}
        self.after: dict[int, list[Tensor]] = {}
        train_step, fresh = Trainer.train_step, False
        step = 0

        def watched(trainer: Trainer) -> StepResult:
            nonlocal fresh, step
            step, fresh = trainer.progress.step + 1, True
            self.before[step] = self._copy(trainer)
            try:
                return train_step(trainer)
            finally:
                self.after[step] = self._copy(trainer)

        def spoiled(policy: States, *args: Any, **options: Any) -> TokenLoss:
            nonlocal fresh
            result = losses.token_loss(policy, *args, **options)
            hit, fresh = step in spoils and fresh, False
            return replace(result, loss_B=spoils[step](result, policy)) if hit else result

        monkeypatch.setattr(Trainer, "train_step", watched)
        monkeypatch.setattr(training, "token_loss", spoiled)

    @staticmethod
    def _copy(trainer: Trainer) -> list[Tensor]:
        moments = [value for entry in trainer.optimizer.state.values() for value in entry.values()]
        return [torch.as_tensor(tensor).detach().clone() for tensor in [*trainer.lm.parameters(), *moments]]

    def changed(self, step: int) -> bool:
        before, after = self.before[step], self.after[step]
        return len(before) != len(after) or not all(map(torch.equal, before, after))


def long_recipe(output: Path, model: Path, steps: int) -> dict[str, Any]:
    stage = {"name": "only", "objective": "stage2", "steps": steps, "learning_rate": 0.0003}
    return recipe(
        output,
        model,
        stages=[stage],
        checkpoint={"every": 50},
        rollouts=SMALL,
        evaluation={"problems": 1, "controls": False},
    )


def test_the_step_is_skipped_counted_and_named(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Watch(monkeypatch, {2 * place + 1: spoil for place, (spoil, _) in enumerate(SPOILS.values())})
    run = go(long_recipe(tmp_path, model, 6))
    rows = read_rows(run / "metrics.jsonl")
    expected = [each for _, reason in SPOILS.values() for each in ((True, reason), (False, ""))]
    assert [(row["skipped"], row["skip_reason"]) for row in rows] == expected
    assert [watch.changed(step) for step in range(1, 7)] == [False, True] * 3
    assert all(torch.isfinite(tensor).all() for tensor in watch.after[6])


def test_ten_in_a_row_end_the_run(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Watch(monkeypatch, dict.fromkeys(range(2, 12), SPOILS["loss"][0]))
    with pytest.raises(
        NumericalError,
        match=r"^10 updates in a row were skipped, the last at step 11 because the loss is nan; start again ",
    ):
        go(long_recipe(tmp_path, model, 14))
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == 11  # the one that ended the run is told of too
    assert not [line for line in lines if "NaN" in line]  # which is not JSON
    assert json.loads(lines[-1])["loss"] is None
    assert [watch.changed(step) for step in (1, 2, 11)] == [True, False, False]


@pytest.mark.parametrize(
    ("weights", "computed", "advice"),
    [
        ("float32", torch.float32, ""), ("float32", torch.bfloat16, ", or with model.precision=float32"),
        ("bfloat16", torch.bfloat16, ", or with model.weights=float32 model.precision=float32"),
    ],
)  # fmt: skip
def test_what_is_advised_is_not_refused(weights: str, computed: torch.dtype, advice: str) -> None:
    """`model.precision=float32` beside weights in bfloat16 would be refused; where all is float32, it changes nothing."""
    trainer: Any = SimpleNamespace(
        progress=SimpleNamespace(bad_in_a_row=10), config=SimpleNamespace(model=SimpleNamespace(weights=weights)),
        lm=SimpleNamespace(compute_dtype=computed),
    )  # fmt: skip
    result: Any = SimpleNamespace(step=11, stage="one", skip_reason="the loss is nan")
    with pytest.raises(NumericalError, match=rf"a lower learning_rate of stage one{advice}$"):
        Trainer.check_health(trainer, result)
    ModelConfig.model_validate({"path": "m", "weights": weights} | dict(w[6:].split("=") for w in advice.split()[3:]))


def test_nine_in_a_row_and_a_good_one_go_on(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Watch(monkeypatch, dict.fromkeys([*range(2, 11), 12], SPOILS["loss"][0]))
    kept: list[Trainer] = []
    step = Loop._step

    def watched(loop: Loop) -> None:
        kept.append(loop.trainer)
        step(loop)

    monkeypatch.setattr(Loop, "_step", watched)
    rows = read_rows(go(long_recipe(tmp_path, model, 12)) / "metrics.jsonl")
    assert [row["step"] for row in rows if not row["skipped"]] == [1, 11]
    assert (kept[-1].progress.skipped, kept[-1].progress.bad_in_a_row) == (10, 1)
