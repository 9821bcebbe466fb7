"""A row's images, opened, checked and cropped once, for the VAE, the vision-language model, regions and masks."""

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from PIL import Image

from firered_lit.models.sizes import Shape, Sizes

from ..sources import images, masks
from ..sources.records import Record, Refusal, named_images
from ..sources.refusals import Refuse, guarded
from ..sources.regions import Region, check_inside, through


@dataclass(frozen=True)
class Cropped:
    """A record with its crops.

    Args:
        record: The record.
        held_out: Kept for validation.
        crops: By name: "reference.0", ..., "target" and, of a pair, "loser".
        shape: (height, width) of the target, or the one that a prompt without a target asks for.
        regions: Regions in the pixels of the target's crop; of a prompt, in those of its first source's.
        mask: The mask on the target's crop, one bit a pixel.
        pictures: The crops as PNG files, where they are kept.
        order: Number, from 1, of the record's reference at each place, see `datamodules.prepare.canonical`; () for
            their own.
    """

    record: Record
    held_out: bool
    crops: dict[str, Image.Image]
    shape: Shape
    regions: list[Region]
    mask: Image.Image | None
    pictures: dict[str, bytes]
    order: tuple[int, ...] = ()

    @property
    def references(self) -> list[Image.Image]:
        """The references' crops, in their order."""
        return [crop for name, crop in self.crops.items() if name.startswith("reference.")]


@dataclass(frozen=True)
class Opening:
    """The opening of rows: images are read, checked and cropped.

    Args:
        sizes: Pixel areas that crops should have.
        held_out: Return whether a row is kept for validation.
        keep_images: Keep the crops of all edits; held-out edits keep theirs in any case.
        max_pixels: Pixels of an image, at most.
        allow_urls: Fetch images that are http(s) addresses.
    """

    sizes: Sizes
    held_out: Callable[[list[Record]], bool]
    keep_images: bool = True
    max_pixels: int = images.MAX_PIXELS
    allow_urls: bool = False

    def __call__(self, row: list[Record] | Refusal) -> list[Cropped] | Refusal:
        """Return a row's records with their crops, or its refusal. Records of one row share crops."""
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
        """Return the images of a row's records by path, each opened once.

        Raises:
            Refuse: An image cannot be used, or two that ought to differ show the same pixels.
        """
        loaded: dict[str, Image.Image] = {}
        for record in row:
            for field, path in named_images(record):
                if path not in loaded:
                    loaded[path] = self._open(path, field)
            _refuse_equal(record, loaded)

        # The mask, which the records of a row share.
        mask = row[0].mask
        column = row[0].columns.mask
        if mask in loaded:
            raise Refuse(column, "bad mask", f"{mask} is one of the edit's pictures")
        if mask:
            loaded[mask] = self._open(mask, column, mask=True)
        return loaded

    def _open(self, path: str, field: str, mask: bool = False) -> Image.Image:
        """Return an image; one that cannot be used refuses the row by the field that names it."""
        with images.refusing_field(field):
            return images.load(path, max_pixels=self.max_pixels, allow_urls=self.allow_urls, mask=mask)

    def crop(
        self,
        record: Record,
        loaded: dict[str, Image.Image],
        held_out: bool,
        known: dict[tuple[str, Shape], Image.Image] | None = None,
    ) -> Cropped:
        """Return a record's crops, with the regions and the mask that lie on them.

        Args:
            record: The record.
            loaded: Images by path.
            held_out: Kept for validation.
            known: Crops that are made already, by path and shape; new ones are added.
        """
        if known is None:
            known = {}
        crops: dict[str, Image.Image] = {}
        for name, path, shape in self._shapes(record, loaded):
            if (path, shape) not in known:
                known[path, shape] = images.crop(loaded[path], shape)
            crops[name] = known[path, shape]
        if record.target:
            shape = _shape(crops["target"])
        else:
            first = record.references[0]
            shape = self._shape_of(first, loaded, self.sizes.target_area, like=first, field="image")

        pictures: dict[str, bytes] = {}
        if self.keep_images or held_out:
            pictures = {name: png(crop) for name, crop in crops.items()}
        return Cropped(
            record=record,
            held_out=held_out,
            crops=crops,
            shape=shape,
            regions=_regions(record, loaded, crops),
            mask=_mask(record, loaded, crops, shape),
            pictures=pictures,
        )

    def _shapes(self, record: Record, loaded: dict[str, Image.Image]) -> Iterator[tuple[str, str, Shape]]:
        """Yield (name, path, shape) of every image.

        Winner and loser get one shape: their own, or when they differ in size the one that suits the source.
        """
        names = [f"reference.{i}" for i in range(len(record.references))]
        if record.target:
            names.append("target")
        leader = record.target
        if record.loser:
            names.append("loser")
            if record.references and loaded[record.loser].size != loaded[record.target].size:
                leader = record.references[0]

        for name, (field, path) in zip(names, named_images(record), strict=True):
            if name.startswith("reference."):
                shape = self._shape_of(path, loaded, self.sizes.reference_area, like=path, field=field)
            else:
                shape = self._shape_of(path, loaded, self.sizes.target_area, like=leader, field=field)
            yield name, path, shape

    def _shape_of(self, path: str, loaded: dict[str, Image.Image], area: int, like: str, field: str) -> Shape:
        """Return the (height, width) of an image's crop.

        Args:
            path: The image.
            loaded: Images by path.
            area: Pixels that the crop should have, about.
            like: The image whose aspect ratio the crop takes.
            field: Column to name in a refusal.
        """
        try:
            return images.shape_of(loaded[path], area, self.sizes, like=loaded[like])
        except images.BadImageError as problem:
            raise Refuse(field, problem.reason, f"{path}: {problem.detail}") from None


def _refuse_equal(record: Record, loaded: dict[str, Image.Image]) -> None:
    """Refuse a record of which two images that ought to differ show the same pixels."""
    named = list(named_images(record))
    count = len(record.references)
    sources = named[:count]
    edits = named[count:]

    # A source and an edit.
    roles = ("winner", "loser") if record.loser else ("target",)
    for role, (column, path) in zip(roles, edits):
        for field, source in sources:
            if _same(loaded[path], loaded[source]):
                raise Refuse(field, f"source is {role}", f"{source} and {path} ({column}) show the same pixels")

    # The two edits of a pair.
    if record.loser and _same(loaded[record.target], loaded[record.loser]):
        detail = f"{record.target} and {record.loser} show the same pixels"
        raise Refuse(record.columns.loser, "winner is loser", detail)


def _same(image: Image.Image, other: Image.Image) -> bool:
    """Return whether two images have the same pixels."""
    return image.size == other.size and image.tobytes() == other.tobytes()


def _regions(record: Record, loaded: dict[str, Image.Image], crops: dict[str, Image.Image]) -> list[Region]:
    """Return the record's regions in the pixels of the crop that they lie on."""
    if not record.regions:
        return []
    if record.target:
        path = record.target
        crop = crops["target"]
    else:
        path = record.references[0]
        crop = crops["reference.0"]
    image = loaded[path]
    if image.info.get("turned"):
        turned = f"{path} is turned by its EXIF tag: in which pixels is unclear; store it upright"
        raise Refuse(record.region_column, "bad region", turned)
    check_inside(record.regions, image.size, record.region_column)
    return through(record.regions, images.window(image.size, _shape(crop)), _shape(crop))


def _mask(
    record: Record, loaded: dict[str, Image.Image], crops: dict[str, Image.Image], shape: Shape
) -> Image.Image | None:
    """Return the record's mask on a crop of `shape`; None without one."""
    if not record.mask:
        return None
    views = []
    if record.target:
        views.append((loaded[record.target].size, shape))
    if record.references:
        views.append((loaded[record.references[0]].size, _shape(crops["reference.0"])))
    return masks.on_crop(loaded[record.mask], views, shape, record.columns.mask)


def _shape(image: Image.Image) -> Shape:
    """Return an image's (height, width)."""
    return image.height, image.width


def png(image: Image.Image) -> bytes:
    """Return an image as a PNG file, little compressed."""
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=1)
    return file.getvalue()
