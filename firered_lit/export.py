"""From a checkpoint to a diffusers folder that the stock pipeline loads."""

import json
import shutil
import tempfile
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .checkpoint import AtomicCheckpointIO, resolve
from .errors import UserError
from .models.family import Base, Variant, open_base
from .models.sizes import Sizes

PREFIX = "transformer."
PARTS = ("vae", "text_encoder", "tokenizer", "scheduler", "processor")


def export(run: str, out: str, checkpoint: str = "last", max_shard_size: str = "5GB") -> None:
    """Write run's weights as a diffusers folder `out`: sharded safetensors, configs, model card.

    Weights get the precision of the base they came from, so that a run of zero steps exports the base bit for bit. The
    folder appears whole or not at all. Raises UserError when the run has no such checkpoint or `out` holds something.
    """
    folder, target = Path(run), Path(out)
    if not (folder / "run.json").exists():
        raise UserError(f"{run}: not a run's folder (no run.json)")
    if target.exists() and any(target.iterdir()):
        raise UserError(f"{out}: not empty; choose another --out")
    path = resolve(folder, checkpoint)
    if path is None:
        raise UserError(f"{run}: has no checkpoint yet")
    facts = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    base = open_base(facts["base"])
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        step = _write_transformer(base, path, staging / "transformer", max_shard_size)
        _copy_parts(base, staging)
        _write_sizes(base, Sizes(**facts["sizes"]), staging)
        recipe = (folder / "recipe.yaml").read_text(encoding="utf-8") if (folder / "recipe.yaml").exists() else ""
        (staging / "README.md").write_text(model_card(base, facts, recipe, path.name, step), encoding="utf-8")
        if target.exists():
            target.rmdir()
        staging.chmod(0o755)
        staging.rename(target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    print(
        f"{out}: {base.name} after {step} steps ({path.name}); load it with DiffusionPipeline.from_pretrained({out!r})"
    )


def load_weights(path: Path) -> tuple[dict[str, Tensor], int]:
    """The transformer's weights in a checkpoint, by diffusers' names, and the step they were saved at."""
    saved = AtomicCheckpointIO().load_checkpoint(path)
    weights = {k.removeprefix(PREFIX): v for k, v in saved["state_dict"].items() if k.startswith(PREFIX)}
    return weights, int(saved["global_step"])


def _write_transformer(base: Base, path: Path, folder: Path, max_shard_size: str) -> int:
    weights, step = load_weights(path)
    transformer = base.transformer()
    stored = transformer.state_dict()
    differing = sorted(stored.keys() ^ weights.keys())
    differing += sorted(k for k in stored.keys() & weights.keys() if stored[k].shape != weights[k].shape)
    if differing:
        raise UserError(f"{path}: made for another architecture than {base.name}: {', '.join(differing[:3])} differ")
    with torch.no_grad():
        for name, tensor in stored.items():
            tensor.copy_(weights[name])
    transformer.save_pretrained(folder, max_shard_size=max_shard_size)
    return step


def _copy_parts(base: Base, staging: Path) -> None:
    """Everything that was not trained, as it is in the base."""
    for part in PARTS:
        if (base.folder / part).exists():
            shutil.copytree(base.folder / part, staging / part)
    index = json.loads((base.folder / "model_index.json").read_text(encoding="utf-8"))
    (staging / "model_index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _write_sizes(base: Base, sizes: Sizes, staging: Path) -> None:
    """Sizes other than the stock pipeline's travel with the weights; `edit` reads them."""
    (staging / "firered_lit.json").write_text(json.dumps({"sizes": sizes.as_dict()}, indent=2) + "\n", encoding="utf-8")


def model_card(base: Base, facts: Mapping[str, Any], recipe: str, checkpoint: str, step: int) -> str:
    """The README.md of an export: what it is made of, and how to use it."""
    sizes = Sizes(**facts["sizes"])
    kind = {Variant.EDIT: "QwenImageEditPipeline", Variant.EDIT_PLUS: "QwenImageEditPlusPipeline"}.get(
        base.variant, "QwenImagePipeline"
    )
    data = "\n".join(f"- {name}: {value}" for name, value in facts.get("data", {}).items()) or "- not recorded"
    image = "" if base.variant == Variant.TEXT else 'image=[Image.open("photo.jpg").convert("RGB")], '
    note = (
        "Trained at the stock pipeline's sizes."
        if base.resized(sizes).at_stock_sizes
        else "Trained at other sizes than the stock pipeline's constants; they are in `firered_lit.json`, and "
        "`python -m firered_lit edit` keeps to them."
    )
    return f"""---
library_name: diffusers
base_model: {base.name}
pipeline_tag: image-to-image
tags: [image-editing, qwen-image, firered-lit]
---
# {facts["stage"]} of {base.name}

{step} optimizer steps with firered_lit {version("firered-lit")}, from checkpoint `{checkpoint}`. {note}

## Use

```python
import torch
from diffusers import {kind}
from PIL import Image

pipe = {kind}.from_pretrained("THIS_FOLDER", torch_dtype=torch.bfloat16).to("cuda")
image = pipe({image}prompt="...", negative_prompt=" ", true_cfg_scale=4.0).images[0]
```

or `python -m firered_lit edit --model THIS_FOLDER --image photo.jpg --prompt "..." --out edited.png`, which also encodes
the prompt with the positions that the weights were trained with (diffusers 0.42 with transformers 5 loses them).

## Data

{data}

## Recipe

```yaml
{recipe.strip()}
```
"""
