"""The learning world without a disk: batches drawn as they are asked for, as many as a training wants."""

from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import lightning as L
import numpy as np
import torch
from torch.utils.data import Dataset

from firered_lit.batch import Condition, EditBatch, Text
from firered_lit.draws import chooser
from firered_lit.errors import UserError
from firered_lit.models.codec import to_pixels
from firered_lit.models.conditioning import UNCONDITIONAL
from firered_lit.models.family import Base, open_base

from .. import regions
from ..captions import UNCONDITIONAL as WITHOUT_TEXT
from ..captions import Captions
from ..loader import Failure, _fetch
from .families import FAMILIES, Edit
from .sample import edit
from .scene import draw
from .write import mask as mask_of
from .write import regions as regions_of

EPOCH = 1_000_000  # batches; there is no end to them
SHAPES = {"compose": (2, 2, 3)}  # family -> numbers of references, each as often as it stands there; else 1


@dataclass(frozen=True)
class Place:
    """A micro-batch: which global batch it belongs to, and its samples' places in that one."""

    step: int
    slots: tuple[int, ...]
    num_slots: int


class Drawn(Dataset[tuple[EditBatch | Failure, tuple[str, ...]]]):
    """Micro-batches by place. All samples of a global batch have one number of references."""

    def __init__(self, model: str, families: Sequence[str] | Mapping[str, int], captions: Captions, seed: int) -> None:
        weights = families if isinstance(families, Mapping) else dict.fromkeys(families, 1)
        self.model, self.families, self.captions, self.seed = model, tuple(weights), captions, seed
        self.turns = tuple(name for name, weight in weights.items() for _ in range(weight))
        self._base: Encoders | None = None  # opened where it is used, in a worker

    @property
    def encoders(self) -> "Encoders":
        if self._base is None:
            self._base = Encoders(open_base(self.model))
        return self._base

    def __getitem__(self, place: Place) -> tuple[EditBatch | Failure, tuple[str, ...]]:
        drawn = [self.sample(place, slot) for slot in place.slots]
        return self.encoders.batch(drawn, place), ()

    def sample(self, place: Place, slot: int) -> tuple[Edit, str, str]:
        """(edit, its id, the key of its text)."""
        bucket = self.bucket(place.step)
        number = place.step * place.num_slots + slot
        found = edit(self.seed, number, families=bucket[0], references=bucket[1])
        key = self.captions.draw(found.texts, self.seed, place.step, slot)
        return found, f"{self.seed}-{number}", key

    def bucket(self, step: int) -> tuple[tuple[str, ...], int]:
        """Whose turns make a global batch, and its number of references: each family as often as its weight says."""
        family = self.turns[chooser("world bucket", self.seed, step).randrange(len(self.turns))]
        if family not in SHAPES:
            return tuple(name for name in self.turns if name not in SHAPES), 1
        return (family,), chooser("world references", self.seed, step).choice(SHAPES[family])


class Encoders:
    """The frozen parts of a base, and how edits become a batch."""

    def __init__(self, base: Base) -> None:
        self.codec, self.conditioner = base.codec(), base.conditioner()
        self.area, self.side = base.sizes.condition_area, round(base.sizes.target_area**0.5)

    def batch(self, drawn: Sequence[tuple[Edit, str, str]], place: Place, pictured: bool = False) -> EditBatch:
        """Edits with one number of references as a batch. pictured: with all that validation and rewards look at."""
        edits = [found for found, _, _ in drawn]
        targets = [draw(found.target, self.side) for found in edits]
        shown = [[draw(scene, self.side) for scene in found.sources] for found in edits]
        masks = [mask_of(*pictures) for pictures in zip(shown, targets, strict=True)]
        pixels = torch.stack([to_pixels(picture) for picture in targets])
        sources = [torch.stack([to_pixels(picture) for picture in place]) for place in zip(*shown, strict=True)]
        texts = [UNCONDITIONAL if key == WITHOUT_TEXT else found.texts[key] for found, _, key in drawn]
        faces = [[region["points"] for region in regions_of(e.target, self.side) if "points" in region] for e in edits]
        more: dict[str, Any] = {}
        if pictured:
            more = {
                "pixels": pixels,
                "sources": tuple(sources),
                "unconditional": self.text([UNCONDITIONAL] * len(edits)),
            }
        return EditBatch(
            target=self.codec.encode(pixels),
            condition=Condition(self.text(texts), tuple(map(self.codec.encode, sources))),
            ids=tuple(name for _, name, _ in drawn),
            step=place.step,
            slots=place.slots,
            num_slots=place.num_slots,
            tasks=tuple(found.task for found in edits),
            instructions=tuple(texts),
            target_texts=tuple(found.target_text or None for found in edits),
            replaced_texts=tuple(found.replaced_text or None for found in edits),
            regions=regions.stacked(faces),
            mask=torch.stack([torch.from_numpy(np.array(mask)).float()[None] / 255 for mask in masks]),
            **more,
        )

    def text(self, prompts: list[str]) -> Text:
        return Text.pad(self.conditioner.encode(prompts, [[]] * len(prompts), self.area))


class WorldLoader:
    """The micro-batches of one process, without end. The state is the number of steps, so it resumes exactly."""

    def __init__(
        self, drawn: Drawn, batch: int, rank: int = 0, world: int = 1, accumulate: int = 1, workers: int = 0
    ) -> None:
        self.drawn, self.size, self.rank, self.world, self.share = drawn, batch, rank, world, accumulate
        self.workers, self.seen = workers, 0
        self._stream: Generator[EditBatch, None, None] | None = None

    def __len__(self) -> int:
        return EPOCH

    def __iter__(self) -> Iterator[EditBatch]:
        if self._stream is None:
            self._stream = self._batches()
        return self._stream

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.seen // self.share, "slots": self.size * self.share * self.world, "seed": self.drawn.seed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, value in self.state_dict().items():
            if name != "step" and state.get(name) != value:
                raise UserError(f"this run began with {name}={state.get(name)} of the world, now {value}: set it back")
        self.close()
        self.seen = state["step"] * self.share

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def places(self, seen: int) -> Iterator[Place]:
        """This process's micro-batches from the `seen`-th on."""
        while True:
            step, k = divmod(seen, self.share)
            first = (k * self.world + self.rank) * self.size
            yield Place(step, tuple(range(first, first + self.size)), self.size * self.share * self.world)
            seen += 1

    def _batches(self) -> Generator[EditBatch, None, None]:
        waiting: deque[Place] = deque()

        def handed_out() -> Iterator[Any]:
            for place in self.places(self.seen):
                waiting.append(place)
                yield place

        where = lambda: f"at step {waiting[0].step}" if waiting else "before the first batch"  # noqa: E731
        for batch, _ in _fetch(self.drawn, handed_out(), self.workers, where):  # type: ignore[arg-type]
            waiting.popleft()
            self.seen += 1
            yield batch


class HeldOutWorld:
    """Held-out edits for validation, by family, a batch each; compositions of two."""

    def __init__(self, drawn: Drawn, each: int) -> None:
        self.drawn, self.each = drawn, each

    def __len__(self) -> int:
        return len(self.drawn.families)

    def __iter__(self) -> Iterator[EditBatch]:
        for number, family in enumerate(self.drawn.families):
            count = SHAPES.get(family, (1,))[0]
            found = [edit(self.drawn.seed, i, "held_out", (family,), count) for i in range(self.each)]
            drawn = [(one, f"held-out-{family}-{i}", "original/en") for i, one in enumerate(found)]
            slots = tuple(range(number * self.each, (number + 1) * self.each))
            batch = self.drawn.encoders.batch(drawn, Place(0, slots, self.each * len(self)), pictured=True)
            yield batch


class WorldDataModule(L.LightningDataModule):
    """Edits of the learning world, drawn as training goes.

    model: the base whose codec and text encoder make the batches. batch: samples of a micro-batch. families: of
    `datamodules.world.families`, all when None; with numbers, how often each comes beside the others. text_drop,
    captions, languages: see `Captions`. held_out: edits of each family that a validation shows, of combinations that
    are never trained on; 0 for no validation. workers: processes that draw. Every batch is a function of (seed, step).
    """

    def __init__(
        self,
        *,
        model: str = "world",
        batch: int = 32,
        families: Sequence[str] | Mapping[str, int] | None = None,
        seed: int = 0,
        text_drop: float = 0.05,
        captions: Mapping[str, float] | None = None,
        languages: Mapping[str, float] | None = None,
        held_out: int = 8,
        workers: int = 1,
    ) -> None:
        super().__init__()
        families = dict(families) if isinstance(families, Mapping) else list(families or FAMILIES)
        if unknown := sorted(set(families) - set(FAMILIES)):
            raise UserError(f"data.families: no family {unknown[0]}; there are {', '.join(FAMILIES)}")
        if isinstance(families, Mapping) and not all(isinstance(n, int) and n > 0 for n in families.values()):
            raise UserError("data.families: how often a family comes is a whole number, 1 or more")
        self.base = open_base(model)
        self.sizes, self.summary = self.base.sizes, {"world": {"seed": seed, "families": families}}
        faces = (edit(seed, 0, "train", (family,)).target.face for family in families)
        self.summary["regions"] = sum(face is not None for face in faces)  # families that have some
        self.drawn = Drawn(model, families, Captions(captions or {"original": 1.0}, languages, text_drop), seed)
        self.size, self.held_out, self.workers = batch, held_out, workers
        self.loader: WorldLoader | None = None

    def check(self, base: Base) -> None:
        """UserError when the batches are made by another codec or text encoder than the base's."""
        if not (base.same_part("vae", self.base) and base.same_part("text_encoder", self.base)):
            raise UserError(f"data.model={self.base.name}: has another codec or text encoder than {base.name}")

    def train_dataloader(self) -> WorldLoader:
        rank, world, accumulate = 0, 1, 1
        if self.trainer is not None:
            rank, world = self.trainer.global_rank, self.trainer.world_size
            accumulate = self.trainer.accumulate_grad_batches
        self.loader = WorldLoader(self.drawn, self.size, rank, world, accumulate, self.workers)
        return self.loader

    def val_dataloader(self) -> HeldOutWorld | list[Any]:
        return HeldOutWorld(self.drawn, self.held_out) if self.held_out else []

    def teardown(self, stage: str) -> None:
        if self.loader is not None:
            self.loader.close()
