"""Tables of rows that nobody should write: JSONL, JSON, CSV, Parquet and folders of pictures, by a seeded generator."""

import csv
import datetime
import decimal
import io
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from damage import damaged
from PIL import Image

from datamodules.sources.layouts import LAYOUTS

ROWS = 25  # of a table
PAGE = Path(__file__).resolve().parents[2] / "docs" / "formats.md"
EXAMPLES = [json.loads(row) for row in re.findall(r"```json\n(.*?)\n```", PAGE.read_text(encoding="utf-8"), re.DOTALL)]
PICTURES = ("source.png", "target.png", "worse.png", "mask.png", "deep.tiff", "photo.jpg")
PATHS = (
    *PICTURES,
    *("none.png", "small.png", "wide.png", "cut.jpg", "text.png", "empty.png", "folder.png", "pipe.png", "moving.gif"),
    *(
        "/dev/zero",
        "/dev/null",
        "/proc/self/mem",
        "",
        " ",
        ".",
        "..",
        "~",
        "a\0b.png",
        "a\nb.png",
        "x" * 300,
        "x/" * 3000,
    ),
    *("source.png/x", "./source.png", "http://127.0.0.1:9/a.png", "file:///etc/passwd", "s3://a/b", "\U0001f600.png"),
)
TEXTS = (
    *(
        "Make the hat red",
        "把帽子变成红色",
        "put image 1 on image 2",
        "",
        " ",
        "nan",
        "None",
        "null",
        "\0",
        "a\r\nb\u2028c",
    ),
    *("<|image_pad|>", "{}", "%s", "\u202egnirts", "e" + "\u0301" * 50, "sky " * 1500, "=1+1", '"', "[", '["a"]', "[1"),
)
NUMBERS = (0, 1, -1, 3, 9, 64, 96.0, 0.5, -0.0, 1e308, 1e-320, 10**18, 10**400, -(10**30), float("nan"), float("inf"))
ODD = (None, True, False, [], {}, [None], [[]], {"a": 1}, {"bytes": None, "path": None}, [1, "x"], ["source.png"] * 2)
REGIONS = (
    [{"box": [1, 2, 30, 40]}],
    [{"box": [1, 2, 10**400, 40]}],
    [{"box": [5, 5, 5, 5]}],
    [{"box": [900, 900, 990, 990]}],
    [{"box": ["1", 2, 3, 4]}],
    [{"points": [[30, 30], [50, 31], [40, 40], [33, 50], [48, 51]]}],
    [{"points": [[float("nan"), 0]] * 5}],
    [{"points": [[0, 0]] * 4}],
    [{"points": None, "box": None}],
    '[{"box": [1, 2, 30, 40]}]',
    "[" * 500,
)
COLUMNS = sorted({name for columns in LAYOUTS for name in (*columns.images, *columns.texts, *columns.scores) if name})
MORE = (
    "id",
    "task",
    "cluster",
    "width",
    "height",
    "held_out",
    "tie_case",
    "mask",
    "regions",
    "landmarks",
    "target_text",
)
MORE += ("reference_captions", "structured", "instructive_cn", "inverse_instruction", "inverse_regions", "requirement")


def pictures(folder: Path) -> None:
    """Write the files that paths of hostile rows name."""
    for number, name in enumerate(PICTURES):
        noise = np.random.default_rng(number).integers(0, 256, (8, 8, 3), np.uint8)
        image = Image.fromarray(noise).resize((64, 64), Image.Resampling.BICUBIC)
        if name == "mask.png":
            image = Image.fromarray(np.eye(64, dtype=np.uint8).cumsum(1, dtype=np.uint8))
        if name == "deep.tiff":
            image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 16)
        image.save(folder / name)
    Image.new("RGB", (8, 8)).save(folder / "small.png")
    Image.new("RGB", (2000, 40)).save(folder / "wide.png")
    (folder / "cut.jpg").write_bytes((folder / "photo.jpg").read_bytes()[:700])
    (folder / "text.png").write_text("no picture")
    (folder / "empty.png").touch()
    (folder / "folder.png").mkdir()
    os.mkfifo(folder / "pipe.png")
    frames = [Image.new("P", (64, 64), shade) for shade in (0, 9)]
    frames[0].save(folder / "moving.gif", save_all=True, append_images=frames[1:])


def value(random: Random) -> Any:
    """Return something that a column may hold."""
    kind = random.randrange(6)
    if kind == 0:
        return random.choice(PATHS)
    if kind == 1:
        return random.choice(TEXTS)
    if kind == 2:
        return random.choice(NUMBERS)
    if kind == 3:
        return random.choice(ODD)
    if kind == 4:
        return random.choice(REGIONS)
    return [random.choice(PATHS + TEXTS) for _ in range(random.randrange(4))]


def row(random: Random, number: int, example: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return a row of some layout, or like an example, mostly with something wrong."""
    found = dict(example or random.choice(EXAMPLES)) | {"id": f"row {number}"}
    if random.random() < 0.3:
        return found
    for _ in range(random.choice((1, 1, 2, 4))):
        kind = random.randrange(6)
        name = random.choice(list(found) or ["id"])
        if kind == 0:
            found.pop(name, None)
        elif kind == 1:
            found[random.choice(COLUMNS)] = value(random)
        elif kind == 2:
            found[random.choice(MORE)] = value(random)
        elif kind == 3:
            found["id"] = random.choice(("row 0", "", 7, 7.0, None, "\0", [1]))
        else:
            found[name] = value(random)
    return found


def jsonl(path: Path, random: Random) -> None:
    """Write a table of a row a line, some of them damaged."""
    path.write_bytes(b"\n".join(_lines(random, 0.15)) + b"\n")


def array(path: Path, random: Random) -> None:
    """Write a table that is one JSON array, some of its rows damaged."""
    between = random.choice((b",\n", b",", b"\n,\n"))
    data = b"[" + between.join(_lines(random, 0.02)) + b"]"  # nothing is told apart after broken JSON
    path.write_bytes(damaged(data, random) if random.random() < 0.2 else data)


def _lines(random: Random, share: float) -> list[bytes]:
    """Return rows as JSON, of which a share is damaged."""
    lines = []
    for number in range(ROWS):
        text = json.dumps(row(random, number), ensure_ascii=random.random() < 0.5)
        line = text.encode("utf-8", "surrogatepass").replace(b"\n", b" ")
        if random.random() < share:
            line = damaged(line, random)
        if random.random() < share / 5:
            line = random.choice(
                (b"", b"null", b"[]", b"3", b"{" * 2000, b'"\\ud800"', b'{"id": "\\ud800"}', b"\x00" * 50)
            )
        lines.append(line)
    return lines


def cells(path: Path, random: Random) -> None:
    """Write a table of cells under one header, some of them of no kind, some bytes damaged."""
    chosen = random.choice(EXAMPLES)
    rows = [row(random, number, chosen) for number in range(ROWS)]
    example = dict.fromkeys(chosen) | dict.fromkeys(random.sample(MORE, 4)) | {"id": None}
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator=random.choice(("\n", "\r\n")))
    writer.writerow(example)
    for found in rows:
        own = [found.get(name, value(random) if random.random() < 0.05 else "") for name in example]
        writer.writerow([item if isinstance(item, str) else json.dumps(item) for item in own])
        if random.random() < 0.03:
            writer.writerow(["x"] * random.randrange(1, 12))
    data = text.getvalue().encode("utf-8", "surrogatepass")
    path.write_bytes(damaged(data, random) if random.random() < 0.4 else data)


def _texts(values: list[str]) -> pa.Array:
    return pa.array(values)


def _bytes(values: list[str]) -> pa.Array:
    return pa.array([value.encode() for value in values], pa.binary())


def _not_text(values: list[str]) -> pa.Array:
    return pa.array([b"\xff" + value.encode() for value in values], pa.binary()).view(pa.string())


def _files(values: list[str]) -> pa.Array:
    return pa.array([{"bytes": _file(value), "path": value} for value in values])


def _file(name: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (64, 64), (len(name), 0, 0)).save(file, "BMP" if len(name) % 2 else "PNG")
    return file.getvalue()


KINDS: tuple[Callable[[list[str]], pa.Array], ...] = (
    _texts, _texts, _texts, _bytes, _not_text, _files,
    lambda values: pa.array([_file(value) for value in values]),
    lambda values: pa.array([_file(value)[:90] for value in values]),
    lambda values: pa.array(values).dictionary_encode(),
    lambda values: pa.array([[value] for value in values]),
    lambda values: pa.array([[_file(value)] for value in values]),
    lambda values: pa.array([{"bytes": value, "path": 3} for value in values]),
    lambda values: pa.array([{"image": {"bytes": _file(value)}} for value in values]),
    lambda values: pa.array(range(len(values))),
    lambda values: pa.array([float("nan")] * len(values)),
    lambda values: pa.array([len(value) % 2 == 0 for value in values]),
    lambda values: pa.nulls(len(values)),
    lambda values: pa.array([10**18] * len(values), pa.timestamp("us", "Mars/Olympus")),
    lambda values: pa.array([10**12] * len(values), pa.timestamp("s")),
    lambda values: pa.array([-(2**31)] * len(values), pa.date32()),
    lambda values: pa.array([datetime.time(1, 2)] * len(values)),
    lambda values: pa.array([decimal.Decimal("1.50")] * len(values)),
    lambda values: pa.array([[("a", value)] for value in values], pa.map_(pa.string(), pa.string())),
    lambda values: pa.array([value.encode()[:4].ljust(4) for value in values], pa.binary(4)),
)  # fmt: skip


def parquet(path: Path, random: Random) -> None:
    """Write a Parquet file whose columns are of kinds that fit and of such that do not, some bytes damaged."""
    example = dict(random.choice(EXAMPLES)) | dict.fromkeys(random.sample(MORE, random.randrange(4)))
    columns = {}
    for name, shown in example.items():
        texts = [random.choice(PATHS + TEXTS) if random.random() < 0.2 else str(shown) for _ in range(ROWS)]
        kind = random.choice(KINDS) if random.random() < 0.2 else _texts
        columns[name] = kind(texts)
    columns["id"] = pa.array([f"{number}" for number in range(ROWS)])
    names = list(columns)
    if random.random() < 0.02:
        names[-1] = names[0]
    options = {"row_group_size": random.choice((3, 10, ROWS)), "compression": random.choice(("none", "snappy", "zstd"))}
    pq.write_table(pa.table(list(columns.values()), names=names), path, **options)
    if random.random() < 0.4:
        path.write_bytes(damaged(path.read_bytes(), random))


STEMS = ("a", "b", "A", "a b", "图", ".hidden", "._a", "x" * 80)
ENDINGS = (".png", ".PNG", ".jpg", ".txt", ".TXT", ".webp", ".bmp", "", ".json", ".png.txt")


def toolkit(path: Path, random: Random) -> None:
    """Make folders of pictures, in ai-toolkit's manner, with twins, hidden files, and others that are none."""
    controls = random.choice((("control",), ("control_1", "control_2"), ("control", "control_3")))
    for name in ("target", *controls):
        (path / name).mkdir(parents=True)
    for number in range(ROWS):
        stem = random.choice(STEMS) + str(number)
        for name in ("target", *controls):
            (path / name / f"{stem}.png").write_bytes(_file(stem + name))
        (path / "target" / f"{stem}.txt").write_text("make it red")
        if random.random() < 0.5:
            _change(path / random.choice(("target", *controls)), stem, random)


def _change(folder: Path, stem: str, random: Random) -> None:
    """Take a file of a sample away, or put another beside it or in its place."""
    if random.random() < 0.5:
        (folder / f"{stem}.png").unlink()
    if random.random() < 0.5:
        (folder / f"{stem}.txt").unlink(missing_ok=True)
    _put(folder / (stem + random.choice(ENDINGS)), random)


def _put(file: Path, random: Random) -> None:
    """Put something under a name, if it is free."""
    if file.exists():
        return
    kind = random.randrange(8)
    if kind == 0:
        file.mkdir()
    elif kind == 1:
        os.mkfifo(file)
    elif kind == 2:
        file.write_bytes(b"\xff\xfe\x00")
    elif file.suffix.lower() == ".txt":
        file.write_text(random.choice(TEXTS), encoding="utf-8")
    else:
        file.write_bytes(_file(file.name))


TABLES: dict[str, Callable[[Path, Random], None]] = {
    "jsonl": jsonl,
    "json": array,
    "csv": cells,
    "parquet": parquet,
    "toolkit": toolkit,
}


def write(kind: str, number: int, folder: Path) -> Path:
    """Write a table of a kind into a folder; one number is always one table. Returns its path."""
    path = folder / ("toolkit" if kind == "toolkit" else f"rows.{kind}")
    TABLES[kind](path, Random(f"{kind} {number}"))
    return path
