"""One edit through the frozen models: crops, latents, embeddings."""

import io
import json
from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from firered_lit.errors import UserError
from firered_lit.models.codec import to_pixels
from firered_lit.models.conditioning import UNCONDITIONAL
from firered_lit.models.family import Base

from . import images, masks
from .chunks import Sample
from .instruction import choices, droppable_references, reindex
from .records import Record, Refusal, named_images
from .refusals import Refuse
from .regions import Region, check_inside, through

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
VL_PATCH = 28 * 28  # pixels of a reference that are one token of the vision-language model


class Unfit(Exception):  # noqa: N818, it carries a refusal, it is no fault
    """A row that cannot be encoded; its argument is the Refusal."""

    @property
    def refusal(self) -> Refusal:
        return self.args[0]


def load(row: Sequence[Record], max_pixels: int, allow_urls: bool) -> dict[str, Image.Image]:
    """The images of a row's records by path, each opened once. Raises Unfit, also when two that
    ought to differ show the same pixels."""
    edit, found = row[0], {}
    named = list(named_images(edit))
    for field, path in named:
        try:
            found[path] = images.load(path, max_pixels=max_pixels, allow_urls=allow_urls)
        except images.BadImageError as problem:
            raise Unfit(Refusal(edit.where, field, problem.reason, problem.detail)) from None
    count = len(edit.references)
    for role, (column, path) in zip(("winner", "loser") if edit.loser else ("target",), named[count:]):
        for field, other in named[:count]:
            if _same(found[path], found[other]):
                detail = f"{other} and {path} ({column}) show the same pixels"
                raise Unfit(Refusal(edit.where, field, f"source is {role}", detail))
    if edit.loser and _same(found[edit.target], found[edit.loser]):
        detail = f"{edit.target} and {edit.loser} show the same pixels"
        raise Unfit(Refusal(edit.where, edit.columns.loser, "winner is loser", detail))
    return found | _mask(edit, found, max_pixels, allow_urls)


def _mask(edit: Record, found: dict[str, Image.Image], max_pixels: int, allow_urls: bool) -> dict[str, Image.Image]:
    """The mask of an edit by its path, when it has one."""
    column, path = edit.columns.mask, edit.mask
    if not path:
        return {}
    if path in found:
        raise Unfit(Refusal(edit.where, column, "bad mask", f"{path} is one of the edit's pictures"))
    try:
        return {path: images.load(path, max_pixels=max_pixels, allow_urls=allow_urls, mask=True)}
    except images.BadImageError as problem:
        raise Unfit(Refusal(edit.where, column, problem.reason, problem.detail)) from None


def _same(image: Image.Image, other: Image.Image) -> bool:
    return image.size == other.size and image.tobytes() == other.tobytes()


class Encoder:
    """The frozen VAE and text encoder of a base. Latents and embeddings are kept in the precision they run in.

    orders: in how many orders of its references a sample's texts are encoded, at most.
    """

    def __init__(self, base: Base, dtype: str, device: str, keep_images: bool, orders: int = 1) -> None:
        self.sizes, self.keep_images, self.dtype, self.orders = base.sizes, keep_images, DTYPES[dtype], orders
        self.codec = base.codec(device, self.dtype)
        self.conditioner = base.conditioner(device, self.dtype)

    def encode(self, record: Record, loaded: dict[str, Image.Image], held_out: bool) -> Sample:
        """A record as it is stored: every image cropped once, seen by the VAE and by the vision-language model.

        Held-out samples keep their crops for validation, which shows references as they are. Raises Unfit.
        """
        crops = self._crops(record, loaded)
        references = [crop for name, crop in crops.items() if name.startswith("reference.")]
        regions, mask = self._marks(record, loaded, crops)
        texts = self._texts(record.where, record.instructions, references)
        tensors = {name: self._latents(crop) for name, crop in crops.items()} | texts | mask
        drop = self._droppable(record) if not held_out else ()
        prompts = {} if held_out else _reindexed(record, drop, self.orders)
        orders = {
            ",".join(map(str, order)): self._texts(record.where, texts, [references[i - 1] for i in order])
            for order, texts in prompts.items()
        }
        meta = {
            "task": record.task,
            "instructions": record.instructions,
            "target": _shape(crops["target"]),
            "references": [_shape(crop) for crop in references],
            "pair": bool(record.loser),
            "row": record.where.rpartition("/")[2],
            "cluster": record.cluster,
            "target_text": record.target_text,
            "held_out": held_out,
            "droppable": drop,
        }
        changed = {name: texts for name, texts in zip(orders, prompts.values()) if texts != record.instructions}
        meta |= {"reindexed": changed} if changed else {}
        meta |= {"replaced_text": record.replaced_text} if record.replaced_text else {}
        meta |= {"requirement": record.requirement} if record.requirement else {}
        meta |= {"regions": regions, "left_crop": len(record.regions) - len(regions)} if record.regions else {}
        kept = self.keep_images or held_out
        pictures = {name: _png(crop) for name, crop in crops.items()} if kept else {}
        return Sample(record.id, meta, tensors, pictures, orders)

    def _crops(self, record: Record, loaded: dict[str, Image.Image]) -> dict[str, Image.Image]:
        """`target`, `reference.0`, ..., and of a pair `loser`. Winner and loser get one shape: their own, or when they
        differ in size the one that suits the source."""
        names = [*(f"reference.{i}" for i in range(len(record.references))), "target", "loser"]
        leader, crops = record.target, {}
        if record.loser and record.references and loaded[record.loser].size != loaded[record.target].size:
            leader = record.references[0]
        for name, (field, path) in zip(names, named_images(record)):
            role = "reference" if name.startswith("reference.") else "target"
            area, like = getattr(self.sizes, f"{role}_area"), path if role == "reference" else leader
            try:
                crops[name] = images.fit(loaded[path], area, self.sizes, like=loaded[like])
            except images.BadImageError as problem:
                raise Unfit(Refusal(record.where, field, problem.reason, f"{path}: {problem.detail}")) from None
        return crops

    def _marks(
        self, record: Record, loaded: dict[str, Image.Image], crops: dict[str, Image.Image]
    ) -> tuple[list[Region], dict[str, Tensor]]:
        """The regions in the pixels of the target's crop, and the mask on it. Raises Unfit."""
        target, crop = loaded[record.target], crops["target"]
        shape, regions, mask = (crop.height, crop.width), list(record.regions), {}
        try:
            if regions:
                if target.info.get("turned"):
                    turned = f"{record.target} is turned by its EXIF tag: in which pixels is unclear; store it upright"
                    raise Refuse(record.region_column, "bad region", turned)
                check_inside(regions, target.size, record.region_column)
                regions = through(regions, images.window(target.size, shape), shape)
            if record.mask:
                seen = [(target.size, shape)]
                seen += (
                    [(loaded[record.references[0]].size, tuple(_shape(crops["reference.0"])))]
                    if record.references
                    else []
                )
                mask[masks.KEY] = masks.packed(masks.on_crop(loaded[record.mask], seen, shape, record.columns.mask))
        except Refuse as problem:
            raise Unfit(Refusal(record.where, *problem.args)) from None
        return regions, mask

    def _latents(self, crop: Image.Image) -> Tensor:
        """(16, H/8, W/8): the posterior's mode, as inference takes it."""
        return self.codec.encode(to_pixels(crop)[None])[0].to(self.dtype).cpu().contiguous()

    def _droppable(self, record: Record) -> tuple[int, ...]:
        if self.orders < 2:
            return ()
        return droppable_references(record.instructions.values(), len(record.references), record.captions)

    def _texts(self, where: str, instructions: dict[str, str], references: list[Image.Image]) -> dict[str, Tensor]:
        """(T, D) of every instruction, and of the unconditional text, each with the same references."""
        prompts = {**instructions, "unconditional": UNCONDITIONAL}
        try:
            rows = self.conditioner.encode(
                list(prompts.values()), [references] * len(prompts), self.sizes.condition_area
            )
        except UserError as problem:
            raise Unfit(Refusal(where, "instruction", "unusable prompt", str(problem))) from None
        return {f"text.{key}": row.to(self.dtype).cpu().clone() for key, row in zip(prompts, rows, strict=True)}

    def estimate(self, records: Sequence[Record]) -> float:
        """Bytes that these records will take, roughly: crops at full area, a token for three characters."""
        width, item = self.conditioner.encoder.config.get_text_config().hidden_size, self.dtype.itemsize
        total = 0.0
        for record in records:
            area = self.sizes.target_area * (2 if record.loser else 1)
            area += len(record.references) * self.sizes.reference_area
            own = tuple(range(1, len(record.references) + 1))
            tokens = 0.0
            for order in (own, *_reindexed(record, self._droppable(record), self.orders)):
                seen = len(order) * self.sizes.condition_area / VL_PATCH
                tokens += sum(seen + 30 + len(text) / 3 for text in (*record.instructions.values(), UNCONDITIONAL))
            total += area * 16 / 64 * item + tokens * width * item + (2.0 * area if self.keep_images else 0)
            total += len(json.dumps(record.instructions))
        return total


def _reindexed(record: Record, drop: tuple[int, ...], limit: int) -> dict[tuple[int, ...], dict[str, str]]:
    """The instructions for every order of the references that training may draw, but for the identity."""
    n = len(record.references)
    return {
        order: {key: reindex(text, order, record.captions, n=n) for key, text in record.instructions.items()}
        for order in choices(n, drop, limit)[1:]
    }


def _shape(image: Image.Image) -> list[int]:
    return [image.height, image.width]


def _png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=1)
    return file.getvalue()


def from_png(file: bytes) -> Image.Image:
    """A stored crop."""
    return Image.open(io.BytesIO(file)).convert("RGB")
