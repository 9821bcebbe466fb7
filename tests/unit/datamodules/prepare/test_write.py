"""`prepare` keeps what is good, counts what is not, survives a kill, and stores what inference would see."""

import contextlib
import errno
import io
import json
import os
import random
import shutil
import signal
import time

import numpy as np
import pytest
import torch
from litdata import StreamingDataset
from PIL import Image

from datamodules.chunks.samples import Chunks
from datamodules.prepare import parts
from datamodules.prepare.write import prepare
from datamodules.sampling.buckets import Index
from datamodules.sources.images import crop
from firered_lit.errors import UserError
from firered_lit.models.codec import to_pixels
from firered_lit.models.conditioning import UNCONDITIONAL
from firered_lit.models.family import open_base
from firered_lit.models.sizes import Sizes, assign, shape_table

SIZES = Sizes(target_area=64 * 64, reference_area=96 * 96, condition_area=56 * 56)


def photo(path, width=96, height=64, seed=0, mode="RGB", **save):
    """Smooth noise."""
    noise = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
    image = Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC).convert(mode)
    image.save(path, **save)
    return image


def rows_to(path, *rows):
    path.write_bytes(b"".join((r if isinstance(r, bytes) else json.dumps(r).encode()) + b"\n" for r in rows))
    return path


def world(folder, count):
    """`count` good rows over a few sources, with 0 to 2 references of several shapes, in two languages."""
    folder.mkdir(exist_ok=True)
    rows = []
    for i in range(6):
        photo(folder / f"s{i}.png", *[(96, 64), (64, 96), (80, 80)][i % 3], seed=i)
    for i in range(count):
        photo(folder / f"t{i}.jpg", *[(64, 64), (128, 64)][i % 2], seed=100 + i)
        source = [None, f"s{i % 6}.png", [f"s{i % 6}.png", f"s{(i + 1) % 6}.png"]][i % 3]
        row = {"source_image": source, "target_image": f"t{i}.jpg", "task": "ab"[i % 2], "id": f"r{i}"}
        rows.append(
            row | {"instruction": "" if i % 4 == 1 else f"edit {i}", "instruction_cn": f"编辑{i}" if i % 2 else ""}
        )
    return rows_to(folder / "edits.jsonl", *rows)


def make(source, out, **options):
    settings = {"model": "tiny", "sizes": SIZES, "held_out": 0.0, "part_rows": 4, "device": "cpu"} | options
    prepare(str(source), str(out), **settings)
    return out


def samples(out):
    chunks = Chunks(out / "chunks")
    return {sample.id: sample for sample in (chunks.read(i, images=True) for i in range(len(chunks)))}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(source, prepared folder) of 12 good rows."""
    folder = tmp_path_factory.mktemp("write")
    source = world(folder / "world", 12)
    return source, make(source, folder / "out")


@pytest.fixture(scope="module")
def base():
    return open_base("tiny").resized(SIZES)


def test_every_row_becomes_a_sample_that_plain_litdata_reads(made):
    _, out = made
    ids = [StreamingDataset(str(out / "chunks"))[i]["id"] for i in range(12)]
    assert sorted(ids) == sorted(f"r{i}" for i in range(12))
    data = json.loads((out / "data.json").read_text())
    assert (data["rows"], data["kept"], data["samples"], data["train"]) == (12, 12, 12, 12)
    assert (data["tasks"], data["references"]) == ({"a": 6, "b": 6}, {"0": 4, "1": 4, "2": 4})
    assert data["captions"] == {"original/cn": 6, "original/en": 9}
    assert data["sizes"] == SIZES.as_dict()
    assert data["fingerprints"] == open_base("tiny").fingerprints
    assert (out / "refused.jsonl").read_bytes() == b""


def test_latents_and_texts_are_what_inference_makes_of_the_one_crop(made, base):
    """Fault 8, too: each reference at its own aspect ratio, for the VAE and for the vision-language model alike."""
    source, out = made
    codec, conditioner = base.codec(), base.conditioner()
    sample = samples(out)["r5"]
    paths = ["t5.jpg", "s0.png", "s5.png"]  # the wider reference is the lower one, and stored first
    assert sample.meta["order"] == [2, 1]
    areas = [SIZES.target_area, SIZES.reference_area, SIZES.reference_area]
    crops = []
    for path, area in zip(paths, areas):
        with Image.open(source.parent / path) as image:
            image = image.convert("RGB")
            crops.append(crop(image, assign(image.height, image.width, shape_table(area))))
    assert len({image.size for image in crops}) == 3
    for name, image in zip(["target", "reference.0", "reference.1"], crops):
        torch.testing.assert_close(sample.tensors[name], codec.encode(to_pixels(image)[None])[0], atol=1e-5, rtol=0)
        with Image.open(io.BytesIO(sample.images[name])) as stored:
            assert stored.tobytes() == image.tobytes()
    assert sample.meta["target"] == [crops[0].height, crops[0].width]
    assert sample.meta["references"] == [[image.height, image.width] for image in crops[1:]]
    for key, prompt in [("original/cn", "编辑5"), ("unconditional", UNCONDITIONAL)]:
        (expected,) = conditioner.encode([prompt], [crops[1:]], SIZES.condition_area)
        torch.testing.assert_close(sample.tensors[f"text.{key}"], expected, atol=1e-5, rtol=0)
    assert {k for k in sample.tensors if k.startswith("text.")} == {"text.original/cn", "text.unconditional"}


def test_rows_encoded_together_are_what_each_is_alone(made, base, tmp_path):
    """Latents and embeddings of several rows at a time: but for rounding, those of one by one, as inference has it."""
    source, out = made
    alone, together = samples(make(source, tmp_path / "out", batch=1)), samples(out)
    assert list(alone) == list(together)
    for name, sample in alone.items():
        other = together[name]
        assert (sample.meta, sample.images) == (other.meta, other.images)
        assert sample.tensors.keys() == other.tensors.keys()
        for key, tensor in sample.tensors.items():
            torch.testing.assert_close(other.tensors[key], tensor, atol=1e-5, rtol=0)
        crop = Image.open(io.BytesIO(sample.images["target"]))
        assert torch.equal(sample.tensors["target"], base.codec().encode(to_pixels(crop)[None])[0])


def test_fault_9_references_are_posterior_modes(made, base):
    _, out = made
    sample, codec = samples(out)["r1"], base.codec()
    with Image.open(io.BytesIO(sample.images["reference.0"])) as image:
        posterior = codec.vae.encode(to_pixels(image)[None, :, None]).latent_dist
    mode, drawn = ((z[:, :, 0] - codec.mean) / codec.std for z in (posterior.mode(), posterior.sample()))
    assert torch.allclose(sample.tensors["reference.0"], mode[0], atol=1e-6)
    assert not torch.allclose(sample.tensors["reference.0"], drawn[0], atol=1e-3)


def test_the_index_knows_every_sample_and_its_shapes(made):
    _, out = made
    index, chunks = Index.open(out / "index" / "train"), Chunks(out / "chunks")
    found = []
    for bucket in index.buckets:
        for position in index.positions[bucket.start : bucket.start + bucket.count]:
            meta = chunks.read(int(position)).meta
            assert meta["task"] == bucket.task
            assert (tuple(meta["target"]), tuple(map(tuple, meta["references"]))) == (bucket.target, bucket.references)
            found.append(int(position))
    assert sorted(found) == list(range(12))


def files_of(out):
    """Everything but the locks, by name."""
    files = [p for p in out.rglob("*") if p.is_file() and not p.name.startswith(".lock")]
    found = {str(p.relative_to(out)): p.read_bytes() for p in files}
    return {name: content for name, content in found.items() if not name.startswith("prepare.json")}


LOST = {
    "a chunk": lambda out: sorted((out / "chunks").glob("*.bin"))[1].unlink(),
    "half a chunk": lambda out: os.truncate(sorted((out / "chunks").glob("*.bin"))[0], 100),
    "the table": lambda out: os.truncate(out / "chunks" / "table.npy", 50),
    "LitData's list": lambda out: (out / "chunks" / "index.json").unlink(),
    "an index": lambda out: (out / "index" / "held_out" / "index.safetensors").unlink(),
    "half of data.json": lambda out: os.truncate(out / "data.json", 40),
    "all chunks and a manifest": lambda out: (shutil.rmtree(out / "chunks"), (out / "parts" / "00000.json").unlink()),
}


@pytest.mark.parametrize("lost", LOST)
def test_what_a_finished_folder_has_lost_is_made_again(made, tmp_path, capsys, lost):
    """The same bytes again; what is there is not made anew."""
    source, out = made
    shutil.copytree(out, tmp_path / "out")

    def content(folder):
        files = [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")]
        return {path.relative_to(folder): path.read_bytes() for path in files}

    before = content(tmp_path / "out")
    LOST[lost](tmp_path / "out")
    make(source, tmp_path / "out")
    assert "is made again" in capsys.readouterr().out
    assert content(tmp_path / "out") == before
    make(source, tmp_path / "out")
    assert "finished already" in capsys.readouterr().out


def test_a_finished_folder_is_left_as_it_is(made, capsys):
    source, out = made
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if ".lock" not in path.name}
    make(source, out, max_refused=0.5)
    assert "finished already" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*") if ".lock" not in path.name} == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sizes": Sizes(32 * 32, 32 * 32, 56 * 56)}, "another sizes"),
        ({"seed": 3}, r"another seed \(0, now 3\)"),
        ({"dtype": "bfloat16"}, "another dtype"),
    ],
)
def test_other_options_do_not_mix_into_a_folder(made, change, message):
    with pytest.raises(UserError, match=message):
        make(*made, **change)


def test_another_source_does_not_mix_into_a_folder(made, tmp_path):
    with pytest.raises(UserError, match="another source"):
        make(world(tmp_path / "w", 3), made[1])


def test_a_folder_of_something_else_is_not_touched(made, tmp_path):
    (tmp_path / "thesis.txt").write_text("x")
    with pytest.raises(UserError, match=r"not empty \(thesis.txt\)"):
        make(made[0], tmp_path)


def test_two_at_once_are_one_too_many(made, tmp_path):
    with parts.at_work(tmp_path), pytest.raises(UserError, match="another prepare is at work"):
        make(made[0], tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "int8"}, "dtype=int8"),
        ({"max_refused": 2}, "shares"),
        ({"held_out": 1.0}, "shares"),
        ({"part_rows": 0}, "at least 1"),
        ({"model": "no/where/here"}, "no such folder"),
    ],
)
def test_options_that_cannot_be_leave_no_folder(made, tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        make(made[0], tmp_path / "new", **options)
    assert not (tmp_path / "new").exists()


def animated(path):
    photo(path, save_all=True, append_images=[Image.new("RGB", (96, 64))])


def truncated(path):
    photo(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def rotated(path):
    exif = Image.Exif()
    exif[0x0112] = 6
    photo(path, exif=exif)


def sixteen_bits(path):
    Image.fromarray(np.tile(np.linspace(0, 65535, 64).astype(np.uint16), (64, 1))).save(path)


GOOD = {"source_image": "s.png", "target_image": "t.png", "instruction": "edit"}
IMAGES = [  # name, maker, the reason of its refusal or None, part of the detail
    ("missing.png", None, "missing image", "does not exist"),
    ("noise.png", lambda p: p.write_bytes(os.urandom(999)), "unreadable image", "not an image"),
    ("half.jpg", truncated, "truncated image", "truncated"),
    ("zero.png", lambda p: p.touch(), "empty image", "zero bytes"),
    ("thin.png", lambda p: photo(p, 31, 64), "image too small", "31x64"),
    ("tiny.png", lambda p: photo(p, 32, 32), "image too small", "max_upscale"),
    ("bomb.png", lambda p: photo(p, 500, 500), "too many pixels", "max_pixels = 200000"),
    ("moving.gif", animated, "animated image", "2 frames"),
    ("https://example.com/a.png", None, "URL", "allow_urls"),
    ("copy.png", lambda p: photo(p, seed=2), "source is target", "same pixels"),
    ("cmyk.jpg", lambda p: photo(p, mode="CMYK"), None, ""),
    ("palette.gif", lambda p: photo(p, mode="P"), None, ""),
    ("deep.png", sixteen_bits, None, ""),
    ("alpha.png", lambda p: photo(p, mode="RGBA"), None, ""),
    ("turned.jpg", rotated, None, ""),
]
ROWS = [  # row, field, reason, part of the detail
    (GOOD | {"source_image": "t.png"}, "source_image", "source is target", "same file"),
    (GOOD | {"instruction": "", "instruction_cn": " "}, "instruction", "empty instruction", "both empty"),
    ({"image": "t.png", "prompt": "p"}, "columns", "wrong columns", "looks like diffsynth"),
    (GOOD | {"id": "first"}, "id", "duplicate id", "'first'"),
    (b'{"source_image": "\xff"}', "line", "invalid UTF-8", "UTF-8"),
    (b"{", "line", "invalid JSON", "JSON"),
    (GOOD | {"instruction": "<|image_pad|> here"}, "instruction", "unusable prompt", "<|image_pad|>"),
]


@pytest.fixture(scope="module")
def bad(tmp_path_factory):
    """(refusals by line, samples by row, what was printed) of a file with every kind of bad row, a good one first."""
    folder = tmp_path_factory.mktemp("bad")
    photo(folder / "s.png", seed=1)
    photo(folder / "t.png", seed=2)
    rows = [GOOD | {"id": "first"}, *(row for row, *_ in ROWS)]
    for name, maker, *_ in IMAGES:
        rows.append(GOOD | {"source_image": name})
        if maker:
            maker(folder / name)
    source = rows_to(folder / "edits.jsonl", *rows)
    out = make(source, folder / "out", max_refused=1.0, max_pixels=200_000, sizes=Sizes(96 * 96, 96 * 96, 56 * 56, 2.5))
    refused = [json.loads(line) for line in (out / "refused.jsonl").read_text().splitlines()]
    assert len({row["where"] for row in refused}) == len(refused)
    by_line = {int(row["where"].removeprefix(f"{source}:")): row for row in refused}
    data = json.loads((out / "data.json").read_text())
    return by_line, {sample.meta["row"]: sample for sample in samples(out).values()}, data


@pytest.mark.parametrize("number", range(len(ROWS)), ids=[case[2] for case in ROWS])
def test_a_bad_row_is_counted_by_file_line_and_field(bad, number):
    _, field, reason, detail = ROWS[number]
    refusal = bad[0][number + 2]
    assert (refusal["field"], refusal["reason"]) == (field, reason)
    assert detail in refusal["detail"]
    assert "\n" not in refusal["detail"]


@pytest.mark.parametrize("number", range(len(IMAGES)), ids=[case[0] for case in IMAGES])
def test_a_bad_image_is_counted_and_an_odd_one_converted(bad, number):
    name, _, reason, detail = IMAGES[number]
    refused, kept, _ = bad
    line = number + 2 + len(ROWS)
    if reason is None:
        assert f"edits.jsonl:{line}" in kept
        assert line not in refused
        return
    assert (refused[line]["field"], refused[line]["reason"]) == ("source_image", reason)
    assert name in refused[line]["detail"]
    assert detail in refused[line]["detail"]


def test_the_counts_add_up(bad):
    refused, kept, data = bad
    assert len(refused) + len(kept) == data["rows"] == 1 + len(ROWS) + len(IMAGES)
    assert sum(data["refused"].values()) == len(refused)
    assert data["kept"] == len(kept) == 6


def test_a_turned_photo_is_upright_in_the_data(bad):
    (sample,) = (s for s in bad[1].values() if s.meta["references"] == [[112, 64]] or s.meta["references"][0][0] > 96)
    assert sample.meta["row"] == f"edits.jsonl:{2 + len(ROWS) + len(IMAGES) - 1}"


def test_too_many_refusals_stop_it_and_what_is_done_stays(tmp_path, capsys):
    """Row 6 of 8 is the one too many; the first part stays, and with a higher limit the second run begins after it."""
    source = world(tmp_path / "w", 8)
    rows = source.read_bytes().splitlines()
    rows[5] = b"{"
    rows_to(source, *rows)
    out = tmp_path / "out"
    with pytest.raises(UserError) as error:
        make(source, out, max_refused=0.01)
    message = str(error.value)
    assert "1 of 8 rows refused, more than max_refused=0.01" in message
    assert f"{source}:6: line: not valid JSON" in message
    assert str(out / "refused.jsonl") in message
    assert "\n" not in message
    assert len((out / "refused.jsonl").read_text().splitlines()) == 1
    assert "1 invalid JSON" in capsys.readouterr().out
    assert not (out / "data.json").exists()
    first = (out / "parts" / "00000.json").stat().st_mtime_ns
    assert [path.name for path in (out / "parts").iterdir()] == ["00000.json"]
    make(source, out, max_refused=0.125)
    assert (out / "parts" / "00000.json").stat().st_mtime_ns == first
    assert len(samples(out)) == 7
    table = capsys.readouterr().out
    assert "7 of 8 rows" in table


def test_nothing_left_is_one_error(tmp_path):
    source = rows_to(tmp_path / "e.jsonl", b"{", b"[]")
    with pytest.raises(UserError, match="nothing is left to train on"):
        make(source, tmp_path / "out", max_refused=1.0)
    with pytest.raises(UserError, match="holds no rows"):
        make(rows_to(tmp_path / "none.jsonl", b""), tmp_path / "out2")


def test_a_full_disk_is_one_error_and_the_next_run_goes_on(made, tmp_path, monkeypatch):
    whole, real = files_of(made[1]), parts.ChunkWriter
    calls = []

    def full(folder):
        calls.append(folder)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(folder)

    monkeypatch.setattr(parts, "ChunkWriter", full)
    with pytest.raises(UserError, match="disk is full"):
        make(made[0], tmp_path / "out")
    make(made[0], tmp_path / "out")
    assert len(calls) == 4  # part 0, the failed one, then parts 1 and 2
    assert files_of(tmp_path / "out").keys() == whole.keys()


def test_held_out_edits_of_one_source_stay_together(tmp_path):
    out = make(world(tmp_path / "w", 24), tmp_path / "out", held_out=0.4, keep_images=False)
    sides = {}
    for sample in samples(out).values():
        i = int(sample.id[1:])
        group = f"t{i}" if i % 3 == 0 else f"s{i % 6}"
        sides.setdefault(group, set()).add(sample.meta["held_out"])
        assert bool(sample.images) == sample.meta["held_out"]
    assert all(len(side) == 1 for side in sides.values())
    assert {frozenset(side) for side in sides.values()} == {frozenset([True]), frozenset([False])}
    held_out = Index.open(out / "index" / "held_out")
    assert len(held_out) == sum(s.meta["held_out"] for s in samples(out).values())
    assert len(held_out) + len(Index.open(out / "index" / "train")) == 24


def test_an_inverted_edit_swaps_the_images(tmp_path):
    photo(tmp_path / "s.png", 96, 64, seed=1)
    photo(tmp_path / "t.png", 64, 64, seed=2)
    row = GOOD | {"id": "x", "inverse_instruction": "undo", "task": "a"}
    both = samples(make(rows_to(tmp_path / "e.jsonl", row), tmp_path / "out", sizes=Sizes(64 * 64, 64 * 64, 56 * 56)))
    edit, inverted = both["x"], both["x.inverse"]
    assert inverted.images["target"] == edit.images["reference.0"]
    assert torch.equal(inverted.tensors["target"], edit.tensors["reference.0"])
    assert torch.equal(inverted.tensors["reference.0"], edit.tensors["target"])
    assert inverted.meta["instructions"] == {"original/en": "undo"}
    alone = samples(make(tmp_path / "e.jsonl", tmp_path / "out2", inverse=False))
    assert list(alone) == ["x"]


def test_bfloat16_is_stored_as_such(tmp_path):
    sample = samples(make(world(tmp_path / "w", 2), tmp_path / "out", dtype="bfloat16"))["r1"]
    assert {tensor.dtype for tensor in sample.tensors.values()} == {torch.bfloat16}


def test_sizes_are_said_before(made, tmp_path, capsys):
    make(made[0], tmp_path / "out")
    first = capsys.readouterr().out.splitlines()[0]
    said = float(first.split("about ")[1].split(" MB")[0])
    there = sum(path.stat().st_size for path in (tmp_path / "out" / "chunks").glob("*.bin")) / 1e6
    assert first.startswith("12 rows, about ")
    assert 0.5 < said / there < 3 or said == round(there)


def forked(source, out, **options):
    """A process that prepares; the models' modules are loaded here already."""
    child = os.fork()
    if child:
        return child
    with contextlib.suppress(BaseException):
        for number in (1, 2):
            os.dup2(os.open(os.devnull, os.O_WRONLY), number)
        make(source, out, **options)
        os._exit(0)
    os._exit(1)


def kill_at_random(source, out, rounds):
    """Prepare in processes that are killed, so many times, while they write a part; how many were."""
    chance, kills = random.Random(0), 0
    while True:
        child, until = forked(source, out), time.monotonic() + 100
        if kills < rounds:
            enough = parts_of(out) + kills % 2  # every other child may finish a part first
            while not any(out.glob(".part-*")) or parts_of(out) < enough:
                assert time.monotonic() < until
                if os.waitpid(child, os.WNOHANG)[0]:
                    return kills
                time.sleep(0.001)
            time.sleep(chance.random() * 0.03)
            os.kill(child, signal.SIGKILL)
            kills += 1
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if code == 0:
            return kills
        assert code == -signal.SIGKILL


def parts_of(out):
    return len(list((out / "parts").glob("*.json")))


def test_killed_and_run_again_it_is_the_same_data(made, tmp_path):
    """kill -9 at random moments while a part is written: the same files as uninterrupted, byte for byte."""
    source, out = made
    assert kill_at_random(source, tmp_path / "out", 4) >= 2
    killed, whole = files_of(tmp_path / "out"), files_of(out)
    assert killed.keys() == whole.keys()
    assert [name for name in whole if killed[name] != whole[name]] == []


def test_real_edits_are_kept_whole(shared_data, tmp_path, capsys):
    out = make(shared_data / "real_edits" / "edits.jsonl", tmp_path / "out", held_out=0.1, part_rows=10)
    assert "23 of 23 rows" in capsys.readouterr().out
    data = json.loads((out / "data.json").read_text())
    assert (data["kept"], data["samples"], data["refused"]) == (23, 23, {})
    assert data["captions"] == {"original/cn": 15, "original/en": 11}
    assert {sample.meta["target_text"] for sample in samples(out).values()} == {"", "2nd Edition"}
