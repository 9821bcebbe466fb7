"""A row's images, opened, checked and cropped once: what VAE, vision-language model, regions and mask all see."""

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product

from PIL import Image

from firered_lit.models.sizes import Shape, Sizes

from . import images, masks
from .records import Record, Refusal, named_images
from .refusals import Refuse, guarded
from .regions import Region, check_inside, through


@dataclass(frozen=True)
class Cropped:
    """A record with its crops. `shape`, (height, width), is the target's, or what a prompt without one asks for."""

    record: Record
    held_out: bool
    crops: dict[str, Image.Image]  # "reference.0", ..., "target" and, of a pair, "loser"
    shape: Shape
    regions: list[Region]  # in the pixels of the target's crop; of a prompt, of its first source's
    mask: Image.Image | None  # on the target's crop, one bit a pixel
    pictures: dict[str, bytes]  # the crops as PNG files, where they are kept
    order: tuple[int, ...] = ()  # which of the record's own references stands at each place, see `canonical`

    @property
    def references(self) -> list[Image.Image]:
        return [crop for name, crop in self.crops.items() if name.startswith("reference.")]


@dataclass(frozen=True)
class Opening:
    """How rows are opened. held_out: decides over a row. keep_images: else only held-out edits keep their pictures."""

    sizes: Sizes
    held_out: Callable[[list[Record]], bool]
    keep_images: bool = True
    max_pixels: int = images.MAX_PIXELS
    allow_urls: bool = False

    def __call__(self, row: list[Record] | Refusal) -> list[Cropped] | Refusal:
        """A row's records with their crops, or why it cannot be used. Records of one row share crops."""
        if isinstance(row, Refusal):
            return row
        return guarded(partial(self._cropped, row), row[0].where)

    def _cropped(self, row: list[Record]) -> list[Cropped]:
        """Return a row's records with their crops."""
        loaded = self.load(row)
        held_out = self.held_out(row)
        crops: dict[tuple[str, Shape], Image.Image] = {}
        return [self.crop(record, loaded, held_out, crops) for record in row]

    def load(self, row: Sequence[Record]) -> dict[str, Image.Image]:
        """The images of a row's records by path, each opened once; two that ought to differ do."""
        found: dict[str, Image.Image] = {}
        for record in row:
            for field, path in named_images(record):
                if path not in found:
                    found[path] = self._open(path, field)
            _differ(record, found)
        first = row[0]
        if first.mask in found:
            raise Refuse(first.columns.mask, "bad mask", f"{first.mask} is one of the edit's pictures")
        return found | ({first.mask: self._open(first.mask, first.columns.mask, mask=True)} if first.mask else {})

    def _open(self, path: str, field: str, mask: bool = False) -> Image.Image:
        with images.refusing_field(field):
            return images.load(path, max_pixels=self.max_pixels, allow_urls=self.allow_urls, mask=mask)

    def crop(
        self,
        record: Record,
        loaded: dict[str, Image.Image],
        held_out: bool,
        known: dict[tuple[str, Shape], Image.Image] | None = None,
    ) -> Cropped:
        """A record's crops, and what lies on them. known: crops that are made already, by path and shape."""
        known, crops = {} if known is None else known, {}
        for name, path, shape in self._shapes(record, loaded):
            if (path, shape) not in known:
                known[path, shape] = images.crop(loaded[path], shape)
            crops[name] = known[path, shape]
        shape = _shape(crops["target"]) if record.target else self._shape_of(record.references[0], "target", loaded)
        pictures = {name: png(crop) for name, crop in crops.items()} if self.keep_images or held_out else {}
        regions, mask = _regions(record, loaded, crops), _mask(record, loaded, crops, shape)
        return Cropped(record, held_out, crops, shape, regions, mask, pictures)

    def _shapes(self, record: Record, loaded: dict[str, Image.Image]) -> Iterator[tuple[str, str, Shape]]:
        """(name, path, shape) of every image. Winner and loser get one shape: their own, or when they differ in size
        the one that suits the source."""
        names = [f"reference.{i}" for i in range(len(record.references))]
        names += ["target"] * bool(record.target) + ["loser"] * bool(record.loser)
        leader = record.target
        if record.loser and record.references and loaded[record.loser].size != loaded[record.target].size:
            leader = record.references[0]
        for name, (field, path) in zip(names, named_images(record), strict=True):
            role = "reference" if name.startswith("reference.") else "target"
            yield name, path, self._shape_of(path, role, loaded, path if role == "reference" else leader, field)

    def _shape_of(
        self, path: str, role: str, loaded: dict[str, Image.Image], like: str = "", field: str = "image"
    ) -> Shape:
        area = getattr(self.sizes, f"{role}_area")
        try:
            return images.shape_of(loaded[path], area, self.sizes, like=loaded[like or path])
        except images.BadImageError as problem:
            raise Refuse(field, problem.reason, f"{path}: {problem.detail}") from None


def _differ(record: Record, found: dict[str, Image.Image]) -> None:
    """Refuse a record of which two images that ought to differ show the same pixels."""
    named = list(named_images(record))
    count, columns = len(record.references), record.columns
    roles = zip(("winner", "loser") if record.loser else ("target",), named[count:])
    for (role, (column, path)), (field, other) in product(roles, named[:count]):
        if _same(found[path], found[other]):
            raise Refuse(field, f"source is {role}", f"{other} and {path} ({column}) show the same pixels")
    if record.loser and _same(found[record.target], found[record.loser]):
        detail = f"{record.target} and {record.loser} show the same pixels"
        raise Refuse(columns.loser, "winner is loser", detail)


def _same(image: Image.Image, other: Image.Image) -> bool:
    return image.size == other.size and image.tobytes() == other.tobytes()


def _regions(record: Record, loaded: dict[str, Image.Image], crops: dict[str, Image.Image]) -> list[Region]:
    """The record's regions in the pixels of the crop that they lie on."""
    if not record.regions:
        return []
    path, crop = (record.target, crops["target"]) if record.target else (record.references[0], crops["reference.0"])
    image = loaded[path]
    if image.info.get("turned"):
        turned = f"{path} is turned by its EXIF tag: in which pixels is unclear; store it upright"
        raise Refuse(record.region_column, "bad region", turned)
    check_inside(record.regions, image.size, record.region_column)
    return through(record.regions, images.window(image.size, _shape(crop)), _shape(crop))


def _mask(
    record: Record, loaded: dict[str, Image.Image], crops: dict[str, Image.Image], shape: Shape
) -> Image.Image | None:
    if not record.mask:
        return None
    seen = [(loaded[record.target].size, shape)] if record.target else []
    seen += [(loaded[path].size, _shape(crops["reference.0"])) for path in record.references[:1]]
    return masks.on_crop(loaded[record.mask], seen, shape, record.columns.mask)


def _shape(image: Image.Image) -> Shape:
    return image.height, image.width


def png(image: Image.Image) -> bytes:
    """An image as a PNG file, quickly."""
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=1)
    return file.getvalue()


def from_png(file: bytes) -> Image.Image:
    """A stored crop."""
    return Image.open(io.BytesIO(file)).convert("RGB")
