"""Two hosts, each with its own network, name and disk (tests/support/hosts.py): what is learned, kept, told and gone on with."""

import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
import yaml

from selfcorrect.errors import SandboxError
from selfcorrect.models import fused
from selfcorrect.runs import run, together
from tests.run.conftest import ENDS
from tests.run.test_own_task import TASK
from tests.run.test_ranks import STAGE, gap, newest, uneven, well
from tests.run.test_ranks_ending import COUNTDOWN, last_lines, slow
from tests.support.hosts import Host, accelerate, connect, hosts, started, torchrun
from tests.support.ranks import Ended, launch
from tests.support.runs import go, read_rows, tuned
from tests.support.tiny import tiny_lm

RUNNING: Any = run  # to plant things in
TOGETHER: Any = together
RECIPE, RUN = "/tmp/recipe.yaml", "/tmp/runs/two"
pytestmark = [pytest.mark.nightly, pytest.mark.usefixtures("lucky")]
Both = tuple[Host, Host]


def settings(parallel: str, tuning: str = "full", **changes: Any) -> dict[str, Any]:
    return tuned(uneven(Path("/tmp/runs"), Path("/tmp/model"), "two", parallel, **changes), tuning)


@contextmanager
def ready(base: Path, model: Path, told: dict[str, Any], **how: Any) -> Iterator[Both]:
    """Hosts that have the model and the recipe, each its own copy."""
    with hosts(base, **how) as both:
        for host in both:
            shutil.copytree(model, host.disk / "model")
            (host.disk / "recipe.yaml").write_text(yaml.dump(told))
        yield both


def run_of(host: Host) -> Path:
    return host.disk / "runs" / "two"


def check_learned(run: Path, other: Path) -> None:
    """To the bit, in whatever files the weights lie."""
    mine, theirs = (newest(each).tensors for each in (run, other))
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    for name in ("rollouts.jsonl", "evaluations/a.rollouts.jsonl"):
        assert (run / name).read_text() == (other / name).read_text()


def stays_behind(ended: list[Ended], told: str, seconds: float) -> None:
    """All end with status 2, rank 0 in one line."""
    assert [rank.status for rank in ended] == [2, 2], ended
    assert [bool(re.fullmatch(told, line)) for line in last_lines(ended[0])] == [True], ended[0].err
    assert last_lines(ended[1]) == []
    assert seconds < 60


@pytest.mark.parametrize(
    ("parallel", "tuning", "each", "changes"),
    [
        ("ddp", "full", 1, {}), ("ddp", "lora", 1, {}), ("fsdp2", "full", 1, {}), ("fsdp2", "lora", 2, {}),
        ("hsdp", "full", 2, {}),
        ("ddp", "full", 1, {"stages": [STAGE, {"name": "b", "objective": "star", "iterations": 2, "steps": 2, "learning_rate": 0.003, "collect": 9, "batch": 5}]}),
        ("fsdp2", "full", 1, {"stages": [STAGE, {**STAGE, "name": "b"}], "algorithm": {"reference": "previous_stage"}}),
    ],
)  # fmt: skip
def test_hosts_that_share_no_disk_learn_what_one_process_does(
    parallel: str, tuning: str, each: int, changes: dict[str, Any], model: Path, tmp_path: Path
) -> None:
    """Rank 0's host has the run, as one process would have written it, and goes on with it; the other has nothing."""
    told = settings(parallel, tuning, **changes)
    with ready(tmp_path / "hosts", model, told, loopback_name=True) as (one, two):
        run_of(two).mkdir(parents=True)
        (run_of(two) / ".lock").touch()  # an earlier run's: no sign that the disk is shared
        ended = started((one, two), tmp_path / "log", "train", RECIPE, each=each).ended(120)
        well(ended)
        assert "the run's folder is on node1 alone" in ended[0].out
        assert [file.name for file in run_of(two).rglob("*")] == [".lock"]
        made = go(tuned(uneven(tmp_path, model, "one", **changes), tuning))
        assert gap(run_of(one), made) < 1e-5
        for name in ("rollouts.jsonl", "evaluations/a.rollouts.jsonl"):
            assert (run_of(one) / name).read_text() == (made / name).read_text()
        last = f"stages.{told['stages'][-1]['name']}.steps"
        more = [f"{last}={told['stages'][-1]['steps'] + 2}"]
        if "b" in last and parallel == "ddp":
            return
        well(started((one, two), tmp_path / "more", "train", "--resume", RUN, *more, each=each).ended(120))
        assert newest(run_of(one)).step == newest(made).step + 2


@pytest.mark.parametrize(
    ("parallel", "dead", "shared"), [("ddp", 1, ()), ("fsdp2", 1, ()), ("fsdp2", 0, ()), ("fsdp2", 1, ("runs",))]
)
def test_a_host_that_dies_is_named_and_the_run_goes_on(
    parallel: str, dead: int, shared: tuple[str, ...], model: Path, tmp_path: Path
) -> None:
    """To the bits of a run that nothing happened to."""
    told = settings(parallel)
    with ready(tmp_path / "hosts", model, told, shared=shared) as both:
        ranks = started(both, tmp_path / "log", "train", RECIPE, hook=slow)
        ranks.wait_for("step 3 begins")
        ranks.wait_for("step 3 begins", 1)
        since = time.monotonic()
        both[dead].kill()
        ended = ranks.ended(60)
        assert time.monotonic() - since < 60
        assert [rank.status for rank in ended] == ([2, -9] if dead else [-9, 2])
        where = rf"rank {dead} \((pid \d+ )?on {both[dead].name}\)"
        kept = "checkpoint step-000002 is whole" if dead else "what is kept of the run is on node1"
        (line,) = last_lines(ended[1 - dead])
        assert re.fullmatch(
            rf"error: {where} died without a word: killed, or out of memory; {kept}\. To go on, resume with: selfcorrect train --resume {RUN} \(by the same launcher\)",
            line,
        )
        both[dead].start()
        connect(*both)
        well(started(both, tmp_path / "again", "train", "--resume", RUN).ended(120))
        where_it_is = tmp_path / "hosts" / "shared" / "runs" / "two" if shared else run_of(both[0])
        assert not list(where_it_is.rglob(".partial*"))
        well(launch(tmp_path / "unbroken", uneven(tmp_path, model, "two", parallel)).ended(120))
        check_learned(where_it_is, tmp_path / "two")


def test_a_network_that_is_cut_ends_both_hosts_in_words(model: Path, tmp_path: Path) -> None:
    """One line on each, in under a minute, although nothing tells them; and the run goes on once it is back."""
    with ready(tmp_path / "hosts", model, settings("fsdp2")) as (one, two):
        ranks = started((one, two), tmp_path / "log", "train", RECIPE, each=2, hook=slow)
        for rank in range(4):
            ranks.wait_for("step 3 begins", rank)
        two.cut()
        ended = ranks.ended(60)
        assert [rank.status for rank in ended] == [2] * 4
        gone = r"cannot be reached any more: its host is down, or the network between \(.*\)"
        (here,), (there,) = last_lines(ended[0]), last_lines(ended[2])
        assert re.fullmatch(
            rf"error: rank [23] \(pid \d+ on node2\) {gone}; checkpoint step-000002 is whole\. .*", here
        )
        assert re.fullmatch(rf"error: rank 0 \(on node1\) {gone}; what is kept of the run is on node1\. .*", there)
        assert last_lines(ended[1]) + last_lines(ended[3]) == []
        two.sh("ip link set eth0 up")
        well(started((one, two), tmp_path / "again", "train", "--resume", RUN, each=2).ended(120))
        assert newest(run_of(one)).step == 3


DEEDS: dict[str, Callable[[Host], object]] = {  # on the second host
    "no recipe": lambda two: (two.disk / "recipe.yaml").unlink(),
    "other recipe": lambda two: (two.disk / "recipe.yaml").write_text(
        (two.disk / "recipe.yaml").read_text().replace("learning_rate: 0.003", "learning_rate: 0.004")
    ),
    "no model": lambda two: shutil.rmtree(two.disk / "model"),
    "other model": lambda two: tiny_lm("llama", "eager", ENDS, seed=1).save(two.disk / "model", torch.float32),
    "no data": lambda two: (two.disk / "more.jsonl").unlink(),
    "other data": lambda two: (two.disk / "more.jsonl").write_text('{"nums": [2, 5], "target": 7}\n'),
    "nothing": lambda two: None,
}


def other_code(rank: int) -> None:
    if rank == 1:
        versions = together.versions()
        TOGETHER.versions = lambda: {**versions, "torch": "2.9.0"}


def graderless(rank: int) -> None:
    if rank == 1:
        COUNTDOWN.grade = Mock(side_effect=SandboxError("programs cannot be confined here"))


def uncompiled(rank: int) -> None:
    if rank == 1:
        check, fused.backend = RUNNING.check_updates, "none_such"
        RUNNING.check_updates = lambda optimizer, lm: check(optimizer.model_copy(update={"compile": True}), lm)


@pytest.mark.parametrize(
    ("deed", "hook", "told"),
    [
        ("no recipe", None, rf"rank 1 \(pid \d+ on node2\) ended: recipe {RECIPE}: no such file; .*; nothing was done yet"),
        ("other recipe", None, r"rank 1 on node2 has other things than rank 0 on node1: stages = .*'learning_rate': 0.004.*; give all the same recipe and settings, .*"),
        ("no model", None, r"rank 1 on node2: model.path = '/tmp/model'.*"),
        ("other model", None, r"rank 1 on node2 has other things than rank 0 on node1: the model '/tmp/model' = \w+ \(not \w+\); put the same model on all hosts"),
        ("no data", None, r"rank 1 on node2: .*/tmp/more.jsonl.*"),
        ("other data", None, r"rank 1 on node2 has other things than rank 0 on node1: the more.jsonl problems = .*; put the same data on all hosts"),
        ("nothing", other_code, r"rank 1 on node2 has other things than rank 0 on node1: torch = 2.9.0 \(not .*\); install the same on all hosts"),
        ("nothing", graderless, r"rank 1 on node2: programs cannot be confined here"),
        ("nothing", uncompiled, r"rank 1 on node2: optimizer.compile = true: torch.compile fails here \(.*none_such.*\); set false"),
    ],
)  # fmt: skip
def test_what_a_host_lacks_is_told_with_its_name(deed: str, hook: Any, told: str, model: Path, tmp_path: Path) -> None:
    """Before anything is kept, and with nobody left waiting."""
    recipe = settings("ddp", evaluation={"problems": 3, "controls": False, "external": ["/tmp/more.jsonl"]})
    with ready(tmp_path / "hosts", model, recipe) as both:
        for host in both:
            (host.disk / "more.jsonl").write_text('{"nums": [2, 3], "target": 5}\n')
        DEEDS[deed](both[1])
        since = time.monotonic()
        ended = started(both, tmp_path / "log", "train", RECIPE, hook=hook).ended(90)
        stays_behind(ended, f"error: {told}", time.monotonic() - since)
        assert not list(both[0].disk.rglob("checkpoints/*"))


def test_the_runs_copy_of_a_task_is_sent_to_the_other_host(model: Path, tmp_path: Path) -> None:
    """Where the file is gone on both, and the copy is in the folder of the run on one."""
    with ready(tmp_path / "hosts", model, settings("ddp", task={"name": "custom", "file": "/tmp/own.py"})) as both:
        for host in both:
            (host.disk / "own.py").write_text(TASK)
        well(started(both, tmp_path / "log", "train", RECIPE).ended(90))
        for host in both:
            (host.disk / "own.py").unlink()
        well(started(both, tmp_path / "again", "train", "--resume", RUN, "stages.a.steps=4").ended(90))
        assert newest(run_of(both[0])).step == 4


def test_rank_0_belongs_on_the_host_that_has_the_run(model: Path, tmp_path: Path) -> None:
    """Else it would begin anew, or go back to an older checkpoint."""
    with ready(tmp_path / "hosts", model, settings("ddp")) as (one, two):
        well(started((one, two), tmp_path / "log", "train", RECIPE).ended(90))
        said = r"error: /tmp/runs/two: rank 1 on node1 has a run there, at step 3, and rank 0 on node2, .*, has {}: start rank 0 on the host that has it .*"
        for number, command in enumerate((["--resume", RUN], [RECIPE])):
            since = time.monotonic()
            ended = started((two, one), tmp_path / f"log-{number}", "train", *command).ended(90)
            stays_behind(ended, said.format("none"), time.monotonic() - since)
        shutil.copytree(run_of(one), run_of(two))
        shutil.rmtree(run_of(two) / "checkpoints" / "step-000003")
        ended = started((two, one), tmp_path / "older", "train", "--resume", RUN).ended(90)
        stays_behind(ended, said.format("at step 2"), 0)


@pytest.mark.parametrize("parallel", ["ddp", "fsdp2"])
def test_a_full_disk_on_rank_0s_host_ends_both_and_the_run_goes_on(parallel: str, model: Path, tmp_path: Path) -> None:
    with ready(tmp_path / "hosts", model, settings(parallel)) as (one, two):
        one.sh("mkdir runs && mount -t tmpfs -o size=4m none runs")
        ranks = started((one, two), tmp_path / "log", "train", RECIPE, hook=slow)
        ranks.wait_for("step 3 begins")
        one.sh("dd if=/dev/zero of=runs/full bs=64k status=none || true")
        since = time.monotonic()
        ended = ranks.ended(60)
        said = r"error: the disk is full \(No space left on device.*\); checkpoint step-000002 is whole\. Free some space, then resume with: .*"
        stays_behind(ended, said, time.monotonic() - since)
        one.sh("rm runs/full && mount -o remount,size=64m runs")
        well(started((one, two), tmp_path / "again", "train", "--resume", RUN).ended(90))
        assert one.sh("ls runs/two/checkpoints; ls -A runs/two").count("partial") == 0


@pytest.mark.parametrize("way", [torchrun, accelerate])
def test_by_its_launchers(way: Any, model: Path, tmp_path: Path) -> None:
    """Ctrl-C on the second host's launcher keeps the step on the first one's disk, and both go on."""
    told = settings("auto" if way is accelerate else "fsdp2", checkpoint={"every": 500, "keep": 8})
    told["stages"] = [{**STAGE, "steps": 500}]
    with ready(tmp_path / "hosts", model, told, loopback_name=True) as (one, two):
        jobs = way((one, two), "train", "recipe.yaml")
        jobs[0].wait_for("a 1/500")
        jobs[1].interrupt()
        statuses = [job.status(90) for job in jobs]
        assert None not in statuses
        assert 0 not in statuses
        assert re.search(
            r"^stopped; checkpoint step-\d+ is whole\. To go on, resume with: selfcorrect train --resume /tmp/runs/two \(by the same launcher\)$",
            jobs[0].err,
            re.M,
        ), jobs[0].err
        assert "stopped" not in jobs[1].err
        step = newest(run_of(one)).step
        jobs = way((one, two), "train", "--resume", RUN, f"stages.a.steps={step + 1}")
        assert [job.status(120) for job in jobs] == [0, 0], jobs[0].err + jobs[1].err
        assert newest(run_of(one)).step == step + 1
        assert not run_of(two).exists()


@pytest.mark.parametrize(
    ("tuning", "shared", "told"),
    [
        ("full", ("sync",), ""),
        ("lora", ("sync",), ""),
        ("full", (), r"the server was to read /tmp/sync/\S+ of node1, which both hosts must see under one path \(vllm.sync_folder; .*\), and .*Cannot find any model weights with '/tmp/sync/.*'"),
        ("lora", (), r"the server was to read /tmp/sync/\S+ of node1, which .*, and .*No adapter found for /tmp/sync/"),
    ],
)  # fmt: skip
def test_a_server_on_another_host(tuning: str, shared: tuple[str, ...], told: str, model: Path, tmp_path: Path) -> None:
    """It takes weights and adapters through a folder that both see; where there is none, its words are not all."""
    where = {"server": "http://192.168.77.2:8000", "sync_folder": "/tmp/sync", "timeout": 30.0}
    with ready(tmp_path / "hosts", model, settings("auto", tuning, sampler="vllm", vllm=where), shared=shared) as (
        one,
        two,
    ):
        two.run(sys.executable, "-m", "tests.support.server", "/tmp/model", "8000", tuning).wait_for("serving")
        (ended,) = started([one], tmp_path / "log", "train", RECIPE).ended(90)
        if told:
            (line,) = last_lines(ended)
            assert ended.status == 2
            assert re.search(told, line), line
        else:
            assert ended.status == 0, ended.err
            gaps = [row["sampler_gap"] for row in read_rows(run_of(one) / "metrics.jsonl")]
            assert len(gaps) == 3
            assert all(0 < gap < 1e-5 for gap in gaps)  # it sampled with the weights of each step
