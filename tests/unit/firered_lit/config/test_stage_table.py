"""The recipes carry the report's stage table (FireRed-Image-Edit, 2602.13344, table 1), and tiny twins their stages."""

from inspect import signature

import pytest

from firered_lit.config.recipe import load
from firered_lit.stages.nft import NFT

SFT = {"captions": (10, 45, 45), "clusters": "uniform", "steps": 5000, "warmup": 500, "average": True}
DPO = {"captions": (10, 30, 60), "clusters": None, "steps": 5000, "warmup": 500, "average": True}
TABLE = {
    "pretrain": {"captions": (55, 40, 5), "clusters": None, "steps": 300_000, "warmup": 0, "average": False},
    "continued_pretrain": {
        "captions": (20, 60, 20),
        "clusters": "uniform",
        "steps": 65_000,
        "warmup": 0,
        "average": False,
    },
    "sft": SFT,
    "sft_fsdp": SFT,
    "sft_consistency": SFT,
    "dpo": DPO,
    "dpo_lora": DPO,
    "nft": {"captions": (10, 30, 60), "clusters": None, "steps": 500, "warmup": 0, "average": True},
}
PIXELS = {"prepare_pretrain": (384, 512), "prepare": (1024,)}


def recipe(name, *overrides):
    return load(f"recipes/{name}.yaml", list(overrides)).root


def found(root):
    """What the table says, read from a recipe."""
    captions = tuple(round(100 * root["data"]["captions"][kind]) for kind in ("original", "structured", "instructive"))
    return {
        "captions": captions,
        "clusters": root["data"].get("weights", {}).get("cluster"),
        "steps": root["trainer"]["max_steps"],
        "warmup": root["stage"].get("schedule", {}).get("warmup", 0),
        "average": "ema" in root["callbacks"],
    }


@pytest.fixture(autouse=True)
def _in_the_repository(root, monkeypatch):
    monkeypatch.chdir(root)


@pytest.mark.parametrize("name", TABLE)
def test_a_full_size_recipe_says_what_the_table_says(name):
    assert found(recipe(name)) == TABLE[name]


def test_the_table_has_all_five_stages():
    stages = {recipe(name)["stage"]["_target_"].rpartition(".")[2] for name in TABLE}
    assert stages == {"Pretrain", "SFT", "DPO", "NFT"}  # continued pretraining is SFT's class
    assert "continued_pretrain" in TABLE


def test_reinforcement_keeps_the_average_of_its_authors_and_previews_as_it_is_trained():
    root = recipe("nft")
    assert root["callbacks"]["ema"]["decay"] == 0.9
    assert root["stage"]["preview"]["guidance"] == 1.0


@pytest.mark.parametrize("name", TABLE)
def test_what_all_stages_share(name):
    root = recipe(name)
    assert root["stage"]["optimizer"]["betas"] == [0.9, 0.999]
    assert root["stage"]["optimizer"]["weight_decay"] == 0.01
    assert root["stage"]["backbone"]["gradient_checkpointing"] is True
    clip = root["trainer"]["gradient_clip_val"]
    if root["stage"]["_target_"].endswith(".NFT"):  # steps its optimizer, and clips, by itself
        assert clip is None
        clip = signature(NFT).parameters["gradient_clip"].default
    assert clip == 1.0
    strategy = root["trainer"].get("strategy")
    backbone = root["stage"]["backbone"]
    assert (strategy["compute"] if strategy else backbone["dtype"]) == "bfloat16"  # the forward's
    assert root["trainer"]["precision"] == "32-true"


def test_the_resolutions_are_those_of_the_table():
    smaller = ["sizes.target_area=147456", "sizes.reference_area=147456"]
    areas = [recipe("prepare_pretrain", *more)["sizes"]["target_area"] for more in (smaller, [])]
    assert tuple(round(area**0.5) for area in areas) == PIXELS["prepare_pretrain"]
    from firered_lit.models.sizes import Sizes

    assert "sizes" not in recipe("prepare")
    assert round(Sizes().target_area ** 0.5) == PIXELS["prepare"][0]


@pytest.mark.parametrize("name", TABLE)
def test_a_tiny_twin_is_the_same_stage(name):
    """The same class, law of sigma, loss weight and kind of schedule, the same betas and decay."""
    full, tiny = recipe(name)["stage"], recipe(f"tiny/{name}")["stage"]
    for part in ("timesteps", "weight", "schedule", "consistency"):
        assert full.get(part, {}).get("_target_") == tiny.get(part, {}).get("_target_"), part
    for key in ("_target_", "seed"):
        assert full[key] == tiny[key]
    for key in ("betas", "weight_decay"):
        assert full["optimizer"][key] == tiny["optimizer"][key]
