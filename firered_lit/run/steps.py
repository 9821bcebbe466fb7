"""One count of steps everywhere: what is logged lies at the optimizer steps that console and checkpoints name."""

import math
from collections.abc import Mapping
from typing import Any

import lightning as L


def log_by_optimizer_steps(engine: L.Trainer) -> None:
    """Have loggers receive every metric at the number of optimizer steps taken, the validation before the first too.

    Lightning counts batches from 0, so that what it logs after step 40 lies at 39, or at 19 where a batch takes two
    steps; and it keeps the validation before the first step, its "sanity check", to itself.

    Args:
        engine: a trainer that has not begun. Metrics that are given a step of their own keep it.
    """
    connector = engine._logger_connector
    log, end_of_validation = connector.log_metrics, connector.log_eval_end_metrics

    def at_the_step(metrics: Mapping[str, Any], step: int | None = None) -> None:
        if metrics and step is None and "step" not in metrics:
            metrics = {"epoch": engine.current_epoch, **metrics}
            step = engine.global_step
        log(metrics, step)  # type: ignore[arg-type]

    def before_the_first_step_too(metrics: Any) -> None:
        if engine.sanity_checking and math.isinf(engine.num_sanity_val_steps):  # of all samples, as later ones
            at_the_step(connector.metrics["log"])
        end_of_validation(metrics)

    connector.log_metrics = at_the_step  # type: ignore[method-assign]
    connector.log_eval_end_metrics = before_the_first_step_too  # type: ignore[method-assign]
