"""Rollouts for the browser of the page: sorted by what became of the answer, and few enough to embed.

The page must stay small enough to send around, so each category of each source keeps an evenly spread part
within its share of one budget; the totals are kept, so the page can say how many of how many it shows.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from selfcorrect.errors import DataError
from selfcorrect.evaluation.metrics import LEFT_OUT
from selfcorrect.types import Outcome

CATEGORIES = ("fixed", "broken", "kept_right", "kept_wrong", "left_out")
PER_CATEGORY = 300
BUDGET = 1_600_000  # characters of JSON over all sources: the page stays under 2 MB
MAX_TEXT = 6000  # longer texts are cut in the middle, and say so


@dataclass(frozen=True, slots=True)
class RolloutSource:
    """Rollouts of one file. totals: how many of each category the file holds; items: those embedded, in file order."""

    label: str
    totals: Mapping[str, int]
    items: tuple[Mapping[str, Any], ...]


@dataclass(slots=True)
class _Spread:
    """An evenly spread part of a stream of unknown length, in little memory.

    Keeps every stride-th entry, and doubles the stride whenever it holds twice what is wanted.
    """

    wanted: int
    seen: int = 0
    stride: int = 1
    kept: list[tuple[int, dict[str, Any]]] = field(default_factory=list)

    def add(self, order: int, item: dict[str, Any]) -> None:
        if self.seen % self.stride == 0:
            self.kept.append((order, item))
            if len(self.kept) > 2 * self.wanted:
                self.kept = self.kept[::2]
                self.stride *= 2
        self.seen += 1

    def size(self) -> float:
        """The mean length of an entry as the page embeds it."""
        return sum(len(script_json(item)) for _, item in self.kept) / max(1, len(self.kept))

    def take(self, budget: float) -> list[tuple[int, dict[str, Any]]]:
        """At most `wanted` entries, evenly spread, and so few that they fit the budget; at least one."""
        if not self.kept:
            return []
        count = max(1, min(self.wanted, len(self.kept), math.floor(budget / self.size())))
        return [self.kept[i * len(self.kept) // count] for i in range(count)]


def script_json(data: object) -> str:
    """JSON that no HTML parser can take for markup, whatever it holds; ASCII, so lone surrogates survive too."""
    text = json.dumps(data, ensure_ascii=True, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def read_sources(files: Sequence[tuple[str, Path]], notes: list[str]) -> tuple[RolloutSource, ...]:
    """Read (label, file) pairs, sharing one budget; damaged lines are noted and skipped."""
    read = [(label, _read(path, notes)) for label, path in files]
    spreads = [spread for _, of_file in read for spread in of_file.values() if spread.seen]
    ceiling = _ceiling([min(PER_CATEGORY, len(s.kept)) * s.size() for s in spreads], BUDGET)
    sources = []
    for label, of_file in read:
        chosen = sorted((entry for s in of_file.values() for entry in s.take(ceiling)), key=lambda entry: entry[0])
        totals = {name: spread.seen for name, spread in of_file.items()}
        sources.append(RolloutSource(label, totals, tuple(item for _, item in chosen)))
    return tuple(sources)


def _ceiling(sizes: Sequence[float], budget: float) -> float:
    """The largest cap under which the sizes fit the budget together: what small ones leave over, large ones get."""
    left = budget
    for index, size in enumerate(ordered := sorted(sizes)):
        share = left / (len(ordered) - index)
        if size > share:
            return share
        left -= size
    return budget


def _read(path: Path, notes: list[str]) -> dict[str, _Spread]:
    spreads = {name: _Spread(PER_CATEGORY) for name in CATEGORIES}
    damaged: list[int] = []
    number = 0
    for number, line in _lines(path):
        item = _item(line)
        if item is None:
            damaged.append(number)
        else:
            spreads[item["category"]].add(number, item)
    damaged = [position for position in damaged if position != number]  # the last may be in the writing
    if damaged:
        notes.append(f"{path.name}: {len(damaged)} damaged lines left out, the first is line {damaged[0]}.")
    return spreads


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            yield from ((number, line) for number, line in enumerate(file, 1) if line.strip())
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None


def _item(line: str) -> dict[str, Any] | None:
    """One line -> what the page embeds of it; None where it cannot be read."""
    try:
        row = json.loads(line)
        attempts = [_attempt(attempt) for attempt in row["attempts"]]
        if not attempts:
            return None
        item = {
            "id": str(row.get("id", "")),
            "prompt": _clip(str(row.get("prompt", ""))),
            "reference": _reference(row.get("reference")),
            "category": category([attempt["outcome"] for attempt in attempts]),
            "attempts": attempts,
        }
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    if "step" in row:
        item["when"] = f"{row.get('stage', '')} · step {row['step']}".lstrip(" ·")
    return item


def _attempt(attempt: Mapping[str, Any]) -> dict[str, str]:
    texts = {key: str(attempt.get(key) or "") for key in ("answer", "detail")}
    return {
        "text": _clip(str(attempt["text"])),
        "outcome": str(attempt["outcome"]),
        **{k: v[:400] for k, v in texts.items()},
    }


def category(outcomes: list[str]) -> str:
    """What became of the answer between the first and the last attempt, by the rules of metrics.summarize."""
    if any(outcome in LEFT_OUT for outcome in outcomes):
        return "left_out"
    first, last = (outcomes[i] == Outcome.CORRECT for i in (0, -1))
    if first:
        return "kept_right" if last else "broken"
    return "fixed" if last else "kept_wrong"


def _reference(reference: Any) -> str:
    if isinstance(reference, dict):
        parts = (f"{k}: {' '.join(map(str, v)) if isinstance(v, list) else v}" for k, v in reference.items())
        return " · ".join(parts)[:400]
    return "" if reference is None else str(reference)[:400]


def _clip(text: str) -> str:
    half = MAX_TEXT // 2
    return (
        text if len(text) <= MAX_TEXT else f"{text[:half]}\n[… {len(text) - 2 * half} characters cut …]\n{text[-half:]}"
    )
