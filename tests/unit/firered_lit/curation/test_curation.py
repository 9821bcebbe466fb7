"""A raw folder becomes rows that `prepare` reads: each step by itself, restartable, with the same bytes however run."""

import json
import os
import signal
import time
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from raw_annotators import Corner, DeadlyRows, Faulty, Look, Slow
from raw_pictures import CREDIT, contents, edits, lines, loose, picture, save, table
from support.started import kill, started

from datamodules.sources.raw import RawRows
from datamodules.sources.records import Refusal, rows
from firered_lit import cli
from firered_lit.curation import scores
from firered_lit.curation.annotator import Annotator
from firered_lit.curation.fit import Clusters, Duplicates
from firered_lit.curation.hashes import Hashes
from firered_lit.curation.photometric import Photometric
from firered_lit.curation.run import curate
from firered_lit.curation.select import Quota
from firered_lit.curation.words import Words
from firered_lit.errors import UserError

RULES = {"dark": {"column": "photometric.brightest", "below": 0.2}}
NEAR = Duplicates(best={"file.width": "highest", "file.bytes": "highest"})


def annotators(**more):
    return {"photometric": Photometric(), "hashes": Hashes(), "words": Words(), **more}


def run(source, out, **options):
    given = {"annotators": annotators(), "rules": RULES, "duplicates": NEAR, "workers": 0, "shard_rows": 4}
    curate(source=str(source), out=str(out), **{"rows": RawRows(str(source)), **given, **options})
    return decisions(out)


def decisions(out):
    return pq.read_table(out / "decisions.parquet").to_pylist()


def reasons(found):
    return [decision["reason"] for decision in found]


@pytest.fixture
def mixed(tmp_path):
    """Nine pictures: 3 is dark, 4 a dark copy of 5, 6 a smaller copy of 0, 7 cut short, 8 no picture."""
    folder = loose(tmp_path / "raw", 7)
    save(folder / "0003.jpg", picture(3) // 8, quality=92)
    save(folder / "0004.jpg", picture(5) // 8, quality=92)
    small = Image.open(folder / "0000.jpg").resize((80, 80))
    small.save(folder / "0006.jpg", quality=95)
    whole = (folder / "0001.jpg").read_bytes()
    (folder / "0007.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "0008.jpg").write_text("no picture")
    return folder


def test_every_row_has_its_first_reason_and_the_best_of_near_copies_stays(mixed, tmp_path):
    found = run(mixed, tmp_path / "out")
    expected = [None, None, None, "dark", "dark", None, "duplicate"]
    assert reasons(found) == [*expected, "picture: truncated image", "picture: unreadable image"]
    assert [decision["kept"] for decision in found] == [decision["reason"] is None for decision in found]
    assert [decision["id"] for decision in found] == [f"000{number}.jpg" for number in range(9)]
    assert (found[0]["group"], found[6]["group"], found[1]["group"]) == (0, 0, None)
    assert all(decision["weight"] == (1.0 if decision["kept"] else 0.0) for decision in found)
    kept = lines(tmp_path / "out" / "selected.jsonl")
    assert [line["id"] for line in kept] == ["0000.jpg", "0001.jpg", "0002.jpg", "0005.jpg"]


def test_processes_write_the_same_bytes_as_one(mixed, tmp_path):
    run(mixed, tmp_path / "one")
    run(mixed, tmp_path / "two", workers=2)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_shards_shared_by_several_commands_come_to_the_same_bytes(mixed, tmp_path, capsys):
    run(mixed, tmp_path / "one")
    for shard in (1, 2, 0):
        given = {"annotators": annotators(), "rules": RULES, "duplicates": NEAR, "workers": 0, "shard_rows": 4}
        curate("", str(tmp_path / "three"), RawRows(str(mixed)), shard=shard, num_shards=3, **given)
        done = (tmp_path / "three" / "decisions.parquet").exists()
        assert done == (shard == 0), "the last one concludes"
    assert "are left to the others" in capsys.readouterr().out
    assert contents(tmp_path / "one") == contents(tmp_path / "three")


def test_what_is_finished_is_not_opened_again(mixed, tmp_path, monkeypatch):
    before = run(mixed, tmp_path / "out")
    monkeypatch.setattr(RawRows, "open", lambda *_: pytest.fail("a picture is opened"))
    steps = ["annotate", "fit", "select", "write"]
    assert run(mixed, tmp_path / "out", steps=steps) == before
    stricter = {"light": {"column": "photometric.brightness", "above": 0.0}}
    assert set(reasons(run(mixed, tmp_path / "out", rules=stricter, steps=steps))) - {None} > {"light"}
    assert run(mixed, tmp_path / "out", steps=["select", "write"]) == before


def test_a_new_annotator_computes_its_own_columns_alone(mixed, tmp_path):
    run(mixed, tmp_path / "out")
    before = contents(tmp_path / "out")
    run(mixed, tmp_path / "out", annotators=annotators(corner=Corner()))
    after = contents(tmp_path / "out")
    new = {name for name in after if name not in before}
    assert new == {f"scores/corner/0000{shard}.parquet" for shard in range(3)}
    unchanged = {name for name in before if "scores" in name}
    assert all(after[name] == before[name] for name in unchanged)
    red = pq.read_table(tmp_path / "out" / "scores" / "corner" / "00000.parquet").column("red").to_pylist()
    assert red == [int(np.asarray(Image.open(mixed / f"000{number}.jpg"))[0, 0, 0]) for number in range(4)]


def test_a_new_version_of_an_annotator_is_computed_anew(mixed, tmp_path):
    class Newer(Photometric):
        version = 2

    run(mixed, tmp_path / "out")
    path = tmp_path / "out" / "scores" / "photometric" / "00000.parquet"
    before = path.stat().st_mtime_ns
    run(mixed, tmp_path / "out")
    assert path.stat().st_mtime_ns == before
    run(mixed, tmp_path / "out", annotators={**annotators(), "photometric": Newer()})
    assert path.stat().st_mtime_ns != before


@pytest.mark.parametrize("fault", ["raises", "too few", "text", "dies", "hangs"])
def test_what_an_annotator_fails_at_is_one_row_lost(fault, tmp_path):
    source = loose(tmp_path / "raw", 6)
    patience = 4.0 if fault == "hangs" else 300.0
    workers = 2 if fault in ("dies", "hangs") else 0
    found = run(source, tmp_path / "out", annotators=annotators(bad=Faulty(fault)), workers=workers, patience=patience)
    assert reasons(found) == [None, None, "failed: bad", None, None, None]
    failure = pq.read_table(tmp_path / "out" / "scores" / "bad" / "00000.parquet").column("failure").to_pylist()
    said = {"raises": "boom", "too few": "returned 0 values", "text": "much", "dies": "died", "hangs": "hung"}[fault]
    assert said in failure[2]
    assert failure[:2] == [None, None]


def test_a_number_that_is_not_finite_is_no_value(tmp_path):
    found = run(loose(tmp_path / "raw", 3), tmp_path / "out", annotators=annotators(bad=Faulty("nan")))
    assert reasons(found) == [None] * 3


def test_an_annotator_that_fails_at_too_much_ends_the_command(tmp_path):
    source = loose(tmp_path / "raw", 70, side=32)
    with pytest.raises(UserError, match=r"annotators.bad: failed at 6\d of 6\d items, .*boom"):
        run(source, tmp_path / "out", annotators=annotators(bad=Faulty("raises", number=None)))


def test_a_picture_that_kills_its_process_is_refused(tmp_path):
    source = loose(tmp_path / "raw", 5)
    found = run(source, tmp_path / "out", workers=2, rows=DeadlyRows(str(source), at="0003.jpg"))
    assert reasons(found) == [None, None, None, "picture: unreadable image", None]


def test_processes_work_after_opencv_has_had_threads(mixed, tmp_path):
    before = cv2.getNumThreads()
    cv2.setNumThreads(4)
    try:
        cv2.GaussianBlur(np.zeros((2000, 2000), np.uint8), (0, 0), 5)
        found = run(mixed, tmp_path / "out", workers=2, patience=10.0)
        after = cv2.getNumThreads()
    finally:
        cv2.setNumThreads(before)
    assert after == 4
    assert reasons(found).count(None) == 4


def test_an_annotator_that_other_processes_do_not_find_is_one_clear_line(mixed, tmp_path):
    class Hidden(Corner):
        pass

    with pytest.raises(UserError, match=r"Hidden.*put its class into a module, or take workers=0"):
        run(mixed, tmp_path / "out", workers=2, annotators=annotators(hidden=Hidden()))


def test_processes_end_with_the_one_that_started_them(tmp_path):
    source = loose(tmp_path / "raw", 4)
    pids = tmp_path / "pids"
    child = started(run, source, tmp_path / "out", annotators=annotators(slow=Slow(pids)), workers=2)
    while not (pids.exists() and pids.read_text().endswith("\n")):
        assert child.is_alive()
        time.sleep(0.05)
    kill(child)
    worker = int(pids.read_text().split()[0])
    end = time.monotonic() + 20
    while _runs(worker) and time.monotonic() < end:
        time.sleep(0.05)
    left = _runs(worker)
    if left:
        os.kill(worker, signal.SIGKILL)
    assert not left


def _runs(process):
    """Return whether a process is there and has not ended."""
    try:
        return Path(f"/proc/{process}/stat").read_text().split()[2] != "Z"
    except OSError:
        return False


def test_clusters_weigh_their_rows_as_alpha_says(tmp_path):
    source = tmp_path / "raw"
    for number in range(12):  # nine bluish pictures, three reddish ones
        pixels = picture(number)
        pixels[:, :, 0 if number < 9 else 2] //= 4
        pixels[:, :, 2 if number < 9 else 0] |= 128
        save(source / f"{number:02d}.png", pixels)
    options = {"annotators": annotators(look=Look()), "duplicates": None, "rules": {}}
    found = run(source, tmp_path / "out", clusters=Clusters("look.vector", count=2, alpha=0.0), **options)
    assert len({decision["cluster"] for decision in found[:9]}) == len({d["cluster"] for d in found[9:]}) == 1
    assert [round(found[place]["weight"], 4) for place in (0, 11)] == [round(12 / 9 / 2, 4), round(12 / 3 / 2, 4)]
    assert {line["cluster"] for line in lines(tmp_path / "out" / "selected.jsonl")} == {"0", "1"}
    even = run(source, tmp_path / "out", clusters=Clusters("look.vector", count=2, alpha=1.0), **options)
    assert {decision["weight"] for decision in even} == {1.0}


def test_prepare_reads_what_is_written_with_licences_and_sources(tmp_path):
    source = edits(tmp_path / "raw", 5, source="ours")
    row = lines(source)[0]
    also = [
        {**row, "target_image": "missing.png"},
        {**row, "instruction": ""},
        {**row, "id": "t2i", "source_image": None},
    ]
    with source.open("a") as file:
        file.writelines(json.dumps(one) + "\n" for one in also)
    found = run(source, tmp_path / "out")
    assert reasons(found) == [None] * 5 + ["picture: missing image", "row: empty instruction", None]
    before = {record.id: record for row in rows(source) if not isinstance(row, Refusal) for record in row}
    written = [record for row in rows(tmp_path / "out" / "selected.jsonl") for record in row]
    assert [record.id for record in written] == [found[number]["id"] for number in (0, 1, 2, 3, 4, 7)]
    for record in written:
        own = before[record.id]
        assert (record.task, record.instructions, record.target) == (own.task, own.instructions, own.target)
        assert record.references == own.references
    for line in lines(tmp_path / "out" / "selected.jsonl"):
        assert (line["license"], line["source"]) == (CREDIT, "ours")


def test_pictures_that_lie_in_a_table_are_written_out(tmp_path):
    files = []
    for number in range(3):
        save(tmp_path / "one.png", picture(number))
        files.append({"bytes": (tmp_path / "one.png").read_bytes(), "path": None})
    prompts = ["a", "b", "c"]
    rows_of = {"source_image": [None] * 3, "target_image": files, "instruction": prompts}
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    columns = [pa.array([None] * 3, pa.string()), pa.array(files, kind), pa.array(prompts)]
    source = tmp_path / "raw.parquet"
    pq.write_table(pa.table(columns, names=list(rows_of)), source)
    run(source, tmp_path / "out")
    written = [record for row in rows(tmp_path / "out" / "selected.jsonl") for record in row]
    assert len(written) == 3
    for number, record in enumerate(written):
        assert np.array_equal(np.asarray(Image.open(record.target)), picture(number))


def test_edits_are_duplicates_when_pictures_and_words_are(tmp_path):
    source = edits(tmp_path / "raw", 3)
    first = lines(source)[0]
    copies = [
        {**first, "id": "same words", "instruction": "invert  SQUARE 0!"},
        {**first, "id": "other words", "instruction": "Undo it"},
        {**first, "id": "other source", "source_image": "1_source.png"},
        {**first, "id": "other target", "target_image": "2_source.png"},
    ]
    table(source, [*lines(source), *copies])
    found = run(source, tmp_path / "out")
    assert reasons(found) == [None, None, None, "duplicate", None, None, None]


def test_near_copies_of_text_to_image_rows_need_no_equal_words(tmp_path):
    folder = loose(tmp_path / "raw", 1)
    row = {"source_image": None, "target_image": "0000.jpg"}
    source = table(folder / "t.jsonl", [{**row, "instruction": "a cat"}, {**row, "instruction": "the same cat"}])
    assert reasons(run(source, tmp_path / "out")) == [None, "duplicate"]


def test_a_defective_copy_never_takes_the_place_of_a_good_one(tmp_path):
    folder = tmp_path / "raw"
    for number in range(6):
        save(folder / f"{number}_good.jpg", picture(number, 64), quality=90)
        save(folder / f"{number}_worse.jpg", picture(number, 64) // 6, quality=97)  # dark, larger, the best by size
    found = run(folder, tmp_path / "out", duplicates=Duplicates(distance=5, best={"file.bytes": "highest"}))
    assert reasons(found) == [None, "dark"] * 6


def test_quotas_balance_what_is_left(tmp_path):
    folder = loose(tmp_path / "raw", 12)
    row = {"source_image": None, "instruction": "x"}
    names = ["poster"] * 8 + ["photo"] * 3 + ["sign"]
    content = [{**row, "target_image": f"{number:04d}.jpg", "category": name} for number, name in enumerate(names)]
    source = table(folder / "t.jsonl", content)
    shares = Quota("row.category", shares={"poster": 0.5, "photo": 0.5})
    found = run(source, tmp_path / "out", quotas=[shares], rules={})
    kept = [name for name, decision in zip(names, found) if decision["kept"]]
    assert (kept.count("poster"), kept.count("photo"), kept.count("sign")) == (3, 3, 0)
    assert {reason for reason in reasons(found) if reason} == {"quota: row.category"}
    assert run(source, tmp_path / "out", quotas=[shares], rules={}) == found
    assert reasons(run(source, tmp_path / "out", quotas=[shares], rules={}, seed=1)) != reasons(found)
    largest = Quota("row.category", most=1, best={"file.bytes": "highest"})
    best = run(source, tmp_path / "out", quotas=[largest], rules={})
    sizes = [os.path.getsize(folder / f"{number:04d}.jpg") for number in range(8)]
    assert [place for place, decision in enumerate(best[:8]) if decision["kept"]] == [int(np.argmax(sizes))]
    with pytest.raises(UserError, match=r"no row is left of 'painting'.*photo, poster, sign"):
        run(source, tmp_path / "out", quotas=[Quota("row.category", shares={"poster": 0.5, "painting": 0.5})])


def test_two_quotas_of_one_column_are_counted_together(tmp_path, capsys):
    folder = loose(tmp_path / "raw", 6)
    row = {"source_image": None, "instruction": "x"}
    names = ["poster"] * 3 + ["photo"] * 2 + [None]
    content = [{**row, "target_image": f"{number:04d}.jpg", "category": name} for number, name in enumerate(names)]
    quotas = [Quota("row.category", most=2), Quota("row.category", shares={"poster": 1.0})]
    found = run(table(folder / "t.jsonl", content), tmp_path / "out", quotas=quotas, rules={})
    kept = [name for name, decision in zip(names, found) if decision["kept"]]
    assert kept == ["poster"] * 2
    assert "dropped           4 quota: row.category, 2 left" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        ({"dark": {"column": "photometric.brightnes", "below": 0.1}}, "did you mean 'photometric.brightness'"),
        ({"dark": {"column": "brightness", "below": 0.1}}, "did you mean 'photometric.brightness'"),
        ({"dark": {"column": "photometric.brightness", "belwo": 0.1}}, "did you mean 'below'"),
        ({"dark": {"column": "photometric.brightness"}}, "says nothing of photometric.brightness"),
        ({"dark": {"below": 0.1}}, "rules.dark: needs a column"),
        ({"dark": {"column": "photometric.brightness", "below": "x"}}, "rules.dark.below: expected a number"),
        ({"dark": {"column": "photometric.brightness", "below_quantile": 1.5}}, "between 0 and 1"),
        ({"dark": {"column": "photometric.brightness", "below": 1, "unless": {"row.taks": "a"}}}, "'row.task'"),
        ({"dark": {"column": "photometric.brightness", "below": 1, "unless": {"file.width": 3}}}, "column of rows"),
        ({"dark": {"column": "row.task", "below": 1}}, "holds text; compare it by among"),
        ({"dark": {"column": "row.task", "below_quantile": 0.5}}, "no quantiles"),
        ({"dark": {"column": "file.width", "below": 1, "of": "all"}}, "expected one of any, target, source"),
        ({"dark": 3}, "expected a mapping"),
        ({"a: b": {"column": "file.width", "below": 1}}, "no colon"),
        ({"duplicate": {"column": "file.width", "below": 1}}, "rules.duplicate: this name is the reason"),
    ],
)
def test_a_rule_that_makes_no_sense_is_refused_with_what_was_meant(rules, said, tmp_path):
    with pytest.raises(UserError) as refused:
        run(loose(tmp_path / "raw", 2), tmp_path / "out", rules=rules)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["row", "file", "label"])
def test_an_annotator_by_the_name_of_the_engines_own_columns_is_refused(name, tmp_path):
    with pytest.raises(UserError, match=f"annotators.{name}: this name is taken"):
        run(loose(tmp_path / "raw", 2), tmp_path / "out", annotators=annotators(**{name: Corner()}))


def test_a_quantile_of_an_empty_column_is_refused(tmp_path):
    class Nothing(Annotator):
        columns = {"value": "number"}  # noqa: RUF012

        def annotate(self, batch):
            return {"value": [None] * len(batch)}

    rule = {"low": {"column": "empty.value", "below_quantile": 0.1}}
    with pytest.raises(UserError, match=r"empty.value: has no value at all"):
        run(loose(tmp_path / "raw", 2), tmp_path / "out", rules=rule, annotators=annotators(empty=Nothing()))


def test_quantiles_tasks_and_exemptions_drop_what_they_say(tmp_path):
    folder = loose(tmp_path / "raw", 10)
    row = {"source_image": None, "instruction": "x"}
    content = []
    for number in range(10):
        facts = {"task": "ab"[number % 2], "category": "uv"[number // 5]}
        content.append({**row, "target_image": f"{number:04d}.jpg", **facts})
    source = table(folder / "t.jsonl", content)
    run(source, tmp_path / "out", rules={}, duplicates=None)
    values = pa.concat_tables(
        pq.read_table(path) for path in sorted((tmp_path / "out" / "scores" / "photometric").glob("*"))
    )
    brightness = values.column("brightness").to_numpy().astype(np.float64)

    def dropped(**rule):
        named = {"rule": {"column": "photometric.brightness", **rule}}
        found = run(source, tmp_path / "out", rules=named, duplicates=None)
        return [decision["reason"] == "rule" for decision in found]

    low, high = np.quantile(brightness, [0.25, 0.75])
    tasks = np.array([row["task"] for row in content])
    categories = np.array([row["category"] for row in content])
    assert dropped(below_quantile=0.25, above_quantile=0.75) == ((brightness < low) | (brightness > high)).tolist()
    assert dropped(above=0, tasks="a") == (tasks == "a").tolist()
    assert dropped(above=0, unless={"row.category": ["u"]}) == (categories != "u").tolist()
    assert dropped(above=0, by_task={"a": None, "b": high}) == ((tasks == "b") & (brightness > high)).tolist()
    assert dropped(above=0, of="source") == [False] * 10


class DarkCorner:
    """A rule of one's own."""

    columns = ("photometric.brightness", "photometric.saturation")

    def drops(self, values):
        return values["photometric.brightness"] + values["photometric.saturation"] > 0


def test_a_rule_can_be_a_class(tmp_path):
    found = run(loose(tmp_path / "raw", 3), tmp_path / "out", rules={"corner": DarkCorner()}, duplicates=None)
    assert reasons(found) == ["corner"] * 3


def test_rows_without_a_licence_can_be_refused(tmp_path):
    source = edits(tmp_path / "raw", 2)
    table(source, [*lines(source), {**lines(source)[0], "id": "bare", "license": None}])
    found = run(source, tmp_path / "out", rules={"licence": {"column": "row.license", "missing": True}})
    assert reasons(found) == [None, None, "licence"]


def test_a_score_file_cut_short_is_named_and_made_again(mixed, tmp_path):
    before = run(mixed, tmp_path / "out")
    path = tmp_path / "out" / "scores" / "hashes" / "00001.parquet"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"hashes/00001.parquet: cannot be read .* run the step annotate"):
        run(mixed, tmp_path / "out", steps=["select"])
    assert run(mixed, tmp_path / "out") == before
    assert path.read_bytes() == whole
    path.unlink()
    with pytest.raises(UserError, match="annotate"):
        run(mixed, tmp_path / "out", steps=["select"])


@pytest.mark.parametrize("step", ["fit", "select", "write"])
def test_a_step_without_those_before_it_says_which_is_missing(step, tmp_path):
    source = loose(tmp_path / "raw", 2)
    steps = ["annotate", step] if step != "fit" else ["fit"]
    with pytest.raises(UserError, match=r"run the step (annotate|fit|select)"):
        run(source, tmp_path / "out", steps=steps)


def test_another_source_is_refused(tmp_path):
    run(loose(tmp_path / "raw", 2), tmp_path / "out")
    with pytest.raises(UserError, match="made with another shard_rows"):
        run(tmp_path / "raw", tmp_path / "out", shard_rows=5)
    with pytest.raises(UserError, match="made with another rows"):
        run(loose(tmp_path / "raw", 3), tmp_path / "out")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    with pytest.raises(UserError, match="not begun by curate"):
        run(tmp_path / "raw", tmp_path / "full")


def test_a_folder_with_tables_is_never_taken_for_loose_pictures(tmp_path):
    folder = loose(tmp_path / "raw", 2)
    (folder / "a.jsonl").write_text("{}\n")
    (folder / "b.csv").write_text("a\n1\n")
    with pytest.raises(UserError, match="tables of several kinds"):
        run(folder, tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no \*.jsonl in this folder"):
        run(tmp_path / "empty", tmp_path / "out")


def test_a_full_disk_is_one_clear_error(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(scores.pq, "write_table", full)
    for workers in (0, 2):
        with pytest.raises(UserError, match="the disk is full"):
            run(loose(tmp_path / "raw", 2), tmp_path / "out", workers=workers)


def test_the_command_runs_the_laptop_recipe(mixed, tmp_path, capsys):
    out = tmp_path / "out"
    given = ["curate", "--recipe", "recipes/curate/laptop.yaml", f"source={mixed}", f"out={out}", "workers=0"]
    given.append("mlflow=null")
    assert cli.main(given) == 0
    assert "kept" in capsys.readouterr().out
    assert {"decisions.parquet", "selected.jsonl", "scores", "state", "curate.json"} <= set(os.listdir(out))
    assert cli.main([*given, "rules.dark.colum=x"]) == 2
    assert "rules.dark.colum" in capsys.readouterr().err
    assert cli.main([*given, "steps=[anotate]"]) == 2
