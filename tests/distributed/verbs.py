"""Run several commands in each process of one torchrun: verbs.py FILE, a JSON list of [in double?, arguments].

In double, everything that training computes is float64: what differs then differs by design, not by rounding.
"""

import json
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]
from firered_lit.cli import main  # noqa: E402
from firered_lit.models.backbone import Backbone  # noqa: E402


def run(double, arguments):
    """One command in this process; returns its exit code."""
    with pytest.MonkeyPatch.context() as patch:
        if not any("compile" in text for text in arguments):  # torchao compiles its step, which takes long
            patch.setattr(torch, "compile", lambda function, **_: function)
        if double:
            patch.setattr(torch.Tensor, "float", torch.Tensor.double)
            patch.setattr(Backbone, "__post_init__", lambda backbone: object.__setattr__(backbone, "dtype", "float64"))
        return main(["--debug", *arguments])


if __name__ == "__main__":
    torch.set_num_threads(1)
    for double, arguments in json.loads(Path(sys.argv[1]).read_text()):
        if code := run(double, arguments):
            sys.exit(code)
