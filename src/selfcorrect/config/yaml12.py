"""YAML 1.2's core schema for PyYAML, which speaks 1.1 alone.

In 1.1 `0100` is 64, `1:30` is 90, `on` is true, `2024-01-01` is a date and `4e-5` is text. Here a number is what a
person reads: digits are decimal whatever zeros lead them, `0o17` and `0x1f` say what they are, and all else is text.
Anchors and merge keys stay; a key may stand once.
"""

import re
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


class Loader(yaml.SafeLoader):
    """Reads plain values by the core schema. Raises yaml.YAMLError, with the mark, for a key that stands twice, and
    where a few lines of aliases stand for more than any recipe holds (or for what they are in).
    """

    def get_single_node(self) -> yaml.Node | None:
        node: yaml.Node | None = super().get_single_node()
        if node and _values(node, {}) > _MOST:
            raise yaml.constructor.ConstructorError(
                None, None, f"it comes to more than {_MOST:,} values, aliases counted", node.start_mark
            )
        return node

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Looked at as written, before merge keys bring in more."""
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"key {key.value!r} stands twice", key.start_mark
                    )
                seen.add(key.value)
        return node

    def read_int(self, node: yaml.ScalarNode) -> int:
        text = str(self.construct_scalar(node))
        if not _INT.match(text):
            raise yaml.constructor.ConstructorError(None, None, f"{text!r} is no whole number", node.start_mark)
        base = {"0o": 8, "0x": 16}.get(text[:2])
        return int(text[2:], base) if base else int(text)

    def read_float(self, node: yaml.ScalarNode) -> float:
        text = str(self.construct_scalar(node))
        if not (_FLOAT.match(text) or _INT.match(text)):
            raise yaml.constructor.ConstructorError(None, None, f"{text!r} is no number", node.start_mark)
        return float(re.sub(r"\.(?=inf|nan)", "", text.lower()))

    def read_bool(self, node: yaml.ScalarNode) -> bool:
        text = str(self.construct_scalar(node))
        if not _BOOL.match(text):
            raise yaml.constructor.ConstructorError(None, None, f"{text!r} is neither true nor false", node.start_mark)
        return text.lower() == "true"


def _values(node: yaml.Node, known: dict[yaml.Node, int]) -> int:
    """What a node holds, each alias counted, as far as _MOST + 1. known: by node, what was counted."""
    if node not in known:
        known[node] = _MOST + 1  # until it is counted: it holds itself where it is met before
        inside = node.value if isinstance(node, yaml.CollectionNode) else []
        parts = [part for pair in inside for part in pair] if isinstance(node, yaml.MappingNode) else inside
        known[node] = min(_MOST + 1, 1 + sum(_values(part, known) for part in parts))
    return known[node]


class Dumper(yaml.SafeDumper):
    """Quotes a text that this loader, or one of YAML 1.1, would read as something else."""


Loader.yaml_implicit_resolvers = {}
for _name, _pattern, _first in _RESOLVERS:
    Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", _pattern, list(_first))
    Dumper.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", _pattern, list(_first))
Loader.add_constructor("tag:yaml.org,2002:int", Loader.read_int)
Loader.add_constructor("tag:yaml.org,2002:float", Loader.read_float)
Loader.add_constructor("tag:yaml.org,2002:bool", Loader.read_bool)
