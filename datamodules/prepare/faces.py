"""Faces of rows that name no regions, found by YuNet through OpenCV, with a weights file that the user brings."""

import hashlib
from pathlib import Path

import numpy as np
from PIL import Image

from firered_lit.errors import UserError
from firered_lit.textfiles import MEGABYTE, read_bytes

from ..sources.regions import FACE, Region, mirrored

LEAST_SCORE = 0.8
LARGEST_WEIGHTS = 512 * MEGABYTE
LEAST_SIDE = 16.0  # pixels of a face's box; a smaller one tells nobody apart
AS_SEEN = (1, 0, 2, 4, 3)  # places of points of a detector that names left and right by the person


class Faces:
    """A face detector for one thread.

    Args:
        path: ONNX weights of YuNet.

    Raises:
        UserError: The file is missing, or is no YuNet model.
    """

    def __init__(self, path: str) -> None:
        import cv2

        self.path = path
        self.failure = cv2.error
        if not Path(path).is_file():
            raise UserError(f"faces={path}: no such file; it is the ONNX weights of OpenCV's YuNet face detector")
        try:
            self.detector = cv2.FaceDetectorYN.create(str(path), "", (64, 64), LEAST_SCORE)
        except cv2.error as problem:
            raise self._unusable(problem) from None
        self(Image.new("RGB", (64, 64)))  # a model of something else is refused before anything is encoded

    def __reduce__(self) -> "tuple[type[Faces], tuple[str]]":
        """Return how another process opens it: by its weights."""
        return Faces, (self.path,)

    @property
    def digest(self) -> str:
        """A hash of the weights."""
        return hashlib.blake2b(read_bytes(self.path, LARGEST_WEIGHTS), digest_size=12).hexdigest()

    def __call__(self, image: Image.Image) -> list[Region]:
        """Return the faces of an RGB image, the surest first: five points each, in the order of ArcFace."""
        picture = np.ascontiguousarray(np.asarray(image.convert("RGB"))[:, :, ::-1])
        try:
            self.detector.setInputSize(image.size)
            _, found = self.detector.detect(picture)
        except self.failure as problem:
            raise self._unusable(problem) from None
        if found is None:
            return []

        # Those that are large enough, and wholly on the picture.
        faces = []
        for row in sorted(found.astype(float).tolist(), key=lambda row: -row[-1]):
            face = _points(row)
            if min(row[2:4]) >= LEAST_SIDE and all(_inside(point, image.size) for point in face):
                faces.append(face)
        return faces

    def _unusable(self, problem: Exception) -> UserError:
        """Return the error for a file that is no YuNet model."""
        reason = " ".join(str(problem).split())[:200]
        return UserError(f"faces={self.path}: cannot be used as OpenCV's YuNet face detector: {reason}")


def _points(row: list[float]) -> Region:
    """Return the points of a row of YuNet.

    Args:
        row: A box (4), x and y of two eyes, nose and two corners of the mouth, and a score.
    """
    points = row[4 : 4 + 2 * FACE]
    face = tuple(zip(points[::2], points[1::2]))
    if mirrored(face):
        return tuple(face[place] for place in AS_SEEN)
    return face


def _inside(point: tuple[float, float], size: tuple[int, int]) -> bool:
    """Return whether a point lies on a picture of `size` (width, height)."""
    return -0.5 <= point[0] <= size[0] - 0.5 and -0.5 <= point[1] <= size[1] - 0.5
