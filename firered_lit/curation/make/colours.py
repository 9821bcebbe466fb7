"""Colours of what is put onto a picture."""

from random import Random

import numpy as np

from firered_lit.curation.rows import Pixels

COLOURS = {
    "red": (214, 32, 38),
    "orange": (245, 134, 20),
    "yellow": (250, 214, 30),
    "green": (32, 148, 62),
    "blue": (28, 84, 206),
    "purple": (122, 44, 160),
    "white": (255, 255, 255),
    "black": (0, 0, 0),
}
_FAR = 110.0  # distance of two colours that nobody takes for one, as levels of 255
_LIGHTER = 60.0  # difference of luminance at which letters can be read
_LUMINANCE = np.array([0.299, 0.587, 0.114])


def standing_out(picture: Pixels, draw: Random) -> str | None:
    """Return a colour that differs from what is there; None where none does.

    Args:
        picture: The part of the picture that will lie around it.
        draw: The choice.
    """
    mean = picture.reshape(-1, 3).mean(axis=0)
    fitting = []
    for name, colour in COLOURS.items():
        apart = mean - np.array(colour)
        if np.linalg.norm(apart) >= _FAR and abs(apart @ _LUMINANCE) >= _LIGHTER:
            fitting.append(name)
    return draw.choice(fitting) if fitting else None
