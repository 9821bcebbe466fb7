"""Preference pairs from the layouts that users have to batches: which side is the winner, one shape, one loader."""

import json
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.chunks.samples import Chunks
from datamodules.edits import EditDataModule
from datamodules.preferences import PreferenceDataModule
from datamodules.prepare.write import prepare
from datamodules.sampling.captions import UNCONDITIONAL
from datamodules.sources import images
from datamodules.sources.records import Refusal, read
from firered_lit.batch import PreferenceBatch
from firered_lit.errors import UserError
from firered_lit.models.codec import to_pixels
from firered_lit.models.family import open_base
from firered_lit.models.sizes import Sizes

OWN = {"source_image": "s.png", "chosen_image": "w.png", "rejected_image": "l.png", "instruction": "red"}
EDIT_REWARD = {"path_src": "s.png", "path1": "w.png", "path2": "l.png", "prompt": "red"}
LONGCAT = {"ref_img_path": "s.png", "img_path_win": "w.png", "img_path_lose": "l.png", "prompt": "red"}
LAYOUTS = [OWN, EDIT_REWARD, LONGCAT]


def write(path: Path, *rows: dict) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def only(folder: Path, row: dict):
    (item,) = read(write(folder / "pairs.jsonl", row))
    return item


def picture(folder: Path, name: str, size: tuple[int, int] = (128, 128), seed: int | None = None) -> Image.Image:
    """Smooth random colours, saved."""
    rng = np.random.default_rng(abs(hash(name)) % 1000 if seed is None else seed)
    small = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
    image = small.resize(size, Image.Resampling.BICUBIC)
    image.save(folder / name)
    return image


@pytest.mark.parametrize("row", LAYOUTS)
def test_each_layout_names_its_winner_loser_and_source(tmp_path, row):
    record = only(tmp_path, row | {"task": "colour"})
    assert record.target == str(tmp_path / "w.png")
    assert record.loser == str(tmp_path / "l.png")
    assert record.references == (str(tmp_path / "s.png"),)
    assert record.instructions == {"original/en": "red"}
    assert record.task == "colour"


@pytest.mark.parametrize("row", [EDIT_REWARD, LONGCAT])
def test_a_prompt_in_chinese_is_chinese(tmp_path, row):
    assert only(tmp_path, row | {"prompt": "变红"}).instructions == {"original/cn": "变红"}


def test_pairs_have_no_inverse(tmp_path):
    """An inverse would teach to restore the source from the winner, with nothing to lose against."""
    assert only(tmp_path, OWN | {"inverse_instruction": "back"}).loser


BAD = [
    (OWN | {"rejected_image": "w.png"}, "rejected_image", "winner is loser"),
    (OWN | {"rejected_image": "x/../w.png"}, "rejected_image", "winner is loser"),
    (OWN | {"source_image": "w.png"}, "source_image", "source is winner"),
    (OWN | {"source_image": ["s.png", "l.png"]}, "source_image", "source is loser"),
    (OWN | {"target_image": "t.png"}, "target_image", "several targets"),
    (OWN | {"chosen_image": None}, "chosen_image", "wrong type"),
    (OWN | {"instruction": " "}, "instruction", "empty instruction"),
    (EDIT_REWARD | {"prompt": ""}, "prompt", "empty instruction"),
    (EDIT_REWARD | {"path2": "w.png"}, "path2", "winner is loser"),
    (LONGCAT | {"ref_img_path": "l.png"}, "ref_img_path", "source is loser"),
    ({k: v for k, v in OWN.items() if k != "source_image"}, "columns", "wrong columns"),
    ({k: v for k, v in LONGCAT.items() if k != "prompt"}, "columns", "wrong columns"),
]


@pytest.mark.parametrize(("row", "field", "reason"), BAD)
def test_a_wrong_pair_is_refused_in_one_line(tmp_path, row, field, reason):
    refusal = only(tmp_path, row)
    assert isinstance(refusal, Refusal), refusal
    assert (refusal.field, refusal.reason) == (field, reason)
    assert str(tmp_path / "pairs.jsonl:1") in str(refusal)
    assert "\n" not in str(refusal)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"img_path_win": "w", "img_path_lose": "l"}, "expected ref_img_path, img_path_win, img_path_lose, prompt"),
        ({"chosen_image": "w", "rejected_image": "l"}, "expected source_image, chosen_image, rejected_image, instr"),
    ],
)
def test_an_incomplete_layout_is_told_what_it_lacks(tmp_path, row, expected):
    assert expected in only(tmp_path, row).detail


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """Ten pairs: sides of one size, of two sizes, and two that show wrong pixels under other names."""
    folder = tmp_path_factory.mktemp("pairs")
    rows = []
    for i in range(8):
        wide = i % 2
        picture(folder, f"s{i}.png", (192, 96) if wide else (128, 128), 10 * i)
        picture(folder, f"w{i}.png", (192, 96) if wide and i != 5 else (128, 128), 10 * i + 1)
        picture(folder, f"l{i}.png", (96, 192) if i in (3, 4) else (192, 96) if wide else (128, 128), 10 * i + 2)
        rows.append({"source_image": f"s{i}.png", "chosen_image": f"w{i}.png", "rejected_image": f"l{i}.png"})
    Image.open(folder / "w0.png").save(folder / "same.png")
    rows.append({"source_image": "s0.png", "chosen_image": "w0.png", "rejected_image": "same.png"})
    rows.append({"source_image": "s2.png", "chosen_image": "w2.png", "rejected_image": "copy.png"})
    Image.open(folder / "s2.png").save(folder / "copy.png")
    write(folder / "pairs.jsonl", *(row | {"instruction": f"edit {i}", "id": i} for i, row in enumerate(rows)))
    return folder / "pairs.jsonl"


@pytest.fixture(scope="module")
def root(source, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("prepared") / "data"
    prepare(str(source), str(out), "tiny", max_refused=0.2, held_out=0.3, workers=1)
    return out


def samples(root: Path):
    chunks = Chunks(root / "chunks")
    return {sample.id: sample for sample in (chunks.read(i, images=True) for i in range(len(chunks)))}


def test_pairs_that_show_the_same_pixels_are_refused_and_counted(root):
    content = json.loads((root / "data.json").read_text())
    assert content["refused"] == {"winner is loser": 1, "source is loser": 1}
    assert content["samples"] == content["pairs"] == 8


def test_both_sides_get_one_shape_and_the_source_decides_when_they_differ(root, source):
    base = open_base("tiny")
    codec = base.codec()
    for name, sample in samples(root).items():
        sides = [Image.open(source.parent / f"{side}{name}.png").convert("RGB") for side in "wls"]
        leader = sides[2] if sides[0].size != sides[1].size else sides[0]
        shape = images.assign(leader.height, leader.width, images.shape_table(base.sizes.target_area))
        assert sample.meta["target"] == list(shape)
        for side, key in zip(sides, ("target", "loser")):
            expected = codec.encode(to_pixels(images.crop(side, shape))[None])[0]
            torch.testing.assert_close(sample.tensors[key], expected)


def test_all_pairs_of_a_source_are_held_out_together_with_both_pictures(root):
    held = [sample for sample in samples(root).values() if sample.meta["held_out"]]
    assert held
    assert all({"target", "loser", "reference.0"} <= sample.images.keys() for sample in held)


def test_batches_hold_winner_and_loser_of_the_same_ids(root):
    stored = samples(root)
    data = PreferenceDataModule(str(root), capacity=1024, workers=0, text_drop=0)
    for batch in islice(data.train_dataloader(), 6):
        assert isinstance(batch, PreferenceBatch)
        assert batch.tokens <= 1024
        for i, name in enumerate(batch.ids):
            assert torch.equal(batch.winner[i], stored[name].tensors["target"])
            assert torch.equal(batch.loser[i], stored[name].tensors["loser"])
            assert torch.equal(batch.condition.references[0][i], stored[name].tensors["reference.0"])
    held = next(iter(data.val_dataloader()))
    assert held.loser.shape == held.winner.shape
    assert held.pixels is not None


def test_both_sides_come_with_the_same_condition(root):
    data = PreferenceDataModule(str(root), capacity=1024, workers=0)
    batch = next(iter(data.train_dataloader()))
    images_of_both, condition = batch.both()
    n = len(batch)
    assert torch.equal(images_of_both, torch.cat([batch.winner, batch.loser]))
    for rows in (*condition.references, condition.text.embeddings):
        assert torch.equal(rows[:n], rows[n:])
    assert (condition.text.mask is None) == (batch.condition.text.mask is None)


def test_a_preference_is_never_learnt_without_its_instruction(root):
    """Diffusion-DPO draws no unconditional text; supervised fine-tuning draws it for 5 % of the visits."""

    def share(data):
        drawn = [data.captions.draw({"original/en": "red"}, 0, step, 0) for step in range(4000)]
        return drawn.count(UNCONDITIONAL) / len(drawn)

    assert share(PreferenceDataModule(str(root), capacity=1024)) == 0
    assert share(EditDataModule(str(root), capacity=1024)) == pytest.approx(0.05, abs=0.01)
    assert share(PreferenceDataModule(str(root), capacity=1024, text_drop=0.1)) == pytest.approx(0.1, abs=0.02)


def test_the_capacity_counts_both_sides(root):
    """128 px: 64 tokens an image, target and reference twice."""
    data = PreferenceDataModule(str(root), capacity=520, workers=0)
    assert max(len(batch) for batch in islice(data.train_dataloader(), 8)) == 2
    with pytest.raises(UserError, match=r"data.capacity=200: sample .* of bucket .* has 2\d\d tokens, both sides"):
        PreferenceDataModule(str(root), capacity=200, workers=0).train_dataloader()


def test_pairs_and_edits_go_through_one_loader_and_plan(root):
    """The plan of pairs is that of edits at half the capacity; supervised fine-tuning may train on the winners."""
    pairs = PreferenceDataModule(str(root), capacity=1024, workers=0).train_dataloader()
    edits = EditDataModule(str(root), capacity=512, workers=0, text_drop=0.0).train_dataloader()
    for a, b in zip(islice(pairs, 9), edits):
        assert (a.facts, a.slots, a.step) == (b.facts, b.slots, b.step)
        assert torch.equal(a.target, b.target)


def test_rows_of_several_images_become_several_samples(tmp_path):
    """Pico-Banana's pairs share their winner, ImgEdit's edits their source; a row is prepared whole or not at all."""
    for seed, name in enumerate(["s", "t", "l", "m"]):
        picture(tmp_path, f"{name}.png", seed=seed)
    pico = {"local_input_image": "s.png", "output_image": "t.png", "rejected_images": ["l.png", "m.png"], "text": "red"}
    bad = pico | {"id": "b", "rejected_images": ["l.png", "x.png"]}
    source = write(tmp_path / "pico.jsonl", pico | {"id": "a"}, bad)
    sizes = Sizes(64 * 64, 64 * 64, 56 * 56)
    options = {"model": "tiny", "sizes": sizes, "held_out": 0.0, "device": "cpu", "max_refused": 0.5}
    prepare(str(source), str(tmp_path / "pairs"), **options)
    found = samples(tmp_path / "pairs")
    assert list(found) == ["a.0", "a.1"]
    first, second = found.values()
    assert torch.equal(first.tensors["target"], second.tensors["target"])
    assert not torch.equal(first.tensors["loser"], second.tensors["loser"])
    (batch,) = islice(PreferenceDataModule(str(tmp_path / "pairs"), capacity=128, workers=0).train_dataloader(), 1)
    assert sorted(batch.ids) == ["a.0", "a.1"]
    edits = {"input_images": ["s.png"], "output_images": ["t.png", "l.png"], "prompt": "red", "id": "c"}
    prepare(str(write(tmp_path / "imgedit.jsonl", edits)), str(tmp_path / "edits"), **options)
    first, second = samples(tmp_path / "edits").values()
    assert (first.id, second.id) == ("c.0", "c.1")
    assert torch.equal(first.tensors["reference.0"], second.tensors["reference.0"])
    assert not torch.equal(first.tensors["target"], second.tensors["target"])


def test_edits_without_a_loser_are_refused(tmp_path):
    for name in "st":
        picture(tmp_path, f"{name}.png", seed=ord(name))
    write(tmp_path / "e.jsonl", {"source_image": "s.png", "target_image": "t.png", "instruction": "x"})
    prepare(str(tmp_path / "e.jsonl"), str(tmp_path / "data"), "tiny", held_out=0, workers=1)
    with pytest.raises(UserError, match="1 of 1 samples have no loser; DPO needs pairs alone"):
        PreferenceDataModule(str(tmp_path / "data"), capacity=1024).check(open_base("tiny"))


def test_real_preferences_go_through(shared_data, tmp_path):
    """13 of 13 rows; most pairs differ in size, so the source decides."""
    source = shared_data / "real_edits" / "preferences.jsonl"
    prepare(str(source), str(tmp_path / "data"), "tiny", held_out=0, workers=2)
    content = json.loads((tmp_path / "data" / "data.json").read_text())
    assert (content["kept"], content["pairs"], content["refused"]) == (13, 13, {})
    data = PreferenceDataModule(str(tmp_path / "data"), capacity=1024, workers=0).train_dataloader()
    seen = [name for batch in islice(data, len(data)) for name in batch.ids]
    assert len(seen) == len(set(seen)) == 13
