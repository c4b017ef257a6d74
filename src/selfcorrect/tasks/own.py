"""A Python file of the user's own, a task or an objective: it runs in this process, with the user's rights.

Python looks beside a script for what the script imports; so it is here, by import statements of the file and of what
lies beside it: `import helper` finds helper.py or helper/__init__.py there. Names of the standard library and of
installed packages stay theirs. Every file has modules of its own, whatever others, and the session, call theirs.
"""

import ast
import builtins
import hashlib
import importlib.abc
import re
import shutil
import sys
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from selfcorrect.errors import DataError
from selfcorrect.tasks.sources import check_there

_PREFIX = "selfcorrect_own_"  # of the package that a file is in, with what lies beside it, for Python


class OwnCode:
    """The file as it is now, and what it defines. setting: what names it. page: what says which functions it defines.

    Raises DataError where the file is not there, is no Python, or fails as it is read.
    """

    def __init__(self, file: str, setting: str, page: str) -> None:
        self.file, self._page = check_there(file, setting), page
        if not self.file.is_file():
            raise DataError(f"{setting} = {file!r}: not a file")
        if self.file.suffix != ".py":
            raise DataError(f"{setting} = {file!r}: not a Python file (.py)")
        self._files = {self.file}
        with self.blamed():
            self.digest = digest_of(self.file)
            self._files |= set(files_of(self.file).values())
            self._module = _load(self.file)

    def function(self, name: str) -> Callable[..., Any]:
        """What the file calls so."""
        found = getattr(self._module, name, None)
        if not callable(found):
            raise DataError(f"{self.file}: defines no function {name}; {self._page} has the shape of the file")
        return found  # type: ignore[no-any-return]

    def optional(self, name: str) -> Callable[..., Any] | None:
        """The same; None where the file has nothing of that name."""
        return None if getattr(self._module, name, None) is None else self.function(name)

    def wrong(self, what: str) -> DataError:
        return DataError(f"{self.file}: {what}"[:500])

    @contextmanager
    def blamed(self) -> Iterator[None]:
        """Whatever the user's code raises becomes a DataError that names its file and line."""
        try:
            yield
        except (DataError, KeyboardInterrupt):
            raise
        except BaseException as error:  # the user's code may raise anything
            if isinstance(error, SyntaxError) and error.filename and Path(error.filename).is_file():  # none of a text's
                raise DataError(f"{error.filename}:{error.lineno}: {error.msg}") from error
            frames = traceback.extract_tb(error.__traceback__)
            mine = [f"{each.filename}:{each.lineno}" for each in frames if Path(each.filename) in self._files]
            told = re.sub(rf"{_PREFIX}\w+\.", "", f"{type(error).__name__}: {error}")
            raise DataError(f"{mine[-1] if mine else self.file}: {told}"[:500]) from error


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
    """Copies what `files_of` gives into the folder, which then holds nothing else; a file in it is the copy already."""
    if Path(file).absolute().parent == folder.absolute():
        return
    if folder.exists():
        shutil.rmtree(folder)
    for name, path in files_of(file).items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)


def _load(file: Path) -> ModuleType:
    """Runs the file, and what lies beside it anew as that is imported. Raises what it raises."""
    first = file.absolute()
    if _finder not in sys.meta_path:
        sys.meta_path.insert(0, _finder)
    package = f"{_PREFIX}{hashlib.sha256(bytes(first)).hexdigest()[:12]}"
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        del sys.modules[name]
    around = sys.modules[package] = ModuleType(package)
    around.__path__ = [str(first.parent)]
    beside = {name for path in files_of(file).values() for name in _beside(path, first.parent)}
    _finder.own[package] = {**vars(builtins), "__import__": _import_of(package, beside)}
    loader = _Loader(f"{package}.{file.stem}", str(file))
    spec = spec_from_file_location(loader.name, file, loader=loader)
    assert spec is not None
    module = sys.modules[loader.name] = module_from_spec(spec)  # dataclasses look themselves up there
    loader.exec_module(module)
    return module


def _import_of(package: str, beside: Collection[str]) -> Callable[..., Any]:
    """What an import statement calls in modules of the package: names of what lies beside the file are in it."""

    def import_(
        name: str, globals: Mapping[str, Any] | None = None, locals: Mapping[str, Any] | None = None,
        fromlist: Sequence[str] | None = (), level: int = 0,
    ) -> ModuleType:  # fmt: skip
        first = name.partition(".")[0]
        if level and str((globals or {}).get("__package__")).count(".") < level:  # `files_of` would not know of it
            raise ImportError("a relative import reaches beyond a package beside the file; write `import NAME`")
        if level or first not in beside:
            return builtins.__import__(name, globals, locals, fromlist, level)
        found = builtins.__import__(f"{package}.{name}", globals, locals, fromlist, 0)
        return found if fromlist else sys.modules[f"{package}.{first}"]

    return import_


class _Loader(SourceFileLoader):
    """Not by importlib's cache: it takes a file of the same second and size for the one before it was edited."""

    def get_code(self, fullname: str) -> CodeType:
        return self.source_to_code(self.get_data(self.path), self.path)

    def exec_module(self, module: ModuleType) -> None:
        module.__dict__["__builtins__"] = _finder.own[module.__name__.partition(".")[0]]
        super().exec_module(module)


class _Finder(importlib.abc.MetaPathFinder):
    """Finds what lies beside a file. own: by the file's package, the builtins of its modules."""

    def __init__(self) -> None:
        self.own: dict[str, dict[str, Any]] = {}

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        package, _, name = fullname.rpartition(".")
        place = _place(name, Path(path[0])) if path and package.partition(".")[0] in self.own else None
        if place is None:
            return None
        inside = [str(place.parent)] if place.name == "__init__.py" else None
        loader = _Loader(fullname, str(place))
        return spec_from_file_location(fullname, place, loader=loader, submodule_search_locations=inside)


_finder = _Finder()


def _beside(file: Path, folder: Path) -> Mapping[str, Path]:
    """By name, what a file imports that lies in the folder."""
    found = {name: _place(name, folder) for name in sorted(set(_imported(file)))}
    return {
        name: place for name, place in found.items()
        if place is not None and name not in sys.stdlib_module_names and not _is_installed(name)
    }  # fmt: skip


def _place(name: str, folder: Path) -> Path | None:
    """Where the module of the name lies in the folder."""
    return next((p for p in (folder / name / "__init__.py", folder / f"{name}.py") if p.is_file()), None)


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


def _is_installed(name: str) -> bool:
    """Whether a package of the environment has the name; the program's own is one, wherever it is run from."""
    places = [place for place in sys.path if Path(place).name in ("site-packages", "dist-packages")]
    return name == "selfcorrect" or PathFinder.find_spec(name, places) is not None
