"""`curate`: raw rows -> score files -> groups and clusters -> decisions -> the rows that `prepare` reads."""

import errno
import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from tqdm import tqdm

from firered_lit.errors import UserError
from firered_lit.files import write_json
from firered_lit.places import user_path
from firered_lit.process.locks import in_turn, shard_held
from firered_lit.sharing.crew import Crew, Runner, Share
from firered_lit.textfiles import read_object

from .annotator import Annotator
from .card import write_card
from .changes import follow
from .corpus import COSTS, PHRASES, STATE, Corpus
from .derived import check_needs
from .fill import Fill
from .fit import Clusters, Duplicates, clusters_made_from, fit
from .label.label import Label, Texts
from .losers import LOSERS, write_losers
from .make.maker import Make
from .mlflow_summary import CurationRun
from .phrases import Phrases
from .report import report
from .rows import RawTable
from .rules import Rule, read
from .select import ASKED, DECISIONS, DUPLICATE, SELECTION, Quota, Selection, select
from .shards import LABEL, OWN, Done, Shards
from .write import SELECTED, write

Stepname = Literal["annotate", "fit", "select", "label", "write", "make", "fill", "report"]
STEPS: tuple[Stepname, ...] = get_args(Stepname)
MADE_FROM = "curate.json"
_FEW = 64  # items of an annotator, from which on the share that it failed at is looked at


def curate(
    source: str,
    out: str,
    rows: RawTable,
    annotators: Mapping[str, Annotator],
    rules: Mapping[str, Any] | None = None,
    duplicates: Duplicates | None = None,
    clusters: Clusters | None = None,
    phrases: Phrases | None = None,
    quotas: Sequence[Quota] = (),
    label: Label | None = None,
    make: Make | None = None,
    fill: Fill | None = None,
    mlflow: CurationRun | None = None,
    steps: Sequence[Stepname] = STEPS,
    shard_rows: int = 256,
    batch: int = 8,
    workers: int = 2,
    patience: float = 300.0,
    max_failed: float = 0.1,
    shard: int = 0,
    num_shards: int = 1,
    runner: Runner = "processes",
    seed: int = 0,
) -> None:
    """Curate a raw data set into a folder; run again, it goes on.

    Args:
        source: Where the rows are from, for messages.
        out: The folder.
        rows: The raw rows.
        annotators: What computes columns, by the name that rules say.
        rules: What drops rows, by the name that becomes the reason, in their order; see `rules.Threshold`. One that is
            null is left out.
        duplicates: What near duplicates are, and which of them is kept; all are when None.
        clusters: How pictures are clustered and weighed; not at all when None.
        phrases: The instruction index, whose columns are phrases.NAME; none when None.
        quotas: How many rows of a kind are kept, in their order.
        label: What a model is asked about the rows that rules keep. Its answers are the columns label.NAME, and rows
            are selected again by the rules that look at them. Nothing is asked when None.
        make: The edits to make of the kept pictures; none when None.
        fill: Of which tasks there should be how many edits; gaps are not looked for when None.
        mlflow: Where the funnel is recorded, with the report; nowhere when None.
        steps: Which of annotate, fit, select, label, write, make, fill and report to run.
        shard_rows: Rows of a score file, and what a kill can lose.
        batch: Rows whose pictures are in memory at a time.
        workers: Processes that annotate and make edits; 0 works in this one.
        patience: Seconds after which a process that is at one step is taken to hang.
        max_failed: Share of an annotator's items that it may fail at before it stops.
        shard: This command annotates, labels and makes every num_shards-th shard, from this one on; others that share
            `out` do the rest. The last one to finish such a step goes on, to its share of the next one.
        num_shards: In how many the work is divided.
        runner: "processes" of this machine, or "ray": Daft spreads the shards to annotate and to make over a Ray
            cluster, that of RAY_ADDRESS or one of `workers` processors which is started here.
        seed: Of what is chosen at random.

    Raises:
        UserError: Something is wrong with the recipe, the source or the folder.
    """
    share = Share(shard, num_shards)
    crew = Crew(workers, patience, runner)
    _check(steps, annotators, rules)
    folder = Path(out).resolve()
    columns = annotators if phrases is None else {**annotators, PHRASES: phrases}
    corpus = Corpus(folder, len(rows), shard_rows, columns)
    labelled = corpus if label is None else replace(corpus, annotators={**columns, LABEL: label})
    wanted = {name: rule for name, rule in (rules or {}).items() if rule is not None}
    read_rules = {name: read(name, rule, labelled.kinds) for name, rule in wanted.items()}
    if duplicates is not None:
        duplicates.check(labelled)
    if clusters is not None:
        clusters.check(corpus)
    if phrases is not None:
        phrases.check(corpus)
    for quota in quotas:
        quota.check(labelled)
    choice = SelectionSettings(read_rules, duplicates, clusters, quotas, seed)
    work = Shards(folder, rows, annotators, shard_rows, batch)
    try:
        with shard_held(folder, "curate", shard, num_shards):
            with in_turn(folder):
                _note(folder, {"rows": rows.digest, "count": len(rows), "shard_rows": shard_rows})
            if "annotate" in steps:
                _annotate(work, corpus, crew, share, max_failed)
                left = work.left(dict.fromkeys(range(corpus.shards)))
                if share.waits("annotate", len(left), corpus.shards):
                    return
            _conclude(corpus, labelled, rows, choice, label, make, fill, steps, crew, share, source, mlflow)
    except OSError as problem:
        if problem.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(f"{folder}: the disk is full; make room and run again, it goes on from there") from None


def _check(steps: Sequence[str], annotators: Mapping[str, Annotator], rules: Mapping[str, Any] | None) -> None:
    for step in steps:
        if step not in STEPS:
            raise UserError(f"steps: {step!r} is none of {', '.join(STEPS)}")
    for name in annotators:
        if name in (*OWN, LABEL, PHRASES):
            raise UserError(f"annotators.{name}: this name is taken by the engine's own columns; choose another one")
        if not name.isidentifier():
            raise UserError(f"annotators.{name}: a name is made of letters, digits and underscores")
    check_needs(annotators, OWN)
    for name in rules or {}:
        if ":" in name or not name.isprintable():
            raise UserError(f"rules.{name}: a rule's name has no colon, and nothing that cannot be printed")
        if name == DUPLICATE:
            raise UserError(f"rules.{name}: this name is the reason of near duplicates; choose another one")


def _note(folder: Path, made_from: Mapping[str, Any]) -> None:
    """Write curate.json, or refuse to go on with anything else.

    Raises:
        UserError: The folder was made from something else, or holds other things.
    """
    path = folder / MADE_FROM
    if not path.exists():
        strangers = sorted(place.name for place in folder.iterdir() if not place.name.startswith("."))
        if strangers:
            raise UserError(f"{folder}: not empty ({strangers[0]}) and not begun by curate; choose another out")
        write_json(path, made_from)
        return
    before = read_object(path)
    for name, value in made_from.items():
        if before.get(name) != value:
            change = f"({before.get(name)}, now {value})"
            raise UserError(f"{folder}: made with another {name} {change}; choose another out, or remove it")


def _annotate(work: Shards, corpus: Corpus, crew: Crew, share: Share, max_failed: float) -> None:
    """Make the score files of this command's shards that are not there yet."""
    todo = work.left(dict.fromkeys(share.of(range(corpus.shards))))
    total = sum(corpus.size(number) for number in todo)
    if not todo:
        return
    items: Counter[str] = Counter()
    failed: Counter[str] = Counter()
    seconds: defaultdict[str, float] = defaultdict(float)
    with tqdm(total=total, unit="row", desc="annotate", smoothing=0.05) as bar:

        def done(one: Done) -> None:
            items.update(one.items)
            failed.update(one.failed)
            for name, spent in one.seconds.items():
                seconds[name] += spent
            bar.update(corpus.size(one.shard))
            for name, count in failed.items():
                if items[name] >= _FEW and count > max_failed * items[name]:
                    first = one.first_failure.get(name, "")
                    raise UserError(
                        f"annotators.{name}: failed at {count} of {items[name]} items, more than max_failed ="
                        f" {max_failed:g}: {first}"
                    )

        crew.do(work, todo, done)
    _add_costs(corpus.folder / STATE / f"{COSTS}-{share.shard}.json", items, seconds)


def _add_costs(path: Path, items: Mapping[str, int], seconds: Mapping[str, float]) -> None:
    """Add what was spent to what was spent before."""
    before = read_object(path) if path.exists() else {}
    costs = {}
    for name in {*before, *items}:
        old = before.get(name, {"items": 0, "seconds": 0.0})
        costs[name] = {
            "items": old["items"] + items.get(name, 0),
            "seconds": round(old["seconds"] + seconds.get(name, 0.0), 3),
        }
    write_json(path, dict(sorted(costs.items())))


@dataclass(frozen=True)
class SelectionSettings:
    """All that decides which rows are kept; see `select`."""

    rules: Mapping[str, Rule]
    duplicates: Duplicates | None
    clusters: Clusters | None
    quotas: Sequence[Quota]
    seed: int

    def before_labels(self) -> "SelectionSettings":
        """Return the choice of the rows that a model is asked about: rules that need no labels, and no quotas yet."""
        rules = {name: rule for name, rule in self.rules.items() if not needs_labels(rule)}
        best = self.duplicates.best if self.duplicates is not None else {}
        by_labels = any(column.startswith(f"{LABEL}.") for column in best)
        return replace(self, rules=rules, duplicates=None if by_labels else self.duplicates, quotas=())


def needs_labels(rule: Rule) -> bool:
    """Return whether a rule looks at what a model said."""
    columns = (*rule.columns, *getattr(rule, "row_columns", ()))
    return any(column.startswith(f"{LABEL}.") for column in columns)


def _conclude(
    corpus: Corpus,
    labelled: Corpus,
    table: RawTable,
    choice: SelectionSettings,
    label: Label | None,
    make: Make | None,
    fill: Fill | None,
    steps: Sequence[str],
    crew: Crew,
    share: Share,
    source: str,
    mlflow: CurationRun | None,
) -> None:
    """Run the steps that need all shards, one command at a time; those that go over rows, this command's share."""
    asks = label is not None and "label" in steps
    with in_turn(corpus.folder):
        if "fit" in steps:
            print("\n".join(_fit(corpus, choice.duplicates, choice.clusters)) or "fit        nothing to do")
        if "select" in steps and asks:
            first = _selected(corpus, choice.before_labels(), ASKED)
            print("\n".join(funnel(first, ASKED)))

    # A model's answers about what the rules keep.
    if label is not None and asks:
        print("\n".join(label.run(corpus, table, share)))
        if share.waits("label", label.left(corpus, share), corpus.shards):
            return

    # Rules, with the answers that are there, and the rows that they keep.
    there = label is not None and label.is_there(corpus)
    with in_turn(corpus.folder):
        if "select" in steps:
            waiting = [name for name, rule in choice.rules.items() if needs_labels(rule)]
            if waiting and not there:
                raise UserError(f"rules.{waiting[0]}: looks at labels that are not there; run the step label first")
            selection = _selected(labelled if there else corpus, choice, DECISIONS)
            write_json(corpus.folder / STATE / SELECTION, json.loads(json.dumps(vars(selection))))
            print("\n".join([*funnel(selection), *follow(corpus.folder)]))
        if "write" in steps:
            _write(corpus, table, choice, label if there else None)

    # What is made of the kept rows.
    making = make.begin(corpus.folder, table, choice.seed) if make is not None and "make" in steps else None
    if making is not None:
        making.run(crew, share)
        if share.waits("make", making.left(), len(making.parts)):
            return
    with in_turn(corpus.folder):
        if making is not None:
            print("\n".join(making.conclude()))
        if "fill" in steps and fill is not None:
            print("\n".join(fill.run(corpus, table, choice.seed)))
        if "report" in steps:
            print(f"report     {report(labelled if there else corpus, table, choice.rules, choice.seed)}")
            _hand_on(corpus, source, choice, label if there else None, mlflow)


def _fit(corpus: Corpus, near: Duplicates | None, clusters: Clusters | None) -> list[str]:
    """Make what depends on all rows at once, and return what to print."""
    said = fit(corpus, near, clusters)
    phrases = corpus.annotators.get(PHRASES)
    if isinstance(phrases, Phrases):
        said += phrases.run(corpus, None if clusters is None else clusters_made_from(corpus, clusters))
    return said


def _write(corpus: Corpus, table: RawTable, choice: SelectionSettings, label: Label | None) -> None:
    """Write the kept rows, and the pairs of kept and rejected edits, and say how many."""
    texts = Texts(corpus, label) if label is not None else None
    written, wordless = write(corpus.folder, table, texts)
    print(f"written    {written:>8} rows, in {corpus.folder / SELECTED}")
    if wordless:
        print(f"note: {wordless} of them have no text, and `prepare` refuses those; label them first")
    if texts is not None:
        rejecting = [name for name, rule in choice.rules.items() if needs_labels(rule)]
        pairs = write_losers(corpus.folder, table, rejecting)
        print(f"losers     {pairs:>8} pairs of a kept and a rejected edit, in {corpus.folder / LOSERS}")


def _hand_on(
    corpus: Corpus, source: str, choice: SelectionSettings, label: Label | None, mlflow: CurationRun | None
) -> None:
    """Write the data card, and record the curation in MLflow."""
    card = write_card(
        corpus,
        source=user_path(source),
        rules=choice.rules,
        duplicates=choice.duplicates,
        clusters=choice.clusters,
        quotas=choice.quotas,
        label=label,
        seed=choice.seed,
    )
    if mlflow is not None:
        mlflow.keep(corpus.folder, card)


def _selected(corpus: Corpus, choice: SelectionSettings, name: str) -> Selection:
    """Decide about every row, into a file of this name."""
    return select(corpus, choice.rules, choice.duplicates, choice.clusters, choice.quotas, choice.seed, name)


def funnel(selection: Selection, name: str = DECISIONS) -> list[str]:
    """Return the lines that say what was dropped by which reason, what is left, and the name of the decisions."""
    lines = [f"rows       {selection.rows:>8}"]
    left = selection.rows
    for reason, count in selection.reasons.items():
        left -= count
        lines.append(f"dropped    {count:>8} {reason}, {left} left")
    share = 100 * selection.kept / selection.rows if selection.rows else 0.0
    return [*lines, f"kept       {selection.kept:>8} ({share:.1f} %), see {name}"]
