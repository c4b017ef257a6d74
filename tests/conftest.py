"""Settings for every test: one thread (bit-for-bit repeatable, and kind to small machines), no network, no waiting; and
the command line, called in the test's own process.
"""

import gc
import os
import signal
import sys
from collections.abc import Callable, Iterator
from functools import wraps
from inspect import unwrap
from typing import NamedTuple

import pytest
import torch
from hypothesis import settings

import tests.support.unsynced  # noqa: F401
from selfcorrect.grading.judge import Checks, Verdict, selftest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("SELFCORRECT_PLAN", "off")  # seconds a run, of which the suite has hundreds
settings.register_profile("suite", deadline=None, derandomize=True, max_examples=50)
settings.register_profile("nightly", settings.get_profile("suite"), max_examples=1500)
torch.set_num_threads(1)
gc.disable()  # until everything is imported: nothing of it is garbage


def pytest_configure(config: pytest.Config) -> None:
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell starts what is in its background
        signal.signal(signal.SIGINT, signal.default_int_handler)
    settings.load_profile("suite" if "not nightly" in config.option.markexpr else "nightly")


def pytest_runtest_setup() -> None:
    """Whatever the test before left: two processes of two threads each, on two cores, are slower than of one."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def _one_self_test() -> Iterator[None]:
    """The code judge tries itself whenever one starts, for 0.6 s: here the first time; test_judge.py sees to the rest."""

    @wraps(selftest.holes)
    def first(run: Callable[[str, Checks], Verdict]) -> list[str]:
        if not found:
            found.append(unwrap(first)(run))
        return found[0]

    found: list[list[str]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(selftest, "holes", first)
        yield


def pytest_collection_finish() -> None:
    """What is imported by now stays: no collection need walk its 400,000 objects."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)  # in place of (700, 10, 10): a twelfth of the time
    gc.enable()


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop() -> None:
    """Where some test needs processes."""
    if "tests.support.runs" in sys.modules:
        from tests.support import forked

        forked.start()


class Ended(NamedTuple):
    """How a command ended, and what it printed."""

    status: int
    out: str
    err: str


Called = Callable[..., Ended]
Command = Callable[..., str]


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Called:
    """called(arguments): `selfcorrect` with these, in this process."""

    def run(*arguments: str) -> Ended:
        from selfcorrect import cli

        monkeypatch.setattr(sys, "argv", ["selfcorrect", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return Ended(int(ended.value.code or 0), *capfd.readouterr())

    return run


@pytest.fixture
def command(called: Called) -> Command:
    """command(arguments): its stdout; it must succeed."""

    def run(*arguments: str) -> str:
        status, out, err = called(*arguments)
        assert status == 0, err
        return out

    return run
