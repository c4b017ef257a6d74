"""Plain data between the judge and a program, as tagged JSON in length-framed messages (stdlib only).

What the judge decodes is made of exact builtin types, whatever the program's process wrote: nothing that arrives
can bring code or an `__eq__` of its own. A JSON object always is {tag: contents}:

    t tuple   s set   z frozenset   d dict as pairs   b bytes   c complex   i integer as hex   it iterator
    r range   q deque   F fraction   D decimal   T date, time or time span   U uuid   k, v, m views of a dict
    S, Z set and frozenset with the way to build them in their order (order.Recipe)
    @ the list, dict, set or deque that ended as the n-th of this message   o object of the program, by number
    h the same, as an argument
"""

import datetime
import json
import os
import struct
from collections import ChainMap, deque
from collections.abc import Callable, ItemsView, Iterator, KeysView, ValuesView
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from itertools import islice
from types import MappingProxyType
from typing import Any

from selfcorrect.grading.judge.order import Recipe, build, recipe_for

MAX_DEPTH = 150
MAX_INTEGER_DIGITS = 4_000_000  # hexadecimal
MAX_ITEMS = 1_000_000  # of an iterator that is read out
_PLAIN = frozenset({int, float, str, bool, type(None)})
_SIZED = frozenset({list, tuple, set, frozenset, dict, type({}.items()), deque})
_VIEWS: dict[str, Any] = {"k": KeysView, "v": ValuesView, "m": ItemsView}
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
    """JSON text."""
    try:
        return _ENCODER.encode(message).encode("ascii")
    except ValueError:  # an integer of more digits than json writes
        return _ENCODER.encode(_long_integers(message)).encode("ascii")


def _long_integers(message: Any) -> Any:
    match message:
        case list():
            return [_long_integers(item) for item in message]
        case dict():
            return {tag: _long_integers(contents) for tag, contents in message.items()}
        case bool():
            return message
        case int():  # hexadecimal digits cost linear time, decimal ones quadratic
            return message if -(1 << 62) < message < 1 << 62 else {"i": hex(message)}
    return message


def encode(value: Any, other: Callable[[Any], Any]) -> Any:
    """A value -> what dumps can write. other(x) encodes what is not plain data, or raises NotPlainError."""
    return value if type(value) in _PLAIN else _Encoding(other).encode(value, MAX_DEPTH)


class _Encoding:
    """Of one value: knows which lists, dicts, sets and deques it has met, so that one met twice stays one."""

    __slots__ = ("_kept", "_numbers", "_other")

    def __init__(self, other: Callable[[Any], Any]) -> None:
        self._other = other
        self._numbers: dict[int, int] = {}
        self._kept: list[Any] = []  # an id is free for another when its object ends

    def encode(self, value: Any, depth: int) -> Any:
        if type(value) in _PLAIN:
            return value
        if depth == 0:
            raise TooDeepError(f"nested deeper than {MAX_DEPTH}")
        if isinstance(value, tuple):
            return {"t": self._items(value, depth)}
        if isinstance(value, frozenset):
            return self._set(value, depth, "z")
        if not isinstance(value, list | dict | set | deque):
            return self._scalar(value, depth)
        if (number := self._numbers.get(id(value))) is not None:
            return {"@": number}
        if isinstance(value, list):
            found: Any = self._items(value, depth)
        elif isinstance(value, dict):
            found = {"d": [self._items(pair, depth) for pair in value.items()]}
        elif isinstance(value, set):
            found = self._set(value, depth, "s")
        else:
            found = {"q": self._items(value, depth)}
        self._numbers[id(value)] = len(self._kept)
        self._kept.append(value)
        return found

    def _items(self, values: Any, depth: int) -> list[Any]:
        listed = list(values) if type(values) in _SIZED else _read_out(values)
        if _PLAIN.issuperset(map(type, listed)):
            return listed
        return [self.encode(item, depth - 1) for item in listed]

    def _set(self, value: Any, depth: int, tag: str) -> Any:
        recipe = recipe_for(value) if len(value) > 1 and type(value) in _SIZED else None
        if recipe is None:
            return {tag: self._items(value, depth)}
        return {tag.upper(): [self._items(recipe.order, depth), recipe.together, recipe.fillers]}

    def _scalar(self, value: Any, depth: int) -> Any:
        match value:
            case bytes() | bytearray():
                return {"b": bytes(value).hex()}
            case int():  # a subclass, such as an enum's member
                return int(value)
            case float():
                return float(value)
            case str():
                return str.__str__(value)
            case complex():
                return {"c": [value.real, value.imag]}
            case range():
                return {"r": [value.start, value.stop, value.step]}
            case Fraction():
                return {"F": [int(value.numerator), int(value.denominator)]}
            case Decimal():
                return {"D": str(value)}
        for tag, view in _VIEWS.items():
            if isinstance(value, view):
                return {tag: [self._items(pair, depth) for pair in value] if tag == "m" else self._items(value, depth)}
        if isinstance(value, Iterator):
            return {"it": self._items(value, depth)}
        return self._rarer(value, depth)

    def _rarer(self, value: Any, depth: int) -> Any:
        for kind, parts in _TIMES.items():
            if isinstance(value, kind):
                return {"T": [kind.__name__, [int(getattr(value, part)) for part in parts], _offset(value)]}
        if isinstance(value, ChainMap | MappingProxyType):
            return self.encode(dict(value), depth)
        of = type(value).__module__, type(value).__name__
        if of == ("uuid", "UUID"):
            return {"U": value.hex}
        if of[0] == "numpy" and hasattr(value, "tolist"):
            return self.encode(value.tolist(), depth)
        return self._other(value)


_TIMES: dict[type, tuple[str, ...]] = {  # a datetime is a date
    datetime.datetime: ("year", "month", "day", "hour", "minute", "second", "microsecond", "fold"),
    datetime.date: ("year", "month", "day"),
    datetime.time: ("hour", "minute", "second", "microsecond", "fold"),
    datetime.timedelta: ("days", "seconds", "microseconds"),
    datetime.timezone: (),
}
_TIME_KINDS = {kind.__name__: kind for kind in _TIMES}


def _offset(value: Any) -> list[int] | None:
    """From UTC: days, seconds, microseconds."""
    offset: datetime.timedelta | None = None
    if isinstance(value, datetime.timezone):
        offset = value.utcoffset(None)
    elif isinstance(value, datetime.datetime | datetime.time):
        offset = value.utcoffset()
    return None if offset is None else [offset.days, offset.seconds, offset.microseconds]


def _read_out(values: Any) -> list[Any]:
    """Of a subclass or an iterator: what its own __iter__ gives, as the tests would have seen it."""
    listed = list(islice(values, MAX_ITEMS + 1))
    if len(listed) > MAX_ITEMS:
        raise EndlessError
    return listed


# ---------------------------------------------------------------- JSON -> values


def loads(text: bytes) -> Any:
    """Raises ProtocolError for anything but JSON within Python's own bounds on digits and nesting."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"not a message: {type(error).__name__}") from None


def decode(data: Any, remote: Callable[[Any], Any]) -> Any:
    """What loads gave -> the value, of exact builtin types. remote(contents) stands for the tags o and h.

    Raises ProtocolError.
    """
    return data if type(data) in _PLAIN else _Decoding(remote).decode(data, MAX_DEPTH)


class _Decoding:
    """Of one value: its lists, dicts, sets and deques in the order in which they ended, as _Encoding counts them."""

    __slots__ = ("_kept", "_remote")

    def __init__(self, remote: Callable[[Any], Any]) -> None:
        self._remote = remote
        self._kept: list[Any] = []

    def decode(self, data: Any, depth: int) -> Any:
        if type(data) in _PLAIN:
            return data
        if depth == 0:
            raise ProtocolError(f"nested deeper than {MAX_DEPTH}")
        if type(data) is list:
            items = self._items(data, depth)
            self._kept.append(items)
            return items
        if len(data) != 1:
            raise ProtocolError("an object with other than one tag")
        [(tag, contents)] = data.items()
        try:
            value = self._tagged(tag, contents, depth)
        except (TypeError, ValueError, ArithmeticError, LookupError, AttributeError, InvalidOperation) as error:
            raise ProtocolError(f"bad contents of tag {tag[:10]!r}: {type(error).__name__}") from None
        if tag in ("s", "d", "q", "S"):
            self._kept.append(value)
        return value

    def _items(self, data: Any, depth: int) -> list[Any]:
        if type(data) is not list:
            raise ProtocolError("contents that are not a list")
        if _PLAIN.issuperset(map(type, data)):
            return data
        return [self.decode(item, depth - 1) for item in data]

    def _tagged(self, tag: str, contents: Any, depth: int) -> Any:
        if tag in ("o", "h"):
            return self._remote(contents)
        if tag in _FROM_ITEMS:
            return _FROM_ITEMS[tag](self._items(contents, depth))
        if tag in ("d", "m"):
            pairs = {key: value for key, value in (self._items(pair, depth) for pair in contents)}  # noqa: C416 - exactly two
            return pairs if tag == "d" else pairs.items()
        if tag == "@" and type(contents) is int and contents >= 0:
            return self._kept[contents]
        if tag in ("S", "Z"):
            order, together, fillers = contents
            recipe = Recipe(self._items(order, depth), together, self._items(fillers, depth))
            return build(recipe, set if tag == "S" else frozenset)
        if tag == "i" and len(contents) > MAX_INTEGER_DIGITS:
            raise ProtocolError(f"an integer of more than {MAX_INTEGER_DIGITS} digits")
        if tag in _FROM_TEXT:
            return _FROM_TEXT[tag](contents)
        raise ProtocolError(f"unknown tag {tag[:10]!r}")


def _time(contents: Any) -> Any:
    name, parts, offset = contents
    if name == "timezone":
        return datetime.timezone(datetime.timedelta(*offset))
    zone = {} if offset is None else {"tzinfo": datetime.timezone(datetime.timedelta(*offset))}
    if name in ("datetime", "time"):
        return _TIME_KINDS[name](*parts[:-1], fold=parts[-1], **zone)
    return _TIME_KINDS[name](*parts)


def _uuid(digits: str) -> Any:
    from uuid import UUID  # the smaller process has it not, and says so

    return UUID(hex=digits)


_FROM_ITEMS: dict[str, Callable[[list[Any]], Any]] = {
    "t": tuple, "s": set, "z": frozenset, "q": deque, "it": iter, "r": lambda items: range(*items),
    "F": lambda items: Fraction(*items), "k": lambda items: dict.fromkeys(items).keys(),
    "v": lambda items: dict(enumerate(items)).values(),
}  # fmt: skip
_FROM_TEXT: dict[str, Callable[[Any], Any]] = {
    "b": bytes.fromhex, "i": lambda digits: int(digits, 16), "D": lambda digits: Decimal(digits[:1000]),
    "c": lambda pair: complex(*map(float, pair)), "T": _time, "U": _uuid,
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
