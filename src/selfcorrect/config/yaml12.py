"""YAML 1.2's core schema for PyYAML, which speaks 1.1 alone.

In 1.1 `0100` is 64, `1:30` is 90, `on` is true, `2024-01-01` is a date and `4e-5` is text. Here a number is what a
person reads: digits are decimal whatever zeros lead them, `0o17` and `0x1f` say what they are, and all else is text.
Anchors and merge keys stay; a key may stand once.
"""

import re
from collections.abc import Callable
from typing import Any

import yaml

_INT = re.compile(r"(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)$")
_FLOAT = re.compile(
    r"[-+]?(?:(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|\.(?:inf|Inf|INF))$|\.(?:nan|NaN|NAN)$"
)
_BOOL = re.compile(r"(?:true|True|TRUE|false|False|FALSE)$")
_NULL = re.compile(r"(?:~|null|Null|NULL|)$")
_RESOLVERS = (
    ("bool", _BOOL, "tTfF"),
    ("int", _INT, "-+0123456789"),
    ("float", _FLOAT, "-+.0123456789"),
    ("null", _NULL, ["~", "n", "N", ""]),
    ("merge", re.compile(r"<<$"), "<"),
)  # fmt: skip


_MOST = 100_000  # values that a file may come to, what its aliases stand for counted
_DEEP = 2_000  # marks of nesting in a text from which on libyaml is not asked: it has no bound, and its end is a crash
_NESTING = ("[", "{", "-", "?")


def load(text: str) -> Any:
    """What the only document of a text holds; None where there is none. Raises as `read`."""
    return read(text)[0]


def read(text: str, look: Callable[[yaml.Node | None], Any] = lambda node: None) -> tuple[Any, Any]:
    """What a text holds, and what `look` finds in its nodes as they are written, before merge keys bring in more.

    Raises yaml.YAMLError with the mark, ValueError, or RecursionError where it is nested too deeply.
    """
    if _QUICK and sum(map(text.count, _NESTING)) < _DEEP:
        try:  # ten times as fast
            return _read(_QUICK(text), look)
        except (yaml.YAMLError, ValueError):
            pass  # the other tells better why
    return _read(Loader(text), look)


def _read(loader: Any, look: Callable[[yaml.Node | None], Any]) -> tuple[Any, Any]:
    try:
        node = loader.get_single_node()
        seen = look(node)
        return None if node is None else loader.construct_document(node), seen
    finally:
        loader.dispose()


class _Core:
    """Reads plain values by the core schema. Raises yaml.YAMLError, with the mark, for a key that stands twice, and
    where a few lines of aliases stand for more than any recipe holds (or for what they are in).
    """

    def get_single_node(self) -> yaml.Node | None:
        node: yaml.Node | None = super().get_single_node()  # type: ignore[misc]
        if node and _values(node, {}) > _MOST:
            raise yaml.constructor.ConstructorError(
                None, None, f"it comes to more than {_MOST:,} values, aliases counted", node.start_mark
            )
        return node

    def read_int(self, node: yaml.ScalarNode) -> int:
        text = _scalar(self, node)
        if not _INT.match(text):
            raise yaml.constructor.ConstructorError(None, None, f"{text!r} is no whole number", node.start_mark)
        base = {"0o": 8, "0x": 16}.get(text[:2])
        return int(text[2:], base) if base else int(text)

    def read_float(self, node: yaml.ScalarNode) -> float:
        text = _scalar(self, node)
        if not (_FLOAT.match(text) or _INT.match(text)):
            raise yaml.constructor.ConstructorError(None, None, f"{text!r} is no number", node.start_mark)
        return float(re.sub(r"\.(?=inf|nan)", "", text.lower()))

    def read_bool(self, node: yaml.ScalarNode) -> bool:
        text = _scalar(self, node)
        if not _BOOL.match(text):
            raise yaml.constructor.ConstructorError(None, None, f"{text!r} is neither true nor false", node.start_mark)
        return text.lower() == "true"


def _scalar(loader: Any, node: yaml.ScalarNode) -> str:
    return str(loader.construct_scalar(node))


class Loader(_Core, yaml.SafeLoader):
    """In Python, by PyYAML."""


_QUICK: Any = type("_Quick", (_Core, yaml.CSafeLoader), {}) if yaml.__with_libyaml__ else None


def _values(node: yaml.Node, known: dict[yaml.Node, int]) -> int:
    """What a node holds, each alias counted, as far as _MOST + 1. known: by node, what was counted.

    Raises ConstructorError for a key that stands twice.
    """
    if node not in known:
        known[node] = _MOST + 1  # until it is counted: it holds itself where it is met before
        inside = node.value if isinstance(node, yaml.CollectionNode) else []
        parts = [part for pair in inside for part in pair] if isinstance(node, yaml.MappingNode) else inside
        seen = set[str]()
        for key in parts[::2] if isinstance(node, yaml.MappingNode) else ():
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    told = f"key {key.value!r} stands twice"
                    raise yaml.constructor.ConstructorError(None, None, told, key.start_mark)
                seen.add(key.value)
        known[node] = min(_MOST + 1, 1 + sum(_values(part, known) for part in parts))
    return known[node]


class Dumper(yaml.SafeDumper):
    """Quotes a text that this loader, or one of YAML 1.1, would read as something else."""


_LOADERS: list[Any] = [Loader, _QUICK] if _QUICK else [Loader]
for _loader in _LOADERS:
    _loader.yaml_implicit_resolvers = {}
    for _name, _pattern, _first in _RESOLVERS:
        _loader.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", _pattern, list(_first))
    for _name, _read_one in (("int", _Core.read_int), ("float", _Core.read_float), ("bool", _Core.read_bool)):
        _loader.add_constructor(f"tag:yaml.org,2002:{_name}", _read_one)
for _name, _pattern, _first in _RESOLVERS:
    Dumper.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", _pattern, list(_first))
