"""The page for a first LoRA: its commands, as printed, on the tiny model."""

import json
import re
import shlex
from pathlib import Path

from PIL import Image

from firered_lit.cli import main

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs/first_lora.md"
TINY = {"prepare": "tiny/prepare", "sft_lora_small_24gb": "tiny/sft_lora_small"}


def commands(page: Path) -> list[list[str]]:
    """Return the words of every command in the page's shell blocks."""
    blocks = re.findall(r"^```bash\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [shlex.split(line) for line in lines if line.strip()]


def test_the_first_useful_thing_takes_four_commands():
    verbs = [words[3] for words in commands(PAGE)]
    assert verbs[:4] == ["prepare", "fit", "export", "edit"]


def test_the_commands_of_the_page_lead_to_a_lora_and_an_edit(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = []
    for number in range(10):
        for folder, colour in (("before", (20 * number, 90, 10)), ("after", (20 * number, 90, 200))):
            (tmp_path / folder).mkdir(exist_ok=True)
            Image.new("RGB", (96, 96), colour).save(tmp_path / folder / f"{number:02d}.png")
        files = {"source_image": f"before/{number:02d}.png", "target_image": f"after/{number:02d}.png"}
        rows.append(json.dumps(files | {"instruction": "Make it winter"}))
    (tmp_path / "edits.jsonl").write_text("\n".join(rows), encoding="utf-8")
    Image.new("RGB", (96, 64), "red").save(tmp_path / "photo.jpg")

    # As printed, but for the size of the model and the length of the training.
    for words in commands(PAGE)[:4]:
        typed = [words[3], *(TINY.get(word, word) for word in words[4:])]
        typed = ["tiny" if word.startswith("FireRedTeam/") else word for word in typed]
        if typed[0] == "prepare":
            typed += ["held_out=0.002", "held_out_least=4"]
        if typed[0] == "fit":
            typed += ["trainer.max_epochs=2", "run.validate_every=2", "checkpoint.every=2", "logger=null"]
        if typed[0] == "edit":
            typed += ["--steps", "2", "--guidance", "1"]
        assert main(typed) == 0, typed

    assert {path.name for path in (tmp_path / "loras/mine").iterdir()} >= {
        "pytorch_lora_weights.safetensors",
        "comfyui_lora.safetensors",
    }
    with Image.open(tmp_path / "winter.png") as picture:
        assert picture.width > picture.height
