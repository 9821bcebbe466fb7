"""The running average on two real processes: DDP, resume, and shards of FSDP2."""

import os
from pathlib import Path

from warm import Started, script

SCRIPT = Path(__file__).with_name("two_ranks_ema.py")


def test_averages_of_two_ranks(tmp_path) -> None:
    environment = {k: v for k, v in os.environ.items() if k not in ("LOCAL_RANK", "WORLD_SIZE", "NODE_RANK")}
    environment |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    log = tmp_path / "said"
    with Started(script, SCRIPT, str(tmp_path), log=log, environment=environment) as process:
        code = process.wait(200)
    said = log.read_text()
    assert code == 0, said
    assert "rank 0: all right" in said
    assert "rank 1: all right" in said
