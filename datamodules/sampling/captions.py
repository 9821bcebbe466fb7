"""Choice of the instruction that a visit of a sample shows."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from firered_lit.draws import chooser
from firered_lit.errors import UserError

UNCONDITIONAL = "unconditional"  # the key of the text " "


@dataclass(frozen=True)
class Captions:
    """Choice of one instruction, or of none at all, for each visit of a sample.

    A sample's texts have keys "kind/language", such as "original/en". First the kind is drawn among those that the
    sample has, then the language among those of that kind.

    Args:
        kinds: Weight of each kind, from 0 up; a kind that is not listed weighs 0.
        languages: Weight of each language, from 0 up; None gives every language the same.
        drop: Probability, 0 to 1, of the unconditional text.

    Raises:
        UserError: When a weight or the probability is out of range, or all kinds weigh 0.
    """

    kinds: Mapping[str, float]
    languages: Mapping[str, float] | None
    drop: float

    def __post_init__(self) -> None:
        weights = list(self.kinds.values())
        if self.languages:
            weights += self.languages.values()
        in_range = all(0 <= weight < math.inf for weight in weights)
        if not in_range or not 0 <= self.drop <= 1 or not any(self.kinds.values()):
            raise UserError("data: text_drop is a probability; captions and languages are weights, not all of them 0")

    def refuse_absent(self, present: Mapping[str, int]) -> None:
        """Refuse weights for kinds or languages that no sample of the data has.

        Args:
            present: Number of samples by "kind/language".

        Raises:
            UserError: A weight names what is absent; the message says which setting mends it.
        """
        kinds = {key.split("/")[0] for key in present}
        languages = {key.split("/")[1] for key in present}
        _refuse_absent("captions", self.kinds, kinds)
        _refuse_absent("languages", self.languages or {}, languages)

    def draw(self, instructions: Mapping[str, str], *key: object) -> str:
        """Return the key of the text that one visit shows.

        A sample of which no text has weight shows one of those that it has.

        Args:
            instructions: Texts of the sample by "kind/language".
            key: Numbers and words that name the draw; the same key draws the same text.
        """
        if chooser(*key, "text drop").random() < self.drop:
            return UNCONDITIONAL

        # The kind.
        kinds = sorted({name.split("/")[0] for name in instructions})
        weights = [self.kinds.get(kind, 0.0) for kind in kinds]
        kind = _choose(kinds, weights, *key, "caption")

        # A language of that kind.
        languages = sorted(name.split("/")[1] for name in instructions if name.split("/")[0] == kind)
        if self.languages is None:
            weights = [1.0] * len(languages)
        else:
            weights = [self.languages.get(language, 0.0) for language in languages]
        language = _choose(languages, weights, *key, "language")
        return f"{kind}/{language}"


def _refuse_absent(name: str, weights: Mapping[str, float], present: set[str]) -> None:
    """Raise UserError when a weight above 0 is for a value that is not present."""
    weighted = {value: weight for value, weight in weights.items() if weight}
    absent = [value for value in weighted if value not in present]
    if not absent:
        return

    # The setting that mends it: the weights of what is present, or the same for all of it.
    kept = {value: weight for value, weight in weighted.items() if value in present}
    if not kept:
        kept = dict.fromkeys(sorted(present), 1)
    setting = ", ".join(f"{value}: {weight:g}" for value, weight in kept.items())
    missing = ", ".join(repr(value) for value in absent)
    raise UserError(
        f"data.{name}: no sample has {missing}; there is {', '.join(sorted(present))}: set 'data.{name}={{{setting}}}'"
    )


def _choose(names: list[str], weights: list[float], *key: object) -> str:
    """Return one of the names, drawn by weight; by equal weights when all weigh 0."""
    if any(weights):
        return chooser(*key).choices(names, weights)[0]
    return chooser(*key).choices(names)[0]
