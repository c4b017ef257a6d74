"""Work that was stopped, however it was stopped, loses nothing that was finished and ends as if it never was."""

import json
import os
import random
import re
import shutil
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from rich.console import Console

import selfcorrect
from selfcorrect.errors import ConfigError, TrainingInterrupted
from selfcorrect.evaluation.evaluate import Evaluation
from selfcorrect.evaluation.kept import Kept
from selfcorrect.evaluation.metrics import Estimate, Summary, share
from selfcorrect.runs.display import LiveObserver, Observer
from selfcorrect.runs.evaluating import about as told_about
from selfcorrect.runs.evaluating import collapse
from selfcorrect.runs.recipes import config_for
from selfcorrect.tasks.countdown import Countdown
from tests.run.conftest import ENDS
from tests.support.runs import CommandLine, KillPoint, Process, check_same, end_state, go, lucky_grade, recipe
from tests.support.tiny import tiny_lm

PROBLEMS, ROWS = 8, 3
PARTS = ("greedy", "sampled", "swapped", "independent")


class Heard(Observer):
    """Everything told; stops the process' work once `stop_at` completions are done."""

    def __init__(self, stop_at: int = sys.maxsize) -> None:
        self.said: list[str] = []
        self.done: list[tuple[int, int]] = []
        self._stop_at = stop_at

    def message(self, text: str) -> None:
        self.said.append(text)

    def work(self, title: str, done: int, total: int, now: str = "", share: float = 0.0) -> None:
        self.done.append((done, total))
        if done >= self._stop_at:
            signal.raise_signal(signal.SIGTERM)


def many(output: Path, model: Path, name: str, **changes: Any) -> dict[str, Any]:
    """An evaluation in 12 chunks."""
    rollouts = {"max_new_tokens": 5, "rows_at_once": ROWS}
    return recipe(
        output, model, name, rollouts=rollouts, evaluation={"problems": PROBLEMS, "controls": True}, **changes
    )


def evaluate(settings: Mapping[str, Any], observer: Observer | None = None) -> Evaluation:
    folder = Path(settings["output"]) / settings["name"]
    return selfcorrect.evaluate(settings["model"]["path"], recipe=settings, output=folder, observer=observer)


def contents(folder: Path) -> dict[str, Any]:
    """Everything an evaluation leaves, without times; texts byte for byte."""
    found: dict[str, Any] = {}
    for file in sorted((folder / "evaluations").rglob("*")):
        if file.name.endswith(".rollouts.jsonl"):
            found[file.name] = file.read_bytes()
        elif file.is_file():
            found[file.name] = [_timeless(line) for line in file.read_text().splitlines(keepends=True)]
    return found


def _timeless(line: str) -> str:
    assert line.endswith("\n")
    try:
        told = json.loads(line)
    except ValueError:  # one of an indented object
        return "" if '"seconds"' in line else line
    return json.dumps({**told, "seconds": 0}) if isinstance(told, dict) and "seconds" in told else line


@pytest.fixture(scope="module")
def uninterrupted(model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], float]:
    output = tmp_path_factory.mktemp("uninterrupted")
    seconds = Process(many(output, model, "e"), deed=evaluate).seconds()
    return contents(output / "e"), seconds


@pytest.mark.nightly
def test_it_is_worth_comparing(uninterrupted: tuple[dict[str, Any], float]) -> None:
    files, _ = uninterrupted
    (kept,) = (lines for name, lines in files.items() if name.endswith(".jsonl") and "rollouts" not in name)
    lines = [json.loads(line) for line in kept]
    assert [line["part"] for line in lines] == [part for part in PARTS for _ in range(PROBLEMS)]
    by_part = [[a["text"] for line in lines if line["part"] == part for a in line["attempts"]] for part in PARTS]
    assert len({json.dumps(texts) for texts in by_part}) == len(PARTS)
    outcomes = {attempt["outcome"] for line in lines for attempt in line["attempts"]}
    assert {"correct", "wrong"} <= outcomes


@pytest.mark.nightly
def test_killed_at_random_moments(model: Path, uninterrupted: tuple[dict[str, Any], float], tmp_path: Path) -> None:
    """SIGKILL again and again; what was kept before a kill is there after it, and is not sampled again."""
    expected, seconds = uninterrupted
    rng, kills, runs = random.Random(1), 0, 0
    while kills < 6:
        runs += 1
        settings, before = many(tmp_path, model, f"e{runs}"), b""
        file = tmp_path / f"e{runs}" / "evaluations" / "kept" / f"{model.name}.jsonl"
        while Process(settings, deed=evaluate).kill_after(rng.random() * seconds):
            kills += 1
            now = file.read_bytes() if file.exists() else b""
            assert now.startswith(before)
            before = whole_chunks(now)
        assert contents(tmp_path / f"e{runs}") == expected


def whole_chunks(text: bytes) -> bytes:
    lines = text.splitlines(keepends=True)
    whole = [line for line in lines if line.endswith(b"\n")]
    part, rest = divmod(len(whole), PROBLEMS)
    return b"".join(whole[: part * PROBLEMS + rest // ROWS * ROWS])


@pytest.mark.nightly
def test_killed_while_writing(model: Path, uninterrupted: tuple[dict[str, Any], float], tmp_path: Path) -> None:
    """At every other operation on a file of it: before it is opened, when half a line is written, before a rename."""
    notes, folder = tmp_path / "notes", tmp_path / "e" / "evaluations"
    Process(many(tmp_path, model, "noted"), KillPoint(tmp_path / "noted", notes=notes), evaluate).seconds()
    points = [f"{point}\n" for point in dict.fromkeys(notes.read_text().splitlines()) if "evaluations/" in point]
    assert len(points) > 8
    for point in points:
        Process(many(tmp_path, model, "e"), KillPoint(tmp_path / "e", at=point.strip()), evaluate).killed()
    evaluate_in_process = Process(many(tmp_path, model, "e"), deed=evaluate)
    assert not evaluate_in_process.killed()
    assert contents(folder.parent) == uninterrupted[0]


@pytest.mark.usefixtures("lucky")
def test_stopped_and_told(model: Path, uninterrupted: tuple[dict[str, Any], float], tmp_path: Path) -> None:
    settings, first, second, third = many(tmp_path, model, "e"), Heard(24), Heard(), Heard()
    with pytest.raises(TrainingInterrupted, match=r"^stopped; \d+ of 32 rollouts are kept in .*/e: the same command"):
        evaluate(settings, first)
    assert any(
        told.startswith("48 completions to come of up to 5 tokens: 8 problems x 2 attempts, greedy; controls (sampled, "
        "swapped, independent): 32 completions of 48 (none with evaluation.controls=false); kept in ")
        for told in first.said
    )  # fmt: skip
    assert any(told.startswith(f"note: task countdown, 8 problems of split test; model {model}") for told in first.said)
    done = evaluate(settings, second)
    assert any(
        told.startswith("going on: ") and told.endswith(" of 32 rollouts are there already") for told in second.said
    )
    assert second.done[0] == (0, 48)
    assert second.done[-1] == (48, 48)
    assert contents(tmp_path / "e") == uninterrupted[0]
    assert evaluate(settings, third) == done
    assert any(told.startswith("all 32 rollouts are there already; remove ") for told in third.said)


def other_weights(folder: Path) -> None:
    tiny_lm("llama", "eager", ENDS, seed=5).save(folder, torch.float32)


def other_template(folder: Path) -> None:
    file = folder / "chat_template.jinja"
    file.write_text(file.read_text().replace("<|user|>", "<|assistant|>"))


CHANGES: dict[str, tuple[str | Callable[[Path], object], str]] = {
    "seed": ("seed=1", r"seed is 1, but was 0"),
    "length": ("rollouts.max_new_tokens=6", r"rollouts.max_new_tokens is 6, but was 5"),
    "side by side": ("rollouts.rows_at_once=4", r"problems side by side \(rollouts.rows_at_once\) is 4, but was 3"),
    "controls": ("evaluation.controls=false", r"evaluation.controls is false, but was true"),
    "problems": ("evaluation.problems=9", r"evaluation.problems is 9, but was 8, what the problems say is"),
    "others": ("evaluation.offset=1", r"evaluation.offset is 1, but was 0, what the problems say is"),
    "prompt": ("task.correction_prompt=keep", r'task.correction_prompt is "keep", but was "\?"'),
    "weights": (other_weights, r'model.weights is "\w+", but was "\w+"'),
    "template": (other_template, r'what the problems say is "\w+", but was "\w+"'),
}


@pytest.fixture(scope="module")
def begun(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an evaluation that was stopped, with its model and recipe."""
    folder = tmp_path_factory.mktemp("begun")
    shutil.copytree(model, folder / "m")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Countdown, "grade", lucky_grade)
        with pytest.raises(TrainingInterrupted):
            evaluate(many(folder, folder / "m", "e"), Heard(20))
    return folder


@pytest.mark.usefixtures("lucky")
@pytest.mark.parametrize("change", CHANGES)
def test_other_settings_are_refused(change: str, begun: Path, tmp_path: Path) -> None:
    """With the field, both values and what to do; nothing of what was kept is touched."""
    how, message = CHANGES[change]
    folder = Path(shutil.copytree(begun, tmp_path / "begun"))
    before = contents(folder / "e")
    settings = many(folder, folder / "m", "e")
    if callable(how):
        how(folder / "m")
    with pytest.raises(ConfigError, match=f"begun with other settings: {message}.*; give the command those settings"):
        selfcorrect.evaluate(folder / "m", *([] if callable(how) else [how]), recipe=settings, output=folder / "e")
    assert contents(folder / "e") == before


@pytest.mark.usefixtures("lucky")
@pytest.mark.parametrize(
    "damage",
    [
        "a line",
        "half a chunk",
        "other order",
        *(pytest.param(d, marks=pytest.mark.nightly) for d in ("torn", "foreign")),
    ],
)
def test_what_is_damaged_is_done_again(
    damage: str, begun: Path, model: Path, uninterrupted: tuple[dict[str, Any], float], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(begun, tmp_path / "begun"))
    file = folder / "e" / "evaluations" / "kept" / "m.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    assert len(lines) >= 2 * ROWS
    match damage:
        case "a line":
            lines[1] = b'{"part": "gre\0\n'
        case "torn":
            lines.append(lines[0][:40])
        case "foreign":
            lines[4] = b"[1, 2]\n"
        case "half a chunk":
            lines = lines[: ROWS + 1]
        case "other order":
            lines[0], lines[1] = lines[1], lines[0]
    file.write_bytes(b"".join(lines))
    evaluate(many(folder, folder / "m", "e"))
    found, expected = contents(folder / "e"), uninterrupted[0]
    assert found["m.jsonl"] == expected[f"{model.name}.jsonl"]
    assert found["m.rollouts.jsonl"] == expected[f"{model.name}.rollouts.jsonl"]


@pytest.mark.nightly
def test_an_evaluation_inside_a_run_goes_on(model: Path, tmp_path: Path) -> None:
    """Killed in the base model's: what was finished stays, and the run ends as one that was never stopped."""
    changes = {
        "rollouts": {"problems_per_step": 2, "rollouts_per_problem": 4, "max_new_tokens": 5, "rows_at_once": ROWS}
    }
    whole, run = (recipe(tmp_path, model, name, **changes) for name in ("whole", "run"))
    Process(whole).seconds()
    kept, at = tmp_path / "run" / "evaluations" / "kept" / "base.jsonl", 0
    while not (tmp_path / "run" / "evaluations" / "base.json").exists():
        at += 1
        Process(run, KillChunk(kept, at), go).killed()
        if kept.exists():
            assert len(kept.read_bytes().splitlines()) == min(8, at * ROWS)
    assert at == 3
    Process(run).seconds()
    check_same(tmp_path / "run", end_state(tmp_path / "whole"))


class KillChunk:
    """Dies when chunk `at` is about to be kept."""

    def __init__(self, file: Path, at: int) -> None:
        self._file, self._at = str(file), at

    def __call__(self) -> None:
        opened = 0

        def hear(event: str, details: tuple[Any, ...]) -> None:
            nonlocal opened
            if event == "open" and str(details[0]) == self._file and details[2] & os.O_WRONLY:
                opened += 1
                if opened == 3:  # once to lock it, once for one chunk
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hear)


@pytest.mark.usefixtures("lucky")
def test_a_signal_from_outside(model: Path, tmp_path: Path) -> None:
    """SIGTERM at the command line: one line, status 143, and the same command goes on to the end."""
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.dump(many(tmp_path, model, "e") | {"evaluation": {"problems": 60}}))
    process = CommandLine(tmp_path, "evaluate", str(file))
    process.wait_for(process.err, "completions to come")
    process.send(signal.SIGTERM)
    status, out, errors = process.ended()
    assert (status, out) == (143, "")
    assert re.fullmatch(
        r"stopped; \d+ of 60 rollouts are kept in .*/e: the same command goes on", errors.splitlines()[-1]
    )
    evaluation = selfcorrect.evaluate(file)
    assert evaluation.summary.n == 60
    assert evaluation.folder == tmp_path / "e"


@pytest.mark.usefixtures("lucky")
def test_scaling_and_repair_sets_go_on(model: Path, tmp_path: Path) -> None:
    settings = many(tmp_path, model, "e")
    whole, folder = tmp_path / "whole", tmp_path / "scale"
    points = selfcorrect.scale(model, recipe=settings, output=whole, most=2, problems=9)
    first = Heard(6)
    with pytest.raises(
        TrainingInterrupted, match=r"stopped; [1-8] of 9 problems are kept in .*/scale: the same command"
    ):
        selfcorrect.scale(model, recipe=settings, output=folder, most=2, problems=9, observer=first)
    assert "27 completions to come: 9 problems of countdown x (2 first attempts + 1 corrections), by " in first.said[0]
    with (folder / "samples.jsonl").open("a") as out:
        out.write('["torn')
    assert selfcorrect.scale(model, recipe=settings, output=folder, most=2, problems=9) == points
    for name in ("samples.jsonl", "samples.json", "scaling.csv"):
        assert (folder / name).read_bytes() == (whole / name).read_bytes()
    with pytest.raises(ConfigError, match=r"problems is 8, but was 9.*; choose another output"):
        selfcorrect.scale(model, recipe=settings, output=folder, most=2, problems=8)


def falling(*accuracy: float, n: int = 300) -> Summary:
    estimates = tuple(share(round(a * n), n) for a in accuracy)
    zero = Estimate(0.0, 0.0, 0.0)
    return Summary(n, estimates, zero, zero, zero, zero, zero, ())


@pytest.mark.parametrize(
    ("accuracy", "trained", "says"),
    [
        ((0.71, 0.6, 0.4, 0.09, 0.02, 0.0), 2, "from 60.0% at attempt 2 to 9.0% at attempt 4 and 0.0% at attempt 6:"),
        ((0.71, 0.6, 0.1), 2, "from 60.0% at attempt 2 to 10.0% at attempt 3:"),
        ((0.71, 0.6, 0.55, 0.5), 2, None),  # a decline is none
        ((0.71, 0.6, 0.0), 3, None),  # trained with
        ((0.01, 0.01, 0.0), 2, None),  # nothing to fall from
        ((0.71, 0.6, 0.0, 0.0), sys.maxsize, None),  # nothing tells what it was trained with
    ],
)
def test_a_collapse_is_told(accuracy: tuple[float, ...], trained: int, says: str | None) -> None:
    told = collapse(falling(*accuracy), trained)
    if says is None:
        assert told is None
    else:
        assert told
        assert says in told
        assert f"was trained with {trained} attempts (rollouts.attempts)" in told


@pytest.mark.usefixtures("lucky")
def test_more_attempts_than_trained_are_told_at_once(model: Path, tmp_path: Path) -> None:
    run, heard = tmp_path / "run", Heard()
    (run / "final").parent.mkdir()
    shutil.copytree(model, run / "final")
    (run / "config.yaml").write_text(yaml.dump(recipe(tmp_path, model)))
    (run / "environment.json").write_text("{}")
    evaluation = selfcorrect.evaluate(run / "final", "rollouts.attempts=4", "evaluation.problems=2", observer=heard)
    assert f"note: rollouts.attempts is 4, but {run}/final was trained with 2: from attempt 3 on" in "\n".join(
        heard.said
    )
    assert evaluation.folder
    assert re.fullmatch(r"run-final-\w{8}", evaluation.folder.name)
    assert evaluation.folder.parent == tmp_path / "evaluations"
    assert evaluation.controls == {}  # off unless a recipe asks for them


@pytest.mark.parametrize(
    ("settings", "limit", "about"),
    [
        (("task.name=math", "task.dataset=gsm8k"), 1024, "math (gsm8k)"),
        (("task.name=code", "task.dataset=humaneval"), 512, "code (humaneval)"),
        (("task.name=countdown",), 256, "countdown"),
        (("task.name=math", "rollouts.max_new_tokens=99"), 99, "math (math)"),
        (("task.name=custom", "task.file=mine.py"), 256, "custom (mine.py)"),
    ],
)
def test_a_task_that_is_named_brings_its_defaults(
    settings: tuple[str, ...], limit: int, about: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").touch()
    config = config_for("org/name", None, settings, "evaluate it on")
    assert (config.rollouts.max_new_tokens, told_about(config.task)) == (limit, about)
    assert not config.evaluation.controls


def test_the_panel_is_told_when_an_evaluation_ends(tmp_path: Path) -> None:
    """What a terminal shows after each event."""
    console = Console(force_terminal=True, width=80, file=(tmp_path / "out").open("w"))
    observer = LiveObserver(console)

    def panel() -> str:
        with console.capture() as shown:
            console.print(observer._live.renderable)
        return shown.get()

    observer.evaluating("base")
    assert "evaluating base" in panel()
    observer.work("evaluating base", 40, 120)
    assert "40 of 120 completions" in panel()
    observer.work("evaluating base", 120, 120)  # all at once, as what was kept
    assert "120 of 120 completions" in panel()
    ended = Evaluation("base", 0, "countdown", 1.0, falling(0.5, 0.5), ())
    observer.evaluated(ended)
    assert "evaluated base" in panel()
    observer.stage_started("stage1", 300, 0)
    assert "stage1: step 1/300 is under way" in panel()


def test_auto_stays_what_an_evaluation_was_begun_with(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A card with other memory free has room for another number of rows; what was begun goes on with its own."""
    monkeypatch.setattr(Countdown, "grade", lucky_grade)
    stopped, whole = (many(tmp_path, model, name) for name in ("stopped", "whole"))
    for settings in (stopped, whole):
        settings["rollouts"] = {**settings["rollouts"], "rows_at_once": "auto"}
    monkeypatch.setattr(selfcorrect.api, "rows_of", lambda config, lm: 4)
    evaluate(whole)
    with pytest.raises(TrainingInterrupted):
        evaluate(stopped, Heard(30))
    for rows in (2, 8):
        monkeypatch.setattr(selfcorrect.api, "rows_of", lambda config, lm, rows=rows: rows)
        evaluate(stopped, heard := Heard())
        assert rows == 8 or any(told.startswith("going on: ") for told in heard.said)
    found, expected = (contents(tmp_path / name) for name in ("stopped", "whole"))
    assert found == expected
    stopped["rollouts"]["rows_at_once"] = 8
    with pytest.raises(ConfigError, match=r"side by side \(rollouts.rows_at_once\) is 8, but was 4"):
        evaluate(stopped)


@pytest.mark.parametrize("settings", [None, '{"seed": ', "\0\0"])
def test_work_whose_settings_are_lost_is_not_thrown_away(settings: str | None, tmp_path: Path) -> None:
    file, beside, said = tmp_path / "kept.jsonl", tmp_path / "kept.json", list[str]()
    file.write_text('"a"\n')
    if settings is not None:
        beside.write_text(settings)
    with pytest.raises(ConfigError, match=r"(?=.*kept\.json\b)(?=.*kept\.jsonl\b).*; do this$"):
        Kept(file, {"seed": 1}, str, "do this")
    assert file.read_text() == '"a"\n'
    with Kept(file, {"seed": 1}, str, "do this", afresh=said.append) as kept:  # inside of a run
        assert (kept.count, len(said)) == (0, 1)
    file.write_text('"a')
    beside.unlink()
    Kept(file, {}, str, "").__exit__(None, None, None)  # only just begun: nothing is lost


def test_one_process_at_a_time(tmp_path: Path) -> None:
    file = tmp_path / "kept.jsonl"
    with Kept(file, {}, str, "") as kept:
        kept.add(["a"])
        with pytest.raises(ConfigError, match=r"kept.jsonl is being written by another process; wait for it"):
            Kept(file, {}, str, "")
    with Kept(file, {}, str, "") as kept:
        assert kept.take(["a"]) == ["a"]
