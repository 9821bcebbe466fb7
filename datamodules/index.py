"""The columnar index of a data set: which row lies in which bucket, and where its sample is on disk.

One file in the safetensors layout (little-endian header length, JSON header, columns), memory-mapped: every process of
a host shares the same pages. Rows are sorted by bucket, then by position, so a bucket is a contiguous range of rows.
Columns, for N rows: `positions` (N,) sample number in the LitData chunks; `blocks` first row of every block, a block
being rows of one chunk; and, when the rows carry clusters, `by_cluster` (N,) rows ordered by bucket and cluster,
with `segment_start`, `segment_cluster`: where each (bucket, cluster) begins in it.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from firered_lit.errors import UserError
from firered_lit.files import replacing
from firered_lit.models.sizes import Shape, tokens

FILE = "index.safetensors"
VERSION = "2"
READABLE = ("1", "2")  # buckets of "1" do not say whether their references keep their order
PIECE = 1 << 16  # rows handled at a time: memory does not grow with the data
DTYPES: dict[str, Any] = {"U32": np.dtype("<u4"), "U64": np.dtype("<u8")}


class Row(NamedTuple):
    """One sample as the index sees it. Shapes are (height, width) in pixels."""

    task: str
    target: Shape
    references: tuple[Shape, ...]
    position: int  # sample number in the LitData data set
    cluster: str = ""
    droppable: tuple[int, ...] = ()  # 1-based numbers of the references that may be left out
    fixed: bool = False  # the references keep the order in which they are stored


@dataclass(frozen=True)
class Bucket:
    """Samples that fit in one batch: rows [start, start + count) of the index."""

    task: str
    target: Shape
    references: tuple[Shape, ...]
    start: int
    count: int
    droppable: tuple[int, ...] = ()
    fixed: bool = False

    @property
    def tokens(self) -> int:
        """Visual tokens of one sample: its target and its references."""
        return tokens(self.target) + sum(map(tokens, self.references))

    def __str__(self) -> str:
        images = [f"{w}x{h}" for h, w in (self.target, *self.references)]
        marks = f" (droppable {','.join(map(str, self.droppable))})" if self.droppable else ""
        marks += " (fixed order)" if self.fixed else ""
        return f"{self.task} {' <- '.join([images[0], ' + '.join(images[1:]) or 'text'])}{marks}"


@dataclass(frozen=True)
class Index:
    """An open index. Columns are memory maps: opening reads the header alone."""

    folder: Path
    buckets: tuple[Bucket, ...]
    clusters: tuple[str, ...]
    columns: dict[str, np.ndarray] = field(repr=False)

    @classmethod
    def open(cls, folder: str | Path) -> "Index":
        """Map the index of a folder. UserError when there is none, or when the file is cut short."""
        path = Path(folder) / FILE
        if not path.exists():
            raise UserError(f"no index at {path}: make it with `python -m firered_lit prepare`")
        header, begin = _header(path)
        meta = header.pop("__metadata__")
        columns = {name: _column(path, spec, begin) for name, spec in header.items()}
        return cls(Path(folder), _buckets(json.loads(meta["buckets"])), tuple(json.loads(meta["clusters"])), columns)

    def __reduce__(self) -> tuple[Any, ...]:
        return Index.open, (self.folder,)  # a worker maps the file again, rather than being sent the columns

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def positions(self) -> np.ndarray:
        """(N,) the sample number of every row in the LitData data set."""
        return self.columns["positions"]

    def blocks(self, bucket: Bucket) -> np.ndarray:
        """First rows of the bucket's blocks, counted from the bucket's start."""
        blocks = self.columns["blocks"]
        first, last = np.searchsorted(blocks, np.array([bucket.start, bucket.start + bucket.count], blocks.dtype))
        return blocks[first:last].astype(np.int64) - bucket.start


def _header(path: Path) -> tuple[dict[str, Any], int]:
    try:
        with path.open("rb") as file:
            begin = 8 + int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(begin - 8))
        version = header["__metadata__"]["version"]
        end = max(spec["data_offsets"][1] for name, spec in header.items() if name != "__metadata__")
    except (ValueError, KeyError, MemoryError, OverflowError) as error:
        raise UserError(f"{path} is not an index, or is cut short: run prepare again") from error
    if version not in READABLE:
        known = " and ".join(READABLE)
        raise UserError(f"{path} is an index of format {version}, this program reads {known}: run prepare again")
    if path.stat().st_size != begin + end:
        raise UserError(f"{path} has {path.stat().st_size} bytes, its header says {begin + end}: run prepare again")
    return header, begin


def _column(path: Path, spec: dict[str, Any], begin: int) -> np.ndarray:
    shape, dtype = tuple(spec["shape"]), DTYPES[spec["dtype"]]
    if not shape[0]:
        return np.empty(shape, dtype)
    return np.memmap(path, dtype, "r", begin + spec["data_offsets"][0], shape)


def _buckets(specs: list[list[Any]]) -> tuple[Bucket, ...]:
    starts = np.cumsum([0] + [spec[-1] for spec in specs])
    buckets = []
    for spec, start in zip(specs, starts):
        task, target, references, droppable, *fixed, count = spec  # `fixed` is in no index of format 1
        bucket = Bucket(
            task=task,
            target=tuple(target),
            references=tuple(map(tuple, references)),
            start=int(start),
            count=count,
            droppable=tuple(droppable),
            fixed=bool(fixed and fixed[0]),
        )
        buckets.append(bucket)
    return tuple(buckets)


# (task, number of references, target, references, droppable, fixed): sorts by task, number of references, shapes
Key = tuple[str, int, Shape, tuple[Shape, ...], tuple[int, ...], bool]


class Column(Protocol):
    """Numbers that are read a slice at a time: an array, or a file."""

    def __len__(self) -> int: ...

    def __getitem__(self, part: slice, /) -> np.ndarray: ...


def pieces(column: Column, first: int = 0, end: int | None = None) -> Iterator[np.ndarray]:
    """A column, or its part from `first` to `end`, in slices of bounded size: memory does not grow with the data."""
    end = len(column) if end is None else end
    return (column[i : min(i + PIECE, end)] for i in range(first, end, PIECE))


def save(
    folder: str | Path, buckets: Sequence[tuple[Key, int]], clusters: Sequence[str], columns: Mapping[str, Column]
) -> None:
    """Write sorted columns and the (key, rows) of each bucket to `folder`, piece by piece, and put them in place."""
    specs = [
        [task, target, references, droppable, fixed, count]
        for (task, _, target, references, droppable, fixed), count in buckets
    ]
    header: dict[str, Any] = {
        "__metadata__": {"version": VERSION, "buckets": json.dumps(specs), "clusters": json.dumps(list(clusters))}
    }
    wide = {name: int(max(map(np.max, pieces(column)), default=0)) >= 1 << 32 for name, column in columns.items()}
    offset = 0
    for name in sorted(columns, key=lambda name: not wide[name]):  # the 8-byte columns first, so that all are aligned
        kind, size = ("U64", 8) if wide[name] else ("U32", 4)
        offsets = [offset, offset + size * len(columns[name])]
        header[name] = {"dtype": kind, "shape": [len(columns[name])], "data_offsets": offsets}
        offset = offsets[1]
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path = Path(folder) / FILE
    with replacing(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in list(header)[1:]:
            for piece in pieces(columns[name]):
                piece.astype(DTYPES[header[name]["dtype"]]).tofile(file)
