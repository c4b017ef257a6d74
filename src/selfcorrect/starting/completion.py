"""Completion in the shell: what typer tells it, and what completes a recipe's name or a setting.

bash takes `=` for the end of a word, so its script reads the line itself. No shell puts a space behind a `KEY=`.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import get_type_hints

import typer

from selfcorrect.errors import ConfigError

_VARIABLE = "_SELFCORRECT_COMPLETE"
_BASH = """\
_selfcorrect_completion() {
    local IFS=$' \\t\\n' words word
    read -ra words <<< "${COMP_LINE:0:COMP_POINT}"
    [[ "${COMP_LINE:0:COMP_POINT}" == *[[:space:]] ]] && words+=("")
    word="${words[${#words[@]}-1]}"
    IFS=$'\\n'
    COMPREPLY=( $(COMP_WORDS="$(IFS=' '; echo "${words[*]}")" COMP_CWORD=$((${#words[@]} - 1)) \\
        _SELFCORRECT_COMPLETE=complete_bash "$1" 2>/dev/null) )
    [[ "${COMPREPLY[0]}" == *[=.] ]] && compopt -o nospace
    [[ "$word" == *=* && "$COMP_WORDBREAKS" == *=* ]] && COMPREPLY=( "${COMPREPLY[@]#*=}" )
    return 0
}
complete -o default -F _selfcorrect_completion selfcorrect
"""
_ZSH = """\
#compdef selfcorrect
(( $+functions[compdef] )) || { autoload -Uz compinit && compinit }
_selfcorrect_completion() {
    local line="${words[1,$CURRENT]}"
    local told="$(_TYPER_COMPLETE_ARGS="$line" _SELFCORRECT_COMPLETE=complete_zsh ${words[1]} 2>/dev/null)"
    [[ "$told" == *'="'* ]] && compadd() { builtin compadd -S '' "$@" }
    eval "$told"
    (( $+functions[compadd] )) && unfunction compadd
    return 0
}
compdef _selfcorrect_completion selfcorrect
"""


def prepare(app: typer.Typer) -> None:
    """Where a shell asks, lets typer answer it, and tells it what `recipe` and `overrides` of any command may be."""
    if _VARIABLE not in os.environ:
        return
    from typer._completion_classes import completion_init

    completion_init()
    for command in app.registered_commands:
        for name, hint in get_type_hints(command.callback, include_extras=True).items():
            for told in getattr(hint, "__metadata__", ()):
                told.autocompletion = {"recipe": recipes, "overrides": overrides}.get(name, told.autocompletion)


def script(shell: str) -> str:
    """What a shell sources. Raises ConfigError for one that is not known."""
    if shell in (own := {"bash": _BASH, "zsh": _ZSH}):
        return own[shell]
    if shell != "fish":
        raise ConfigError(f"{shell!r}: must be bash, zsh or fish")
    from typer import completion

    made = completion.get_completion_script(  # type: ignore[attr-defined]
        prog_name="selfcorrect", complete_var=_VARIABLE, shell=shell
    )
    return str(made)


def shipped(incomplete: str) -> list[str]:
    """Names of shipped recipes."""
    from selfcorrect.config.shipped import shipped_recipes

    return [name for name in shipped_recipes() if name.startswith(incomplete)]


def recipes(incomplete: str) -> list[str]:
    """Names of shipped recipes, and recipes' files here."""
    prefix = incomplete[: incomplete.rfind("/") + 1]
    here = Path(prefix)
    try:
        files = [
            f"{prefix}{path.name}{'/' if path.is_dir() else ''}" for path in sorted(here.iterdir())
            if path.suffix in (".yaml", ".yml") or (path.is_dir() and not path.name.startswith("."))
        ]  # fmt: skip
    except OSError:
        files = []
    return [*shipped(incomplete), *(name for name in files if name.startswith(incomplete))]


def overrides(incomplete: str) -> list[str]:
    """`KEY=` for the settings that begin so, or `KEY=VALUE` where a setting has a closed choice."""
    from selfcorrect.config.settings import settings

    key, equals, _ = incomplete.partition("=")
    if equals:
        found = [f"{key}={value}" for value in _values(key)]
    else:
        keys = [
            k
            for s in settings()
            if s.inside is None and s.kinds not in (("compare",), ("lab_base",))
            for k in _keys(s.key, key)
        ]
        found = [f"{name}=" for name in dict.fromkeys(keys)]
    return [name for name in found if name.startswith(incomplete)]


def keys(incomplete: str) -> list[str]:
    """What `explain` explains: settings and sections that begin so."""
    from selfcorrect.config.explain import overview
    from selfcorrect.config.settings import settings

    found = [*(line.split()[0] for line in overview()), *(setting.key for setting in settings())]
    return [name for name in dict.fromkeys(found) if name.startswith(incomplete)]


def _keys(key: str, typed: str) -> Iterator[str]:
    """NAME goes by the stage that was typed, else by those that recipes have."""
    if not key.startswith("stages.NAME"):
        yield key
        return
    named = typed.split(".")[1] if typed.count(".") > 1 else ""
    for stage in (named,) if named else ("stage1", "stage2"):
        yield key.replace("NAME", stage, 1)


def _values(key: str) -> list[str]:
    """The values of a closed choice, over all kinds that have the setting."""
    from selfcorrect.config.explain import found_settings

    words = dict.fromkeys(word for setting in found_settings(key) for word in setting.takes.split(" | "))
    return [word for word in words if " " not in word and word not in ("text", "number", "mapping", "section")]
