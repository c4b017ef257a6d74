"""What a launcher says of its processes, what is refused of it, and the configurations that are shipped."""

import os
import socket
import types
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import psutil
import pytest
import torch
import yaml

import selfcorrect
from selfcorrect.config import TrainConfig
from selfcorrect.errors import ConfigError
from selfcorrect.parallel import joining, lifeline
from selfcorrect.parallel.launch import Launch, is_first, kind_of, launched, refuse_several
from selfcorrect.parallel.lifeline import Lifeline
from selfcorrect.parallel.ranks import Alone, Several
from selfcorrect.parallel.sharding import Sharded
from tests.support.runs import valid

TWO = {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
VARIABLES = (*TWO, "LOCAL_WORLD_SIZE", "ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED", "FSDP_VERSION")
FILES = sorted((Path(selfcorrect.__file__).parent / "recipes" / "launch").glob("*.yaml"))


@pytest.fixture(autouse=True)
def _plain(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def config(**changes: Any) -> TrainConfig:
    return valid({"stages": [], **changes})


@pytest.mark.parametrize(
    "told", [{}, {"WORLD_SIZE": "1"}, {"WORLD_SIZE": "1", "RANK": "0"}, {"RANK": "3"}, {"WORLD_SIZE": ""}]
)
def test_one_process_is_alone(told: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    assert launched() is None
    assert is_first()
    refuse_several("this")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"WORLD_SIZE": "two"}, r"WORLD_SIZE = 'two': must be a whole number from 1 on"),
        ({"WORLD_SIZE": "0"}, r"WORLD_SIZE = '0': must be a whole number from 1 on"),
        ({"WORLD_SIZE": "-2"}, r"WORLD_SIZE = '-2'"),
        ({"WORLD_SIZE": "2.0"}, r"WORLD_SIZE = '2.0'"),
        ({"WORLD_SIZE": "²"}, r"WORLD_SIZE = '²'"),
        ({"RANK": "2"}, r"RANK is 2, but WORLD_SIZE is 2: ranks are 0 to 1"),
        ({"RANK": "-1"}, r"RANK = '-1'"),
        ({"RANK": None}, r"WORLD_SIZE is 2, but RANK is not set: start all processes with torchrun"),
        ({"MASTER_ADDR": None}, r"MASTER_ADDR is not set"),
        ({"MASTER_PORT": ""}, r"MASTER_PORT is not set"),
    ],
)
def test_variables_that_contradict_each_other(
    changes: dict[str, str | None], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {**TWO, **changes}.items():
        if value is not None:
            monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=told):
        launched()


def test_several_for_what_one_does(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in TWO.items():
        monkeypatch.setenv(name, value)
    assert not is_first()
    with pytest.raises(ConfigError, match="lab_base is done by one process, and 2 were started"):
        refuse_several("kind: lab_base")


@pytest.mark.parametrize(
    ("parallel", "told", "kind"),
    [
        ("auto", {}, "ddp"), ("ddp", {}, "ddp"), ("fsdp2", {}, "fsdp2"), ("hsdp", {}, "hsdp"),
        ("auto", {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}, "fsdp2"),
        ("ddp", {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}, "ddp"),
        ("auto", {"ACCELERATE_USE_FSDP": "true"}, r"fsdp_version: 1; set fsdp_version: 2"),
        ("fsdp2", {"ACCELERATE_USE_DEEPSPEED": "true"}, r"configured with DeepSpeed, which is not used here"),
    ],
)  # fmt: skip
def test_which_kind(parallel: Any, told: dict[str, str], kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    if len(kind) < 6:
        assert kind_of(parallel) == kind
    else:
        with pytest.raises(ConfigError, match=kind):
            kind_of(parallel)


@pytest.mark.parametrize("parallel", ["ddp", "fsdp2"])
def test_one_process_is_no_kind(parallel: str) -> None:
    with pytest.raises(
        ConfigError, match=f"parallel = '{parallel}' is for several processes, and this is one; start it"
    ):
        Alone().settled(config(parallel=parallel))
    assert Alone().settled(config()).size == 1


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"optimizer": {"name": "adamw_8bit"}},
            r"bitsandbytes does not step sharded weights; set optimizer.name=adamw",
        ),
        ({"optimizer": {"name": "paged_adamw_8bit"}}, r"bitsandbytes does not step sharded weights"),
        *(
            (
                {"model": {"tuning": tuning}, "algorithm": {"reference": "previous_stage"}},
                r"second adapter would have to be",
            )
            for tuning in ("lora", "qlora")
        ),
    ],
)
def test_what_cannot_be_sharded(changes: dict[str, Any], told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = Several(0, 2, None, object.__new__(Lifeline))
    assert ranks.settled(config(**changes, parallel="ddp")) is ranks
    with pytest.raises(ValueError, match=told):  # before anything is loaded
        config(**changes, parallel="fsdp2")
    with pytest.raises(ValueError, match="parallel: hsdp"):
        config(**changes, parallel="hsdp")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    with pytest.raises(ConfigError, match=told) as refused:
        ranks.settled(config(**changes))
    assert "\n" not in str(refused.value)
    assert isinstance(ranks.settled(config(parallel="fsdp2", model={"tuning": "lora", "weights": "bfloat16"})), Sharded)


@pytest.mark.parametrize(
    ("here", "told"),
    [
        (None, [(0, 0), (1, 0)]),
        ("3", [(0, 3), (1, 3)]),
        ("2", [(0, 2), (0, 2), (1, 2), (1, 2)]),
        ("2", [(0, 2), (1, 2), (0, 1)]),
        ("2", [(0, 2), (1, 2), (0, 2)]),
    ],
)
def test_machines_of_unlike_numbers_have_no_copies(
    here: str | None, told: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unknown; more than there are; numbered in turns; unlike; not a multiple."""
    for name, value in {**TWO, "LOCAL_WORLD_SIZE": here}.items():
        if value is not None:
            monkeypatch.setenv(name, value)
    ranks = Several(1, len(told), None, object.__new__(Lifeline))
    monkeypatch.setattr(ranks, "exchange", lambda value: told)
    with pytest.raises(ConfigError, match=r"parallel = 'hsdp': every machine holds the model once.* or set parallel="):
        ranks.settled(config(parallel="hsdp"))


@pytest.mark.parametrize(("rank", "other"), [(0, "rank 1"), (1, "rank 0 at 127.0.0.1")])
def test_hosts_that_a_firewall_parts_are_told_so(rank: int, other: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lifeline, "_JOINING", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as server:
        closed = server.getsockname()[1]  # by then
    for name, value in {**TWO, "RANK": str(rank)}.items():
        monkeypatch.setenv(name, value)
    launch = launched()
    assert launch
    with pytest.raises(ConfigError, match=rf"^rank {rank} of 2 has no line to {other} \(.*see to the firewall"):
        Lifeline(launch, lambda _: (closed, "token"))


class Ends(Lifeline):
    """Without others. told: what was said at the end."""

    def __init__(self) -> None:
        self.rank, self.loss, self.agreed, self.told = 0, None, False, list[str | None]()

    def end(self, why: str | None) -> None:
        self.told.append(why)


@pytest.fixture
def line(monkeypatch: pytest.MonkeyPatch) -> Ends:
    """What `joined` finds, as if rank 0 of two had been started."""
    for name, value in {**TWO, "RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    made = Ends()
    monkeypatch.setattr(joining, "_join", lambda launch: Several(0, 2, None, made))
    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: None)
    return made


@pytest.mark.parametrize("parallel", ["ddp", "fsdp2"])
def test_what_is_raised_on_all_ranks_is_no_ones_own_end(
    parallel: str, line: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gathered(told: list[Any], mine: Any, group: Any) -> None:
        told[:] = [mine] * 2

    monkeypatch.setattr(torch.distributed, "all_gather_object", gathered)
    with pytest.raises(ConfigError, match=r"^no$"), joining.joined() as ranks:
        ranks.settled(config(parallel=parallel)).every(Mock(side_effect=ConfigError("no")))
    assert line.told == [None]


def test_outside_of_the_main_thread_a_run_ends_well_too(line: Ends) -> None:
    def run() -> None:
        with joining.joined():
            pass

    with ThreadPoolExecutor(1) as pool:
        pool.submit(run).result()
    assert line.told == [None]


def test_a_rank_that_never_comes_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Whoever connects to it would wait for hours."""
    monkeypatch.setattr(joining, "_TELLING", timedelta(seconds=0.05))
    monkeypatch.setattr(joining, "_JOINING", timedelta(seconds=0.2))
    monkeypatch.setattr(joining, "_own_address", lambda other, port: "10.0.0.1")
    store: Any = vars(torch.distributed)["HashStore"]()
    store.set("selfcorrect-2", "here")
    with pytest.raises(
        ConfigError, match=r"rank 0 of 4 waited 0 minutes at node1:29500 for rank 1, 3; see on its host"
    ):
        joining._wait_for_all(store, Launch(4, 0, 0, 2, "node1", 29500))
    assert capsys.readouterr().err == "waiting for rank 1, 3 of 4\n"
    for rank in (1, 3):
        store.set(f"selfcorrect-{rank}", "here")
    assert joining._wait_for_all(store, Launch(4, 0, 0, 2, "node1", 29500)) == ["10.0.0.1", "here", "here", "here"]


@pytest.mark.parametrize(
    ("addresses", "leads"),
    [
        (["127.0.0.1", "127.0.0.1"], "lo7"),
        (["10.0.0.7", "10.0.0.8"], "eth7"),
        (["127.0.0.1", "127.0.0.1", "10.0.0.8"], "eth7"),  # rank 0's own name is at 127.0.1.1, as Debian has it
        (["::1", "fe80::8%eth7"], "eth7"),
    ],
)
def test_gloo_takes_the_interface_that_leads_to_the_others(
    addresses: list[str], leads: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not the one that the host's own name stands for; what the user names stays."""
    there = {"eth7": ["10.0.0.7", "fe80::7%eth7"], "lo7": ["127.0.0.1", "::1"]}
    seen = {name: [types.SimpleNamespace(address=each) for each in all_of] for name, all_of in there.items()}
    monkeypatch.setattr(psutil, "net_if_addrs", lambda: seen)
    ways = {"10.0.0.8": "10.0.0.7", "fe80::8%eth7": "fe80::7%eth7"}
    monkeypatch.setattr(joining, "_own_address", lambda other, port: ways[other])
    launch = Launch(len(addresses), 0, 0, 0, "node1", 29500)
    for named, found in (("mine", "mine"), ("", leads)):
        monkeypatch.setenv("GLOO_SOCKET_IFNAME", named)
        joining._name_interface(launch, addresses)
        assert os.environ["GLOO_SOCKET_IFNAME"] == found


@pytest.mark.parametrize("own", ["127.0.0.1", "::1"])
def test_an_address_on_the_way_to_another(own: str) -> None:
    assert joining._own_address(own, 29500) == own
    assert joining._own_address("no such host", 29500) == "127.0.0.1"


@pytest.mark.parametrize(("groups", "size"), [(1, 2), (3, 2), (5, 4), (2, 3), (7, 7), (10, 3)])
def test_groups_are_split_whole_and_evenly(groups: int, size: int) -> None:
    of = [Several(rank, size, None, object.__new__(Lifeline)).part(4 * groups, 4) for rank in range(size)]
    assert [row for part in of for row in range(4 * groups)[part]] == list(range(4 * groups))
    assert all(part.start % 4 == 0 for part in of)
    assert max(part.stop - part.start for part in of) - min(part.stop - part.start for part in of) <= 4


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.name))
def test_shipped_configurations(file: Path) -> None:
    """accelerate reads them, and their kind is the one that the name says."""
    from accelerate.commands.config.config_args import load_config_from_file

    read = load_config_from_file(str(file))
    told = yaml.safe_load(file.read_text(encoding="utf-8"))
    assert read.to_dict()["num_processes"] == told["num_processes"] > 1
    assert read.num_machines == (2 if file.name == "nodes.yaml" else 1)
    assert read.mixed_precision == "no"  # the recipe's own says
    assert (read.fsdp_config == {"fsdp_version": 2}) == (file.name != "ddp.yaml")
    assert f"--config_file recipes/launch/{file.name} " in file.read_text(encoding="utf-8")


def test_all_are_there() -> None:
    assert [file.stem for file in FILES] == ["ddp", "fsdp2", "nodes"]
