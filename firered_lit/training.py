"""Train one stage: the straight line from a recipe's parts to a finished run."""

import logging
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import lightning as L
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from .checkpoints.checkpoint import BEST, FOLDER, AtomicCheckpointIO, best, read_facts, resolve
from .checkpoints.lineage import REVISION, refuse_other_base, revision_of, run_of
from .config.dialect import dump, parse
from .errors import UserError, naming
from .files import write_json, write_text
from .optim import refuse_eight_bit, refuse_rounding
from .process import locks, stopping
from .rewards.protocol import Reward
from .run.start import find_start
from .run.steps import log_by_optimizer_steps
from .run.store import RECORD, read_record
from .stages.base import Stage
from .textfiles import read_object, read_text


@dataclass(frozen=True)
class Run:
    """The folder of a run, and how it starts.

    Attributes:
        dir: The run's folder.
        start_from: A run, a checkpoint or a diffusers folder whose weights are trained on from, in place of the base's;
            see `start.start_folder`.
        start_dtype: Precision in which a run's or a checkpoint's weights are handed over; None for that in which the
            stage keeps them.
        resume: "last", "best" or a checkpoint's path; None refuses a folder that holds a run.
        validate_every: Optimizer steps between two validations; None for no validation.
        validate_first: Validate before the first step too, so that the grid begins with the base model.
    """

    dir: str
    start_from: str | None = None
    start_dtype: Literal["float32", "bfloat16"] | None = None
    resume: str | None = None
    validate_every: int | None = None
    validate_first: bool = True


def fit(
    run: Run,
    stage: Stage,
    data: L.LightningDataModule,
    trainer: Callable[..., L.Trainer],
    checkpoint: L.Callback,
    callbacks: Mapping[str, L.Callback | None] | None = None,
    logger: Logger | None = None,
    recipe: Mapping[str, Any] | None = None,
) -> int:
    """Train `stage` on `data` and return the process's exit code: 0, 75 after SIGTERM or SIGUSR1, 130 after Ctrl-C.

    Args:
        run: Where the run lives, what it starts from, and when it validates.
        stage: What is learnt, and from which model.
        data: The batches of training and validation.
        trainer: Factory of the trainer. Callbacks, the logger and the format of checkpoints are added here.
        checkpoint: Writes checkpoints and keeps the best.
        callbacks: Everything that a run can do without, by names of one's own; None takes one away.
        logger: The record of the run; None keeps none.
        recipe: The resolved recipe, which is written into the run's folder and logged.

    Raises:
        UserError: The folder holds a run and `run.resume` is not given, another process trains in it, or the data was
            made with another VAE or text encoder.
    """
    _quiet()
    folder = Path(run.dir).resolve()
    first = getattr(rank_zero_only, "rank", None) in (0, None)
    with locks.held(folder / ".lock", "fit") if first else nullcontext():  # the others of this run follow the first
        return _fit(folder, run, stage, data, trainer, checkpoint, callbacks, logger, recipe)


def _fit(
    folder: Path,
    run: Run,
    stage: Stage,
    data: L.LightningDataModule,
    trainer: Callable[..., L.Trainer],
    checkpoint: Any,
    callbacks: Mapping[str, L.Callback | None] | None,
    logger: Logger | None,
    recipe: Mapping[str, Any] | None,
) -> int:
    """Train in a folder that no other process trains in. The arguments and the result are those of `fit`."""
    # Where it starts: a checkpoint of this run, another run's weights, or the base. Nothing is written yet.
    start = resolve(folder, run.resume)
    if run.resume is None and any((folder / "checkpoints").glob("*.ckpt")):
        raise UserError(f"{folder}: holds a run already; continue it with run.resume=last or choose another run.dir")
    if start is not None:
        stage.go_on_in(run_of(start))
    origin = None
    if run.start_from is not None:
        dtype = run.start_dtype or stage.backbone.dtype
        origin = find_start(run.start_from, folder, stage.base, dtype, begun=start is not None)
    if start is not None and origin is None:
        _refuse_other_base(start, stage)

    # All else that can be refused before anything is loaded.
    settings = getattr(trainer, "keywords", {})
    _refuse_settings(settings, stage)
    refuse_rounding(stage.optimizer_factory, [stage.trained_dtype])
    check = getattr(data, "check", None)
    if check:
        check(stage.base)
    for name, callback in (callbacks or {}).items():
        if not isinstance(callback, L.Callback | None):
            raise UserError(f"callbacks.{name}: expected a callback, named by _target_, got {callback!r}")

    # Lightning's trainer.
    every = [callback for callback in (callbacks or {}).values() if callback is not None]
    accepted = _Accepted(lambda: _record(engine, folder, stage, data, recipe))
    with naming("trainer", settings):
        engine = trainer(
            default_root_dir=str(folder),
            callbacks=[*every, accepted, checkpoint],
            logger=logger or False,
            enable_progress_bar=any(isinstance(callback, ProgressBar) for callback in every),
            plugins=[AtomicCheckpointIO(fall_back=run.resume == "last")],
            use_distributed_sampler=False,
            **_validation(run, trainer, start),
        )
    refuse_eight_bit(stage.optimizer_factory, engine.strategy)
    refuse = getattr(engine.strategy, "check", None)
    if refuse:
        processes = engine.num_devices * engine.num_nodes
        refuse(stage, processes, engine.precision, engine.accumulate_grad_batches)

    # The training itself. `accepted` writes the record once the checkpoint is loaded and the data is planned.
    if origin is not None:
        stage.start_from(origin.make())
    for part in ("transformer", "vae"):  # what is not here is downloaded now, not at the first validation
        stage.base.part(part)
    rank_zero_info(f"{'continuing from ' + str(start) if start else 'starting'} in {folder}")
    other = None if start is None else _other_precision(run_of(start), settings.get("precision"))
    if other is not None:
        rank_zero_info(other)
    log_by_optimizer_steps(engine)
    stopping.launching(lambda: getattr(engine.strategy.launcher, "procs", ()))
    try:
        engine.fit(stage, datamodule=data, ckpt_path=str(start) if start else None)
    except MisconfigurationException as error:  # Lightning's word for settings that do not go together
        raise UserError(f"trainer: {error}") from error

    # How it ended: by a signal (all ranks agree on this, the first has the code), or after its last step.
    if any(getattr(callback, "stopping", None) for callback in every):
        codes = [getattr(callback, "exit_code", None) for callback in every]
        return next((code for code in codes if code), 0)
    if engine.global_step == 0:
        checkpoint.save(engine)  # a run of no steps hands on its base
    reason = stage.learnt_nothing()
    _say(folder, engine, [*_missing(stage, every), *stage.remarks()])
    if reason is not None:
        for recorder in engine.loggers:
            recorder.finalize("failed")
        raise UserError(f"{folder}: nothing was learnt: {reason}")
    return 0


def _refuse_settings(settings: Mapping[str, Any], stage: Stage) -> None:
    """Refuse settings of the trainer that do not go with the stage.

    Args:
        settings: The trainer's, as the recipe gives them.
        stage: The stage to be trained.

    Raises:
        UserError: One does not; it says what to set.
    """
    precision = str(settings.get("precision"))
    clip = settings.get("gradient_clip_val")
    fused = getattr(stage.optimizer_factory, "keywords", {}).get("fused")
    if precision in ("bf16-true", "16-true"):
        raise UserError(
            "trainer.precision: stage.backbone.dtype says how weights are kept; to compute in half precision set"
            " bf16-mixed here"
        )
    if clip and not stage.automatic_optimization:
        raise UserError("trainer.gradient_clip_val: this stage clips by itself, by stage.gradient_clip; set it to null")
    if settings.get("accumulate_grad_batches", 1) != 1 and not stage.automatic_optimization:
        raise UserError("trainer.accumulate_grad_batches: this stage steps its optimizer by itself; set it to 1")
    if fused and precision.endswith("mixed") and (clip or getattr(stage, "gradient_clip", None)):
        raise UserError(
            f"stage.optimizer.fused: a fused optimizer cannot be clipped under trainer.precision={precision}; set"
            " fused to false, or do not clip"
        )


def _quiet() -> None:
    """Silence messages that Lightning and MLflow print on every start and save, and nobody acts on."""
    for name in ("utilities.rank_zero", "trainer.connectors.checkpoint_connector"):
        logging.getLogger(f"lightning.pytorch.{name}").addFilter(_is_news)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", "`isinstance.treespec, LeafSpec.` is deprecated")
    warnings.filterwarnings("ignore", "You have overridden `on_after_batch_transfer` in `LightningModule`")  # meant


def _is_news(record: logging.LogRecord) -> bool:
    """Return whether a message of Lightning is none of those that every run prints."""
    silenced = (
        "GPU available",
        "TPU available",
        "For seamless cloud",
        "`weights_only` was not set",
        "`Trainer.fit` stopped",
    )
    return not any(text in record.getMessage() for text in silenced)


class _Accepted(L.Callback):
    """A call of `record`, once nothing can refuse the run any more: its checkpoint is loaded, its data is planned.

    A new run begins with a validation, if it has one, and its record then holds the first grid.
    """

    def __init__(self, record: Callable[[], None]) -> None:
        self.record: Callable[[], None] | None = record

    def on_sanity_check_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._once()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._once()

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._once()  # a run of no steps

    def _once(self) -> None:
        record = self.record
        self.record = None
        if record is not None:
            record()


def _other_precision(run: Path, precision: Any) -> str | None:
    """Return a line for a run that goes on in another precision than it had; None where it is the same.

    Args:
        run: The run's folder, with the recipe that it had until here.
        precision: The recipe's, from now on.
    """
    try:
        before = parse(read_text(run / "recipe.yaml"), "recipe.yaml")["trainer"]["precision"]
    except (OSError, ValueError, UserError, LookupError, TypeError):  # of an earlier version, or damaged since
        return None
    if before == precision:
        return None
    return f"trainer.precision={before} until here, {precision} from now on; trainer.precision={before} keeps it"


def _refuse_other_base(checkpoint: Path, stage: Stage) -> None:
    """Refuse to go on over another base before any weight is loaded; a damaged file is dealt with where it is read."""
    facts = None
    with suppress(UserError):
        facts = read_facts(checkpoint)
    refuse_other_base(facts, stage.base, checkpoint)


def _record(engine: L.Trainer, folder: Path, stage: Stage, data: Any, recipe: Mapping[str, Any] | None) -> None:
    """Write recipe.yaml and run.json, and begin or continue the logger's record with the recipe."""
    _write_run(folder, stage, data, recipe)
    if recipe is not None and engine.logger is not None:
        engine.logger.log_hyperparams(dict(recipe))


def _validation(run: Run, trainer: Callable[..., L.Trainer], start: Path | None) -> dict[str, Any]:
    """Return the trainer's arguments for validation, counted in optimizer steps; Lightning counts micro-batches."""
    given = getattr(trainer, "keywords", {})
    if run.validate_every is None:
        return {"limit_val_batches": 0, "num_sanity_val_steps": 0}
    last = given.get("max_steps", -1)
    steps = run.validate_every
    if last >= 0:
        steps = min(steps, max(last, 1))  # a short run ends with one
    return {
        "num_sanity_val_steps": -1 if run.validate_first and start is None else 0,
        "val_check_interval": steps * given.get("accumulate_grad_batches", 1),
        "check_val_every_n_epoch": None,
    }


@rank_zero_only
def _write_run(folder: Path, stage: Stage, data: Any, recipe: Mapping[str, Any] | None) -> None:
    """Write recipe.yaml, as resolved, and the facts that `export` needs into run.json, whose other keys are kept."""
    if recipe is not None:
        write_text(folder / "recipe.yaml", dump(dict(recipe)))
    known = read_record(folder) | {
        "stage": type(stage).__name__,
        "base": stage.backbone.name,
        "base_folder": str(stage.base.folder),
        REVISION: revision_of(stage.base),
        "sizes": asdict(getattr(data, "sizes", stage.base.sizes)),
        "data": getattr(data, "summary", {}),
    }
    write_json(folder / RECORD, known)


def _missing(stage: Stage, callbacks: Iterable[L.Callback]) -> list[str]:
    """Return a line for every reward that some edits have not got, in training and in validation."""
    in_training = getattr(stage, "missing", {})
    lines = []
    for callback in callbacks:
        if isinstance(callback, Reward):
            counts = {
                "training": in_training.get(callback.name, 0),
                "validation": getattr(callback, "missing_in_validation", 0),
            }
            counted = ", ".join(f"{count} in {where}" for where, count in counts.items() if count)
            if counted:
                lines.append(f"rewards of {callback.name!r} are missing: {counted}")
    return lines


def _to_take(folder: Path, metrics: Mapping[str, float]) -> list[str]:
    """Return in a line which checkpoint to export and why; nothing where validation has chosen none that is known."""
    try:
        path = best(folder)
        record = read_object(folder / FOLDER / BEST, "monitor", "score", "step") if path else {}
    except UserError:  # damaged: the run itself is whole
        return []
    if path is None:
        return []
    name = record["monitor"]
    now = metrics.get(name)
    line = f"{path}: the best {name} of all validations, {record['score']:.4f} at step {record['step']}"
    if now is not None and now != record["score"]:
        line += f"; it is {now:.4f} at the end"
    return [f"{line} (export --checkpoint best)"]


def _stopped_early(engine: L.Trainer) -> list[str]:
    """Return in a line why training ended before its last step; nothing where it did not."""
    for callback in engine.early_stopping_callbacks:
        if callback.wait_count >= callback.patience:
            waited = f"has not improved in {callback.wait_count} validations"
            return [f"stopped early at step {engine.global_step}: {callback.monitor} {waited}"]
    return []


@rank_zero_only
def _say(folder: Path, engine: L.Trainer, remarks: Sequence[str]) -> None:
    """Print the last lines of a finished run and keep them as summary.txt: its folder, its numbers, its pages."""
    lines = [f"run         {folder}", f"steps       {engine.global_step}"]

    # Numbers and pictures.
    metrics = {name: float(value) for name, value in engine.callback_metrics.items()}
    for name in ("train/loss", "val/loss", "val/accuracy", "rollout/total/mean", "val/psnr", "val/ssim"):
        if name in metrics:
            lines.append(f"{name:<11} {metrics[name]:.4f}")
    grids = sorted((folder / "samples").glob("*.png"))
    if grids:
        lines.append(f"grid        {grids[-1]}")

    # Advice, and where to look.
    lines += [f"take        {line}" for line in _to_take(folder, metrics)]
    lines += [f"note        {remark}" for remark in [*_stopped_early(engine), *remarks]]
    stores = [logger.uri for logger in engine.loggers if hasattr(logger, "uri")]
    if stores:
        from .run.tracking import ui_command

        lines += [f"look        {ui_command(uri)}" for uri in stores]
    pages = [getattr(logger, "page", None) for logger in engine.loggers]
    lines += [f"page        {address}" for address in pages if address]
    write_text(folder / "summary.txt", "\n".join(lines) + "\n")
    print("\n".join(lines))
