"""The base of all reward callbacks: they score validation images in any stage, and count scores that are missing."""

import logging
import threading
from abc import abstractmethod
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

import lightning as L
import torch
from torch import Tensor

from firered_lit.batch import EditBatch
from firered_lit.rewards.collect import PendingRewards
from firered_lit.rewards.names import check_name
from firered_lit.rewards.panel import RewardPanel
from firered_lit.rewards.protocol import Scores
from firered_lit.rewards.scale import check_range, refuse_outside

log = logging.getLogger(__name__)


class RewardCallback(L.Callback):
    """A reward by name. A reinforcement stage asks `submit`; in every stage it also scores the validation images.

    Logged at each validation: `reward/<name>`, the mean of those that have a score, `reward/<name>/<term>` of each of
    its terms, and `reward/<name>/missing`, how many have none. Why they have none is said in one
    line, and at the end of training how often.

    Args:
        name: Name in the log and in `stage.weights` and `stage.routes`.
        patience: Seconds that validation waits for the scores after its last image.
        range: Lowest and highest value, which are laid on 0 and 1; null where they are 0 and 1 already. A subclass may
            have it as an attribute of the class.

    Raises:
        UserError: The name cannot be a curve's, or the range is none.
    """

    range: Sequence[float] | None = None

    def __init__(self, name: str, patience: float = 300.0, range: Sequence[float] | None = None) -> None:
        check_name(name)
        if range is not None:
            self.range = range
        check_range(name, self.range)
        self.name = name
        self.patience = patience
        self.missing_in_validation = 0  # images of all validations of this process's run that have no score
        self.reasons: Counter[str] = Counter()  # why scores were missing, since the start of this process
        self._lock = threading.Lock()
        self._asked: list[
            tuple[PendingRewards, Tensor]
        ] = []  # of each validation batch, with the weights of its samples
        self._open: set[Future[Scores]] = set()  # not answered yet

    @abstractmethod
    def submit(self, images: Tensor, batch: EditBatch) -> "Future[Scores]":
        """Start scoring images (B, 3, H, W) in [-1, 1], made for the samples of `batch`. Does not wait."""

    def applies(self, batch: EditBatch) -> list[bool]:
        """Return (B,) True for a sample that it is able to score, and means to; the others are not missing."""
        return [True] * len(batch)

    def count(self, reason: str, times: int = 1) -> None:
        """Count missing scores by their reason. From any thread."""
        with self._lock:
            if reason not in self.reasons:
                log.warning("reward %s: a score is missing: %s", self.name, reason)
            self.reasons[reason] += times

    def opened(self, future: "Future[Scores]") -> "Future[Scores]":
        """Return the same future, which `close` cancels while it is not begun."""
        self._open.add(future)
        future.add_done_callback(self._open.discard)
        return future

    def close(self) -> None:
        """Cancel scores that are not begun: nobody waits for them, and the process would not end before them."""
        for future in list(self._open):
            future.cancel()

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self.close()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.reasons:
            reasons = "; ".join(f"{times} times {reason}" for reason, times in self.reasons.most_common(4))
            log.warning("reward %s: %d scores were missing: %s", self.name, self.reasons.total(), reasons)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._asked = []

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: EditBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        images = outputs.get("output") if isinstance(outputs, dict) else None
        if images is None or trainer.sanity_checking or not any(self.applies(batch)):
            return
        weight = torch.ones(len(batch)) if batch.weight is None else batch.weight.detach().cpu().float()
        weight = weight * torch.tensor(self.applies(batch))
        self._asked.append((self._panel().ask(images.detach(), batch), weight))

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # The scores of all batches.
        panel = self._panel()
        until = panel.deadline()
        sums = Sums()
        for asked, weight in self._asked:
            sums.add(panel.wait_for(self.name, asked, until), weight)
            sums.outside = asked.outside.get(self.name, sums.outside)
            for reason in asked.failures.values():
                self.count(reason, len(weight))
        self._asked = []

        # Their means over all ranks.
        means = sums.over_ranks(trainer)
        self.missing_in_validation += int(means.get("/missing", 0))
        if sums.outside is not None:
            refuse_outside({self.name: sums.outside}, {self.name: check_range(self.name, self.range)})
        for key, value in means.items():
            pl_module.log(f"reward/{self.name}{key}", value, sync_dist=trainer.world_size > 1)

    def _panel(self) -> RewardPanel:
        """Return the panel of this reward alone."""
        return RewardPanel({self.name: self}, weights=None, routes=None, patience=self.patience)


class Sums:
    """Weighted sums of a reward and its terms, each with the weight that has a number; and of what is missing."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {"": torch.zeros(2, dtype=torch.float64)}
        self.missing = 0.0
        self.outside: float | None = None  # a value clearly outside of the reward's scale

    def add(self, scores: Scores, weight: Tensor) -> None:
        """Add the scores of a batch; weight (B,), 0 for a sample that does not count."""
        value = torch.where(scores.valid.cpu(), scores.value.detach().cpu().double(), torch.nan)
        self.missing += float((weight[value.isnan()] > 0).sum())
        terms = {f"/{key}": term.detach().cpu().double() for key, term in scores.terms.items()}
        for key, numbers in ({"": value} | terms).items():
            known = weight.double() * ~numbers.isnan()
            pair = torch.stack([(numbers.nan_to_num() * known).sum(), known.sum()])
            self.sums[key] = self.sums.get(key, torch.zeros(2, dtype=torch.float64)) + pair

    def over_ranks(self, trainer: L.Trainer) -> dict[str, float]:
        """Return the means by term over all ranks, and the number of missing scores.

        A term that no rank has has no entry. Afterwards every rank knows of a value that one of them saw outside of
        the scale.
        """
        sums = self.sums
        missing = self.missing
        if trainer.world_size > 1:
            everyone: list[Any] = [None] * trainer.world_size
            torch.distributed.all_gather_object(everyone, (sums, missing, self.outside))
            names = sorted({name for own, _, _ in everyone for name in own})
            sums = {n: sum((own[n] for own, _, _ in everyone if n in own), torch.zeros(2).double()) for n in names}
            missing = sum(m for _, m, _ in everyone)
            self.outside = next((value for _, _, value in everyone if value is not None), None)
        means = {name: float(total / weight) for name, (total, weight) in sums.items() if weight > 0}
        asked = missing > 0 or bool(means)
        return means | ({"/missing": missing} if asked else {})
