"""Annotators, which turn pictures into columns. A subclass of `Annotator` of your own is an annotator too.

An annotator computes numbers and never decides; thresholds are the rules' part (`firered_lit.curation.rules`). One that
is added later, or whose version or settings change, computes its own columns alone.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import pyarrow as pa

from firered_lit.config.nameable import first_name

Of = Literal["picture", "pair", "row"]
Columns = Mapping[str, Sequence[Any]]

KINDS: dict[str, pa.DataType] = {
    "number": pa.float32(),
    "count": pa.int64(),
    "bits": pa.uint64(),
    "text": pa.string(),
    "flag": pa.bool_(),
    "vector": pa.list_(pa.float32()),
}


class Annotator:
    """The base of annotators.

    A subclass names its columns and computes them for a batch. What `__init__` keeps in public attributes is part of
    its identity: with other settings its columns are computed anew.

    Class attributes:
        version: Raised when the same settings give other numbers than before.
        of: What a line of its columns is about: each "picture", each "pair" of source and target, or each "row".
        columns: The kind of every column: number, count, bits, text, flag or vector.
        needs: Columns of annotators before it, ANNOTATOR.COLUMN, each with its kind. It then computes from these
            alone, without a picture; see `derived`.
    """

    version: ClassVar[int] = 1
    of: ClassVar[Of] = "picture"
    columns: ClassVar[Mapping[str, str]] = {}

    @property
    def needs(self) -> Mapping[str, str]:
        """None, unless a subclass says so."""
        return {}

    def open(self) -> None:
        """Load what is heavy, once in every process that works.

        Raises:
            UserError: Something is missing; nothing can go on then.
        """

    def annotate(self, batch: Sequence[Any]) -> Columns:
        """Return the columns of a batch.

        Args:
            batch: Pictures (`rows.Picture`), pairs (`rows.PicturePair`) or rows (`rows.RawRow`), as `of` says;
                values of other columns where it `needs` some.

        Returns:
            By column, a value for each item of the batch; None where it has none.
        """
        raise NotImplementedError


def identity(annotator: Annotator) -> dict[str, Any]:
    """Return what decides an annotator's numbers, as JSON holds it: class, version and settings."""
    kind = type(annotator)
    settings = {name: value for name, value in vars(annotator).items() if not name.startswith("_")}
    return {
        "class": first_name(f"{kind.__module__}.{kind.__qualname__}"),
        "version": annotator.version,
        "columns": dict(annotator.columns),
        "settings": {name: _plain(value) for name, value in sorted(settings.items())},
    }


def made_by(name: str, annotators: Mapping[str, Annotator]) -> dict[str, Any]:
    """Return what decides the numbers of an annotator: its identity, and that of what it computes from."""
    annotator = annotators[name]
    found = identity(annotator)
    needed = [other for other in tables_needed(annotator) if other in annotators]
    if needed:
        found["needs"] = {other: made_by(other, annotators) for other in needed}
    return found


def tables_needed(annotator: Annotator) -> list[str]:
    """Return the names of the annotators whose columns an annotator computes from."""
    return sorted({column.partition(".")[0] for column in annotator.needs})


def columns_of(annotator: Annotator, batch: Sequence[Any]) -> Columns:
    """Return an annotator's columns of a batch, each of its length.

    Raises:
        ValueError: It returned other columns than it names, or not one value for each item.
    """
    found = annotator.annotate(batch)
    for name in annotator.columns:
        if name not in found:
            raise ValueError(f"returned no column {name!r}")
        if len(found[name]) != len(batch):
            raise ValueError(f"returned {len(found[name])} values of {name!r} for a batch of {len(batch)}")
    return {name: found[name] for name in annotator.columns}


def per_item(measure: Callable[[Any], tuple[Any, ...]], names: Sequence[str], batch: Sequence[Any]) -> Columns:
    """Return the columns of a measure that takes one item at a time and returns its values in the order of `names`."""
    values = [measure(item) for item in batch]
    return {name: [value[place] for value in values] for place, name in enumerate(names)}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return repr(type(value))
