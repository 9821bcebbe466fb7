"""Digests of what the tiny recipes make, to show that a change of the code changes no number.

    python benchmarks/hashes.py record FILE       # before the change
    python benchmarks/hashes.py check FILE        # after it; names what differs, and exits with 1

Held: the prepared folders, every tensor of the checkpoint that each training recipe writes after a few steps, the
numbers that it logs, an export, an edited picture, and the table of a mining. A digest is of one machine and one set of
library versions: record and check on the same.
"""

import argparse
import contextlib
import csv
import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", MLFLOW_DISABLE_TELEMETRY="true")

QUICK = ["callbacks.progress=null", "callbacks.throughput=null", "data.workers=0", "run.validate_every=2"]
SMALL = ["stage.group_size=3", "stage.rollout_steps=2", "data.groups=2"]  # of reinforcement learning

# prepared folder -> its source and its recipe
PREPARED = {
    "edits": ("edits", "tiny/prepare"),
    "words": ("words", "tiny/prepare"),
    "pairs": ("pairs/pairs.jsonl", "tiny/prepare"),
    "world": ("words", "world/prepare"),
}

# recipe -> the data that it reads, its training steps, further overrides
TRAINED: dict[str, tuple[str, int, list[str]]] = {
    "tiny/pretrain": ("edits", 4, []),
    "tiny/continued_pretrain": ("edits", 4, []),
    "tiny/sft": ("edits", 4, []),
    "tiny/sft_consistency": ("edits", 3, []),
    "tiny/sft_lora": ("edits", 4, ["stage.backbone.lora.dropout=0.1"]),
    "tiny/dpo": ("pairs", 4, []),
    "tiny/dpo_lora": ("pairs", 4, []),
    "tiny/nft": ("edits", 3, SMALL),
    "tiny/nft_lora": ("edits", 3, SMALL),
    "tiny/nft_consistency": ("edits", 2, SMALL),
    "tiny/nft_judge": ("edits", 2, SMALL),
    "tiny/nft_ocr": ("words", 2, SMALL),
    "world/sft": ("", 3, ["trainer.devices=1", "trainer.strategy=auto", "data.batch=4"]),
    "world/nft": ("world", 2, [*SMALL, "trainer.devices=1", "trainer.strategy=auto", "stage.schedule=null"]),
}
HELD = ("state_dict", "optimizer_states", "lr_schedulers", "guard", "global_step", "callbacks")  # of a checkpoint
VOLATILE = ("run.json", "log.txt")  # hold a time of day


def main() -> int:
    """Record the digests, or hold them against a record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=("record", "check"))
    parser.add_argument("file", type=Path)
    parser.add_argument("--only", nargs="+", metavar="RECIPE", help="these recipes alone, as in tiny/sft")
    arguments = parser.parse_args()

    recorded = json.loads(arguments.file.read_text()) if arguments.verb == "check" else {}
    digests: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for name, found in everything(Path(scratch), arguments.only):
            digests[name] = found
            verdict = "recorded" if arguments.verb == "record" else "as it was"
            if arguments.verb == "check" and recorded.get(name) != found:
                verdict = "differs"
            print(f"{name:32} {found}  {verdict}", flush=True)

    if arguments.verb == "record":
        arguments.file.write_text(json.dumps(digests, indent=1, sort_keys=True) + "\n")
        print(f"{len(digests)} digests written to {arguments.file}")
        return 0

    same = [name for name, found in digests.items() if recorded.get(name) == found]
    unseen = [] if arguments.only else sorted(recorded.keys() - digests.keys())
    print(f"{len(same)} of {len(digests) + len(unseen)} digests are as recorded")
    return 0 if len(same) == len(digests) and not unseen else 1


def everything(scratch: Path, only: list[str] | None) -> Iterator[tuple[str, str]]:
    """Run every command on small data, and yield the name and the digest of each thing that it makes."""
    from datamodules.synthetic import FAMILIES, reword, write, write_pairs

    chosen = {name: row for name, row in TRAINED.items() if not only or name in only}
    needed = {name for name, _, _ in chosen.values()}

    # Data.
    write(scratch / "sources" / "edits", 28)
    write(scratch / "sources" / "words", 14, families=(reword, *FAMILIES))
    write_pairs(scratch / "sources" / "pairs", 12)
    data = {name: scratch / "data" / name for name in PREPARED}
    for name, (source, recipe) in PREPARED.items():
        if name in needed:
            command("prepare", recipe, f"source={scratch / 'sources' / source}", f"out={data[name]}")
            yield f"prepared/{name}", of_folder(data[name], scratch)

    # Training.
    for recipe, (name, steps, overrides) in chosen.items():
        run = scratch / "runs" / recipe
        log = scratch / "logs" / recipe
        root = [f"data.root={data[name]}"] if name else []
        logger = f"logger={{_target_: lightning.pytorch.loggers.CSVLogger, save_dir: {log}}}"
        length = [f"trainer.max_steps={steps}", "trainer.log_every_n_steps=1", "checkpoint.every=1"]
        command("fit", recipe, *root, *QUICK, *length, *overrides, logger, f"run.dir={run}")
        yield f"weights/{recipe}", of_checkpoint(run)
        yield f"logged/{recipe}", of_log(log)
    if only:
        return

    # Exports, a picture and a mining.
    model = scratch / "model"
    lit("export", "--run", str(scratch / "runs/tiny/sft"), "--out", str(model))
    yield "export/model", of_folder(model, scratch)
    lora = scratch / "lora"
    lit("export", "--run", str(scratch / "runs/tiny/sft_lora"), "--out", str(lora), "--ema")
    yield "export/lora", of_folder(lora, scratch)

    picture = scratch / "edited.png"
    image = next((scratch / "sources" / "edits" / "color" / "images").glob("*source0.png"))
    options = ["--image", str(image), "--prompt", "Make it red", "--steps", "3"]
    lit("edit", "--model", str(model), *options, "--out", str(picture))
    yield "picture", of_picture(picture)

    mined = scratch / "mined"
    small = ["task.draws=2", "task.steps=2", "task.data.limit=5"]
    command("mine", "tiny/mine_semi_hard", f"task.data.root={data['edits']}", f"out={mined}", *small)
    yield "mined/manifest", digest((mined / "manifest.jsonl").read_bytes())


def command(verb: str, recipe: str, *overrides: str) -> None:
    """Run a recipe of the repository."""
    lit(verb, "--recipe", str(ROOT / "recipes" / f"{recipe}.yaml"), *overrides)


def lit(*arguments: str) -> None:
    """Run one command in this process.

    Raises:
        SystemExit: the command failed.
    """
    from firered_lit.cli import main as run

    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        code = run(arguments)
    if code != 0:
        sys.exit(f"failed: {' '.join(arguments)}")


def digest(content: bytes) -> str:
    """Return the SHA-256 of bytes, shortened to 32 hex digits."""
    return hashlib.sha256(content).hexdigest()[:32]


def of_folder(folder: Path, scratch: Path) -> str:
    """Return the digest of every file's name and content, with the scratch folder's own path left out."""
    lines = []
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name not in VOLATILE:
            content = path.read_bytes().replace(str(scratch).encode(), b"SCRATCH")
            lines.append(f"{path.relative_to(folder)} {digest(content)}")
    return digest("\n".join(lines).encode())


def of_checkpoint(run: Path) -> str:
    """Return the digest of a run's newest checkpoint: weights, old policy, average and optimizer state."""
    import torch

    from firered_lit.checkpoints.checkpoint import newest

    path = newest(run)
    if path is None:
        raise FileNotFoundError(f"{run} has no checkpoint")
    checkpoint = torch.load(path, weights_only=True)
    lines = [f"{name} {value}" for name, value in flat("", {name: checkpoint.get(name) for name in HELD})]
    return digest("\n".join(lines).encode())


def flat(name: str, value: Any) -> Iterator[tuple[str, str]]:
    """Yield every leaf of nested dictionaries and lists with its path; a tensor as the digest of its bytes."""
    import torch

    if isinstance(value, dict):
        for key in sorted(value, key=str):
            yield from flat(f"{name}.{key}", value[key])
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from flat(f"{name}.{index}", item)
    elif isinstance(value, torch.Tensor):
        content = value.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        yield name, f"{value.dtype} {tuple(value.shape)} {digest(content)}"
    else:
        yield name, repr(value)


def of_log(folder: Path) -> str:
    """Return the digest of every number that a run logged and that does not measure time."""
    (file,) = folder.rglob("metrics.csv")
    with file.open() as stream:
        rows = [
            {name: value for name, value in row.items() if value and not name.startswith("time/")}
            for row in csv.DictReader(stream)
        ]
    return digest(json.dumps(rows, sort_keys=True).encode())


def of_picture(path: Path) -> str:
    """Return the digest of a picture's pixels."""
    from PIL import Image

    with Image.open(path) as image:
        return digest(repr(image.size).encode() + image.convert("RGB").tobytes())


if __name__ == "__main__":
    sys.exit(main())
