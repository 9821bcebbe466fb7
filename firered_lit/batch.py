"""The tensors that cross from data to training, and their shapes. Nothing else does."""

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from torch import Tensor

from .errors import UserError
from .facts import Facts

# Fields that batches of earlier versions had: a value of each sample, which is in its facts now.
MOVED = {
    "instructions": "instruction",
    "target_texts": "target_text",
    "replaced_texts": "replaced_text",
    "requirements": "requirement",
    "layouts": "layout",
    "orders": "order",
}


class _Movable:
    """`.to()` and `.pin_memory()` over every tensor of a frozen dataclass."""

    def _map(self, move: Callable[[Any], Any]) -> Self:
        """Return a copy with `move` applied to every tensor, in tuples too."""

        def walk(value: Any) -> Any:
            if isinstance(value, Tensor | _Movable):
                return move(value)
            if isinstance(value, tuple):
                return tuple(walk(item) for item in value)
            return value

        return self._with_fields(walk)

    def _with_fields(self, change: Callable[[Any], Any]) -> Self:
        """Return a copy with `change` applied to every field."""
        instance: Any = self
        changed = {field.name: change(getattr(self, field.name)) for field in fields(instance)}
        return replace(instance, **changed)

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Move every tensor as `Tensor.to` would; floating dtypes are cast only when one is given."""
        return self._map(lambda t: t.to(*args, **kwargs))

    def pin_memory(self) -> Self:
        """Copy every tensor to page-locked memory."""
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
        if bool(mask.all()):
            return Text(embeddings, None)
        return Text(embeddings, mask)


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
    """Samples of one bucket: all targets of one shape, reference i of every sample of one shape.

    What is known of sample i beside its tensors is `facts[i]`; `ids` and `tasks` are columns of them.
    """

    target: Tensor  # (B, 16, h, w) normalised latents of the edited image; zeros of that shape unless `known`
    condition: Condition
    facts: tuple[Facts, ...]  # (B,)
    step: int  # number of the global batch since the start of training; keys every draw
    slots: tuple[int, ...]  # (B,) number of each sample in the global batch
    num_slots: int  # samples in the global batch
    known: bool = True  # False: prompts of reinforcement learning, whose targets nobody has
    unconditional: Text | None = None  # validation only: the text " " with the same references
    pixels: Tensor | None = None  # validation and rollout: (B, 3, H, W) the true target, in [-1, 1]
    sources: tuple[Tensor, ...] = ()  # validation and rollout: n tensors (B, 3, H_i, W_i), in [-1, 1]
    # (B, R, P, 2) x, y of a face's 5 points or a box's 2 corners in the target's pixels, NaN where a sample has fewer
    # regions, or where a box stands beside faces.
    regions: Tensor | None = None
    mask: Tensor | None = None  # (B, 1, H, W) 1 where the edit may change the picture
    weight: Tensor | None = None  # validation only: (B,) 0 for samples that only fill up a rank's share
    scale: float = 1.0  # training only: weight of its loss in the gradient, its samples over the mean number of a batch

    def __post_init__(self) -> None:
        sizes = {len(self.target), len(self.facts), len(self.slots), *map(len, self.condition.references)}
        if len(sizes) != 1:
            raise ValueError(f"EditBatch: target, references, facts and slots differ in length: {sorted(sizes)}")

    def __len__(self) -> int:
        return len(self.target)

    if not TYPE_CHECKING:  # else a type checker would let every name pass

        def __getattr__(self, name: str) -> Any:
            """Refuse a field of an earlier version in one line that says where its values are."""
            if name in MOVED:
                here = f"[one.{MOVED[name]} for one in batch.facts]"
                raise UserError(f"batch.{name}: the facts of each sample hold it now; read {here}")
            raise AttributeError(f"{type(self).__name__} has no {name!r}")

    @property
    def ids(self) -> tuple[str, ...]:
        """The id of each sample (B,)."""
        return tuple(one.id for one in self.facts)

    @property
    def tasks(self) -> tuple[str, ...]:
        """The task of each sample (B,)."""
        return tuple(one.task for one in self.facts)

    @property
    def tokens(self) -> int:
        """Visual tokens of the whole batch: a token is a 2x2 patch of latents."""
        images = (self.target, *self.condition.references)
        return len(self) * sum(image.shape[-2] * image.shape[-1] // 4 for image in images)

    @property
    def source(self) -> Tensor | None:
        """The picture that is edited (B, 3, H, W): the first reference of each record, wherever it stands.

        None without pictures, and when it was dropped.

        Raises:
            ValueError: it stands at different places in different samples.
        """
        places: set[int | None] = set()
        for one in self.facts:
            order = one.order or (1,)  # all stand at their own
            places.add(order.index(1) if 1 in order else None)
        if len(places) > 1:
            orders = [one.order for one in self.facts]
            raise ValueError(f"EditBatch: the first references of the samples stand at different places: {orders}")

        place = places.pop() if places else 0
        if place is None or not self.sources:
            return None
        return self.sources[place]

    def repeated(self, times: int) -> "EditBatch":
        """Return every sample `times` times in a row, tensors as views where there is one sample."""

        def repeat(value: Any) -> Any:
            if isinstance(value, _Movable):
                return value._map(repeat)
            if isinstance(value, Tensor):
                if len(value) == 1:
                    return value.expand(times, *value.shape[1:])
                return value.repeat_interleave(times, 0)
            if not isinstance(value, tuple):
                return value
            if any(isinstance(item, Tensor) for item in value):
                return tuple(repeat(item) for item in value)  # tensors of references
            return tuple(item for item in value for _ in range(times))  # an item per sample

        return self._with_fields(repeat)


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
        """Return winners, then losers (2B, 16, h, w), and the condition that they share, twice."""

        def twice(rows: Any) -> Any:
            if isinstance(rows, _Movable):
                return rows._map(twice)
            return torch.cat([rows, rows])

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
        """The id of each group's sample."""
        return tuple(group.ids[0] for group in self.groups)

    @property
    def slots(self) -> tuple[tuple[int, int], ...]:
        """(global batch, slot) of each group."""
        return tuple((group.step, group.slots[0]) for group in self.groups)

    @property
    def tokens(self) -> int:
        """Visual tokens of one edit of every group."""
        return sum(group.tokens for group in self.groups)
