"""Every picture of an evaluation is drawn once, whole, by the model, from the seed and for the item that are meant."""

import hashlib
import io
import json
import random
import signal
import time
from pathlib import Path

import pytest
import standin
from PIL import Image
from stub_judge import StubJudge
from warm import Started, module

from firered_lit.errors import UserError
from firered_lit.evaluation import drawing
from firered_lit.evaluation.benchmarks.imgedit import ImgEdit
from firered_lit.evaluation.benchmarks.rededit import REDEdit
from firered_lit.evaluation.judge_server import JudgeServer
from firered_lit.evaluation.models.pictures import Pictures
from firered_lit.evaluation.models.planted import Blank, Copier, RandomCrop
from firered_lit.evaluation.protocols import EvaluationFolder
from firered_lit.evaluation.run import evaluate
from firered_lit.inference.prompt_file import open_picture

ROOT = Path(__file__).resolve().parents[4]


@pytest.fixture(scope="module")
def copies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("copies")
    standin.write_rededit(folder / "rededit", each=2)
    standin.write_imgedit(folder / "imgedit", each=1)
    return folder


@pytest.fixture
def red(copies: Path) -> REDEdit:
    return REDEdit(str(copies / "rededit"), version="any")


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.png"))}


class Counting(Copier):
    """A copier that notes what it is asked for; with `fails`, it fails at those ids."""

    def __init__(self, fails: frozenset[str] = frozenset(), parallel: int = 1) -> None:
        self.fails = fails
        self.asked: list[tuple[str, str]] = []
        self.parallel = parallel

    def draw(self, item, sources, seed):
        self.asked.append((item.suite, item.id))
        if item.id in self.fails:
            raise RuntimeError(f"out of memory\nat {item.id}")
        return super().draw(item, sources, seed)


class Twice(REDEdit):
    """A benchmark in which every item stands twice."""

    def items(self):
        return [*super().items(), *super().items()]


def draw(folder: Path, red: REDEdit, model: object, seed: int = 43, **more: int) -> drawing.DrawingTally:
    return drawing.draw(EvaluationFolder(folder), [red], {"mine": model}, seed, **more)["mine"]


@pytest.mark.parametrize("parallel", [1, 3])
def test_every_item_is_drawn_once_under_its_official_name(parallel: int, red: REDEdit, tmp_path: Path) -> None:
    model = Counting(parallel=parallel)
    tally = draw(tmp_path, red, model)
    items = red.items()
    assert (tally.drawn, tally.there, tally.failed) == (60, 0, 0)
    assert sorted(model.asked) == sorted((item.suite, item.id) for item in items)
    for item in items:
        path = tmp_path / "pictures" / "mine" / item.suite / item.category / Path(item.sources[0]).name
        source = Image.open(io.BytesIO(red.sources(item)[0])).convert("RGB")
        assert Image.open(path).tobytes() == source.tobytes()

    # What is there is not drawn again.
    again = Counting(parallel=parallel)
    tally = draw(tmp_path, red, again)
    assert (tally.drawn, tally.there, again.asked) == (0, 60, [])


def test_what_is_not_whole_or_of_something_else_is_drawn_again(red: REDEdit, tmp_path: Path, copies: Path) -> None:
    draw(tmp_path, red, Counting())
    pictures = tmp_path / "pictures" / "mine"
    whole = files(pictures)
    victims = {"add/add-1.png": lambda path: path.unlink(), "add/add-2.png": lambda path: path.write_bytes(b"")}
    victims["text/text-27.png"] = lambda path: path.write_bytes(path.read_bytes()[:-1])
    victims["color/color-9.png"] = lambda path: path.write_bytes(whole["rededit_en/color/color-10.png"])
    for name, damage in victims.items():
        damage(pictures / "rededit_en" / name)
    model = Counting()
    tally = draw(tmp_path, red, model)
    ids = {Path(name).stem.rpartition("-")[2] for name in victims}
    assert (set(model.asked), tally.there) == ({("rededit_en", name) for name in ids}, 56)
    assert files(pictures) == whole

    # Another seed, another model: all of it.
    assert draw(tmp_path, red, Counting(), seed=44).drawn == 60
    assert draw(tmp_path, red, Blank(), seed=44).drawn == 60
    assert draw(tmp_path, red, Counting(), seed=43).drawn == 60

    # Another instruction: that item alone.
    other = tmp_path / "other"
    standin.write_rededit(other, each=2)
    index = other / "redbench.jsonl"
    rows = [json.loads(line) for line in index.read_text(encoding="utf-8").splitlines()]
    rows[4]["a_to_b_instructions_eng"] = "Something else"
    index.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    model = Counting()
    draw(tmp_path, REDEdit(str(other), version="any"), model)
    assert model.asked == [("rededit_en", "5")]


def test_a_model_that_fails_at_some_items_leaves_them_out_and_is_asked_again(red: REDEdit, tmp_path: Path) -> None:
    draw(tmp_path, red, Blank())
    tally = draw(tmp_path, red, Counting(frozenset({"3", "7"})))
    assert (tally.drawn, tally.failed) == (56, 4)
    folder = EvaluationFolder(tmp_path)
    failed = [item for item in red.items() if item.id in ("3", "7")]
    assert not any(folder.picture("mine", item).exists() for item in failed), "another model's picture is left"
    newest = drawing.drawn_lines(folder, "mine")["rededit_cn", "7"][-1]
    assert newest["failed"] == "RuntimeError: out of memory at 7"
    assert newest["sha256"] is None
    healed = Counting()
    draw(tmp_path, red, healed)
    assert sorted(healed.asked) == sorted((item.suite, item.id) for item in failed)
    assert all(folder.picture("mine", item).exists() for item in failed)


@pytest.mark.parametrize("parallel", [1, 4])
def test_a_model_that_draws_nothing_ends_the_command(parallel: int, red: REDEdit, tmp_path: Path) -> None:
    model = Counting(frozenset(str(number) for number in range(100)), parallel)
    with pytest.raises(UserError, match=r"model mine: none of the first 10 items could be drawn: RuntimeError: out of"):
        draw(tmp_path, red, model)
    assert len(model.asked) <= 10 + 2 * parallel


def test_a_place_that_cannot_be_written_ends_the_command_in_one_line(red: REDEdit, tmp_path: Path) -> None:
    (tmp_path / "pictures" / "mine").mkdir(parents=True)
    (tmp_path / "pictures" / "mine" / "rededit_en").write_text("a file")
    with pytest.raises(UserError, match=r"rededit_en/add/add-1\.png: cannot be written: "):
        draw(tmp_path, red, Counting())
    (tmp_path / "other" / "pictures").mkdir(parents=True)
    (tmp_path / "other" / "pictures" / "mine").write_text("a file")
    with pytest.raises(UserError, match="pictures/mine/drawn: cannot be made a folder"):
        draw(tmp_path / "other", red, Counting())


def test_pictures_of_several_models_under_one_name_are_told(red: REDEdit, tmp_path: Path, caplog, capsys) -> None:
    with pytest.raises(UserError, match="none of the first 10"):
        draw(tmp_path, red, Counting(frozenset(str(number) for number in range(100))))
    draw(tmp_path, red, Blank())
    folder = EvaluationFolder(tmp_path)
    assert drawing.count_origins(folder, [red], "mine") == 1
    draw(tmp_path, red, Copier(), num_shards=2)
    assert drawing.count_origins(folder, [red], "mine") == 2
    evaluate(str(tmp_path), {"red": red}, models={"mine": Copier()}, steps=["score"])
    assert "model mine: its pictures are of 2 models, seeds or settings; run the step `draw`" in caplog.text
    evaluate(str(tmp_path), {"red": red}, models={"mine": Copier()}, steps=["draw"])
    told = "30 drawn (30 in place of other or damaged ones), 30 were there, 0 failed"
    assert told in capsys.readouterr().out
    assert drawing.count_origins(folder, [red], "mine") == 1


def test_a_source_that_cannot_be_read_costs_its_item_alone(tmp_path: Path) -> None:
    copy = standin.write_rededit(tmp_path / "copy", each=1)
    (copy / "redbench/text/text-14.png").write_bytes(b"<script>no picture</script>")
    red = REDEdit(str(copy), version="any", languages=["en"])
    tally = draw(tmp_path / "out", red, Copier())
    assert (tally.drawn, tally.failed) == (14, 1)
    (line,) = drawing.drawn_lines(EvaluationFolder(tmp_path / "out"), "mine")["rededit_en", "14"]
    assert "text-14.png: cannot be read as a picture" in line["failed"]


def test_a_source_is_drawn_from_as_edit_sees_it(tmp_path: Path) -> None:
    copy = standin.write_rededit(tmp_path / "copy", each=1)
    seen = Image.new("RGBA", (8, 6), (255, 0, 0, 0))
    seen.save(copy / "redbench/text/text-14.png")
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.new("I;16", (8, 6), 65535).save(copy / "redbench/add/add-1.png", exif=turned)
    red = REDEdit(str(copy), version="any", languages=["en"])
    draw(tmp_path / "out", red, Copier())
    folder = EvaluationFolder(tmp_path / "out")
    by_id = {item.id: item for item in red.items()}
    for name, size in {"14": (8, 6), "1": (6, 8)}.items():
        drawn = Image.open(folder.picture("mine", by_id[name]))
        source = open_picture(copy / by_id[name].sources[0], "source")
        assert drawn.size == source.size == size
        assert drawn.tobytes() == source.tobytes() == b"\xff" * (3 * 48)


def test_a_damaged_source_does_not_keep_the_others_from_the_judge(tmp_path: Path) -> None:
    copy = standin.write_rededit(tmp_path / "copy", each=2)
    (copy / "redbench/add/add-1.png").write_bytes(b"no picture")
    red = REDEdit(str(copy), version="any", languages=["en"])
    with StubJudge() as judge:
        server = JudgeServer(judge.url)
        out = tmp_path / "out"
        evaluate(str(out), {"red": red}, models={"c": Copier()}, judge=server, steps=["draw", "judge", "score"])
    overall = json.loads((out / "scores.json").read_text())["rededit_en"]["official"]["overall"]
    assert (overall["expected"], overall["scored"], overall["missing"]) == (30, 29, 1)


def test_shards_divide_the_items_and_the_last_one_goes_on(red: REDEdit, tmp_path: Path, capsys) -> None:
    asked = []
    evaluate(
        str(tmp_path), {"red": red}, models={"mine": Blank()}, steps=["draw"]
    )  # another model, of which all is there
    for shard in range(3):
        model = Counting()
        evaluate(str(tmp_path), {"red": red}, models={"mine": model}, steps=["draw"], shard=shard, num_shards=3)
        asked.append(model.asked)
        left = 60 - 20 * (shard + 1)
        told = f"shard {shard} of 3 is done; {left} pictures are left to the others"
        assert (told in capsys.readouterr().out) == (left > 0)
    assert [len(share) for share in asked] == [20, 20, 20]
    assert len({key for share in asked for key in share}) == 60

    # Divided otherwise, or not at all, nothing is drawn twice.
    again = Counting()
    evaluate(str(tmp_path), {"red": red}, models={"mine": again}, steps=["draw"])
    assert again.asked == []


def test_each_process_of_torchrun_takes_a_share_of_its_own(red: REDEdit, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    shares = []
    for shard in range(2):
        for rank in range(2):
            monkeypatch.setenv("RANK", str(rank))
            monkeypatch.setenv("LOCAL_RANK", str(rank))
            model = Counting()
            evaluate(str(tmp_path), {"red": red}, models={"mine": model}, steps=["draw"], shard=shard, num_shards=2)
            shares.append(model.asked)
    assert [len(share) for share in shares] == [15] * 4
    assert len({key for share in shares for key in share}) == 60


def test_a_killed_evaluation_draws_no_more_than_one_picture_twice(copies: Path, tmp_path: Path) -> None:
    begun = tmp_path / "begun.txt"
    command = ["firered_lit", "eval", "--recipe", "recipes/eval/rededit.yaml"]
    command += ["--allow", "slow_copier", f"data={copies / 'rededit'}", f"out={tmp_path / 'out'}", "steps=[draw]"]
    command += [f"models={{slow: {{_target_: slow_copier.SlowCopier, seconds: 0.03, begun: '{begun}'}}}}"]
    command += ["benchmarks.rededit.version=any"]
    log = tmp_path / "said"
    chance = random.Random(5)
    kills = 3
    for kill in range(kills):
        before = len(begun.read_text().splitlines()) if begun.exists() else 0
        process = Started(module, *command, log=log, folder=ROOT)
        wanted = before + chance.randint(3, 12)
        while len(begun.read_text().splitlines() if begun.exists() else []) < wanted:
            assert process.poll() is None, f"ended before kill {kill}"
            time.sleep(0.002)
        time.sleep(chance.uniform(0, 0.03))
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert Started(module, *command, log=log, folder=ROOT).wait(120) == 0, log.read_text()

    # As if it had never been killed.
    red = REDEdit(str(copies / "rededit"), version="any")
    drawing.draw(EvaluationFolder(tmp_path / "whole"), [red], {"slow": Copier()}, 43)
    assert files(tmp_path / "out/pictures") == files(tmp_path / "whole/pictures")
    lines = begun.read_text().splitlines()
    assert 60 <= len(lines) <= 60 + kills
    assert len({tuple(line.split()[1:]) for line in lines}) == 60


def test_pictures_made_elsewhere_are_taken_as_they_are(copies: Path, tmp_path: Path) -> None:
    benchmark = ImgEdit(str(copies / "imgedit"), version="any")
    items = benchmark.items()
    made = tmp_path / "made"
    made.mkdir()
    for item in items[1:]:
        target = copies / "imgedit" / "targets" / item.output
        if item is items[2]:
            Image.open(target).save(made / Path(item.output).with_suffix(".jpg"), quality=80)
        else:
            (made / item.output).write_bytes(target.read_bytes())
    (made / items[3].output).write_bytes(b"half a picture")
    out = EvaluationFolder(tmp_path / "out")
    tally = drawing.draw(out, [benchmark], {"made": Pictures(str(made))}, 43)["made"]
    assert (tally.drawn, tally.failed) == (7, 2)
    lines = drawing.drawn_lines(out, "made")
    assert "no picture" in lines["imgedit", items[0].id][0]["failed"]
    assert "cannot be read as a picture" in lines["imgedit", items[3].id][0]["failed"]
    assert out.picture("made", items[2]).read_bytes() == (made / f"{items[2].id}.jpg").read_bytes()
    assert out.picture("made", items[4]).read_bytes() == (made / items[4].output).read_bytes()

    # A picture that has changed is taken again.
    Image.new("RGB", (9, 9)).save(made / items[4].output)
    drawing.draw(out, [benchmark], {"made": Pictures(str(made))}, 43)
    assert Image.open(out.picture("made", items[4])).size == (9, 9)


def test_pictures_of_two_languages_lie_in_two_folders(copies: Path, red: REDEdit, tmp_path: Path) -> None:
    targets = copies / "rededit" / "targets"
    english = red.items()[0]
    with pytest.raises(UserError, match=r"no picture .*targets/rededit_en/add/add-1\.png"):
        Pictures(str(targets)).draw(english, [], 0)
    named = Pictures({"rededit_en": str(targets)})
    assert named.draw(english, [], 0) == (targets / english.output).read_bytes()
    with pytest.raises(UserError, match="no folder is named for rededit_cn"):
        named.draw(red.items()[-1], [], 0)


def test_planted_models_do_what_they_are_called(red: REDEdit) -> None:
    item = red.items()[0]
    source = Image.open(io.BytesIO(red.sources(item)[0])).convert("RGB")
    assert Copier().draw(item, [source], 1).tobytes() == source.tobytes()
    assert len(Blank().draw(item, [source], 1).getcolors()) == 1
    crops = [RandomCrop().draw(item, [source], seed) for seed in (1, 1, 2)]
    assert {crop.size for crop in crops} == {source.size}
    assert hashlib.sha256(crops[0].tobytes()).digest() == hashlib.sha256(crops[1].tobytes()).digest()
    assert crops[0].tobytes() != crops[2].tobytes() != source.tobytes()


def test_bad_choices_are_refused_before_anything_is_drawn(red: REDEdit, copies: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    cases = {
        r"steps: no step 'drwa'; there are draw, judge": {"steps": ["drwa"]},
        r"model: name one": {"models": {}},
        r"shard=2, num_shards=2": {"shard": 2, "num_shards": 2},
        r"judge\.url: rededit_en, rededit_cn is scored by a judge; give judge\.url": {},
        r"models\.\.\./x: a name is made of letters": {"models": {"../x": Copier()}, "steps": ["draw"]},
        r"nowhere/model: no such folder": {"models": {}, "model": "/nowhere/model", "steps": ["draw"]},
        r"benchmarks\.twice: the id 'rededit_en 1' stands there 2 times": {
            "benchmarks": {"twice": Twice(str(copies / "rededit"), version="any")}
        },
        r"benchmarks\.again: another benchmark has the suite": {
            "benchmarks": {"red": red, "again": REDEdit(str(copies / "rededit"), version="any")}
        },
    }
    for message, changed in cases.items():
        call = {"benchmarks": {"red": red}, "models": {"mine": Copier()}} | changed
        with pytest.raises(UserError, match=message):
            evaluate(str(out), **call)
    assert not (out / "pictures").exists()
