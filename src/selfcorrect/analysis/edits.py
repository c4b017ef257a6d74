"""How much attempt 2 changes (Fig. 4): edit distance over the total length of both answers."""

from collections.abc import Mapping, Sequence

from rapidfuzz.distance import Levenshtein

from selfcorrect.analysis.charts import histogram
from selfcorrect.analysis.figure import Figure
from selfcorrect.analysis.read import Row

BINS = 20
_COLOURS = ("c1", "c2", "c3", "c4")


def edit_ratio(first: str, second: str) -> float:
    """Levenshtein distance in characters / (len(first) + len(second)): 0 for a copy, at most 1."""
    total = len(first) + len(second)
    return Levenshtein.distance(first, second) / total if total else 0.0


def edit_figure(name: str, title: str, groups: Mapping[str, Sequence[Row]]) -> Figure | None:
    """Histograms of the ratio between attempt 1 and the last, one for each group with rollouts of several attempts."""
    ratios = {
        label: [edit_ratio(row.texts[0], row.texts[-1]) for row in rows if len(row.texts) > 1]
        for label, rows in groups.items()
    }
    ratios = {label: values for label, values in ratios.items() if values}
    if not ratios:
        return None
    edges = [index / BINS for index in range(BINS + 1)]
    counts = {label: _count(values) for label, values in ratios.items()}
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


def _count(values: Sequence[float]) -> list[int]:
    counts = [0] * BINS
    for value in values:
        counts[min(BINS - 1, int(value * BINS))] += 1
    return counts
