"""Where the answer to a math problem stands in a text."""

import pytest

from selfcorrect.grading.math import FINAL_FORM, gold_answer
from selfcorrect.grading.math_extract import find_answer

LABELS = [
    "**Answer**:",
    "**Final Answer**:",
    "__Answer__ :",
    "**The final answer** is",
    r"\textbf{Answer}:",
    r"\textbf{Answer:}",
]


@pytest.mark.parametrize(
    ("text", "answer", "way"),
    [
        (r"Final answer: \boxed{3}", "3", "final form"),
        (r"**Final Answer:** $\boxed{3}$ Check: \boxed{4}", "3", "final form"),  # the form goes before a later box
        (r"First \boxed{1}, then \boxed{2}", "2", "box"),
        (r"\boxed{25} Details.Unique } ]); { allergic \boxed{", "25", "box"),  # garbage, and a box that never closes
        (r"\boxed{\frac{1}{2}} and 7", r"\frac{1}{2}", "box"),
        (r"\boxed{\{1,2\}}", r"\{1,2\}", "box"),
        (r"\boxed{a=\boxed{3}}", r"a=\boxed{3}", "box"),
        (r"\fbox{95}", "95", "box"),
        (r"so $-\boxed{256}$.", "-256", "box"),
        (r"$x = - \boxed{\frac{1}{2}}$", r"-\frac{1}{2}", "box"),
        (r"Final answer: -\boxed{x+1}", "-(x+1)", "final form"),
        (r"$\pm\boxed{3}$", r"\pm 3", "box"),
        ("It is \u2212\\boxed{5}", "-5", "box"),
        (r"$x=-\,\boxed{5}$", "-5", "box"),
        (r"**-\boxed{5}**", "-5", "box"),
        (r"$x \u2212 \boxed{5}$", "5", "box"),
        (r"$-\frac{3}{2}-\boxed{2}$", "2", "box"),
        ("it is\n- \\boxed{5}", "5", "box"),
        ("$$\\begin{array} a \\\\[4pt] b \\end{array}$$ It is:\n- \\boxed{5}", "5", "box"),
        ("Final answer:\n- \\boxed{5}", "5", "final form"),  # the mark of a list, and below a sign
        ("so $x=5$\n  - \\boxed{5}", "5", "box"),
        ("$$x$$ Roots,\n- \\boxed{5}", "5", "box"),
        ("it is:\n- -\\boxed{5}", "-5", "box"),
        ("is:\n-\\,\\boxed{5}", "-5", "box"),
        ("$$ x =\n- \\boxed{5} $$", "-5", "box"),
        ("\\[ x = \n- \\boxed{5} \\]", "-5", "box"),
        ("\\begin{align*}&=\n- \\boxed{5}", "-5", "box"),
        (r"the answer - \boxed{5}", "5", "box"),
        (r"so $x = \boxed 2$.", "2", "box"),
        (r"\\boxed{3\\sqrt{2}}", r"3\\sqrt{2}", "box"),
        (r"\boxed{5}. The answer is 6.", "5", "box"),
        ("reasoning\n#### 1,250", "1,250", "####"),
        ("#### Step 2: Add\n5+15\nThe final answer is 20.", "20", "sentence"),  # headings
        ("#### 7\n#### **Conclusion**\nso", "7", "####"),
        ("#### 1. Add 5 and 6\nIt is 11.", "", ""),
        ("#### Final Answer: 42", "42", "####"),
        ("#### **Final Answer:**\n42", "42", "sentence"),
        ("##### The answer is $42$.\nDone", "42", "####"),
        ("#### 4 apples\nDone", "4 apples", "####"),
        ("#### sqrt(2)\nDone", "sqrt(2)", "####"),
        ("#### \\text{odd}\nDone", r"\text{odd}", "####"),
        ("so\n#### yes", "yes", "####"),
        *[(f"{label} 42", "42", "sentence") for label in LABELS],
        ("The answers: 42", "", ""),
        ("an_answer: 42", "", ""),
        ("The answer, 42: no", "", ""),
        ("The answer is $x$. I hope it is correct.", "x", "sentence"),
        ("Final Answer: The final answer is 6. I hope it is correct.", "6", "sentence"),
        ("The final answer is $4$ feet. I hope it is correct.", "4 feet", "sentence"),
        ("The final answer is $\\frac{7}{2}$ or $4$.", r"\frac{7}{2} or 4", "sentence"),
        ("The answer is \\[ 12 \\]", "12", "sentence"),
        ("The answer is 2.5", "2.5", "sentence"),
        ("The final answer\uff1a\uff11\uff12\u3002So", "\uff11\uff12", "sentence"),  # full-width, as in Chinese
        (r"\boxed{}", "", "box"),
        ("The answer is 3. " + "But let me look again. " * 20, "", ""),  # a step, not the end
        ("We have $(2+1)(2+1) = 9$.", "", ""),  # an equation is no declared answer
        ("5 * 5 = 25 * 5 = 5 * 5 = 25 * 5 = 5", "", ""),
        ("boxed{4}", "", ""),
        (r"\boxed{4", "", ""),
        ("", "", ""),
    ],
)
def test_the_declared_answer(text: str, answer: str, way: str) -> None:
    assert find_answer(text) == (answer, way)


def test_the_prompts_form_is_found() -> None:
    line = FINAL_FORM.rsplit("box: ", 1)[1]
    assert find_answer(line.replace("...", "41")) == ("41", "final form")


def test_gold_answers() -> None:
    assert gold_answer(r"so \boxed{1} or \fbox{\frac{1}{2}} ends", "math") == r"\frac{1}{2}"
    assert gold_answer(r"so $\boxed 2$ dollars", "math") == "2"
    assert gold_answer(r"\boxed{}", "math") == ""
    assert gold_answer("no box", "math") is None
    assert gold_answer("2*2=<<2*2=4>>4\n#### 4,000", "gsm8k") == "4,000"
    assert gold_answer("4", "gsm8k") is None
