"""Vectors of pictures and texts, for the corpus engine, by any encoder that transformers reads from a folder."""

import contextlib
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from firered_lit.curation.annotator import Annotator, Columns, Of
from firered_lit.curation.rows import Picture, RawRow
from firered_lit.errors import UserError, first_line
from firered_lit.evaluation.models import fingerprints
from firered_lit.models.component import loading, read_config, weight_files
from firered_lit.places import user_path

if TYPE_CHECKING:
    import torch

_PROCESSOR = "preprocessor_config.json"
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "spiece.model")


class Embeddings(Annotator):
    """The vector of a picture.

    Of CLIP and SigLIP it is the one that is compared with texts, of others the pooled one, else the mean of all tokens.
    Other weights under the same name give other columns: their hash is part of what the columns are made by.

    Args:
        model: A folder with config.json, preprocessor_config.json and weights as safetensors.
        device: cpu, cuda or cuda:NUMBER. Every process of `curate` has the model, and one thread.
        together: Pictures at a time.

    Columns:
        vector: Of length 1.

    Raises:
        UserError: The folder lacks something.
    """

    columns: ClassVar[dict[str, str]] = {"vector": "vector"}
    of: ClassVar[Of] = "picture"

    def __init__(self, model: str, device: str = "cpu", together: int = 32) -> None:
        self._folder = user_path(model)
        self._device = device
        self._together = together
        self._model: Any = None
        self._processor: Any = None
        self.weights = _fingerprint(self._folder, (_PROCESSOR,))
        if not (self._folder / _PROCESSOR).is_file():
            raise UserError(f"{self._folder}: has no {_PROCESSOR}, which says how pictures are scaled for the model")

    def open(self) -> None:
        """Load the model.

        Raises:
            UserError: transformers cannot read it, or it does not look at pictures.
        """
        self._model = _opened(self._folder, self._device)
        self._processor = _processor(self._folder)
        if not _looks_at_pictures(self._model):
            raise UserError(f"{self._folder}: {type(self._model).__name__} does not look at pictures")

    def annotate(self, batch: Sequence[Picture]) -> Columns:
        """Return the vectors of pictures."""
        import torch

        vectors: list[np.ndarray[Any, Any]] = []
        with _one_thread(), torch.inference_mode():
            for start in range(0, len(batch), self._together):
                pictures = [picture.pixels.copy() for picture in batch[start : start + self._together]]
                inputs = self._processor(images=pictures, input_data_format="channels_last", return_tensors="pt")
                found = _picture_vectors(self._model, inputs["pixel_values"].to(self._device))
                vectors.extend(_of_length_one(found))
        return {"vector": vectors}


class TextEmbeddings(Annotator):
    """The vector of a row's first text, in one space with those of pictures: CLIP, SigLIP and their like.

    Args:
        model: A folder as that of `Embeddings`, with a tokenizer.
        device: cpu, cuda or cuda:NUMBER.

    Columns:
        vector: Of length 1; longer texts are cut to what the model reads. None without a text.

    Raises:
        UserError: The folder lacks something.
    """

    columns: ClassVar[dict[str, str]] = {"vector": "vector"}
    of: ClassVar[Of] = "row"

    def __init__(self, model: str, device: str = "cpu") -> None:
        self._folder = user_path(model)
        self._device = device
        self._model: Any = None
        self._tokenizer: Any = None
        self.weights = _fingerprint(self._folder, _TOKENIZER)

    def open(self) -> None:
        """Load the model and its tokenizer.

        Raises:
            UserError: transformers cannot read one of them, or the model does not read texts.
        """
        from transformers import AutoTokenizer

        self._model = _opened(self._folder, self._device)
        if not hasattr(self._model, "get_text_features"):
            raise UserError(f"{self._folder}: {type(self._model).__name__} has no vectors of texts; CLIP and SigLIP do")
        with loading(self._folder):
            self._tokenizer = AutoTokenizer.from_pretrained(
                self._folder, local_files_only=True, trust_remote_code=False
            )

    def annotate(self, batch: Sequence[RawRow]) -> Columns:
        """Return the vectors of rows' texts."""
        import torch

        places = [place for place, row in enumerate(batch) if row.instruction]
        vectors: list[np.ndarray[Any, Any] | None] = [None] * len(batch)
        if not places:
            return {"vector": vectors}
        texts = [batch[place].instruction for place in places]
        longest = self._model.config.text_config.max_position_embeddings
        with _one_thread(), torch.inference_mode():
            inputs = self._tokenizer(
                texts, padding="max_length", truncation=True, max_length=longest, return_tensors="pt"
            )
            wanted = {name: inputs[name].to(self._device) for name in ("input_ids", "attention_mask") if name in inputs}
            found = _of_length_one(_features(self._model.get_text_features(**wanted)))
        for place, vector in zip(places, found, strict=True):
            vectors[place] = vector
        return {"vector": vectors}


@cache
def _opened(folder: Path, device: str) -> "torch.nn.Module":
    """Return a model in float32, once for all annotators of this process."""
    import torch
    from transformers import AutoModel

    read_config(folder)
    weight_files(folder)
    with loading(folder):
        model = AutoModel.from_pretrained(
            folder, dtype=torch.float32, use_safetensors=True, local_files_only=True, trust_remote_code=False
        )
    try:
        return model.eval().requires_grad_(False).to(device)
    except RuntimeError as problem:
        raise UserError(f"device={device}: {first_line(problem)}") from None


@cache
def _processor(folder: Path) -> Any:
    from transformers import AutoImageProcessor

    with loading(folder):
        return AutoImageProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def _fingerprint(folder: Path, more: Sequence[str]) -> str:
    """Return a hash of a model's config, weights and some other files.

    Raises:
        UserError: Config or weights are missing, damaged or pickled.
    """
    read_config(folder)
    files = set(weight_files(folder).values()) | {folder / "config.json"}
    files |= {folder / name for name in more if (folder / name).is_file()}
    return fingerprints.of_settings(**{path.name: fingerprints.of_file(path) for path in sorted(files)})


def _looks_at_pictures(model: Any) -> bool:
    return hasattr(model, "get_image_features") or model.main_input_name == "pixel_values"


def _picture_vectors(model: Any, pixels: "torch.Tensor") -> "torch.Tensor":
    """Return a vector (n, d) for each picture of (n, 3, height, width)."""
    if hasattr(model, "get_image_features"):
        return _features(model.get_image_features(pixel_values=pixels))
    found = model(pixel_values=pixels)
    pooled: torch.Tensor | None = getattr(found, "pooler_output", None)
    if pooled is not None:
        return pooled.flatten(1)
    last: torch.Tensor = found.last_hidden_state
    if last.ndim == 4:  # channels before places, as convolutions give them
        return last.mean((2, 3))
    return last.mean(1)


def _features(found: Any) -> "torch.Tensor":
    """Return what `get_image_features` or `get_text_features` gives, whichever way this model puts it."""
    pooled: torch.Tensor = found.pooler_output if hasattr(found, "pooler_output") else found
    return pooled.flatten(1)


def _of_length_one(vectors: "torch.Tensor") -> list[np.ndarray[Any, Any]]:
    from torch.nn.functional import normalize

    return list(normalize(vectors.float(), dim=1).cpu().numpy())


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Have PyTorch work in one thread: there is a process for every core, and its threads do not survive a fork."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
