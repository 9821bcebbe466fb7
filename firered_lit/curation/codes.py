"""QR codes and bar codes that can be read: those with which pictures are advertised, tracked or sold."""

from collections.abc import Sequence
from typing import Any, ClassVar

from firered_lit.errors import UserError

from .annotator import Annotator, Columns, Of, per_item
from .rows import Picture, shrunk


class Codes(Annotator):
    """Codes by zxing-cpp, and small bar codes by OpenCV.

    Args:
        side: px of the longer side at which pictures are looked at.

    Columns:
        count: Codes that could be read.
        kind: Of the first one, as QRCode or EAN13.
    """

    columns: ClassVar[dict[str, str]] = {"count": "count", "kind": "text"}
    of: ClassVar[Of] = "picture"

    def __init__(self, side: int = 1024) -> None:
        self.side = side
        self._bars: Any = None
        self._read: Any = None

    def open(self) -> None:
        """Load the readers.

        Raises:
            UserError: zxing-cpp is not installed.
        """
        import cv2

        try:
            import zxingcpp
        except ImportError:
            raise UserError(
                "annotators: Codes needs zxing-cpp, of this package's extra `curate`: pip install zxing-cpp"
            ) from None
        self._read = zxingcpp.read_barcodes
        self._bars = cv2.barcode.BarcodeDetector()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_bars": None, "_read": None}

    def annotate(self, batch: Sequence[Picture]) -> Columns:
        """Return the codes of pictures."""
        return per_item(self._codes, tuple(self.columns), batch)

    def _codes(self, picture: Picture) -> tuple[int, str | None]:
        grey = shrunk(picture.grey, self.side)
        found = self._read(grey)
        kinds = [str(code.format).rpartition(".")[2] for code in found]
        if not kinds:
            texts = self._bars.detectAndDecode(grey)[0]
            kinds = ["bar code" for text in ([texts] if isinstance(texts, str) else texts or ()) if text]
        return len(kinds), kinds[0] if kinds else None
