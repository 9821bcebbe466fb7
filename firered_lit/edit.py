"""Edit a photo: the stock pipeline where it shows the model what training showed, else our own sampler."""

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageOps

from .batch import Condition, Text
from .check import loses_text_positions
from .errors import UserError
from .flow.sampler import schedule
from .models.codec import to_image, to_pixels
from .models.conditioning import MAX_TEXT_TOKENS, UNCONDITIONAL
from .models.family import Base, Variant, open_base
from .models.lora_files import find_lora, merge_file
from .models.sampling import sample
from .models.sizes import Sizes, calculate_dimensions
from .places import writable
from .textfiles import open_regular, read_object

Adapter = tuple[Path, float]  # a LoRA file and its strength
LOST_POSITIONS = (
    "the stock edit pipeline of these versions of diffusers and transformers encodes the prompt with 1-D positions, "
    "the weights know 3-D ones; leave --stock out for the right embeddings"
)


def edit(
    model: str,
    images: Sequence[str],
    prompt: str,
    out: str,
    steps: int = 40,
    seed: int = 0,
    width: int | None = None,
    height: int | None = None,
    guidance: float = 4.0,
    stock: bool = False,
    loras: Sequence[str] = (),
) -> None:
    """Edit `images` (none: text-to-image) as `prompt` says and write `out`.

    guidance is the stock pipelines' `true_cfg_scale`, with the negative prompt " "; 1 switches it off. At the stock
    pipeline's sizes, or when `stock`, the stock pipeline runs; at other sizes our own sampler does, and says so. Unless
    `stock`, the prompt is encoded here, with the positions that the weights know. loras: files, or folders as `export`
    writes them, merged into the weights one after another; `PATH@0.8` for less than full strength. Raises UserError on
    bad input.
    """
    _check_out(Path(out))
    adapters = [_lora(text) for text in loras]
    base = _at_sizes_of(open_base(model), adapters)
    references = [_open(path) for path in images]
    if base.variant == Variant.EDIT and len(references) > 1:
        raise UserError(f"{model}: takes one --image, not {len(references)}")
    size = _size(base, references, width, height)
    begin = time.perf_counter()
    if stock or base.at_stock_sizes:
        sampler = "the stock pipeline" + ("" if stock else ", with our prompt embeddings")
        image = _stock(base, references, prompt, steps, seed, size, guidance, not stock, adapters)
    else:
        sampler = "our sampler, at the sizes the model was trained at"
        image = _own(base, references, prompt, steps, seed, size, guidance, adapters)
    image.save(out)
    seconds = time.perf_counter() - begin
    how = f"{steps} steps, guidance {guidance:g}, seed {seed}, {sampler}, {seconds:.1f} s"
    print(f"{out}: {image.width}x{image.height}, {how}")


def _check_out(out: Path) -> None:
    """Refuse a file that the picture could not be written as, before it is drawn."""
    kinds = {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.SAVE}
    if out.suffix.lower() not in kinds:
        ending = out.suffix or "no ending"
        raise UserError(f"--out {out}: a picture cannot be written with {ending}; name a .png, .jpg or .webp")
    if out.is_dir():
        raise UserError(f"--out {out}: a folder lies there; name a file")
    writable(out.parent)


def _lora(text: str) -> Adapter:
    """(file, strength) of `PATH` or `PATH@STRENGTH`."""
    path, at, strength = text.rpartition("@")
    if at and not Path(text).exists():
        try:
            return find_lora(Path(path)), float(strength)
        except ValueError:
            raise UserError(f"--lora {text}: {strength!r} is no strength, as in {path}@0.8") from None
    return find_lora(Path(text)), 1.0


def _at_sizes_of(base: Base, adapters: Sequence[Adapter]) -> Base:
    """The base at the sizes that the last LoRA which names any was trained at."""
    for file, _ in reversed(adapters):
        if (own := file.with_name("firered_lit.json")).exists():
            return base.resized(Sizes(**read_object(own)["sizes"]))
    return base


def _merge(transformer: torch.nn.Module, adapters: Sequence[Adapter]) -> None:
    for file, strength in adapters:
        merge_file(transformer, file, strength)


def _open(path: str) -> Image.Image:
    try:
        with open_regular(path) as file, Image.open(file) as image:
            return ImageOps.exif_transpose(image).convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as problem:
        raise UserError(f"--image {path}: cannot be read as an image ({problem})") from problem


def _size(base: Base, references: list[Image.Image], width: int | None, height: int | None) -> tuple[int, int]:
    """(width, height): as asked, floored to 16 as the stock pipeline does, else like the last reference."""
    ratio = references[-1].width / references[-1].height if references else 1.0
    best = calculate_dimensions(base.sizes.target_area, ratio)
    asked = (width or best[0], height or best[1])
    size = asked[0] // 16 * 16, asked[1] // 16 * 16
    if min(size) < 16:
        raise UserError(f"--width {asked[0]} --height {asked[1]}: the smallest side is 16")
    if size != asked:
        print(f"note: {asked[0]}x{asked[1]} becomes {size[0]}x{size[1]}; sides are multiples of 16")
    return size


def _device() -> tuple[torch.device, torch.dtype]:
    return (torch.device("cuda"), torch.bfloat16) if torch.cuda.is_available() else (torch.device("cpu"), torch.float32)


def _texts(base: Base, references: list[Image.Image], prompt: str, guidance: float) -> list[Text]:
    """The prompt and, with guidance, the unconditional text, each a batch of one; the encoder is freed afterwards."""
    device, dtype = _device()
    prompts = [prompt, UNCONDITIONAL] if guidance > 1 else [prompt]
    rows = base.conditioner(device, dtype).encode(prompts, [references] * len(prompts), base.sizes.condition_area)
    return [Text.pad([row]) for row in rows]


def _stock(
    base: Base, references: list[Image.Image], prompt: str, steps: int, seed: int, size: tuple[int, int],
    guidance: float, own_embeddings: bool, adapters: Sequence[Adapter] = (),
) -> Image.Image:  # fmt: skip
    device, dtype = _device()
    call: dict[str, Any] = {"num_inference_steps": steps, "true_cfg_scale": guidance}
    call["max_sequence_length"] = MAX_TEXT_TOKENS  # what training reads; the pipelines' own default is half of it
    call |= {"width": size[0], "height": size[1], "generator": torch.Generator().manual_seed(seed)}
    if references:
        call["image"] = references[0] if base.variant == Variant.EDIT else references
    if own_embeddings:
        texts = _texts(base, references, prompt, guidance)
        for role, text in zip(("prompt", "negative_prompt"), texts):
            ones = torch.ones(text.embeddings.shape[:2], dtype=torch.long, device=device)
            call |= {f"{role}_embeds": text.embeddings, f"{role}_embeds_mask": ones}
    else:
        if references and loses_text_positions():
            print(f"note: {LOST_POSITIONS}", file=sys.stderr)
        call |= {"prompt": prompt, "negative_prompt": UNCONDITIONAL} if guidance > 1 else {"prompt": prompt}
    pipeline = stock_pipeline(base, bool(references), dtype)
    _merge(pipeline.transformer, adapters)
    return pipeline.to(device)(**call).images[0]


def stock_pipeline(base: Base, edits: bool, dtype: torch.dtype = torch.float32) -> Any:
    """The installed diffusers' pipeline for this base; without references, its text-to-image one."""
    from diffusers import DiffusionPipeline, QwenImageEditPlusPipeline, QwenImagePipeline

    pipeline = DiffusionPipeline.from_pretrained(base.folder, dtype=dtype)
    pipeline.set_progress_bar_config(disable=None)
    parts = {k: v for k, v in pipeline.components.items() if k != "processor"}
    if not edits and base.variant != Variant.TEXT:
        return QwenImagePipeline(**parts)
    if edits and base.variant == Variant.TEXT:
        return QwenImageEditPlusPipeline(**parts, processor=base.conditioner().processor)
    return pipeline


def _own(
    base: Base, references: list[Image.Image], prompt: str, steps: int, seed: int, size: tuple[int, int],
    guidance: float, adapters: Sequence[Adapter] = (),
) -> Image.Image:  # fmt: skip
    device, dtype = _device()
    codec = base.codec(device, dtype)
    shown = [image.resize(_reference_size(base, image), Image.Resampling.LANCZOS) for image in references]
    latents = tuple(codec.encode(to_pixels(image)[None]) for image in shown)
    conditions = [Condition(text, latents) for text in _texts(base, references, prompt, guidance)]
    width, height = size[0] // codec.factor, size[1] // codec.factor
    noise = torch.randn((1, codec.mean.shape[1], height, width), generator=torch.Generator().manual_seed(seed))
    sigmas = schedule(steps, height * width // 4, base.scheduler_config)
    transformer = base.transformer(dtype)
    _merge(transformer, adapters)
    transformer = transformer.to(device).eval()
    negative = conditions[1] if guidance > 1 else None
    return to_image(
        codec.decode(sample(transformer, noise.to(device, dtype), sigmas, conditions[0], negative, guidance))[0]
    )


def _reference_size(base: Base, image: Image.Image) -> tuple[int, int]:
    return calculate_dimensions(base.sizes.reference_area, image.width / image.height)
