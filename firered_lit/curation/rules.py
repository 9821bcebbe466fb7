"""Which rows are dropped: ordered rules over the annotators' columns. The first rule that drops a row is its reason.

A rule is a mapping in a recipe, or an object of a class of your own with `columns` and `drops`. A row is dropped when
any of its pictures is, of those that the rule is for. Where a column has no value, nothing is dropped, unless the rule
says `missing: true`.
"""

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from firered_lit.errors import UserError

Values = NDArray[Any]  # numbers as float64 with NaN, texts as objects with None
Dropped = NDArray[np.bool_]
Quantile = Callable[[str, float], float]  # of a column, from 0 to 1
Role = Literal["any", "target", "source"]

TASK = "row.task"


class Rule(Protocol):
    """A rule that drops rows.

    Attributes:
        columns: What it looks at, as ANNOTATOR.COLUMN; all of one annotator, or of rows.
    """

    @property
    def columns(self) -> Sequence[str]: ...

    def drops(self, values: Mapping[str, Values]) -> Dropped:
        """Return which items are dropped.

        Args:
            values: Its columns, all of one length.
        """
        ...


@dataclass(frozen=True)
class Threshold:
    """A rule of one column, as recipes write it.

    Args:
        column: ANNOTATOR.COLUMN.
        below: Dropped are smaller numbers.
        above: Dropped are larger numbers.
        below_quantile: Dropped is what is smaller than this quantile of the whole column, 0 to 1.
        above_quantile: Dropped is what is larger than this quantile.
        among: Dropped are these values.
        not_among: Dropped are values that are none of these.
        missing: true drops rows without a value.
        by_task: Another `below` or `above` for some tasks; null exempts a task.
        tasks: The rule is for these tasks alone; for all when it is empty.
        unless: What exempts a row: columns of rows, and the values of each that do.
        of: Which pictures it looks at.
    """

    column: str
    below: float | None = None
    above: float | None = None
    below_quantile: float | None = None
    above_quantile: float | None = None
    among: tuple[Any, ...] | None = None
    not_among: tuple[Any, ...] | None = None
    missing: bool = False
    by_task: Mapping[str, float | None] | None = None
    tasks: tuple[str, ...] = ()
    unless: Mapping[str, tuple[Any, ...]] | None = None
    of: Role = "any"

    @property
    def columns(self) -> tuple[str, ...]:
        """The column."""
        return (self.column,)

    @property
    def row_columns(self) -> tuple[str, ...]:
        """Columns of rows that it needs beside its own."""
        wants_task = bool(self.tasks or self.by_task)
        return tuple(dict.fromkeys((*((TASK,) if wants_task else ()), *(self.unless or {}))))

    def fitted(self, quantile: Quantile) -> "Threshold":
        """Return the rule with numbers in place of its quantiles."""
        below, above = self.below, self.above
        if self.below_quantile is not None:
            below = quantile(self.column, self.below_quantile)
        if self.above_quantile is not None:
            above = quantile(self.column, self.above_quantile)
        changed = {field.name: getattr(self, field.name) for field in fields(self)}
        changed |= {"below": below, "above": above, "below_quantile": None, "above_quantile": None}
        return Threshold(**changed)

    def drops(self, values: Mapping[str, Values]) -> Dropped:
        """Return which items are dropped; `values` holds `row_columns` too, for every item that of its row."""
        column = values[self.column]
        none = _is_none(column)
        dropped = none.copy() if self.missing else np.zeros(len(column), bool)
        below, above = self._bounds(values)
        if below is not None:
            dropped |= ~none & (_numbers(column, self.column) < below)
        if above is not None:
            dropped |= ~none & (_numbers(column, self.column) > above)
        if self.among is not None:
            dropped |= ~none & _is_among(column, self.among)
        if self.not_among is not None:
            dropped |= ~none & ~_is_among(column, self.not_among)
        if self.tasks:
            dropped &= _is_among(values[TASK], self.tasks)
        for name, exempt in (self.unless or {}).items():
            dropped &= ~_is_among(values[name], exempt)
        return dropped

    def _bounds(self, values: Mapping[str, Values]) -> tuple[Any, Any]:
        """Return the lower and the upper bound, of each item where they depend on its task; NaN drops nothing."""
        below, above = self.below, self.above
        if not self.by_task:
            return below, above
        return _by_task(below, values[TASK], self.by_task), _by_task(above, values[TASK], self.by_task)


_NAMES = tuple(field.name for field in fields(Threshold))
_TESTS = ("below", "above", "below_quantile", "above_quantile", "among", "not_among", "missing")
_ROLES = ("any", "target", "source")


def read(name: str, content: Any, known: Iterable[str]) -> Rule:
    """Return a rule of a recipe.

    Args:
        name: Its name, which becomes the reason of what it drops.
        content: A mapping, or an object with `columns` and `drops`.
        known: All columns that there are.

    Raises:
        UserError: It names no column that there is, or says something that no rule says.
    """
    known = list(known)
    if not isinstance(content, Mapping):
        if not (hasattr(content, "columns") and hasattr(content, "drops")):
            raise UserError(f"rules.{name}: expected a mapping, or a class with columns and drops")
        for column in content.columns:
            _check_column(f"rules.{name}", column, known)
        return content
    for key in content:
        if key not in _NAMES:
            raise UserError(f"rules.{name}.{key}: no such entry of a rule{nearest(str(key), _NAMES)}")
    if "column" not in content:
        raise UserError(f"rules.{name}: needs a column, one of {', '.join(known)}")
    rule = Threshold(**{key: _frozen(key, value) for key, value in content.items()})
    _check_column(f"rules.{name}.column", rule.column, known)
    for key in ("unless", "by_task"):
        if not isinstance(getattr(rule, key), Mapping | None):
            raise UserError(f"rules.{name}.{key}: expected a mapping, got {getattr(rule, key)!r}")
    for column in rule.unless or {}:
        _check_column(f"rules.{name}.unless", column, known)
        if not _is_of_rows(column):
            raise UserError(f"rules.{name}.unless: {column}: expected a column of rows, as row.task or row.category")
    _check_values(name, rule)
    return rule


def _check_values(name: str, rule: Threshold) -> None:
    if all(getattr(rule, test) is None or getattr(rule, test) is False for test in _TESTS):
        raise UserError(f"rules.{name}: says nothing of {rule.column}: give one of {', '.join(_TESTS)}")
    for key in ("below", "above", "below_quantile", "above_quantile"):
        value = getattr(rule, key)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise UserError(f"rules.{name}.{key}: expected a number, got {value!r}")
        if value is not None and key.endswith("quantile") and not 0 <= value <= 1:
            raise UserError(f"rules.{name}.{key}: a quantile lies between 0 and 1, got {value!r}")
    for one, other in (("below", "below_quantile"), ("above", "above_quantile")):
        if getattr(rule, one) is not None and getattr(rule, other) is not None:
            raise UserError(f"rules.{name}: {one} and {other} both name a bound; keep one of them")
    if rule.by_task and rule.below is None and rule.above is None:
        raise UserError(f"rules.{name}.by_task: gives other bounds than below or above; give one of them for the rest")
    if rule.of not in _ROLES:
        raise UserError(f"rules.{name}.of: expected one of {', '.join(_ROLES)}, got {rule.of!r}")


def _check_column(place: str, column: Any, known: Sequence[str]) -> None:
    if column not in known:
        raise UserError(f"{place}: no annotator makes the column {column!r}{nearest(str(column), known)}")


def _is_of_rows(column: str) -> bool:
    return column.startswith("row.")


def nearest(name: str, known: Iterable[str]) -> str:
    """Return "; did you mean 'x'?" for the known name that is spelt most like another one."""
    options = list(known)
    found = difflib.get_close_matches(name, options, 1, 0.5)
    tails = {option.rpartition(".")[2]: option for option in reversed(options)}
    found = found or [tails[tail] for tail in difflib.get_close_matches(name.rpartition(".")[2], tails, 1, 0.6)]
    return f"; did you mean {found[0]!r}?" if found else ""


def _frozen(key: str, value: Any) -> Any:
    """Return an entry of a rule as `Threshold` holds it."""
    if key == "unless" and isinstance(value, Mapping):
        return {column: tuple(some) if isinstance(some, list) else (some,) for column, some in value.items()}
    if key in ("among", "not_among", "tasks") and value is not None and not isinstance(value, list):
        return (value,)
    return tuple(value) if isinstance(value, list) else value


def _by_task(bound: float | None, tasks: Values, others: Mapping[str, float | None]) -> Values | None:
    """Return a bound for each item, another one where its task has one; NaN for an exempt task."""
    if bound is None:
        return None
    bounds = np.full(len(tasks), bound, np.float64)
    for task, other in others.items():
        bounds[tasks == task] = np.nan if other is None else other
    return bounds


def _is_none(values: Values) -> Dropped:
    if values.dtype == object:
        return np.array([value is None for value in values], bool)
    return np.isnan(values) if values.dtype.kind == "f" else np.zeros(len(values), bool)


def _numbers(values: Values, column: str) -> Values:
    if values.dtype == object:
        raise UserError(f"rules: {column} holds text; compare it by among or not_among")
    return values


def _is_among(values: Values, wanted: Sequence[Any]) -> Dropped:
    if values.dtype == object:
        some = set(wanted)
        return np.array([value in some for value in values], bool)
    numbers = [value for value in wanted if isinstance(value, int | float)]
    return np.isin(values, numbers)
