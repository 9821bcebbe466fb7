"""Write samples of the learning world.

    python -m datamodules.world --out DIR --count 10000 --held-out 300

Fifteen families of edits with exact targets, in turn; combinations of colour, shape and family, and words, that are in
the held-out samples are in none of the others. What is written, `prepare` reads.
"""

import argparse
from pathlib import Path

from .families import FAMILIES
from .write import write

SIDES = (64, 96, 128)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=960, help="samples to train on")
    parser.add_argument("--held-out", type=int, default=120, help="samples of unseen combinations")
    parser.add_argument("--families", default=",".join(FAMILIES), help="which, separated by commas")
    parser.add_argument("--side", type=int, default=SIDES[0], choices=SIDES, help="pixels")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    families = args.families.split(",")
    if unknown := sorted(set(families) - set(FAMILIES)):
        parser.error(f"--families {unknown[0]}: one of {', '.join(FAMILIES)}")
    if args.out.exists() and any(args.out.iterdir()):
        parser.error(f"--out {args.out}: not empty; choose another folder")
    for split, count in (("train", args.count), ("held_out", args.held_out)):
        write(args.out, count, args.seed, split, families, args.side)  # type: ignore[arg-type]
    print(f"{args.out}: {args.count} samples to train on, {args.held_out} held out, in {len(families)} families")


if __name__ == "__main__":
    main()
