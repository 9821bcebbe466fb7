"""Candidate pictures are listed once, each belongs to one request, and what belongs to none is reported."""

import json

import pytest
from PIL import Image

from datamodules.sources.candidates import Candidates


def picture(path, shade=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (64, 64), (shade, 0, 0)).save(path)


@pytest.fixture
def mined(tmp_path):
    """What each request gets of a folder of pictures: mined(ids, pictures) -> {id: names}."""
    picture(tmp_path / "source.png", 1)

    def candidates(ids, names, **models):
        rows = [{"image": "source.png", "prompt": "red", "requirement": "red", "id": name} for name in ids]
        (tmp_path / "requests.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (tmp_path / "made").mkdir(exist_ok=True)
        for number, name in enumerate(names):
            picture(tmp_path / "made" / name, 10 + number)
        task = Candidates(str(tmp_path / "requests.jsonl"), {"expert": str(tmp_path / "made")}, models)
        found = {}
        for _, request in task.items(lambda number: True):
            names = [shown.image.rpartition("/")[2] for shown in request.shown]
            found[request.line["id"]] = request.line.get("refused", names)
        return found

    return candidates


def test_numbers_may_have_gaps(mined):
    assert mined(["a"], ["a_0.png", "a_2.png"]) == {"a": ["a_0.png", "a_2.png"]}
    assert mined(["a"], ["a_0.png", "a_2.png", "a_10.png", "a.png"]) == {
        "a": ["a.png", "a_0.png", "a_2.png", "a_10.png"]
    }


def test_a_picture_named_by_an_id_is_of_that_request_alone(mined):
    found = mined(["cat", "cat_0"], ["cat.png", "cat_0.png", "cat_1.png", "cat_0_0.png"])
    assert found == {"cat": ["cat.png", "cat_1.png"], "cat_0": ["cat_0.png", "cat_0_0.png"]}


def test_what_belongs_to_no_request_is_reported(mined, capsys):
    mined(["a"], ["a.png", "b.png", "a_x.png", "ab_1.png", "._a.png"])
    assert "expert: 3 pictures belong to no request: a_x.png, ab_1.png, b.png\n" in capsys.readouterr().out


def test_nothing_is_reported_where_every_picture_has_its_request(mined, capsys):
    mined(["a"], ["a.png", "a_7.JPG"])
    assert "no request" not in capsys.readouterr().out


def test_what_a_table_lists_for_no_request_is_reported(mined, tmp_path, capsys):
    picture(tmp_path / "x.png", 99)
    rows = [{"id": "a", "image": "x.png"}, {"id": "nobody", "image": "y.png"}]
    (tmp_path / "base.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = mined(["a"], ["a.png"], base=str(tmp_path / "base.jsonl"))
    assert found == {"a": ["a.png", "x.png"]}
    assert f"base: 1 pictures belong to no request: {tmp_path / 'y.png'}" in capsys.readouterr().out


def test_twins_refuse_their_request_alone(mined):
    found = mined(["a", "b"], ["a.png", "a.jpg", "b.png"])
    assert "differ in their ending alone" in found.pop("row 0")
    assert found == {"b": ["b.png"]}


def test_endings_count_in_any_case_and_hidden_files_do_not(mined):
    assert mined(["a"], ["a.PNG", "a_1.Jpg", ".a_2.png"]) == {"a": ["a.PNG", "a_1.Jpg"]}


def test_a_request_that_cannot_be_used_is_refused_alone(mined, tmp_path, monkeypatch):
    """Whatever is raised while one request is read is its own refusal."""
    picture(tmp_path / "made" / "b.png")

    def failing(record, *args):
        if record.id == "a":
            raise RuntimeError("nobody knows this")
        return real(record, *args)

    from datamodules.sources import candidates

    real = candidates.line_of
    monkeypatch.setattr(candidates, "line_of", failing)
    found = mined(["a", "b"], [])
    assert "RuntimeError: nobody knows this" in found.pop("row 0")
    assert found == {"b": ["b.png"]}
