"""A prompt is read to its end in training and in `edit`, or refused with its length: nothing is cut in silence."""

from functools import cache

import numpy as np
import pytest
from PIL import Image

from firered_lit.editing import edit
from firered_lit.errors import UserError
from firered_lit.models.conditioning import MAX_EDIT_TOKENS, MAX_TEXT_TOKENS
from firered_lit.models.family import open_base

PHOTO = Image.new("RGB", (128, 128), (200, 40, 40))


@cache
def conditioner():
    return open_base("tiny").conditioner()


def prompt_of(tokens, last="red"):
    """A prompt of so many tokens, a few more or less, with its own last word."""
    tokenizer = conditioner().processor.tokenizer
    each = len(tokenizer(" sky" * 50).input_ids) / 50
    return " sky" * int(tokens / each) + " " + last


def encoded(prompt, images=()):
    return conditioner().encode([prompt], [list(images)], 96 * 96)[0]


@pytest.mark.parametrize(
    ("limit", "images"), [(MAX_TEXT_TOKENS, ()), (MAX_EDIT_TOKENS, (PHOTO,))], ids=["text-to-image", "edit"]
)
def test_a_prompt_is_encoded_whole_or_refused_with_its_length(limit, images):
    assert limit - 100 < len(encoded(prompt_of(limit - 60), images)) <= limit
    with pytest.raises(UserError, match=rf"^the instruction ' sky.* has \d+ tokens, the model reads {limit}$"):
        encoded(prompt_of(limit + 40), images)


def test_of_several_prompts_the_long_one_is_refused():
    with pytest.raises(UserError, match="the instruction ' sky"):
        conditioner().encode(["red", prompt_of(1100)], [[], []], 96 * 96)


@pytest.mark.parametrize("stock", [False, True], ids=["ours", "stock"])
def test_edit_reads_a_text_to_image_prompt_beyond_the_512_tokens_of_the_pipeline_s_default(tmp_path, stock):
    """Prompts that differ in their 700th token alone draw different pictures."""
    assert len(encoded(prompt_of(700))) > 600
    pictures = []
    for last in ("red", "blue"):
        out = tmp_path / f"{last}.png"
        options = {"steps": 2, "width": 64, "height": 64, "guidance": 1.0, "stock": stock}
        edit("tiny", [], prompt_of(700, last), str(out), **options)
        pictures.append(np.asarray(Image.open(out)))
    assert (pictures[0] != pictures[1]).any()


def test_edit_refuses_a_longer_prompt_in_one_line(tmp_path):
    with pytest.raises(UserError, match=f"the model reads {MAX_TEXT_TOKENS}"):
        edit("tiny", [], prompt_of(1200), str(tmp_path / "x.png"), steps=1)
