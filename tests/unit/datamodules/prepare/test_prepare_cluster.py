"""A `prepare` whose parts Daft spreads over a real Ray of two workers: the bytes that one process writes."""

import pytest
from prepare_readers import DeadlyReader
from test_curation_cluster import installed, needs_ray
from test_shards import WORLD, with_texts
from test_write import files_of, make, world

from firered_lit.errors import UserError


@pytest.mark.skipif(installed(), reason="Daft and Ray are installed")
def test_prepare_without_daft_and_ray_is_one_clear_line(tmp_path):
    with pytest.raises(UserError, match=r"runner=ray needs Daft and Ray: pip install"):
        make(world(tmp_path / "w", 2), tmp_path / "out", runner="ray")


@needs_ray
@pytest.mark.slow
def test_a_worker_that_is_killed_costs_its_part_alone(ray_cluster, tmp_path):
    """The bytes and counts of one process, though a worker was killed at a row of part 5."""
    source = with_texts(tmp_path / "w", 32, bad=[4])

    def run(name, **options):
        folder = tmp_path / name
        folder.mkdir()
        reader = DeadlyReader(folder, "text 21", "the worker")
        out = make(source, folder / "out", max_refused=0.1, reader=reader, **WORLD, **options)
        return out, (folder / "seen").read_text().splitlines()

    alone, seen = run("alone")
    assert len(seen) == 31
    spread, seen = run("spread", runner="ray")
    assert (tmp_path / "spread" / "died").exists()
    assert {text for text in seen if seen.count(text) > 1} <= {f"text {number}" for number in range(20, 24)}
    assert files_of(spread) == files_of(alone)


@needs_ray
@pytest.mark.slow
def test_refusals_of_all_workers_count_together(ray_cluster, tmp_path):
    source = with_texts(tmp_path / "w", 8, bad=[1, 6])
    with pytest.raises(UserError, match=r"2 of 8 rows refused, more than max_refused=0\.2"):
        make(source, tmp_path / "out", max_refused=0.2, runner="ray", **WORLD)
    assert len((tmp_path / "out" / "refused.jsonl").read_text().splitlines()) == 2
