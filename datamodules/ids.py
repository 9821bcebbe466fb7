"""A set of ids that keeps 8 to 16 bytes for each."""

from array import array

import numpy as np

from firered_lit.draws import seed_of

FIRST = 1 << 12  # places at the start; a power of two


class Ids:
    """Ids seen so far, by a 63-bit hash: open addressing in one array, a tenth of a Python set."""

    def __init__(self) -> None:
        self.places, self.count = array("Q", bytes(8 * FIRST)), 0

    def __len__(self) -> int:
        return self.count

    def add(self, name: str) -> bool:
        """Whether the id is new."""
        if 3 * (self.count + 1) > 2 * len(self.places):  # longer searches cost more than a larger array
            self._grow()
        key = seed_of("id", name) or 1  # 0 is a free place
        place, mask = key & (len(self.places) - 1), len(self.places) - 1
        while (there := self.places[place]) != key:
            if not there:
                self.places[place] = key
                self.count += 1
                return True
            place = (place + 1) & mask
        return False

    def _grow(self) -> None:
        old, self.places = self.places, array("Q", bytes(16 * len(self.places)))
        mask = len(self.places) - 1
        keys = np.frombuffer(old, np.uint64)
        for piece in np.array_split(keys, max(1, len(keys) >> 16)):
            for key in piece[piece != 0].tolist():
                place = key & mask
                while self.places[place]:
                    place = (place + 1) & mask
                self.places[place] = key
