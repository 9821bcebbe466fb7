"""Prepared preference pairs for DPO: `PreferenceDataModule`."""

from firered_lit.errors import UserError
from firered_lit.models.family import Base

from .buckets import BatchPlan, Index
from .edits import EditDataModule


class PreferenceDataModule(EditDataModule):
    """Pairs of a winner and a loser that `prepare` encoded, batched by bucket as edits are; yields `PreferenceBatch`.

    capacity counts both sides of a pair, each with its references. The rest is `EditDataModule`'s.
    """

    sides = 2

    def check(self, base: Base) -> None:
        """UserError when the data was encoded by other models than the base's, or does not hold pairs alone."""
        super().check(base)
        samples, pairs = self.summary["samples"], self.summary.get("pairs", 0)
        if pairs < samples:
            raise UserError(f"{self.root}: {samples - pairs} of {samples} samples have no loser; DPO needs pairs alone")

    def _plan(self, ranks: int) -> BatchPlan:
        buckets = Index.open(self.root / "index" / "train").buckets
        large = max(buckets, key=lambda bucket: bucket.tokens, default=None)
        if large is not None and self.sides * large.tokens > self.capacity:
            taken = f"a pair of bucket {large} has {self.sides * large.tokens} tokens, both sides counted"
            raise UserError(f"data.capacity={self.capacity}: {taken}; raise it, or prepare at smaller sizes")
        return super()._plan(ranks)
