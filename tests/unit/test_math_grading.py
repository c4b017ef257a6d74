"""Math answers: when they are the same, what hostile texts and broken workers cost."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from multiprocessing import connection
from pathlib import Path
from unittest.mock import Mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfcorrect.grading import math_fast, math_latex, math_pool
from selfcorrect.grading.math import MathGrader
from selfcorrect.types import Outcome

RIGHT, WRONG, NONE = Outcome.CORRECT, Outcome.WRONG, Outcome.NO_ANSWER
NEEDS_WORKER = r"\sqrt{x+\sqrt{3}}"  # a gold answer that the fast path cannot read
STUCK = r"\boxed{9^{9^{9^9}}}"


@pytest.fixture(scope="module")
def grader() -> Iterator[MathGrader]:
    with MathGrader(workers=1, seconds=5.0) as shared:
        yield shared


@pytest.fixture(scope="module")
def slow(grader: MathGrader) -> MathGrader:
    """With the same worker, which takes a second to start."""
    shared = MathGrader(workers=1, fast=False)
    shared._pool = grader._pool
    return shared


SAME = [
    ("1,-2", "-2,1"), ("1,-2", r"\{1,-2\}"), ("1,-2", r"x=1 \text{ or } x=-2"), ("1,-2", "x = 1, -2"),
    ("10000", "10{,}000"), ("10{,}000", "10000"), ("10,000", r"10,\!000"), (r"11,\! 111,\! 100", "11111100"), ("11{,}111{,}100", r"11, \! 111, \! 100"), ("25", "25."), ("6", r"6\text{ inches}"),
    ("450", "450 km"), (r"40\text{ square units}", "40"), (r"75^\circ", "75"), ("75", r"75^{\circ}"), (r"\$7.50", "7.5"),
    (r"\frac{1}{2}", "0.5"), (r"\frac12", "1/2"), (r"\frac{7}{8}", ".875"), ("3.5", r"3\frac{1}{2}"), ("3.5", "3 1/2"),
    (r"-\frac{3}{8}", r"\frac{-3}{8}"), (r"0.\overline{3}", r"\frac13"), (r"3.2\times10^5", "320000"), ("7", "(7)"),
    ("1000000", r"10^6 = 1{,}000{,}000"), ("16", "2^{4} = 16"), (r"50\%", "50"), ("50", r"50\%"), (r"50\%", "0.5"),
    (r"\text{Ada}", "Ada"), (r"\text{(C)}", "C"), (r"\text{(C)}", r"\textbf{(C)}"), ("A,B,D", r"\text{B, A, and D}"),
    ("5,7", r"\text{7 and 5}"), (r"\text{A, C}", "A, C"), (r"\text{A or C}", r"\text{(C), (A)}"), (r"\text{I, III}", r"\text{III and I}"), ("C", r"\text{C}"),
    (r"\text{odd}", '"odd"'), (r"9\!:\!15 \text{ p.m.}", "9:15 PM"), ("2:1", "2 : 1"), ("312_5", "312_{5}"),
    ("312_5", "312"), (r"(-\infty,0]", r"\left(-\infty, 0\right]"), ("(1,2)", r"\left( 1, 2 \right)"),
    ("[-3,4]", r"x \in [-3,4]"), ("[-3,4]", r"-3 \le x \le 4"), ("(5,\\infty)", "x>5"), ("x<5", "5>x"),
    (r"2\sqrt{7}", r"\sqrt{28}"), (r"\frac{\sqrt{3}}{3}", r"\frac{1}{\sqrt{3}}"), (r"\sqrt{2}", r"\sqrt{2} \approx 1.414"),
    ("2\\sqrt{2}", "2\u221a2"), ("-5", "\u22125"), ("-3.5", "\uff0d\uff13\uff0e\uff15"), (r"\frac{1}{2}", "\uff11\uff0f\uff12"),
    ("\uff11\uff0c\uff12", "2, 1"), (r"2\pi", "2\u03c0"), ("4+3i", "3i+4"), ("5", r"5 \text{ cm}"),
    (r"1 \pm \sqrt{5}", r"1+\sqrt5, 1-\sqrt5"), ("x^2+3x+2", "(x+1)(x+2)"), ("2k", "a+d=2k"), ("x=5", "5"), ("5", "x=5"),
    ("y=2x+3", "y = 3+2x"), ("2x - 3y + z + 8 = 0", "2x-3y+z=-8"), (r"\frac{x^2}{9}+\frac{y^2}{4}=1", "4x^2+9y^2=36"),
    (r"\begin{pmatrix} 1/5 \\ -18/5 \end{pmatrix}", r"\begin{bmatrix} 0.2 \\ -3.6 \end{bmatrix}"),
    (r"\begin{pmatrix} 1/2 \\ 3/2 \end{pmatrix}", r"\frac{1}{2} \begin{pmatrix} 1 \\ 3 \end{pmatrix}"),
    (r"12^{1/7}", r"\sqrt[7]{12}"), (r"\sin^2 t", r"\sin^2(t)"),
    (r"\sin t", r"\frac{1}{\csc t}"), (r"\frac{1}{2^{98}}", "2^{-98}"),
    (r"7\text{ million}", "7,000,000"), (r"7\text{ million}", "7 million"), (r"2\text{ dozen}", "24"),
    (r"2\text{ dozen}", r"24\text{ eggs}"), (r"\frac{3}{7}", "3 sevenths"), ("2500000000", r"2.5\text{ billion}"),
    (r"\mbox{four}", "4"), ("21", "twenty-one"), (r"16\text{ daps}", "16 daps"), (r"\text{empty set}", r"\emptyset"),
    (r"\pi", r"\pi \text{ square units}"), (r"\pi", r"\pi\text{ m}^2"), (r"\frac{a+b}{c}", r"\frac{a+b}{c}\text{ cm}"), ("2x", r"2x\text{ cm}"),
    ("15", r"\$15/\text{hour}"), ("15", "15/hour"), ("15", r"15/\text{m}^2"), ("15", r"15\,/\mathrm{s}"), ("15", r"15\text{ /hour}"), (r"\frac14", r"\frac14 / \text{day}"), (r"60\text{ mph}", "60 / hour"),
    ("73", "73\\,"), ("73", "73\\ "), ("73", r"73\;"), ("(1,2)", "(1,2)\\,"), ("18", r"\text{18 dollars}"), ("25", r"25^\circ\text{C}"),
    (r"25^\circ", "25\u00b0C"), (r"12\text{ cm}^2", r"12\,\mathrm{cm^2}"), ("12", r"12\,{\rm cm}^{2}"), ("9", r"9\ \frac{\text{m}}{\text{s}}"),
    ("14.3", r"x \approx 14.3"), ("14.3", r"\sqrt{205} \approx 14.3"), ("320000", "3.2e5"), (r"\frac13", r"0.\bar{3}"),
    (r"\frac{1}{6}", r".1\overline 6"), (r"\frac12", r"{1 \over 2}"), (r"\frac{\sqrt3}{2}", r"\sqrt{3} \over 2"), ("5", r"\boldsymbol{5}"),
    (r"\frac12", r"\textcolor{red}{\frac{1}{2}}"), ("5", r"{\color{blue}5}"), (r"(-\infty,2)\cup(5,\infty)", r"x<2 \text{ or } x>5"),
    (r"(-\infty,2)\cup(5,\infty)", "x<2, x>5"), ("(2,5)", r"x>2 \text{ and } x<5"), (r"(-\infty,2)\cup(2,\infty)", r"x \ne 2"),
    (r"[1,2]\cup(5,\infty)", r"\{t \mid 1 \le t \le 2 \text{ or } 5<t\}"), (r"(-\infty,\infty)", r"\mathbb{R}"),
    (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\left[\begin{array}{cc}1&2\\3&4\end{array}\right]"), (r"\emptyset", r"\{\}"), (r"\emptyset", r"\text{No solution}"), (r"\emptyset", "Empty set."),
    ("9500", "9 500"), ("118000", r"118\ 000"), ("9500", r"9\,500"), ("1234567", "1 234 567"), ("ab", "ba"), ("2xy", "2yx"), ("abcd", "dcba"),
    ("ABC", r"\text{ABC}"), ("no", "No"), ("a + b + c", "c+b+a"), ("x + c", "c + x"), (r"\{-1\} \cup [0,7)", r"[0,7) \cup \{-1\}"),
    ("5", "5 m"), ("1", r"100\%"), ("x<y", "y>x"), (r"2+2\sqrt{3}", r"2(1+\sqrt3)"), (r"\frac{1+\sqrt5}{2}", r"\frac12+\frac{\sqrt5}{2}"),
    ("2+2i", "2(1+i)"), (r"\frac{1+2i}{2}", r"\frac{1}{2} + i"), ("7", r"\mathbf{x=7}"), ("-3", "minus three"), ("305", "three hundred and five"),
    (r"\tan x", r"\frac{\sin x}{\cos x}"), (r"\frac{ab}{c}(c-a)", r"ab - \frac{a^2b}{c}"), ("2\\sqrt{13}", "2\\\\sqrt{13}"),
    ("6", r"6\text{ apples}"), (r"440\text{ cm}^2", r"440\text{ cm}^2"), (r"440\text{ cm}^2", "440"), ("-221_3", "-221_3"), (r"8\text{ a.m.}", r"8\text{ a.m.}"),
    ("1,2,3", "1,2,3."), ("n", "{n}"), (r"-\frac12", r"{-\frac12}"), ("{1}", "1"), (r"\{1,2\}", r"\{2,1\}"), (r"\$1.05", r"\$1.05."),
]  # fmt: skip
DIFFERENT = [
    ("1,-2", "1"), ("1", "1,-2"), ("1,-2", "1,2"), ("1,-2", "1,-2,3"), ("1,-2", "(1,-2)"), ("(1,2)", "1,2"),
    ("7", "7,7"), ("1,1,2", "1,2"), (r"(-\infty,0]", r"(-\infty,0)"), ("[0,1)", "(0,1)"), ("(1,2)", "(2,1)"),
    ("(0,1)", "[0,1]"), (r"(1,2)\cup(3,4)", "(1,2)"), ("x<5", r"x \le 5"), ("48.2", "48.25"), ("48.25", "48.2"),
    (r"\frac13", "0.333333"), (r"\frac13", "0.3333333333333333"), (r"\sqrt{2}", "1.414213562373095"),
    (r"\pi", r"\frac{22}{7}"), (r"\frac{1}{2^{98}}", r"\frac{1}{2^{97}}"), ("120", "5!"), ("2484", r"54\times46"),
    ("9", "3+6"), ("4", r"\sqrt{16}"), ("x^2+1=0", "x^4+3=0"), ("y=2x+3", "y=2x"), ("x=5", "y=5"), ("3:1", "3"),
    ("3:1", "-3:1"), ("35", "3 5"), ("12", "1 2"), ("2^{3x}", "2^{3}x"), ("3", "3xy"), ("5", "5x"), ("5", "5=x"),
    ("312_5", "312_6"), ("3", "11_2"), ("6", r"6 \text{ or } 7"), ("6", "6 million"), ("50", "0.5"), ("0.5", r"0.5\%"),
    (r"\pi", r"\pi\text{ halves}"), ("x", r"x+\text{ cm}"), ("3", r"3x\text{ cm}"), ("east", r"east\text{ cm}"), ("2x", r"2x\text{ dozen}"), ("n", "nm"),
    ("15", r"15/\text{dozen}"), ("15", "15/h"), ("15", "15/m^2"), ("15", r"15x/\text{m}^2"), (r"15\text{ m}", r"15/\text{m}"), ("15", r"15x/\text{hour}"), (r"15\text{ hours}", "15/hour"), (r"5\text{ hours}", r"5/\text{minute}"), (r"12\text{ cm}^2", r"12/\text{cm}"), (r"60\text{ per hour}", "60/minute"), (r"60\text{ per hour}", r"60\text{ per minute}"),
    (r"1 \text{ hour}", r"1\text{ minute}"), (r"60\text{ mph}", r"60\text{ kph}"),
    (r"3\text{ cm}", r"3\text{ cm}^2"), (r"\text{east}", r"\text{west}"),
    ("10", "10,000"), ("1234", "1\u3001234"), (r"11,\! 111,\! 100", "11111101"), (r"1,\! 2", "12"), ("1", r"\frac{0}{0}"), ("1", "1/0"), ("x=1,y=2", "2,1"), ("x=1,y=2", "x=2,y=1"), ("x+1", "x-1"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}1&2\end{pmatrix}"), ("|x|", "x"), (r"\infty", r"-\infty"), (NEEDS_WORKER, r"\infty!!"), (r"\sqrt{x}", r"\infty"),
    (r"\begin{vmatrix}1&2\\3&4\end{vmatrix}", r"\begin{pmatrix}1&2\\3&4\end{pmatrix}"), ("1", r"1 \neq 2"), ("5", ""),
    (r"7\text{ million}", "7"), (r"2\text{ dozen}", "2"), ("3", r"3\text{ pi}"), ("3", "3 sevenths"), ("3", r"3\text{ point five}"),
    ("3", "3 halved"), ("3", r"3\text{ at least}"), ("3", "3 squared"), ("3", r"3\text{ more}"), ("3", r"3\text{ to the fifth}"), ("3", "3 tens"),
    ("3", "3 root"), ("ABC", "CAB"), ("2AO", "2OA"), ("no", "on"), ("x+2y", "x+2Y"), ("3m", "3"), ("3s^2", "3"), ("12", r"1200\%"),
    ("1.5", r"150\%"), (r"(-\infty,2)\cup(5,\infty)", r"x<2 \text{ and } x>5"), (r"(2,\infty)", "2x+1>5"), ("x<5", "y<5"),
    (r"(2,\infty)", r"x \ge 2"), (r"\frac{\sqrt3}{2}", r"\sin 60^\circ"), (r"3+2\sqrt2", r"(1+\sqrt2)^2"), (r"12\sqrt5", r"\sqrt{700+20}"),
    (r"12\sqrt5", r"\sqrt{500}+\sqrt{20}"), ("5x+1", "3x+2x+1"), ("3+4i", "(2+i)^2"), (r"\sqrt{205}", r"x \approx 14.3"),
    (r"[-3,4]", r"-x \in [-3,4]"), (r"9\!:\!15 \text{ p.m.}", "9:15 a.m."), ("2", r"1\text{ and }2"), ("3", "3 pairs"), ("3", "3 inches short"),
    ("11", "five and six"), ("12", r"\text{5 and 7}"), ("A,B,D", r"\text{A, B}"), (r"\text{A, C}", r"\text{AC}"), (r"\text{I, II}", r"\text{III}"), (r"1\frac12", r"\text{1 and 1/2}"), (r"\emptyset", r"\text{No real solution}"), (r"\emptyset", "No"), ("3", "minus three"), (r"\frac{20}{3}", r"\frac{2e+1}{3}"),
    ("6", r"6\text{ millions}"), ("6", "6 halves"), ("6", r"6\text{ negative}"), ("6", "6M"), ("6", r"6\text{ e5}"), (r"440\text{ square feet}", r"440\text{ cubic feet}"),
    ("-221_3", "-221_7"), (r"8\text{ a.m.}", r"8\text{ p.m.}"), ("1,2,3", "1,2,3,..."), ("1,2,3", r"1,2,3,\ldots"),
]  # fmt: skip


@pytest.mark.parametrize("path", ["grader", "slow"])
@pytest.mark.parametrize(("pairs", "same"), [(SAME, True), (DIFFERENT, False)], ids=["same", "different"])
def test_same_and_different_answers(
    pairs: list[tuple[str, str]], same: bool, path: str, request: pytest.FixtureRequest
) -> None:
    """Both with the fast path and with every scalar sent to math-verify: the two give the same verdicts."""
    grades = request.getfixturevalue(path).grade([(rf"So \boxed{{{given}}}.", gold) for gold, given in pairs])
    assert [pair for pair, grade in zip(pairs, grades, strict=True) if grade.correct is not same] == []


ROOT, GIVEN = r"Simplify $\sqrt{720}$.", "If $3x+2y=12$ and $x-y=4$, find $3x+2y$ for $z>1$, $w \\in [2,7]$."
RATIO, FACTOR, EXPAND = r"Reduce $\frac{14}{21}$.", "Factor $x^2+x-2$.", "Expand $(x+5)^2$."
COPIED = [
    *[(ROOT, r"12\sqrt{5}", given) for given in (
        r"\sqrt{720}", r"\sqrt {720}", r"\sqrt{720}+0", r"1\cdot\sqrt{720}", r"720^{1/2}", r"x=\sqrt{720}", r"\sqrt{720}=\sqrt{720}",
        r"\frac{2\sqrt{720}}{2}", r"\frac{\sqrt{720}}{1}", r"-(-\sqrt{720})", r"\{\sqrt{720}\}", r"\left(\sqrt{720}\right)", r"\sqrt[2]{720}", "sqrt(720)", r"\sqrt{720}\text{ }", r"2\sqrt{180}")],
    *[(GIVEN, "12", given) for given in ("3x+2y=12", "2y + 3x = 12", "(3x+2y=12)", "x=3x+2y=12", "3x+2y=12=12", "1 \\cdot 3x + 2y = 12")],
    (GIVEN, r"(1,\infty)", "z>1"), (GIVEN, r"(1,\infty)", "1 < z"), (GIVEN, "[2,7]", r"w \in [2,7]"),
    *[(RATIO, r"\frac{2}{3}", given) for given in (r"\frac{14}{21}", "14/21", r"{14 \over 21}", r"\dfrac{28}{42}", r"x = 14\div 21")],
    ("Write 0.25 as a common fraction.", r"\frac14", "0.25"), (r"What fraction is $0.\overline{4}$?", r"\frac49", r"0.\overline{4}"),
    ("Write $0.2$ as a percent.", r"20\%", "0.2"), ("Write 40% as a decimal.", "0.4", r"40\%"), (r"Convert $100\%$ to a decimal.", "1", r"100\%"),
    (FACTOR, "(x-1)(x+2)", "x^2+x-2"), (FACTOR, "(x-1)(x+2)", "x(x+1)-2"), (EXPAND, "x^2+10x+25", "(5+x)(x+5)"),
    *[("Find $2a(2a^2+a)-a^2$.", "4a^3+a^2", given.replace("Q", "2a(2a^2+a)-a^2")) for given in (
        "-(-(Q))", r"\frac{Q}{1}", "Q+0a", r"Q+0\cdot 5", "(Q)^{3-2}", r"\frac{(Q)^2}{Q}", r"\frac{Q}{2}+\frac{Q}{2}", r"\ln e^{Q}", r"7^0(Q)")],
    ("Solve $4x+3y=-2$.", "-2", r"\{4x+3y=-2\}"),
    ("Let $a=\\sqrt{720}$. Find $(a,2)$.", r"(12\sqrt5,2)", r"(\sqrt{720},2)"),
]  # fmt: skip
NOT_COPIED = [
    (GIVEN, "12", "12"), (GIVEN, "12", "x+y=12"), (GIVEN, "[2,7]", "[2,7]"), (RATIO, r"\frac{2}{3}", r"0.\overline{6}"),
    ("Find the side.", r"12\sqrt{5}", r"\sqrt{720}"), ("With 0.5 for heads, what is the chance?", r"\frac12", "0.5"),
    ("The sides are $x+5$ and $3x+15$.", "4x+20", "4(x+5)"), ("Let $a=2^{10}$.", "2^{11}", r"2^{10}\cdot 2"), ("How many pairs?", "3", "3 pairs"),
    (EXPAND, "x^2+10x+25", "25+10x+x^2"), ("If $x=3$, find $x$.", "3", "3"), ("Which of 1/2 and 0.5 is it?", r"\frac12", r"\frac{1}{2}"),
    (r"Project onto $\begin{pmatrix}2\\6\end{pmatrix}$.", r"\begin{pmatrix}1\\3\end{pmatrix}", r"\frac12\begin{pmatrix}2\\6\end{pmatrix}"),
    ("What percent of 20 is 4?", r"20\%", "20"), ("After 40% off, what percentage is it?", "40", r"40\%"),
    ("How many dozens of eggs?", "3", r"3\text{ dozens}"), ("How many sprockets are there?", "7", "7 sprockets"),
]  # fmt: skip


@pytest.mark.parametrize(("rows", "right"), [(COPIED, False), (NOT_COPIED, True)], ids=["copied", "not copied"])
def test_the_problems_own_words_are_no_answer(
    rows: list[tuple[str, str, str]], right: bool, grader: MathGrader
) -> None:
    """Boxing a piece of the statement, as it stands or dressed up; what the gold answer is stays right."""
    grades = grader.grade([(rf"\boxed{{{given}}}", gold, problem) for problem, gold, given in rows])
    assert [row for row, grade in zip(rows, grades, strict=True) if grade.correct is not right] == []


def test_a_copy_is_told_as_one(grader: MathGrader) -> None:
    """The verdict depends on the problem, and the words on how each text declares its answer, whatever came first."""
    box, line = r"\boxed{\sqrt{720}}", r"#### \sqrt{720}"
    grades = grader.grade(
        [(box, r"12\sqrt5"), (line, r"12\sqrt5"), (line, r"12\sqrt5", ROOT), (box, r"12\sqrt5", ROOT)]
    )
    told = [grade.detail for grade in grades]
    assert told == [
        "box",
        "####",
        "####: copies an expression of the problem",
        "box: copies an expression of the problem",
    ]


@pytest.mark.parametrize(
    "gold", ["a + b + c", r"\frac{1}{7}\triangle ABC", r"\sqrt{2}^{\frac}+\&", r"\overline{CD}", "f(2) < f(1)"]
)
def test_no_answer_makes_the_grader_fail(gold: str, slow: MathGrader) -> None:
    """A gold answer that math-verify cannot read equals its own text, and any other answer is wrong: none is left out."""
    others = [
        r"\sqrt{x+1}",
        r"\frac{x}{y}",
        "x>3",
        r"[0,1)\cup\{5\}",
        r"\begin{pmatrix}1\\2\end{pmatrix}",
        r"\infty",
        "x=y",
    ]
    grades = slow.grade([(rf"\boxed{{{given}}}", gold) for given in (gold, *others)])
    assert [grade.outcome for grade in grades] == [RIGHT] + [WRONG] * len(others)


def test_what_is_not_declared_is_no_answer(grader: MathGrader) -> None:
    texts = ["It is $3+6=9$.", r"\boxed{}", "9", ""]
    assert [grade.outcome for grade in grader.grade([(text, "9") for text in texts])] == [NONE] * 4


@pytest.mark.parametrize("gold", ["", "  ", r"\frac{1}{2", "x" * 5000, "(" * 40 + ")" * 40, "\x00"])
def test_golds_that_cannot_be_read(grader: MathGrader, gold: str) -> None:
    """Said of every answer to the problem, with the reason; never a silent zero."""
    for grade in grader.grade([(text, gold) for text in (r"\boxed{5}", "nothing")]):
        assert grade.outcome is Outcome.GRADER_FAILED
        assert "gold answer" in grade.detail


def test_equal_answers_have_equal_forms(grader: MathGrader) -> None:
    groups = [
        ["0.5", r"\frac{2}{4}", "x = 1/2"],
        ["1, 2", r"\{2,1\}"],
        [r"\sqrt{28}", r"2\sqrt{7}"],
        ["2x+1", "1 + 2 x"],
    ]
    for group in groups:
        grades = grader.grade([(rf"\boxed{{{given}}}", "99") for given in group])
        assert len({grade.answer for grade in grades}) == 1
    planes = grader.grade([(rf"\boxed{{{given}}}", "99") for given in ("x+y=0", "x-y=0")])
    assert planes[0].answer != planes[1].answer


ENDLESS = [r"\boxed{9^{9^{9^9}}-x}", r"\boxed{(10^{10^{8}})!}", r"\boxed{\sum_{k=1}^{10^{12}} \frac{1}{k^k}}"]
HOSTILE = [
    r"\boxed{" + "(" * 29 + "x" + ")" * 29 + "}", r"\boxed{" + "{" * 400 + "x" + "}" * 400 + "}",
    r"\boxed{" + "x" * 1_000_000 + "}", "x" * 1_000_000 + r"\boxed{5}", "\\" * 1_000_000, r"\boxed{" * 100_000,
    r"\boxed{" + r"\frac{1}{" * 14 + "x" + "}" * 14 + "}", "\\boxed{5}\x00", "\\boxed{\x005\ud800}", "\ud800\udfff" * 99,
    r"\boxed{__import__('os').system('echo harm > harm.txt')}", r"\boxed{x.__class__}", r"\boxed{\infty-\infty}", "$" * 99_999,
]  # fmt: skip


@pytest.mark.parametrize("more", [[], pytest.param(ENDLESS, marks=pytest.mark.nightly)], ids=["day", "night"])
def test_hostile_texts(more: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    texts = [*HOSTILE, *more, STUCK]
    with MathGrader(workers=1, seconds=0.3) as short:
        grades = short.grade([(text, gold) for gold in (NEEDS_WORKER, "5") for text in texts])
    allowed = {RIGHT, WRONG, NONE, Outcome.TIMEOUT}
    assert {grade.outcome for grade in grades} <= allowed
    assert grades[len(texts) - 1].outcome is Outcome.TIMEOUT
    assert grades[-1].outcome is WRONG  # a number is wanted: nothing to work out
    assert [text[-20:] for text, grade in zip(texts * 2, grades, strict=True) if grade.correct] == [
        ("x" * 20 + r"\boxed{5}")[-20:],
        "\\boxed{5}\x00",
    ]
    assert list(tmp_path.iterdir()) == []
    assert all(grade.answer.isprintable() and grade.detail.isprintable() for grade in grades)


def test_long_answers_are_refused_before_they_are_searched(grader: MathGrader) -> None:
    """With time that grows with the square of the length this takes half a minute. Nor are they remembered."""
    start = time.monotonic()
    text = f"\\boxed{{sprockets 5{' ' * 40_000}x}}"
    (grade,) = grader.grade([(text, "5", "How many sprockets are there?")])
    assert (grade.outcome, grade.detail) == (WRONG, "box: longer than 600 characters")
    assert time.monotonic() - start < 5
    assert not any(len(key.answer) > 1000 for key in grader._cache)


STUB = """
import os, sys
sys.path[:] = {path!r}
from selfcorrect.grading import math_worker as worker
def judge(job):
    DEED
    root, _, added = job["given"].rpartition("}}}}")
    return dict(same=bool(root) and eval(added or "0") == 0)
real, worker.judge, worker.slow_scalar = worker.judge, judge, lambda *_, **__: True
worker.main({parent})
"""


def stub(patch: pytest.MonkeyPatch, deed: str = "pass") -> None:
    """Workers that need no sympy, which takes a second to import: NEEDS_WORKER with nothing added is the same."""
    patch.setattr(math_pool, "_RUN", STUB.replace("DEED", deed))


def test_a_stuck_worker_costs_one_limit_and_order_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    stub(monkeypatch, 'while "9^" in job["given"]: pass')
    answers = [(rf"\boxed{{\sqrt{{x+\sqrt{{3}}}}+{n}-{n % 3}}}", NEEDS_WORKER) for n in range(6)]
    answers.insert(2, (STUCK, NEEDS_WORKER))
    start = time.monotonic()
    with MathGrader(workers=2, seconds=0.3) as grader:
        outcomes = [grade.outcome for grade in grader.grade(answers)]
        again = grader.grade([(STUCK, NEEDS_WORKER)])[0]  # remembered: the limit is not paid twice
    assert outcomes == [RIGHT, RIGHT, Outcome.TIMEOUT, RIGHT, WRONG, WRONG, WRONG]
    assert again.outcome is Outcome.TIMEOUT
    assert time.monotonic() - start < 60


def test_a_crashed_worker_costs_one_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer under which workers die twice is out of limits: it must not leave the loss. After one death it is graded."""
    mark = repr(str(tmp_path / "mark"))
    dies = f'"7" in job["given"] or ("8" in job["given"] and not os.path.exists({mark}))'
    stub(monkeypatch, f'if {dies}: open({mark}, "w").close(); os._exit(3)')
    answers = [(rf"\boxed{{\sqrt{{x+\sqrt{{3}}}}+{n}}}", NEEDS_WORKER) for n in (1, 8, 7, 2, 0)]
    with MathGrader(workers=1) as grader:
        grades = grader.grade(answers)
    assert [grade.outcome for grade in grades] == [WRONG, WRONG, Outcome.TIMEOUT, WRONG, RIGHT]
    assert "ended its worker twice" in grades[2].detail


def test_workers_that_end_under_any_answer_are_told_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    stub(monkeypatch, "os._exit(3)")
    with MathGrader(workers=1) as grader:
        (grade,) = grader.grade([(r"\boxed{\sqrt{x}}", NEEDS_WORKER)])
    assert grade.outcome is Outcome.GRADER_FAILED
    assert "died twice" in grade.detail


def test_workers_that_cannot_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is what another is at by then taken for an answer of the next batch."""
    mark = tmp_path / "mark"
    mark.touch()
    stub(monkeypatch, f'while "9" in job["given"] and os.path.exists({str(mark)!r}): __import__("time").sleep(0.01)')
    right, late, wrong = (rf"\boxed{{\sqrt{{x+\sqrt{{3}}}}+{added}}}" for added in ("0", "9-9", "1"))
    with MathGrader(workers=2) as grader:
        assert grader.grade([(right, NEEDS_WORKER)])[0].outcome is RIGHT  # by the first worker
        monkeypatch.setattr(math_pool, "_RUN", "raise SystemExit(1)")
        grades = grader.grade([(late, NEEDS_WORKER), (r"\boxed{\sqrt{x}}", NEEDS_WORKER), (r"\boxed{5}", "5")])
        assert [grade.outcome for grade in grades] == [Outcome.GRADER_FAILED, Outcome.GRADER_FAILED, RIGHT]
        assert "no worker could start" in grades[0].detail
        mark.unlink()
        stub(monkeypatch)
        assert grader.grade([(wrong, NEEDS_WORKER)])[0].outcome is WRONG


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    code = math_pool._RUN.replace("from selfcorrect", "sys.modules['math_verify'] = None; from selfcorrect")
    monkeypatch.setattr(math_pool, "_RUN", code)
    monkeypatch.setattr(math_pool, "_start", lambda start=math_pool._start: told(start()))  # both say so at once
    with MathGrader(workers=2) as grader:
        grades = grader.grade([(rf"\boxed{{\sqrt{{x}}+{n}}}", NEEDS_WORKER) for n in range(2)])
    assert [grade.outcome for grade in grades] == [Outcome.GRADER_FAILED] * 2
    assert "pip install math-verify" in grades[0].detail


def told(worker: math_pool.Worker) -> math_pool.Worker:
    connection.wait([worker.output])
    return worker


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer that uses up the worker's memory is out of limits, as one that uses up its time."""
    stub(monkeypatch, "worker.compare = lambda *_: bytearray(3 << 30); return real(job)")
    with MathGrader(workers=1) as grader:
        grade = grader.grade([(r"\boxed{\sqrt{x}}", NEEDS_WORKER)])[0]
    assert grade.outcome is Outcome.TIMEOUT
    assert "MemoryError" in grade.detail


def test_killed_and_recycled_workers_are_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(math_pool, "RECYCLE", 2)
    stub(monkeypatch)
    answers = [(rf"\boxed{{\sqrt{{x+\sqrt{{3}}}}+{n}}}", NEEDS_WORKER) for n in range(6)]
    expected = [RIGHT] + [WRONG] * 4
    with MathGrader(workers=1) as grader:
        assert [grade.outcome for grade in grader.grade(answers[:5])] == expected
        (worker,) = grader._pool.workers
        assert worker.answered == 1
        os.kill(worker.process.pid, signal.SIGKILL)
        assert grader.grade(answers[5:])[0].outcome is WRONG


def test_workers_that_wait_cost_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two that the kernel has taken each would be a try of the same answer; nor do they end with a thread that grades."""
    stub(monkeypatch)
    answers = [(rf"\boxed{{\sqrt{{x+\sqrt{{3}}}}+{n}}}", NEEDS_WORKER) for n in range(5)]
    with MathGrader(workers=2) as grader:
        thread = threading.Thread(target=grader.grade, args=(answers[2:4],))
        thread.start()
        thread.join()
        time.sleep(0.05)
        processes = [worker.process for worker in grader._pool.workers]
        assert [process.poll() for process in processes] == [None, None]
        for process in processes:
            process.kill()
            process.wait()
        assert [grade.outcome for grade in grader.grade(answers[:2])] == [RIGHT, WRONG]
        grader.close()
        grader._pool._starter.shutdown()  # as where the interpreter ends, and waits for a thread that grades
        assert grader.grade(answers[4:])[0].outcome is WRONG


def test_a_forked_process_has_workers_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two that read from one worker each may take the other's verdict."""
    stub(monkeypatch)
    right, wrong = ((rf"\boxed{{\sqrt{{x+\sqrt{{3}}}}+{n}}}", NEEDS_WORKER) for n in (0, 1))
    with MathGrader(workers=1) as grader:
        assert grader.grade([right])[0].outcome is RIGHT
        shared = {worker.process.pid for worker in grader._pool.workers}
        with grader._pool.lock:  # as where another thread grades
            if not (pid := os.fork()):
                signal.alarm(9)
                outcome, own = grader.grade([wrong])[0].outcome, {worker.process.pid for worker in grader._pool.workers}
                grader.close()
                os._exit(0 if outcome is WRONG and own and not own & shared else 1)
        assert os.waitpid(pid, 0)[1] == 0
        assert {worker.process.pid for worker in grader._pool.workers} == shared


def test_workers_know_nothing_of_the_trainer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fresh interpreter: no secret in its environment, no module of the trainer; the fast path starts none."""
    monkeypatch.setenv("HF_TOKEN", "secret")
    stub(monkeypatch)
    with MathGrader(workers=1) as grader:
        grader.grade([(r"\boxed{1/2}", "0.5")])
        assert grader._pool.workers == []
        grader.grade([(r"\boxed{x}", NEEDS_WORKER), (r"\boxed{\sqrt{x}}", NEEDS_WORKER)])
        (worker,) = grader._pool.workers
        environment = Path(f"/proc/{worker.process.pid}/environ")
        if environment.exists():
            assert b"secret" not in environment.read_bytes()
    assert grader._pool.workers == []
    code = "import sys, selfcorrect.grading.math; print(sorted({'sympy', 'math_verify', 'torch'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.skipif(sys.platform != "linux", reason="the worker asks Linux to be told of its parent's death")
def test_workers_end_with_a_killed_parent() -> None:
    stuck = STUB.replace("DEED", "while True: pass")
    code = f"""
import threading, time
from selfcorrect.grading import math_pool
from selfcorrect.grading.math import MathGrader
math_pool._RUN = {stuck!r}
grader = MathGrader(workers=1, seconds=60)
threading.Thread(target=grader.grade, args=([({STUCK!r}, {NEEDS_WORKER!r})],), daemon=True).start()
while not grader._pool.workers or grader._pool.workers[0].job is None:
    time.sleep(0.02)
print(grader._pool.workers[0].process.pid, flush=True)
time.sleep(60)
"""
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    worker = Path("/proc") / parent.stdout.readline().strip() / "stat"
    assert worker.exists()
    parent.kill()
    parent.communicate()
    for _ in range(100):
        if not worker.exists() or worker.read_text().rpartition(") ")[2].startswith("Z"):
            return
        time.sleep(0.02)
    pytest.fail("the worker outlived its parent")


def test_verdicts_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    stub(monkeypatch)
    pair = (r"\boxed{\sqrt{x+\sqrt{3}}+0}", NEEDS_WORKER)
    with MathGrader(workers=1) as grader:
        first = grader.grade([pair, pair])
        monkeypatch.setattr(grader._pool, "run", lambda jobs: pytest.fail("asked again"))
        assert grader.grade([pair]) == first[:1] == first[1:]
        assert grader.grade([]) == []


@pytest.mark.parametrize("setting", [{"workers": 0}, {"seconds": 0.0}, {"seconds": -1.0}])
def test_settings_out_of_range(setting: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(setting))):
        MathGrader(**setting)  # type: ignore[arg-type]


COMMANDS = re.findall(
    r"\S+", r"\frac \sqrt \boxed{ \text{ \left \right \\ \{ \} \pm \cup \infty \le \in \circ \% \$ \cdot \pi \approx"
)
COMMANDS += [r"\begin{pmatrix}", r"\end{pmatrix}", " or ", " and ", "The answer is ", "#### "]
CHARACTERS = "0123456789+-*/=^_(){}[],.:;<>!&|$%~#'x abiey\u03c0\u221a\u2212\u221e\n\t\x00\ud800"
PIECES = st.sampled_from([*COMMANDS, *CHARACTERS])
TEXTS = st.lists(PIECES, max_size=30).map("".join)


@given(TEXTS, TEXTS)
def test_any_text_and_any_gold(given: str, gold: str) -> None:
    """The trainer's side never raises, whatever the model or the data file holds (workers are left out here)."""
    silent = MathGrader(workers=1)
    silent._pool.run = lambda jobs: [{"same": False}] * len(jobs)  # type: ignore[method-assign]
    grades = silent.grade([(rf"\boxed{{{given}}}", gold), (given, gold), (given, "5"), (rf"\boxed{{{given}}}", given)])
    assert {grade.outcome for grade in grades} <= {RIGHT, WRONG, NONE, Outcome.GRADER_FAILED}


@settings(max_examples=60)
@given(TEXTS, st.sampled_from([NEEDS_WORKER, r"x^2+\sqrt{x+1}", r"\sin^2 t+\frac{1}{2^{98}}", r"x<\sqrt{y}"]))
def test_any_text_in_a_worker(slow: MathGrader, given: str, gold: str) -> None:
    """No text of random pieces is one of these answers; sympy has taken `\\infty!!` for one."""
    grade = slow.grade([(rf"\boxed{{{given}}}", gold)])[0]
    assert grade.outcome in {WRONG, NONE, Outcome.TIMEOUT}


def test_a_factor_that_cannot_be_read_ends_the_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else what stands in it is read anew at every depth: an answer of nested fractions took a hundred times as long."""
    monkeypatch.setattr(math_fast, "closing_brace", calls := Mock(side_effect=math_latex.closing_brace))
    assert math_fast.terms_of(r"\frac{" * 28 + "x" + "}{3}" * 28) is None
    assert calls.call_count < 10


def test_workers_are_no_more_than_the_cores_that_are_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """A scheduler's limit is not in os.cpu_count."""
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    for ours, workers in ((1, 1), (3, 3), (64, 8)):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, ours=ours: set(range(ours)), raising=False)
        assert MathGrader()._pool.size == workers
