"""A small world of edits with known answers: coloured shapes, and instructions whose result can be drawn exactly.

    python -m datamodules.synthetic --out DIR --count 96

writes one folder per task in the layout that `prepare` reads; with --text edits of words on a sign are among them, for
rewards that read; with --pairs one file of preference pairs, a right and a spoiled edit each. Sample i of a seed is
always the same sample.
"""

import argparse
import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

from PIL import Image, ImageDraw, ImageFont

from firered_lit.draws import chooser

COLOURS = {
    "red": ("红色", (214, 40, 40)),
    "green": ("绿色", (56, 160, 72)),
    "blue": ("蓝色", (44, 90, 200)),
    "yellow": ("黄色", (244, 208, 48)),
    "purple": ("紫色", (140, 64, 176)),
    "white": ("白色", (245, 245, 245)),
    "black": ("黑色", (24, 24, 24)),
    "orange": ("橙色", (240, 130, 30)),
}
BRIGHT = ("white", "yellow", "orange")  # what black words are read on
SHAPES = {"circle": "圆形", "square": "方块", "triangle": "三角形", "diamond": "菱形"}
WORDS = ("OPEN", "SALE 50%", "Exit 12", "Coffee", "Hello", "Menu", "2nd Floor", "Closed", "Welcome", "Lunch")
CANVASES = ((128, 128), (160, 96), (96, 160), (192, 96))  # width, height
SHARP = 4  # drawn so many times larger, then reduced: smooth edges


@dataclass(frozen=True)
class SyntheticThing:
    """A shape on the canvas; place and size in shares of the canvas's sides and of its shorter side."""

    shape: str
    colour: str
    x: float
    y: float
    size: float

    @property
    def en(self) -> str:
        return f"{self.colour} {self.shape}"

    @property
    def cn(self) -> str:
        return f"{COLOURS[self.colour][0]}{SHAPES[self.shape]}"


@dataclass(frozen=True)
class SyntheticScene:
    """A canvas (width, height), its background colour, what lies on it, and words across its middle."""

    canvas: tuple[int, int]
    background: str
    things: tuple[SyntheticThing, ...]
    words: str = ""


@dataclass(frozen=True)
class SyntheticEdit:
    """Sources to target. Without a source it is text-to-image."""

    task: str
    sources: tuple[SyntheticScene, ...]
    target: SyntheticScene
    en: str
    cn: str


def draw(scene: SyntheticScene) -> Image.Image:
    """Return the scene as an RGB image."""
    width, height = scene.canvas
    large = Image.new("RGB", (width * SHARP, height * SHARP), COLOURS[scene.background][1])
    pen = ImageDraw.Draw(large)
    for thing in scene.things:
        r = thing.size * min(large.size) / 2
        x, y = thing.x * large.width, thing.y * large.height
        fill = COLOURS[thing.colour][1]
        if thing.shape == "circle":
            pen.ellipse((x - r, y - r, x + r, y + r), fill=fill)
        elif thing.shape == "square":
            pen.rectangle((x - r, y - r, x + r, y + r), fill=fill)
        elif thing.shape == "triangle":
            pen.polygon([(x, y - r), (x + r, y + r), (x - r, y + r)], fill=fill)
        else:
            pen.polygon([(x, y - r), (x + r, y), (x, y + r), (x - r, y)], fill=fill)
    if scene.words:
        size = min(0.3 * large.height, 1.6 * large.width / len(scene.words))
        ink = COLOURS["black" if scene.background in BRIGHT else "white"][1]
        pen.text((large.width / 2, large.height / 2), scene.words, ink, ImageFont.load_default(size), anchor="mm")
    return large.resize(scene.canvas, Image.Resampling.LANCZOS)


def boxes(scene: SyntheticScene) -> list[dict[str, list[float]]]:
    """Return the box of every thing on the canvas, as the regions of a row."""
    width, height = scene.canvas
    found = []
    for thing in scene.things:
        x, y, r = thing.x * width, thing.y * height, thing.size * min(width, height) / 2
        found.append({"box": [max(0.0, x - r), max(0.0, y - r), min(width, x + r), min(height, y + r)]})
    return found


def scene(rng: Random, count: int) -> SyntheticScene:
    """Return things of different colours and shapes side by side, none in the background's colour."""
    background, *colours = rng.sample(sorted(COLOURS), count + 1)
    shapes = rng.sample(sorted(SHAPES), count)
    places = [((i + 0.5) / count, rng.uniform(0.35, 0.65)) for i in range(count)]
    things = [
        SyntheticThing(shape, colour, x, y, rng.uniform(0.3, 0.5) / max(1, count - 1))
        for shape, colour, (x, y) in zip(shapes, colours, places, strict=True)
    ]
    return SyntheticScene(rng.choice(CANVASES), background, tuple(things))


def _other_colour(rng: Random, before: SyntheticScene) -> str:
    used = {before.background, *(thing.colour for thing in before.things)}
    return rng.choice(sorted(set(COLOURS) - used))


def recolour(rng: Random) -> SyntheticEdit:
    before = scene(rng, 2)
    i, colour = rng.randrange(2), _other_colour(rng, before)
    thing, things = before.things[i], list(before.things)
    things[i] = replace(thing, colour=colour)
    en, cn = f"Make the {thing.en} {colour}", f"把{thing.cn}变成{COLOURS[colour][0]}"
    return SyntheticEdit("color", (before,), replace(before, things=tuple(things)), en, cn)


def remove(rng: Random) -> SyntheticEdit:
    before = scene(rng, 2)
    gone = before.things[rng.randrange(2)]
    after = replace(before, things=tuple(t for t in before.things if t != gone))
    return SyntheticEdit("remove", (before,), after, f"Remove the {gone.en}", f"移除{gone.cn}")


def add(rng: Random) -> SyntheticEdit:
    after = scene(rng, 2)
    new = after.things[1]
    before = replace(after, things=after.things[:1])
    return SyntheticEdit("add", (before,), after, f"Add a {new.en} on the right", f"在右边增加一个{new.cn}")


def background(rng: Random) -> SyntheticEdit:
    before = scene(rng, 2)
    colour = _other_colour(rng, before)
    en, cn = f"Change the background to {colour}", f"把背景换成{COLOURS[colour][0]}"
    return SyntheticEdit("background", (before,), replace(before, background=colour), en, cn)


def flip(rng: Random) -> SyntheticEdit:
    before = scene(rng, 2)
    after = replace(before, things=tuple(replace(t, x=1 - t.x) for t in before.things))
    return SyntheticEdit("viewpoint", (before,), after, "Flip the picture horizontally", "水平翻转图片")


def compose(rng: Random) -> SyntheticEdit:
    scenery, other = scene(rng, 1), scene(rng, 1)
    if other.things[0].colour == scenery.background:  # it would not be seen there
        other = replace(other, things=(replace(other.things[0], colour=_other_colour(rng, scenery)),))
        other = replace(other, background=_other_colour(rng, other))
    moved = replace(other.things[0], x=0.8, size=0.3)
    after = replace(scenery, things=(replace(scenery.things[0], x=0.3), moved))
    place = replace(scenery, things=after.things[:1])
    en = f"Put the {moved.en} of Picture 2 on the right of Picture 1"
    return SyntheticEdit("compose", (place, other), after, en, f"把图2中的{moved.cn}放到图1的右边")


def paint(rng: Random) -> SyntheticEdit:
    after = scene(rng, 1)
    thing, ground = after.things[0], COLOURS[after.background][0]
    return SyntheticEdit(
        "text_to_image", (), after, f"A {thing.en} on {after.background}", f"{ground}背景上的{thing.cn}"
    )


def reword(rng: Random) -> SyntheticEdit:
    before, (old, new) = scene(rng, 0), rng.sample(WORDS, 2)
    after = replace(before, words=new)
    if rng.random() < 0.25:
        return SyntheticEdit("text", (before,), after, f'Write "{new}" in the middle', f"在中间写上“{new}”")
    en, cn = f'Replace the words "{old}" with "{new}"', f"把文字“{old}”换成“{new}”"
    return SyntheticEdit("text", (replace(before, words=old),), after, en, cn)


Family = Callable[[Random], SyntheticEdit]
FAMILIES: tuple[Family, ...] = (recolour, remove, add, background, flip, compose, paint)


def edit(seed: int, number: int, families: Sequence[Family] = FAMILIES) -> SyntheticEdit:
    """Return sample `number` of the world of `seed`; the families take turns."""
    return families[number % len(families)](chooser("world", seed, number))


def spoiled(rng: Random, sample: SyntheticEdit) -> SyntheticScene:
    """Return the scene of a worse editor: the right one with another background, or a thing in another colour."""
    scene = sample.target
    used = {scene.background, *(thing.colour for thing in scene.things)}
    spoiled_scenes = []
    for colour in sorted(set(COLOURS) - used):
        spoiled_scenes.append(replace(scene, background=colour))
        for i, thing in enumerate(scene.things):
            things = list(scene.things)
            things[i] = replace(thing, colour=colour)
            spoiled_scenes.append(replace(scene, things=tuple(things)))
    return rng.choice([other for other in spoiled_scenes if other not in sample.sources])


def write_pairs(out: Path, count: int, seed: int = 0) -> int:
    """Write `count` preference pairs, the right edit and a spoiled one, as `pairs.jsonl`. Returns the rows written."""
    (out / "images").mkdir(parents=True, exist_ok=True)
    edited = (number for number in itertools.count() if edit(seed, number).sources)
    with (out / "pairs.jsonl").open("w", encoding="utf-8") as file:
        for number in itertools.islice(edited, count):
            sample, names = edit(seed, number), []
            loser = spoiled(chooser("spoiled", seed, number), sample)
            for name, scene in [("chosen", sample.target), ("rejected", loser), *enumerate(sample.sources)]:
                names.append(f"images/{number:05d}_{name}.png")
                draw(scene).save(out / names[-1])
            row = {"id": f"{seed}-{number:05d}", "task": sample.task, "source_image": names[2:]}
            row |= {"chosen_image": names[0], "rejected_image": names[1]}
            row |= {"instruction": sample.en, "instruction_cn": sample.cn}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    return count


def write(out: Path, count: int, seed: int = 0, families: Sequence[Family] = FAMILIES) -> int:
    """Write `count` samples, a folder per task with `edits.jsonl` and `images/`. Returns the rows written."""
    rows: dict[str, list[dict[str, object]]] = {}
    for number in range(count):
        sample = edit(seed, number, families)
        images = out / sample.task / "images"
        images.mkdir(parents=True, exist_ok=True)
        names = [f"images/{number:05d}_source{i}.png" for i in range(len(sample.sources))]
        for name, source in zip(names, sample.sources, strict=True):
            draw(source).save(out / sample.task / name)
        draw(sample.target).save(images / f"{number:05d}_target.png")
        single = names[0] if names else None
        row: dict[str, object] = {
            "id": f"{seed}-{number:05d}",
            "source_image": names if len(names) > 1 else single,
            "target_image": f"images/{number:05d}_target.png",
            "instruction": sample.en,
            "instruction_cn": sample.cn,
            "regions": boxes(sample.target),
        }
        if sample.target.words:
            row["target_text"] = sample.target.words
            row["replaced_text"] = sample.sources[0].words
        rows.setdefault(sample.task, []).append(row)
    for task, lines in rows.items():
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        (out / task / "edits.jsonl").write_text(text, encoding="utf-8")
    return count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=96)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--text", action="store_true", help="with edits of words, in turn with the others")
    parser.add_argument("--pairs", action="store_true", help="preference pairs in place of edits")
    args = parser.parse_args()
    families = (reword, *FAMILIES) if args.text else FAMILIES
    if args.pairs:
        print(f"{args.out}: {write_pairs(args.out, args.count, args.seed)} preference pairs")
        return
    print(f"{args.out}: {write(args.out, args.count, args.seed, families)} edits in {len(families)} tasks")


if __name__ == "__main__":
    main()
