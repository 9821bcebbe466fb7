"""The plan of global batches: properties over many indexes, each broken once by hand to see its test fail."""

import pickle
import subprocess
import sys
from collections import Counter, OrderedDict, defaultdict
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodules.sampling.buckets import BatchPlan, Index, IndexRow, write_index
from firered_lit.errors import UserError

SIDES = [32, 64, 96]
KINDS = [("add", ()), ("add", (64,)), ("remove", (32,)), ("remove", (64, 32)), ("text", (96,))]


def make_index(folder, counts, clusters=("",)):
    """`counts[i]` rows of kind i, in random order on disk; row r of a bucket has cluster r % len(clusters)."""
    rows = [
        IndexRow(task, (64, SIDES[i % 3]), tuple((64, side) for side in references), 0, clusters[r % len(clusters)])
        for i, ((task, references), count) in enumerate(zip(KINDS, counts))
        for r in range(count)
    ]
    order = np.random.default_rng(0).permutation(len(rows))
    write_index(folder, (rows[i]._replace(position=p) for p, i in enumerate(order)))
    return Index.open(folder)


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    return make_index(tmp_path_factory.mktemp("index"), [1500, 211, 97, 5, 1], ["a", "a", "a", "b", "a", "c"])


def epoch_of(plan, epoch):
    return [plan[epoch, step] for step in range(plan.steps(epoch))]


PLANS = {
    "counts": st.lists(st.sampled_from([0, 1, 2, 5, 17, 64, 130, 1300]), min_size=5, max_size=5).filter(any),
    "capacity": st.integers(40, 700),
    "ranks": st.integers(1, 9),
    "seed": st.integers(0, 5),
    "max_batch": st.sampled_from([None, 1, 3]),
    "left_out": st.sampled_from([0, 0.01, 0.1, 0.6]),
}


@settings(deadline=None, max_examples=60)
@given(epoch=st.integers(0, 3), **PLANS)
def test_an_epoch_is_one_pass_in_pure_disjoint_batches(
    tmp_path_factory, epoch, counts, capacity, ranks, seed, max_batch, left_out
):
    index = make_index(tmp_path_factory.mktemp("index"), counts)
    shared = {"seed": seed, "max_batch": max_batch, "left_out": left_out}
    plan = BatchPlan(index, capacity=capacity, plan_ranks=ranks, **shared)
    shown = np.zeros(len(index), int)
    for bucket, ids in epoch_of(plan, epoch):
        assert len(ids) == ranks
        assert len({len(i) for i in ids}) == 1
        assert 1 <= len(ids[0]) <= (max_batch or capacity)
        assert len(ids[0]) * bucket.tokens <= capacity
        rows = np.concatenate(ids)
        assert ((rows >= bucket.start) & (rows < bucket.start + bucket.count)).all()
        assert len(set(rows.tolist())) == min(len(rows), bucket.count)
        np.add.at(shown, rows, 1)
    left = plan.left_out(epoch)
    assert set(np.flatnonzero(shown == 0)) == set(left.rows.tolist())
    assert (np.maximum(shown - 1, 0)).sum() == left.repeated
    assert all((shown[b.start : b.start + b.count] > 1).sum() < ranks for b in index.buckets)
    assert left.share == len(left.rows) / len(index) <= left_out
    assert shown.sum() == sum(len(ids[0]) * ranks for _, ids in epoch_of(plan, epoch))


def test_a_bucket_gives_full_batches_and_one_smaller(index):
    plan = BatchPlan(index, capacity=130, plan_ranks=4, seed=0, left_out=0)
    sizes = defaultdict(list)
    for bucket, ids in epoch_of(plan, 0):
        sizes[bucket].append(len(ids[0]))
    for bucket, got in sizes.items():
        whole, rest = divmod(-(-bucket.count // 4), 130 // bucket.tokens)
        assert got == [130 // bucket.tokens] * whole + [rest] * bool(rest)


def test_the_emptiest_last_batches_are_left_out(tmp_path):
    """Of 14, 9 and 1 rows after a bucket's last full batch, 1 % of all leaves room for 16."""
    index = make_index(tmp_path, [16 * 40 + 14, 16 * 50 + 9, 16 * 10 + 1])
    plan = BatchPlan(index, capacity=1000, plan_ranks=4, seed=0, max_batch=4)
    assert [line.batches for line in plan.table()] == [41, 50, 10]
    left = np.searchsorted([b.start for b in index.buckets], plan.left_out(0).rows, "right") - 1
    assert np.bincount(left, minlength=3).tolist() == [0, 9, 1]


def test_every_row_comes_at_least_every_other_epoch(tmp_path):
    index = make_index(tmp_path, [0, 211, 97])
    plan = BatchPlan(index, capacity=130, plan_ranks=7, seed=0, left_out=0.2)
    left = [set(plan.left_out(epoch).rows.tolist()) for epoch in range(40)]
    assert all(left)
    assert not any(a & b for a, b in pairwise(left))
    assert len(set.union(*left)) > 3 * max(map(len, left))  # goes on to others, not back and forth


def test_buckets_with_fewer_rows_than_ranks_come_as_often_as_the_others(tmp_path):
    """They would fill every rank by showing their rows many times; a steady number of them shows in each epoch."""
    counts = [1 + i % 15 for i in range(60)]
    rows = [IndexRow(f"task {i:02}", (64, 64), (), 0) for i, count in enumerate(counts) for _ in range(count)]
    rows += [IndexRow("large", (64, 64), (), 0)] * 64_000
    write_index(tmp_path, (row._replace(position=i) for i, row in enumerate(rows)))
    index = Index.open(tmp_path)
    plan, shown = BatchPlan(index, capacity=16 * 8, plan_ranks=16, seed=0), Counter()
    steps = []
    for epoch in range(200):
        left, there = plan.left_out(epoch), plan.passes.shown(epoch)
        assert 0 < len(left.rows) < 0.01 * len(index)
        shown.update(np.flatnonzero(there).tolist())
        steps.append(int((plan.batches * there).sum()))
        if epoch < 3:
            assert Counter(bucket for bucket, _ in epoch_of(plan, epoch)).total() == plan.steps()
    assert set(steps) == {plan.steps()}
    for number, bucket in enumerate(index.buckets):
        often = min(1, bucket.count / 16)
        assert shown[number] / 200 == pytest.approx(often, rel=0.04, abs=0.01)
        assert plan.table()[number].often == pytest.approx(often, rel=0.04)


@pytest.mark.slow
def test_a_million_rows_on_64_ranks_leave_out_under_1_percent(tmp_path):
    """Nine shapes, four tasks, no to three references: what was left out in other ways of cutting was 1.05 %."""
    random, shapes = np.random.default_rng(0), [(64 * a, 64 * b) for a in (1, 2, 3) for b in (1, 2, 3)]
    cells = random.choice(144, 1_000_000, p=random.dirichlet(np.full(144, 2.0))).tolist()
    rows = (
        IndexRow(f"task{c % 4}", shapes[c // 16], (shapes[c // 16],) * (c // 4 % 4), i) for i, c in enumerate(cells)
    )
    write_index(tmp_path, rows)
    plan = BatchPlan(Index.open(tmp_path), capacity=12 * 144, plan_ranks=64, seed=0)
    for epoch in range(5):
        left = plan.left_out(epoch)
        assert left.share < 0.01
        assert left.repeated < 0.005 * left.total


def test_epochs_and_seeds_differ_in_schedule_and_in_samples(index):
    def orders(plan, epoch):
        batches = epoch_of(plan, epoch)
        return [bucket.start for bucket, _ in batches], np.concatenate([ids[0] for _, ids in batches]).tolist()

    plan, other = (BatchPlan(index, capacity=130, plan_ranks=2, seed=seed) for seed in (0, 1))
    for a, b in zip(orders(plan, 0), orders(plan, 1)):
        assert a != b
    for a, b in zip(orders(plan, 0), orders(other, 0)):
        assert a != b


WEIGHTS = [None, {"task": {"add": 1, "remove": 2, "text": 0}}, {"cluster": "uniform"}]


@pytest.mark.parametrize("weights", WEIGHTS)
def test_a_batch_is_a_pure_function_of_its_address(index, weights):
    """In any order, in a fresh object, after pickling."""
    make = lambda: BatchPlan(index, capacity=130, plan_ranks=3, seed=5, weights=weights)  # noqa: E731
    plan, addresses = make(), [(epoch, step) for epoch in (0, 1, 7) for step in range(make().steps())]
    expected = {at: [ids.tolist() for ids in plan[at][1]] for at in addresses}
    np.random.default_rng(0).shuffle(addresses)
    fresh, pickled = make(), pickle.loads(pickle.dumps(plan))
    for at in map(tuple, addresses):
        assert [ids.tolist() for ids in fresh[at][1]] == expected[at]
        assert [ids.tolist() for ids in pickled[at][1]] == expected[at]


@pytest.mark.parametrize("weights", WEIGHTS)
def test_another_process_plans_the_same(index, weights, root):
    code = (
        "from datamodules.sampling.buckets import *\n"
        f"p = BatchPlan(Index.open({str(index.folder)!r}), capacity=130, plan_ranks=3, seed=5, weights={weights!r})\n"
        "print([[i.tolist() for i in p[e, s][1]] for e in (0, 2) for s in (3, 1)])\n"
        "import sys; assert 'torch' not in sys.modules, 'the plan must not wait for torch'"
    )
    out = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    plan = BatchPlan(index, capacity=130, plan_ranks=3, seed=5, weights=weights)
    assert out.stdout.strip() == str([[i.tolist() for i in plan[e, s][1]] for e in (0, 2) for s in (3, 1)])


def draws_of(plan, batches):
    steps = plan.steps()
    return [plan[divmod(t, steps)] for t in range(batches)]


@pytest.mark.parametrize(
    "weights",
    [
        {"task": {"add": 1, "remove": 6, "text": 1}},
        {"references": {"0": 0.2, 1: 0.5, 2: 0.3}},
        {"task": {"add": 0.6, "remove": 0.3, "text": 0.1}, "references": {0: 0.2, 1: 0.5, 2: 0.3}},
        {"cluster": "uniform"},
        {"cluster": {"a": 8, "b": 1, "c": 1}, "task": {"add": 1, "remove": 1, "text": 0}},
    ],
)
def test_sample_frequencies_are_the_weights_within_2_percent_over_10000_batches(index, weights):
    plan = BatchPlan(index, capacity=130, plan_ranks=8, seed=2, weights=weights)
    cluster_of = np.empty(len(index), int)
    starts = [*index.columns["segment_start"].tolist(), len(index)]
    for a, b, cluster in zip(starts, starts[1:], index.columns["segment_cluster"].tolist()):
        cluster_of[index.columns["by_cluster"][a:b]] = cluster
    seen: dict[str, Counter] = {"task": Counter(), "references": Counter(), "cluster": Counter()}
    for bucket, ids in draws_of(plan, 10_000):
        rows = np.concatenate(ids)
        seen["task"][bucket.task] += len(rows)
        seen["references"][len(bucket.references)] += len(rows)
        seen["cluster"].update(dict(zip("abc", np.bincount(cluster_of[rows], minlength=3).tolist())))
    for margin, wanted in weights.items():
        wanted = {"a": 1, "b": 1, "c": 1} if wanted == "uniform" else wanted
        for value, weight in wanted.items():
            value = int(value) if margin == "references" else value
            got = seen[margin][value] / seen[margin].total()
            assert got == pytest.approx(weight / sum(wanted.values()), rel=0.02, abs=1e-9), (margin, value)


def test_with_weights_a_bucket_shows_all_its_rows_before_one_comes_again(index):
    plan = BatchPlan(index, capacity=130, plan_ranks=4, seed=2, weights={"task": {"add": 1, "remove": 6, "text": 1}})
    streams = defaultdict(list)
    for bucket, ids in draws_of(plan, 4000):
        streams[bucket].extend(np.concatenate(ids).tolist())
    for bucket, rows in streams.items():
        turn = 4 * plan.per_rank[index.buckets.index(bucket)]  # of 4 ranks; a pass may leave out its last batch
        turns = [rows[i : i + turn] for i in range(0, len(rows) - turn, turn)]
        assert len(turns) > 2
        for part in turns:
            first, again = part[: bucket.count], part[bucket.count :]
            assert len(again) < 4
            assert len(set(part)) == min(len(part), bucket.count)
            assert len(set(first)) >= len(first) - len(again)  # those of the pass's last batch
        assert set(rows) == set(range(bucket.start, bucket.start + bucket.count))


def test_with_clusters_each_shows_all_its_rows_before_one_comes_again(index):
    plan = BatchPlan(index, capacity=130, plan_ranks=4, seed=2, weights={"cluster": "uniform"})
    streams = defaultdict(list)
    for bucket, ids in draws_of(plan, 2000):
        streams[bucket.start].extend(np.concatenate(ids).tolist())
    starts = [*index.columns["segment_start"].tolist(), len(index)]
    for a, b in pairwise(starts):
        segment = set(index.columns["by_cluster"][a:b].tolist())
        bucket = next(bucket for bucket in index.buckets if bucket.start <= a < bucket.start + bucket.count)
        rows = [row for row in streams[bucket.start] if row in segment]
        turns = [rows[i : i + b - a] for i in range(0, len(rows), b - a)]
        assert len(turns) > 1
        assert all(len(set(part)) == len(part) for part in turns)
        assert b - a < 8 or turns[0] != turns[1]
        assert set(rows) == segment


@pytest.mark.parametrize(
    ("weights", "says"),
    [
        (
            {"references": {0: 1, 1: 1, 2: 1, 3: 1}},
            "weights.references.3: the data holds no such rows; it holds 0, 1, 2",
        ),
        ({"task": {"ad": 1}}, "it holds add, remove, text \\(did you mean add\\?\\)"),
        ({"task": {"add": 1, "remove": 1}}, "passes over text: give a weight, 0 to leave"),
        ({"task": {"add": 0, "remove": 0, "text": 0}}, "all weights are 0"),
        ({"task": {"add": -1, "remove": 0, "text": 0}}, "a number from 0 up"),
        ({"task": {"add": float("nan"), "remove": 0, "text": 0}}, "a number from 0 up"),
        ({"task": 3}, "give 'uniform' or a weight for each of add, remove, text"),
        ({"tasks": {"add": 1}}, "weights.tasks: weights are by .*did you mean task"),
        ({"task": {"add": 0, "remove": 1, "text": 0}, "references": {0: 1, 1: 1, 2: 1}}, "together with the other"),
    ],
)
def test_authors_fault_2_weights_without_data_are_refused_and_do_not_loop(index, weights, says):
    with pytest.raises(UserError, match=says) as error:
        BatchPlan(index, capacity=130, plan_ranks=2, seed=0, weights=weights)
    assert "\n" not in str(error.value)


def test_cluster_weights_on_data_without_clusters_are_refused(tmp_path):
    with pytest.raises(UserError, match="carry no clusters"):
        BatchPlan(make_index(tmp_path, [5, 5]), capacity=130, plan_ranks=2, seed=0, weights={"cluster": "uniform"})


def test_authors_fault_10_small_buckets_do_not_vanish(index):
    plan = BatchPlan(index, capacity=10_000, plan_ranks=8, seed=0)
    there = [{bucket for bucket, _ in epoch_of(plan, epoch)} for epoch in range(10)]
    assert set.union(*there) == set(index.buckets)
    for epoch, seen in enumerate(there):
        gone = {row for b in set(index.buckets) - seen for row in range(b.start, b.start + b.count)}
        assert gone <= set(plan.left_out(epoch).rows.tolist())
    everything = BatchPlan(index, capacity=10_000, plan_ranks=8, seed=0, left_out=0)
    assert {bucket for bucket, _ in epoch_of(everything, 0)} == set(index.buckets)
    assert everything.left_out(0).repeated == (8 - 5) + (8 - 1) + -1500 % 8 + -211 % 8 + -97 % 8
    assert sum(line.samples for line in plan.table()) == len(index)


def test_a_bucket_over_the_capacity_is_refused_with_its_shape(index):
    with pytest.raises(UserError, match=r"capacity=31: bucket add 64x64 <- 64x64 has 32 tokens a sample; capacity=40 "):
        BatchPlan(index, capacity=31, plan_ranks=1, seed=0)


def test_no_ranks_no_rows_and_no_such_step_are_refused(index, tmp_path):
    with pytest.raises(UserError, match="plan_ranks=0"):
        BatchPlan(index, capacity=130, plan_ranks=0, seed=0)
    write_index(tmp_path, [])
    with pytest.raises(UserError, match="holds no rows"):
        BatchPlan(Index.open(tmp_path), capacity=130, plan_ranks=1, seed=0)
    plan = BatchPlan(index, capacity=130, plan_ranks=1, seed=0)
    for at in [(0, plan.steps()), (0, -1), (-1, 0)]:
        with pytest.raises(IndexError):
            plan[at]


def test_the_table_counts_batches_tokens_and_waste(index):
    plan = BatchPlan(index, capacity=130, plan_ranks=4, seed=0)
    for line in plan.table():
        assert line.batch * line.tokens / 130 == pytest.approx(1 - line.waste)
        assert line.batch <= -(-line.samples // 4)  # what a bucket cannot fill is not promised
        assert line.often < 1 or line.batches == sum(bucket == line.bucket for bucket, _ in epoch_of(plan, 0))
    assert sum(line.share for line in plan.table()) == pytest.approx(1)


def test_an_epoch_fetches_each_chunk_about_once(tmp_path):
    """Ranks with room for a few chunks each: fetched over used at most 1.2, where a global shuffle fetches 30 times."""
    sizes = np.random.default_rng(0).integers(20, 60, 600).tolist()
    rows = (IndexRow("abc"[min(2, i * 4 // sum(sizes))], (64, 64), (), i) for i in range(sum(sizes)))
    write_index(tmp_path, rows, chunks=sizes)
    index = Index.open(tmp_path)
    plan = BatchPlan(index, capacity=16 * 5, plan_ranks=4, seed=0)
    chunk_of = np.repeat(np.arange(len(sizes)), sizes)[index.positions]
    caches = [OrderedDict() for _ in range(4)]
    fetched = 0
    for _, ids in epoch_of(plan, 0):
        for cache, own in zip(caches, ids):
            for chunk in chunk_of[own].tolist():
                fetched += sizes[chunk] * (chunk not in cache)
                cache[chunk] = None
                cache.move_to_end(chunk)
                if len(cache) > 3 * 12:  # per bucket: about 256 rows of a window in chunks of 40, and what is ahead
                    cache.popitem(last=False)
    assert fetched / sum(sizes) < 1.2


def test_neighbours_on_disk_do_not_stay_neighbours(tmp_path):
    write_index(tmp_path, (IndexRow("a", (64, 64), (), i) for i in range(40_000)), chunks=[40] * 1000)
    plan = BatchPlan(Index.open(tmp_path), capacity=16 * 8, plan_ranks=4, seed=0)
    chunks = [len(set((np.concatenate(ids) // 40).tolist())) for _, ids in epoch_of(plan, 0)]
    assert np.mean(chunks) > 18  # of 32 samples; read in order they would come from 1 or 2 chunks


def test_epochs_differ_in_the_order_of_chunks_and_inside_them(tmp_path):
    write_index(tmp_path, (IndexRow("a", (64, 64), (), i) for i in range(40_000)), chunks=[40] * 1000)
    plan = BatchPlan(Index.open(tmp_path), capacity=16 * 8, plan_ranks=1, seed=0)
    rows = [np.concatenate([np.concatenate(ids) for _, ids in epoch_of(plan, epoch)]) for epoch in (0, 1)]
    chunks = [set((order[:1000] // 40).tolist()) for order in rows]
    assert len(chunks[0] & chunks[1]) < 10
    steps = [np.where(np.diff(order // 40) == 0, np.diff(order), 99) for order in rows]  # inside a chunk
    same = (steps[0] == steps[1]) & (steps[0] != 99)
    assert same.mean() < 0.02
