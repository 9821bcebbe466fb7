"""The command line as users call it, on a small prepared data set."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from process import ROOT, Process

from datamodules.synthetic import write
from firered_lit.cli import main


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Callable[..., Process]]:
    started: list[Process] = []

    def start(*arguments: str) -> Process:
        started.append(Process(tmp_path / f"process{len(started)}.log", *arguments))
        return started[-1]

    yield start
    for process in started:
        process.popen.kill()


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty-eight edits of zero, one and two references in four shapes, prepared for the tiny base."""
    folder = tmp_path_factory.mktemp("world")
    write(folder / "source", 28)
    code = main(
        ["prepare", "--recipe", "recipes/tiny/prepare.yaml", f"source={folder / 'source'}", f"out={folder / 'data'}"]
    )
    assert code == 0
    return folder / "data"


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
