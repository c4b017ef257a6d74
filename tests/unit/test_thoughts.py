"""Only what follows a thought is graded: other models' marks, thoughts left open, and marks that are quoted."""

from collections.abc import Sequence

import pytest

from selfcorrect.grading.thoughts import answer_part, grade_answers, is_mark, leaves_thought_open
from selfcorrect.types import Grade, Outcome, Problem

DRAFT, ANSWER = r"draft \boxed{1}", r"So \boxed{2}."
MARKS = [
    ("<think>", "</think>"),
    ("<think>\n", "\n</think>\n\n"),
    ("<THINK>", "</Think>"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<reasoning>", "</reasoning>"),
    ("<seed:think>", "</seed:think>"),
    ("<longcat_think>", "</longcat_think>"),
    ("<thinking_process>", "</thinking_process>"),
    ("<antThinking>", "</antThinking>"),
    ("<internal_monologue>", "</internal_monologue>"),
    ("<analysis>", "</analysis>"),
    ("<reflection>", "</reflection>"),
    ("< think >", "</ think >"),
    ("[THINK]", "[/THINK]"),
    ("◁think▷", "◁/think▷"),
    ("<unused94>thought\n", "<unused95>"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|think|>", "<|/think|>"),
    ("<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final<|message|>"),
    ("<|channel|>analysis<|message|>", "assistant<|channel|>final <|constrain|>JSON<|message|>"),  # as decoded here
    ("<|channel|>commentary to=functions.f <|constrain|>json<|message|>", "<|channel|>final<|message|>"),
    ("<|channel>analysis\n", "<channel|>"),
]


@pytest.mark.parametrize(("opening", "closing"), MARKS)
def test_the_marks_of_many_models(opening: str, closing: str) -> None:
    thought = f"{opening}{DRAFT}{closing}"
    texts = {
        f"{thought}{ANSWER}": ANSWER,
        f"Sure.\n{thought}{ANSWER}": ANSWER,
        f"{DRAFT}{closing}{ANSWER}": ANSWER,  # whoever recorded it began inside of the thought
        f"{thought}a {thought}{ANSWER}": f"a {ANSWER}",
        f"{opening}a {opening}{DRAFT}{closing} b{closing}{ANSWER}": ANSWER,
        f"{opening}{DRAFT}": "",  # it never closes
        f"{ANSWER}\n{opening}{DRAFT}": "",
        f"{ANSWER}\n{thought}": "",
        f"{thought}{ANSWER}\n{opening}{DRAFT}": ANSWER,
        thought: "",
        f"{thought}```python\nx = '{closing.strip()}'\n```": f"```python\nx = '{closing.strip()}'\n```",
    }
    assert {text: " ".join(answer_part(text).split()) for text in texts} == {
        text: " ".join(answer.split()) for text, answer in texts.items()
    }
    assert answer_part(f"{DRAFT}{closing}{ANSWER}", opened=True).strip() == ANSWER
    assert leaves_thought_open(f"</turn>\n<turn>assistant\n{opening}")
    assert not leaves_thought_open(f"</turn>\n<turn>assistant\n{thought}")


def test_a_draft_that_a_mark_touches_is_no_answer() -> None:
    assert answer_part(rf"\boxed{{5}}<think>{DRAFT}") == ""
    assert answer_part(rf"$5$<think>{DRAFT}") == ""
    assert answer_part(f"analysisWe have {DRAFT}.assistantfinal{ANSWER}") == ANSWER  # marks dropped by another decoder


CODE = (
    "```python\ndef f(t):\n    '''Cuts <think>...</think> out.'''\n    return re.sub(r'<think>.*?</think>', '', t)\n```"
)
FREE = "def f(t):\n    return re.sub(r'<think>.*?</think>', '', t)"


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (CODE, CODE),
        (FREE, FREE),
        (FREE.replace("'", '"'), FREE.replace("'", '"')),
        ("def f(t):\n    return t.split('</think>')[-1]", "def f(t):\n    return t.split('</think>')[-1]"),
        (f"<think>a</think>\n{CODE}", f"\n{CODE}"),
        (f'<think>Where is `</think>`? Or "</think>"?</think>{CODE}', CODE),
        ("<think>```python\ndraft = 1\n</think>\n" + CODE, "\n" + CODE),  # a draft that was not finished
        ("```python\ndraft = 1\n</think>\n" + CODE, "\n" + CODE),
        (r"The tag `</think>` ends it: \boxed{5}", r"The tag `</think>` ends it: \boxed{5}"),
        (r"The tags `<think>a</think>` mean \boxed{5}", r"The tags `<think>a</think>` mean \boxed{5}"),
        (r"Use the <think> tag. \boxed{5}", r"Use the <think> tag. \boxed{5}"),
        (r"It is \boxed{5}, as <think></think> is empty.", r"It is \boxed{5}, as  is empty."),
        (f"<think>Where is `</think>`? {DRAFT}", ""),
        (f"<think>a</think>{DRAFT}<think>b</think>c</think>{ANSWER}", ANSWER),
        (f"<think>They ask for <think> tags.</think>{ANSWER}", ANSWER),
        (f"It's 5.</think>That's it: {ANSWER}", f"That's it: {ANSWER}"),
        (f'It is "5".</think>"So": {ANSWER}', f'"So": {ANSWER}'),
        (f"{ANSWER}<|end|>", f"{ANSWER}<|end|>"),
        ("<think>a</think><answer>5</answer>", "<answer>5</answer>"),
        (r"if x <think of it>", r"if x <think of it>"),
        (ANSWER, ANSWER),
        ("", ""),
    ],
)
def test_a_mark_that_belongs_to_the_answer(text: str, answer: str) -> None:
    assert answer_part(text) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (DRAFT, ""),  # no mark at all
        ("", ""),
        (f"<think>{DRAFT}</think>{ANSWER}", ANSWER),  # opened again
        (f"```python\nx = '</think>'\n```\n</think>{ANSWER}", ANSWER),
        (f"a</think>{ANSWER}\n<think>{DRAFT}</think>", f"{ANSWER}\n"),
    ],
)
def test_a_thought_that_the_prompt_opened(text: str, answer: str) -> None:
    assert answer_part(text, opened=True) == answer


def test_a_vocabulary_s_marks() -> None:
    marks = {
        part for opening, closing in MARKS for part in (opening.strip(), closing.strip()) if "<|channel" not in part
    }
    marks |= {"<|channel|>", "<|message|>", "<unused94>"}
    assert all(map(is_mark, marks - {"<unused94>thought"}))
    assert not any(
        map(is_mark, ["<|end|>", "<eos>", "</s>", "<|im_end|>", "<|start|>", "<|return|>", "<unused93>", ""])
    )


def test_texts_are_graded_without_thoughts_whatever_the_task() -> None:
    seen: list[tuple[Problem, str]] = []

    def grade(answers: Sequence[tuple[Problem, str]]) -> list[Grade]:
        seen.extend(answers)
        return [Grade(Outcome.CORRECT, 1.0, text) for _, text in answers]

    problem = Problem("1", "custom", "Q", {})
    texts = [("<think>5", False), ("a</think>5", False), ("5", True), ("", False), ("5", False), (" ", True)]
    grades = grade_answers(grade, [(problem, text, opened) for text, opened in texts])
    assert [str(grade.outcome) for grade in grades] == [
        "no_answer", "correct", "no_answer", "correct", "correct", "no_answer",
    ]  # fmt: skip
    assert [text for _, text in seen] == ["5", "", "5"]
    assert grade_answers(grade, [(problem, "<think>", False)])[0].detail == "nothing follows the thoughts"
    assert len(seen) == 3  # a grader that has nothing to do is not asked


@pytest.mark.parametrize(
    "piece", ["<think>", "`</think>`", "```\n", "> > >", "<|channel|>final ", "<think> </think>", "<a:"]
)
def test_long_texts_are_read_in_linear_time(piece: str) -> None:
    """With quadratic time this would not end."""
    answer_part(piece * (100_000 // len(piece)))
