"""The judge looks at two edits side by side: models on the same items in both orders, and pairs that people decided.

Each question is asked with either edit first, and an edit wins only where it wins both times. Answers stand in the log
of all others, under questions of their own.
"""

import hashlib
import json
import re
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Any

from tqdm import tqdm

from firered_lit.draws import chooser
from firered_lit.errors import UserError
from firered_lit.judges.asker import Asker
from firered_lit.judges.log import rows
from firered_lit.judges.request import ChatRequest, MessagePicture, user
from firered_lit.places import user_path
from firered_lit.textfiles import read_text

from .benchmarks.pictures import file_or_none, opened, png
from .benchmarks.settings import settings_of
from .drawing import own_items
from .judging import BUILDERS, Health
from .protocols import Asking, Benchmark, EvaluationFolder, Item
from .responses import Responses, numbered
from .statements import plain
from .statistics import Duel, agreement, bradley_terry, settle, share_estimate

SLOT = "<instruction>"
PROMPT = f"""You see three pictures: an original, edit A of it, and edit B of it. Both edits were asked for the same.
Asked for: {SLOT}
Which edit is better? Look in this order: what was asked for is done, all of it; everything else is as it was; the
picture looks natural, without artifacts.
Give your reasons in two or three sentences. Then end with one of [[A]], [[B]] and, where neither is better, [[tie]]."""
VERDICT = re.compile(r"\[\[\s*(a|b|c|tie)\s*\]\]", re.IGNORECASE)


@dataclass(frozen=True)
class Arena:
    """The choice of pairs of edits, and what is asked about them.

    Args:
        duels: Ask about every two models on the same items.
        each: Only so many items of every suite and category, drawn by their names; None for all.
        preferences: A table of pairs that people decided, to see how often the judge agrees: rows with source_image,
            chosen_image, rejected_image and instruction or instruction_cn; paths are relative to the table.
        prompt: A file with another prompt; it holds <instruction>, and asks for [[A]], [[B]] or [[tie]].
    """

    duels: bool = True
    each: int | None = None
    preferences: str | None = None
    prompt: str | None = None

    def check(self, judge: str) -> None:
        """Refuse what could not be asked, before anything is drawn.

        Args:
            judge: The name of the model that compares.

        Raises:
            UserError: It has no name, or the prompt or the table of preferences cannot be used.
        """
        if not judge:
            raise UserError("judge.model: name the model that compares edits; no official script says which")
        self.text()
        if self.preferences is not None:
            for _ in preference_pairs(user_path(self.preferences)):
                """Each row is looked at."""

    def text(self) -> str:
        """Return the prompt.

        Raises:
            UserError: The file cannot be read, or has no place for the instruction.
        """
        if self.prompt is None:
            return PROMPT
        try:
            text = read_text(user_path(self.prompt))
        except (OSError, UnicodeDecodeError) as problem:
            raise UserError(f"arena.prompt={self.prompt}: cannot be read: {problem}") from None
        if SLOT not in text:
            raise UserError(f"arena.prompt={self.prompt}: {SLOT} is missing, where the instruction belongs")
        return text


def verdict(answer: str) -> str | None:
    """Return "A", "B" or "tie", as an answer ends; None where it says none of them."""
    found = VERDICT.findall(answer)
    if not found:
        return None
    last = str(found[-1]).upper()
    return last if last in ("A", "B") else "tie"


# What is asked


@dataclass(frozen=True)
class _Pair:
    """Two edits of one picture, neither of them loaded.

    Attributes:
        place: The suite, or "preferences".
        item: The item.
        names: Of the edit that is shown first, and of the other.
        digests: SHA-256 of both files.
        instruction: What was asked for.
        load: Return the source's file, and those of both edits in the order of the pair as it was made.
    """

    place: str
    item: str
    names: tuple[str, str]
    digests: tuple[str, str]
    instruction: str
    load: Callable[[], tuple[bytes, bytes, bytes]]

    def mirrored(self) -> "_Pair":
        """Return the pair with the other edit first."""
        return replace(self, names=self.names[::-1], digests=self.digests[::-1])

    def question(self, prompt: str, asking: Asking) -> str:
        """Return what tells this question from any other."""
        settings = dict(asking.settings)
        parts = [self.place, self.item, self.digests, self.instruction, prompt, asking.model, settings]
        return hashlib.sha256(json.dumps(["arena", *parts], sort_keys=True, default=repr).encode()).hexdigest()

    def request(self, prompt: str, asking: Asking, pictures: Sequence[MessagePicture]) -> ChatRequest:
        """Return the question as it is sent.

        Args:
            prompt: With a place for the instruction.
            asking: Settings of the judge.
            pictures: The source, the edit that is shown first, and the other.
        """
        source, first, second = pictures
        message = user("Original:", source, "Edit A:", first, "Edit B:", second, prompt.replace(SLOT, self.instruction))
        facts = {
            "question": self.question(prompt, asking),
            "call": 0,
            "suite": self.place,
            "item": self.item,
            "left": self.names[0],
            "right": self.names[1],
        }
        return ChatRequest(asking.model, [message], settings_of(asking, {}), numbered(0, 0), facts)


def _requests(pair: _Pair, prompt: str, asking: Asking, responses: Responses) -> list[ChatRequest]:
    """Return what is still to be asked about a pair; nothing where a picture cannot be shown."""
    orders = (pair, pair.mirrored())
    waiting = [order for order in orders if responses.find(order.question(prompt, asking), 0, 0, 0) is None]
    if not waiting:
        return []
    try:
        source, first, second = (MessagePicture(png(opened(data, pair.item))) for data in pair.load())
    except UserError:  # counted as left out when it is scored
        return []
    shown = {pair.names: (source, first, second), pair.names[::-1]: (source, second, first)}
    return [order.request(prompt, asking, shown[order.names]) for order in waiting]


def ask_arena(
    folder: EvaluationFolder,
    benchmarks: Sequence[Benchmark],
    models: Sequence[str],
    client: Asker,
    asking: Asking,
    arena: Arena,
    *,
    shard: int = 0,
    num_shards: int = 1,
) -> Counter[str]:
    """Ask about all pairs in both orders; run again, it goes on. Return kind of reply -> how many.

    Args:
        folder: The evaluation; its log gets the answers.
        benchmarks: What was drawn.
        models: Names of the models that meet.
        client: The judge. It logs into `folder.responses`.
        asking: Settings of the judge.
        arena: Which pairs.
        shard: This process asks about the items that it has drawn: every num_shards-th, from this one on.
        num_shards: How many processes share the work.

    Raises:
        UserError: The judge's model has no name, the table of preferences cannot be used, or nothing can go on.
    """
    arena.check(asking.model)
    prompt = arena.text()
    responses = Responses(folder.responses)
    own = {(item.suite, item.id) for _, item in own_items(benchmarks, shard, num_shards)}
    pairs = [*_duel_pairs(folder, benchmarks, models, arena, own), *_own_preferences(arena, shard, num_shards)]
    kinds: Counter[str] = Counter()
    health = Health(client)

    def requests() -> Iterator[ChatRequest]:
        """Yield the questions; pictures are encoded in threads, a few pairs ahead."""
        with ThreadPoolExecutor(BUILDERS, thread_name_prefix="pictures") as builders:
            ahead: deque[Future[list[ChatRequest]]] = deque()
            for pair in tqdm(pairs, unit="pair", desc="arena", mininterval=1.0):
                if health.spent:
                    return
                ahead.append(builders.submit(_requests, pair, prompt, asking, responses))
                if len(ahead) > 2 * BUILDERS:
                    yield from ahead.popleft().result()
            while ahead:
                yield from ahead.popleft().result()

    for request, reply in client.ask_all(requests()):
        if reply.replayed:  # the same request stands in the log under another question
            client.record(request, reply)
            continue
        kinds[str(reply.kind)] += 1
        health.note(reply)
    health.conclude()
    return kinds


def _duel_pairs(
    folder: EvaluationFolder,
    benchmarks: Sequence[Benchmark],
    models: Sequence[str],
    arena: Arena,
    own: Collection[tuple[str, str]],
) -> Iterator[_Pair]:
    """Yield one order of every pair of models on the items that this process has drawn."""
    if not arena.duels:
        return
    for benchmark in benchmarks:
        for item in chosen_items(benchmark.items(), arena.each):
            if (item.suite, item.id) in own:
                yield from _duels(folder, benchmark, item, models)


def _own_preferences(arena: Arena, shard: int, num_shards: int) -> list[_Pair]:
    """Return one order of this process's share of the pairs that people decided."""
    if arena.preferences is None:
        return []
    return [pair for pair, _ in preference_pairs(user_path(arena.preferences))][shard::num_shards]


def chosen_items(items: Sequence[Item], each: int | None) -> list[Item]:
    """Return so many items of every suite and category, drawn by their names, in their order."""
    if each is None:
        return list(items)
    groups: dict[tuple[str, str], list[Item]] = {}
    for item in items:
        groups.setdefault((item.suite, item.category), []).append(item)
    kept: set[tuple[str, str]] = set()
    for group in groups.values():
        ranked = sorted(group, key=lambda item: chooser("arena", item.suite, item.id).random())
        kept.update((item.suite, item.id) for item in ranked[:each])
    return [item for item in items if (item.suite, item.id) in kept]


def _duels(folder: EvaluationFolder, benchmark: Benchmark, item: Item, models: Sequence[str]) -> Iterator[_Pair]:
    """Yield every two models' pictures of an item that differ."""
    digests = {}
    for model in models:
        data = file_or_none(folder.picture(model, item))
        if data is not None:
            digests[model] = hashlib.sha256(data).hexdigest()
    for first, second in combinations(digests, 2):
        if digests[first] != digests[second]:
            paths = [folder.picture(model, item) for model in (first, second)]

            def load(paths: Sequence[Path] = paths) -> tuple[bytes, bytes, bytes]:
                edits = [path.read_bytes() for path in paths]
                return benchmark.sources(item)[0], edits[0], edits[1]

            names = (first, second)
            yield _Pair(item.suite, item.id, names, (digests[first], digests[second]), item.instruction, load)


# Pairs that people decided

CHOSEN = "chosen"
REJECTED = "rejected"


def preference_pairs(table: Path) -> Iterator[tuple[_Pair, int]]:
    """Yield the pairs of a table with what people say of each: 1 where the first is better, -1 where the second is.

    Which one comes first is drawn by the row's number.

    Raises:
        UserError: The table cannot be read, or a row lacks a picture or an instruction.
    """
    try:
        for number, row in enumerate(rows(table), start=1):
            where = f"{table}: row {number}"
            paths = {name: table.parent / _text(row, name, where) for name in ("source_image", "chosen_image")}
            paths["rejected_image"] = table.parent / _text(row, "rejected_image", where)
            instruction = str(row.get("instruction") or row.get("instruction_cn") or "").strip()
            if not instruction:
                raise UserError(f"{where}: no instruction")
            first = chooser("preferences", number).random() < 0.5
            order = (CHOSEN, REJECTED) if first else (REJECTED, CHOSEN)
            yield _preference(str(number), order, paths, instruction, where), 1 if first else -1
    except OSError as problem:
        raise UserError(f"arena.preferences={table}: cannot be read: {problem.strerror}") from None


def _preference(number: str, order: tuple[str, str], paths: Mapping[str, Path], instruction: str, where: str) -> _Pair:
    files = [paths["source_image"], *(paths[f"{name}_image"] for name in order)]
    contents = []
    for path in files:
        data = file_or_none(path)
        if data is None:
            raise UserError(f"{where}: {path}: no such picture")
        contents.append(hashlib.sha256(data).hexdigest())

    def load() -> tuple[bytes, bytes, bytes]:
        source, first, second = (path.read_bytes() for path in files)
        return source, first, second

    return _Pair("preferences", number, order, (contents[1], contents[2]), instruction, load)


def _text(row: Mapping[str, Any], name: str, where: str) -> str:
    value = row.get(name)
    if not isinstance(value, str) or not value:
        raise UserError(f"{where}: {name}: the path of a picture is needed")
    return value


# What came of it


@dataclass
class _Tally:
    """The answers about some pairs.

    Attributes:
        duels: Pairs settled over both orders.
        shown: Every answer by itself, in the order that the judge saw.
        same: Pairs of which both orders gave one verdict.
        left_out: Pairs of which an order has no answer, or none that can be read.
        identical: Pairs of equal pictures, ties without a question.
    """

    duels: list[Duel] = field(default_factory=list)
    shown: list[Duel] = field(default_factory=list)
    same: int = 0
    left_out: int = 0
    identical: int = 0

    def add(self, pair: _Pair, verdicts: Sequence[str | None]) -> Duel | None:
        """Count a pair; return it settled, None where it is left out."""
        sides = (pair, pair.mirrored())
        shown = [_duel(side, said) for side, said in zip(sides, verdicts) if said is not None]
        self.shown.extend(shown)
        if len(shown) < 2:
            self.left_out += 1
            return None
        self.same += shown[0].winner == shown[1].winner
        settled = settle(shown[0], shown[1])
        self.duels.append(settled)
        return settled

    def counts(self) -> dict[str, Any]:
        """Return what a table says beside the strengths."""
        decided = [duel for duel in self.shown if duel.winner is not None]
        bias = None
        if decided:
            bias = plain(share_estimate(sum(duel.winner == duel.left for duel in decided), len(decided)))
        asked = len(self.duels) - self.identical
        return {
            "pairs": len(self.duels),
            "left_out": self.left_out,
            "identical": self.identical,
            "same_in_both_orders": plain(share_estimate(self.same, asked)) if asked else None,
            "first_shown_wins": bias,
        }


def _duel(pair: _Pair, said: str) -> Duel:
    winner = {"A": pair.names[0], "B": pair.names[1]}.get(said)
    return Duel(pair.item, pair.names[0], pair.names[1], winner)


def _verdicts(pair: _Pair, prompt: str, asking: Asking, responses: Responses) -> list[str | None]:
    """Return what the judge said in each order."""
    verdicts: list[str | None] = []
    for side in (pair, pair.mirrored()):
        response = responses.find(side.question(prompt, asking), 0, 0, 0)
        verdicts.append(None if response is None else verdict(response.reply.words))
    return verdicts


def arena_statistics(
    folder: EvaluationFolder,
    benchmarks: Sequence[Benchmark],
    models: Sequence[str],
    asking: Asking,
    responses: Responses,
    arena: Arena,
    seed: int,
) -> dict[str, Any] | None:
    """Return suite -> strengths of the models with intervals, and what they rest on; None without a pair."""
    if not arena.duels or len(models) < 2:
        return None
    prompt = arena.text()
    tallies: dict[str, _Tally] = {}
    for benchmark in benchmarks:
        for item in chosen_items(benchmark.items(), arena.each):
            tally = tallies.setdefault(item.suite, _Tally())
            for pair in _duels(folder, benchmark, item, models):
                tally.add(pair, _verdicts(pair, prompt, asking, responses))
            _add_identical(tally, folder, item, models)
    told = {suite: _strengths(tally, seed) for suite, tally in tallies.items() if tally.duels or tally.left_out}
    return told or None


def _add_identical(tally: _Tally, folder: EvaluationFolder, item: Item, models: Sequence[str]) -> None:
    """Count equal pictures of two models as a tie."""
    files = {model: file_or_none(folder.picture(model, item)) for model in models}
    for first, second in combinations(models, 2):
        if files[first] is not None and files[first] == files[second]:
            tally.duels.append(Duel(item.id, first, second, None))
            tally.identical += 1


def _strengths(tally: _Tally, seed: int) -> dict[str, Any]:
    told: dict[str, Any] = {"models": None, "ties": None, "results": _results(tally.duels), **tally.counts()}
    if not tally.duels:
        return told
    try:
        strengths = bradley_terry(tally.duels, seed=seed)
    except UserError as problem:  # two groups of models never met
        return {**told, "reason": str(problem)}
    told["models"] = {name: plain(estimate) for name, estimate in strengths.models.items()}
    told["ties"] = strengths.ties / (2 + strengths.ties)
    return told


def _results(duels: Iterable[Duel]) -> list[dict[str, Any]]:
    """Return wins, ties and losses of every two models."""
    results: dict[tuple[str, str], Counter[str]] = {}
    for duel in duels:
        counts = results.setdefault((duel.left, duel.right), Counter())
        if duel.winner is None:
            counts["ties"] += 1
        elif duel.winner == duel.left:
            counts["wins"] += 1
        else:
            counts["losses"] += 1
    told = []
    for (first, second), counts in results.items():
        told.append({"first": first, "second": second, **{name: counts[name] for name in ("wins", "ties", "losses")}})
    return told


def agreement_statistics(asking: Asking, responses: Responses, arena: Arena, seed: int) -> dict[str, Any] | None:
    """Return how often the judge agrees with people; None without a table of their pairs, or without an answer."""
    if arena.preferences is None:
        return None
    prompt = arena.text()
    tally = _Tally()
    judge: list[int] = []
    people: list[int] = []
    for pair, wanted in preference_pairs(user_path(arena.preferences)):
        settled = tally.add(pair, _verdicts(pair, prompt, asking, responses))
        if settled is None:
            continue
        better = {pair.names[0]: 1, pair.names[1]: -1}
        judge.append(0 if settled.winner is None else better[settled.winner])
        people.append(wanted)
    if not judge:
        return {"all": None, "decided": None, "kappa": None, **tally.counts()}
    found = agreement(judge, people, seed=seed)
    return {
        "all": plain(found.all_pairs),
        "decided": plain(found.decided),
        "kappa": plain(found.kappa),
        **tally.counts(),
    }
