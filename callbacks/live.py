"""The model that is being trained draws a picture: what it is shown, encoded once, and the sampler."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from firered_lit.batch import Condition, Text
from firered_lit.flow.sampler import schedule
from firered_lit.models.codec import to_image, to_pixels
from firered_lit.models.conditioning import UNCONDITIONAL
from firered_lit.models.sampling import sample
from firered_lit.models.sizes import calculate_dimensions

Noise = Callable[[tuple[int, int, int]], torch.Tensor]  # (C, h, w) -> noise of shape (1, C, h, w)


@dataclass(frozen=True)
class Encoded:
    """An edit as the frozen models encode it, on the CPU.

    Attributes:
        conditions: The instruction, and with guidance the unconditional text, each with the references' latents.
        noise: (1, C, h, w).
        sources: The source pictures.
    """

    conditions: tuple[Condition, ...]
    noise: torch.Tensor
    sources: tuple[Image.Image, ...]


def encode(
    stage: Any,
    instruction: str,
    pictures: Sequence[Image.Image],
    noise: Noise,
    *,
    guided: bool,
    width: int | None = None,
    height: int | None = None,
) -> Encoded:
    """Encode an edit by the stage's frozen text encoder and VAE, at the sizes of training.

    Args:
        stage: The training module, whose `base`, `codec` and `frozen` are used.
        instruction: The instruction of the edit.
        pictures: The source pictures, in RGB; none for text-to-image.
        noise: Return the noise of a shape (C, h, w).
        guided: Encode the unconditional text too.
        width: Pixels of the drawn picture; None takes the shape of the last picture.
        height: The same for its height.
    """
    base = stage.base
    dtype = stage.transformer.dtype if stage.transformer.dtype.is_floating_point else torch.float32

    # The text, by the encoder that training may have loaded already.
    if "conditioner" not in stage.frozen:
        stage.frozen["conditioner"] = base.conditioner(stage.device, dtype)
    words = [instruction, UNCONDITIONAL] if guided else [instruction]
    rows = stage.frozen["conditioner"].encode(words, [list(pictures)] * len(words), base.sizes.condition_area)

    # The references, at their own area.
    shown = [_to_area(picture, base.sizes.reference_area) for picture in pictures]
    latents = tuple(stage.codec.encode(to_pixels(picture)[None].to(stage.device)).cpu() for picture in shown)
    conditions = tuple(Condition(Text.pad([row.to("cpu", dtype)]), latents) for row in rows)

    # The noise, in the shape of the picture that is asked for.
    ratio = pictures[-1].width / pictures[-1].height if pictures else 1.0
    usual_width, usual_height = calculate_dimensions(base.sizes.target_area, ratio)
    width = (width or usual_width) // 16 * 16
    height = (height or usual_height) // 16 * 16
    factor = stage.codec.factor
    shape = (stage.codec.mean.shape[1], height // factor, width // factor)
    return Encoded(conditions, noise(shape), tuple(pictures))


@torch.no_grad()
def draw(stage: Any, encoded: Encoded, steps: int, guidance: float) -> Image.Image:
    """Draw one picture with the weights as they are. The module is in evaluation mode.

    Args:
        stage: The training module.
        encoded: The encoded request.
        steps: Steps of the solver.
        guidance: The stock pipelines' `true_cfg_scale`; without the unconditional text there is none.
    """
    noise = encoded.noise.to(stage.device)
    conditions = [condition.to(stage.device) for condition in encoded.conditions]
    tokens = noise.shape[-2] * noise.shape[-1] // 4
    sigmas = schedule(steps, tokens, stage.scheduler_config)
    unconditional = conditions[1] if len(conditions) > 1 else None
    scale = guidance if unconditional is not None else 1.0
    with torch.autocast(stage.device.type, enabled=stage.device.type != "cpu", dtype=torch.bfloat16):
        latents = sample(stage.transformer, noise, sigmas, conditions[0], unconditional, scale)
    return to_image(stage.codec.decode(latents.float())[0].float())


def _to_area(picture: Image.Image, area: int) -> Image.Image:
    size = calculate_dimensions(area, picture.width / picture.height)
    return picture.resize(size, Image.Resampling.LANCZOS)
