"""The stage table's data, on the learning world: each tiny stage draws what its full-size recipe asks for."""

from collections import Counter
from pathlib import Path

import pytest
import torch

from datamodules.sampling.captions import Captions
from datamodules.world.write import write
from firered_lit.checkpoints.checkpoint import newest
from firered_lit.cli import main
from firered_lit.config.recipe import load

QUICK = ["run.validate_every=null", "logger=null", "callbacks.progress=null", "data.workers=0", "trainer.max_steps=3"]
CHAIN = ("pretrain", "continued_pretrain", "sft")


@pytest.fixture(scope="module")
def learning_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty edits with three kinds of captions, clusters and regions, prepared for the tiny base."""
    folder = tmp_path_factory.mktemp("learning_world")
    write(folder / "source", 30)
    places = [f"source={folder / 'source'}", f"out={folder / 'data'}"]
    assert main(["prepare", "--recipe", "recipes/tiny/prepare.yaml", *places]) == 0
    return folder / "data"


@pytest.mark.slow
def test_the_chain_trains_with_the_mixes_of_the_table(learning_world: Path, tmp_path: Path) -> None:
    before: list[str] = []
    for name in CHAIN:
        data = load(f"recipes/{name}.yaml").root["data"]
        asked = [f"data.{key}={flow(data[key])}" for key in ("captions", "weights") if key in data]
        places = [f"data.root={learning_world}", f"run.dir={tmp_path / name}"]
        assert main(["fit", "--recipe", f"recipes/tiny/{name}.yaml", *places, *QUICK, *asked, *before]) == 0
        assert torch.load(newest(tmp_path / name), weights_only=True)["global_step"] == 3
        before = [f"run.start_from={tmp_path / name}"]


def flow(mapping: dict[str, object]) -> str:
    return "{" + ", ".join(f"{key}: {value}" for key, value in mapping.items()) + "}"


@pytest.mark.parametrize("name", CHAIN)
def test_the_mix_is_drawn_as_the_recipe_weighs_it(name: str) -> None:
    asked = load(f"recipes/{name}.yaml").root["data"]["captions"]
    texts = {f"{kind}/{language}": "x" for kind in asked for language in ("en", "cn")}
    captions = Captions(asked, None, 0.0)
    drawn = Counter(captions.draw(texts, "mix", i).split("/")[0] for i in range(4000))
    for kind, share in asked.items():
        assert drawn[kind] / 4000 == pytest.approx(share, abs=0.03)
