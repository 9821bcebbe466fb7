"""The question of ImgEdit to its judge, in the order and encoding of the official script."""

from collections.abc import Sequence

from firered_lit.judges.request import ChatRequest, MessagePicture, user

from ..protocols import Asking, Item
from .pictures import opened
from .settings import model_of, settings_of

JUDGE = "gpt-4o"
SETTINGS = {"stream": False}
SLOT = "<edit_prompt>"


def requests(item: Item, sources: Sequence[bytes], edited: bytes, prompt: str, asking: Asking) -> list[ChatRequest]:
    """Return the one question about an item: the prompt, then both files as they are, both called `image/png`.

    Args:
        item: The item.
        sources: The source's file.
        edited: The edited picture's file.
        prompt: The text of the item's type in the user's `prompts.json`.
        asking: Settings of the judge.

    Raises:
        UserError: A picture cannot be read.

    Source: ImgEdit, Benchmark/Basic/basic_bench.py, call_gpt.
    """
    opened(sources[0], item.sources[0])
    opened(edited, f"edited picture {item.output}")
    pictures = [MessagePicture(sources[0], "image/png"), MessagePicture(edited, "image/png")]
    message = user(prompt.replace(SLOT, item.instruction), *pictures)
    return [ChatRequest(model_of(asking, JUDGE), [message], settings_of(asking, SETTINGS))]
