"""Gaps are found by task and cluster and filled by a second `curate`; rejected edits lose to kept ones."""

from collections import Counter

import numpy as np
import pytest
from raw_pictures import CREDIT, lines, picture, save, table

from datamodules.sources.raw import RawRows
from datamodules.sources.records import Refusal, rows
from firered_lit.curation.annotator import Annotator
from firered_lit.curation.fill import Fill
from firered_lit.curation.fit import Clusters
from firered_lit.curation.hashes import Hashes
from firered_lit.curation.losers import write_losers
from firered_lit.curation.make.maker import Make
from firered_lit.curation.run import curate
from firered_lit.errors import UserError


class Side(Annotator):
    """Two clusters: dark pictures and light ones."""

    columns = {"vector": "vector"}  # noqa: RUF012

    def annotate(self, batch):
        return {"vector": [[1.0, 0.0] if picture.pixels.mean() < 128 else [0.0, 1.0] for picture in batch]}


def mixed(folder):
    """Six pictures and three edits, two of them of text."""
    found = []
    for number in range(6):
        pixels = picture(number) // 2 + (0 if number % 2 else 127)
        save(folder / f"{number}.png", pixels.astype(np.uint8))
        found.append(
            {"id": f"p{number}", "source_image": None, "target_image": f"{number}.png", "instruction": "A view"}
        )
    for number, category in enumerate(("text", "text", "color")):
        row = {"id": f"e{number}", "source_image": f"{number}.png", "target_image": f"{number + 1}.png"}
        found.append(row | {"instruction": f"Edit {number}", "category": category, "license": CREDIT})
    return table(folder / "rows.jsonl", found)


def run(source, out, **options):
    given = {"annotators": {"hashes": Hashes()}, "workers": 0, "shard_rows": 4}
    curate(source=str(source), out=str(out), rows=RawRows(str(source)), **{**given, **options})


def test_gaps_are_counted_by_task_and_filled_by_a_second_run(tmp_path):
    run(mixed(tmp_path / "raw"), tmp_path / "out", fill=Fill(least=2, tasks=["text", "color", "add", "motion"]))
    gaps = {gap["task"]: gap for gap in lines(tmp_path / "out" / "gaps.jsonl")}
    assert set(gaps) == {"color", "add", "motion"}
    assert (gaps["color"]["edits"], gaps["color"]["missing"], gaps["color"]["listed"]) == (1, 1, 1)
    assert (gaps["add"]["missing"], gaps["add"]["listed"]) == (2, 2)
    assert (gaps["motion"]["missing"], gaps["motion"]["listed"]) == (2, 0)
    listed = lines(tmp_path / "out" / "fill.jsonl")
    assert Counter(task for line in listed for task in line["wanted"]) == {"color": 1, "add": 2}
    run(tmp_path / "out" / "fill.jsonl", tmp_path / "again", make=Make(each=4, several=1.0))
    made = lines(tmp_path / "again" / "made.jsonl")
    wanted = {line["id"]: set(line["wanted"]) for line in listed}
    assert made
    assert all(line["task"] in wanted[line["made_from"]] for line in made)


def test_gaps_are_counted_in_every_cluster(tmp_path):
    clusters = Clusters("side.vector", count=2, sample=9)
    annotators = {"hashes": Hashes(), "side": Side()}
    source = mixed(tmp_path / "raw")
    run(source, tmp_path / "out", annotators=annotators, clusters=clusters, fill=Fill(least=2, tasks=["text"]))
    gaps = lines(tmp_path / "out" / "gaps.jsonl")
    assert len({gap["cluster"] for gap in gaps}) == len(gaps) >= 1
    assert all(gap["edits"] + gap["missing"] == 2 for gap in gaps)


def test_a_wanted_task_that_no_template_makes_is_refused_with_its_row(tmp_path):
    save(tmp_path / "raw" / "0.png", picture(0))
    row = {"source_image": None, "target_image": "0.png", "instruction": "A view", "wanted": ["colour"]}
    source = table(tmp_path / "raw" / "rows.jsonl", [row])
    with pytest.raises(UserError, match=r"rows.jsonl:1: wanted: no template makes 'colour'; did you mean 'color'"):
        run(source, tmp_path / "out", make=Make())
    with pytest.raises(UserError, match="names none"):
        Fill(tasks=[])


def test_a_rejected_edit_loses_to_a_kept_one_of_the_same_source_and_words(tmp_path):
    folder = tmp_path / "raw"
    for number in range(5):
        save(folder / f"{number}.png", picture(number))
    common = {"source_image": "0.png", "instruction": "Make it red", "license": CREDIT}
    found = [
        {"id": "good", "target_image": "1.png", **common},
        {"id": "bad", "target_image": "2.png", **common},
        {"id": "other", "target_image": "3.png", **common, "instruction": "Make it blue"},
        {"id": "dark", "target_image": "4.png", **common},
    ]
    source = table(folder / "rows.jsonl", found)
    rules = {"score": {"column": "row.id", "among": ["bad", "other"]}, "dark": {"column": "row.id", "among": ["dark"]}}
    run(source, tmp_path / "out", rules=rules)
    assert write_losers(tmp_path / "out", RawRows(str(source)), ["score"]) == 1
    pairs = [record for some in rows(tmp_path / "out" / "losers.jsonl") for record in some]
    assert not any(isinstance(pair, Refusal) for pair in pairs)
    assert [(pair.target[-5:], pair.loser[-5:]) for pair in pairs] == [("1.png", "2.png")]
    assert pairs[0].instructions == {"original/en": "Make it red"}
