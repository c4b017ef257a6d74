"""Code that stands apart in a model's text: fenced as CommonMark has it, or as models write it otherwise.

Nothing is parsed. Each line is looked at once; inside of a block it is only known which triple quotes are open.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

_FENCE = re.compile(
    r"(?P<quote>(?:[ \t]{0,3}>)*)(?P<lead>[ \t]*(?:(?:[-*+]|\d{1,9}[.)])[ \t]+)*)"  # quotes, then items of lists
    r"(?P<fence>`{3,}|~{3,})(?P<info>.*)"
)
_RUN = re.compile(r"`{3,}")
_ONE_LINE = re.compile(r"`{3,}([^`]+)`{3,}")
_AT_END = re.compile(r"(?P<code>.*[^`~\s])[ \t]*(?P<fence>`{3,}|~{3,})[ \t]*")
_QUOTE = re.compile(r" {0,3}> ?")
_PYTHON = r"(?:i?python|py)w?-?[\d.]*(?![\w-])"
_TAG = re.compile(
    rf"(?:\{{[^}}]{{0,80}}?\b{_PYTHON}[^}}]{{0,80}}\}}|\.?(?:lang(?:uage)?-)?{_PYTHON})[:=]?", re.IGNORECASE
)
_FILE = re.compile(r"\S+\.py", re.IGNORECASE)
_STRING = re.compile(r'"""|\'\'\'|"(?:[^"\\]|\\.)*+"?|\'(?:[^\'\\]|\\.)*+\'?|#.*')
_REST = {quotes: re.compile(rf"(?:[^\\]|\\.)*?{quotes}") for quotes in ('"""', "'''")}

CodeFrom = Callable[[Sequence[str], bool], int | None]


@dataclass(frozen=True, slots=True)
class Block:
    """Code that stands apart, without the indentation of its fence.

    closed: between two fences; False where one is missing: the text ends in it, or it stands free up to a fence.
    """

    text: str
    closed: bool


def find_blocks(lines: Sequence[str], code_from: CodeFrom) -> list[Block]:
    """Blocks that are marked as Python or not marked, and code that stands free before, between and after them.

    code_from(lines, whether they open the text): the line with which code that stands free begins, or None.
    """
    reader = _Reader(lines, code_from)
    for number, line in enumerate(lines):
        reader.read(number, line)
    return reader.end()


def is_python(info: str) -> bool:
    """Whether the info string of a fence names Python."""
    return bool(_TAG.match(info) or _FILE.fullmatch(info))


@dataclass(slots=True)
class _Open:
    """The block being read. quotes: how deep in `>`; width: columns of its fence; string: the triple quotes open."""

    fence: str
    wanted: bool
    quotes: int
    width: int
    content: list[str]
    string: str = ""


class _Reader:
    def __init__(self, lines: Sequence[str], code_from: CodeFrom) -> None:
        self._lines, self._code_from = lines, code_from
        self._found: list[Block] = []
        self._open: _Open | None = None
        self._free = 0  # the line after the last fence

    def read(self, number: int, line: str) -> None:
        if self._open is None:
            self._outside(number, line)
        else:
            self._inside(self._open, number, line)

    def end(self) -> list[Block]:
        if self._open is None:
            self._keep_free(len(self._lines))
        else:
            self._close(len(self._lines), closed=False)
        return self._found

    def _outside(self, number: int, line: str) -> None:
        found = _fence_of(line)
        if found is None:
            for span in _ONE_LINE.finditer(line):
                code = [_TAG.sub("", span[1], count=1).strip()]
                if self._code_from(code, False) is not None:
                    self._keep_free(number)
                    self._found.append(Block(code[0], closed=True))
                    self._free = number + 1
            return
        before, fence, info, quotes, width = found
        # Where code stands free before it, it may be the closing fence of that. Both readings are kept.
        self._keep_free(number, before)
        self._begin(fence, info, quotes, width)

    def _inside(self, block: _Open, number: int, line: str) -> None:
        for _ in range(block.quotes):
            if mark := _QUOTE.match(line):
                line = line[mark.end() :]
            elif line.strip():  # the quotation is over, and the block with it
                self._close(number)
                self._outside(number, line)
                return
        if found := self._ending(block, line):
            last, info = found
            block.content += [last] if last else []
            self._close(number + 1)
            if is_python(info) or (
                info and " " not in info
            ):  # an opening fence, so the closing one before it is missing
                self._begin(block.fence, info, block.quotes, _columns(line))
            return
        block.string = _string_after(line, block.string) if block.wanted else ""
        block.content.append(line)

    def _ending(self, block: _Open, line: str) -> tuple[str, str] | None:
        """The code before a fence that ends the block, and the info string behind it; None for any other line."""
        fence = _FENCE.fullmatch(line)
        whole = fence is not None and not fence["quote"] and not fence["lead"].strip()
        tail = None if whole else _AT_END.fullmatch(line)
        run = fence["fence"] if whole and fence else tail["fence"] if tail else ""
        if run[:1] != block.fence[0] or len(run) < len(block.fence):
            return None
        if tail:
            ends = block.wanted and not _string_after(tail["code"], block.string)
            return (tail["code"], "") if ends else None
        info = fence["info"].strip() if fence else ""
        if run[0] in info or (info and not block.wanted and not is_python(info)):
            return None
        # CommonMark: one that is indented by four columns or more closes nothing. Only a string can hold such a line.
        near = _columns(line) <= block.width + 3
        return ("", info) if near or (block.wanted and not block.string) else None

    def _begin(self, fence: str, info: str, quotes: int, width: int) -> None:
        code = _TAG.sub("", info, count=1).strip()
        on_its_line = bool(code) and self._code_from([code], False) is not None
        wanted = not info or is_python(info) or on_its_line
        self._open = _Open(fence, wanted, quotes, width, [" " * width + code] if on_its_line else [])

    def _close(self, number: int, *, closed: bool = True) -> None:
        block, self._open, self._free = self._open, None, number
        if block is not None and block.wanted:
            self._found.append(Block(_without_margin(block.content, block.width), closed))

    def _keep_free(self, number: int, last: str = "") -> None:
        """Keep the code that stands free before line `number`, if there is any."""
        lines = [*self._lines[self._free : number], last]
        start = self._code_from(lines, self._free == 0)
        if start is not None:
            self._found.append(Block("\n".join(lines[start:]), closed=False))


def _fence_of(line: str) -> tuple[str, str, str, int, int] | None:
    """An opening fence: the text before it, its run, its info string, how deep it is quoted, its column."""
    fence = _FENCE.fullmatch(line)
    if fence and fence["fence"][0] not in fence["info"]:
        lead = fence["lead"]
        lead = lead[1:] if fence["quote"] and lead[:1] == " " else lead  # the space after `>` belongs to it
        return "", fence["fence"], fence["info"].strip(), fence["quote"].count(">"), len(lead.expandtabs(4))
    run = _RUN.search(line)
    info = line[run.end() :].strip() if run else ""
    if run is None or "`" in info or (" " in info and not is_python(info)):
        return None
    before = line[: run.start()].rstrip()
    return before, run[0], info, 0, _columns(line)


def _string_after(line: str, quotes: str) -> str:
    """The triple quotes that are open after a line, given those before it."""
    place = 0
    while True:
        found = _REST[quotes].match(line, place) if quotes else _STRING.search(line, place)
        if found is None:
            return quotes
        place = found.end()
        quotes = "" if quotes or found[0] not in _REST else found[0]


def _columns(line: str) -> int:
    line = line.expandtabs(4)
    return len(line) - len(line.lstrip(" "))


def _without_margin(lines: Sequence[str], width: int) -> str:
    """Every line without up to `width` columns of white space; no more than the first line of code has."""
    first = next((line for line in lines if line.strip()), "")
    width = min(width, _columns(first))
    cut = []
    for line in lines:
        place = column = 0
        while column < width and line[place : place + 1] in (" ", "\t"):
            column += 4 - column % 4 if line[place] == "\t" else 1
            place += 1
        cut.append(" " * (column - width) + line[place:] if column > width else line[place:])
    return "\n".join(cut)
