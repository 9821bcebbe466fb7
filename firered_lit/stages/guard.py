"""Which optimizer steps are taken: one whose gradient is no number, or far above the usual, is left out."""

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
    """Leaves a step out on all processes alike, counts it and says whose samples it had; stops after too many in a row.

    A step is left out when its loss or the norm of its gradient is not finite, or when the norm is above `spike` times
    the median of the last `window` that were not. What is left out changes no weight and no optimizer state; the
    learning rate's schedule and the data go on.

    spike: None judges finiteness alone. patience: steps left out in a row after which the run stops with a UserError.
    """

    def __init__(self, spike: float | None = None, window: int = 100, patience: int = 10) -> None:
        if (spike is not None and spike <= 1) or window < LEAST or patience < 1:
            given = f"spike={spike} window={window} patience={patience}"
            raise UserError(f"stage.guard: {given}: spike is above 1 or null, window at least {LEAST}, patience 1")
        self.spike, self.patience = spike, patience
        self.norms: deque[float] = deque(maxlen=window)
        self.skipped = self.in_a_row = 0
        self.left_out = False  # the last step
        self.asked = self.taken = self.moved = 0  # steps of this process: all, those not left out, those of a gradient
        self._seen: list[tuple[Sequence[str], Tensor]] = []  # samples and losses since the last step

    def saw(self, ids: Sequence[str], loss: Tensor) -> None:
        """One micro-batch's samples and its loss."""
        self._seen.append((ids, loss.detach()))

    def admits(self, norm: float, step: int) -> bool:
        """Return whether to take optimizer step `step`, by its gradient's norm over all processes.

        Raises UserError when it is not the first in a row that is left out, but the `patience`-th.
        """
        problem = self._problem(norm)
        self.left_out = problem is not None
        self.asked += 1
        self.taken += problem is None
        self.moved += problem is None and norm > 0
        if problem is None:
            self.in_a_row = 0
            self.norms += [norm] if norm > 0 else []
        else:
            self._leave_out(problem, step)
        self._seen.clear()
        return problem is None

    def _problem(self, norm: float) -> str | None:
        if not math.isfinite(norm):
            return f"the gradient's norm is {norm}"
        if self.spike is None or len(self.norms) < LEAST or norm <= self.spike * (usual := median(self.norms)):
            return None
        return f"the gradient's norm is {norm:.3g}, {norm / usual:.3g} times the usual"

    def _leave_out(self, problem: str, step: int) -> None:
        self.skipped, self.in_a_row = self.skipped + 1, self.in_a_row + 1
        ids = ", ".join(self._samples())
        if self.in_a_row >= self.patience:
            raise UserError(
                f"training stopped at step {step}: {problem}, as in the steps before it; {self.in_a_row} in a row were"
                f" left out; the last one's samples: {ids}: look at them, or lower the learning rate, then run.resume"
            )
        rank_zero_only(log.warning)(f"step {step} left out: {problem}; samples: {ids}")

    def _samples(self) -> list[str]:
        """Ids of the last step, of all processes: those of losses that are no numbers, else all."""
        bad = [ids for ids, loss in self._seen if not bool(loss.isfinite().all())]
        own = bool(bad), [name for ids in bad or [ids for ids, _ in self._seen] for name in ids]
        every = [own]
        if dist.is_available() and dist.is_initialized():
            every = [own] * dist.get_world_size()
            dist.all_gather_object(every, own)
        blamed = [ids for is_bad, ids in every if is_bad] or [ids for _, ids in every]
        names = list(dict.fromkeys(name for ids in blamed for name in ids))
        return names[:SHOWN] + ([f"and {len(names) - SHOWN} more"] if len(names) > SHOWN else [])

    def state_dict(self) -> dict[str, Any]:
        return {"norms": list(self.norms), "skipped": self.skipped, "in_a_row": self.in_a_row}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.norms.extend(state["norms"])
        self.skipped, self.in_a_row = state["skipped"], state["in_a_row"]
