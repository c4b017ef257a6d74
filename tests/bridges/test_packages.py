"""The bridges against the real packages: `make test-bridges`. Skipped, a line a file, where they are not installed."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

import selfcorrect
from selfcorrect.bridges import LM_EVAL_TASKS
from selfcorrect.bridges.logs import read_log
from selfcorrect.bridges.protocol import Protocol, averaged, configured, verdicts_of
from selfcorrect.errors import DataError, UserError
from selfcorrect.types import Rollout
from tests.support.bridged import COUNT, KINDS, Script, script

pytest.importorskip("inspect_ai", reason="inspect_ai is not installed: make test-bridges")
pytest.importorskip("lm_eval", reason="lm_eval is not installed: make test-bridges")
EACH = pytest.mark.parametrize("kind", KINDS)


def own(script: Script, recorded: Path, folder: Path) -> list[Rollout]:
    """What selfcorrect itself makes of recorded attempts."""
    recipe = {"stages": [], "name": "looked-at", "output": str(folder)}
    found = selfcorrect.evaluate("unused", *script.overrides, f"recorded={recorded}", recipe=recipe)
    return list(found.rollouts)


def outcomes(rollouts: list[Rollout]) -> dict[str, list[str]]:
    return {r.problem.id: [str(attempt.grade.outcome) for attempt in r.attempts] for r in rollouts}


def means(rollouts: list[Rollout]) -> dict[str, float]:
    return averaged([verdicts for r in rollouts if (verdicts := verdicts_of(r)) is not None])


def conversations(told: Script) -> list[list[tuple[str, str]]]:
    """What attempt 2 must answer: nothing in it depends on whether attempt 1 was right."""
    protocol = Protocol(configured(told.kind, None, told.settings))
    return sorted(
        [("user", p.prompt), ("assistant", told.by_prompt[p.prompt][0][0]), ("user", protocol.correction(name))]
        for name, p in protocol.problems.items()
    )


# inspect


def answers(script: Script) -> Any:
    """A model of inspect's that answers by the script, and notes what it was asked."""
    from inspect_ai.model import ModelOutput, ModelUsage, get_model

    def answer(messages: list[Any], *rest: Any) -> Any:
        users = [message.text for message in messages if message.role == "user"]
        texts, ends = script.by_prompt[users[0]]
        text, end = texts[len(users) - 1], ends[len(users) - 1]
        asked.append([(message.role, message.text) for message in messages])
        output = ModelOutput.from_content("mockllm", text, "max_tokens" if end == "length" else "stop")
        output.usage = ModelUsage(input_tokens=1, output_tokens=1, total_tokens=2)
        return output

    asked: list[Any] = []
    return get_model("mockllm/model", custom_outputs=answer, memoize=False), asked


def inspected(script: Script, folder: Path, **options: Any) -> Any:
    from inspect_ai import eval as evaluate

    from selfcorrect.bridges.inspect_tasks import two_attempts

    model, asked = answers(script)
    settings = options.pop("settings", {})
    task = two_attempts(script.kind, **script.settings, **settings)
    (log,) = evaluate(task, model=model, log_dir=str(folder / "logs"), display="none", **options)
    return log, asked


@EACH
def test_inspect_gives_the_verdicts_of_selfcorrect(kind: str, tmp_path: Path) -> None:
    told = script(kind, tmp_path)
    log, asked = inspected(told, tmp_path)
    assert log.status == "success", log.error
    rollouts = own(told, told.recorded, tmp_path / "own")
    expected = outcomes(rollouts)
    assert len({tuple(each) for each in expected.values()}) >= 5  # it is no empty comparison
    scored = {sample.metadata["selfcorrect"]["task_id"]: sample.scores["graded"] for sample in log.samples}
    assert {name: score.metadata["outcomes"] for name, score in scored.items()} == expected
    (score,) = log.results.scores
    assert {name: found.value for name, found in score.metrics.items()} == pytest.approx(means(rollouts))
    corrections = [turns for turns in asked if len(turns) == 3]
    assert len(asked) == 2 * COUNT
    assert len(corrections) == COUNT
    assert sorted(corrections) == conversations(told)
    again = own(told, Path(log.location), tmp_path / "read")
    assert outcomes(again) == expected
    assert means(again) == means(rollouts)


def test_the_command_finds_the_task_and_takes_settings(tmp_path: Path) -> None:
    told = script("countdown", tmp_path)
    run = f"""
import selfcorrect.bridges.inspect_tasks
from inspect_ai import eval
from inspect_ai.model import ModelOutput, ModelUsage, get_model
output = ModelOutput.from_content("mockllm", "1 + 1 = 2")
output.usage = ModelUsage(input_tokens=1, output_tokens=1, total_tokens=2)
model = get_model("mockllm/model", custom_outputs=lambda *given: output)
args = {{"task": "countdown", "task.data": {told.settings["data"]!r}, "rollouts.attempts": 3, "evaluation.problems": 5}}
(log,) = eval("selfcorrect/two_attempts", model=model, task_args=args, log_dir={str(tmp_path / "logs")!r}, display="none")
print(log.status, len(log.samples), sorted(log.results.scores[0].metrics))
"""
    done = subprocess.run([sys.executable, "-c", run], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.split("\n")[0] == (
        "success 5 ['accuracy@t1', 'accuracy@t2', 'accuracy@t3', 'c->i', 'delta', 'i->c', 'unchanged']"
    )
    listed = subprocess.run(
        [sys.executable, "-m", "inspect_ai", "eval", "selfcorrect/two_attempts", "-T", "task=chess", "--display", "plain"],
        capture_output=True, text=True, check=False, timeout=120, cwd=tmp_path,
    )  # fmt: skip
    assert "task = 'chess': must be one of math, gsm8k" in " ".join((listed.stdout + listed.stderr).split())


def test_epochs_shuffling_and_a_limit_are_read_back_as_samples(tmp_path: Path) -> None:
    from inspect_ai import Epochs

    told = script("math", tmp_path)
    log, _ = inspected(told, tmp_path, epochs=Epochs(3, "mean"), sample_shuffle=1, limit=7)
    found = read_log(log.location)
    assert len(found.rows) == 21
    recipe = {"stages": [], "name": "looked-at", "output": str(tmp_path)}
    evaluation = selfcorrect.evaluate("unused", *told.overrides, f"recorded={log.location}", recipe=recipe)
    assert (evaluation.summary.n, evaluation.summary.samples) == (7, 3)
    (score,) = log.results.scores
    assert score.metrics["delta"].value == pytest.approx(evaluation.summary.delta.value)
    assert score.metrics["i->c"].value == pytest.approx(evaluation.summary.fixed.value)


@pytest.mark.parametrize("form", ["eval", "json"])
def test_a_run_that_failed_is_graded_as_far_as_it_went(form: str, tmp_path: Path) -> None:
    from inspect_ai import eval as evaluate
    from inspect_ai.model import ModelOutput, ModelUsage, get_model

    from selfcorrect.bridges.inspect_tasks import two_attempts

    told = script("math", tmp_path)

    def answer(messages: list[Any], *rest: Any) -> Any:
        users = [message.text for message in messages if message.role == "user"]
        if users[0] == list(told.by_prompt)[4] and len(users) == 2:
            raise ValueError("the server is gone")
        output = ModelOutput.from_content("mockllm", told.by_prompt[users[0]][0][len(users) - 1])
        output.usage = ModelUsage(input_tokens=1, output_tokens=1, total_tokens=2)
        return output

    model = get_model("mockllm/model", custom_outputs=answer, memoize=False)
    (log,) = evaluate(
        two_attempts("math", **told.settings), model=model, log_dir=str(tmp_path), display="none", max_samples=1,
        log_format=form, fail_on_error=True,
    )  # fmt: skip
    assert log.status == "error"
    found = read_log(log.location)
    assert 0 < len(found.rows) < COUNT
    assert f"its run ended as 'error'; it holds {len(log.samples)} of {COUNT} samples" in found.notes[0]
    assert any("2 samples stopped by an error are left out (m/6, m/7)" in note for note in found.notes)


@pytest.mark.parametrize("form", ["eval", "json"])
def test_damaged_logs_are_refused_in_one_line(form: str, tmp_path: Path) -> None:
    log, _ = inspected(script("countdown", tmp_path), tmp_path, log_format=form)
    whole = Path(log.location).read_bytes()
    for name, content in {
        "cut": whole[: len(whole) // 2],
        "empty": b"",
        "other": b'{"a": 1}',
        "noise": whole[::-1],
    }.items():
        file = tmp_path / f"{name}.{form}"
        file.write_bytes(content)
        with pytest.raises(DataError) as error:
            read_log(file)
        assert str(error.value).startswith(str(file))
        assert "\n" not in str(error.value)


def test_an_archive_that_unpacks_to_far_more_is_refused_unread(tmp_path: Path) -> None:
    file = tmp_path / "bomb.eval"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("samples/1_epoch_1.json", b"A" * (65 << 20))
    with pytest.raises(DataError, match="unpacks to 65 MiB, more than 200 times its size"):
        read_log(file)


# lm-eval


@pytest.fixture(scope="module")
def harness() -> Any:
    import lm_eval
    from lm_eval.tasks import TaskManager

    def run(model: Any, kind: str, settings: Any, **options: Any) -> Any:
        manager = TaskManager(include_path=str(LM_EVAL_TASKS), include_defaults=False, metadata=dict(settings))
        given = {"apply_chat_template": True, "bootstrap_iters": 0, "log_samples": True} | options
        return lm_eval.simple_evaluate(model=model, tasks=[f"selfcorrect_{kind}"], task_manager=manager, **given)

    return run


def scripted_lm(told: Script) -> Any:
    from lm_eval.api.model import LM

    class Scripted(LM):  # type: ignore[misc]
        tokenizer_name = "scripted"

        def __init__(self) -> None:
            super().__init__()
            self.calls: list[list[Any]] = []

        def apply_chat_template(self, chat_history: Any, add_generation_prompt: bool = True) -> str:
            return json.dumps(chat_history)

        def generate_until(self, requests: Any) -> list[str]:
            self.calls.append([json.loads(request.args[0]) for request in requests])
            for request in requests:
                request.args[1].pop("until")  # as models do
            users = [[turn["content"] for turn in turns if turn["role"] == "user"] for turns in self.calls[-1]]
            return [told.by_prompt[each[0]][0][len(each) - 1] for each in users]

        def loglikelihood(self, requests: Any) -> Any:
            raise AssertionError

        loglikelihood_rolling = loglikelihood

    return Scripted()


def write_samples(results: Any, file: Path) -> Path:
    """As lm-eval's own tracker writes them."""
    from lm_eval.loggers.evaluation_tracker import EvaluationTracker

    tracker = EvaluationTracker(output_path=str(file))
    (name,) = results["samples"]
    tracker.save_results_aggregated(results=results, samples=results["samples"])
    tracker.save_results_samples(task_name=name, samples=results["samples"][name])
    (found,) = file.rglob("samples_*.jsonl")
    return found


@EACH
def test_lm_eval_gives_the_verdicts_of_selfcorrect(kind: str, tmp_path: Path, harness: Any) -> None:
    told = script(kind, tmp_path, ends=False)
    model = scripted_lm(told)
    results = harness(model, kind, told.settings)
    rollouts = own(told, told.recorded, tmp_path / "own")
    assert len({tuple(each) for each in outcomes(rollouts).values()}) >= 4
    (samples,) = results["samples"].values()
    found = {sample["doc"]["selfcorrect"]["task_id"]: sample for sample in samples}
    for rollout in rollouts:
        expected = verdicts_of(rollout)
        assert expected is not None
        assert {name: found[rollout.problem.id][name] for name in expected} == expected
    (scored,) = results["results"].values()
    assert {name.removesuffix(",none"): value for name, value in scored.items() if name.endswith(",none") and "stderr" not in name} == pytest.approx(means(rollouts))  # fmt: skip
    assert [len(call) for call in model.calls] == [COUNT, COUNT]
    assert sorted([(turn["role"], turn["content"]) for turn in turns] for turns in model.calls[1]) == conversations(
        told
    )
    again = own(told, write_samples(results, tmp_path / "samples"), tmp_path / "read")
    assert outcomes(again) == outcomes(rollouts)


def test_a_model_of_the_harness_plays_as_it_is(tmp_path: Path, harness: Any) -> None:
    """hf on a folder, batches of several, sampling settings, three attempts."""
    from tests.support.hf_model import save_qwen2

    told = script("gsm8k", tmp_path)
    folder = save_qwen2(tmp_path / "tiny")
    settings = {**told.settings, "rollouts.max_new_tokens": 12, "rollouts.attempts": 3}
    results = harness("hf", "gsm8k", settings, model_args={"pretrained": str(folder), "dtype": "float32"}, batch_size=4, device="cpu", limit=6)  # fmt: skip
    (samples,) = results["samples"].values()
    assert [len(sample["resps"][0]) for sample in samples] == [3] * 6
    assert any(sample["resps"][0][1] for sample in samples)
    assert "accuracy@t3,none" in results["results"]["selfcorrect_gsm8k"]


def test_dummy_plays_without_a_hub(tmp_path: Path, harness: Any) -> None:
    told = script("countdown", tmp_path)
    results = harness("dummy", "countdown", told.settings)
    assert results["results"]["selfcorrect_countdown"]["unchanged,none"] == 1.0
    assert results["results"]["selfcorrect_countdown"]["accuracy@t2,none"] == 0.0


@pytest.mark.parametrize(
    ("options", "settings", "told"),
    [
        ({"apply_chat_template": False}, {}, "add --apply_chat_template"),
        ({}, {"evaluation.samples": 2, "evaluation.temperature": 1.0}, "lm-eval plays one sample of each problem"),
        ({}, {"rollouts.attempts": 1}, "rollouts.attempts"),
        ({}, {"task.dataset": "humaneval"}, "dataset"),
    ],
)  # fmt: skip
def test_what_cannot_be_played_is_told(tmp_path: Path, harness: Any, options: Any, settings: Any, told: str) -> None:
    with pytest.raises(UserError) as error:
        harness(scripted_lm(script("gsm8k", tmp_path)), "gsm8k", {**script("gsm8k", tmp_path).settings, **settings}, **options)  # fmt: skip
    assert told in str(error.value)
