"""A policy small enough to enumerate, and the exact gradients of every objective on it.

One table row of logits for each context (everything before a token, earlier attempts included), float64. Nothing
here uses the code under test except its record types: the exact gradients come from summing over all rollouts.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from selfcorrect.config import STAGE_KINDS, RLStage
from selfcorrect.learning.credit import credit_of
from selfcorrect.learning.objectives import Credit
from selfcorrect.learning.record import Progress
from selfcorrect.types import Attempt, Completion, Grade, Outcome, Problem, Rollout

BETA1, BETA2, ALPHA = 0.3, 0.5, 10.0
Ids = tuple[int, ...]


@dataclass(frozen=True)
class Toy:
    """paths_B: every rollout as its attempts' tokens. C contexts, V tokens; C includes one for foreign prefixes."""

    vocabulary: int
    temperature: float
    paths_B: tuple[tuple[Ids, ...], ...]
    contexts: dict[Ids, int]
    logits_CV: Tensor
    ref_logits_CV: Tensor
    rewards_BA: Tensor

    def context_ids(self, path: Sequence[Ids], attempt: int) -> Ids:
        """`x_a`: prompt, earlier attempts, and a correction turn after each."""
        prompt, correction = self.vocabulary, self.vocabulary + 1
        earlier = [(*ids, correction, correction) for ids in path[:attempt]]
        return (prompt, *itertools.chain.from_iterable(earlier))

    def logprob(self, table_CV: Tensor, path: Sequence[Ids], attempt: int) -> Tensor:
        """log pi(y_a | x_a) of the tempered policy."""
        prefix, terms = self.context_ids(path, attempt), []
        for token in path[attempt]:
            terms.append(table_CV[self.contexts[prefix], token])
            prefix = (*prefix, token)
        return torch.stack(terms).sum()

    def tempered(self, logits_CV: Tensor) -> Tensor:
        scaled_CV = logits_CV / self.temperature
        return scaled_CV - scaled_CV.exp().sum(-1, keepdim=True).log()

    def probabilities_B(self) -> Tensor:
        table_CV, attempts = self.tempered(self.logits_CV), range(self.rewards_BA.shape[1])
        logprobs_BA = [torch.stack([self.logprob(table_CV, path, a) for a in attempts]) for path in self.paths_B]
        return torch.stack(logprobs_BA).sum(1).exp()

    def rollouts(self) -> list[Rollout]:
        """Every rollout as the sampler would hand it over."""
        problem = Problem("toy", "toy", "", {})
        rollouts = []
        for path, rewards in zip(self.paths_B, self.rewards_BA.tolist(), strict=True):
            attempts = tuple(
                Attempt(
                    self.context_ids(path, a),
                    Completion(ids, (0.0,) * len(ids), "", "stop"),
                    Grade(Outcome.CORRECT if rewards[a] else Outcome.WRONG, rewards[a]),
                )
                for a, ids in enumerate(path)
            )
            rollouts.append(Rollout(problem, attempts))
        return rollouts


def make_toy(
    vocabulary: int,
    length: int,
    attempts: int,
    *,
    temperature: float = 1.0,
    eos: int | None = None,
    real_rewards: bool = False,
) -> Toy:
    """All rollouts of `attempts` attempts of at most `length` tokens; an attempt stops early at `eos`."""
    generator = torch.Generator().manual_seed(7)
    full = itertools.product(range(vocabulary), repeat=length)
    single = sorted({ids[: ids.index(eos) + 1] if eos in ids else ids for ids in full})
    paths = tuple(itertools.product(single, repeat=attempts))
    draft = Toy(vocabulary, temperature, paths, {}, torch.empty(0), torch.empty(0), torch.empty(0))
    prefixes = {
        (*draft.context_ids(path, a), *path[a][:end])
        for path in paths
        for a in range(attempts)
        for end in range(len(path[a]))
    }
    contexts = {prefix: row for row, prefix in enumerate(sorted(prefixes))}
    size = (len(contexts) + 1, vocabulary)
    logits_CV = torch.randn(size, generator=generator, dtype=torch.float64)
    ref_logits_CV = torch.randn(size, generator=generator, dtype=torch.float64)
    drawn: dict[tuple[Ids, ...], float] = {}
    for path, a in itertools.product(paths, range(attempts)):
        if path[: a + 1] not in drawn:
            value = torch.rand((), generator=generator, dtype=torch.float64).item()
            drawn[path[: a + 1]] = 4 * value - 2 if real_rewards else float(value < 0.5)
    rewards_BA = torch.tensor([[drawn[p[: a + 1]] for a in range(attempts)] for p in paths], dtype=torch.float64)
    return Toy(vocabulary, temperature, paths, contexts, logits_CV, ref_logits_CV, rewards_BA)


@dataclass(frozen=True)
class Objective:
    """stage: what a recipe names, at a step. pay and beta: the same objective written down again from its equation.

    pay(rewards) -> what each attempt earns itself, before gamma; beta(A) -> each attempt's KL weight.
    """

    stage: RLStage
    pay: Callable[[Sequence[float]], list[float]]
    beta: Callable[[int], list[float]]
    gamma: float = 0.0
    step: int = 0

    def credit(self, rewards_BA: Tensor) -> Credit:
        """The code under test."""
        return credit_of(self.stage, rewards_BA, Progress(stage_step=self.step))


def shaped(r: Sequence[float]) -> list[float]:
    """Eq. 4 and the bonus: r_1, then (1 + alpha) r_a - alpha r_{a-1}."""
    return [r[0], *[(1 + ALPHA) * later - ALPHA * earlier for earlier, later in itertools.pairwise(r)]]


def everywhere(attempts: int) -> list[float]:
    return [BETA1] * attempts


def stage(objective: str, **settings: float | str) -> RLStage:
    """As a recipe names it."""
    given = {"name": "toy", "steps": 10, "learning_rate": 1.0, "beta1": BETA1, **settings}
    made = STAGE_KINDS[objective].model_validate({"objective": objective, **given})
    assert isinstance(made, RLStage)
    return made


OBJECTIVES: dict[str, Objective] = {
    "stage_one": Objective(
        stage("stage1", beta2=BETA2),
        lambda r: [0.0, *r[1:]],
        lambda attempts: [BETA1 + BETA2, *[BETA1] * (attempts - 1)],
    ),
    "stage_two": Objective(stage("stage2", alpha=ALPHA), shaped, everywhere),
    "stage_two_gamma": Objective(stage("stage2", alpha=ALPHA, gamma=0.8), shaped, everywhere, 0.8),
    "annealed": Objective(
        stage("annealed", beta2=BETA2, alpha=ALPHA, begin=0.0, end=1.0),
        lambda r: [0.3 * r[0], *[0.7 * r[a] + 0.3 * shaped(r)[a] for a in range(1, len(r))]],
        lambda attempts: [BETA1 + 0.7 * BETA2, *[BETA1] * (attempts - 1)],
        step=3,
    ),
    "single_turn": Objective(
        stage("single_turn"), lambda r: [r[0], *[0.0] * (len(r) - 1)], lambda attempts: [BETA1, *[0.0] * (attempts - 1)]
    ),
    "multi_turn_last": Objective(stage("multi_turn"), lambda r: [*[0.0] * (len(r) - 1), r[-1]], everywhere),
    "multi_turn_all": Objective(stage("multi_turn", rewarded="all"), list, everywhere),
    "multi_turn_gamma": Objective(stage("multi_turn", rewarded="all", gamma=0.8), list, everywhere, 0.8),
}


def exact_gradient(toy: Toy, objective: Objective) -> Tensor:
    """d/d logits of sum_a E_{x_a}[ E_{y_a ~ pi(.|x_a)} [ R_a - beta_a log pi(y_a|x_a)/ref(y_a|x_a) ] ]  [C, V].

    The distribution of contexts x_a is held fixed (per-attempt credit). With gamma > 0,
    R_a = pay_a + gamma * E_{later attempts}[R_{a+1}], the later attempts' distribution held fixed as well: attempt a
    is paid for how its own tokens change what later attempts earn, and their KL is never passed back.
    So attempt a's objective is the sum over rollouts of pi(y_a|x_a), differentiated, times the other attempts'
    probabilities, held fixed, times what it is paid in that rollout.
    """
    logits_CV = toy.logits_CV.clone().requires_grad_()
    table_CV, ref_CV = toy.tempered(logits_CV), toy.tempered(toy.ref_logits_CV)
    attempts = range(toy.rewards_BA.shape[1])
    beta, value = objective.beta(len(attempts)), torch.zeros((), dtype=torch.float64)
    for path, rewards in zip(toy.paths_B, toy.rewards_BA.tolist(), strict=True):
        pay, logprobs = objective.pay(rewards), [toy.logprob(table_CV, path, a) for a in attempts]
        for a in attempts:
            paid = sum(objective.gamma ** (k - a) * pay[k] for k in attempts[a:])
            others = (torch.stack(logprobs).sum() - logprobs[a]).detach().exp()
            log_ratio = logprobs[a] - toy.logprob(ref_CV, path, a)
            value = value + others * logprobs[a].exp() * (paid - beta[a] * log_ratio)
    (gradient_CV,) = torch.autograd.grad(value, logits_CV)
    return gradient_CV
