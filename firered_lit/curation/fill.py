"""The step `fill`: of which tasks, and where, there are too few edits, and the pictures from which more can be made.

OUT/gaps.jsonl has a line for every task and cluster with too few kept edits. OUT/fill.jsonl is a table of kept
pictures, each with the tasks that are `wanted` of it; `curate` reads it again, and its step `make` makes those alone.
"""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

from firered_lit.draws import seed_of
from firered_lit.errors import UserError
from firered_lit.files import replacing

from . import scores
from .corpus import Corpus
from .make.templates import TASKS
from .rows import RawTable
from .select import DECISIONS
from .shards import ROW

GAPS, FILL = "gaps.jsonl", "fill.jsonl"


@dataclass(frozen=True)
class Gap:
    """A task that too few kept edits are of.

    Args:
        task: Its name.
        cluster: In which cluster; None without clusters.
        edits: How many there are.
        missing: How many are asked for beside these.
        listed: Pictures that an edit can be made of.
    """

    task: str
    cluster: int | None
    edits: int
    missing: int
    listed: int


class Fill:
    """Counts kept edits by category, or by task where a row has none, and by cluster where there are clusters.

    Args:
        least: Edits that there should be of every task in every cluster.
        tasks: Which tasks; all that templates make when None. Others are counted, and have to be found elsewhere.

    Raises:
        UserError: No task is named.
    """

    def __init__(self, least: int = 100, tasks: Sequence[str] | None = None) -> None:
        self.least = least
        self.tasks = TASKS if tasks is None else tuple(dict.fromkeys(tasks))
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
        with replacing(corpus.folder / GAPS) as file:
            for gap in gaps:
                file.write(json.dumps(asdict(gap), ensure_ascii=False) + "\n")
        self._list(corpus, table, wanted)
        short = sum(gap.missing > gap.listed for gap in gaps)
        return [
            f"gaps       {len(gaps):>8} of {len(clusters) * len(self.tasks)} cells have under {self.least} edits",
            f"to fill    {len(wanted):>8} pictures, in {corpus.folder / FILL}; {short} gaps need more than these",
        ]

    def _list(self, corpus: Corpus, table: RawTable, wanted: dict[int, list[str]]) -> None:
        """Write the pictures that something is wanted of."""
        with replacing(corpus.folder / FILL) as file:
            for row in table.rows(wanted.__contains__) if wanted else ():
                line = table.line(row, corpus.folder)
                line["wanted"] = wanted[row.number]
                file.write(json.dumps(line, ensure_ascii=False, default=str) + "\n")


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
