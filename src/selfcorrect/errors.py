"""Errors meant for the user: one clear line each, shown without a traceback.

Each inherits the standard type it refines, so callers may catch either. What others tell becomes a line here.
"""

import re


def one_line(error: BaseException, most: int = 200) -> str:
    """What an error says as a piece of one line, of so many characters; where it says nothing, its kind."""
    text = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    return text if len(text) <= most else f"{text[:most]} ..."


def first_line(error: Exception) -> str:
    """With the next one, where the first only leads up to it."""
    first, *rest = str(error).strip().splitlines() or [type(error).__name__]
    return f"{first} {rest[0].strip()}" if rest and first.endswith(":") else first


def number_of(error: BaseException) -> int | None:
    """The system's number of an error of its own, which safetensors tells as text; None of others."""
    told = re.search(r"\(os error (\d+)\)", str(error))
    return int(told[1]) if told else error.errno if isinstance(error, OSError) else None


class UserError(Exception):
    """Something the user can put right. The message names the field, the value, why, and what to do."""


class ConfigError(UserError, ValueError):
    """A recipe or an override that cannot be used."""


class ModelError(UserError, ValueError):
    """A model folder, tokenizer or chat template that cannot be used."""


class DataError(UserError, ValueError):
    """A data file that cannot be used; the message names file, line, field and reason."""


class CheckpointError(UserError, OSError):
    """A checkpoint that cannot be written or read."""


class NumericalError(UserError, ArithmeticError):
    """Training produced values that are not finite, too often to go on."""


class MemoryExhausted(UserError, MemoryError):  # noqa: N818 - says what happened
    """The device's memory does not suffice for the recipe's sizes."""


class NothingGraded(UserError, RuntimeError):  # noqa: N818 - says what happened
    """Not one attempt of a step or an evaluation could be sampled and graded; the message says why."""


class GraderFailed(UserError, RuntimeError):  # noqa: N818 - says what happened
    """A grader that can be asked no more; the message says why."""


class EndpointError(UserError, RuntimeError):
    """An endpoint that gives no more answers, or may not be asked for more; what it gave is kept."""


class SamplerFailed(UserError, RuntimeError):  # noqa: N818 - says what happened
    """An engine that samples failed again after it was restarted, or computes other numbers than the policy."""


class EngineFailed(SamplerFailed):
    """An engine that samples failed once, and may be started again."""


class SandboxError(UserError, RuntimeError):
    """Untrusted programs cannot be confined on this machine."""


class RankLost(UserError, ConnectionError):  # noqa: N818 - says what happened
    """Of several processes one died, or ended with an error of its own; the message names it."""


class TrainingInterrupted(UserError, KeyboardInterrupt):  # noqa: N818 - named like the exception it refines
    """Ctrl-C or SIGTERM; the message says what was kept, and how to go on. status: the command line's exit status."""

    def __init__(self, message: str, status: int = 130) -> None:
        super().__init__(message)
        self.status = status
