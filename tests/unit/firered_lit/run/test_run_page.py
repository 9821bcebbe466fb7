"""What MLflow shows of a run before its curves: a description, its data set, and the address of its page."""

import json

import pytest
from mlflow.tracking import MlflowClient

from firered_lit.run.run_page import NOTE, SIGN, command, describe, note, page
from firered_lit.run.tracking import MLflow

SETTINGS = {"stage._target_": "firered_lit.stages.sft.SFT", "stage.backbone.name": "tiny", "run.start_from": "None"}


@pytest.fixture(scope="module")
def logger(tmp_path_factory):
    """A run over a prepared folder, recorded and ended."""
    folder = tmp_path_factory.mktemp("runs")
    data = folder / "data"
    data.mkdir()
    content = {"name": "edits.jsonl", "samples": 12, "train": 11, "held_out": 1, "fingerprint": "970c"}
    (data / "data.json").write_text(json.dumps(content), encoding="utf-8")
    logger = MLflow(dir=str(folder / "run"))
    recipe = {"stage": {"_target_": SETTINGS["stage._target_"], "backbone": {"name": "tiny", "lora": {"rank": 8}}}}
    logger.log_hyperparams(recipe | {"data": {"root": str(data)}})
    logger.finalize("success")
    return logger


def test_a_run_says_what_learns_what_from_which_data_by_which_command(logger):
    run = MlflowClient(logger.uri).get_run(logger.run_id)
    text = run.data.tags[NOTE]
    assert "**SFT**: a LoRA over `tiny`" in text
    assert "11 samples to train on, 1 held out" in text
    (given,) = run.inputs.dataset_inputs
    assert (given.dataset.name, given.dataset.digest) == ("edits.jsonl", "970c")
    assert json.loads(given.dataset.profile) == {"samples": 12, "train": 11, "held_out": 1}


def test_what_a_person_wrote_stays(logger):
    client = MlflowClient(logger.uri)
    client.set_tag(logger.run_id, NOTE, f"old {SIGN}")
    describe(client, logger.run_id, SETTINGS, ["firered-lit", "fit"])
    assert "firered-lit fit" in client.get_run(logger.run_id).data.tags[NOTE]
    client.set_tag(logger.run_id, NOTE, "the good one")
    describe(client, logger.run_id, SETTINGS, ["firered-lit", "fit"])
    assert client.get_run(logger.run_id).data.tags[NOTE] == "the good one"


def test_a_run_without_a_prepared_folder_is_described_by_what_is_known():
    text = note(SETTINGS | {"data.root": "gone", "run.start_from": "runs/1_pretrain"}, {}, ["firered-lit", "fit"])
    assert "all weights of `runs/1_pretrain`" in text
    assert "**Data**: `gone`\n" in text


def test_a_command_is_written_as_it_is_typed():
    typed = ["/x/firered_lit/__main__.py", "fit", "a={b: 1}"]
    assert command(typed) == "python -m firered_lit fit 'a={b: 1}'"
    assert command(["/venv/bin/firered-lit", "fit"]) == "firered-lit fit"


def test_the_address_of_a_run_is_that_of_its_server_or_of_the_local_page(logger):
    assert page("https://mlflow.example/", "3", "abc") == "https://mlflow.example/#/experiments/3/runs/abc"
    assert logger.page == f"http://127.0.0.1:5000/#/experiments/1/runs/{logger.run_id}"
