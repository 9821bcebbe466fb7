"""Shipped recipes: found by name from any folder, listed with a line each, copied whole into one file."""

import os
from pathlib import Path

import pytest

from firered_lit import cli
from firered_lit.config import recipe, shipped

ROOT = Path(__file__).resolve().parents[4]
NAMES = shipped.names()


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A current folder without recipes."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", ["sft_lora", "sft_lora.yaml", "recipes/sft_lora.yaml", "./recipes/sft_lora.yaml"])
def test_a_shipped_recipe_is_found_by_its_name_from_any_folder(elsewhere, name):
    assert os.path.realpath(shipped.find(name)) == str(ROOT / "recipes/sft_lora.yaml")
    assert recipe.load(name).root == recipe.load(ROOT / "recipes/sft_lora.yaml").root


def test_a_file_of_the_users_own_stands_before_a_shipped_recipe(elsewhere):
    (elsewhere / "sft_lora").write_text("a: 1", encoding="utf-8")
    (elsewhere / "recipes").mkdir()
    (elsewhere / "recipes/sft.yaml").write_text("a: 2", encoding="utf-8")
    assert recipe.load("sft_lora").root == {"a": 1}
    assert recipe.load("recipes/sft.yaml").root == {"a": 2}


def test_a_folder_of_a_recipes_name_is_not_taken_for_it(elsewhere):
    (elsewhere / "prepare").mkdir()
    assert recipe.load("prepare").root == recipe.load(ROOT / "recipes/prepare.yaml").root


@pytest.mark.parametrize("name", ["../pyproject.toml", "../../etc/passwd", "recipes/../pyproject.toml", "base"])
def test_a_name_leads_to_nothing_but_recipes(elsewhere, name):
    assert shipped.find(name) == name


def test_a_misspelt_name_gets_the_nearest_one(elsewhere, capsys):
    assert cli.main(["fit", "--recipe", "sft_lore"]) == 2
    assert "did you mean 'sft_lora'?" in capsys.readouterr().err


def test_the_list_has_a_line_for_every_recipe_and_none_for_fragments(capsys):
    assert cli.main(["recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    files = [file for file in (ROOT / "recipes").rglob("*.yaml") if file.parent.name != "base"]
    assert len(lines) == len(files)
    for line in lines:
        name, _, summary = line.partition(" ")
        assert (ROOT / "recipes" / f"{name}.yaml").is_file()
        assert summary.strip().endswith(".")


@pytest.mark.parametrize("name", NAMES)
def test_a_copy_reads_as_the_recipe_and_its_bases_do(elsewhere, name):
    assert cli.main(["recipes", name, "--out", "mine.yaml"]) == 0
    text = (elsewhere / "mine.yaml").read_text(encoding="utf-8")
    copied = recipe.load("mine.yaml")
    assert copied.root == recipe.load(name).root
    assert set(copied.missing) == set(recipe.load(name).missing)
    assert "base:" not in text.splitlines()


def test_a_copy_keeps_the_comments_beside_their_keys(elsewhere):
    text = recipe.fold("sft_lora")
    assert text.startswith("# Supervised fine-tuning of a LoRA")
    assert "\n  validate_every: 500  # optimizer steps\n" in text  # of the base
    assert "\n  # Visual tokens per device." in text  # of the recipe itself
    last = text[: text.index("  capacity: 8288")].splitlines()[-1]
    assert last.strip().startswith("# Visual tokens per device.")


def test_a_copy_never_replaces_a_file(elsewhere, capsys):
    (elsewhere / "mine.yaml").write_text("mine", encoding="utf-8")
    assert cli.main(["recipes", "sft", "--out", "mine.yaml"]) == 2
    assert "mine.yaml: it exists already" in capsys.readouterr().err
    assert (elsewhere / "mine.yaml").read_text(encoding="utf-8") == "mine"
