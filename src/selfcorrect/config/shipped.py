"""The recipes that come with the package (recipes/ at the root of the repository leads there)."""

import difflib
import re
from importlib import resources
from itertools import takewhile
from pathlib import Path

from selfcorrect.config.paths import at_home


def shipped_recipe(name: str) -> Path:
    """The file of a shipped recipe."""
    return Path(str(resources.files("selfcorrect") / "recipes" / f"{name}.yaml"))


def shipped_recipes() -> dict[str, str]:
    """Name -> what its first comment begins with."""
    files = sorted(shipped_recipe("demo").parent.glob("*.yaml"))
    return {file.stem: _about(file.read_text(encoding="utf-8")) for file in files}


def _about(recipe: str) -> str:
    comment = takewhile(lambda line: line.startswith("#"), recipe.splitlines())
    return re.split(r"[.:;] |\.$", " ".join(line.lstrip("# ") for line in comment))[0]


def like_recipe(path: Path) -> str:
    """A recipe of nearly that name, which lies beside it or is shipped; empty where there is none."""
    beside = [each.name for each in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
    if near := difflib.get_close_matches(path.name, beside, n=1, cutoff=0.75):
        return str(path.parent / near[0])
    stem = path.stem if path.suffix in (".yaml", ".yml") else path.name
    return next(iter(difflib.get_close_matches(stem, list(shipped_recipes()), n=1, cutoff=0.75)), "")


def find_recipe(path: Path) -> Path:
    """The file itself where it is there; else the shipped one that NAME, NAME.yaml or recipes/NAME.yaml means."""
    path = at_home(path, "recipe")
    if path.is_file() or str(path.parent) not in (".", "recipes"):
        return path
    # A name may hold dots of its own (qwen2.5), so only these two endings are cut off.
    shipped = shipped_recipe(path.stem if path.suffix in (".yaml", ".yml") else path.name)
    return shipped if shipped.is_file() else path
