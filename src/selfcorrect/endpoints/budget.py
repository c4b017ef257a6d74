"""What may be spent, in tokens or money. Nothing is sent whose worst case does not fit."""

import asyncio
from dataclasses import dataclass

from selfcorrect.endpoints.settings import Endpoint


@dataclass(frozen=True, slots=True)
class Spent:
    """Tokens that were read and tokens that were written."""

    read: int = 0
    written: int = 0

    def __add__(self, other: "Spent") -> "Spent":
        return Spent(self.read + other.read, self.written + other.written)

    def __sub__(self, other: "Spent") -> "Spent":
        return Spent(self.read - other.read, self.written - other.written)

    @property
    def tokens(self) -> int:
        return self.read + self.written


class BudgetReached(Exception):  # noqa: N818 - says what happened
    """The next request might cost more than is left; the message says what is."""


class Budget:
    """Counts what is spent, and holds back the worst case of what is under way."""

    def __init__(self, endpoint: Endpoint, spent: Spent = Spent()) -> None:
        self.spent, self._held = spent, Spent()
        self._tokens, self._cost = endpoint.max_tokens_total, endpoint.max_cost
        self._prices = (endpoint.price_in or 0.0, endpoint.price_out or 0.0)
        self._priced = endpoint.price_in is not None or endpoint.price_out is not None
        self._freed = asyncio.Event()

    async def hold(self, worst: Spent) -> None:
        """Waits until `worst` fits beside what is under way. Raises BudgetReached where it never will."""
        while why := self._over(self.spent + self._held + worst):
            if self._over(self.spent + worst) or self._held == Spent():
                raise BudgetReached(f"{why}: {self.told()} spent, and the next request may take {self._amount(worst)}")
            await self._freed.wait()
        self._held += worst

    def settle(self, worst: Spent, charged: Spent) -> None:
        """What was held back for a request goes, and what it came to is spent."""
        self._held -= worst
        self.spent += charged
        freed, self._freed = self._freed, asyncio.Event()  # one that was waited for belongs to its call's loop
        freed.set()

    def told(self) -> str:
        """What is spent, in words."""
        return self._amount(self.spent)

    def _amount(self, of: Spent) -> str:
        money = f", cost {self._money(of):.4g}" if self._priced else ""
        return f"{of.read:,} tokens read and {of.written:,} written{money}"

    def _money(self, of: Spent) -> float:
        return (of.read * self._prices[0] + of.written * self._prices[1]) / 1e6

    def _over(self, all_of: Spent) -> str:
        if self._tokens is not None and all_of.tokens > self._tokens:
            return f"--max-tokens-total {self._tokens:,} is reached"
        if self._cost is not None and self._money(all_of) > self._cost:
            return f"--max-cost {self._cost:g} is reached"
        return ""
