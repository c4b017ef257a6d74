"""A user's own objective in one Python file. docs/methods.md has the shape, examples/custom_objective.py a whole one.

The file is the user's and runs with the user's rights, in this process. It defines:

    credit(rewards_BA, rollouts, step, options)                  what each attempt is paid [B, A], or a Credit
    advantages(credit, rewards_BA, included_B, group, options)   optional: in the place of algorithm.baseline [B, A]

Axes: B rollouts, a problem's G standing together; A attempts.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from selfcorrect.config import OwnObjective, RolloutConfig
from selfcorrect.learning.objectives import Credit
from selfcorrect.seeds import derive_seed
from selfcorrect.tasks.own import OwnCode
from selfcorrect.types import Attempt, Completion, Grade, Outcome, Problem, Rollout


class Own:
    """The functions of a stage's file. Raises DataError where they fail, or give what cannot be trained on.

    seed, in both: of torch's draws inside.
    """

    def __init__(self, stage: OwnObjective) -> None:
        self._stage, self._options = stage, dict(stage.options)
        self._code = OwnCode(stage.file, f"stages.{stage.name}.file", "docs/methods.md")
        self.digest = self._code.digest
        self._credit = self._code.function("credit")
        self._advantages = self._code.optional("advantages")

    def credit(self, rewards_BA: Tensor, rollouts: Sequence[Rollout], step: int, seed: int) -> Credit:
        """step: how many steps of the stage are done."""
        with self._called(seed):
            paid = self._credit(rewards_BA.clone(), tuple(rollouts), step, dict(self._options))
        attempts = rewards_BA.shape[1]
        credit = paid if isinstance(paid, Credit) else Credit(paid, (self._stage.beta1,) * attempts)
        returns_BA = self._table("credit", credit.returns_BA, rewards_BA)
        known_BA = None if credit.known_BA is None else self._table("credit: known_BA", credit.known_BA, rewards_BA)
        try:
            weights = tuple(map(float, credit.kl_coef_A))
        except (TypeError, ValueError):
            weights = ()
        if len(weights) != attempts or not all(0 <= weight < float("inf") for weight in weights):
            got = f"{credit.kl_coef_A!r:.60}"
            raise self._code.wrong(f"credit: kl_coef_A must be {attempts} numbers of at least 0, got {got}")
        if any(weights) and not self._stage.beta1:
            raise self._code.wrong(
                f"credit: kl_coef_A = {weights} weighs a KL, but stages.{self._stage.name}.beta1 is 0, so there may be "
                "no reference; give the stage a beta1"
            )
        return Credit(returns_BA, weights, known_BA)

    def advantages(
        self, credit: Credit, rewards_BA: Tensor, included_B: Tensor, group: int, seed: int
    ) -> Tensor | None:  # fmt: skip
        """Those of rollouts that do not count are 0. None where the file leaves them to algorithm.baseline."""
        if self._advantages is None:
            return None
        with self._called(derive_seed(seed, "advantages")):
            found = self._advantages(credit, rewards_BA.clone(), included_B.clone(), group, dict(self._options))
        return self._table("advantages", found, rewards_BA) * included_B[:, None]

    def try_out(self, rollouts: RolloutConfig, problems: Sequence[Problem]) -> None:
        """On made-up attempts at two problems, with rewards of both kinds, before anything is loaded."""
        group, attempts = rollouts.rollouts_per_problem, rollouts.attempts
        rewards_BA = (torch.arange(2 * group * attempts).reshape(-1, attempts) % 3 == 0).float()
        made_up = [_made_up(problems[row // group], rewards) for row, rewards in enumerate(rewards_BA.tolist())]
        credit = self.credit(rewards_BA, made_up, 0, 0)
        self.advantages(credit, rewards_BA, torch.ones(len(rewards_BA), dtype=torch.bool), group, 0)

    @contextmanager
    def _called(self, seed: int) -> Iterator[None]:
        """The user's code runs: what it draws on the processor is of the seed, and what others draw is not."""
        with self._code.blamed(), torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            yield

    def _table(self, what: str, found: Any, like_BA: Tensor) -> Tensor:
        if not isinstance(found, Tensor) or found.shape != like_BA.shape:
            kind = f"a tensor of {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
            raise self._code.wrong(
                f"{what} must be a tensor of {tuple(like_BA.shape)}, rollouts x attempts; got {kind}"
            )
        if not found.isfinite().all():
            raise self._code.wrong(f"{what} holds what is no finite number")
        return found.detach().to(like_BA)


def own_objectives(
    stages: Sequence[Any], rollouts: RolloutConfig | None = None, problems: Sequence[Problem] = ()
) -> dict[str, Own]:
    """By stage. rollouts, problems: with these, of which there are two, they are tried out."""
    found = {stage.name: Own(stage) for stage in stages if isinstance(stage, OwnObjective)}
    for own in found.values():
        if rollouts:
            own.try_out(rollouts, problems)
    return found


def _made_up(problem: Problem, rewards: Sequence[float]) -> Rollout:
    def attempt(reward: float) -> Attempt:
        grade = Grade(Outcome.CORRECT if reward else Outcome.WRONG, reward, "1")
        return Attempt((1,), Completion((1, 2), (-1.0, -1.0), "made up", "stop"), grade)

    return Rollout(problem, tuple(map(attempt, rewards)))
