"""Run folder -> page: the numbers arrive, the words follow them, hostile text stays text."""

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

import selfcorrect.report
from selfcorrect.analysis.svg import ticks
from selfcorrect.errors import UserError
from selfcorrect.evaluation.metrics import Estimate, Summary
from selfcorrect.report import write_report
from selfcorrect.report.curves import Line, curve, reader, smooth
from selfcorrect.report.ending import ending
from selfcorrect.report.load import Step, load_run
from selfcorrect.report.paper import PAPER
from selfcorrect.report.pictures import accuracy_picture, attempt_colours
from selfcorrect.report.wording import control_sentence, headline

from .helpers import COUNTS, HOSTILE, estimate, make_run, rollout, step_row, summary, write_evaluation, write_lines


class Page(HTMLParser):
    """What a browser would make of the page: its tags, the rows of its tables, its scripts and its words."""

    def __init__(self, path: Path) -> None:
        super().__init__(convert_charrefs=True)
        self.source = path.read_text(encoding="utf-8")
        self.tags: list[str] = []
        self.attributes: list[str] = []
        self.rows: list[list[str]] = []
        self.scripts: list[str] = []
        self.words = ""
        self._inside = ""
        self.feed(self.source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [name for name, _ in attrs]
        self._inside = tag
        if tag == "tr":
            self.rows.append([])
        elif tag in ("th", "td") and self.rows:
            self.rows[-1].append("")
        elif tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = "" if tag in ("small", "script", "style", "td", "th") else self._inside

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts[-1] += data
        elif self._inside != "style":
            self.words += data
        if self._inside in ("td", "th") and self.rows and self.rows[-1]:
            self.rows[-1][-1] += data.strip()

    def row(self, label: str) -> list[str]:
        return next(row for row in self.rows if row and row[0] == label)

    def rollouts(self) -> Any:
        return json.loads(self.scripts[-1])


def says(run: Path) -> str:
    return headline(load_run(run)).sentence.replace("\N{NO-BREAK SPACE}", " ")


def test_the_tables_hold_the_numbers(tmp_path: Path) -> None:
    page = Page(write_report(make_run(tmp_path)))
    order = [row[0] for row in page.rows if row and row[0].startswith(("Before", "After"))]
    assert order[:3] == ["Before training", "After stage1", "After stage2"]
    # t1, t2, delta, i->c, c->i, fix rate, unchanged, n
    assert page.row("After stage2")[1:] == ["60.0", "65.0", "+5.0", "15.0", "10.0", "37.5", "25.0", "20"]
    assert page.row("Before training")[3] == "\N{MINUS SIGN}10.0"
    assert page.row("SCoRe")[1:6] == ["60.0", "64.4", "+4.4", "5.8", "1.4"]
    assert page.row("An attempt at another problem")[1:3] == ["1.0", "20.0"]
    assert page.row("Evaluation")[-1] == "n"
    assert ["After stage2", "30.0", "35.0", "+5.0", "15.0", "10.0", "37.5", "25.0", "20", "37"] in page.rows
    assert "+3.0 to +7.0" in page.source  # the interval of delta stands beneath it
    assert "elsewhere.jsonl" in page.source
    assert "/home/someone" not in page.source
    assert "gradient not finite: 1 step (7)" in page.words


def test_hostile_text_never_becomes_markup(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    clean = Page(write_report(run))
    name = "<img src=x onerror=alert(1)>"
    write_evaluation(
        run, name, summary(0.6, 0.7), step=20, task=HOSTILE, split=HOSTILE, controls={HOSTILE: summary(0.1, 0.2)}
    )
    bad = rollout(0, "fixed", text=HOSTILE, id=HOSTILE, prompt=HOSTILE, reference={HOSTILE: HOSTILE})
    bad["attempts"][0] |= {"answer": HOSTILE, "detail": HOSTILE}
    write_lines(run / "evaluations" / f"{name}.rollouts.jsonl", [bad])
    write_lines(
        run / "metrics.jsonl", [step_row(s, stage=HOSTILE, skipped=True, skip_reason=HOSTILE) for s in range(1, 9)]
    )
    (run / "environment.json").write_text(json.dumps({"command": HOSTILE, "versions": {HOSTILE: HOSTILE}}))
    (run / "config.yaml").write_text(f"# {HOSTILE[:-1]}\nalgorithm: {{baseline: '{HOSTILE[:-2]}'}}\n", encoding="utf-8")
    page = Page(write_report(run))
    assert not {"img", "b"} & (set(page.tags) - set(clean.tags))
    assert "img" not in page.tags
    assert not any(attribute.startswith("on") for attribute in page.attributes)
    assert len(page.scripts) == 2  # our script and the data
    assert page.scripts[0] == clean.scripts[0]
    assert not set("<>&\u2028") & set(page.scripts[1])
    item = page.rollouts()["sources"][0]["items"][0]
    assert item["attempts"][0]["text"] == item["prompt"] == HOSTILE  # and yet it arrives unchanged


def test_a_run_in_progress(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text("stages: [{name: stage1, steps: 400}]\n")
    assert "Nothing to show yet" in Page(write_report(run)).words
    (run / "metrics.jsonl").write_text(f"{json.dumps(step_row(1))}\n" + '{"step": 2, "rewar')  # killed while writing
    assert says(run) == "No evaluation yet: training stands at step 1."
    write_evaluation(run, "base", summary(0.5, 0.4), step=0)
    (run / "evaluations" / "stage1.json").write_text('{"name": "sta')
    page = Page(write_report(run))
    assert says(run).startswith("Before training, a second attempt does harm")
    assert "training stands at step 1 of 400" in page.words
    assert "evaluations/stage1.json holds no JSON object" in page.words
    assert len(page.scripts) == 1  # no rollouts yet


@pytest.mark.parametrize("name", ["empty", "missing", "file"])
def test_what_is_no_run_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match=name):
        write_report(tmp_path / name)
    assert not list(tmp_path.rglob("report.html"))


def test_a_wrong_evaluation_is_named(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    write_evaluation(run, "stage2", summary(0.6, 0.7) | {"fixed": {"value": 0.1, "low": 0.0}})
    with pytest.raises(UserError, match=r"stage2\.json: summary\.fixed\.high"):
        write_report(run)


@pytest.mark.parametrize(
    ("accuracy", "half", "expected"),
    [
        ((0.6, 0.65), 0.02, "a second attempt lifts accuracy from 60.0 % to 65.0 %: +5.0 points"),
        ((0.6, 0.61), 0.02, "not measurably better or worse"),
        ((0.6, 0.59), 0.02, "the interval of the difference includes zero"),
        ((0.6, 0.5), 0.02, "does harm: accuracy falls from 60.0 % to 50.0 %, by 10.0 points"),
        ((0.4, 0.7), 0.02, "but attempt 1 fell under the base model's (sandbagging)"),
        ((0.48, 0.6), 0.02, "a second attempt lifts accuracy from 48.0 %"),  # of 50 -/+ 2: the difference is -2 -/+ 2.8
        ((0.6, 0.5, 0.7), 0.02, "2 further attempts lift accuracy from 60.0 % to 70.0 %"),
    ],
)
def test_the_headline_claims_what_the_interval_allows(
    tmp_path: Path, accuracy: tuple[float, ...], half: float, expected: str
) -> None:
    run = make_run(tmp_path)
    write_evaluation(run, "stage2", summary(*accuracy, half=half))
    assert expected in says(run)
    assert ("sandbagging" in Page(write_report(run)).words.lower()) == (accuracy[0] < 0.45)


@pytest.mark.parametrize(
    ("last", "expected"), [(0.2, "so it depends"), (0.64, "hardly uses"), (0.8, "its own attempt misleads it")]
)
def test_the_control_sentence_follows_the_numbers(tmp_path: Path, last: float, expected: str) -> None:
    run = make_run(tmp_path)
    write_evaluation(run, "stage2", summary(0.6, 0.65), controls={"swapped": summary(0.0, last)})
    final = load_run(run).final
    assert final is not None
    assert expected in control_sentence(final)


CLAIMS = (
    "lift",
    "harm",
    "measurabl",
    "hardly uses",
    "sandbagging",
    "so it depends",
    "misleads",
    "% end right",
    "first one's answer on",
)


def only(first: str, last: str, n: int, *accuracy: float) -> dict[str, Any]:
    """A summary of n problems with one outcome an attempt."""
    return summary(*accuracy, n=n) | {"outcomes": [{first: n}, {last: n}]}


@pytest.mark.parametrize(
    ("last", "expected"),
    [
        (only("truncated", "wrong", 4, 0.0, 0.0), "only 4 problems were graded"),
        (only("wrong", "correct", 4, 0.0, 1.0), "only 4 problems were graded"),
        (only("truncated", "truncated", 300, 0.0, 0.0), "100 % of the first attempts were cut off"),
        (only("no_answer", "no_answer", 300, 0.0, 0.0), "no answer could be read from 100 %"),
        (only("wrong", "wrong", 300, 0.0, 0.0), "no problem of 300 right"),
        (only("correct", "correct", 300, 1.0, 1.0), "no problem of 300 wrong"),
    ],
)
def test_no_conclusion_from_a_handful_or_a_floor(tmp_path: Path, last: dict[str, Any], expected: str) -> None:
    run = make_run(tmp_path)
    write_evaluation(run, "base", last, step=0)
    (run / "evaluations" / "stage1.json").unlink()
    write_evaluation(run, "stage2", last, controls={"swapped": last, "independent": last})
    assert expected in says(run)
    page = Page(write_report(run))
    assert not [claim for claim in CLAIMS if claim in page.words.replace("\N{NO-BREAK SPACE}", " ").lower()]
    assert "Nothing can be concluded on what the last attempt reads" in page.words


@pytest.mark.parametrize(
    ("own", "control", "expected"),
    [
        (summary(0.6, 0.65), summary(0.6, 0.64, n=4), "only 4 problems were graded with another attempt shown"),
        (summary(0.6, 0.65, n=40), summary(0.0, 0.6, n=40, half=0.2), "which leaves open whether it uses"),
        (summary(0.6, 0.65), summary(0.6, 0.0) | {"outcomes": [{}, {"truncated": 20}]}, "cut off in a control"),
        (summary(0.6, 0.02, n=100), summary(0.0, 0.01, n=100), "hardly ever right, whatever it is shown"),
        (summary(0.6, 0.99, n=100), summary(0.0, 0.98, n=100), "hardly ever wrong, whatever it is shown"),
    ],
)
def test_controls_that_show_nothing(
    tmp_path: Path, own: dict[str, Any], control: dict[str, Any], expected: str
) -> None:
    run = make_run(tmp_path)
    write_evaluation(run, "stage2", own, controls={"swapped": control})
    final = load_run(run).final
    assert final is not None
    assert expected in control_sentence(final)
    assert not [claim for claim in CLAIMS if claim in control_sentence(final).lower() and claim != "measurabl"]


def test_every_attempt_has_its_column(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    write_evaluation(run, "stage2", summary(0.6, 0.5, 0.7))
    page = Page(write_report(run))
    assert page.row("After stage2")[1:5] == ["60.0", "50.0", "70.0", "+10.0"]
    assert page.row("Before training")[1:5] == ["50.0", "40.0", "—", "\N{MINUS SIGN}10.0"]
    assert page.row("Evaluation")[1:5] == ["Accuracy@t1", "Accuracy@t2", "Accuracy@t3", "Δ(t1,t3)"]


def test_many_long_rollouts_stay_small_and_are_counted(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    rows = [rollout(i, "fixed" if i % 2 else "kept_wrong", text=f"{i} {'<&é' * 1500}") for i in range(1400)]
    write_lines(run / "evaluations" / "stage2.rollouts.jsonl", [*rows, rollout(1400, "left_out")])
    page = Page(path := write_report(run))
    source = page.rollouts()["sources"][0]
    assert path.stat().st_size < 2_000_000
    assert source["totals"] == {"fixed": 700, "broken": 0, "kept_right": 0, "kept_wrong": 700, "left_out": 1}
    shown = [int(item["id"][1:]) for item in source["items"]]
    assert 20 < len(shown) < 600
    assert shown == sorted(shown)
    assert sum(number < 700 for number in shown) == pytest.approx(len(shown) / 2, rel=0.1)  # spread, not the first


def test_small_rollout_files_are_embedded_whole(tmp_path: Path) -> None:
    sources = Page(write_report(make_run(tmp_path))).rollouts()["sources"]
    assert [source["label"] for source in sources] == ["after stage2", "while training"]
    assert len(sources[0]["items"]) == sum(COUNTS.values())
    assert {c: n for c, n in sources[0]["totals"].items() if n} == COUNTS


def test_drawings_are_well_formed_and_finite(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    write_lines(
        run / "metrics.jsonl", [step_row(1), step_row(2, kl=[None, 0.2], grad_norm=math.inf), step_row(3, kl=None)]
    )
    drawings = re.findall(r"<svg.*?</svg>", write_report(run).read_text(encoding="utf-8"), re.DOTALL)
    assert len(drawings) >= 9
    for drawing in drawings:
        root = ElementTree.fromstring(drawing)
        assert not re.search(r"\b(nan|inf)\b", drawing)
        assert root.get("aria-label")


def test_smoothing_keeps_to_its_stage_and_skips_gaps() -> None:
    values = [0.0, 2.0, math.nan, 10.0, 10.0]
    assert smooth(values, ["a", "a", "a", "b", "b"], 3) == [1.0, 1.0, 2.0, 10.0, 10.0]


def test_the_papers_numbers_are_those_of_the_task(tmp_path: Path) -> None:
    math, code = ("64.4", "64.6"), ("64.6", "64.4")
    for task, of, (shown, hidden) in (
        ("math", None, math), ("code", None, code), ("repair", "math", math), ("repair", "code", code),
        ("repair", None, code),
    ):  # fmt: skip
        run = tmp_path / f"{task} {of}"
        write_evaluation(run, "base", summary(0.5, 0.4), step=0, task=task)
        if of:
            (run / "config.yaml").write_text(f"task: {{name: {task}, data: rows.jsonl, of: {{name: {of}}}}}\n")
        page = write_report(run).read_text()
        assert shown in page
        assert hidden not in page


@pytest.mark.parametrize("attempts", [2, 3, 4, 5, 10, 12])
def test_every_attempt_has_a_colour_and_no_label_runs_over_another(attempts: int) -> None:
    accuracy = tuple(Estimate(v, v, v) for v in [1 - 0.99 * a / attempts for a in range(attempts)])
    zero = Estimate(-0.999, -1.0, 0.0)
    told = Summary(9, accuracy, zero, zero, zero, zero, zero, ())
    colours = attempt_colours([told])
    assert len(set(colours)) == min(10, attempts)
    drawn = ElementTree.fromstring(str(accuracy_picture([("A name that is much too long for its place", told)] * 2)))
    texts = [(t.text or "", t.attrib) for t in drawn.iter("text")]
    numbers = [t for t, a in texts if a["text-anchor"] == "end" and "→" in t]
    labels = [t for t, a in texts if "strong" in a["class"]]
    assert len(numbers) == len(labels) == 2
    for label, number in zip(labels, numbers, strict=True):
        assert 7.2 * len(label) + 6.4 * len(number) <= 400
    dots = [c.attrib["class"].removeprefix("dot ") for c in drawn.iter("circle")]
    assert dots == colours * 2
    css = (Path(selfcorrect.report.__file__).parent / "page.css").read_text()
    assert all(f".{colour.split()[-1]} {{" in css for colour in colours)


def test_a_value_that_never_changes_has_an_axis() -> None:
    for value in (1.0, -10.0, 0.0, 2.5, 1e-9):
        assert len(ticks(value, value)) >= 2


def avg(first: float, last: float, unchanged: float = 0.25) -> dict[str, Any]:
    """A summary over four samples of 50 problems."""
    estimate = {"value": 0.9, "low": 0.8, "high": 0.95}
    passes = [{"k": 4, "n": 49, "accuracy": [estimate] * 2, **dict.fromkeys(("delta", "fixed", "broken"), estimate)}]
    found = summary(first, last, n=50) | {"samples": 4, "passes": passes, "smallest": 0.031}
    return found | {"unchanged": {"value": unchanged, "low": unchanged, "high": unchanged}}


def test_samples_and_wordings_are_shown(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    less = {"value": 0.04, "low": 0.01, "high": 0.07}
    more = {"value": -0.04, "low": -0.07, "high": -0.01}
    wordings = [
        {"name": "recipe", "prompt": "Check it.", "summary": avg(0.6, 0.6, 0.988), "less": {HOSTILE: more}},
        {"name": HOSTILE, "prompt": HOSTILE, "summary": avg(0.6, 0.64), "less": {"recipe": less}},
    ]
    write_evaluation(
        run, "stage2", avg(0.6, 0.6, 0.988), wordings=wordings, decoding="4 samples at temperature 0.7",
        smallest_delta={"assumed": 0.025, "measured": 0.031},
    )  # fmt: skip
    page = Page(write_report(run))
    assert "Percent, Avg@4: the mean over problems of each one's mean over 4 samples" in page.words
    assert page.row("pass@4")[1:4] == ["90.0", "90.0", "+90.0"]
    # t2, delta, i->c, c->i, unchanged, against each
    assert page.row("recipe")[1:] == ["60.0", "0.0", "15.0", "10.0", "98.8", "\N{EM DASH}", "\N{MINUS SIGN}4.0"]
    words = page.words.replace("\N{NO-BREAK SPACE}", " ")
    assert "Asked as recipe, the last attempt repeats the first on 98.8 %; asked as" in words
    assert "Measurably better than the task's own wording: " in words
    assert "50 problems x 4 samples resolve a delta of 3.1 points or more" in words
    assert "Before, 2.5 points were assumed." in words
    assert "img" not in page.tags


@pytest.mark.parametrize(
    ("first", "last", "delta", "told"),
    [
        (-0.02, 0.0, 0.02, "The gain in delta is bought by a worse first answer"),
        (-0.02, 0.02, 0.04, "50 % of the gain in delta is bought by a worse first answer"),
        (0.0, 0.02, 0.02, "Attempt 1 itself did not measurably change"),
    ],
)
def test_the_first_answer_is_held_against_the_base_problem_by_problem(
    first: float, last: float, delta: float, told: str, tmp_path: Path
) -> None:
    """The base is right on 50 -/+ 2 %, this one on 48 -/+ 2: unpaired no difference, paired 2 -/+ 1 points."""
    run = make_run(tmp_path)
    change = {key: {"value": v, "low": v - 0.01, "high": v + 0.01} for key, v in
              (("first", first), ("last", last), ("delta", delta))}  # fmt: skip
    write_evaluation(run, "stage2", summary(0.48, 0.6), against_base=change)
    found = headline(load_run(run))
    words = " ".join(found.findings).replace("\N{NO-BREAK SPACE}", " ")
    assert told in words
    assert ("sandbagging" in found.sentence) == (first < 0) == (found.tone == "bad")
    assert ("bought" in words) == (first < 0)


def test_what_changed_on_the_way_is_told(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    assert "Changes" not in Page(write_report(run)).words
    changes = [
        {"step": 4, "field": "stages.stage2.steps", "old": 4, "new": 6},
        {"step": 8, "field": "task.data", "old": None, "new": "/home/someone/rows.jsonl"},
    ]
    write_lines(run / "changes.jsonl", changes)
    damaged = '{}\n{"step": null, "field": "x", "old": 1, "new": 2}\n{"step": 9, "fie'
    (run / "changes.jsonl").write_text((run / "changes.jsonl").read_text() + damaged)
    (run / "alarms.jsonl").write_text('{"step": 3}\n')
    (run / "metrics.jsonl").write_text('{"step": "3"}\n{"step": true}\n' + (run / "metrics.jsonl").read_text())
    write_evaluation(run / "earlier" / "step-000008", "stage2", summary(0.5, 0.58), step=8)
    page = Page(write_report(run))
    assert ["stages.stage2.steps", "4", "4", "6"] in page.rows
    assert ["task.data", "8", "\N{EM DASH}", "…/rows.jsonl"] in page.rows
    assert [row[:3] for row in page.rows].count(["After stage2", "50.0", "58.0"]) == 1
    assert "step 8, earlier/step-000008" in page.words
    assert "2 damaged lines of metrics.jsonl left out" in page.words


def test_the_papers_tables_agree_with_themselves() -> None:
    """Three figures of its prose do not: what stands beside ours is the tables'."""
    for rows in PAPER.values():
        for row in rows.values():
            assert row.t2 - row.t1 == pytest.approx(row.delta, abs=0.01), row
            if row.fixed is not None and row.broken is not None:
                assert row.fixed - row.broken == pytest.approx(row.delta, abs=0.01), row


@pytest.mark.parametrize("size", [3e-10, 2.5e-7, 0.0003, 0.004, 0.01, 0.4, 30.0, 2500.0, 21_000.0])
def test_labels_of_an_axis_stay_beside_it(size: float) -> None:
    """However small the values are: the axis then counts a power of ten of its unit."""
    steps = [Step(n, "one", {"gap": (size * (0.6 + 0.04 * (n % 11)),)}, False, "") for n in range(1, 40)]
    drawn = curve("Gap", "nats", [Line("gap", "quiet", reader("gap"))], steps)
    assert drawn
    marks = [mark for mark in ElementTree.fromstring(str(drawn.svg)) if mark.get("class") == "t num"]
    labels = [mark.text or "" for mark in marks if mark.get("text-anchor") == "end"]
    assert max(map(len, labels)) <= 5
    unit = str(drawn.svg).partition("Gap, ")[2].partition(":")[0]
    power = {3e-10: "⁻¹²", 2.5e-7: "⁻⁹", 0.0003: "⁻⁶", 0.004: "⁻³"}.get(size)
    assert unit == (f"nats \N{MULTIPLICATION SIGN} 10{power}" if power else "nats")


def test_charts_of_several_lines_say_which_is_which(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    shares = {"truncated": [0.1, 0.2], "equal_groups": 0.5}
    write_lines(run / "metrics.jsonl", [step_row(n) | shares for n in range(1, 5)])
    page = write_report(run).read_text()
    charts = [part.partition("</figure>")[0] for part in page.split('<figure class="chart">')[1:]]
    assert "What teaches nothing" in page
    for chart in charts:
        names = re.findall(r'data-name="([^"]+)"', chart)
        assert len(names) < 2 or re.findall(r"</i>([^<]+)</li>", chart) == names


def test_flows_of_three_attempts(tmp_path: Path) -> None:
    """And of rewards in parts: on the page and in the table at a run's end."""
    run = make_run(tmp_path)
    assert not [
        line for line in (*ending(run), write_report(run).read_text()) if "reward@t" in line or "Mean reward of" in line
    ]
    flows = [
        {"delta": estimate(delta), "fixed": estimate(0.2), "broken": estimate(0.2 - delta), "unchanged": estimate(0.4)}
        for delta in (0.15, -0.05)
    ]
    told = {"flows": flows, "rewards": [estimate(each) for each in (0.55, 0.7, 0.665)]}
    write_evaluation(run, "stage2", summary(0.5, 0.65, 0.6) | told, step=10)
    page = Page(write_report(run)).rows
    rows = [row for row in page if row[0].startswith("Attempt 1 to 2")]
    assert rows
    assert rows[0][1].startswith("+15.0")
    earned = [row[1:] for row in page if row[0].startswith("After stage") and row[1][:2] == "0."]
    assert [row[0][:5] for row in earned] == ["0.520", "0.550"]  # of stage 1 its accuracy: no reward of it is partial
    assert [cell[:5] for cell in earned[1]] == ["0.550", "0.700", "0.665"]
    table = ending(run)
    assert [line.split()[:4] for line in table if "->" in line and "t1" in line][-1] == ["t1", "->", "t2", "+15.0"]
    assert table[0].split()[:6] == ["Accuracy@t1", "Accuracy@t2", "Accuracy@t3", "reward@t1", "reward@t2", "reward@t3"]
    assert table[-4].split()[2:8] == ["50.0", "65.0", "60.0", "0.550", "0.700", "0.665"]
    assert table[-2].split() == ["t2", "->", "t3", "-5.0", "[-7.0,", "-3.0]", "20.0", "25.0"]
