"""Traces in the formats of other trainers, there and back.

`conversation`: one JSON list of {"conversation": [{"system", "input", "output"}, ...]}, one entry a turn, in which
`output_with_loss: false` keeps an output from being trained on. `messages`: JSON Lines of {"messages": [{"role",
"content"}, ...]}. Both are XTuner's; the second is that of many others. `outcomes`, beside them, is ours.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfcorrect.config import SupervisedStage, TrainConfig
from selfcorrect.config.paths import USED, at_home
from selfcorrect.config.recipe import load_recipe
from selfcorrect.errors import ConfigError, DataError
from selfcorrect.evaluation.kept import json_line, write_durably
from selfcorrect.types import Outcome

FORMATS = ("conversation", "messages")
_ROLES = ("user", "assistant", "user", "assistant")
_SHAPE = "a trace is a question, an attempt, a request to correct it and a second attempt"


@dataclass(frozen=True, slots=True)
class Converted:
    """How many traces were written, by their first attempts; left: that a run collected and did not train on.

    unknown: whether nothing told which those are, so that all were written.
    """

    fixed: int
    kept: int
    left: int
    unknown: bool = False

    def __str__(self) -> str:
        told = f"{self.fixed:,} wrong-then-right and {self.kept:,} right-then-right"
        if self.unknown:
            return f"{told}; all that is there: no settings beside them tell what was trained on"
        return told + (f"; left out: {self.left:,} not trained on (--all takes them too)" * (self.left > 0))


def rows_of(file: str | Path) -> list[tuple[str, dict[str, Any]]]:
    """Every trace of a file, whichever format it is in, as a line of our own, with where it stands.

    Raises DataError with file, place, field and reason.
    """
    try:
        text = at_home(file, "source").read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error}") from None
    except UnicodeDecodeError as error:
        raise DataError(
            f"{file}: not UTF-8 text: {error.reason} at byte {error.start + 1}; write it as UTF-8"
        ) from None
    found = [(where, _own(where, value)) for where, value in _values(str(file), text)]
    if not found:
        raise DataError(f"{file}: holds no traces; expected one JSON object a line, or a JSON list of conversations")
    return found


def convert(source: str | Path, target: str | Path, form: str, *, everything: bool = False) -> Converted:
    """Writes the traces of a file, or those that a run trained on, in a format of FORMATS. Raises DataError.

    everything: those of a run that it collected and did not train on, too.
    """
    origin, out = at_home(source, "source"), at_home(target, "target")
    files = sorted((origin / "traces").glob("*.jsonl")) if origin.is_dir() else [origin]
    if not files:
        raise DataError(f"{origin}: holds no traces/; only stages pair_sft and star collect some")
    if out.exists():
        raise DataError(f"{out} is there already; remove it, or name another file")
    found = {file: rows_of(file) for file in files if len(files) == 1 or file.stat().st_size}
    fixing = _only_fixing(origin) if origin.is_dir() and not everything else set()
    asked = fixing or set()
    rows = [row for file in found for _, row in found[file] if file.stem.rpartition("-")[0] not in asked or fixes(row)]
    made = [_conversation(row) if form == "conversation" else _messages(row) for row in rows]
    try:
        lines = list(map(json_line, made))
    except ValueError as error:
        raise DataError(f"{source}: holds what JSON has not ({error}); see to ids and outcomes") from None
    text = "[\n" + ",\n".join(lines) + "\n]\n" if form == "conversation" else "".join(f"{line}\n" for line in lines)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_durably(out, text)
    fixed = sum(map(fixes, rows))
    return Converted(fixed, len(rows) - fixed, sum(map(len, found.values())) - len(rows), fixing is None)


def fixes(row: dict[str, Any]) -> bool:
    """Whether a line of ours is wrong-then-right."""
    return _parts(row)[-1][0] != Outcome.CORRECT


def _only_fixing(run: Path) -> set[str] | None:
    """The stages of a run that train on wrong-then-right traces alone; their files hold both kinds.

    By the settings that it has gone by; None where the folder holds none, as a copy of the traces alone.
    """
    for name in (USED, "config.yaml"):
        try:
            config = load_recipe(run / name)
        except ConfigError:
            continue
        if isinstance(config, TrainConfig):
            break
    else:
        return None
    return {stage.name for stage in config.stages if isinstance(stage, SupervisedStage) and not stage.keep_right}


def _values(file: str, text: str) -> Iterator[tuple[str, Any]]:
    """The objects of a JSON list, or of JSON Lines."""
    if text.lstrip().startswith("["):
        yield from ((f"{file}: entry {number}", value) for number, value in enumerate(_parsed(file, text), 1))
        return
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield f"{file}:{number}", _parsed(f"{file}:{number}", line)


def _parsed(where: str, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not valid JSON: {error}") from None


def _own(where: str, value: Any) -> dict[str, Any]:
    """A line of ours, from any format. Without `outcomes` the second attempt counts as right, and the first as wrong
    unless it is the same text.
    """
    if not isinstance(value, dict):
        raise DataError(f"{where}: expected a JSON object, got {type(value).__name__}")
    if "conversation" in value:
        system, texts = _of_conversation(where, value["conversation"])
    elif "messages" in value:
        system, texts = _of_messages(where, value["messages"])
    else:
        return value
    prompt, first, correction, second = texts
    same = first.strip() == second.strip()
    assumed = [str(Outcome.CORRECT if same else Outcome.WRONG), str(Outcome.CORRECT)]
    outcomes = value.get("outcomes", assumed)
    if not isinstance(outcomes, list) or len(outcomes) != 2:
        raise DataError(f"{where}: outcomes must be a list of two, like {assumed}, got {outcomes!r}; or leave it out")
    return {
        "id": value.get("id", where), "prompt": prompt, "correction_prompt": correction,
        "first": {"text": first, "outcome": outcomes[0]}, "second": {"text": second, "outcome": outcomes[1]},
    } | ({"system": system} if system else {})  # fmt: skip


def _of_conversation(where: str, turns: Any) -> tuple[str, list[str]]:
    if not isinstance(turns, list) or len(turns) != 2 or not all(isinstance(turn, dict) for turn in turns):
        count = f"{len(turns)} turns" if isinstance(turns, list) else repr(turns)
        raise DataError(f"{where}: conversation must hold two turns with input and output, got {count}; {_SHAPE}")
    system, later = (text_of(where, f"turn {n}: system", turn.get("system") or "") for n, turn in enumerate(turns, 1))
    if later:
        raise DataError(f"{where}: turn 2: system = {later!r} changes in the middle; leave it to turn 1")
    return system, [
        text_of(where, f"turn {n}: {key}", turn.get(key))
        for n, turn in enumerate(turns, 1)
        for key in ("input", "output")
    ]


def _of_messages(where: str, messages: Any) -> tuple[str, list[str]]:
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise DataError(f"{where}: messages must be a list of objects with role and content, got {messages!r}")
    roles = [message.get("role") for message in messages]
    system, *rest = messages if roles[:1] == ["system"] else [{}, *messages]
    if tuple(message.get("role") for message in rest) != _ROLES:
        raise DataError(
            f"{where}: messages must be of {', '.join(_ROLES)}, after one of system or none, not of {roles}; {_SHAPE}"
        )
    told = _content(where, "the system message", system) if system else ""
    return told, [_content(where, f"message {number}", message) for number, message in enumerate(rest, 1)]


def _content(where: str, what: str, message: dict[str, Any]) -> str:
    """Text, or a list of parts that are text."""
    content = message.get("content")
    if isinstance(content, list) and all(isinstance(part, dict) and part.get("type") == "text" for part in content):
        content = "".join(text_of(where, f"{what}: a part's text", part.get("text")) for part in content)
    return text_of(where, f"{what}: content", content)


def text_of(where: str, what: str, value: Any) -> str:
    """Raises DataError where it is none."""
    if not isinstance(value, str):
        raise DataError(f"{where}: {what} must be text, got {value!r}")
    return value


def _parts(row: dict[str, Any]) -> tuple[str, str, str, str, str, list[str]]:
    """System text, prompt, first, correction, second, outcomes of a line of ours."""
    where, attempts = str(row.get("id", "?")), [row.get("first"), row.get("second")]
    if not all(isinstance(attempt, dict) for attempt in attempts):
        raise DataError(f"trace {where}: first and second must be objects with text and outcome")
    first, second = (text_of(where, "text of an attempt", attempt.get("text")) for attempt in attempts if attempt)
    prompt, correction = (text_of(where, key, row.get(key)) for key in ("prompt", "correction_prompt"))
    outcomes = [str(attempt.get("outcome")) for attempt in attempts if attempt]
    return text_of(where, "system", row.get("system", "")), prompt, first, correction, second, outcomes


def _conversation(row: dict[str, Any]) -> dict[str, Any]:
    """The first attempt's output carries no loss, as with us."""
    system, prompt, first, correction, second, outcomes = _parts(row)
    turns = [
        {"system": system, "input": prompt, "output": first, "output_with_loss": False},
        {"system": "", "input": correction, "output": second, "output_with_loss": True},
    ]
    return {"conversation": turns, "id": row.get("id"), "outcomes": outcomes}


def _messages(row: dict[str, Any]) -> dict[str, Any]:
    system, *texts, outcomes = _parts(row)
    said = [{"role": role, "content": text} for role, text in zip(_ROLES, texts, strict=True)]
    head = [{"role": "system", "content": system}] if system else []
    return {"messages": head + said, "id": row.get("id"), "outcomes": outcomes}
