"""Callback of `launch.py` that ends the process when the first training step is done."""

import os
import sys
from typing import Any

import lightning as L


class FirstStep(L.Callback):
    """Exit code 0, at once."""

    def on_train_batch_end(self, *_: Any) -> None:
        sys.stdout.flush()
        os._exit(0)
