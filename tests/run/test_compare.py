"""A comparison: its budget, what its runs share, what an interrupted one does again, and its table."""

import contextlib
import csv
import dataclasses
import json
import logging
import math
import os
import platform
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from selfcorrect import api
from selfcorrect.comparing import execute
from selfcorrect.comparing.budget import Account, account
from selfcorrect.comparing.compare import compare
from selfcorrect.comparing.execute import JobError
from selfcorrect.comparing.page import findings, headline, spread_table, standing
from selfcorrect.comparing.plan import check, merge, repair_jobs, search_jobs, table_jobs
from selfcorrect.comparing.results import read_answers, summarize
from selfcorrect.config import CompareConfig
from selfcorrect.config.recipe import validate
from selfcorrect.errors import ConfigError, DataError, TrainingInterrupted
from selfcorrect.models.freed import WHOLE
from selfcorrect.runs.recipes import train_config
from selfcorrect.tasks.countdown import Countdown
from tests.support.processes import alive
from tests.support.runs import lucky_grade, read_rows, recipe

ONE = {"name": "one", "objective": "stage1", "steps": 1, "learning_rate": 0.003}
TWO = {"name": "two", "objective": "stage2", "steps": 1, "learning_rate": 0.003}
REPAIR = {"name": "repair", "data": "failed.jsonl", "of": {"name": "math"}}
METHODS: list[dict[str, Any]] = [
    {"name": "refine", "label": "Self-Refine", "paper": "self_refine",
     "settings": {"stages": [], "rollouts": {"self_refine": {"feedback_prompt": "?", "refine_prompt": "?"}}}},
    {"name": "pair", "label": "Pair-SFT", "settings": {"stages": [
        {"name": "sft", "objective": "pair_sft", "steps": 2, "collect": 4, "batch": 4, "learning_rate": 0.003}]}},
    {"name": "pair_plus", "label": "Pair-SFT, D+", "settings": {"stages": [
        {"name": "sft", "objective": "pair_sft", "steps": 2, "collect": 4, "batch": 4, "learning_rate": 0.003,
         "keep_right": True}]}},
    {"name": "plain", "label": "No shaping", "settings": {"stages": [ONE, {**TWO, "alpha": 0}]}},
    {"name": "score", "label": "SCoRe", "paper": "score", "settings": {"stages": [ONE, TWO]}},
]  # fmt: skip


def comparison(output: Path, model: Path, problems: int = 4, **changes: Any) -> CompareConfig:
    common = {
        key: value for key, value in recipe(output, model).items() if key not in ("kind", "name", "output", "stages")
    }
    common["evaluation"] = {"problems": problems, "controls": False}
    told = {
        "kind": "compare", "name": "small", "output": str(output), "seeds": [0, 1], "common": common,
        "budget": {"completions": 32, "updates": 2}, "methods": METHODS, "against": "score", "resamples": 200,
        "paper": "math", **changes,
    }  # fmt: skip
    config = validate(told)
    assert isinstance(config, CompareConfig)
    return config


@pytest.mark.nightly
def test_runs_end_with_a_comparison_that_is_killed(tmp_path: Path) -> None:
    """The run is one that waits for its recipe: a named pipe that nothing comes through."""
    pipe, log, reading, telling = tmp_path / "recipe.yaml", tmp_path / "log", *os.pipe()
    os.mkfifo(pipe)
    comparing = os.fork()
    if comparing == 0:
        with contextlib.suppress(BaseException):
            launched: Any = execute.launch(["check", str(pipe)], log)
            os.write(telling, str(launched.pid).encode())
            time.sleep(600)
        os._exit(1)
    run = int(os.read(reading, 20))
    recipe = None
    while recipe is None:
        assert alive({run}), log.read_text()
        with contextlib.suppress(OSError):  # not opened at its other end yet
            recipe = os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
        time.sleep(0.02)
    began = Path(f"/proc/{run}/environ").read_text()
    os.kill(comparing, signal.SIGKILL)
    os.waitpid(comparing, 0)
    until = time.monotonic() + 10
    while alive({run}) and time.monotonic() < until:
        time.sleep(0.02)
    assert not alive({run})
    for descriptor in (recipe, reading, telling):
        os.close(descriptor)
    assert WHOLE.partition(":")[0] in began or platform.libc_ver()[0] != "glibc"  # glibc ends each setting there


class Done:
    """A process that has ended."""

    def __init__(self, returncode: int) -> None:
        self.returncode: int | None = returncode

    def poll(self) -> int | None:
        return self.returncode

    def wait(self) -> int:
        return self.returncode or 0

    def terminate(self) -> None:
        """It has ended."""


class InProcess:
    """Runs the commands here, in the order they come; the one numbered `fails` does not get to its end."""

    def __init__(self, fails: int = 0) -> None:
        self.commands: list[str] = []
        self._fails = fails

    def __call__(self, arguments: list[str], log: Path) -> Done:
        log.touch()
        self.commands.append(" ".join([arguments[0], *(Path(a).stem for a in arguments[1:])]))
        if len(self.commands) == self._fails:
            log.write_text("error: the disk is full\n")
            return Done(2)
        if arguments[0] == "evaluate":
            api.evaluate(arguments[1])
        else:
            api.train(arguments[-1], resume_run=arguments[1] == "--resume")
        return Done(0)


class UnderWay(Done):
    """A process that runs until it is asked to end; the second one's first look brings the signal to the comparison."""

    def __init__(self, told: list[str], signum: int) -> None:
        super().__init__(0)
        self.returncode, self._told, self._signal = None, told, signum

    def poll(self) -> int | None:
        if self._told == ["begun", "begun"]:
            signal.raise_signal(self._signal)
        return None

    def wait(self) -> int:
        self._told.append("waited for")
        return 143

    def terminate(self) -> None:
        self._told.append("asked")


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_is_passed_on_and_the_runs_are_waited_for(
    signum: int, status: int, model: Path, tmp_path: Path
) -> None:
    told, said = list[str](), list[str]()

    def start(arguments: list[str], log: Path) -> UnderWay:
        told.append("begun")
        return UnderWay(told, signum)

    with pytest.raises(TrainingInterrupted, match=r"^stopped; the same command goes on: finished runs stay") as stopped:
        compare(comparison(tmp_path, model, parallel=2), said.append, start)
    assert stopped.value.status == status
    assert told[:6] == ["begun", "begun", "asked", "asked", "waited for", "waited for"]
    assert said[-1] == "stopping: 2 runs end their step and keep it"


@pytest.fixture(autouse=True)
def _lucky(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Countdown, "grade", lucky_grade)
    monkeypatch.setattr(execute, "_POLL", 0.0)  # the runs here have ended when they have begun
    logging.getLogger("transformers").setLevel(logging.ERROR)


def test_every_run_once_and_half_done_ones_go_on(model: Path, tmp_path: Path) -> None:
    config, said = comparison(tmp_path, model), list[str]()
    first = InProcess(fails=6)
    with pytest.raises(
        JobError, match=r"run plain-0 failed with status 2: error: the disk is full \(see .*plain-0.log\)"
    ):
        compare(config, said.append, first)
    page = (tmp_path / "small" / "compare.html").read_text()  # of what there is, and says what failed
    assert "run plain-0 failed with status 2" in page
    shared = [command for command in first.commands if command.startswith("train one-")]
    assert len(shared) == 2  # Stage I once a seed, for both methods that begin with it
    again = InProcess()
    folder = compare(config, said.append, again)
    assert again.commands == ["train --resume plain-0"]
    nothing = InProcess()
    compare(config, said.append, nothing)
    assert nothing.commands == []
    assert any(line.endswith("all of them are done already") for line in said)
    assert "  refine: 0 completions, 0 updates (needs fewer)" in said
    assert "  score: 32 completions, 2 updates" in said

    alone = InProcess()  # and the forked runs are what they would have been without sharing
    only = comparison(tmp_path / "alone", model, methods=METHODS[4:], seeds=[0])
    compare(only, said.append, alone)
    assert alone.commands == ["train score-0"]
    ends = [
        base / "small" / "runs" / "score-0" / "final" / "model.safetensors" for base in (tmp_path, tmp_path / "alone")
    ]
    assert ends[0].read_bytes() == ends[1].read_bytes()
    pairs = [folder / "runs" / f"{name}-1" / "traces" / "sft-1.jsonl" for name in ("pair", "pair_plus")]
    assert pairs[0].read_bytes() == pairs[1].read_bytes()
    assert (pairs[1].parent / "shared-sft-1.json").exists()

    _check_table(folder)
    compare(config.model_copy(update={"parallel": 3}), said.append, nothing)  # other threads, the same runs
    assert nothing.commands == []
    rated = {**METHODS[3], "settings": {"stages": [ONE, {**TWO, "alpha": 0, "learning_rate": 0.004}]}}
    with pytest.raises(
        ConfigError,
        match=r"/plain-0 \(method plain\) was made with other settings than the comparison now names: "
        r"stages.two.learning_rate was 0.003 and is 0.004 now; so were \S*/plain-1. Put them back, give the comparison",
    ):
        compare(comparison(tmp_path, model, methods=[*METHODS[:3], rated, METHODS[4]]), said.append, again)


def _check_table(folder: Path) -> None:
    with (folder / "compare.csv").open() as lines:
        rows = {row["method"]: row for row in csv.DictReader(lines)}
    assert list(rows) == ["base", "refine", "pair", "pair_plus", "plain", "score"]
    for name in ("score", "plain"):
        attempts = [
            [attempt["outcome"] == "correct" for attempt in row["attempts"]]
            for seed in (0, 1)
            for row in read_rows(folder / "runs" / f"{name}-{seed}" / "evaluations" / "two.rollouts.jsonl")
        ]
        assert float(rows[name]["t1"]) == pytest.approx(sum(a for a, _ in attempts) / 8)
        assert float(rows[name]["fixed"]) == pytest.approx(sum(b and not a for a, b in attempts) / 8)
    assert float(rows["plain"]["gain"]) == pytest.approx(float(rows["plain"]["t2"]) - float(rows["score"]["t2"]))
    page, table = (folder / "compare.html").read_text(), (folder / "compare.md").read_text()
    for text in (
        "Self-Refine",
        "nothing can be concluded",
        "of another model and task: Gemini 1.5 Flash on MATH",
        "64.4",
    ):
        assert text in page
        assert text in table
    kept = json.loads((folder / "compare.json").read_text())
    assert kept["environment"]["machine"].items() >= {"device": "cpu", "precision": "float32"}.items()
    spent = kept["accounts"]["score"]
    steps = read_rows(folder / "runs" / "score-0" / "metrics.jsonl")
    assert (sum(row["completions"] for row in steps), len(steps)) == (spent["completions"], spent["updates"])


@pytest.mark.nightly
def test_the_search_is_the_same_for_all(model: Path, tmp_path: Path) -> None:
    search = {"learning_rate": [0.5, 1.0], "beta1": [0.01, 0.1], "share": 0.5, "problems": 6}
    config = comparison(tmp_path, model, search=search, methods=[METHODS[2], METHODS[4]], seeds=[0])
    _, trials = search_jobs(config)
    assert [(t.method, t.choice.learning_rate, t.choice.beta1) for t in trials] == [
        ("pair_plus", 0.5, None), ("pair_plus", 1.0, None),
        *(("score", rate, beta1) for rate in (0.5, 1.0) for beta1 in (0.01, 0.1)),
    ]  # fmt: skip
    assert all(t.config.seed == 1000 and t.config.evaluation.split == "train" for t in trials)
    said: list[str] = []
    folder = compare(config, said.append, InProcess())
    told = json.loads((folder / "compare.json").read_text())
    best = max((t for t in told["search"] if t["method"] == "score"), key=lambda t: float(t["accuracy"]["value"]))
    made = train_config(folder / "runs" / "score-0" / "config.yaml")
    found = [(stage.learning_rate, getattr(stage, "beta1", None)) for stage in made.stages]
    assert found == [(0.003 * best["learning_rate"], best["beta1"])] * 2


def test_a_comparison_goes_into_no_run(model: Path, tmp_path: Path) -> None:
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "config.yaml").write_text("kind: train\n")
    with pytest.raises(ConfigError, match="small holds a run or an evaluation; choose another name"):
        compare(comparison(tmp_path, model), launch=InProcess())
    assert [file.name for file in (tmp_path / "small").iterdir()] == ["config.yaml"]


def test_accounts_and_what_is_over_the_budget(model: Path, tmp_path: Path) -> None:
    config = comparison(tmp_path, model)
    assert list(check(config).values()) == [
        Account(0, 0), Account(4 * 4, 2), Account(4 * 4, 2), Account(32, 2), Account(32, 2),
    ]  # fmt: skip
    stages = [
        {"name": "a", "objective": "single_turn", "steps": 3, "learning_rate": 1.0},
        {"name": "b", "objective": "star", "steps": 6, "iterations": 3, "collect": 5, "learning_rate": 1.0},
    ]
    assert account(train_config(recipe(tmp_path, model, stages=stages))) == Account(3 * 8 + 3 * 5 * 4 * 2, 9)
    repaired = train_config({**recipe(tmp_path, model, stages=[ONE, TWO]), "task": REPAIR})
    assert account(repaired) == Account(2 * 8, 2)  # attempt 1 is read
    with pytest.raises(
        ConfigError, match="method plain is over the budget: 32 sampled completions of 30; lower its steps"
    ):
        check(comparison(tmp_path, model, budget={"completions": 30, "updates": 2}))
    other = {**METHODS[3], "settings": {**METHODS[3]["settings"], "evaluation": {"problems": 3}}}
    with pytest.raises(ConfigError, match=r"method plain: settings.evaluation differs from score's"):
        check(comparison(tmp_path, model, methods=[METHODS[4], other]))
    repair = {"name": "repair", "data": str(tmp_path / "none.jsonl"), "of": {"name": "math"}}
    with pytest.raises(ConfigError, match=r"^repair.data = '.*none.jsonl': no such file"):
        check(comparison(tmp_path, model, repair=repair))
    with pytest.raises(ConfigError, match="none of them trains"):
        check(comparison(tmp_path, model, methods=METHODS[:1], against="refine"))
    _, jobs = table_jobs(config, {})
    assert [job.name for job in jobs[:5]] == [f"{method['name']}-0" for method in METHODS]  # whole seeds first


def test_repair_is_a_column_where_the_task_has_it(model: Path, tmp_path: Path, write: "Write") -> None:
    """Every model, the base's included, on recorded wrong attempts: their accuracy after one more."""
    config = comparison(tmp_path, model, repair=REPAIR, seeds=[0])
    config = config.model_copy(update={"common": merge(config.common, {"evaluation": {"offset": 4}})})
    found = {job.name: job.config for job in repair_jobs(config, table_jobs(config, {})[1])}
    assert list(found) == ["base", "refine-0", "pair-0", "pair_plus-0", "plain-0", "score-0"]
    folder = tmp_path / "small"
    paths = {name: made.model.path for name, made in found.items()}
    assert paths == {name: str(folder / "runs" / name / "final") for name in paths} | {
        "base": str(model),
        "refine-0": str(model),
    }
    assert all(made.task.name == "repair" and not made.stages for made in found.values())
    assert all((made.evaluation.offset, made.evaluation.external) == (0, ()) for made in found.values())
    right = read_answers({0: write("r", [(False, True)] * 3 + [(False, False)] * 9)})
    plain = read_answers({0: write("p", [(True, True)] * 12)})
    result = summarize("x", plain, plain, plain, 200, right)
    assert result.repair is not None
    assert (result.repair.value, result.t2.value) == (0.25, 1.0)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"against": "scores"}, "against: scores is none of the methods"),
        ({"methods": [METHODS[4], METHODS[4]]}, "names must differ"),
        ({"common": {"seed": 3}}, "common.seed is set by each method and seed"),
        ({"seeds": [1, 1]}, "each seed once"),
        ({"methods": [{**METHODS[4], "name": "base"}]}, "base is the base model's line"),
        ({"repair": {"name": "math"}}, "repair.name must be repair, got 'math'"),
        ({"only": ["score", "sft"]}, "only: sft is none of the methods: refine, pair"),
        (
            {"only": ["pair"]},
            r"only: \[pair\] leaves out score, .*; add it, as in only=\[pair,score\], or .* against=pair",
        ),
    ],
)
def test_contradictions_are_refused(change: dict[str, Any], told: str, model: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=told):
        comparison(tmp_path, model, **change)


Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """write(name, outcomes, ...): an evaluation with these outcomes, a list of them a sample."""

    def run(name: str, *samples: list[tuple[bool, bool]]) -> Path:
        folder = tmp_path / name / "evaluations"
        folder.mkdir(parents=True)
        lines = [
            {"id": f"p{i}", "sample": number, "prompt": "", "reference": {}, "attempts": [
                {"text": "", "answer": str(k), "outcome": "correct" if right else "wrong"}
                for k, right in enumerate(pair)
            ]}
            for number, pairs in enumerate(samples, 1) for i, pair in enumerate(pairs)
        ]  # fmt: skip
        (folder / "end.json").write_text(json.dumps({"step": 4}))
        (folder / "end.rollouts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return tmp_path / name

    return run


def test_a_line_of_the_table_by_hand(write: Write, tmp_path: Path) -> None:
    """Two seeds of 100 problems: t1 = (50 + 60) / 200, i->c = (10 + 20) / 200, c->i = (5 + 0) / 200."""
    seeds: dict[int | None, Path] = {
        0: write("a", [(True, True)] * 45 + [(True, False)] * 5 + [(False, True)] * 10 + [(False, False)] * 40),
        1: write("b", [(True, True)] * 60 + [(False, True)] * 20 + [(False, False)] * 20),
    }
    answers = read_answers(seeds)
    other = read_answers({None: write("c", [(True, True)] * 70 + [(False, False)] * 30)})
    result = summarize("x", answers, other, other, 500)
    assert (result.n, result.seeds) == (100, 2)
    found = [result.t1, result.t2, result.delta, result.fixed, result.broken, result.fix_rate]
    assert [e.value for e in found] == pytest.approx([0.55, 0.675, 0.125, 0.15, 0.025, 0.15 / 0.45])
    assert all(e.low < e.value < e.high for e in found)
    assert result.spread["delta"] == pytest.approx((0.05, 0.2))
    assert result.spread["gain"] == pytest.approx((-0.15, 0.1))
    assert result.verdict == 0  # the seeds disagree, whatever the interval over problems says
    assert result.against_base is not None
    assert result.against_base.first.value == pytest.approx(0.55 - 0.7)
    worse = summarize("y", read_answers({0: seeds[0]}), other, other, 500)
    assert worse.verdict == -1
    with pytest.raises(DataError, match="was evaluated on other problems"):
        read_answers({0: write("d", [(True, True)] * 99)}, ids=answers.ids)
    file = write("torn", [(True, True)] * 2) / "evaluations" / "end.rollouts.jsonl"
    file.write_text(file.read_text().replace("correct", "right", 1))
    with pytest.raises(DataError, match=r"torn/evaluations/end\.rollouts\.jsonl:1: expected a rollout"):
        read_answers({0: tmp_path / "torn"})
    assert result.gain is not None
    assert result.gain.value == pytest.approx(0.675 - 0.7)
    assert result.mcnemar == pytest.approx(0.3017578125)  # seed a: 10 against 5, the larger of the two
    assert (result.unchanged.value, result.last) == (0.0, None)
    holes = answers.second_SP.copy()
    holes[0, :50] = np.nan  # of the 50 that seed a still has, 10 are right, and 20 of the other
    holed = summarize("x", dataclasses.replace(answers, second_SP=holes), other, other, 500)
    assert holed.spread["gain"] == pytest.approx((10 / 50 - 20 / 50, 0.1))
    right = summarize("z", read_answers({0: write("e", [(True, True)] * 99 + [(True, False)])}), other, other, 500)
    assert math.isnan(right.fix_rate.value)  # nothing was to be fixed
    assert math.isnan(right.spread["fix_rate"][0])
    (row,) = [row for _, rows in spread_table({"z": "Z"}, [right]).groups for row in rows]
    assert [cell.main for cell in row.cells][5] == "\N{EM DASH}"


def test_a_line_of_several_samples(tmp_path: Path, write: Write) -> None:
    """Two samples of each problem: means over them, pass@2, and attempt 1 against that of single attempts."""
    low = [(False, True)] * 50 + [(False, False)] * 50
    high = [(True, True)] * 50 + [(False, False)] * 50
    score = read_answers({0: write("score", low, [(True, True)] * 30 + low[30:])})
    single = read_answers({0: write("single", high, high)})
    result = summarize("score", score, single, score, 400, single=single)
    assert (result.samples, result.n, result.mcnemar) == (2, 100, None)
    assert [result.t1.value, result.t2.value, result.fixed.value] == pytest.approx([0.15, 0.5, 0.35])
    assert result.passes is not None
    assert [e.value for e in result.passes] == pytest.approx([0.3, 0.5, 0.2])
    assert result.against_single is not None
    assert result.against_single.first.value == pytest.approx(-0.35)
    assert summarize("single", single, score, score, 50, single=single).against_single is None
    base = dataclasses.replace(result, name="base", against_single=None)
    (told,) = findings({"base": "Base", "score": "SCoRe"}, [base, result], "single-turn RL")[1:]
    told = told.replace("\N{NO-BREAK SPACE}", " ")
    assert "; attempt 1 is under that of single-turn RL (\N{MINUS SIGN}35.0 points" in told
    assert "the gain in delta is bought by a worse first answer: attempt 1 is 35.0 points" in told
    assert "lower than that of single-turn RL, and delta +35.0" in told
    with pytest.raises(DataError, match="were evaluated with 1, 2 samples of each problem"):
        read_answers({0: tmp_path / "score", 1: write("once", low)})


def test_seeds_are_held_against_the_same_seeds(write: Write) -> None:
    """The base model is one line for all seeds: each stands against it. Otherwise seed 2 against seed 2, by name."""
    runs = {
        seed: write(f"s{seed}", [(True, right < 10 * n) for right in range(100)])
        for seed, n in ((0, 5), (1, 9), (2, 9))
    }
    score = read_answers({0: runs[0], 1: runs[1], 2: runs[2]})
    base = read_answers({None: write("base", [(True, True)] * 60 + [(True, False)] * 40)})
    line = summarize("base", base, base, score, 300)
    assert line.spread["gain"] == pytest.approx((-0.3, 0.1))
    assert line.verdict == 0  # seed 0 says the opposite
    two = read_answers({1: runs[1], 2: runs[2]})
    assert summarize("x", two, base, score, 300).spread["gain"] == (0.0, 0.0)
    apart = read_answers({0: runs[0], 5: runs[1]})
    assert summarize("x", apart, base, score, 300).spread["gain"] == (0.0, 0.0)
    assert summarize("x", read_answers({7: runs[1]}), base, score, 300).spread["gain"] == pytest.approx((0.0, 0.4))


def test_a_gain_that_a_seed_denies_is_called_none(write: Write) -> None:
    up = [(False, True)] * 40 + [(False, False)] * 60
    down = [(True, False)] * 10 + [(False, False)] * 90
    answers = read_answers({0: write("up", up), 1: write("down", down)})
    result = summarize("score", answers, answers, answers, 300)
    assert (result.delta.low > 0, result.moved) == (True, 0)
    assert "does not measurably gain" in headline({"score": "SCoRe"}, "score", [result])
    assert "; but by seed " in headline({"score": "SCoRe"}, "score", [result])
    few = dataclasses.replace(result, n=4)
    assert "cannot be concluded: only 4 problems" in headline({"score": "SCoRe"}, "score", [few])
    assert standing({"score": "SCoRe"}, [few]) == []


def test_only_the_methods_that_are_named(model: Path, tmp_path: Path) -> None:
    launched = InProcess()
    folder = compare(comparison(tmp_path, model, only=["score", "refine"], seeds=[0]), lambda text: None, launched)
    assert launched.commands == ["evaluate refine-0", "train score-0"]
    assert {row["method"] for row in csv.DictReader((folder / "compare.csv").open())} == {"base", "refine", "score"}


def test_a_choice_stands_once_its_runs_have_begun(model: Path, tmp_path: Path) -> None:
    """A failed trial that won on a second try would contradict finished runs; a method that is added is searched."""
    search = {"learning_rate": [0.5, 1.0], "beta1": [0.01], "share": 0.5, "problems": 6}
    some: dict[str, Any] = {"search": search, "seeds": [0], "against": "pair"}
    compare(comparison(tmp_path, model, methods=METHODS[1:2], **some), lambda text: None, InProcess(fails=2))
    again, said = InProcess(), list[str]()
    compare(comparison(tmp_path, model, methods=METHODS[1:3], **some), said.append, again)
    assert again.commands == ["train pair_plus-1", "train pair_plus-2", "train pair_plus-0"]
    assert any(text.startswith("  pair: learning rate x 0.5 (") for text in said)  # the other one failed
