"""The house keeps its order: a folder imports only from those above it in the list, and light folders stay light."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import selfcorrect

SOURCE = Path(selfcorrect.__file__).parent
# A folder, or a file on top, imports only from those before it. docs/architecture.md says what each holds.
ORDER = [
    "types", "errors", "seeds", "waiting", "config", "grading", "tasks", "models", "samplers", "rollout", "evaluation",
    "bridges", "parallel", "learning", "planning", "runs", "endpoints", "analysis", "report", "lab", "exporting", "comparing",
    "starting", "sampling", "api", "serving", "commands", "evaluate_command", "cli", "__init__",
]  # fmt: skip
NEVER = {  # folder -> what it must not import; "torch" stands for every heavy library
    "types": {"torch"}, "errors": {"torch"}, "seeds": {"torch"}, "waiting": {"torch"}, "config": {"torch"}, "grading": {"torch", "tasks"},
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


def imports(file: Path, *, lazy: bool = True) -> Iterator[str]:
    """Modules a file imports; with lazy=False only those that importing it brings in."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    inside = set()
    for node in ast.walk(tree):
        skipped = isinstance(node, ast.FunctionDef) or (
            isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        )
        if skipped and not lazy:
            inside |= set(ast.walk(node)) - {node}
    for node in ast.walk(tree):
        if node in inside:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: imports are absolute"
            for alias in node.names:  # `from selfcorrect import objectives` names a room
                yield f"{node.module}.{alias.name}" if node.module == "selfcorrect" else str(node.module)


def rooms(file: Path, *, lazy: bool = True) -> set[str]:
    """Rooms of the package that a file imports, without its own; heavy libraries as "torch"."""
    named = [module.split(".") for module in imports(file, lazy=lazy)]
    found = {parts[1] for parts in named if parts[0] == "selfcorrect" and len(parts) > 1}
    return (found | ({"torch"} if any(parts[0] in HEAVY for parts in named) else set())) - {room_of(file)}


def test_every_file_has_a_place() -> None:
    assert {room_of(file) for file in FILES} == set(ORDER)


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(SOURCE)))
def test_a_file_imports_from_earlier_folders_only(file: Path) -> None:
    before = ORDER[: ORDER.index(room_of(file))]
    later = rooms(file, lazy=room_of(file) != "__init__") - {"torch", "__version__", *before}
    assert not later, f"{file.relative_to(SOURCE)} imports {later}"
    assert not rooms(file) & NEVER.get(room_of(file), set())


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(SOURCE)))
def test_files_are_short(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    assert text.count("\n") <= 500
    assert not re.search(r"\bfloor \d", text), "the order of folders is ORDER here, and nowhere else a number"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert (node.end_lineno or 0) - node.lineno < 60, node.name


def test_no_other_file_is_long_either() -> None:
    root = Path(__file__).parents[2]
    files = [file for folder in ("tests", "benchmarks", "examples") for file in (root / folder).rglob("*.py")]
    assert files
    assert [file.name for file in files if file.read_text(encoding="utf-8").count("\n") > 500] == []


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
