"""A model's text -> its program: fences, prose around them, none at all, and bodies of functions."""

import pytest
from hypothesis import given, settings
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
        (f"~~~python\n{F}\n~~~", F),
        (f"```python\r\n{F}\r\n```\r\n".replace("\n    ", "\r\n    "), F),
        (f"First try:\n```python\ndef g(): pass\n```\nBetter:\n```python\n{F}\n```", F),  # the last one counts
        (f"```python\n{F}\n```\nIt prints\n```\n3\n```", F),  # ... that defines something
        (f"```python\n{F}\n```\n```bash\npython f.py\n```", F),
        (f"```python\n{F}\n```\n```python\nprint(f(3))\n```", F),
        ("```python\nprint(3)\n```\n```python\nprint(4)\n```", "print(4)"),
        (f"Unclosed:\n```python\n{F}\n", F),
        (f"```python\n{F}\n```\nand then\n```python\ndef g(", F),  # a complete block before one that was cut off
        (f"````markdown\n```python\nx\n```\n````\n```python\n{F}\n```", F),
        (f"```text\n{F}\n```", ""),
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
    ],
)
def test_humaneval_completions(text: str, value: int) -> None:
    found = extract_program(text, body=True)
    if text.startswith("y = "):  # no line of it can only be code, outside of a fence
        found = text
    names: dict[str, object] = {}
    exec(complete_function(PROMPT, "f", found), names)
    assert names["f"](3) == value  # type: ignore[operator]


def test_what_stands_before_the_function_is_the_prompt_s() -> None:
    assert complete_function(PROMPT, "f", F) == BEFORE + F


def test_a_body_is_code_only_where_one_is_asked_for() -> None:
    assert extract_program("    return x", body=True) == "    return x"
    assert extract_program("I would return x.", body=True) == ""


def test_ten_megabytes_are_no_answer() -> None:
    assert extract_program("```python\n" + "x = 1\n" * (MAX_TEXT // 4) + "```") == ""


@settings(max_examples=300)
@given(st.text(st.sampled_from("`~ \n\tdefx:(#pyreturn\r\x00é"), max_size=200), st.booleans())
def test_no_text_raises(text: str, body: bool) -> None:
    program = extract_program(text, body=body)
    assert program == program.rstrip()
    complete_function(PROMPT, "f", program)
