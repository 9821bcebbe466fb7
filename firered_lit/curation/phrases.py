"""The instruction index, made by the step `fit` from all texts at once: which phrases there are, of which tasks, where.

OUT/state/phrases.parquet has a line for each phrase of a task and cluster: `task`, `cluster`, `language`, `phrase` and
`rows`. OUT/scores/phrases/ says of each row how many rows say the same, or nearly so.

Words are runs of letters and digits; of Chinese, characters. All of it is queries of DuckDB over score files.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import pyarrow as pa

from firered_lit.errors import UserError

from . import fit, scores
from .annotator import Annotator, Of, made_by
from .corpus import PHRASES, STATE, Corpus, Sized, connection, quoted, shard_numbers
from .select import DECISIONS
from .shards import ROW
from .words import folded

INDEX = "phrases.parquet"  # in STATE
_VERSION = 1
_LACKING = 5  # phrases that a gap names
_HAN = r"\x{3400}-\x{9fff}"


class Phrases(Annotator):
    """Counts of how common the words of a row are.

    Args:
        texts: Columns of folded texts, one for each language.
        longest: Words of a phrase, at most; of Chinese, twice as many characters.
        least: Rows of a task that must have a phrase before the index names it.

    Columns:
        same: The rows that say just this.
        template: Its words with a blank (_) for one of them, or for one or two Chinese characters: the one of these
            that most rows share. The words themselves, where no other row shares one.
        near: The rows that share the template. Where many do, their instructions differ in one word.
        rarest: The rows that have the rarest of its phrases. Where many do, it says nothing of its own.

    Raises:
        UserError: No column is named.
    """

    columns: ClassVar[dict[str, str]] = {"same": "count", "template": "text", "near": "count", "rarest": "count"}
    of: ClassVar[Of] = "row"

    def __init__(self, texts: Sequence[str] = ("words.folded",), longest: int = 3, least: int = 5) -> None:
        self.texts = tuple(dict.fromkeys(texts))
        self.longest = longest
        self.least = least
        if not self.texts:
            raise UserError("phrases.texts: names no column")

    def check(self, corpus: Corpus) -> None:
        """Refuse columns that are no texts of rows.

        Raises:
            UserError: With the nearest that there is.
        """
        for column in self.texts:
            corpus.check(column, "phrases.texts")
            if corpus.kinds[column] != "text" or corpus.is_of_pictures(column.partition(".")[0]):
                raise UserError(f"phrases.texts: {column} is no text of rows; take one as words.folded")

    def run(self, corpus: Corpus, clusters: Mapping[str, Any] | None) -> list[str]:
        """Write index and columns where they are not there yet, and return what to print.

        Args:
            corpus: Its score files.
            clusters: What the clusters were made from; None without clusters.
        """
        names = sorted({column.partition(".")[0] for column in self.texts} & set(corpus.annotators))
        made_from: dict[str, Any] = {
            "version": _VERSION,
            "options": {"texts": list(self.texts), "longest": self.longest, "least": self.least},
            "annotators": {name: made_by(name, corpus.annotators) for name in names},
            "rows": corpus.count,
            "shard_rows": corpus.shard_rows,
        }
        index = corpus.folder / STATE / INDEX
        made_index = {**made_from, "clusters": clusters}
        paths = [scores.path_of(corpus.folder, PHRASES, shard) for shard in range(corpus.shards)]
        if scores.is_done(index, made_index) and all(scores.is_done(path, made_from) for path in paths):
            return []
        with self._opened(corpus) as database:
            self._write_columns(database, corpus, made_from)
            _place(database, corpus, clusters is not None)
            found = database.sql(
                f"SELECT task, cluster, language, {_joined('phrase')} AS phrase, rows FROM ({_COUNTS})"  # noqa: S608
                f" QUALIFY sum(rows) OVER (PARTITION BY task, phrase) >= {self.least}"
                " ORDER BY task, cluster NULLS FIRST, rows DESC, phrase"
            ).to_arrow_table()
        scores.put(index, found, made_index)
        return [f"phrases    {found.num_rows:>8} by task and cluster, in {index}"]

    @contextlib.contextmanager
    def _opened(self, corpus: Corpus) -> Iterator[Any]:
        """Open a database with all texts.

        Its tables are `said` (row, text), `texts` (number, text, same, words), `grams` (number, phrase), a phrase of a
        text once, and `common` (phrase, rows).
        """
        parts = []
        for column in self.texts:
            name, _, field = column.partition(".")
            parts.append(f'SELECT row, "{field}" AS text FROM {corpus.queried(name)} WHERE "{field}" != \'\'')  # noqa: S608
        file = corpus.folder / STATE / ".phrases.duckdb"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.unlink(missing_ok=True)
        try:
            with connection(corpus.folder, str(file)) as database:
                database.execute(f"CREATE TABLE said AS {' UNION '.join(parts)}")
                database.execute(
                    "CREATE TABLE texts AS SELECT row_number() OVER (ORDER BY text) AS number, text, same,"  # noqa: S608
                    f" string_split({_spaced('text')}, ' ') AS words"
                    " FROM (SELECT text, count(DISTINCT row) AS same FROM said GROUP BY text)"
                )
                runs = [f"[{_run('i', size)} for i in range(1, len(words) - {size} + 2)]" for size in self._sizes()]
                all_runs = runs[0] if len(runs) == 1 else f"list_concat({', '.join(runs)})"
                database.execute(
                    "CREATE TABLE grams AS SELECT number, phrase FROM"  # noqa: S608
                    f" (SELECT number, unnest(list_distinct({all_runs})) AS phrase FROM texts)"
                    f" WHERE len(string_split(phrase, ' ')) <= {self.longest} OR {_is_han('phrase')}"
                )
                database.execute(
                    "CREATE TABLE common AS SELECT phrase, sum(same)::BIGINT AS rows"
                    " FROM grams JOIN texts USING (number) GROUP BY phrase"
                )
                yield database
        finally:
            file.unlink(missing_ok=True)
            file.with_name(f"{file.name}.wal").unlink(missing_ok=True)

    def _sizes(self) -> range:
        return range(1, 2 * self.longest + 1)

    def _write_columns(self, database: Any, corpus: Corpus, made_from: Mapping[str, Any]) -> None:
        """Write the score files; of a row with several texts, those of the one that most rows share."""
        # A blank for each word, and for each two neighbouring characters; what is left has twice as many words.
        one = "[list_concat(words[1:i-1], ['_'], words[i+1:]) for i in range(1, len(words) + 1) if len(words) > 2]"
        two = (
            "[list_concat(words[1:i-1], ['_'], words[i+2:]) for i in range(1, len(words))"
            f" if len(words) > 5 AND {_is_han('words[i] || words[i+1]')}]"
        )
        database.execute(
            "CREATE TABLE blanks AS SELECT number, array_to_string(unnest("  # noqa: S608
            f"list_concat({one}, {two})), ' ') AS template FROM texts"
        )
        database.execute(
            "CREATE TABLE best AS SELECT number, template, near FROM blanks JOIN (SELECT template, sum(same)::BIGINT"
            " AS near FROM blanks JOIN texts USING (number) GROUP BY template) shared USING (template)"
            " QUALIFY row_number() OVER (PARTITION BY number ORDER BY near DESC, len(template) DESC, template) = 1"
        )
        query = (
            "SELECT said.row, same, coalesce(best.near, same) AS near, rarest,"  # noqa: S608
            f" CASE WHEN best.near > same THEN {_joined('template', blank=True)} ELSE text END AS template"
            " FROM said JOIN texts USING (text) LEFT JOIN best USING (number)"
            " LEFT JOIN (SELECT number, min(rows) AS rarest FROM grams JOIN common USING (phrase) GROUP BY number)"
            " USING (number) QUALIFY row_number() OVER"
            " (PARTITION BY said.row ORDER BY coalesce(best.near, same) DESC, text) = 1"
        )
        found = database.sql(
            f"SELECT number AS row, same, template, near, rarest FROM range({corpus.count}) every(number)"  # noqa: S608
            f" LEFT JOIN ({query}) own ON own.row = every.number ORDER BY number"
        )
        rows = Sized(found.to_arrow_reader(1 << 16))
        schema = scores.schema_of(self.columns)
        for shard, _, size in shard_numbers(corpus):
            some = rows.next(size)
            some = some.append_column("picture", pa.array([0] * size, pa.int16()))
            some = some.append_column(scores.FAILURE, pa.nulls(size, pa.string()))
            scores.put(scores.path_of(corpus.folder, PHRASES, shard), some.select(schema.names).cast(schema), made_from)

    def lacking(
        self, corpus: Corpus, cells: Sequence[tuple[str, int | None]], least: int
    ) -> dict[tuple[str, int | None], list[str]]:
        """Return what kept edits of a task say in other clusters and in none of a cluster's.

        Args:
            corpus: Its score files, with decisions.
            cells: Tasks and clusters.
            least: Kept edits of the task that must have a phrase, of two words at least.

        Returns:
            For each cell, at most five phrases, the most common ones first.
        """
        found: dict[tuple[str, int | None], list[str]] = {}
        with self._opened(corpus) as database:
            _place(database, corpus, clustered=True, kept=True)
            database.execute(f"CREATE TABLE counts AS {_COUNTS}")
            for task, cluster in cells:
                phrases = database.execute(
                    f"SELECT {_joined('phrase')} FROM counts WHERE task = $task AND contains(phrase, ' ')"  # noqa: S608
                    " GROUP BY phrase HAVING sum(rows) >= $least AND"
                    " count(*) FILTER (WHERE cluster IS NOT DISTINCT FROM $cluster) = 0"
                    f" ORDER BY sum(rows) DESC, phrase LIMIT {_LACKING}",
                    {"task": task, "cluster": cluster, "least": least},
                ).fetchall()
                found[task, cluster] = [phrase for (phrase,) in phrases]
        return found

    def said(self, corpus: Corpus, wanted: Sequence[tuple[str, str]]) -> list[int]:
        """Return how many kept edits of a task have a phrase.

        Args:
            corpus: Its score files, with decisions.
            wanted: (task, phrase) each; a phrase is folded as texts are.
        """
        counts = []
        with self._opened(corpus) as database:
            _place(database, corpus, clustered=True, kept=True)
            for task, phrase in wanted:
                query = (
                    "SELECT count(DISTINCT row) FROM said JOIN texts USING (text) JOIN places USING (row)"  # noqa: S608
                    " WHERE task = $task AND contains(' ' || array_to_string(words, ' ') || ' ',"
                    f" ' ' || {_spaced('$phrase')} || ' ')"
                )
                found = database.execute(query, {"task": task, "phrase": folded(phrase)}).fetchall()
                counts.append(int(found[0][0]))
        return counts


_COUNTS = (
    "SELECT task, cluster, phrase, count(DISTINCT row) AS rows,"  # noqa: S608
    f" CASE WHEN regexp_matches(phrase, '[{_HAN}]') THEN 'cn' ELSE 'en' END AS language"
    " FROM places JOIN said USING (row) JOIN texts USING (text) JOIN grams USING (number)"
    " GROUP BY task, cluster, phrase"
)


def _spaced(text: str) -> str:
    """Return a query's term for a text whose words, and Chinese characters, have one space between them."""
    return rf"trim(regexp_replace(regexp_replace({text}, '([{_HAN}])', ' \1 ', 'g'), ' +', ' ', 'g'))"


def _is_han(text: str) -> str:
    """Return a query's term for whether a text has Chinese characters and spaces alone."""
    return f"regexp_full_match({text}, '[{_HAN} ]+')"


def _run(first: str, size: int) -> str:
    """Return a query's term for a run of words."""
    return f"array_to_string(words[{first}:{first}+{size}-1], ' ')"


def _joined(column: str, blank: bool = False) -> str:
    """Return a query's term for words as they are written: no spaces between Chinese characters."""
    bare = f"replace({column}, '_', '')" if blank else column
    return f"CASE WHEN {_is_han(bare)} THEN replace({column}, ' ', '') ELSE {column} END"


def _place(database: Any, corpus: Corpus, clustered: bool, kept: bool = False) -> None:
    """Add the table `places` with (row, task, cluster) of the edits, or of those that are kept."""
    there = clustered and fit.path_of(corpus.folder, fit.CLUSTERS).exists()
    clusters = fit.read(corpus.folder, fit.CLUSTERS) if there else fit.nothing(fit.CLUSTERS)
    database.register("clusters_read", clusters)
    among = ""
    if kept:
        decisions = quoted(corpus.folder / DECISIONS)
        among = (
            f" JOIN (SELECT file_row_number AS row FROM read_parquet({decisions}, file_row_number = true) WHERE kept)"  # noqa: S608
            " USING (row)"
        )
    database.execute(
        "CREATE TABLE places AS SELECT row, coalesce(nullif(category, ''), task) AS task, cluster"  # noqa: S608
        f" FROM {corpus.queried(ROW)}{among} LEFT JOIN clusters_read USING (row) WHERE kind = 'edit'"
    )
