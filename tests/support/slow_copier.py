"""A model that takes its time, and writes a line for every picture that it begins. Named in a recipe by --allow."""

import os
import time

from firered_lit.evaluation.models.planted import Copier


class SlowCopier(Copier):
    """A copier of the source.

    Args:
        seconds: That a picture takes.
        begun: File that gets a line for each picture.
    """

    def __init__(self, seconds: float, begun: str) -> None:
        self.seconds = seconds
        self.begun = begun

    def draw(self, item, sources, seed):
        with open(self.begun, "a", encoding="utf-8") as file:
            file.write(f"{os.getpid()} {item.suite} {item.id}\n")
        time.sleep(self.seconds)
        return super().draw(item, sources, seed)
