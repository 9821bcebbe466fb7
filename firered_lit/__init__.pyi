from callbacks.rewards.ocr import score_images as score_images
from firered_lit.api import check as check
from firered_lit.api import check_data as check_data
from firered_lit.api import curate as curate
from firered_lit.api import evaluate as evaluate
from firered_lit.api import fit as fit
from firered_lit.api import prepare as prepare
from firered_lit.checking import Finding as Finding
from firered_lit.editing import Editor as Editor
from firered_lit.errors import UserError as UserError
from firered_lit.exporting import export as export

__version__: str
__all__: list[str]
