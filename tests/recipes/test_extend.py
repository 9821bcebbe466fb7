"""docs/extend.md as it is printed: its files in a folder, its commands from there."""

import json
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from datamodules import synthetic
from firered_lit.cli import main

PAGE = Path(__file__).resolve().parents[2] / "docs" / "extend.md"
FENCE = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
NAME = re.compile(r"`([\w.]+\.(?:py|yaml|csv))`")
FILES = [
    "my_timesteps.py",
    "my_terms.py",
    "my_rewards.py",
    "my_rows.yaml",
    "studio.csv",
    "my_stage.py",
    "my_recipe.yaml",
]


def printed() -> tuple[dict[str, str], list[str]]:
    """Return the page's files by the name that stands last before each, and its commands in their order."""
    text = PAGE.read_text(encoding="utf-8")
    files: dict[str, str] = {}
    commands: list[str] = []
    for block in FENCE.finditer(text):
        language, content = block.groups()
        if language == "bash":
            commands += content.replace("\\\n", " ").splitlines()
        else:
            files[NAME.findall(text[: block.start()])[-1]] = content
    return files, commands


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder of the user's, with the page's files."""
    folder = tmp_path_factory.mktemp("own")
    files, _ = printed()
    for name, content in files.items():
        (folder / name).write_text(content, encoding="utf-8")
    for name, colour in (("a.png", "grey"), ("b.png", "white")):
        Image.new("RGB", (96, 96), colour).save(folder / name)
    sys.path.insert(0, str(folder))  # where `python -m` looks first
    yield folder
    sys.path.remove(str(folder))
    for name in FILES:
        sys.modules.pop(name.removesuffix(".py"), None)


def run(command: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """Run one command in the folder, in this process."""
    monkeypatch.chdir(folder)
    words = shlex.split(command)
    if words[:3] == ["python", "-m", "datamodules.synthetic"]:
        monkeypatch.setattr(sys, "argv", words[2:])
        synthetic.main()
        return 0
    assert words[:3] == ["python", "-m", "firered_lit"]
    quick = ["data.workers=0", "logger=null", "run.validate_every=null", "callbacks.progress=null"]
    if "tiny/nft" in words:
        quick += ["stage.group_size=2", "stage.rollout_steps=2", "data.groups=2"]
    return main([*words[3:], *(quick if words[3] == "fit" else [])])


def test_the_page_has_a_file_for_each_of_its_examples():
    files, commands = printed()
    assert list(files) == FILES
    allowed = {command.split("--allow ")[1].split()[0] for command in commands if "--allow" in command}
    assert allowed == {name.removesuffix(".py") for name in FILES if name.endswith(".py")}


@pytest.mark.parametrize("command", printed()[1], ids=lambda command: re.sub(r"\W+", "_", command)[22:70])
def test_a_command_of_the_page_runs_as_it_is_printed(folder, monkeypatch, command, capsys):
    assert run(command, folder, monkeypatch) == 0


def test_the_examples_did_what_the_page_says(folder):
    """After the commands: the own rows are prepared, and the own stage's run is a model for others."""
    data = json.loads((folder / "studio" / "data.json").read_text())
    assert data["rows"] == 2
    assert list(data["tasks"]) == ["light"]
    assert (folder / "model" / "model_index.json").is_file()
    assert json.loads((folder / "runs" / "stage" / "run.json").read_text())["stage"] == "AbsoluteError"


@pytest.mark.parametrize("command", [c for c in printed()[1] if "--allow" in c][:1])
def test_nothing_of_yours_is_named_without_allow(folder, monkeypatch, command, capsys):
    assert run(re.sub(r"--allow \w+", "", command), folder, monkeypatch) == 2
    assert "a package of your own is added by --allow PACKAGE" in capsys.readouterr().err
