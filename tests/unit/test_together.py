"""What ranks on several hosts agree on, here in threads of one process; tests/run/test_hosts.py has real ones."""

import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import pytest

from selfcorrect.errors import ConfigError
from selfcorrect.parallel import ranks as ranked
from selfcorrect.parallel.lifeline import Lifeline
from selfcorrect.parallel.ranks import Several
from selfcorrect.runs.together import check_overrides, notes_of

HOSTS = ("a", "b", "b", "c")
T = TypeVar("T")


class Threads(Several):
    """told: by rank, what each gives to an exchange."""

    def __init__(self, rank: int, told: list[Any], barrier: threading.Barrier) -> None:
        super().__init__(rank, len(HOSTS), None, object.__new__(Lifeline), HOSTS)
        self._told, self._barrier = told, barrier

    def exchange(self, value: T, error: Exception | None = None, *, named: bool = True) -> list[T]:
        self._told[self.rank] = value
        self._barrier.wait()
        found = list[T](self._told)
        self._barrier.wait()
        assert error is None, error
        return found


def on_all(deed: Callable[[Several], T]) -> list[T]:
    """What each rank comes to."""
    told, barrier = [None] * len(HOSTS), threading.Barrier(len(HOSTS), timeout=20)
    with ThreadPoolExecutor(len(HOSTS)) as pool:
        return list(pool.map(deed, [Threads(rank, told, barrier) for rank in range(len(HOSTS))]))


@pytest.mark.parametrize("shared", [True, False])
def test_a_shared_disk_is_seen_where_its_folder_may_not_be_listed(
    shared: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By what rank 0 writes into a file; one of that name may be there from an earlier run."""

    def refused(_: Any) -> list[str]:
        raise PermissionError

    def looks(ranks: Several) -> bool:
        file = tmp_path / ("a" if shared else HOSTS[ranks.rank]) / ".lock"
        ranks.look_for(file)
        return ranks.shares_disk

    for host in HOSTS:
        (tmp_path / host).mkdir(exist_ok=True)
        (tmp_path / host / ".lock").touch()
    monkeypatch.setattr(os, "listdir", refused)
    monkeypatch.setattr(ranked, "_LOOKS", 1)
    monkeypatch.setattr(time, "sleep", lambda _: None)
    assert on_all(looks) == [shared] * len(HOSTS)
    assert (tmp_path / "a" / ".lock").read_text() == ""


def test_a_note_names_all_hosts_that_have_it_and_rank_0s_has_not() -> None:
    of_hosts = {"a": ["one"], "b": ["one", "two"], "c": ["two", "three"]}
    told = on_all(lambda ranks: notes_of(ranks, of_hosts[HOSTS[ranks.rank]]))
    assert told == [["one", "b, c: two", "c: three"]] * len(HOSTS)


def test_settings_that_one_rank_goes_on_with_are_not_dropped() -> None:
    def goes_on(ranks: Several) -> str:
        given: Sequence[str] = ["seed=1"] if ranks.rank < 3 else []
        with pytest.raises(ConfigError) as refused:
            check_overrides(ranks, given)
        return str(refused.value)

    (told,) = set(on_all(goes_on))
    assert told == (
        "rank 3 on c has other things than rank 0 on a: what follows --resume = [] (not ['seed=1']); give all the same "
        "settings"
    )
