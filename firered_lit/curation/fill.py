"""The step `fill`: of which tasks, and where, there are too few edits, and the pictures from which more can be made.

OUT/gaps.jsonl has a line for every task and cluster with too few kept edits. OUT/fill.jsonl is a table of kept
pictures, each with the tasks that are `wanted` of it; `curate` reads it again, and its step `make` makes those alone.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

from firered_lit.draws import seed_of
from firered_lit.errors import UserError
from firered_lit.files import replacing

from . import scores
from .corpus import PHRASES, Corpus
from .make.templates import TASKS
from .phrases import Phrases
from .rows import RawTable
from .select import DECISIONS
from .shards import ROW
from .words import folded

GAPS, FILL = "gaps.jsonl", "fill.jsonl"
_WORDS = ("phrase", "lacks")  # of a gap, left out where there are none
_INDEX = f"{Phrases.__module__}.{Phrases.__qualname__}"


@dataclass(frozen=True)
class Gap:
    """A task that too few kept edits are of.

    Args:
        task: Its name.
        cluster: In which cluster; None without clusters.
        edits: How many there are.
        missing: How many are asked for beside these.
        listed: Pictures that an edit can be made of.
        phrase: Which its words should have; "" for any.
        lacks: What edits of the task say in other clusters and in none of this one's, the most common phrases first.
    """

    task: str
    cluster: int | None
    edits: int
    missing: int
    listed: int
    phrase: str = ""
    lacks: Sequence[str] = ()


class Fill:
    """Counts kept edits by category, or by task where a row has none, and by cluster where there are clusters.

    Args:
        least: Edits that there should be of every task in every cluster.
        tasks: Which tasks; all that templates make when None. Others are counted, and have to be found elsewhere.
        phrases: By task, phrases that its edits should have; they are counted over all clusters.
        least_said: Edits that there should be of every such phrase.

    Raises:
        UserError: No task is named, or a phrase is empty.
    """

    def __init__(
        self,
        least: int = 100,
        tasks: Sequence[str] | None = None,
        phrases: Mapping[str, Sequence[str]] | None = None,
        least_said: int = 10,
    ) -> None:
        self.least = least
        self.phrases = dict(phrases or {})
        self.least_said = least_said
        self.tasks = TASKS if tasks is None else tuple(dict.fromkeys(tasks))
        for task, some in self.phrases.items():
            for phrase in some:
                if not folded(phrase):
                    raise UserError(f"fill.phrases.{task}: {phrase!r} has no letter and no digit")
        if not self.tasks:
            raise UserError(f"fill.tasks: names none; those that templates make are {', '.join(TASKS)}")

    def run(self, corpus: Corpus, table: RawTable, seed: int) -> list[str]:
        """Write gaps.jsonl and fill.jsonl, and return what to print.

        Args:
            corpus: Its score files, with decisions.
            table: The raw rows.
            seed: Of the pictures that are listed.
        """
        there: Counter[tuple[str, int | None]] = Counter()
        pictures: dict[int | None, list[int]] = {}
        for number, kind, task, cluster in _kept(corpus):
            if kind == "edit":
                there[task, cluster] += 1
            elif kind == "text-to-image":
                pictures.setdefault(cluster, []).append(number)
        names = {*pictures, *(cluster for _, cluster in there)}
        clusters = sorted(names, key=lambda name: -1 if name is None else name)
        wanted: dict[int, list[str]] = {}
        gaps: list[Gap] = []
        for cluster in clusters:
            for task in self.tasks:
                missing = self.least - there[task, cluster]
                if missing <= 0:
                    continue
                listed: list[int] = []
                if task in TASKS:
                    lots = {number: seed_of(seed, "fill", task, number) for number in pictures.get(cluster, ())}
                    listed = sorted(lots, key=lots.__getitem__)[:missing]
                for number in listed:
                    wanted.setdefault(number, []).append(task)
                gaps.append(Gap(task, cluster, there[task, cluster], missing, len(listed)))
        silent = self._silent(corpus)
        gaps = self._worded(corpus, gaps)
        with replacing(corpus.folder / GAPS) as file:
            for gap in (*gaps, *silent):
                filled = {name: value for name, value in asdict(gap).items() if name not in _WORDS or value}
                file.write(json.dumps(filled, ensure_ascii=False) + "\n")
        self._list(corpus, table, wanted)
        short = sum(gap.missing > gap.listed for gap in gaps)
        lines = [f"gaps       {len(gaps):>8} of {len(clusters) * len(self.tasks)} cells have under {self.least} edits"]
        if self.phrases:
            lines.append(f"unsaid     {len(silent):>8} phrases have under {self.least_said} edits")
        lines.append(
            f"to fill    {len(wanted):>8} pictures, in {corpus.folder / FILL}; {short} gaps need more than these"
        )
        return lines

    def _silent(self, corpus: Corpus) -> list[Gap]:
        """Return the phrases that too few kept edits have."""
        asked = [(task, phrase) for task, phrases in self.phrases.items() for phrase in phrases]
        if not asked:
            return []
        index = _index(corpus)
        if index is None:
            raise UserError(f"fill.phrases: needs the instruction index; add phrases: {{_target_: {_INDEX}}}")
        found = []
        for (task, phrase), edits in zip(asked, index.said(corpus, asked), strict=True):
            if edits < self.least_said:
                found.append(Gap(task, None, edits, self.least_said - edits, 0, phrase))
        return found

    def _worded(self, corpus: Corpus, gaps: Sequence[Gap]) -> list[Gap]:
        """Return gaps of clusters with the phrases that they lack, where there is an instruction index."""
        index = _index(corpus)
        cells = [(gap.task, gap.cluster) for gap in gaps if gap.cluster is not None]
        if index is None or not cells:
            return list(gaps)
        lacking = index.lacking(corpus, cells, self.least_said)
        return [replace(gap, lacks=lacking.get((gap.task, gap.cluster), ())) for gap in gaps]

    def _list(self, corpus: Corpus, table: RawTable, wanted: dict[int, list[str]]) -> None:
        """Write the pictures that something is wanted of."""
        with replacing(corpus.folder / FILL) as file:
            for row in table.rows(wanted.__contains__) if wanted else ():
                line = table.line(row, corpus.folder)
                line["wanted"] = wanted[row.number]
                file.write(json.dumps(line, ensure_ascii=False, default=str) + "\n")


def _index(corpus: Corpus) -> Phrases | None:
    phrases = corpus.annotators.get(PHRASES)
    return phrases if isinstance(phrases, Phrases) else None


def _kept(corpus: Corpus) -> Iterator[tuple[int, str, str, int | None]]:
    """Yield (number, kind, category or task, cluster) of the kept rows."""
    decisions = scores.read(corpus.folder / DECISIONS, ["kept", "cluster"], "select")
    for shard in range(corpus.shards):
        first = shard * corpus.shard_rows
        some = decisions.slice(first, corpus.size(shard)).to_pylist()
        said = corpus.table(shard, ROW, ["kind", "task", "category"]).to_pylist()
        for decision, row in zip(some, said, strict=True):
            if decision["kept"]:
                yield row["row"], row["kind"], row["category"] or row["task"], decision["cluster"]
