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
COLUMNS = ("clean", "blurred", "noisy", "compressed")


def crops(photo: np.ndarray) -> list[np.ndarray]:
    """Return the photograph, and without half a patch above, at the left, or both: four sets of patches."""
    starts = (0, PATCH // 2)
    return [photo[top:, left:] for top in starts for left in starts]


def fitted(photos: Sequence[np.ndarray], out: str | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and covariance of the patches of photographs, and write them to a file where one is named."""
    return fit_niqe([crop for photo in photos for crop in crops(photo)], out)


def blurred(pixels: np.ndarray, sigma: float) -> np.ndarray:
    """Return a picture without what is finer than some px."""
    return cv2.GaussianBlur(pixels, (0, 0), sigma)


def noisy(pixels: np.ndarray, sigma: float) -> np.ndarray:
    """Return a picture with noise of some levels, the same for every picture of one size."""
    noise = np.random.default_rng(0).normal(0, sigma, pixels.shape)
    return (pixels + noise).clip(0, 255).astype(np.uint8)


def compressed(pixels: np.ndarray, quality: int) -> np.ndarray:
    """Return a picture as a JPEG file of some quality leaves it."""
    return np.asarray(Image.open(io.BytesIO(encoded(pixels, quality))).convert("RGB"))


def measured(photo: np.ndarray, mean: np.ndarray, covariance: np.ndarray) -> dict[str, list[Any]]:
    """Return the distances of a photograph and of its defective copies, mild ones first, by the name of a column."""
    copies = {
        "clean": [photo],
        "blurred": [blurred(photo, sigma) for sigma in BLUR],
        "noisy": [noisy(photo, sigma) for sigma in NOISE],
        "compressed": [compressed(photo, quality) for quality in QUALITY],
    }
    found: dict[str, list[Any]] = {}
    for name in COLUMNS:
        greys: list[Any] = [cv2.cvtColor(copy, cv2.COLOR_RGB2GRAY) for copy in copies[name]]
        found[name] = [distance(grey, mean, covariance) for grey in greys]
    return found


def print_row(cells: Sequence[str]) -> None:
    """Print a row of a table."""
    print(f"| {' | '.join(cells)} |")


def main() -> None:
    """Print what each photograph measures by the others, and write the fit of all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", metavar="DIR", help="photographs beside those of the dependencies")
    parser.add_argument("--out", metavar="FILE", help="where the fit of all is written")
    arguments = parser.parse_args()
    photos = photographs(arguments.photos)

    # Each photograph by the fit of all others.
    print_row(COLUMNS)
    print(f"|{'---|' * len(COLUMNS)}")
    for number, photo in enumerate(photos):
        others = [*photos[:number], *photos[number + 1 :]]
        mean, covariance = fitted(others)
        found = measured(photo, mean, covariance)
        print_row([", ".join(f"{value:.1f}" for value in found[name]) for name in COLUMNS])

    # The fit of all of them.
    if arguments.out:
        fitted(photos, arguments.out)


if __name__ == "__main__":
    main()
