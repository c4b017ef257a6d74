"""Plain data between the judge and a program, as tagged JSON in length-framed messages (floor 1; stdlib only).

What the judge decodes is made of exact builtin types, whatever the program's process wrote: nothing that arrives
can bring code or an `__eq__` of its own. A JSON object always is {tag: contents}:

    t tuple   s set   z frozenset   d dict as pairs   b bytes   c complex   i integer as hex   it iterator
    r range   q deque   F fraction   D decimal   o object of the program, by number   h the same, as an argument
"""

import json
import os
import struct
from collections import deque
from collections.abc import Callable, Iterator
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from itertools import islice
from typing import Any

MAX_DEPTH = 150
MAX_INTEGER_DIGITS = 4_000_000  # hexadecimal
MAX_ITEMS = 1_000_000  # of an iterator that is read out
_PLAIN = frozenset({int, float, str, bool, type(None)})
_SIZED = frozenset({list, tuple, set, frozenset, dict, type({}.items()), deque})
_ITERATORS: tuple[type, ...] = (Iterator, type({}.keys()), type({}.values()), type({}.items()))
_ENCODER = json.JSONEncoder(ensure_ascii=True, separators=(",", ":"), check_circular=False)
_HEADER = struct.Struct("<I")
_AT_ONCE = 1 << 16  # bytes of one read


class ProtocolError(Exception):
    """A message that is not what this file describes."""


class NotPlainError(Exception):
    """A value that is not plain data."""


class TooDeepError(NotPlainError):
    """Data nested deeper than MAX_DEPTH."""


class EndlessError(Exception):
    """An iterator that gave more than MAX_ITEMS items."""


# ---------------------------------------------------------------- values -> JSON


def dumps(message: Any) -> bytes:
    """JSON text; integers too long for decimal digits must have been tagged (see encode, exact)."""
    return _ENCODER.encode(message).encode("ascii")


def encode(value: Any, other: Callable[[Any], Any], *, exact: bool = False, depth: int = MAX_DEPTH) -> Any:
    """A value -> what json can write. other(x) encodes what is not plain data, or raises NotPlainError.

    exact: look at every integer; without it, lists of plain values go as they are, and json refuses long integers.
    """
    kind = type(value)
    if kind in _PLAIN:
        return _integer(value) if exact and kind is int else value
    if depth == 0:
        raise TooDeepError(f"nested deeper than {MAX_DEPTH}")

    def items(values: Any) -> list[Any]:
        listed = list(values) if type(values) in _SIZED else _read_out(values)
        if not exact and _PLAIN.issuperset(map(type, listed)):
            return listed
        return [encode(item, other, exact=exact, depth=depth - 1) for item in listed]

    if isinstance(value, list):
        return items(value)
    if isinstance(value, tuple):
        return {"t": items(value)}
    if isinstance(value, dict):
        return {"d": [items(pair) for pair in value.items()]}
    if isinstance(value, set | frozenset):
        return {"s" if isinstance(value, set) else "z": items(value)}
    return _encode_scalar(value, items, other)


def _encode_scalar(value: Any, items: Callable[[Any], list[Any]], other: Callable[[Any], Any]) -> Any:
    match value:
        case bytes() | bytearray():
            return {"b": bytes(value).hex()}
        case int():  # a subclass, such as an enum's member
            return _integer(int(value))
        case float():
            return float(value)
        case str():
            return str.__str__(value)
        case complex():
            return {"c": [value.real, value.imag]}
        case range():
            return {"r": [value.start, value.stop, value.step]}
        case deque():
            return {"q": items(value)}
        case Fraction():
            return {"F": [_integer(value.numerator), _integer(value.denominator)]}
        case Decimal():
            return {"D": str(value)}
    if isinstance(value, _ITERATORS):
        return {"it": items(value)}
    if type(value).__module__ == "numpy" and hasattr(value, "tolist"):
        return items([value.tolist()])[0]
    return other(value)


def _read_out(values: Any) -> list[Any]:
    """Of a subclass or an iterator: what its own __iter__ gives, as the tests would have seen it."""
    listed = list(islice(values, MAX_ITEMS + 1))
    if len(listed) > MAX_ITEMS:
        raise EndlessError
    return listed


def _integer(value: int) -> Any:
    # int() undoes what a subclass makes of it; hexadecimal digits cost linear time, decimal ones quadratic
    return int(value) if -(1 << 62) < value < 1 << 62 else {"i": hex(value)}


# ---------------------------------------------------------------- JSON -> values


def loads(text: bytes) -> Any:
    """Raises ProtocolError for anything but JSON within Python's own bounds on digits and nesting."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"not a message: {type(error).__name__}") from None


def decode(data: Any, remote: Callable[[Any], Any], depth: int = MAX_DEPTH) -> Any:
    """What loads gave -> the value, of exact builtin types. remote(contents) stands for the tags o and h.

    Raises ProtocolError.
    """
    if type(data) in _PLAIN:
        return data
    if depth == 0:
        raise ProtocolError(f"nested deeper than {MAX_DEPTH}")
    if type(data) is list:
        return decode_items(data, remote, depth)
    if len(data) != 1:
        raise ProtocolError("an object with other than one tag")
    [(tag, contents)] = data.items()
    try:
        return _decode_tag(tag, contents, remote, depth)
    except (TypeError, ValueError, ArithmeticError, InvalidOperation) as error:
        raise ProtocolError(f"bad contents of tag {tag[:10]!r}: {type(error).__name__}") from None


def decode_items(data: Any, remote: Callable[[Any], Any], depth: int = MAX_DEPTH) -> list[Any]:
    """The items of a list, each decoded. Raises ProtocolError."""
    if type(data) is not list:
        raise ProtocolError("contents that are not a list")
    if _PLAIN.issuperset(map(type, data)):
        return data
    return [decode(item, remote, depth - 1) for item in data]


def _decode_tag(tag: str, contents: Any, remote: Callable[[Any], Any], depth: int) -> Any:
    if tag in ("o", "h"):
        return remote(contents)
    if tag in _FROM_ITEMS:
        return _FROM_ITEMS[tag](decode_items(contents, remote, depth))
    if tag == "F":
        return Fraction(*decode_items(contents, remote, depth))
    if tag == "i" and len(contents) > MAX_INTEGER_DIGITS:
        raise ProtocolError(f"an integer of more than {MAX_INTEGER_DIGITS} digits")
    if tag in _FROM_TEXT:
        return _FROM_TEXT[tag](contents)
    raise ProtocolError(f"unknown tag {tag[:10]!r}")


_FROM_ITEMS: dict[str, Callable[[list[Any]], Any]] = {
    "t": tuple, "s": set, "z": frozenset, "q": deque, "it": iter, "r": lambda items: range(*items),
    "d": lambda pairs: {key: value for key, value in pairs},  # noqa: C416 - a pair of another length is refused
}  # fmt: skip
_FROM_TEXT: dict[str, Callable[[Any], Any]] = {
    "b": bytes.fromhex, "i": lambda digits: int(digits, 16), "D": lambda digits: Decimal(digits[:1000]),
    "c": lambda pair: complex(*map(float, pair)),
}  # fmt: skip


# ---------------------------------------------------------------- frames


def write_frame(descriptor: int, payload: bytes) -> None:
    """Raises OSError where the other side is gone."""
    data = _HEADER.pack(len(payload)) + payload
    written = os.write(descriptor, data)
    while written < len(data):
        written += os.write(descriptor, memoryview(data)[written:])


class Frames:
    """The payloads that arrive at a descriptor, of at most so many bytes each."""

    __slots__ = ("_descriptor", "_held", "_most")

    def __init__(self, descriptor: int, most: int) -> None:
        self._descriptor, self._most = descriptor, most
        self._held = b""  # read and not yet given out: a small message then takes one call of the kernel's

    def read(self) -> bytes | None:
        """The next payload, or None at the end of the stream. Raises ProtocolError over the size."""
        held = self._held or os.read(self._descriptor, _AT_ONCE)
        if len(held) < _HEADER.size and not (held := self._fill(held, _HEADER.size)):
            return None
        end = _HEADER.size + _HEADER.unpack_from(held)[0]
        if end - _HEADER.size > self._most:
            raise ProtocolError(f"a message of {end - _HEADER.size} bytes; at most {self._most} are read")
        if len(held) < end and not (held := self._fill(held, end)):
            return None
        self._held = held[end:]
        return held[_HEADER.size : end]

    def _fill(self, held: bytes, length: int) -> bytes:
        """At least so many bytes, or none where the stream ends before."""
        parts, missing = [held], length - len(held)
        while missing > 0:
            parts.append(os.read(self._descriptor, max(_AT_ONCE, min(missing, 1 << 20))))
            if not parts[-1]:
                return b""
            missing -= len(parts[-1])
        return b"".join(parts)
