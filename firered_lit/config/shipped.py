"""The recipes that come with the package: where they lie, how one is found by its name, and one's own copy of it."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from firered_lit.config.dialect import flow

_PACKAGE = Path(__file__).resolve().parents[1]
_WIDTH = 100  # columns of a copied recipe
_SENTENCE_END = re.compile(r"(?<=\.) (?=[A-Z])")
_COMMENT = re.compile(r"\s*#\s?(.*)")


class Named(NamedTuple):
    """A shipped recipe: the name that `--recipe` takes, and the first sentence of its opening comment."""

    name: str
    summary: str


def home() -> Path:
    """Return the folder of the shipped recipes: `recipes/` of a checkout, or the copy inside an installed package."""
    beside = _PACKAGE.parent / "recipes"
    return beside if (beside / "base").is_dir() else _PACKAGE / "recipes"


def find(path: str) -> str:
    """Return the file that `--recipe` means.

    Args:
        path: a file; or, where no such file is, the name of a shipped recipe: `sft_lora`, `tiny/sft`,
            `recipes/sft_lora.yaml`.

    Returns:
        The path as it was where it is a file or names no shipped recipe. A folder of that name is no recipe.
    """
    if os.path.isabs(path) or (os.path.lexists(path) and not os.path.isdir(path)):
        return path
    name = os.path.normpath(path).removeprefix(f"recipes{os.sep}")
    for candidate in (name, f"{name}.yaml"):
        file = Path(os.path.normpath(home() / candidate))
        if file.is_relative_to(home()) and file.is_file():
            return shown(file)
    return path


def shown(file: Path) -> str:
    """Return a path as a message should show it: from the current folder where it lies below, else whole."""
    return os.path.relpath(file) if file.is_relative_to(Path.cwd()) else str(file)


def listing() -> list[Named]:
    """Return all shipped recipes but the fragments in `base/`, by folder and name."""
    folder = home()
    files = [file for file in folder.rglob("*.yaml") if "base" not in file.relative_to(folder).parts]
    files.sort(key=lambda file: (len(file.relative_to(folder).parts), str(file)))
    return [Named(_name(file, folder), _summary(file)) for file in files]


def names() -> list[str]:
    """Return the names of all shipped recipes."""
    return [recipe.name for recipe in listing()]


def _name(file: Path, folder: Path) -> str:
    """Return the name of a shipped recipe, as in `tiny/sft`."""
    return file.relative_to(folder).with_suffix("").as_posix()


def opening(file: Path) -> list[str]:
    """Return the lines of the comment that a recipe opens with, without their marks."""
    lines = []
    for line in file.read_text(encoding="utf-8").splitlines():
        comment = _COMMENT.match(line)
        if comment is None:
            break
        lines.append(comment.group(1))
    return lines


def _summary(file: Path) -> str:
    """Return the first sentence of a recipe's opening comment."""
    text = " ".join(opening(file))
    return _SENTENCE_END.split(text, maxsplit=1)[0]


# One file in place of a recipe and its bases


class Comments(NamedTuple):
    """The comments of a recipe file, beside its keys.

    Attributes:
        above: Dotted key -> the full-line comments right above it.
        beside: Dotted key -> the comment at the end of its line.
    """

    above: dict[str, list[str]]
    beside: dict[str, str]


def folded(layers: list[tuple[str, str]], root: Mapping[str, Any], header: list[str]) -> str:
    """Return a recipe and its bases as the text of one file.

    Args:
        layers: name and text of each file, the lowest base first.
        root: what they make together, not yet interpolated.
        header: lines of the comment that it opens with.

    Returns:
        YAML that reads back as `root`. Comments stay beside their keys; where several files have one, the topmost
        counts.
    """
    above: dict[str, list[str]] = {}
    beside: dict[str, str] = {}
    for _, text in layers:
        comments = _comments(text)
        above.update(comments.above)
        beside.update(comments.beside)
    lines = [f"# {line}" for line in header]
    _write(lines, root, "", 0, Comments(above, beside))
    return "\n".join(lines) + "\n"


def _comments(text: str) -> Comments:
    """Return the comments of one file by the keys that they stand at."""
    lines = text.splitlines()
    above: dict[str, list[str]] = {}
    beside: dict[str, str] = {}

    def visit(node: yaml.Node, prefix: str) -> None:
        if not isinstance(node, yaml.MappingNode):
            return
        for key_node, value_node in node.value:
            key = f"{prefix}{key_node.value}"
            first = key_node.start_mark.line

            # Full lines above the key, but not the file's headline.
            start = first
            while start > 0 and lines[start - 1].strip().startswith("#"):
                start -= 1
            whole_line = lines[first].strip().startswith(key_node.value)
            if 0 < start < first and whole_line:
                above[key] = [line.strip() for line in lines[start:first]]

            # The rest of the line behind the value; of a block, behind the key.
            block = isinstance(value_node, yaml.CollectionNode) and not value_node.flow_style
            end = key_node.end_mark if block else value_node.end_mark
            rest = lines[end.line][end.column :].lstrip(" :,") if end.line < len(lines) else ""
            if rest.startswith("#"):
                beside[key] = rest
            visit(value_node, f"{key}.")

    root = yaml.compose(text, Loader=yaml.SafeLoader)
    if root is not None:
        visit(root, "")
    return Comments(above, beside)


def _write(lines: list[str], node: Mapping[str, Any], prefix: str, depth: int, comments: Comments) -> None:
    """Append the lines of a mapping, each key with its comments."""
    indent = "  " * depth
    first = [name for name in ("_target_", "_partial_") if name in node]
    others = [name for name in node if name not in first]
    for name in (*first, *others):
        value = node[name]
        key = f"{prefix}{name}"
        lines.extend(f"{indent}{comment}" for comment in comments.above.get(key, []))
        beside = comments.beside.get(key, "")

        # On one line, where it is short and has no comments inside.
        line = f"{indent}{flow(name)}: {flow(value)}"
        has_comments = any(commented.startswith(f"{key}.") for commented in (*comments.above, *comments.beside))
        opens = isinstance(value, Mapping) and value and (has_comments or len(line) > _WIDTH or depth == 0)
        if opens:
            line = f"{indent}{flow(name)}:"
        lines.append(f"{line}  {beside}" if beside else line)
        if opens:
            _write(lines, value, f"{key}.", depth + 1, comments)
