"""Regions and masks go from the row's pixels to those of the stored crop; what cannot be meant is refused by name."""

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from datamodules.edits import EditDataModule
from datamodules.prepare.write import prepare
from datamodules.sources import masks
from datamodules.sources.images import BadImageError, crop, load, window
from datamodules.sources.records import Refusal, read
from datamodules.sources.regions import check_inside, mirrored, stacked, through
from firered_lit.models.sizes import Sizes, assign, shape_table

SIZES = [(101, 67), (64, 97), (333, 151), (75, 75), (160, 96), (97, 201), (64, 64)]  # (width, height)
FACE = [[30.0, 30.0], [50.0, 31.0], [40.0, 40.0], [33.0, 50.0], [48.0, 51.0]]


def canvas(size, area=96 * 96):
    return assign(size[1], size[0], shape_table(area))


def centre(image):
    """The centre of brightness, in pixels whose centres are integers."""
    light = np.asarray(image.convert("L")).astype(float)
    y, x = np.indices(light.shape)
    return (light * x).sum() / light.sum(), (light * y).sum() / light.sum()


@pytest.mark.parametrize("size", SIZES)
def test_a_dot_lies_where_its_point_says(size):
    shape, points = canvas(size), [(0.5, 0.5), (0.45, 0.6), (0.55, 0.4), (0.5, 0.7), (0.6, 0.5)]
    face = [(float(round(x * size[0])), float(round(y * size[1]))) for x, y in points]
    (moved,) = through([tuple(face)], window(size, shape), shape)
    for (x, y), expected in zip(face, moved):
        image = Image.new("RGB", size)
        image.paste("white", (int(x) - 1, int(y) - 1, int(x) + 2, int(y) + 2))  # 3 x 3 pixels around the point
        assert centre(crop(image, shape)) == pytest.approx(expected, abs=0.12)


@pytest.mark.parametrize("size", SIZES)
def test_a_painted_box_is_the_box_of_the_crop(size):
    shape = canvas(size)
    box = ((round(size[0] * 0.3), round(size[1] * 0.35)), (round(size[0] * 0.7), round(size[1] * 0.6)))
    (((left, top), (right, bottom)),) = through([box], window(size, shape), shape)
    image = Image.new("RGB", size)
    image.paste("white", (*box[0], *box[1]))
    light = np.asarray(crop(image, shape).convert("L")).astype(float) / 255
    assert light.sum() == pytest.approx((right - left) * (bottom - top), rel=0.02)
    assert centre(crop(image, shape)) == pytest.approx(((left + right - 1) / 2, (top + bottom - 1) / 2), abs=0.05)


def test_what_leaves_the_crop_is_left_out():
    size, shape = (300, 100), (64, 128)  # 50 columns are cut off at each side
    box = [((60.0, 10.0), (240.0, 90.0)), ((40.0, 10.0), (90.0, 90.0)), ((210.0, 10.0), (260.0, 90.0))]
    face = tuple((x + 30, y) for x, y in FACE)
    kept = through([*box, face, tuple((x - 1, y) for x, y in face)], window(size, shape), shape)
    assert [len(region) for region in kept] == [2, 5, 5]
    assert through([tuple((x - 12, y) for x, y in face)], window(size, shape), shape) == []
    assert through([((0.0, 0.0), (64.0, 64.0))], window((64, 64), (64, 64)), (64, 64)) == [((0, 0), (64, 64))]


@pytest.mark.parametrize("size", SIZES)
def test_a_mask_lies_on_the_crop_as_its_picture_does(size):
    """Of the target's size, of half of it, and of the source's, which is cropped in its own way."""
    shape = canvas(size)
    picture = Image.new("L", size)
    box = [round(part * side) for part, side in zip((0.25, 0.3, 0.65, 0.7), size * 2)]
    picture.paste(255, box)
    expected = np.asarray(crop(picture, shape)) >= 128
    found = np.asarray(masks.on_crop(picture, [(size, shape)], shape, "mask"))
    assert found.dtype == bool
    assert (found != expected).mean() < 0.01
    assert 0.1 < expected.mean() < 0.3
    double = picture.resize((size[0] * 2, size[1] * 2), Image.Resampling.NEAREST)
    assert (np.asarray(masks.on_crop(double, [(size, shape)], shape, "mask")) != expected).mean() < 0.01
    other = (2 * size[1], 5 * size[0])  # the target's size: the mask is of the source's
    moved = masks.on_crop(picture, [(other, (64, 32)), (size, shape)], (64, 32), "mask")
    whole = crop(picture, shape).resize((32, 64), Image.Resampling.BILINEAR)
    assert (np.asarray(moved) != (np.asarray(whole) >= 128)).mean() < 0.02


def test_a_mask_survives_its_storing_and_a_sample_without_one_may_change_anywhere():
    drawn = Image.new("1", (48, 32))
    ImageDraw.Draw(drawn).ellipse((5, 7, 30, 20), fill=1)
    batch = masks.stacked([{masks.KEY: masks.packed(drawn)}, {}])
    assert batch.shape == (2, 1, 32, 48)
    assert torch.equal(batch[0, 0], torch.from_numpy(np.array(drawn)).float())
    assert bool((batch[1] == 1).all())
    assert masks.stacked([{}, {}]) is None


def test_white_or_transparent_is_what_may_change(tmp_path):
    grey = Image.new("L", (64, 64), 40)
    grey.paste(255, (0, 0, 32, 64))
    grey.save(tmp_path / "white.png")
    photo = Image.new("RGBA", (64, 64), (250, 90, 200, 255))
    photo.paste((0, 0, 0, 0), (0, 0, 32, 64))
    photo.save(tmp_path / "hole.png")
    for name in ("white.png", "hole.png"):
        light = np.asarray(load(tmp_path / name, mask=True)) >= 128
        assert light[:, :32].all()
        assert not light[:, 32:].any()
    unclear = Image.new("RGBA", (64, 64), (255, 255, 255, 0))
    unclear.paste((255, 255, 255, 255), (0, 0, 32, 64))
    unclear.save(tmp_path / "unclear.png")
    with pytest.raises(BadImageError, match="white on transparent"):
        load(tmp_path / "unclear.png", mask=True)


def test_faces_and_boxes_share_a_batch():
    face, box = tuple(map(tuple, FACE)), ((1.0, 2.0), (3.0, 4.0))
    both = stacked([[face, box], [], [box]])
    assert both.shape == (3, 2, 5, 2)
    assert torch.equal(both[0, 0], torch.tensor(FACE))
    assert torch.equal(both[2, 0, :2], torch.tensor(box))
    assert int(both.isfinite().all(-1).sum()) == 5 + 2 + 2
    assert stacked([[box], []]).shape == (2, 1, 2, 2)
    assert stacked([[], []]) is None


def test_left_and_right_are_as_seen_however_a_face_is_turned():
    face = np.array(FACE)
    swapped = face[[1, 0, 2, 4, 3]]
    for angle in np.linspace(0, 2 * np.pi, 9):
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        assert not mirrored(face @ turn)
        assert mirrored(swapped @ turn)
    profile = [[40.0, 30.0], [39.0, 31.0], [52.0, 40.0], [41.0, 52.0], [40.0, 52.0]]
    assert not mirrored(profile)


ROW = {"source_image": "s.png", "target_image": "t.png", "instruction": "red", "id": "x"}
BAD = [  # columns, field, part of the detail
    ({"regions": {"box": [0, 0, 9, 9]}}, "regions", "expected a list"),
    ({"regions": [[0, 0, 9, 9]]}, "regions[0]", 'a region is {"points"'),
    ({"regions": [{"box": [0, 0, 9, 9], "points": FACE}]}, "regions[0]", "a region is"),
    ({"regions": [{"box": [0, 0, 9, 9]}, {"box": [9, 0, 0, 9]}]}, "regions[1]", "spans less than 2 pixels"),
    ({"regions": [{"box": [0.1, 0.2, 0.7, 0.8]}]}, "regions[0]", "in pixels"),
    ({"regions": [{"box": [0, 0, "9", 9]}]}, "regions[0]", "[left, top, right, bottom]"),
    ({"regions": [{"box": [0, 0, 9, float("nan")]}]}, "regions[0]", "[left, top, right, bottom]"),
    ({"landmarks": [FACE[:4]]}, "landmarks[0]", "5 points"),
    ({"landmarks": [[[x / 100, y / 100] for x, y in FACE]]}, "landmarks[0]", "pixels are expected"),
    ({"landmarks": [[FACE[i] for i in (1, 0, 2, 4, 3)]]}, "landmarks[0]", "left and right are swapped"),
    ({"landmarks": [FACE], "regions": []}, "regions", "both name regions"),
    ({"inverse_landmarks": [FACE[:3]], "inverse_instruction": "undo"}, "inverse_landmarks[0]", "5 points"),
]


def rows_to(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(("columns", "field", "detail"), BAD)
def test_a_bad_region_is_refused_by_line_and_field(tmp_path, columns, field, detail):
    path = rows_to(tmp_path / "e.jsonl", ROW | {"id": "first"}, ROW | columns)
    good, refusal = read(path)
    assert isinstance(refusal, Refusal)
    assert not isinstance(good, Refusal)
    assert (refusal.where, refusal.field, refusal.reason) == (f"{path}:2", field, "bad region")
    assert detail in refusal.detail
    assert "\n" not in str(refusal)


def test_landmarks_are_regions_and_the_inverse_has_its_own(tmp_path):
    box = {"box": [1, 2, 30, 40], "points": None}
    row = ROW | {"inverse_instruction": "undo", "regions": [box, {"points": FACE}], "mask": "m.png"}
    edit, inverted = read(rows_to(tmp_path / "a.jsonl", row))
    assert edit.regions == (((1.0, 2.0), (30.0, 40.0)), tuple(map(tuple, FACE)))
    assert inverted.regions == ()
    assert edit.mask == inverted.mask == str(tmp_path / "m.png")
    row |= {"regions": None, "landmarks": [FACE], "inverse_regions": [box]}
    edit, inverted = read(rows_to(tmp_path / "b.jsonl", row))
    assert (edit.regions, inverted.regions) == ((tuple(map(tuple, FACE)),), (((1.0, 2.0), (30.0, 40.0)),))


def test_a_cell_of_a_csv_file_holds_regions(tmp_path):
    cell = json.dumps([{"box": [1, 2, 30, 40]}]).replace('"', '""')
    (tmp_path / "e.csv").write_text(f'source_image,target_image,instruction,regions\ns.png,t.png,red,"{cell}"\n')
    (record,) = read(tmp_path / "e.csv")
    assert record.regions == (((1.0, 2.0), (30.0, 40.0)),)


def test_a_region_of_another_picture_is_refused():
    check_inside([tuple(map(tuple, FACE))], (60, 60), "regions")
    with pytest.raises(Exception, match="outside of the target, which has 30x30 pixels"):
        check_inside([tuple(map(tuple, FACE))], (30, 30), "regions")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(folder, prepared) of a face, a box and a mask on targets of 101 x 67, one edit without, and rows to refuse."""
    folder = tmp_path_factory.mktemp("regions")
    rng = np.random.default_rng(0)
    for name, size in {"s": (101, 67), "t": (101, 67), "u": (101, 67), "turned": (101, 67)}.items():
        noise = Image.fromarray(rng.integers(0, 90, (8, 8, 3), np.uint8)).resize(size)
        exif = Image.Exif()
        exif[0x0112] = 3 if name == "turned" else 1
        noise.save(folder / f"{name}.png", exif=exif)
    target = Image.open(folder / "t.png").convert("RGB")
    for x, y in FACE:
        target.paste("white", (int(x), int(y), int(x) + 1, int(y) + 1))
    target.save(folder / "t.png")
    mask = Image.new("L", (101, 67))
    mask.paste(255, (20, 20, 61, 57))
    mask.save(folder / "m.png")
    Image.new("L", (50, 90), 255).save(folder / "other.png")
    bare = {"source_image": "s.png", "instruction": "red"}
    face = bare | {"target_image": "t.png", "regions": [{"points": FACE}, {"box": [0, 0, 101, 67]}]}
    rows = [
        face | {"id": "face", "mask": "m.png", "inverse_instruction": "undo", "target_text": "new"},
        bare | {"id": "plain", "target_image": "u.png", "replaced_text": "old", "requirement": "is it red"},
        face | {"id": "turned", "target_image": "turned.png"},
        face | {"id": "far", "regions": [{"box": [90, 60, 190, 160]}]},
        face | {"id": "odd", "mask": "other.png"},
        face | {"id": "gone", "mask": "none.png"},
        face | {"id": "same", "mask": "t.png"},
    ]
    sizes = Sizes(96 * 96, 96 * 96, 56 * 56)
    options = {"sizes": sizes, "device": "cpu", "max_refused": 1.0, "part_rows": 8}
    prepare(str(rows_to(folder / "e.jsonl", *rows)), str(folder / "out"), "tiny", held_out=0.0, **options)
    prepare(str(folder / "e.jsonl"), str(folder / "held"), "tiny", held_out=0.999, **options)
    return folder, folder / "out"


def test_prepare_counts_what_it_carries_and_refuses_the_rest(made):
    _, out = made
    data = json.loads((out / "data.json").read_text())
    assert (data["samples"], data["regions"], data["regions_left_crop"], data["masks"]) == (3, 1, 1, 2)
    lines = (out / "refused.jsonl").read_text().splitlines()
    refused = {row["where"].rpartition(":")[2]: row for row in map(json.loads, lines)}
    expected = {
        "3": ("regions", "bad region", "EXIF"),
        "4": ("regions[0]", "bad region", "outside of the target, which has 101x67 pixels"),
        "5": ("mask", "bad mask", "50x90"),
        "6": ("mask", "missing image", "none.png does not exist"),
        "7": ("mask", "bad mask", "one of the edit's pictures"),
    }
    assert refused.keys() == expected.keys()
    for line, (field, reason, detail) in expected.items():
        assert (refused[line]["field"], refused[line]["reason"]) == (field, reason)
        assert detail in refused[line]["detail"]


def batches(folder, **options):
    data = EditDataModule(str(folder), capacity=10**9, workers=0, text_drop=0.0, plan_ranks=1, **options)
    return data, data.train_dataloader


def test_a_training_batch_has_them_on_the_stored_crop(made):
    _, out = made
    data, loader = batches(out)
    seen = {}
    for _, batch in zip(range(data.train_dataloader().plan.steps()), loader()):
        for i, name in enumerate(batch.ids):
            seen[name] = batch, i
    data.teardown("fit")
    batch, i = seen["face"]
    chunks = data.chunks()
    crops = {s.id: s.images["target"] for s in (chunks.read(k, images=True) for k in range(len(chunks)))}
    light = np.asarray(Image.open(io.BytesIO(crops["face"])).convert("L")).astype(float)
    points = batch.regions[i, 0]
    assert points.shape == (5, 2)
    assert bool(batch.regions[i, 1:].isnan().all())
    for x, y in points.tolist():
        ys, xs = np.indices(light.shape)
        near = (np.hypot(xs - x, ys - y) < 3.5) * (light - 90).clip(0)
        assert (near * xs).sum() / near.sum() == pytest.approx(x, abs=0.3)
        assert (near * ys).sum() / near.sum() == pytest.approx(y, abs=0.3)
    mask = batch.mask[i, 0].numpy()
    assert mask.shape == light.shape
    assert 0.15 < mask.mean() < 0.3
    assert all(mask[round(y), round(x)] for x, y in points.tolist())
    plain, k = seen["plain"]
    assert plain.regions is None or bool(plain.regions[k].isnan().all())
    assert plain.mask is None or bool((plain.mask[k] == 1).all())
    assert plain.facts[k].columns() == {"replaced_text": "old", "requirement": "is it red"}
    assert batch.facts[i].columns() == {"target_text": "new"}
    inverted, k = seen["face.inverse"]
    assert inverted.regions is None or bool(inverted.regions[k].isnan().all())
    assert torch.equal(inverted.mask[k], batch.mask[i])


def test_a_validation_batch_has_them_too(made):
    data, _ = batches(made[0] / "held")
    (shown,) = (batch for batch in data.val_dataloader() if batch.ids == ("face",))
    assert shown.regions.shape == (1, 1, 5, 2)
    assert shown.mask.shape == (1, 1, *shown.pixels.shape[-2:])
