"""The spread of one instruction's rewards, and the band that decides if it is worth learning from. Pure."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import UserError

MARKS = {"p10": 0.1, "p25": 0.25, "p50": 0.5, "p75": 0.75, "p90": 0.9}


@dataclass(frozen=True)
class Spread:
    """The rewards of one instruction's edits. Missing ones are None in `values` and count for nothing else."""

    values: tuple[float | None, ...]

    @property
    def given(self) -> list[float]:
        return sorted(value for value in self.values if value is not None)

    @property
    def mean(self) -> float:
        """The mean; NaN when no reward is there, as all below."""
        given = self.given
        if not given:
            return math.nan
        return math.fsum(given) / len(given)

    @property
    def std(self) -> float:
        """The standard deviation of the population; exactly 0 when all are equal."""
        given = self.given
        if not given:
            return math.nan
        if given[0] == given[-1]:
            return 0.0
        mean = self.mean
        return math.sqrt(math.fsum((value - mean) ** 2 for value in given) / len(given))

    def quantile(self, q: float) -> float:
        """Return the q-th quantile, q in [0, 1], linear between the values."""
        given = self.given
        if not given:
            return math.nan
        place = q * (len(given) - 1)
        low = math.floor(place)
        high = min(low + 1, len(given) - 1)
        return given[low] + (place - low) * (given[high] - given[low])

    def as_line(self) -> dict[str, Any]:
        """Return the spread as a manifest holds it; a statistic of no values is null."""
        has_any = bool(self.given)
        return {
            "valid": len(self.given),
            "mean": self.mean if has_any else None,
            "std": self.std if has_any else None,
            "quantiles": {name: self.quantile(q) for name, q in MARKS.items()} if has_any else None,
            "values": list(self.values),
        }

    @staticmethod
    def of_line(line: Mapping[str, Any]) -> "Spread":
        return Spread(tuple(line["values"]))


@dataclass(frozen=True)
class Band:
    """The choice of semi-hard instructions: solved often enough, failed often enough, and with edits that differ.

    Kept are those with mean >= least_mean, the `quantile`-th quantile <= most_low and std >= least_std, of at least
    least_valid rewards. FireRed-Image-Edit (2602.13344), section 3.6.2; the numbers are this project's choice.

    Attributes:
        least_mean: The least mean reward of an instruction's edits.
        most_low: The most that the `quantile`-th quantile of its rewards may be.
        least_std: The least standard deviation of its rewards.
        quantile: Which quantile counts as the low end.
        least_valid: How many edits must have a reward.
    """

    least_mean: float = 0.3
    most_low: float = 0.6
    least_std: float = 0.05
    quantile: float = 0.25
    least_valid: int = 2

    def __post_init__(self) -> None:
        shares = (self.least_mean, self.most_low, self.quantile)
        are_shares = all(0 <= share <= 1 for share in shares)
        if not are_shares or self.least_std < 0 or self.least_valid < 2:
            raise UserError(
                f"band: {self}: least_mean, most_low and quantile lie in [0, 1], least_std is at least 0, "
                "least_valid at least 2"
            )

    def verdict(self, spread: Spread) -> str:
        """Return why an instruction is left out: "too few rewards", "too hard", "too easy", "too alike", or ""."""
        if len(spread.given) < self.least_valid:
            return "too few rewards"
        if spread.mean < self.least_mean:
            return "too hard"
        if spread.quantile(self.quantile) > self.most_low:
            return "too easy"
        if spread.std < self.least_std:
            return "too alike"
        return ""
