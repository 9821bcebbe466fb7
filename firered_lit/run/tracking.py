"""The record of a run in MLflow: parameters, curves, pictures, where the code stood, and how it ended."""

import logging
import os
import re
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.loggers import Logger, MLFlowLogger
from lightning.pytorch.loggers.logger import rank_zero_experiment
from lightning.pytorch.utilities.rank_zero import rank_zero_only, rank_zero_warn
from mlflow.entities import Metric, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from PIL import Image

from firered_lit.errors import UserError
from firered_lit.process.stopping import before_the_end
from firered_lit.run.mlflow_runs import log_params, name_parents, parents_of_training
from firered_lit.run.provenance import git_state, packages
from firered_lit.run.run_page import describe, page
from firered_lit.run.store import RECORD, alone, artifacts_of, read_record, store_uri, ui_command, update_record

__all__ = ["MLflow", "log_folder", "log_image", "ui_command"]
_STATUS = {"success": "FINISHED", "finished": "FINISHED", "failed": "FAILED"}
_FLUSH_SECONDS, _FLUSH_METRICS = 1.0, 500  # MLflow takes at most 1000 metrics at a time
_NAMED = ("torch", "lightning", "diffusers", "transformers", "litdata", "peft", "bitsandbytes", "mlflow", "firered-lit")


class MLflow(MLFlowLogger):
    """One MLflow run per run folder. A local SQLite store by default, a server by its address.

    Calls return at once; a thread of their own writes them, in order, and `finalize` waits for it. A store that fails
    costs a warning, never the training.

    Args:
        dir: the run's folder; `run.json` in it keeps the run's id, `recipe.yaml` is kept as an artifact.
        experiment: the experiment's name.
        run_name: shown in the list of runs; the folder's name when null.
        uri: the store; `mlflow.db` beside the run's folder when null. Artifacts of a local store lie beside it.
        resume: what `run.resume` says; anything but null continues the run that `run.json` names.
    """

    def __init__(
        self,
        dir: str,
        experiment: str = "firered_lit",
        run_name: str | None = None,
        uri: str | None = None,
        resume: str | None = None,
    ) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        for name in ("alembic", "mlflow.store.db.utils"):  # they tell of every table that they make
            logging.getLogger(name).setLevel(logging.WARNING)
        self.dir = Path(dir).resolve()
        uri = store_uri(uri, self.dir.parent)
        with alone(uri):
            super().__init__(
                experiment, run_name or self.dir.name, uri, save_dir=None, artifact_location=artifacts_of(uri)
            )
        self.uri = uri
        self.stopped_from_outside = False  # set by whoever handles signals: the run then ends as KILLED
        self._resume = resume is not None
        self._answered = False
        self._session = uuid.uuid4().hex
        self._pending: list[Metric] = []
        self._flushed = time.monotonic()
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="mlflow")
        self._watchdog: subprocess.Popen[bytes] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_writer": None, "_watchdog": None}

    @property
    @rank_zero_experiment
    def experiment(self) -> MlflowClient:
        """The client, of a store that answers. Processes but the first get a dummy.

        The run itself begins, or goes on, with the first thing that is recorded or with `run_id`: a training that is
        refused before leaves no trace in it.
        """
        if not self._answered:
            with self._refusing():
                self._mlflow_client.search_experiments(max_results=1)
            self._answered = True
        return self._mlflow_client

    @property
    def run_id(self) -> str | None:
        """The run's id, which begins the run. None in processes but the first."""
        self._begin()
        return self._run_id

    @property
    def page(self) -> str | None:
        """The address of the run's page; None before it has begun, and in processes but the first."""
        if not self._initialized or self._run_id is None:
            return None
        return page(self.uri, str(self._experiment_id), self._run_id)

    @property
    def save_dir(self) -> str:
        return str(self.dir)

    @rank_zero_only
    def log_hyperparams(self, params: Mapping[str, Any] | Any, *_: Any) -> None:
        """Flattened to dotted keys. What a continued run has changed is kept as a tag `changed.KEY`: old -> new."""
        flat = {_clean(key): str(value) for key, value in flatten(dict(params))}
        client = self.experiment
        run_id = str(self.run_id)
        self._later(lambda: log_params(client, run_id, flat))
        self._later(lambda: describe(client, run_id, flat))
        self._later(lambda: name_parents(client, run_id, parents_of_training(flat)))
        recipe = self.dir / "recipe.yaml"
        if recipe.exists():
            self._later(lambda: client.log_artifact(run_id, str(recipe)))

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        now = int(time.time() * 1000)
        self._pending += [Metric(_clean(k), float(v), now, step or 0) for k, v in metrics.items() if k != "epoch"]
        if time.monotonic() - self._flushed > _FLUSH_SECONDS or len(self._pending) > _FLUSH_METRICS:
            self._flush()

    @rank_zero_only
    def log_image(self, key: str, image: Image.Image, step: int) -> None:
        """Keep a picture twice: with a slider over the steps, and as KEY/step_00000020.png, which sorts by step."""
        client, run_id = self.experiment, self.run_id
        self._later(lambda: client.log_image(run_id, image, key=key, step=step))
        self._later(lambda: client.log_image(run_id, image, artifact_file=f"{key}/step_{step:08d}.png"))

    @rank_zero_only
    def save(self) -> None:
        self._flush()

    @rank_zero_only
    def finalize(self, status: str = "success") -> None:
        """Everything out, then the run's end: FINISHED, FAILED, or KILLED when a signal stopped it."""
        if not self._initialized:
            return
        final = "KILLED" if self.stopped_from_outside else _STATUS.get(status, "FAILED")
        client, run_id = self.experiment, self.run_id
        self._flush()
        self._later(lambda: client.set_terminated(run_id, final))
        self._later(lambda: None).result()  # one thread, in order: all before it is done
        self._dismiss_watchdog()

    def _stopped_at_once(self) -> None:
        """End the run as KILLED when a signal ends the process without the trainer. From any thread."""
        if self._watchdog is not None:  # begun, and not ended yet
            self._mlflow_client.set_terminated(str(self._run_id), "KILLED")
            self._dismiss_watchdog()

    @rank_zero_only
    def _begin(self) -> None:
        """Begin or continue the run, once."""
        if self._initialized:
            return
        client = self.experiment
        with self._refusing():
            with alone(self.uri):
                self._run_id = self._known_run() if self._resume else None
                self._run_id = self._run_id or self._new_run()
            run_id = self._run_id
            client.set_tag(run_id, "session", self._session)
            self._watch()
            before_the_end(self._stopped_at_once)
            client.update_run(run_id, status="RUNNING")
        self._initialized = True
        update_record(self.dir, mlflow_uri=self.uri, mlflow_run_id=run_id)
        self._later(lambda: _log_surroundings(client, run_id, self.dir))

    @contextmanager
    def _refusing(self) -> Iterator[None]:
        """Turn a failure of the store into a UserError: its address comes from the recipe."""
        try:
            yield
        except MlflowException as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"logger.uri={self.uri}: cannot record a run there: {reason}") from error

    def _new_run(self) -> str:
        client = self._mlflow_client
        experiment = client.get_experiment_by_name(self._experiment_name)
        self._experiment_id = (
            experiment.experiment_id
            if experiment is not None
            else client.create_experiment(self._experiment_name, artifact_location=self._artifact_location)
        )
        return client.create_run(self._experiment_id, run_name=self._run_name).info.run_id

    def _known_run(self) -> str | None:
        """The run that the folder's record names, when this store has it."""
        record = read_record(self.dir)
        if record.get("mlflow_uri") != self.uri or not record.get("mlflow_run_id"):
            return None
        try:
            run = self._mlflow_client.get_run(record["mlflow_run_id"])
        except MlflowException:
            return None
        self._experiment_id = run.info.experiment_id
        return run.info.run_id if run.info.lifecycle_stage == "active" else None

    def _flush(self) -> None:
        batch, self._pending, self._flushed = self._pending, [], time.monotonic()
        if not batch:
            return
        client, run_id = self.experiment, self.run_id
        for start in range(0, len(batch), 1000):
            part = batch[start : start + 1000]
            self._later(partial(client.log_batch, run_id, metrics=part))

    def _later(self, call: Callable[[], Any]) -> Any:
        def guarded() -> None:
            try:
                call()
            except Exception as error:  # whatever a store may throw: the training matters more
                rank_zero_warn(f"MLflow: not recorded ({type(error).__name__}: {str(error).splitlines()[0][:300]})")

        return self._writer.submit(guarded)

    def _watch(self) -> None:
        script = Path(__file__).with_name("watchdog.py")
        command = [sys.executable, "-P", str(script), self.uri, str(self._run_id), self._session, str(os.getpid())]
        self._watchdog = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def _dismiss_watchdog(self) -> None:
        if self._watchdog is not None and self._watchdog.stdin is not None:
            try:
                self._watchdog.stdin.write(b".")
                self._watchdog.stdin.close()
            except BrokenPipeError:
                pass
            self._watchdog.wait(timeout=10)
        self._watchdog = None


def log_image(logger: Logger, key: str, image: Image.Image, step: int) -> bool:
    """Hand a picture to MLflow, TensorBoard or W&B; False when the logger takes none."""
    if isinstance(logger, MLflow):
        logger.log_image(key, image, step)
    elif hasattr(logger, "log_image"):  # W&B
        logger.log_image(key=key, images=[image], step=step)
    else:
        writer: Any = getattr(logger, "experiment", None)
        if not hasattr(writer, "add_image"):
            return False
        writer.add_image(key, np.asarray(image.convert("RGB")), step, dataformats="HWC")  # TensorBoard
    return True


def log_folder(run_dir: Path | str, folder: Path | str, name: str = "model") -> str:
    """Keep a folder, such as an exported model, as an artifact of the run in `run_dir`; returns the run's id."""
    record = read_record(Path(run_dir))
    if not record.get("mlflow_run_id"):
        raise UserError(f"{Path(run_dir) / RECORD}: names no MLflow run, so there is nowhere to keep {folder}")
    MlflowClient(record["mlflow_uri"]).log_artifacts(record["mlflow_run_id"], str(folder), name)
    return record["mlflow_run_id"]


def flatten(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Leaves of nested dicts and lists with dotted keys, as `key.path=value` names them on the command line."""
    items = list(value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ())
    if not items:
        yield key, value
    for name, item in items:
        yield from flatten(item, f"{key}.{name}" if key else str(name))


def _log_surroundings(client: MlflowClient, run_id: str, run_dir: Path) -> None:
    installed = packages()
    tags = git_state(Path(__file__).parent) | {"run.dir": str(run_dir), "version.python": sys.version.split()[0]}
    tags |= {f"version.{name}": installed[name] for name in _NAMED if name in installed}
    client.log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])
    client.log_dict(run_id, {"python": sys.version, "packages": installed}, "environment.json")


def _clean(key: str) -> str:
    """Only what MLflow takes in a key."""
    return re.sub(r"[^\w/. :-]", "_", key)[:250]
