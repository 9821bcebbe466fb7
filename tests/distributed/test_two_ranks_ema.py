"""The running average on two real processes: DDP, resume, and shards of FSDP2."""

import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).with_name("two_ranks_ema.py")


def test_averages_of_two_ranks(tmp_path) -> None:
    environment = {k: v for k, v in os.environ.items() if k not in ("LOCAL_RANK", "WORLD_SIZE", "NODE_RANK")}
    environment |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(SCRIPT), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=200)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert "rank 0: all right" in said
    assert "rank 1: all right" in said
