"""OCR reward: real PaddleOCR on drawn and on real text; its process killed, hung and broken."""

import io
import json
import logging
import math
import os
import pickle
import time
from concurrent.futures import wait
from pathlib import Path

import faulty_engines
import lightning as L
import numpy as np
import pytest
import torch
from faulty_engines import DIE, HANG, NONSENSE, RAISE
from PIL import Image
from rendered import paper, write

from callbacks.ocr.closeup import score_reading, score_where_due
from callbacks.ocr.engine import alike, cells_between, reading_order
from callbacks.ocr.layout import Layout, Layouts, read_layouts, replaced_layout
from callbacks.ocr.models import model, offline_models
from callbacks.ocr.reader import LayoutReader, TextReader
from callbacks.ocr.worker import EngineError, EngineProcess
from callbacks.rewards.image_statistics import image_statistics
from callbacks.rewards.ocr import OCRReward, default_engine, picture, score_images
from firered_lit.batch import Condition, EditBatch, Text
from firered_lit.errors import UserError
from firered_lit.facts import Facts
from firered_lit.models.codec import to_pixels
from firered_lit.models.tiny import cache_folder
from firered_lit.rewards.layout_ocr import cells, lines
from firered_lit.rewards.protocol import Reward

MIDDLE = (256, 120)
CASES = [  # text, another with some letters in common, letters in px
    ("2nd Edition", "Hard Version", 24),
    ("SALE 50%", "SOUP 20%", 28),
    ("Hello World", "Cold Winter", 24),
    ("Open Daily", "Shut Today", 26),
    ("No. 42", "No way", 32),
    ("2026.11.23", "1984.06.05", 26),
    ("新年快乐", "三年请安", 26),
    ("欢迎光临", "三十光年", 28),
    ("今日特价", "会日平安", 24),
    ("千里团圆", "花好月圆", 30),
    ("第二版", "第十天", 32),
    ("茶馆 Cafe 8折", "楼上 Shop 8折", 24),
    ("花好月圆人长久", "停车场请人勿入", 22),
]
COLOURS = [("white", "black"), ("#204060", "#f0f0e0"), ("#e8d8b0", "#702010")]


def page(n=0):
    paper_colour, ink = COLOURS[n % 3]
    return write(paper((512, 256), paper_colour), "Menu", (60, 30), 20, ink), ink


def variants(n, text, other, size):
    """Right, right at 3 times the size, right but 3 heights lower, other words, nothing: best to worst."""
    shown = [page(n) for _ in range(5)]
    x, y = MIDDLE
    drawn = [
        (text, (x, y), size),
        (text, (x, y), 3 * size),
        (text, (x, y + 3 * size), size),
        (other, (x, y), size),
        ("", (x, y), size),
    ]
    return [
        write(image, said, place, px, ink) if said else image for (image, ink), (said, place, px) in zip(shown, drawn)
    ]


def read(*images):
    return default_engine().read([picture(image) for image in images])


def said(chars):
    return ["".join(c.text for c in line) for line in lines(chars)]


@pytest.fixture(scope="module")
def ranked():
    """Scores of all variants of all cases: 65 drawn images, read together."""
    images = [variants(n, *case) for n, case in enumerate(CASES)]
    texts = [case[0] for case in CASES for _ in range(5)]
    references = [row[0] for row in images for _ in range(5)]
    scores = score_images([image for row in images for image in row], texts, references)
    return {case[0]: scores[5 * n : 5 * n + 5] for n, case in enumerate(CASES)}


@pytest.mark.parametrize("text", [case[0] for case in CASES])
def test_right_beats_large_beats_displaced_beats_wrong_beats_missing(ranked, text):
    right, large, displaced, wrong, missing = map(float, ranked[text])
    assert right > 0.95
    assert right > large + 0.3
    assert large > displaced + 0.2
    assert displaced > wrong
    assert wrong > missing
    assert missing == 0


@pytest.mark.parametrize("text", [case[0] for case in CASES])
def test_oversize_loses_by_its_layout_though_it_reads_as_well(ranked, text):
    right, large, displaced, *_ = ranked[text]
    assert large.text >= right.text
    assert large.layout < 0.3 < 0.9 < right.layout
    assert displaced.layout < 0.3


def test_reading_close_up_first_changes_no_score_and_spares_the_rest_of_a_right_image():
    engine, asked = default_engine(), []
    for n in (1, 7):
        text, images = CASES[n][0], [picture(image) for image in variants(n, *CASES[n])]
        whole = Layout(engine.read(images[:1])[0], images[0].shape[:2])
        (near,) = read_layouts(engine.read, images[:1], [text])
        asked.clear()
        scored = score_where_due(lambda some: asked.append(some) or engine.read(some), images, [text] * 5, [near] * 5)
        expected = [score_reading(c, i.shape[:2], text, whole) for c, i in zip(engine.read(images), images)]
        assert [one.score.text for one in scored] == [one.text for one in expected]
        assert [float(one.score) for one in scored] == pytest.approx([float(one) for one in expected], abs=0.02)
        again = {image.tobytes() for image in asked[1]}
        assert [images[n].tobytes() in again for n in (0, 1, 4)] == [False, True, True], "right, large, missing"
        assert all(some.size < 0.5 * images[0].size for some in asked[0])
        left, top, right, bottom = near.region(text, (512, 1024))  # an image of twice the size
        assert (right - left, bottom - top) == (2 * asked[0][0].shape[1], 2 * asked[0][0].shape[0])


def test_text_alone_counts_without_a_reference():
    image, ink = page()
    write(image, "2nd Edition", MIDDLE, 60, ink)
    alone, cell = score_images([image] * 2, ["2nd Edition"] * 2, [None, cells((180, 100, 150, 30), "2nd Edition")])
    assert (float(alone), alone.layout) == (1.0, None)
    assert float(cell) < 0.8


def test_the_three_edits_of_the_book_score_above_its_source(shared_data):
    folder = shared_data / "real_edits" / "images"
    names = ["book_source", "book_ours", "book_qwen2511", "book_longcat"]
    images = [Image.open(folder / f"{name}.jpg") for name in names]
    alone = [float(s) for s in score_images(images, ["2nd Edition"] * 4)]
    assert min(alone[1:]) >= alone[0] + 0.2, alone
    assert min(alone[1:]) >= 0.8, "the other words of the cover must not count"
    layouts = [Layout(chars, image.size[::-1]) for chars, image in zip(read(*images), images)]
    for target in range(1, 4):
        shown = [score_reading(own.chars, own.size, "2nd Edition", layouts[target]) for own in layouts]
        own = [float(score) for score in shown]
        assert own[target] >= own[0] + 0.2
        assert own[target] == max(own)


@pytest.mark.parametrize("angle", [12, -20, 90, -90])
def test_turned_lines_are_read_with_their_height_kept(angle):
    flat = write(paper((400, 400)), "Hello World", (200, 200), 32)
    turned = write(paper((400, 400)), "Hello World", (200, 200), 32, angle=angle)
    straight, tilted = read(flat, turned)
    assert said(tilted) in (["Hello World"], ["HelloWorld"])
    assert tilted[0].h == pytest.approx(straight[0].h, rel=0.2)
    run = np.array([c.centre for c in tilted])
    along = run[-1] - run[0]
    assert math.degrees(math.atan2(-along[1], along[0])) == pytest.approx(angle, abs=4)
    assert np.hypot(*along) == pytest.approx(straight[-1].centre[0] - straight[0].centre[0], rel=0.1)
    assert score_images([turned], ["Hello World"], [turned])[0].total > 0.99


@pytest.mark.parametrize("text", ["Library Book", "欢迎光临"])
def test_lines_upside_down_are_read(text):
    (chars,) = read(write(paper((400, 200)), text, (200, 100), 36, angle=180))
    assert said(chars) == [text]
    assert chars[0].centre[0] > chars[-1].centre[0]


def test_character_boxes_are_where_the_letters_were_drawn():
    from rendered import length

    text, size = "Wide iiii Wide", 40
    (chars,) = read(write(paper((512, 128)), text, (256, 64), size))
    assert said(chars) == [text]
    start = 256 - length(text, size) / 2
    for i, char in enumerate(chars):
        middle = start + (length(text[:i], size) if i else 0) + length(text[i], size) / 2
        assert char.centre[0] == pytest.approx(middle, abs=0.3 * size), (i, char)
    assert chars[0].w > 1.5 * chars[6].w


def test_several_lines_are_read_in_order_and_scored_as_one_text():
    image = paper((420, 260))
    for n, line in enumerate(("欢迎光临", "Coffee 25", "Open Daily")):
        write(image, line, (200, 60 + 60 * n), 30)
    (chars,) = read(image)
    assert said(chars) == ["欢迎光临", "Coffee 25", "Open Daily"]
    assert [c.line for c in chars] == [n for n, line in enumerate(said(chars)) for _ in line]
    assert score_images([image], ["欢迎光临 Coffee 25"], [image])[0].total > 0.95


def test_the_engine_reads_what_paddleocr_reads():
    images = [variants(n, *case)[0] for n, case in enumerate(CASES)]
    stock = default_engine().ocr
    theirs = [stock.predict(picture(image)[:, :, ::-1].copy())[0]["rec_texts"] for image in images]

    def alike(texts):
        return sorted(text.replace(" ", "") for text in texts)

    assert [alike(said(chars)) for chars in read(*images)] == [alike(texts) for texts in theirs]


def test_what_is_read_on_an_image_does_not_depend_on_the_others():
    images = [variants(n, *case)[1] for n, case in enumerate(CASES)]
    together = read(*images)
    for n in (0, 6, 11):
        (alone,) = read(images[n])
        assert alone == together[n]


def test_the_replaced_words_of_the_source_give_the_layout():
    source = write(write(paper((512, 200)), "Sold Out", (256, 100), 30), "Shop", (60, 30), 20)
    (chars,) = read(source)
    layout = replaced_layout(chars, "Sold out", "Open Daily")
    good, moved = (write(paper((512, 200)), "Open Daily", (256, y), 30) for y in (100, 180))
    scores = score_images([good, moved], ["Open Daily"] * 2, [layout] * 2)
    assert scores[0].total > 0.75 > 0.5 > scores[1].total
    assert replaced_layout(chars, "Closed", "Open") is None


@pytest.mark.parametrize("text", ["Кириллица", "ภาษาไทย"])
def test_a_language_that_the_model_lacks_is_refused_in_one_line(text):
    with pytest.raises(UserError, match=r"cannot read '.+'") as refused:
        score_images([paper()], [text])
    assert "\n" not in str(refused.value)


def test_lists_that_do_not_match_and_empty_texts_are_refused():
    with pytest.raises(UserError, match="2 images, 1 texts"):
        score_images([paper()] * 2, ["a"])
    with pytest.raises(UserError, match="no target text"):
        score_images([paper()], [" "])


def test_nothing_on_the_image_scores_nothing():
    (score,) = score_images([paper()], ["Edition"])
    assert float(score) == 0.0


def test_models_are_built_once_and_a_users_folder_is_checked(tmp_path):
    detection, recognition = offline_models(tmp_path)
    stamp = (recognition.folder / "inference.yml").stat().st_mtime_ns
    assert offline_models(tmp_path) == (detection, recognition)
    assert (recognition.folder / "inference.yml").stat().st_mtime_ns == stamp
    assert model(str(recognition.folder)) == recognition
    assert model("PP-OCRv5_mobile_rec").folder is None
    with pytest.raises(UserError, match=r"inference\.yml"):
        model(str(tmp_path))
    with pytest.raises(UserError, match="no such folder"):
        model(str(tmp_path / "nowhere"))


# the parts of the engine that need no weights


def test_cells_meet_midway_and_stay_inside_the_line():
    assert cells_between([]) == []
    assert cells_between([0.4]) == [(0.0, 1.0)]
    found = cells_between([0.2, 0.4, 0.8])
    assert np.allclose(found, [(0.1, 0.3), (0.3, 0.6), (0.6, 1.0)])


def test_alike_widths_are_batched_and_none_is_lost():
    assert alike([96, 48, 48, 480, 48, 96], 2) == [[1, 2], [4], [0, 5], [3]]
    assert alike([], 2) == []


def test_reading_order_follows_the_tilt_of_the_page():
    def quad(x, y, width=60, height=10, tilt=0.35):
        cos, sin = math.cos(tilt), math.sin(tilt)
        corners = [(x, y), (x + width, y), (x + width, y + height), (x, y + height)]
        return np.array([(cos * a - sin * b, sin * a + cos * b) for a, b in corners])

    page = [quad(0, 0), quad(80, 0), quad(0, 20), quad(80, 20)]
    shuffled = [page[3], page[1], page[2], page[0]]
    found = [shuffled[i] for i in reading_order(shuffled)]
    assert all(np.array_equal(a, b) for a, b in zip(found, page))
    assert reading_order([]) == []


# statistics against hacking


def test_statistics_show_dark_empty_and_grey_images():
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(1, 3, 64, 64, generator=generator) * 2 - 1
    images = torch.cat([noise, -torch.ones(1, 3, 64, 64), torch.ones(1, 3, 64, 64)])
    found = image_statistics(images)
    assert found["dark"][1:].tolist() == [1.0, 0.0]
    assert found["edges"][0] > 0.5
    assert found["edges"][1:].tolist() == [0.0, 0.0]
    assert 0.9 < found["entropy"][0] <= 1
    assert found["entropy"][1:].abs().max() < 1e-6
    half = torch.cat([torch.ones(1, 3, 64, 32), -torch.ones(1, 3, 64, 32)], -1)
    assert image_statistics(half)["entropy"].item() == pytest.approx(math.log(2) / math.log(512), abs=1e-6)
    assert image_statistics(half)["dark"].item() == 0.5


# the callback


def batch(texts, pixels=None, sources=(), weight=None, task="text", **more):
    count = len(texts)
    facts = tuple(Facts(str(i), task=task, target_text=text, **more) for i, text in enumerate(texts))
    target = torch.zeros(count, 16, 4, 4)
    slots = tuple(range(count))
    given = {"pixels": pixels, "sources": sources, "weight": weight}
    return EditBatch(target, Condition(Text.pad([torch.ones(1, 4)] * count), ()), facts, 0, slots, count, **given)


def stack(*images):
    return torch.stack([to_pixels(image) for image in images])


@pytest.fixture(scope="module")
def reward():
    reward = OCRReward(chunk=4, threads=1)
    yield reward
    reward.close()


def test_submit_does_not_wait_and_gives_what_the_notebook_gives(reward):
    shown = variants(0, *CASES[0])
    pixels = stack(shown[0]).expand(5, -1, -1, -1)
    future = reward.submit(stack(*shown), batch(["2nd Edition"] * 5, pixels=pixels))
    assert isinstance(reward, Reward)
    assert not future.done()
    scores = future.result(120)
    expected = [float(s) for s in score_images(shown, ["2nd Edition"] * 5, [shown[0]] * 5)]
    assert scores.valid.all()
    assert scores.value.tolist() == pytest.approx(expected, abs=1e-6)
    assert reward._layouts.read == 1, "five edits of one group, one reference"
    assert scores.terms["layout"][0] > 0.9 > 0.3 > scores.terms["layout"][1]
    assert set(scores.terms) == {"text", "layout", "looks", "dark", "edges", "entropy", "glyph_height", "glyph_ratio"}
    assert scores.terms["glyph_ratio"][1] > 2 > scores.terms["glyph_ratio"][0]


@pytest.fixture(scope="module")
def reader(reward):
    """With the reward's engine: another takes seconds to build."""
    reader = LayoutReader()
    reader.engine = reward._engine()
    return reader


def test_a_layout_that_prepare_has_read_is_not_read_again(reward, reader):
    shown = variants(3, *CASES[3])
    plain = json.loads(json.dumps(reader(shown[0], None, CASES[3][0], "")))
    before = reward._layouts.read
    known = batch([CASES[3][0]] * 3, pixels=stack(shown[4]).expand(3, -1, -1, -1), layout=plain)
    scores = reward.submit(stack(*shown[:3]), known).result(120)
    assert reward._layouts.read == before, "the target's picture is not even looked at"
    expected = [float(s) for s in score_images(shown[:3], [CASES[3][0]] * 3, [shown[0]] * 3)]
    assert scores.value.tolist() == pytest.approx(expected, abs=5e-3)


def test_a_reader_takes_the_place_of_the_words_replaced_and_says_nothing_of_what_is_not_there(reader):
    source = write(paper((512, 200)), "Sold Out", (256, 100), 30)
    place = reader(None, source, "Open Daily", "Sold Out")
    assert "".join(char[0] for char in place["chars"]) == "Open Daily"
    assert all(80 < y + h / 2 < 120 for _, _, y, _, h, _ in place["chars"])
    assert reader(source, source, "Open Daily", "") is None


def test_the_lines_on_a_picture_are_read_in_their_order_for_an_evaluation(reward):
    lined = TextReader()
    lined._engine = reward._engine()
    files = []
    for texts, form in ((("GRAND", "OPENING"), "PNG"), ((), "PNG"), (("SALE",), "GIF")):
        image = paper((320, 160))
        for number, text in enumerate(texts):
            write(image, text, (160, 45 + 60 * number), 36)
        file = io.BytesIO()
        image.save(file, format=form)
        files.append(file.getvalue())
    assert lined.read(files) == [["GRAND", "OPENING"], [], ["SALE"]]


def test_a_task_without_target_text_is_counted_and_said_once(reward, caplog):
    with caplog.at_level(logging.WARNING):
        before = reward.reasons["no target text"]
        scores = reward.submit(stack(*variants(0, *CASES[0])[:3]), batch(["2nd Edition", "", "Кто"])).result(60)
    assert scores.valid.tolist() == [True, False, False]
    assert scores.value[1:].tolist() == [0.0, 0.0]
    assert scores.terms["text"].isnan().tolist() == [False, True, True]
    assert reward.reasons["no target text"] == before + 1
    said = [r.getMessage() for r in caplog.records if "cannot read" in r.getMessage()]
    assert len(said) == 1
    assert "\n" not in said[0]


def test_a_killed_engine_costs_a_reward_and_is_built_again(reward):
    shown = batch(["2nd Edition"])
    image = stack(variants(0, *CASES[0])[0])
    assert reward.submit(image, shown).result(60).valid.all()
    before = reward.engine.starts
    os.kill(reward.engine.pid, 9)
    reward.engine._process.wait()
    again = reward.submit(image, shown).result(60)
    assert again.valid.all(), "a process that died between two calls costs nothing"
    assert reward.engine.starts == before + 1


def test_bad_weights_are_refused_when_it_is_made():
    with pytest.raises(ValueError, match="weights"):
        OCRReward(text_weight=0.9, layout_weight=0.3)


@pytest.fixture
def faulty(monkeypatch):
    """A reward whose engine does as the first pixel says; one image a chunk, two seconds each."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).resolve().parents[3] / "support"))
    reward = OCRReward(chunk=1, name="faulty")
    reward.engine = EngineProcess({}, factory=faulty_engines.build, limit=2.0, start_limit=60.0)
    yield reward
    reward.close()


def deeds(*numbers):
    images = torch.zeros(len(numbers), 3, 16, 32)
    for image, number in zip(images, numbers):
        image[:] = number / 127.5 - 1
    return images


@pytest.mark.parametrize(
    ("deed", "reason", "starts"),
    [
        (RAISE, "MemoryError: no memory left", 1),
        (HANG, "no answer within 2 s", 2),
        (DIE, "its process ended (-9)", 2),
        (NONSENSE, "its process ended", 2),
    ],
)
def test_a_failing_engine_gives_a_counted_missing_reward(faulty, deed, reason, starts):
    scores = faulty.submit(deeds(0, deed, 0), batch(["ok"] * 3)).result(90)
    assert scores.valid.tolist() == [True, False, True]
    assert scores.value.tolist() == [1.0, 0.0, 1.0]
    assert faulty.engine.starts == starts
    ((said, times),) = faulty.reasons.items()
    assert reason in said
    assert "\n" not in said
    assert times == 1


def test_an_image_that_raises_does_not_cost_its_chunk(faulty):
    faulty.chunk = 8
    scores = faulty.submit(deeds(0, RAISE, 0), batch(["ok"] * 3)).result(60)
    assert scores.valid.tolist() == [True, False, True]


def test_an_engine_that_cannot_be_built_says_why(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).resolve().parents[3] / "support"))
    engine = EngineProcess({}, factory=faulty_engines.broken)
    with pytest.raises(EngineError, match=r"not built: its process ended \(1: RuntimeError: the weights"):
        engine.read([np.zeros((8, 8, 3), np.uint8)])


def test_an_engine_is_sent_to_another_process_by_its_settings(faulty):
    faulty.submit(deeds(0), batch(["ok"])).result(60)
    sent = pickle.loads(pickle.dumps(faulty.engine))
    settings = ("options", "factory", "limit", "start_limit")
    assert [getattr(sent, name) for name in settings] == [getattr(faulty.engine, name) for name in settings]
    assert sent.pid is None
    assert sent.read([np.zeros((8, 8, 3), np.uint8)])
    assert sent.pid != faulty.engine.pid


def test_the_engine_ends_with_its_handle(faulty):
    faulty.submit(deeds(0), batch(["ok"])).result(60)
    pid = faulty.engine.pid
    faulty.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_layouts_are_known_by_content_and_text_and_a_failed_one_is_asked_again():
    layouts = Layouts(most=2)
    image = np.zeros((4, 4, 3), np.uint8)
    assert layouts.of(image, "a", lambda _: ["broken"]) is None
    assert layouts.of(image, "a", lambda _: [[]]).size == (4, 4)
    layouts.of(image.copy(), "a", lambda _: pytest.fail("known"))
    for value in (1, 2):
        layouts.of(image + value, "a", lambda _: [[]])
    layouts.of(image, "a", lambda _: [[]])
    layouts.of(image, "b", lambda _: [[]])
    assert layouts.read == 6


class Shows(L.LightningModule):
    """A stage that draws what the batch holds."""

    def validation_step(self, batch, batch_idx):
        return {"output": batch.pixels}


def validate(reward, batches):
    trainer = L.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False, callbacks=[reward]
    )
    loader = torch.utils.data.DataLoader(batches, batch_size=None)
    trainer.validate(Shows(), loader, verbose=False)
    return {k: float(v) for k, v in trainer.callback_metrics.items()}


def test_any_stage_logs_the_scores_of_its_validation_images(faulty):
    batches = [batch(["ok", "ko"], pixels=deeds(0, 0)), batch([""], pixels=deeds(0))]
    batches += [batch(["ok"], pixels=deeds(0), weight=torch.zeros(1)), batch(["ok"], pixels=deeds(HANG))]
    logged = validate(faulty, batches)
    assert logged["reward/faulty/missing"] == 1, "only the one that hung: no text is no miss, weight 0 does not count"
    assert logged["reward/faulty/text"] == pytest.approx((1.0 + 0.0) / 2)
    assert 0.5 <= logged["reward/faulty"] <= 0.6
    assert "reward/faulty/dark" in logged
    assert validate(faulty, batches[:1])["reward/faulty/missing"] == 0


def test_a_task_that_is_routed_here_is_missing_without_a_text(faulty):
    faulty.tasks = frozenset(["text"])
    logged = validate(faulty, [batch(["ok", ""], pixels=deeds(0, 0)), batch(["ok"], pixels=deeds(0), task="x")])
    assert logged["reward/faulty/missing"] == 1
    assert logged["reward/faulty"] == 1.0


def test_images_wait_in_line_for_one_engine(faulty):
    futures = [faulty.submit(deeds(0), batch(["ok"])) for _ in range(4)]
    done, late = wait(futures, 60)
    assert not late
    assert faulty.engine.starts == 1
    assert all(f.result().valid.all() for f in done)


def test_what_nobody_waits_for_is_never_read(faulty):
    futures = [faulty.submit(deeds(deed), batch(["ok"])) for deed in (HANG, 0, 0)]
    while not futures[0].running():
        time.sleep(0.01)
    faulty.close()
    assert [future.cancelled() for future in futures] == [False, True, True]
    assert faulty.submit(deeds(0), batch(["ok"])).result(60).valid.all(), "it is built again when needed"


def test_the_offline_models_are_shared_by_all(reward):
    _, folder = reward._engine().options["detection"]
    assert Path(folder).is_relative_to(cache_folder())
