"""Online alignment: the text of a drawn order of references is left to the text encoder, see `Unencoded`."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from firered_lit.batch import Unencoded
from firered_lit.models.conditioning import UNCONDITIONAL

from .captions import UNCONDITIONAL as NONE
from .chunks import Sample
from .crops import from_png
from .instruction import reworded


@dataclass(frozen=True)
class Online:
    """How prompts are encoded in the step. dtype: of the embeddings, as `prepare` made the others."""

    dtype: torch.dtype
    condition_area: int

    def reworded(self, sample: Sample, order: Sequence[int]) -> Sample:
        """The sample with its instructions for another order of its references. Raises UserError."""
        meta, count = sample.meta, len(sample.meta["references"])
        texts = reworded(meta["instructions"], order, meta.get("captions", ()), count)
        return replace(sample, meta=meta | {"instructions": texts})

    def text(self, samples: Sequence[Sample], keys: Sequence[str], order: Sequence[int]) -> Unencoded:
        """The texts of these keys with the references in that order. The samples were read with their pictures."""
        prompts = [UNCONDITIONAL if key == NONE else s.meta["instructions"][key] for s, key in zip(samples, keys)]
        pictures = [
            tuple(np.asarray(from_png(sample.images[f"reference.{number - 1}"])) for number in order)
            for sample in samples
        ]
        empty = torch.empty(len(samples), 0, 0, dtype=self.dtype)
        return Unencoded(empty, None, tuple(prompts), tuple(pictures), self.condition_area)
