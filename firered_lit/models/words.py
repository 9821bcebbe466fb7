"""A frozen text encoder without weights: every word has a vector of its own, drawn from its spelling.

For the small world that a CPU can learn. It tells instructions apart in English and Chinese, knows neighbours, and
spells what stands in quotation marks. It does not look at the references: which picture is which, the transformer sees
by their places in the sequence, and the instruction says by "Picture 2" or 图2.
"""

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from PIL import Image
from torch import Tensor

from ..draws import generator

if TYPE_CHECKING:
    from .family import Base

VERSION = 1  # of the vectors: another one makes what is cached stale
NAME = "WordEncoder"  # in place of the text encoder's class name in text_encoder/config.json
WIDTH, OWN = 128, 64  # numbers of a token; of its own vector, the rest is shared by its two neighbours
QUOTED = re.compile('["“]([^"“”]*)["”]')
TOKEN = re.compile(r"[a-z]+|\d|[\u3400-\u9fff]")
END = "</s>"
RULER = 8  # tokens before every prompt, one per row and column of a canvas: what pictures find their own places by


class WordConditioner:
    """The interface of `Conditioner`: prompts and references in, embeddings (T, 128) out."""

    width = WIDTH

    def __init__(self, base: "Base", device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> None:
        self.device, self.dtype = torch.device(device), dtype

    @torch.no_grad()
    def encode(
        self, prompts: Sequence[str], references: Sequence[Sequence[Image.Image]], condition_area: int
    ) -> list[Tensor]:
        """Embeddings (T_i, 128) of each prompt; the references and their area are not looked at."""
        return [embed(prompt).to(self.device, self.dtype) for prompt in prompts]


def embed(prompt: str) -> Tensor:
    """(T, 128): the ruler, one row per word, Chinese character, digit and quoted letter, and one for the end.

    The transformer's positions are relative. The ruler, which stands at the same places before every prompt, tells a
    token of a picture where it is.
    """
    items = tokens(prompt)
    rows = [_vector(f"<{i}>", WIDTH) for i in range(RULER)]
    for i, (token, place) in enumerate(items):
        before = place or (items[i - 1][0] if i else "<s>")
        after = "quoted" if place else (items[i + 1][0] if i + 1 < len(items) else "<e>")
        side = (WIDTH - OWN) // 2
        rows.append(torch.cat([_vector(token, OWN), _vector(f"{before} .", side), _vector(f". {after}", side)]))
    return torch.stack(rows)


def tokens(prompt: str) -> list[tuple[str, str]]:
    """(token, place): the place of a quoted letter is "which quotation, which letter", of other tokens empty."""
    found: list[tuple[str, str]] = []
    start = 0
    for number, quote in enumerate(QUOTED.finditer(prompt)):
        found += [(token, "") for token in TOKEN.findall(prompt[start : quote.start()].lower())]
        found += [(f'"{letter}', f"{number} {i}") for i, letter in enumerate(quote[1])]
        start = quote.end()
    found += [(token, "") for token in TOKEN.findall(prompt[start:].lower())]
    return [*found, (END, "")]


@lru_cache(maxsize=1 << 14)
def _vector(token: str, size: int) -> Tensor:
    return torch.randn(size, generator=generator("word", token, size))
