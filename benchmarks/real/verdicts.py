"""What second attempts at countdown say of the first, and what comes of it: of evaluated models, and as they train.

    python benchmarks/real/verdicts.py OUT [--steps 10]      # OUT: a folder of run.py --task countdown

A model of warm_up_countdown.py opens its second attempt with `Right. I keep it.` or the like. A line for each model and
decoding, and for every so many training steps of each arm: how often the verdict is true of right and of wrong first
attempts, how often what was called right or wrong is kept, and how often a change comes out right.
"""

import argparse
import gzip
import json
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REMARK = re.compile(r"(Right|Wrong)\. I (keep|change) it\.")


@dataclass(frozen=True, slots=True)
class Said:
    """Of one rollout. called: whether the second attempt calls the first right; kept: whether it says that it keeps it.

    Both None where it opens with no remark of the form.
    """

    first_right: bool
    last_right: bool
    called: bool | None
    kept: bool | None


def said(row: dict[str, Any]) -> Said:
    """row: of texts/, or of an arm's rollouts/."""
    first, last = row["attempts"][0], row["attempts"][-1]
    found = REMARK.match(last["text"])
    called, kept = (found[1] == "Right", found[2] == "keep") if found else (None, None)
    return Said(first["outcome"] == "correct", last["outcome"] == "correct", called, kept)


def told(name: str, rows: list[Said]) -> str:
    """A line of shares, each with the number that it is of."""
    clear = [row for row in rows if row.called is not None]
    right, wrong = ([row for row in clear if row.first_right is side] for side in (True, False))
    called_right, called_wrong = ([row for row in clear if row.called is side] for side in (True, False))
    return (
        f"{name}: {len(rows)} rollouts, {len(rows) - len(clear)} without a remark; called right: "
        f"{share(row.called for row in right)} of right first attempts, {share(row.called for row in wrong)} of wrong; "
        f"kept: {share(row.kept for row in called_right)} of those called right, "
        f"{share(row.kept for row in called_wrong)} of those called wrong; right after a change: "
        f"{share(row.last_right for row in wrong if not row.kept)} of wrong first attempts"
    )


def share(values: Iterable[bool | None]) -> str:
    """Percent, and of how many."""
    listed = list(values)
    return f"{100 * sum(map(bool, listed)) / len(listed):.0f} % ({len(listed)})" if listed else "none"


def rows_of(files: Iterable[Path]) -> list[Said]:
    found = []
    for file in files:
        with gzip.open(file, "rt", encoding="utf-8") as lines:
            found += [said(json.loads(line)) for line in lines]
    return found


def lines(output: Path, steps: int) -> Iterator[str]:
    """Evaluated models first, each decoding but repair, whose first attempts are given; then the arms' steps."""
    names = sorted({tuple(file.name.split(".")[:2]) for file in (output / "texts").glob("*.jsonl.gz")})
    for model, decoding in names:
        if decoding != "repair":
            files = sorted((output / "texts").glob(f"{model}.{decoding}.*.jsonl.gz"))
            yield told(f"{model}, {decoding}", rows_of(files))
    for arm in sorted((output / "arms").glob("*/rollouts")):
        files = sorted(arm.glob("step-*.jsonl.gz"))
        if arm.parent.name.startswith("single_turn"):
            continue  # no second attempts
        for start in range(0, len(files), steps):
            chunk = files[start : start + steps]
            yield told(f"{arm.parent.name}, steps {start + 1} to {start + len(chunk)}", rows_of(chunk))


def main(arguments: list[str] | None = None) -> int:
    """Exit status 0, or 2 where the folder holds no texts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--steps", type=int, default=10)
    options = parser.parse_args(arguments)
    found = list(lines(options.output, options.steps))
    if not found:
        print(f"error: {options.output} holds no texts/ and no arms/; name an --output of run.py", file=sys.stderr)
        return 2
    print("\n".join(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
