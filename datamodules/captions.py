"""Which instruction a visit of a sample shows."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from firered_lit.draws import chooser
from firered_lit.errors import UserError

UNCONDITIONAL = "unconditional"  # the key of the text " "


@dataclass(frozen=True)
class Captions:
    """Which instruction a visit of a sample shows: kind and language by weight among those present, or none at all.

    kinds, languages: weights by name; languages None are all alike. drop: probability of the unconditional text.
    """

    kinds: Mapping[str, float]
    languages: Mapping[str, float] | None
    drop: float

    def __post_init__(self) -> None:
        weights = [*self.kinds.values(), *(self.languages or {}).values()]
        if not 0 <= self.drop <= 1 or any(not 0 <= w < math.inf for w in weights) or not any(self.kinds.values()):
            raise UserError("data: text_drop is a probability; captions and languages are weights, not all of them 0")

    def refuse_absent(self, present: Mapping[str, int]) -> None:
        """Raise UserError, with the words that mend it, when a weight names what the data does not hold at all."""
        for name, weights, place in (("captions", self.kinds, 0), ("languages", self.languages or {}, 1)):
            there = {key.split("/")[place] for key in present}
            absent = [key for key, weight in weights.items() if weight and key not in there]
            if absent:
                kept = {key: weight for key, weight in weights.items() if key in there and weight}
                chosen = kept or dict.fromkeys(sorted(there), 1)
                weighed = ", ".join(f"{key}: {weight:g}" for key, weight in chosen.items())
                raise UserError(
                    f"data.{name}: no sample has {', '.join(map(repr, absent))}; there is {', '.join(sorted(there))}: "
                    f"set 'data.{name}={{{weighed}}}'"
                )

    def draw(self, instructions: Mapping[str, str], *key: object) -> str:
        """The key of the text of one visit, drawn by `key`. A sample with nothing that has weight shows what it has."""
        if chooser(*key, "text drop").random() < self.drop:
            return UNCONDITIONAL
        kinds = sorted({name.split("/")[0] for name in instructions})
        kind = _choose(kinds, [self.kinds.get(k, 0.0) for k in kinds], *key, "caption")
        languages = sorted(name.split("/")[1] for name in instructions if name.split("/")[0] == kind)
        weights = [1.0 if self.languages is None else self.languages.get(name, 0.0) for name in languages]
        return f"{kind}/{_choose(languages, weights, *key, 'language')}"


def _choose(names: list[str], weights: list[float], *key: object) -> str:
    return chooser(*key).choices(names, weights if any(weights) else None)[0]
