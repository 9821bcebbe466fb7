"""The choice of optimizer steps: one whose gradient is no number, or far above the usual, is left out."""

import logging
import math
from collections import deque
from collections.abc import Sequence
from statistics import median
from typing import Any

import torch.distributed as dist
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from ..errors import UserError

log = logging.getLogger(__name__)
LEAST = 10  # norms that must have been seen before one is called unusual
SHOWN = 32  # ids in a message


class Guard:
    """Leave bad optimizer steps out on every process, count and report them, and stop after too many in a row.

    A step is left out when its loss or the norm of its gradient is not finite, or when the norm is above `spike` times
    the median of the last `window` that were not. What is left out changes no weight and no optimizer state; the
    learning rate's schedule and the data go on.

    Args:
        spike: above 1; None: only finiteness counts.
        window: norms that the median is of, at least 10.
        patience: steps left out in a row, at least 1, after which the run stops with a UserError.
    """

    def __init__(self, spike: float | None = None, window: int = 100, patience: int = 10) -> None:
        if (spike is not None and spike <= 1) or window < LEAST or patience < 1:
            given = f"spike={spike} window={window} patience={patience}"
            raise UserError(f"stage.guard: {given}: spike is above 1 or null, window at least {LEAST}, patience 1")
        self.spike = spike
        self.patience = patience
        self.norms: deque[float] = deque(maxlen=window)
        self.left_out = False  # the last step

        # Steps left out since the start of training.
        self.skipped = 0
        self.in_a_row = 0

        # Steps of this process.
        self.asked = 0
        self.taken = 0  # those not left out
        self.moved = 0  # those of them with a gradient above 0
        self._seen: list[tuple[Sequence[str], Tensor]] = []  # samples and losses since the last step

    def saw(self, ids: Sequence[str], loss: Tensor) -> None:
        """Remember a micro-batch's samples and its loss, for the message of a step that is left out."""
        self._seen.append((ids, loss.detach()))

    def admits(self, norm: float, step: int) -> bool:
        """Return whether to take optimizer step `step`, by its gradient's norm over all processes.

        Every process asks, at every step.

        Raises:
            UserError: it is the `patience`-th step in a row that is left out.
        """
        problem = self._problem(norm)
        self.left_out = problem is not None
        self.asked += 1
        if problem is not None:
            self._leave_out(problem, step)
        else:
            self.taken += 1
            self.in_a_row = 0
            if norm > 0:
                self.moved += 1
                self.norms.append(norm)
        self._seen.clear()
        return problem is None

    def _problem(self, norm: float) -> str | None:
        """Return why a step of this gradient norm is left out; None when it is taken."""
        if not math.isfinite(norm):
            return f"the gradient's norm is {norm}"
        if self.spike is None or len(self.norms) < LEAST:
            return None
        usual = median(self.norms)
        if norm <= self.spike * usual:
            return None
        return f"the gradient's norm is {norm:.3g}, {norm / usual:.3g} times the usual"

    def _leave_out(self, problem: str, step: int) -> None:
        """Count and report a step that is left out; stop the run after too many."""
        self.skipped += 1
        self.in_a_row += 1
        ids = ", ".join(self._samples())
        if self.in_a_row >= self.patience:
            raise UserError(
                f"training stopped at step {step}: {problem}, as in the steps before it; {self.in_a_row} in a row were"
                f" left out; the last one's samples: {ids}: look at them, or lower the learning rate, then run.resume"
            )
        rank_zero_only(log.warning)(f"step {step} left out: {problem}; samples: {ids}")

    def _samples(self) -> list[str]:
        """Return the ids of the last step, of all processes: those of losses that are no numbers, else all."""
        # This process's micro-batches to blame.
        bad = [ids for ids, loss in self._seen if not bool(loss.isfinite().all())]
        everything = [ids for ids, _ in self._seen]
        own = bool(bad), [name for ids in bad or everything for name in ids]

        # Those of all processes.
        every = [own]
        if dist.is_available() and dist.is_initialized():
            every = [own] * dist.get_world_size()
            dist.all_gather_object(every, own)
        blamed = [ids for is_bad, ids in every if is_bad]
        if not blamed:
            blamed = [ids for _, ids in every]

        names = list(dict.fromkeys(name for ids in blamed for name in ids))
        if len(names) <= SHOWN:
            return names
        return [*names[:SHOWN], f"and {len(names) - SHOWN} more"]

    def state_dict(self) -> dict[str, Any]:
        return {"norms": list(self.norms), "skipped": self.skipped, "in_a_row": self.in_a_row}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.norms.extend(state["norms"])
        self.skipped = state["skipped"]
        self.in_a_row = state["in_a_row"]
