"""The tensors that cross from data to training, and their shapes. Nothing else does."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor


class _Movable:
    """`.to()` and `.pin_memory()` over every tensor of a frozen dataclass."""

    def _map(self, move: Callable[[Any], Any]) -> Self:
        def walk(value: Any) -> Any:
            if isinstance(value, Tensor | _Movable):
                return move(value)
            return tuple(walk(v) for v in value) if isinstance(value, tuple) else value

        return replace(self, **{f.name: walk(getattr(self, f.name)) for f in fields(self)})  # type: ignore[arg-type, type-var]

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Every tensor moved as `Tensor.to` would; floating dtypes are cast only when one is given."""
        return self._map(lambda t: t.to(*args, **kwargs))

    def pin_memory(self) -> Self:
        """Every tensor in page-locked memory."""
        return self._map(lambda t: t.pin_memory())


@dataclass(frozen=True)
class Text(_Movable):
    """Prompt embeddings of one batch, right-padded."""

    embeddings: Tensor  # (B, T, D)
    mask: Tensor | None  # (B, T) bool, True = a token; None when nothing is padded (faster kernels)

    @staticmethod
    def pad(rows: list[Tensor]) -> "Text":
        """Stack embeddings (T_i, D) of different lengths into (B, max T, D) and their mask."""
        lengths = torch.tensor([len(row) for row in rows])
        embeddings = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        mask = torch.arange(embeddings.shape[1])[None] < lengths[:, None]
        return Text(embeddings, None if bool(mask.all()) else mask)


@dataclass(frozen=True)
class Unencoded(Text):
    """Prompts of one batch that the text encoder has yet to read, with the pictures that it is shown.

    `embeddings` (B, 0, 0) holds nothing but the dtype that theirs will have, so that no model takes it for a text.
    """

    prompts: tuple[str, ...] = ()
    pictures: tuple[tuple[np.ndarray, ...], ...] = ()  # (B), then (n): each reference (H_i, W_i, 3) uint8, on the host
    condition_area: int = 0  # pixels at which they are shown


@dataclass(frozen=True)
class Condition(_Movable):
    """The condition of an edit: its text and its references' clean latents, in the prompt's order."""

    text: Text
    references: tuple[Tensor, ...]  # n tensors (B, 16, h_i, w_i): one list of shapes is true for the whole batch


@dataclass(frozen=True)
class EditBatch(_Movable):
    """Samples of one bucket: all targets of one shape, reference i of every sample of one shape."""

    target: Tensor  # (B, 16, h, w) normalised latents of the edited image; zeros of that shape unless `known`
    condition: Condition
    ids: tuple[str, ...]
    step: int  # which global batch since the start of training; keys every draw
    slots: tuple[int, ...]  # (B,) each sample's place in the global batch
    num_slots: int  # samples in the global batch
    known: bool = True  # False: prompts of reinforcement learning, whose targets nobody has
    tasks: tuple[str, ...] = ()
    instructions: tuple[str, ...] = ()
    target_texts: tuple[str | None, ...] = ()  # the words that each sample's target should show, where known
    replaced_texts: tuple[str | None, ...] = ()  # words of the first source whose place those take, where known
    requirements: tuple[str | None, ...] = ()  # what a judge is told to look for, where known
    layouts: tuple[Mapping[str, Any] | None, ...] = ()  # where text stands on the reference picture, where it was read
    unconditional: Text | None = None  # validation only: the text " " with the same references
    pixels: Tensor | None = None  # validation and rollout: (B, 3, H, W) the true target, in [-1, 1]
    sources: tuple[Tensor, ...] = ()  # validation and rollout: n tensors (B, 3, H_i, W_i), in [-1, 1]
    orders: tuple[tuple[int, ...], ...] = ()  # (B), which of its record's references, counted from 1, stands at each
    # place of `references` and `sources`; () when all stand at their own
    regions: Tensor | None = None  # (B, R, P, 2) x, y of a face's 5 points or a box's 2 corners in the target's pixels,
    # NaN where a sample has fewer regions, or where a box stands beside faces
    mask: Tensor | None = None  # (B, 1, H, W) 1 where the edit may change the picture
    weight: Tensor | None = None  # validation only: (B,) 0 for samples that only fill up a rank's share
    scale: float = 1.0  # training only: weight of its loss in the gradient, its samples over the mean number of a batch

    def __post_init__(self) -> None:
        sizes = {len(self.target), len(self.ids), len(self.slots), *map(len, self.condition.references)}
        if len(sizes) != 1:
            raise ValueError(f"EditBatch: target, references, ids and slots differ in length: {sorted(sizes)}")

    def __len__(self) -> int:
        return len(self.target)

    @property
    def tokens(self) -> int:
        """Visual tokens of the whole batch: a token is a 2x2 patch of latents."""
        images = (self.target, *self.condition.references)
        return len(self) * sum(image.shape[-2] * image.shape[-1] // 4 for image in images)

    @property
    def source(self) -> Tensor | None:
        """(B, 3, H, W) the picture that is edited: the first reference of each sample's record, wherever it stands.

        None without pictures, and when it was dropped. ValueError when it stands at different places.
        """
        places = {order.index(1) if 1 in order else None for order in self.orders} or {0}
        if len(places) > 1:
            raise ValueError(f"EditBatch: the first references of the samples stand at different places: {self.orders}")
        (place,) = places
        return self.sources[place] if self.sources and place is not None else None

    def repeated(self, times: int) -> "EditBatch":
        """Every sample `times` times in a row, tensors as views where there is one sample."""

        def rows(value: Any) -> Any:
            if isinstance(value, _Movable):
                return value._map(rows)
            if isinstance(value, Tensor):
                one = len(value) == 1
                return value.expand(times, *value.shape[1:]) if one else value.repeat_interleave(times, 0)
            if isinstance(value, tuple) and any(isinstance(x, Tensor) for x in value):
                return tuple(map(rows, value))
            return tuple(x for x in value for _ in range(times)) if isinstance(value, tuple) else value

        return replace(self, **{f.name: rows(getattr(self, f.name)) for f in fields(self)})


@dataclass(frozen=True)
class PreferenceBatch(EditBatch):
    """Edits of which two outcomes are known, in one shape: the target is the winner."""

    loser: Tensor = field(kw_only=True)  # (B, 16, h, w)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.loser.shape != self.target.shape:
            raise ValueError("PreferenceBatch: winner and loser differ in shape")

    @property
    def winner(self) -> Tensor:
        """(B, 16, h, w), the target."""
        return self.target

    @property
    def tokens(self) -> int:
        """Visual tokens of both sides; each comes with its own copy of the references."""
        return 2 * super().tokens

    def both(self) -> tuple[Tensor, Condition]:
        """Winners, then losers (2B, 16, h, w), and the condition that they share, twice."""

        def twice(rows: Any) -> Any:
            return rows._map(twice) if isinstance(rows, _Movable) else torch.cat([rows, rows])

        return torch.cat([self.winner, self.loser]), twice(self.condition)


@dataclass(frozen=True)
class PromptBatch(_Movable):
    """The samples that one process edits in an iteration of reinforcement learning, one per group."""

    groups: tuple[EditBatch, ...]  # one sample each, of any shape; with pixels and sources
    step: int  # which iteration since the start of training

    def __post_init__(self) -> None:
        if not self.groups or any(len(group) != 1 for group in self.groups):
            raise ValueError("PromptBatch: every group is one sample, and there is at least one")

    def __len__(self) -> int:
        return len(self.groups)

    @property
    def ids(self) -> tuple[str, ...]:
        return tuple(name for group in self.groups for name in group.ids)

    @property
    def slots(self) -> tuple[tuple[int, int], ...]:
        """(global batch, slot) of each group."""
        return tuple((group.step, group.slots[0]) for group in self.groups)

    @property
    def tokens(self) -> int:
        """Visual tokens of one edit of every group."""
        return sum(group.tokens for group in self.groups)
