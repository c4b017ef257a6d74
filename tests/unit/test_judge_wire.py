"""What crosses from a program to the judge: every plain value survives, and nothing else gets through."""

import datetime
import json
import math
import os
import uuid
from collections import Counter, OrderedDict, deque, namedtuple
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfcorrect.grading.judge import wire
from selfcorrect.grading.judge.order import recipe_for
from selfcorrect.grading.judge.wire import NotPlainError, ProtocolError, decode, dumps, encode, loads

scalars = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary()
    | st.complex_numbers(allow_nan=False) | st.fractions() | st.integers(-(10**200), 10**200)
)  # fmt: skip
hashable = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4).map(tuple) | st.frozensets(inner, max_size=4), max_leaves=8
)
values = st.recursive(
    hashable,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(hashable, inner, max_size=4) | st.sets(hashable, max_size=4)
    | st.lists(inner, max_size=3).map(deque),
    max_leaves=12,
)  # fmt: skip


def nothing_else(value: Any) -> Any:
    raise NotPlainError(type(value).__name__)


def across(value: Any) -> Any:
    return decode(loads(dumps(encode(value, nothing_else))), nothing_else)


def kinds(value: Any) -> Any:
    """The exact types, all the way down."""
    if isinstance(value, dict):
        return dict, sorted((repr(kinds(k)), repr(kinds(v))) for k, v in value.items())
    if isinstance(value, list | tuple | set | frozenset | deque):
        return type(value), sorted(repr(kinds(item)) for item in value)
    return type(value)


@given(values)
def test_plain_values_survive_with_their_types(value: Any) -> None:
    assert across(value) == value
    assert kinds(across(value)) == kinds(value)


def test_subclasses_arrive_as_what_they_hold() -> None:
    class Liar(list[int]):
        def __eq__(self, other: object) -> bool:
            return True

        __hash__ = None

    pair = namedtuple("pair", "a b")
    for value, plain in (
        (Liar([1]), [1]), (pair(1, [2]), (1, [2])), (Counter("aab"), {"a": 2, "b": 1}), (OrderedDict(a=1), {"a": 1}),
        (datetime.datetime(2020, 1, 2, tzinfo=datetime.timezone(datetime.timedelta(hours=5), "there")), datetime.datetime(2020, 1, 1, 19, tzinfo=datetime.UTC)),
        (datetime.time(1, 2, fold=1), datetime.time(1, 2, fold=1)), (uuid.UUID(int=7), uuid.UUID(int=7)), ({1: [2]}.items(), {1: [2]}.items()),
        (True, True), (range(2, 8, 3), range(2, 8, 3)), (Decimal("1.50"), Decimal("1.50")), (Fraction(1, 3), Fraction(1, 3)),
    ):  # fmt: skip
        found = across(value)
        assert found == plain
        assert type(found) is type(plain)
    assert across(-(7**20_000)) == -(7**20_000)  # more digits than Python writes in decimal
    assert math.isnan(across(float("nan")))
    assert list(across(iter([1, 2]))) == [1, 2]


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(st.sampled_from([*"tszdbcqFDiorTUkvmSZ@", "it", "h", "x", ""]), inner, max_size=2)
        ),
        max_leaves=20,
    )
)
def test_any_json_is_plain_data_or_refused(data: Any) -> None:
    try:
        found = decode(loads(json.dumps(data).encode()), lambda contents: None)
    except ProtocolError:
        return
    allowed = "list tuple set frozenset dict bytes complex int float str bool NoneType range deque Fraction Decimal list_iterator "
    allowed += "date datetime time timedelta timezone UUID dict_keys dict_values dict_items"
    assert type(found).__name__ in allowed.split()


def test_what_is_met_twice_stays_one() -> None:
    inner, table, group = [1], {2: 3}, {4}
    found = across([inner, (inner, table), {"x": table, "y": [group, inner]}, group, [1]])
    assert found == [[1], ([1], {2: 3}), {"x": {2: 3}, "y": [{4}, [1]]}, {4}, [1]]
    assert found[0] is found[1][0] is found[2]["y"][1] is not found[4]
    assert found[1][1] is found[2]["x"]
    assert found[3] is found[2]["y"][0]
    doubled: list[Any] = [7]
    for _ in range(100):
        doubled = [doubled, doubled]
    for _ in range(100):
        assert doubled[0] is doubled[1]
        doubled = across(doubled)[0]
    assert doubled == [7]


@given(
    st.sets(st.integers(-50, 200) | st.text("abc", max_size=3), max_size=12), st.sets(st.integers(0, 200), max_size=6)
)
def test_sets_keep_their_order(one: set[Any], other: set[Any]) -> None:
    for value in (one, one | other, one - other, {*list(one)[::-1]}):
        found = across(value)
        assert found == value
        # A few orders of tables that grew and shrank are not found again; nearly all are.
        recipe = recipe_for(value)
        assert list(found) == list(value) or recipe is None


def test_common_sets_keep_their_order() -> None:
    for value in (
        {5, 10, 15, 20, 25}, {40, 8, 16, 24}, set(range(0, 90, 7)), {8, 16}, {16, 8}, {33, 1, 65}, {65, 33, 1}, {-1, 7, 15, 23, 31},
        set(range(100)) - set(range(3, 97)), {2.5, 8, -1, 16}, {(1, 2), (3, 4), (0, 9)}, frozenset({16, 8, 24}), set(range(300)),
    ):  # fmt: skip
        assert list(across(value)) == list(value)
        assert type(across(value)) is type(value)


@given(st.binary(max_size=60))
def test_any_bytes_are_a_message_or_refused(text: bytes) -> None:
    try:
        found = loads(text)
    except ProtocolError:
        return
    assert json.dumps(found)


def test_what_is_built_to_hurt_is_refused() -> None:
    for text in (
        b"[" * 100_000,
        b"9" * 500_000,
        b'{"t":' * 400 + b"[]" + b"}" * 400,
        b'{"b":"zz"}',
        b'{"s":[[]]}',
        b'{"d":[[1,2,3]]}',
        b'{"F":[1,0]}',
        b'{"i":' + b'"' + b"f" * (wire.MAX_INTEGER_DIGITS + 1) + b'"}',
    ):
        with pytest.raises(ProtocolError):
            decode(loads(text), nothing_else)
    nested: list[Any] = []
    nested.append(nested)
    with pytest.raises(NotPlainError, match="nested deeper"):
        encode(nested, nothing_else)


def test_frames_end_and_are_bounded() -> None:
    reading, writing = os.pipe()
    long = b"y" * 50_000
    wire.write_frame(writing, b"abc")
    wire.write_frame(writing, b"")
    wire.write_frame(writing, long)
    os.write(writing, b"\x03\0")  # a length in two pieces
    frames = wire.Frames(reading, 60_000)
    assert [frames.read(), frames.read(), frames.read()] == [b"abc", b"", long]
    os.write(writing, b"\0\0def" + (1 << 20).to_bytes(4, "little") + b"x")
    assert frames.read() == b"def"
    with pytest.raises(ProtocolError, match="1048576 bytes; at most 60000"):
        frames.read()
    os.close(writing)
    assert wire.Frames(reading, 10).read() is None
    os.close(reading)


def test_a_frame_cut_short_is_the_end() -> None:
    reading, writing = os.pipe()
    os.write(writing, (100).to_bytes(4, "little") + b"not all")
    os.close(writing)
    assert wire.Frames(reading, 1000).read() is None
    os.close(reading)
