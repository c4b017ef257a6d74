"""How much each baseline makes the gradient vary: benchmarks/results/baseline_variance_MODEL.json.

    python benchmarks/baseline_variance.py [--model lab] [--steps 24] [--seed 0]

Draws steps of the demo's size from one fixed policy, and computes each one's policy gradient (Stage II, no KL) from the
same rollouts with every baseline. Prints the trace of the gradient's covariance over steps, as a ratio to that of plain
leave-one-out, and the cosine between the mean gradients: baselines differ in noise, not in what they estimate.
"""

import argparse
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor
from workload import command_of, keep

from selfcorrect.config import CountdownConfig, StageTwo, TrainConfig
from selfcorrect.config.recipe import load_recipe
from selfcorrect.config.shipped import shipped_recipe
from selfcorrect.learning.batching import make_batch, micro_batches
from selfcorrect.learning.credit import advantages_of, credit_of
from selfcorrect.learning.losses import token_loss
from selfcorrect.learning.policy import trained_states
from selfcorrect.models.language_model import LanguageModel
from selfcorrect.models.loading import load_model
from selfcorrect.rollout import play
from selfcorrect.runs.checks import fitted
from selfcorrect.samplers.transformers import TransformersSampler
from selfcorrect.seeds import derive_seed
from selfcorrect.tasks.countdown import Countdown
from selfcorrect.types import Rollout, SamplingParams

RESULTS = Path(__file__).parent / "results"
BASELINES = ("leave_one_out", "leave_one_out_given_history", "none")


def main() -> None:
    """Gradients of every step and baseline, their covariance traces, the results file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="lab")
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    config = load_recipe(shipped_recipe("demo"), [f"model.path={options.model}", f"seed={options.seed}"])
    assert isinstance(config, TrainConfig)
    assert isinstance(config.task, CountdownConfig)
    lm, task = load_model(config.model), Countdown(config.task)
    config, _ = fitted(config, lm, task)
    sampler = TransformersSampler(lm)
    found: dict[str, list[Tensor]] = {baseline: [] for baseline in BASELINES}
    for step in range(1, options.steps + 1):
        stream = task.stream("train", derive_seed(config.seed, "variance", step))
        problems = list(islice(stream, config.rollouts.problems_per_step))
        params = SamplingParams(1.0, config.rollouts.max_new_tokens, derive_seed(config.seed, "variance draws", step))
        sampler.load_weights(lm.model)
        group = config.rollouts.rollouts_per_problem
        rollouts = play([p for p in problems for _ in range(group)], task, sampler, lm.chat, params, 2)
        for baseline in BASELINES:
            found[baseline].append(gradient(config, lm, rollouts, baseline))
    rows = summary({baseline: torch.stack(gradients) for baseline, gradients in found.items()})
    for baseline, row in rows.items():
        print(f"{baseline:28} variance {row['variance_ratio']:.3f} x leave_one_out's, cosine {row['cosine']:.3f}")
    model, packages = Path(options.model).name, ["selfcorrect", "torch", "transformers"]
    keep(
        RESULTS / f"baseline_variance_{model}.json", command_of(__file__, None), packages, seed=options.seed,
        model=model, steps=options.steps, baselines=rows,
    )  # fmt: skip


def gradient(config: TrainConfig, lm: LanguageModel, rollouts: list[Rollout], baseline: str) -> Tensor:
    """The flat gradient of one step's loss under Stage II without KL."""
    stage = StageTwo(name="stage2", objective="stage2", steps=1, learning_rate=1e-5, beta1=0.0)
    rewards_BA = torch.tensor([[attempt.grade.reward for attempt in rollout.attempts] for rollout in rollouts])
    everyone = torch.ones(len(rollouts), dtype=torch.bool)
    credit, algorithm = credit_of(stage, rewards_BA), config.algorithm.model_copy(update={"baseline": baseline})
    advantages_BA = advantages_of(algorithm, credit, rewards_BA, everyone, config.rollouts.rollouts_per_problem)
    batch = make_batch(rollouts, advantages_BA, credit.kl_coef_A, everyone)
    lm.model.zero_grad(set_to_none=True)
    for piece in micro_batches(batch, config.optimizer.rows):
        loss = token_loss(trained_states(lm, piece), None, piece, config.rollouts.temperature).loss_B.sum()
        (loss / len(rollouts)).backward()  # type: ignore[no-untyped-call]
    return torch.cat([torch.as_tensor(parameter.grad).flatten() for parameter in lm.parameters()])


def summary(gradients: dict[str, Tensor]) -> dict[str, dict[str, float]]:
    """Gradients [steps, weights] by baseline -> their covariance's trace and their mean's direction, against plain."""
    plain = gradients["leave_one_out"]
    trace = {baseline: float(g.var(0).sum()) for baseline, g in gradients.items()}
    return {
        baseline: {
            "variance": trace[baseline],
            "variance_ratio": trace[baseline] / trace["leave_one_out"],
            "cosine": float(torch.cosine_similarity(g.mean(0), plain.mean(0), dim=0)),
        }
        for baseline, g in gradients.items()
    }


if __name__ == "__main__":
    main()
