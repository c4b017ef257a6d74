"""What a command of the docs has around it while it runs: servers that it asks, a hub, other processes, a recipe of minutes made one of seconds."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from tests.docs.shell import ROOT, Command, commands
from tests.support.endpoint import Body, Raw, chat, http, served
from tests.support.hub import stand_in_hub

_SECONDS = 300  # that a process may take
_EVENTS = "".join(
    f"data: {json.dumps(chunk)}\n\n" for chunk in (
        {"choices": [{"index": 0, "delta": {"content": "4"}, "finish_reason": None}]},
        {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
        {"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 1}},
    )
) + "data: [DONE]\n\n"  # fmt: skip


def _answer(request: Body, n: int) -> Raw | Body:
    if "path" in request:
        return {"object": "list", "data": [{"id": "mine"}]}
    if request.get("stream"):
        return http(200, _EVENTS, content_type="text/event-stream")
    return chat("It is \\boxed{4}.")


@contextmanager
def asked(words: Sequence[str], patch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The words with addresses at which somebody answers, as long as the block lasts."""
    if "--endpoint" in words:
        with served(_answer) as server:
            yield [server.url if word.startswith("http://") else word for word in words]
            assert server.requests
    elif "sampler=vllm" in words:
        from selfcorrect.config import ModelConfig
        from selfcorrect.models.loading import load_model
        from tests.support.server import serving

        with serving(load_model(ModelConfig(path="./my-model", device="cpu", precision="float32"))) as fake:
            ours = {"vllm.server": f"http://127.0.0.1:{fake.server_port}", "vllm.sync_folder": "./sync"}
            kept = [word for word in words if word.partition("=")[0] not in ours]
            yield [*kept, *(f"{key}={value}" for key, value in ours.items())]
            assert "/inference/v1/generate" in fake.asked
    elif "--push" in words:
        sent = stand_in_hub(patch)
        yield list(words)
        assert [name for name, _ in sent] == ["create_repo", "upload_folder"]
    else:
        yield list(words)


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}


def start_and_ask(page: Path, words: Sequence[str]) -> None:
    """`serve`: started, asked as the page asks it, by curl and by Python, and stopped with Ctrl-C."""
    port = words.index("--port") if "--port" in words else None
    words = [*words[:port], *(words[port + 2 :] if port is not None else ())]
    with served(_answer) as other:
        words = [other.url if word.startswith("http://") else word for word in words]
        process = subprocess.Popen(
            [sys.executable, "-m", "selfcorrect.cli", *words, "--port", "0"], env=environment(), stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        try:
            assert process.stdout is not None
            lines: list[str] = []
            while not lines or not lines[-1].startswith("OpenAI-compatible: "):
                lines.append(process.stdout.readline())
                assert lines[-1], "".join(lines)
            for line in _asks(page, lines[-1].split()[-1].removesuffix("/v1")):
                done = subprocess.run(
                    line, env=environment(), capture_output=True, text=True, check=False, timeout=_SECONDS
                )
                assert done.returncode == 0, done.stderr
                assert '"error"' not in done.stdout, done.stdout
            assert "--upstream" not in words or other.requests[1:]
            process.send_signal(signal.SIGINT)
            assert process.wait(_SECONDS) == 130, process.stdout.read()
        finally:
            process.kill()
            process.stdout.close()  # type: ignore[union-attr]


def _asks(page: Path, url: str) -> Iterator[list[str]]:
    """What the page's reader asks a server by, with its address in place of the page's."""
    for command in commands(page):
        if command.words[0] == "curl" and shutil.which("curl"):
            yield [re.sub(r"http://127\.0\.0\.1:\d+", url, word) for word in command.words]
    for text in re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
        if "http://127.0.0.1" in text:
            yield [sys.executable, "-c", re.sub(r"http://127\.0\.0\.1:\d+", url, text)]
    if page.name == "README.md":
        yield [
            sys.executable,
            "-c",
            f"import urllib.request as u; assert b'mine' in u.urlopen('{url}/v1/models').read()",
        ]


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def launch(command: Command, words: Sequence[str]) -> None:
    """`torchrun` and `accelerate launch`: two processes in place of eight, and of two hosts both here."""
    program, *rest = words
    place = next(n for n, word in enumerate(rest) if word == "-m")
    options, ours = rest[:place], rest[place:]
    hosts = 2 if "--nnodes" in options else 1
    if program == "torchrun":
        start = ["-m", "torch.distributed.run", "--nproc-per-node", "1" if hosts == 2 else "2"]
        start += ["--nnodes", "2", "--rdzv-backend", "c10d", "--rdzv-endpoint", f"localhost:{_free_port()}"] if hosts == 2 else [
            "--standalone"
        ]  # fmt: skip
    else:
        start = ["-m", "accelerate.commands.launch", *options[1:], "--num_processes", "2", "--cpu"]
    processes = [
        subprocess.Popen(
            [sys.executable, *start, *ours], env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        for _ in range(hosts)
    ]  # fmt: skip
    try:
        told = [process.communicate(timeout=_SECONDS)[0] for process in processes]
        assert [process.returncode for process in processes] == [0] * hosts, f"{command}\n" + "\n".join(told)[-4000:]
    finally:
        for process in processes:
            process.kill()


def small_comparison(words: list[str]) -> list[str]:
    """A comparison with its methods' own settings, but steps, collections and evaluations of a few; of its methods three."""
    shipped = yaml.safe_load((ROOT / "recipes" / "compare_lab.yaml").read_text(encoding="utf-8"))
    only = next((word for word in words if word.startswith("only=")), "only=[self_refine,pair_sft,score]")
    names = only.removeprefix("only=[").removesuffix("]").split(",")
    methods = [method for method in shipped["methods"] if method["name"] in {*names, "score"}]
    for method in methods:
        for stage in method["settings"]["stages"]:
            small = {"steps": 2, "collect": 8, "batch": 4}
            stage.update({name: value for name, value in small.items() if name in stage})
        method["settings"].setdefault("rollouts", {}).update(problems_per_step=1, rollouts_per_problem=2)
    common = shipped["common"]
    common["evaluation"].update(problems=4, offset=4)
    common["rollouts"].update(problems_per_step=1, rollouts_per_problem=2)
    search = {**shipped["search"], "learning_rate": [1.0], "problems": 4}
    told = {**shipped, "methods": methods, "common": common, "search": search, "seeds": [0], "parallel": 1}
    Path("mine.yaml").write_text(yaml.safe_dump({**told, "budget": {"completions": 10_000, "updates": 10}}))
    settings = [word for word in words[2:] if word.partition("=")[0] not in ("common.model.path", "parallel")]
    return ["compare", "mine.yaml", *settings]
