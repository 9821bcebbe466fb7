"""Names of before the rooms: a run's own recipe is translated, a user's recipe is asked to take the new ones."""

import json
import re
from importlib.util import find_spec
from pathlib import Path

import pytest

from callbacks.annotators.text_area import TextArea
from firered_lit.cli import main
from firered_lit.config import nameable, recipe
from firered_lit.config.build import admit, build
from firered_lit.config.nameable import MOVED, OURS, RENAMED, ROOTS, first_name
from firered_lit.curation.annotator import identity
from firered_lit.errors import UserError

ROOT = Path(__file__).resolve().parents[4]
RECIPES = sorted((ROOT / "recipes").rglob("*.yaml"))
OLD = {new: old for old, new in RENAMED.items()}


def with_old_names(text: str) -> str:
    """Return a recipe's text as it stood before the modules moved."""
    return re.sub(r"(?<=_target_: )[\w.]+", lambda match: OLD.get(match.group(), match.group()), text)


def test_every_module_that_moved_is_gone_and_its_new_home_is_there():
    for old, new in MOVED.items():
        assert find_spec(new) is not None
        package = old.partition(".")[0]
        assert not (ROOT / package / f"{old.partition('.')[2].replace('.', '/')}.py").exists()


def test_every_moved_name_of_a_recipe_leads_to_its_class():
    in_moved_modules = [name for name in (*ROOTS, *OURS) if name.rpartition(".")[0] in MOVED.values()]
    assert set(in_moved_modules) <= set(RENAMED.values())
    for new in RENAMED.values():
        assert admit(new).name == new.rpartition(".")[2]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: str(path.relative_to(ROOT / "recipes")))
def test_a_runs_recipe_with_the_old_names_is_todays(path: Path, tmp_path: Path):
    (tmp_path / "recipe.yaml").write_text(with_old_names(recipe.fold(str(path))), encoding="utf-8")
    (tmp_path / "run.json").write_text(json.dumps({}), encoding="utf-8")
    folded = tmp_path / "today.yaml"
    folded.write_text(recipe.fold(str(path)), encoding="utf-8")
    today = recipe.load(str(folded)).root
    assert recipe.load(str(tmp_path / "recipe.yaml")).root == today


def test_a_users_recipe_gets_one_line_with_the_new_name(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    for old, new in RENAMED.items():
        with pytest.raises(
            UserError, match=f"^'{re.escape(old)}' is now called '{re.escape(new)}'; write the new name$"
        ):
            admit(old, nested=old in ROOTS)
    mine = tmp_path / "mine.yaml"
    mine.write_text(with_old_names(recipe.fold("tiny/sft")), encoding="utf-8")
    assert main(["check", "--recipe", str(mine)]) == 2
    said = capfd.readouterr()
    assert "is now called" in said.out + said.err


def test_scores_of_an_annotator_keep_their_name():
    """A curation that was begun before the modules moved computes nothing again."""
    assert identity(TextArea())["class"] == "callbacks.text_area.TextArea"
    assert first_name("callbacks.annotators.embeddings.Embeddings") == "callbacks.embeddings.Embeddings"
    assert first_name("mine.annotators.Sharpness") == "mine.annotators.Sharpness"
    assert not set(nameable.OURS) & set(RENAMED)


def test_a_users_file_that_imports_a_moved_module_is_one_line_with_the_new_name(tmp_path, monkeypatch):
    (tmp_path / "written_before.py").write_text("from callbacks.reward import RewardCallback\n\nclass Mine: ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=r"'callbacks\.reward' is now called 'callbacks\.rewards\.base'"):
        build({"_target_": "written_before.Mine"}, allow=["written_before"])


def test_old_names_of_rewards_are_all_that_is_said_of_them(tmp_path, capfd):
    mine = tmp_path / "mine.yaml"
    mine.write_text(with_old_names(recipe.fold("nft")), encoding="utf-8")
    assert main(["check", "--recipe", str(mine), "data.root=x", "run.dir=x"]) == 2
    said = "".join(capfd.readouterr())
    assert "'callbacks.ocr_reward.OCRReward' is now called" in said
    assert "stage.weights" not in said
    assert "stage.routes" not in said
