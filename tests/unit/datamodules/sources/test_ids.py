"""A set of ids finds every id again, in memory that does not grow with it."""

import subprocess
import sys

from datamodules.sources.ids import Ids

MEASURE = """
from pathlib import Path
from datamodules.sources.ids import Ids

def resident():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024

ids, at = Ids(), []
for i in range(600_000):
    assert ids.add(f"id {i}")
    if i in (300_000, 599_999):
        at.append(resident())
assert not any(ids.add(f"id {i}") for i in range(0, 600_000, 50_003))
print(at[1] - at[0])
"""


def test_every_id_is_new_once():
    ids, names = Ids(), [f"id {i}" for i in range(20_000)]
    assert all(map(ids.add, names))
    assert not any(map(ids.add, names))
    assert len(ids) == len(names)
    assert ids.add("another")
    assert ids.add("half a letter \ud800")
    assert not ids.add("half a letter \ud800")
    assert Ids().add("another")


def test_twice_as_many_ids_take_no_more_memory(root):
    out = subprocess.run([sys.executable, "-c", MEASURE], cwd=root, capture_output=True, text=True, check=True).stdout
    assert float(out) < 4
