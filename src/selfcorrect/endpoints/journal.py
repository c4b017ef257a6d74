"""Every request and every answer, a line each, as they come: nothing that was answered is asked twice (stdlib only).

    {"sent": KEY, "worst": [tokens read, tokens written]}             before a request goes out
    {"answer": KEY, "spent": [read, written], "is": {...}}            its answer, on disk before the next step
    {"failed": KEY, "spent": [read, written], "why": "..."}           no answer came of it

A request that was sent and of which no more is told (the process was killed) counts at its worst.
"""

import json
import os
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from selfcorrect.endpoints.budget import Spent


class Journal:
    """The lines of one evaluation. Whoever opens it holds the evaluation's lock (evaluation/kept.py)."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.answers: dict[str, Mapping[str, Any]] = {}
        self.spent = Spent()
        file.parent.mkdir(parents=True, exist_ok=True)
        self._read()
        self._out = file.open("ab")

    def sent(self, key: str, worst: Spent) -> None:
        self._write({"sent": key, "worst": [worst.read, worst.written]})

    def answer(self, key: str, spent: Spent, answer: Mapping[str, Any]) -> None:
        self._write({"answer": key, "spent": [spent.read, spent.written], "is": answer}, durably=True)
        self.answers[key] = answer

    def failed(self, key: str, spent: Spent, why: str) -> None:
        self._write({"failed": key, "spent": [spent.read, spent.written], "why": why})

    def _write(self, line: Mapping[str, Any], *, durably: bool = False) -> None:
        try:
            self._out.write(json.dumps(line).encode() + b"\n")
            self._out.flush()  # to the system, which keeps it whatever becomes of this process
            if durably:
                os.fsync(self._out.fileno())
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.file)) from None  # a full disk names no file itself

    def _read(self) -> None:
        """Lines that are whole; one that a crash tore is closed, so that the next does not grow onto it."""
        if not self.file.exists():
            return
        open_sends: defaultdict[str, list[Spent]] = defaultdict(list)
        text = self.file.read_bytes()
        for raw in text.split(b"\n"):
            try:
                line = json.loads(raw)
                if "sent" in line:
                    open_sends[line["sent"]].append(Spent(*line["worst"]))
                    continue
                key = line["answer"] if "answer" in line else line["failed"]
                self.spent += Spent(*line["spent"])
                if "answer" in line:
                    self.answers[key] = line["is"]
            except (ValueError, LookupError, TypeError):
                continue
            if open_sends[key]:
                open_sends[key].pop()
        for sends in open_sends.values():
            for worst in sends:
                self.spent += worst
        if text and not text.endswith(b"\n"):
            with self.file.open("ab") as out:
                out.write(b"\n")
