"""A model's text -> the program it means (floor 2). Nothing is parsed: the text is hostile, so lines are looked at.

The rules, in order (docs/tasks.md explains them):
1. The last complete fenced block that is marked as Python, or not marked, and defines a function or class.
2. Else the last complete block of that kind.
3. Else what follows the last opening fence that nothing closes.
4. Else, without any fence, the text from the first line that can only be code.
"""

import re

MAX_TEXT = 1 << 20  # characters; what is longer is no answer
_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})[ \t]*([^\s`]*)[^`]*")
_PYTHON = {"", "python", "py", "python3", "py3", "python2"}
_DEFINES = re.compile(r"^[ \t]*(?:async[ \t]+)?(?:def|class)[ \t]+\w", re.MULTILINE)
_CODE_LINE = re.compile(
    r"(?:(?:async[ \t]+)?def[ \t]+\w+[ \t]*\(|class[ \t]+\w+[ \t]*[:(]|import[ \t]+\w[\w., \t]*$"
    r"|from[ \t]+[\w.]+[ \t]+import\b|@\w)"
)
_BODY_LINE = re.compile(r"(?:[ \t]+\S|return\b|(?:for|if|while|with|try)\b.*:[ \t]*(?:#.*)?$)")


def extract_program(text: str, *, body: bool = False) -> str:
    """The program in a model's text, or "" where there is none.

    body: the text may go on inside of a function (HumanEval), so without a fence it may begin with an indented line.
    """
    if len(text) > MAX_TEXT:
        return ""
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    closed, rest = _blocks(lines)
    defining = [block for block in closed if _DEFINES.search(block)]
    if closed:
        return _trim((defining or closed)[-1])
    if rest is not None or any(_FENCE.fullmatch(line) for line in lines):  # fences, none of them of Python
        return _trim(rest or "")
    first = next((line for line in lines if line.strip()), "")
    if body and _BODY_LINE.match(first):
        return _trim("\n".join(lines))
    start = next((number for number, line in enumerate(lines) if _CODE_LINE.match(line)), None)
    return "" if start is None else _trim("\n".join(lines[start:]))


def complete_function(prompt: str, entry_point: str, answer: str) -> str:
    """The whole program for a HumanEval prompt.

    An answer that defines the function gets what stands before it in the prompt (imports, helpers); any other is
    taken as the rest of the function's body.
    """
    signature = re.compile(rf"^(?:async[ \t]+)?def[ \t]+{re.escape(entry_point)}[ \t]*\(", re.MULTILINE)
    if signature.search(answer):
        in_prompt = list(signature.finditer(prompt))
        before = prompt[: in_prompt[-1].start()] if in_prompt else ""
        return f"{before}{answer}"
    return f"{prompt.rstrip(chr(10))}\n{_indented(answer)}"


def _blocks(lines: list[str]) -> tuple[list[str], str | None]:
    """Complete blocks that may hold Python, and what follows an opening fence that is never closed."""
    closed: list[str] = []
    opening, start, wanted = "", 0, False
    for number, line in enumerate(lines):
        fence = _FENCE.fullmatch(line)
        if fence is None:
            continue
        if not opening:
            opening, start, wanted = fence[1], number + 1, fence[2].lower() in _PYTHON
        elif not fence[2] and fence[1][0] == opening[0] and len(fence[1]) >= len(opening):
            if wanted:
                closed.append("\n".join(lines[start:number]))
            opening = ""
    return closed, "\n".join(lines[start:]) if opening and wanted else None


def _indented(body: str) -> str:
    """A function's body with four spaces before it, where the model left them out, wholly or on its first line."""
    lines = [line for line in body.split("\n") if line.strip()]
    if not lines or lines[0][0] in " \t":
        return body
    others = lines[1:]
    opens = lines[0].rstrip().endswith(":")
    depth = 8 if opens else 4
    if others and all(line.startswith(" " * 4) for line in others) and others[0].startswith(" " * depth):
        return f"    {body.lstrip(chr(10))}"
    return "\n".join(f"    {line}" if line.strip() else line for line in body.split("\n"))


def _trim(program: str) -> str:
    """Without blank lines at its ends; the first line keeps its indentation."""
    lines = program.rstrip().split("\n")
    first = next((number for number, line in enumerate(lines) if line.strip()), len(lines))
    return "\n".join(lines[first:])
