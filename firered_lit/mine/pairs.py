"""Which of the pictures that several models made for one request make a pair of a winner and a loser. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from ..errors import UserError


@dataclass(frozen=True)
class Candidate:
    """A picture that a model made for a request. reward: the mixture, None when it is missing."""

    model: str
    expert: bool  # else a model whose pictures lose
    image: str
    reward: float | None
    rewards: Mapping[str, float | None]


@dataclass(frozen=True)
class Pair:
    """A winner and a loser, and by how much the one beats the other."""

    winner: Candidate
    loser: Candidate
    gap: float


class PairRule(Protocol):
    """A rule by which candidates are paired."""

    def pairs(self, candidates: Sequence[Candidate]) -> list[Pair]:
        """The pairs of one request, the widest gap first. No picture is in two."""
        ...


@dataclass(frozen=True)
class MixPolicy:
    """Winners of expert models, losers of the base. FireRed-Image-Edit (2602.13344), section 3.6.1.

    A winner has reward >= win, a loser <= lose, and they are at least `margin` apart; at most `most` pairs a request.
    The numbers are this project's choice.
    """

    win: float = 0.7
    lose: float = 0.5
    margin: float = 0.2
    most: int = 1

    def __post_init__(self) -> None:
        _check(self, (self.win, self.lose, self.margin), self.most)

    def pairs(self, candidates: Sequence[Candidate]) -> list[Pair]:
        known = [(c, c.reward) for c in candidates if c.reward is not None]
        winners = [(c, reward) for c, reward in known if c.expert and reward >= self.win]
        losers = [(c, reward) for c, reward in known if not c.expert and reward <= self.lose]
        found = (Pair(w, x, a - b) for w, a in winners for x, b in losers)
        return _widest((pair for pair in found if pair.gap >= self.margin), self.most)


@dataclass(frozen=True)
class VisualEnhancement:
    """The better looking of two pictures that both do what was asked wins, whoever made them.

    by: the reward that tells looks, such as a judge's with the prompt `aesthetic`; the gap in it is at least `margin`,
    and the winner's at least `win`. Both have reward >= least: give `by` the weight 0, so that it has no part in that.
    At most `most` pairs a request. FireRed-Image-Edit (2602.13344), section 3.6.1; the numbers are our choice.
    """

    by: str
    least: float = 0.7
    win: float = 0.6
    margin: float = 0.2
    most: int = 1

    def __post_init__(self) -> None:
        _check(self, (self.least, self.win, self.margin), self.most)

    def pairs(self, candidates: Sequence[Candidate]) -> list[Pair]:
        if candidates and self.by not in candidates[0].rewards:
            raise UserError(f"task.rule.by={self.by}: no such reward; there are {sorted(candidates[0].rewards)}")
        good = [c for c in candidates if c.reward is not None and c.reward >= self.least]
        looks = [(c, c.rewards[self.by]) for c in good]
        known = [(c, look) for c, look in looks if look is not None]
        found = (Pair(w, x, a - b) for w, a in known for x, b in known if a >= self.win)
        return _widest((pair for pair in found if pair.gap >= self.margin), self.most)


def _widest(pairs: Iterable[Pair], most: int) -> list[Pair]:
    """The widest gaps first, each picture once; ties go by the pictures' names, whatever the order of the rows."""
    chosen: list[Pair] = []
    used: set[str] = set()
    for pair in sorted(pairs, key=lambda pair: (-pair.gap, pair.winner.image, pair.loser.image)):
        if len(chosen) < most and not used & {pair.winner.image, pair.loser.image}:
            chosen.append(pair)
            used |= {pair.winner.image, pair.loser.image}
    return chosen


def _check(rule: PairRule, shares: Sequence[float], most: int) -> None:
    if not all(0 <= share <= 1 for share in shares) or shares[-1] == 0 or most < 1:
        raise UserError(f"task.rule: {rule}: thresholds lie in [0, 1], the margin is above 0, and most is at least 1")
