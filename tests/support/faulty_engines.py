"""Engines that fail as real ones do, for processes that the tests start. What they read is told by the first pixel."""

import os
import time

from firered_lit.rewards.layout_ocr import Char, cells

RAISE, HANG, DIE, NONSENSE = 1, 2, 3, 4


class Faulty:
    characters = frozenset("ok")

    def __init__(self, hang=60.0):
        self.hang = hang

    def read(self, images):
        deeds = [int(image[0, 0, 0]) for image in images]
        if RAISE in deeds:
            raise MemoryError("no memory\nleft")
        if HANG in deeds:
            time.sleep(self.hang)
        if DIE in deeds:
            os.kill(os.getpid(), 9)
        if NONSENSE in deeds:
            os.write(3, b"x")
            return [[Char("o", 0, 0, 1, 1), None] for _ in images]
        print("as libraries do")
        return [cells((2, 2, 20, 10), "ok") for _ in images]


class Planned(Faulty):
    """Does at each reading what the next line of a file says, over all the processes that it is built in."""

    def __init__(self, plan):
        super().__init__()
        self.plan = plan

    def read(self, images):
        with open(self.plan) as file:
            deeds = file.read().split()
        with open(self.plan, "w") as file:
            file.write("\n".join(deeds[1:]))
        shown = [image.copy() for image in images]
        for image in shown:
            image[0, 0, 0] = int(deeds[0]) if deeds else 0
        return super().read(shown)


def planned(plan, **options):
    return Planned(plan)


def build(**options):
    return Faulty(**options)


def broken(**options):
    raise RuntimeError("the weights are of another release")
