"""Fifteen families of edits with exact targets; each draws an edit from a source of random numbers."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random

from .phrases import instructions
from .scene import Face, Scene, Sign, Thing
from .vocabulary import (
    COLOURS,
    CONSONANTS,
    FAULTS,
    HAIR,
    LOOKS,
    PLACES,
    SHAPES,
    SIZES,
    SKINS,
    STYLES,
    TEXTURES,
    TURNS,
    VOWELS,
)

Texts = dict[str, str]


@dataclass(frozen=True)
class WorldEdit:
    """Sources to target, asked for in words. `combination`: what is kept apart between training and held-out edits."""

    task: str
    sources: tuple[Scene, ...]
    target: Scene
    texts: Texts  # "kind/language" -> instruction
    combination: tuple[str, ...]
    target_text: str = ""
    replaced_text: str = ""
    captions: tuple[tuple[str, str], ...] = ()  # (English, Chinese) of every reference of a composition


def centre(place: str, size: str, right: int | None = None, down: int | None = None) -> tuple[float, float]:
    """Return the centre of a thing in a quadrant.

    Args:
        place: Name of the quadrant.
        size: Size of the thing.
        right: Steps of 8 pixels to its cell's left; None for the place that edits call by the quadrant's name, nearer
            to the canvas's corner than to its middle.
        down: The same to its cell's top.
    """
    (left, top), side = PLACES[place][1], SIZES[size][1]
    spare = (32 - side) // 8  # steps that a thing can move in its quadrant
    if right is None:
        right = spare if left else 0
    if down is None:
        down = spare if top else 0
    return left + 8 * right + side / 2, top + 8 * down + side / 2


def put(thing: Thing, place: str) -> Thing:
    """Return a thing in another quadrant, at the same spot of it."""
    left, top = PLACES[place][1]
    return replace(thing, x=thing.x % 32 + left, y=thing.y % 32 + top)


def things(rng: Random, count: int, places: list[str], colours: list[str]) -> tuple[Thing, ...]:
    """Return things of different colours and shapes, each in a quadrant of its own."""
    shapes, chosen = rng.sample(sorted(SHAPES), count), rng.sample(places, count)
    found = []
    for shape, colour, place in zip(shapes, colours, chosen, strict=False):
        texture, size = rng.choice(["plain"] * 9 + sorted(TEXTURES)), rng.choice(sorted(SIZES))
        free = (32 - SIZES[size][1]) // 8
        at = centre(place, size, rng.randint(0, free), rng.randint(0, free))
        found.append(Thing(shape, colour, *at, size, texture))
    return tuple(found)


def scenery(rng: Random, count: int, spare: int = 1, avoid: tuple[str, ...] = ()) -> tuple[Scene, list[str]]:
    """Return a scene of `count` things, and `spare` colours that it does not show."""
    colours = rng.sample(sorted(set(COLOURS) - set(avoid)), count + 1 + spare)
    pattern = rng.choice(["plain"] * 9 + sorted(TEXTURES))
    scene = Scene(colours[0], things(rng, count, sorted(PLACES), colours[1 : count + 1]), pattern)
    return scene, colours[count + 1 :]


def free_places(scene: Scene) -> list[str]:
    """Return the places where nothing lies."""
    taken = {(thing.x > 32, thing.y > 32) for thing in scene.things}
    return [name for name, (_, (x, y)) in sorted(PLACES.items()) if (x > 0, y > 0) not in taken]


def named(thing: Thing) -> tuple[Texts, Texts]:
    return {"x": thing.en}, {"x": thing.cn}


def swapped(scene: Scene, old: Thing, new: Thing | None) -> Scene:
    return replace(scene, things=tuple(t for t in (new if t == old else t for t in scene.things) if t))


def add(rng: Random) -> WorldEdit:
    scene, (colour,) = scenery(rng, rng.randint(1, 2))
    place = rng.choice(free_places(scene))
    size = rng.choice(sorted(SIZES))
    new = Thing(rng.choice(sorted(SHAPES)), colour, *centre(place, size), size)
    en, cn = {"x": f"{new.size} {new.en}", "p": place}, {"x": SIZES[new.size][0] + new.cn, "p": PLACES[place][0]}
    texts = instructions(rng, "add", en, cn)
    return WorldEdit("add", (scene,), replace(scene, things=(*scene.things, new)), texts, (new.shape, colour))


def remove(rng: Random) -> WorldEdit:
    scene, _ = scenery(rng, rng.randint(2, 3), 0)
    gone = rng.choice(scene.things)
    texts = instructions(rng, "remove", *named(gone))
    return WorldEdit("remove", (scene,), swapped(scene, gone, None), texts, (gone.shape, gone.colour))


def replaced(rng: Random) -> WorldEdit:
    scene, (colour,) = scenery(rng, 2)
    old = rng.choice(scene.things)
    new = replace(old, shape=rng.choice(sorted(set(SHAPES) - {old.shape})), colour=colour, texture="plain")
    texts = instructions(rng, "replace", {"x": old.en, "y": new.en}, {"x": old.cn, "y": new.cn})
    return WorldEdit("replace", (scene,), swapped(scene, old, new), texts, (new.shape, new.colour))


def color(rng: Random) -> WorldEdit:
    scene, (colour,) = scenery(rng, 2)
    old = rng.choice(scene.things)
    texts = instructions(rng, "color", {"x": old.en, "y": colour}, {"x": old.cn, "y": COLOURS[colour][0]})
    return WorldEdit("color", (scene,), swapped(scene, old, replace(old, colour=colour)), texts, (old.shape, colour))


def adjust(rng: Random) -> WorldEdit:
    scene, _ = scenery(rng, 2, 0, avoid=("black", "white"))
    look = rng.choice(sorted(LOOKS))
    texts = instructions(rng, "adjust", {"y": LOOKS[look][0]}, {"y": LOOKS[look][1]})
    return WorldEdit("adjust", (scene,), replace(scene, looks=(look,)), texts, (look, *_shown(scene)))


def background(rng: Random) -> WorldEdit:
    scene, (colour,) = scenery(rng, 2)
    texts = instructions(rng, "background", {"y": colour}, {"y": COLOURS[colour][0]})
    after = replace(scene, background=colour, pattern="plain")
    return WorldEdit("background", (scene,), after, texts, (scene.background, colour))


def motion(rng: Random) -> WorldEdit:
    scene, _ = scenery(rng, rng.randint(1, 2), 0)
    moved, place = rng.choice(scene.things), rng.choice(free_places(scene))
    en, cn = named(moved)
    texts = instructions(rng, "motion", en | {"p": place}, cn | {"p": PLACES[place][0]})
    after = swapped(scene, moved, put(moved, place))
    return WorldEdit("motion", (scene,), after, texts, (moved.shape, moved.colour, place))


def extract(rng: Random) -> WorldEdit:
    scene, _ = scenery(rng, 2, 0, avoid=("white",))
    kept = rng.choice(scene.things)
    texts = instructions(rng, "extract", *named(kept))
    return WorldEdit("extract", (scene,), Scene("white", (kept,)), texts, (kept.shape, kept.colour))


def word(rng: Random) -> str:
    """Return a word that can be spoken, of three to six letters."""
    letters = [rng.choice(CONSONANTS if i % 2 == 0 else VOWELS) for i in range(rng.randint(3, 6))]
    return "".join(letters)


def text(rng: Random) -> WorldEdit:
    ground, board, colour = rng.choice(["green", "blue", "purple", "red"]), rng.choice(["white", "yellow"]), "orange"
    lying = things(rng, rng.randint(0, 1), ["top left", "top right"], [colour])
    old, new = word(rng), word(rng)
    while new == old:
        new = word(rng)
    before = old if rng.random() < 0.7 else ""
    height = 4 * rng.randint(8, 12)  # on the grid of tokens and half a token off it
    sign = Sign(before, board, "black", height)
    scene = Scene(ground, lying, sign=sign)
    named_words = {"x": before, "y": new}
    texts = instructions(rng, "text", named_words, named_words, "" if before else "write")
    after = replace(scene, sign=replace(sign, word=new))
    return WorldEdit("text", (scene,), after, texts, (new,), target_text=new, replaced_text=before)


def style(rng: Random) -> WorldEdit:
    scene, _ = scenery(rng, 2, 0, avoid=("black", "white"))
    look = rng.choice(sorted(STYLES))
    texts = instructions(rng, "style", {"y": STYLES[look][0]}, {"y": STYLES[look][1]})
    return WorldEdit("style", (scene,), replace(scene, looks=(look,)), texts, (look, *_shown(scene)))


def restore(rng: Random) -> WorldEdit:
    scene, _ = scenery(rng, 2, 0, avoid=("black", "white"))
    fault = rng.choice(sorted(FAULTS))
    texts = instructions(rng, "restore", {"x": FAULTS[fault][0]}, {"x": FAULTS[fault][1]})
    spoiled = replace(scene, looks=(f"{fault}:{rng.randrange(1 << 30)}",))
    return WorldEdit("restore", (spoiled,), scene, texts, (fault, *_shown(scene)))


def viewpoint(rng: Random) -> WorldEdit:
    scene, _ = scenery(rng, 2, 0, avoid=("black", "white"))
    turn = rng.choice(sorted(TURNS))
    texts = instructions(rng, "viewpoint", {"y": TURNS[turn][0]}, {"y": TURNS[turn][1]})
    return WorldEdit("viewpoint", (scene,), replace(scene, looks=(turn,)), texts, (turn, *_shown(scene)))


def _shown(scene: Scene) -> tuple[str, ...]:
    """Return the facts that tell scenes apart, for edits of the whole picture."""
    return tuple(sorted(f"{thing.colour} {thing.shape}" for thing in scene.things))


def face(rng: Random) -> Scene:
    ground = rng.choice(["green", "blue", "purple", "red"])
    spots = tuple((rng.choice([-11, 11]) + rng.randint(-2, 2), rng.randint(4, 9)) for _ in range(rng.choice([0, 2])))
    at = rng.choice([24, 32, 40]), 34
    mouth = rng.choice(["neutral", "smile", "frown"])
    return Scene(ground, face=Face(*at, rng.choice(SKINS), rng.choice(HAIR), mouth, spots=spots))


def portrait(rng: Random) -> WorldEdit:
    scene = face(rng)
    head = scene.face
    assert head is not None  # noqa: S101
    hair = rng.choice(sorted(set(HAIR) - {head.hair}))
    mouth = rng.choice(sorted({"smile", "frown"} - {head.mouth}))
    asked = {
        "mouth": (
            replace(head, mouth=mouth),
            f"Make the person {mouth}",
            f"让这个人{'微笑' if mouth == 'smile' else '难过'}",
        ),
        "hair": (replace(head, hair=hair), f"Dye the hair {hair}", f"把头发染成{COLOURS[hair][0]}"),
        "eyes": (replace(head, eyes="closed"), "Close the eyes", "闭上眼睛"),
        "glasses": (replace(head, glasses=True), "Put glasses on the face", "戴上眼镜"),
    }
    what = rng.choice(sorted(asked))
    after, en, cn = asked[what]
    texts = instructions(rng, "portrait", {"y": en}, {"y": cn})
    key = (what, head.hair, str(SKINS.index(head.skin)), scene.background)
    return WorldEdit("portrait", (scene,), replace(scene, face=after), texts, key)


def beauty(rng: Random) -> WorldEdit:
    scene = face(rng)
    head = scene.face
    assert head is not None  # noqa: S101
    asked = {
        "lips": (replace(head, lips="red"), "Put on red lipstick", "涂上口红"),
        "cheeks": (replace(head, cheeks="rosy"), "Give the cheeks some blush", "给脸颊加上腮红"),
    }
    if head.spots:
        asked["spots"] = replace(head, spots=()), "Remove the spots from the skin", "去除皮肤上的斑点"
    what = rng.choice(sorted(asked))
    after, en, cn = asked[what]
    texts = instructions(rng, "beauty", {"y": en}, {"y": cn})
    key = (what, head.hair, str(SKINS.index(head.skin)), scene.background)
    return WorldEdit("beauty", (scene,), replace(scene, face=after), texts, key)


def compose(rng: Random) -> WorldEdit:
    """Put things of one or two pictures into another; which picture is which, only the instruction says. Most lie in
    their own picture where they are to lie."""
    count = rng.choice([2, 2, 3])
    ground, colours = scenery(rng, 1, count - 1)
    places = rng.sample(free_places(ground), count - 1)
    parts = [
        Scene(rng.choice(sorted(set(COLOURS) - {colour, ground.background})), (one,))
        for colour, place in zip(colours, places, strict=False)
        for one in things(rng, 1, rng.choice([[place], [place], [place], sorted(PLACES)]), [colour])
    ]
    order = rng.sample(range(count), count)  # order[i]: what the (i + 1)-th reference is; 0 is the ground
    scenes = [ground, *parts]
    number = [order.index(i) + 1 for i in range(count)]
    lying = [part.things[0] for part in parts]
    moved = tuple(put(t, q) for t, q in zip(lying, places, strict=True))
    asked = [
        (f"the object of Picture {k} at the {q}", f"图{k}中的物体放到{PLACES[q][0]}")
        for k, q in zip(number[1:], places, strict=True)
    ]
    en = f"Put {' and '.join(a for a, _ in asked)} of Picture {number[0]}"
    cn = f"在图{number[0]}里，把{'，把'.join(b for _, b in asked)}"
    texts = instructions(rng, "compose", {"y": en}, {"y": cn})
    sources = tuple(scenes[i] for i in order)
    captions = tuple(
        (f"a {s.things[0].en} on {s.background}", f"{COLOURS[s.background][0]}背景上的{s.things[0].cn}")
        for s in sources
    )
    key = (str(count), *(f"{t.colour} {t.shape}" for t in moved))
    return WorldEdit(
        "compose", sources, replace(ground, things=(*ground.things, *moved)), texts, key, captions=captions
    )


FAMILIES: dict[str, Callable[[Random], WorldEdit]] = {
    "add": add, "remove": remove, "replace": replaced, "color": color, "adjust": adjust, "background": background,
    "motion": motion, "extract": extract, "text": text, "style": style, "restore": restore, "compose": compose,
    "viewpoint": viewpoint, "portrait": portrait, "beauty": beauty,
}  # fmt: skip
