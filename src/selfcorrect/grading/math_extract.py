r"""Where an answer to a math problem stands in a text: regular expressions of linear cost, nothing evaluated.

A model declares its answer in one of four ways; the first of them that the text holds counts, and of several of the
same way the last (docs/grading.md):

1. the final form that the prompts ask for, ``Final answer: \boxed{...}``;
2. a balanced ``\boxed{...}`` or ``\fbox{...}``, or ``\boxed 2`` without braces;
3. GSM8K's ``#### ...`` at the start of a line, where it is no heading;
4. a closing sentence, ``The answer is ...`` or ``Final answer: ...``, with little text behind it.

Nothing else is an answer: no last equation, no last number.
"""

import re
from typing import Literal, NamedTuple

FINAL_FORM = r"End with one line of this form, with your answer in the box: Final answer: \boxed{...}"
"""The sentence that prompts give a model, so that its answer is found for certain."""

AFTER_SENTENCE = 200  # characters that may follow a closing sentence: what stands further up is a step, not the end
_READ = 4000  # characters that are searched for a sentence
_MARKER = re.compile(r"\\++(?:(?:boxed|fbox)(?![A-Za-z])\s*|[{}])?|[{}]")  # eats a run of backslashes whole: linear
_BARE = re.compile(r"-?\d+(?:\.\d+)?|[^\s\\${}.,;]")
_FORM_BEFORE = re.compile(r"final\s+answer\W{0,12}(?:\\pm\s*)?\Z", re.IGNORECASE)
_BULLET = r"\n[ \t]*(?:(?:[-*+\u2022]|\d{1,2}[.)])[ \t]+)?"
_SIGN_BEFORE, _SIGN_IN_DISPLAY = (  # of the box, not between two terms, and neither a dash nor the mark of a list
    re.compile(
        rf"(?:(?:[$=(\[{{:,&<>]|\\(?:le|ge|approx|text\{{[^{{}}]*\}})){gap}*(?P<math>[-\u2212]|\\pm)(?:\s|\\[,;:! ])*"
        rf"|(?:[A-Za-z]{{2}}[*:]*\s+|{_BULLET}|\A)(?:\*\*)?(?P<word>[-\u2212](?!\s)|\\pm)(?:\s|\\[,;:! ])*)\Z"
    )
    for gap in (r"[ \t]", r"\s")
)
_DISPLAYS = re.compile(r"(?<!\\)\\(?:[\[\]]|(?:begin|end)\{)")  # not the [ of a row's spacing, \\[4pt]
_MAY_END_SIGN = frozenset("-\u2212m,;:! \n")
_HEADING = re.compile(r"[#*_\s]*+(?:\(?\w{1,3}[.):]\s+)*+[*_]*+[A-Za-z]{2,}+(?!\()")  # `Step 2: Add`, `1. Add`
_GSM8K = re.compile(r"^[ \t]*#### ?(.*)$", re.MULTILINE)
_MARKUP = r"[\s*_}]{0,4}"  # **Answer**: 42
_SENTENCE = re.compile(
    r"(?<![A-Za-z\d])(?<![A-Za-z\d]_)(?:(?:the|my|our)\s+[*_]{0,3}(?:final\s+)?answer"
    rf"(?:[*_]{{0,3}}\s+[*_]{{0,3}}is\b|{_MARKUP}[:=\uff1a])"
    rf"|(?:final\s+)?answer{_MARKUP}[:\uff1a]|final\s+answer[*_]{{0,3}}\s+is\b)"
    r"[\s:\uff1a*_}]*",
    re.IGNORECASE,
)
_HOPE = re.compile(r"I hope (?:it|this) is correct", re.IGNORECASE)
_MATH = re.compile(r"\$\$((?:[^$\\]|\\.)+)\$\$|\$((?:[^$\\\n]|\\.)+)\$|\\\[(.+?)\\\]|\\\((.+?)\\\)", re.DOTALL)
_TOKEN = re.compile(r"<\|?/?[A-Za-z_]{1,30}\|?>")
_END = re.compile(r"\.(?=\s|\Z)|\u3002|\n")


class Found(NamedTuple):
    """An answer and the way it was declared: "final form", "box", "####", "sentence", or "" where there is none."""

    answer: str
    way: str


class _Box(NamedTuple):
    start: int
    answer: str


def boxes(text: str) -> list[_Box]:
    r"""Every balanced outermost box, in the order in which they end. An unbalanced box is none."""
    found: list[_Box] = []
    stack: list[int] = []  # for every open brace: where its box began, or -1
    after_box = -1
    end_of_marker = -1
    for match in _MARKER.finditer(text):
        token = match[0]
        if token.endswith(("{", "}")):
            if len(token) % 2 == 0:  # an odd number of backslashes: a printed brace
                continue
            if token[-1] == "{":
                stack.append(after_box if after_box >= 0 and match.end() - len(token) == end_of_marker else -1)
            elif stack:
                start = stack.pop()
                if start >= 0:
                    while found and found[-1].start > start:  # boxes within this one
                        found.pop()
                    found.append(_Box(start, text[text.index("{", start) + 1 : match.start()]))
            after_box = -1
            continue
        if token.rstrip().endswith("\\"):
            continue
        after_box, end_of_marker = match.start(), match.end()
        bare = _BARE.match(text, match.end())
        if bare:
            found.append(_Box(match.start(), bare[0]))
    return found


def _with_sign(text: str, box: _Box) -> str:
    r"""The box's answer, and the sign that stands before it: `-\boxed{256}`, but not `3-\boxed{2}` or `- \boxed{2}`."""
    answer = box.answer.strip()
    before = text[max(0, box.start - 40) : box.start]
    signs = _SIGN_IN_DISPLAY if "\n" in before and _in_display(text, box.start) else _SIGN_BEFORE
    sign = signs.search(before) if before[-1:] in _MAY_END_SIGN else None
    if not sign or not answer:
        return answer
    mark = (sign["math"] or sign["word"]).replace("\u2212", "-")
    return f"{mark} {answer}" if mark != "-" else f"-({answer})" if re.search(r"[-+=,]", answer) else f"-{answer}"


def _in_display(text: str, place: int) -> bool:
    """Whether a displayed formula is open, where a line may begin with a sign; elsewhere that is a list's mark."""
    last = {mark in ("\\[", "\\]"): mark for mark in _DISPLAYS.findall(text, 0, place)}  # of brackets, of environments
    return text.count("$$", 0, place) % 2 == 1 or "\\[" in last.values() or "\\begin{" in last.values()


def find_answer(text: str) -> Found:
    """The answer that a model declares in `text`, by the order at the top of this file. Linear in the text's length."""
    boxed = boxes(text) if "boxed" in text or "fbox" in text else []
    for box in reversed(boxed):
        if _FORM_BEFORE.search(text, max(0, box.start - 40), box.start):
            return Found(_with_sign(text, box), "final form")
    if boxed:
        return Found(_with_sign(text, boxed[-1]), "box")
    return (_of_line(text) if "####" in text else None) or _sentence(text)


def _of_line(text: str) -> Found | None:
    """What the last line with #### states. One of words is a heading if text follows it."""
    end = len(text.rstrip())
    for line in reversed(list(_GSM8K.finditer(text))):
        said = _TOKEN.sub("", line[1][:_READ]).strip()
        sentences = list(_SENTENCE.finditer(said))
        if sentences:
            said = _first_statement(said[sentences[-1].end() :])[0]
        if said and (sentences or line.end() >= end or not _HEADING.match(said)):
            return Found(said, "####")
    return None


def _sentence(text: str) -> Found:
    tail = _TOKEN.sub(" ", text[-_READ:]).rstrip()
    matches = list(_SENTENCE.finditer(tail))
    if not matches:
        return Found("", "")
    rest = _HOPE.split(tail[matches[-1].end() :], maxsplit=1)[0].rstrip()
    answer, used = _first_statement(rest)
    return Found(answer, "sentence") if answer and len(rest) - used <= AFTER_SENTENCE else Found("", "")


def _first_statement(rest: str) -> tuple[str, int]:
    """What a closing sentence states: up to its full stop or line end, math kept whole; and how much was read."""
    position, parts = 0, []
    while position < len(rest):
        math = _MATH.match(rest, position)
        if math:
            parts.append(next(group for group in math.groups() if group is not None).rstrip(". "))
            position = math.end()
            continue
        if _END.match(rest, position):
            break
        parts.append(rest[position])
        position += 1
    return "".join(parts).strip().strip("*\"'").strip(), position


def gold_answer(solution: str, style: Literal["math", "gsm8k"]) -> str | None:
    r"""The reference answer in a data set's own solution; None where there is none.

    style "math": inside the last balanced ``\boxed{}`` or ``\fbox{}`` (or behind ``\boxed`` without braces); may be
    empty, as in two rows of MATH. style "gsm8k": what follows the last ``####``.
    """
    if style == "gsm8k":
        lines = _GSM8K.findall(solution)
        return lines[-1].strip() if lines else None
    boxed = boxes(solution)
    return _with_sign(solution, boxed[-1]) if boxed else None
