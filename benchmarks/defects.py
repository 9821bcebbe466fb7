"""Recall and false alarms of the curation rules on real photographs with planted defects.

    python benchmarks/defects.py [--rules RECIPE] [--photos DIR] [--count 20] [--clean 200] [--keep DIR]

Crops of photographs (the three that the dependencies bring, and those in DIR) are saved as JPEG: some as they are, and
`count` of each defect. Then `curate` runs with the recipe's annotators and rules, and the table says for each rule how
many of its defects it found, and how many clean crops it dropped.
"""

import argparse
import contextlib
import io
import random
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

FONT = Path(__file__).with_name("fonts") / "WenQuanYiMicroHei.subset.ttf"
Pixels = NDArray[np.uint8]  # (H, W, 3)
Plant = Callable[[Pixels, random.Random], Any]  # pixels, or a whole file, with the defect
ENDINGS = (".jpg", ".jpeg", ".png", ".webp")
QUALITY = (80, 95)  # of the JPEG that a crop is saved as
LARGEST = 1024  # px of a crop's side


def photographs(folder: str | None = None) -> list[Pixels]:
    """Return the photographs that the dependencies bring, and those of a folder, as RGB arrays."""
    import matplotlib
    import sklearn

    samples = Path(sklearn.__file__).parent / "datasets" / "images"
    paths = [samples / "china.jpg", samples / "flower.jpg"]
    paths.append(Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg")
    if folder is not None:
        paths += sorted(path for path in Path(folder).rglob("*") if path.suffix.lower() in ENDINGS)
    return [np.asarray(Image.open(path).convert("RGB")) for path in paths]


def crop(photo: Pixels, rng: random.Random) -> Pixels:
    """Return a crop (side, side, 3) of at least half of a photograph's shorter side, of at most 1024 px."""
    height, width = photo.shape[:2]
    side = rng.randint(min(height, width) // 2, min(height, width))
    top, left = rng.randint(0, height - side), rng.randint(0, width - side)
    cut = photo[top : top + side, left : left + side]
    target = min(side, rng.choice([384, 512, 768, LARGEST]))
    if target == side:
        return cut.copy()
    return np.asarray(cv2.resize(cut, (target, target), interpolation=cv2.INTER_AREA), np.uint8)


def dark(pixels: Pixels, rng: random.Random) -> Pixels:
    return (pixels * rng.uniform(0.03, 0.12)).astype(np.uint8)


def light(pixels: Pixels, rng: random.Random) -> Pixels:
    return (255 - (255 - pixels.astype(np.float32)) * rng.uniform(0.02, 0.12)).astype(np.uint8)


def flat(pixels: Pixels, rng: random.Random) -> Pixels:
    """Return a picture of one colour with a little light from a side."""
    side = len(pixels)
    slope = np.linspace(0, rng.uniform(0, 6), side)[None, :, None]
    colour = np.array([rng.randint(30, 225) for _ in range(3)])
    return np.broadcast_to(colour + slope, (side, side, 3)).astype(np.uint8)


def grey(pixels: Pixels, rng: random.Random) -> Pixels:
    return np.repeat(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)[:, :, None], 3, axis=2)


def blurred(pixels: Pixels, rng: random.Random) -> Pixels:
    return np.asarray(cv2.GaussianBlur(pixels, (0, 0), rng.uniform(0.008, 0.02) * len(pixels)), np.uint8)


def noisy(pixels: Pixels, rng: random.Random) -> Pixels:
    noise = np.random.default_rng(rng.randrange(1 << 30)).normal(0, rng.uniform(15, 40), pixels.shape)
    return (pixels + noise).clip(0, 255).astype(np.uint8)


def over_compressed(pixels: Pixels, rng: random.Random) -> Pixels:
    """Return a picture saved at a quality of 4 to 12, and saved again, better, so that its file does not show it."""
    return np.asarray(Image.open(io.BytesIO(encoded(pixels, rng.randint(4, 12)))).convert("RGB"))


def code(kind: str, smallest: int, largest: int) -> Plant:
    def plant(pixels: Pixels, rng: random.Random) -> Pixels:
        import zxingcpp

        text = str(rng.randrange(10**11, 10**12)) if kind == "EAN13" else f"https://example.org/{rng.randrange(10**6)}"
        made = zxingcpp.create_barcode(text, getattr(zxingcpp.BarcodeFormat, kind))
        image = np.asarray(made.to_image(scale=8))
        side = min(rng.randint(smallest, largest), len(pixels) - 8)
        height = side if kind == "QRCode" else max(40, side // 2)
        image = cv2.resize(image, (side, height), interpolation=cv2.INTER_AREA)
        return put(pixels, np.repeat(image[:, :, None], 3, axis=2), rng)

    return plant


def put(pixels: Pixels, patch: Pixels, rng: random.Random) -> Pixels:
    top = rng.randint(0, len(pixels) - len(patch))
    left = rng.randint(0, pixels.shape[1] - patch.shape[1])
    pixels[top : top + len(patch), left : left + patch.shape[1]] = patch
    return pixels


def mosaic(pixels: Pixels, rng: random.Random) -> Pixels:
    """Return a picture with at least six squares of 8 to 24 px a side, over the place of five with most detail."""
    side, cell = len(pixels), rng.randint(8, 24)
    size = min(max(int(side * rng.uniform(0.25, 0.5)) // cell, 6) * cell, side // cell * cell)
    places = [(rng.randint(0, side - size), rng.randint(0, side - size)) for _ in range(5)]
    steps = np.abs(np.diff(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY).astype(int), axis=1))
    top, left = max(places, key=lambda place: steps[place[0] : place[0] + size, place[1] : place[1] + size].mean())
    part = pixels[top : top + size, left : left + size]
    small = cv2.resize(part, (size // cell, size // cell), interpolation=cv2.INTER_AREA)
    pixels[top : top + size, left : left + size] = cv2.resize(small, (size, size), interpolation=cv2.INTER_NEAREST)
    return pixels


def border(pixels: Pixels, rng: random.Random) -> Pixels:
    """Return a picture with a frame, or bars above and below or left and right, of one colour."""
    side = len(pixels)
    thick = int(side * rng.uniform(0.03, 0.12))
    colour = rng.choice([(0, 0, 0), (255, 255, 255), tuple(rng.randrange(256) for _ in range(3))])
    sides = rng.choice(["frame", "letterbox", "pillars"])
    if sides in ("frame", "letterbox"):
        pixels[:thick] = pixels[side - thick :] = colour
    if sides in ("frame", "pillars"):
        pixels[:, :thick] = pixels[:, side - thick :] = colour
    return pixels


def text_overlay(pixels: Pixels, rng: random.Random) -> Pixels:
    """Return a picture with one to three lines of letters."""
    image = Image.fromarray(pixels)
    draw = ImageDraw.Draw(image)
    side = len(pixels)
    height = max(16, int(side * rng.uniform(0.06, 0.12)))
    font = ImageFont.truetype(str(FONT), height)
    words = ["SALE TODAY", "www.example.org", "BEST PRICE", "Copyright 2024", "NEW ARRIVAL", "Photo by Me"]
    top = rng.randint(0, side // 2)
    for number in range(rng.randint(1, 3)):
        place = (rng.randint(4, side // 4), top + int(1.4 * height * number))
        draw.text(place, rng.choice(words), font=font, fill=rng.choice(["white", "black", "yellow", "red"]))
    return np.asarray(image).copy()


def collage(others: Sequence[Pixels]) -> Plant:
    """Return the crop beside another one, or four of them, with or without a gap."""

    def plant(pixels: Pixels, rng: random.Random) -> Pixels:
        side = len(pixels)
        gap = rng.choice([0, 0, 4, 8])
        colour = rng.choice([255, 0])
        half = (side - gap) // 2
        parts = [cv2.resize(crop(rng.choice(others), rng), (side, side)) for _ in range(3)]
        canvas = np.full_like(pixels, colour)
        layout = rng.choice(["beside", "above", "four"])
        if layout == "beside":
            canvas[:, :half], canvas[:, side - half :] = pixels[:, :half], parts[0][:, :half]
        elif layout == "above":
            canvas[:half], canvas[side - half :] = pixels[:half], parts[0][:half]
        else:
            small = [cv2.resize(part, (half, half), interpolation=cv2.INTER_AREA) for part in (pixels, *parts)]
            canvas[:half, :half], canvas[:half, side - half :] = small[0], small[1]
            canvas[side - half :, :half], canvas[side - half :, side - half :] = small[2], small[3]
        return canvas

    return plant


def encoded(pixels: Pixels, quality: int, **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality, **options)
    return file.getvalue()


def turned(pixels: Pixels, rng: random.Random) -> bytes:
    """Return the file of a picture that its EXIF tag turns."""
    exif = Image.Exif()
    exif[0x0112] = rng.choice([3, 6, 8])
    return encoded(pixels, 90, exif=exif)


def generated(pixels: Pixels, rng: random.Random) -> bytes:
    """Return the file of a picture that says by one of several marks that a program has made it."""
    way = rng.choice(["parameters", "workflow", "software", "comment", "xmp"])
    file = io.BytesIO()
    if way in ("parameters", "workflow"):
        info = PngImagePlugin.PngInfo()
        settings = "a cat\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1, Size: 512x512"
        nodes = '{"3": {"class_type": "KSampler", "inputs": {}}}'
        info.add_text(way, settings if way == "parameters" else nodes)
        Image.fromarray(pixels).save(file, "PNG", pnginfo=info)
        return file.getvalue()
    if way == "xmp":
        kind = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
        return encoded(pixels, 90, xmp=f"<x:xmpmeta><Iptc4xmpExt:DigitalSourceType>{kind}</x:xmpmeta>".encode())
    exif = Image.Exif()
    exif[0x0131 if way == "software" else 0x010E] = rng.choice(["Midjourney v6", "Stable Diffusion XL", "ComfyUI"])
    return encoded(pixels, 90, exif=exif)


@dataclass(frozen=True)
class Defect:
    """A kind of defect: the rule that should find it, and the function that plants it in pixels, or as a whole file."""

    rule: str
    plant: Plant
    least_recall: float = 0.95
    most_alarms: float = 0.02


def defects(photos: Sequence[Pixels]) -> dict[str, Defect]:
    """Return all kinds of defects by name."""
    return {
        "dark": Defect("dark", dark),
        "light": Defect("light", light),
        "flat": Defect("flat", flat),
        "grey": Defect("grey", grey),
        "blurred": Defect("blurred", blurred),
        "noisy": Defect("noisy", noisy),
        "over-compressed": Defect("over_compressed", over_compressed),
        "QR code": Defect("codes", code("QRCode", 96, 200)),
        "bar code": Defect("codes", code("EAN13", 150, 300)),
        "mosaic": Defect("mosaic", mosaic),
        "border": Defect("border", border),
        "text overlay": Defect("text", text_overlay, 0.9, 0.05),
        "collage": Defect("collage", collage(photos), 0.9, 0.05),
        "EXIF turn": Defect("turned", turned),
        "generated": Defect("generated", generated),
    }


def write(
    folder: Path, photos: Sequence[Pixels], count: int, clean: int, seed: int = 0, only: Sequence[str] = ()
) -> Iterator[tuple[str, str]]:
    """Write crops and yield (name, kind), "clean" first; the photographs take turns."""
    kinds = {name: defect for name, defect in defects(photos).items() if not only or name in only}
    for kind in ("clean", *kinds):
        for number in range(clean if kind == "clean" else count):
            rng = random.Random(f"{seed} {kind} {number}")
            pixels = crop(photos[number % len(photos)], rng)
            planted = pixels
            if kind != "clean":
                planted = kinds[kind].plant(pixels, rng)
            file = planted if isinstance(planted, bytes) else encoded(planted, rng.randint(*QUALITY))
            ending = ".png" if file.startswith(b"\x89PNG") else ".jpg"
            name = f"{kind.replace(' ', '_')}-{number:04d}{ending}"
            (folder / name).write_bytes(file)
            yield name, kind


@dataclass(frozen=True)
class Detection:
    """Recall and false alarms of the rule of a kind of defect."""

    kind: str
    defect: Defect
    recall: float  # share of the planted defects that the rule would drop
    alarms: float  # share of the clean crops that it would drop
    first: str  # the reason that most of the planted defects have


def measure(
    recipe: str,
    photos: Sequence[Pixels],
    count: int,
    clean: int,
    only: Sequence[str] = (),
    keep: str | None = None,
    seed: int = 0,
) -> tuple[list[Detection], float]:
    """Plant defects, curate, and return what each kind's rule found, with the share of clean crops that are kept."""
    from datamodules.sources.raw import RawRows
    from firered_lit.config.build import build
    from firered_lit.config.recipe import load
    from firered_lit.curation.run import curate

    read = load(recipe).root
    annotators = build(read["annotators"], key="annotators")
    turned_rule = {"column": "file.orientation", "above": 1}  # turned pictures are read upright: no recipe drops them
    with tempfile.TemporaryDirectory() as place:
        folder = Path(keep or place) / "raw"
        folder.mkdir(parents=True, exist_ok=True)
        kinds = dict(write(folder, photos, count, clean, seed, only))
        rows: Any = RawRows(str(folder))
        matched = {}
        for name, rule in {**read["rules"], "turned": turned_rule}.items():
            out = str(folder.parent / "out")
            steps: Any = ["annotate", "fit", "select"]
            curate(str(folder), out, rows, annotators, rules={name: rule}, steps=steps, workers=0)
            matched[name] = {row["id"] for row in decided(out) if row["reason"] == name}
        first = {row["id"]: row["reason"] or "kept" for row in ordered(matched, kinds)}
        cleans = [name for name, kind in kinds.items() if kind == "clean"]
        found = []
        for kind, defect in defects(photos).items():
            planted = [name for name, own in kinds.items() if own == kind]
            if planted and defect.rule in matched:
                recall = sum(name in matched[defect.rule] for name in planted) / len(planted)
                alarms = sum(name in matched[defect.rule] for name in cleans) / max(1, len(cleans))
                reasons = [first[name] for name in planted]
                found.append(Detection(kind, defect, recall, alarms, max(set(reasons), key=reasons.count)))
        kept = sum(first[name] == "kept" for name in cleans) / max(1, len(cleans))
    return found, kept


def unchanged(pixels: Pixels, rng: random.Random) -> bytes:
    """Return a picture that was saved again, or scaled and saved: nothing is edited."""
    if rng.random() < 0.5:
        return encoded(pixels, rng.randint(60, 95))
    side = round(len(pixels) * rng.uniform(0.8, 0.99))
    small: Any = cv2.resize(pixels, (side, side), interpolation=cv2.INTER_AREA)
    if rng.random() < 0.5:
        small = cv2.resize(small, (len(pixels), len(pixels)), interpolation=cv2.INTER_CUBIC)
    return encoded(small, rng.randint(75, 95))


def local_edit(pixels: Pixels, rng: random.Random, size: int = 32) -> bytes:
    """Return a picture with an object of 32 px added, recoloured or moved there, saved again."""
    edited = pixels.copy()
    top, left = rng.randint(0, len(pixels) - size), rng.randint(0, len(pixels) - size)
    part = edited[top : top + size, left : left + size]
    way = rng.choice(["disc", "inverted", "from elsewhere"])
    if way == "disc":
        colour = [int(value) ^ 128 for value in part.mean((0, 1))]
        cv2.circle(edited, (left + size // 2, top + size // 2), size // 2, colour, -1)
    elif way == "inverted":
        edited[top : top + size, left : left + size] = 255 - part
    else:
        places = [(rng.randint(0, len(pixels) - size), rng.randint(0, len(pixels) - size)) for _ in range(20)]
        others = [pixels[y : y + size, x : x + size] for y, x in places]
        edited[top : top + size, left : left + size] = max(
            others, key=lambda other: np.abs(other.mean((0, 1)) - part.mean((0, 1))).sum()
        )
    return encoded(edited, rng.randint(80, 95))


def pair_measures(photos: Sequence[Pixels], count: int, seed: int = 0) -> list[tuple[str, float, float]]:
    """Return (kind, largest block, SSIM) of pairs of which the target is unchanged, and of pairs with a local edit."""
    from firered_lit.curation.pairs import PairMeasures
    from firered_lit.curation.rows import Picture, PicturePair

    found = []
    for kind, edit in (("unchanged", unchanged), ("edited", local_edit)):
        for number in range(count):
            rng = random.Random(f"{seed} {kind} {number}")
            files = [encoded(source := crop(photos[number % len(photos)], rng), rng.randint(85, 95))]
            files.append(edit(source, rng))
            pictures = [Picture(np.asarray(Image.open(io.BytesIO(file)).convert("RGB"))) for file in files]
            values = PairMeasures().annotate([PicturePair(*pictures)])
            found.append((kind, values["largest_block"][0], values["ssim"][0]))
    return found


def settled(recipe: str, photos: Sequence[Pixels], count: int, seed: int = 0) -> dict[str, tuple[int, int]]:
    """Return the numbers of good crops and of defective copies beside them that are kept.

    Near duplicates are settled after the rules, as `select` does it, and before them.
    """
    from datamodules.sources.raw import RawRows
    from firered_lit.config.build import build
    from firered_lit.config.recipe import load
    from firered_lit.curation.run import curate

    read = load(recipe).root
    annotators = build(read["annotators"], key="annotators")
    near = build(read["duplicates"], key="duplicates")
    ways = (dark, grey, blurred, noisy, over_compressed)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "raw"
        folder.mkdir()
        for number in range(count):
            rng = random.Random(f"{seed} copies {number}")
            pixels = crop(photos[number % len(photos)], rng)
            quality = rng.randint(*QUALITY)
            (folder / f"{number:04d}-good.jpg").write_bytes(encoded(pixels, quality))
            (folder / f"{number:04d}-worse.jpg").write_bytes(encoded(ways[number % len(ways)](pixels, rng), quality))
        rows: Any = RawRows(str(folder))

        def kept(rules: Any, duplicates: Any) -> set[str]:
            steps: Any = ["annotate", "fit", "select"]
            out = str(Path(place) / "out")
            curate(str(folder), out, rows, annotators, rules, duplicates, steps=steps, workers=0)
            return {row["id"] for row in decided(out) if row["kept"]}

        after = kept(read["rules"], near)
        before = kept({}, near) & kept(read["rules"], None)
    counts = {}
    for name, some in (("after", after), ("before", before)):
        good = sum(row.endswith("-good.jpg") for row in some)
        counts[name] = (good, len(some) - good)
    return counts


def decided(out: str) -> list[dict[str, Any]]:
    import pyarrow.parquet as pq

    return pq.read_table(Path(out) / "decisions.parquet").to_pylist()


def ordered(matched: dict[str, set[str]], names: Iterable[str]) -> Iterator[dict[str, Any]]:
    """Return the first rule that drops each row, as `select` has it."""
    for name in names:
        reason = next((rule for rule, rows in matched.items() if name in rows), None)
        yield {"id": name, "reason": reason}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rules", default="recipes/curate/laptop_text.yaml", metavar="RECIPE")
    parser.add_argument("--photos", metavar="DIR", help="photographs beside those of the dependencies")
    parser.add_argument("--count", type=int, default=20, help="of each kind (default: 20)")
    parser.add_argument("--clean", type=int, default=200, help="clean crops (default: 200)")
    parser.add_argument("--seed", type=int, default=0, help="of the crops and the defects (default: 0)")
    parser.add_argument("--keep", metavar="DIR", help="keep crops and scores there")
    arguments = parser.parse_args()
    photos = photographs(arguments.photos)
    with contextlib.redirect_stdout(io.StringIO()):
        found, kept = measure(
            arguments.rules, photos, arguments.count, arguments.clean, (), arguments.keep, arguments.seed
        )
    print(f"{len(photos)} photographs, {arguments.clean} clean crops, {arguments.count} of each kind")
    print("| defect | rule | recall % | false alarms % | asked for |")
    print("|---|---|---|---|---|")
    for one in found:
        asked = f"{100 * one.defect.least_recall:.0f} / {100 * one.defect.most_alarms:.0f}"
        print(f"| {one.kind} | {one.defect.rule} | {100 * one.recall:.0f} | {100 * one.alarms:.1f} | {asked} |")
    print(f"clean crops that all rules keep: {100 * kept:.1f} %")
    with contextlib.redirect_stdout(io.StringIO()):
        orders = settled(arguments.rules, photos, 5 * arguments.count, arguments.seed)
    for order, (good, worse) in orders.items():
        counted = f"{good} of {5 * arguments.count} good crops kept, {worse} defective copies"
        print(f"duplicates settled {order} the rules: {counted}")
    pairs = pair_measures(photos, arguments.clean, arguments.seed)
    dropped = [block < 35 for kind, block, _ in pairs if kind == "unchanged"]
    kept_edits = [block >= 35 for kind, block, _ in pairs if kind == "edited"]
    print(f"pairs without an edit that no_op drops: {100 * np.mean(dropped):.1f} % of {len(dropped)}")
    print(f"edits of 32 px that it keeps: {100 * np.mean(kept_edits):.1f} % of {len(kept_edits)}")


if __name__ == "__main__":
    main()
