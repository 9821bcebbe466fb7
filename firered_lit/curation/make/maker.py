"""The step `make`: edits of the pictures that were kept, as a table that `prepare` reads and `curate` reads again.

OUT/made.jsonl names pictures and masks below OUT/made/. Rows are worked at in parts; a part's folder of pictures stands
there when it is whole, and then its rows, in OUT/state/make/. A part that is there, made of the same kept rows by the
same settings, is not made again.
"""

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from firered_lit.curation.corpus import STATE
from firered_lit.curation.rows import TARGET, Pixels, RawRow, RawTable, UnusablePictureError, in_shards, shrunk
from firered_lit.curation.rules import nearest
from firered_lit.curation.select import DECISIONS
from firered_lit.curation.shards import DIED
from firered_lit.curation.write import read_decisions
from firered_lit.draws import chooser
from firered_lit.errors import UserError
from firered_lit.files import appearing, replacing, write_json
from firered_lit.sharing.crew import Crew, Share
from firered_lit.sharing.workers import Report, Step
from firered_lit.textfiles import read_object

from .edit import MadeEdit, Mask
from .phrases import KINDS, SEVERAL, instructions, structured
from .several import compound, split
from .templates import CATEGORIES, TASKS, TEMPLATES, make

VERSION = 1  # raised when the same settings make other edits than before
MADE, PICTURES = "made.jsonl", "made"
WANTED = "wanted"  # a column of the source
TOGETHER = 4  # pictures that templates of several are given
_COMPRESSION = 3  # of PNG files, 0 to 9
_DEATHS = 2  # at one picture, after which it is left out

Row = dict[str, Any]


@dataclass(frozen=True)
class _Part:
    """Some rows of the source: the ids of those that are kept, by number, and what their edits are made from."""

    number: int
    ids: Mapping[int, str]
    made_from: Mapping[str, Any]


@dataclass(frozen=True)
class _MakingWork:
    """The edits of a part that are to be made.

    Args:
        part: Of these rows.
        rows: As they were read.
        left_out: Numbers of rows that are not looked at, since processes died at them.
    """

    part: _Part
    rows: Sequence[RawRow]
    left_out: frozenset[int] = frozenset()

    @property
    def shard(self) -> int:
        """The part's number."""
        return self.part.number

    def after_death(self, step: Step, deaths: int) -> "_MakingWork":
        """Return what is to be done now: a picture at which processes died more than once, not again."""
        return replace(self, left_out=self.left_out | {step[1]}) if deaths >= _DEATHS else self


class Make:
    """Makes edits of pictures without a model. Rows with a target alone, text-to-image, are what it takes.

    A row whose column `wanted` names tasks gets edits of these alone.

    Args:
        templates: How often each is drawn, relative to the others; all are drawn the same when None.
        each: Edits of every picture, as far as templates suit it.
        several: Share of pictures that get a compound edit as well, with its steps as rows of their own.
        side: px of the longer side, at most, of what is made.
        held_out: Share of pictures whose edits are all marked for validation: the edits of one picture go together.
        part_rows: Rows of the source that a kill can lose.

    Raises:
        UserError: A template is none.
    """

    def __init__(
        self,
        templates: Mapping[str, float] | None = None,
        each: int = 2,
        several: float = 0.25,
        side: int = 1024,
        held_out: float = 0.02,
        part_rows: int = 64,
    ) -> None:
        self.templates = dict.fromkeys(TEMPLATES, 1.0) if templates is None else dict(templates)
        self.each = each
        self.several = several
        self.side = side
        self.held_out = held_out
        self.part_rows = part_rows
        for name, weight in self.templates.items():
            if name not in CATEGORIES:
                raise UserError(f"make.templates: there is no template {name!r}{nearest(name, CATEGORIES)}")
            if isinstance(weight, bool) or not isinstance(weight, int | float) or weight < 0:
                raise UserError(f"make.templates.{name}: {weight!r} is no number from 0 on")

    def begin(self, folder: Path, table: RawTable, seed: int) -> "Making":
        """Return the work of making edits of what is kept.

        Args:
            folder: OUT, where decisions were made.
            table: The raw rows.
            seed: Of all draws.

        Raises:
            UserError: There are no decisions.
        """
        parts = {part.number: part for part in self._parts(folder, table, seed)}
        return Making(_Maker(self, folder, table, seed), parts)

    def _parts(self, folder: Path, table: RawTable, seed: int) -> Iterator[_Part]:
        """Yield the parts that have kept rows."""
        settings = json.loads(json.dumps(vars(self)))
        common = {"version": VERSION, "settings": settings, "seed": seed, "rows": table.digest}
        ids: dict[int, str] = {}
        for number, decision in enumerate(read_decisions(folder / DECISIONS)):
            if ids and number // self.part_rows != next(iter(ids)) // self.part_rows:
                yield self._part(ids, common)
                ids = {}
            if decision["kept"]:
                ids[number] = decision["id"]
        if ids:
            yield self._part(ids, common)

    def _part(self, ids: Mapping[int, str], common: Mapping[str, Any]) -> _Part:
        kept = hashlib.blake2b(json.dumps(list(ids.items())).encode(), digest_size=12)
        return _Part(next(iter(ids)) // self.part_rows, ids, {**common, "kept": kept.hexdigest()})


class Making:
    """The edits of a corpus, part by part.

    Args:
        maker: What makes them.
        parts: All parts that have kept rows, by number.
    """

    def __init__(self, maker: "_Maker", parts: Mapping[int, _Part]) -> None:
        self.maker = maker
        self.parts = parts

    def run(self, crew: Crew, share: Share) -> None:
        """Make this command's parts that are not there yet.

        Raises:
            UserError: The decisions are of other rows.
        """
        todo = self.maker.left({number: self.parts[number] for number in share.of(self.parts)})
        total = sum(len(part.ids) for part in todo.values())
        with tqdm(total=total, unit="row", desc="make", smoothing=0.05, disable=not todo) as bar:
            crew.do(self.maker, todo, bar.update)
        if self.maker.left(todo):
            path = self.maker.folder / DECISIONS
            raise UserError(f"{path}: has more rows than the source; run the step select again")

    def left(self) -> int:
        """Return how many parts are not there yet."""
        return len(self.maker.left(self.parts))

    def conclude(self) -> list[str]:
        """Write the rows of all parts as one table, and return what to print."""
        folder = self.maker.folder
        by_task: Counter[str] = Counter()
        skipped: Counter[str] = Counter()
        with replacing(folder / MADE) as file:
            for part in self.parts.values():
                made = read_object(_rows_file(folder, part))
                skipped.update(made["skipped"])
                for line in made["rows"]:
                    file.write(json.dumps(line, ensure_ascii=False) + "\n")
                    by_task[line["task"]] += 1
        lines = [f"made       {by_task.total():>8} edits, in {folder / MADE}"]
        lines += [f"           {count:>8} {task}" for task, count in sorted(by_task.items())]
        return lines + [f"left out   {count:>8} {reason}" for reason, count in sorted(skipped.items())]


@dataclass(frozen=True)
class _Maker:
    """Makes the edits of parts into a folder; it is sent to other processes.

    Args:
        make: What is made.
        folder: OUT.
        table: The raw rows.
        seed: Of all draws.
    """

    make: Make
    folder: Path
    table: RawTable
    seed: int

    def left(self, todo: Mapping[int, _Part]) -> dict[int, _Part]:
        """Return the parts that are not there yet."""
        return {number: part for number, part in todo.items() if not _is_done(self.folder, part)}

    def works(self, todo: Mapping[int, _Part]) -> Iterator[_MakingWork]:
        """Yield parts with their rows, as these are read."""
        wanted = {row for part in todo.values() for row in part.ids}
        for number, rows in in_shards(self.table.rows(wanted.__contains__), self.make.part_rows):
            # The other columns would only be sent to another process.
            yield _MakingWork(todo[number], [replace(row, content={WANTED: row.content.get(WANTED)}) for row in rows])

    def do(self, work: _MakingWork, report: Report) -> int:
        """Make the edits of a part: its pictures, then its rows. Returns how many rows it was made from."""
        part = work.part
        _rows_file(self.folder, part).unlink(missing_ok=True)
        place = self.folder / PICTURES / f"{part.number:05d}"
        shutil.rmtree(place, ignore_errors=True)
        skipped: Counter[str] = Counter()
        for row in work.rows:
            if row.id != part.ids[row.number]:
                said = f"{row.where} is not {part.ids[row.number]}"
                raise UserError(f"{self.folder / DECISIONS}: {said}; run the step select again")
        pictures = self._opened(work, skipped, report)
        lines: list[Row] = []
        with appearing(place) as staging:
            files = _Files(staging, f"{PICTURES}/{part.number:05d}")
            for start, (row, _) in enumerate(pictures):
                report(("edits", row.number, 0))
                some = [pictures[(start + step) % len(pictures)][1] for step in range(min(TOGETHER, len(pictures)))]
                for name, edit in self._edits(row, some, skipped):
                    lines += self._lines(row, name, edit, files)
        made = {"made_from": part.made_from, "skipped": dict(sorted(skipped.items())), "rows": lines}
        write_json(_rows_file(self.folder, part), made, indent=None)
        return len(work.rows)

    def _opened(self, work: _MakingWork, skipped: Counter[str], report: Report) -> list[tuple[RawRow, Pixels]]:
        """Return the pictures of text-to-image rows, no larger than they may be."""
        pictures = []
        for row in work.rows:
            if row.kind != "text-to-image":
                skipped["not text-to-image"] += 1
                continue
            if row.number in work.left_out:
                skipped[DIED] += 1
                continue
            report(("picture", row.number, 0))
            path = next(path for role, path in row.pictures if role == TARGET)
            try:
                pictures.append((row, shrunk(self.table.open(path, TARGET).pixels, self.make.side)))
            except UnusablePictureError as problem:
                skipped[problem.reason] += 1
        return pictures

    def _edits(self, row: RawRow, pictures: Sequence[Pixels], skipped: Counter[str]) -> Iterator[tuple[str, MadeEdit]]:
        """Yield (name, edit) of a picture: templates in the order of their draws, then a compound one."""
        draw = chooser(self.seed, row.id, "templates")
        lots = {name: draw.random() ** (1 / weight) for name, weight in self.make.templates.items() if weight > 0}
        wanted = _wanted(row.content.get(WANTED), row.where)
        if wanted is not None:
            lots = {name: lot for name, lot in lots.items() if CATEGORIES[name] in wanted}
        count = 0
        for name in sorted(lots, key=lots.__getitem__, reverse=True):
            if count == self.make.each:
                break
            edit = make(name, pictures, chooser(self.seed, row.id, name))
            if edit is None:
                skipped[f"does not suit {name}"] += 1
                continue
            count += 1
            yield name, edit
        if draw.random() < self.make.several and wanted is None:
            edit = compound(pictures[0], chooser(self.seed, row.id, SEVERAL))
            if edit is not None:
                yield SEVERAL, edit

    def _lines(self, row: RawRow, name: str, edit: MadeEdit, files: "_Files") -> Iterator[Row]:
        """Yield the row of an edit; of a compound one, then those of its steps."""
        id = f"{row.id}.{name}"
        common: Row = {"made_from": row.id, "source": row.source}
        if row.license:
            common["license"] = row.license
        common["held_out"] = chooser(self.seed, row.id, "held out").random() < self.make.held_out
        steps = split(edit)
        step_ids = [f"{id}.{number}" for number in range(1, len(steps) + 1)]
        more: Row = {"steps": step_ids} if steps else {}
        yield _line(id, edit, files, self.seed) | more | common
        for step_id, step in zip(step_ids, steps, strict=True):
            yield _line(step_id, step, files, self.seed) | {"parent": id} | common


class _Files:
    """Pictures of a part, each content once."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder = folder
        self.name = name

    def picture(self, pixels: Pixels) -> str:
        """Write a picture, and return its path below OUT."""
        return self._written(pixels)

    def mask(self, mask: Mask) -> str:
        """Write a mask, white where the edit may change the picture, and return its path below OUT."""
        return self._written(mask.astype(np.uint8) * 255)

    def _written(self, pixels: Pixels) -> str:
        content = hashlib.blake2b(repr(pixels.shape).encode() + pixels.tobytes(), digest_size=12)
        name = f"{content.hexdigest()}.png"
        if not (self.folder / name).exists():
            Image.fromarray(pixels).save(self.folder / name, compress_level=_COMPRESSION)
        return f"{self.name}/{name}"


def _line(id: str, edit: MadeEdit, files: _Files, seed: int) -> Row:
    """Return an edit as a row of the layout `firered`."""
    sources = [files.picture(source) for source in edit.sources]
    said = instructions(edit)
    kind = chooser(seed, id, "words").choice(KINDS)
    task = CATEGORIES[edit.steps[-1].template if edit.steps else edit.template]
    line: Row = {
        "id": id,
        "source_image": sources if len(sources) > 1 else sources[0],
        "target_image": files.picture(edit.target),
        "instruction": said[kind]["en"],
        "instruction_cn": said[kind]["cn"],
        "instructive": said["detailed"]["en"],
        "instructive_cn": said["detailed"]["cn"],
        "structured": structured(edit),
        "task": task,
        "category": task,
        "template": edit.template,
        "slots": dict(edit.slots),
    }
    if not edit.mask.all():
        line["mask"] = files.mask(edit.mask)
    if edit.template == "add_text":
        line["target_text"] = edit.slots["text"]
    if edit.template == "replace_text":
        line["target_text"] = edit.slots["new"]
        line["replaced_text"] = edit.slots["old"]
    return line


def _wanted(content: Any, where: str) -> frozenset[str] | None:
    """Return the tasks that a row's column `wanted` names; None where it has none.

    Raises:
        UserError: It names one that no template makes.
    """
    if content is None:
        return None
    names = [content] if isinstance(content, str) else content
    for name in names if isinstance(names, list | tuple) else [names]:
        if name not in TASKS:
            raise UserError(f"{where}: wanted: no template makes {str(name)[:40]!r}{nearest(str(name), TASKS)}")
    return frozenset(names)


def _rows_file(folder: Path, part: _Part) -> Path:
    return folder / STATE / "make" / f"{part.number:05d}.json"


def _is_done(folder: Path, part: _Part) -> bool:
    """Return whether a part is there, made of the same rows by the same settings."""
    path = _rows_file(folder, part)
    if not path.exists() or not (folder / PICTURES / f"{part.number:05d}").is_dir():
        return False
    try:
        return bool(read_object(path).get("made_from") == part.made_from)
    except UserError:
        return False
