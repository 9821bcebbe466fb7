"""Which folders are taken for PaddleOCR models."""

import pytest
import yaml

from callbacks.ocr.models import model
from firered_lit.errors import UserError


def written(folder, scale):
    """A detector's folder whose pictures are multiplied by `scale`."""
    folder.mkdir()
    content = {
        "Global": {"model_name": "PP-OCRv6_small_det"},
        "PreProcess": {"transform_ops": [{"NormalizeImage": {"scale": scale, "order": "hwc"}}]},
    }
    (folder / "inference.yml").write_text(yaml.safe_dump(content))
    return str(folder)


@pytest.mark.parametrize("scale", ["1./255.", "1/255", "0.5", "1.0 / 255.0", 0.004, None])
def test_a_folder_with_a_plain_scale_is_a_model(tmp_path, scale):
    assert model(written(tmp_path / "det", scale)).name == "PP-OCRv6_small_det"


@pytest.mark.parametrize("scale", ["__import__('os').system('true')", "open('x').read()", "1./255.+exec('')", "a", ""])
def test_a_folder_whose_scale_is_code_is_refused(tmp_path, scale):
    """PaddleOCR evaluates it as Python."""
    with pytest.raises(UserError, match=r"inference\.yml: scale: expected a number or 1\./255\., got "):
        model(written(tmp_path / "det", scale))
