"""Mining from the command line: the tiny model, real rewards; killed and gone on with; what it makes is trained on."""

import base64
import json
import signal
import statistics
import threading
from collections.abc import Callable
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from PIL import Image

from datamodules import synthetic
from datamodules.preferences import PreferenceDataModule
from datamodules.prepared import Prepared
from datamodules.prompts import PromptDataModule
from datamodules.sources.records import read
from firered_lit.checkpoints.checkpoint import newest
from firered_lit.cli import main
from firered_lit.config import build, recipe
from firered_lit.draws import chooser

SEMI_HARD = ["mine", "--recipe", "recipes/tiny/mine_semi_hard.yaml"]
QUICK = ["task.draws=2", "task.steps=1"]
THREE = ["task.draws=3", "task.steps=2"]


def band(least_mean: float) -> str:
    return f"task.band={{_target_: firered_lit.mine.spread.Band, least_mean: {least_mean}, most_low: 1, least_std: 0}}"


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def prepare(source: Path, out: Path, *more: str) -> Path:
    made = ["prepare", "--recipe", "recipes/tiny/prepare.yaml", f"source={source}", f"out={out}", *more]
    assert main(made) == 0
    return out


@pytest.fixture(scope="module")
def mined(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six samples mined by the base, the better half kept with their pictures."""
    out = tmp_path_factory.mktemp("mined") / "out"
    options = [*SEMI_HARD, f"task.data.root={world}", f"out={out}", "task.data.limit=6", *THREE]
    assert main([*options, band(0)]) == 0
    means = [row["reward"]["mean"] for row in lines(out / "manifest.jsonl")]
    assert main([*options, band(statistics.median(means)), "task.pictures=true"]) == 0
    return out


def test_every_sample_has_a_line_with_every_reward_and_a_verdict(mined: Path) -> None:
    rows = lines(mined / "manifest.jsonl")
    assert [row["number"] for row in rows] == list(range(6))
    half = statistics.median(row["reward"]["mean"] for row in rows)
    for row in rows:
        values = row["rewards"]["pixel"]["values"]
        assert len(values) == len(set(values)) == row["reward"]["valid"] == 3
        assert row["reward"]["mean"] == pytest.approx(sum(values) / 3)
        assert row["reward"]["std"] > 0
        assert row["kept"] == (row["reward"]["mean"] >= half)
        assert row["why"] == ("semi-hard" if row["kept"] else "too hard")
        assert row["instruction"]
        assert row["task"]
    assert json.loads((mined / "mined.json").read_text())["kept"] == sum(row["kept"] for row in rows) == 3


def test_an_edits_noise_is_keyed_by_seed_sample_and_number(world: Path, tmp_path: Path) -> None:
    """The decoder's picture of the same noise would be the same: two samples of one shape get different ones."""
    task = build.build(recipe.load(SEMI_HARD[2], [f"task.data.root={world}", *QUICK, "out=x"]).root["task"])
    task.open(tmp_path)
    _, batch = task.data[0]
    first, again = task.draw(batch), task.draw(batch)
    assert torch.equal(first, again)
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first, task.draw(replace(batch, facts=(replace(batch.facts[0], id="other"),))))
    task.seed += 1
    assert not torch.equal(first, task.draw(batch))
    task.seed, task.capacity = 0, batch.tokens
    torch.testing.assert_close(task.draw(batch), first, atol=1e-4, rtol=0)  # one edit a forward
    task.draws = 3
    torch.testing.assert_close(task.draw(batch)[:2], first, atol=1e-4, rtol=0)


def test_prepare_reads_what_was_kept(mined: Path, tmp_path: Path) -> None:
    data = prepare(mined / "kept.jsonl", tmp_path / "data", "held_out=0")
    kept = {row["id"] for row in lines(mined / "manifest.jsonl") if row["kept"]}
    assert {row.id for row in read(mined / "kept.jsonl")} == kept
    assert json.loads((data / "data.json").read_text())["samples"] == len(kept)


def test_reinforcement_draws_from_what_was_kept_alone(mined: Path, world: Path, tmp_path: Path) -> None:
    kept = {row["id"] for row in lines(mined / "manifest.jsonl") if row["kept"]}
    stream = iter(PromptDataModule(str(world), groups=1, workers=0, mined=str(mined)).train_dataloader())
    drawn = [next(stream).groups[0].ids[0] for _ in range(2 * len(kept))]
    assert set(drawn) == kept
    everything = iter(PromptDataModule(str(world), groups=1, workers=0).train_dataloader())
    assert {next(everything).groups[0].ids[0] for _ in range(27)} > kept
    run = ["fit", "--recipe", "recipes/tiny/nft.yaml", f"data.root={world}", f"data.mined={mined}", "logger=null"]
    run += [f"run.dir={tmp_path / 'run'}", "trainer.max_steps=1", "run.validate_every=null", "data.workers=0"]
    assert main([*run, "callbacks.progress=null", "stage.group_size=2", "stage.rollout_steps=1", "data.groups=1"]) == 0


def test_other_data_and_unfinished_mining_are_refused(mined: Path, world: Path, tmp_path: Path, capfd) -> None:
    run = ["fit", "--recipe", "recipes/tiny/nft.yaml", f"data.root={world}", f"run.dir={tmp_path / 'run'}"]
    (tmp_path / "mined").mkdir()
    assert main([*run, f"data.mined={tmp_path / 'mined'}"]) == 2
    assert "not a finished folder" in capfd.readouterr().err
    (tmp_path / "mined" / "mined.json").write_text('{"data": "other"}')
    assert main([*run, f"data.mined={tmp_path / 'mined'}"]) == 2
    assert "mined from other data" in capfd.readouterr().err


def test_another_band_needs_no_new_edits(mined: Path, world: Path, capfd) -> None:
    before = {path: path.read_bytes() for path in (mined / "found").iterdir()}
    options = ["task.data.limit=6", *THREE, band(0)]
    assert main([*SEMI_HARD, f"task.data.root={world}", f"out={mined}", *options]) == 0
    assert "kept            6 of 6 samples" in capfd.readouterr().out
    assert {path: path.read_bytes() for path in (mined / "found").iterdir()} == before
    assert main([*SEMI_HARD, f"task.data.root={world}", f"out={mined}", *options, "task.steps=3"]) == 2
    assert "made with another steps (2, now 3)" in capfd.readouterr().err


def test_killed_and_gone_on_with_nothing_is_lost_repeated_or_changed(world: Path, tmp_path: Path, launch) -> None:
    """Two processes share the work; one of them is killed by SIGKILL. Draws are keyed, so the manifest is the same."""
    straight, shared = tmp_path / "straight", tmp_path / "shared"
    given = [*SEMI_HARD, f"task.data.root={world}", "task.data.limit=18", *QUICK, band(0)]
    assert main([*given, f"out={straight}"]) == 0
    killed = launch(*given, f"out={shared}", "shard=0", "num_shards=2")
    found = shared / "found" / "0.jsonl"
    killed.until(lambda: found.exists() and found.read_bytes().count(b"\n") >= 2)
    killed.send(signal.SIGKILL)
    killed.wait()
    done = found.read_bytes().count(b"\n")
    assert done < 9, "killed too late to show anything"
    assert main([*given, f"out={shared}", "shard=1", "num_shards=2"]) == 0
    assert not (shared / "manifest.jsonl").exists()
    assert main([*given, f"out={shared}", "shard=0", "num_shards=2"]) == 0
    numbers = [row["number"] for path in (shared / "found").iterdir() for row in lines(path)]
    assert sorted(numbers) == list(range(18))
    assert (shared / "manifest.jsonl").read_bytes() == (straight / "manifest.jsonl").read_bytes()


def test_the_model_that_draws_is_the_runs_own(world: Path, tmp_path: Path) -> None:
    run = ["fit", "--recipe", "recipes/tiny/sft_lora.yaml", f"data.root={world}", f"run.dir={tmp_path / 'run'}"]
    run += ["trainer.max_steps=2", "stage.optimizer.lr=1e-1", "logger=null", "run.validate_every=null"]
    assert main([*run, "callbacks.progress=null", "callbacks.ema=null", "data.workers=0"]) == 0
    assert newest(tmp_path / "run")
    means = {}
    for name, start in {"base": "null", "run": str(tmp_path / "run")}.items():
        given = [*SEMI_HARD, f"task.data.root={world}", f"task.start_from={start}", "task.data.limit=2", *QUICK]
        assert main([*given, f"out={tmp_path / f'by_{name}'}", "task.band.least_mean=0", "task.band.least_std=0"]) == 0
        means[name] = [row["reward"]["mean"] for row in lines(tmp_path / f"by_{name}" / "manifest.jsonl")]
    assert all(a != b for a, b in zip(means["base"], means["run"]))


@pytest.fixture(scope="module")
def galleries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Requests with their true edits, and what an expert (a folder) and a base (a table) made of them."""
    folder = tmp_path_factory.mktemp("galleries")
    synthetic.write(folder / "world", 14)
    (folder / "expert").mkdir()
    (folder / "base").mkdir()
    listed = []
    for number in range(14):
        sample = synthetic.edit(0, number)
        true, name = synthetic.draw(sample.target), f"0-{number:05d}"
        spoiled = synthetic.draw(synthetic.spoiled(chooser("spoiled", number), sample))
        Image.blend(true, spoiled, 0.05).save(folder / "expert" / f"{name}.png")
        Image.blend(true, spoiled, 0.9).save(folder / "expert" / f"{name}_0.png")
        spoiled.save(folder / "base" / f"{number}.png")
        listed.append({"id": name, "image": f"base/{number}.png"})
    listed.append({"id": "0-00001", "image": "base/none.png"})
    (folder / "base.jsonl").write_text("".join(json.dumps(row) + "\n" for row in listed))
    return folder


def test_pairs_are_mined_prepared_and_trained_on(galleries: Path, tmp_path: Path, capfd) -> None:
    out = galleries / "pairs"
    given = ["mine", "--recipe", "recipes/tiny/mine_preferences.yaml", f"out={out}"]
    given += [f"task.candidates.requests={galleries / 'world'}"]
    given += [f"task.candidates.experts={{expert: {galleries / 'expert'}}}"]
    given += [f"task.candidates.base={{base: {galleries / 'base.jsonl'}}}"]
    given += ["task.rule={_target_: firered_lit.mine.pairs.MixPolicy, win: 0.9, lose: 1, margin: 0.001, most: 2}"]
    assert main(given) == 0
    said = capfd.readouterr().out
    pairs, manifest = lines(out / "pairs.jsonl"), lines(out / "manifest.jsonl")
    assert f"pairs    {len(pairs):>8}" in said
    assert "1 pictures that cannot be read" in said
    assert len(manifest) == 14
    assert all(len(row["candidates"]) == 3 for row in manifest)
    assert len(pairs) >= 10
    for row in pairs:
        name = row["id"].rpartition(".")[0]
        assert Path(row["chosen_image"]).stem == name
        assert (row["chosen_from"], row["rejected_from"]) == ("expert", "base")
        assert row["chosen_reward"] - row["rejected_reward"] == pytest.approx(row["gap"])
        assert (out / row["chosen_image"]).exists()
        assert (out / row["rejected_image"]).exists()
    data = prepare(out / "pairs.jsonl", tmp_path / "data", "held_out=0")
    content = json.loads((data / "data.json").read_text())
    assert content["pairs"] == content["samples"] == len(pairs)
    module = PreferenceDataModule(str(data), capacity=2048, workers=0)
    assert torch.isfinite(next(iter(module.train_dataloader())).loser).all()
    assert gone_on_with(out, ("pairs.jsonl", "manifest.jsonl"), lambda: main(given)) == 14 - 5


def gone_on_with(out: Path, results: tuple[str, ...], again: Callable[[], int]) -> int:
    """Cut what was found in its fifth line from the end, as a kill does, and go on: the same bytes. Lines kept."""
    (found,) = (out / "found").iterdir()
    before = {name: (out / name).read_bytes() for name in results}
    kept = found.read_bytes().splitlines(keepends=True)
    found.write_bytes(b"".join(kept[:-5]) + kept[-5][:20])
    for name in results:
        (out / name).unlink()
    assert again() == 0
    assert {name: (out / name).read_bytes() for name in results} == before
    return sum(line in kept[:-5] for line in found.read_bytes().splitlines(keepends=True))


def test_of_two_pictures_that_obey_the_better_looking_one_wins(galleries: Path, tmp_path: Path) -> None:
    """Looks are the judge's alone: they weigh nothing in whether a picture does what was asked."""
    out, judge = tmp_path / "pairs", "callbacks.judge.local.LocalVLM, model: tiny, max_tokens: 4, area: 12544"
    given = ["mine", "--recipe", "recipes/tiny/mine_preferences.yaml", f"out={out}"]
    given += [f"task.candidates.requests={galleries / 'world' / 'color' / 'edits.jsonl'}"]
    given += [f"task.candidates.experts={{expert: {galleries / 'expert'}}}", "task.candidates.base={}"]
    given += [f"task.rewards.looks={{_target_: callbacks.rewards.judge.JudgeReward, judge: {{_target_: {judge}}}}}"]
    given += [
        "task.rewards.looks.prompt=aesthetic",
        "task.rewards.looks.name=looks",
        "task.weights={pixel: 1, looks: 0}",
    ]
    rule = "task.rule={_target_: firered_lit.mine.pairs.VisualEnhancement, by: looks, win: 0, margin: 1e-9, least: "
    assert main([*given, f"{rule}0.5}}"]) == 0
    pairs, manifest = lines(out / "pairs.jsonl"), lines(out / "manifest.jsonl")
    assert len(pairs) == len(manifest) == 2
    for row, line in zip(pairs, manifest):
        looks = {Path(c["image"]).name: c["rewards"]["looks"] for c in line["candidates"]}
        assert all(c["reward"] == c["rewards"]["pixel"] for c in line["candidates"])
        best, worst = (max(looks, key=looks.get), min(looks, key=looks.get))
        assert (Path(row["chosen_image"]).name, Path(row["rejected_image"]).name) == (best, worst)
    assert main([*given, f"{rule}1.0}}"]) == 0
    assert lines(out / "pairs.jsonl") == [], "neither obeys"


WRONG = {
    "task.rewards=null": "rewards",
    "task.candidates.experts=null": "experts: expected Mapping[str, str], got empty",
    "task.candidates.base={base: nowhere}": "neither a folder of pictures nor a table",
    "task.weights={ocr: 1.0}": "name each reward once",
    "task.candidates.requests=nowhere.jsonl": "no such file or folder",
}


@pytest.mark.parametrize("setting", WRONG)
def test_what_cannot_be_mined_is_one_line(setting: str, galleries: Path, tmp_path: Path, capfd) -> None:
    given = ["mine", "--recipe", "recipes/tiny/mine_preferences.yaml", f"out={tmp_path / 'out'}"]
    given += [f"task.candidates.requests={galleries / 'world'}", "task.candidates.base={}"]
    given += [f"task.candidates.experts={{expert: {galleries / 'expert'}}}", setting]
    assert main(given) == 2
    error = capfd.readouterr().err.strip().splitlines()
    assert WRONG[setting] in error[-1]


class Writer(ThreadingHTTPServer):
    """An OpenAI-compatible server that evolves requests; `mood` says how."""

    daemon_threads = True

    def __init__(self) -> None:
        self.mood, self.asked = "good", []
        super().__init__(("127.0.0.1", 0), Answer)
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()


class Answer(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        *pictures, text = body["messages"][0]["content"]
        self.server.asked.append((text["text"], len(pictures), body["seed"]))
        for picture in pictures:
            assert base64.b64decode(picture["image_url"]["url"].partition(",")[2]).startswith(b"\x89PNG")
        if self.server.mood == "down":
            self.send_error(500)
            return
        atomic = text["text"].split("\n\n")[1].strip()
        count = int(text["text"].partition("exactly ")[2].split()[0])
        parts = [atomic, *(f"Add a lamp number {i}" for i in range(1, count))]
        said = json.dumps({"operations": parts, "instruction": " and then ".join(parts)})
        if self.server.mood == "odd" and "background" in atomic:
            said = "No, thank you."
        data = json.dumps({"choices": [{"message": {"content": said}}]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def writer(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = Writer()
    yield server
    server.shutdown()
    server.server_close()


def evolve(source: Path, out: Path, server: Writer, *more: str) -> int:
    node = f"_target_: callbacks.judge.server.Server, url: 'http://127.0.0.1:{server.server_port}/v1', model: m"
    given = ["mine", "--recipe", "recipes/mine_evolution.yaml", f"task.requests.source={source}", f"out={out}"]
    return main([*given, f"task.writer={{{node}, retries: 0}}", *more])


def test_requests_are_evolved_refusals_counted_and_the_rest_asked_again(galleries, tmp_path, writer, capfd) -> None:
    out, world = galleries / "evolved", galleries / "world"
    writer.mood = "down"
    assert evolve(world, out, writer) == 0
    assert "no answer      12 requests; run again" in capfd.readouterr().out
    writer.mood, writer.asked = "odd", []
    assert evolve(world, out, writer) == 0
    said = capfd.readouterr().out
    assert "evolved        10 of 14" in said
    assert "4 no JSON object" in said  # two requests, two tries each
    assert "2 no source image" in said
    assert len({seed for _, _, seed in writer.asked}) == len(writer.asked) == 14
    rows = lines(out / "evolved.jsonl")
    for row in rows:
        assert row["requirement"] == "; ".join(row["operations"])
        assert len(row["operations"]) in (2, 3)
        assert row["prompt_hash"]
    assert {len(row["operations"]) for row in rows} == {2, 3}
    written = list(read(out / "evolved.jsonl"))
    assert [record.id for record in written] == [row["id"] for row in rows]
    assert all(Path(path).exists() for record in written for path in record.references)
    writer.asked = []
    assert evolve(world, out, writer) == 0
    assert writer.asked == []
    assert gone_on_with(out, ("evolved.jsonl",), lambda: evolve(world, out, writer)) >= 14 - 5
    assert 0 < len(writer.asked) < 10, "five requests, two tries each at most"
    data = Prepared(str(prepare(out / "evolved.jsonl", tmp_path / "data", "held_out=0")))
    line, batch = data[0]
    assert len(data) == 10
    assert batch.pixels is None
    asked = next(row["requirement"] for row in rows if row["id"] == line["id"])
    assert line["requirement"] == batch.facts[0].requirement == asked
    (tmp_path / "kept.jsonl").write_text(json.dumps(line | data.pictures(0, tmp_path)) + "\n")
    (again,) = read(tmp_path / "kept.jsonl")
    assert (again.id, again.requirement, again.target) == (line["id"], line["requirement"], "")


def test_the_local_model_is_asked_too(galleries: Path, tmp_path: Path, capfd) -> None:
    """The tiny model has only noise to say: every answer is refused and counted."""
    table = galleries / "world" / "color" / "edits.jsonl"
    given = ["mine", "--recipe", "recipes/tiny/mine_evolution.yaml", f"task.requests.source={table}"]
    assert main([*given, f"out={tmp_path / 'out'}"]) == 0
    said = capfd.readouterr().out
    assert "evolved         0 of 2 requests" in said
    assert "2 no JSON object" in said
