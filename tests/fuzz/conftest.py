"""Fixtures that the fuzzers share: a small prepared data set, and a folder of their own to run in."""

from pathlib import Path

import pytest

from datamodules.synthetic import write
from firered_lit.cli import main


@pytest.fixture(scope="session")
def small_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `rows`, eight edits of zero, one and two references, and `data`, prepared for the tiny base."""
    folder = tmp_path_factory.mktemp("small")
    write(folder / "rows", 8)
    settings = [f"source={folder / 'rows'}", f"out={folder / 'data'}", "held_out=0", "max_orders=2", "workers=1"]
    assert main(["prepare", "--recipe", "recipes/tiny/prepare.yaml", *settings]) == 0
    return folder
