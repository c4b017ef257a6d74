"""A model's text -> its program: fences, prose around them, none at all, and bodies of functions."""

import textwrap
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfcorrect.tasks.programs import MAX_TEXT, complete_function, extract_program

F = "def f(x):\n    return x"


@pytest.mark.parametrize(
    ("text", "program"),
    [
        (f"```python\n{F}\n```", F),
        (f"Sure! Here it is:\n\n```python\n{F}\n```\nHope it helps, `f` is fast.", F),
        (f"```\n{F}\n```", F),
        (f"```PY\n{F}\n```  ", F),
        (f"```python\r\n{F}\r\n```\r\n".replace("\n    ", "\r\n    "), F),
        (f"First try:\n```python\ndef g(): pass\n```\nBetter:\n```python\n{F}\n```", F),  # the last one counts
        (f"```python\n{F}\n```\nIt prints\n```\n3\n```", F),  # ... that defines something
        (f"```python\n{F}\n```\n```bash\npython f.py\n```", F),
        (f"```python\n{F}\n```\n```python\nprint(f(3))\n```", F),
        ("```python\nprint(3)\n```\n```python\nprint(4)\n```", "print(4)"),
        (f"```python\n{F}\n```\nand then\n```python\ndef g(", F),  # a complete block before one that was cut off
        (f"````markdown\n```python\nx\n```\n````\n```python\n{F}\n```", F),
        (f"Here is the function:\n\n{F}", F),
        (f"import math\n\n{F}\n", f"import math\n\n{F}"),
        (F, F),
        ("I import goods from Spain, for example wine.", ""),
        ("The answer is 42.", ""),
        ("", ""),
        ("```python\n\n```", ""),
        ("    return x", ""),
        ("```python", ""),
    ],
)
def test_the_program_in_a_text(text: str, program: str) -> None:
    assert extract_program(text) == program


T = "```"


def block(code: str, info: str = "python") -> str:
    return f"{T}{info}\n{code}\n{T}\n"


SOLUTION = block(F)
TESTS = (
    "import unittest\nfrom solution import f\n\n\nclass TestF(unittest.TestCase):\n    def test_f(self):\n        f(1)"
)
HELPER, USES = "def h(x):\n    return x", "def f(x):\n    return h(x)"


@pytest.mark.parametrize(
    "later",
    [
        "def test_f():\n    assert f(3) == 3",
        "def main():\n    print(f(3))\n\n\nmain()",
        TESTS,
        "async def run():\n    return f(1)",
        "print(f, f(3), end='')",
        "result = f(3)\nprint(result == f(4))",
        "# def f(x) is\n'\\\ndef f(x): ...'",
        'def main():\n    """\ndef f(x):\n"""',
        "def ff(x):\n    return f(x)",
        'def f(x):\n    """The signature."""\n    ...',
        "class Checker:\n    def check(self):\n        return f(1)",
        "if __name__ == '__main__':\n    f = f(3)",
        "def main():\n    f = 3\n    def f(x): return 4",
    ],
)
def test_a_later_block_that_defines_something_else(later: str) -> None:
    for solution in (F, "f = lambda x: x", "f: Callable = lambda x: x", "g = f = abs", "async def f(x):\n    return x",
                     "@cache\ndef f(x):\n    return x", "class f:\n    pass", "import math; f = lambda x: x"):  # fmt: skip
        assert extract_program(f"{block(solution)}Tests:\n{block(later)}Done.", names={"f"}) == solution
    assert extract_program(f"{block('from math import gcd as f')}{block('def t(): f(1)')}", names={"f"}).endswith(" f")


@pytest.mark.parametrize(
    ("text", "program"),
    [
        (block("def f(x): return 0") + SOLUTION, F),  # the last version
        (block(HELPER) + "then\n" + block(USES), f"{HELPER}\n\n{USES}"),
        (block(USES) + "where\n" + block(HELPER), f"{USES}\n\n{HELPER}"),
        (block(HELPER) + block(f"def g(x):\n    return h(x)\n\n{F}") + block("def f(x):\n    return g(x)"),
         f"{HELPER}\n\ndef g(x):\n    return h(x)\n\n{F}\n\ndef f(x):\n    return g(x)"),
        (block("M = 7") + block("def f(x):\n    return x % M"), "M = 7\n\ndef f(x):\n    return x % M"),
        (block("import numpy as np\ndef f(x): 1 / 0") + block("def f(x):\n    return np.abs(x)"),
         "import numpy as np\n\ndef f(x):\n    return np.abs(x)"),  # of a draft, the imports alone
        (block("def result(x): exit()") + block("def f(x):\n    result = x\n    return result  # h(x)") + block(HELPER),
         "def f(x):\n    result = x\n    return result  # h(x)"),
        (block("def sum(x): exit()") + block("def f(x):\n    return sum(x)"), "def f(x):\n    return sum(x)"),
        (block("from __future__ import annotations\n" + HELPER) + block("'doc'\nfrom __future__ import division\n" + USES),
         f"from __future__ import division\nfrom __future__ import annotations\n{HELPER}\n\n'doc'\n''\n{USES}"),
    ],
)  # fmt: skip
def test_what_other_blocks_lend(text: str, program: str) -> None:
    assert extract_program(text, names={"f"}) == program


@pytest.mark.parametrize("prefix", [*(" " * n for n in (1, 2, 3, 4, 8)), "\t", "> ", "> > ", ">   ", "   > "])
def test_fences_in_lists_and_quotations(prefix: str) -> None:
    """CommonMark takes the indentation of the fence off the lines behind it."""
    answer, use = (textwrap.indent(code.strip("\n"), prefix) for code in (SOLUTION, block("f(1)")))
    for text in (f"1. So:\n\n{answer}\n\nDone.", answer.replace("\n", "\r\n"), f"{answer}\n{use}"):
        assert extract_program(text, names={"f"}) == F


@pytest.mark.parametrize(
    "info",
    ["python3.10", "{python}", "python:file.py", "py", "Python", "{.python .numberLines}", "python3", "PY3", "{ .python}",
     "python title='x.py'", "python,linenos", "python=", "ipython3", "src/solution.py", "language-python", " python ", "",
     "{python, echo=TRUE}", "python-3.11"],
)  # fmt: skip
def test_tags_of_python(info: str) -> None:
    for code in (block(F, info), block(F, info).replace(T, "~~~")):
        assert extract_program(f"{code}\nIt prints\n{T}\n3\n{T}", names={"f"}) == F


@pytest.mark.parametrize("info", ["text", "pycon", "python-repl", "pytb", "cpp", "happy", "{r}", "jupyter", "x.pyc"])
def test_tags_of_other_languages(info: str) -> None:
    assert extract_program(block(F, info), names={"f"}) == ""


@pytest.mark.parametrize(
    "text",
    [
        f"Here it is: {SOLUTION}",
        f"Here is `f`: {T}\n{F}\n{T}",
        f"**Answer:**{SOLUTION}",
        f"- {T}python\n" + textwrap.indent(F, "  ") + f"\n  {T}",
        f"10. {T}python\n" + textwrap.indent(F, "    ") + f"\n    {T}",
        f"- {T}python\n{F}\n{T}",
        f"> {T}python\n" + textwrap.indent(F, "> ") + "\n\nThe quotation has ended.",
        f"   {T}python\n{F}\n   {T}",
        f"{T}python\n{textwrap.indent(F, '    ')}\n{T}",
        f"{T}python\n{F}{T}\nIt prints\n{T}\n3\n{T}",
        f"{T}python\n{F} {T}\n\nUsage:\n{block('print(f(3))')}",
        f"{T}python\n{F}\n{T} This works because\nit does.",
        f"{T}python\n{F}\n    {T}\nDone.",
        f"{T}python def f(x):\n    return x\n{T}",
        f"{F}\n{T}",
        f"Sure:\n\n{F}\n{T}\nThis works.",
        f"{F}{T}\nThis works.",
        f"{F}\n{T}\nIt prints\n{T}\n3\n{T}",
        f"{F}\n{T}\nUsage:\n{block('print(f(3))')}",
        f"{F}\n\nUsage:\n{block('print(f(3))')}",
        f"{block('3', '')}\n{F}",
        f"Sure:\n\n{textwrap.indent(F, '    ')}\n\nDone.",
        f"{F}\n\nThis function returns x.",
        f"{T}python\n{F}\n\nThis function returns x.",
        f"{T}python\n{F}\n\n{block('print(f(1))')}",
        f"{T}python\n{F}\n{block('python x.py', 'bash')}",
        f"{T}`python\n{F}\n{T}\nDone.",
        f"[PYTHON]\n{F}\n[/PYTHON]",
        f"{T}markdown\n# Solution\n{SOLUTION}{T}",
        f"{T}`python\n{F}\n{T}`\n{block('print(1)')}",
        f"\ufeff{SOLUTION}",
    ],
)
def test_fences_as_models_write_them(text: str) -> None:
    assert extract_program(text, names={"f"}) == F


@pytest.mark.parametrize(
    "prose",
    ["**Explanation:** It returns x.", "* It handles 0", "* x = 5 is", "*Note*: x", "1) First, 2", "\\[ x = 1 \\]", "(Note: it works)", "(1) First",
     "(see above)", "[DONE]", "[Note]: x", "[it](http://x)", "O(n) time.", "Explanation: we set x = 5", "... and so on", "}"],
)  # fmt: skip
@pytest.mark.parametrize("before", ["", f"{T}python\n"])
def test_prose_that_looks_like_code_ends_it(prose: str, before: str) -> None:
    assert extract_program(f"{before}{F}\n\n{prose}", names={"f"}) == F


@pytest.mark.parametrize(
    "line",
    ["*a, b = f([1, 2])", "*_, = [1]", "(a, b) = 1, 2", "(f)(1)", "(lambda: 1)()", "(f(1) if f else 2)", "(x := 3)", "[a, b] = 1, 2", "[f(i) for i in 'x']",
     "[f][0](1)", "(\n1)", "[\n1,\n]", "print(f(1)) if f else 2", "x: dict[str, int] = {}", "...", "{1: 2}", "@f\ndef g(): pass", "'doc'",
     "try:\n    f(1)\nexcept(ValueError) as e:\n    pass", "if(f) is not None:\n    f(1)", "for(i) in [1]:\n    f(i)", "while(f) not in [f]:\n    f(1)", "f(1) in [1]"],
)  # fmt: skip
@pytest.mark.parametrize("before", ["", f"{T}python\n"])
def test_code_that_looks_like_prose_does_not(line: str, before: str) -> None:
    assert extract_program(f"{before}{F}\n\n{line}", names={"f"}) == f"{F}\n\n{line}"


@pytest.mark.parametrize(
    "code",
    [
        f'def f(x):\n    """\n    {T}python\n    f(1)\n    {T}\n    """\n    return x',
        f"def f(x):\n    return '{T}' + \"{T}\"",
        f'def f(x):\n    """Like {T}\n    f(1){T}\n    """\n    return x',
        "def f(x):\n    '''\n~~~\nf(1)\n~~~\n'''",
        "def f(x):\n    return '''\nprose at the margin\n'''\n\n\nTABLE = [\none,\ntwo,\n]",
    ],
)
def test_fences_and_prose_within_strings(code: str) -> None:
    for text in (block(code), f"{block(code)}{block('f(1)')}", f"`{T}python\n{code}\n{T}`", f"{T}python\n{code}"):
        assert extract_program(text, names={"f"}) == code


def test_code_on_one_line() -> None:
    assert extract_program(f"{T}python def f(x): return x{T}") == "def f(x): return x"
    assert extract_program(f"It is {T}f = abs{T}, I think, not {T}g{T}.", names={"f"}) == "f = abs"
    assert extract_program(f"Use {T} to quote, or {T}python{T}.") == ""


PROMPT = 'import math\n\n\ndef helper(x):\n    return x\n\n\ndef f(x: int) -> int:\n    """Doubles.\n    """\n'
BEFORE = "import math\n\n\ndef helper(x):\n    return x\n\n\n"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("```python\ndef f(x):\n    return 2 * x\n```", 6),  # a chat model that writes the function alone
        ("```python\ndef f(x):\n    return 2 * helper(x)\n```", 6),  # ... and uses the prompt's helper
        ("```python\nimport os\n\ndef f(x):\n    return int(math.floor(2 * x))\n```", 6),
        ("    return 2 * x\n", 6),  # a base model that goes on with the body
        ("    y = 0\n    for _ in range(2):\n        y += x\n    return y", 6),
        ("return 2 * x", 6),  # ... whose indentation was lost, wholly
        ("for _ in range(1):\n    x += x\nreturn x", 6),
        ("y = 2 * x\n    return y", 6),  # ... or on the first line alone
        ("for _ in range(1):\n        x += x\n    return x", 6),
        ("```python\n    return 2 * x\n```", 6),
        ("```python\n" + PROMPT + "    return 2 * x\n```", 6),
        ("```python\ndef g(y):\n    return y + y\n\ndef f(x):\n    return g(x)\n```", 6),
        ("```python\ndef g(y):\n    return y + y\n```\nand\n```python\ndef f(x):\n    return g(x)\n```", 6),
        ("```python\nfrom __future__ import annotations\nimport os\n\ndef f(x: A) -> B:\n    return 2 * x\n```", 6),
        (
            "```python\n'doc'\n# c\nfrom __future__ import (division,\n  annotations); import os\ndef f(x: A):\n    return 2 * x\n```",
            6,
        ),
        ("```python\nf = lambda x: 2 * x\n```", 6),
        ("```python\nfrom functools import cache\n\n@cache\ndef f(x):\n    return 2 * x\n```", 6),
        ("```python\n    def f(x):\n        return 2 * x\n```", 6),
        ("```python\n    def g(y):\n        return 2 * y\n    return g(x)\n```", 6),
        ("```python\n    return 2 * x\n```\n```python\ndef test_f():\n    assert f(1) == 2\n```", 6),
        ("1. So:\n\n   ```python\n       return 2 * x\n   ```", 6),
        ("    return 2 * x\n```\nThis doubles x.", 6),
        ("    return 2 * x```", 6),
        ("    return 2 * x\n\nThis doubles x.\n```python\nprint(f(2))\n```", 6),
    ],
)
def test_humaneval_completions(text: str, value: int) -> None:
    found = extract_program(text, names={"f"}, body=True)
    if text.startswith("y = "):  # no line of it can only be code, outside of a fence
        found = text
    names: dict[str, Any] = {}
    exec(complete_function(PROMPT, "f", found), names)
    assert names["f"](3) == value


def test_what_stands_before_the_function_is_the_prompt_s() -> None:
    assert complete_function(PROMPT, "f", F) == BEFORE + F
    assert complete_function(PROMPT.replace("def f", "@cache\n@wraps(f)\ndef f"), "f", F) == BEFORE + F


def test_a_future_that_python_itself_would_refuse_stays_where_it_is() -> None:
    late = f"import math\nfrom __future__ import annotations\n{F}"
    assert complete_function(PROMPT, "f", late) == BEFORE + late


def test_a_body_is_code_only_where_one_is_asked_for() -> None:
    assert extract_program("    return x", body=True) == "    return x"
    assert extract_program("I would return x.", body=True) == ""


def test_ten_megabytes_are_no_answer() -> None:
    assert extract_program("```python\n" + "x = 1\n" * (MAX_TEXT // 4) + "```") == ""


PIECES = [*"`~ \n\tx:(#>-\r\x00é'\"=,;\\", T, f"{T}python\n", f"\n{T}\n", F, "import a", "\n\n", '"""', "> "]
LONG = ["`", f"{T}\n", f'{T}python\n"""\n', f"\\'''\n{T}\n", f"> {T}\n", "- ", f"- {T}\n", "a = ", "(a, b) = ", "f = 1\n",
        "from x import (\n", "def f(\n", "from __future__ import a\n", f"{T}def f(): 1{T} ", f"a{T} ", f"{T}a ", f"{T}{{py ",
        f"{T}python  ", "(\n", "def f():\n\n", "a, ", "a: a ", "f(", "f() ", "* ", '"\\', "@a\n"]  # fmt: skip


@pytest.mark.parametrize("piece", LONG)
def test_long_texts_are_read_in_linear_time(piece: str) -> None:
    """With quadratic time this would not end."""
    long = piece * (30_000 // len(piece))
    complete_function(PROMPT, "f", extract_program(f"{T}python\n{long}", names={"f"}, body=True))
    extract_program(long, names={"f"})


@given(st.lists(st.sampled_from(PIECES), max_size=60).map("".join), st.booleans())
def test_no_text_raises(text: str, body: bool) -> None:
    program = extract_program(text, names={"f"}, body=body)
    assert program == program.rstrip()
    complete_function(PROMPT, "f", program)
