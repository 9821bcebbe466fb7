"""Time from the command to the first training step, against a bare script that imports, opens and loads the same.

    python benchmarks/launch.py [--rounds 5]

Both sides run in fresh processes, taking turns; prints medians and their ratio, and the median time of `--help`.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BARE = """
import sys
import bitsandbytes, lightning, litdata, mlflow, omegaconf, torch, torchmetrics
from diffusers import AutoencoderKLQwenImage, QwenImageTransformer2DModel
from lightning.pytorch.loggers import MLFlowLogger
folder, store = sys.argv[1:]
logger = MLFlowLogger("firered_lit", tracking_uri=f"sqlite:///{store}/mlflow.db", artifact_location=f"file:{store}/a")
logger.log_metrics({"loss": 0.0}, step=0)
transformer = QwenImageTransformer2DModel.from_pretrained(f"{folder}/transformer")
"""


def seconds(command: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    lit = [sys.executable, "-m", "firered_lit"]
    with tempfile.TemporaryDirectory() as scratch:
        source, data = f"{scratch}/source", f"{scratch}/data"
        seconds([sys.executable, "-m", "datamodules.synthetic", "--out", source, "--count", "14"])
        seconds([*lit, "prepare", "--recipe", "recipes/tiny/prepare.yaml", f"source={source}", f"out={data}"])
        folder = subprocess.run(
            [sys.executable, "-c", "from firered_lit.models.tiny import cached_tiny; print(cached_tiny())"],
            cwd=ROOT, check=True, capture_output=True, text=True,
        ).stdout.strip().splitlines()[-1]  # fmt: skip
        times: dict[str, list[float]] = {"help": [], "fit": [], "bare": []}
        for i in range(rounds):
            fit = ["fit", "--recipe", "recipes/tiny/sft.yaml", "--allow", "benchmarks", f"data.root={data}"]
            fit += [f"run.dir={scratch}/fit{i}/run", "callbacks.first={_target_: benchmarks.first_step.FirstStep}"]
            times["fit"].append(seconds([*lit, *fit]))
            store = Path(f"{scratch}/bare{i}")
            store.mkdir()
            times["bare"].append(seconds([sys.executable, "-c", BARE, folder, str(store)]))
            times["help"].append(seconds([*lit, "--help"]))
    for name, values in times.items():
        print(f"{name:<5} median {statistics.median(values):6.2f} s   ({min(values):.2f} to {max(values):.2f})")
    print(f"fit / bare {statistics.median(times['fit']) / statistics.median(times['bare']):.2f}")


if __name__ == "__main__":
    main()
