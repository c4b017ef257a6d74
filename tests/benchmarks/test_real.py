"""benchmarks/real: a model in pieces comes back to the bit; the driver from base to page, stopped and resumed."""

import gzip
import json
import os
import signal
import tarfile
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from selfcorrect.config import CountdownConfig, MathConfig, ModelConfig
from selfcorrect.models.loading import load_model
from selfcorrect.tasks import make_task
from selfcorrect.tasks.countdown import Countdown, split_of
from selfcorrect.types import Attempt, Completion, Grade, Outcome, Problem, Rollout
from tests.benchmarks.conftest import Script
from tests.support.data import code_folder
from tests.support.graders import put_in_place
from tests.support.hf_model import save_qwen2


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_qwen2(tmp_path_factory.mktemp("real") / "model")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return code_folder(tmp_path_factory.mktemp("data"))


def same_folders(one: Path, other: Path) -> None:
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (one, other))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    for file in one.glob("*.json*"):
        assert file.read_bytes() == (other / file.name).read_bytes()


def test_a_model_in_pieces_comes_back(script: Script, model: Path, tmp_path: Path) -> None:
    pack = script("benchmarks/real/pack.py").main
    pieces, there = tmp_path / "pieces", tmp_path / "there"
    pack(["pack", str(model), str(pieces), "--megabytes", "0.02"])
    sent = sorted(pieces.iterdir())
    assert len(sent) > 3
    for piece in sent[1:]:
        pack(["receive", str(piece), "--to", str(there)])
    with pytest.raises(SystemExit, match="pieces are missing"):
        pack(["unpack", str(there), str(tmp_path / "back")])
    damaged = tmp_path / sent[0].name
    damaged.write_bytes(sent[0].read_bytes()[:-1] + b"?")
    with pytest.raises(SystemExit, match="damaged on the way"):
        pack(["receive", str(damaged), "--to", str(there)])
    pack(["receive", str(sent[0]), "--to", str(there)])
    pack(["unpack", str(there), str(tmp_path / "back")])
    same_folders(model, tmp_path / "back")
    with pytest.raises(SystemExit, match="not empty"):
        pack(["pack", str(model), str(pieces)])


def test_what_a_gguf_file_holds_travels_as_it_is_there(script: Script, model: Path, tmp_path: Path) -> None:
    """Blocks of 5 bits for a weight that was widened from them; one that differs from its block by a bit goes whole."""
    gguf = pytest.importorskip("gguf", reason="gguf is not installed; `pip install gguf`")
    kind = gguf.GGMLQuantizationType.Q5_0
    state = load_file(model / "model.safetensors")
    name = "model.layers.0.self_attn.q_proj.weight"
    other = "model.layers.1.self_attn.q_proj.weight"
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "qwen2")
    for layer, weight in enumerate((name, other)):
        blocks = gguf.quantize(state[weight].float().numpy(), kind)
        state[weight] = torch.from_numpy(gguf.dequantize(blocks, kind).copy()).to(torch.bfloat16)
        writer.add_tensor(f"blk.{layer}.attn_q.weight", blocks, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    state[other].view(torch.int16)[0, 0] += 1
    widened = tmp_path / "widened"
    widened.mkdir()
    (widened / "config.json").write_bytes((model / "config.json").read_bytes())
    from safetensors.torch import save_file

    save_file(state, widened / "model.safetensors")
    module = script("benchmarks/real/pack.py")
    with (tmp_path / "table").open("wb") as out:
        entries: dict[str, Any] = {e["tensor"]: e for e in module._pack_tensors(widened, tmp_path / "model.gguf", out)}
    assert entries[name]["gguf"] == "Q5_0"
    assert entries[name]["bytes"] == state[name].numel() // 32 * 22
    assert "gguf" not in entries[other]
    module.main(["pack", str(widened), str(tmp_path / "pieces"), "--gguf", str(tmp_path / "model.gguf")])
    module.main(["unpack", str(tmp_path / "pieces"), str(tmp_path / "back")])
    same_folders(widened, tmp_path / "back")


def call(script: Script, model: Path, data: Path, output: Path, *more: str) -> int:
    fixed = ["--model", str(model), "--data", str(data), "--output", str(output), "--minutes", "30", "--dry"]
    module = script("benchmarks/real/run.py")
    status: int = module.main([*fixed, "--archive", str(output) + ".tar.gz", *more])
    return status


def test_from_base_to_page(
    script: Script, model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    few = ["--tokens", "6", "--eval-tokens", "6", "--problems", "2"]
    assert call(script, model, data, output, *few, "--arms", "base,score,single_turn") == 0
    told = capsys.readouterr().out
    assert told.index("rows write") < told.index("s are left for 2 runs")  # what will fit, before and after the base
    summary = json.loads((output / "summary.json").read_text())
    assert set(summary["evaluations"]) == {"base", "score-0", "single_turn-0"}
    for sets in summary["evaluations"].values():
        assert {
            (name, found["greedy"]["n"], found["repair"]["n"], found["sampled"]["n"], found["sampled"]["samples"])
            for name, found in sets.items()
        } == {
            ("humaneval", 2, 2, 2, 2),
            ("mbpp", 2, 2, 2, 2),
        }
    # The same updates and attempts for every arm, though one plays single attempts.
    assert {told["steps"] for told in summary["training"].values()} == {3}
    assert len({told["completions"] for told in summary["training"].values()}) == 1
    steps = [json.loads(line) for line in (output / "arms/score-0/metrics.jsonl").read_text().splitlines()]
    assert [step["stage"] for step in steps] == ["stage1", "stage2", "stage2"]
    page = (output / "page.md").read_text()
    assert page.count("| base |") == 8
    assert page.count("| pass@2 |") == 6  # of three models, on two data sets
    assert "score-0 less base on mbpp, greedy: t1" in page
    assert "score-0 less single_turn on humaneval, greedy: t1" in page
    assert "single_turn-0 less single_turn" not in page
    with tarfile.open(str(output) + ".tar.gz") as archive:
        names = archive.getnames()
        assert not [name for name in names if "checkpoints" in name]
        assert {"real/summary.json", "real/page.md", "real/texts/base.greedy.000.jsonl.gz"} <= set(names)
    with gzip.open(output / "texts/base.sampled.000.jsonl.gz", "rt") as lines:
        row = json.loads(next(lines))
    assert set(row) == {"id", "attempts"}  # no prompt: that is the data set's
    assert {"text", "tokens", "outcome"} <= set(row["attempts"][1])
    # Elsewhere the archive goes on without the arms' weights: what was trained is not trained again.
    with tarfile.open(str(output) + ".tar.gz") as archive:
        kept: Any = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}  # since 3.11.4
        archive.extractall(tmp_path, **kept)
    (tmp_path / "real/texts/score-0.sampled.000.jsonl.gz").unlink()
    assert call(script, model, data, tmp_path / "real", *few, "--arms", "score,single_turn") == 0
    assert "score-0: trained elsewhere, and not evaluated whole" in capsys.readouterr().out
    assert (tmp_path / "real/arms/score-0/metrics.jsonl").read_text() == "".join(f"{json.dumps(s)}\n" for s in steps)
    again = json.loads((tmp_path / "real/summary.json").read_text())["evaluations"]
    assert again["single_turn-0"] == summary["evaluations"]["single_turn-0"]


SEEDS = "-0", "-1", ", 2 seeds"


def attempts_of(file: Path) -> list[list[str]]:
    with gzip.open(file, "rt") as lines:
        rows = sorted((json.loads(line) for line in lines), key=lambda row: str(row["id"]))
    return [[attempt["text"] for attempt in row["attempts"]] for row in rows]


@pytest.mark.nightly
def test_adapters_and_word_problems(
    script: Script, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every arm begins with the adapter that the first one had, and is measured to the base."""
    script("benchmarks/real/words.py").main([str(tmp_path / "words"), "--train", "12", "--test", "8"])
    words = ["--task", "gsm8k", "--tuning", "lora", "--steps", "2", "--samples", "1"]
    trainer: Any = script("benchmarks/real/arms.py").Trainer
    step = trainer.train_step

    def moving(self: Any) -> Any:  # the tiny model is never right, and would learn nothing
        result = step(self)
        for weight in self.lm.parameters():
            weight.data += 0.03
        return result

    monkeypatch.setattr(trainer, "train_step", moving)
    for arms, seeds, output in (("score,multi_turn_all", "0", "both"), ("multi_turn_all", "01", "one")):
        asked = ["--arms", f"base,{arms}", "--seeds", *seeds]
        assert call(script, model, tmp_path / "words", tmp_path / output, *words, *asked) == 0
    both, one = (json.loads((tmp_path / name / "summary.json").read_text()) for name in ("both", "one"))
    assert set(both["evaluations"]["base"]) == {"gsm8k"}
    kl, same = (found["training"]["multi_turn_all-0"]["kl_last"] for found in (both, one))
    assert kl == same
    assert kl[1] > 0
    assert "lora tuning" in (tmp_path / "one/page.md").read_text()
    unchanged = [one["evaluations"][f"multi_turn_all{each}"]["gsm8k"]["greedy"]["unchanged"]["value"] for each in SEEDS]
    assert unchanged[2] == pytest.approx((unchanged[0] + unchanged[1]) / 2)
    assert "- multi_turn_all, 2 seeds less base on gsm8k, sampled: t1" in (tmp_path / "one/page.md").read_text()
    base, repaired, own = (
        [both[0] for both in attempts_of(tmp_path / f"one/texts/{name}.000.jsonl.gz")]
        for name in ("base.greedy", "multi_turn_all-0.repair", "multi_turn_all-0.greedy")
    )
    assert repaired == base != own  # the base's first attempts, whoever repairs
    # Arms trained in separate calls are compared: whatever seeds a call names, the same is drawn.
    assert call(script, model, tmp_path / "words", tmp_path / "other", *words, "--arms", "base", "--seeds", "1") == 0
    drawn = [attempts_of(tmp_path / name / "texts/base.sampled.000.jsonl.gz") for name in ("both", "other")]
    assert drawn[0] == drawn[1]


def test_what_is_held_against_what(script: Script) -> None:
    run = script("benchmarks/real/run.py")
    names = ["base", *(f"{arm}-{seed}" for arm in ("score", "single_turn", "multi_turn") for seed in "01"), "score-2"]
    held = {other: [name for name, _, _ in each] for other, each in run.opponents(run.together(names)).items()}
    both = ["score-0", "score-1"]
    assert held["single_turn"] == [*both, "multi_turn-0", "multi_turn-1", "multi_turn, 2 seeds"]
    assert held["multi_turn"] == both  # all three of its seeds have no three of theirs
    assert len(held["base"]) == 10


@pytest.mark.nightly
def test_it_goes_on_where_it_was_stopped(
    script: Script, model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert call(script, model, data, whole) == 0
    arms = script("benchmarks/real/arms.py")
    step = arms.Trainer.train_step

    def killed(trainer: Any) -> Any:
        if trainer.progress.step == 1:
            raise KeyboardInterrupt
        return step(trainer)

    def asked(trainer: Any) -> Any:
        if trainer.progress.step == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return step(trainer)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arms.Trainer, "train_step", killed)
        patch.setattr(arms, "SAVE_SECONDS", 0.0)
        assert call(script, model, data, parts) == 130
    assert json.loads((parts / "arms/score-0/done.json").read_text()) == {"steps": 1}
    assert json.loads((parts / "summary.json").read_text())["evaluations"]["base"]  # summed up all the same
    kept = {file.name: file.stat().st_mtime_ns for file in (parts / "texts").iterdir()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arms.Trainer, "train_step", asked)
        assert call(script, model, data, parts, "--arms", "base,score,single_turn") == 0
    assert not (parts / "arms/single_turn-0").exists()  # no further arm begins
    assert len((parts / "arms/score-0/metrics.jsonl").read_text().splitlines()) == 2
    assert call(script, model, data, parts) == 0
    assert "going on after step 2" in capsys.readouterr().out
    assert {name: (parts / "texts" / name).stat().st_mtime_ns for name in kept} == kept  # nothing is played twice
    one, other = (json.loads((folder / "summary.json").read_text()) for folder in (whole, parts))
    assert one["evaluations"] == other["evaluations"]
    told = [folder["training"]["score-0"] for folder in (one, other)]
    assert told[0]["completions"] == told[1]["completions"]
    assert told[0]["kl_last"] == told[1]["kl_last"]
    assert call(script, model, data, parts, "--samples", "3") == 2
    assert "was begun with samples = 2, now 3; choose another --output" in capsys.readouterr().err


def test_the_plan_follows_from_the_minutes(script: Script, tmp_path: Path) -> None:
    arms = script("benchmarks/real/arms.py")
    plan = arms.Plan(tmp_path / "plan.json")
    plan.settle(105.0, 10.0, done=2)
    assert arms.Plan.read(plan.file).steps == 12
    assert [arms.steps_of("score", total) for total in (2, 3, 15)] == [[1, 1], [1, 2], [6, 9]]
    assert arms.steps_of("multi_turn", 15) == [15]
    early = arms.Plan(tmp_path / "late.json")
    early.settle(-5.0, 10.0, done=2)
    assert early.steps == 3


class Ticking:
    """A clock on which every unit takes so many seconds, by its decoding."""

    def __init__(self, took: dict[str, float]) -> None:
        self.now, self._took = 0.0, took

    def play(self, unit: Any) -> None:
        self.now += self._took[unit.decoding]


@pytest.mark.parametrize(
    ("left", "played"),
    [
        (1000.0, ["base.greedy", "base.sampled", "arm.greedy", "arm.sampled"]),
        (105.0, ["base.greedy", "arm.greedy"]),  # 10 s for 6 rows: 60 rows of samples may take 100, and 95 are left
        (15.0, ["base.greedy"]),
        (215.0, ["base.greedy", "base.sampled", "arm.greedy"]),  # the arm's samples will take what the base's did
    ],
)
def test_no_unit_starts_that_will_not_end(
    script: Script, left: float, played: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = script("benchmarks/real/evaluating.py")
    clock, summed = Ticking({"greedy": 10.0, "sampled": 94.0}), list[int]()
    problems = [Problem(f"mbpp/{n}", "code", "", {}) for n in range(6)]

    def rollouts(of: Any, unit: Any, lm: object) -> list[Rollout]:
        clock.play(unit)
        attempt = Attempt((), Completion((1,), (), "x", "stop"), Grade(Outcome.WRONG, 0.0))
        return [Rollout(problem, (attempt, attempt)) for problem in unit.problems]

    monkeypatch.setattr(module.Evaluating, "_play", rollouts)
    monkeypatch.setattr(module.time, "monotonic", lambda: clock.now)
    evaluating = module.Evaluating(
        None, problems, {p.id: 10 for p in problems}, tmp_path, 10, 0.7, 8, 100_000, 0
    )  # fmt: skip
    for model in ("base", "arm"):
        for decoding in ("greedy", "sampled"):
            evaluating.run(model, decoding, None, lambda: summed.append(1), lambda need: left - clock.now - 0.5 <= need)
    files = sorted(file.name for file in (tmp_path / "texts").iterdir())
    assert files == sorted(f"{name}.000.jsonl.gz" for name in played)
    assert len(summed) == len(played)  # summed up after each


def test_minutes_that_are_over_end_it_in_order(
    script: Script, model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_in_place(monkeypatch)
    output = tmp_path / "out"
    assert call(script, model, data, output, "--minutes", "0") == 0
    summary = json.loads((output / "summary.json").read_text())
    assert summary["evaluations"] == {}
    assert (output / "page.md").exists()


def test_word_problems_are_new_and_right(tmp_path: Path, script: Script) -> None:
    words = script("benchmarks/real/words.py")
    words.main([str(tmp_path), "--train", "40", "--test", "16"])
    rows = [json.loads(line) for name in ("test", "train") for line in (tmp_path / f"{name}.jsonl").open()]
    assert len({row["question"] for row in rows}) == len(rows) == 56
    assert {row["kind"] for row in rows[:16]} == set(words.KINDS)
    for row in rows:
        working, result = row["answer"].partition("\n")[0].split(" = ")
        assert eval(working) == int(result) == int(row["answer"].partition("#### ")[2])


def test_a_short_training_on_worked_examples(
    script: Script, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is shown is right and in the asked form; the loss falls; nothing is overwritten, and no row left out."""
    data = tmp_path / "words"
    script("benchmarks/real/words.py").main([str(data), "--train", "16", "--test", "8"])
    warm_up, shown = script("benchmarks/real/warm_up.py"), list[Rollout]()
    worked = warm_up.worked
    tiny = ["--steps", "8", "--batch", "8", "--rate", "0.02", "--precision", "float32"]
    call = ["--model", str(model), "--data", str(data), "--output", str(tmp_path / "out"), *tiny]

    def noted(*given: Any) -> Rollout:
        shown.append(worked(*given))
        return shown[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(warm_up, "worked", noted)
        assert warm_up.main(call) == 0
    record = json.loads((tmp_path / "out/warm_up.json").read_text())
    assert record["examples"] == len(shown) == 16
    assert sum(record["losses"][-3:]) < 0.8 * sum(record["losses"][:3])
    with closing(make_task(MathConfig(name="math", dataset="gsm8k", data=str(data), workers=1))) as task:
        problems = task.load(str(data / "train.jsonl"))
        texts = [rollout.attempts[0].completion.text for rollout in shown]
        grades = task.grade(list(zip(problems, texts, strict=True)))
    assert {grade.outcome for grade in grades} == {Outcome.CORRECT}
    second, whole = warm_up.second, list[Rollout]()

    def noted_second(*given: Any) -> Rollout:
        whole.append(second(*given))
        return whole[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(warm_up, "second", noted_second)
        again = ["--model", str(tmp_path / "out"), "--data", str(data), "--output", str(tmp_path / "both"), *tiny]
        assert warm_up.main([*again, "--steps", "1", "--second", "9"]) == 0
    record = json.loads((tmp_path / "both/warm_up.json").read_text())
    assert sum(record["first_attempts"].values()) == len(whole) == 9
    assert not {"grader_failed", "unreadable"} & set(record["first_attempts"])
    assert [rollout.attempts[1].completion.text for rollout in whole] == texts[:9]
    for rollout in whole:
        first, last = rollout.attempts
        assert (first.sampled, last.sampled) == (False, True)  # what is not sampled is not learned
        asked = last.prompt_ids[len(first.prompt_ids) :]
        assert asked[: len(first.completion.token_ids)] == first.completion.token_ids
        assert len(asked) > len(first.completion.token_ids)
    assert warm_up.main(call) == 2
    assert "is there already" in capsys.readouterr().err
    with (data / "train.jsonl").open("a") as out:
        out.write('{"question": "How many?", "answer": "Three."}\n')
    assert warm_up.main([*call[: -len(tiny) - 1], str(tmp_path / "other"), *tiny]) == 2
    assert "train.jsonl:17: field 'answer' has no last line `#### ANSWER`" in capsys.readouterr().err
    (data / "train.jsonl").unlink()
    assert warm_up.main([*call[: -len(tiny) - 1], str(tmp_path / "other"), *tiny]) == 2
    assert "holds no train.jsonl" in capsys.readouterr().err


def test_countdown_in_conversations(
    script: Script, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Verdicts and decisions are true, no problem is of the test split; the loss falls; run.py goes on from there."""
    warm_up = script("benchmarks/real/warm_up_countdown.py")
    lm = load_model(ModelConfig(path=str(model), precision="float32"))
    task = Countdown(CountdownConfig(**script("benchmarks/real/settings.py").COUNTDOWN))
    shown = list(islice(warm_up.conversations(0, warm_up.MIX, task, lm), 100))
    assert len({each.problem.id for each in shown}) > 80
    said = set[str]()
    for each in shown:
        reference, (one, two) = each.problem.reference, each.attempts
        assert split_of(tuple(reference["numbers"]), reference["target"]) == "train"
        grades = task.grade([(each.problem, attempt.completion.text) for attempt in each.attempts])
        assert [grade.correct for grade in grades] == [attempt.grade.correct for attempt in each.attempts]
        assert all(grade.outcome is Outcome.CORRECT or "ends in" in grade.detail for grade in grades)
        remark, _, steps = two.completion.text.partition("\n")
        verdict, decision = "Right" if grades[0].correct else "Wrong", one.completion.text == steps
        assert remark == f"{verdict}. I {'keep' if decision else 'change'} it."
        said.add(remark)
        asked = two.prompt_ids[len(one.prompt_ids) :]
        assert asked[: len(one.completion.token_ids)] == one.completion.token_ids
        assert lm.tokenizer.decode(asked).count(task.correction_prompt(each.problem)) == 1
    assert len(said) == 4
    tiny = ["--steps", "8", "--batch", "8", "--rate", "0.02", "--precision", "float32"]
    call = ["--model", str(model), "--output", str(tmp_path / "base"), *tiny]
    assert warm_up.main(call) == 0
    losses = json.loads((tmp_path / "base/warm_up.json").read_text())["losses"]
    assert sum(losses[-3:]) < 0.8 * sum(losses[:3])
    assert warm_up.main(call) == 2
    assert "is there already" in capsys.readouterr().err
    run = script("benchmarks/real/run.py").main
    assert run(["--model", str(tmp_path / "base"), "--task", "countdown", "--minutes", "30", "--dry", "--arms",
                "score,single_turn",                "--tokens", "40", "--eval-tokens", "40", "--output", str(tmp_path / "out")]) == 0  # fmt: skip
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert {model: list(sets) for model, sets in summary["evaluations"].items()} == {
        "base": ["countdown"], "score-0": ["countdown"], "single_turn-0": ["countdown"]
    }  # fmt: skip
    assert summary["evaluations"]["base"]["countdown"]["sampled"]["n"] == 3
    verdicts = script("benchmarks/real/verdicts.py")
    assert verdicts.main([str(tmp_path / "out"), "--steps", "2"]) == 0
    told = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in told[-6:]] == [
        *(f"{name}, {how}" for name in ("score-0", "single_turn-0") for how in ("greedy", "sampled")),
        "score-0, steps 1 to 2", "score-0, steps 3 to 3",
    ]  # fmt: skip
    assert verdicts.main([str(tmp_path / "nothing")]) == 2
    cases = [("correct", "Right. I keep it.\nx", "correct"), ("wrong", "Right. I keep it.\nx", "wrong"),
             ("wrong", "Wrong. I change it.\nx", "correct"), ("wrong", "Wrong. I change it.\nx", "wrong"),
             ("wrong", "x", "wrong")]  # fmt: skip
    rows = [
        verdicts.said({"attempts": [{"text": "x", "outcome": one}, {"text": text, "outcome": two}]})
        for one, text, two in cases
    ]
    assert verdicts.told("m", rows) == (
        "m: 5 rollouts, 1 without a remark; called right: 100 % (1) of right first attempts, 33 % (3) of wrong; "
        "kept: 100 % (2) of those called right, 0 % (2) of those called wrong; right after a change: 50 % (2) of "
        "wrong first attempts"
    )


def test_a_step_that_was_suspended_ends_no_arm(script: Script) -> None:
    pace = script("benchmarks/real/arms.py").second_slowest
    assert [pace(times) for times in ([], [2.0], [2.0, 900.0], [2.0, 900.0, 3.0])] == [0.0, 2.0, 900.0, 3.0]


def test_auto_is_settled_once_for_a_folder(
    script: Script, model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Arms train as a run does, on packed rows where it can; a later call keeps to it, whatever memory is free by then."""
    put_in_place(monkeypatch)
    monkeypatch.setattr("selfcorrect.models.sizing.WIDE", 0)
    trainer: Any = script("benchmarks/real/arms.py").Trainer
    step, seen = trainer.train_step, list[Any]()

    def noted(self: Any) -> Any:
        seen.append(self.config.optimizer)
        return step(self)

    monkeypatch.setattr(trainer, "train_step", noted)
    output, few = tmp_path / "out", ["--steps", "1", "--samples", "0", "--problems", "1", "--micro-batch", "auto"]
    assert call(script, model, data, output, *few, "--arms", "single_turn") == 0
    sizes = {name: getattr(seen[0], name) for name in ("micro_batch", "gradient_checkpointing", "padding_free")}
    assert sizes == {"micro_batch": 128, "gradient_checkpointing": False, "padding_free": True}
    settings = json.loads((output / "settings.json").read_text())
    assert settings == settings | sizes
    assert json.loads((output / "summary.json").read_text())["sizes"] == sizes
    monkeypatch.setattr("selfcorrect.models.sizing._CPU_BUDGET", 1 << 20)
    assert call(script, model, data, output, *few, "--arms", "multi_turn") == 0
    assert seen[1] == seen[0]
    (output / "settings.json").write_text(json.dumps({name: settings[name] for name in settings.keys() - sizes.keys()}))
    assert call(script, model, data, output, *few) == 2
    assert "out was begun with micro_batch = None, now 1; " in capsys.readouterr().err
