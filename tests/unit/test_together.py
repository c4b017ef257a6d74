"""What ranks on several hosts agree on, here in threads of one process; tests/run/test_hosts.py has real ones."""

import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar
from unittest.mock import Mock

import pytest

from selfcorrect.config.paths import own_files
from selfcorrect.errors import ConfigError
from selfcorrect.parallel import ranks as ranked
from selfcorrect.parallel.lifeline import Lifeline
from selfcorrect.parallel.ranks import Several
from selfcorrect.runs.together import check_overrides, notes_of, own_files_sent
from selfcorrect.tasks.own import digest_of
from tests.support.runs import brief, valid

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

    def looks(ranks: Several) -> bool:
        file = tmp_path / ("a" if shared else HOSTS[ranks.rank]) / ".lock"
        ranks.look_for(file)
        return ranks.shares_disk

    for host in HOSTS:
        (tmp_path / host).mkdir(exist_ok=True)
        (tmp_path / host / ".lock").touch()
    monkeypatch.setattr(os, "listdir", Mock(side_effect=PermissionError))
    monkeypatch.setattr(ranked, "_LOOKS", 1)
    monkeypatch.setattr(time, "sleep", lambda _: None)
    assert on_all(looks) == [shared] * len(HOSTS)
    assert (tmp_path / "a" / ".lock").read_text() == ""


def test_copies_of_a_run_are_sent_where_they_are_not(tmp_path: Path) -> None:
    """Its files of the user's own, with what they import; host c has others there."""
    for host, text in (("a", "VALUE = 7\n"), ("c", "VALUE = 8\n")):
        kept = tmp_path / host / "own" / "task"
        kept.mkdir(parents=True)
        (kept / "mine.py").write_text("from beside_mine import VALUE\n")
        (kept / "beside_mine.py").write_text(text)

    def goes_on(ranks: Several) -> Path:
        run = tmp_path / HOSTS[ranks.rank]
        settings = brief(tmp_path, tmp_path, task={"name": "custom", "file": str(run / "own" / "task" / "mine.py")})
        with own_files_sent(ranks, valid(settings), run) as config:
            (found,) = {each.file for each in own_files(config)}
            assert digest_of(found) == digest_of(tmp_path / "a" / "own" / "task" / "mine.py")
        return Path(found)

    found = on_all(goes_on)
    assert [file.is_file() for file in found] == [True, False, False, False]
    assert (tmp_path / "c" / "own" / "task" / "beside_mine.py").read_text() == "VALUE = 8\n"


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
