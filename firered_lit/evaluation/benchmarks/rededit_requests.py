"""The question of REDEdit-Bench to its judge, in the order and encoding of the official script."""

from collections.abc import Sequence

from firered_lit.judges.request import ChatRequest, MessagePicture, user

from ..protocols import Asking, Item
from .pictures import opened, png
from .settings import model_of, settings_of

JUDGE = "gemini-3-flash-preview"
SETTINGS = {"temperature": 0.1, "top_p": 0.95, "max_tokens": 8192}
SOURCE_CAPTION = "这是原图A"
EDITED_CAPTION = "这是编辑后的图B。请进行评估。"
SLOT = "<edit_prompt>"


def requests(item: Item, sources: Sequence[bytes], edited: bytes, prompt: str, asking: Asking) -> list[ChatRequest]:
    """Return the one question about an item: both pictures as PNG of their own sizes, then the prompt.

    The official script speaks to Google's interface; the same parts go here in the same order to a server with
    OpenAI's, where `max_output_tokens` is called `max_tokens`.

    Args:
        item: The item.
        sources: The source's file.
        edited: The edited picture's file.
        prompt: The text of the item's task in the user's `prompts.json`.
        asking: Settings of the judge.

    Raises:
        UserError: A picture cannot be read.

    Source: FireRed-Image-Edit, rededit_bench/redbench_eval.py, call_gemini.
    """
    message = user(
        MessagePicture(png(opened(sources[0], item.sources[0]))),
        SOURCE_CAPTION,
        MessagePicture(png(opened(edited, f"edited picture {item.output}"))),
        EDITED_CAPTION,
        prompt.replace(SLOT, item.instruction),
    )
    return [ChatRequest(model_of(asking, JUDGE), [message], settings_of(asking, SETTINGS))]
