"""Sets that are gone through in the same order in another process (stdlib only).

The order hangs on the table's size and on which element came first where two wanted one place. CPython 3.11 to 3.14
build a set from a dict in the dict's order, in a table of a size that the dict's length sets.
"""

from operator import is_
from typing import Any, NamedTuple

_EMPTY, _ENTRY, _SMALLEST = set().__sizeof__(), 16, 8  # bytes, bytes a place, places
_FILLER = 1 << 40  # fillers are integers from here on, whose lower bits are their places
_TRIES, _WORK = 100, 4_000  # orders tried; their number times the elements
_HASHED_ALIKE = frozenset({int, float, complex, bool, str, bytes, tuple, frozenset})  # in every process here


class Recipe(NamedTuple):
    """How to build a set: the elements in this order, the first `together` with the fillers, which then leave."""

    order: list[Any]
    together: int
    fillers: list[int]


def build(recipe: Recipe, kind: type = set) -> Any:
    """The set, or the frozenset."""
    built: set[Any] = set()
    built.update(dict.fromkeys([*recipe.order[: recipe.together], *recipe.fillers]))
    for element in recipe.order[recipe.together :]:
        built.add(element)
    built.difference_update(recipe.fillers)
    return built if kind is set else kind(built)


def recipe_for(original: Any) -> Recipe | None:
    """None where building it from its elements gives the same order, or where no way was found."""
    wanted, kind = list(original), type(original)
    if not _HASHED_ALIKE.issuperset(map(type, wanted)) or all(map(is_, kind(wanted), wanted)):
        return None
    places = max(_SMALLEST, (original.__sizeof__() - _EMPTY) // _ENTRY)
    recipe = Recipe(list(wanted), *_sizing(wanted, places))
    order, position = recipe.order, {id(element): place for place, element in enumerate(wanted)}
    for number in range(min(_TRIES, _WORK // len(wanted))):
        got = list(build(recipe, kind))
        wrong = next((at for at, element in enumerate(got) if element is not wanted[at]), None)
        if wrong is None:
            return recipe
        early, late = wanted[wrong], got[wrong]
        if number % 10 == 9:  # a circle of exchanges: begin elsewhere
            order.sort(key=lambda element: (position[id(element)] + 1) * 2654435761 * (number + 1) % 65521)
        elif _index(order, early) > _index(order, late):
            order.pop(_index(order, early))
            order.insert(_index(order, late), early)
        else:
            order.insert(0, order.pop(_index(order, late)))
    return None


def _sizing(elements: list[Any], places: int) -> tuple[int, list[int]]:
    """How many elements, and which fillers, make a table of so many places at once."""
    if places == _SMALLEST:
        return 0, []
    missing = max(0, places // 4 + 1 - len(elements))
    taken = {hash(element) & (places - 1) for element in elements}
    near = taken | {place + 1 for place in taken} | {place - 1 for place in taken}
    free = sorted(
        set(range(min(places, 4 * missing + 4 * len(near)))) - taken, key=lambda place: (place in near, -place)
    )
    return min(len(elements), places // 2 - 1), [_FILLER + place for place in free[:missing]]


def _index(order: list[Any], element: Any) -> int:
    return next(at for at, each in enumerate(order) if each is element)
