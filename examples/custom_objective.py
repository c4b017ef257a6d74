"""A whole objective of one's own: SCoRe's Stage II, but to break a right answer costs more than to mend a wrong one
earns, and both weights grow over the first steps. Named in a recipe as

    stages:
      - {name: mine, objective: custom, file: examples/custom_objective.py, options: {mend: 5, break: 15, grows: 50},
         steps: 200, learning_rate: 5.0e-6, beta1: 0.01}

docs/methods.md has the rules.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from selfcorrect.learning.objectives import Credit
from selfcorrect.types import Rollout


def credit(rewards_BA: Tensor, rollouts: Sequence[Rollout], step: int, options: dict[str, Any]) -> Tensor | Credit:
    """What each attempt is paid [B, A]; its KL has the stage's beta1. B rollouts, A attempts; step: those done.

    Attempt a >= 2 earns its reward, and mend * (r_a - r_{a-1}) where it got better, break * (...) where it got worse.
    """
    grown = min(1.0, (step + 1) / options.get("grows", 1))
    change_BA = rewards_BA[:, 1:] - rewards_BA[:, :-1]
    weight_BA = torch.where(change_BA > 0, float(options["mend"]), float(options["break"]))
    paid_BA = rewards_BA.clone()
    paid_BA[:, 1:] += grown * weight_BA * change_BA
    return paid_BA
