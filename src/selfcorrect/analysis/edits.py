"""How much attempt 2 changes (Fig. 4): edit distance over the total length of both answers."""

from collections.abc import Mapping, Sequence

import numpy as np
from rapidfuzz.distance import Levenshtein

from selfcorrect.analysis.charts import histogram
from selfcorrect.analysis.figure import Figure
from selfcorrect.types import Rollout

BINS = 20
_COLOURS = ("c1", "c2", "c3", "c4")


def edit_ratio(first: str, second: str) -> float:
    """Levenshtein distance in characters / (len(first) + len(second)): 0 for a copy, at most 1."""
    total = len(first) + len(second)
    return Levenshtein.distance(first, second) / total if total else 0.0


def edit_figure(name: str, title: str, groups: Mapping[str, Sequence[Rollout]]) -> Figure | None:
    """Histograms of the ratio between attempt 1 and the last, one for each group with rollouts of several attempts."""
    ratios = {
        label: [
            edit_ratio(each.attempts[0].completion.text, each.attempts[-1].completion.text)
            for each in rollouts
            if len(each.attempts) > 1
        ]
        for label, rollouts in groups.items()
    }
    ratios = {label: values for label, values in ratios.items() if values}
    if not ratios:
        return None
    edges = [index / BINS for index in range(BINS + 1)]
    counts = {label: np.histogram(values, edges)[0].tolist() for label, values in ratios.items()}
    shares = [
        (f"{label} (n = {len(ratios[label]):,})", colour, [count / len(ratios[label]) for count in counts[label]])
        for (label, colour) in zip(ratios, _COLOURS, strict=False)
    ]
    rows = [
        {"bin_low": edges[i], "bin_high": edges[i + 1], "group": label, "count": counts[label][i],
         "share": counts[label][i] / len(ratios[label])}
        for label in ratios for i in range(BINS)
    ]  # fmt: skip
    copies = "; ".join(
        f"{label}: {sum(v == 0 for v in vs) / len(vs):.1%} copied to the letter" for label, vs in ratios.items()
    )
    caption = (
        "Edit distance between the first and the last attempt over the length of both, in characters: 0 is a copy. "
        f"{copies}."
    )
    return Figure(name, title, caption, histogram(title, "edit-distance ratio", edges, shares), rows)
