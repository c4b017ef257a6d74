"""The shell completes commands, options, recipes, settings and their values."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from selfcorrect.errors import ConfigError
from selfcorrect.starting.completion import overrides, recipes, script


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("typed", "some", "never"),
    [
        ("", ["seed=", "rollouts.temperature=", "stages.stage2.alpha="], "model="),
        ("stages.stage1.st", ["stages.stage1.steps="], "stages.stage2.steps="),
        ("stages.mine.be", ["stages.mine.beta1="], "stages.stage1.beta1="),
        ("task.name=", ["task.name=countdown", "task.name=math"], "task.name="),
        ("model.tuning=q", ["model.tuning=qlora"], "model.tuning=full"),
        ("evaluation.controls=", ["evaluation.controls=true"], ""),
        ("model=", [], "model=section"),
    ],
)
def test_overrides_complete(typed: str, some: list[str], never: str) -> None:
    found = overrides(typed)
    assert set(some) <= set(found)
    assert never not in found
    assert all(name.startswith(typed) for name in found)


@pytest.mark.parametrize("typed", ["seed=1", "=", "nothing.at.all", "task.prompt=x", "stages.", "a=b=c", "..."])
def test_odd_words_complete_to_nothing_that_is_wrong(typed: str) -> None:
    assert all(name.startswith(typed) for name in overrides(typed))


def test_recipes_complete_with_files(here: Path) -> None:
    Path("demolition.yaml").touch()
    Path("sub").mkdir()
    Path("sub/own.yml").touch()
    assert recipes("dem") == ["demo", "demolition.yaml"]
    assert recipes("su") == ["sub/"]
    assert recipes("sub/") == ["sub/own.yml"]
    assert recipes("nowhere/") == []


def test_scripts_of_shells() -> None:
    assert "compdef" in script("zsh")
    assert "complete --command selfcorrect" in script("fish")
    with pytest.raises(ConfigError, match="must be bash, zsh or fish"):
        script("tcsh")


BASH = r"""
eval "$(selfcorrect completion bash)"
compopt() { :; }
while IFS= read -r line; do
    COMP_LINE="$line" COMP_POINT=${#line} COMPREPLY=()
    _selfcorrect_completion selfcorrect
    echo "${COMPREPLY[*]}"
done
"""


SHORT = {
    "selfcorrect tra": "train traces",
    "selfcorrect train demo model.tuning=q": "qlora",
}
LONG = {
    "selfcorrect evaluate lab --recipe compare": "compare_lab",
    "selfcorrect train countd": "countdown",
    "selfcorrect train demo stages.stage2.al": "stages.stage2.alpha=",
    "selfcorrect scale lab evaluation.spl": "evaluation.split=",
    "selfcorrect explain rollouts.temp": "rollouts.temperature",
    "selfcorrect check demo task.name=": "countdown math code repair custom",
    "selfcorrect train --res": "--resume",
    "selfcorrect recipes count": "countdown",
}
# In an interactive shell: what stands there after a tab; the widget that tells it waits for the completion before it.
ZSH = r"""
zmodload zsh/zpty
zpty shell zsh -f -i
zpty -w shell 'PS1= PROMPT_EOL_MARK=; eval "$(selfcorrect completion zsh)"; tell() { print -r "<$BUFFER>"; BUFFER= }; zle -N tell; bindkey "^T" tell'
while IFS= read -r line; do
    zpty -w -n shell "$line"$'\t\C-t'
    zpty -r -m shell told $'*<selfcorrect *>*' && told=${told##*<selfcorrect } && print -r "selfcorrect ${told%%>*}"
done
"""
FISH = """
selfcorrect completion fish | source
while read line
    complete -C $line | string split -f 1 (printf '\\t')
end
"""


def _command(here: Path) -> str:
    """A PATH on which the command is."""
    (here / "bin").mkdir()
    command = here / "bin" / "selfcorrect"
    command.write_text(f"#!{sys.executable}\nfrom selfcorrect.cli import main\nmain()\n")
    command.chmod(0o755)
    return f"{here / 'bin'}:/usr/bin:/bin"


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize("lines", [SHORT, pytest.param(LONG, marks=pytest.mark.nightly)], ids=["few", "more"])
def test_bash_completes(lines: dict[str, str], here: Path) -> None:
    """In a real bash: commands, options, recipes, settings, and values behind `=`, which ends a word there."""
    path = _command(here)
    done = subprocess.run(
        ["bash", "--norc", "-c", BASH], input="\n".join([*lines, ""]), capture_output=True, text=True, check=False,
        env={"PATH": path, "PYTHONPATH": ":".join(sys.path)},
    )  # fmt: skip
    assert done.stdout.splitlines() == list(lines.values()), done.stderr


@pytest.mark.nightly
@pytest.mark.parametrize(("shell", "script"), [("zsh", ZSH), ("fish", FISH)])
def test_other_shells_complete(shell: str, script: str, here: Path) -> None:
    """A real zsh at its prompt, which puts no space behind `KEY=`; a real fish."""
    if shutil.which(shell) is None:
        pytest.skip(f"needs {shell}")
    lines = {line: found for line, found in {**SHORT, **LONG}.items() if " " not in found}
    done = subprocess.run(
        [shell, "-f" if shell == "zsh" else "-N", "-c", script], input="\n".join([*lines, ""]), capture_output=True,
        text=True, check=False, timeout=200,
        env={"PATH": _command(here), "PYTHONPATH": ":".join(sys.path), "HOME": str(here), "TERM": "dumb"},
    )  # fmt: skip
    words = [line.rpartition(" ")[2].rpartition("=") for line in lines]  # bash alone completes behind `=`
    told = [f"{key}{equals}{found}" for (key, equals, _), found in zip(words, lines.values(), strict=True)]
    if shell == "zsh":  # the whole line, which goes on behind a space
        told = [f"{line.rpartition(' ')[0]} {word}" for line, word in zip(lines, told, strict=True)]
        told = [line if line.endswith("=") else f"{line} " for line in told]
    assert done.stdout.splitlines() == told, done.stderr
