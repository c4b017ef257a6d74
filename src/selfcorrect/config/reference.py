"""docs/settings.md: every setting on one page, written from the models (`make reference`)."""

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from selfcorrect.config import STAGE_KINDS
from selfcorrect.config.settings import Section, Setting, sections

_HEAD = """# Every setting

<!-- Written by `make reference` from src/selfcorrect/config; edit the texts there. -->
A recipe is one YAML file of these settings; `KEY=VALUE` on the command line replaces any of them, a stage going by its
name (`stages.stage1.steps=50`). `selfcorrect explain KEY` shows a setting in the terminal, with what the shipped
recipes set it to; `selfcorrect check RECIPE` prints all of a recipe. The last column has a setting's symbol or place in
the paper (arXiv 2409.12917).
"""


def reference() -> str:
    """The page as Markdown."""
    return "\n".join([_HEAD, *_body()]).rstrip() + "\n"


def _body() -> Iterator[str]:
    told, shared = set[str](), _shared()
    names = {setting.name for setting in shared}
    for section in sections():
        own = section
        if section.key == "stages.NAME":
            if section.kind == next(iter(STAGE_KINDS)):
                yield "## `stages`\n"
                yield "Every stage has these settings, and those of its objective.\n"
                yield from _table(shared)
            own = replace(section, settings=tuple(each for each in section.settings if each.name not in names))
        yield from _section(own, told)


def _section(section: Section, told: set[str]) -> Iterator[str]:
    if section.title in told:  # task.hub is the same in each task that has one
        return
    told.add(section.title)
    yield f"{'#' * (3 if '.' in section.key or section.key == 'task' else 2)} `{section.title}`\n"
    yield f"{section.meaning}\n"
    yield from _table(section.settings)


def _shared() -> tuple[Setting, ...]:
    """What every stage has, whatever its objective."""
    of_kind = [section for section in sections() if section.key == "stages.NAME"]
    names = set.intersection(*({setting.name for setting in section.settings} for section in of_kind)) - {"objective"}
    return tuple(setting for setting in of_kind[0].settings if setting.name in names)


def _table(rows: tuple[Setting, ...]) -> Iterator[str]:
    yield "| key | takes | default | meaning | paper |"
    yield "|---|---|---|---|---|"
    for row in rows:
        default = "**must be given**" if row.default is None else _code(row.default)
        yield f"| `{row.key}` | {_cell(row.takes)} | {default} | {_cell(row.meaning)} | {_cell(row.paper)} |"
    yield ""


def _code(text: str) -> str:
    """A default in a code span, which may hold backticks of its own."""
    inner = " ".join(text.replace("|", "\\|").split())
    return f"`` {inner} ``" if "`" in inner else f"`{inner}`"


def _cell(text: str) -> str:
    """Plain text in a table, but for code spans, in which a backslash would be shown."""
    parts = text.replace("|", "\\|").split("`")
    return "`".join(part if place % 2 else _plain(part) for place, part in enumerate(parts))


def _plain(text: str) -> str:
    return text.replace("<", "&lt;").replace("*", "\\*").replace("_", "\\_")


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(reference(), encoding="utf-8")
