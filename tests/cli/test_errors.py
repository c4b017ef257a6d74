"""What a user gets wrong: one clear line on stderr for each mistake, exit status 2, no traceback, nothing written."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file, save_file

from tests.conftest import Called, Command
from tests.support.runs import recipe

Arguments = list[str]


class Room:
    """A folder with a good model and a good recipe, to be spoiled."""

    def __init__(self, folder: Path, model: Path) -> None:
        self.folder, self.runs = folder, folder / "runs"
        self.model = Path(shutil.copytree(model, folder / "model"))

    def train(self, *overrides: str, **changes: Any) -> Arguments:
        file = self.folder / "recipe.yaml"
        file.write_text(yaml.dump({**recipe(self.runs, self.model), **changes}))
        return ["train", str(file), *overrides]


def garbled_weights(room: Room) -> Arguments:
    (room.model / "model.safetensors").write_bytes(b"\xff" * 999)
    return room.train()


def weights_cut_short(room: Room) -> Arguments:
    file = room.model / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    return room.train()


def weights_that_lack_some(room: Room) -> Arguments:
    file = room.model / "model.safetensors"
    kept = {name: tensor for name, tensor in load_file(file).items() if "layers.0.mlp" not in name}
    save_file(kept, file, metadata={"format": "pt"})
    return room.train()


def weights_of_another_size(room: Room) -> Arguments:
    file = room.model / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"intermediate_size": 64}))
    return room.train()


def no_config_json(room: Room) -> Arguments:
    (room.model / "config.json").unlink()
    return room.train()


def no_tokenizer(room: Room) -> Arguments:
    for file in room.model.glob("tokenizer*"):
        file.unlink()
    return room.train()


def no_chat_template(room: Room) -> Arguments:
    (room.model / "chat_template.jinja").unlink()
    return room.train()


def chat_template_that_fails(room: Room) -> Arguments:
    (room.model / "chat_template.jinja").write_text("{{ nothing.there }}")
    return room.train()


def existing_run(room: Room, name: str = "runs") -> Arguments:
    room.runs = room.folder / name
    (room.runs / "run").mkdir(parents=True)
    (room.runs / "run" / "config.yaml").write_text("kind: train\n")
    return room.train()


def a_run(room: Room) -> Arguments:
    run = room.folder / "a run"
    run.mkdir()
    room.model.rename(run / "final")
    return room.train(f"model.path={run}")


def an_evaluation(room: Room) -> Arguments:
    (room.runs / "run").mkdir(parents=True)
    (room.runs / "run" / "config.yaml").write_text(yaml.dump({**recipe(room.runs, room.model), "stages": []}))
    return ["train", "--resume", str(room.runs / "run")]


def spoiled_run(room: Room) -> Arguments:
    (room.runs / "run").mkdir(parents=True)
    (room.runs / "run" / "config.yaml").write_text("")
    return ["train", "--resume", str(room.runs / "run")]


def model_of_a_run(room: Room) -> Arguments:
    existing_run(room)
    return ["train", "--resume", str(room.runs / "run" / "final")]


def external_row(room: Room, row: str) -> Arguments:
    (room.folder / "rows.jsonl").write_text('{"input": "3,7,12", "output": "22"}\n' + row + "\n")
    return room.train(f"evaluation.external=[{room.folder}/rows.jsonl]")


def output_is_a_file(room: Room) -> Arguments:
    room.runs.write_text("")
    return room.train()


MISTAKES: dict[str, tuple[Callable[[Room], Arguments], str]] = {
    "unknown key": (lambda room: room.train(sed=1), r"recipe.yaml:\d+: unknown key 'sed'; did you mean 'seed'\?"),
    "no such recipe": (lambda room: ["train", f"{room.folder}/no.yaml"], r"recipe .*/no.yaml: no such file; `selfcorrect recipes` lists"),
    "nobody's home": (lambda room: room.train("task.data=~nobody-here/x"), r"task.data: '~nobody-here/x': no user of that name has a home here; write the whole path"),
    "nobody's home for the output": (lambda room: ["recipes", "demo", "--to=~nobody-here/x"], r"error: --to = '~nobody-here/x': no user of that name has a home here; write the whole path"),
    "nobody's home for a model": (lambda room: ["evaluate", "~nobody-here/x"], r"error: model.path = '~nobody-here/x': no user"),
    "nobody's home for a recipe": (lambda room: ["train", "~nobody-here/x.yaml"], r"error: recipe = '~nobody-here/x.yaml': no user"),
    "neither recipe nor run": (lambda room: ["train"], r"name either a recipe, or a run folder with --resume RUN"),
    "missing model folder": (
        lambda room: room.train("model.path=./not/there"),
        r"model.path = './not/there': no such folder; name a folder of Hugging Face layout, a hub name, or lab",
    ),
    "no config.json": (no_config_json, r"model.path = '.*': the folder holds no config.json; name a folder"),
    "no tokenizer": (no_tokenizer, r"model.path = '.*': no tokenizer can be loaded: \w+"),
    "no chat template": (no_chat_template, r"has no chat template, so prompts cannot be built; use an instruction"),
    "failing chat template": (chat_template_that_fails, r"the chat template fails on a plain conversation: 'nothing'"),
    "garbled weights": (garbled_weights, r"model.path = '.*': model.safetensors is damaged \(.+\); copy or download it again$"),
    "weights cut short": (weights_cut_short, r"model.path = '.*': model.safetensors is damaged \(.*file not fully covered\); copy or download it again$"),
    "weights that lack some": (weights_that_lack_some, r"its weights lack model.layers.0.mlp.\w+.weight and 2 more, which"),
    "weights of another size": (weights_of_another_size, r"model.path = '.*': cannot be loaded: \w+"),
    "no such device": (lambda room: room.train("model.device=mps"), r"model.device = 'mps': this machine has none"),
    "existing run": (existing_run, r"runs/run already holds a run; resume it with `selfcorrect train --resume .*/run` \(in Python: resume_run=True\), or"),
    "resume of a non-run": (
        lambda room: ["train", "--resume", str(room.folder)], r"holds no run to resume \(no config.yaml in it\); start"
    ),
    "resume of a run's model": (model_of_a_run, r"no config.yaml in it\); `selfcorrect train --resume .*runs/run` is of"),
    "resume of a spoiled run": (spoiled_run, r"config.yaml must be a mapping of settings"),
    "missing external file": (
        lambda room: room.train("evaluation.external=[no.jsonl]"), r"evaluation.external = 'no.jsonl': no such file"
    ),
    "external row without target": (
        lambda room: external_row(room, '{"input": "3,7,12"}'), r"rows.jsonl:2: field 'output' is missing; rows need input"
    ),
    "too few problems": (
        lambda room: room.train("task.max_number=5", "task.limit=5", "evaluation.problems=5000"),
        r"task.max_number = 5: there are only \d+ test problems with numbers that small; raise task.max_number, or ask",
    ),
    "output is a file": (output_is_a_file, r"runs.*: (Not a directory|File exists)"),
    "report of a non-run": (lambda room: ["report", str(room.folder)], r"is not a run: it holds none of"),
    "evaluate: no task": (lambda room: ["evaluate", str(room.model), "seed=1"], r"/model lies in no run, so nothing says what to evaluate it on; name a recipe with --recipe FILE, or a task \(task.name=countdown, task.name=math,"),
    "evaluate: a hub name without a task": (lambda room: ["evaluate", "org/name"], r"org/name is no folder here and lies in no run"),
    "a run as a recipe's model": (a_run, r"/a run'? is a run, not a model; name its model: .*/a run/final'?$"),
    "evaluate: a task that is none": (lambda room: ["evaluate", str(room.model), "task.name=gsm8k"], r"name = 'gsm8k' must be one of"),
    "scale: no task": (lambda room: ["scale", str(room.model), "--output", "s"], r"what to sample; name a recipe with --recipe FILE, or a task"),
    "play: no task": (lambda room: ["play", "1 2 = 3", "--model", str(room.model)], r"what to play; name a recipe with --recipe FILE, or a task"),
    "play: two models": (lambda room: ["play", "1 2 = 3", f"model.path={room.model}"], r"override 'model.path=.*': the model is named beside the settings, and is lab; leave one out"),
    "evaluate: no such model": (lambda room: ["evaluate", "./not/there"], r"model.path = './not/there': no such folder"),
    "evaluate: into a file": (lambda room: ["evaluate", "lab", "--output", str(room.model / "config.json")], r"config.json is a file, and a folder is written there; choose another output"),
    "serve: no host of this machine": (lambda room: ["serve", "lab", "--host", "192.0.2.1", "--port", "8199"], r"cannot listen there: .*; name another with --host"),
    "resume of an evaluation": (an_evaluation, r"stages is empty: there is nothing to train; `selfcorrect evaluate`"),
    "existing run, with a space": (
        lambda room: existing_run(room, "a run"), r"holds a run; resume it with `selfcorrect train --resume '.*/a run/run'` \(in Python: resume_run=True\), or"
    ),
    "play: not a problem": (lambda room: ["play", "hello"], r"problem 'hello': expected two or more whole numbers"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_one_clear_line(
    mistake: str, model: Path, tmp_path: Path, called: Called, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = Room(tmp_path, model)
    spoil, message = MISTAKES[mistake]
    monkeypatch.chdir(tmp_path)
    arguments = spoil(room)
    before = sorted(tmp_path.rglob("*"))
    status, out, err = called(*arguments)
    (line,) = err.splitlines()
    assert line.startswith("error: ")
    assert re.search(message, line), line
    assert len(line) < 600
    assert (status, out) == (2, "")
    assert sorted(tmp_path.rglob("*")) == before  # what is mended can be run again under the same name


@pytest.mark.parametrize("words", [["train"], ["check", "--load"]])
def test_a_micro_batch_that_no_memory_here_can_keep(
    words: list[str], model: Path, tmp_path: Path, called: Called, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By far it is refused; by less it is told, as attempts may end sooner. What auto comes to is neither."""
    there = 60_000
    monkeypatch.setattr("selfcorrect.models.sizing.memory_of", lambda device: there)
    recipe = Room(tmp_path, model).train("optimizer.micro_batch=4096", "optimizer.gradient_checkpointing=true")
    status, _, err = called(*words, *recipe[1:])
    assert status == 2
    told = (
        r"optimizer\.micro_batch = 4096: 8 rollouts of up to 10 sampled tokens may keep 322\.6 kB, even with gradient"
    )
    assert re.match(rf"error: {told} checkpointing, and 60\.0 kB are there in all; set auto", err), err
    there = 100_000
    for size, said in (("4096", True), ("auto", False)):
        out = command("check", "--load", *recipe[1:], f"optimizer.micro_batch={size}")
        assert bool(re.search(told, out)) is said


def test_several_mistakes_are_told_at_once(model: Path, tmp_path: Path, called: Called) -> None:
    status, _, err = called(*Room(tmp_path, model).train("seed=-1", "stages.one.steps=0"))
    assert status == 2
    assert [line.startswith("error: override ") for line in err.splitlines()] == [True, True]


def test_the_entry_point() -> None:
    (script,) = entry_points(group="console_scripts", name="selfcorrect")
    assert script.value == "selfcorrect.cli:main"
    done = subprocess.run(
        [sys.executable, "-m", "selfcorrect.cli", "check", "no.yaml"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: recipe no.yaml: no such file; `selfcorrect recipes` lists the shipped ones\n"
