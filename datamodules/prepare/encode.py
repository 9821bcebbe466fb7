"""Encoding of edits by the frozen models, several at a time: crops of one shape, prompts of several samples."""

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from PIL import Image
from torch import Tensor

from firered_lit.errors import UserError
from firered_lit.facts import to_meta
from firered_lit.models.codec import to_pixels
from firered_lit.models.conditioning import UNCONDITIONAL
from firered_lit.models.family import Base
from firered_lit.process.devices import chosen_device

from ..chunks.samples import DTYPES, Sample, packed
from ..references.instruction import choices, droppable_references, keeps_order, reworded
from ..sources import masks
from ..sources.records import Record
from ..sources.refusals import Refusal, ends_the_work, guarded
from .canonical import canonical
from .crops import Cropped
from .faces import Faces
from .reading import ReadsLayouts, layout_of

if TYPE_CHECKING:
    from firered_lit.models.codec import Codec
    from firered_lit.models.conditioning import Conditioner
    from firered_lit.models.patches import PatchCodec
    from firered_lit.models.words import WordConditioner

VL_PATCH = 28 * 28  # pixels of a reference that are one token of the vision-language model

# Keys of a sample's `meta`, in the order in which they are stored: equal rows make equal bytes in every version.
STORED = (
    "task",
    "instructions",
    "target",
    "references",
    "pair",
    "row",
    "cluster",
    "target_text",
    "held_out",
    "droppable",
    "fixed",
    "replaced_text",
    "requirement",
    "order",
    "captions",
    "text_layout",
    "regions",
    "left_crop",
)

Order = tuple[int, ...]  # number, from 1, of the reference at each place; () for their own order
Texts = dict[str, Tensor]  # "text.<kind>/<language>" -> (T, D)
Instructions = Mapping[str, str]  # "<kind>/<language>" -> text
T = TypeVar("T")


class Encoder:
    """The frozen VAE and text encoder of a base. Latents and embeddings are stored in the precision they run in.

    Models are loaded with the first edit; until then an encoder can be sent to another process.

    Args:
        base: The base model.
        dtype: "float32", "bfloat16" or "float16".
        device: Device of the models; "auto" takes a GPU that is free, see `firered_lit.process.devices`.
        orders: The most orders of a sample's references for which its texts are encoded.
        batch: Crops of one shape, and samples with all their prompts, that go through a model at a time.
        faces: Finds regions of a record that names none.
        aligned: Training draws orders of the references, whether their texts are encoded here or in the step.
        reader: Reads the layout of a target's words.
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
        reader: ReadsLayouts | None = None,
    ) -> None:
        self.aligned = aligned or orders > 1
        self.faces = faces
        self.reader = reader
        self.sizes = base.sizes
        self.dtype = DTYPES[dtype]
        self.orders = orders
        self.batch = batch
        self._base = base
        self._device = device
        self._models: tuple[Codec | PatchCodec, Conditioner | WordConditioner] | None = None

    def open(self) -> None:
        """Load the models, if they are not loaded yet.

        Raises:
            UserError: They are damaged, or not to be had.
        """
        if self._models is None:
            device = chosen_device(self._device)
            codec = self._base.codec(device, self.dtype)
            self._models = (codec, self._base.conditioner(device, self.dtype))

    @property
    def codec(self) -> "Codec | PatchCodec":
        """The VAE."""
        self.open()
        assert self._models is not None  # noqa: S101, it is open
        return self._models[0]

    @property
    def conditioner(self) -> "Conditioner | WordConditioner":
        """The text encoder."""
        self.open()
        assert self._models is not None  # noqa: S101, it is open
        return self._models[1]

    def encode(self, some: Sequence[Cropped]) -> list[Sample | Refusal]:
        """Return records as they are stored, in their order, or the refusal of one that cannot be.

        Held-out samples are for validation, which shows references as they are. The samples that are encoded together
        change each other by rounding alone.
        """
        self.open()
        try:
            return self._together(some)
        except Exception as problem:  # of one of them; each alone says which
            if ends_the_work(problem):
                raise
            return [guarded(partial(self._alone, cropped), cropped.record.where) for cropped in some]

    def _alone(self, cropped: Cropped) -> Sample | Refusal:
        """Return one record as it is stored, or its refusal."""
        (outcome,) = self._together([cropped])
        return outcome

    def _together(self, some: Sequence[Cropped]) -> list[Sample | Refusal]:
        """Return records as they are stored, or the refusal of one whose texts cannot be encoded.

        Raises:
            Exception: Anything else that fails.
        """
        some = [self._placed(self._with_faces(cropped)) for cropped in some]
        prompts = [self._prompts(cropped) for cropped in some]
        latents = self._latents(some)
        texts = self._texts(some, prompts)
        outcomes: list[Sample | Refusal] = []
        for cropped, by_order, embeddings in zip(some, prompts, texts, strict=True):
            if isinstance(embeddings, Refusal):
                outcomes.append(embeddings)
            else:
                outcomes.append(self._sample(cropped, latents, by_order, embeddings))
        return outcomes

    def _sample(
        self,
        cropped: Cropped,
        latents: dict[int, Tensor],
        prompts: dict[Order, Instructions],
        texts: dict[Order, Texts],
    ) -> Sample:
        """Return one record as it is stored.

        Args:
            cropped: The record with its crops.
            latents: (16, H/8, W/8) by `id` of a crop.
            prompts: Instructions by order of the references.
            texts: Embeddings by order of the references.
        """
        record = cropped.record
        tensors = {name: latents[id(crop)] for name, crop in cropped.crops.items()}
        tensors |= texts[()]
        if cropped.mask is not None:
            tensors[masks.KEY] = masks.packed(cropped.mask)

        # The texts of other orders: embeddings, and instructions where they differ.
        orders: dict[str, Texts] = {}
        reindexed: dict[str, Instructions] = {}
        for order, instructions in prompts.items():
            if not order:
                continue
            name = ",".join(str(number) for number in order)
            orders[name] = texts[order]
            if instructions != record.instructions:
                reindexed[name] = instructions
        meta = self._meta(cropped)
        if reindexed:
            meta["reindexed"] = reindexed
        return packed(Sample(record.id, meta, tensors, cropped.pictures, orders))

    def _with_faces(self, cropped: Cropped) -> Cropped:
        """Return an edit with the faces of its target, or of a prompt's first source, where its row has no regions."""
        if self.faces is None or cropped.record.regions:
            return cropped
        name = "target" if cropped.record.target else "reference.0"
        return replace(cropped, regions=self.faces(cropped.crops[name]))

    def _placed(self, cropped: Cropped) -> Cropped:
        """Return an edit with its references in the order in which they are stored."""
        if self.aligned and not cropped.held_out:
            return canonical(cropped)
        return cropped

    def _meta(self, cropped: Cropped) -> dict[str, Any]:
        """Return what is stored of a sample beside its tensors, as JSON holds it."""
        record = cropped.record
        layout = layout_of(cropped, self.reader) if self.reader else None
        facts = replace(record.facts(), layout=layout, order=cropped.order)
        meta: dict[str, Any] = {
            **to_meta(facts),
            "instructions": record.instructions,
            "target": list(cropped.shape),
            "references": [[crop.height, crop.width] for crop in cropped.references],
            "pair": bool(record.loser),
            "row": record.where.rpartition("/")[2],
            "held_out": cropped.held_out,
            "droppable": self._droppable(record, cropped.held_out, cropped.order),
        }

        # What few samples have.
        if self._fixed(record, cropped.held_out):
            meta["fixed"] = True
        if self.aligned and any(record.captions):
            meta["captions"] = record.captions
        if record.regions or cropped.regions:
            meta["regions"] = cropped.regions
            meta["left_crop"] = max(0, len(record.regions) - len(cropped.regions))
        return {key: meta[key] for key in sorted(meta, key=STORED.index)}

    def _latents(self, some: Sequence[Cropped]) -> dict[int, Tensor]:
        """Return (16, H/8, W/8) by `id` of every crop: the posterior's mode, as inference takes it.

        A crop that several records share is encoded once.
        """
        by_size: dict[tuple[int, int], dict[int, Image.Image]] = defaultdict(dict)
        for cropped in some:
            for crop in cropped.crops.values():
                by_size[crop.size][id(crop)] = crop

        latents: dict[int, Tensor] = {}
        for crops in by_size.values():
            for batch in _batches(list(crops.values()), self.batch):
                encoded = self.codec.encode(torch.stack([to_pixels(crop) for crop in batch]))
                for crop, latent in zip(batch, encoded, strict=True):
                    latents[id(crop)] = latent.to(self.dtype).cpu().contiguous()
        return latents

    def _prompts(self, cropped: Cropped) -> dict[Order, Instructions]:
        """Return the instructions by order of the references: their own first, then all that training may draw."""
        record = cropped.record
        prompts: dict[Order, Instructions] = {(): record.instructions}
        if not cropped.held_out and not self._fixed(record, False):
            droppable = self._droppable(record, False, cropped.order)
            prompts |= _reindexed(record, droppable, self.orders)
        return prompts

    def _texts(
        self, some: Sequence[Cropped], prompts: Sequence[dict[Order, Instructions]]
    ) -> list[dict[Order, Texts] | Refusal]:
        """Return the embeddings of every sample by order of its references, or the refusal of its texts.

        Args:
            some: The samples.
            prompts: Instructions of each by order of its references.
        """
        embeddings: list[dict[Order, Texts]] = [{} for _ in some]
        refusals: dict[int, Refusal] = {}  # the first of a sample
        tasks = [(i, order) for i, orders in enumerate(prompts) for order in orders]
        for batch in _batches(tasks, self.batch):
            texts: list[Texts] | list[Texts | Refusal]
            try:
                texts = self._encoded([(prompts[i][order], _ordered(some[i], order)) for i, order in batch])
            except UserError:  # of one of them; each alone says which
                texts = [self._texts_alone(some[i], prompts[i][order], order) for i, order in batch]
            for (i, order), outcome in zip(batch, texts, strict=True):
                if isinstance(outcome, Refusal):
                    refusals.setdefault(i, outcome)
                else:
                    embeddings[i][order] = outcome
        return [refusals.get(i, by_order) for i, by_order in enumerate(embeddings)]

    def _texts_alone(self, cropped: Cropped, instructions: Instructions, order: Order) -> Texts | Refusal:
        """Return the embeddings of one sample's texts for an order of its references, or its refusal."""
        try:
            return self._encoded([(instructions, _ordered(cropped, order))])[0]
        except UserError as problem:
            return Refusal(cropped.record.where, "instruction", "unusable prompt", str(problem))

    def _encoded(self, asked: Sequence[tuple[Instructions, list[Image.Image]]]) -> list[Texts]:
        """Return (T, D) of every instruction and of the unconditional text, in one call of the text encoder.

        Args:
            asked: Instructions of each sample, and the references that they are shown with.
        """
        keys: list[tuple[int, str]] = []
        texts: list[str] = []
        shown: list[list[Image.Image]] = []
        for i, (instructions, references) in enumerate(asked):
            for key, text in {**instructions, "unconditional": UNCONDITIONAL}.items():
                keys.append((i, key))
                texts.append(text)
                shown.append(references)

        encoded = self.conditioner.encode(texts, shown, self.sizes.condition_area)
        embeddings: list[Texts] = [{} for _ in asked]
        for (i, key), embedding in zip(keys, encoded):
            embeddings[i][f"text.{key}"] = embedding.to(self.dtype).cpu().clone()
        return embeddings

    def _fixed(self, record: Record, held_out: bool) -> bool:
        """Return whether training shows the references in the order in which they are stored, and no other."""
        if not self.aligned or held_out:
            return False
        return keeps_order(record.instructions.values(), len(record.references))

    def _droppable(self, record: Record, held_out: bool, order: Order = ()) -> Order:
        """Return the places, from 1, of the references that may be dropped.

        Args:
            record: A record with its references in the order in which they are stored.
            held_out: Kept for validation, where none is dropped.
            order: Number of the row's reference at each place; () for the row's own order.
        """
        if not self.aligned or held_out:
            return ()
        prompts = list(record.instructions.values())
        edited = order.index(1) + 1 if order else 1
        return droppable_references(prompts, len(record.references), record.captions, edited)

    def estimate(self, records: Sequence[Record], keep_images: bool = True) -> float:
        """Return the bytes that records will take, roughly: crops at full area, a token for three characters."""
        item = self.dtype.itemsize
        total = 0.0
        for record in records:
            # Latents, and the crops as PNG files.
            area = len(record.references) * self.sizes.reference_area
            if record.target:
                area += self.sizes.target_area
            if record.loser:
                area += self.sizes.target_area
            total += area * 16 / 64 * item
            if keep_images:
                total += 2.0 * area

            # Embeddings, for every order.
            texts = [*record.instructions.values(), UNCONDITIONAL]
            orders = [tuple(range(1, len(record.references) + 1))]
            if not self._fixed(record, False):
                orders += _reindexed(record, self._droppable(record, False), self.orders)
            for order in orders:
                seen = len(order) * self.sizes.condition_area / VL_PATCH
                tokens = sum(seen + 30 + len(text) / 3 for text in texts)
                total += tokens * self._base.width * item
            total += len(json.dumps(record.instructions))
        return total


def _reindexed(record: Record, droppable: Order, limit: int) -> dict[Order, dict[str, str]]:
    """Return the instructions for every order of the references that training may draw, but for the identity."""
    n = len(record.references)
    instructions = {}
    for order in choices(n, droppable, limit)[1:]:
        instructions[order] = reworded(record.instructions, order, record.captions, n)
    return instructions


def _ordered(cropped: Cropped, order: Order) -> list[Image.Image]:
    """Return the references' crops in an order."""
    references = cropped.references
    if not order:
        return references
    return [references[number - 1] for number in order]


def _batches(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Return the items, at most `size` at a time."""
    return (items[start : start + size] for start in range(0, len(items), size))
