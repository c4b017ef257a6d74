"""What a model behind an endpoint may spend: limits, usage that lies, budgets that stop and go on."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from selfcorrect.endpoints.budget import Budget, Spent
from selfcorrect.endpoints.journal import Journal
from selfcorrect.endpoints.settings import Endpoint
from selfcorrect.errors import EndpointError
from tests.support.endpoint import chat, served
from tests.unit.test_endpoint import LIMIT, RIGHT, played, pytestmark, quick  # noqa: F401 - of this module too


def test_the_larger_of_two_limits_is_held_back(tmp_path: Path) -> None:
    endpoint = quick(
        "http://127.0.0.1:1/v1", body={"max_completion_tokens": 5, "max_tokens": 5000}, max_tokens_total=999
    )
    with pytest.raises(EndpointError, match="5,000 written"):
        played(endpoint, tmp_path / "answers.jsonl")


@pytest.mark.parametrize(
    ("usage", "spent", "told"),
    [
        ({"prompt_tokens": 30, "completion_tokens": 5}, (30, 5), ""),
        ({}, None, "no usage"),
        ({"prompt_tokens": 0, "completion_tokens": 0}, None, "cannot be right"),
        ({"prompt_tokens": -9, "completion_tokens": -9}, None, "no usage"),
        ({"prompt_tokens": 1e300, "completion_tokens": True}, None, "no usage"),
        ({"prompt_tokens": 900, "completion_tokens": 400}, (900, 400), "400 tokens where 20 are the limit"),
        ({"prompt_tokens": 30, "completion_tokens": 5, "total_tokens": 95}, (30, 65), "65 tokens where 20 are the limit"),
    ],
)  # fmt: skip
def test_usage_that_lies_is_counted_at_its_worst(
    usage: Any, spent: tuple[int, int] | None, told: str, tmp_path: Path
) -> None:
    said: list[str] = []
    file = tmp_path / "answers.jsonl"
    with served(lambda request, n: chat(RIGHT, usage=usage)) as server:
        played(quick(server.url), file, said, attempts=1)
    bytes_sent = len("Question good-1") + len("Question odd") + len("Question good-2")
    worst = Spent(bytes_sent + 3 * (64 + 16), 3 * LIMIT)
    assert Journal(file).spent == (worst if spent is None else Spent(3 * spent[0], 3 * spent[1]))
    assert len(said) == len(set(said)) <= 1
    assert any(told in line for line in said) if told else not any("token" in line for line in said)


@pytest.mark.parametrize(
    ("changes", "most"),
    [
        ({"max_tokens_total": 300}, lambda spent: spent.tokens <= 300),
        ({"max_cost": 0.0005, "price_in": 1.0, "price_out": 4.0}, lambda spent: spent.read + 4 * spent.written <= 500),
    ],
)  # fmt: skip
@pytest.mark.parametrize("usage", [{"prompt_tokens": 30, "completion_tokens": 20}, {}, {"prompt_tokens": -5}])
def test_a_budget_stops_in_time_and_goes_on_when_raised(
    changes: Any, most: Callable[[Spent], bool], usage: Any, tmp_path: Path
) -> None:
    file = tmp_path / "answers.jsonl"
    with served(lambda request, n: chat(RIGHT, usage=usage)) as server:
        with pytest.raises(EndpointError, match=r"stopped by the budget, --max-\S+ .*; raise it to go on; \d answers"):
            played(quick(server.url, **changes), file)
        spent, sent = Journal(file).spent, len(server.requests)
        assert most(spent)
        assert 1 <= sent < 6
        with pytest.raises(EndpointError, match="stopped by the budget"):  # also by what was spent before
            played(quick(server.url, **changes), file)
        assert len(server.requests) == sent
        rollouts = played(quick(server.url), file)
        assert len(server.requests) == 6
        assert all(attempt.grade.correct for rollout in rollouts for attempt in rollout.attempts)


def test_a_budget_is_waited_for_in_every_call() -> None:
    budget, part = Budget(Endpoint("http://localhost/v1", max_tokens_total=10)), Spent(6)

    async def call() -> None:
        await budget.hold(part)
        second = asyncio.create_task(budget.hold(part))
        await asyncio.sleep(0)
        assert not second.done()
        budget.settle(part, Spent())
        await second
        budget.settle(part, Spent())

    for _ in range(2):
        asyncio.run(call())
