"""Online alignment: the text for a drawn order of references is left to the text encoder, see `Unencoded`."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from firered_lit.batch import Unencoded
from firered_lit.models.conditioning import UNCONDITIONAL

from ..chunks.samples import Sample
from ..references.instruction import reworded
from ..sampling.captions import UNCONDITIONAL as NONE
from ..sources.images import from_png


@dataclass(frozen=True)
class Online:
    """Settings by which prompts are encoded in the step.

    Args:
        dtype: Precision of the embeddings, the same as of those that `prepare` encoded.
        condition_area: Pixels at which the text encoder sees a reference.
    """

    dtype: torch.dtype
    condition_area: int

    def reworded(self, sample: Sample, order: Sequence[int]) -> Sample:
        """Return the sample with its instructions for another order of its references. Raises UserError."""
        meta = sample.meta
        count = len(meta["references"])
        texts = reworded(meta["instructions"], order, meta.get("captions", ()), count)
        return replace(sample, meta=meta | {"instructions": texts})

    def text(self, samples: Sequence[Sample], keys: Sequence[str], order: Sequence[int]) -> Unencoded:
        """Return the texts of B samples, for the text encoder.

        Args:
            samples: Samples, read with their pictures.
            keys: Key of the text that each shows.
            order: Number, from 1, of the reference at each place.
        """
        prompts = []
        pictures = []
        for sample, key in zip(samples, keys):
            prompts.append(UNCONDITIONAL if key == NONE else sample.meta["instructions"][key])
            files = [sample.images[f"reference.{number - 1}"] for number in order]
            pictures.append(tuple(np.asarray(from_png(file)) for file in files))
        empty = torch.empty(len(samples), 0, 0, dtype=self.dtype)
        return Unencoded(empty, None, tuple(prompts), tuple(pictures), self.condition_area)
