"""The shell commands of README.md, CONTRIBUTING.md and docs/*.md, and whether each one is one that exists.

Where a block says that it is shell (```bash), every line must begin with a program of PROGRAMS; where it says nothing, lines that do
are commands, and the others what a command prints, or no shell at all.
"""

import difflib
import importlib.util
import re
import shlex
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import cache
from io import StringIO
from pathlib import Path
from typing import Any

import typer
from markdown_it import MarkdownIt

from selfcorrect import cli
from selfcorrect.config.explain import explain
from selfcorrect.config.recipe import load_recipe, validate
from selfcorrect.config.shipped import find_recipe, shipped_recipes

ROOT = Path(__file__).parents[2]
SHELL = ("bash", "sh", "shell", "console")
# Programs of others: what they are, so that nobody takes their lines for checked.
ELSEWHERE = {
    **dict.fromkeys(("curl", "wget", "ssh", "scp", "rsync", "docker", "git"), "needs a network or another machine"),
    **dict.fromkeys(("vllm", "ollama", "llama-server", "nvidia-smi", "sglang"), "another program, mostly with a GPU"),
    **dict.fromkeys(("inspect", "lm_eval", "lm-eval"), "another program; tests of its bridge run it"),
    **dict.fromkeys(("cd", "mkdir", "ls", "cat", "head", "export", "echo", "jq", "open", "eval", "source", "uv"), "the shell's"),
}  # fmt: skip
LAUNCHERS = ("torchrun", "accelerate")  # what stands behind `selfcorrect` or `-m selfcorrect.cli` is checked
OURS = ("selfcorrect", *LAUNCHERS)  # a line that begins almost so is one of them, mistyped
PROGRAMS = {"selfcorrect", "make", "pip", "python", "python3", *LAUNCHERS, *ELSEWHERE}
MINE = (
    "mine.yaml",
    "adapter.yaml",
    "looked.yaml",
    "code.yaml",
    "bare.yaml",
    "recipe.yaml",
)  # recipes that the reader is taken to have
_PLACEHOLDER = re.compile(r"[A-Z][A-Z0-9_/-]*")


@dataclass(frozen=True, slots=True)
class Command:
    """One command. words: as the shell would split it, optional parts included, without comment."""

    file: str
    line: int
    words: tuple[str, ...]
    inline: bool = False

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {shlex.join(self.words)}"


def pages() -> list[Path]:
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def commands(page: Path, text: str | None = None) -> Iterator[Command]:
    """Those of a page, in its order. Raises AssertionError for a line of a shell block that begins with no known program."""
    name = page.relative_to(ROOT).as_posix() if page.is_relative_to(ROOT) else page.name
    for token in MarkdownIt("commonmark").enable("table").parse(text if text is not None else page.read_text("utf-8")):
        line = (token.map or [0])[0] + 1
        if token.type in ("fence", "code_block"):
            yield from _of_block(name, line + (token.type == "fence"), token.content, token.info.strip())
        for child in token.children or ():
            if child.type == "code_inline" and child.content.startswith(
                ("selfcorrect ", "make ", "pip install ", *(f"{name} " for name in LAUNCHERS))
            ):
                yield from _split(name, line, child.content.replace("\n", " "), inline=True)


def _of_block(name: str, line: int, content: str, info: str) -> Iterator[Command]:
    rows = _joined(content.splitlines(), line)
    shell = info.partition(" ")[0] in SHELL
    for number, text in rows:
        known = _program(text) in PROGRAMS and not re.match(r"\w+:( |$)|\w+ = ", text)
        near = not info and difflib.get_close_matches(_program(text), OURS, 1, 0.8)
        if not text or text.startswith("#") or (info and not shell) or not (known or shell or near):
            continue
        assert known, (
            f"{name}:{number}: `{text}`: {_program(text)!r} is no program that is known here; if the block is no shell, "
            "give its fence a language (```text); else add the program to tests/docs/shell.py, with why it is not run"
        )
        yield from _split(name, number, text)


def _joined(lines: Sequence[str], first: int) -> list[tuple[int, str]]:
    """Lines, those that end in a backslash together with the next."""
    found: list[tuple[int, str]] = []
    open_line = False
    for number, line in enumerate(lines, first):
        text = line.strip().removeprefix("$ ")
        if open_line:
            found[-1] = (found[-1][0], found[-1][1].removesuffix("\\") + text)
        else:
            found.append((number, text))
        open_line = text.endswith("\\")
    return found


def _program(text: str) -> str:
    words = [word for word in text.split() if not re.fullmatch(r"[A-Z_]+=\S*", word)]
    return words[0].rpartition("/bin/")[2] if words else ""


def _split(name: str, line: int, text: str, *, inline: bool = False) -> Iterator[Command]:
    usage = re.sub(r"(?<=\s)\[(-[^]]*)\]", r"\1", text)  # [--split test]: an optional part
    usage = re.sub(r"\s[012]?>{1,2}\s*(&[12]|[\w./-]+)", "", usage)  # where output goes
    lexer = shlex.shlex(usage, posix=True, punctuation_chars="&|;")
    lexer.whitespace_split, lexer.commenters = True, "#"
    try:
        words = list(lexer)
    except ValueError as error:
        raise AssertionError(f"{name}:{line}: `{text}`: {error}") from None
    part: list[str] = []
    for word in [*words, ";"]:
        if word and set(word) <= set("&|;"):
            while part and re.fullmatch(r"[A-Z_]+=\S*", part[0]):
                part.pop(0)
            if part:
                yield Command(name, line, (part[0].rpartition("/bin/")[2], *part[1:]), inline)
            part = []
        else:
            part.append(word)


def fault(command: Command) -> str | None:
    """What is wrong with a command; None where nothing is."""
    program, *words = command.words
    if program in LAUNCHERS or (program.startswith("python") and words[:2] == ["-m", "selfcorrect.cli"]):
        start = next((n + 1 for n, word in enumerate(words) if word in ("selfcorrect", "selfcorrect.cli")), None)
        if start is None:
            return (
                None
                if command.inline or "config" in words
                else f"{program} starts nothing of ours: `-m selfcorrect.cli` or `selfcorrect`"
            )
        return _fault_of_ours(words[start:], command.inline)
    match program:
        case "selfcorrect":
            return _fault_of_ours(words, command.inline)
        case "make":
            targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
            return next((f"the Makefile has no target {w}" for w in words if "=" not in w and w not in targets), None)
        case "pip":
            return _fault_of_pip(words)
        case "python" | "python3":
            return _fault_of_script(words)
    return None


def _fault_of_pip(words: Sequence[str]) -> str | None:
    told = tomllib.loads((ROOT / "pyproject.toml").read_text())
    extras = told["project"]["optional-dependencies"]
    asked = [
        name
        for word in words
        for found in re.findall(r"^(?:selfcorrect|\.)\[(.*)\]$", word)
        for name in found.split(",")
    ]
    return next((f"pyproject.toml has no extra {name}" for name in asked if name not in extras), None)


def _fault_of_script(words: Sequence[str]) -> str | None:
    if words[:1] in (["-m"], ["-c"]):
        ours = words[0] == "-m" and difflib.get_close_matches(words[1].partition(".")[0], ("selfcorrect",), 1, 0.8)
        return f"there is no module {words[1]}" if ours and not _is_module(words[1]) else None
    script = ROOT / words[0]
    if not script.is_file():
        return f"there is no {words[0]}"
    options = [word.partition("=")[0] for word in words[1:] if word.startswith("--")]
    return next((f"{words[0]} has no option {o}" for o in options if f'"{o}"' not in script.read_text("utf-8")), None)


def _is_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


@cache
def _app() -> Any:
    return typer.main.get_command(cli.app)


def _fault_of_ours(words: Sequence[str], inline: bool) -> str | None:
    """The command line's own parser reads it; then recipes and settings are looked at."""
    if not words or words[0].startswith("-"):
        return None
    if words[0] not in _app().commands:
        return f"there is no command {words[0]}; there are {', '.join(_app().commands)}"
    parser = _app().commands[words[0]]
    known = {option for parameter in parser.params for option in (*parameter.opts, *parameter.secondary_opts)}
    options = [word.partition("=")[0] for word in words[1:] if re.match(r"--[a-z]|-[a-z]$", word)]
    if strange := [option for option in options if option not in {*known, "--help", "-h"}]:
        return f"{words[0]} has no option {strange[0]}; it has {', '.join(sorted(option for option in known if option[0] == '-'))}"
    if inline or "--help" in words or "-h" in words:
        return None
    return _fault_of_values(parser, words)


def _fault_of_values(parser: Any, words: Sequence[str]) -> str | None:
    told = StringIO()
    try:
        with redirect_stderr(told), redirect_stdout(told):
            asked = parser.make_context(
                words[0], [w for w in words[1:] if w not in ("KEY=VALUE", "KEY=VALUE...", "...")]
            ).params
    except Exception as error:  # noqa: BLE001 - whatever it is, the command would end with it
        return error.format_message() if hasattr(error, "format_message") else f"{error!r} {told.getvalue()}"
    try:
        if words[0] == "explain" and asked["key"] and not _PLACEHOLDER.fullmatch(asked["key"]):
            explain(asked["key"])
        return _fault_of_settings(words[0], asked)
    except Exception as error:  # noqa: BLE001 - whatever it is, the command would end with it
        return str(error)


def _fault_of_settings(name: str, asked: dict[str, Any]) -> str | None:
    """Recipes exist, and overrides fit the recipe they are laid over."""
    overrides = [text for text in asked.get("overrides") or () if not _PLACEHOLDER.fullmatch(text)]
    recipe, resumed = asked.get("recipe"), asked.get("resume") is not None
    if resumed and recipe is not None:  # train --resume RUN takes its first override there
        overrides, recipe = [str(recipe), *overrides], None
    if name == "grade":
        stage = {"name": "none", "objective": "single_turn", "steps": 1, "learning_rate": 1.0}
        validate({"task": {"name": asked["task"]}, "stages": [stage]}, overrides=overrides)
        return None
    if recipe is None and str(asked.get("model", "")).endswith(".yaml"):
        recipe = asked["model"]
    if recipe is None:
        named = any(text.startswith("task.name=") for text in overrides)
        _ = (
            validate({"stages": []}, overrides=overrides)
            if named
            else load_recipe(ROOT / "recipes/demo.yaml", overrides)
        )
        return None
    stand_in = {"compare": "compare_lab"}.get(name, "countdown")
    known = str(recipe) in shipped_recipes() or find_recipe(ROOT / recipe).is_file()
    if _PLACEHOLDER.fullmatch(str(recipe)) or Path(recipe).name in MINE:
        recipe = stand_in
    elif not known:
        return f"there is no recipe {recipe}; `selfcorrect recipes` lists them, and MINE of tests/docs/shell.py the reader's own"
    load_recipe(recipe if str(recipe) in shipped_recipes() else find_recipe(ROOT / recipe), overrides)
    return None
