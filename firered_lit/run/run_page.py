"""The page of a run in MLflow that a person reads before its curves: a description, the data set, a link."""

import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from mlflow.entities import Dataset, DatasetInput, InputTag
from mlflow.tracking import MlflowClient

from firered_lit.errors import UserError
from firered_lit.textfiles import read_object

NOTE = "mlflow.note.content"  # the tag that MLflow shows as a run's description
SIGN = "_Written by firered_lit; your own text stays once you change this line._"
PORT = 5000  # of `mlflow ui`


def describe(client: MlflowClient, run_id: str, settings: Mapping[str, str], argv: Sequence[str] | None = None) -> None:
    """Write the description of a run and name its data set, unless a person has written a description.

    Args:
        client: of the store.
        run_id: the run.
        settings: the recipe, flattened to dotted keys.
        argv: the command's words; those of this process when None.
    """
    data = _read_data(settings.get("data.root"))
    run = client.get_run(run_id)
    written = run.data.tags.get(NOTE, "")
    if not written or SIGN in written:
        client.set_tag(run_id, NOTE, note(settings, data, sys.argv if argv is None else argv))
    known = run.inputs.dataset_inputs if run.inputs else []
    if data and not known:
        client.log_inputs(run_id, [_input(settings["data.root"], data)])


def note(settings: Mapping[str, str], data: Mapping[str, object], argv: Sequence[str]) -> str:
    """Return the description as Markdown: what learns what from which data, by which command.

    Args:
        settings: the recipe, flattened to dotted keys.
        data: `data.json` of the prepared folder; empty where there is none.
        argv: the command's words.
    """
    stage = settings.get("stage._target_", "").rpartition(".")[2] or "A run"
    base = settings.get("run.start_from", "None")
    if base == "None":
        base = settings.get("stage.backbone.name", "a model")
    what = "a LoRA over" if "stage.backbone.lora.rank" in settings else "all weights of"
    lines = [f"**{stage}**: {what} `{base}`"]
    root = settings.get("data.root")
    if root is not None:
        counts = f", {data['train']} samples to train on, {data['held_out']} held out" if data else ""
        lines.append(f"**Data**: `{root}`{counts}")
    lines.append("```\n" + command(argv) + "\n```")
    lines.append(SIGN)
    return "\n\n".join(lines)


def command(argv: Sequence[str]) -> str:
    """Return the command as it would be typed."""
    name = Path(argv[0]).name
    program = ["python", "-m", "firered_lit"] if name == "__main__.py" else [name]
    return shlex.join([*program, *argv[1:]])


def page(uri: str, experiment_id: str, run_id: str) -> str:
    """Return the address of a run's page: on its server, or where `mlflow ui` shows a local store."""
    server = uri.rstrip("/") if urlsplit(uri).scheme in ("http", "https") else f"http://127.0.0.1:{PORT}"
    return f"{server}/#/experiments/{experiment_id}/runs/{run_id}"


def _read_data(root: str | None) -> dict[str, object]:
    """Return what a prepared folder says of itself; nothing where there is no such folder."""
    if root is None:
        return {}
    try:
        return read_object(Path(root) / "data.json", "train", "held_out")
    except (UserError, OSError):
        return {}


def _input(root: str, data: Mapping[str, object]) -> DatasetInput:
    """Return a prepared folder as MLflow's data set."""
    profile = {name: data[name] for name in ("samples", "train", "held_out", "tasks") if name in data}
    dataset = Dataset(
        name=str(data.get("name", Path(root).name)),
        digest=str(data.get("fingerprint", ""))[:36],
        source_type="local",
        source=json.dumps({"uri": str(Path(root).resolve())}),
        profile=json.dumps(profile),
    )
    return DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])
