r"""LaTeX in one way of writing: what does not change an answer's meaning is taken off.

Layout commands, colours and fonts, spacing, dollar signs, thousands separators, `{1 \over 2}`; number words behind a
number are worked out (math_units.py). Nothing else is computed, and every step is linear in a string of bounded length.
"""

import re
from collections.abc import Callable

from selfcorrect.grading.math_units import LONE, scaled, split_unit

ROW = "\ue000"  # stands for two backslashes, the end of a row in LaTeX
OR = "\ue001"  # between members that are joined by `or`
AND = "\ue002"

_WIDE = {chr(code): chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5E) if code != 0xFF3C}  # but for the backslash
_SYMBOLS = str.maketrans(
    {
        **_WIDE, "\u3001": ", ", "\u3002": ".",
        "\u2212": "-", "\u2013": "-", "\u2014": "-", "\u2010": "-", "\u00d7": r"\cdot ", "\u00b7": r"\cdot ",
        "\u22c5": r"\cdot ", "\u00f7": "/", "\u2215": "/", "\u2044": "/", "\u00b0": r"^\circ ", "\u03c0": r"\pi ",
        "\u221e": r"\infty ", "\u2264": r"\le ", "\u2265": r"\ge ", "\u2260": r"\ne ", "\u222a": r"\cup ",
        "\u2208": r"\in ", "\u2248": r"\approx ", "\u00b1": r"\pm ", "\u03b8": r"\theta ", "\u221a": r"\sqrt ",
        "\u00a0": " ", "\u2009": " ", "\u202f": " ", "\u200b": "", ROW: "", OR: "", AND: "", "\u20ac": "", "\u00a3": "",
        "\u201c": '"', "\u201d": '"', "\u00b2": "^{2}", "\u00b3": "^{3}",
        "\u2205": r"\emptyset ", "\u03b1": r"\alpha ", "\u211d": r"\mathbb{R}", "\u2227": r"\land ", "\u2228": r"\lor ",
    }
)  # fmt: skip
_COMMANDS = r"(?:d|t|c)?frac|sqrt|pi|infty|left|right|text|begin|end|pm|le|ge|leq|geq|cdot|times|cup|theta|boxed|circ"
_ITEM = r"(?:[IVX]{2,4}|\(?[A-Za-z]\)?|-?\d+(?:\.\d+)?(?:/\d+)?)"
_JOINED = r"(?:\s*[,;]\s*(?:(?:and|or)\s+)?|\s+(?:and|or)\s+)"
_LETTERS = re.compile(r"\([A-Za-z]\)|\b(?:[A-Za-z]|[IVX]{2,4})\b")
_REWRITE: tuple[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]], ...] = tuple(
    (re.compile(pattern), by)
    for pattern, by in (
        (r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]", ""),
        (rf"(?<!\\)\\\\(?=(?:{_COMMANDS})(?![A-Za-z]))", r"\\"),  # a text that doubles its backslashes
        (r"\\\\\\\\", r"\\\\"),
        (r"\\\\(?:\[[-\d. a-z]{1,8}\])?", ROW),  # \\ and \\[2ex]
        (r"(?<=\d)(?:\{\\?,\}(?:\\[!,])?|(?:\\!?)?,\s*\\!\s*|\\,)(?=\d{3}(?!\d))", ""),  # 10{,}000 and its kin
        (r"\\(?:left|right|[bB]igg?[lr]?|displaystyle|textstyle|limits|nolimits|strut)(?![A-Za-z])\.?", ""),
        (r"\{\s*\\(?:bf|it|rm)\s+([^{}\\]*)\}", r"\\text{\1}"),
        (r"\\(?:bf|it|rm|sf|tt|em|large|Large|LARGE|huge|Huge|small|normalsize|noindent|centering|checkmark|nonumber)"
         r"(?![A-Za-z])(?!\s*\{)", " "),
        (r"\\(?:hspace|vspace|mspace|label|tag|color)\*?\s*\{[^{}]*\}", " "),
        (r"\\[hv]?phantom\s*(?:\{[^{}]*\})?|\A\s*\\approx(?![A-Za-z])", ""),
        (r"\\[!]", ""),
        (r"\\(?:[,;:> ]|(?:q?quad|enspace|enskip|thinspace|medspace|thickspace|space|hfill)(?![A-Za-z]))|~|[\t\r\n]",
         " "),
        (r"\\(?:dfrac|tfrac|cfrac|nicefrac|sfrac)(?![A-Za-z])", r"\\frac"),
        (r"\\[dt]binom(?![A-Za-z])", r"\\binom"),
        (r"\\(?:leqslant|leq)(?![A-Za-z])|<=", r"\\le "),
        (r"\\(?:geqslant|geq)(?![A-Za-z])|>=", r"\\ge "),
        (r"\\neq(?![A-Za-z])|!=", r"\\ne "),
        (r"\\lt(?![A-Za-z])", "<"),
        (r"\\gt(?![A-Za-z])", ">"),
        (r"\\times(?![A-Za-z])", r"\\cdot "),
        (r"\\(?:varnothing|O)(?![A-Za-z])", r"\\emptyset "),
        (r"\\langle(?![A-Za-z])", "("),
        (r"\\rangle(?![A-Za-z])", ")"),
        (r"\\lbrace(?![A-Za-z])", r"\\{"),
        (r"\\rbrace(?![A-Za-z])", r"\\}"),
        (r"\\(?:textbf|textrm|textit|textnormal|textsf|mbox|hbox|mathrm|mathbf|mathit|mathsf|mathtt|texttt|textup|emph|rm|operatorname\*?)"
         r"(?=\s*\{)", r"\\text"),
        (r"\\text\s+\{", r"\\text{"),
        (r"\\text\{([^{}A-Za-z]*|[^{}]*[=<>][^{}]*)\}", r" \1 "),
        (rf"\\text\{{\s*({_ITEM}(?:{_JOINED}{_ITEM})++)\s*\}}",  # `A, C` and `5 and 7`: a list, not a word
         lambda match: _LETTERS.sub(r"\\text{\g<0>}", match[1])),
        (r"\\frac\s*\{\s*\\text\{([^{}]*)\}\s*\}\s*\{\s*\\text\{([^{}]*)\}\s*\}", r"\\text{\1/\2}"),  # m over s
        (r"(?<=[\d ])\\text\{\s*\^\s*\{?\s*\\circ\s*\}?\s*([CF])\s*\}\s*\Z", r"\\text{ degrees \1}"),
        (r"((?:[\d})]|\\pi)?\s*)\\text\{\s*([A-Za-z])\s*\}",  # a letter; behind a number, `\text{m}` stays a unit
         lambda match: match[0] if match[1].strip() and match[2] in LONE else f"{match[1]} {match[2]} "),
        (r"(?<=\d)\s*(?:\^\s*(?:\{\s*\\circ\s*\}|\\circ(?![A-Za-z]))|\\degrees?(?![A-Za-z]))\s*([CF])\s*\Z",
         r"\\text{ degrees \1}"),
        (r"(?<=\d)\s*\^\s*(?:\{\s*\\circ\s*\}|\\circ)\s*\Z", r"\\text{ degrees}"),
        (r"\A\s*(-?)\s*\\?\$\s*([\d,.]+)\s*\Z", r"\1\2\\text{ dollars}"),
        (r"\s*\^\s*(?:\{\s*\\circ\s*\}|\\circ(?![A-Za-z]))|\\degrees?(?![A-Za-z])", ""),
        (r"\\?\$", ""),
        (r"\\(?=%)", ""),
        (r"\\text\{\s*,?\s*or\s*,?\s*\}|\bor\b(?!\})|\\(?:lor|vee)(?![A-Za-z])", f" {OR} "),
        (r"\\text\{\s*,?\s*and\s*,?\s*\}|\band\b(?!\})|\\(?:land|wedge)(?![A-Za-z])", f" {AND} "),
        (r"\\text\{\s*[,;]\s*\}", " , "),
        (r"(?<![\\A-Za-z])sqrt(?=\s*[({\d])|\\sqrt\s*\[\s*2\s*\]", r"\\sqrt"),
        (r"\\sqrt\s*\(([^()]*)\)", r"\\sqrt{\1}"),
        (r"\\sqrt\s*(\d)(?!\d)", r"\\sqrt{\1}"),
        (r"\\sqrt\s+(\d+)", r"\\sqrt{\1}"),
        (r"\\sqrt\s*([a-z])(?![a-z])", r"\\sqrt{\1}"),
        (r"\\frac\s*(\d)\s*(\d)", r"\\frac{\1}{\2}"),
        (r"\\frac\s*(\d)\s*\{", r"\\frac{\1}{"),
        (r"(\\frac\s*\{[^{}]*\})\s*(\d|[a-z])(?![a-z])", r"\1{\2}"),
        (r"\\frac\s*\\pi\s*(\d)", r"\\frac{\\pi}{\1}"),
        (r"([\^_])\{(\w)\}", r"\1\2"),
        (r"\\(?:ldots|dots|cdots)(?![A-Za-z])", "..."),
        (r"(?<=[\d.])\s*\\(?:bar|dot|overline)\s*\{?\s*(\d+)\s*\}?", r"\\overline{\1}"),
        (r"small(?=matrix\})", ""),
        (r"[(\[]\s*(\\begin\{(?:array|matrix)\}(?:(?!\\begin).)*?\\end\{(?:array|matrix)\})\s*[)\]]", r"\1"),
        (r"\|\s*\\begin\{(?:array|matrix)\}(?:\{[clr| ]*\})?((?:(?!\\begin).)*?)\\end\{(?:array|matrix)\}\s*\|",
         r"\\begin{vmatrix}\1\\end{vmatrix}"),
        (r"\\\{\s*\\\}|\A\s*(?:\\text\{)?\s*(?i:(?:the )?(?:empty|null) set|empty|no solutions?)\s*\}?\s*\Z",
         r"\\emptyset "),
        (r"\\mathbb\s*R(?![A-Za-z])", r"\\mathbb{R}"),
        (r"\A\s*\\\{\s*\(?[a-z]\)?(?:\s*\\in\s*\\mathbb\{R\})?\s*(?:[:|]|\\mid(?![A-Za-z])|\\vert(?![A-Za-z]))(.*)\\\}\s*\Z",
         r"\1"),  # {x : x < 2}
        (r"(\A|[=,;(\[{<>\ue001\ue002-])\s*([1-9]\d{0,2})((?: \d{3})+)"
         r"(?=(?:\.\d+)?\s*(?:\Z|[,;)\]}=%]|\\text|[A-Za-z]))",
         lambda match: match[1] + match[2] + match[3].replace(" ", "")),  # 118 000
    )
)  # fmt: skip
_SPACES = re.compile(r"\s+")
_INTEGER = re.compile(r"-?[0-9]+")
_TAIL = re.compile(r"(?:\\[,;:! ]|(?<!\\)\\(?=\s*\Z)|~|[.,;:\s])+\Z")
_STYLED = re.compile(
    r"\\(?:(?:textcolor|colorbox|color)\s*\{[^{}]*\}|boldsymbol|bm|pmb|ensuremath|mathord|mathop|underline|num|overset\{[^{}]*\})"
    r"\s*\{"
)
_OVER = re.compile(r"\\(over|choose)(?![A-Za-z])")
_AMOUNT_IN_TEXT = re.compile(r"\\text\{\s*(-?\s*\d[\d.,/]*)\s*([A-Za-z][^{}]*)\}")


def clean(answer: str) -> str:
    """`answer` in one way of writing; a text that is no answer comes back as something that is none."""
    if _INTEGER.fullmatch(answer):
        return answer
    text = answer.translate(_SYMBOLS).replace("\\(", " ").replace("\\)", " ")
    if text.lstrip().startswith("\\["):
        text = text.replace("\\[", " ").replace("\\]", " ")
    text = _unstyled(text)
    if "\\over" in text or "\\choose" in text:
        text = _fractions(text)
    text = _ended(text)
    for pattern, by in _REWRITE:
        text = pattern.sub(by, text)
    text = _ended(_SPACES.sub(" ", text).strip().strip("*").lstrip(",;: "))
    inside = _AMOUNT_IN_TEXT.fullmatch(text)
    if inside:
        plain = f"{inside[1]} {inside[2]}"
        text = f"{inside[1]} \\text{{{inside[2]}}}" if split_unit(plain)[1] or scaled(plain) != plain else text
    return _SPACES.sub(" ", scaled(text)).strip()


def _ended(text: str) -> str:
    """Without the spacing and the stops that a line ends in; a list that goes on (`...`) is another list."""
    return text if text.rstrip().endswith("...") else _TAIL.sub("", text)


def _unstyled(text: str) -> str:
    """Without commands that colour or embolden what stands in their braces."""
    for _ in range(20):
        match = _STYLED.search(text)
        end = closing_brace(text, match.end()) if match else -1
        if not match or end < 0:
            break
        text = f"{text[: match.start()]} {text[match.end() : end]} {text[end + 1 :]}"
    return text


def _fractions(text: str) -> str:
    r"""`{1 \over 2}` as `\frac{1}{2}`, and `{5 \choose 2}` as a binomial."""
    for _ in range(10):
        match = _OVER.search(text)
        if not match:
            break
        end = closing_brace(text, match.end())
        end = len(text) if end < 0 else end
        start, depth = match.start(), 0
        while start > 0 and (depth or text[start - 1] != "{"):
            start -= 1
            depth += {"}": 1, "{": -1}.get(text[start], 0)
        name = "frac" if match[1] == "over" else "binom"
        text = f"{text[:start]}\\{name}{{{text[start : match.start()]}}}{{{text[match.end() : end]}}}{text[end:]}"
    return text


def closing_brace(text: str, position: int) -> int:
    """Where the brace that was opened before `position` is closed; -1 where it is not."""
    depth = 1
    for index in range(position, len(text)):
        depth += {"{": 1, "}": -1}.get(text[index], 0)
        if depth == 0:
            return index
    return -1
