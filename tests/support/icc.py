"""ICC profiles of three primaries and one curve, as bytes, and what their colours are in sRGB."""

import struct

import numpy as np

SRGB = ((0.43607, 0.22249, 0.01392), (0.38515, 0.71687, 0.09708), (0.14307, 0.06061, 0.71410))
DISPLAY_P3 = ((0.51512, 0.24120, -0.00105), (0.29198, 0.69225, 0.04189), (0.15710, 0.06657, 0.78407))
WHITE = (0.9642, 1.0, 0.8249)  # D50
CURVE = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)  # of sRGB, and of Display P3


def _fixed(value):
    return struct.pack(">i", round(value * 65536))


def _xyz(values):
    return b"XYZ " + bytes(4) + b"".join(map(_fixed, values))


def _curve(numbers):
    return b"para" + bytes(4) + struct.pack(">HH", 3, 0) + b"".join(map(_fixed, numbers))


def _text(text):
    encoded = text.encode("utf-16-be")
    return b"mluc" + bytes(4) + struct.pack(">II", 1, 12) + b"enUS" + struct.pack(">II", len(encoded), 28) + encoded


def _profile(space, tags):
    """The bytes of a display profile: a header, a table of its tags, and the tags."""
    body, table = b"", b""
    start = 128 + 4 + 12 * len(tags)
    for name, content in tags.items():
        content += bytes(-len(content) % 4)
        table += name + struct.pack(">II", start + len(body), len(content))
        body += content
    size = start + len(body)
    header = struct.pack(">I", size) + bytes(4) + b"\x04\x30\x00\x00" + b"mntr" + space + b"XYZ " + bytes(12) + b"acsp"
    header += bytes(28) + b"".join(map(_fixed, WHITE)) + bytes(48)
    assert len(header) == 128
    return header + struct.pack(">I", len(tags)) + table + body


def rgb_profile(primaries, name="a display", curve=CURVE):
    """The bytes of an RGB profile."""
    tags = {b"desc": _text(name), b"cprt": _text("none"), b"wtpt": _xyz(WHITE)}
    tags |= {f"{channel}XYZ".encode(): _xyz(values) for channel, values in zip("rgb", primaries)}
    return _profile(b"RGB ", tags | {f"{channel}TRC".encode(): _curve(curve) for channel in "rgb"})


def grey_profile(gamma):
    """The bytes of a profile of grey pictures, of one exponent."""
    curve = _curve((gamma, 1.0, 0.0, 1.0, 0.0))
    return _profile(b"GRAY", {b"desc": _text("grey"), b"cprt": _text("none"), b"wtpt": _xyz(WHITE), b"kTRC": curve})


def in_srgb(values, primaries):
    """(..., 3) of 0 to 255 in a profile's colours as they are in sRGB, rounded and cut; both have sRGB's curve."""
    x = np.asarray(values) / 255
    linear = np.where(x > 0.04045, ((x + 0.055) / 1.055) ** 2.4, x / 12.92)
    seen = linear @ np.array(primaries) @ np.linalg.inv(np.array(SRGB))
    seen = seen.clip(0, 1)
    return np.rint(255 * np.where(seen > 0.0031308, 1.055 * seen ** (1 / 2.4) - 0.055, 12.92 * seen)).astype(int)
