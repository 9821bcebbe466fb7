"""Marks that programs leave in the files of pictures that they have generated. Their absence says nothing."""

import re
from collections.abc import Mapping, Sequence
from typing import ClassVar

from .annotator import Annotator, Columns, Of
from .rows import Picture

_PROGRAMS = re.compile(
    r"stable.?diffusion|midjourney|novelai|dall.?e|comfyui|invokeai|automatic1111|firefly|imagen|flux\.?1|ideogram"
    r"|leonardo\.ai|gpt.?image|sd.?webui|fooocus|draw.?things|tensor\.?art|seedream|qwen.?image",
    re.IGNORECASE,
)
_CHUNKS = {"parameters", "prompt", "workflow", "sd-metadata", "invokeai_metadata", "dream", "generation_data"}
_SETTINGS = re.compile(r"\bsteps: ?\d+.*\b(sampler|cfg scale|seed): ?\S+|\"class_type\"|\"ksampler", re.I | re.S)
_SOURCE_TYPE = re.compile(r"trainedAlgorithmicMedia|compositeWithTrainedAlgorithmicMedia|algorithmicMedia")
_LOOKED_AT = 1 << 20  # bytes at the beginning of a file
_WRITTEN_BY = ("exif Software", "exif ImageDescription", "exif UserComment", "exif Artist", "Software", "Comment")


class GeneratedMarks(Annotator):
    """Marks of generated pictures: Content Credentials, XMP source types, settings in PNG texts, programs in EXIF.

    Columns:
        mark: What was found: "settings", "program", "source type", or null.
        credentials: Whether the file carries Content Credentials (C2PA), which cameras write too.
    """

    columns: ClassVar[dict[str, str]] = {"mark": "text", "credentials": "flag"}
    of: ClassVar[Of] = "picture"

    def annotate(self, batch: Sequence[Picture]) -> Columns:
        """Return the marks of pictures' files."""
        marks = [mark(picture.header.comments, picture.file) for picture in batch]
        return {"mark": marks, "credentials": [has_credentials(picture.file) for picture in batch]}


def mark(comments: Mapping[str, str], file: bytes) -> str | None:
    """Return by which sign a file says that its picture was generated; None when it does not."""
    texts = list(comments.values())
    if any(_SOURCE_TYPE.search(text) for text in texts) or _SOURCE_TYPE.search(_head(file)):
        return "source type"
    for name, text in comments.items():
        wordy = name.lower() in _CHUNKS and len(text) > 1
        if wordy or _SETTINGS.search(text):
            return "settings"
    if any(_PROGRAMS.search(comments.get(name, "")) for name in _WRITTEN_BY):
        return "program"
    return None


def has_credentials(file: bytes) -> bool:
    """Return whether a file carries Content Credentials: a JUMBF box of C2PA, in APP11 of JPEG or caBX of PNG."""
    head = file[:_LOOKED_AT]
    return b"c2pa" in head and (b"jumb" in head or b"caBX" in head)


def _head(file: bytes) -> str:
    """Return what of a file's beginning is text: XMP and C2PA manifests, where the source type stands."""
    return file[:_LOOKED_AT].decode("latin-1") if b"lgorithmicMedia" in file[:_LOOKED_AT] else ""
