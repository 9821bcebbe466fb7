"""Preference mining: pictures of several models for the same requests, scored, and paired by a rule."""

import json
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Protocol

from ..files import replacing
from ..rewards.protocol import Reward
from .ledger import AGAIN
from .pairs import Candidate, MixPolicy, PairRule, PreferencePair
from .request import MiningRequest, ShownCandidate, relative_to
from .run import Line, Wanted
from .scoring import Pending, Scorer

PAIRS, MANIFEST = "pairs.jsonl", "manifest.jsonl"
ROW = ("task", "instruction", "instruction_cn", "source_image", "target_text", "cluster")  # of a request's line


class PreferenceRequests(Protocol):
    """Requests with their candidates, by number. A request that cannot be used is a line with `refused`."""

    def __len__(self) -> int: ...

    def made_from(self) -> Line: ...

    def items(self, wanted: Wanted) -> Iterator[tuple[int, MiningRequest]]: ...


class Preferences:
    """Every candidate scored by every reward; pairs of a winner and a loser by `rule`. FireRed (2602.13344), 3.6.1.

    Args:
        candidates: the requests, and the pictures that experts and base made for them.
        rewards, weights, routes, patience: see `Scorer`.
        rule: `pairs.MixPolicy` or `pairs.VisualEnhancement`; another one needs no new scores.
        ahead: requests whose scores may be pending at once.

    Writes manifest.jsonl, every request with its candidates' rewards, and pairs.jsonl in the layout of preferences
    (source_image, chosen_image, rejected_image, instruction, ...), which `prepare` reads.
    """

    unit = "request"

    def __init__(
        self,
        candidates: PreferenceRequests,
        rewards: Mapping[str, Reward],
        rule: PairRule | None = None,
        weights: Mapping[str, float] | None = None,
        routes: Mapping[str, Collection[str]] | None = None,
        patience: float = 300.0,
        ahead: int = 8,
    ) -> None:
        self.candidates = candidates
        self.rule = rule or MixPolicy()
        self.ahead = ahead
        self.scorer = Scorer(rewards, weights, routes, patience)

    def made_from(self) -> Line:
        return {"kind": "preferences"} | self.candidates.made_from() | self.scorer.made_from()

    def __len__(self) -> int:
        return len(self.candidates)

    def open(self, folder: Path) -> None:
        """Nothing to load."""

    def items(self, wanted: Wanted) -> Iterator[tuple[int, MiningRequest]]:
        return self.candidates.items(wanted)

    def begin(self, item: MiningRequest) -> tuple[Line, list[tuple[ShownCandidate, Pending]]]:
        return item.line, [(shown, self.scorer.ask(shown.pixels, shown.sample)) for shown in item.shown]

    def finish(self, begun: tuple[Line, list[tuple[ShownCandidate, Pending]]]) -> Line:
        line, asked = begun
        candidates = []
        again = False
        for shown, pending in asked:
            judged = self.scorer.judged(pending)
            again = again or judged.again
            candidates.append(
                {
                    "model": shown.model,
                    "expert": shown.expert,
                    "image": shown.image,
                    "reward": judged.total[0],
                    "rewards": {name: marks[0] for name, marks in judged.rewards.items()},
                }
            )
        line = line | {"candidates": candidates}
        if again:
            line[AGAIN] = True
        return line

    def conclude(self, lines: Callable[[], Iterator[Line]], folder: Path) -> list[str]:
        """Write the manifest and the pairs."""
        counts = Counter[str]()
        with replacing(folder / MANIFEST) as manifest, replacing(folder / PAIRS) as table:
            for line in lines():
                line.pop(AGAIN, None)
                candidates = [Candidate(**candidate) for candidate in line["candidates"]]
                pairs = self.rule.pairs(candidates)
                counts.update(pairs=len(pairs), requests=bool(pairs), candidates=len(candidates))
                counts.update(missing=sum(candidate.reward is None for candidate in candidates))
                counts.update(refused=bool(line.get("refused")), unusable=len(line.get("unusable", ())))
                manifest.write(json.dumps(line | {"pairs": len(pairs)}, ensure_ascii=False) + "\n")
                for number, pair in enumerate(pairs):
                    table.write(json.dumps(_row(line, number, pair, folder), ensure_ascii=False) + "\n")

        report = [f"pairs    {counts['pairs']:>8} of {counts['requests']} of {len(self)} requests"]
        report.append(f"scored   {counts['candidates']:>8} pictures, {counts['missing']} of them without a reward")
        if counts["unusable"]:
            report.append(f"left out {counts['unusable']:>8} pictures that cannot be read")
        if counts["refused"]:
            report.append(f"refused  {counts['refused']:>8} requests")
        return report

    def close(self) -> None:
        self.scorer.close()


def _row(line: Line, number: int, pair: PreferencePair, folder: Path) -> Line:
    """Return a row of pairs.jsonl. Paths are relative to the folder, URLs as they are."""
    row: Line = {"id": f"{line['id']}.{number}"}
    for name in ROW:
        if line.get(name):
            row[name] = line[name]
    row["source_image"] = [relative_to(folder, path) for path in line["source_image"]] or None
    row["chosen_image"] = relative_to(folder, pair.winner.image)
    row["rejected_image"] = relative_to(folder, pair.loser.image)
    row["chosen_from"] = pair.winner.model
    row["rejected_from"] = pair.loser.model
    row["gap"] = pair.gap
    row["chosen_reward"] = pair.winner.reward
    row["rejected_reward"] = pair.loser.reward
    return row
