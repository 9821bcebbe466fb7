"""Stochastic instruction alignment (FireRed report, 3.2): references are permuted and dropped, the prompt follows."""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise, permutations
from math import comb, factorial

from datamodules.mentions import Mention
from datamodules.numerals import LAST, ORDINALS, spell
from datamodules.references import find, read
from firered_lit.draws import chooser
from firered_lit.errors import UserError

Captions = Sequence[str | None] | Mapping[int, str]  # of every reference, in the old order; or by its old number


def mentions(prompt: str, n: int) -> set[int]:
    """Return which of the references 1 to n the prompt names."""
    return {value for mention in find(prompt, n) for value in mention.values if value <= n}


def reindex(prompt: str, order: Sequence[int], captions: Captions | None = None, *, n: int | None = None) -> str:
    """Return the prompt for references in a new order: every mention follows its image, all at once.

    What is not understood stays as it is: ask `keeps_order` first.

    Args:
        prompt: What names references 1 to n.
        order: order[i] is the old number of the reference that now stands at place i + 1; dropped ones are absent.
        captions: What to say instead of naming a dropped reference.
        n: The number of references there were; by default the largest in `order` or with a caption.

    Raises:
        UserError: When a dropped reference is named and has no caption.
    """
    known = range(1, len(captions) + 1) if isinstance(captions, Sequence) else list(captions or ())
    if n is None:
        n = max([*order, *known], default=0)
    new = {old: place for place, old in enumerate(order, 1)}
    if len(new) != len(order) or not all(1 <= old <= n for old in order):
        raise UserError(f"order {list(order)}: each of the references 1 to {n} may stand in it once")
    if list(order) == list(range(1, n + 1)):
        return prompt
    texts = dict(enumerate(captions, 1)) if isinstance(captions, Sequence) else dict(captions or {})
    out, at = [], 0
    for mention in find(prompt, n):
        out += [prompt[at : mention.start], _rewrite(prompt, mention, new, texts, n)]
        at = mention.end
    return "".join([*out, prompt[at:]])


def reworded(
    instructions: Mapping[str, str], order: Sequence[int], captions: Sequence[Mapping[str, str]], n: int
) -> dict[str, str]:
    """Instructions, by "kind/language", for n references in a new order, see `reindex`.

    captions: of every reference by language. What has none in an instruction's own language is called by another's.
    """
    return {
        key: reindex(text, order, [_said(caption, key.partition("/")[2]) for caption in captions], n=n)
        for key, text in instructions.items()
    }


def _said(caption: Mapping[str, str], language: str) -> str | None:
    return caption.get(language) or next(iter(caption.values()), None)


def _rewrite(prompt: str, mention: Mention, new: dict[int, int], captions: Mapping[int, str | None], n: int) -> str:
    """Return a mention of references that stand at new places; those that stand nowhere are dropped."""
    moved = [new.get(value) for value in mention.values]
    for value, place in zip(mention.values, moved):
        if value <= n and place is None and not captions.get(value):
            raise UserError(f"reference {value} is dropped, but the prompt names it and it has no caption: {prompt!r}")
    dropped = any(value <= n and value not in new for value in mention.values)
    ends = list(zip(mention.values, moved))

    # "images 1-3" names the same three in any order; of others each is named by itself.
    if mention.span and not dropped:
        pair = len(mention.tokens) == 2 and len(moved) == 2
        if not pair and sorted(moved) == sorted(mention.values):
            return prompt[mention.start : mention.end]
        steps = {abs(b - a) if pair else b - a for a, b in pairwise(moved)}
        if len(mention.tokens) == 1 or steps != {1}:
            return _listed(prompt, mention, new, captions, n)
        ends = [ends[0], ends[-1]]
    if dropped:
        return _listed(prompt, mention, new, captions, n)

    # Every number in the style in which it is written.
    out, at = [], mention.start
    for (start, end), (value, place) in zip(mention.tokens, ends):
        token = prompt[start:end]
        unchanged = place is None or place == (len(new) if token.lower() in LAST else value)
        out += [prompt[at:start], token if unchanged else spell(place or value, token)]
        at = end
    return "".join([*out, prompt[at : mention.end]])


def _listed(prompt: str, mention: Mention, new: dict[int, int], captions: Mapping[int, str | None], n: int) -> str:
    """Every reference by itself: "images 1 and 2" with the second dropped is "image 1 and a red hat"."""
    token = prompt[slice(*mention.tokens[0])]
    chinese = bool(re.search(r"[\u4e00-\u9fff]", mention.head + mention.tail))
    if mention.span and len(mention.tokens) == 1:  # "the first two images": ordinals instead of a count
        token = "最后一" if chinese else "First" if token[0].isupper() else ORDINALS[0]
    head, tail = (re.sub(r"(?i)(fig|figure|image|img|picture|pic|photo|photograph|reference|ref)s\b", r"\1", text)
                  for text in (mention.head, mention.tail))  # fmt: skip
    parts = [
        captions[value] or "" if value <= n and value not in new else head + spell(new.get(value, value), token) + tail
        for value in mention.values
    ]
    last = "和" if chinese else " and "
    return last.join(filter(None, [("、" if chinese else ", ").join(parts[:-1]), parts[-1]]))


def orders(n: int, droppable: Sequence[int] = ()) -> list[tuple[int, ...]]:
    """Every order that `draw` can give: permutations of all references and of what droppings leave (n = 3: 15)."""
    kept = [set(range(1, n + 1))]
    for number in droppable:
        kept += [rest - {number} for rest in kept if len(rest) > 1]
    return [order for rest in map(sorted, kept) for order in permutations(rest)]


def keeps_order(prompts: Iterable[str], n: int) -> bool:
    """Return whether a sample's references must stay as they are.

    So it is where any of its prompts, in whatever language and caption, may name a reference in words that are not
    understood: "the former", "the left image", "put 2 on 1".

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
        captions: Of every reference, in the stored order; or by number.
        edited: The number of the picture that is edited, the record's first reference.
    """
    readings = [read(prompt, n) for prompt in prompts]
    if n < 2 or not readings:
        return ()
    if any(reading.unclear or not reading.mentions or reading.needs_all for reading in readings):
        return ()
    texts = dict(enumerate(captions, 1)) if isinstance(captions, Sequence) else dict(captions or {})
    named = [mentions(prompt, n) for prompt in prompts]
    everywhere = set.intersection(*named)
    anywhere = set.union(*named)

    def may_go(number: int) -> bool:
        if number == edited:
            return number in everywhere and bool(texts.get(number))
        return number not in anywhere or bool(texts.get(number))

    return tuple(number for number in range(1, n + 1) if may_go(number))


@cache
def choices(n: int, droppable: tuple[int, ...] = (), limit: int | None = None) -> tuple[tuple[int, ...], ...]:
    """The orders of which one is drawn, the identity first: all, or where they are more than `limit` so many of them.

    A function of its arguments alone: training draws from what `prepare` encoded.
    """
    if limit is None or _count(n, len(droppable)) <= limit:
        return tuple(sorted(orders(n, droppable), key=lambda order: (-len(order), order)))
    found, attempt = {tuple(range(1, n + 1)): None}, 0
    while len(found) < limit:
        found[draw(0, 0, attempt, n, droppable)] = None
        attempt += 1
    return tuple(found)


def _count(n: int, drops: int) -> int:
    """How many orders there are when so many of n references may be dropped."""
    return sum(comb(drops, gone) * factorial(n - gone) for gone in range(min(drops, max(0, n - 1)) + 1))


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
    """The order of the references of one global batch, for `reindex`: a permutation, less what is dropped.

    Each droppable reference (1-based) is dropped with probability `drop`; at least one reference is always kept. A
    function of (seed, epoch, step), the same for every sample and rank, because one list of shapes is true for all.
    limit: where there are more orders than that, one of `choices(n, droppable, limit)`, all alike likely.
    """
    chance = chooser(seed, "references", epoch, step)
    if limit is not None and _count(n, len(droppable)) > limit:
        return chance.choice(choices(n, tuple(droppable), limit))
    order = sorted(range(1, n + 1), key=lambda _: chance.random())
    gone = {number for number in sorted(droppable) if chance.random() < drop}
    return tuple(number for number in order if number not in gone) or tuple(order[:1])


@dataclass(frozen=True)
class Alignment:
    """How a training draws the orders of references. limit: orders that were encoded of a sample, at most, None when
    they are in the step; drop: the probability that a reference which may be dropped is."""

    limit: int | None
    drop: float = 0.2

    def __post_init__(self) -> None:
        if not 0 <= self.drop < 1:
            raise UserError(f"data.reference_drop={self.drop}: a probability, below 1")

    def order(self, seed: int, epoch: int, step: int, n: int, droppable: Sequence[int]) -> tuple[int, ...]:
        """The order of the n references of a global batch; () for the identity."""
        if n < 2:
            return ()
        drawn = draw(seed, epoch, step, n, droppable, drop=self.drop, limit=self.limit)
        return () if drawn == tuple(range(1, n + 1)) else drawn
