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
        """NaN when none is there, as all below."""
        return math.fsum(self.given) / len(self.given) if self.given else math.nan

    @property
    def std(self) -> float:
        """Population; exactly 0 when all are equal."""
        given, mean = self.given, self.mean
        if not given or given[0] == given[-1]:
            return 0.0 if given else math.nan
        return math.sqrt(math.fsum((value - mean) ** 2 for value in given) / len(given))

    def quantile(self, q: float) -> float:
        """The q-th quantile, linear between the values."""
        given = self.given
        if not given:
            return math.nan
        place = q * (len(given) - 1)
        low = math.floor(place)
        high = min(low + 1, len(given) - 1)
        return given[low] + (place - low) * (given[high] - given[low])

    def as_line(self) -> dict[str, Any]:
        """As a manifest holds it; a statistic of no values is null."""
        if not self.given:
            return {"valid": 0, "mean": None, "std": None, "quantiles": None, "values": list(self.values)}
        quantiles = {name: self.quantile(q) for name, q in MARKS.items()}
        numbers = {"valid": len(self.given), "mean": self.mean, "std": self.std, "quantiles": quantiles}
        return numbers | {"values": list(self.values)}

    @staticmethod
    def of_line(line: Mapping[str, Any]) -> "Spread":
        return Spread(tuple(line["values"]))


@dataclass(frozen=True)
class Band:
    """Which instructions are semi-hard: solved often enough, failed often enough, and apart enough to tell why.

    Kept are those with mean >= least_mean, the `quantile`-th quantile <= most_low and std >= least_std, of at least
    least_valid rewards. FireRed-Image-Edit (2602.13344), section 3.6.2; the numbers are this project's choice.
    """

    least_mean: float = 0.3
    most_low: float = 0.6
    least_std: float = 0.05
    quantile: float = 0.25
    least_valid: int = 2

    def __post_init__(self) -> None:
        shares = (self.least_mean, self.most_low, self.quantile)
        if not all(0 <= share <= 1 for share in shares) or self.least_std < 0 or self.least_valid < 2:
            raise UserError(
                f"band: {self}: least_mean, most_low and quantile lie in [0, 1], least_std is at least 0, "
                "least_valid at least 2"
            )

    def verdict(self, spread: Spread) -> str:
        """Why an instruction is left out: "too few rewards", "too hard", "too easy", "too alike"; "" keeps it."""
        if len(spread.given) < self.least_valid:
            return "too few rewards"
        if spread.mean < self.least_mean:
            return "too hard"
        if spread.quantile(self.quantile) > self.most_low:
            return "too easy"
        return "too alike" if spread.std < self.least_std else ""
