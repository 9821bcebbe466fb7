"""Prepared preference pairs for DPO: `PreferenceDataModule`."""

from firered_lit.errors import UserError
from firered_lit.models.family import Base

from .edits import EditDataModule


class PreferenceDataModule(EditDataModule):
    """Pairs of a winner and a loser that `prepare` encoded, batched by bucket as edits are; yields `PreferenceBatch`.

    Its arguments are those of `EditDataModule`; `capacity` counts both sides of a pair, each with its references.
    """

    sides = 2
    usual_text_drop = 0.0  # a preference is about an instruction

    def check(self, base: Base) -> None:
        """Raise UserError when the data was encoded by other models than the base's, or not all samples are pairs."""
        super().check(base)
        samples = self.summary["samples"]
        pairs = self.summary.get("pairs", 0)
        if pairs < samples:
            raise UserError(f"{self.root}: {samples - pairs} of {samples} samples have no loser; DPO needs pairs alone")
