"""The questions of GEdit-Bench to its judge, in the order and encoding of the official script."""

from collections.abc import Mapping, Sequence

from firered_lit.judges.request import ChatRequest, MessagePicture, user

from ..protocols import Asking, Item
from .pictures import jpeg, opened
from .settings import model_of, settings_of

JUDGE = "gpt-4.1"
SETTINGS = {"max_tokens": 1400}
SLOT = "<instruction>"
SEMANTICS_PROMPTS = ("_context_no_delimit", "_prompts_0shot_two_image_edit_rule", "_prompts_0shot_tie_rule_SC")
QUALITY_PROMPTS = ("_context_no_delimit", "_prompts_0shot_rule_PQ")
NEEDED_PROMPTS = tuple(dict.fromkeys((*SEMANTICS_PROMPTS, *QUALITY_PROMPTS)))  # of the user's vie_prompts.py


def requests(
    item: Item, sources: Sequence[bytes], edited: bytes, prompts: Mapping[str, str], asking: Asking
) -> list[ChatRequest]:
    """Return the two questions about an item: semantics (SC) of both pictures, quality (PQ) of the edited one.

    The edited picture takes the source's size. The text comes first; pictures are JPEG.

    Args:
        item: The item.
        sources: The source's file.
        edited: The edited picture's file.
        prompts: The texts of the user's `vie_prompts.py` by their names; NEEDED_PROMPTS are read.
        asking: Settings of the judge.

    Raises:
        UserError: A picture cannot be read.

    Source: Step1X-Edit, GEdit-Bench/test_gedit_score.py, process_single_item; viescore/__init__.py, evaluate;
        viescore/mllm_tools/openai.py.
    """
    source = opened(sources[0], item.sources[0])
    picture = opened(edited, f"edited picture {item.output}").convert("RGB").resize(source.size)
    before = MessagePicture(jpeg(source), "image/jpeg")
    after = MessagePicture(jpeg(picture), "image/jpeg")

    semantics = "\n".join(prompts[name] for name in SEMANTICS_PROMPTS).replace(SLOT, item.instruction)
    quality = "\n".join(prompts[name] for name in QUALITY_PROMPTS)
    messages = [user(semantics, before, after), user(quality, after)]
    model = model_of(asking, JUDGE)
    settings = settings_of(asking, SETTINGS)
    return [ChatRequest(model, [message], settings) for message in messages]
