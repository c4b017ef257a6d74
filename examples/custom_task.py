"""A whole task of one's own: reverse a word. Named in a recipe as

    task:
      name: custom
      file: examples/custom_task.py
      options: {letters: 5, count: 200}

`selfcorrect check RECIPE` reads the recipe, `selfcorrect train RECIPE` trains on it. docs/tasks.md has the rules; in
place of grade(problem, text) there may be grade_many(problems, texts), which gets all answers at hand in one call.
"""

import random
from typing import Any

from selfcorrect.types import Grade, Outcome


def problems(split: str, options: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows with `id` and `prompt`; the rest is what grade() needs. Train and test must not share an id."""
    draw = random.Random(f"reverse {split}")  # the same rows at every call: a resumed run must find them again
    words = {"".join(draw.choices("abcdefgh", k=options.get("letters", 4))) for _ in range(options.get("count", 50))}
    share = [word for word in sorted(words) if (sum(map(ord, word)) % 5 == 0) == (split == "test")]
    return [
        {"id": word, "prompt": f"Write {word} backwards, and nothing else.", "answer": word[::-1]} for word in share
    ]


def correction_prompt(problem: dict[str, Any]) -> str:
    """What asks for the next attempt. It gets the problem and never the verdict."""
    return "Check each letter, then write the word backwards once more, and nothing else."


def grade(problem: dict[str, Any], text: str) -> float | Grade:
    """1 where it is right, less where a part is; or a Grade, to tell why. Expect anything: the model wrote the text."""
    found, answer = text.strip()[:1000], problem["answer"]
    if not found:
        return Grade(Outcome.NO_ANSWER, 0.0)
    if found == answer:
        return 1.0
    return 0.5 * sum(map(str.__eq__, found, answer)) / max(len(found), len(answer))
