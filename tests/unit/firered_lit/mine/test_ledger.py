"""The files of a mining: killed anywhere, gone on with, shared by several processes."""

import json

import pytest

from firered_lit.errors import UserError
from firered_lit.mine.ledger import opened
from firered_lit.mine.run import judged_by, mine


def open_(folder, count=6, shard=0, shards=1, **made_from):
    return opened(folder / "out", {"seed": 0} | made_from, count, shard, shards)


def wanted(ledger):
    return [number for number in range(ledger.count) if ledger.wants(number)]


def test_lines_are_there_after_the_process_in_the_order_of_numbers(tmp_path):
    with open_(tmp_path) as ledger:
        for number in (0, 2, 1):
            ledger.add(number, {"x": f"é{number}"})
    with open_(tmp_path) as ledger:
        assert wanted(ledger) == [3, 4, 5]
        assert (ledger.done, ledger.own, ledger.missing) == (3, 6, 3)
        assert [line["x"] for line in ledger.lines()] == ["é0", "é1", "é2"]


def test_a_line_cut_anywhere_is_made_again_and_the_next_one_is_whole(tmp_path):
    with open_(tmp_path) as ledger:
        ledger.add(0, {"x": "first"})
        ledger.add(1, {"x": "second, with some length"})
    path = tmp_path / "out" / "found" / "0.jsonl"
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    for cut in range(first, len(whole)):
        path.write_bytes(whole[:cut])
        with open_(tmp_path) as ledger:
            assert wanted(ledger) == [1, 2, 3, 4, 5]
            ledger.add(1, {"x": "again"})
        assert [json.loads(line)["x"] for line in path.read_bytes().splitlines()] == ["first", "again"]


def test_shards_share_the_numbers_and_see_each_others_lines(tmp_path):
    with open_(tmp_path, shard=0, shards=2) as one, open_(tmp_path, shard=1, shards=2) as two:
        assert (wanted(one), wanted(two)) == ([0, 2, 4], [1, 3, 5])
        for ledger in (one, two):
            for number in wanted(ledger):
                ledger.add(number, {})
        assert one.missing == 6
        one.read()
        assert one.missing == 0
        assert [line["number"] for line in one.lines()] == list(range(6))
    with open_(tmp_path, shard=2, shards=3) as other:
        assert wanted(other) == []


def test_what_shall_be_tried_again_is_and_the_better_line_stays(tmp_path):
    with open_(tmp_path) as ledger:
        ledger.add(0, {"x": 1, "again": True})
        ledger.add(1, {"x": 1})
    with open_(tmp_path) as ledger:
        assert wanted(ledger)[0] == 0
        assert ledger.missing == 4
        ledger.add(0, {"x": 2})
        ledger.read()
        assert [line["x"] for line in ledger.lines()] == [2, 1]
        ledger.add(0, {"x": 3, "again": True})
        ledger.read()
        assert [line["x"] for line in ledger.lines()] == [2, 1]


def test_what_does_not_belong_is_refused(tmp_path):
    busy = pytest.raises(UserError, match=r"another mine is at work here .shard 0-of-1")
    with open_(tmp_path), busy, open_(tmp_path):
        pass
    with pytest.raises(UserError, match=r"made with another seed \(0, now 1\)"), open_(tmp_path, seed=1):
        pass
    with pytest.raises(UserError, match="numbered from 0"), open_(tmp_path, shard=2, shards=2):
        pass
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "mine.txt").touch()
    with pytest.raises(UserError, match="not begun by mine"), opened(tmp_path / "x", {}, 1):
        pass


class Squares:
    """A task that begins ahead of what it finishes."""

    unit, ahead = "number", 3

    def __init__(self, count=10, limit=None):
        self.count, self.limit, self.open_, self.began, self.closed = count, limit, 0, [], 0

    def made_from(self):
        return {"kind": "squares"}

    def __len__(self):
        return self.count

    def open(self, folder):
        self.open_ += 1

    def items(self, wanted):
        return ((number, number) for number in range(self.count) if wanted(number))

    def begin(self, item):
        if item == self.limit:
            raise KeyboardInterrupt
        self.began.append(item)
        return item

    def finish(self, begun):
        assert len(self.began) - begun <= self.ahead + 1
        return {"square": begun**2}

    def conclude(self, lines, folder):
        (folder / "sum").write_text(str(sum(line["square"] for line in lines())))
        return ["done"]

    def close(self):
        self.closed += 1


def test_it_begins_ahead_goes_on_and_concludes_once_all_are_there(tmp_path, capsys):
    out = str(tmp_path / "out")
    first = Squares(limit=7)
    with pytest.raises(KeyboardInterrupt):
        mine(first, out)
    assert first.closed == 1
    second = Squares()
    mine(second, out)
    assert second.began == list(range(4, 10))  # 0 to 3 were finished, the three ahead were not
    assert (tmp_path / "out" / "sum").read_text() == str(sum(x**2 for x in range(10)))
    third = Squares()
    mine(third, out)
    assert (third.began, third.open_) == ([], 0)
    assert "done" in capsys.readouterr().out


def test_the_last_shard_concludes(tmp_path, capsys):
    out = str(tmp_path / "out")
    mine(Squares(), out, 0, 2)
    assert "5 of 10 are left to the others" in capsys.readouterr().out
    assert not (tmp_path / "out" / "sum").exists()
    mine(Squares(), out, 1, 2)
    assert (tmp_path / "out" / "sum").exists()


def test_a_folder_keeps_to_its_rewards_wherever_they_run(tmp_path):
    def recipe(**judge):
        return {"task": {"rewards": {"judge": {"_target_": "J", "judge": {"url": "a", "model": "m"} | judge}}}}

    mine(Squares(), str(tmp_path / "out"), recipe=recipe())
    mine(Squares(), str(tmp_path / "out"), recipe=recipe(url="b", parallel=9))
    with pytest.raises(UserError, match="made with another rewards"):
        mine(Squares(), str(tmp_path / "out"), recipe=recipe(model="other"))
    assert judged_by(None) == {}
