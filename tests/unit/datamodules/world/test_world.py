"""The learning world: deterministic, split by combination, scored exactly."""

import json
from collections import defaultdict
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest

from datamodules.references.prompt import find
from datamodules.sources.records import Record, read
from datamodules.world.families import FAMILIES, WorldEdit
from datamodules.world.phrases import KINDS
from datamodules.world.sample import edit, held_out
from datamodules.world.scene import Scene, Thing, draw
from datamodules.world.write import write
from firered_lit.rewards.correctness import CorrectnessTerms, score

EACH = 24


def pixels(scene: Scene) -> np.ndarray:
    return np.asarray(draw(scene)).astype(float) / 255


def judged(sample: WorldEdit, output: np.ndarray, read=None) -> CorrectnessTerms:
    face, sources = sample.target.face, [pixels(scene) for scene in sample.sources]
    landmarks = np.array(face.landmarks) if face else None
    facts = {"landmarks": landmarks, "target_text": sample.target_text, "read": read}
    return score(output, pixels(sample.target), sources, sample.task, **facts)


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def samples(request) -> list[WorldEdit]:
    return [edit(0, number, families=(request.param,)) for number in range(EACH)]


def test_the_target_is_right_also_with_noise(samples: list[WorldEdit]) -> None:
    rng = np.random.default_rng(0)
    for sample in samples:
        target = pixels(sample.target)
        assert judged(sample, target).correct
        noisy = judged(sample, np.clip(target + rng.normal(0, 10 ** (-28 / 20), target.shape), 0, 1))
        assert noisy.correct, noisy.terms


def test_a_copy_of_a_source_is_wrong(samples: list[WorldEdit]) -> None:
    for sample in samples:
        for source in sample.sources:
            assert not judged(sample, pixels(source)).correct, sample.texts["original/en"]


def test_the_answer_of_another_sample_is_wrong(samples: list[WorldEdit]) -> None:
    """Of the same family; where two samples ask for the same picture, both may be right."""
    for sample, other in zip(samples, [*samples[1:], samples[0]]):
        output, target = pixels(other.target), pixels(sample.target)
        if np.abs(output - target).mean() > 0.02:
            assert not judged(sample, output).correct, (sample.texts["original/en"], other.texts["original/en"])


def test_the_answer_to_another_family_is_wrong(samples: list[WorldEdit]) -> None:
    """The same scene, edited as another family would: the things gone, the ground white, or all of it grey."""
    for sample in samples:
        scene = sample.sources[0]
        for spoiled in (Scene("white"), Scene("black"), Scene(scene.background), Scene("purple", scene.things)):
            if np.abs(pixels(spoiled) - pixels(sample.target)).mean() > 0.02:
                assert not judged(sample, pixels(spoiled)).correct


def test_samples_are_the_same_every_time_and_differ_by_seed_and_number() -> None:
    for number in range(len(FAMILIES)):
        sample = edit(3, number)
        assert sample == edit(3, number)
        assert np.array_equal(pixels(sample.target), pixels(edit(3, number).target))
        assert sample not in (edit(4, number), edit(3, number + len(FAMILIES)))


def test_held_out_combinations_are_never_trained_on() -> None:
    trained, kept = (
        {(e.task, e.combination) for e in (edit(0, n, split) for n in range(450))} for split in ("train", "held_out")
    )
    assert len(trained) > 250
    assert len(kept) > 50
    assert not trained & kept
    assert not any(held_out(edit(seed, n)) for seed in (1, 2) for n in range(60))


def test_both_languages_and_all_kinds_of_caption_ask_for_the_same_thing() -> None:
    phrasings = defaultdict(set)
    for number in range(300):
        sample = edit(0, number)
        assert sorted(sample.texts) == sorted(KINDS.values())
        for key, text in sample.texts.items():
            assert "{" not in text
            assert key.endswith("cn") == any("\u4e00" <= letter <= "\u9fff" for letter in text)
            if sample.target_text:
                assert sample.target_text in text
                assert sample.replaced_text in text
            if sample.task == "compose":
                mentioned = {value for mention in find(text, len(sample.sources)) for value in mention.values}
                assert mentioned == set(range(1, len(sample.sources) + 1)), text
        phrasings[sample.task].add(sample.texts["original/en"].split()[0])
    assert sum(len(words) > 1 for words in phrasings.values()) > 10


def quadrant(thing: Thing) -> str:
    return f"{'bottom' if thing.y > 32 else 'top'} {'right' if thing.x > 32 else 'left'}"


def test_what_moves_keeps_its_spot_in_the_quadrant_that_is_named() -> None:
    for number in range(60):
        sample = edit(0, number, families=("motion",))
        ((old,), (new,)) = (set(a.things) - set(b.things) for a, b in permutations((sample.sources[0], sample.target)))
        assert quadrant(new) == sample.combination[2] != quadrant(old)
        assert (new.x % 32, new.y % 32, new.size) == (old.x % 32, old.y % 32, old.size)


def test_parts_of_a_composition_go_where_they_are_asked_to_and_most_lie_there() -> None:
    there = []
    for number in range(120):
        sample = edit(0, number, families=("compose",))
        put = [thing for thing in sample.target.things if f"at the {quadrant(thing)}" in sample.texts["original/en"]]
        assert len(put) == len(sample.sources) - 1 == len(sample.target.things) - 1
        there += [any(thing in scene.things for scene in sample.sources) for thing in put]
    assert 0.65 < sum(there) / len(there) < 0.95


def test_words_are_scored_as_they_are_read() -> None:
    sample = next(e for e in (edit(0, n, families=("text",)) for n in range(9)) if e.replaced_text)
    target = pixels(sample.target)
    assert judged(sample, target, lambda picture: sample.target_text.lower()).correct
    wrong = judged(sample, target, lambda picture: sample.replaced_text)
    assert wrong.terms["words"] == 0
    assert not wrong.correct


def test_a_face_that_moved_is_wrong() -> None:
    sample = edit(0, 0, families=("beauty",))
    target = pixels(sample.target)
    assert (
        judged(sample, np.roll(target, 3, axis=1)).terms["landmarks"] < 0.5 <= judged(sample, target).terms["landmarks"]
    )


def test_rows_say_what_the_scorers_and_the_losses_need(tmp_path: Path) -> None:
    write(tmp_path, 30)
    write(tmp_path, 15, split="held_out")
    tables = [
        (path.parent, line) for path in tmp_path.glob("*/edits.jsonl") for line in path.read_text("utf-8").splitlines()
    ]
    rows = [json.loads(line) | {"folder": folder} for folder, line in tables]
    assert sum(row["held_out"] for row in rows) == 15
    assert {row["folder"].name for row in rows} == set(FAMILIES)
    for row in rows:
        task, sources = row["folder"].name, row["source_image"]
        assert isinstance(sources, list) == (task == "compose")
        assert all((row["folder"] / row[name]).exists() for name in ("target_image", "mask"))
        assert ("target_text" in row) == (task == "text")
        assert ("reference_captions" in row) == (task == "compose")
        if task in ("portrait", "beauty"):
            assert len(row["regions"][0]["points"]) == 5


def test_prepare_reads_every_row_with_all_it_says(tmp_path: Path) -> None:
    write(tmp_path, 15)
    write(tmp_path, 15, split="held_out")
    records = list(read(tmp_path))
    assert all(isinstance(record, Record) for record in records)
    assert sum(record.held_out for record in records) == 15
    for record in records:
        assert sorted(record.instructions) == sorted(KINDS.values())
        assert record.held_out == record.id.startswith("held_out")


def test_held_out_is_true_or_false(tmp_path: Path) -> None:
    row = {"source_image": "a.png", "target_image": "b.png", "instruction": "x", "held_out": "yes"}
    (tmp_path / "edits.jsonl").write_text(json.dumps(row), encoding="utf-8")
    (refusal,) = read(tmp_path / "edits.jsonl")
    assert (refusal.field, refusal.reason) == ("held_out", "wrong type")
