"""A complete Qwen-Image-Edit pipeline in miniature: the real classes, a few megabytes, no download.

Every part is what the full-size model has (byte-level tokenizer, Qwen2.5-VL, causal VAE, MMDiT, flow scheduler); only
widths and depths are small. All weights are random, but for the VAE: it was trained, so that pictures can be recognised
(`benchmarks/train_tiny_vae.py`). The tokenizer learns its merges on the prompt templates, so that their prefixes count
64 and 34 tokens as in the real one and the stock pipelines' constants hold.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch

from .cache import appear, cache_folder
from .sizes import Sizes

SPECIAL = [
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>",
    "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
    "<|image_pad|>", "<|video_pad|>",
]  # fmt: skip
SIZES = Sizes(target_area=128 * 128, reference_area=128 * 128, condition_area=96 * 96, max_upscale=4.0)
SEED = 0
VAE_WEIGHTS = Path(__file__).with_name("tiny_vae.safetensors")


def cached_tiny() -> Path:
    """The tiny pipeline's folder, built on first use, once per version of its parts. Several may start at once."""
    import diffusers
    import transformers

    parts = [Path(__file__).read_bytes(), VAE_WEIGHTS.read_bytes() if VAE_WEIGHTS.exists() else b""]
    versions = f"{diffusers.__version__} {transformers.__version__}".encode()
    folder = cache_folder() / f"tiny-{hashlib.blake2b(b'|'.join([*parts, versions]), digest_size=6).hexdigest()}"
    if not (folder / "model_index.json").exists():
        make_tiny(folder)
    return folder


def make_tiny(folder: str | Path, variant: str = "edit_plus", zero_cond_t: bool = True) -> Path:
    """Write the tiny pipeline as a diffusers folder, whole or not at all, and return its path.

    variant: "edit_plus" (2509 / 2511 / FireRed kind), "edit" (the original Qwen-Image-Edit) or "text" (text-to-image).
    """

    def fill(staging: Path) -> None:
        tiny_pipeline(variant, zero_cond_t).save_pretrained(staging)
        sizes = SIZES if variant != "edit" else Sizes(**{**SIZES.as_dict(), "condition_area": SIZES.reference_area})
        (staging / "firered_lit.json").write_text(json.dumps({"sizes": sizes.as_dict()}, indent=2) + "\n")

    return appear(Path(folder), fill)


def tiny_pipeline(variant: str = "edit_plus", zero_cond_t: bool = True) -> Any:
    """The tiny pipeline in memory. The global random state is left as it was."""
    from diffusers import QwenImageEditPipeline, QwenImageEditPlusPipeline, QwenImagePipeline

    kind = {"edit_plus": QwenImageEditPlusPipeline, "edit": QwenImageEditPipeline, "text": QwenImagePipeline}[variant]
    tokenizer = tiny_tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        parts: dict[str, Any] = {
            "tokenizer": tokenizer,
            "text_encoder": _text_encoder(tokenizer),
            "vae": _vae(),
            "transformer": _transformer(zero_cond_t and variant == "edit_plus"),
            "scheduler": _scheduler(),
        }
    if variant != "text":
        parts["processor"] = _processor(tokenizer)
    return kind(**parts)


def tiny_tokenizer() -> Any:
    """A byte-level Qwen2 tokenizer whose merges make one token of every word of the stock prompt templates."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers
    from transformers import Qwen2Tokenizer
    from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

    from .conditioning import stock_templates

    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    words = pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), "isolated")
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.Sequence([words, byte_level])
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    corpus = [template.text for template in stock_templates().values()]
    trainer = trainers.BpeTrainer(vocab_size=2000, initial_alphabet=alphabet, min_frequency=1, show_progress=False)
    learner.train_from_iterator(corpus, trainer)
    model = json.loads(learner.to_str())["model"]
    merges = [tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in model["merges"]]
    tokenizer = Qwen2Tokenizer(vocab=model["vocab"], merges=merges, model_max_length=4096)
    tokenizer.add_special_tokens({"additional_special_tokens": SPECIAL[1:]})
    return tokenizer


def _processor(tokenizer: Any) -> Any:
    from transformers import Qwen2VLProcessor
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor
    from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor

    return Qwen2VLProcessor(
        image_processor=Qwen2VLImageProcessor(min_pixels=56 * 56, max_pixels=28 * 28 * 1280),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(),
        chat_template="{{messages}}",
    )


def _text_encoder(tokenizer: Any, hidden: int = 64, heads: int = 4) -> Any:
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    token = {name: tokenizer.convert_tokens_to_ids(name) for name in SPECIAL}
    half = hidden // heads // 2
    section = [half - 2 * (half * 3 // 8), half * 3 // 8, half * 3 // 8]  # time, height, width; sums to half a head
    text = {
        "vocab_size": len(tokenizer), "hidden_size": hidden, "intermediate_size": 2 * hidden, "num_hidden_layers": 2,
        "num_attention_heads": heads, "num_key_value_heads": 2, "max_position_embeddings": 4096,
        "bos_token_id": token["<|endoftext|>"], "eos_token_id": token["<|im_end|>"],
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": section},
    }  # fmt: skip
    vision = {
        "depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "patch_size": 14, "window_size": 112,
        "spatial_merge_size": 2, "temporal_patch_size": 2, "out_hidden_size": hidden, "fullatt_block_indexes": [1],
    }  # fmt: skip
    config = Qwen2_5_VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=token["<|image_pad|>"],
        video_token_id=token["<|video_pad|>"],
        vision_start_token_id=token["<|vision_start|>"],
        vision_end_token_id=token["<|vision_end|>"],
    )
    return Qwen2_5_VLForConditionalGeneration(config).eval()


def vae_config() -> dict[str, Any]:
    """Arguments of the tiny `AutoencoderKLQwenImage`: 8x smaller sides, 16 channels, as in the real one."""
    return {
        "base_dim": 48, "z_dim": 16, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 0,
        "temperal_downsample": [False, True, True], "latents_mean": [0.0] * 16, "latents_std": [1.0] * 16,
    }  # fmt: skip


def _vae() -> Any:
    from diffusers import AutoencoderKLQwenImage
    from safetensors import safe_open
    from safetensors.torch import load_file

    config = vae_config()
    if not VAE_WEIGHTS.exists():
        return AutoencoderKLQwenImage(**config).eval()
    with safe_open(str(VAE_WEIGHTS), "pt") as file:
        statistics = {k: json.loads(v) for k, v in file.metadata().items() if k.startswith("latents_")}
    vae = AutoencoderKLQwenImage(**{**config, **statistics})
    trained = load_file(VAE_WEIGHTS)
    with torch.no_grad():
        for name, parameter in vae.named_parameters():  # kernels are stored as the one slice that single frames meet
            slot = parameter[:, :, -1] if parameter.ndim == 5 else parameter
            parameter.zero_()
            if name in trained:
                slot.copy_(trained[name])
    return vae.eval()


def _transformer(zero_cond_t: bool) -> Any:
    from diffusers import QwenImageTransformer2DModel

    return QwenImageTransformer2DModel(
        patch_size=2,
        in_channels=64,
        out_channels=16,
        num_layers=2,
        attention_head_dim=32,
        num_attention_heads=4,
        joint_attention_dim=64,
        axes_dims_rope=(8, 12, 12),
        zero_cond_t=zero_cond_t,
    ).eval()


def _scheduler() -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(
        num_train_timesteps=1000,
        shift=1.0,
        use_dynamic_shifting=True,
        base_shift=0.5,
        max_shift=0.9,
        base_image_seq_len=256,
        max_image_seq_len=8192,
        shift_terminal=0.02,
        time_shift_type="exponential",
    )
