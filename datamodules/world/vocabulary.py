"""The vocabulary of the learning world: its things and colours, with their names in both languages."""

COLOURS = {
    "red": ("红色", (214, 40, 40)),
    "green": ("绿色", (40, 160, 72)),
    "blue": ("蓝色", (36, 76, 200)),
    "yellow": ("黄色", (250, 210, 40)),
    "purple": ("紫色", (140, 50, 180)),
    "orange": ("橙色", (245, 130, 30)),
    "white": ("白色", (245, 245, 245)),
    "black": ("黑色", (20, 20, 20)),
}
SHAPES = {"circle": "圆形", "square": "方块", "triangle": "三角形", "diamond": "菱形", "cross": "十字", "ring": "圆环"}
TEXTURES = {"plain": "纯色", "striped": "条纹", "dotted": "圆点"}
SIZES = {"small": ("小", 16), "large": ("大", 24)}  # side of the cell that a thing lies in, in pixels of a canvas of 64
PLACES = {  # quadrants: their left and top edges; things lie on a grid of 8 pixels, as the transformer's tokens do
    "top left": ("左上角", (0, 0)),
    "top right": ("右上角", (32, 0)),
    "bottom left": ("左下角", (0, 32)),
    "bottom right": ("右下角", (32, 32)),
}
SKINS = ((250, 214, 180), (222, 170, 124), (150, 100, 68))
HAIR = ("black", "orange", "yellow", "white")
LOOKS = {  # whole pictures: name -> (English, Chinese)
    "brighter": ("brighter", "更亮"),
    "darker": ("darker", "更暗"),
    "contrast": ("higher in contrast", "对比度更高"),
    "faded": ("paler in colour", "色彩更淡"),
}
STYLES = {
    "grey": ("a black and white photo", "黑白照片"),
    "negative": ("a film negative", "底片"),
    "mosaic": ("a mosaic", "马赛克"),
    "sepia": ("an old sepia photo", "复古棕色照片"),
}
FAULTS = {"noise": ("noise", "噪点"), "blur": ("blur", "模糊"), "scratches": ("scratches", "划痕")}
TURNS = {
    "mirror": ("Flip the picture horizontally", "水平翻转图片"),
    "upside down": ("Flip the picture vertically", "垂直翻转图片"),
}
CONSONANTS, VOWELS = "BCDFGHKLMNPRSTVWZ", "AEIOU"


def colour_of(name: str) -> tuple[int, int, int]:
    return COLOURS[name][1]
