"""Edits of photographs with exact answers, the rows that `prepare` reads, and the rule by which an edit is right."""

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from benchmarks import photo_edits
from callbacks.lettering import Lettering
from datamodules import photos
from datamodules.photos import EDITS, Picture, crop, cyanotype, passe_partout, portrait, samples, write
from datamodules.sources.records import Record, read
from firered_lit.draws import chooser
from firered_lit.models.words import MEANINGS, tokens

pictures = arrays(np.uint8, st.tuples(st.integers(16, 40), st.integers(16, 40), st.just(3)))
some = settings(max_examples=30, deadline=None)


def noise(*key: object, side: int = 64) -> Picture:
    return np.random.default_rng(len(repr(key))).integers(0, 256, (side, side, 3), dtype=np.uint8)


@some
@given(pictures)
@pytest.mark.parametrize("edit", EDITS, ids=lambda edit: edit.task)
def test_an_edit_is_a_pure_function_that_keeps_shape_and_mirrors_with_its_picture(edit, picture) -> None:
    kept = picture.copy()
    answer = edit.apply(picture)
    assert np.array_equal(picture, kept)
    assert answer.dtype == np.uint8
    assert answer.shape == picture.shape
    assert np.array_equal(edit.apply(picture[:, ::-1].copy()), answer[:, ::-1])


@some
@given(pictures)
def test_a_cyanotype_is_a_function_of_brightness_and_keeps_its_order(picture) -> None:
    grey = np.asarray(Image.fromarray(picture).convert("L"))
    answer = cyanotype(picture)
    assert np.array_equal(answer, cyanotype(np.repeat(grey[..., None], 3, axis=-1)))
    order = np.argsort(grey, axis=None)
    assert (np.diff(answer.reshape(-1, 3)[order].astype(int), axis=0) >= 0).all()
    assert (answer[..., 2] > answer[..., 0]).all()  # blue above red


def test_a_cyanotype_goes_from_its_dark_to_its_light() -> None:
    ends = np.array([[[0, 0, 0], [255, 255, 255]]], dtype=np.uint8)
    assert np.array_equal(cyanotype(ends)[0], [photos.CYAN_DARK, photos.CYAN_LIGHT])


@some
@given(pictures)
def test_a_passe_partout_leaves_its_window_alone_and_is_put_on_once(picture) -> None:
    answer = passe_partout(picture)
    rows = picture.shape[0] // 8
    columns = picture.shape[1] // 8
    inside = np.zeros(picture.shape[:2], dtype=bool)
    inside[rows:-rows, columns:-columns] = True
    assert np.array_equal(answer[inside], picture[inside])
    assert (answer[~inside] == 255).all()
    assert np.array_equal(passe_partout(answer), answer)


def test_no_instruction_is_one_that_the_shipped_weights_have_read() -> None:
    """Every instruction names its edit in a word that the small dictionary lacks; no two edits share an instruction."""
    asked = [text for edit in EDITS for text in (*edit.english, *edit.chinese)]
    assert len(set(asked)) == len(asked)
    known = {meaning for meanings in MEANINGS.values() for meaning in meanings}
    for text in asked:
        assert {word for word, _ in tokens(text)} - known, text


def test_a_crop_is_a_square_of_its_photograph() -> None:
    """On a photograph whose colours are its coordinates, the pixels of a crop say which place they are of."""
    rows, columns = np.mgrid[0:150, 0:240]
    photograph = np.stack([rows, columns, np.full_like(rows, 77)], axis=-1).astype(np.uint8)
    sides = []
    for number in range(50):
        small = crop(chooser("crop", number), photograph).astype(int)
        assert small.shape == (64, 64, 3)
        assert np.abs(small[..., 2] - 77).max() <= 1
        height = (small[-1, 0, 0] - small[0, 0, 0]) * 64 / 63
        width = abs(small[0, -1, 1] - small[0, 0, 1]) * 64 / 63
        assert height == pytest.approx(width, abs=4)
        sides.append(height)
    assert min(sides) == pytest.approx(50, abs=8)
    assert max(sides) > 120


def test_a_sample_is_a_function_of_seed_split_and_number() -> None:
    few = list(samples(6, 3, "train"))
    more = list(samples(10, 3, "train"))
    for one, same in zip(few, more):
        assert one.name == same.name
        assert one.english == same.english
        assert one.chinese == same.chinese
        assert np.array_equal(one.source, same.source)
    for seed, split in ((4, "train"), (3, "held_out")):
        others = list(samples(6, seed, split))
        assert not any(np.array_equal(one.source, other.source) for one in few for other in others)


def test_every_crop_is_asked_for_every_edit_and_answered_exactly() -> None:
    made = list(samples(12, 0, "train"))
    for place in range(0, 12, len(EDITS)):
        turn = made[place : place + len(EDITS)]
        assert [one.task for one in turn] == [edit.task for edit in EDITS]
        for one, edit in zip(turn, EDITS):
            assert np.array_equal(one.source, turn[0].source)
            assert np.array_equal(one.target, edit.apply(one.source))
            assert one.english in edit.english
            assert one.chinese in edit.chinese


def test_the_portrait_is_never_trained_on() -> None:
    """No photograph to train on is the held-out one, and crops come from the photographs of their split alone."""
    (held_out,) = photos.photographs("held_out")
    for photograph in photos.photographs("train"):
        assert photograph.shape != held_out.shape
    red = np.zeros((100, 100, 3), dtype=np.uint8)
    red[..., 0] = 200
    for one in samples(8, 0, "train", photos=[red]):
        assert (one.source == red[0, 0]).all()
    square = portrait()
    assert square.shape[0] == square.shape[1] == min(held_out.shape[:2])


def test_prepare_reads_every_row(tmp_path: Path) -> None:
    write(tmp_path, count=6, held_out=4, seed=1)
    records = list(read(tmp_path / "edits.jsonl"))
    assert all(isinstance(record, Record) for record in records)
    assert [record.held_out for record in records] == [False] * 6 + [True] * 4
    made = [*samples(6, 1, "train"), *samples(4, 1, "held_out")]
    for record, one in zip(records, made, strict=True):
        assert record.id == one.name
        assert record.task == one.task
        assert record.instructions == {"original/en": one.english, "original/cn": one.chinese}
        assert np.array_equal(np.asarray(Image.open(record.references[0])), one.source)
        assert np.array_equal(np.asarray(Image.open(record.target)), one.target)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "portrait.png")), portrait())
    credits = (tmp_path / "CREDITS.txt").read_text("utf-8")
    assert "danielbuechele" in credits
    assert "vultilion" in credits
    assert "CC BY 2.0" in credits


def test_a_folder_that_holds_something_is_not_written_to(tmp_path, monkeypatch, capsys) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    monkeypatch.setattr("sys.argv", ["photos", "--out", str(tmp_path)])
    with pytest.raises(SystemExit) as stopped:
        photos.main()
    assert stopped.value.code == 2
    assert "not an empty folder" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("wrong", [["--lora", "nowhere"], ["--lora", ".", "--crops", "0"], ["--lora", "."]])
def test_what_cannot_be_measured_is_one_line(tmp_path, monkeypatch, capsys, wrong) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["photo_edits", *wrong, "--out", "x.jpg"])
    with pytest.raises(SystemExit) as stopped:
        photo_edits.main()
    assert stopped.value.code == 2
    assert "error: " in capsys.readouterr().err.splitlines()[-1]
    assert not any(tmp_path.iterdir())


def moved(source: Picture, answer: Picture, share: float) -> Picture:
    """Return a picture on the way from the source to the answer."""
    return np.round(source + share * (answer.astype(float) - source)).astype(np.uint8)


def test_psnr_is_the_ratio_of_the_range_to_the_error_in_decibels() -> None:
    black = np.zeros((8, 8, 3), dtype=np.uint8)
    assert photo_edits.psnr(black, black) == math.inf
    assert photo_edits.psnr(black, black + 255) == 0
    assert photo_edits.psnr(black, black + 51) == pytest.approx(20 * math.log10(5))


@pytest.mark.parametrize("edit", EDITS, ids=lambda edit: edit.task)
def test_the_exact_answer_is_right_and_the_source_is_not(edit) -> None:
    source = noise(edit.task)
    answer = edit.apply(source)
    assert photo_edits.is_right(answer, source, answer)
    assert not photo_edits.is_right(source, source, answer)
    assert not photo_edits.is_right(255 - answer, source, answer)


def test_nearer_to_the_answer_is_never_less_right() -> None:
    source = noise("source")
    answer = cyanotype(source)
    verdicts = [photo_edits.is_right(moved(source, answer, k / 20), source, answer) for k in range(21)]
    assert verdicts == sorted(verdicts)
    assert not verdicts[0]
    assert verdicts[-1]


def test_a_right_edit_is_near_the_answer_and_nearer_than_its_source() -> None:
    """A change of few pixels is near its answer from the start: to be right, an edit must come 6 dB nearer."""
    answer = noise("answer", side=32)
    far = answer.copy()
    far[:3] = 255 - far[:3]
    near = moved(answer, far, 0.1)
    assert photo_edits.psnr(near, answer) > 22
    assert not photo_edits.is_right(near, near, answer)
    assert not photo_edits.is_right(moved(near, answer, 0.3), near, answer)  # 3 dB nearer
    assert photo_edits.is_right(moved(near, answer, 0.9), near, answer)
    distant = 255 - answer
    half = moved(distant, answer, 0.7)  # 10 dB nearer, and still far
    assert photo_edits.psnr(half, answer) < 22
    assert not photo_edits.is_right(half, distant, answer)
    assert not photo_edits.is_right(answer, answer, answer)  # nothing was asked for


def test_what_is_judged_counts_right_edits_and_rounds_down() -> None:
    asked = list(samples(6, 0, "held_out"))
    none = photo_edits.judge([one.source for one in asked], asked)
    assert (none.right, none.percent) == (0, 0)
    most = photo_edits.judge([*(one.target for one in asked[:-1]), asked[-1].source], asked)
    assert (most.right, most.count, most.percent) == (5, 6, 83)


def test_every_edit_is_asked_for_in_both_languages_and_the_picture_can_show_both() -> None:
    asked = list(samples(8 * len(EDITS), 0, "held_out"))
    lettering = Lettering(str(photo_edits.FONT))
    for turn, edit in enumerate(EDITS):
        texts = {photo_edits.instruction(asked[n], n) for n in range(turn, len(asked), len(EDITS))}
        assert texts & set(edit.english)
        assert texts & set(edit.chinese)
        for text in (edit.task, *edit.english, *edit.chinese):
            assert lettering.drawable(text) == text


def test_the_picture_holds_a_column_for_every_edit() -> None:
    asked = list(samples(4 * len(EDITS), 0, "held_out"))
    sources = [one.source for one in asked]
    targets = [one.target for one in asked]
    picture = photo_edits.before_and_after(asked, sources, targets)
    assert picture.width > len(EDITS) * 4 * photo_edits.CELL
    again = photo_edits.before_and_after(asked, sources, targets)
    assert picture.tobytes() == again.tobytes()
