"""Ragged buckets on 2 and 4 gloo processes: no rank waits for another, all take the same number of steps."""

import json
import sys
from datetime import timedelta
from itertools import islice
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "unit" / "datamodules"))
from test_edits import loader, mixed, write

SECONDS = 60  # that a rank waits for the others before it is an error


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write(tmp_path_factory.mktemp("edits"), mixed())


def epoch(root, folder, rank, world, seed, workers):
    """One rank: every step, its gradient is summed with the others', and all say what they were shown."""
    torch.set_num_threads(1)
    meeting = f"file://{folder}/meeting"
    dist.init_process_group(
        "gloo", init_method=meeting, rank=rank, world_size=world, timeout=timedelta(seconds=SECONDS)
    )
    edits = loader(root, 2 * world, rank, world, workers=workers, seed=seed)
    weight, steps, shown = torch.ones(1, requires_grad=True), 0, []
    for batch in islice(edits, len(edits)):
        (weight * batch.target.mean()).sum().backward()
        dist.all_reduce(weight.grad)
        images = (batch.target, *batch.condition.references)
        steps += 1
        shown.append((batch.step, batch.num_slots, [list(image.shape) for image in images], list(batch.ids)))
    edits.close()
    (Path(folder) / f"{rank}.json").write_text(json.dumps([steps, weight.grad.item(), shown]))
    dist.destroy_process_group()


def launch(root, folder, world, seed, workers=0):
    """What every rank says of an epoch. A rank that hangs or fails is an error."""
    folder.mkdir()
    context = get_context("fork")
    ranks = [context.Process(target=epoch, args=(root, folder, rank, world, seed, workers)) for rank in range(world)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(2 * SECONDS)
    codes = [process.exitcode for process in ranks]
    for process in ranks:
        process.kill()
    assert codes == [0] * world
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(world)]


def check(found, world):
    assert len({steps for steps, *_ in found}) == 1
    assert len({gradient for _, gradient, _ in found}) == 1
    taken = 0
    for turn in zip(*(shown for *_, shown in found), strict=True):
        assert len({(step, slots, json.dumps(shapes)) for step, slots, shapes, _ in turn}) == 1
        names = [name for *_, ids in turn for name in ids]
        assert len(names) == turn[0][1] // 2  # half of the global batch, which is two micro-batches on every rank
        taken += len(names)
    assert taken >= 60  # with those that small buckets repeat


@pytest.mark.parametrize(("world", "workers"), [(2, 1), (4, 0)])
def test_ranks_take_the_same_steps(root, tmp_path, world, workers):
    for seed in range(2):
        check(launch(root, tmp_path / str(seed), world, seed, workers), world)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("world", [2, 4])
def test_a_hundred_runs_never_hang(root, tmp_path, world):
    lengths = {launch(root, tmp_path / str(seed), world, seed)[0][0] for seed in range(100)}
    assert len(lengths) == 1
