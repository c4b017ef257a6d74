"""Two processes over gloo and one server: they sample, learn and stop as one process with it does."""

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from selfcorrect.errors import ConfigError
from selfcorrect.models import weights as weighing
from selfcorrect.models.loading import load_model
from selfcorrect.parallel import sharding as shardings
from selfcorrect.parallel.launch import refuse_unserved
from selfcorrect.parallel.served import Served
from selfcorrect.parallel.sharding import Sharded
from selfcorrect.samplers.vllm_server import Server
from tests.run.test_ranks import HELD, SIZES, STAGE, STARS, check_equal, gap, uneven, well
from tests.run.test_ranks_ending import dies_in_step_3, last_lines
from tests.support.ranks import launch
from tests.support.runs import config as validated
from tests.support.runs import go, read_rows, tuned
from tests.support.server import Fake, serving
from tests.support.tiny import loaded

SERVED: Any = Served  # to plant things in
SERVER: Any = Server
SHARDED: Any = Sharded
SHARDING: Any = shardings
WEIGHTS: Any = weighing
pytestmark = pytest.mark.usefixtures("lucky")


@contextmanager
def served(
    output: Path, model: Path, name: str, parallel: str = "auto", tuning: str = "full", adapter: str = "auto",
    timeout: float = 30.0, **changes: Any,
) -> Iterator[tuple[Fake, dict[str, Any]]]:  # fmt: skip
    """A server of its own, and the recipe that samples from it."""
    alone = tuning != "full" and adapter == "auto"  # the adapter is what is sent
    lm = loaded(model, "lora" if alone else "full")
    folder = output / f"sync-{name}"
    folder.mkdir(parents=True)
    with serving(lm, other=not alone or tuning == "qlora") as fake:
        url = f"http://127.0.0.1:{fake.server_port}"
        told = {"server": url, "sync_folder": str(folder), "timeout": timeout, "adapter": adapter}
        settings = uneven(output, model, name, parallel, sampler="vllm", vllm=told, **changes)
        yield fake, tuned(settings, tuning)


ONE: dict[str, Any] = {"rollouts": {**SIZES, "problems_per_step": 1}}
OFFLINE: dict[str, Any] = {"stages": [{**STAGE, "offline_first": 0.5}], "algorithm": HELD}
BETWEEN: dict[str, Any] = {"evaluation": {"problems": 5, "every": 1}}


@pytest.mark.parametrize(
    ("parallel", "tuning", "adapter", "changes"),
    [
        *(
            pytest.param(*each, marks=pytest.mark.nightly)
            for each in [
                ("ddp", "full", "auto", {"stages": [{**STAGE, "steps": 2}]}),
                ("fsdp2", "full", "auto", {}), ("ddp", "lora", "auto", {}), ("fsdp2", "lora", "auto", {}),
                ("ddp", "lora", "merged", {}), ("fsdp2", "lora", "merged", {}), ("ddp", "qlora", "merged", {}), ("fsdp2", "qlora", "merged", {}),
                ("ddp", "qlora", "auto", {}), ("fsdp2", "qlora", "auto", {}),
                ("fsdp2", "full", "auto", ONE), ("fsdp2", "full", "auto", OFFLINE),
                ("fsdp2", "lora", "auto", {"stages": OFFLINE["stages"]}), ("fsdp2", "lora", "auto", BETWEEN),
                ("fsdp2", "full", "auto", {"stages": [STARS]}),
            ]
        ),
    ],
)  # fmt: skip
def test_two_processes_sample_and_learn_what_one_does(
    parallel: str, tuning: str, adapter: str, changes: dict[str, Any], model: Path, tmp_path: Path
) -> None:
    """The same completions and weights; each version is sent, and compared, once."""
    with served(tmp_path, model, "two", parallel, tuning, adapter, **changes) as (fake, settings):
        well(launch(tmp_path / "log", settings).ended())
        asked = fake.asked
    with served(tmp_path, model, "one", "auto", tuning, adapter, **changes) as (alone, settings):
        one, two = go(settings), tmp_path / "two"
    assert gap(one, two) < 1e-5
    for name in ("rollouts.jsonl", "between.jsonl", "evaluations/a.rollouts.jsonl"):
        if (one / name).exists():
            assert (one / name).read_text() == (two / name).read_text()
    gaps = [row["sampler_gap"] for row in read_rows(two / "metrics.jsonl")]
    assert changes == {"stages": [STARS]} or all(0 < gap < 1e-5 for gap in gaps)  # of traces there is none
    for path in ("/collective_rpc", "/reset_prefix_cache", "/v1/load_lora_adapter"):
        assert asked.count(path) == alone.asked.count(path)
    syncs = asked.count("/v1/load_lora_adapter") or asked.count("/resume")
    assert (
        asked.count("/collective_rpc")
        == {"full": syncs, "lora": 0, "qlora": 1}[tuning if adapter == "auto" else "full"]
    )
    fewer = syncs * (4 - min(4, settings["evaluation"]["problems"]))  # rows that one process compares by
    assert asked.count("/inference/v1/generate") - alone.asked.count("/inference/v1/generate") == fewer
    assert asked.index("/inference/v1/generate") > asked.index(
        "/v1/load_lora_adapter" if tuning != "full" and adapter == "auto" else "/reset_prefix_cache"
    )


def misread(rank: int) -> None:
    """Whatever rank 1 reads itself is wrong: weights, and what turns positions into angles."""

    def wrong(*args: Any, **kwargs: Any) -> Any:
        lm = load_model(*args, **kwargs)
        with torch.no_grad():
            for name, tensor in (*lm.model.named_parameters(), *lm.model.named_buffers()):
                if "lora_" not in name:  # which every rank makes, or reads
                    tensor.fill_(0.3)
        return lm

    if rank == 1:
        for module in (SHARDING, WEIGHTS):
            module.load_model = wrong


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("tuning", "told"), [("full", {}), ("lora", {}), ("full", {"weights": "bfloat16", "precision": "auto"})]
)
def test_rank_0_reads_the_model_for_all(tuning: str, told: dict[str, str], model: Path, tmp_path: Path) -> None:
    """As it begins, and at a stage's end; the reference too."""
    changes: dict[str, Any] = {"stages": [{**STAGE, "steps": 1}, {**STAGE, "name": "b", "steps": 1}], "algorithm": HELD}
    runs = []
    for name, hook in (("plain", None), ("misread", misread)):
        with served(tmp_path / name, model, "two", "fsdp2", tuning, **changes) as (_, settings):
            settings["model"] |= told
            well(launch(tmp_path / "log", settings, hook=hook).ended(90))
        runs.append(tmp_path / name / "two")
    check_equal(*runs)


def late(rank: int) -> None:
    """Rank 1 comes late to every gathering, and notes it; so does rank 0 with whatever it sends."""
    whole, send = Sharded.whole, Server.take_weights

    def gathers(self: Any, lm: Any, **how: Any) -> Any:
        if rank == 1:
            time.sleep(0.3)
            note("gather")
        return whole(self, lm, **how)

    def sends(self: Any, weights: Any) -> None:
        note("send")
        send(self, weights)

    def note(what: str) -> None:
        with (Path.cwd() / "order").open("a") as file:
            file.write(f"{what}\n")

    SHARDED.whole, SERVER.take_weights = gathers, sends


def sent_before(rank: int) -> None:
    """Rank 0 sends what it has, and gathers only then."""
    late(rank)
    load = Served.load_weights

    def wrong(self: Any, model: Any) -> None:
        if rank == 0 and self._sampler._lm.model is not None:
            self._sampler.load_weights(self._sampler._lm.model)
        load(self, model)

    SERVED.load_weights = wrong


@pytest.mark.nightly
@pytest.mark.parametrize(("hook", "right"), [(late, True), (sent_before, False)])
def test_all_is_gathered_before_anything_is_sent(
    hook: Any, right: bool, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with served(tmp_path, model, "two", "fsdp2") as (_, settings):
        well(launch(tmp_path / "log", settings, hook=hook).ended())
    order = (tmp_path / "order").read_text().split()
    assert order.count("send") >= 5
    assert all(order[at - 1] == "gather" for at, what in enumerate(order) if what == "send") is right


def everyone_sends(rank: int) -> None:
    load = Served.load_weights

    def wrong(self: Any, model: Any) -> None:
        load(self, model)
        if rank == 1:
            self._sampler.load_weights(self._gather() if not self._ranks.sharded else model)

    SERVED.load_weights = wrong


def local_rows(rank: int) -> None:
    """A rank's first row draws as the first of all."""
    sample = Served.sample
    SERVED.sample = lambda self, prompts, params: sample(self, prompts, replace(params, first=0))


def streamed(rank: int) -> None:
    """Rank 0 asks for the shards while it sends them, and the others are not there."""
    load = Served.load_weights

    def wrong(self: Any, model: Any) -> None:
        mine = self._lm.model
        self._gather = lambda: mine
        load(self, model)

    SERVED.load_weights = wrong


def not_sent(rank: int) -> None:
    """Nothing reaches the server after the first sync."""
    send, calls = Server.take_weights, list[int]()

    def once(self: Any, weights: Any) -> None:
        calls.append(1)
        if len(calls) == 1:
            send(self, weights)

    SERVER.take_weights = once


def not_followed(rank: int) -> None:
    """Rank 1 asks for what it asked for at first."""
    follow = Server.follow

    def once(self: Any, serves: str) -> None:
        if self._model == "base":
            follow(self, serves)

    if rank == 1:
        SERVER.follow = once


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("parallel", "tuning", "planted"),
    [
        ("ddp", "full", everyone_sends), ("ddp", "full", local_rows), ("fsdp2", "full", local_rows),
        ("fsdp2", "full", streamed), ("fsdp2", "full", not_sent), ("ddp", "lora", not_followed),
    ],
)  # fmt: skip
def test_planted_bugs_are_seen(parallel: str, tuning: str, planted: Any, model: Path, tmp_path: Path) -> None:
    with served(tmp_path, model, "one", "auto", tuning) as (alone, settings):
        one, two = go(settings), tmp_path / "two"
    with served(tmp_path, model, "two", parallel, tuning, timeout=3.0) as (fake, settings):
        ended = launch(tmp_path / "log", settings, hook=planted).ended(60)
        same = all(fake.asked.count(path) == alone.asked.count(path) for path in ("/collective_rpc", "/resume"))
    assert all(rank.status is not None for rank in ended)
    if all(rank.status == 0 for rank in ended):
        rollouts = [(run / "rollouts.jsonl").read_text() for run in (one, two)]
        assert not same or rollouts[0] != rollouts[1] or gap(one, two) > 1e-4
    else:
        assert len(last_lines(ended[0])) == 1


@pytest.mark.nightly
@pytest.mark.parametrize("parallel", ["ddp", "fsdp2"])
@pytest.mark.parametrize(
    ("path", "answer", "since", "told", "kept"),
    [
        ("/collective_rpc", (500, "CUDA error: out of memory"), 3, r"error: sampler: vllm failed \(.*/collective_rpc answered 500: CUDA error: out of memory\), was started once more, and failed again .*out of memory.*; checkpoint 1 is kept, and resuming the run repeats the step", 1),
        ("/collective_rpc", (200, "hang"), 4, r"error: sampler: vllm had not taken the weights of sync 4 after 1 s \(vllm.timeout\); the last it said: /health answers 200; .*; checkpoint 2 is kept, and.*", 2),
        ("/inference/v1/generate", (503, "engine dead"), 60, r"error: sampler: vllm failed \((rank 1: )?AnsweredError: .*engine dead\), was started once more, and failed again \(.*engine dead\).*; checkpoint [12] is kept, and.*", None),
        ("/collective_rpc", (500, "no"), 1, r"error: sampler: vllm failed .* answered 500: no\).*", 0),
    ],
)  # fmt: skip
def test_a_server_that_fails_ends_all_ranks_with_its_own_words(
    parallel: str, path: str, answer: tuple[int, str], since: int, told: str, kept: int | None, model: Path,
    tmp_path: Path,
) -> None:  # fmt: skip
    """One line, from rank 0; the run goes on from its checkpoint to the same bits, once the server is well."""
    with served(tmp_path, model, "two", parallel, timeout=1.0 if answer[1] == "hang" else 30.0) as (fake, settings):
        fake.answers[path], fake.since = answer, since
        ended = launch(tmp_path / "log", settings).ended(90)
        assert [rank.status for rank in ended] == [2, 2], ended
        (line,) = last_lines(ended[0])
        assert re.fullmatch(told, line), line
        assert ended[1].err == ""
        assert kept is None or len(list((tmp_path / "two" / "checkpoints").glob("step-*"))) == kept
        fake.answers.clear()
        fake.hang.set()
        before = len(fake.asked)
        well(launch(tmp_path / "again", settings).ended(90))
        again = fake.asked[before:]
        assert again.index("/collective_rpc") < again.index("/inference/v1/generate")
    with served(tmp_path / "unbroken", model, "two", parallel) as (_, settings):
        well(launch(tmp_path / "other", settings).ended(90))
    check_equal(tmp_path / "two", tmp_path / "unbroken" / "two")


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("parallel", "dead", "at", "after"), [("fsdp2", 0, "take_weights", True), ("ddp", 1, "sample", False)]
)
def test_a_rank_that_is_killed_with_a_server_is_named_and_the_run_goes_on(
    parallel: str, dead: int, at: str, after: bool, model: Path, tmp_path: Path
) -> None:
    hook = partial(dies_in_step_3, dead, f"selfcorrect.samplers.vllm_server.Server.{at}", after=after)
    with served(tmp_path, model, "two", parallel) as (_, settings):
        ended = launch(tmp_path / "log", settings, hook=hook).ended()
        assert [rank.status for rank in ended] == ([2, -9] if dead else [-9, 2])
        (line,) = last_lines(ended[1 - dead])
        assert re.fullmatch(rf"error: rank {dead} \(.* died without a word.* checkpoint step-000002 is whole.*", line)
        well(launch(tmp_path / "again", settings).ended(90))
    with served(tmp_path / "unbroken", model, "two", parallel) as (_, settings):
        well(launch(tmp_path / "other", settings).ended(90))
    check_equal(tmp_path / "two", tmp_path / "unbroken" / "two")


@pytest.mark.nightly
@pytest.mark.parametrize("parallel", ["ddp", "fsdp2"])
@pytest.mark.parametrize(("path", "since"), [("/inference/v1/generate", 70), ("/collective_rpc", 2)])
def test_a_server_that_fails_once_is_sent_the_weights_again(
    parallel: str, path: str, since: int, model: Path, tmp_path: Path
) -> None:
    with served(tmp_path, model, "two", parallel) as (fake, settings):
        fake.answers[path], fake.since, fake.times = (503, "restarting"), since, 1
        ended = launch(tmp_path / "log", settings).ended()
        assert [rank.status for rank in ended] == [0, 0]
        assert ended[0].err.count("it is started once more with the current weights") == 1
        assert ended[1].err == ""
    with served(tmp_path / "unbroken", model, "two", parallel) as (_, settings):
        well(launch(tmp_path / "other", settings).ended(90))
    check_equal(tmp_path / "two", tmp_path / "unbroken" / "two")


@pytest.mark.nightly
def test_a_sync_that_fails_after_an_engine_was_started_anew_ends_all(model: Path, tmp_path: Path) -> None:
    """The sixth request, an attempt's, and much later the sixth sync: once in a run is an engine started anew."""
    with served(tmp_path, model, "two", "ddp") as (fake, settings):
        fake.since, fake.times = 6, 1
        fake.answers |= dict.fromkeys(("/inference/v1/generate", "/collective_rpc"), (503, "restarting"))
        ended = launch(tmp_path / "log", settings).ended()
    assert [rank.status for rank in ended] == [2, 2]
    assert ended[0].err.count("it is started once more with the current weights") == 1
    assert re.search(r"generate answered 503.*, was started once more, and failed again .*collective_rpc", ended[0].err)


def test_what_cannot_serve_several_ranks_is_refused() -> None:
    refuse_unserved(validated(Path("runs"), Path("model")))
    fits = {"server": "http://host:1", "timeout": 1800.0}
    refuse_unserved(validated(Path("runs"), Path("model"), sampler="vllm", vllm=fits))
    for place in ({}, {"server": "http://host:1"}):
        slow: dict[str, Any] = {**place, "timeout": 1801.0}
        with pytest.raises(ConfigError, match="set at most 1800"):
            refuse_unserved(validated(Path("runs"), Path("model"), sampler="vllm", vllm=slow))
