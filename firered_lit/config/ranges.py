"""The numbers that a recipe may give: a range for every parameter, by its name. One name means one thing everywhere.

A range is text, so that errors can show it: comparisons that must all hold. `Class.name` stands before `name`. Numbers
that are not finite are refused everywhere.
"""

import math
import operator
from collections.abc import Iterable
from typing import Any

_COMPARISONS = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt}
_LARGEST = 1 << 63  # no library takes a whole number beyond
_FREE = ""  # any finite number
_SHARE = ">= 0 and <= 1"

RANGES = {
    **dict.fromkeys(("workers", "processes"), ">= 0 and <= 1024"),  # processes or threads of one machine
    # sizes and counts
    **dict.fromkeys(("every", "keep", "rows", "side", "batch", "part_rows", "max_orders", "num_shards"), ">= 1"),
    **dict.fromkeys(("capacity", "groups", "plan_ranks", "max_batch", "max_pixels", "max_side"), ">= 1"),
    **dict.fromkeys(("target_area", "reference_area", "condition_area", "area", "max_tokens", "chunk"), ">= 1"),
    **dict.fromkeys(("group_size", "rollout_steps", "points", "updates", "rotate_every", "rank", "draws"), ">= 1"),
    **dict.fromkeys(("passes", "tries", "parallel", "threads", "ahead", "window", "fall", "replicate"), ">= 1"),
    **dict.fromkeys(("validate_every", "accumulate_grad_batches", "num_nodes", "Preview.steps"), ">= 1"),
    **dict.fromkeys(("shard_rows", "Clusters.count", "sample", "together", "longest", "least_said"), ">= 1"),
    **dict.fromkeys(("SemiHard.steps", "Prompts.steps", "FSDP2.shard", "JudgeReward.least", "Evolution.least"), ">= 1"),
    **dict.fromkeys(("each", "repeats", "attempts", "repeated_items", "criteria"), ">= 1"),
    **dict.fromkeys(("Local.steps", "Drawing.steps", "Pipeline.steps", "Evaluation.steps", "WorldRows.side"), ">= 1"),
    **dict.fromkeys(("held_out_max", "held_out_least", "held_out", "warmup", "steps", "start", "shard"), ">= 0"),
    **dict.fromkeys(("retries", "least", "most", "least_valid", "budget", "log_every_n_steps"), ">= 0"),
    **dict.fromkeys(("max_steps", "max_epochs", "min_steps", "min_epochs"), ">= -1"),
    **dict.fromkeys(("seed", "top_k", "lowest", "highest"), _FREE),
    **dict.fromkeys(("Duplicates.distance",), ">= 0 and <= 5"),
    **dict.fromkeys(("Duplicates.cosine",), "> 0 and <= 1"),
    **dict.fromkeys(("pictures",), ">= 0"),
    # shares and probabilities
    **dict.fromkeys(("decay", "cap", "floor", "end", "cutoff", "gate", "quantile", "dropout", "left_out"), _SHARE),
    **dict.fromkeys(("text_drop", "reference_drop", "max_refused", "edit_share", "most_low", "top_p", "min_p"), _SHARE),
    **dict.fromkeys(("max_failed", "TextArea.least", "Make.several", "Make.held_out"), _SHARE),
    # rates, weights and scales
    **dict.fromkeys(("lr", "weight_decay", "eps", "momentum", "rate", "gradient_clip", "gradient_clip_val"), ">= 0"),
    **dict.fromkeys(("beta", "omega", "sft_weight", "kl", "eta", "min_std", "least_std", "start_weight"), ">= 0"),
    **dict.fromkeys(("identity_weight", "preservation_weight", "text_weight", "layout_weight", "tolerance"), ">= 0"),
    **dict.fromkeys(("guidance", "temperature", "Clusters.alpha"), ">= 0"),
    **dict.fromkeys(("alpha", "std", "clip", "spike", "max_upscale", "repetition_penalty", "cache_limit"), "> 0"),
    **dict.fromkeys(("mean", "max_mean", "least_mean", "win", "lose", "margin"), _FREE),
    # seconds; the limit of what is read is a number of things
    **dict.fromkeys(("patience", "backoff", "longest_wait"), ">= 0"),
    **dict.fromkeys(("timeout", "timeout_s", "limit"), "> 0"),
}


def range_of(name: str, parameter: str) -> str | None:
    """Return the range of a parameter of the class or function `name`; None when it has none."""
    own = RANGES.get(f"{name}.{parameter}")
    return RANGES.get(parameter) if own is None else own


def outside(name: str, parameter: str, value: Any) -> str | None:
    """Return what was expected instead of a number, or of one in a list or mapping; None when all is well.

    Args:
        name: of the class or function.
        parameter: of it.
        value: a plain value of a recipe.
    """
    if isinstance(value, dict):
        return _first_not_finite(value.values())
    if isinstance(value, list):
        return _first_not_finite(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if isinstance(value, int) and abs(value) >= _LARGEST:
        return "a whole number of 64 bits"
    allowed = range_of(name, parameter) or _FREE
    if not _lies_in(value, allowed):
        return f"a number {allowed}"
    return _first_not_finite([value])


def _lies_in(value: float, allowed: str) -> bool:
    """Return whether a number satisfies every comparison of a range, such as ">= 0 and <= 1"."""
    if allowed == _FREE:
        return True
    for comparison in allowed.split(" and "):
        sign, bound = comparison.split()
        if not _COMPARISONS[sign](value, float(bound)):
            return False
    return True


def _first_not_finite(values: Iterable[Any]) -> str | None:
    """Return "a finite number" when one of the values is infinite or NaN."""
    for value in values:
        if isinstance(value, float) and not math.isfinite(value):
            return "a finite number"
    return None
