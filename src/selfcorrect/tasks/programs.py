"""A model's text -> the program it means. Nothing is parsed: the text is hostile, so lines are looked at.

docs/tasks.md has the rules: which of several blocks is the program, and what of the others it needs.
"""

import builtins
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain

from selfcorrect.tasks.fences import find_blocks

MAX_TEXT = 1 << 18  # characters; what is longer is no answer
_CODE_LINE = re.compile(
    r"[ \t]*(?:(?:async[ \t]+)?def[ \t]+\w+[ \t]*\(|class[ \t]+\w+[ \t]*[:(]|import[ \t]+\w[\w., \t]*$"
    r"|from[ \t]+[\w.]+[ \t]+import\b|@\w)"
)
_BODY_LINE = re.compile(r"(?:[ \t]+\S|return\b|(?:for|if|while|with|try)\b.*:[ \t]*(?:#.*)?$)")
_RETURNS = re.compile(r"\b(?:return|yield)\b")
_GOES_ON = re.compile(  # a line at the margin, in no bracket, that may stand behind code; prose may not
    r"(?!\*[*\s]|\[[A-Z]{2,}\]|\[[^][]*\][ \t]*[:(\w]"  # * a point, [DONE], [Note]:, [1] a book
    r"|\((?!lambda\b)\w+(?::(?!=)|\)[ \t]*\w)"
    r"|\((?!(?:not|lambda|await|yield)\b)\w+[ \t]+(?!(?:and|or|not|in|is|if|for|async)\b)\w"
    r"|(?!(?:if|elif|for|while|with|except|match|assert|return|raise|del|not|yield|await|print)\b)"
    r"[\w.]+\([^()]*\)[ \t]+(?!(?:and|or|if|in|is|not|for)\b)[A-Za-z])"  # (Note: ...), (1) First, O(n) time
    r"(?:$|\[(?!/)|[({'\"#@]|\.\.\.[ \t]*$"
    r"|(?:async|await|class|def|del|from|global|import|assert|raise|return"
    r"|nonlocal|yield|(?:pass|break|continue|else|try|finally)\b[ \t]*[:;]?[ \t]*$|(?:else|try|finally):)(?!\w)"
    r"|(?:if|elif|for|while|with|except|match)\b.*:|[\w.]+[(\[]"
    r"|[\w., \t*()\[\]'\"]+(?:[-+*/%&|^@]|//|\*\*|<<|>>)?=(?!=)"
    r"|\w+[ \t]*:(?![^=]*\w[ \t]+\w)[^=]+=)"
)
_QUIET = re.compile(  # strings and comments
    r'("""|\'\'\')(?:\\.|(?!\1)[^\\])*+(?:\1)?|"(?:\\.|[^"\\\n])*+"?|\'(?:\\.|[^\'\\\n])*+\'?|#[^\n]*', re.DOTALL
)
_DEFINED = re.compile(r"^([ \t]*)(?:async[ \t]+)?(?:def|class)[ \t]+(\w+)", re.MULTILINE)
_ASSIGNED = re.compile(
    r"^(?![ \t])(?:[^\n=]*;[ \t]*)?(?:((?:\(?[\w, \t*]++\)?[ \t]*+=(?!=))+)|(\w+)[ \t]*:[^\n=]*=(?!=))(.*)",
    re.MULTILINE,
)
_IMPORTED = re.compile(r"^(?:from[ \t]+[\w.]+[ \t]+)?import\b[ \t]*(\([^)]{0,4000}\)|(?:[^\n;\\]|\\\n)+)", re.MULTILINE)
_PARAMETERS = re.compile(r"\bdef[ \t]+\w+[ \t]*\(([^)]{0,4000})")
_BOUND = re.compile(r"\b(\w+)[ \t]*(?::?=)(?!=)|\b(?:for|as)[ \t]+([\w, \t()]+)")
_EMPTY = re.compile(r'^(?:async[ \t]+)?def[^\n]*:\s*+(?:""\s*+)?(?:pass|\.\.\.|)\s*+\Z', re.MULTILINE)
_WORD = re.compile(r"(?<![\w.])[A-Za-z_]\w*")
_DECORATORS = re.compile(r"(?:^@[^\n]*\n)+\Z", re.MULTILINE)
_FUTURE = re.compile(
    r"\A((?:\s+|#[^\n]*|;|[rRuU]?(?:\"\"\"(?:\\.|[^\\])*?\"\"\"|'''(?:\\.|[^\\])*?'''|\"[^\"\n]*\"|'[^'\n]*'))*+)"
    r"(from[ \t]+__future__[ \t]+import\b[ \t]*(?:\([^)]*\)|(?:[\w, \t]|\\\n)+))",
    re.DOTALL,
)
_MAX_FUTURES = 16
_BUILTINS = frozenset(dir(builtins))


def extract_program(text: str, *, names: Collection[str] = (), body: bool = False) -> str:
    """The program in a model's text, or "" where there is none.

    names: what the tests ask for, where that is known. body: the text may go on inside of a function (HumanEval), so
    without a fence it may begin with an indented line.
    """
    if len(text) > MAX_TEXT:
        return ""
    lines = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n").split("\n")
    wanted = frozenset(names)

    def code_from(free: Sequence[str], opens: bool) -> int | None:
        return _code_from(free, wanted, body and opens)

    found = [(block.closed, block.text) for block in find_blocks(lines, code_from) if block.text.strip()]
    blocks = [(closed, _Code.of(text if closed else _until_prose(text))) for closed, text in found]
    if not blocks:
        return ""
    _, _, chosen = max((_rank(code, wanted, body), closed, place) for place, (closed, code) in enumerate(blocks))
    before, after = ([code for closed, code in part if closed] for part in (blocks[:chosen], blocks[chosen + 1 :]))
    program = _with_what_it_needs(blocks[chosen][1], before, after, wanted)
    continues = body and not wanted & {*blocks[chosen][1].made, *blocks[chosen][1].deeper}
    return _trim(program if continues else _at_the_margin(program))


def complete_function(prompt: str, entry_point: str, answer: str) -> str:
    """The whole program for a HumanEval prompt.

    An answer that defines the function gets what stands before it in the prompt (imports, helpers); any other is
    taken as the rest of the function's body.
    """
    if entry_point in defined_names(answer):
        signature = re.compile(rf"^(?:async[ \t]+)?def[ \t]+{re.escape(entry_point)}[ \t]*\(", re.MULTILINE)
        in_prompt = list(signature.finditer(prompt))
        before = _DECORATORS.sub("", prompt[: in_prompt[-1].start()]) if in_prompt else ""
        return _joined([before, answer], "") if before else answer
    return f"{prompt.rstrip(chr(10))}\n{_indented(answer)}"


def defined_names(program: str) -> frozenset[str]:
    """The names that a program defines, assigns or imports at its margin."""
    code = _Code.of(program)
    return code.made.union(*code.imports.values())


@dataclass(frozen=True, slots=True)
class _Code:
    """A text and the names in it, by the looks of its lines; what its strings and comments hold does not count.

    made: defined or assigned at the margin; lent: those of them that another block may use; deeper: defined further
    in; imports: statement -> its names; words: every name; bound: those that it gives a meaning, wherever.
    """

    text: str
    made: frozenset[str]
    lent: frozenset[str]
    deeper: frozenset[str]
    imports: dict[str, frozenset[str]]
    words: frozenset[str]
    bound: frozenset[str]
    empty: bool

    @classmethod
    def of(cls, text: str) -> "_Code":
        bare = _QUIET.sub(lambda found: "" if found[0][0] == "#" else '""', text)
        defined = _DEFINED.findall(bare)
        top = {name for margin, name in defined if not margin}
        assigned = [
            (_WORD.findall(many) if many else [one], value.lstrip().startswith("lambda"))
            for many, one, value in _ASSIGNED.findall(bare)
        ]
        given = {name for names, function in assigned for name in names if function or name.isupper()}
        imports = {found[0]: _imported(found[1]) for found in _IMPORTED.finditer(bare)}
        deeper = {name for margin, name in defined if margin}
        made = top.union(*(names for names, _ in assigned))
        bound = {*made, *deeper, *chain.from_iterable(imports.values())}
        for name, names in _BOUND.findall(bare):
            bound |= {name, *_WORD.findall(names)}
        for names in _PARAMETERS.findall(bare):
            bound |= set(_WORD.findall(names))
        return cls(
            text, frozenset(made), frozenset(top | given), frozenset(deeper), imports,
            frozenset(_WORD.findall(bare)), frozenset(bound), _EMPTY.search(bare) is not None,
        )  # fmt: skip


def _imported(names: str) -> frozenset[str]:
    parts = [part.split() for part in names.strip("() \t\n").replace("\\\n", " ").split(",")]
    return frozenset(part[-1].partition(".")[0] for part in parts if part)


def _rank(code: _Code, wanted: frozenset[str], body: bool) -> int:
    """How surely a block is the solution: what it does with the names that are asked for, then what else it may be."""
    if wanted & code.made:
        return 4 if code.empty else 6
    if wanted & code.deeper:
        return 5
    if any(wanted & names for names in code.imports.values()):  # of tests more often than of a solution
        return 3
    first = code.text.lstrip("\n").partition("\n")[0]
    if body and _BODY_LINE.match(first) and _RETURNS.search(code.text):
        return 2
    return 1 if code.lent or code.deeper else 0


def _with_what_it_needs(code: _Code, before: Sequence[_Code], after: Sequence[_Code], wanted: frozenset[str]) -> str:
    """The chosen block with the other blocks that define what it uses and lacks; of imports, the statements alone.

    Without them it could only raise a NameError, so nothing is lost by it.
    """
    lacking = (set(code.words) | wanted) - code.bound - _BUILTINS
    parts = [code.text]
    for behind, other in [*((False, other) for other in reversed(before)), *((True, other) for other in after)]:
        if not lacking.isdisjoint(other.lent):
            parts.insert(len(parts) if behind else 0, other.text)
            lacking |= other.words - other.bound - _BUILTINS
            lacking -= other.made
            continue
        for statement, names in other.imports.items():
            if not lacking.isdisjoint(names):
                parts.insert(0, statement)
                lacking -= names
    return _joined(parts, "\n\n")


def _joined(parts: Iterable[str], between: str) -> str:
    """Parts of a program, one behind the other; what each imports from __future__ first must stand at the top."""
    futures: list[str] = []
    kept = []
    for number, part in enumerate(parts):
        rest = part
        for _ in range(_MAX_FUTURES if number else 0):
            if not (found := _FUTURE.match(rest)):
                break
            futures.append(found[2].rstrip())
            rest = f"{found[1]}''{rest[found.end() :]}"
        kept.append(rest)
    return "\n".join([*dict.fromkeys(futures), between.join(kept)])


def _code_from(lines: Sequence[str], wanted: frozenset[str], body: bool) -> int | None:
    """Where code begins in lines that stand free: a line that can only be code, or makes a wanted name."""
    first = next((number for number, line in enumerate(lines) if line.strip()), None)
    if body and first is not None and _BODY_LINE.match(lines[first]):
        return first
    indented = None
    for number, line in enumerate(lines):
        if _CODE_LINE.match(line):
            if line[0] not in " \t":
                return number
            indented = number if indented is None else indented
        elif "=" in line and any(name in line for name in wanted) and wanted & _Code.of(line).made:
            return number
    return indented


def _until_prose(text: str) -> str:
    """Code without what follows from the first line on that cannot be code: at the margin, in no bracket or string."""
    bare = _QUIET.sub(lambda found: ("" if found[0][0] == "#" else '""') + "\n" * found[0].count("\n"), text)
    depth, carried = 0, True
    for number, line in enumerate(bare.split("\n")):
        if line[:1] not in ("", " ", "\t") and depth <= 0 and not carried and not _GOES_ON.match(line):
            return "\n".join(text.split("\n")[:number])
        depth += sum(map(line.count, "([{")) - sum(map(line.count, ")]}"))
        carried = line.endswith("\\")
    return text


def _at_the_margin(program: str) -> str:
    """A program that is indented as a whole, without that."""
    lines = program.split("\n")
    first = next((line for line in lines if line.strip()), "")
    margin = first[: len(first) - len(first.lstrip())]
    if all(line.startswith(margin) for line in lines if line.strip()):
        return "\n".join(line.removeprefix(margin) for line in lines)
    return program


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
