"""A Python file of the user's: loaded in this process, with the user's rights, and blamed by file and line."""

import importlib.util
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, overload

from selfcorrect.errors import DataError
from selfcorrect.tasks.sources import check_there


class OwnCode:
    """The file and what it defines. setting: what names it. page: what says which functions it defines.

    Raises DataError where the file is not there, is no Python, or fails as it is read.
    """

    def __init__(self, file: str, setting: str, page: str) -> None:
        self.file = check_there(file, setting)
        self._named, self._page = f"{setting} = {file!r}", page
        if not self.file.is_file():
            raise DataError(f"{self._named}: not a file")
        self._module = self._import()

    @overload
    def function(self, name: str, needed: Literal[True] = True) -> Callable[..., Any]: ...
    @overload
    def function(self, name: str, needed: bool) -> Callable[..., Any] | None: ...
    def function(self, name: str, needed: bool = True) -> Callable[..., Any] | None:
        found = getattr(self._module, name, None)
        if found is None and not needed:
            return None
        if not callable(found):
            raise DataError(f"{self.file}: defines no function {name}; {self._page} has the shape of the file")
        return found  # type: ignore[no-any-return]

    def wrong(self, what: str) -> DataError:
        return DataError(f"{self.file}: {what}"[:500])

    @contextmanager
    def blamed(self) -> Iterator[None]:
        """Whatever the user's code raises becomes a DataError that names its file and line."""
        try:
            yield
        except DataError:
            raise
        except SyntaxError as error:
            raise DataError(f"{error.filename}:{error.lineno}: {error.msg}") from error
        except (Exception, SystemExit) as error:  # the user's code may raise anything
            frames = traceback.extract_tb(error.__traceback__)
            mine = [frame.lineno for frame in frames if Path(frame.filename) == self.file]
            line = f":{mine[-1]}" if mine else ""
            raise DataError(f"{self.file}{line}: {type(error).__name__}: {error}"[:500]) from error

    def _import(self) -> ModuleType:
        name = f"selfcorrect_own_{self.file.stem}"
        spec = importlib.util.spec_from_file_location(name, self.file)
        if spec is None or not isinstance(spec.loader, SourceFileLoader):
            raise DataError(f"{self._named}: not a Python file (.py)")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # dataclasses look themselves up there
        with self.blamed():
            # Not by exec_module: its cache takes a file of the same second and size for the one before it was edited.
            path = str(self.file)
            exec(spec.loader.source_to_code(spec.loader.get_data(path), path), module.__dict__)
        return module
