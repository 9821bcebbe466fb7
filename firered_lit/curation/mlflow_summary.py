"""A curation's record in MLflow: its rules as parameters, its funnel as metrics, its report and data card."""

import logging
import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from firered_lit.cards.data_card import CARD, Card
from firered_lit.errors import UserError
from firered_lit.files import write_json
from firered_lit.run.mlflow_runs import DATA, RUN, log_params, name_parents, open_run
from firered_lit.run.store import read_record, store_uri, update_record
from firered_lit.textfiles import read_object

from .corpus import STATE
from .report import FOLDER, costs_of
from .select import SELECTION

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

log = logging.getLogger(__name__)

MLFLOW_URI = "mlflow.uri"  # how a recipe names the address
REPORTS = "reports"  # in OUT/state/run.json: how often it was recorded, which is the step of its metrics
_MOST_METRICS = 1000  # that MLflow takes at a time


@dataclass(frozen=True)
class CurationRun:
    """A curation's place in MLflow. It has one run; each report is a step of its metrics.

    Args:
        uri: The store; None: mlflow.db beside OUT, as for training runs.
        experiment: The experiment's name; that of training runs unless another one is given.
        page: Record the report's page too, which shows pictures; they may have licences.

    Raises:
        UserError: The address is none of a store.
    """

    uri: str | None = None
    experiment: str = "firered_lit"
    page: bool = False

    def __post_init__(self) -> None:
        if self.uri is not None:
            store_uri(self.uri, Path(), MLFLOW_URI)

    def keep(self, folder: Path, card: Card) -> None:
        """Record a report, and note the run in the data card. A store that fails costs a warning.

        Args:
            folder: OUT, with its report and its data card.
            card: What the data card holds.
        """
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        for name in ("alembic", "mlflow.store.db.utils"):  # they tell of every table that they make
            logging.getLogger(name).setLevel(logging.WARNING)
        try:
            self._keep(folder, card)
        except UserError:
            raise
        except Exception as problem:  # whatever a store may throw: the tables lie on the disk all the same
            reason = f"{type(problem).__name__}: {problem}".splitlines()[0]
            log.warning("MLflow: the curation is not recorded: %s", reason)

    def _keep(self, folder: Path, card: Card) -> None:
        home = folder / STATE
        uri = store_uri(self.uri, folder.parent, MLFLOW_URI)
        client, run_id = open_run(uri, self.experiment, folder.name, home)

        # What it was: rules, annotators, and the curation that its source is from.
        log_params(client, run_id, _params(card))
        client.set_tag(run_id, "run.dir", str(folder))
        for earlier in card.get("from", []):
            if RUN in earlier:
                name_parents(client, run_id, {DATA: earlier[RUN]})

        # What came out.
        step = int(read_record(home).get(REPORTS, 0))
        selection = read_object(home / SELECTION, "rows", "kept", "reasons", "matched")
        _log_numbers(client, run_id, numbers(selection, costs_of(folder)), step)
        write_json(folder / CARD, {**card, RUN: run_id})
        client.log_artifact(run_id, str(folder / CARD), FOLDER)
        client.log_artifact(run_id, str(folder / FOLDER / "report.md"), FOLDER)
        if self.page:
            client.log_artifact(run_id, str(folder / FOLDER / "index.html"), FOLDER)
        update_record(home, **{REPORTS: step + 1})


def numbers(selection: Mapping[str, Any], costs: Mapping[str, float]) -> dict[str, float]:
    """Return metric -> value: rows, kept rows, what each reason dropped, and what each annotator cost.

    Args:
        selection: What the last selection did.
        costs: Annotator -> milliseconds for an item.
    """
    found = {"curation/rows": float(selection["rows"]), "curation/kept": float(selection["kept"])}
    if selection["rows"]:
        found["curation/kept_share"] = selection["kept"] / selection["rows"]
    for reason, count in selection["reasons"].items():
        found[f"curation/dropped/{_clean(reason)}"] = float(count)
    for rule, count in selection["matched"].items():
        found[f"curation/alone/{_clean(rule)}"] = float(count)
    for name, cost in costs.items():
        found[f"curation/ms_an_item/{_clean(name)}"] = cost
    return found


def _params(card: Card) -> dict[str, str]:
    """Return what decided a curation, by names that MLflow takes."""
    params = {f"rules.{_clean(name)}": str(rule) for name, rule in card["rules"].items()}
    for name, annotator in card["annotators"].items():
        params[f"annotators.{_clean(name)}"] = f"{annotator['class']} version {annotator['version']}"
    for place, quota in enumerate(card["quotas"]):
        params[f"quotas.{place}"] = str(quota)
    params["seed"] = str(card["seed"])
    params["made_by"] = str(card["made_by"])
    return params


def _log_numbers(client: "MlflowClient", run_id: str, found: Mapping[str, float], step: int) -> None:
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    metrics = [Metric(key, value, now, step) for key, value in found.items()]
    for start in range(0, len(metrics), _MOST_METRICS):
        client.log_batch(run_id, metrics=metrics[start : start + _MOST_METRICS])


def _clean(key: str) -> str:
    """Return a key with the letters alone that MLflow takes."""
    return re.sub(r"[^\w. :-]", "_", key)[:100]
