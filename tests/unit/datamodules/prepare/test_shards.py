"""`prepare` split over processes: whatever order, whatever is killed, the same data as one process makes alone."""

import json
import os
import random
import signal
import time

import pytest
from prepare_readers import DeadlyReader, UnsendableReader
from support.started import kill, started
from test_layouts import table, unicedit
from test_write import files_of, forked, make, rows_to, samples, world

from datamodules.prepare import parts, write
from datamodules.prepare.crops import Opening
from datamodules.prepare.work import ROWS, PartRows
from datamodules.sources.records import read
from datamodules.summary import table as bucket_table
from firered_lit.errors import UserError
from firered_lit.models.sizes import Sizes

WORLD = {"model": "world", "sizes": None}  # a base that is loaded at once


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(source, folder that one process prepared) of 12 good rows in 4 parts."""
    folder = tmp_path_factory.mktemp("shards")
    source = world(folder / "world", 12)
    return source, make(source, folder / "out", part_rows=3)


def test_shards_make_what_one_makes_and_the_last_merges(made, tmp_path, capsys):
    source, whole = made
    out = make(source, tmp_path / "out", part_rows=3, shard=1, num_shards=3)
    assert "shard 1 of 3 is done; 3 of 4 parts are left to the others" in capsys.readouterr().out
    assert [path.name for path in (out / "parts").iterdir()] == ["00001.json"]
    make(source, out, part_rows=3, shard=0, num_shards=3)
    assert not (out / "data.json").exists()
    make(source, out, part_rows=3, shard=2, num_shards=3)
    assert "kept           12 of 12 rows" in capsys.readouterr().out
    assert files_of(out) == files_of(whole)


def test_one_process_takes_over_what_a_shard_left(made, tmp_path):
    out = make(made[0], tmp_path / "out", part_rows=3, shard=0, num_shards=2)
    first = (out / "parts" / "00002.json").stat().st_mtime_ns
    make(made[0], out, part_rows=3)
    assert (out / "parts" / "00002.json").stat().st_mtime_ns == first
    assert files_of(out) == files_of(made[1])


def test_shards_that_would_meet_are_refused(tmp_path):
    with parts.at_work(tmp_path, 0, 2):
        with parts.at_work(tmp_path, 1, 2):
            pass
        for shard, shards, at in ((0, 2, "0-of-2"), (1, 3, "0-of-2"), (0, 1, "0-of-2")):
            with pytest.raises(UserError, match=f"another prepare is at work here .shard {at}"), \
                    parts.at_work(tmp_path, shard, shards):  # fmt: skip
                pass
    with pytest.raises(UserError, match="numbered from 0 to num_shards - 1"):
        make(tmp_path, tmp_path / "out", shard=2, num_shards=2)


def with_texts(folder, count, bad=()):
    """Rows with a text to read each, "text 0", ..., and lines that are no rows."""
    source = world(folder, count)
    lines = [json.loads(line) | {"target_text": f"text {i}"} for i, line in enumerate(source.read_bytes().splitlines())]
    return rows_to(source, *[b"{" if number in bad else line for number, line in enumerate(lines)])


def test_a_process_that_is_killed_costs_its_part_alone(tmp_path, capsys):
    """By two processes, one of which is killed, the bytes that one process writes, and the same counts."""
    source = with_texts(tmp_path / "w", 12, bad=[4])

    def run(name, **options):
        folder = tmp_path / name
        folder.mkdir()
        reader = DeadlyReader(folder, "text 7", "itself")
        out = make(source, folder / "out", part_rows=3, max_refused=0.1, reader=reader, **WORLD, **options)
        return out, (folder / "seen").read_text().splitlines()

    alone, seen = run("alone")
    assert len(seen) == 11
    assert "kept           11 of 12 rows" in capsys.readouterr().out
    shared, seen = run("shared", processes=2)
    assert "kept           11 of 12 rows" in capsys.readouterr().out
    assert (tmp_path / "shared" / "died").exists()
    assert {text for text in seen if seen.count(text) > 1} <= {"text 6", "text 7", "text 8"}
    assert files_of(shared) == files_of(alone)


def test_what_no_process_can_do_is_one_clear_line(tmp_path):
    source = with_texts(tmp_path / "w", 2)
    with pytest.raises(UserError, match=r"cannot be sent to another process.*or take processes=0"):
        make(source, tmp_path / "out", processes=1, reader=UnsendableReader(tmp_path))
    with pytest.raises(UserError, match="runner=slurm: one of processes, ray"):
        make(source, tmp_path / "other", runner="slurm")
    assert not (tmp_path / "other").exists()
    rows = PartRows(7, [], 3)
    step = (ROWS, 7, 0)
    with pytest.raises(UserError, match="part 7: 3 processes died at it"):
        rows.after_death(step, 1).after_death(step, 2).after_death(step, 3)


@pytest.mark.slow
def test_refusals_of_all_processes_count_together(tmp_path):
    """The parts of each process are under the limit of the whole, all together are over it."""
    source = with_texts(tmp_path / "w", 8, bad=[1, 6])
    with pytest.raises(UserError, match=r"2 of 8 rows refused, more than max_refused=0\.2"):
        make(source, tmp_path / "out", max_refused=0.2, processes=2, **WORLD)
    assert len((tmp_path / "out" / "refused.jsonl").read_text().splitlines()) == 2


@pytest.mark.slow
def test_a_command_of_two_processes_that_is_killed_goes_on(made, tmp_path):
    source, whole = made
    chance = random.Random(5)
    kills = 0
    for _ in range(6):
        process = started(make, source, tmp_path / "out", part_rows=3, processes=2)
        until = time.monotonic() + 100
        while process.is_alive() and not any((tmp_path / "out").glob(".part-*")):
            assert time.monotonic() < until
            time.sleep(0.001)
        time.sleep(chance.random() * 0.1)
        kills += kill(process)
    make(source, tmp_path / "out", part_rows=3, processes=2)
    assert kills >= 2
    assert files_of(tmp_path / "out") == files_of(whole)


def test_refusals_of_all_shards_count_together(tmp_path):
    """Each shard is under the limit of the whole, both are over it."""
    source = world(tmp_path / "w", 8)
    lines = source.read_bytes().splitlines()
    lines[1] = lines[6] = b"{"
    rows_to(source, *lines)
    out = make(source, tmp_path / "out", max_refused=0.2, shard=0, num_shards=2)
    with pytest.raises(UserError, match=r"2 of 8 rows refused, more than max_refused=0\.2"):
        make(source, out, max_refused=0.2, shard=1, num_shards=2)
    assert len((out / "refused.jsonl").read_text().splitlines()) == 2
    make(source, out, max_refused=0.25, shard=1, num_shards=2)
    assert json.loads((out / "data.json").read_text())["refused"] == {"invalid JSON": 2}


def test_images_in_a_table_are_prepared(tmp_path, monkeypatch):
    """By two shards, each of which opens its own rows' images alone."""
    source, asked = table(tmp_path / "e.parquet", list(unicedit(8)), row_group_size=2), []
    real = Opening.load
    monkeypatch.setattr(Opening, "load", lambda self, row: asked.append(row[0].id) or real(self, row))
    for shard in (0, 1):
        sizes = Sizes(64 * 64, 64 * 64, 56 * 56)
        out = make(source, tmp_path / "out", part_rows=2, shard=shard, num_shards=2, sizes=sizes)
    found, records = samples(out), list(read(source))
    assert set(found) == {record.id for record in records}
    assert sorted(asked) == sorted(found)
    assert found[records[3].id].meta["instructions"] == {"original/en": "edit 3", "original/cn": "编辑3"}


def test_rows_are_read_as_they_are_opened(tmp_path, monkeypatch):
    """A part of many rows, whose images lie in the table, is not in memory as a whole."""
    source, opened, ahead = table(tmp_path / "e.parquet", list(unicedit(40)), row_group_size=20), [], []
    load, real = Opening.load, write.rows

    def counted(*args, **options):
        for number, row in enumerate(real(*args, **options)):
            ahead.append(number - len(opened))
            yield row

    monkeypatch.setattr(Opening, "load", lambda self, row: opened.append(row) or load(self, row))
    monkeypatch.setattr(write, "rows", counted)
    sizes = Sizes(64 * 64, 64 * 64, 56 * 56)
    out = make(source, tmp_path / "out", part_rows=40, batch=2, workers=2, sizes=sizes)
    assert json.loads((out / "parts" / "00000.json").read_text())["rows"] == 40
    del ahead[:40]  # the first rows are looked at for what they will take
    assert len(opened) == len(ahead) == 40
    assert max(ahead) < 10


def test_the_bucket_table_of_a_prepared_folder(made):
    lines = list(bucket_table(made[1], capacity=96))
    assert lines[0].startswith("train: 12 samples in ")
    assert "capacity 96 tokens" in lines[0]
    assert lines[1].startswith("  an epoch of one process leaves out 0 of them (0.0%)")
    counts = [line.split()[:3] for line in lines[3:]]
    assert sum(int(count) for count, *_ in counts) == 12
    assert all(int(batch) == min(96 // int(tokens), int(count)) for count, batch, tokens in counts)
    shown = next(bucket_table(made[1]))
    assert int(shown.split("capacity ")[1].split()[0]) == 4 * max(int(line[2]) for line in counts)


def kill_at_random(source, out, rounds):
    """Prepare by two shards, of which one or the other is killed while parts are written; how often one was."""
    chance, kills, until = random.Random(rounds), 0, time.monotonic() + 250

    def start(shard):
        return forked(source, out, part_rows=3, shard=shard, num_shards=2)

    children = {start(shard): shard for shard in (0, 1)}
    while children:
        assert time.monotonic() < until
        if kills < rounds and any(out.glob(".part-*")):
            time.sleep(chance.random() * 0.1)
            os.kill(chance.choice(sorted(children)), signal.SIGKILL)
            kills += 1
        for child in list(children):
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                shard, code = children.pop(child), os.waitstatus_to_exitcode(status)
                assert code in (0, -signal.SIGKILL)
                children |= {start(shard): shard} if code else {}
        time.sleep(0.005)
    return kills


@pytest.mark.parametrize(("kills", "least"), [(2, 1), pytest.param(10, 8, marks=pytest.mark.slow)])
def test_two_processes_killed_at_random_moments(tmp_path, kills, least, made):
    """The same files as uninterrupted, byte for byte: the same ids, the same bytes of every sample."""
    source, whole = made
    if kills > 4:  # enough parts to be killed in
        source = world(tmp_path / "world", 60)
        whole = make(source, tmp_path / "whole", part_rows=3)
    assert kills >= kill_at_random(source, tmp_path / "out", kills) >= least
    killed, expected = files_of(tmp_path / "out"), files_of(whole)
    assert killed.keys() == expected.keys()
    assert [name for name in expected if killed[name] != expected[name]] == []
    assert samples(tmp_path / "out").keys() == samples(whole).keys()
