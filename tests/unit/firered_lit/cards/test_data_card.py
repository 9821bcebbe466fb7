"""What is known of a table goes with it, from a curation into prepared data, a run and an export, and stays text."""

import json

import numpy as np
import pytest
from PIL import Image
from raw_pictures import CREDIT, edits, lines

from datamodules.sources.raw import RawRows
from firered_lit import cli
from firered_lit.cards.data_card import CARD, cards_of, markdown
from firered_lit.cards.model_card import Trained, add_pictures, model_card, without_places
from firered_lit.curation.fit import Duplicates
from firered_lit.curation.hashes import Hashes
from firered_lit.curation.pairs import PairMeasures
from firered_lit.curation.photometric import Photometric
from firered_lit.curation.run import curate
from firered_lit.curation.words import Words
from firered_lit.models.family import open_base
from firered_lit.models.sizes import Sizes
from firered_lit.run.grids import save_grid

RULES = {
    "wrong_task": {"column": "row.task", "among": ["sky"]},
    "same": {"column": "pair.largest_block", "below_quantile": 0.2, "unless": {"row.category": ["beauty"]}},
}
HOSTILE = "</td><script>alert(1)</script>|`x`\n# [l](javascript:x)"


def run(source, out, **options):
    annotators = {"photometric": Photometric(), "hashes": Hashes(), "words": Words(), "pair": PairMeasures()}
    given = {"annotators": annotators, "rules": RULES, "duplicates": Duplicates(), "workers": 0}
    curate(source=str(source), out=str(out), rows=RawRows(str(source)), **{**given, **options})
    return json.loads((out / CARD).read_text()) if (out / CARD).exists() else None


@pytest.fixture
def source(tmp_path):
    """Six edits, the last of another task and without a licence."""
    table = edits(tmp_path / "raw", 6, source="drawn")
    rows = lines(table)
    rows[5] |= {"task": "sky", "license": None}
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return table


def test_the_card_says_what_was_kept_by_which_rules_and_measures(source, tmp_path):
    card = run(source, tmp_path / "out")
    assert (card["rows"], card["kept"]) == (6, 4)
    assert card["values"]["source"] == {"drawn": {"rows": 6, "kept": 4}}
    assert card["values"]["licence"] == {CREDIT: {"rows": 5, "kept": 4}, "(none)": {"rows": 1, "kept": 0}}
    assert card["values"]["task"] == {"colour": {"rows": 5, "kept": 4}, "sky": {"rows": 1, "kept": 0}}
    assert card["reasons"] == {"wrong_task": 1, "same": 1}
    assert card["rules"]["wrong_task"] == "row.task among sky"
    assert card["rules"]["same"].startswith("pair.largest_block below quantile 0.2 = ")
    assert "within 3 bits" in card["rules"]["duplicate"]
    assert card["annotators"]["pair"]["version"] == PairMeasures.version
    assert card["annotators"]["pair"]["class"] == "firered_lit.curation.pairs.PairMeasures"
    text = markdown([card])
    for words in ("4 (66.7 %) were kept", f"licence: {CREDIT} 4", "| wrong\\_task | row.task among sky | 1 |"):
        assert words in text


def test_prepare_copies_the_card_of_its_table_and_of_no_other(source, tmp_path, capsys):
    card = run(source, tmp_path / "out")
    table = tmp_path / "out" / "selected.jsonl"
    made = ["prepare", "--recipe", "recipes/tiny/prepare.yaml", f"source={table}", "held_out=0.3", "workers=1"]
    assert cli.main([*made, f"out={tmp_path / 'data'}"]) == 0
    assert json.loads((tmp_path / "data" / "data.json").read_text())["cards"] == [card]

    # Rows that were taken out by hand, and another selection whose rows were not written yet.
    cards, remarks = cards_of([table])
    assert (cards, remarks) == ([card], [])
    text = table.read_text()
    table.write_text(text.split("\n", 1)[1])
    cards, remarks = cards_of([table])
    assert cards == []
    assert "is not of selected.jsonl as it is now" in remarks[0]
    table.write_text(text)
    run(source, tmp_path / "out", rules={}, steps=["select", "report"])
    assert "is not of selected.jsonl as it is now" in cards_of([table])[1][0]
    run(source, tmp_path / "out", rules={}, steps=["write", "report"])
    assert cards_of([table])[0][0]["kept"] == 6
    (tmp_path / "out" / CARD).write_text("{}")
    assert "no data card" in cards_of([table])[1][0]


def test_a_curated_table_that_is_curated_again_keeps_its_card(source, tmp_path):
    first = run(source, tmp_path / "first")
    second = run(tmp_path / "first" / "selected.jsonl", tmp_path / "second", rules={})
    assert second["from"] == [first]
    assert markdown([second]).count("were kept") == 2


def test_names_in_a_card_are_text(tmp_path):
    source = edits(tmp_path / "raw", 2, source=HOSTILE, license=HOSTILE)
    text = markdown([run(source, tmp_path / "out", rules={})])
    assert "<script" not in text
    assert "\n#" not in text
    assert "&lt;script&gt;" in text


def grid(path, value, instructions):
    path.parent.mkdir(parents=True, exist_ok=True)
    save_grid(Image.fromarray(np.full((600, 1400, 3), value, np.uint8)), path, instructions)


def test_a_model_card_shows_before_and_after_prompts_base_and_licence_and_no_place(source, tmp_path):
    card = run(source, tmp_path / "out")
    for step, value in ((0, 10), (20, 120), (40, 250)):
        grid(tmp_path / "run" / "samples" / f"step_{step:08d}.png", value, ["Invert square 1", "变红 | <b>"])
    (tmp_path / "export").mkdir()
    shown = add_pictures(tmp_path / "run", 30, tmp_path / "export")
    values = {
        name: np.asarray(Image.open(tmp_path / "export" / f"pictures/{name}.jpg")) for name in ("before", "after")
    }
    assert {name: round(float(pixels.mean())) for name, pixels in values.items()} == {"before": 10, "after": 120}
    assert max(values["after"].shape) == 1280

    recipe = f"run: {{dir: {tmp_path / 'run'}}}\nlogger: {{uri: 'sqlite:///{tmp_path}/mlflow.db'}}\nmonitor: val/loss\n"
    data = {"name": str(tmp_path / "data"), "samples": 4, "cards": [card]}
    lora = {"rank": 4, "alpha": 6.0}
    text = model_card(open_base("tiny"), Trained("tiny", "SFT", Sizes(), "step_30.ckpt", 30, lora, data, recipe), shown)
    assert str(tmp_path) not in text
    for words in ("dir: run\n", "uri: mlflow.db\n", "monitor: val/loss", "- name: data\n"):
        assert words in text
    for words in ("license: apache-2.0", "base_model: tiny", "![Before](pictures/before.jpg)", "After 20 steps"):
        assert words in text
    assert "- Invert square 1\n" in text
    assert "- 变红 \\| &lt;b&gt;\n" in text
    assert 'prompt="Invert square 1"' in text
    assert f"licence: {CREDIT} 4" in text


def test_a_grid_that_cannot_be_read_leaves_the_card_to_the_next_folder(tmp_path, capsys):
    for step, value in ((0, 10), (20, 120)):
        grid(tmp_path / "run" / "prompts" / f"step_{step:08d}.png", value, ["Invert square 1"])
        grid(tmp_path / "run" / "samples" / f"step_{step:08d}.png", value, ["Invert square 2"])
    (tmp_path / "run" / "prompts" / "step_00000020.png").write_bytes(b"cut short")
    (tmp_path / "export").mkdir()
    shown = add_pictures(tmp_path / "run", 20, tmp_path / "export")
    assert shown.prompts == ("Invert square 2",)
    assert sorted(file.name for file in (tmp_path / "export" / "pictures").iterdir()) == ["after.jpg", "before.jpg"]
    assert capsys.readouterr().out.count("no picture for the model card") == 1


def test_a_run_without_grids_has_a_card_without_pictures(tmp_path):
    shown = add_pictures(tmp_path, 10, tmp_path)
    text = model_card(open_base("tiny"), Trained("tiny", "SFT", Sizes(), "step_10.ckpt", 10), shown)
    assert "What it draws" not in text
    assert 'prompt="..."' in text
    assert list(tmp_path.iterdir()) == []


def test_a_licence_is_read_from_the_base_s_own_card(tmp_path):
    base = open_base("tiny")
    for name in base.folder.iterdir():
        (tmp_path / name.name).symlink_to(name)
    other = open_base(str(tmp_path))
    trained = Trained(str(tmp_path), "SFT", Sizes(), "step_10.ckpt", 10)
    text = model_card(other, trained, add_pictures(tmp_path, 10, tmp_path))
    assert "not known here" in text
    assert f"base_model: {tmp_path.name}" in text
    assert str(tmp_path) not in text
    (tmp_path / "README.md").write_text("---\nlanguage: en\nlicense: cc-by-4.0\n---\n# A base\n")
    assert "license: cc-by-4.0" in model_card(other, trained, add_pictures(tmp_path, 10, tmp_path))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("/srv/a/photo.png", "photo.png"),
        ("~/data/", "data"),
        ("./runs/x", "x"),
        ("C:\\data\\x", "x"),
        ("sqlite:////srv/a/mlflow.db", "mlflow.db"),
        ("/srv/a/lora.safetensors@0.8", "lora.safetensors@0.8"),
        ("Qwen/Qwen-Image-Edit-2511", "Qwen/Qwen-Image-Edit-2511"),
        ("original/en", "original/en"),
        ("http://host:8000/v1", "http://host:8000/v1"),
    ],
)
def test_a_path_of_this_machine_is_its_last_part_alone(value, expected):
    assert without_places({"a": [value, 1]}) == {"a": [expected, 1]}
