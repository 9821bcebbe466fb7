"""Run the notebooks and write what they print and draw into their files, small enough to keep: `make notebooks`.

    python notebooks/refresh.py [NAME ...]

They run one after another in the folder `.notebooks` of the checkout. Warnings, which come through standard error, are
not kept, and pictures become JPEGs. What another machine or another time would print otherwise is left out: paths of a
machine, speeds, ids of runs.
"""

import argparse
import base64
import io
import os
import re
import shutil
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from PIL import Image

NOTEBOOKS = Path(__file__).resolve().parent
ROOT = NOTEBOOKS.parent
WORK = ROOT / ".notebooks"
LIMIT = 200_000  # bytes of one notebook's file
QUALITY = 75  # of a JPEG
WIDTH = 720  # of a picture, pixels, at most

# Each notebook works in a folder of its own name; 04 reads the run that 02 leaves.
SETTINGS = {
    "FIRERED_LIT_STORE": "02_lora",
    "FIRERED_LIT_EVALUATION": "05_evaluation",
    "FIRERED_LIT_CORPUS": "06_corpus/out",
    "FIRERED_LIT_SHARED": "pictures_of_others",  # a folder that is not there: their licences are not this project's
    "PYTHONPATH": str(ROOT),
}

# What differs from one machine or one time to the next, and what stands in its place.
REPLACED = (
    (re.escape(f"{WORK}/"), ""),
    (re.escape(f"{ROOT}/"), ""),
    (re.escape(sys.executable), "python"),
    (r"; [\d,]+ MB are free in \S+", ""),
    (r", [\d.]+[kM]? samples/s, [\d.]+[kM]? tokens/s, [\d:]+ left", ""),
    (r"(FINISHED|FAILED|KILLED) +\d+ s", r"\1       ... s"),
    (r"\b[0-9a-f]{32}\b", "RUN_ID"),
)


def same_everywhere(text: str) -> str:
    """Return what a cell printed without what differs from one machine or one time to the next."""
    for pattern, replacement in REPLACED:
        text = re.sub(pattern, replacement, text)
    return text


def as_jpeg(png: str) -> str:
    """Return a picture in base64, PNG, as a JPEG in base64."""
    picture = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
    if picture.width > WIDTH:
        picture = picture.resize((WIDTH, round(picture.height * WIDTH / picture.width)), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=QUALITY, optimize=True)
    return base64.b64encode(file.getvalue()).decode()


def kept(outputs: list[nbformat.NotebookNode]) -> list[nbformat.NotebookNode]:
    """Return what is kept of a cell's outputs: standard output in as few pieces as may be, and pictures as JPEGs."""
    result: list[nbformat.NotebookNode] = []
    for output in outputs:
        if output.output_type == "stream" and output.name == "stderr":
            continue
        if output.output_type == "stream" and result and result[-1].output_type == "stream":
            result[-1].text += output.text
            continue
        if "image/png" in output.get("data", {}):
            output.data = {"image/jpeg": as_jpeg(output.data["image/png"]), "text/plain": "<picture>"}
            output.metadata = {}
        result.append(output)

    # Only once the pieces are together: a path may be printed in two.
    for output in result:
        if output.output_type == "stream":
            output.text = same_everywhere(output.text)
    return result


def refresh(path: Path) -> None:
    """Run one notebook and write it with its outputs.

    Raises:
        SystemExit: The file would be over the limit; it stays as it was.
    """
    notebook = nbformat.read(path, 4)
    metadata = nbformat.from_dict(notebook.metadata)
    client = NotebookClient(notebook, timeout=1800, record_timing=False, resources={"metadata": {"path": str(WORK)}})
    client.execute(env=os.environ | SETTINGS | {"FIRERED_LIT_FOLDER": path.stem})
    notebook.metadata = metadata
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = kept(cell.outputs)
    shown = WORK / path.name
    nbformat.write(notebook, shown)
    size = shown.stat().st_size
    if size > LIMIT:
        raise SystemExit(f"{shown}: {size:,} bytes with its outputs, at most {LIMIT:,} are kept; show less")
    shutil.copyfile(shown, path)
    print(f"{path.name}: {size:,} bytes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help="as 02_lora; all by default (04_runs needs 02_lora's run)"
    )
    names = parser.parse_args().names
    WORK.mkdir(exist_ok=True)
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        if not names or path.stem in names:
            shutil.rmtree(WORK / path.stem, ignore_errors=True)
            refresh(path)


if __name__ == "__main__":
    main()
