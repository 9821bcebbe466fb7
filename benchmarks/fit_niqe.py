"""Fit blind quality on good photographs, and show what it says of defects in those that it was not fitted on.

    python benchmarks/fit_niqe.py [--photos DIR] [--out FILE]

The photographs are the three that the dependencies bring and those in DIR. Each is measured with what all others fit;
FILE gets the fit of all of them. Ours (firered_lit/curation/niqe.safetensors) is of the three and of astronaut, coffee,
chelsea, rocket and motorcycle_left, which scikit-image 0.26 brings.
"""

import argparse
import io
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from defects import encoded, photographs
from PIL import Image

from firered_lit.curation.niqe import PATCH, distance, fit_niqe

BLUR = (1, 2, 4)  # sigma in px
NOISE = (8, 16, 32)  # levels
QUALITY = (40, 20, 8)  # of JPEG


def crops(photo: np.ndarray) -> Any:
    """Return the photograph, and without half a patch above, at the left, or both: four sets of patches."""
    half = PATCH // 2
    return [photo[top:, left:] for top in (0, half) for left in (0, half)]


def fitted(photos: Sequence[np.ndarray], out: str | None = None) -> Any:
    return fit_niqe([crop for photo in photos for crop in crops(photo)], out)


def blurred(pixels: np.ndarray, sigma: float) -> np.ndarray:
    return cv2.GaussianBlur(pixels, (0, 0), sigma)


def noisy(pixels: np.ndarray, sigma: float) -> np.ndarray:
    noise = np.random.default_rng(0).normal(0, sigma, pixels.shape)
    return (pixels + noise).clip(0, 255).astype(np.uint8)


def compressed(pixels: np.ndarray, quality: int) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(encoded(pixels, quality))).convert("RGB"))


def measured(pixels: Any, mean: Any, covariance: Any) -> Any:
    """Return the distance of a picture, and those of its blurred, noisy and compressed copies, mild ones first."""
    kinds = {"blurred": (blurred, BLUR), "noisy": (noisy, NOISE), "compressed": (compressed, QUALITY)}
    of = {"clean": [pixels]}
    for name, (change, levels) in kinds.items():
        of[name] = [change(pixels, level) for level in levels]
    grey: dict[str, list[Any]] = {
        name: [cv2.cvtColor(copy, cv2.COLOR_RGB2GRAY) for copy in copies] for name, copies in of.items()
    }
    return {name: [distance(copy, mean, covariance) for copy in copies] for name, copies in grey.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", metavar="DIR")
    parser.add_argument("--out", metavar="FILE")
    given = parser.parse_args()
    photos = photographs(given.photos)
    print("| clean | blurred | noisy | compressed |\n|---|---|---|---|")
    for number, photo in enumerate(photos):
        found = measured(photo, *fitted(photos[:number] + photos[number + 1 :]))
        print("| " + " | ".join(", ".join(f"{value:.1f}" for value in values) for values in found.values()) + " |")
    if given.out:
        fitted(photos, given.out)


if __name__ == "__main__":
    main()
