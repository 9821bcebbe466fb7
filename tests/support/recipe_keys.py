"""The generated part of docs/recipes.md: every key that a recipe may have, from signatures and docstrings."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from importlib.util import resolve_name
from pathlib import Path
from typing import Any

from firered_lit import checking
from firered_lit.config import recipe
from firered_lit.config.nameable import OURS, ROOTS
from firered_lit.config.ranges import range_of
from firered_lit.config.recipe import TARGET
from firered_lit.config.signature import Parameter, _line, signature
from firered_lit.config.source import module_source, resolve

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "recipes.md"
BEGIN = "<!-- Below this line: written by `python tests/test_architecture.py`. -->"
# A section of the page, and the modules whose names it has.
SECTIONS = {
    "Runs": "firered_lit.training firered_lit.distributed.strategy firered_lit.run.tracking",
    "Stages": "firered_lit.stages firered_lit.models firered_lit.flow firered_lit.losses firered_lit.optim",
    "Data": "datamodules",
    "Callbacks and rewards": "callbacks",
    "Mining": "firered_lit.mine",
    "Curation": "firered_lit.curation",
    "Evaluation": "firered_lit.evaluation firered_lit.judges",
}
SECTION = re.compile(r"^(?:Args|Attributes):\n((?:[ ]{4}.*\n?|\n)*)", re.MULTILINE)
ENTRY = re.compile(r"^([*\w]+(?:, [*\w]+)*): (.*)")
ELSEWHERE = re.compile(r"(.+, )?[Ss]ee `\w+`\.?")  # of a class that leaves a meaning to its base
# Arguments that the code gives, not the recipe: by their type, and by name.
OBJECTS = ("Tensor", "Optimizer", "Iterable", "Velocity")
GIVEN = {
    "recipe",
    "firered_lit.losses.nft.adaptive.clip",
    "firered_lit.losses.nft.as_written.clip",
    "firered_lit.losses.nft.old_policy_decay.steps",
    "firered_lit.flow.timesteps.logit_normal_weight.law",
}


def meanings(target: str) -> dict[str, str]:
    """Return what the docstrings of a class or function, and of its bases, say of each parameter."""
    found = resolve(target)
    nodes: list[Any] = [found.node]
    if isinstance(found.node, ast.ClassDef):
        nodes = [base.node for base in _line(found)[0]]
    names = {parameter.name for parameter in signature(target).parameters}
    said: dict[str, str] = {}
    for node in reversed(nodes):
        makers = [item for item in node.body if isinstance(item, ast.FunctionDef) and item.name == "__init__"]
        for documented in (node, *makers):
            text = ast.get_docstring(documented) or ""
            for name, meaning in {**_of_prose(text, names), **_of_lists(text)}.items():
                if name not in said or not ELSEWHERE.fullmatch(meaning):
                    said[name] = meaning
    return {name: _sentence(text) for name, text in said.items() if name in names}


def _of_lists(text: str) -> dict[str, str]:
    """Return the entries of a docstring's `Args:` and `Attributes:`."""
    said: dict[str, str] = {}
    for body in SECTION.findall(f"{text}\n"):
        names: list[str] = []
        for line in body.splitlines():
            entry = ENTRY.match(line[4:])
            if entry:
                names = entry.group(1).split(", ")
                said |= dict.fromkeys(names, entry.group(2))
            elif line.strip():
                said |= {name: f"{said[name]} {line.strip()}" for name in names}
    return said


def _of_prose(text: str, names: set[str]) -> dict[str, str]:
    """Return what `name: meaning. other: meaning.` says within the paragraphs of a docstring."""
    said: dict[str, str] = {}
    known = "|".join(sorted(names, key=len, reverse=True)) or "-"
    start = re.compile(rf"(?:^|(?<=[.;] ))((?:{known})(?:, (?:{known}))*): ")
    for paragraph in text.split("\n\n"):
        pieces = start.split(" ".join(paragraph.split()))
        for key, meaning in zip(pieces[1::2], pieces[2::2]):
            said |= dict.fromkeys(key.split(", "), meaning.partition(" The rest is ")[0])
    return said


def _sentence(text: str) -> str:
    text = text.strip().rstrip(";").rstrip(".")
    return f"{text[:1].upper()}{text[1:]}."


def keys(target: str) -> list[Parameter]:
    """Return the parameters that a recipe gives; of a function below the top the code gives tensors and the like."""
    parameters = []
    for parameter in signature(target).parameters:
        objects = parameter.required and any(name in (parameter.annotation or "") for name in OBJECTS)
        by_code = target not in ROOTS and signature(target).kind == "function" and objects
        if not by_code and not {parameter.name, f"{target}.{parameter.name}"} & GIVEN:
            parameters.append(parameter)
    return parameters


@cache
def places() -> dict[str, list[str]]:
    """Return the keys at which the shipped recipes name each class or function."""
    found: dict[str, set[str]] = {}

    def collect(node: Any, key: str) -> None:
        if isinstance(node, list | dict):
            for name, child in node.items() if isinstance(node, dict) else enumerate(node):
                collect(child, recipe.join(key, name))
        if isinstance(node, dict) and TARGET in node and key:
            found.setdefault(str(node[TARGET]), set()).add(key)

    for name in checking.everything():
        collect(recipe.load(name).root, "")
    return {target: sorted(keys) for target, keys in found.items()}


def _summary(target: str) -> str:
    """Return the first paragraph of a docstring."""
    text = ast.get_docstring(resolve(target).node) or ""
    return " ".join(text.split("\n\n")[0].split())


def _table(target: str) -> Iterator[str]:
    """Give the lines of one class or function."""
    verb = ROOTS.get(target)
    where = [f"`{key}:`" for key in places().get(target, [])]
    yield f"### {target}"
    yield ""
    yield f"`{verb}`: {_summary(target)}" if verb else _summary(target)
    if where:
        yield f"In shipped recipes at {', '.join(where)}."
    yield ""
    said = meanings(target)
    if keys(target):
        yield "| key | type | default | meaning |"
        yield "|---|---|---|---|"
    for parameter in keys(target):
        kind = _cell(parameter.annotation or "any")
        allowed = range_of(target.rpartition(".")[2], parameter.name)
        if allowed and re.search(r"\b(int|float)\b", parameter.annotation or ""):
            kind += f", {allowed}"
        default = _default(parameter, signature(target).home)
        yield f"| `{parameter.name}` | {kind} | {default} | {_cell(said.get(parameter.name, ''))} |"
    if keys(target):
        yield ""


def _default(parameter: Parameter, home: str) -> str:
    """Return what a key is when a recipe does not give it. home: the module that says so."""
    if parameter.required:
        return "needed"
    if parameter.default is None:
        return "empty"  # made by a dataclass's factory
    return f"`{_cell(_constant(parameter.default, home))}`" if parameter.default else '`""`'


def _constant(text: str, home: str) -> str:
    """Return the value of a module's constant as its source has it; any other text as it is."""
    source = module_source(home)
    bindings = source.bindings.get(text, []) if source is not None else []
    for binding in bindings if text.isupper() else []:
        if isinstance(binding, ast.ImportFrom):
            return _constant(text, resolve_name("." * binding.level + (binding.module or ""), source.package))
        named = isinstance(binding, ast.Assign) and isinstance(binding.targets[0], ast.Name)
        if (named or isinstance(binding, ast.AnnAssign)) and binding.value is not None:
            return ast.unparse(binding.value)
    return text


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def undescribed() -> list[str]:
    """Return the keys of which no docstring says anything."""
    lacking = []
    for target in (*ROOTS, *OURS):
        said = meanings(target)
        lacking += [f"{target}.{parameter.name}" for parameter in keys(target) if parameter.name not in said]
    return lacking


def generated() -> str:
    """Return the part of the page below the mark."""
    lines = ["", "## What the commands run", ""]
    for target in ROOTS:
        lines += _table(target)
    left = list(OURS)
    for title, homes in SECTIONS.items():
        beginnings = tuple(f"{home}." for home in homes.split())
        lines += ["", f"## {title}", ""]
        for target in [name for name in left if name.startswith(beginnings)]:
            lines += _table(target)
            left.remove(target)
    assert left == [], f"no section of docs/recipes.md for {left}"
    return "\n".join(lines).rstrip() + "\n"


def page() -> str:
    """Return the whole page: what is written by hand, and the keys."""
    return f"{PAGE.read_text(encoding='utf-8').partition(BEGIN)[0]}{BEGIN}\n{generated()}"
