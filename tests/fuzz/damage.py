"""Damage to the bytes of tables and pictures, by a seeded generator."""

from random import Random

ODD = (
    b"\x00",
    b"\xff",
    b"\xfe\xff",
    b"\x80",
    b"\r",
    b"\n",
    b'"',
    b"{",
    b"[",
    b"\xed\xa0\x80",
    b"\xef\xbb\xbf",
    b"\x1b",
)
DAMAGE = (*["change"] * 5, *["flip a bit"] * 2, "cut off", "leave out", "put in", "repeat", "take from another")


def damaged(data: bytes, random: Random, others: tuple[bytes, ...] = ()) -> bytes:
    """Return bytes with some of them changed, cut off, put in, left out, repeated, or taken from other files.

    Args:
        data: at least one byte.
        random: what draws the damage.
        others: files whose pieces may be put in.
    """
    changed = bytearray(data)
    for _ in range(random.choice((1, 1, 1, 2, 3, 8))):
        size = len(changed)
        # Headers lie at the beginning, tables of contents at the end.
        reach = random.choice((size, size, min(size, 64), min(size, 512)))
        place = random.randrange(reach) if reach else 0
        if random.random() < 0.1:
            place = max(0, size - 1 - place)
        length = random.choice((1, 1, 2, 4, 16, 200))
        kind = random.choice(DAMAGE)
        if kind == "change":
            changed[place : place + 1] = bytes([random.choice((0, 1, 127, 128, 255, random.randrange(256)))])
        elif kind == "flip a bit" and size:
            changed[place % size] ^= 1 << random.randrange(8)
        elif kind == "cut off":
            del changed[place:]
        elif kind == "leave out":
            del changed[place : place + length]
        elif kind == "put in":
            changed[place:place] = random.choice(ODD) * length
        elif kind == "repeat":
            changed[place:place] = changed[place : place + length]
        elif others:
            other = random.choice(others)
            start = random.randrange(len(other))
            changed[place : place + length] = other[start : start + length]
    return bytes(changed)


def one_line(text: str) -> bool:
    """Return whether a text is one line that any file takes, and not an endless one."""
    return len(text.splitlines()) == 1 and len(text) < 3000 and text.encode("utf-8", "ignore").decode() == text
