"""The file of a task of one's own, and the modules beside it that it imports.

Python looks beside a script for what the script imports; so it is here, by import statements of the file and of what
lies beside it: `import helper` finds helper.py or helper/__init__.py there. Names of the standard library and of
installed packages stay theirs, as this program needs those itself.
"""

import ast
import hashlib
import importlib.abc
import importlib.util
import shutil
import sys
from collections.abc import Iterator, Mapping
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

from selfcorrect.errors import DataError
from selfcorrect.tasks.own_code import executed

MODULE = "selfcorrect_custom_task"


def files_of(file: str | Path) -> dict[str, Path]:
    """The file, and all that it imports from beside it: by the path relative to its folder, with slashes."""
    first = Path(file).absolute()
    found, left = dict[str, Path](), [first]
    while left:
        path = left.pop()
        name = path.relative_to(first.parent).as_posix()
        if name not in found:
            found[name] = path
            for place in _beside(path, first.parent).values():
                left += sorted(place.parent.rglob("*.py")) if place.name == "__init__.py" else [place]
    return found


def digest_of(file: str | Path) -> str:
    """Of what `files_of` gives: contents, and names but for the first's own. Raises OSError where the file is gone."""
    told = hashlib.sha256()
    for number, (name, path) in enumerate(files_of(file).items()):
        told.update(f"{name if number else ''} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return told.hexdigest()[:16]


def keep(file: str | Path, folder: Path) -> None:
    """Copies what `files_of` gives into the folder, which is made."""
    for name, path in files_of(file).items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if not (target.exists() and target.samefile(path)):
            shutil.copyfile(path, target)


def load(file: Path) -> ModuleType:
    """Runs the file, and anew what lies beside it. Raises what it raises, and DataError of `turn_to`."""
    _finder.turn_to(file)
    return executed(file, MODULE)


class _Finder(importlib.abc.MetaPathFinder):
    """Finds what lies beside the task's file; one task's at a time."""

    def __init__(self) -> None:
        self._places: dict[str, Path] = {}

    def turn_to(self, file: Path) -> None:
        """Raises DataError where a module of the same name and of another file is there already."""
        if self not in sys.meta_path:
            sys.meta_path.insert(0, self)
        for name in self._places:
            _forget(name)
        self._places = {}
        places: dict[str, Path] = {}
        for path in files_of(file).values():
            places |= _beside(path, file.absolute().parent)
        for name, place in places.items():
            there = getattr(sys.modules.get(name), "__file__", None)
            if there is not None and Path(there).resolve() != place.resolve():
                raise DataError(
                    f"{file}: imports {name}, which lies beside it, but another {name} is loaded already ({there}); "
                    "give one of them another name"
                )
            _forget(name)  # it may have been edited since
        self._places = places

    def find_spec(self, fullname: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        place = self._places.get(fullname)
        if place is None:
            return None
        inside = [str(place.parent)] if place.name == "__init__.py" else None
        return importlib.util.spec_from_file_location(fullname, place, submodule_search_locations=inside)


_finder = _Finder()


def _forget(name: str) -> None:
    for each in [each for each in sys.modules if each == name or each.startswith(f"{name}.")]:
        del sys.modules[each]


def _beside(file: Path, folder: Path) -> Mapping[str, Path]:
    """By name, what a file imports that lies in the folder."""
    found: dict[str, Path] = {}
    for name in sorted(set(_imported(file))):
        place = next((p for p in (folder / name / "__init__.py", folder / f"{name}.py") if p.is_file()), None)
        if place is not None and name not in sys.stdlib_module_names and not _is_installed(name, folder):
            found[name] = place
    return found


def _imported(file: Path) -> Iterator[str]:
    """The first parts of the names in its import statements; none where it cannot be parsed, as running it tells."""
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError, RecursionError, OSError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0]


def _is_installed(name: str, folder: Path) -> bool:
    """Whether a package of the environment has the name; the program's own is one, wherever it is run from."""
    places = [place for place in sys.path if Path(place).name in ("site-packages", "dist-packages")]
    return name == "selfcorrect" or PathFinder.find_spec(name, places) is not None
