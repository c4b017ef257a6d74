"""`evaluate --endpoint`: the same evaluation as of a loaded model, kept as it goes, and stopped in every way."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("openai")

import selfcorrect
from selfcorrect.endpoints.settings import Endpoint
from tests.conftest import Called
from tests.support.endpoint import Body, Raw, Server, chat, http, served

KEY = "sk-test-0123456789abcdef"
SETTINGS = ("task.name=countdown", "rollouts.max_new_tokens=20")


@pytest.fixture
def asks(called: Called, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Called:
    """asks(arguments): how `evaluate` ended with them, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    return partial(called, "evaluate")


def solved(request: Body, n: int) -> Body:
    """The same for the same request, and nothing for two others."""
    return chat(f"1 + 1 = {request['seed']} {len(request['messages'])}")


def contents(folder: Path) -> dict[str, Any]:
    """Texts and figures of an evaluation, without times."""
    written = json.loads((folder / "evaluations" / "m.json").read_text())
    return {"rows": (folder / "evaluations" / "m.rollouts.jsonl").read_text(), "told": {**written, "seconds": 0}}


def answers(folder: Path) -> list[str]:
    """The keys of what was answered."""
    lines = [json.loads(line) for line in (folder / "evaluations" / "m.answers.jsonl").read_text().splitlines()]
    return [line["answer"] for line in lines if "answer" in line]


def test_the_whole_command(asks: Called, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with served(solved) as server:
        asked = (
            *SETTINGS, "evaluation.problems=5", "evaluation.samples=2", "evaluation.temperature=0.7",
            "evaluation.correction_prompts.plain=Again!", "evaluation.controls=true", "rollouts.attempts=3",
            "model.system_prompt=Be brief.", "--endpoint", server.url, "--model", "org/m",
        )  # fmt: skip
        status, out, err = asks(*asked, "--json")
        assert status == 0
        told = json.loads(out)
        assert told["summary"]["samples"] == 2
        assert [len(each["summary"]["accuracy"]) for each in told["wordings"]] == [3, 3]
        assert set(told["controls"]) == {"swapped", "independent"}
        assert "answered 85 requests now (0 retries)" in err
        # 10 x 3 attempts, 10 x 2 by the other wording; of 5 each 3 sampled, 2 swapped, 2 independent.
        assert len(server.requests) == 85
        assert {request["messages"][0]["content"] for request in server.requests} == {"Be brief."}
        # The same again is there already; through a recipe in the model's place it is another evaluation.
        assert asks(*asked)[0] == 0
        assert len(server.requests) == 85
        refused = asks(*asked[:-1], "other", "--output", "runs/evaluations/" + os.listdir("runs/evaluations")[0])
        assert refused[0] == 2
        assert "already holds a run" in refused[2] or "begun with other settings" in refused[2]
    folder = next(Path("runs/evaluations").iterdir())
    assert (folder / "report.html").stat().st_size > 10_000
    for file in tmp_path.rglob("*"):
        assert not file.is_file() or KEY not in file.read_text()
    assert KEY not in out + err


def test_ctrl_c_goes_on_and_ends_the_same(asks: Called) -> None:
    def stop(request: Body, n: int) -> Raw | Body:
        if len(stopping.requests) == 9 and not done:
            done.append(1)
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.2)
        return solved(request, n)

    asked = (*SETTINGS, "evaluation.problems=8", "--model", "m", "--concurrency", "2", "--output")
    done: list[int] = []
    with served(solved) as server:
        assert asks(*asked, "whole", "--endpoint", server.url)[0] == 0
    with served(stop) as stopping:
        # The same address, so that it is the same evaluation, under another server.
        status, _, err = asks(*asked, "stopped", "--endpoint", stopping.url)
        assert status == 130
        assert "the same command goes on" in err
        assert 6 <= len(answers(Path("stopped"))) <= 9
        assert asks(*asked, "stopped", "--endpoint", stopping.url)[0] == 0
        assert len(answers(Path("stopped"))) == len(set(answers(Path("stopped")))) == 16
        assert len(stopping.requests) <= 16 + 2  # those under way were lost
        refused = asks(*asked, "stopped", "--endpoint", stopping.url, "--body", '{"top_k": 1}')
        assert refused[0] == 2
        assert "endpoint.body" in refused[2]
    assert contents(Path("whole")) == contents(Path("stopped"))


def test_repair_self_refine_and_a_recipe(asks: Called, tmp_path: Path) -> None:
    rows = [{"task_id": i, "split": "test", "text": f"Add {i}.", "tests": f"assert f({i}) == {2 * i}",
             "buggy_program": "def f(x): return 0", "reference": "x"} for i in range(1, 4)]  # fmt: skip
    (tmp_path / "repair.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = {
        "name": "mine", "stages": [], "rollouts": {"self_refine": {"feedback_prompt": "What is wrong?", "refine_prompt": "Mend it."}, "max_new_tokens": 64},
        "task": {"name": "repair", "data": str(tmp_path / "repair.jsonl"), "of": {"name": "code"}},
    }  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(yaml.dump(recipe))

    def answer(request: Body, n: int) -> Body:
        return chat("```python\ndef f(x):\n    return 2 * x\n```")

    with served(answer) as server:
        status, out, err = asks("recipe.yaml", "--endpoint", server.url, "--model", "m", "--json")
        assert status == 0, err
        assert [each["value"] for each in json.loads(out)["summary"]["accuracy"]] == [0.0, 1.0]
        assert len(server.requests) == 6  # feedback, and attempt 2
        assert "return 0" in server.requests[0]["messages"][1]["content"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((), "name a model folder, run, hub name, lab or recipe; or --endpoint URL --model NAME"),
        (("x", "--model", "m"), "--model is for an endpoint"),
        (("x", "--max-cost", "1"), "--max-cost is for an endpoint"),
        (("--endpoint", "http://localhost/v1"), "name the model that is to be asked there with --model NAME"),
        (("--endpoint", "http://localhost/v1", "--model", "m"), "task.name=countdown"),
        (("--endpoint", "http://localhost/v1", "--model", "m", "--body", "{"), "--body: no JSON"),
        (("--endpoint", "http://localhost/v1", "--model", "m", "a.yaml", "--recipe", "b.yaml"), "name one recipe"),
        (("--endpoint", "http://localhost/v1", "--model", "m", "--key-env", KEY), "not the key itself"),
        (("--endpoint", "http://localhost/v1", "--model", "m", "--tokenizer", "nowhere", *SETTINGS), "--tokenizer nowhere"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_refused(arguments: tuple[str, ...], told: str, asks: Called) -> None:
    status, _, err = asks(*arguments)
    assert status == 2
    assert told in err
    assert KEY not in err
    assert err.count("error:") == 1


def test_help_is_grouped(asks: Called) -> None:
    _, out, _ = asks("--help")
    groups = re.findall(r"^(\S.*):$", out, re.MULTILINE)
    assert groups[:4] == ["Arguments", "Options", "Options for an endpoint", "Options for what an endpoint may take"]


def test_from_a_loop_of_ones_own(tmp_path: Path) -> None:
    """As in a notebook."""
    import asyncio

    async def cell(url: str) -> Any:
        return selfcorrect.evaluate(
            "m", *SETTINGS, "evaluation.problems=2", endpoint=Endpoint(url), output=tmp_path / "out"
        )

    with served(solved) as server:
        assert asyncio.run(cell(server.url)).summary.n == 2


@pytest.mark.nightly
def test_kill_9_at_any_moment_loses_nothing(tmp_path: Path) -> None:
    """The process dies again and again, in the midst of requests; every answer is asked for once."""
    arguments = [*SETTINGS, "evaluation.problems=30", "--model", "m", "--concurrency", "3", "--output"]

    def answer(request: Body, n: int) -> Raw | Body:
        time.sleep(0.02)
        if len(server.requests) in (7, 25, 40) and processes[-1].poll() is None:
            processes[-1].kill()
        return solved(request, n) if len(server.requests) != 15 else http(500, "down for a moment")

    processes: list[subprocess.Popen[bytes]] = []

    def run(folder: str, server: Server) -> int:
        line = [sys.executable, "-m", "selfcorrect.cli", "evaluate", *arguments, folder, "--endpoint", server.url]
        processes.append(subprocess.Popen(line, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        return processes[-1].wait(120)

    with served(answer) as server:
        statuses = [run("killed", server) for _ in range(4)]
        assert statuses == [-9, -9, -9, 0]
        assert len(server.requests) <= 60 + 3 * 3 + 1  # at most those under way were lost
        assert len(answers(tmp_path / "killed")) == len(set(answers(tmp_path / "killed"))) == 60
