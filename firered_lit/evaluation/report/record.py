"""An evaluation's record in MLflow: numbers, tables and plots under each model's run; pictures by choice alone."""

import csv
import io
import logging
import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from firered_lit.draws import chooser
from firered_lit.errors import UserError
from firered_lit.evaluation.protocols import EvaluationFolder
from firered_lit.evaluation.report.page import PICTURES, PLOTS
from firered_lit.evaluation.report.results import COUNTED, OVERALL, Results
from firered_lit.evaluation.report.tables import Table
from firered_lit.run.mlflow_runs import open_run
from firered_lit.run.store import RECORD, read_record, store_uri

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient
    from PIL import Image

log = logging.getLogger(__name__)

PREFIX = "evaluation"  # of the metrics and of the folder of artifacts
MLFLOW_URI = "mlflow.uri"  # how a recipe names the address
_MOST_METRICS = 1000  # that MLflow takes at a time
_GAP = 8


@dataclass(frozen=True)
class RunRecord:
    """An evaluation's place in MLflow, and what goes there.

    Args:
        uri: The store; None: mlflow.db in the evaluation's folder.
        experiment: The experiment's name.
        runs: Model -> folder of the training run whose record gets its evaluation, beside the models that are runs
            themselves. Other models get a run of their own, which a repeated report continues.
        pictures: Items whose pictures are recorded, drawn by the seed of the evaluation. Benchmarks have licences: 0
            records none.

    Raises:
        UserError: The address is none of a store, or the number is below 0.
    """

    uri: str | None = None
    experiment: str = "evaluation"
    runs: Mapping[str, str] = field(default_factory=dict)
    pictures: int = 0

    def __post_init__(self) -> None:
        if self.uri is not None:
            store_uri(self.uri, Path(), MLFLOW_URI)
        if self.pictures < 0:
            raise UserError(f"mlflow.pictures={self.pictures}: a number of items, at least 0")

    def beside(self, runs: Mapping[str, str]) -> "RunRecord":
        """Return the same record with the runs that models come from; those that it names itself stay.

        Args:
            runs: Model -> folder of the training run.
        """
        return replace(self, runs={**runs, **self.runs})

    def keep(
        self,
        folder: EvaluationFolder,
        results: Results,
        tables: Sequence[Table],
        cards: Sequence[Mapping[str, Any]],
        seed: int,
    ) -> None:
        """Record a report. A store that fails costs a warning: the report lies on the disk all the same.

        Args:
            folder: The evaluation's, with its report.
            results: What was reported.
            tables: Those of the report.
            cards: The items of its page.
            seed: Chooses the items whose pictures are recorded.
        """
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        for model in results.models:
            try:
                self._keep_model(folder, results, tables, cards, seed, model)
            except UserError:
                raise
            except Exception as problem:  # whatever a store may throw: the report matters more
                reason = f"{type(problem).__name__}: {problem}".splitlines()[0]
                log.warning("MLflow: the evaluation of %s is not recorded: %s", model, reason)

    def _keep_model(
        self,
        folder: EvaluationFolder,
        results: Results,
        tables: Sequence[Table],
        cards: Sequence[Mapping[str, Any]],
        seed: int,
        model: str,
    ) -> None:
        client, run_id = self._run(folder, model)
        self._log_numbers(client, run_id, results, model)
        for table in tables:
            client.log_text(run_id, _csv(table), f"{PREFIX}/{_clean(table.name)}.csv")
        client.log_artifact(run_id, str(folder.report / "report.md"), PREFIX)
        client.log_artifact(run_id, str(folder.report / "report.json"), PREFIX)
        client.log_artifacts(run_id, str(folder.report / PLOTS), f"{PREFIX}/{PLOTS}")
        for number, card in enumerate(chosen(cards, self.pictures, seed)):
            strip = _strip(card, folder.report / PICTURES)
            if strip is not None:
                client.log_image(run_id, strip, artifact_file=f"{PREFIX}/pictures/{number:03d}.png")

    def _run(self, folder: EvaluationFolder, model: str) -> tuple["MlflowClient", str]:
        """Return the client and the run of a model, which is begun if there is none."""
        from mlflow.tracking import MlflowClient

        # The run that trained the model.
        if model in self.runs:
            record = read_record(Path(self.runs[model]))
            if not record.get("mlflow_run_id"):
                raise UserError(
                    f"{Path(self.runs[model]) / RECORD}: names no MLflow run; leave {model} out of mlflow.runs"
                )
            return MlflowClient(record["mlflow_uri"]), record["mlflow_run_id"]

        # The run of an earlier report, or a new one.
        uri = store_uri(self.uri, folder.out, MLFLOW_URI)
        return open_run(uri, self.experiment, model, folder.model_items(model).parent)

    def _log_numbers(self, client: "MlflowClient", run_id: str, results: Results, model: str) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [Metric(key, value, now, 0) for key, value in numbers(results.tables[model], PREFIX).items()]
        for start in range(0, len(metrics), _MOST_METRICS):
            client.log_batch(run_id, metrics=metrics[start : start + _MOST_METRICS])
        for suite in results.scorings:
            client.set_tag(run_id, f"{PREFIX}.{_clean(suite)}.judge", results.judges(suite))


def numbers(tables: Mapping[str, Mapping[str, Mapping[str, Any]]], prefix: str) -> dict[str, float]:
    """Return metric -> value of one model: `PREFIX/SUITE/MODE/CATEGORY`, and `.../items/STATE` of each suite and mode.

    Args:
        tables: Suite -> mode -> category or "overall" -> score and counts.
        prefix: The first word of every name.
    """
    found: dict[str, float] = {}
    for suite, by_mode in tables.items():
        for mode, rows in by_mode.items():
            key = f"{prefix}/{_clean(suite)}/{mode}"
            for category, row in rows.items():
                if row.get("score") is not None:
                    found[f"{key}/{_clean(category)}"] = float(row["score"])
            for state in COUNTED:
                found[f"{key}/items/{state}"] = float(rows.get(OVERALL, {}).get(state, 0))
    return found


def chosen(cards: Sequence[Mapping[str, Any]], count: int, seed: int) -> list[Mapping[str, Any]]:
    """Return so many cards, drawn by the seed, in the order of the page."""
    places = list(range(len(cards)))
    chooser("report", seed).shuffle(places)
    return [cards[place] for place in sorted(places[:count])]


def _strip(card: Mapping[str, Any], folder: Path) -> "Image.Image | None":
    """Return the pictures of an item side by side; None where it has none."""
    from PIL import Image

    cells = [cell for cell in (*card["sources"], *card["models"]) if "name" in cell]
    if not cells:
        return None
    width = sum(cell["width"] + _GAP for cell in cells) - _GAP
    strip = Image.new("RGB", (width, max(cell["height"] for cell in cells)), "white")
    left = 0
    for cell in cells:
        with Image.open(folder / cell["name"]) as picture:
            strip.paste(picture, (left, 0))
        left += cell["width"] + _GAP
    return strip


def _csv(table: Table) -> str:
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([" | ".join(lines) for lines in table.head])
    writer.writerows(table.rows)
    return file.getvalue()


def _clean(key: str) -> str:
    """Return a key with the letters alone that MLflow takes."""
    return re.sub(r"[^\w. :-]", "_", key)[:100]
