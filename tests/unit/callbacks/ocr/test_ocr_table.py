"""A table of drawn cases with the ranking that is expected of them: `pytest -m slow -s` prints it.

Each text is drawn right, at 3 times the size, 3 heights lower, as other words with some of its letters, and not at all,
in fonts that come with packages: English, Chinese, mixed, digits, several lines, turned lines.
"""

from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont
from rendered import CHINESE

from callbacks.rewards.ocr import score_images

FONTS = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
SANS, BOLD, SERIF, MONO = "DejaVuSans.ttf", "DejaVuSans-Bold.ttf", "DejaVuSerif.ttf", "DejaVuSansMono.ttf"
STIX, CM, PLAIN, HAN = "STIXGeneral.ttf", "cmss10.ttf", "", str(CHINESE)
WHITE, DARK, SAND = ("white", "black"), ("#204060", "#f0f0e0"), ("#e8d8b0", "#702010")

CASES = [  # text, other words, letters in px, font, (paper, ink), degrees
    ("2nd Edition", "Hard Version", 24, SANS, WHITE, 0),
    ("Grand Opening", "Grave Danger", 22, BOLD, DARK, 0),
    ("Hello World", "Hungry Wolf", 24, SERIF, SAND, 0),
    ("Fresh Bread", "Fried Onion", 24, MONO, WHITE, 0),
    ("Open Daily", "Shut Early", 26, STIX, DARK, 0),
    ("Library", "Factory", 28, CM, SAND, 0),
    ("No Smoking", "Go Running", 24, PLAIN, WHITE, 0),
    ("Welcome", "Weekday", 28, SANS, DARK, 0),
    ("Happy Birthday", "Merry Holiday", 20, BOLD, SAND, 0),
    ("Emergency Exit", "Main Entrance", 20, SERIF, WHITE, 0),
    ("SALE 50%", "SOUP 20%", 26, SANS, SAND, 0),
    ("No. 42", "No way", 30, BOLD, WHITE, 0),
    ("2026.11.23", "1984.06.05", 24, MONO, DARK, 0),
    ("18:30", "07:45", 32, SANS, SAND, 0),
    ("$19.99", "$45.00", 30, SERIF, WHITE, 0),
    ("Room 101", "Gate 107", 28, STIX, DARK, 0),
    ("1234567890", "1223334444", 22, SANS, WHITE, 0),
    ("新年快乐", "三年请安", 26, HAN, DARK, 0),
    ("欢迎光临", "三十光年", 28, HAN, SAND, 0),
    ("今日特价", "会日平安", 24, HAN, WHITE, 0),
    ("千里团圆", "花好月圆", 30, HAN, DARK, 0),
    ("第二版", "第十天", 32, HAN, SAND, 0),
    ("花好月圆人长久", "停车场人人勿入", 22, HAN, WHITE, 0),
    ("咖啡馆", "茶花馆", 32, HAN, DARK, 0),
    ("茶馆 Cafe", "茶楼 Shop", 24, HAN, SAND, 0),
    ("第2版 2nd", "第3天 9th", 24, HAN, WHITE, 0),
    ("特价 8折", "今日 5折", 26, HAN, DARK, 0),
    ("Open Daily\n9 to 18", "Shut Today\n4 to 25", 22, SANS, WHITE, 0),
    ("欢迎光临\n请勿吸烟", "三十光年\n请人团圆", 22, HAN, SAND, 0),
    ("Happy\nNew Year", "Angry\nOld Bear", 22, SERIF, DARK, 0),
    ("Hello World", "Hungry Wolf", 22, SANS, WHITE, 10),
    ("Fresh Bread", "Fried Onion", 24, BOLD, SAND, -12),
    ("新年快乐", "三年请安", 26, HAN, WHITE, 15),
    ("Coffee 25", "Copper 91", 24, SANS, DARK, -8),
]
SIZE, MIDDLE = (800, 480), (400, 200)


@cache
def letters(font: str, size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    path = font if font.startswith("/") else str(FONTS / font)
    return ImageFont.truetype(path, size) if font else ImageFont.load_default(size)


def drawn(words: str, centre: tuple[int, int], size: int, font: str, colours: tuple[str, str], angle: int):
    """A page with other words above, and `words` around a centre, turned."""
    paper, ink = colours
    sheet = Image.new("RGB", SIZE, paper)
    pen = ImageDraw.Draw(sheet)
    pen.text((60, 24), "Menu", ink, letters(SANS, 18), anchor="mm")
    mask = Image.new("L", SIZE, 0)
    latin = font if font != HAN else SANS
    rows = words.split("\n")
    for n, row in enumerate(rows):
        runs = [(font if c >= "\u4e00" else latin, c) for c in row]
        x = centre[0] - sum(letters(f, size).getlength(c) for f, c in runs) / 2
        y = centre[1] + (n - (len(rows) - 1) / 2) * 1.6 * size
        for f, c in runs:
            ImageDraw.Draw(mask).text((x, y), c, 255, letters(f, size), anchor="lm")
            x += letters(f, size).getlength(c)
    mask = mask.rotate(angle, Image.BICUBIC, center=centre)
    sheet.paste(Image.new("RGB", SIZE, ink), (0, 0), mask)
    return sheet


def variants(text, other, size, *how):
    x, y = MIDDLE
    rows = text.count("\n") + 1
    lower = (x, y + round(3 * size * (1 if rows == 1 else 1.6)))
    given = [
        (text, MIDDLE, size),
        (text, MIDDLE, 3 * size),
        (text, lower, size),
        (other, MIDDLE, size),
        ("", MIDDLE, size),
    ]
    return [drawn(*one, *how) for one in given]


@pytest.mark.slow
def test_thirty_four_texts_rank_as_they_should():
    names, wrong = ("right", "large", "displaced", "wrong", "missing"), []
    print(f"\n{'text':<24}" + "".join(f"{name:>11}" for name in names))
    for case in CASES:
        images = variants(*case)
        scores = score_images(images, [case[0]] * 5, [images[0]] * 5)
        totals = [float(score) for score in scores]
        print(f"{case[0]!r:<24}" + "".join(f"{total:>11.3f}" for total in totals))
        ranked = totals[0] > totals[1] > totals[2] > totals[3] > totals[4] == 0
        if not (totals[0] > 0.95 and ranked):
            wrong.append((case[0], np.round(totals, 3).tolist()))
    assert not wrong, wrong
