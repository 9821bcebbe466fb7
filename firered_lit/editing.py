"""Edit a photo: the stock pipeline where it shows the model what training showed, else our own sampler."""

import gc
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from .batch import Condition, Text
from .checking import loses_text_positions
from .colours import as_seen
from .errors import UserError
from .files import replacing
from .flow.sampler import schedule
from .inference.placement import Placement, offload, placement_for
from .inference.prompt_file import look_at, open_picture, read_prompts
from .inference.trained import Opened, checkpoint_of, is_checkpoint, is_run, open_model, read_checkpoint
from .models.codec import to_image, to_pixels
from .models.component import loading
from .models.conditioning import MAX_TEXT_TOKENS, UNCONDITIONAL, Conditioner
from .models.family import OWN, Base, Variant, read_sizes
from .models.lora import merge, put_beside
from .models.lora_files import Factors, find_lora, read_lora
from .models.quantize import quantize
from .models.sampling import sample
from .models.sizes import calculate_dimensions
from .places import writable
from .run.store import RECORD

Name = str | os.PathLike[str]
Reference = Name | Image.Image  # a file, or a picture as PIL has it
Adapter = tuple[Path, float]  # a LoRA file and its strength
LOST_POSITIONS = (
    "the stock edit pipeline of these versions of diffusers and transformers encodes the prompt with 1-D positions, "
    "the weights know 3-D ones; leave --stock out for the right embeddings"
)


@dataclass(frozen=True)
class PictureToDraw:
    """One picture to draw, and where it goes.

    Attributes:
        prompt: The instruction.
        images: Files of the references; none for text-to-image.
        out: The file to write.
        seed: Of the noise.
        width: Of the result, px; None takes the shape of the last reference.
        height: Likewise.
    """

    prompt: str
    images: tuple[Path, ...]
    out: Path
    seed: int
    width: int | None
    height: int | None


def edit(
    model: str,
    images: Sequence[str],
    prompt: str | None,
    out: str,
    steps: int = 40,
    seed: int | Sequence[int] = 0,
    width: int | None = None,
    height: int | None = None,
    guidance: float = 4.0,
    stock: bool = False,
    loras: Sequence[str] = (),
    prompts: str | None = None,
    memory: float | None = None,
) -> None:
    """Edit `images` (none: text-to-image) as `prompt` says and write `out`.

    At the stock pipeline's sizes, or when `stock`, the stock pipeline runs; at other sizes our own sampler does, and
    says so. Unless `stock`, the prompt is encoded here, with the positions that the weights know. Several pictures are
    drawn in one load, into the folder `out`: `seed3.png`, or `01.png` by the rows of `prompts`, or `01_seed3.png`.

    Args:
        model: A diffusers folder, a hub id, a built-in base, or a run's folder: its last checkpoint.
        images: Files of the references.
        prompt: The instruction.
        out: The file to write; a folder for several pictures.
        steps: Of the sampler.
        seed: Of the noise; several draw as many pictures of each prompt. An empty list takes the seed of each row.
        width: Of the result, px; None takes the shape of the last reference.
        height: Likewise.
        guidance: The stock pipelines' `true_cfg_scale`, with the negative prompt " "; 1 switches it off.
        stock: Use the stock pipeline as it is.
        loras: Files, folders as `export` writes them, or LoRA runs, merged one after another; `PATH@0.8` for less than
            full strength.
        prompts: A file of prompts in place of `prompt` and `images`, see `prompt_file.read_prompts`.
        memory: GB of the GPU, to quantise or offload what does not fit; see `Editor`.

    Raises:
        UserError: Bad input. Nothing is drawn before all files and options were looked at.
    """
    seeds = [seed] if isinstance(seed, int) else list(seed)
    if prompts is not None:
        if images or width or height:
            raise UserError("--prompts: its rows name images, width and height; leave those options out")
        pictures = _pictures_of_file(Path(prompts), Path(out), seeds)
    else:
        files = [Path(out)] if len(seeds) == 1 else [Path(out, f"seed{one}.png") for one in seeds]
        references = tuple(map(Path, images))
        for path in references:
            look_at(path, "--image")
        pictures = [PictureToDraw(str(prompt), references, *pair, width, height) for pair in zip(files, seeds)]
    if len(pictures) > 1 and Path(out).is_file():
        raise UserError(f"--out {out}: several pictures go into a folder, and a file lies there")
    for picture in pictures:
        _check_out(picture.out)

    # The weights are loaded by the first picture.
    editor = Editor(model, loras, stock=stock, keep_encoder=len(pictures) > 1, memory=memory)
    if editor.base.variant == Variant.EDIT and any(len(picture.images) > 1 for picture in pictures):
        raise UserError(f"{model}: takes one --image")
    if memory is not None:
        print(f"note: for {memory:g} GB {editor.placement}", flush=True)
    for picture in pictures:
        _draw(editor, picture, steps, guidance)


def _pictures_of_file(file: Path, folder: Path, seeds: Sequence[int]) -> list[PictureToDraw]:
    """Return what a file of prompts asks for; reading it looks at the pictures of its rows."""
    pictures = []
    for number, row in enumerate(read_prompts(file, "--prompts"), start=1):
        own = [row.seed or 0]
        for seed in seeds or own:
            name = f"{number:02d}_seed{seed}.png" if len(seeds) > 1 else f"{number:02d}.png"
            pictures.append(PictureToDraw(row.instruction, row.images, folder / name, seed, row.width, row.height))
    return pictures


def _draw(editor: "Editor", picture: PictureToDraw, steps: int, guidance: float) -> None:
    """Draw a picture, write it, and say so."""
    references = [open_picture(path, "--image") for path in picture.images]
    begin = time.perf_counter()
    image = editor(
        references,
        picture.prompt,
        seed=picture.seed,
        steps=steps,
        guidance=guidance,
        width=picture.width,
        height=picture.height,
    )
    with replacing(picture.out, "wb") as file:
        image.save(file, format=Image.registered_extensions()[picture.out.suffix.lower()])
    seconds = time.perf_counter() - begin
    how = f"{steps} steps, guidance {guidance:g}, seed {picture.seed}, {editor.sampler}, {seconds:.1f} s"
    print(f"{picture.out}: {image.width}x{image.height}, {how}", flush=True)


class Editor:
    """A model that is loaded once and edits many photos, on the accelerator that is there.

    The stock pipeline draws where it shows the model what training showed, or when `stock`; else our own sampler does.
    Unless `stock`, prompts are encoded here, with the positions that the weights know. Weights are loaded by the first
    edit.

    Args:
        model: A diffusers folder, a hub id, a built-in base, a run's folder, or a model that is open already. Sizes of
            the last LoRA that names any go before its own.
        loras: Files, folders as `export` writes them, or LoRA runs, merged one after another; `PATH@0.8` for less than
            full strength.
        checkpoint: Of a run: "last", "best" or a checkpoint's path.
        ema: Of a run: the averaged weights.
        stock: Use the stock pipeline as it is.
        keep_encoder: Keep the text encoder in memory between two edits.
        memory: GB (2**30 bytes) of the GPU. What does not fit is quantised as in training, with LoRAs beside it, or its
            layers come from the host one by one. None puts everything on the GPU.

    Raises:
        UserError: There is no such model, a LoRA cannot be read, or the memory is too small for anything.
    """

    def __init__(
        self,
        model: Name | Opened,
        loras: Name | Sequence[Name] = (),
        *,
        checkpoint: str = "last",
        ema: bool = False,
        stock: bool = False,
        keep_encoder: bool = True,
        memory: float | None = None,
    ) -> None:
        opened = model if isinstance(model, Opened) else open_model(os.fspath(model), checkpoint, ema)
        names = [loras] if isinstance(loras, str | os.PathLike) else loras
        self.adapters = [lora_of(os.fspath(name)) for name in names]
        self.base = _at_sizes_of(opened.base, self.adapters)
        self.stock = stock
        self.keep_encoder = keep_encoder
        self.device, self.dtype = device_and_dtype()
        self.placement = Placement() if memory is None else placement_for(self.base, memory, self.dtype.itemsize)
        self._weights = opened.weights
        self._conditioner: Any = None
        self._codec: Any = None
        self._transformer: Any = None
        self._pipelines: dict[bool, Any] = {}  # whether it edits -> the stock pipeline

    def __call__(
        self,
        images: Reference | Sequence[Reference],
        prompt: str,
        *,
        seed: int = 0,
        steps: int = 40,
        guidance: float = 4.0,
        width: int | None = None,
        height: int | None = None,
    ) -> Image.Image:
        """Return one edit as an RGB picture.

        Args:
            images: A reference, or several in the order in which the prompt counts them: files, or PIL pictures of any
                size and mode. An empty list draws from the prompt alone.
            prompt: The instruction.
            seed: Of the noise, which is drawn on the CPU; 0 or more.
            steps: Of the sampler; 1 or more.
            guidance: The stock pipelines' `true_cfg_scale`; 1 switches it off.
            width: Of the result, px; None takes the shape of the last reference. Sides are floored to multiples of 16.
            height: Likewise.

        Raises:
            UserError: A picture cannot be read, the model takes one reference only, or the instruction is too long.
        """
        given = [images] if isinstance(images, str | os.PathLike | Image.Image) else list(images)
        references = [_picture(reference) for reference in given]
        if self.base.variant == Variant.EDIT and len(references) > 1:
            raise UserError(f"{self.base.name}: takes one picture, not {len(references)}")
        if steps < 1:
            raise UserError(f"steps={steps}: at least 1")
        size = _size(self.base, references, width, height)
        return self.draw(references, prompt, steps, seed, size, guidance)

    @property
    def sampler(self) -> str:
        """Return a description of the sampler in words."""
        if self.stock:
            return "the stock pipeline"
        if self.base.at_stock_sizes:
            return "the stock pipeline, with our prompt embeddings"
        return "our sampler, at the sizes the model was trained at"

    def draw(
        self,
        references: Sequence[Image.Image],
        prompt: str,
        steps: int,
        seed: int,
        size: tuple[int, int],
        guidance: float,
    ) -> Image.Image:
        """Return one edit.

        Args:
            references: RGB pictures; none for text-to-image.
            prompt: The instruction.
            steps: Of the sampler.
            seed: Of the noise, which is drawn on the CPU.
            size: Width and height, multiples of 16.
            guidance: The stock pipelines' `true_cfg_scale`; 1 switches it off.

        Raises:
            UserError: The instruction is too long or holds a vision token, or the model takes one reference only.
        """
        if self.stock or self.base.at_stock_sizes:
            return self._draw_stock(references, prompt, steps, seed, size, guidance)
        return self._draw_own(references, prompt, steps, seed, size, guidance)

    def size_like(self, references: Sequence[Image.Image]) -> tuple[int, int]:
        """Return width and height of an edit for which no size is asked: those of the last reference's shape."""
        return _size(self.base, references, None, None)

    def _draw_stock(
        self,
        references: Sequence[Image.Image],
        prompt: str,
        steps: int,
        seed: int,
        size: tuple[int, int],
        guidance: float,
    ) -> Image.Image:
        call: dict[str, Any] = {"num_inference_steps": steps, "true_cfg_scale": guidance}
        call["max_sequence_length"] = MAX_TEXT_TOKENS  # what training reads; the pipelines' own default is half of it
        call |= {"width": size[0], "height": size[1], "generator": torch.Generator().manual_seed(seed)}
        if references:
            call["image"] = references[0] if self.base.variant == Variant.EDIT else list(references)
        if self.stock:
            if references and loses_text_positions() and not self._pipelines:
                print(f"note: {LOST_POSITIONS}", file=sys.stderr)
            call["prompt"] = prompt
            if guidance > 1:
                call["negative_prompt"] = UNCONDITIONAL
        else:
            texts = self._texts(references, prompt, guidance)
            for role, text in zip(("prompt", "negative_prompt"), texts):
                ones = torch.ones(text.embeddings.shape[:2], dtype=torch.long, device=self.device)
                call |= {f"{role}_embeds": text.embeddings, f"{role}_embeds_mask": ones}
        return self._pipeline(bool(references))(**call).images[0]

    def _draw_own(
        self,
        references: Sequence[Image.Image],
        prompt: str,
        steps: int,
        seed: int,
        size: tuple[int, int],
        guidance: float,
    ) -> Image.Image:
        # What the transformer is shown.
        if self._codec is None:
            self._codec = self.base.codec(self.device, self.dtype)
        codec = self._codec
        shown = [image.resize(_reference_size(self.base, image), Image.Resampling.LANCZOS) for image in references]
        latents = tuple(codec.encode(to_pixels(image)[None]) for image in shown)
        conditions = [Condition(text, latents) for text in self._texts(references, prompt, guidance)]

        # From noise to latents to pixels.
        width = size[0] // codec.factor
        height = size[1] // codec.factor
        noise = torch.randn((1, codec.mean.shape[1], height, width), generator=torch.Generator().manual_seed(seed))
        sigmas = schedule(steps, height * width // 4, self.base.scheduler_config)
        if self._transformer is None:
            self._transformer = self._load_transformer().eval()
            if self.placement.transformer == "layer by layer":
                offload(self._transformer, self.device)
            else:
                self._transformer.to(self.device)
        negative = conditions[1] if guidance > 1 else None
        drawn = sample(self._transformer, noise.to(self.device, self.dtype), sigmas, conditions[0], negative, guidance)
        return to_image(codec.decode(drawn)[0])

    def _texts(self, references: Sequence[Image.Image], prompt: str, guidance: float) -> list[Text]:
        """Return the prompt and, with guidance, the unconditional text, each a batch of one."""
        if self._conditioner is None:
            self._conditioner = self._load_conditioner()
        prompts = [prompt, UNCONDITIONAL] if guidance > 1 else [prompt]
        rows = self._conditioner.encode(prompts, [list(references)] * len(prompts), self.base.sizes.condition_area)
        if not self.keep_encoder:
            self._conditioner = None
            gc.collect()  # the hooks that bring its layers hold each other
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
        return [Text.pad([row]) for row in rows]

    def _load_conditioner(self) -> Any:
        """Return the text encoder, on the device or with its layers on their way to it."""
        if self.placement.encoder:
            return self.base.conditioner(self.device, self.dtype)
        conditioner = self.base.conditioner("cpu", self.dtype)
        if isinstance(conditioner, Conditioner):
            offload(conditioner.encoder, self.device)
        conditioner.device = self.device
        return conditioner

    def _pipeline(self, edits: bool) -> Any:
        """Return the stock pipeline, without a text encoder where the prompts are encoded here."""
        if edits not in self._pipelines:
            parts: dict[str, Any] = {"transformer": self._load_transformer()}
            if not self.stock:
                parts["text_encoder"] = None
            pipeline = stock_pipeline(self.base, edits, self.dtype, **parts)
            if self.placement.transformer == "layer by layer":
                for part in pipeline.components.values():
                    if isinstance(part, torch.nn.Module):
                        offload(part, self.device)
            elif self.stock and not self.placement.encoder:
                pipeline.enable_model_cpu_offload(device=self.device)
            else:
                pipeline.to(self.device)
            self._pipelines[edits] = pipeline
        return self._pipelines[edits]

    def _load_transformer(self) -> torch.nn.Module:
        """Return the transformer with the LoRAs in its weights, on the CPU; a quantised one on the device.

        LoRAs stay beside quantised weights, as they were trained: in 4 bits most of what they add would be rounded off.
        """
        transformer: Any = self.base.transformer(self.dtype) if self._weights is None else self._weights(self.dtype)
        loras = [self._read(transformer, file, strength) for file, strength in self.adapters]
        if self.placement.bits is None:
            for trained, scale in loras:
                merge(transformer, trained, scale)
            return transformer
        quantize(transformer, self.placement.bits, self.device)
        for trained, scale in loras:
            put_beside(transformer, trained, scale)
        return transformer

    def _read(self, transformer: Any, file: Path, strength: float) -> tuple[Factors, float]:
        """Return the factors of a LoRA by module, and the scale of their products."""
        if is_checkpoint(file):
            trained, scale = read_checkpoint(self.base, file)
            return trained, strength * scale
        return read_lora(transformer, file), strength


def _picture(reference: Reference) -> Image.Image:
    """Return a reference upright and in RGB."""
    if isinstance(reference, Image.Image):
        return as_seen(reference)
    return open_picture(Path(reference), "image")


def _check_out(out: Path) -> None:
    """Refuse a file that the picture could not be written as, before it is drawn."""
    kinds = {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.SAVE}
    if out.suffix.lower() not in kinds:
        ending = out.suffix or "no ending"
        raise UserError(f"--out {out}: a picture cannot be written with {ending}; name a .png, .jpg or .webp")
    if out.is_dir():
        raise UserError(f"--out {out}: a folder lies there; name a file")
    writable(out.parent)


def lora_of(text: str) -> Adapter:
    """Return the file and the strength of `PATH` or `PATH@STRENGTH`.

    Raises:
        UserError: There is no such LoRA, or the strength is no number.
    """
    path, at, strength = text.rpartition("@")
    if at and not Path(text).exists():
        try:
            return _lora_file(Path(path)), float(strength)
        except ValueError:
            raise UserError(f"--lora {text}: {strength!r} is no strength, as in {path}@0.8") from None
    return _lora_file(Path(text)), 1.0


def _lora_file(path: Path) -> Path:
    """Return the file of a LoRA, or the last checkpoint of a run."""
    return checkpoint_of(path) if is_run(path) else find_lora(path)


def _at_sizes_of(base: Base, adapters: Sequence[Adapter]) -> Base:
    """Return the base at the sizes that the last LoRA which names any was trained at."""
    for file, _ in reversed(adapters):
        if is_checkpoint(file):
            return base.resized(read_sizes(file.parents[1] / RECORD))
        own = file.with_name(OWN)
        if own.exists():
            return base.resized(read_sizes(own))
    return base


def _size(base: Base, references: Sequence[Image.Image], width: int | None, height: int | None) -> tuple[int, int]:
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


def device_and_dtype() -> tuple[torch.device, torch.dtype]:
    """Return where edits are drawn, and in which precision."""
    return (torch.device("cuda"), torch.bfloat16) if torch.cuda.is_available() else (torch.device("cpu"), torch.float32)


def stock_pipeline(base: Base, edits: bool, dtype: torch.dtype = torch.float32, **components: Any) -> Any:
    """Return the installed diffusers' pipeline for this base.

    Args:
        base: The model.
        edits: Whether there are references; without, its text-to-image pipeline.
        dtype: Precision of the weights.
        components: What takes the place of a component in the folder, by name; None leaves it out.
    """
    from diffusers import DiffusionPipeline, QwenImageEditPlusPipeline, QwenImagePipeline

    if base.has_no_weights("vae") or base.has_no_weights("text_encoder"):
        raise UserError(f"{base.name}: the stock pipeline knows no such VAE or text encoder; leave --stock out")
    if "transformer" not in components:
        components["transformer"] = base.transformer(dtype)
    if "vae" not in components:
        codec: Any = base.codec(dtype=dtype)
        components["vae"] = codec.vae
    if "text_encoder" not in components:
        conditioner: Any = base.conditioner(dtype=dtype)
        components["text_encoder"] = conditioner.encoder
    with loading(base.folder):
        pipeline = DiffusionPipeline.from_pretrained(
            base.folder, dtype=dtype, use_safetensors=True, local_files_only=True, **components
        )
    pipeline.set_progress_bar_config(disable=None)
    parts = {k: v for k, v in pipeline.components.items() if k != "processor"}
    if not edits and base.variant != Variant.TEXT:
        return QwenImagePipeline(**parts)
    if edits and base.variant == Variant.TEXT:
        conditioner = base.conditioner()
        return QwenImageEditPlusPipeline(**parts, processor=conditioner.processor)
    return pipeline


def _reference_size(base: Base, image: Image.Image) -> tuple[int, int]:
    return calculate_dimensions(base.sizes.reference_area, image.width / image.height)
