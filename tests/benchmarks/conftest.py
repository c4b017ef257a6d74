"""Scripts of benchmarks/ and examples/, imported as they are when they are run, with their results put elsewhere."""

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
Script = Callable[..., ModuleType]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Script]:
    """script("benchmarks/judge.py", "--rounds", "1") -> the module, with these arguments as its command line."""
    before = set(sys.modules)

    def load(file: str, *arguments: str) -> ModuleType:
        path = ROOT / file
        monkeypatch.syspath_prepend(path.parent)
        monkeypatch.setattr(sys, "argv", [str(path), *arguments])
        module = importlib.import_module(path.stem)
        for name in ("RESULTS", "RESULT"):
            if hasattr(module, name):
                kept = getattr(module, name)
                monkeypatch.setattr(module, name, tmp_path / kept.name if kept.suffix else tmp_path)
        return module

    yield load
    for name in set(sys.modules) - before:  # another test's script may have the same name, or other data
        if str(getattr(sys.modules[name], "__file__", None) or "").startswith(str(ROOT / "benchmarks")):
            del sys.modules[name]
