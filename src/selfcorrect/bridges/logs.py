"""Attempts from the logs of other programs: inspect's (.eval, .json), lm-eval's files of samples (.jsonl).

What such a log is taken for follows from what it holds, and every other file is read as docs/recorded.md says. A log
may hold the two attempts as the bridges play them, or what any other task of those programs wrote: then each text of
the model is an attempt. What a run did not finish is left out and told.
"""

import zipfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfcorrect.bridges.protocol import missing
from selfcorrect.config.paths import at_home
from selfcorrect.errors import DataError, one_line
from selfcorrect.evaluation.recorded import Recorded, recorded_of
from selfcorrect.tasks.files import Row, kind_of, read_rows

OWN = "selfcorrect"  # under which a bridge writes what is to be read back
_LM_EVAL = frozenset({"doc_id", "doc", "resps"})
_GOLDS = ("gold", "answer", "solution")
_LEAST_BOMB = 64 << 20  # bytes that any log may unpack to
_PACKED = 200  # logs are packed to a twentieth or so, and no deflated text to less than a thousandth
_SHOWN = 3  # names of left-out samples in a note


@dataclass(frozen=True, slots=True)
class Log:
    """Recorded attempts. notes: what was left out, and why."""

    rows: list[Recorded]
    notes: tuple[str, ...] = ()


def read_log(path: str | Path) -> Log:
    """A file of recorded attempts, or a log that holds some. Raises DataError with file, line or sample, and reason."""
    file = at_home(path, "recorded")
    if file.name.lower().endswith(".eval") or (kind_of(file.name) == "json" and _begins_as_a_log(file)):
        return _inspect(file)
    rows = read_rows(file)
    return _lm_eval(file, rows) if rows[0].fields.keys() >= _LM_EVAL else Log(recorded_of(rows))


def _begins_as_a_log(file: Path) -> bool:
    """Whether a .json file begins as inspect's logs do: an object with their first fields."""
    try:
        with file.open("rb") as stream:
            head = stream.read(4096).lstrip(b"\xef\xbb\xbf \t\r\n")
    except OSError:
        return False  # the reader of rows says why
    return head.startswith(b"{") and b'"status"' in head and b'"eval"' in head


def _lm_eval(file: Path, rows: Sequence[Row]) -> Log:
    seen: dict[object, Row] = {}
    found: list[Row] = []
    again = 0
    for row in rows:
        if not row.fields.keys() >= _LM_EVAL:
            lacks = sorted(_LM_EVAL - row.fields.keys())[0]
            raise row.wrong(
                lacks, f"is missing, which {rows[0].where} has: the file mixes lm-eval's samples with others"
            )
        number = row.integer("doc_id")
        first = seen.setdefault(number, row)
        if first is not row:
            # A task with several filters writes a line for each.
            if row.fields.get("filter") == first.fields.get("filter"):
                raise row.wrong("doc_id", f"= {number} stands at {first.where} already: two runs are in one file")
            if row.fields["resps"] != first.fields["resps"]:
                raise row.wrong("resps", f"differs from that of {first.where}, with the same doc_id")
            again += 1
            continue
        found += _of_sample(row)
    notes = [f"{file}: {again} lines that repeat a sample for another filter are left out"] if again else []
    return _log(file, found, notes)


def _of_sample(row: Row) -> list[Row]:
    """The rows that one line of lm-eval's means: one, or one for each repeat of a task that is not ours."""
    doc, resps = row.fields["doc"], row.fields["resps"]
    if not isinstance(doc, dict):
        raise row.wrong("doc", f"must be an object, got {type(doc).__name__}")
    texts = resps[0] if isinstance(resps, list) and len(resps) == 1 else None
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise row.wrong(
            "resps", "holds no texts of one answer; only what tasks of the kind generate_until wrote is read"
        )
    own = doc.get(OWN)
    if isinstance(own, dict):
        return [Row(row.where, {**own, "attempts": texts})]
    told = {"task_id": str(row.fields["doc_id"]), **{k: v for k, v in doc.items() if k != "finish_reasons"}}
    target = row.fields.get("target")
    if isinstance(target, str) and not any(told.get(name) is not None for name in _GOLDS):
        told["gold"] = target
    return [Row(row.where, {**told, "attempts": [text]}) for text in texts]


def _inspect(file: Path) -> Log:
    try:
        from inspect_ai.log import read_eval_log
    except ImportError:
        raise missing("inspect_ai", "inspect") from None
    if not file.is_file():
        raise DataError(f"{file}: no such file")
    _refuse_a_bomb(file)
    try:
        log = read_eval_log(str(file), resolve_attachments=True)
    except Exception as error:  # noqa: BLE001 - of a damaged log inspect, zipfile and pydantic each raise kinds of their own
        raise DataError(f"{file}: not a log that inspect can read: {type(error).__name__}: {one_line(error)}") from None
    left, found = Counter[str](), list[Row]()
    names: dict[str, list[str]] = {}
    for sample in log.samples or []:
        where = f"{file}: sample {sample.id} (epoch {sample.epoch})"
        fields, why = _of_inspect(sample)
        if why:
            left[why] += 1
            names.setdefault(why, []).append(f"{sample.id}")
        else:
            found.append(Row(where, fields))
    notes = [_left_out(file, count, why, names[why]) for why, count in left.items()]
    if log.status != "success":
        asked = (log.eval.dataset.samples or 0) * (log.eval.config.epochs or 1)
        of = f" of {asked}" if asked else ""
        notes.insert(0, f"{file}: its run ended as {log.status!r}; it holds {len(log.samples or [])}{of} samples")
    return _log(file, found, notes)


def _refuse_a_bomb(file: Path) -> None:
    """Raises DataError where an archive would unpack to far more than any log does."""
    try:
        with zipfile.ZipFile(file) as archive:
            unpacked = sum(member.file_size for member in archive.infolist())
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile):
        return  # no archive, or a damaged one: the reader says what is wrong
    if unpacked > max(_LEAST_BOMB, _PACKED * file.stat().st_size):
        raise DataError(
            f"{file}: unpacks to {unpacked >> 20:,} MiB, more than {_PACKED} times its size, as no log does; write it "
            "anew with `inspect log convert --to json` if it is one of yours"
        )


def _of_inspect(sample: Any) -> tuple[dict[str, Any], str]:
    """What a sample of inspect's holds, and why it is left out, if it is."""
    own = (sample.metadata or {}).get(OWN)
    if sample.error is not None:
        return {}, "stopped by an error"
    if isinstance(own, dict) and "attempts" in own:
        planned, attempts = own.get("planned"), own["attempts"]
        if isinstance(planned, int) and isinstance(attempts, list) and len(attempts) < planned:
            return {}, f"stopped after {len(attempts)} of {planned} attempts"
        return {name: value for name, value in own.items() if name != "planned"}, ""
    if isinstance(own, dict):
        return {}, "stopped before an attempt"
    texts = [message.text for message in sample.messages if message.role == "assistant"]
    if not texts:
        return {}, "without a text of the model"
    last = sample.output.choices[-1].stop_reason if sample.output.choices else "stop"
    asked = sample.input if isinstance(sample.input, str) else "\n".join(
        message.text for message in sample.input if message.role == "user"
    )  # fmt: skip
    target = sample.target if isinstance(sample.target, str) else next(iter(sample.target), "")
    told = {"task_id": str(sample.id), "problem": asked, "attempts": texts}
    told["finish_reasons"] = [*["stop"] * (len(texts) - 1), str(last)]
    return told | ({"gold": target} if target.strip() else {}), ""


def _left_out(file: Path, count: int, why: str, names: Sequence[str]) -> str:
    shown = ", ".join(dict.fromkeys(names[:_SHOWN])) + (", ..." if count > _SHOWN else "")
    return f"{file}: {count} samples {why} are left out ({shown})"


def _log(file: Path, rows: Sequence[Row], notes: Sequence[str]) -> Log:
    if not rows:
        raise DataError(f"{file}: the log holds no attempt that can be graded" + "".join(f"; {note}" for note in notes))
    return Log(recorded_of(rows), tuple(notes))
