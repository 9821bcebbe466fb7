"""A curation whose shards Daft spreads over a real Ray of two workers: the bytes that processes write."""

import pytest
from raw_annotators import Deadly, Look
from raw_pictures import contents, loose
from support.stub_judge import StubJudge
from test_curation_shared import same
from whole_curation import answer, everything, mixed_table

from datamodules.sources.raw import RawRows
from firered_lit.curation.hashes import Hashes
from firered_lit.curation.run import curate
from firered_lit.errors import UserError


def installed():
    try:
        import daft  # noqa: F401
        import ray  # noqa: F401
    except ImportError:
        return False
    return True


needs_ray = pytest.mark.skipif(
    not installed(), reason="needs Daft and Ray: pip install -c constraints.txt '.[cluster]'"
)


@pytest.mark.skipif(installed(), reason="Daft and Ray are installed")
def test_a_cluster_without_daft_and_ray_is_one_clear_line(tmp_path):
    source = loose(tmp_path / "raw", 2)
    with pytest.raises(UserError, match=r"runner=ray needs Daft and Ray: pip install"):
        curate(str(source), str(tmp_path / "out"), RawRows(str(source)), {"hashes": Hashes()}, runner="ray")


@needs_ray
@pytest.mark.slow
def test_a_cluster_of_two_workers_writes_the_bytes_of_processes(ray_cluster, tmp_path):
    source = mixed_table(tmp_path / "raw", 30)
    with StubJudge(answer) as judge:
        everything(source, tmp_path / "processes", judge.url)
        everything(source, tmp_path / "cluster", judge.url, runner="ray")
    assert same(tmp_path / "processes", tmp_path / "cluster") == []


@needs_ray
@pytest.mark.slow
def test_a_worker_that_is_killed_costs_its_shard_alone(ray_cluster, tmp_path):
    source = loose(tmp_path / "raw", 64)
    options = {"shard_rows": 4, "batch": 1, "steps": ["annotate", "fit", "select", "write"], "workers": 2}

    def run(out, **more):
        annotators = {"hashes": Hashes(), "look": Look(), "deadly": Deadly(str(out), at="0030.jpg", **more)}
        curate(str(source), str(out / "corpus"), RawRows(str(source)), annotators, **options)
        return (out / "seen").read_text().split()

    calm = tmp_path / "calm"
    killed = tmp_path / "killed"
    calm.mkdir()
    killed.mkdir()
    assert sorted(run(calm)) == sorted({*run(calm)})
    options["runner"] = "ray"
    seen = run(killed)
    twice = {name for name in seen if seen.count(name) > 1}
    assert (killed / "died").exists()
    assert twice <= {f"{number:04d}.jpg" for number in range(28, 32)}
    assert contents(calm / "corpus") == contents(killed / "corpus")
