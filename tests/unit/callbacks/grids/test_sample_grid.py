"""The grid shows the right pictures in the right places, with text that can be read."""

import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from PIL import Image, ImageFont
from toy_run import Edits, Toy, fit, trainer

from callbacks import lettering
from callbacks.checkpoint import Checkpoint
from callbacks.grids.sample_grid import GridRow, SampleGrid, _gather, draw_grid
from callbacks.lettering import Lettering
from firered_lit.errors import UserError

CHINESE = "把图1中的人物放到图2的背景里"


@pytest.fixture
def latin(monkeypatch):
    """A machine that has no font but Pillow's own, which draws no Chinese."""
    monkeypatch.setattr(lettering, "_FONTS", ())
    return Lettering()


def picture(colour, size=(30, 20)):
    return Image.new("RGB", size, colour)


def test_sources_output_and_target_stand_in_this_order(latin):
    cells = (("source", picture("red")), ("output", picture("lime")), ("target", picture("blue")))
    grid = np.asarray(draw_grid([GridRow((0,), cells, "Make it blue")], "step 1", latin)).astype(int)
    first = {}
    for name, colour in {"red": (255, 0, 0), "lime": (0, 255, 0), "blue": (0, 0, 255)}.items():
        ys, xs = np.where((grid == colour).all(-1))
        assert len(xs) == 600, name
        first[name] = (xs.min(), ys.min())
    assert first["red"][0] < first["lime"][0] < first["blue"][0]
    assert len({y for _, y in first.values()}) == 1
    below = grid[first["red"][1] + 20 :]
    assert (below.sum(-1) < 200).sum() > 100  # the instruction is written under the row


@pytest.mark.parametrize(
    "text", ["short", "many words " * 30, "x" * 400, CHINESE * 12, "two\nlines", "", "  ", "a\n\nb"]
)
@pytest.mark.parametrize("width", [40, 300])
def test_no_line_is_wider_than_it_may_be_and_no_word_is_lost(latin, text, width):
    lines = latin.wrap(text, width)
    font = ImageFont.load_default(16)
    assert all(font.getlength(line) <= width for line in lines)
    assert "".join("".join(lines).split()) == "".join(latin.drawable(text).split())
    assert latin.text(text, width, "black", "white").size[0] == width


def test_latin_breaks_at_spaces(latin):
    lines = latin.wrap("change the colour of the car to a deep blue", 120)
    assert len(lines) > 2
    assert " ".join(lines).split() == ["change", "the", "colour", "of", "the", "car", "to", "a", "deep", "blue"]


def test_a_long_text_is_cut_with_an_ellipsis(latin):
    assert latin.text("word " * 500, 200, "black", "white", lines=3).height == 3 * round(16 * 1.4)


def test_what_the_font_lacks_is_escaped_never_boxes(latin):
    assert latin.drawable("a 把 b") == r"a \u628a b"
    assert latin.drawable("plain ASCII ~{}") == "plain ASCII ~{}"
    drawn = latin.text("把", 200, "black", "white")
    assert drawn.tobytes() == latin.text(r"\u628a", 200, "black", "white").tobytes()


def test_where_no_font_draws_chinese_one_line_says_what_to_install(latin, caplog):
    lettering._warn_of_no_font.cache_clear()
    for _ in range(3):
        latin.text(CHINESE, 200, "black", "white")
    latin.text("plain", 200, "black", "white")
    assert [record.getMessage().count("fonts-noto-cjk") for record in caplog.records] == [1]


def test_chinese_is_drawn_where_a_font_can(tmp_path):
    able = Lettering()
    if able.path is None or able.drawable(CHINESE) != CHINESE:
        pytest.skip("no font of this machine draws Chinese")
    assert max(map(len, able.wrap(CHINESE * 4, 200))) <= 200 // 16 + 2  # breaks between characters


def test_a_font_that_is_not_there_is_said():
    with pytest.raises(UserError, match=r"font=/no/such\.ttf"):
        Lettering("/no/such.ttf")


class Album(CSVLogger):
    """Keeps pictures as W&B's logger takes them."""

    def log_image(self, key, images, step):
        self.__dict__.setdefault("album", []).append((key, step, images[0]))


def test_a_grid_after_each_validation_and_before_the_first_step(tmp_path):
    album = Album(tmp_path, name="csv")
    callbacks = [SampleGrid(rows=3, side=40), Checkpoint(every=99)]
    fit(tmp_path, callbacks, max_steps=3, logger=album, num_sanity_val_steps=-1)
    names = sorted(path.name for path in (tmp_path / "samples").iterdir())
    assert names == ["step_00000000.png", "step_00000002.png"]
    assert [(key, step) for key, step, _ in album.album] == [("samples", 0), ("samples", 2)]
    with Image.open(tmp_path / "samples" / names[1]) as grid:
        assert np.array_equal(np.asarray(grid), np.asarray(album.album[1][2]))


def test_rows_are_the_first_that_count(tmp_path):
    """Two batches of two; the second sample only fills up a share; at most two rows."""
    seen = []

    class Filled(Edits):
        def batch(self, step):
            batch = super().batch(step)
            batch.weight[1] = 0
            return batch

    class Watched(SampleGrid):
        def on_validation_end(self, trainer, pl_module):
            seen.append([row.place for row in self._own])
            super().on_validation_end(trainer, pl_module)

    run = trainer(tmp_path, [Watched(rows=2, side=32), Checkpoint(every=99)], max_steps=2)
    run.fit(Toy(), Edits(), Filled(3, validation=True))
    assert seen == [[(0, 0), (1, 0)]]


def test_validation_without_pictures_writes_nothing(tmp_path):
    class Plain(Toy):
        def validation_step(self, batch, batch_idx):
            return torch.zeros(())

    fit(tmp_path, [SampleGrid(), Checkpoint(every=99)], module=Plain(), max_steps=2)
    assert not (tmp_path / "samples").exists()


def test_one_process_gathers_its_own():
    class One:
        world_size = 1

    rows = [GridRow((0, 0), (), "a")]
    assert _gather(rows, One()) is rows
