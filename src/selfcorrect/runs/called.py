"""What every public function does as it is called from a session: settings in a wrong form are refused with the right
one, and the session's threads are as they were once it returns.
"""

import functools
import inspect
import json
from collections.abc import Callable, Mapping
from numbers import Real
from typing import Any, ParamSpec, TypeVar

import torch

from selfcorrect.errors import ConfigError

P = ParamSpec("P")
R = TypeVar("R")
_LEAST = {"temperature": 0, "problems": 1, "gpus": 1, "nodes": 1, "price": 0}  # of arguments that no recipe checks


def public(function: Callable[P, R]) -> Callable[P, R]:
    """The function; a recipe's `threads` is torch's number only until it returns.

    Raises ConfigError for keywords that it does not have, numbers that are too low, and overrides that are no text.
    """
    parameters = inspect.signature(function).parameters
    fixed = [name for name, of in parameters.items() if of.kind is of.POSITIONAL_OR_KEYWORD]

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if "overrides" in parameters:
            _refuse(function.__name__, list(parameters), args[len(fixed) :], kwargs)
        for name in _LEAST.keys() & kwargs.keys():
            given, least = kwargs[name], _LEAST[name]
            if given is not None and not (isinstance(given, Real) and float(given) >= least):
                raise ConfigError(f"{name} = {given!r} must be {least} or more")
        threads = torch.get_num_threads()
        try:
            return function(*args, **kwargs)
        finally:
            torch.set_num_threads(threads)

    return call


def _refuse(name: str, known: list[str], overrides: tuple[Any, ...], keywords: Mapping[str, Any]) -> None:
    for key, value in keywords.items():
        if key not in known:
            has = ", ".join(each for each in known if each != "overrides")
            raise ConfigError(
                f"{name}() has no argument {key}; it has {has}. A setting is written as text: {name}(..., "
                f"{_text(key, value)})"
            )
    for given in overrides:
        if isinstance(given, Mapping) and given:
            written = ", ".join(_text(key, value) for key, value in given.items())
            raise ConfigError(f"override {given!r} must be text, one a setting: {name}(..., {written})")
        if not isinstance(given, str):
            raise ConfigError(f"override {given!r} must be text of the form key=value, for example 'seed=1'")


def _text(key: Any, value: Any) -> str:
    """A setting as Python writes an override of it."""
    plain = value if isinstance(value, str) else json.dumps(value, default=str)
    return repr(f"{key}={plain}")
