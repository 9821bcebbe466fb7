"""Edits through the frozen models, several at a time: latents of equal shapes together, prompts of several samples."""

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import torch
from PIL import Image
from torch import Tensor

from firered_lit.errors import UserError
from firered_lit.models.codec import to_pixels
from firered_lit.models.conditioning import UNCONDITIONAL
from firered_lit.models.family import Base

from . import masks
from .canonical import canonical
from .chunks import Sample, packed
from .crops import Cropped, from_png
from .faces import Faces
from .instruction import choices, droppable_references, keeps_order, reworded
from .reading import Reader, layout_of
from .records import Record
from .refusals import Refusal, ends_the_work, guarded

__all__ = ["DTYPES", "Encoder", "from_png"]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
VL_PATCH = 28 * 28  # pixels of a reference that are one token of the vision-language model

Order = tuple[int, ...]  # of the references, counted from 1; () for their own
Texts = dict[str, Tensor]  # "text.<kind>/<language>" -> (T, D)
Instructions = Mapping[str, str]  # "<kind>/<language>" -> text
T = TypeVar("T")


class Encoder:
    """The frozen VAE and text encoder of a base. Latents and embeddings are kept in the precision they run in.

    orders: in how many orders of its references a sample's texts are encoded, at most. batch: images of one shape, and
    samples with all their prompts, that go through a model at a time. faces: finds regions where a record names none.
    aligned: training draws orders of the references, whether their texts are encoded here or then. reader: reads where
    the words of a target stand.
    """

    def __init__(
        self,
        base: Base,
        dtype: str,
        device: str,
        orders: int = 1,
        batch: int = 1,
        faces: Faces | None = None,
        aligned: bool = False,
        reader: Reader | None = None,
    ) -> None:
        self.aligned = aligned or orders > 1
        self.faces, self.reader = faces, reader
        self.sizes, self.dtype, self.orders, self.batch = base.sizes, DTYPES[dtype], orders, batch
        self.codec = base.codec(device, self.dtype)
        self.conditioner = base.conditioner(device, self.dtype)

    def encode(self, some: Sequence[Cropped]) -> list[Sample | Refusal]:
        """Return records as they are stored, in their order, or why one cannot be.

        Held-out samples are for validation, which shows references as they are. What a sample becomes depends on the
        others beside it by rounding alone.
        """
        try:
            return self._together(some)
        except Exception as problem:  # of one of them; each alone says which
            if ends_the_work(problem):
                raise
            return [guarded(partial(self._alone, cropped), cropped.record.where) for cropped in some]

    def _alone(self, cropped: Cropped) -> Sample | Refusal:
        """Return one record as it is stored, or why it cannot be."""
        (found,) = self._together([cropped])
        return found

    def _together(self, some: Sequence[Cropped]) -> list[Sample | Refusal]:
        """Return records as they are stored, or why a record's texts cannot be encoded. Raises whatever else fails."""
        some = [self._placed(self._with_faces(cropped)) for cropped in some]
        prompts = [self._prompts(cropped) for cropped in some]
        latents = self._latents(some)
        texts = self._texts(some, prompts)
        return [
            found if isinstance(found, Refusal) else self._sample(cropped, latents, asked, found)
            for cropped, asked, found in zip(some, prompts, texts, strict=True)
        ]

    def _sample(
        self,
        cropped: Cropped,
        latents: dict[int, Tensor],
        prompts: dict[Order, Instructions],
        texts: dict[Order, Texts],
    ) -> Sample:
        record = cropped.record
        tensors = {name: latents[id(crop)] for name, crop in cropped.crops.items()} | texts[()]
        if cropped.mask is not None:
            tensors[masks.KEY] = masks.packed(cropped.mask)
        named = {",".join(map(str, order)): order for order in prompts if order}
        changed = {name: prompts[order] for name, order in named.items() if prompts[order] != record.instructions}
        meta = self._meta(cropped) | ({"reindexed": changed} if changed else {})
        orders = {name: texts[order] for name, order in named.items()}
        return packed(Sample(record.id, meta, tensors, cropped.pictures, orders))

    def _with_faces(self, cropped: Cropped) -> Cropped:
        if self.faces is None or cropped.record.regions:
            return cropped
        return replace(cropped, regions=self.faces(cropped.crops["target" if cropped.record.target else "reference.0"]))

    def _placed(self, cropped: Cropped) -> Cropped:
        return canonical(cropped) if self.aligned and not cropped.held_out else cropped

    def _meta(self, cropped: Cropped) -> dict[str, Any]:
        record = cropped.record
        meta: dict[str, Any] = {
            "task": record.task,
            "instructions": record.instructions,
            "target": list(cropped.shape),
            "references": [[crop.height, crop.width] for crop in cropped.references],
            "pair": bool(record.loser),
            "row": record.where.rpartition("/")[2],
            "cluster": record.cluster,
            "target_text": record.target_text,
            "held_out": cropped.held_out,
            "droppable": self._droppable(record, cropped.held_out, cropped.order),
        }
        meta |= {"fixed": True} if self._fixed(record, cropped.held_out) else {}
        meta |= {name: text for name in ("replaced_text", "requirement") if (text := getattr(record, name))}
        meta |= {"order": cropped.order} if cropped.order else {}
        meta |= {"captions": record.captions} if self.aligned and any(record.captions) else {}
        if self.reader and (layout := layout_of(cropped, self.reader)):
            meta |= {"text_layout": layout}
        if record.regions or cropped.regions:
            meta |= {"regions": cropped.regions, "left_crop": max(0, len(record.regions) - len(cropped.regions))}
        return meta

    def _latents(self, some: Sequence[Cropped]) -> dict[int, Tensor]:
        """(16, H/8, W/8) by `id` of every crop: the posterior's mode, as inference takes it. A crop is encoded once."""
        alike: dict[tuple[int, int], dict[int, Image.Image]] = defaultdict(dict)
        for cropped in some:
            for crop in cropped.crops.values():
                alike[crop.size][id(crop)] = crop
        found: dict[int, Tensor] = {}
        for group in alike.values():
            for part in _parts(list(group.items()), self.batch):
                latents = self.codec.encode(torch.stack([to_pixels(crop) for _, crop in part]))
                found |= {key: z.to(self.dtype).cpu().contiguous() for (key, _), z in zip(part, latents, strict=True)}
        return found

    def _prompts(self, cropped: Cropped) -> dict[Order, Instructions]:
        """The instructions by order of the references: their own first, then all that training may draw."""
        record = cropped.record
        own: dict[Order, Instructions] = {(): record.instructions}
        if cropped.held_out or self._fixed(record, False):
            return own
        return own | _reindexed(record, self._droppable(record, False, cropped.order), self.orders)

    def _texts(
        self, some: Sequence[Cropped], prompts: Sequence[dict[Order, Instructions]]
    ) -> list[dict[Order, Texts] | Refusal]:
        """Embeddings of every sample by order of its references, or why a sample's texts cannot be encoded."""
        found: list[dict[Order, Texts] | Refusal] = [{} for _ in some]
        asked = [(i, order) for i, orders in enumerate(prompts) for order in orders]
        for part in _parts(asked, self.batch):
            try:
                texts = self._encoded([(prompts[i][order], _ordered(some[i], order)) for i, order in part])
            except UserError:  # of one of them; each alone says which
                texts = [self._texts_alone(some[i], prompts[i][order], order) for i, order in part]
            for (i, order), own in zip(part, texts, strict=True):
                if isinstance(before := found[i], dict):
                    found[i] = own if isinstance(own, Refusal) else before | {order: own}
        return found

    def _texts_alone(self, cropped: Cropped, instructions: Instructions, order: Order) -> Texts | Refusal:
        try:
            return self._encoded([(instructions, _ordered(cropped, order))])[0]
        except UserError as problem:
            return Refusal(cropped.record.where, "instruction", "unusable prompt", str(problem))

    def _encoded(self, asked: Sequence[tuple[Instructions, list[Image.Image]]]) -> list[Texts]:
        """(T, D) of every instruction and of the unconditional text, each with its sample's references; in one call."""
        prompts = [{**instructions, "unconditional": UNCONDITIONAL} for instructions, _ in asked]
        shown = [references for (_, references), own in zip(asked, prompts) for _ in own]
        texts = [text for own in prompts for text in own.values()]
        rows = iter(self.conditioner.encode(texts, shown, self.sizes.condition_area))
        return [{f"text.{key}": next(rows).to(self.dtype).cpu().clone() for key in own} for own in prompts]

    def _fixed(self, record: Record, held_out: bool) -> bool:
        """Return whether training shows the references in the order in which they are stored, and no other."""
        if not self.aligned or held_out:
            return False
        return keeps_order(record.instructions.values(), len(record.references))

    def _droppable(self, record: Record, held_out: bool, order: Order = ()) -> Order:
        """Return the places of the references that may be dropped; `order` tells which reference stands at each."""
        if not self.aligned or held_out:
            return ()
        prompts = list(record.instructions.values())
        edited = order.index(1) + 1 if order else 1
        return droppable_references(prompts, len(record.references), record.captions, edited)

    def estimate(self, records: Sequence[Record], keep_images: bool = True) -> float:
        """Bytes that these records will take, roughly: crops at full area, a token for three characters."""
        width, item = self.conditioner.width, self.dtype.itemsize
        total = 0.0
        for record in records:
            area = self.sizes.target_area * (bool(record.target) + bool(record.loser))
            area += len(record.references) * self.sizes.reference_area
            own = tuple(range(1, len(record.references) + 1))
            tokens = 0.0
            orders = [own]
            if not self._fixed(record, False):
                orders += _reindexed(record, self._droppable(record, False), self.orders)
            for order in orders:
                seen = len(order) * self.sizes.condition_area / VL_PATCH
                tokens += sum(seen + 30 + len(text) / 3 for text in (*record.instructions.values(), UNCONDITIONAL))
            total += area * 16 / 64 * item + tokens * width * item + (2.0 * area if keep_images else 0)
            total += len(json.dumps(record.instructions))
        return total


def _reindexed(record: Record, drop: tuple[int, ...], limit: int) -> dict[tuple[int, ...], dict[str, str]]:
    """The instructions for every order of the references that training may draw, but for the identity."""
    n = len(record.references)
    return {order: reworded(record.instructions, order, record.captions, n) for order in choices(n, drop, limit)[1:]}


def _ordered(cropped: Cropped, order: Order) -> list[Image.Image]:
    references = cropped.references
    return [references[i - 1] for i in order] if order else references


def _parts(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    return (items[start : start + size] for start in range(0, len(items), size))
