"""Tokens of what is sent and what comes back: at worst before, and as told or counted after. A server may not tell."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from selfcorrect.config.paths import at_home
from selfcorrect.endpoints.answers import Answer
from selfcorrect.endpoints.budget import Spent
from selfcorrect.errors import ConfigError

_TURN, _WHOLE = 16, 64  # tokens that a template may put around a turn, and before a conversation
_WORD = 12  # characters without white space a token, more than in any language's text: fewer tokens were not told right
_OFF = 0.8  # told by less than this share of our own count, usage is not believed


class Counting:
    """tokenizer: a folder or a tokenizer.json to count with. Raises ConfigError where there is none."""

    def __init__(self, tokenizer: str | None) -> None:
        self._count = _counter(tokenizer) if tokenizer else None
        self._before, self._over = 0, 0

    def worst(self, messages: Sequence[Mapping[str, str]], limit: int) -> Spent:
        """The most that a request can take: a token has at least one byte of text."""
        read = sum(
            len(each["content"].encode()) if self._count is None else self._count(each["content"]) for each in messages
        )
        read += sum(len(each.get("reasoning_content", "").encode()) for each in messages)
        return Spent(read + _TURN * len(messages) + _WHOLE + self._before, limit + self._over)

    def spent(
        self, messages: Sequence[Mapping[str, str]], answer: Answer, worst: Spent, limit: int
    ) -> tuple[Spent, str]:
        """What a request took, and what is wrong with what the endpoint says of it; empty where nothing is.

        Where it says nothing, or what cannot be, our own count stands where a tokenizer is known, and the worst case
        where none is.
        """
        usage = answer.about.get("usage", {})
        read, ours_read = usage.get("prompt_tokens"), self._least([each["content"] for each in messages])
        written, ours_written = usage.get("completion_tokens"), self._least([answer.text, answer.reasoning])
        odd = ""
        if read is None and written is None:
            odd = "the endpoint tells no usage"
        elif (read or 0) < max(1, ours_read) or (written or 0) < ours_written:
            odd = f"the endpoint's usage cannot be right ({read or 0:,} tokens read and {written or 0:,} written)"
        if odd:
            odd += ": counted by the tokenizer" if self._count else ": such requests are counted at their worst"
        if read is None or read < max(1, ours_read):
            read = int(ours_read / _OFF) if self._count else worst.read
        if written is None or written < ours_written:
            written = int(ours_written / _OFF) if self._count else worst.written
        written = max(written, usage.get("total_tokens", 0) - read)  # some count reasoning in the sum alone
        self._before += max(0, read - worst.read)  # a system prompt of the server's own
        self._over = max(self._over, written - limit)  # the limit is not kept
        if written > limit and not odd:
            odd = f"the endpoint wrote {written:,} tokens where {limit:,} are the limit"
        return Spent(read, written), odd

    def _least(self, texts: Sequence[str]) -> float:
        """Tokens that texts have at least."""
        if self._count is not None:
            return _OFF * sum(map(self._count, texts))
        return sum(len("".join(text.split())) for text in texts) / _WORD


def _counter(name: str) -> Callable[[str], int]:
    from tokenizers import Tokenizer

    path = at_home(name, "--tokenizer")
    file = path / "tokenizer.json" if path.is_dir() else path
    try:
        tokenizer: Any = Tokenizer.from_file(str(file))
    except Exception as error:  # noqa: BLE001 - the library raises that
        raise ConfigError(f"--tokenizer {name}: {error}; name a folder with tokenizer.json, or that file") from None
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids)
