"""Pair-SFT, STaR and the offline first attempts: what trains, what is sampled, and what a stopped run goes on with."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from selfcorrect.errors import CheckpointError, ConfigError, DataError, TrainingInterrupted
from selfcorrect.learning.batching import make_batch
from selfcorrect.learning.credit import credit_of
from selfcorrect.learning.record import Progress
from selfcorrect.learning.supervised import Collection, Collector, supervised_step
from selfcorrect.learning.training import Trainer
from selfcorrect.models.weights import weights
from selfcorrect.samplers.transformers import TransformersSampler
from selfcorrect.tasks import make_task
from selfcorrect.types import Rollout
from tests.run.conftest import ENDS, Listener
from tests.support.rollouts import rollout_of_ids
from tests.support.runs import Process, StopAt, check_same, config, end_state, go, read_rows, recipe
from tests.support.tiny import tiny_lm

STAR = {
    "name": "star",
    "objective": "star",
    "steps": 4,
    "iterations": 2,
    "collect": 6,
    "batch": 3,
    "learning_rate": 0.003,
}


def trainer_of(*stages: dict[str, Any], **changes: Any) -> Trainer:
    settings = config(Path("unused"), Path("unused"), stages=stages, **changes)
    lm, reference = (tiny_lm("llama", "eager", ENDS, seed=seed) for seed in (0, 1))
    samplers = TransformersSampler(lm), TransformersSampler(reference)
    return Trainer(settings, lm, reference, samplers[0], make_task(settings.task), samplers[1])


def given(rollout: Rollout) -> Rollout:
    first, second = rollout.attempts
    return replace(rollout, attempts=(replace(first, sampled=False), second))


def test_the_loss_is_the_cross_entropy_of_the_second_attempts_tokens() -> None:
    trainer = trainer_of(STAR, rollouts={"problems_per_step": 2, "rollouts_per_problem": 4, "temperature": 0.6})
    traces = [
        given(rollout_of_ids(((17, 18, 8), (9, 10, 3)), ((11,), (12, 3)))),
        given(rollout_of_ids(((16, 17), (18, 3)), ((11, 8), (9, 10, 11, 5)))),
        given(rollout_of_ids(((15, 16, 17, 18), (8, 9, 10, 3)), ((11,), (11, 3)))),
    ]
    losses = []
    for trace in traces:  # torch's own, one sequence at a time, in full precision, at temperature 1
        prompt, sampled = trace.attempts[1].prompt_ids, trace.attempts[1].completion.token_ids
        with torch.no_grad():
            logits = trainer.lm.model(input_ids=torch.tensor([[*prompt, *sampled]])).logits[0]
        losses.append(
            torch.nn.functional.cross_entropy(logits[len(prompt) - 1 : -1], torch.tensor(sampled), reduction="sum")
        )
    expected = float(sum(losses)) / sum(len(trace.attempts[1].completion.token_ids) for trace in traces)
    result = supervised_step(trainer, Collection(1, traces, 0))
    assert result.loss == pytest.approx(expected, rel=1e-5)
    assert (result.rewards, result.kl, trainer.progress.step) == ([], [], 1)


def star_recipe(output: Path, model: Path, **changes: Any) -> dict[str, Any]:
    first = {"name": "one", "objective": "stage1", "steps": 2, "learning_rate": 0.003}
    return recipe(output, model, stages=[first, {**STAR, **changes}], evaluation={"problems": 4, "controls": False})


@pytest.fixture(scope="module")
def whole_star(model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """A whole run, and the processor time that it took."""
    output = tmp_path_factory.mktemp("whole_star")
    seconds = Process(star_recipe(output, model)).seconds()
    return output / "run", seconds


@pytest.fixture
def star(whole_star: tuple[Path, float]) -> Path:
    return whole_star[0]


@pytest.mark.usefixtures("lucky")
def test_each_iteration_samples_the_newest_model_and_trains_from_the_first(
    star: Path, model: Path, tmp_path: Path
) -> None:
    runs = {False: star, True: go(star_recipe(tmp_path, model, from_newest=True))}
    for run in runs.values():
        rows = read_rows(run / "metrics.jsonl")
        assert [(row["stage"], row["completions"]) for row in rows] == [
            ("one", 16), ("one", 16), *[("star", n) for n in (48, 0, 48, 0)],
        ]  # fmt: skip
    traces = {newest: [read_rows(run / "traces" / f"star-{i}.jsonl") for i in (1, 2)] for newest, run in runs.items()}
    assert traces[False] == traces[True]  # both from the same newest models
    assert traces[False][0] != traces[False][1]
    ends = [end_state(run)["models/star/model.safetensors"] for run in runs.values()]
    assert ends[0] != ends[1]  # and then trained from other weights
    assert all(row["second"]["outcome"] == "correct" for rows in traces[False] for row in rows)


@pytest.mark.parametrize("moment", [0.7, *(pytest.param(m, marks=pytest.mark.nightly) for m in (0.5, 0.6, 0.8, 0.9))])
def test_a_killed_run_goes_on(moment: float, model: Path, whole_star: tuple[Path, float], tmp_path: Path) -> None:
    whole, seconds = whole_star
    killed = star_recipe(tmp_path, model)
    Process(killed).kill_after(moment * seconds)
    Process(killed).seconds()
    check_same(tmp_path / "run", end_state(whole))


def test_traces_lie_on_the_disk_before_what_says_that_they_are_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether they were just sampled, or are those of another stage."""
    synced: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda of: synced.append(Path(os.readlink(f"/proc/self/fd/{of}")).name))
    collector = Collector(trainer_of(STAR), tmp_path, print)
    collector._write("key", tmp_path / "a-1.jsonl", [], 0)
    assert collector._find("key", tmp_path / "b-1.jsonl")
    assert synced[::2] == [".a-1.jsonl.tmp", ".a-1.json.tmp", ".b-1.jsonl.tmp", ".b-1.json.tmp"]


@pytest.mark.usefixtures("lucky")
def test_traces_of_a_file_are_used_as_they_are(star: Path, model: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.jsonl"
    wrong_first = [row for row in read_rows(star / "traces" / "star-1.jsonl") if row["first"]["outcome"] != "correct"]
    file.write_text("".join(json.dumps(row) + "\n" for row in wrong_first[:2]))
    mine = go(star_recipe(tmp_path / "second", model, traces=str(file), iterations=1))
    rows = read_rows(mine / "metrics.jsonl")
    assert [row["completions"] for row in rows[2:]] == [0] * 4
    file.write_text(json.dumps({**wrong_first[0], "first": {"text": "7", "outcome": "correct"}}))
    with pytest.raises(
        DataError, match=r"mine\.jsonl: no wrong-then-right traces for stage star; add some, or set keep_right: true"
    ):
        go(star_recipe(tmp_path / "third", model, traces=str(file), iterations=1))
    assert not list(tmp_path.glob("third/**/metrics.jsonl"))  # told before anything is evaluated


@pytest.mark.usefixtures("lucky")
def test_a_stage_goes_on_with_the_traces_it_began_with(star: Path, model: Path, tmp_path: Path) -> None:
    """Edited before it begins, they are those that the recipe names."""
    rows = [row for row in read_rows(star / "traces/star-1.jsonl") if row["first"]["outcome"] != "correct"]
    file = tmp_path / "mine.jsonl"
    settings = star_recipe(tmp_path, model, traces=str(file), iterations=1)
    whole, other = ("".join(json.dumps(row) + "\n" for row in rows[:count]) for count in (3, 2))
    for step, text in ((1, other), (4, whole)):  # in the stage before it, and in its own
        file.write_text(text)
        with pytest.raises(TrainingInterrupted):
            go(settings, StopAt(step))
    file.write_text(other)
    with pytest.raises(CheckpointError, match=r"^the traces of stage star changed since the run in .*; put it back"):
        go(settings)
    file.write_text(whole)
    assert (go(settings) / "final").is_dir()


def test_a_recipe_without_stages_is_not_trained(model: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="stages is empty"):
        go(recipe(tmp_path, model, stages=[]))


@pytest.mark.usefixtures("lucky")
def test_offline_first_attempts_carry_no_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the groups: attempt 1 of the base model trains nothing, attempt 2 after it does."""
    stage = {"name": "two", "objective": "stage2", "steps": 4, "learning_rate": 0.003, "offline_first": 0.5}
    trainer = trainer_of(stage)
    made: list[Any] = []

    def kept(rollouts: list[Rollout], *rest: Any) -> Any:
        made.append((rollouts, make_batch(rollouts, *rest)))
        return made[-1][1]

    monkeypatch.setattr("selfcorrect.learning.training.make_batch", kept)
    result = trainer.train_step()
    assert vars(trainer.sampler)["_kept"] == {}  # no cache stays for an attempt that does not come
    rollouts, batch = made[0]
    assert [r.attempts[0].sampled for r in rollouts] == [False] * 4 + [True] * 4
    assert [bool((row == 1).any()) for row in batch.attempt_BT] == [False] * 4 + [True] * 4
    assert all((row == 2).any() for row in batch.attempt_BT)
    own = rollouts[4:]
    assert result.rewards[0] == pytest.approx(sum(r.attempts[0].grade.reward for r in own) / 4)
    # The same first attempts with another policy: they are the base model's.
    again = trainer_of(stage)
    with torch.no_grad():
        for name, tensor in weights(again.lm).items():
            tensor.add_(0.3 * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(len(name))))
    again.train_step()
    firsts = [[r.attempts[0].completion.token_ids for r in made[i][0][:4]] for i in (0, 1)]
    assert firsts[0] == firsts[1]
    assert made[0][0][4].attempts[0].completion.token_ids != made[1][0][4].attempts[0].completion.token_ids


@pytest.mark.usefixtures("lucky")
@pytest.mark.parametrize(("target", "direction"), [(1e-9, 1), (1e9, -1)])
def test_beta2_follows_its_rule(target: float, direction: int) -> None:
    """KL far over the target: + 10 % a step; far under it: - 10 %."""
    stage = {"name": "one", "objective": "stage1", "steps": 9, "learning_rate": 0.003, "beta2": 0.2}
    trainer = trainer_of({**stage, "adaptive": {"target": target, "rate": 0.1}})
    used = [trainer.train_step().beta2 for _ in range(4)]
    assert used == pytest.approx([0.2 * (1 + 0.1 * direction) ** i for i in range(4)], rel=1e-6)
    credit = credit_of(trainer.stage, torch.zeros(1, 2), Progress(beta2=0.7))
    assert credit.kl_coef_A == pytest.approx((0.01 + 0.7, 0.01))


def test_the_annealed_credit_goes_from_stage_one_to_stage_two() -> None:
    """r = (0, 1), alpha 10: attempt 2 earns 1, then 11; attempt 1's KL weight falls from beta1 + beta2 to beta1."""
    stage = {"name": "a", "objective": "annealed", "steps": 10, "learning_rate": 0.1, "begin": 0.2, "end": 0.6}
    trainer = trainer_of(stage)
    rewards_BA = torch.tensor([[0.0, 1.0], [1.0, 1.0]])
    found = [credit_of(trainer.stage, rewards_BA, Progress(stage_step=step)) for step in (0, 2, 4, 6, 9)]
    assert [credit.returns_BA.tolist() for credit in found] == [
        [[0.0, 1.0], [0.0, 1.0]], [[0.0, 1.0], [0.0, 1.0]], [[0.0, 6.0], [0.5, 1.0]],
        [[0.0, 11.0], [1.0, 1.0]], [[0.0, 11.0], [1.0, 1.0]],
    ]  # fmt: skip
    assert [credit.kl_coef_A[0] for credit in found] == pytest.approx([0.11, 0.11, 0.06, 0.01, 0.01])


@pytest.mark.usefixtures("lucky")
def test_the_checkpoint_with_the_best_held_out_accuracy_is_taken(model: Path, tmp_path: Path) -> None:
    file = tmp_path / "held_out.jsonl"
    file.write_text("".join(f'{{"nums": [{a}, 3], "target": {a + 3}}}\n' for a in range(1, 9)))
    listener = Listener()
    settings = recipe(tmp_path, model, checkpoint={"every": 1, "keep": 9, "select": "held_out", "held_out": str(file)})
    run = go(settings, listener)
    told = [text for text in listener.messages if text.endswith("of the held-out file right")]
    scores = [float(text.split(": ")[1].split("%")[0]) for text in told]
    assert len(scores) == 8
    assert len(set(scores[:4])) > 1
    state = json.loads((run / "checkpoints" / "step-000008" / "state.json").read_text())
    assert state["best_reward"] * 100 == pytest.approx(max(scores[4:7]))  # as it was before the step's own score
    for stage, first in (("one", 0), ("two", 4)):
        own = scores[first : first + 4]
        tensors = load_file(run / "checkpoints" / f"step-{first + 1 + own.index(max(own)):06d}" / "tensors.safetensors")
        chosen = load_file(run / "models" / stage / "model.safetensors")
        assert all(tensors[f"model/{name}"].equal(tensor) for name, tensor in chosen.items())
