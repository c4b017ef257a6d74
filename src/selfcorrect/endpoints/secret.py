"""The key of an endpoint, and texts without it: a server may send back what it was sent."""

import base64
import re
from urllib.parse import quote

_SHORT = 8  # a key with fewer characters is a placeholder, like EMPTY, and stays in what a model writes
_RUN = 12  # so many characters of a key in a row count as the key


class Secret:
    """A key that no repr, log or traceback shows."""

    __slots__ = ("_forms", "_runs", "_value")

    def __init__(self, value: str) -> None:
        self._value = value
        coded = [base64.b64encode(value.encode()).decode().rstrip("="), base64.b64encode(f":{value}".encode()).decode()]
        self._forms = sorted({value, quote(value, safe=""), *coded}, key=len, reverse=True) if value else []
        self._runs = {value[at : at + _RUN].casefold() for at in range(len(value) - _RUN + 1)}

    def __repr__(self) -> str:
        return "Secret(...)"

    def __bool__(self) -> bool:
        return bool(self._value)

    def reveal(self) -> str:
        """The key itself, for the client alone."""
        return self._value

    def without(self, text: str, *, written: bool = False) -> str:
        """The text with [key] where the key stood, whole or in part, plain or encoded. written: by a model."""
        if not self._value or (written and len(self._value) < _SHORT):
            return text
        flags = re.IGNORECASE if len(self._value) >= _SHORT else re.NOFLAG
        for form in self._forms:
            text = re.sub(re.escape(form), "[key]", text, flags=flags)
        return self._without_parts(text) if self._runs else text

    def _without_parts(self, text: str) -> str:
        low, kept, place, at = text.casefold(), list[str](), 0, 0
        if len(low) != len(text):  # some letters have longer folded forms
            low = text
        while at <= len(low) - _RUN:
            end = at + _RUN
            if low[at:end] not in self._runs:
                at += 1
                continue
            while low[end - _RUN + 1 : end + 1] in self._runs and end < len(low):
                end += 1
            kept += [text[place:at], "[key]"]
            place = at = end
        return "".join([*kept, text[place:]])
