"""What MODEL stands for, and what a user gets wrong on the command line."""

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx2
import pytest
import torch

from selfcorrect.config import ModelConfig
from selfcorrect.errors import ModelError
from selfcorrect.models.loading import load_model
from selfcorrect.serving import sources
from selfcorrect.serving.command import need_libraries
from selfcorrect.serving.words import GENERAL
from tests.conftest import Called
from tests.support.hf_model import save_qwen2

from .helpers import serving, until, user

RECIPE = """
model: {{path: {base}, tuning: {tuning}, lora: {{rank: 4}}, device: cpu}}
task: {{name: countdown, prompt: "{{numbers}} : {{target}}", correction_prompt: "Again"}}
rollouts: {{attempts: 3, max_new_tokens: 5}}
stages: []
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_qwen2(tmp_path_factory.mktemp("base") / "first", ends=0)


def run_of(folder: Path, base: Path, tuning: str) -> Path:
    """A finished run, as far as serving looks at one; its model differs from the base."""
    config = ModelConfig(path=str(base), tuning=tuning, device="cpu")  # type: ignore[arg-type]
    lm = load_model(config)
    with torch.no_grad():
        for name, weight in lm.model.named_parameters():
            if ("lora_B" in name) if tuning == "lora" else (weight.dim() > 1):
                weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)) * 0.5)
    text = RECIPE.format(base=base, tuning=tuning)
    (folder / "final").mkdir(parents=True)
    lm.save(folder / "final", torch.float32)
    (folder / "config.yaml").write_text(text if tuning == "lora" else text.replace("lora: {rank: 4}, ", ""))
    (folder / "environment.json").write_text("{}")
    return folder


@pytest.mark.parametrize("tuning", ["full", pytest.param("lora", marks=pytest.mark.nightly)])
def test_a_run_is_served_with_its_words_beside_its_base(tmp_path: Path, base: Path, tuning: str) -> None:
    source = sources.find(str(run_of(tmp_path / "mine", base, tuning)), None, [])
    assert (source.name, source.attempts, source.limit, source.is_adapter) == ("mine", 3, 5, tuning == "lora")
    posed = sources.page_task(source, None, [])
    words = sources.words(source, posed, None)
    assert (words.shown, words.source) == ("Again", "its run's recipe")
    assert sources.words(source, posed, "Once more").shown == "Once more"
    assert sources.words(source, sources.page_task(source, "math", []), None).shown == "Again"
    trained = sources.load(source)
    beside = sources.load_base(source, trained, None)
    assert beside is not None
    name, other = beside
    assert name == "first"
    assert (other.model is trained.model) == (tuning == "lora")
    running, _ = serving({"mine": trained, name: other}, words=words)
    ask: dict[str, Any] = {"messages": user("Hi"), "temperature": 0, "max_tokens": 8, "attempts": 1}
    alone, _ = serving({"first": load_model(ModelConfig(path=str(base), device="cpu"))})
    answers = [server.ask(**ask, **more)["choices"][0]["message"]["content"] for server, more in
               [(running, {}), (running, {"model": "first"}), (running, {}), (alone, {})]]  # fmt: skip
    assert answers[0] == answers[2] != answers[1] == answers[3]
    for each in (running, alone):
        each.close()


def test_what_a_model_stands_for(tmp_path: Path, base: Path) -> None:
    run = tmp_path / "mine"
    run.mkdir()
    (run / "config.yaml").write_text(RECIPE.format(base=base, tuning="lora"))
    (run / "environment.json").write_text("{}")
    with pytest.raises(ModelError, match="has kept no model yet"):
        sources.find(str(run), None, [])
    plain = sources.find(str(base), None, [])
    assert (plain.name, plain.base, plain.limit, plain.poses) == ("first", None, 1024, False)
    limited = sources.find(str(base), None, ["rollouts.max_new_tokens=40", "rollouts.attempts=3"])
    assert (limited.limit, limited.attempts) == (40, 3)
    assert sources.words(plain, None, None).shown == GENERAL
    posed = sources.find(str(base), None, ["task.dataset=gsm8k"], "math")
    assert (posed.poses, posed.config.task.model_dump()["dataset"]) == (True, "gsm8k")
    lab = sources.find("lab", None, [])
    assert (lab.name, lab.base, lab.config.rollouts.attempts) == ("lab", None, 2)
    assert sources.find("somebody/model", None, [], upstream=True).name == "somebody/model"


def test_a_library_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(Exception, match=r"serve needs uvicorn.*pip install 'selfcorrect\[serve\]'"):
        need_libraries()


@pytest.mark.parametrize(
    ("arguments", "environment", "why"),
    [
        (["/nowhere"], {}, "no such folder"),
        (["lab", "--base", "lab", "--no-base"], {}, "contradict each other"),
        (["lab", "--upstream-model", "x"], {}, "--upstream-model names a model of --upstream URL"),
        (["lab", "--task", "chess"], {}, "--task chess: must be one of countdown, math"),
        (["lab", "--correction-prompt", "  "], {}, "--correction-prompt is empty"),
        (["lab", "--upstream", "localhost"], {}, "expected a base URL"),
        (["lab", "--upstream", "http://127.0.0.1:9/v1"], {}, "does not answer as an OpenAI-compatible server"),
        (["lab", "--host", "203.0.113.7"], {}, "cannot listen there"),
        (["lab", "--port", "TAKEN"], {}, "cannot listen there: .*use"),
        (["lab"], {"SELFCORRECT_API_KEY": ""}, "SELFCORRECT_API_KEY is set, and holds no key"),
        (["lab"], {"SELFCORRECT_API_KEY": " k3y"}, "white space"),
        (["lab", "task.colour=red"], {}, "unknown key"),
        (["lab", "--task", "math", "task.data=/nowhere"], {}, "/nowhere"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str], environment: dict[str, str], why: str, monkeypatch: pytest.MonkeyPatch, called: Called
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = "TAKEN" if "TAKEN" in arguments else ""
        given = [str(taken.getsockname()[1]) if one == port else one for one in arguments]
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        ended = called("serve", *given, *([] if port else ["--port", "0"]))
    told = ended.err.splitlines()[-1]
    assert ended.status == 2
    assert told.startswith("error: ")
    assert re.search(why, told), told
    assert "k3y" not in told


@pytest.mark.nightly
def test_ctrl_c_ends_it_while_it_writes(tmp_path: Path, base: Path) -> None:
    """From the command line: it says what it asks with, answers, and ends at once with status 130."""
    process = subprocess.Popen(
        [sys.executable, "-m", "selfcorrect.cli", "serve", str(base), "--port", "0"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "SELFCORRECT_API_KEY": "s3cret"},
    )  # fmt: skip
    assert process.stdout
    lines = [process.stdout.readline() for _ in range(4)]
    assert GENERAL in "".join(lines)
    url = lines[3].split()[-1]
    pieces: list[str] = []

    async def ask() -> None:
        headers = {"authorization": "Bearer s3cret"}
        body = {"messages": user("Hi"), "stream": True, "max_tokens": 3000}
        async with (
            httpx2.AsyncClient(trust_env=False, timeout=60) as client,
            client.stream("POST", f"{url}/chat/completions", json=body, headers=headers) as reply,
        ):
            async for part in reply.aiter_text():
                if len(pieces) == 3:
                    process.send_signal(signal.SIGINT)
                pieces.append(part)

    asyncio.run(ask())
    out, err = process.communicate(timeout=20)
    assert '"code": "shutting_down"' in "".join(pieces)
    assert (process.returncode, err.splitlines()[-1]) == (130, "stopped")
    assert "Traceback" not in err
    assert "s3cret" not in "".join([*lines, out, err])
    until(lambda: process.poll() is not None)
