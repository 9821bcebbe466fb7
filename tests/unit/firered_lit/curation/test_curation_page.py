"""An annotator, a rule and a labelling prompt of a user's own run as docs/curation.md shows them."""

import json
import re

import pyarrow.parquet as pq
import pytest
from raw_pictures import edits, lines, picture, save
from support.stub_judge import StubJudge, words

from firered_lit import cli

FENCE = re.compile(r"^```\w*\n(.*?)^```", re.MULTILINE | re.DOTALL)
NAMES = {"mine": "warmth_of_the_page", "my_rule": "rule_of_the_page"}  # other tests call their modules "mine" too


@pytest.fixture
def page(root):
    """The page."""
    return (root / "docs" / "curation.md").read_text(encoding="utf-8")


def shown(page, name):
    """Return the text of a file as the page shows it: the block after the file's name."""
    found = FENCE.search(page, page.index(f"`{name}`"))
    assert found is not None, name
    return found.group(1)


def reasons(out):
    return pq.read_table(out / "decisions.parquet").column("reason").to_pylist()


def test_an_annotator_and_a_rule_of_ones_own(page, root, tmp_path, monkeypatch):
    recipe = shown(page, "mine.yaml").replace("recipes/", f"{root}/recipes/")
    for name, other in NAMES.items():
        (tmp_path / f"{other}.py").write_text(shown(page, f"{name}.py"), encoding="utf-8")
        recipe = recipe.replace(f" {name}.", f" {other}.")
    (tmp_path / "mine.yaml").write_text(recipe, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    for number in range(4):
        pixels = picture(number, 128)
        warm, cold = (0, 2) if number == 2 else (2, 0)
        pixels[:, :, cold] //= 4
        pixels[:, :, warm] = 255 - pixels[:, :, warm] // 4
        save(tmp_path / "raw" / f"{number}.png", pixels)
    given = ["curate", "--recipe", str(tmp_path / "mine.yaml"), f"source={tmp_path / 'raw'}", f"out={tmp_path / 'out'}"]
    given += ["workers=1", "mlflow=null"]
    assert cli.main([*given, "--allow", NAMES["mine"]]) == 2, "each module wants its own --allow"
    assert cli.main([*given, *(word for name in NAMES.values() for word in ("--allow", name))]) == 0
    assert reasons(tmp_path / "out") == [None, None, "too_warm", None]


def test_a_labelling_prompt_of_ones_own(page, root, tmp_path, monkeypatch):
    (tmp_path / "tidy.txt").write_text(shown(page, "tidy.txt"), encoding="utf-8")
    recipe = shown(page, "label_mine.yaml").replace("recipes/", f"{root}/recipes/")
    (tmp_path / "label_mine.yaml").write_text(recipe, encoding="utf-8")
    source = edits(tmp_path / "raw", 3)
    monkeypatch.chdir(tmp_path)

    def answer(body, _):
        asked = words(body)
        if "tidy" in asked:
            return json.dumps({"tidy": "no" if "square 1" in asked else "yes"})
        if '"alignment"' in asked:
            return json.dumps({"alignment": 5, "quality": 5, "sides": True, "viewpoint": True, "counts": True})
        texts = ("structured", "detailed_en", "detailed_cn", "concise_en", "concise_cn", "user_en", "user_cn")
        return json.dumps({name: f"{name} of it" for name in texts} | {"category": "color"})

    with StubJudge(answer) as judge:
        given = ["curate", "--recipe", "label_mine.yaml", f"source={source}", "out=out", "workers=0", "mlflow=null"]
        given += [f"label.server.url={judge.url}", "label.server.model=stub"]
        given += [f"rules.{name}=null" for name in ("grey", "blurred", "mosaic", "collage", "over_compressed", "noisy")]
        assert cli.main(given) == 0
    assert reasons(tmp_path / "out") == [None, "untidy", None]
    assert [line["category"] for line in lines(tmp_path / "out" / "selected.jsonl")] == ["color", "color"]
