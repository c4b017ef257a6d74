"""A text without the thoughts that a model wrote down before its answer: only what follows them is graded.

`answer_part` reads the marks of many families of models; `grade_answers` is the one place through which every task's
texts pass before they are graded.
"""

import re
from collections.abc import Callable, Sequence

from selfcorrect.types import Grade, Outcome, Problem

_WORD = (
    r"(?:(?:ant)?think(?:ing)?(?:_process)?|thoughts?(?:_process)?|reason(?:ing)?|scratch_?pad|chain_of_thought|cot"
    r"|analysis|deliberation|reflection|(?:inner|internal)_(?:monologue|thoughts?))"
)
_NAME = rf"(?:(?!start|begin|end)[a-z]+[:_])?{_WORD}"
_OPENS = (
    rf"<\s?{_NAME}(?:\s[^<>\n]{{0,80}})?>",  # <think>, <thinking>, <reasoning>, <seed:think>
    rf"<\|?(?:begin|start)[_▁](?:of[_▁])?{_WORD}\|?>",  # <|begin_of_thought|>, <|START_THINKING|>
    rf"<\|(?:{_WORD}(?:_start)?|inner_prefix)\|>",
    r"\[think\]",  # Magistral
    r"◁think▷",  # Kimi
    r"<unused94>(?:thought\b)?",  # MedGemma
    r"<\|channel\|>\s*(?:analysis|commentary)\b[^\n]{0,120}?<\|message\|>",  # gpt-oss
    r"<\|channel>\s*(?:thought|analysis|commentary)\b(?:<message\|>)?",
)
_CLOSES = (
    rf"<\s?/\s?{_NAME}\s?>",
    rf"<\|?end[_▁](?:of[_▁])?{_WORD}\|?>",
    rf"<\|(?:/{_WORD}|{_WORD}_end|inner_suffix)\|>",
    r"\[/think\]",
    r"◁/think▷",
    r"<unused95>",
    r"(?:<\|start\|>\s*assistant\s*)?<\|channel\|>\s*final\b[^\n]{0,120}?<\|message\|>",
    r"<\|channel>\s*final\b(?:<message\|>)?|<channel\|>",
    r"assistantfinal",  # gpt-oss again, where another program's decoding dropped the special tokens
)
_MARK = re.compile(
    rf"(?P<opens>{'|'.join(_OPENS)})|(?P<closes>{'|'.join(_CLOSES)})"
    r"|(?:^[ \t>]*|(?<=[>\]▷]))(?P<fence>`{3,}|~{3,})(?P<info>[^`\n]*)$",
    re.IGNORECASE | re.MULTILINE,
)
_TOKENS = re.compile("|".join([*_OPENS, *_CLOSES, r"<\|(?:channel|message)\|>", r"<\|channel>", r"<message\|>"]), re.I)
_QUOTES = "'\"`"
_LINE = 200  # characters of its line that are looked at on either side of a mark
_SAYS_SO = re.compile(r"(?:^|[.:!?>)\]}$*])\s*\Z")  # what may stand before a thought; in mid-sentence a mark is a word

NOTHING_BUT_THOUGHTS = Grade(Outcome.NO_ANSWER, 0.0, "", "nothing follows the thoughts")


def is_mark(token: str) -> bool:
    """Whether a token of a vocabulary is a mark of thoughts, or a part of one: it must stay in a text."""
    return _TOKENS.fullmatch(token) is not None


def leaves_thought_open(text: str) -> bool:
    """Whether a text, such as a template's opening of a turn, ends inside of a thought."""
    marks = [mark for mark in _MARK.finditer(text) if not mark["fence"]]
    return bool(marks) and bool(marks[-1]["opens"])


def answer_part(text: str, *, opened: bool = False) -> str:
    """What follows the thoughts in a model's text and lies in none of them; all of a text without thoughts.

    opened: the prompt ended inside of a thought. Even where it did not, a mark that closes a thought which nothing
    opened makes all before it a thought. A mark in a block of code, in quotes or in backticks is part of the answer.
    """
    marks = list(_MARK.finditer(text))
    later = _later(marks)
    kept: list[str] = []
    inside, place, fence, thought = opened, 0, "", opened
    for mark, (closes_later, fence_ends) in zip(marks, later, strict=True):
        if mark["fence"]:
            fence = fence if inside else _fence_after(fence, mark)
        elif inside:
            if mark["closes"] and not _in_quotes(text, mark, both=True):
                inside, place, fence = False, mark.end(), ""
        elif (fence and fence_ends) or _in_quotes(text, mark):
            continue
        elif mark["closes"]:
            kept, place, fence, thought = [], mark.end(), "", True
        else:
            line = text[max(0, mark.start() - _LINE) : mark.start()].rpartition("\n")[2]
            first = _SAYS_SO.search(line) is not None
            if first or closes_later:
                kept += [text[place : mark.start()]] if thought or not first else []
                inside, thought = True, True
    return "".join([*kept, "" if inside else text[place:]])


def grade_answers(
    grade: Callable[[Sequence[tuple[Problem, str]]], list[Grade]], answers: Sequence[tuple[Problem, str, bool]]
) -> list[Grade]:
    """A task's grades of the answer parts of texts, in order.

    grade: the task's own. answers: problem, text, and whether the prompt ended inside of a thought. A text that holds
    nothing but thoughts is `no_answer`, whatever the task.
    """
    parts = [answer_part(text, opened=opened) for _, text, opened in answers]
    none_follows = [
        not part.strip() and (opened or bool(text.strip()))
        for part, (_, text, opened) in zip(parts, answers, strict=True)
    ]
    rest = [
        (problem, part) for (problem, _, _), part, none in zip(answers, parts, none_follows, strict=True) if not none
    ]
    grades = iter(grade(rest) if rest else [])
    return [NOTHING_BUT_THOUGHTS if none else next(grades) for none in none_follows]


def _later(marks: Sequence[re.Match[str]]) -> list[tuple[bool, bool]]:
    """For each mark: whether one that closes a thought comes later, and whether the next fence is one that closes."""
    found, closes, ends = [], False, False
    for mark in reversed(marks):
        found.append((closes, ends))
        closes = closes or bool(mark["closes"])
        ends = not mark["info"].strip() if mark["fence"] else ends
    return found[::-1]


def _fence_after(fence: str, mark: re.Match[str]) -> str:
    """The fence that is open after a line that looks like one."""
    if not fence:
        return mark["fence"]
    closes = mark["fence"].startswith(fence) and not mark["info"].strip()
    return "" if closes else fence


def _in_quotes(text: str, mark: re.Match[str], *, both: bool = False) -> bool:
    """Whether a mark is quoted: between quotes or backticks, or (unless both) anywhere within them on its line."""
    before, after = text[max(0, mark.start() - _LINE) : mark.start()], text[mark.end() : mark.end() + _LINE]
    last, following = before[-1:], after[:1]
    if last and last == following and last in _QUOTES:
        return True
    if both:
        return False
    before, after = before.rpartition("\n")[2], after.partition("\n")[0]
    # An apostrophe is a quote only where it touches the mark.
    touching = {"'"} & ({last} if mark["opens"] else {following})
    return any(before.count(quote) % 2 == 1 and quote in after for quote in {'"', "`"} | touching)
