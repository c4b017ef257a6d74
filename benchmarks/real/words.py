"""Word problems of one or two steps, for models that are too small for GSM8K: a folder with train.jsonl and test.jsonl.

    python benchmarks/real/words.py FOLDER [--train 4000] [--test 1000] [--seed 0]

Rows are of GSM8K's shape ("question", "answer" that ends in `#### N`), so that `task.name=math`, `task.dataset=gsm8k`,
`task.data=FOLDER` train and evaluate on them. Each row names its kind. No question stands in both files.
"""

import argparse
import json
import random
from collections.abc import Callable
from pathlib import Path

NAMES = ("Ada", "Ben", "Chen", "Dora", "Emil", "Farah", "Goro", "Hana", "Ivo", "Juna", "Karl", "Lina")
THINGS = ("apples", "books", "stamps", "marbles", "pencils", "shells", "coins", "cards", "stickers", "plums")
Made = tuple[str, str, int]  # question, working, result
Kind = Callable[[random.Random], Made]


def gain(draw: random.Random) -> Made:
    name, thing, a, b = draw.choice(NAMES), draw.choice(THINGS), draw.randint(11, 89), draw.randint(11, 89)
    return f"{name} has {a} {thing} and gets {b} more. How many {thing} does {name} have now?", f"{a} + {b}", a + b


def loss(draw: random.Random) -> Made:
    name, thing, b, rest = draw.choice(NAMES), draw.choice(THINGS), draw.randint(11, 59), draw.randint(11, 59)
    a = b + rest
    return f"{name} has {a} {thing} and gives away {b}. How many {thing} are left?", f"{a} - {b}", rest


def boxes(draw: random.Random) -> Made:
    name, thing, a, b = draw.choice(NAMES), draw.choice(THINGS), draw.randint(3, 12), draw.randint(6, 19)
    return f"{name} fills {a} boxes with {b} {thing} each. How many {thing} is that?", f"{a} * {b}", a * b


def share(draw: random.Random) -> Made:
    thing, a, each = draw.choice(THINGS), draw.randint(3, 9), draw.randint(4, 19)
    return f"{a * each} {thing} are shared equally by {a} children. How many does each get?", f"{a * each} / {a}", each


def price(draw: random.Random) -> Made:
    name, a, b, extra = draw.choice(NAMES), draw.randint(2, 9), draw.randint(3, 15), draw.randint(5, 40)
    text = f"{name} buys {a} tickets at {b} dollars each and a map for {extra} dollars. How many dollars is that?"
    return text, f"{a} * {b} + {extra}", a * b + extra


def twice(draw: random.Random) -> Made:
    (one, two), thing = draw.sample(NAMES, 2), draw.choice(THINGS)
    a, b = draw.randint(6, 40), draw.randint(3, 25)
    text = f"{one} has {a} {thing}. {two} has {b} more than {one}. How many {thing} do they have together?"
    return text, f"{a} + {a} + {b}", 2 * a + b


def minutes(draw: random.Random) -> Made:
    name, a, b = draw.choice(NAMES), draw.randint(2, 9), draw.randint(5, 55)
    text = f"{name} is on the road for {a} hours and {b} minutes. How many minutes is that?"
    return text, f"{a} * 60 + {b}", 60 * a + b


def weeks(draw: random.Random) -> Made:
    name, a, b = draw.choice(NAMES), draw.randint(2, 19), draw.randint(1, 6)
    return f"{name} is away for {a} weeks and {b} days. How many days is that?", f"{a} * 7 + {b}", 7 * a + b


KINDS: dict[str, Kind] = {kind.__name__: kind for kind in (gain, loss, boxes, share, price, twice, minutes, weeks)}


def rows(count: int, seed: int, taken: set[str]) -> list[dict[str, str]]:
    """`count` rows, kind after kind, none of whose questions is in `taken`; theirs are added to it."""
    draw, names = random.Random(f"words {seed}"), list(KINDS)
    made: list[dict[str, str]] = []
    while len(made) < count:
        kind = names[len(made) % len(names)]
        question, working, result = KINDS[kind](draw)
        if question not in taken:
            taken.add(question)
            made.append({"question": question, "answer": f"{working} = {result}\n#### {result}", "kind": kind})
    return made


def main(arguments: list[str] | None = None) -> None:
    """Write both files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--train", type=int, default=4000)
    parser.add_argument("--test", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    options.folder.mkdir(parents=True, exist_ok=True)
    taken: set[str] = set()
    for name, count, seed in (("test", options.test, 2 * options.seed), ("train", options.train, 2 * options.seed + 1)):
        text = "".join(json.dumps(row) + "\n" for row in rows(count, seed, taken))
        (options.folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    print(f"{options.test} test and {options.train} training problems of {len(KINDS)} kinds in {options.folder}")


if __name__ == "__main__":
    main()
