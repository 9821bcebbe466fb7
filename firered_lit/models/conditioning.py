"""Prompts and references through Qwen2.5-VL, as the stock pipelines do it, with the positions the weights know.

The stock edit pipelines of diffusers 0.42 lose the processor's token types under transformers 5, so their text gets
one-dimensional positions; here everything that the processor returns is passed on (a test shows both side by side).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor

from ..errors import UserError
from .component import loading, read_config, refuse_quantised
from .sizes import condition_size

if TYPE_CHECKING:
    from .family import Base

LOCAL: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}  # of what transformers reads
UNCONDITIONAL = " "  # the stock negative prompt; the references stay
PICTURE = "Picture {}: <|vision_start|><|image_pad|><|vision_end|>"  # one per reference, before the instruction
MAX_TEXT_TOKENS = 1024  # of a text-to-image prompt: the stock pipeline takes no more (its `max_sequence_length`)
MAX_EDIT_TOKENS = 4096 - 128  # of an edit's prompt with its references: positions that pictures up to 4096 px leave


@dataclass(frozen=True)
class ChatTemplate:
    """A chat template of the stock pipelines: the text with one `{}`, and how many tokens of it are dropped."""

    text: str
    drop: int

    @property
    def prefix(self) -> str:
        """Return the tokens before the first one that differs between prompts."""
        return self.text.split("<|vision_start|>")[0].split("{}")[0]


@cache
def stock_templates() -> dict[str, ChatTemplate]:
    """Return the templates of the installed diffusers by variant, so that a new release is followed."""
    from diffusers import QwenImageEditPipeline, QwenImageEditPlusPipeline, QwenImagePipeline

    none = dict.fromkeys(["scheduler", "vae", "text_encoder", "tokenizer", "transformer"])
    stock: dict[str, Any] = {
        "edit_plus": QwenImageEditPlusPipeline(processor=None, **none),
        "edit": QwenImageEditPipeline(processor=None, **none),
        "text": QwenImagePipeline(**none),
    }
    templates = {}
    for variant, pipeline in stock.items():
        templates[variant] = ChatTemplate(pipeline.prompt_template_encode, pipeline.prompt_template_encode_start_idx)
    return templates


class Conditioner:
    """The frozen text encoder with its processor: prompts and references in, embeddings out."""

    def __init__(self, base: "Base", device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> None:
        from transformers import Qwen2_5_VLForConditionalGeneration

        # Processor and encoder.
        self.processor = _processor(base)
        folder = base.part("text_encoder")
        read_config(folder)
        with loading(folder):
            loaded: Any = Qwen2_5_VLForConditionalGeneration.from_pretrained(
                folder, dtype=dtype, use_safetensors=True, output_loading_info=True, **LOCAL
            )
        self.encoder, found = loaded
        refuse_quantised(folder, found["unexpected_keys"])
        missing = sorted(key for key in found["missing_keys"] if not key.startswith("lm_head."))  # never asked
        if missing:
            raise UserError(f"{folder}: {len(missing)} weights are missing: {', '.join(missing[:3])}")
        self._folder = folder
        self._tried = False
        self.encoder.eval().requires_grad_(False).to(device)
        self.width = int(self.encoder.config.get_text_config().hidden_size)  # numbers of a token
        self.device = torch.device(device)

        # Templates; the tokens that the pipeline drops must be those of this tokenizer.
        templates = stock_templates()
        self.single = base.variant == "edit"  # its template holds the one image itself
        self.templates = {"edit": templates["edit" if self.single else "edit_plus"], "text": templates["text"]}
        for template in self.templates.values():
            count = len(self.processor.tokenizer(template.prefix).input_ids)
            if count != template.drop:
                raise UserError(
                    f"{base.folder / 'tokenizer'}: the prompt template's prefix counts {count} tokens, the stock "
                    f"pipeline drops {template.drop}: this tokenizer does not belong to a Qwen-Image model"
                )

    @torch.no_grad()
    def encode(
        self, prompts: Sequence[str], references: Sequence[Sequence[Image.Image]], condition_area: int
    ) -> list[Tensor]:
        """Encode each prompt with its references.

        A prompt without references goes through the text-to-image template.

        Args:
            prompts: (B,).
            references: (B), then (n,), of any sizes.
            condition_area: pixels at which the encoder sees a reference.

        Returns:
            Embeddings (T_i, D), without template prefix and padding.

        Raises:
            UserError: the model takes a single reference and gets more, a prompt holds one of the vision tokens, or it
                is longer than what inference would read.
        """
        if self._tried:
            return self._encode_all(prompts, references, condition_area)
        with loading(self._folder):  # entries of its config may fit its weights and not each other
            rows = self._encode_all(prompts, references, condition_area)
        self._tried = True
        return rows

    def _encode_all(
        self, prompts: Sequence[str], references: Sequence[Sequence[Image.Image]], condition_area: int
    ) -> list[Tensor]:
        """Return the embeddings of each prompt, edits and texts each together."""
        rows: list[Tensor | None] = [None] * len(prompts)
        edits = [i for i, images in enumerate(references) if images]
        texts = [i for i, images in enumerate(references) if not images]
        for kind, members in (("edit", edits), ("text", texts)):
            if not members:
                continue
            encoded = self._encode(kind, [(prompts[i], references[i]) for i in members], condition_area)
            for i, row in zip(members, encoded, strict=True):
                rows[i] = row
        return [row for row in rows if row is not None]

    def _encode(self, kind: str, items: list[tuple[str, Sequence[Image.Image]]], area: int) -> list[Tensor]:
        """Return the embeddings of prompts that go through one template."""
        # Tokens and pictures.
        template = self.templates[kind]
        texts = [template.text.format(self._pictures(kind, images) + _plain(prompt)) for prompt, images in items]
        if kind == "text":
            inputs = self.processor.tokenizer(texts, padding=True, return_tensors="pt")
            limit = MAX_TEXT_TOKENS
        else:
            shown = [show(image, area) for _, images in items for image in images]
            inputs = self.processor(text=texts, images=shown, padding=True, return_tensors="pt")
            limit = MAX_EDIT_TOKENS

        # No prompt is cut.
        lengths = (inputs["attention_mask"].sum(1) - template.drop).tolist()
        for (prompt, _), length in zip(items, lengths, strict=True):
            if length > limit:
                raise UserError(f"the instruction {prompt[:60]!r}... has {length} tokens, the model reads {limit}")

        # The last hidden state, without padding and prefix.
        inputs = inputs.to(self.device)
        hidden = self.encoder.model(**inputs).last_hidden_state
        mask = inputs["attention_mask"].bool()
        return [row[keep][template.drop :] for row, keep in zip(hidden, mask, strict=True)]

    def _pictures(self, kind: str, images: Sequence[Image.Image]) -> str:
        """Return the text that stands for the references, before the instruction."""
        if kind == "text":
            return ""
        if self.single:
            if len(images) > 1:
                raise UserError(f"this base takes one reference, not {len(images)}: use a 2509-kind base for more")
            return ""
        return "".join(PICTURE.format(i + 1) for i in range(len(images)))


def show(image: Image.Image, area: int) -> Image.Image:
    """Resize a reference for the vision-language model: near `area` pixels at its own aspect ratio."""
    height, width = condition_size(image.height, image.width, area)
    if image.size == (width, height):
        return image
    return image.resize((width, height), Image.Resampling.LANCZOS)


def _plain(prompt: str) -> str:
    """Return a prompt; refuse one that holds a token which stands for an image."""
    for token in ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"):
        if token in prompt:
            raise UserError(f"the instruction {prompt[:60]!r} holds the token {token}, which stands for an image")
    return prompt


def _processor(base: "Base") -> Any:
    """Return the folder's processor; a text-to-image folder gets Qwen2.5-VL's around its own tokenizer."""
    from transformers import AutoTokenizer, Qwen2VLProcessor
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor
    from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor

    folder = base.folder / "processor"
    if folder.exists():
        with loading(folder):
            return Qwen2VLProcessor.from_pretrained(folder, **LOCAL)
    folder = base.folder / "tokenizer"
    with loading(folder):
        return Qwen2VLProcessor(
            image_processor=Qwen2VLImageProcessor(min_pixels=56 * 56, max_pixels=28 * 28 * 1280),
            tokenizer=AutoTokenizer.from_pretrained(folder, **LOCAL),
            video_processor=Qwen2VLVideoProcessor(),
            chat_template="{{messages}}",
        )
