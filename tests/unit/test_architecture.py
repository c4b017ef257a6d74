"""The house keeps its order: a folder imports only from those above it in the list, and light folders stay light."""

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

import selfcorrect

SOURCE = Path(selfcorrect.__file__).parent
# A folder, or a file on top, imports only from those before it. docs/architecture.md says what each holds.
ORDER = [
    "types", "errors", "seeds", "waiting", "hub", "config", "grading", "tasks", "models", "samplers", "rollout", "evaluation",
    "bridges", "parallel", "learning", "planning", "runs", "endpoints", "analysis", "report", "lab", "exporting", "comparing",
    "starting", "sampling", "api", "serving", "commands", "evaluate_command", "cli", "__init__",
]  # fmt: skip
NEVER = {  # folder -> what it must not import; "torch" stands for every heavy library
    "types": {"torch"}, "errors": {"torch"}, "seeds": {"torch"}, "waiting": {"torch"}, "hub": {"torch"}, "config": {"torch"}, "grading": {"torch", "tasks"},
    "tasks": {"torch", "samplers"}, "models": {"tasks"}, "samplers": {"tasks"}, "rollout": {"torch"},
    "evaluation": {"torch"}, "bridges": {"torch"}, "endpoints": {"torch", "learning"},
    "report": {"torch", "learning", "runs"}, "analysis": {"torch", "learning", "runs"},
    "starting": {"torch", "learning", "runs"},
}  # fmt: skip
HEAVY = {"torch", "transformers", "safetensors", "accelerate"}
OPTIONAL = {
    "peft",
    "bitsandbytes",
    "datasets",
    "pyarrow",
    "pandas",
    "math_verify",
    "sympy",
    "openai",
    "httpx2",
}  # imported where they are used, and only then
FILES = sorted(SOURCE.rglob("*.py"))


def room_of(file: Path) -> str:
    return file.relative_to(SOURCE).parts[0].removesuffix(".py")


class Read(NamedTuple):
    """Of a file: what it imports in all, and what importing it brings in; lines; functions of sixty lines and more."""

    imports: list[str]
    at_once: list[str]
    text: str
    long: list[str]


@cache
def read(file: Path) -> Read:
    text = file.read_text(encoding="utf-8")
    found = Read([], [], text, [])
    waiting: list[tuple[ast.AST, bool]] = [(ast.parse(text), False)]
    while waiting:
        node, lazy = waiting.pop()
        if isinstance(node, ast.FunctionDef):
            lazy = True
            if (node.end_lineno or 0) - node.lineno >= 60:
                found.long.append(node.name)
        elif isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            lazy = True
        names = list[str]()
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: imports are absolute"
            for alias in node.names:  # `from selfcorrect import objectives` names a room
                names.append(f"{node.module}.{alias.name}" if node.module == "selfcorrect" else str(node.module))
        found.imports.extend(names)
        found.at_once.extend(names if not lazy else [])
        waiting += [
            (child, lazy)
            for child in ast.iter_child_nodes(node)
            if isinstance(child, ast.stmt | ast.excepthandler | ast.match_case)
        ]
    return found


def rooms(file: Path, *, lazy: bool = True) -> set[str]:
    """Rooms of the package that a file imports, without its own; heavy libraries as "torch"."""
    named = [module.split(".") for module in (read(file).imports if lazy else read(file).at_once)]
    found = {parts[1] for parts in named if parts[0] == "selfcorrect" and len(parts) > 1}
    return (found | ({"torch"} if any(parts[0] in HEAVY for parts in named) else set())) - {room_of(file)}


def test_every_file_has_a_place() -> None:
    assert {room_of(file) for file in FILES} == set(ORDER)


def test_a_file_imports_from_earlier_folders_only() -> None:
    wrong = dict[str, set[str]]()
    for file in FILES:
        before = ORDER[: ORDER.index(room_of(file))]
        later = rooms(file, lazy=room_of(file) != "__init__") - {"torch", "__version__", *before}
        if later := later | rooms(file) & NEVER.get(room_of(file), set()):
            wrong[str(file.relative_to(SOURCE))] = later
    assert wrong == {}


def test_files_are_short() -> None:
    assert [file.name for file in FILES if read(file).text.count("\n") > 500] == []
    assert {file.name: read(file).long for file in FILES if read(file).long} == {}
    numbered = [file.name for file in FILES if re.search(r"\bfloor \d", read(file).text)]
    assert numbered == [], "the order of folders is ORDER here, and nowhere else a number"


def test_no_other_file_is_long_either() -> None:
    root = Path(__file__).parents[2]
    files = [file for folder in ("tests", "benchmarks", "examples") for file in (root / folder).rglob("*.py")]
    assert files
    assert [file.name for file in files if file.read_text(encoding="utf-8").count("\n") > 500] == []


MAKE_FILES = {  # by themselves: `write_durably`, what lies in a folder that is named once it is whole, and what may be lost
    "adapters", "base", "checkpoint", "execute", "exporting", "init", "interrupts", "kept", "language_model", "ranks", "reference",
    "report", "selftest", "sync_folder", "together",
}  # fmt: skip


def test_files_are_written_whole() -> None:
    writes = re.compile(r"\.write_(text|bytes)\(|\.open\(\"w")
    found = {
        file.parent.name if file.stem == "__init__" else file.stem for file in FILES if writes.search(read(file).text)
    }
    assert found == MAKE_FILES, "use write_durably, which leaves no half of a file"


LIGHT = [
    "selfcorrect", "selfcorrect.config", "selfcorrect.config.recipe", "selfcorrect.evaluation.metrics", "selfcorrect.grading.countdown",
    "selfcorrect.tasks", "selfcorrect.tasks.sources", "selfcorrect.models.chat", "selfcorrect.rollout", "selfcorrect.evaluation.evaluate", "selfcorrect.report.difference", "selfcorrect.cli",
]  # fmt: skip


def test_light_modules_bring_in_nothing_heavy() -> None:
    """In a process of its own: one import after the other, in this order."""
    code = f"""
import importlib, sys
for name in {LIGHT!r}:
    importlib.import_module(name)
    heavy = sorted({HEAVY | OPTIONAL!r} & set(sys.modules))
    assert not heavy, f"{{name}} imports {{heavy}}"
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_public_names_are_there_and_lazy() -> None:
    assert {"train", "evaluate", "play", "write_report", "__version__"} <= set(selfcorrect.__all__)
    for name in selfcorrect.__all__:
        assert getattr(selfcorrect, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = selfcorrect.trian
