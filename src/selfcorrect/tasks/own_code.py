"""A Python file of the user's: runs in this process, with the user's rights, and is blamed by file and line."""

import importlib.util
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, overload

from selfcorrect.errors import DataError
from selfcorrect.tasks.sources import check_there


def load_alone(file: Path) -> ModuleType:
    """Runs the file. Raises what it raises, and DataError where it is no Python."""
    name = f"selfcorrect_own_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise DataError(f"{file}: not a Python file (.py)")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


class OwnCode:
    """The file and what it defines. setting: what names it. page: what says which functions it defines.

    Raises DataError where the file is not there, is no Python, or fails as it is read.
    """

    def __init__(self, file: str, setting: str, page: str, load: Callable[[Path], ModuleType] = load_alone) -> None:
        self.file, self._page = check_there(file, setting), page
        if not self.file.is_file():
            raise DataError(f"{setting} = {file!r}: not a file")
        with self.blamed():
            self._module = load(self.file)

    @overload
    def function(self, name: str, needed: Literal[True] = True) -> Callable[..., Any]: ...
    @overload
    def function(self, name: str, needed: bool) -> Callable[..., Any] | None: ...
    def function(self, name: str, needed: bool = True) -> Callable[..., Any] | None:
        """What the file calls so; None where it does not and need not."""
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
        except (DataError, KeyboardInterrupt):
            raise
        except SyntaxError as error:
            raise DataError(f"{error.filename}:{error.lineno}: {error.msg}") from error
        except BaseException as error:  # the user's code may raise anything
            frames = traceback.extract_tb(error.__traceback__)
            mine = [frame.lineno for frame in frames if Path(frame.filename) == self.file]
            line = f":{mine[-1]}" if mine else ""
            raise DataError(f"{self.file}{line}: {type(error).__name__}: {error}"[:500]) from error
