"""The YAML that recipes are written in: YAML 1.2's idea of scalars, no anchors, no tags, no duplicate keys.

`1e-4` is a float; `no`, `1:30` and `010` are text.
"""

import math
import re
from typing import Any

import yaml

from firered_lit.errors import UserError

MISSING = "???"  # a value that the command line must give
DEEPEST = 50  # levels of mappings and lists inside each other

_HALVES = re.compile("[\ud800-\udfff]")  # of surrogate pairs

_SCALARS = {
    "bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    "int": (r"[-+]?(0|[1-9][0-9_]*)|0x[0-9a-fA-F]+|0o[0-7]+", "-+0123456789"),
    "float": (
        r"[-+]?((\.[0-9]+|[0-9]+\.[0-9]*)([eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+|\.(inf|Inf|INF))|\.(nan|NaN|NAN)",
        "-+.0123456789",
    ),
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
}


class _Loader(yaml.SafeLoader):
    """Safe YAML, scalars as in YAML 1.2, no anchors, no duplicate keys."""

    depth = 0  # of the node that is composed
    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 (the name and the kind that PyYAML looks for)

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise yaml.MarkedYAMLError(None, None, "anchors and aliases have no place in a recipe", event.start_mark)
        if self.depth == DEEPEST:
            raise yaml.MarkedYAMLError(None, None, f"nested more than {DEEPEST} levels deep", event.start_mark)
        self.depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1

    def construct_scalar(self, node: Any) -> Any:
        if isinstance(node.value, str) and not is_text(node.value):
            raise yaml.MarkedYAMLError(None, None, f"{node.value!r} holds what is no text", node.start_mark)
        return super().construct_scalar(node)  # type: ignore[no-untyped-call]

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)  # type: ignore[no-untyped-call]
            if not isinstance(key, str | int) or isinstance(key, bool):
                raise yaml.MarkedYAMLError(None, None, f"{key!r} cannot be a key", key_node.start_mark)
            if key in seen:
                raise yaml.MarkedYAMLError(None, None, f"the key {key!r} appears twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)

    def construct_int(self, node: Any) -> int:
        return int(node.value.replace("_", ""), 0)


class _Dumper(yaml.SafeDumper):
    """Quotes whatever this dialect or YAML 1.1 would not read back as text."""

    def represent_str(self, data: str) -> Any:
        breaks = any(character in data for character in "\x85\u2028\u2029")  # PyYAML would fold them
        return self.represent_scalar("tag:yaml.org,2002:str", data, '"' if breaks else None)


for _tag, (_pattern, _first) in _SCALARS.items():
    for _side in (_Loader, _Dumper):
        _side.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), list(_first))
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_int)
_Dumper.add_representer(str, _Dumper.represent_str)


def parse(text: str, where: str) -> Any:
    """Read YAML text as plain values. `where` is the file's name, for the error."""
    try:
        return yaml.load(text, _Loader)  # noqa: S506 (a subclass of SafeLoader)
    except yaml.YAMLError as error:
        what = getattr(error, "problem", None) or getattr(error, "reason", None) or error

        # The line, and a hint where it holds `???`.
        mark = getattr(error, "problem_mark", None)
        place = where
        hint = ""
        if mark:
            place = f"{where}:{mark.line + 1}"
            line = "".join(text.splitlines()[mark.line : mark.line + 1])
            if MISSING in line:
                hint = f"; inside braces write '{MISSING}' in quotes"
        raise UserError(f"{place}: not valid YAML: {' '.join(str(what).split())}{hint}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not valid YAML: {error}") from None


def is_text(value: str) -> bool:
    """Return whether a file can hold `value` as text: no NUL, and no half of a surrogate pair."""
    return "\0" not in value and (value.isascii() or not _HALVES.search(value))


def dump(content: Any) -> str:
    """Return plain values as text that `parse` reads back as they were."""
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def flow(value: Any) -> str:
    """Return plain values as text on one line, which `parse` reads back as they were."""
    if isinstance(value, dict):
        inner = ", ".join(f"{flow(key)}: {flow(item)}" for key, item in value.items())
        return f"{{{inner}}}"
    if isinstance(value, list):
        return f"[{', '.join(flow(item) for item in value)}]"

    # A scalar is quoted as it must be between brackets, and so that a line's end stays on the line.
    style = '"' if isinstance(value, str) and "\n" in value else None
    line = yaml.dump(
        [value], Dumper=_Dumper, default_style=style, default_flow_style=True, allow_unicode=True, width=math.inf
    )
    return line.strip()[1:-1]


def kind(value: Any) -> str:
    """Return the name of a value's kind in words, for an error."""
    names = {dict: "a mapping", list: "a list", str: "text", bool: "a bool", int: "an int", float: "a float"}
    if value is None:
        return "empty"
    return names.get(type(value), f"a {type(value).__name__}")
