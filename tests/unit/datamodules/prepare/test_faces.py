"""Faces found for rows that name no regions: the detector's points in our order; what is no detector is one error."""

import json

import numpy as np
import pytest
from PIL import Image

from datamodules.chunks.samples import Chunks
from datamodules.prepare.faces import Faces
from datamodules.prepare.write import prepare
from firered_lit.errors import UserError
from firered_lit.models.sizes import Sizes

SEEN = [[30.0, 30.0], [50.0, 31.0], [40.0, 40.0], [33.0, 50.0], [48.0, 51.0]]  # ArcFace's order


def row(points, score=0.9, side=40.0):
    return [20.0, 20.0, side, side, *np.reshape(points, -1), score]


class FakeYuNet:
    """Stands for cv2.FaceDetectorYN: finds what it is told to on bright pictures, and keeps what it was shown."""

    def __init__(self, found):
        self.found, self.size, self.shown = found, None, []

    def setInputSize(self, size):  # noqa: N802, OpenCV's name
        self.size = size

    def detect(self, picture):
        assert picture.shape[1::-1] == self.size
        assert picture.flags.c_contiguous
        self.shown.append(picture)
        bright = picture.mean() > 100
        return 1, np.array(self.found, np.float32) if bright and self.found else None


@pytest.fixture
def weights(tmp_path):
    (tmp_path / "yunet.onnx").write_bytes(b"weights")
    return str(tmp_path / "yunet.onnx")


@pytest.fixture
def detector(monkeypatch):
    def found(rows):
        import cv2

        fake = FakeYuNet(rows)
        monkeypatch.setattr(cv2.FaceDetectorYN, "create", lambda *arguments: fake)
        return fake

    return found


def test_points_come_in_arcfaces_order_the_surest_face_first(detector, weights):
    swapped = np.array(SEEN)[[1, 0, 2, 4, 3]] + 5
    fake = detector([row(SEEN, 0.85), row(swapped, 0.95)])
    faces = Faces(weights)(Image.new("RGB", (100, 80), (250, 150, 50)))
    assert np.allclose(faces, [np.array(SEEN) + 5, SEEN])
    assert fake.shown[-1][0, 0].tolist() == [50, 150, 250]  # OpenCV's blue, green, red
    assert fake.size == (100, 80)


def test_small_faces_and_those_over_the_edge_are_left_out(detector, weights):
    beyond = np.array(SEEN) + np.array([60, 0])
    detector([row(SEEN, side=10.0), row(beyond), row(SEEN, 0.81)])
    assert np.allclose(Faces(weights)(Image.new("RGB", (100, 80), "white")), [SEEN])
    assert Faces(weights)(Image.new("RGB", (100, 80))) == []


@pytest.mark.parametrize(
    ("content", "message"), [(None, "no such file"), (b"not a model", "cannot be used as OpenCV's YuNet")]
)
def test_what_is_no_detector_is_one_line_and_leaves_no_folder(tmp_path, content, message):
    path = tmp_path / "y.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        prepare(str(tmp_path), str(tmp_path / "out"), "tiny", faces=str(path))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_prepare_fills_what_rows_do_not_name(detector, weights, tmp_path, capsys):
    detector([row(SEEN)])
    for name, shade in {"s": 90, "t": 200, "dark": 10}.items():
        noise = np.random.default_rng(shade).integers(0, 20, (96, 96, 3)) + shade
        Image.fromarray(noise.astype(np.uint8)).save(tmp_path / f"{name}.png")
    bare = {"source_image": "s.png", "target_image": "t.png", "instruction": "red"}
    rows = [
        bare | {"id": "found", "inverse_instruction": "undo"},
        bare | {"id": "named", "regions": [{"box": [10, 10, 60, 60]}]},
        bare | {"id": "none", "target_image": "dark.png"},
    ]
    (tmp_path / "e.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sizes, out = Sizes(96 * 96, 96 * 96, 56 * 56), tmp_path / "out"
    prepare(str(tmp_path / "e.jsonl"), str(out), "tiny", sizes, held_out=0.0, device="cpu", faces=weights)
    assert "regions         2, 0 others left the crop; 0 samples have a mask" in capsys.readouterr().out
    chunks = Chunks(out / "chunks")
    metas = {sample.id: sample.meta for sample in map(chunks.read, range(len(chunks)))}
    assert np.allclose(metas["found"]["regions"], [SEEN])
    assert metas["named"]["regions"] == [[[10.0, 10.0], [60.0, 60.0]]]
    assert "regions" not in metas["none"]
    assert "regions" not in metas["found.inverse"]  # its target is the source, which is not bright
    data = json.loads((out / "data.json").read_text())
    assert (data["regions"], data["faces"]) == (2, Faces(weights).digest)
    with pytest.raises(UserError, match="another faces"):
        prepare(str(tmp_path / "e.jsonl"), str(out), "tiny", sizes, held_out=0.0, device="cpu")
