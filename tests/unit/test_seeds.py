"""Seeds: the same path gives the same number everywhere, different paths different ones."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfcorrect.seeds import derive_seed

PATHS = st.lists(st.integers() | st.text(max_size=12), max_size=4).map(tuple)


def test_pinned_values() -> None:
    """A change here would silently change every recorded run."""
    # the first eight bytes of sha256("int:0/str:train/int:1"), less the last bit
    assert derive_seed(0, "train", 1) == 8553449957408009194


@given(PATHS)
def test_fits_63_bits_and_repeats(path: tuple[int | str, ...]) -> None:
    assert 0 <= derive_seed(*path) < 2**63
    assert derive_seed(*path) == derive_seed(*path)


@given(PATHS, PATHS)
def test_different_paths_differ(first: tuple[int | str, ...], second: tuple[int | str, ...]) -> None:
    assert (derive_seed(*first) == derive_seed(*second)) == (first == second)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ((1,), ("1",)),
        ((1, 2), (2, 1)),
        ((1, 23), (12, 3)),
        (("a", "b"), ("ab",)),
        ((), ("",)),
        (("a/int:1",), ("a", 1)),  # a name that spells the separator
        (("a/str:b",), ("a", "b")),
    ],
)
def test_paths_that_look_alike(first: tuple[int | str, ...], second: tuple[int | str, ...]) -> None:
    assert derive_seed(*first) != derive_seed(*second)
