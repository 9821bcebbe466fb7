"""The same batches on any number of workers and processes, and after any interruption; broken data is one error."""

import io
import json
import os
import shlex
import shutil
import signal
from itertools import islice
from multiprocessing import active_children
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from lightning.pytorch.loops.progress import _BatchProgress
from PIL import Image
from torch import nn

from datamodules.chunks.samples import Sample
from datamodules.edits import EditDataModule, check_data
from datamodules.loading.loader import EditLoader
from datamodules.prepare.parts import Parts, write_json
from datamodules.sampling.buckets import Index
from datamodules.sampling.captions import UNCONDITIONAL, Captions
from firered_lit.config.dialect import parse
from firered_lit.errors import UserError

SHAPES = [(32, 64), (64, 32)]


def png(shape):
    file = io.BytesIO()
    Image.new("RGB", (shape[1], shape[0]), (255, 0, 0)).save(file, "PNG")
    return file.getvalue()


def encoded(i, task, target, references, instructions=("original/en", "original/cn"), held_out=False):
    """A sample as `prepare` writes it, with numbers that say whose they are: target i, reference j i + (j+1)/10."""

    def latents(shape, value):
        return torch.full((16, shape[0] // 8, shape[1] // 8), float(value))

    tensors = {"target": latents(target, i)}
    tensors |= {f"reference.{j}": latents(shape, i + (j + 1) / 10) for j, shape in enumerate(references)}
    tensors |= {f"text.{key}": torch.full((3 + i % 4, 8), float(i)) for key in instructions}
    tensors[f"text.{UNCONDITIONAL}"] = torch.zeros(2, 8)
    meta = {"task": task, "instructions": {key: f"{key} {i}" for key in instructions}, "target": list(target),
            "references": [list(shape) for shape in references], "cluster": "", "held_out": held_out}  # fmt: skip
    names = ["target", *(f"reference.{j}" for j in range(len(references)))]
    images = {name: png(shape) for name, shape in zip(names, [target, *references])} if held_out else {}
    return Sample(f"id{i}", meta, tensors, images)


def references_of(i):
    return i // 2 % 4


def mixed(count=60, held_out=5):
    """0 to 3 references in both shapes, buckets of ragged sizes, then the held-out ones."""
    for i in range(count + held_out):
        n = references_of(i)
        target, references = SHAPES[i % 3 == 0], [SHAPES[(i + j) % 2] for j in range(n)]
        yield encoded(i, ["add", "remove"][i % 5 == 0], target, references, held_out=i >= count)


def write(folder, samples, **header):
    parts = Parts(folder)
    parts.write(0, 1, samples, [])
    parts.finish({"fingerprints": {"vae": "v", "text_encoder": "t"}, "model": "tiny", **header} | {"sizes": {}})
    return folder


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write(tmp_path_factory.mktemp("edits"), mixed())


def loader(root, ranks=1, rank=0, world=1, workers=0, **options):
    """A loader of one process, as the data module makes it for a trainer of `world` processes."""
    data = EditDataModule(str(root), **({"capacity": 64, "workers": workers, "plan_ranks": ranks} | options))
    whole = data.train_dataloader()
    return EditLoader(whole.visits, whole.plan, whole.identity, rank=rank, world=world, workers=workers)


def print_of(batch):
    """Everything in a batch, to compare."""
    text = batch.condition.text
    tensors = [batch.target, *batch.condition.references, text.embeddings]
    tensors += [] if text.mask is None else [text.mask]
    return (batch.step, batch.slots, batch.num_slots, batch.facts,
            [(t.shape, t.dtype, t.double().sum().item(), t.double().std().item()) for t in tensors])  # fmt: skip


def prints(loader, count):
    found = [print_of(batch) for batch in islice(loader, count)]
    loader.close()
    return found


def test_batches_do_not_depend_on_workers(root):
    one = loader(root)
    count = 2 * len(one) + 3
    assert prints(one, count) == prints(loader(root, workers=2), count)


def test_epochs_differ_and_each_shows_every_sample_once(root):
    edits = loader(root)
    epochs = [[i for batch in islice(edits, len(edits)) for i in batch.ids] for _ in range(2)]
    assert epochs[0] != epochs[1]
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(f"id{i}" for i in range(60))


@pytest.mark.parametrize("workers", [0, 2])
def test_resume_at_any_step_goes_on_with_the_same_batches(root, workers):
    """Stopped within an epoch, at its end, and in the third one, with workers that had read ahead."""
    ranks = 2
    straight = loader(root, ranks)
    total = 3 * len(straight) + 4
    expected = prints(straight, total)
    stops = range(0, total, ranks) if workers == 0 else (2, len(straight), 2 * len(straight) + 2)
    for stop in stops:
        first, second = loader(root, ranks, workers=workers), loader(root, ranks, workers=workers)
        before = prints(first, stop)
        state = json.loads(json.dumps(first.state_dict()))
        second.load_state_dict(state)
        assert before + prints(second, min(total, stop + len(straight)) - stop) == expected[: stop + len(straight)], (
            stop
        )


def test_iterating_again_goes_on(root):
    """Lightning asks for an iterator each epoch and never exhausts one."""
    straight, again = loader(root), loader(root)
    expected = prints(straight, 9)
    found = [print_of(b) for _ in range(3) for b in islice(iter(again), 3)]
    assert found == expected


@pytest.mark.parametrize("world", [1, 2, 4])
def test_processes_share_the_same_global_batches(root, world):
    """W processes, each accumulating plan_ranks / W micro-batches, cover what one process covers, slot by slot."""
    ranks = 4
    alone = loader(root, ranks)
    expected, found = {}, {}
    for loaders, seen in (([alone], expected), ([loader(root, ranks, r, world) for r in range(world)], found)):
        for one in loaders:
            for taken, batch in enumerate(islice(one, len(one) + one.share)):
                for slot, facts in zip(batch.slots, batch.facts):
                    assert (batch.step, slot) not in seen
                    seen[batch.step, slot] = facts
                turn = taken % one.share  # accumulation adds a step's micro-batches in the order of the plan's ranks
                assert batch.slots[0] // len(batch) == turn * one.world + one.rank
        assert len({len(one) for one in loaders}) == 1
    assert found == expected
    for step in {step for step, _ in found}:
        slots = sorted(slot for s, slot in found if s == step)
        assert slots == list(range(len(slots)))


def test_all_processes_see_one_bucket_and_one_number_of_samples_a_step(root):
    ranks = [loader(root, 4, rank, 4) for rank in range(4)]
    for batches in zip(*(islice(one, 2 * len(one)) for one in ranks)):
        shapes = {(b.target.shape, tuple(r.shape for r in b.condition.references), b.num_slots) for b in batches}
        assert len(shapes) == 1
        assert len({b.tasks for b in batches}) == 1


def test_a_run_goes_on_with_other_numbers_of_processes(root):
    """Four processes, stopped; then one that accumulates four micro-batches: the same global batches follow."""
    four = [loader(root, 4, rank, 4) for rank in range(4)]
    straight = {(b.step, b.slots): b.ids for one in four for b in islice(one, len(one))}
    stopped = loader(root, 4, 0, 4)
    prints(stopped, 3)
    one = loader(root, 4)
    one.load_state_dict(stopped.state_dict())
    rest = {(b.step, b.slots): b.ids for b in islice(one, 4 * (len(stopped) - 3))}
    assert rest == {key: ids for key, ids in straight.items() if key[0] >= 3}


def test_the_state_is_the_same_on_every_rank_and_holds_no_rows(root):
    ranks = [loader(root, 4, rank, 2) for rank in range(2)]
    for one in ranks:
        prints(one, 6)
    assert ranks[0].state_dict() == ranks[1].state_dict()
    assert (ranks[0].state_dict()["epoch"], ranks[0].state_dict()["step"]) == (0, 3)


def test_a_global_batch_left_in_the_middle_is_done_again(root):
    stopped = loader(root, 4, 0, 2)
    prints(stopped, 3)  # one global batch and a half
    assert stopped.state_dict()["step"] == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": "another"}, "trained on other data"),
        ({"seed": 1}, "data.seed=1, now 0"),
        ({"capacity": 128}, "data.capacity=128, now 64: its batches would not go on; add data.capacity=128"),
        (
            {"plan_ranks": 8},
            "began with 8 micro-batches a step: with 2 processes, set trainer.accumulate_grad_batches=4",
        ),
    ],
)
def test_resume_on_another_plan_is_refused_in_one_line(root, change, message):
    state = loader(root, 2).state_dict() | change
    with pytest.raises(UserError) as error:
        loader(root, 2, 0, 2).load_state_dict(state)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_processes_must_divide_the_plan(root):
    with pytest.raises(UserError, match="plan_ranks=4 cannot be shared by 3"):
        loader(root, 4, 0, 3)


def test_fault_2_a_weight_for_references_that_no_sample_has_is_refused(tmp_path):
    write(tmp_path, [encoded(i, "add", (32, 64), [(32, 64)]) for i in range(4)])
    with pytest.raises(UserError, match="references"):
        loader(tmp_path, weights={"references": {1: 1.0, 3: 1.0}})


def test_fault_4_one_sample_without_references_keeps_the_others_references(root):
    """Each sample comes with exactly its own references, whatever else is in the data."""
    edits, seen = loader(root, capacity=256), {}
    for batch in islice(edits, len(edits)):
        for row, name in enumerate(batch.ids):
            seen[name] = [round(image[row].mean().item() - int(name[2:]), 3) for image in batch.condition.references]
            assert batch.target[row].mean() == int(name[2:])
    assert seen == {f"id{i}": [0.1, 0.2, 0.3][: references_of(i)] for i in range(60)}
    assert any(len(batch) > 1 for batch in islice(edits, len(edits)))


def test_fault_7_one_list_of_shapes_is_true_for_the_whole_batch(root):
    edits, shapes = loader(root, capacity=256), {}
    for bucket in edits.plan.index.buckets:
        for position in edits.plan.index.positions[bucket.start : bucket.start + bucket.count]:
            shapes[edits.visits.chunks.read(int(position)).id] = bucket.target, bucket.references
    for batch in islice(edits, len(edits)):
        images = [batch.target, *batch.condition.references]
        held = tuple((image.shape[-2] * 8, image.shape[-1] * 8) for image in images)
        assert {shapes[name] for name in batch.ids} == {(held[0], held[1:])}
        assert batch.tokens <= 256


def test_fault_7_an_index_that_lies_about_shapes_is_refused(tmp_path):
    samples = [encoded(0, "add", (32, 64), []), encoded(1, "add", (32, 64), [])]
    write(tmp_path, [samples[0], Sample("id1", samples[1].meta, encoded(1, "add", (64, 32), []).tensors, {})])
    with pytest.raises(UserError, match=r"other shapes than its bucket"):
        next(iter(loader(tmp_path)))


def test_fault_10_small_buckets_do_not_vanish(root):
    """More ranks than most buckets have samples: in some epochs every sample comes, and each epoch has equal steps."""
    edits = loader(root, 8)
    seen = {name for batch in islice(edits, 12 * len(edits)) for name in batch.ids}
    assert seen == {f"id{i}" for i in range(60)}


def test_captions_follow_their_weights():
    draw = Captions({"original": 1.0, "structured": 3.0}, {"en": 1.0, "cn": 4.0}, 0.1).draw
    there = {
        f"{kind}/{language}": "" for kind in ("original", "structured", "instructive") for language in ("en", "cn")
    }
    found = [draw(there, 0, 0, slot) for slot in range(4000)]
    share = {key: found.count(key) / 4000 for key in {*found}}
    assert share == pytest.approx(
        {UNCONDITIONAL: 0.1, "original/en": 0.045, "original/cn": 0.18, "structured/en": 0.135, "structured/cn": 0.54},
        abs=0.025,
    )


def test_captions_fall_back_on_what_a_sample_has():
    captions = Captions({"structured": 1.0}, {"en": 1.0}, 0.0)
    assert captions.draw({"original/cn": "x"}, 0) == "original/cn"


def test_captions_are_drawn_anew_each_visit_and_the_same_for_the_same_visit(root):
    def texts(seed):
        edits = loader(root, seed=seed, max_batch=1, text_drop=0.3)
        epochs = [islice(edits, len(edits)) for _ in range(2)]
        return [{one.id: one.instruction for one in b.facts} for epoch in epochs for b in epoch]

    first, again, other = texts(0), texts(0), texts(1)
    assert first == again != other
    by_id = {}
    for visit in first:
        for name, text in visit.items():
            by_id.setdefault(name, []).append(text)
    assert sum(a != b for a, b in by_id.values()) > 10
    assert 0.2 < sum(text == "" for pair in by_id.values() for text in pair) / 120 < 0.4


def test_dropped_text_is_the_unconditional_embedding(root):
    batch = next(iter(loader(root, text_drop=1.0)))
    assert batch.condition.text.embeddings.shape[1] == 2
    assert not batch.condition.text.embeddings.any()
    assert {one.instruction for one in batch.facts} == {""}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"captions": {"structured": 1.0}}, "no sample has 'structured'; there is original"),
        ({"languages": {"fr": 1.0}}, "no sample has 'fr'; there is cn, en"),
        ({"text_drop": 1.5}, "probability"),
        ({"captions": {"original": 0.0}}, "not all of them 0"),
    ],
)
def test_captions_that_cannot_be_are_refused_at_once(root, options, message):
    with pytest.raises(UserError, match=message):
        EditDataModule(str(root), capacity=64, **options)


@pytest.mark.parametrize("captions", [{"original": 0.1, "structured": 0.3, "instructive": 0.6}, {"structured": 1.0}])
def test_the_remedy_for_captions_that_the_data_lacks_is_one_word_of_a_shell_and_is_taken(root, captions):
    """Data with plain instructions alone, under a recipe of the report's three kinds."""
    with pytest.raises(UserError, match=r"there is original: set 'data.captions=\{original: ") as error:
        EditDataModule(str(root), capacity=64, captions=captions)
    assert "structured" in str(error.value)
    key, _, value = shlex.split(str(error.value).partition(": set ")[2])[0].partition("=")
    assert key == "data.captions"
    taken = EditDataModule(str(root), capacity=64, captions=parse(value, "message")).captions
    assert set(taken.kinds) == {"original"}


def test_a_sample_larger_than_the_capacity_is_refused(root):
    says = r"data\.capacity=16: sample 'id\d+', as all .* has 32 tokens; data.capacity=32 takes"
    with pytest.raises(UserError, match=says):
        loader(root, capacity=16)


def broken(root, folder):
    """A copy whose chunk is cut short."""
    shutil.copytree(root, folder)
    chunk = next((folder / "chunks").glob("*.bin"))
    chunk.write_bytes(chunk.read_bytes()[:-1])
    return folder, chunk


@pytest.mark.parametrize("workers", [0, 1])
def test_a_corrupt_chunk_is_one_error_that_names_chunk_and_sample(root, tmp_path, workers):
    folder, chunk = broken(root, tmp_path / "copy")
    with pytest.raises(UserError) as error:
        next(iter(loader(folder, workers=workers)))
    assert f"{chunk}: sample " in str(error.value)
    assert "\n" not in str(error.value)


def test_a_worker_that_dies_is_one_error_that_names_chunk_and_sample(root):
    edits = loader(root, workers=1)
    others = active_children()
    batches = iter(edits)
    next(batches)
    assert "torch" not in str(getattr(signal.getsignal(signal.SIGCHLD), "__module__", ""))
    (worker,) = set(active_children()) - set(others)
    os.kill(worker.pid, signal.SIGKILL)
    with pytest.raises(UserError) as error:
        list(islice(batches, 50))
    assert "a data worker died at step" in str(error.value)
    assert "part-00000-0.bin: sample " in str(error.value)
    assert "\n" not in str(error.value)


def test_loading_draws_nothing_from_the_global_random_state(root):
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    prints(loader(root, workers=1), 3)
    assert torch.equal(torch.rand(3), expected)


class FakeBase:
    """A base of a folder, of which only the name and the fingerprints are known."""

    name = "b"

    def __init__(self, fingerprints):
        self.fingerprint = fingerprints.__getitem__

    def origin(self, part):
        return None


def test_data_of_other_models_and_unfinished_data_are_refused(root, tmp_path):
    assert check_data(root)["samples"] == 65
    same = FakeBase({"vae": "v", "text_encoder": "t"})
    other = FakeBase({"vae": "v", "text_encoder": "u"})
    EditDataModule(str(root), capacity=64).check(same)
    with pytest.raises(UserError, match="another text_encoder than that of b"):
        EditDataModule(str(root), capacity=64).check(other)
    with pytest.raises(UserError, match="holds no data"):
        EditDataModule(str(tmp_path), capacity=64)
    write_json(tmp_path / "prepare.json", {})
    with pytest.raises(UserError, match="not finished"):
        EditDataModule(str(tmp_path), capacity=64)


def test_held_out_edits_come_one_by_one_with_what_they_are_judged_by(root):
    batches = list(EditDataModule(str(root), capacity=64, held_out_max=3).val_dataloader())
    assert len({batch.ids for batch in batches}) == 3
    for batch in batches:
        i = int(batch.ids[0][2:])
        assert i >= 60
        assert batch.facts[0].instruction == f"original/en {i}"
        assert batch.pixels.shape == (1, 3, batch.target.shape[-2] * 8, batch.target.shape[-1] * 8)
        assert batch.pixels[0, :, 0, 0].tolist() == [1, -1, -1]
        assert len(batch.sources) == len(batch.condition.references) == references_of(i)
        assert not batch.unconditional.embeddings.any()
        assert batch.weight.tolist() == [1]


def test_ranks_validate_equally_often_and_nothing_twice(root):
    whole = EditDataModule(str(root), capacity=64).val_dataloader()
    ranks = [type(whole)(whole.chunks, whole.positions, rank, 2) for rank in range(2)]
    assert [len(one) for one in ranks] == [3, 3]
    weights = [(batch.ids, batch.weight.item()) for one in ranks for batch in one]
    assert len(weights) == 6
    assert sorted(ids for ids, weight in weights if weight) == sorted((f"id{i}",) for i in range(60, 65))


class Recorder(L.LightningModule):
    """A model that learns nothing but notes what it is shown."""

    def __init__(self):
        super().__init__()
        self.layer, self.seen, self.validated = nn.Linear(1, 1), [], 0

    def training_step(self, batch, _):
        self.seen.append(print_of(batch))
        return self.layer(batch.target.mean().view(1, 1)).sum()

    def validation_step(self, batch, _):
        self.validated += 1

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


def train(root, folder, steps, ckpt_path=None, workers=2, **options):
    model = Recorder()
    trainer = L.Trainer(
        default_root_dir=str(folder), accelerator="cpu", max_steps=steps, accumulate_grad_batches=2, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        use_distributed_sampler=False, **options,
    )  # fmt: skip
    data = EditDataModule(str(root), capacity=64, workers=workers)
    trainer.fit(model, datamodule=data, ckpt_path=ckpt_path, weights_only=True if ckpt_path else None)
    trainer.save_checkpoint(folder / f"{steps}.ckpt")
    return model, trainer


def test_lightning_resumes_exactly_with_accumulation_and_workers_over_epochs(root, tmp_path):
    """Stopped in the first epoch, at its end and in the third: what follows is what would have followed."""
    steps = len(loader(root, 2)) // 2
    total = 3 * steps + 2
    straight, trainer = train(root, tmp_path, total)
    assert (trainer.global_step, len(straight.seen)) == (total, 2 * total)
    assert [seen[0] for seen in straight.seen] == [i // 2 for i in range(2 * total)]
    for stop in (3, steps, 2 * steps + 1):
        before, _ = train(root, tmp_path, stop)
        after, resumed = train(root, tmp_path, total, tmp_path / f"{stop}.ckpt")
        assert before.seen + after.seen == straight.seen
        assert resumed.global_step == trainer.global_step


def test_validation_comes_and_changes_nothing(root, tmp_path):
    straight, _ = train(root, tmp_path, 6, workers=0)
    model, _ = train(root, tmp_path, 6, workers=0, val_check_interval=4, check_val_every_n_epoch=None)
    assert model.validated == 2 + 3 * 5  # the sanity check's, then all held-out ones
    assert model.seen == straight.seen


def test_nothing_held_out_means_no_validation(tmp_path):
    write(tmp_path / "data", mixed(30, held_out=0))
    model, trainer = train(tmp_path / "data", tmp_path, 3, workers=0)
    assert (model.validated, trainer.global_step) == (0, 3)


def test_lightning_counts_are_those_of_the_new_number_of_processes(root):
    """Four processes did 5 steps of one micro-batch each; one process continues at its 20th."""

    progress = _BatchProgress()
    loop = SimpleNamespace(epoch_loop=SimpleNamespace(batch_progress=progress))
    data = EditDataModule(str(root), capacity=64)
    data.trainer = SimpleNamespace(world_size=1, fit_loop=loop)
    for behind in (0, 1):  # saved between epochs, saved at the end of a batch that is not yet counted as complete
        progress.current.ready, progress.current.completed = 5, 5 - behind
        progress.total.ready, progress.total.completed = 12, 12 - behind
        data._rescale(4)
        assert (progress.current.ready, progress.current.completed) == (20, 20 - behind)
        assert (progress.total.ready, progress.total.completed) == (48, 48 - behind)


def test_only_the_train_split_is_trained_on(root):
    assert len(Index.open(root / "index" / "train")) == 60
    assert len(Index.open(root / "index" / "held_out")) == 5


def test_slots_count_the_samples_of_the_whole_global_batch(root):
    """Strata are laid over all of a step's samples, whoever holds them."""
    ranks = [loader(root, 4, rank, 2) for rank in range(2)]
    for parts in islice(zip(*ranks, *ranks), 10):  # a rank's two micro-batches of a step, and the other's
        slots = sorted(slot for part in parts for slot in part.slots)
        assert len({part.step for part in parts}) == 1
        assert slots == list(range(parts[0].num_slots))
        assert {part.num_slots for part in parts} == {sum(map(len, parts))}
    for edits in ranks:
        edits.close()


def test_the_samples_of_a_batch_draw_their_captions_each_by_itself(root):
    """By (seed, step, slot): two samples of a batch show different languages half of the time."""
    edits, shown = loader(root, capacity=256), []
    for batch in islice(edits, 60):
        for facts, slot in zip(batch.facts, batch.slots):
            number = facts.id.removeprefix("id")
            keys = {f"original/{language}": f"original/{language} {number}" for language in ("en", "cn")}
            drawn = edits.visits.captions.draw(keys, edits.visits.seed, batch.step, slot)
            assert facts.instruction == keys.get(drawn, "")
        languages = {one.instruction.split()[0] for one in batch.facts if one.instruction}
        shown += [len(languages) == 2] if len(batch) > 1 else []
    edits.close()
    assert len(shown) > 20
    assert sum(shown) > 0.3 * len(shown)
