"""Linear heads on vectors: aesthetics, the probability that a picture was generated, how near two of them are.

All of it computes from the columns of `callbacks.annotators.embeddings`, so that another head costs no picture.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from firered_lit.errors import UserError, first_line
from firered_lit.evaluation.models import fingerprints
from firered_lit.files import replacing
from firered_lit.places import user_path

from . import scores
from .annotator import Annotator, Columns, Of
from .derived import items_of

Floats = NDArray[np.float64]


class Head(Annotator):
    """A linear head on the vectors of pictures, such as one for aesthetics.

    Layers without an activation between them, as those of LAION's aesthetics predictor, are multiplied out.

    Args:
        weights: A safetensors file with `NAME.weight` (outputs, inputs) and `NAME.bias` of each layer, the last one
            with one output. Names are taken in the order of the numbers in them.
        column: Of vectors.

    Columns:
        score: What the head says.

    Raises:
        UserError: The file holds no such layers.
    """

    columns: ClassVar[dict[str, str]] = {"score": "number"}
    of: ClassVar[Of] = "picture"

    def __init__(self, weights: str, column: str) -> None:
        path = user_path(weights)
        self.column = column
        self.weights = fingerprints.of_file(path)
        self._path = path
        self._weight, self._bias = read_head(path)

    @property
    def needs(self) -> Mapping[str, str]:
        """The vectors."""
        return {self.column: "vector"}

    def annotate(self, batch: Sequence[Mapping[str, Any]]) -> Columns:
        """Return the scores of vectors."""
        found: list[float | None] = [None] * len(batch)
        places = [place for place, item in enumerate(batch) if item[self.column] is not None]
        if places:
            vectors = np.stack([batch[place][self.column] for place in places]).astype(np.float64)
            if vectors.shape[1] != len(self._weight):
                raise UserError(
                    f"{self._path}: is for vectors of {len(self._weight)} numbers, those of {self.column} have"
                    f" {vectors.shape[1]}"
                )
            for place, score in zip(places, self._scores(vectors).tolist(), strict=True):
                found[place] = score
        return {next(iter(self.columns)): found}

    def _scores(self, vectors: Floats) -> Floats:
        return vectors @ self._weight + self._bias


class Probe(Head):
    """The probability of what a linear probe was fitted to find, as pictures that a model made; see `fit_probe`.

    Args:
        weights: The file that `fit_probe` wrote.
        column: Of vectors, as those that it was fitted on.

    Columns:
        probability: 0 to 1.
    """

    columns: ClassVar[dict[str, str]] = {"probability": "number"}

    def _scores(self, vectors: Floats) -> Floats:
        return 0.5 * (1 + np.tanh(super()._scores(vectors) / 2))


class Cosines(Annotator):
    """Cosines of a row's vectors: its target's, its first source's and its text's.

    Args:
        column: Of the vectors of pictures.
        text: Of the vectors of texts by the same encoder, with pictures in one space (CLIP, SigLIP); none when null.

    Columns:
        pair: The cosine of target and first source.
        text: The cosine of target and text.
    """

    columns: ClassVar[dict[str, str]] = {"pair": "number", "text": "number"}
    of: ClassVar[Of] = "row"

    def __init__(self, column: str, text: str | None = None) -> None:
        self.column = column
        self.text = text

    @property
    def needs(self) -> Mapping[str, str]:
        """The vectors."""
        texts = {} if self.text is None else {self.text: "vector"}
        return {self.column: "vector"} | texts

    def annotate(self, batch: Sequence[Mapping[str, Any]]) -> Columns:
        """Return the cosines of rows."""
        pairs, texts = [], []
        for row in batch:
            target, source = (*row[self.column], None, None)[:2]
            pairs.append(cosine(target, source))
            texts.append(None if self.text is None else cosine(target, row[self.text][0]))
        return {"pair": pairs, "text": texts}


def cosine(one: NDArray[np.float32] | None, other: NDArray[np.float32] | None) -> float | None:
    """Return the cosine of two vectors; None where one of them is missing or has no length.

    Raises:
        UserError: They are of different spaces.
    """
    if one is None or other is None:
        return None
    if len(one) != len(other):
        raise UserError(
            f"annotators: vectors of {len(one)} and of {len(other)} numbers have no cosine; use one encoder"
        )
    first, second = one.astype(np.float64), other.astype(np.float64)
    lengths = float(np.linalg.norm(first) * np.linalg.norm(second))
    return float(first @ second) / lengths if lengths > 0 else None


def read_head(path: Path) -> tuple[Floats, float]:
    """Return the weight (inputs,) and the bias of a file of linear layers.

    Raises:
        UserError: It is not such a file.
    """
    from safetensors.numpy import load_file

    try:
        tensors = load_file(path)
    except Exception as problem:  # whatever the library calls it
        raise UserError(f"{path}: cannot be read as safetensors of float32 ({first_line(problem)})") from None
    layers = sorted((name for name in tensors if tensors[name].ndim == 2), key=_number)
    known = {name.removesuffix("weight") + "bias" for name in layers} | set(layers)
    if not layers or set(tensors) - known or not all(name.endswith("weight") for name in layers):
        raise UserError(
            f"{path}: expected NAME.weight (outputs, inputs) and NAME.bias, got {', '.join(sorted(tensors))}"
        )
    weight = np.eye(tensors[layers[0]].shape[1])
    bias = np.zeros(len(weight))
    for name in layers:
        layer = tensors[name].astype(np.float64)
        if layer.shape[1] != len(weight):
            raise UserError(f"{path}: {name} takes {layer.shape[1]} numbers, the layer before it gives {len(weight)}")
        own = tensors.get(name.removesuffix("weight") + "bias", np.zeros(len(layer))).astype(np.float64)
        if own.shape != (len(layer),):
            raise UserError(f"{path}: the bias of {name} has the shape {own.shape}, not ({len(layer)},)")
        weight = layer @ weight
        bias = layer @ bias + own
    if len(weight) != 1:
        raise UserError(f"{path}: {layers[-1]} gives {len(weight)} numbers; a head gives one")
    if not (np.isfinite(weight).all() and np.isfinite(bias).all()):
        raise UserError(f"{path}: holds numbers that are not finite")
    return weight[0], float(bias[0])


def _number(name: str) -> list[tuple[int, str]]:
    """Return what sorts names by the numbers in them: layers.10 comes after layers.2."""
    return [(int(word), "") if word.isdecimal() else (-1, word) for word in name.split(".")]


def vectors_of(out: str | Path, column: str) -> tuple[NDArray[np.float32], list[str]]:
    """Return the vectors of a corpus' targets, (n, d), and the source of each one's row.

    Args:
        out: The folder that `curate` has made.
        column: ANNOTATOR.COLUMN.

    Raises:
        UserError: There is no such column.
    """
    name, _, field = column.partition(".")
    folder = user_path(out)
    vectors: list[NDArray[np.float32]] = []
    sources: list[str] = []
    for path in sorted((folder / scores.FOLDER / name).glob("*.parquet")):
        own = scores.read(path, [*scores.KEYS, field])
        row = scores.read(folder / scores.FOLDER / "row" / path.name, ["row", "source"])
        source_of = dict(zip(row.column("row").to_pylist(), row.column("source").to_pylist(), strict=True))
        values = items_of(own.column(field))
        for number, picture, vector in zip(own.column("row").to_pylist(), own.column("picture").to_pylist(), values):
            if picture == 0 and vector is not None:
                vectors.append(vector)
                sources.append(source_of[number])
    if not vectors:
        raise UserError(f"{folder}: has no vector of {column}; run the step annotate first")
    return np.stack(vectors), sources


def fit_probe(
    vectors: NDArray[Any], wanted: Sequence[bool] | NDArray[Any], out: str | Path | None = None, strength: float = 1.0
) -> tuple[Floats, float]:
    """Fit a linear probe by logistic regression, both classes weighing the same.

    Args:
        vectors: (n, d), as `vectors_of` reads them from a corpus.
        wanted: (n,) booleans: what it is to find.
        out: A safetensors file for `Probe` to write; none when None.
        strength: Of the L2 penalty on standardised vectors; more for few vectors.

    Returns:
        Weight (d,) and bias.

    Raises:
        UserError: One of both classes is missing.
    """
    from sklearn.linear_model import LogisticRegression

    found = np.asarray(vectors, np.float64)
    labels = np.asarray(wanted, bool)
    if found.ndim != 2 or labels.shape != (len(found),):
        raise UserError(f"probe: expected vectors (n, d) and a label for each, got {found.shape} and {labels.shape}")
    if labels.all() or not labels.any():
        raise UserError("probe: needs vectors of what it is to find, and of others")
    mean, spread = found.mean(0), found.std(0)
    spread[spread == 0] = 1
    model = LogisticRegression(C=1 / strength, class_weight="balanced", max_iter=1000)
    model.fit((found - mean) / spread, labels)
    weight = model.coef_[0] / spread
    bias = float(model.intercept_[0] - weight @ mean)
    if out is not None:
        from safetensors.numpy import save

        tensors = {"probe.weight": weight[None].astype(np.float32), "probe.bias": np.array([bias], np.float32)}
        with replacing(user_path(out), "wb") as file:
            file.write(save(tensors))
    return weight, bias
