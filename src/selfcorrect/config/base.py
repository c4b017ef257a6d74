"""The ground all settings stand on: frozen models without silent conversions, and checks that several share."""

import string
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

Positive = Annotated[int, Field(gt=0, le=2**31 - 1)]  # what torch and the processor count in
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]


def _at_home(path: str) -> str:
    try:
        return str(Path(path).expanduser()) if path.startswith("~") else path
    except RuntimeError:
        raise ValueError(f"{path!r}: no user of that name has a home here; write the whole path") from None


LocalPath = Annotated[str, AfterValidator(_at_home)]  # `~` is the user's home; what may be a hub name is one as well


@dataclass(frozen=True, slots=True)
class Paper:
    """Where the paper (arXiv 2409.12917) has a setting: its symbol, equation, table or section."""

    told: str


class Strict(BaseModel):
    """Frozen; unknown keys refused; no silent conversion of strings to numbers.

    The text beneath a field is its meaning: `selfcorrect explain`, docs/settings.md and error messages show it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)


def kinds_of(union: Any, tag: str) -> dict[str, Any]:
    """The models of a union by the value that their tag has, in the union's order."""
    members: tuple[type[BaseModel], ...] = get_args(get_args(union)[0])
    return {get_args(member.model_fields[tag].annotation)[0]: member for member in members}


def check_template(field: str, template: str, allowed: set[str], required: frozenset[str] = frozenset()) -> None:
    """Raises ValueError where a prompt template fills in what it may not, or leaves out what it must."""
    if not template.strip():
        raise ValueError(f"{field} is blank: the model would be asked nothing; leave it out, or write what asks it")
    found = _template_fields(field, template)
    listed = _listed(allowed)
    if found - allowed:
        raise ValueError(
            f"{field} may use only {listed} (double other braces), not {sorted(found - allowed)}"
            if allowed
            else f"{field} has nothing to fill in (double braces that are meant as text), not {sorted(found)}"
        )
    if required - found:
        raise ValueError(f"{field} must hold {_listed(required)}, or the model cannot see the problem")


def _listed(names: set[str] | frozenset[str]) -> str:
    return " and ".join(f"{{{name}}}" for name in sorted(names))


def _template_fields(field: str, template: str) -> set[str]:
    """The names a template fills in, as they are: no format after a colon, no conversion after an exclamation mark."""
    try:
        parts = [part for part in string.Formatter().parse(template) if part[1] is not None]
    except ValueError as error:
        raise ValueError(f"{field} is not a template: {error} (double braces that are meant as text)") from None
    for _, name, form, conversion in parts:
        if form or conversion:
            raise ValueError(
                f"{field} must fill in {{{name}}} plainly, without a format or conversion; double braces that are "
                "meant as text"
            )
    return {str(name) for _, name, _, _ in parts}
