"""Our forward, embeddings, latents and sampler against the pipelines that users run, in float32 on real classes."""

from functools import cache

import numpy as np
import pytest
import torch
from diffusers import QwenImagePipeline
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_plus as stock_module
from PIL import Image

from firered_lit.batch import Condition, Text
from firered_lit.checking import loses_text_positions
from firered_lit.editing import stock_pipeline
from firered_lit.flow.sampler import schedule
from firered_lit.models.codec import to_image, to_pixels
from firered_lit.models.conditioning import UNCONDITIONAL, stock_templates
from firered_lit.models.family import Base, open_base
from firered_lit.models.qwen_image import pack, velocity
from firered_lit.models.sampling import sample
from firered_lit.models.sizes import calculate_dimensions
from firered_lit.models.tiny import make_tiny

TARGET = (96, 160)  # height, width
PROMPT = "Put the cat of Picture 2 on the sofa, 把天空改成红色"


@pytest.fixture(autouse=True)
def small_constants(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stock pipeline's sizes are module constants; the tiny base's are smaller."""
    monkeypatch.setattr(stock_module, "VAE_IMAGE_SIZE", 128 * 128)
    monkeypatch.setattr(stock_module, "CONDITION_IMAGE_SIZE", 96 * 96)


@pytest.fixture(scope="module", params=["edit_plus-zero_cond_t", "edit_plus"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Base:
    if request.param == "edit_plus-zero_cond_t":
        return open_base("tiny")
    return open_base(str(make_tiny(tmp_path_factory.mktemp("tiny") / "base", zero_cond_t=False)))


@cache
def parts(base: Base):
    return stock_pipeline(base, True), base.conditioner(), base.codec(), base.transformer().eval()


@cache
def photo(width: int, height: int, seed: int) -> Image.Image:
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
    return coarse.resize((width, height), Image.Resampling.BICUBIC)


def photos(count: int) -> list[Image.Image]:
    return [photo(*size, seed) for seed, size in enumerate([(200, 131), (90, 190), (128, 128)][:count])]


def latents_of(base: Base, images: list[Image.Image]) -> tuple[torch.Tensor, ...]:
    codec = parts(base)[2]
    sizes = [calculate_dimensions(base.sizes.reference_area, i.width / i.height) for i in images]
    return tuple(codec.encode(to_pixels(i.resize(s, Image.Resampling.LANCZOS))[None]) for i, s in zip(images, sizes))


def condition(base: Base, images: list[Image.Image], prompt: str = PROMPT) -> Condition:
    row = parts(base)[1].encode([prompt], [images], base.sizes.condition_area)[0]
    return Condition(Text.pad([row]), latents_of(base, images))


def noise(seed: int = 0) -> torch.Tensor:
    return torch.randn(1, 16, TARGET[0] // 8, TARGET[1] // 8, generator=torch.Generator().manual_seed(seed))


def first_velocity(pipe, **call) -> tuple[torch.Tensor, torch.Tensor]:
    """The stock pipeline's (prediction for the target's tokens, timestep) at its first of two steps."""
    seen = []
    hook = pipe.transformer.register_forward_hook(
        lambda m, a, k, out: seen.append((out[0], k["timestep"])), with_kwargs=True
    )
    try:
        pipe(height=TARGET[0], width=TARGET[1], num_inference_steps=2, output_type="latent", true_cfg_scale=1.0, **call)
    finally:
        hook.remove()
    tokens = TARGET[0] * TARGET[1] // 256
    return seen[0][0][:, :tokens], seen[0][1]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_one_step_equals_the_stock_edit_pipeline(base: Base, count: int) -> None:
    pipe, _, _, transformer = parts(base)
    images, x = photos(count), noise()
    ours = condition(base, images)
    embeds = {"prompt_embeds": ours.text.embeddings, "prompt_embeds_mask": torch.ones(ours.text.embeddings.shape[:2])}
    expected, sigma = first_velocity(pipe, image=images, latents=pack(x), **embeds)
    got = pack(velocity(transformer, x, sigma, ours))
    assert torch.allclose(got, expected, atol=1e-5)
    swapped = Condition(ours.text, tuple(r.transpose(-1, -2) for r in ours.references))
    assert not torch.allclose(pack(velocity(transformer, x, sigma, swapped)), expected, atol=1e-5)


def test_one_step_without_references_equals_the_stock_text_to_image_pipeline(base: Base) -> None:
    pipe, _, _, transformer = parts(base)
    text_pipe = QwenImagePipeline(**{k: v for k, v in pipe.components.items() if k != "processor"})
    x, ours = noise(), condition(base, [])
    expected, sigma = first_velocity(text_pipe, prompt=PROMPT, latents=pack(x))
    assert torch.allclose(pack(velocity(transformer, x, sigma, ours)), expected, atol=1e-5)


def test_a_batch_of_two_text_lengths_equals_two_single_calls(base: Base) -> None:
    pipe, conditioner, _, transformer = parts(base)
    image, prompts = photos(1), [PROMPT, "red"]
    rows = conditioner.encode(prompts, [image, image], base.sizes.condition_area)
    text = Text.pad(rows)
    assert text.mask is not None
    references = tuple(r.expand(2, -1, -1, -1) for r in latents_of(base, image))
    x = torch.cat([noise(1), noise(2)])
    sigma = torch.ones(2)
    batch = pack(velocity(transformer, x, sigma, Condition(text, references)))
    for i, row in enumerate(rows):
        embeds = {"prompt_embeds": row[None], "prompt_embeds_mask": torch.ones(1, len(row))}
        expected, _ = first_velocity(pipe, image=image, latents=pack(x[i : i + 1]), **embeds)
        assert torch.allclose(batch[i : i + 1], expected, atol=1e-5)


def with_token_types(pipe, prompt: str, images: list[Image.Image]) -> torch.Tensor:
    """The stock pipeline's embeddings, were it to pass on everything that its processor returns."""
    kept = {}
    processor, forward = pipe.processor, pipe.text_encoder.forward

    def remember(**inputs):
        kept["out"] = processor(**inputs)
        return kept["out"]

    def complete(**inputs):
        return forward(**inputs, mm_token_type_ids=kept["out"]["mm_token_type_ids"])

    shown = [i.resize(calculate_dimensions(96 * 96, i.width / i.height), Image.Resampling.LANCZOS) for i in images]
    try:
        pipe.processor, pipe.text_encoder.forward = remember, complete
        return pipe._get_qwen_prompt_embeds(prompt, shown)[0][0]
    finally:
        pipe.processor, pipe.text_encoder.forward = processor, forward


@pytest.mark.parametrize("count", [1, 2, 3])
def test_embeddings_equal_the_stock_ones_given_the_token_types(base: Base, count: int) -> None:
    pipe, conditioner, _, _ = parts(base)
    ours = conditioner.encode([PROMPT], [photos(count)], base.sizes.condition_area)[0]
    with torch.no_grad():
        expected = with_token_types(pipe, PROMPT, photos(count))
    assert ours.shape == expected.shape
    assert torch.allclose(ours, expected, atol=1e-5)


def test_the_stock_pipeline_still_loses_the_text_positions() -> None:
    """Side by side. When this fails, diffusers is mended: drop the warning and the sentence in the docs."""
    base = open_base("tiny")
    pipe, conditioner, _, _ = parts(base)
    ours = conditioner.encode([PROMPT], [photos(1)], base.sizes.condition_area)[0]
    shown = [i.resize(calculate_dimensions(96 * 96, i.width / i.height), Image.Resampling.LANCZOS) for i in photos(1)]
    with torch.no_grad():
        stock = pipe._get_qwen_prompt_embeds(PROMPT, shown)[0][0]
    difference = (ours - stock).abs().max().item()
    print(f"ours {ours.flatten()[:4].tolist()}, stock {stock.flatten()[:4].tolist()}: max diff {difference:.2e}")
    assert ours.shape == stock.shape
    assert difference > 1e-4
    assert loses_text_positions()


def test_prompts_are_encoded_alike_alone_and_in_a_batch(base: Base) -> None:
    conditioner = parts(base)[1]
    prompts, images = [PROMPT, "a", "draw a house"], [photos(2), photos(1), []]
    together = conditioner.encode(prompts, images, base.sizes.condition_area)
    for prompt, refs, row in zip(prompts, images, together):
        alone = conditioner.encode([prompt], [refs], base.sizes.condition_area)[0]
        assert torch.allclose(row, alone, atol=1e-5)


def test_fault_8_references_keep_their_picture_number_and_their_own_aspect_ratio() -> None:
    """The authors' training code writes no "Picture N:" and stretches references to the target's aspect ratio."""
    base = open_base("tiny")
    conditioner = parts(base)[1]
    seen = []
    original = conditioner.processor
    try:
        conditioner.processor = lambda **kw: seen.append(kw) or original(**kw)
        conditioner.encode(["x"], [photos(2)], base.sizes.condition_area)
    finally:
        conditioner.processor = original
    assert "Picture 1: <|vision_start|>" in seen[0]["text"][0]
    assert "Picture 2: <|vision_start|>" in seen[0]["text"][0]
    wide, tall = (i.width / i.height for i in seen[0]["images"])
    assert wide > 1 > tall


def test_fault_9_reference_latents_are_the_posterior_mode(base: Base) -> None:
    """The authors sample the source's latents in training; inference takes the mode."""
    pipe = parts(base)[0]
    size = calculate_dimensions(base.sizes.reference_area, 200 / 131)
    pixels = pipe.image_processor.preprocess(photo(200, 131, 0), size[1], size[0])
    expected = pipe._encode_vae_image(pixels.unsqueeze(2), torch.Generator().manual_seed(1))[:, :, 0]
    ours = latents_of(base, photos(1))[0]
    assert torch.allclose(ours, expected, atol=1e-5)
    assert torch.equal(ours, latents_of(base, photos(1))[0])


@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_our_sampler_draws_what_the_stock_pipeline_draws(base: Base, guidance: float) -> None:
    pipe, _, codec, transformer = parts(base)
    images, x = photos(2), noise(3)
    positive, negative = condition(base, images), condition(base, images, UNCONDITIONAL)
    call = {"prompt_embeds": positive.text.embeddings, "negative_prompt_embeds": negative.text.embeddings}
    masks = {f"{k}_mask": torch.ones(v.shape[:2]) for k, v in call.items()}
    stock = pipe(image=images, latents=pack(x), height=TARGET[0], width=TARGET[1], num_inference_steps=3,
                 true_cfg_scale=guidance, **call, **masks).images[0]  # fmt: skip
    sigmas = schedule(3, x.shape[-1] * x.shape[-2] // 4, base.scheduler_config)
    ours = to_image(codec.decode(sample(transformer, x, sigmas, positive, negative, guidance))[0])
    difference = np.abs(np.asarray(ours).astype(int) - np.asarray(stock).astype(int))
    assert difference.max() <= 1
    assert difference.mean() < 0.01


def test_the_single_reference_model_uses_its_own_template(tmp_path) -> None:
    base = open_base(str(make_tiny(tmp_path / "edit", variant="edit")))
    assert base.variant == "edit"
    conditioner = base.conditioner()
    ours = conditioner.encode(["make it red"], [photos(1)], 96 * 96)[0]
    pipe = stock_pipeline(base, True)
    with torch.no_grad():
        size = calculate_dimensions(96 * 96, 200 / 131)
        stock = pipe._get_qwen_prompt_embeds("make it red", photos(1)[0].resize(size, Image.Resampling.LANCZOS))[0][0]
    assert ours.shape == stock.shape
    plus = open_base("tiny").conditioner().encode(["make it red"], [photos(1)], 96 * 96)[0]
    assert len(plus) > len(ours)  # "Picture 1: "


def test_templates_drop_what_the_stock_pipelines_drop() -> None:
    assert {k: t.drop for k, t in stock_templates().items()} == {"edit_plus": 64, "edit": 64, "text": 34}


def test_padding_is_masked(base: Base) -> None:
    transformer = parts(base)[3]
    x, one = noise(), condition(base, photos(1))
    padded = torch.nn.functional.pad(one.text.embeddings, (0, 0, 0, 5), value=7.0)
    mask = torch.arange(padded.shape[1])[None] < one.text.embeddings.shape[1]
    sigma = torch.tensor([0.7])
    expected = velocity(transformer, x, sigma, one)
    assert torch.allclose(
        velocity(transformer, x, sigma, Condition(Text(padded, mask), one.references)), expected, atol=1e-5
    )
    assert not torch.allclose(
        velocity(transformer, x, sigma, Condition(Text(padded, None), one.references)), expected, atol=1e-5
    )
