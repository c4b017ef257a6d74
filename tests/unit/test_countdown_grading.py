"""Countdown answers: by hand, against an independent checker, and any text at all; then the task's own files."""

import itertools
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfcorrect.config import CountdownConfig
from selfcorrect.errors import DataError
from selfcorrect.grading.countdown import grade_countdown
from selfcorrect.tasks.countdown import Countdown, split_of
from selfcorrect.types import Outcome

RIGHT, WRONG, NONE = Outcome.CORRECT, Outcome.WRONG, Outcome.NO_ANSWER


@pytest.mark.parametrize(
    ("text", "outcome"),
    [
        ("12 - 3 = 9\n9 * 7 = 63", RIGHT),
        ("12-3=9\n9*7=63", RIGHT),
        ("7 * 9 = 63\n12 - 3 = 9", WRONG),  # 9 is used before it is there
        ("12 - 3 = 9\n7 * 9 = 63", RIGHT),  # operands in either order
        ("12 - 3 = 9\r\n9 * 7 = 63\r\n", RIGHT),  # windows line ends
        ("\n\n  12 - 3 = 9  \n\n\t9 * 7 = 63\n", RIGHT),  # blank lines and spaces
        ("012 - 3 = 9\n9 * 7 = 0063", RIGHT),
        ("12 - 3 = 9\n9 * 7 = 62", WRONG),  # false arithmetic
        ("12 - 3 = 63\n63 * 7 = 441", WRONG),
        ("12 - 3 = 9", WRONG),  # a number unused
        ("7 * 9 = 63", WRONG),  # 9 is not on the table
        ("12 - 3 = 9\n9 * 9 = 81", WRONG),  # an intermediate used twice
        ("3 * 3 = 9\n9 * 7 = 63", WRONG),  # a number used twice
        ("12 - 3 = 9\n12 * 7 = 84", WRONG),  # a number used again in a later step
        ("12 - 3 = 9\n9 * 7 = 63\n63 - 63 = 0", WRONG),
        ("12 / 7 = 1\n1 * 3 = 3", WRONG),  # does not divide
        ("3 - 12 = -9\n-9 * 7 = -63", WRONG),  # not the target
        ("7 - 12 = -5\n-5 * 3 = -15", WRONG),
        ("`12 - 3 = 9`\n `9 * 7 = 63` ", RIGHT),
        ("--12 - 3 = 9\n9 * 7 = 63", WRONG),
        ("12 - 3 = 9\n9 * 7 = 63 so done", WRONG),  # trailing junk
        ("Answer:\n12 - 3 = 9\n9 * 7 = 63", RIGHT),
        ("Answer = 63\n12 - 3 = 9\n9 * 7 = 63", WRONG),
        ("12 - 3 = 9 = 9\n9 * 7 = 63", WRONG),
        ("(12 - 3) * 7 = 63", NONE),
        ("63", NONE),
        ("", NONE),
        (" \n\t\n", NONE),
        ("\uff11\uff12 - \uff13 = \uff19", NONE),  # full-width digits
        ("\u0661\u0662 - \u0663 = \u0669", NONE),  # Arabic-Indic digits
        ("12 \u2212 3 = 9\n9 \u00d7 7 = 63", NONE),  # typographic operators
        ("12 ** 3 = 1728", NONE),
        ("1" * 13 + " + 1 = 2", NONE),  # more digits than are read
        ("9" * 4000 + " * " + "9" * 4000 + " = 1", WRONG),  # longer than is read
        ("__import__('os') + 1 = 2", NONE),
    ],
)
def test_by_hand(text: str, outcome: Outcome) -> None:
    found = grade_countdown(text, [12, 7, 3], 63)
    assert (found.outcome, found.reward) == (outcome, float(outcome is RIGHT)), found


@pytest.mark.parametrize(
    ("text", "numbers", "target", "outcome"),
    [
        ("8 / 2 = 4\n4 + 5 = 9", [8, 5, 2], 9, RIGHT),
        ("2 - 8 = -6\n-6 + 15 = 9", [15, 8, 2], 9, RIGHT),  # negative on the way
        ("2 - 8 = -6\n15 - -6 = 21", [15, 8, 2], 21, RIGHT),
        ("2 - 8 = -6\n15 + 6 = 21", [15, 8, 2], 21, WRONG),  # 6 is not on the table
        ("7 / 2 = 3\n3 + 5 = 8", [7, 5, 2], 8, WRONG),  # leaves a rest
        ("2 / 8 = 0\n0 + 5 = 5", [8, 5, 2], 5, WRONG),
        ("7 + 2 = 8\n8 + 5 = 14", [7, 5, 2], 14, WRONG),  # false twice, ends in the target
        ("3 * 3 = 9\n9 * 7 = 63", [7, 3], 63, WRONG),  # a number used twice, nothing left over
        ("3 - 3 = 0\n5 / 0 = 0", [5, 3, 3], 0, WRONG),  # division by zero
        ("3 - 3 = 0\n0 / 5 = 0", [5, 3, 3], 0, RIGHT),
        ("3 * 3 = 9\n9 * 5 = 45", [5, 3, 3], 45, RIGHT),  # given twice, used twice
        ("5 + 1 = 6", [5, 1], 6, RIGHT),
        ("4 + 2 = 6\n6 + 1 = 7\n7 + 6 = 13", [6, 4, 2, 1], 13, RIGHT),  # a result equal to a given number
        ("4 + 2 = 6\n6 + 1 = 7", [6, 4, 2, 1], 7, WRONG),  # and then one of the two sixes is left
        ("2 + 2 = 4\n2 + 2 = 4\n4 + 4 = 8", [2, 2, 2, 2], 8, RIGHT),
        ("2 + 2 = 4\n2 + 2 = 4\n4 + 2 = 6", [2, 2, 2, 2], 6, WRONG),
    ],
)
def test_tables(text: str, numbers: list[int], target: int, outcome: Outcome) -> None:
    assert grade_countdown(text, numbers, target).outcome is outcome


@given(
    st.text(alphabet=st.characters(), max_size=60) | st.text(alphabet="0123456789+-*/= \n\r\t\x0b\u2028٣", max_size=60)
)
def test_never_raises_on_any_text(text: str) -> None:
    found = grade_countdown(text, [12, 7, 3], 63)
    assert found.reward == float(found.correct)


APPLY = {"+": Fraction.__add__, "-": Fraction.__sub__, "*": Fraction.__mul__, "/": Fraction.__truediv__}


def is_right(steps: list[tuple[int, str, int, int]], numbers: list[int], target: int) -> bool:
    """An independent check with fractions over a list from which operands are taken."""
    left = list(numbers)
    for a, operator, b, c in steps:
        if operator == "/" and b == 0:
            return False
        if APPLY[operator](Fraction(a), Fraction(b)) != c:
            return False
        for operand in (a, b):
            if operand not in left:
                return False
            left.remove(operand)
        left.append(c)
    return left == [target] and bool(steps)


small = st.integers(0, 12)
signed = st.integers(-12, 12)
STEP = st.tuples(signed, st.sampled_from("+-*/"), signed, st.integers(-20, 20))


@given(st.lists(STEP, min_size=1, max_size=3), st.lists(small, min_size=2, max_size=4), st.integers(0, 20))
def test_agrees_on_random_answers(steps: list[tuple[int, str, int, int]], numbers: list[int], target: int) -> None:
    text = "\n".join(f"{a} {operator} {b} = {c}" for a, operator, b, c in steps)
    assert grade_countdown(text, numbers, target).correct == is_right(steps, numbers, target)


def test_agrees_on_every_honest_answer_to_a_problem() -> None:
    """All two-step answers to 12 7 3 with exact arithmetic: the graders agree, and some are right."""
    numbers, rights = [12, 7, 3], 0
    table = [*numbers, 4, 5, 9, 19, 36, 84]
    for a, b, c, d, first, second in itertools.product(numbers, numbers, table, table, "+-*/", "+-*/"):
        one, two = APPLY[first](Fraction(a), Fraction(b)), APPLY[second](Fraction(c), Fraction(d))
        if min(one, two) < 0 or one.denominator * two.denominator != 1:
            continue
        steps = [(a, first, b, int(one)), (c, second, d, int(two))]
        text = "\n".join(f"{w}{operator}{x}={y}" for w, operator, x, y in steps)
        correct = grade_countdown(text, numbers, 63).correct
        assert correct == is_right(steps, numbers, 63)
        rights += correct
    assert rights == 2  # (12 - 3) * 7 and 7 * (12 - 3)


def test_splits_are_disjoint_whatever_the_seed() -> None:
    task = Countdown()
    streams = {
        (split, seed): list(itertools.islice(task.stream(split, seed), 300))
        for split in ("train", "test")
        for seed in (0, 1)
    }
    ids = {key: {problem.id for problem in problems} for key, problems in streams.items()}
    assert all(len(found) == 300 for found in ids.values())  # none twice in a stream
    train, test = ids["train", 0] | ids["train", 1], ids["test", 0] | ids["test", 1]
    assert not train & test
    assert ids["train", 0] != ids["train", 1]
    assert [p.id for p in itertools.islice(task.stream("train", 0), 300)] == [p.id for p in streams["train", 0]]
    for problem in streams["test", 0]:
        numbers, target = problem.reference["numbers"], problem.reference["target"]
        assert {split_of(order, target) for order in itertools.permutations(numbers)} == {"test"}


def test_generated_problems_can_be_solved_and_are_shown() -> None:
    for problem in itertools.islice(Countdown().stream("train", 3), 40):
        numbers, target = problem.reference["numbers"], problem.reference["target"]
        assert any(task_solves(order, target) for order in itertools.permutations(map(Fraction, numbers))), problem
        assert f"target {target} from the numbers {' '.join(map(str, numbers))}." in problem.prompt


def task_solves(order: tuple[Fraction, ...], target: int) -> bool:
    a, b, c = order
    firsts = [op(a, b) for op in (APPLY["+"], APPLY["-"], APPLY["*"])] + ([a / b] if b else [])
    return any(
        target
        in (first + c, first - c, c - first, first * c, *([first / c] if c else []), *([c / first] if first else []))
        for first in firsts
    )


def test_load_reads_both_shapes(tmp_path: Path) -> None:
    file = tmp_path / "problems.jsonl"
    file.write_text('{"input": "3,7, 12", "output": "22"}\n\n{"nums": [3, 12, 7], "target": 23}\r\n', encoding="utf-8")
    first, second = Countdown(CountdownConfig(prompt="{numbers} -> {target}")).load(str(file))
    assert second.reference == {"numbers": [12, 7, 3], "target": 23}
    assert first.reference == {"numbers": [12, 7, 3], "target": 22}
    assert (first.prompt, first.task) == ("12 7 3 -> 22", "countdown")


def test_only_line_ends_separate_rows(tmp_path: Path) -> None:
    """JSON strings may hold U+2028 and U+0085 as they are."""
    file = tmp_path / "problems.jsonl"
    file.write_text('{"nums": [3, 7], "target": 10, "note": "a\u2028b\x85c"}\n', encoding="utf-8")
    assert len(Countdown().load(str(file))) == 1


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("{", "not valid JSON"),
        ("[1, 2]", "expected a JSON object, got list"),
        ('{"input": "3,7"}', "field 'output' is missing"),
        ('{"nums": [3, 7]}', "field 'target' is missing"),
        ('{"numbers": [3, 7], "target": 2}', "field 'nums' is missing"),
        ('{"input": "3,x", "output": "22"}', "whole numbers"),
        ('{"nums": null, "target": 2}', "whole numbers"),
        ('{"nums": [3], "target": 3}', "at least two numbers"),
        ('{"nums": [3, -7], "target": 3}', "none negative"),
        ('{"nums": [3.5, 7], "target": 10}', "whole numbers"),
        ('{"nums": [3, 7], "target": 10.5}', "whole numbers"),
        ('{"nums": "37", "target": 10}', "whole numbers"),
        ('{"nums": [true, 7], "target": 8}', "whole numbers"),
        ('{"nums": [Infinity, 7], "target": 8}', "whole numbers"),
        pytest.param('{"nums": [3, 7], "target": ' + "9" * 5000 + "}", "", id="5000 digits"),
    ],
)
def test_malformed_rows_name_file_and_line(tmp_path: Path, row: str, reason: str) -> None:
    file = tmp_path / "problems.jsonl"
    file.write_text('{"nums": [3, 7], "target": 10}\n\n' + row + "\n", encoding="utf-8")
    with pytest.raises(DataError) as caught:
        Countdown().load(str(file))
    assert f"{file}:3: " in str(caught.value)
    assert reason in str(caught.value)


@pytest.mark.parametrize("content", [None, b"", b"\n\n", b"\xff\xfe\x00"])
def test_unusable_files_are_named(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "problems.jsonl"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(DataError, match=r"problems\.jsonl"):
        Countdown().load(str(file))
