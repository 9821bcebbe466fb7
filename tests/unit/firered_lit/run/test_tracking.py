"""Runs in a real MLflow store: what is recorded, how runs end, and that they can be read back by others."""

import json
import os
import re
import shlex
import signal
import subprocess
import time
import urllib.parse
import urllib.request
from pathlib import Path

import pytest
import slow_training
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from mlflow.tracking import MlflowClient
from PIL import Image
from toy_run import Edits, Toy, fit, trainer
from warm import Started

from callbacks.checkpoint import Checkpoint
from callbacks.grids.sample_grid import SampleGrid
from callbacks.signals import Signals, Stopped
from callbacks.throughput import Throughput
from datamodules.sources.raw import RawRows
from firered_lit.curation import mlflow_summary
from firered_lit.curation.mlflow_summary import CurationRun
from firered_lit.curation.photometric import Photometric
from firered_lit.curation.run import curate
from firered_lit.errors import UserError
from firered_lit.run import tracking
from firered_lit.run.provenance import git_state
from firered_lit.run.steps import log_by_optimizer_steps
from firered_lit.run.store import read_record, store_uri
from firered_lit.run.tracking import MLflow, flatten, log_folder, log_image, ui_command

RUN_ID = re.compile(r"^[0-9a-f]{32}$", re.MULTILINE)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder of runs: one store for this file, since making its tables takes seconds."""
    return tmp_path_factory.mktemp("runs")


def client_of(logger):
    return MlflowClient(logger.uri)


def run_of(logger):
    return client_of(logger).get_run(logger.run_id)


def wait_until(condition, seconds=30):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.1)
    return False


def test_a_finished_run_is_all_there(place):
    folder = place / "finished"
    folder.mkdir()
    (folder / "recipe.yaml").write_text("stage: {}\n")
    (folder / "run.json").write_text('{"stage": "SFT"}')
    logger = MLflow(dir=str(folder), experiment="ours")
    logger.log_hyperparams({"trainer": {"max_steps": 6}, "data": {"list": [1, {"a": None}], "text": "x" * 7000}})
    watchdog = logger._watchdog
    fit(folder, [Signals(), Checkpoint(every=3)], max_steps=6, logger=logger)
    run = run_of(logger)
    assert run.info.status == "FINISHED"
    assert run.data.params["trainer.max_steps"] == "6"
    assert (run.data.params["data.list.0"], run.data.params["data.list.1.a"]) == ("1", "None")
    assert len(run.data.params["data.text"]) == 6000
    assert run.data.tags["mlflow.runName"] == "finished"
    assert run.data.tags["run.dir"] == str(folder)
    assert run.data.tags["version.torch"]
    history = client_of(logger).get_metric_history(logger.run_id, "train/loss")
    assert [point.step for point in history] == list(range(6))
    assert {file.path for file in client_of(logger).list_artifacts(logger.run_id)} == {
        "environment.json",
        "recipe.yaml",
    }
    assert (place / "mlflow.db").exists()
    assert run.info.artifact_uri.startswith((place / "mlflow-artifacts").as_uri())
    assert read_record(folder) == {"stage": "SFT", "mlflow_uri": logger.uri, "mlflow_run_id": logger.run_id}
    assert watchdog.returncode == 0


class Twice(Toy):
    """A toy that steps its optimizer by hand, twice a batch."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        for _ in range(2):
            loss = super().training_step(batch, batch_idx)
            self.optimizers().zero_grad()
            self.manual_backward(loss)
            self.optimizers().step()


@pytest.mark.parametrize(("module", "accumulate"), [(Toy, 2), (Twice, 1)], ids=["accumulating", "two steps a batch"])
def test_everything_in_the_store_lies_at_the_steps_of_console_grid_and_checkpoint(place, module, accumulate):
    """Six optimizer steps with a validation before the first one and after every second."""
    folder = place / f"steps-{module.__name__}"
    logger = MLflow(dir=str(folder))
    watchers = [SampleGrid(rows=1, side=32), Throughput(every=2), Checkpoint(every=2)]
    run = trainer(
        folder,
        watchers,
        logger=logger,
        max_steps=6,
        num_sanity_val_steps=-1,
        accumulate_grad_batches=accumulate,
        val_check_interval=4 if accumulate == 2 else 1,
    )
    log_by_optimizer_steps(run)
    run.fit(module(), Edits(12), Edits(2, validation=True))
    client, number = client_of(logger), logger.run_id
    names = ("val/loss", "train/loss", "perf/samples_per_s")
    history = {name: [point.step for point in client.get_metric_history(number, name)] for name in names}
    trained = [1, 2, 3, 4, 5, 6] if accumulate == 2 else [2, 4, 6]
    assert history == {"val/loss": [0, 2, 4, 6], "train/loss": trained, "perf/samples_per_s": [2, 4, 6]}
    assert sorted(int(path.stem[5:]) for path in (folder / "samples").iterdir()) == [0, 2, 4, 6]
    pictures = [item.path for item in client.list_artifacts(number, "images") if item.path.endswith(".png")]
    assert sorted(int(path.split("+")[2]) for path in pictures) == [0, 2, 4, 6]
    by_name = [item.path for item in client.list_artifacts(number, "samples")]
    assert by_name == [f"samples/step_{step:08d}.png" for step in (0, 2, 4, 6)]  # names sort as steps do
    assert sorted(int(path.stem[5:]) for path in (folder / "checkpoints").iterdir()) == [2, 4, 6]


def test_an_error_marks_it_failed_with_all_that_was_logged(place):
    def die(module, phase, index):
        if module.global_step == 3:
            raise ArithmeticError("planted")

    logger = MLflow(dir=str(place / "failed"))
    with pytest.raises(ArithmeticError):
        fit(place / "failed", [Signals(), Checkpoint(every=9)], module=Toy(die), max_steps=6, logger=logger)
    assert run_of(logger).info.status == "FAILED"
    assert len(client_of(logger).get_metric_history(logger.run_id, "train/loss")) == 3


@pytest.mark.parametrize("phase", ["train", "val"])
def test_a_signal_marks_it_killed_and_resuming_continues_the_same_run(place, phase):
    def act(module, now, index):
        if now == phase and module.global_step == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    folder = place / f"killed-{phase}"
    logger = MLflow(dir=str(folder))
    logger.log_hyperparams({"lr": 1, "steps": 6})
    try:
        fit(folder, [Signals(), Checkpoint(every=9)], module=Toy(act), max_steps=6, logger=logger)
    except Stopped:
        assert phase == "val"
    assert run_of(logger).info.status == "KILLED"
    again = MLflow(dir=str(folder), resume="last")
    assert again.run_id == logger.run_id
    assert run_of(again).info.status == "RUNNING"
    again.log_hyperparams({"lr": 2, "steps": 6, "new": True})
    again.log_metrics({"train/loss": 0.5}, step=99)
    again.finalize("success")
    run = run_of(again)
    assert run.info.status == "FINISHED"
    assert (run.data.params["lr"], run.data.params["new"], run.data.tags["changed.lr"]) == ("1", "True", "1 -> 2")
    assert "changed.steps" not in run.data.tags
    steps = [point.step for point in client_of(logger).get_metric_history(logger.run_id, "train/loss")]
    assert steps[0] == 0
    assert steps[-1] == 99


def test_every_change_of_the_recipe_is_kept_and_what_was_set_back_is_not_called_changed(place):
    """A parameter of MLflow stays what it was first: the tag's last value is what the run goes on with."""
    folder = str(place / "resumed-often")
    first = MLflow(dir=folder)
    first.log_hyperparams({"lr": 1, "steps": 6, "spike": 10})
    first.finalize("success")
    for settings in ({"lr": 2, "steps": 6, "spike": 10}, {"lr": 2, "steps": 6}, {"lr": 1, "steps": 6, "spike": 10}):
        again = MLflow(dir=folder, resume="last")
        again.log_hyperparams(settings)
        again.finalize("success")
    tags = run_of(first).data.tags
    assert tags["changed.lr"] == "1 -> 2 -> 1"
    assert tags["changed.spike"] == "10 -> removed -> 10"
    assert "changed.steps" not in tags


def test_starting_over_in_a_folder_is_a_new_run(place):
    first = MLflow(dir=str(place / "over"))
    old = first.run_id
    first.finalize("failed")
    second = MLflow(dir=str(place / "over"))
    assert second.run_id != old
    second.finalize("success")
    assert read_record(place / "over")["mlflow_run_id"] == second.run_id


def test_a_run_that_is_killed_with_9_is_marked_failed(place, tmp_path):
    log = tmp_path / "said"
    log.touch()
    with Started(slow_training.record, str(place / "nine"), log=log) as process:
        assert wait_until(lambda: process.poll() is not None or RUN_ID.search(log.read_text()), 120)
        run_id = RUN_ID.search(log.read_text()).group()
        client = MlflowClient(store_uri(None, place))
        assert client.get_run(run_id).info.status == "RUNNING"
        process.kill()
        process.wait()
        assert wait_until(lambda: client.get_run(run_id).info.status == "FAILED")
    run = client.get_run(run_id)
    assert "killed without a word" in run.data.tags["ended"]
    assert run.data.metrics["train/loss"] == 1.0


def test_the_watchdog_of_a_dead_process_leaves_a_run_alone_that_goes_on(place):
    """A scheduler may start the run again before the watchdog of the dead process has spoken."""
    logger = MLflow(dir=str(place / "raced"))
    client, run_id = client_of(logger), logger.run_id
    from firered_lit.run.watchdog import mark_failed

    mark_failed(logger.uri, run_id, "the session of an earlier process")
    assert client.get_run(run_id).info.status == "RUNNING"
    mark_failed(logger.uri, run_id, logger._session)
    assert client.get_run(run_id).info.status == "FAILED"
    logger.finalize("success")
    mark_failed(logger.uri, run_id, logger._session)
    assert client.get_run(run_id).info.status == "FINISHED"


def test_the_waiting_watchdog_is_cheap(place):
    logger = MLflow(dir=str(place / "cheap"))
    assert logger.run_id
    time.sleep(0.5)
    status = Path(f"/proc/{logger._watchdog.pid}/status").read_text()
    kilobytes = int(status.split("VmRSS:")[1].split()[0])
    logger.finalize("success")
    assert kilobytes < 30_000


def test_a_store_that_fails_costs_a_warning_not_the_training(place, monkeypatch):
    logger = MLflow(dir=str(place / "broken"))
    assert logger.run_id

    def broken(*_, **__):
        raise OSError("planted: the server is away")

    monkeypatch.setattr(logger._mlflow_client, "log_batch", broken)
    with pytest.warns(UserWarning, match=r"MLflow: not recorded.*planted"):
        fit(place / "broken", [Checkpoint(every=9)], max_steps=2, logger=logger)
    assert run_of(logger).info.status == "FINISHED"


@pytest.mark.parametrize("uri", ["file:./mlruns", "./mlruns", "ftp://host/x"])
def test_an_address_that_is_no_store_is_refused(place, uri):
    with pytest.raises(UserError, match=r"logger\.uri"):
        MLflow(dir=str(place / "x"), uri=uri)


def test_addresses_are_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert store_uri(None, Path("runs")) == f"sqlite:///{tmp_path}/runs/mlflow.db"
    assert store_uri("sqlite:///a/b.db", tmp_path) == f"sqlite:///{tmp_path}/a/b.db"
    assert store_uri("http://host:5000", tmp_path) == "http://host:5000"
    assert store_uri("postgresql://host/runs?sslmode=require", tmp_path).endswith("sslmode=require")


@pytest.mark.parametrize("name", ["MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"])
def test_credentials_go_only_to_the_server_that_the_environment_names(monkeypatch, tmp_path, name):
    monkeypatch.setenv(name, "secret")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://ours:5000/")
    assert store_uri("https://ours:5000", tmp_path) == "https://ours:5000"
    assert store_uri(None, tmp_path).startswith("sqlite:///")
    for uri in ("https://elsewhere:5000", "http://ours:5000", "https://ours:5000.elsewhere"):
        with pytest.raises(UserError, match=f"MLflow would send {name} there") as refused:
            store_uri(uri, tmp_path)
        assert "secret" not in str(refused.value)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    with pytest.raises(UserError, match=f"MLflow would send {name} there"):
        store_uri("https://ours:5000", tmp_path)


@pytest.mark.parametrize(
    "options",
    ["driver=/tmp/evil.so", "odbc_connect=DRIVER=x", "plugin_dir=x&default_auth=y", "read_default_file=~/.my.cnf"],
)
def test_a_database_is_named_without_options_that_load_or_read(tmp_path, options):
    with pytest.raises(UserError, match="is not for a recipe"):
        store_uri(f"mysql+pymysql://host/runs?{options}", tmp_path)
    assert ui_command("sqlite:////a b/m.db").endswith("mlflow ui --backend-store-uri 'sqlite:////a b/m.db'")
    assert ui_command("http://host:5000") == "http://host:5000"


def test_flatten_names_leaves_as_the_command_line_does():
    value = {"a": {"b": 1, "c": []}, "d": [{"e": 2}, 3], "f": None}
    assert list(flatten(value)) == [("a.b", 1), ("a.c", []), ("d.0.e", 2), ("d.1", 3), ("f", None)]


def test_git_state_of_a_checkout_and_of_none(tmp_path, monkeypatch):
    def git(*arguments):
        subprocess.run(["git", "-C", tmp_path, "-c", "user.name=a", "-c", "user.email=b", *arguments], check=True)

    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "a.py").write_text("1")
    assert git_state(tmp_path / "code") == {}
    git("init", "-q", "-b", "trunk")
    assert git_state(tmp_path / "code") == {}  # a folder inside a checkout that does not track it
    git("add", ".")
    git("commit", "-qm", "x")
    state = git_state(tmp_path / "code")
    assert (len(state["git.commit"]), state["git.branch"], state["git.dirty"]) == (40, "trunk", "false")
    (tmp_path / "code" / "a.py").write_text("2")
    assert git_state(tmp_path / "code")["git.dirty"] == "true"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_state(tmp_path / "code") == {}  # no git at all


def test_pictures_go_where_the_logger_keeps_them(tmp_path):
    image = Image.new("RGB", (40, 20), "red")
    try:
        board = TensorBoardLogger(tmp_path)
    except ModuleNotFoundError:
        board = None
    if board is not None:
        assert log_image(board, "grid", image, 3)

    class Wandb:  # a stand-in: W&B itself is not installed here
        def log_image(self, key, images, step):
            self.seen = (key, images, step)

    wandb = Wandb()
    assert log_image(wandb, "grid", image, 3)
    assert wandb.seen == ("grid", [image], 3)
    assert not log_image(CSVLogger(tmp_path), "grid", image, 3)


def test_an_export_is_kept_with_its_run_on_demand(place, tmp_path):
    logger = MLflow(dir=str(place / "exported"))
    assert logger.run_id
    logger.finalize("success")
    (tmp_path / "model_index.json").write_text("{}")
    assert log_folder(place / "exported", tmp_path) == logger.run_id
    names = [file.path for file in client_of(logger).list_artifacts(logger.run_id, "model")]
    assert names == ["model/model_index.json"]
    with pytest.raises(UserError, match="names no MLflow run"):
        log_folder(tmp_path, tmp_path)


def test_other_processes_than_the_first_touch_nothing(place, monkeypatch):
    monkeypatch.setattr(tracking.rank_zero_only, "rank", 1)
    logger = MLflow(dir=str(place / "second"))
    logger.log_hyperparams({"a": 1})
    logger.log_metrics({"a": 1.0}, 1)
    logger.log_image("a", Image.new("RGB", (4, 4)), 1)
    logger.finalize("success")
    assert not (place / "second").exists()


def fetch(port, path, **body):
    url = f"http://127.0.0.1:{port}/{path}"
    data = json.dumps(body).encode() if body else None
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.loads(answer.read())


def free_port():
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def ui(place):
    """`mlflow ui` on the store, as a user starts it; ended with all its workers."""
    port = free_port()
    command = [*shlex.split(ui_command(store_uri(None, place))), "--port", str(port), "--workers", "1"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    server = subprocess.Popen(command, start_new_session=True, **quiet)
    try:
        assert wait_until(lambda: server.poll() is None and alive(port), 90), "mlflow ui did not start"
        yield port
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def alive(port):
    try:
        return urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2).status == 200
    except OSError:
        return False


def test_the_ui_shows_parameters_curves_and_the_grid(place, ui):
    logger = MLflow(dir=str(place / "shown"), experiment="shown")
    logger.log_hyperparams({"stage": {"seed": 3}})
    for step in range(5):
        logger.log_metrics({"train/loss": 1 / (step + 1)}, step)
    log_image(logger, "samples", Image.new("RGB", (64, 32), "green"), 4)
    logger.finalize("success")
    experiment = fetch(ui, "api/2.0/mlflow/experiments/get-by-name?experiment_name=shown")["experiment"]
    runs = fetch(ui, "api/2.0/mlflow/runs/search", experiment_ids=[experiment["experiment_id"]])["runs"]
    assert [run["info"]["status"] for run in runs] == ["FINISHED"]
    run = runs[0]
    assert {"key": "stage.seed", "value": "3"} in run["data"]["params"]
    query = f"run_id={run['info']['run_id']}"
    history = fetch(ui, f"api/2.0/mlflow/metrics/get-history?{query}&metric_key=train/loss")["metrics"]
    assert [(point["step"], point["value"]) for point in history] == [(i, 1 / (i + 1)) for i in range(5)]
    files = fetch(ui, f"api/2.0/mlflow/artifacts/list?{query}&path=images")["files"]
    picture = next(file["path"] for file in files if file["path"].endswith(".png"))
    address = f"http://127.0.0.1:{ui}/get-artifact?path={urllib.parse.quote(picture)}&run_uuid={run['info']['run_id']}"
    with urllib.request.urlopen(address, timeout=10) as answer:
        assert Image.open(answer).size == (64, 32)


def test_runs_may_begin_at_once_in_a_new_folder(tmp_path: Path) -> None:
    """Each opens the store, which has no tables yet."""
    begun = [Started(slow_training.open_store, str(tmp_path / name), log=tmp_path / "said") for name in "ab"]
    assert [one.wait(timeout=180) for one in begun] == [0, 0], (tmp_path / "said").read_text()


def pictures_in(folder):
    """A folder of a dark and a light picture."""
    folder.mkdir()
    for name, value in (("dark", 5), ("light", 200)):
        Image.new("RGB", (64, 64), (value, value, value)).save(folder / f"{name}.png")
    return folder


def test_runs_name_those_that_they_go_on_from_back_to_the_curation(place):
    """A curation, a training on its rows, one from that training's weights, and one from an export of these."""
    # The curation, twice: with another bound the second time.
    out, source = place / "corpus", pictures_in(place / "raw")
    given = {"annotators": {"photometric": Photometric()}, "workers": 0, "mlflow": CurationRun()}
    for bound in (0.1, 0.0):
        rules = {"dark": {"column": "photometric.brightest", "below": bound}}
        curate(source=str(source), out=str(out), rows=RawRows(str(source)), rules=rules, **given)
    uri = read_record(out / "state")["mlflow_uri"]
    assert uri == f"sqlite:///{place / 'mlflow.db'}", "the store of the runs beside it"
    card = json.loads((out / "data_card.json").read_text())
    client = MlflowClient(uri)
    run = client.get_run(card["mlflow_run_id"])
    assert run.data.params["rules.dark"] == "photometric.brightest below 0.1"
    assert run.data.tags["changed.rules.dark"].endswith("below 0.1 -> photometric.brightest below 0.0")
    kept = client.get_metric_history(run.info.run_id, "curation/kept")
    assert [(point.step, point.value) for point in kept] == [(0, 1.0), (1, 2.0)]
    dropped = client.get_metric_history(run.info.run_id, "curation/dropped/dark")
    assert [(point.step, point.value) for point in dropped] == [(0, 1.0)]
    assert run.data.metrics["curation/ms_an_item/photometric"] > 0
    names = {file.path for file in client.list_artifacts(run.info.run_id, "report")}
    assert names == {"report/data_card.json", "report/report.md"}, "no pictures unless asked for"

    # Trainings, each from the last one's output.
    (place / "data").mkdir()
    (place / "data" / "data.json").write_text(json.dumps({"cards": [card]}))
    (place / "export").mkdir()
    starts = {"first": None, "second": place / "first", "third": place / "export"}
    parents = [card["mlflow_run_id"]]
    for name, start in starts.items():
        logger = MLflow(dir=str(place / name))
        logger.log_hyperparams({"run": {"start_from": start and str(start)}, "data": {"root": str(place / "data")}})
        logger.finalize()
        tags = run_of(logger).data.tags
        assert tags["parent.data"] == card["mlflow_run_id"]
        assert tags.get("parent.weights") == (parents[-1] if start else None)
        assert tags["mlflow.parentRunId"] == parents[-1]
        assert run_of(logger).info.experiment_id == run.info.experiment_id
        parents.append(logger.run_id)
        (place / "export" / "firered_lit.json").write_text(json.dumps({"mlflow_run_id": logger.run_id}))


def test_a_store_that_fails_costs_a_curation_a_warning(place, caplog, monkeypatch):
    source = place / "raw"
    monkeypatch.setattr(mlflow_summary, "open_run", lambda *_: 1 / 0)
    given = {"annotators": {"photometric": Photometric()}, "workers": 0, "mlflow": CurationRun()}
    curate(source=str(source), out=str(place / "unrecorded"), rows=RawRows(str(source)), **given)
    assert "the curation is not recorded" in caplog.text
    assert "mlflow_run_id" not in json.loads((place / "unrecorded" / "data_card.json").read_text())
