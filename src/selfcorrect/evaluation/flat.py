"""Rows as trackers and tables of data want them: one level deep (pure)."""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from selfcorrect.types import Rollout


def flat(row: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings and lists, one entry an attempt -> {"rewards/t1": 0.4, "rewards/t2": 0.5, ...}."""
    found: dict[str, Any] = {}
    for key, value in row.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            found |= flat(value, f"{name}/")
        elif isinstance(value, list | tuple):
            found |= flat({f"t{number}": item for number, item in enumerate(value, 1)}, f"{name}/")
        else:
            found[name] = value
    return found


def flat_rollout(row: Mapping[str, Any]) -> dict[str, Any]:
    """A line of a file of rollouts -> {"id", "prompt", "t1/text", "t1/outcome", ..., "t2/text", ...}.

    reference stays as it is: its lists are the task's, and no attempts.
    """
    rest = {key: value for key, value in row.items() if key != "attempts"}
    return rest | flat({f"t{number}": attempt for number, attempt in enumerate(row["attempts"], 1)})


def rollout_row(rollout: Rollout) -> dict[str, Any]:
    """A rollout as a plain row: texts and grades, no token ids."""
    return {
        "id": rollout.problem.id,
        "prompt": rollout.problem.prompt,
        "reference": dict(rollout.problem.reference),
        "attempts": [
            {
                "text": attempt.completion.text,
                **dataclasses.asdict(attempt.grade),
                **({"feedback": attempt.feedback} if attempt.feedback else {}),
            }
            for attempt in rollout.attempts
        ],
    }


def rollout_rows(rollouts: Iterable[Rollout]) -> Iterator[dict[str, Any]]:
    """A row a rollout; of a problem's second sample and later ones it says which sample they are."""
    seen = Counter[str]()
    for rollout in rollouts:
        seen[rollout.problem.id] += 1
        sample = seen[rollout.problem.id]
        yield rollout_row(rollout) | ({"sample": sample} if sample > 1 else {})
