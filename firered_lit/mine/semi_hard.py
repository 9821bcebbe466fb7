"""Semi-hard mining: several edits of every instruction by the model itself, and which instructions they teach by."""

import json
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from ..batch import EditBatch
from ..draws import gaussian
from ..errors import UserError
from ..files import replacing
from ..flow.sampler import schedule
from ..models.family import Base, open_base
from ..models.sampling import sample
from ..process.locks import in_turn
from ..rewards.protocol import Reward
from ..run.start import start_folder
from .ledger import AGAIN, MADE_FROM
from .run import Line, Wanted
from .scoring import Pending, Scorer
from .spread import Band, Spread

MANIFEST, KEPT, MINED = "manifest.jsonl", "kept.jsonl", "mined.json"


class PromptSource(Protocol):
    """Samples to edit, by number: a line that says which, and the sample with its pictures."""

    def __len__(self) -> int: ...

    @property
    def largest(self) -> int:
        """Visual tokens of the largest sample."""
        ...

    def made_from(self) -> Line: ...

    def check(self, base: Base) -> None: ...

    def items(self, wanted: Wanted) -> Iterator[tuple[int, tuple[Line, EditBatch]]]: ...

    def select(self, numbers: Iterable[int], folder: Path) -> None:
        """Write an index of these samples alone."""
        ...

    def pictures(self, number: int, folder: Path) -> Line:
        """Write a sample's pictures; the columns that name them, as `prepare` reads them."""
        ...


class SemiHard:
    """`draws` edits of every sample in `steps` Euler steps without guidance, scored; instructions in `band` are kept.

    FireRed-Image-Edit (2602.13344), section 3.6.2. Noise is keyed by (seed, id, number of the edit).

    Args:
        model: the base.
        data: the samples.
        rewards, weights, routes, patience: see `Scorer`.
        band: the choice of what is kept.
        start_from: the run (DPO's), checkpoint or folder whose weights draw, in place of the base's.
        draws: edits of a sample, at least 2.
        steps: Euler steps of an edit.
        dtype, device: of the weights.
        capacity: visual tokens of one forward; None draws a sample's edits at once.
        ahead: samples whose scores may be pending at once.
        pictures: write the kept samples' pictures too, so that `prepare` reads kept.jsonl.
        seed: of the noise.

    Writes manifest.jsonl, a line for every sample with each reward, their statistics and whether it is kept; an index
    of the kept ones, which `PromptDataModule(mined=...)` draws from; and kept.jsonl.
    """

    unit = "sample"

    def __init__(
        self,
        model: str,
        data: PromptSource,
        rewards: Mapping[str, Reward],
        band: Band | None = None,
        start_from: str | None = None,
        draws: int = 8,
        steps: int = 8,
        weights: Mapping[str, float] | None = None,
        routes: Mapping[str, Collection[str]] | None = None,
        dtype: Literal["float32", "bfloat16"] = "float32",
        device: str = "auto",
        capacity: int | None = None,
        patience: float = 300.0,
        ahead: int = 4,
        pictures: bool = False,
        seed: int = 0,
    ) -> None:
        if draws < 2 or steps < 1 or ahead < 0:
            raise UserError(f"task: draws={draws} steps={steps} ahead={ahead}: at least 2, 1 and 0")
        if capacity is not None and data.largest > capacity:
            raise UserError(
                f"task.capacity={capacity}: a sample has {data.largest} tokens; task.capacity={data.largest} takes"
                " every sample, or prepare at smaller sizes"
            )
        self.base = open_base(model)
        self.data = data
        self.start_from = start_from
        tasks = (getattr(data, "summary", None) or {}).get("tasks")
        self.scorer = Scorer(rewards, weights, routes, patience, tasks)
        self.band = band or Band()
        self.draws = draws
        self.steps = steps
        self.seed = seed
        self.dtype = dtype
        self.capacity = capacity
        self.ahead = ahead
        self.wants_pictures = pictures
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self.device = torch.device(device)
        data.check(self.base)

    def made_from(self) -> Line:
        return {
            "kind": "semi-hard",
            "model": self.base.name,
            "start_from": self.start_from,
            **self.data.made_from(),
            "draws": self.draws,
            "steps": self.steps,
            "seed": self.seed,
            "dtype": self.dtype,
            **self.scorer.made_from(),
        }

    def __len__(self) -> int:
        return len(self.data)

    def open(self, folder: Path) -> None:
        """Load the model."""
        base = self.base
        if self.start_from is not None:
            with in_turn(folder):  # the first one writes it, the others find it
                base = open_base(str(start_folder(self.start_from, folder, base, self.dtype)))
        transformer: Any = base.transformer(getattr(torch, self.dtype))
        self.transformer = transformer.eval().requires_grad_(False).to(self.device)
        self.codec = base.codec(self.device)
        self.config = base.scheduler_config

    def items(self, wanted: Wanted) -> Iterator[tuple[int, tuple[Line, EditBatch]]]:
        return self.data.items(wanted)

    def begin(self, item: tuple[Line, EditBatch]) -> tuple[Line, Pending]:
        line, batch = item
        return line, self.scorer.ask(self.draw(batch.to(self.device)), batch)

    @torch.no_grad()
    def draw(self, batch: EditBatch) -> Tensor:
        """Draw the edits of one sample as pixels (draws, 3, H, W) in [-1, 1]."""
        shape = batch.target.shape[1:]
        noise = gaussian(shape, tuple(range(self.draws)), self.seed, "mine", batch.ids[0]).to(self.device)
        sigmas = schedule(self.steps, shape[-2] * shape[-1] // 4, self.config)

        # As many at a time as the capacity holds.
        capacity = self.capacity or self.draws * batch.tokens
        at_once = max(1, capacity // batch.tokens)
        pixels = []
        for noise_of_some in noise.split(at_once):
            condition = batch.repeated(len(noise_of_some)).condition
            latents = sample(self.transformer, noise_of_some, sigmas, condition)
            pixels.append(self.codec.decode(latents).float().clamp(-1, 1))
        return torch.cat(pixels)

    def finish(self, begun: tuple[Line, Pending]) -> Line:
        line, pending = begun
        judged = self.scorer.judged(pending)
        line = dict(line)
        line["reward"] = Spread(tuple(judged.total)).as_line()
        line["rewards"] = {name: Spread(tuple(marks)).as_line() for name, marks in judged.rewards.items()}
        if judged.failures:
            line["failures"] = judged.failures
        if judged.again:
            line[AGAIN] = True
        return line

    def conclude(self, lines: Callable[[], Iterator[Line]], folder: Path) -> list[str]:
        """Write the manifest, with a verdict on every line, and the index and the rows of the kept samples."""
        # The manifest.
        kept: list[int] = []
        reasons = Counter[str]()
        missing = 0
        with replacing(folder / MANIFEST) as file:
            for line in lines():
                spread = Spread.of_line(line["reward"])
                missing += self.draws - len(spread.given)
                why = self.band.verdict(spread)
                reasons[why] += 1
                if not why:
                    kept.append(line["number"])
                line.pop(AGAIN, None)
                line |= {"kept": not why, "why": why or "semi-hard"}
                file.write(json.dumps(line, ensure_ascii=False) + "\n")

        # The kept samples.
        if not kept:
            raise UserError(f"{folder}: no sample is kept ({_counted(reasons)}); widen task.band; see {MANIFEST}")
        self.data.select(kept, folder / "index" / "train")
        if self.wants_pictures:
            self._rows(folder, set(kept))
        with replacing(folder / MINED) as file:
            made = json.loads((folder / MADE_FROM).read_text(encoding="utf-8"))
            json.dump({"data": made.get("data"), "samples": len(self), "kept": len(kept)}, file)

        report = [f"kept     {len(kept):>8} of {len(self)} samples"]
        report += [f"left out {count:>8} {why}" for why, count in reasons.most_common() if why]
        if missing:
            report.append(f"missing  {missing:>8} of {len(self) * self.draws} rewards")
        return report

    def _rows(self, folder: Path, kept: set[int]) -> None:
        """Write kept.jsonl, with the pictures that its rows name."""
        with (folder / MANIFEST).open(encoding="utf-8") as manifest, replacing(folder / KEPT) as file:
            for line in map(json.loads, manifest):
                if line["number"] in kept:
                    row = line | self.data.pictures(line["number"], folder)
                    file.write(json.dumps(row, ensure_ascii=False) + "\n")

    def close(self) -> None:
        self.scorer.close()


def _counted(reasons: Counter[str]) -> str:
    """Return in words why how many samples are left out."""
    return ", ".join(f"{count} {why}" for why, count in reasons.most_common() if why)
