"""The columnar index of a data set: the bucket of every row, and the place of its sample on disk.

One file in the safetensors layout (little-endian header length, JSON header, columns), memory-mapped: every process of
a host shares the same pages. Rows are sorted by bucket, then by position, so a bucket is a contiguous range of rows.
Columns, for N rows: `positions` (N,) sample number in the LitData chunks; `blocks` first row of every block, a block
being rows of one chunk; and, when the rows carry clusters, `by_cluster` (N,) rows ordered by bucket and cluster,
with `segment_start`, `segment_cluster`: the start and the cluster of each of these groups.
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


class IndexRow(NamedTuple):
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
        return tokens(self.target) + sum(tokens(shape) for shape in self.references)

    def __str__(self) -> str:
        target, *references = [f"{width}x{height}" for height, width in (self.target, *self.references)]
        text = f"{self.task} {target} <- {' + '.join(references) or 'text'}"
        if self.droppable:
            numbers = ",".join(str(number) for number in self.droppable)
            text += f" (droppable {numbers})"
        if self.fixed:
            text += " (fixed order)"
        return text


@dataclass(frozen=True)
class Index:
    """An open index. Columns are memory maps: opening reads the header alone."""

    folder: Path
    buckets: tuple[Bucket, ...]
    clusters: tuple[str, ...]
    columns: dict[str, np.ndarray] = field(repr=False)

    @classmethod
    def open(cls, folder: str | Path) -> "Index":
        """Map the index of a folder.

        Raises:
            UserError: There is none, or the file is cut short.
        """
        path = Path(folder) / FILE
        if not path.exists():
            raise UserError(f"no index at {path}: make it with `python -m firered_lit prepare`")
        header, begin = _header(path)
        meta = header.pop("__metadata__")
        return cls(
            folder=Path(folder),
            buckets=_buckets(json.loads(meta["buckets"])),
            clusters=tuple(json.loads(meta["clusters"])),
            columns={name: _column(path, spec, begin) for name, spec in header.items()},
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return Index.open, (self.folder,)  # a worker maps the file again, rather than being sent the columns

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def positions(self) -> np.ndarray:
        """(N,) the sample number of every row in the LitData data set."""
        return self.columns["positions"]

    def blocks(self, bucket: Bucket) -> np.ndarray:
        """Return the first rows of the bucket's blocks, counted from the bucket's start."""
        blocks = self.columns["blocks"]
        ends = np.array([bucket.start, bucket.start + bucket.count], blocks.dtype)
        first, last = np.searchsorted(blocks, ends)
        return blocks[first:last].astype(np.int64) - bucket.start


def _header(path: Path) -> tuple[dict[str, Any], int]:
    """Return an index's header, and the byte at which its columns begin."""
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
    """Return a column as a memory map."""
    shape = tuple(spec["shape"])
    dtype = DTYPES[spec["dtype"]]
    if shape[0] == 0:
        return np.empty(shape, dtype)
    return np.memmap(path, dtype, "r", begin + spec["data_offsets"][0], shape)


def _buckets(specs: list[list[Any]]) -> tuple[Bucket, ...]:
    """Return the buckets that a header lists."""
    starts = np.cumsum([0] + [spec[-1] for spec in specs])
    buckets = []
    for spec, start in zip(specs, starts):
        task, target, references, droppable, *fixed, count = spec  # `fixed` is in no index of format 1
        bucket = Bucket(
            task=task,
            target=tuple(target),
            references=tuple(tuple(shape) for shape in references),
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
    """Return a column, or its part from `first` to `end`, in slices of at most `PIECE` rows."""
    if end is None:
        end = len(column)
    return (column[start : min(start + PIECE, end)] for start in range(first, end, PIECE))


def save(
    folder: str | Path, buckets: Sequence[tuple[Key, int]], clusters: Sequence[str], columns: Mapping[str, Column]
) -> None:
    """Write an index, piece by piece, and put it in place.

    Args:
        folder: Folder of the index.
        buckets: The key of each bucket, in order, and its number of rows.
        clusters: Names of the clusters.
        columns: Sorted columns by name.
    """
    specs = []
    for (task, _, target, references, droppable, fixed), count in buckets:
        specs.append([task, target, references, droppable, fixed, count])
    metadata = {"version": VERSION, "buckets": json.dumps(specs), "clusters": json.dumps(list(clusters))}

    # The columns' places: those of 8 bytes first, so that all are aligned.
    wide = {name for name, column in columns.items() if _largest(column) >= 1 << 32}
    specifications: dict[str, dict[str, Any]] = {}
    offset = 0
    for name in sorted(columns, key=lambda name: name not in wide):
        length = len(columns[name])
        end = offset + (8 if name in wide else 4) * length
        kind = "U64" if name in wide else "U32"
        specifications[name] = {"dtype": kind, "shape": [length], "data_offsets": [offset, end]}
        offset = end

    # The header, padded to 8 bytes, and the columns.
    header = json.dumps({"__metadata__": metadata, **specifications}).encode()
    header += b" " * (-len(header) % 8)
    with replacing(Path(folder) / FILE, "wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for name, spec in specifications.items():
            for piece in pieces(columns[name]):
                piece.astype(DTYPES[spec["dtype"]]).tofile(file)


def _largest(column: Column) -> int:
    """Return the largest number of a column; 0 of an empty one."""
    return max((int(piece.max()) for piece in pieces(column)), default=0)
