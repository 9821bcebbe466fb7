"""`prepare`: rows -> encoded samples in LitData chunks, an index of their buckets, and a table of refused rows."""

import copy
import math
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from firered_lit.cards.data_card import cards_of
from firered_lit.errors import UserError
from firered_lit.models.family import open_base
from firered_lit.models.sizes import Sizes
from firered_lit.process.locks import in_turn
from firered_lit.sharing.crew import Crew, Runner
from firered_lit.sharing.workers import Step

from ..chunks.samples import DTYPES
from ..references.prompt import GRAMMAR
from ..sources.images import MAX_PIXELS
from ..sources.records import Record, Refusal, rows
from ..sources.refusals import guarded
from ..sources.source import Source
from ..sources.tables import files, notes, survey
from .crops import Opening
from .encode import Encoder
from .faces import Faces
from .held_out import choose
from .parts import Parts, at_work, made_from
from .reading import ReadsLayouts
from .work import ROWS, Encoding, PartDone, Row, Tally, TooManyRefusedError

FORMAT = 1
COLOURS = 1  # raised when pictures are converted in another way; a folder notes the number that it was begun with


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
    reader: ReadsLayouts | None = None,
    allow_urls: bool = False,
    max_pixels: int = MAX_PIXELS,
    seed: int = 0,
    shard: int = 0,
    num_shards: int = 1,
    processes: int = 0,
    runner: Runner = "processes",
    patience: float = 1800.0,
    columns: dict[str, Any] | None = None,
    target: str = "",
    control: str = "",
    control_2: str = "",
    control_3: str = "",
    captions: str = "",
) -> None:
    """Encode a data set with the VAE and text encoder of a base model.

    Run again, it goes on; a finished folder is left as it is, but files that it has lost are made again. Several
    processes, or commands on any machines that share `out`, may each make some of the parts; the last command merges
    all. The samples are the same.

    Args:
        source: Table, or folder of tasks; "" with the folders of pictures below.
        out: Folder to write.
        model: Base model.
        sizes: Pixel areas of the crops; the base's own when None.
        layout: Layout of the table when its columns do not tell, see `datamodules.sources.layouts`.
        max_refused: Share of the rows, 0 to 1, that may be refused before it stops.
        held_out: Share of the source images, 0 to 1, whose edits are kept for validation.
        held_out_least: Edits of a small data set to keep at least, as far as half of its source images allow.
        keep_images: Store the crops too; those of held-out edits always are.
        inverse: Use inverse instructions.
        alignment: Store references in the canonical order of their shapes, and encode the texts of an edit with
            several of them for every order that training may draw; "online" leaves those texts to the training.
        max_orders: The most orders of an edit whose texts are encoded.
        part_rows: Rows of a part, which a kill can lose. Their samples are put in chunks by bucket, and lie on disk
            twice meanwhile.
        dtype: Precision of the encoders and of the stored tensors: "float32", "bfloat16" or "float16".
        device: Device of the encoders; "auto" takes CUDA when there is one, each process a GPU that is free.
        batch: Rows that are encoded together; another number gives the same samples but for rounding.
        workers: Threads of a process that open and crop images.
        faces: Weights of a face detector, which finds regions for rows that name none, see `datamodules.prepare.faces`.
        reader: Reads the layout of the words of `target_text`, for OCR rewards, see `datamodules.prepare.reading`.
        allow_urls: Fetch images that are http(s) addresses.
        max_pixels: Pixels of an image, at most.
        seed: Seed of the choice of held-out edits.
        shard: Number of this command, 0 to num_shards - 1; it makes every num_shards-th part from this one on.
        num_shards: Commands that share the work.
        processes: Processes of this command that encode parts, each with the models; 0 encodes in this one.
        runner: "processes" of this machine, or "ray": Daft spreads the parts over a Ray cluster, that of RAY_ADDRESS or
            one of `processes` processors which is started here.
        patience: Seconds after which a process that has loaded no model and encoded nothing is taken to hang.
        columns: The rows' columns by name, such as source, target and instruction, where no layout has their names.
        target: Folder of target pictures, in place of a source (""), see `datamodules.sources.source`.
        control: Folder of the source pictures, in place of a source ("").
        control_2: Folder of the second source pictures.
        control_3: Folder of the third source pictures.
        captions: Folder of the instructions, a text file for each picture.

    Raises:
        UserError: An argument, the source or the folder cannot be used, or too many rows are refused.
    """
    _check(dtype, max_refused, held_out, part_rows, max_orders, batch)
    if held_out_least < 0:
        raise UserError(f"held_out_least={held_out_least}: at least 0")
    if not 0 <= shard < num_shards:
        raise UserError(f"shard={shard}, num_shards={num_shards}: shards are numbered from 0 to num_shards - 1")
    if alignment == "online" and not keep_images:
        raise UserError("alignment=online: training shows the pictures to the text encoder; set keep_images=true")
    crew = Crew(processes, patience, runner, key="processes")
    base = open_base(model)
    if sizes:
        base = base.resized(sizes)
    detector = Faces(faces) if faces else None
    folder = Path(out).resolve()
    given = Source(os.fspath(source), layout, columns or {}, target, control, control_2, control_3, captions)
    count, digest = survey(given)
    for note in notes(given):
        print(f"note: {note}")

    # The options that the samples depend on: a folder is made with one set of them.
    options: dict[str, Any] = {
        "format": FORMAT,
        "source": digest,
        "fingerprints": base.fingerprints,
        "sizes": base.sizes.as_dict(),
        "held_out": held_out,
        "keep_images": keep_images,
        "inverse": inverse,
        "part_rows": part_rows,
    }
    options |= given.identity()
    if detector:
        options["faces"] = detector.digest
    if reader:
        options["reader"] = reader.identity
    options["dtype"] = dtype
    options["seed"] = seed
    options["alignment"] = _mode(alignment)
    options["orders"] = max_orders if options["alignment"] == "cached" else 1
    options["mentions"] = GRAMMAR  # a folder begun by an earlier version is checked where it is loaded
    options["colours"] = COLOURS
    if held_out_least:
        options["held_out_least"] = held_out_least

    parts = Parts(folder)
    numbers = range(math.ceil(count / part_rows))
    read = partial(rows, given, inverse=inverse)
    with at_work(folder, shard, num_shards):
        # The folder as it is: not begun, begun, or finished.
        with in_turn(folder):
            options = made_from(folder, options, inherited=["mentions", "colours", "held_out_least"])
            lost = parts.lost() if (folder / "data.json").exists() else None
            if lost:
                print(f"{folder}: lost or damaged since it was finished: {lost}; what belongs to it is made again")
                (folder / "data.json").unlink()
        if (folder / "data.json").exists():
            print(f"{folder}: finished already, nothing to do")
            return

        # The parts of this shard: some may be there already.
        own = numbers[shard::num_shards]
        own_rows = sum(min(part_rows, count - number * part_rows) for number in own)
        todo = []
        tally = Tally(count, max_refused)
        for number in own:
            manifest = parts.read(number)
            if manifest is None:
                todo.append(number)
            else:
                tally.add_manifest(manifest)
        if "colours" not in options and len(todo) < len(own):
            print(f"{folder}: begun before colour profiles were converted to sRGB; its older parts keep their colours")

        # The others are encoded.
        encoder = Encoder(
            base=base,
            dtype=dtype,
            device=device,
            orders=options["orders"],
            batch=batch,
            faces=detector,
            aligned=bool(alignment),
            reader=reader,
        )
        first = islice(read(wanted=lambda number: False), 256)
        _print_sizes(first, count, partial(encoder.estimate, keep_images=keep_images), folder)
        chosen = choose(read, count, held_out, options.get("held_out_least", 0), seed)
        encoding = Encoding(
            parts=parts,
            encoder=encoder,
            tally=copy.deepcopy(tally),
            opening=Opening(base.sizes, chosen, keep_images, max_pixels, allow_urls),
            read=read,
            part_rows=part_rows,
            threads=workers,
            sent=processes > 0 or runner == "ray",
        )
        _encode(encoding, crew, todo, tally, own_rows)

        # The last of the shards merges all.
        header = {**options, "model": model, "name": given.name, "rows": count}
        if base.origin("vae") is not None:
            header["origin"] = base.origin("vae")  # by which `fit` knows the base again without its text encoder
        with in_turn(folder):
            _finish(parts, numbers, Tally(count, max_refused), header, f"shard {shard} of {num_shards}", given)


def _mode(alignment: bool | Literal["online"]) -> str:
    """Return the word for `alignment` that a folder's options have."""
    if alignment == "online":
        return "online"
    return "cached" if alignment else "none"


def _encode(encoding: Encoding, crew: Crew, todo: Sequence[int], tally: Tally, rows: int) -> None:
    """Encode parts; those that are done stay when the work is stopped.

    Args:
        encoding: The work on them.
        crew: Who does it.
        todo: Their numbers.
        tally: Counts of the parts that are there; what is encoded is added.
        rows: Rows of this command's parts.

    Raises:
        UserError: Too many rows are refused, or nothing can go on.
    """
    at_work: dict[int, int] = {}  # rows that are done of the parts which are not
    bar = tqdm(total=rows, initial=tally.seen, unit="row", desc="prepare", smoothing=0.05)

    def show() -> None:
        bar.update(tally.seen + sum(at_work.values()) - bar.n)

    def heard(step: Step) -> None:
        kind, number, count = step
        at_work[number] = count if kind == ROWS else 0
        show()

    def done(part: PartDone) -> None:
        at_work.pop(part.number, None)
        tally.add(part)
        show()
        if tally.too_many:
            raise TooManyRefusedError(PartDone(part.number, 0, ()))

    try:
        with bar:
            if tally.too_many:
                raise TooManyRefusedError(PartDone(0, 0, ()))
            crew.do(encoding, dict.fromkeys(todo), done, heard)
    except TooManyRefusedError as problem:
        tally.add(problem.part)
        with in_turn(encoding.parts.folder):
            raise tally.stop(encoding.parts, problem.part.refused) from None


def _finish(parts: Parts, numbers: range, tally: Tally, header: dict[str, Any], shard: str, source: Source) -> None:
    """Merge the parts and print a summary, when all are there; else print how many are left to the other shards.

    Args:
        parts: The folder's parts.
        numbers: Numbers of all of them.
        tally: Counts of all rows, empty yet.
        header: Entries that data.json begins with.
        shard: Name of this shard.
        source: Table or folder that was prepared.
    """
    missing = 0
    for number in numbers:
        manifest = parts.read(number)
        if manifest is None:
            missing += 1
        else:
            tally.add_manifest(manifest)
    if missing:
        left = f"{missing} of {len(numbers)} parts are left to the others"
        print(f"{shard} is done; {left}, the last of them merges all")
        return
    if tally.too_many:
        raise tally.stop(parts)
    cards, remarks = cards_of(table for table in files(source) if isinstance(table, Path))
    content = parts.finish(header | {"kept": tally.kept, "refused": dict(tally.refused)}, cards)
    print(tally.table())
    for remark in remarks:
        print(f"note: {remark}")
    _print_content(content, parts.folder)


def _print_content(content: dict[str, Any], folder: Path) -> None:
    """Print the numbers of a finished folder: its samples, and those with something special."""
    splits = f"{content['train']} to train on, {content['held_out']} held out"
    print(f"samples  {content['samples']:>8}: {splits}, in {folder}")
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
    """Raise UserError when an argument of `prepare` is out of its range."""
    if dtype not in DTYPES:
        raise UserError(f"dtype={dtype}: one of {', '.join(DTYPES)}")
    if not 0 <= max_refused <= 1 or not 0 <= held_out < 1:
        raise UserError(f"max_refused={max_refused}, held_out={held_out}: both are shares, from 0 to 1")
    if min(part_rows, max_orders, batch) < 1:
        raise UserError(f"part_rows={part_rows}, max_orders={max_orders}, batch={batch}: all are at least 1")


def _print_sizes(first: Iterable[Row], count: int, estimate: Callable[[list[Record]], float], folder: Path) -> None:
    """Print how much will be written and how much is free.

    Args:
        first: The first rows, whose sizes stand for all; a refused row has none.
        count: The number of all rows.
        estimate: Return the bytes that a row's records will take.
        folder: Folder to write to.
    """
    sizes: list[float] = []
    for row in first:
        if isinstance(row, Refusal):
            continue
        size = guarded(partial(estimate, row), row[0].where)
        if not isinstance(size, Refusal):
            sizes.append(size)
    needed = sum(sizes) / max(1, len(sizes)) * count
    free = shutil.disk_usage(folder).free
    print(f"{count} rows, about {needed / 1e6:,.0f} MB to write; {free / 1e6:,.0f} MB are free in {folder}")
    if needed > free:
        print("warning: that will probably not fit")
