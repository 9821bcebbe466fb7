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

from . import images
from .chunks import Sample
from .records import SOURCE, Record, Refusal

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
VL_PATCH = 28 * 28  # pixels of a reference that are one token of the vision-language model


class Unfit(Exception):  # noqa: N818, it carries a refusal, it is no fault
    """A row that cannot be encoded; its argument is the Refusal."""

    @property
    def refusal(self) -> Refusal:
        return self.args[0]


def load(row: Sequence[Record], max_pixels: int, allow_urls: bool) -> dict[str, Image.Image]:
    """The images of a row's records by path, each opened once. Raises Unfit, also when a source is its target."""
    edit, found = row[0], {}
    named = {path: SOURCE if len(edit.references) == 1 else f"{SOURCE}[{i}]" for i, path in enumerate(edit.references)}
    for path, field in [*named.items(), (edit.target, edit.target_field)]:
        try:
            found[path] = images.load(path, max_pixels=max_pixels, allow_urls=allow_urls)
        except images.BadImageError as problem:
            raise Unfit(Refusal(edit.where, field, problem.reason, problem.detail)) from None
    target = found[edit.target]
    for path, field in named.items():
        if found[path].size == target.size and found[path].tobytes() == target.tobytes():
            detail = f"{path} and {edit.target} show the same pixels"
            raise Unfit(Refusal(edit.where, field, "source is target", detail))
    return found


class Encoder:
    """The frozen VAE and text encoder of a base. Latents and embeddings are kept in the precision they run in."""

    def __init__(self, base: Base, dtype: str, device: str, keep_images: bool) -> None:
        self.sizes, self.keep_images, self.dtype = base.sizes, keep_images, DTYPES[dtype]
        self.codec = base.codec(device, self.dtype)
        self.conditioner = base.conditioner(device, self.dtype)

    def encode(self, record: Record, loaded: dict[str, Image.Image], held_out: bool) -> Sample:
        """A record as it is stored: every image cropped once, seen by the VAE and by the vision-language model.

        Held-out samples keep their crops for validation. Raises Unfit.
        """
        crops = self._crops(record, loaded)
        references = crops[1:]
        names = ["target", *(f"reference.{i}" for i in range(len(references)))]
        tensors = {name: self._latents(crop) for name, crop in zip(names, crops, strict=True)}
        tensors |= self._texts(record, references)
        shapes = [[crop.height, crop.width] for crop in crops]
        meta = {
            "task": record.task,
            "instructions": record.instructions,
            "target": shapes[0],
            "references": shapes[1:],
            "row": record.where.rpartition("/")[2],
            "cluster": record.cluster,
            "target_text": record.target_text,
            "held_out": held_out,
        }
        kept = self.keep_images or held_out
        return Sample(record.id, meta, tensors, dict(zip(names, map(_png, crops))) if kept else {})

    def _crops(self, record: Record, loaded: dict[str, Image.Image]) -> list[Image.Image]:
        """Target first, then the references."""
        areas = [(record.target, self.sizes.target_area, record.target_field)]
        areas += [(path, self.sizes.reference_area, SOURCE) for path in record.references]
        crops = []
        for path, area, field in areas:
            try:
                crops.append(images.fit(loaded[path], area, self.sizes))
            except images.BadImageError as problem:
                detail = f"{path}: {problem.detail}"
                raise Unfit(Refusal(record.where, field, problem.reason, detail)) from None
        return crops

    def _latents(self, crop: Image.Image) -> Tensor:
        """(16, H/8, W/8): the posterior's mode, as inference takes it."""
        return self.codec.encode(to_pixels(crop)[None])[0].to(self.dtype).cpu().contiguous()

    def _texts(self, record: Record, references: list[Image.Image]) -> dict[str, Tensor]:
        """(T, D) of every instruction, and of the unconditional text, each with the same references."""
        prompts = {**record.instructions, "unconditional": UNCONDITIONAL}
        try:
            rows = self.conditioner.encode(
                list(prompts.values()), [references] * len(prompts), self.sizes.condition_area
            )
        except UserError as problem:
            raise Unfit(Refusal(record.where, "instruction", "unusable prompt", str(problem))) from None
        return {f"text.{key}": row.to(self.dtype).cpu().clone() for key, row in zip(prompts, rows, strict=True)}

    def estimate(self, records: Sequence[Record]) -> float:
        """Bytes that these records will take, roughly: crops at full area, a token for three characters."""
        width, item = self.conditioner.encoder.config.get_text_config().hidden_size, self.dtype.itemsize
        total = 0.0
        for record in records:
            area = self.sizes.target_area + len(record.references) * self.sizes.reference_area
            seen = len(record.references) * self.sizes.condition_area / VL_PATCH
            tokens = sum(seen + 30 + len(text) / 3 for text in (*record.instructions.values(), UNCONDITIONAL))
            total += area * 16 / 64 * item + tokens * width * item + (2.0 * area if self.keep_images else 0)
            total += len(json.dumps(record.instructions))
        return total


def _png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=1)
    return file.getvalue()


def from_png(file: bytes) -> Image.Image:
    """A stored crop."""
    return Image.open(io.BytesIO(file)).convert("RGB")
