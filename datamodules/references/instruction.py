"""Stochastic instruction alignment: references are permuted and dropped, and the prompt follows.

Source:
    FireRed-Image-Edit (2602.13344), section 3.2.
"""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise, permutations
from math import comb, factorial
from typing import Any

from datamodules.references.mentions import Mention
from datamodules.references.numerals import LAST, ORDINALS, spell
from datamodules.references.prompt import find, read
from firered_lit.draws import chooser
from firered_lit.errors import UserError

Captions = Sequence[str | None] | Mapping[int, str]  # of every reference, in the old order; or by its old number
PLURAL = re.compile(r"(?i)(fig|figure|image|img|picture|pic|photo|photograph|reference|ref)s\b")


def mentions(prompt: str, n: int) -> set[int]:
    """Return which of the references 1 to n the prompt names."""
    return {value for mention in find(prompt, n) for value in mention.values if value <= n}


def reindex(prompt: str, order: Sequence[int], captions: Captions | None = None, *, n: int | None = None) -> str:
    """Return the prompt for references in a new order: every mention follows its image, all at once.

    Words that are not understood stay as they are: ask `keeps_order` first.

    Args:
        prompt: Text that names references 1 to n.
        order: Old number, from 1, of the reference at each new place; dropped ones are absent.
        captions: Words that take the place of a dropped reference's name.
        n: The number of references there were; by default the largest in `order` or with a caption.

    Raises:
        UserError: When a dropped reference is named and has no caption.
    """
    texts = _by_number(captions)
    if n is None:
        n = max([*order, *texts], default=0)
    new = {old: place for place, old in enumerate(order, 1)}
    if len(new) != len(order) or not all(1 <= old <= n for old in order):
        raise UserError(f"order {list(order)}: each of the references 1 to {n} may stand in it once")
    if list(order) == list(range(1, n + 1)):
        return prompt

    # Each mention is written again, what lies between them is copied.
    pieces = []
    end = 0
    for mention in find(prompt, n):
        pieces.append(prompt[end : mention.start])
        pieces.append(_rewrite(prompt, mention, new, texts, n))
        end = mention.end
    pieces.append(prompt[end:])
    return "".join(pieces)


def _by_number(captions: Captions | Sequence[Mapping[str, str]] | None) -> dict[int, Any]:
    """Return captions by the old number of their reference."""
    if captions is None:
        return {}
    if isinstance(captions, Mapping):
        return dict(captions)
    return dict(enumerate(captions, 1))


def reworded(
    instructions: Mapping[str, str], order: Sequence[int], captions: Sequence[Mapping[str, str]], n: int
) -> dict[str, str]:
    """Return a sample's instructions for its references in a new order, see `reindex`.

    A dropped reference is called by its caption in the instruction's language, else by that in another.

    Args:
        instructions: Texts by "kind/language".
        order: Old number, from 1, of the reference at each new place.
        captions: Captions of every reference, in the old order, by language.
        n: The number of references.
    """
    texts = {}
    for key, text in instructions.items():
        language = key.partition("/")[2]
        of_language = [_caption_in(language, caption) for caption in captions]
        texts[key] = reindex(text, order, of_language, n=n)
    return texts


def as_in_the_row(meta: Mapping[str, Any]) -> tuple[list[int], dict[str, str]]:
    """Return a stored sample's references in the order of its row.

    Args:
        meta: The sample's facts, as they are stored.

    Returns:
        The place, from 0, at which each of the row's references is stored, and the instructions that count them in the
        row's order.
    """
    count = len(meta["references"])
    order = list(meta.get("order") or range(1, count + 1))
    back = [order.index(number) + 1 for number in range(1, count + 1)]
    instructions = {key: reindex(text, back, n=count) for key, text in meta["instructions"].items()}
    return [place - 1 for place in back], instructions


def _caption_in(language: str, captions: Mapping[str, str]) -> str | None:
    """Return the caption in a language, else the first in another; None where there is none."""
    return captions.get(language) or next(iter(captions.values()), None)


def _rewrite(prompt: str, mention: Mention, new: dict[int, int], captions: Mapping[int, str | None], n: int) -> str:
    """Return a mention as it reads in the new order.

    Args:
        prompt: The text that holds the mention.
        mention: The stretch to write again.
        new: New place by old number, both from 1; a reference that is absent is dropped.
        captions: Words for a dropped reference, by old number.
        n: The number of references; a larger number in a mention names none.
    """
    dropped = [value for value in mention.values if value <= n and value not in new]
    for value in dropped:
        if not captions.get(value):
            raise UserError(f"reference {value} is dropped, but the prompt names it and it has no caption: {prompt!r}")
    if dropped:
        return _listed(prompt, mention, new, captions, n)

    # "images 1-3" names the same three in any order; where the new places make no row, each is named by itself.
    ends = [(value, new.get(value)) for value in mention.values]
    if mention.span:
        moved = [new[value] for value in mention.values]
        pair = len(mention.tokens) == 2 and len(moved) == 2
        if not pair and sorted(moved) == sorted(mention.values):
            return prompt[mention.start : mention.end]
        if len(mention.tokens) == 1 or not _in_a_row(moved, either_way=pair):
            return _listed(prompt, mention, new, captions, n)
        ends = [ends[0], ends[-1]]

    # Every number in the style in which it is written.
    pieces = []
    end = mention.start
    for (token_start, token_end), (value, place) in zip(mention.tokens, ends):
        pieces.append(prompt[end:token_start])
        pieces.append(_renumbered(prompt[token_start:token_end], value, place, last=len(new)))
        end = token_end
    pieces.append(prompt[end : mention.end])
    return "".join(pieces)


def _in_a_row(places: Sequence[int], either_way: bool) -> bool:
    """Return whether each place is the one after its predecessor; `either_way`: or the one before it."""
    steps = {after - before for before, after in pairwise(places)}
    return steps == {1} or (either_way and steps == {-1})


def _renumbered(token: str, value: int, place: int | None, last: int) -> str:
    """Return a number as it is written for the new place.

    Args:
        token: The number as the prompt has it: "2", "second", "last".
        value: The old number that it stands for.
        place: The new one; None for a number that names no reference.
        last: The new number of the last reference.
    """
    if place is None:
        return token
    meant = last if token.lower() in LAST else value
    if place == meant:
        return token
    return spell(place, token)


def _listed(prompt: str, mention: Mention, new: dict[int, int], captions: Mapping[int, str | None], n: int) -> str:
    """Return a mention with every reference by itself.

    "images 1 and 2" with the second dropped becomes "image 1 and a red hat". Arguments: see `_rewrite`.
    """
    # The style of its numbers; "the first two images" gets ordinals in place of a count.
    chinese = re.search(r"[\u4e00-\u9fff]", mention.head + mention.tail) is not None
    like = prompt[slice(*mention.tokens[0])]
    if mention.span and len(mention.tokens) == 1:
        like = _ordinal_like(like, chinese)

    # One name for each reference.
    head = PLURAL.sub(r"\1", mention.head)
    tail = PLURAL.sub(r"\1", mention.tail)
    names = []
    for value in mention.values:
        if value <= n and value not in new:
            names.append(captions[value] or "")
        else:
            names.append(head + spell(new.get(value, value), like) + tail)

    # A list of them.
    comma = "、" if chinese else ", "
    last = "和" if chinese else " and "
    before = comma.join(names[:-1])
    return last.join(text for text in (before, names[-1]) if text)


def _ordinal_like(count: str, chinese: bool) -> str:
    """Return an ordinal in the language and the case of a count, such as "First two"."""
    if chinese:
        return "最后一"
    return "First" if count[0].isupper() else ORDINALS[0]


def orders(n: int, droppable: Sequence[int] = ()) -> list[tuple[int, ...]]:
    """Return every order that `draw` can give: permutations of all references, and of those that droppings leave.

    Args:
        n: The number of references; 3, all of them droppable, have 15 orders.
        droppable: Numbers, from 1, of references that may be dropped.
    """
    # Each set of references that may be left.
    kept = [set(range(1, n + 1))]
    for number in droppable:
        kept += [rest - {number} for rest in kept if len(rest) > 1]

    # All permutations of each.
    found: list[tuple[int, ...]] = []
    for rest in kept:
        found += permutations(sorted(rest))
    return found


def keeps_order(prompts: Iterable[str], n: int) -> bool:
    """Return whether a sample's references must stay as they are.

    They must where any of its prompts, in any language, may name a reference in words that are not understood: "the
    former", "the left image", "put 2 on 1".

    Args:
        prompts: All instructions of the sample.
        n: The number of its references.
    """
    return n > 1 and any(read(prompt, n).unclear for prompt in prompts)


def droppable_references(
    prompts: Collection[str],
    n: int,
    captions: Captions | Sequence[Mapping[str, str]] | None = None,
    edited: int = 1,
) -> tuple[int, ...]:
    """Return which references may be dropped, because no prompt of the sample needs them.

    None may where a prompt names none, names several at once ("both images"), leans one mention on another ("image 1
    ... 2"), or must keep its order. A reference that prompts name may go where it has a caption, which then stands in
    the place of the mention. The picture that is edited may go only where every prompt names it, so that each says
    its caption.

    Args:
        prompts: All instructions of the sample, which number its references as they are stored.
        n: The number of references.
        captions: Captions of every reference, in the stored order; or by number.
        edited: The number of the picture that is edited, the record's first reference.
    """
    readings = [read(prompt, n) for prompt in prompts]
    if n < 2 or not readings:
        return ()
    for reading in readings:
        if reading.unclear or not reading.mentions or reading.needs_all:
            return ()

    # Those that every prompt names, and those that any does.
    named = [mentions(prompt, n) for prompt in prompts]
    everywhere = set.intersection(*named)
    anywhere = set.union(*named)

    # One that is named needs a caption to take the place of its name.
    texts = _by_number(captions)
    droppable = []
    for number in range(1, n + 1):
        captioned = bool(texts.get(number))
        needed = number == edited and number not in everywhere
        if not needed and (captioned or number not in anywhere):
            droppable.append(number)
    return tuple(droppable)


@cache
def choices(n: int, droppable: tuple[int, ...] = (), limit: int | None = None) -> tuple[tuple[int, ...], ...]:
    """Return the orders of which one is drawn, the identity first.

    A function of its arguments alone, so that training draws from the orders that `prepare` encoded.

    Args:
        n: The number of references.
        droppable: Numbers, from 1, of references that may be dropped.
        limit: The most orders to return; None for all of them.
    """
    if limit is None or _count(n, len(droppable)) <= limit:
        return tuple(sorted(orders(n, droppable), key=lambda order: (-len(order), order)))

    # Different orders, as they are drawn.
    found = {tuple(range(1, n + 1)): None}
    attempt = 0
    while len(found) < limit:
        found[draw(0, 0, attempt, n, droppable)] = None
        attempt += 1
    return tuple(found)


def _count(n: int, drops: int) -> int:
    """Return the number of orders when `drops` of n references may be dropped, at least one being kept."""
    most = min(drops, max(0, n - 1))
    return sum(comb(drops, gone) * factorial(n - gone) for gone in range(most + 1))


def draw(
    seed: int,
    epoch: int,
    step: int,
    n: int,
    droppable: Sequence[int] = (),
    *,
    drop: float = 0.2,
    limit: int | None = None,
) -> tuple[int, ...]:
    """Return the order of the references of one global batch, for `reindex`: a permutation, less what is dropped.

    A function of (seed, epoch, step), the same for every sample and rank, because one list of shapes holds for all of
    them.

    Args:
        seed: The run's seed.
        epoch: Number of the epoch, from 0.
        step: Number of the global batch in it, from 0.
        n: The number of references.
        droppable: Numbers, from 1, of references that may be dropped; at least one reference is always kept.
        drop: Probability, 0 to 1, with which each of them is.
        limit: The most orders to draw from. Where there are more, each of `choices(n, droppable, limit)` is as likely.
    """
    chance = chooser(seed, "references", epoch, step)
    if limit is not None and _count(n, len(droppable)) > limit:
        return chance.choice(choices(n, tuple(droppable), limit))

    order = sorted(range(1, n + 1), key=lambda _: chance.random())
    gone = {number for number in sorted(droppable) if chance.random() < drop}
    kept = tuple(number for number in order if number not in gone)
    if not kept:
        return tuple(order[:1])
    return kept


@dataclass(frozen=True)
class Alignment:
    """Settings by which a training draws the orders of references.

    Args:
        limit: The most orders of a sample whose texts are encoded beforehand; None when texts are encoded in the step.
        drop: Probability, 0 up to but not including 1, that a reference which may be dropped is.
    """

    limit: int | None
    drop: float = 0.2

    def __post_init__(self) -> None:
        if not 0 <= self.drop < 1:
            raise UserError(f"data.reference_drop={self.drop}: a probability, below 1")

    def order(self, seed: int, epoch: int, step: int, n: int, droppable: Sequence[int]) -> tuple[int, ...]:
        """Return the order of the n references of a global batch; () for the identity. Arguments: see `draw`."""
        if n < 2:
            return ()
        drawn = draw(seed, epoch, step, n, droppable, drop=self.drop, limit=self.limit)
        if drawn == tuple(range(1, n + 1)):
            return ()
        return drawn
