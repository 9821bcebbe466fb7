"""The choice of the rows that are kept, by what was refused, rules in their order, near duplicates, then quotas.

No picture is opened. Every dropped row has the first reason that dropped it. Near duplicates are settled among the rows
that all rules keep, so that no defective copy takes the place of a good one.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from firered_lit.draws import seed_of
from firered_lit.errors import UserError
from firered_lit.files import replacing
from firered_lit.splitmix import lots

from . import fit
from .corpus import STATE, Corpus, Sized, connection, shard_numbers, values_of
from .fit import CLUSTERS, GROUPS, Clusters, Direction, Duplicates
from .rules import Role, Rule, Threshold, Values
from .scores import FAILURE
from .shards import FILE, ROW

DECISIONS = "decisions.parquet"
ASKED = f"{STATE}/asked.parquet"  # the same, of the rows that a model is asked about
CLUSTER = "cluster"  # the column of a quota that is of clusters
SELECTION = "selection.json"  # in STATE, what the last selection did
SCHEMA = pa.schema(
    {
        "id": pa.string(),
        "source": pa.string(),
        "kept": pa.bool_(),
        "reason": pa.string(),
        "group": pa.int64(),
        "cluster": pa.int64(),
        "weight": pa.float32(),
    }
)
DUPLICATE = "duplicate"
_KEPT = -1
_ROLES: dict[Role, tuple[int, int]] = {"any": (0, 1 << 15), "target": (0, 1), "source": (1, 1 << 15)}


@dataclass(frozen=True)
class Quota:
    """A limit to the rows of each value of a column. Rows without a value are dropped.

    Args:
        column: Of rows, or of an annotator of rows, as words.language; "cluster" for the clusters.
        shares: By value, its share of what is kept: as many rows are kept as these shares allow, and none of other
            values. Null for no such demand.
        most: Rows of every value; null for no limit.
        best: Which rows of a value are kept first, as of duplicates; rows at random when empty.
    """

    column: str
    shares: Mapping[str, float] | None = None
    most: int | None = None
    best: Mapping[str, Direction] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if (self.shares is None) == (self.most is None):
            raise UserError(f"quotas: {self.column}: give either shares or most")
        if self.most is not None and self.most < 0:
            raise UserError(f"quotas: {self.column}: most={self.most} is below 0")
        for value, share in (self.shares or {}).items():
            if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share <= 1:
                raise UserError(f"quotas: {self.column}: the share of {value!r} is {share!r}, not above 0 and up to 1")
        if self.shares is not None and abs(sum(self.shares.values()) - 1) > 1e-3:
            raise UserError(f"quotas: {self.column}: the shares add up to {sum(self.shares.values()):g}, not to 1")

    def check(self, corpus: Corpus) -> None:
        """Refuse columns that are not there, one of pictures, and an order by what has none.

        Raises:
            UserError: With the nearest that is there.
        """
        for column in self.best:
            corpus.check_order(column, "quotas.best")
        if self.column == CLUSTER:
            return
        corpus.check(self.column, "quotas")
        if corpus.is_of_pictures(self.column.partition(".")[0]):
            raise UserError(f"quotas: {self.column} is a column of pictures; take one of rows, as row.task")


@dataclass
class Selection:
    """The outcome of a selection.

    Args:
        rows: Their number.
        kept: The number of those that are kept.
        reasons: Rows that were dropped by each reason, in the order of the rules.
        matched: Rows that each rule would drop if it were alone.
        bounds: Of rules with quantiles, the numbers that these are.
    """

    rows: int
    kept: int
    reasons: dict[str, int]
    matched: dict[str, int]
    bounds: dict[str, dict[str, float]]


def select(
    corpus: Corpus,
    rules: Mapping[str, Rule],
    near: Duplicates | None = None,
    clusters: Clusters | None = None,
    quotas: Sequence[Quota] = (),
    seed: int = 0,
    name: str = DECISIONS,
) -> Selection:
    """Write a table of decisions, a line for every row of the source in its order.

    Args:
        corpus: The score files.
        rules: By name, in their order.
        near: How the best of near duplicates is chosen; duplicates stay when None.
        clusters: Their weights; every row weighs the same when None.
        quotas: Applied in their order to what the rules and the duplicates leave.
        seed: Of the rows that a quota keeps at random.
        name: Of the table, below the corpus' folder.

    Raises:
        UserError: A column is missing, or a score file.
    """
    if near is not None:
        near.check(corpus)
    for quota in quotas:
        quota.check(corpus)
    fitted, bounds = _fitted(corpus, rules)
    orders = [near.best] if near is not None else []
    orders += [quota.best for quota in quotas]
    keys = list(dict.fromkeys(column for best in orders for column in best))
    strata = list(dict.fromkeys(quota.column for quota in quotas if quota.column != CLUSTER))
    database_file = corpus.folder / STATE / ".select.duckdb"
    database_file.parent.mkdir(parents=True, exist_ok=True)
    database_file.unlink(missing_ok=True)
    try:
        with connection(corpus.folder, str(database_file)) as database:
            names, matched = _verdicts(database, corpus, fitted, keys, strata, seed)
            _settle(database, corpus, near, clusters, keys, names)
            for quota in quotas:
                _fill(database, quota, keys, strata, names)
            weights = _weights(database, clusters)
            counts = _write(database, corpus, corpus.folder / name, names, weights)
    finally:
        database_file.unlink(missing_ok=True)
        Path(f"{database_file}.wal").unlink(missing_ok=True)
    reasons: Counter[str] = Counter()  # two quotas of one column have one name
    for number, name in enumerate(names):
        if counts[number]:
            reasons[name] += counts[number]
    return Selection(corpus.count, counts[_KEPT], dict(reasons), matched, bounds)


def _fitted(corpus: Corpus, rules: Mapping[str, Rule]) -> tuple[dict[str, Rule], dict[str, dict[str, float]]]:
    """Return the rules with numbers in place of quantiles, and these numbers."""
    fitted: dict[str, Rule] = {}
    bounds: dict[str, dict[str, float]] = {}
    for name, rule in rules.items():
        if not isinstance(rule, Threshold):
            fitted[name] = rule
            continue
        shares = {"below": rule.below_quantile, "above": rule.above_quantile}
        wanted = {side: share for side, share in shares.items() if share is not None}
        if wanted:
            found = corpus.quantiles(rule.column, list(wanted.values()), rule.of)
            bounds[name] = dict(zip(wanted, found, strict=True))
        number_of = dict(zip(wanted.values(), bounds.get(name, {}).values(), strict=True))
        fitted[name] = rule.fitted(lambda column, share, known=number_of: known[share])  # type: ignore[misc]
    return fitted, bounds


def _verdicts(
    database: Any, corpus: Corpus, rules: Mapping[str, Rule], keys: Sequence[str], strata: Sequence[str], seed: int
) -> tuple[list[str], dict[str, int]]:
    """Fill the table `verdicts` with every row, its first reason, and what duplicates and quotas are settled by.

    Returns:
        The reasons by their numbers, and the rows that each rule would drop if it were alone.
    """
    names: list[str] = []
    matched: Counter[str] = Counter()
    fields = ["row BIGINT", "reason INTEGER", "lot UBIGINT"]
    fields += [f"key{number} DOUBLE" for number in range(len(keys))]
    fields += [f"stratum{number} VARCHAR" for number in range(len(strata))]
    database.execute(f"CREATE TABLE verdicts ({', '.join(fields)})")
    for shard, first, size in shard_numbers(corpus):
        reasons = np.full(size, _KEPT, np.int32)
        for name, dropped in _dropped(corpus, rules, shard, first, size):
            matched[name] += int(dropped.sum())
            if name not in names:
                names.append(name)
            reasons[dropped & (reasons == _KEPT)] = names.index(name)
        rows = np.arange(first, first + size)
        columns: dict[str, Any] = {"row": rows, "reason": reasons, "lot": lots(rows, seed_of(seed, "quota"))}
        for number, column in enumerate(keys):
            columns[f"key{number}"] = pa.array(corpus.of_rows(shard, column), from_pandas=True)
        for number, column in enumerate(strata):
            texts = corpus.of_rows(shard, column)
            columns[f"stratum{number}"] = pa.array([None if text is None else str(text) for text in texts], pa.string())
        some = pa.table(columns)
        database.register("arrived", some)
        database.execute("INSERT INTO verdicts SELECT * FROM arrived")
        database.unregister("arrived")
    order = [*sorted(set(names) - set(rules)), *(name for name in rules if name in names)]
    _renumber(database, names, order)
    return order, {name: matched[name] for name in order}


def _renumber(database: Any, names: Sequence[str], order: Sequence[str]) -> None:
    """Number the reasons in the order in which they are applied, whatever order they were met in."""
    moves = [(number, order.index(name)) for number, name in enumerate(names) if order.index(name) != number]
    if moves:
        cases = " ".join(f"WHEN {old} THEN {new}" for old, new in moves)
        database.execute(f"UPDATE verdicts SET reason = CASE reason {cases} ELSE reason END")  # noqa: S608


def _dropped(
    corpus: Corpus, rules: Mapping[str, Rule], shard: int, first: int, size: int
) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    """Yield (reason, which rows of a shard it drops): what was refused or failed, then every rule."""
    yield from _refused("row", corpus.table(shard, ROW, ["refusal"]), first, size)
    yield from _refused("picture", corpus.table(shard, FILE, ["refusal"]), first, size)
    for name in corpus.annotators:
        table = corpus.table(shard, name, [])
        failed = np.asarray(table.column(FAILURE).is_valid())
        if failed.any():
            places = table.column("row").to_numpy() - first
            yield f"failed: {name}", _any_of(places, failed, size)
    tables = _Tables(corpus, rules, shard, first)
    for name, rule in rules.items():
        places, values, wanted = tables.of(rule)
        dropped = np.asarray(rule.drops(values))
        if dropped.shape != places.shape or dropped.dtype != bool:
            raise UserError(f"rules.{name}: drops returned {dropped.dtype} {dropped.shape} for {len(places)} items")
        yield name, _any_of(places, dropped & wanted, size)


def _refused(kind: str, table: pa.Table, first: int, size: int) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    """Yield (reason, which rows of a shard were refused for it), of the rows themselves or of their pictures."""
    refusals = values_of(table, "refusal")
    places = table.column("row").to_numpy() - first
    for refusal in sorted({text for text in refusals if text is not None}):
        yield f"{kind}: {refusal}", _any_of(places, np.array([text == refusal for text in refusals]), size)


class _Tables:
    """The columns of a shard that rules look at, each annotator's read once."""

    def __init__(self, corpus: Corpus, rules: Mapping[str, Rule], shard: int, first: int) -> None:
        self.first = first
        wanted: dict[str, set[str]] = {ROW: set()}
        for rule in rules.values():
            for column in (*rule.columns, *getattr(rule, "row_columns", ())):
                name, _, field_name = column.partition(".")
                wanted.setdefault(name, set()).add(field_name)
        self.tables = {name: corpus.table(shard, name, sorted(columns)) for name, columns in wanted.items()}
        self.values = {
            f"{name}.{column}": values_of(self.tables[name], column)
            for name, columns in wanted.items()
            for column in columns
        }

    def of(self, rule: Rule) -> tuple[NDArray[np.int64], dict[str, Values], NDArray[np.bool_]]:
        """Return the rows' places of the items that a rule looks at, its columns, and which items it is for."""
        name = rule.columns[0].partition(".")[0]
        table = self.tables[name]
        places = table.column("row").to_numpy() - self.first
        values = {column: self.values[column] for column in rule.columns}
        values |= {column: self.values[column][places] for column in getattr(rule, "row_columns", ())}
        lowest, highest = _ROLES[getattr(rule, "of", "any")]
        pictures = table.column("picture").to_numpy()
        return places, values, (pictures >= lowest) & (pictures < highest)


def _any_of(places: NDArray[np.int64], dropped: NDArray[np.bool_], size: int) -> NDArray[np.bool_]:
    """Return the rows of which any item is dropped."""
    rows = np.zeros(size, bool)
    rows[places[dropped]] = True
    return rows


def _order(best: Mapping[str, Direction], keys: Sequence[str], *last: str) -> str:
    """Return the ORDER BY of what is kept first; `last` decides where `best` does not."""
    ways: dict[Direction, str] = {"highest": "DESC", "lowest": "ASC"}
    parts = [f"key{keys.index(column)} {ways[way]} NULLS LAST" for column, way in best.items()]
    return ", ".join((*parts, *last))


def _settle(
    database: Any,
    corpus: Corpus,
    near: Duplicates | None,
    clusters: Clusters | None,
    keys: Sequence[str],
    names: list[str],
) -> None:
    """Drop all but the best of the kept rows of every group."""
    groups = fit.nothing(GROUPS) if near is None else fit.read(corpus.folder, GROUPS)
    database.register("groups_read", groups)
    found = fit.nothing(CLUSTERS) if clusters is None else fit.read(corpus.folder, CLUSTERS)
    database.register("clusters_read", found)
    database.execute('CREATE TABLE groups AS SELECT "row", "group" AS label FROM groups_read')
    database.execute('CREATE TABLE clusters AS SELECT "row", cluster FROM clusters_read')
    database.execute("CREATE TABLE losers (row BIGINT, reason INTEGER)")
    if near is None:
        return
    order = _order(near.best, keys, "row")
    names.append(DUPLICATE)
    database.execute(
        f"INSERT INTO losers SELECT row, {len(names) - 1} FROM ("  # noqa: S608, numbers and our own names
        f" SELECT row, row_number() OVER (PARTITION BY label ORDER BY {order}) AS place"
        f" FROM verdicts JOIN groups USING (row) WHERE reason = {_KEPT}) WHERE place > 1"
    )


def _fill(database: Any, quota: Quota, keys: Sequence[str], strata: Sequence[str], names: list[str]) -> None:
    """Drop what a quota has no room for."""
    value = "cluster::VARCHAR" if quota.column == CLUSTER else f"stratum{strata.index(quota.column)}"
    left = (
        f"SELECT row, lot, {value} AS value{''.join(f', key{number}' for number in range(len(keys)))}"  # noqa: S608
        f" FROM verdicts LEFT JOIN clusters USING (row) WHERE reason = {_KEPT}"
        " AND row NOT IN (SELECT row FROM losers)"
    )
    counts = dict(database.execute(f"SELECT value, count(*) FROM ({left}) GROUP BY value").fetchall())  # noqa: S608
    rooms = _rooms(quota, counts)
    names.append(f"quota: {quota.column}")
    table = pa.table({"value": pa.array(list(rooms), pa.string()), "room": pa.array(list(rooms.values()), pa.int64())})
    database.register("rooms", table)
    order = _order(quota.best, keys, "lot", "row")
    database.execute(
        f"INSERT INTO losers SELECT row, {len(names) - 1} FROM ("  # noqa: S608
        f" SELECT row, value, row_number() OVER (PARTITION BY value ORDER BY {order}) AS place FROM ({left}))"
        " LEFT JOIN rooms USING (value) WHERE place > coalesce(room, 0)"
    )
    database.unregister("rooms")


def _rooms(quota: Quota, counts: Mapping[str | None, int]) -> dict[str, int]:
    """Return the number of rows of every value that are kept."""
    there = {value: count for value, count in counts.items() if value is not None}
    if quota.shares is None:
        return {value: min(count, quota.most or 0) for value, count in there.items()}
    missing = [value for value in quota.shares if not there.get(value)]
    if missing:
        raise UserError(
            f"quotas: {quota.column}: no row is left of {missing[0]!r}, of which a share is asked; there are"
            f" {', '.join(sorted(there)) or 'none'}"
        )
    total = min(there[value] / share for value, share in quota.shares.items())
    return {value: min(there[value], round(total * share)) for value, share in quota.shares.items()}


def _weights(database: Any, clusters: Clusters | None) -> dict[int, float]:
    """Return the weight of a row of each cluster; the mean over the kept rows is 1."""
    if clusters is None:
        return {}
    counts = dict(
        database.execute(
            f"SELECT cluster, count(*) FROM verdicts JOIN clusters USING (row) WHERE reason = {_KEPT}"  # noqa: S608
            " AND row NOT IN (SELECT row FROM losers) GROUP BY cluster ORDER BY cluster"
        ).fetchall()
    )
    raw = {cluster: count ** (clusters.alpha - 1) for cluster, count in counts.items()}
    total = sum(counts.values())
    scale = total / sum(raw[cluster] * counts[cluster] for cluster in counts) if total else 1.0
    return {cluster: weight * scale for cluster, weight in raw.items()}


def _write(
    database: Any, corpus: Corpus, path: Path, names: Sequence[str], weights: Mapping[int, float]
) -> Counter[int]:
    """Write the decisions, shard by shard. Returns the rows of each reason's number, those that are kept too."""
    query = database.sql(
        "SELECT row, coalesce(losers.reason, verdicts.reason) AS reason, label, cluster FROM verdicts"
        " LEFT JOIN losers USING (row) LEFT JOIN groups USING (row) LEFT JOIN clusters USING (row) ORDER BY row"
    )
    settled = Sized(query.to_arrow_reader(1 << 16))
    counts: Counter[int] = Counter()
    texts = pa.array([*names, None], pa.string())
    weight_of = np.vectorize(lambda cluster: weights.get(cluster, 1.0), otypes=[np.float64])
    with replacing(path, "wb") as file, pq.ParquetWriter(file, SCHEMA, compression="zstd") as out:
        for shard, _, size in shard_numbers(corpus):
            some = settled.next(size)
            reasons = some.column("reason").to_numpy()
            counts.update(dict(zip(*(part.tolist() for part in np.unique(reasons, return_counts=True)))))
            row = corpus.table(shard, ROW, ["id", "source"])
            kept = reasons == _KEPT
            clusters = some.column("cluster").fill_null(-1).to_numpy()
            weight = np.where(kept, weight_of(clusters), 0.0)
            out.write_table(
                pa.table(
                    {
                        "id": row.column("id"),
                        "source": row.column("source"),
                        "kept": pa.array(kept),
                        "reason": texts.take(pa.array(np.where(kept, len(names), reasons))),
                        "group": some.column("label"),
                        "cluster": some.column("cluster"),
                        "weight": pa.array(weight, pa.float32()),
                    },
                    SCHEMA,
                )
            )
    return counts
