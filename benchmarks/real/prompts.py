"""How base.py asks: first prompts, and three wordings of the correction prompt, none of which knows the grade."""

from collections.abc import Mapping, Sequence

from settings import CODE_PROMPT, COMPLETION_PROMPT

from selfcorrect.config import CodeConfig, MathConfig
from selfcorrect.types import Rollout

CODE, MATH = "code", "math"
FAMILY = {"humaneval": CODE, "mbpp": CODE, "gsm8k": MATH}
TRIED_ON = {CODE: "mbpp", MATH: "gsm8k"}  # whose training problems a family's wordings are tried on

WORDINGS = {
    CODE: {
        "default": CodeConfig(name="code").correction_prompt,
        "trace": (
            "Go through your program line by line for one example, and see what it returns. Change what "
            "does not come out right. Then write the whole program in one block of code."
        ),
        "afresh": (
            "Now solve the same task once more from the beginning, as if nothing had been written yet. Reply with the "
            "whole program in one block of code, and with nothing else."
        ),
    },
    MATH: {
        "default": MathConfig(name="math").correction_prompt,
        "trace": (
            "Compute every step of your solution again and compare the numbers. Keep what comes out the same, change "
            "what does not, and write the whole solution once more. {final_form}"
        ),
        "afresh": (
            "Now solve the same problem once more from the beginning, as if nothing had been written yet. {final_form}"
        ),
    },
}
RULE = "highest Accuracy@t2 on training problems; of equals the one that repeats fewer texts; then the first"

MATH_PROMPT = MathConfig(name="math").prompt

# Solved examples as earlier turns of the plain chat template, for models that know no turns but go on as a text does.
REPLY, NEXT = "\n\nAssistant:\n", "\n\nUser:\n"
MATH_EXAMPLES = (
    f"Problem: Tom has 4 bags with 6 nuts each and eats 5 nuts. How many nuts are left?{REPLY}"
    "The bags hold 4 * 6 = 24 nuts. Without the 5 that he eats, 24 - 5 = 19 are left.\n"
    f"Final answer: \\boxed{{{{19}}}}{NEXT}"
    f"Problem: A train leaves with 80 people. Half of them get off, and 12 get on. How many are on it now?{REPLY}"
    "Half of 80 is 80 / 2 = 40. With the 12 that get on, it is 40 + 12 = 52.\n"
    f"Final answer: \\boxed{{{{52}}}}{NEXT}"
)
CODE_EXAMPLE = f"Task: {{task}}\nTests:\n{{tests}}{REPLY}```python\n{{code}}\n```{NEXT}"
COMPLETION_EXAMPLES = "".join(
    f"Complete this function:\n```python\n{head}\n```{REPLY}```python\n{head}\n{body}\n```{NEXT}"
    for head, body in (
        (
            'def halves(numbers):\n    """The half of each number."""',
            "    return [number / 2 for number in numbers]",
        ),
        (
            'def longest(words):\n    """The first of the longest words; nothing where there is none."""',
            '    best = ""\n    for word in words:\n        if len(word) > len(best):\n            best = word\n'
            "    return best",
        ),
    )
)


def asked(dataset: str, shots: bool) -> dict[str, object]:
    """The settings of a task's first prompts. shots: solved examples first, for models without instruction tuning."""
    if FAMILY[dataset] == MATH:
        return {"prompt": f"{MATH_EXAMPLES}Problem: {{problem}}" if shots else MATH_PROMPT}
    if shots:
        last = "Complete this function:\n```python\n{code}\n```"
        return {
            "shots": 3,
            "example": CODE_EXAMPLE,
            "prompt": "{examples}Task: {task}\nTests:\n{tests}",
            "completion_prompt": COMPLETION_EXAMPLES + last,
        }
    return {"shots": 0, "prompt": CODE_PROMPT, "completion_prompt": COMPLETION_PROMPT}


def word_for_word(rollouts: Sequence[Rollout]) -> int:
    """How many last attempts have the first one's text."""
    return sum(r.attempts[0].completion.text == r.attempts[-1].completion.text for r in rollouts)


def chosen(tried: Mapping[str, Sequence[Rollout]]) -> str:
    """The wording that RULE takes. tried: the rollouts of each wording over the same training problems."""
    return max(tried, key=lambda name: (_right(tried[name]), -word_for_word(tried[name])))


def _right(rollouts: Sequence[Rollout]) -> int:
    return sum(rollout.attempts[-1].grade.correct for rollout in rollouts)
