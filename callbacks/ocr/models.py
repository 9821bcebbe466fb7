"""PaddleOCR's models without a download: folders made once from the ONNX files that the rapidocr wheel carries."""

import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from firered_lit.errors import UserError
from firered_lit.files import appearing
from firered_lit.models.cache import cache_folder
from firered_lit.places import user_path
from firered_lit.textfiles import read_text

DETECTION, RECOGNITION = "PP-OCRv6_small_det", "PP-OCRv6_small_rec"
_FILES = {DETECTION: "PP-OCRv6_det_small.onnx", RECOGNITION: "PP-OCRv6_rec_small.onnx"}  # in rapidocr/models
_QUOTIENT = re.compile(r"[\d.]+( ?/ ?[\d.]+)?")  # of numbers, as 1./255.
_LAYOUT = "1"  # of the folders; a new one is built beside the old


@dataclass(frozen=True)
class OCRModel:
    """One of PaddleOCR's models: its name and its folder (None: PaddleOCR finds or downloads it by name)."""

    name: str
    folder: Path | None = None


def offline_models(cache: Path) -> tuple[OCRModel, OCRModel]:
    """Return detection and recognition from the rapidocr wheel, as PaddleOCR folders under `cache`, built on first use.

    Raises UserError when rapidocr, or the version of it that has these files, is not installed.
    """
    files = {name: _wheel() / file for name, file in _FILES.items()}
    if missing := [str(path) for path in files.values() if not path.is_file()]:
        raise UserError(f"{missing[0]}: not in the rapidocr wheel; install rapidocr>=3.10 or name PaddleOCR's models")
    identity = "|".join([_LAYOUT, *(f"{path} {path.stat().st_size}" for path in files.values())])
    home = cache / f"ocr-{hashlib.blake2b(identity.encode(), digest_size=6).hexdigest()}"
    if not home.is_dir():
        _build(home, files)
    return OCRModel(DETECTION, home / DETECTION), OCRModel(RECOGNITION, home / RECOGNITION)


def chosen_models(detection: str | None, recognition: str | None) -> tuple[OCRModel, OCRModel]:
    """Return the two models that an engine works with.

    Args:
        detection: Folder or name of a PaddleOCR model; that of the rapidocr wheel when None.
        recognition: The same of the model that recognises lines.

    Raises:
        UserError: A folder is no model's, or the wheel is needed and not installed.
    """
    if detection and recognition:
        return model(detection), model(recognition)
    offline = offline_models(cache_folder())
    return (
        model(detection) if detection else offline[0],
        model(recognition) if recognition else offline[1],
    )


def model(name: str) -> OCRModel:
    """Return a model that a user names: a folder with `inference.yml`, which holds its name, or a name of PaddleOCR's.

    Raises:
        UserError: a folder that is not a model's, or whose file holds a formula where PaddleOCR would evaluate it.
    """
    folder = user_path(name)
    if not folder.is_dir():
        if folder.is_absolute() or "/" in name:
            raise UserError(f"{name}: no such folder; give a PaddleOCR model folder or one of its names ({DETECTION})")
        return OCRModel(name)
    import yaml

    try:
        config = yaml.safe_load(read_text(folder / "inference.yml"))
        for scale in _scales(config):
            if isinstance(scale, str) and not _QUOTIENT.fullmatch(scale):
                raise UserError(f"{folder / 'inference.yml'}: scale: expected a number or 1./255., got {scale!r}")
        return OCRModel(str(config["Global"]["model_name"]), folder.resolve())
    except (OSError, yaml.YAMLError, KeyError, TypeError) as problem:
        raise UserError(f"{folder / 'inference.yml'}: not a PaddleOCR model folder ({problem})") from problem


def _scales(node: Any) -> Iterator[Any]:
    """Yield every value named `scale`, which PaddleOCR evaluates as Python when it is text."""
    if isinstance(node, dict):
        for key, value in node.items():
            if key == "scale":
                yield value
            yield from _scales(value)
    if isinstance(node, list):
        for item in node:
            yield from _scales(item)


def _wheel() -> Path:
    from importlib.util import find_spec

    spec = find_spec("rapidocr")
    if spec is None or not spec.submodule_search_locations:
        raise UserError("rapidocr is not installed; install it or name PaddleOCR's own models")
    return Path(next(iter(spec.submodule_search_locations))) / "models"


def _build(home: Path, files: dict[str, Path]) -> None:
    """Write the folders whole or not at all; several processes may try at once."""
    import yaml

    try:
        with appearing(home) as staging:
            for name, onnx in files.items():
                (staging / name).mkdir()
                try:
                    os.symlink(onnx, staging / name / "inference.onnx")
                except OSError:  # a file system without links
                    shutil.copyfile(onnx, staging / name / "inference.onnx")
                config = _detection() if name == DETECTION else _recognition(onnx)
                text = yaml.safe_dump({"Global": {"model_name": name}, **config}, allow_unicode=True)
                (staging / name / "inference.yml").write_text(text, encoding="utf-8")
    except OSError:  # somebody else was faster
        if not home.is_dir():
            raise


def _detection() -> dict[str, Any]:
    """Return the preparation of PP-OCR's detectors; the thresholds are those of PaddleOCR's own OCR pipeline."""
    normalise = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "scale": "1./255.", "order": "hwc"}
    steps = [{"DetResizeForTest": {"resize_long": 960}}, {"NormalizeImage": normalise}, {"ToCHWImage": None}]
    boxes = {"name": "DBPostProcess", "thresh": 0.3, "box_thresh": 0.6, "unclip_ratio": 1.5, "max_candidates": 3000}
    return {"PreProcess": {"transform_ops": [*_decode(), *steps, *_keep()]}, "PostProcess": boxes}


def _recognition(onnx: Path) -> dict[str, Any]:
    steps = [*_decode(), {"RecResizeImg": {"image_shape": [3, 48, 320]}}, *_keep()]
    decode = {"name": "CTCLabelDecode", "character_dict": _dictionary(onnx)}
    return {"PreProcess": {"transform_ops": steps}, "PostProcess": decode}


def _dictionary(onnx: Path) -> list[str]:
    """Return the characters that the recogniser knows, in the order of its outputs: the ONNX file's own metadata."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(onnx), providers=["CPUExecutionProvider"])
    characters = session.get_modelmeta().custom_metadata_map["character"].split("\n")
    outputs = session.get_outputs()[0].shape[-1]
    if len(characters) + 2 != outputs:  # blank and the space are added by the decoder
        raise UserError(f"{onnx}: {len(characters)} characters for {outputs} outputs: an unknown release of rapidocr")
    return characters


def _decode() -> list[dict[str, Any]]:
    return [{"DecodeImage": {"img_mode": "BGR", "channel_first": False}}]


def _keep() -> list[dict[str, Any]]:
    return [{"KeepKeys": {"keep_keys": ["image"]}}]
