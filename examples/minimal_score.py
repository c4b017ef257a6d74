"""SCoRe in one readable file: the loop of selfcorrect.learning.training without checkpoints, logs or recipes.

    python examples/minimal_score.py [--steps1 40] [--steps2 40] [--seed 0] [--problems 500]

Each line of a step is one arrow of the design:
    problems -> play -> grade -> credit -> advantages -> batch -> loss -> update
Axes: B rollouts, A attempts, T tokens, N trained tokens, V vocabulary.
"""

import argparse

import torch

from selfcorrect.config import CountdownConfig, ModelConfig
from selfcorrect.evaluation.metrics import summarize
from selfcorrect.lab.base import CORRECTION, PROMPT
from selfcorrect.learning.batching import make_batch
from selfcorrect.learning.losses import token_loss
from selfcorrect.learning.objectives import Credit, advantages_given_history, stage_one, stage_two
from selfcorrect.learning.policy import trained_states
from selfcorrect.models.language_model import LanguageModel
from selfcorrect.models.loading import load_model
from selfcorrect.rollout import play
from selfcorrect.samplers.transformers import TransformersSampler
from selfcorrect.seeds import derive_seed
from selfcorrect.tasks.countdown import Countdown
from selfcorrect.types import SamplingParams

GROUP, PROBLEMS, MAX_NEW_TOKENS = 8, 32, 16


def credit(stage: int, rewards_BA: torch.Tensor) -> Credit:
    """Stage I holds attempt 1 at the base model (Eq. 3); Stage II pays both, with the bonus (Eq. 4)."""
    if stage == 1:
        return stage_one(rewards_BA, beta1=0.003, beta2=0.3)
    return stage_two(rewards_BA, beta1=0.003, alpha=10.0)


def main() -> None:
    """Train the shipped lab model by both stages, and evaluate it before and after."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps1", type=int, default=40)
    parser.add_argument("--steps2", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--problems", type=int, default=500, help="held-out problems to evaluate on")
    options = parser.parse_args()

    policy = load_model(ModelConfig(path="lab"))
    reference = policy.frozen_copy()
    sampler = TransformersSampler(policy)
    task = Countdown(CountdownConfig(prompt=PROMPT, correction_prompt=CORRECTION))
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.0)

    evaluate(policy, sampler, task, options.problems)
    for step in range(1, options.steps1 + options.steps2 + 1):
        stage = 1 if step <= options.steps1 else 2
        problems = [problem for problem in task.draw(step, PROBLEMS, options.seed) for _ in range(GROUP)]
        params = SamplingParams(1.0, MAX_NEW_TOKENS, derive_seed(options.seed, "rollouts", step))
        sampler.load_weights(policy.model)
        rollouts = play(problems, task, sampler, policy.chat, params, attempts=2)

        rewards_BA = torch.tensor([[attempt.grade.reward for attempt in rollout.attempts] for rollout in rollouts])
        included_B = torch.ones(len(rollouts), dtype=torch.bool)
        paid = credit(stage, rewards_BA)
        advantages_BA = advantages_given_history(paid, rewards_BA, included_B, GROUP)
        batch = make_batch(rollouts, advantages_BA, paid.kl_coef_A, included_B).to(policy.device)

        with torch.no_grad():
            base = trained_states(reference, batch)
        loss_B = token_loss(trained_states(policy, batch), base, batch, temperature=1.0).loss_B
        optimizer.zero_grad()
        (loss_B.sum() / len(rollouts)).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        print(f"stage {stage} step {step}: rewards {[round(r, 3) for r in rewards_BA.mean(0).tolist()]}", flush=True)
    evaluate(policy, sampler, task, options.problems)


def evaluate(policy: LanguageModel, sampler: TransformersSampler, task: Countdown, count: int) -> None:
    """Two greedy attempts on held-out problems."""
    sampler.load_weights(policy.model)
    greedy = SamplingParams(0.0, MAX_NEW_TOKENS, 0)
    summary = summarize(play(task.held_out(count), task, sampler, policy.chat, greedy, attempts=2))
    accuracy = [f"{estimate.value:.1%}" for estimate in summary.accuracy]
    print(f"greedy: accuracy {accuracy}, i->c {summary.fixed.value:.1%}, c->i {summary.broken.value:.1%}")


if __name__ == "__main__":
    main()
