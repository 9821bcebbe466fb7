"""The learning world without a disk: batches drawn as they are asked for, as many as a training wants."""

from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import Any

import lightning as L
import numpy as np
import torch
from torch.utils.data import Dataset

from firered_lit.batch import Condition, EditBatch, Text
from firered_lit.draws import chooser
from firered_lit.errors import UserError
from firered_lit.facts import Facts
from firered_lit.models.codec import to_pixels
from firered_lit.models.conditioning import UNCONDITIONAL
from firered_lit.models.family import Base, open_base

from ..loading.loader import BatchAddress, Failure, fetched
from ..sampling.captions import UNCONDITIONAL as WITHOUT_TEXT
from ..sampling.captions import Captions
from ..sources import regions
from .families import FAMILIES, WorldEdit
from .sample import edit
from .scene import draw
from .write import mask as mask_of
from .write import regions as regions_of

EPOCH = 1_000_000  # batches; there is no end to them
SHAPES = {"compose": (2, 2, 3)}  # family -> numbers of references, one of which is drawn; other families have 1


class Drawn(Dataset[tuple[EditBatch | Failure, tuple[str, ...]]]):
    """Micro-batches by address. All samples of a global batch have one number of references.

    Args:
        model: Base whose codec and text encoder make the batches.
        families: Families to draw from; with numbers, how many turns each has.
        captions: Choice of a sample's text.
        seed: Seed of all draws.
    """

    def __init__(self, model: str, families: Sequence[str] | Mapping[str, int], captions: Captions, seed: int) -> None:
        weights = families if isinstance(families, Mapping) else dict.fromkeys(families, 1)
        self.model = model
        self.families = tuple(weights)
        self.captions = captions
        self.seed = seed
        self.turns = tuple(name for name, weight in weights.items() for _ in range(weight))
        self._base: Encoders | None = None  # opened where it is used, in a worker

    @property
    def encoders(self) -> "Encoders":
        """The frozen parts of the base, opened once in each process."""
        if self._base is None:
            self._base = Encoders(open_base(self.model))
        return self._base

    def __getitem__(self, address: BatchAddress) -> tuple[EditBatch | Failure, tuple[str, ...]]:
        drawn = [self.sample(address, slot) for slot in address.slots]
        return self.encoders.batch(drawn, address), ()

    def sample(self, address: BatchAddress, slot: int) -> tuple[WorldEdit, str, str]:
        """Return (edit, its id, the key of its text)."""
        families, references = self.bucket(address.step)
        number = address.step * address.num_slots + slot
        drawn = edit(self.seed, number, families=families, references=references)
        key = self.captions.draw(drawn.texts, self.seed, address.step, slot)
        return drawn, f"{self.seed}-{number}", key

    def bucket(self, step: int) -> tuple[tuple[str, ...], int]:
        """Return the families whose turns make a global batch, by their weights, and its number of references."""
        family = self.turns[chooser("world bucket", self.seed, step).randrange(len(self.turns))]
        if family not in SHAPES:
            return tuple(name for name in self.turns if name not in SHAPES), 1
        return (family,), chooser("world references", self.seed, step).choice(SHAPES[family])


class Encoders:
    """The frozen parts of a base, which make batches of edits.

    Args:
        base: The base.
    """

    def __init__(self, base: Base) -> None:
        self.codec = base.codec()
        self.conditioner = base.conditioner()
        self.area = base.sizes.condition_area
        self.side = round(base.sizes.target_area**0.5)

    def batch(
        self, drawn: Sequence[tuple[WorldEdit, str, str]], address: BatchAddress, pictured: bool = False
    ) -> EditBatch:
        """Return edits with one number of references as a batch.

        Args:
            drawn: (edit, its id, the key of its text) of each sample.
            address: The address of the micro-batch.
            pictured: Add the pictures and the unconditional text, for validation and rewards.
        """
        # Pictures.
        edits = [one for one, _, _ in drawn]
        targets = [draw(one.target, self.side) for one in edits]
        shown = [[draw(scene, self.side) for scene in one.sources] for one in edits]
        pixels = torch.stack([to_pixels(picture) for picture in targets])
        sources = []
        for pictures in zip(*shown, strict=True):
            sources.append(torch.stack([to_pixels(picture) for picture in pictures]))

        # Texts, and the marks on the pictures.
        texts = []
        facts = []
        for one, name, key in drawn:
            text = UNCONDITIONAL if key == WITHOUT_TEXT else one.texts[key]
            texts.append(text)
            known = Facts(
                id=name,
                task=one.task,
                instruction=text,
                target_text=one.target_text,
                replaced_text=one.replaced_text,
            )
            facts.append(known)
        masks = [mask_of(own, target) for own, target in zip(shown, targets, strict=True)]
        faces = [_faces(one, self.side) for one in edits]
        return EditBatch(
            target=self.codec.encode(pixels),
            condition=Condition(self.text(texts), tuple(self.codec.encode(images) for images in sources)),
            facts=tuple(facts),
            step=address.step,
            slots=address.slots,
            num_slots=address.num_slots,
            regions=regions.stacked(faces),
            mask=torch.stack([torch.from_numpy(np.array(mask)).float()[None] / 255 for mask in masks]),
            pixels=pixels if pictured else None,
            sources=tuple(sources) if pictured else (),
            unconditional=self.text([UNCONDITIONAL] * len(edits)) if pictured else None,
        )

    def text(self, prompts: list[str]) -> Text:
        """Return the embeddings of prompts, without pictures."""
        return Text.pad(self.conditioner.encode(prompts, [[]] * len(prompts), self.area))


def _faces(one: WorldEdit, side: int) -> list[Any]:
    """Return the faces of an edit's target: five points each, in a picture of `side` pixels."""
    return [region["points"] for region in regions_of(one.target, side) if "points" in region]


class WorldLoader:
    """The micro-batches of one process, without end. The state is the number of steps, so it resumes exactly.

    Args:
        drawn: Micro-batches by address.
        batch: Samples of a micro-batch.
        rank: Number of this process.
        world: The number of processes.
        accumulate: Micro-batches of a global batch on each process.
        workers: Processes that draw.
    """

    def __init__(
        self, drawn: Drawn, batch: int, rank: int = 0, world: int = 1, accumulate: int = 1, workers: int = 0
    ) -> None:
        self.drawn = drawn
        self.size = batch
        self.rank = rank
        self.world = world
        self.share = accumulate
        self.workers = workers
        self.seen = 0  # micro-batches since the start of training
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

    def addresses(self, seen: int) -> Iterator[BatchAddress]:
        """Yield the addresses of this process's micro-batches, from number `seen` on."""
        num_slots = self.size * self.share * self.world
        while True:
            step, turn = divmod(seen, self.share)
            first = (turn * self.world + self.rank) * self.size
            yield BatchAddress(step, tuple(range(first, first + self.size)), num_slots)
            seen += 1

    def _batches(self) -> Generator[EditBatch, None, None]:
        """Yield the micro-batches, as the workers draw them."""
        waiting: deque[BatchAddress] = deque()  # addresses that workers have and whose batch has not come

        def handed_out() -> Iterator[BatchAddress]:
            for address in self.addresses(self.seen):
                waiting.append(address)
                yield address

        def where() -> str:
            return f"at step {waiting[0].step}" if waiting else "before the first batch"

        for batch, _ in fetched(self.drawn, handed_out(), self.workers, where):
            waiting.popleft()
            self.seen += 1
            yield batch


class HeldOutWorld:
    """Held-out edits for validation, by family, a batch each; compositions of two.

    Args:
        drawn: Draws the families.
        each: Edits of a family.
    """

    def __init__(self, drawn: Drawn, each: int) -> None:
        self.drawn = drawn
        self.each = each

    def __len__(self) -> int:
        return len(self.drawn.families)

    def __iter__(self) -> Iterator[EditBatch]:
        for number, family in enumerate(self.drawn.families):
            count = SHAPES.get(family, (1,))[0]
            drawn = []
            for i in range(self.each):
                one = edit(self.drawn.seed, i, "held_out", (family,), count)
                drawn.append((one, f"held-out-{family}-{i}", "original/en"))
            slots = tuple(range(number * self.each, (number + 1) * self.each))
            address = BatchAddress(0, slots, self.each * len(self))
            yield self.drawn.encoders.batch(drawn, address, pictured=True)


class WorldDataModule(L.LightningDataModule):
    """Edits of the learning world, drawn as training goes. Every batch is a function of (seed, step).

    Args:
        model: Base whose codec and text encoder make the batches.
        batch: Samples of a micro-batch.
        families: Families of `datamodules.world.families`, all when None; with numbers, how many turns each has beside
            the others.
        seed: Seed of all draws.
        text_drop: Probability, 0 to 1, of the unconditional text.
        captions: Weights of the kinds of instruction, see `Captions`; None for the original alone.
        languages: Weights of the languages, see `Captions`.
        held_out: Edits of each family that a validation shows, of combinations that are never trained on; 0 for no
            validation.
        workers: Processes that draw.

    Raises:
        UserError: There is no such family, or its number is no whole number from 1 up.
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
        unknown = sorted(set(families) - set(FAMILIES))
        if unknown:
            raise UserError(f"data.families: no family {unknown[0]}; there are {', '.join(FAMILIES)}")
        if isinstance(families, Mapping):
            for turns in families.values():
                if not isinstance(turns, int) or turns < 1:
                    raise UserError("data.families: how often a family comes is a whole number, 1 or more")
        self.base = open_base(model)
        self.sizes = self.base.sizes
        faces = [edit(seed, 0, "train", (family,)).target.face for family in families]
        self.summary: dict[str, Any] = {
            "world": {"seed": seed, "families": families},
            "regions": sum(face is not None for face in faces),  # families that have some
        }
        self.drawn = Drawn(model, families, Captions(captions or {"original": 1.0}, languages, text_drop), seed)
        self.size = batch
        self.held_out = held_out
        self.workers = workers
        self.loader: WorldLoader | None = None

    def check(self, base: Base) -> None:
        """Raise UserError when the batches are made by another codec or text encoder than the base's."""
        if not (base.same_part("vae", self.base) and base.same_part("text_encoder", self.base)):
            raise UserError(f"data.model={self.base.name}: has another codec or text encoder than {base.name}")

    def train_dataloader(self) -> WorldLoader:
        """Return the micro-batches of this process."""
        rank = 0
        world = 1
        accumulate = 1
        if self.trainer is not None:
            rank = self.trainer.global_rank
            world = self.trainer.world_size
            accumulate = self.trainer.accumulate_grad_batches
        self.loader = WorldLoader(self.drawn, self.size, rank, world, accumulate, self.workers)
        return self.loader

    def val_dataloader(self) -> HeldOutWorld | list[Any]:
        """Return the held-out edits; an empty list when there are none."""
        if not self.held_out:
            return []
        return HeldOutWorld(self.drawn, self.held_out)

    def teardown(self, stage: str) -> None:
        if self.loader is not None:
            self.loader.close()
