"""Runs of an MLflow store: one that is begun or goes on, what has changed in it, and the runs that it goes on from."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from firered_lit.cards.data_card import CARDS
from firered_lit.errors import UserError
from firered_lit.places import user_path
from firered_lit.run.store import RECORD, alone, artifacts_of, read_record, update_record
from firered_lit.textfiles import read_object

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

PARENT = "mlflow.parentRunId"  # the tag by which MLflow's pages show a run below another one
RUN = "mlflow_run_id"  # in run.json, in a data card and in an export: the run that made it
WEIGHTS, DATA = "weights", "data"  # what a run takes from another one
_LONGEST = 6000  # characters of a parameter
_BATCH = 100  # parameters that MLflow takes at a time


def open_run(uri: str, experiment: str, name: str, home: Path) -> tuple["MlflowClient", str]:
    """Return the client of a store, and the run that a folder names; a new run where it names none of this store.

    Args:
        uri: The store.
        experiment: Where a new run goes; made where it is not there.
        name: Of a new run.
        home: The folder, whose run.json keeps the run's id.
    """
    from mlflow.tracking import MlflowClient

    with alone(uri):
        client = MlflowClient(uri)
        record = read_record(home)
        if record.get("mlflow_uri") == uri and _lives(client, record.get(RUN)):
            return client, record[RUN]
        found = client.get_experiment_by_name(experiment)
        number = None if found is None else found.experiment_id
        if number is None:
            number = client.create_experiment(experiment, artifact_location=artifacts_of(uri))
        run_id = client.create_run(number, run_name=name).info.run_id
        client.set_terminated(run_id)
    update_record(home, mlflow_uri=uri, mlflow_run_id=run_id)
    return client, run_id


def log_params(client: "MlflowClient", run_id: str, params: Mapping[str, str]) -> None:
    """Log what is new as parameters, which MLflow never changes, and what has changed since as tags, first to last.

    Args:
        client: Of the store.
        run_id: The run.
        params: By names that MLflow takes.
    """
    from mlflow.entities import Param

    run = client.get_run(run_id).data
    new = [Param(key, value[:_LONGEST]) for key, value in params.items() if key not in run.params]
    for start in range(0, len(new), _BATCH):
        client.log_batch(run_id, params=new[start : start + _BATCH])
    for key, first in run.params.items():
        tag = f"changed.{key}"[:250]
        history = run.tags.get(tag, first)
        now = params[key][:_LONGEST] if key in params else "removed"
        if history != now and not history.endswith(f" -> {now}"):
            client.set_tag(run_id, tag, f"{history} -> {now}"[-_LONGEST:])


def name_parents(client: "MlflowClient", run_id: str, parents: Mapping[str, str]) -> None:
    """Name the runs that a run goes on from, by tags parent.weights and parent.data.

    MLflow's own tag names the first of them that this store has: its pages show the run below that one.

    Args:
        client: Of the store.
        run_id: The run.
        parents: What was taken -> the run that it was taken from, the most important one first.
    """
    for what, parent in parents.items():
        client.set_tag(run_id, f"parent.{what}", parent)
    for parent in parents.values():
        if parent != run_id and _lives(client, parent):
            client.set_tag(run_id, PARENT, parent)
            return


def parents_of_training(settings: Mapping[str, str]) -> dict[str, str]:
    """Return the runs that a training goes on from: the one that made its weights, and the one that made its data.

    Args:
        settings: The recipe, flattened to dotted keys.
    """
    parents: dict[str, str] = {}
    start = settings.get("run.start_from", "None")
    weights = None if start == "None" else run_that_made(user_path(start))
    if weights is not None:
        parents[WEIGHTS] = weights
    root = settings.get("data.root", "None")
    data = None if root == "None" else _run_that_chose(user_path(root))
    if data is not None:
        parents[DATA] = data
    return parents


def run_that_made(place: Path) -> str | None:
    """Return the MLflow run that made weights; None where none is known.

    Args:
        place: A run's folder, one of its checkpoints, or an export.
    """
    for file in (place / RECORD, place / "firered_lit.json", place.resolve().parent.parent / RECORD):
        found = _entry(file, RUN)
        if isinstance(found, str):
            return found
    return None


def _run_that_chose(root: Path) -> str | None:
    """Return the MLflow run of the curation that chose a prepared folder's rows; None where none is known."""
    cards = _entry(root / "data.json", CARDS)
    for card in cards if isinstance(cards, list) else []:
        if isinstance(card, dict) and isinstance(card.get(RUN), str):
            return str(card[RUN])
    return None


def _entry(file: Path, name: str) -> object:
    """Return an entry of a JSON file; None where there is no such file or entry."""
    try:
        return read_object(file).get(name)
    except (UserError, OSError):
        return None


def _lives(client: "MlflowClient", run_id: str | None) -> bool:
    """Return whether the store has a run that is not deleted."""
    from mlflow.exceptions import MlflowException

    if run_id is None:
        return False
    try:
        return client.get_run(run_id).info.lifecycle_stage == "active"
    except MlflowException:
        return False
