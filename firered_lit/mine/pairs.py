"""Which of the pictures that several models made for one request make a pair of a winner and a loser. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from ..errors import UserError


@dataclass(frozen=True)
class Candidate:
    """A picture that a model made for a request."""

    model: str
    expert: bool  # else a model whose pictures lose
    image: str
    reward: float | None  # the mixture; None when it is missing
    rewards: Mapping[str, float | None]  # by name


@dataclass(frozen=True)
class PreferencePair:
    """A winner and a loser, and by how much the one beats the other."""

    winner: Candidate
    loser: Candidate
    gap: float


class PairRule(Protocol):
    """A rule by which candidates are paired."""

    def pairs(self, candidates: Sequence[Candidate]) -> list[PreferencePair]:
        """Return the pairs of one request, the widest gap first. No picture is in two."""
        ...


@dataclass(frozen=True)
class MixPolicy:
    """Winners of expert models, losers of the base. FireRed-Image-Edit (2602.13344), section 3.6.1.

    The default numbers are this project's choice.

    Args:
        win: least reward of a winner, in [0, 1].
        lose: highest reward of a loser, in [0, 1].
        margin: least difference of the two, in (0, 1].
        most: pairs of a request, at least 1.
    """

    win: float = 0.7
    lose: float = 0.5
    margin: float = 0.2
    most: int = 1

    def __post_init__(self) -> None:
        _check(self, (self.win, self.lose, self.margin), self.most)

    def pairs(self, candidates: Sequence[Candidate]) -> list[PreferencePair]:
        """Return pairs of a good expert's picture and a bad one of the base."""
        winners: list[tuple[Candidate, float]] = []
        losers: list[tuple[Candidate, float]] = []
        for candidate in candidates:
            reward = candidate.reward
            if reward is None:
                continue
            if candidate.expert and reward >= self.win:
                winners.append((candidate, reward))
            elif not candidate.expert and reward <= self.lose:
                losers.append((candidate, reward))
        return _widest(_apart(winners, losers, self.margin), self.most)


@dataclass(frozen=True)
class VisualEnhancement:
    """The better looking of two pictures that both do what was asked wins, whoever made them.

    FireRed-Image-Edit (2602.13344), section 3.6.1; the default numbers are this project's choice.

    Args:
        by: the reward that scores looks, such as a judge's with the prompt `aesthetic`. Give it the weight 0, so that
            it has no part in the mixture.
        least: least mixture of both pictures, in [0, 1].
        win: least score in `by` of the winner, in [0, 1].
        margin: least difference in `by` of the two, in (0, 1].
        most: pairs of a request, at least 1.
    """

    by: str
    least: float = 0.7
    win: float = 0.6
    margin: float = 0.2
    most: int = 1

    def __post_init__(self) -> None:
        _check(self, (self.least, self.win, self.margin), self.most)

    def pairs(self, candidates: Sequence[Candidate]) -> list[PreferencePair]:
        """Return pairs of two pictures that do what was asked, the better looking one first."""
        if candidates and self.by not in candidates[0].rewards:
            raise UserError(f"task.rule.by={self.by}: no such reward; there are {sorted(candidates[0].rewards)}")

        looks: list[tuple[Candidate, float]] = []
        for candidate in candidates:
            if candidate.reward is None or candidate.reward < self.least:
                continue
            look = candidate.rewards[self.by]
            if look is not None:
                looks.append((candidate, look))
        winners = [(candidate, look) for candidate, look in looks if look >= self.win]
        return _widest(_apart(winners, looks, self.margin), self.most)


Scored = Sequence[tuple[Candidate, float]]  # candidates and their scores


def _apart(winners: Scored, losers: Scored, margin: float) -> list[PreferencePair]:
    """Return every pair of a winner and a loser whose scores are at least `margin` apart."""
    pairs = []
    for winner, high in winners:
        for loser, low in losers:
            if high - low >= margin:
                pairs.append(PreferencePair(winner, loser, high - low))
    return pairs


def _widest(pairs: Sequence[PreferencePair], most: int) -> list[PreferencePair]:
    """Return the pairs with the widest gaps, each picture once.

    Ties go by the pictures' names, whatever the order of the rows.
    """
    chosen: list[PreferencePair] = []
    used: set[str] = set()
    for pair in sorted(pairs, key=lambda pair: (-pair.gap, pair.winner.image, pair.loser.image)):
        if len(chosen) == most:
            break
        images = {pair.winner.image, pair.loser.image}
        if used.isdisjoint(images):
            chosen.append(pair)
            used |= images
    return chosen


def _check(rule: PairRule, shares: Sequence[float], most: int) -> None:
    """Raise UserError unless every share lies in [0, 1], the margin (the last) is above 0, and most at least 1."""
    if not all(0 <= share <= 1 for share in shares) or shares[-1] == 0 or most < 1:
        raise UserError(f"task.rule: {rule}: thresholds lie in [0, 1], the margin is above 0, and most is at least 1")
