"""`prepare`: rows -> encoded samples in LitData chunks, an index of their buckets, and a table of what was refused."""

import os
import shutil
from collections.abc import Callable, Iterable
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import torch
from tqdm import tqdm

from firered_lit.errors import UserError
from firered_lit.locks import in_turn
from firered_lit.models.family import open_base
from firered_lit.models.sizes import Sizes

from .crops import Opening
from .encode import DTYPES, Encoder
from .faces import Faces
from .held_out import choose
from .images import MAX_PIXELS
from .parts import Parts, at_work, made_from
from .reading import Reader
from .records import Record, Refusal, rows
from .references import GRAMMAR
from .refusals import guarded
from .sources import Source
from .tables import notes, survey
from .work import Row, Tally, Work

FORMAT = 1
COLOURS = 1  # raised when pictures are converted in another way; a folder notes what it was begun with


def prepare(
    source: str,
    out: str,
    model: str,
    sizes: Sizes | None = None,
    layout: str = "",
    max_refused: float = 0.01,
    held_out: float = 0.02,
    held_out_least: int = 0,
    keep_images: bool = True,
    inverse: bool = True,
    alignment: bool | Literal["online"] = True,
    max_orders: int = 16,
    part_rows: int = 1024,
    dtype: str = "float32",
    device: str = "auto",
    batch: int = 4,
    workers: int = 4,
    faces: str | None = None,
    reader: Reader | None = None,
    allow_urls: bool = False,
    max_pixels: int = MAX_PIXELS,
    seed: int = 0,
    shard: int = 0,
    num_shards: int = 1,
    columns: dict[str, Any] | None = None,
    target: str = "",
    control: str = "",
    control_2: str = "",
    control_3: str = "",
    captions: str = "",
) -> None:
    """Encode `source`, a table or a folder of tasks, into `out`, with the VAE and text encoder of `model`.

    sizes: pixel areas; the base's own when None. layout: see `datamodules.layouts`, when the columns do not tell.
    columns: what the rows call source, target, instruction, ..., where no layout has their names. target, control,
    control_2, control_3, captions: folders of pictures, in place of a source (""), see `datamodules.sources`.
    max_refused: share of the rows that may be refused before it stops.
    held_out: share of source images whose edits are kept for validation. held_out_least: how many edits of a small
    data set that is at least, as far as half of its source images allow. keep_images: store the crops too (held-out
    ones always are). inverse: use inverse instructions. alignment: store references in the canonical order of their
    shapes, and encode the texts of an edit with several of them for every order that training may draw, at most
    max_orders; "online" leaves those to the training. part_rows: rows that a kill can lose, whose samples are put in
    chunks by bucket; they lie on disk twice meanwhile. dtype: of the encoders and of what is stored. device: "auto"
    takes CUDA when there is one. batch: rows that are encoded together; another number gives the same samples but for
    rounding. workers: threads that open and crop images. faces: weights of a face detector, which finds regions for
    rows that name none, see `datamodules.faces`. reader: reads where the words of `target_text` stand, for OCR
    rewards, see `datamodules.reading`.
    shard, num_shards: this process makes every num_shards-th part, from part `shard` on; others, on any machine that
    shares `out`, make the rest, and the last one to finish merges all.
    Run again, it goes on; a finished folder is left as it is, but files that it has lost are made again.
    Raises UserError.
    """
    _check(dtype, max_refused, held_out, part_rows, max_orders, batch)
    if held_out_least < 0:
        raise UserError(f"held_out_least={held_out_least}: at least 0")
    if not 0 <= shard < num_shards:
        raise UserError(f"shard={shard}, num_shards={num_shards}: shards are numbered from 0 to num_shards - 1")
    base = open_base(model)
    base = base.resized(sizes) if sizes else base
    detector = Faces(faces) if faces else None
    given = Source(os.fspath(source), layout, columns or {}, target, control, control_2, control_3, captions)
    folder, (count, digest) = Path(out).resolve(), survey(given)
    print("".join(f"note: {note}\n" for note in notes(given)), end="")
    options = {"format": FORMAT, "source": digest, "fingerprints": base.fingerprints, "sizes": base.sizes.as_dict()}
    options |= {"held_out": held_out, "keep_images": keep_images, "inverse": inverse, "part_rows": part_rows}
    options |= given.identity()
    options |= {"faces": detector.digest} if detector else {}
    options |= {"reader": reader.identity} if reader else {}
    mode = "online" if alignment == "online" else "cached" if alignment else "none"
    if mode == "online" and not keep_images:
        raise UserError("alignment=online: training shows the pictures to the text encoder; set keep_images=true")
    options |= {"dtype": dtype, "seed": seed, "alignment": mode, "orders": max_orders if mode == "cached" else 1}
    options["mentions"] = GRAMMAR  # a folder begun by an earlier version is checked where it is loaded
    options["colours"] = COLOURS
    if held_out_least:
        options["held_out_least"] = held_out_least
    parts, every = Parts(folder), range(-(-count // part_rows))
    with at_work(folder, shard, num_shards):
        with in_turn(folder):
            options = made_from(folder, options, inherited=["mentions", "colours", "held_out_least"])
            if (folder / "data.json").exists() and (lost := parts.lost()):
                print(f"{folder}: lost or damaged since it was finished: {lost}; what belongs to it is made again")
                (folder / "data.json").unlink()
        if (folder / "data.json").exists():
            print(f"{folder}: finished already, nothing to do")
            return
        own = every[shard::num_shards]
        todo = [number for number in own if parts.read(number) is None]
        mine = sum(min(part_rows, count - number * part_rows) for number in own)
        tally = Tally(count, max_refused)
        for number in set(own).difference(todo):
            tally.add(parts.read(number))
        if "colours" not in options and len(todo) < len(own):
            print(f"{folder}: begun before colour profiles were converted to sRGB; its older parts keep their colours")
        with tqdm(total=mine, initial=tally.seen, unit="row", desc="prepare", smoothing=0.05) as tally.bar:
            where = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
            encoder = Encoder(base, dtype, where, options["orders"], batch, detector, bool(alignment), reader)
            some = rows(given, inverse=inverse, wanted=lambda number: False)
            _say_sizes(islice(some, 256), count, partial(encoder.estimate, keep_images=keep_images), folder)
            least = options.get("held_out_least", 0)
            chosen = choose(partial(rows, given, inverse=inverse), count, held_out, least, seed)
            opening = Opening(base.sizes, chosen, keep_images, max_pixels, allow_urls)
            work = Work(parts, encoder, tally, opening, workers)
            work.parts_of(partial(rows, given, inverse=inverse), todo, part_rows)
        header = options | {"model": model, "name": given.name, "rows": count}
        if base.origin("vae") is not None:
            header["origin"] = base.origin("vae")  # by which `fit` knows the base again without its text encoder
        with in_turn(folder):
            _finish(parts, every, Tally(count, max_refused), header, f"shard {shard} of {num_shards}")


def _finish(parts: Parts, every: range, tally: Tally, header: dict[str, Any], shard: str) -> None:
    """Merge the parts when all are there, and say what came out; else say how many others still have to make."""
    missing = 0
    for number in every:
        manifest = parts.read(number)
        missing += manifest is None
        tally.add(manifest or {"rows": 0, "refused": []})
    if missing:
        print(f"{shard} is done; {missing} of {len(every)} parts are left to the others, the last of them merges all")
        return
    if tally.too_many:
        raise tally.stop(parts, [])
    content = parts.finish(header | {"kept": tally.kept, "refused": dict(tally.refused)})
    print(tally.table())
    _say_content(content, parts.folder)


def _say_content(content: dict[str, Any], folder: Path) -> None:
    ways = f"{content['train']} to train on, {content['held_out']} held out"
    print(f"samples  {content['samples']:>8}: {ways}, in {folder}")
    if content["regions"] or content["regions_left_crop"] or content["masks"]:
        lost = f"{content['regions_left_crop']} others left the crop"
        print(f"regions  {content['regions']:>8}, {lost}; {content['masks']} samples have a mask")
    if content["fixed"]:
        named = "their prompts may name one in words that are not understood"
        print(f"fixed    {content['fixed']:>8} keep the order of their references, because {named}")
    if content["prompts"]:
        print(f"prompts  {content['prompts']:>8} without a target, for reinforcement learning alone")
    if not content["held_out"]:
        print("note: no edit is held out, so there is no validation; raise held_out for a small data set")


def _check(dtype: str, max_refused: float, held_out: float, part_rows: int, max_orders: int, batch: int) -> None:
    if dtype not in DTYPES:
        raise UserError(f"dtype={dtype}: one of {', '.join(DTYPES)}")
    if not 0 <= max_refused <= 1 or not 0 <= held_out < 1:
        raise UserError(f"max_refused={max_refused}, held_out={held_out}: both are shares, from 0 to 1")
    if min(part_rows, max_orders, batch) < 1:
        raise UserError(f"part_rows={part_rows}, max_orders={max_orders}, batch={batch}: all are at least 1")


def _say_sizes(first: Iterable[Row], count: int, estimate: Callable[[list[Record]], float], folder: Path) -> None:
    """Print how much will be written, by the first rows' sizes, and how much is free; a refused row has none."""
    sizes = [guarded(partial(estimate, row), row[0].where) for row in first if not isinstance(row, Refusal)]
    known = [size for size in sizes if not isinstance(size, Refusal)]
    needed = sum(known) / max(1, len(known)) * count
    free = shutil.disk_usage(folder).free
    print(f"{count} rows, about {needed / 1e6:,.0f} MB to write; {free / 1e6:,.0f} MB are free in {folder}")
    if needed > free:
        print("warning: that will probably not fit")
