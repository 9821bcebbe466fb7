"""Instructions for made edits, in English and in Chinese: detailed, concise, and as a user would write it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from .edit import MadeEdit, Slots
from .templates import CATEGORIES

LANGUAGES = ("en", "cn")
KINDS = ("detailed", "concise", "user")
SEVERAL = "compound"  # the template of an edit with steps


@dataclass(frozen=True)
class TemplatePhrases:
    """The three ways to ask for a template, with slots in braces.

    Args:
        detailed: Whole sentences, that name what stays as well.
        concise: A clause, which can be one of several.
        user: Loose words.
    """

    detailed: str
    concise: str
    user: str


ENGLISH = {
    "brighten": TemplatePhrases(
        "Brighten the whole picture so that dark areas become clearly visible. Keep the content as it is.",
        "Brighten the picture",
        "too dark, make it brighter please",
    ),
    "darken": TemplatePhrases(
        "Darken the whole picture so that it looks as if there were less light. Keep the content as it is.",
        "Darken the picture",
        "this is too bright, can you make it darker",
    ),
    "raise_contrast": TemplatePhrases(
        "Raise the contrast of the picture: light areas become lighter and dark areas darker. Keep the content.",
        "Increase the contrast of the picture",
        "looks flat, give it more contrast",
    ),
    "lower_contrast": TemplatePhrases(
        "Lower the contrast of the picture for a soft, even look. Keep the content as it is.",
        "Reduce the contrast of the picture",
        "too harsh, less contrast please",
    ),
    "saturate": TemplatePhrases(
        "Make the colours of the picture stronger and more vivid. Keep the content and the light as they are.",
        "Make the colours more vivid",
        "make the colours pop",
    ),
    "desaturate": TemplatePhrases(
        "Make the colours of the picture weaker and more muted. Keep the content and the light as they are.",
        "Make the colours more muted",
        "tone the colours down a bit",
    ),
    "warm": TemplatePhrases(
        "Shift the colours of the whole picture towards a warmer tone, with more red and less blue.",
        "Give the picture a warmer tone",
        "make it look warmer",
    ),
    "cool": TemplatePhrases(
        "Shift the colours of the whole picture towards a cooler tone, with more blue and less red.",
        "Give the picture a cooler tone",
        "make it look colder, more blue",
    ),
    "drain": TemplatePhrases(
        "Turn the picture into black and white. Keep the content and the light as they are.",
        "Turn the picture into black and white",
        "make it black and white",
    ),
    "colourise": TemplatePhrases(
        "Colourise this black-and-white picture with natural colours. Keep the content as it is.",
        "Colourise the black-and-white picture",
        "add colour to this old black and white photo",
    ),
    "recolour": TemplatePhrases(
        "Change everything that is {old} in the picture to {new}, with its light and shade. Keep other colours.",
        "Change the {old} parts of the picture to {new}",
        "turn the {old} stuff {new}",
    ),
    "blur": TemplatePhrases(
        "Blur the whole picture softly so that fine detail disappears.",
        "Blur the picture",
        "make the whole thing blurry",
    ),
    "sharpen": TemplatePhrases(
        "Remove the blur from this picture: make edges and textures sharp again and keep the content as it is.",
        "Sharpen the blurred picture",
        "it's blurry, make it sharp",
    ),
    "grain": TemplatePhrases(
        "Add visible grain to the whole picture, as of a film at high sensitivity.",
        "Add grain to the picture",
        "give it a grainy, noisy look",
    ),
    "denoise": TemplatePhrases(
        "Remove the noise from this picture while its edges and textures stay.",
        "Remove the noise from the picture",
        "so noisy, clean it up",
    ),
    "decompress": TemplatePhrases(
        "Remove the compression artefacts from this picture: its blocks, its banding and the ringing at edges.",
        "Remove the compression artefacts from the picture",
        "get rid of the ugly jpeg blocks",
    ),
    "upscale": TemplatePhrases(
        "Restore the lost detail of this low-resolution picture so that it looks crisp at its full size.",
        "Restore the detail of the low-resolution picture",
        "this is low-res, bring the detail back",
    ),
    "add_text": TemplatePhrases(
        'Write the text "{text}" in {colour} letters {place} of the picture. Leave everything else unchanged.',
        'Add the {colour} text "{text}" {place}',
        'put "{text}" {place}, in {colour}',
    ),
    "remove_text": TemplatePhrases(
        'Remove the {colour} text "{text}" {place} of the picture and restore what lies behind it.',
        'Remove the text "{text}" {place}',
        'get rid of "{text}" {place}',
    ),
    "replace_text": TemplatePhrases(
        'Replace the text "{old}" {place} of the picture with "{new}", in the same {colour} letters.',
        'Replace the text "{old}" {place} with "{new}"',
        'change "{old}" to "{new}" {place}',
    ),
    "add_sticker": TemplatePhrases(
        "Add {things} as a flat sticker {place} of the picture. Leave everything else unchanged.",
        "Add {things} {place}",
        "stick {things} {place}",
    ),
    "remove_sticker": TemplatePhrases(
        "Remove {the_things} {place} of the picture and restore what lies behind.",
        "Remove {the_things} {place}",
        "take away {the_things} {place}",
    ),
    "replace_sticker": TemplatePhrases(
        "Replace {the_old_things} {place} of the picture with {new_things} of the same size. Leave the rest unchanged.",
        "Replace {the_old_things} {place} with {new_things}",
        "swap {the_old_things} {place} for {new_things}",
    ),
    "crop": TemplatePhrases(
        "Crop the picture: cut away a strip {cut_side} and keep the rest as it is.",
        "Crop the picture {cut_side}",
        "cut a bit off {cut_side}",
    ),
    "extend": TemplatePhrases(
        "Extend the picture {grown_side} with content that continues the scene. Keep what is already there unchanged.",
        "Extend the picture {grown_side}",
        "show me more of the scene {grown_side}",
    ),
    "compose": TemplatePhrases(
        "Arrange the given pictures in {layout}, {order}, without gaps between them.",
        "Arrange the pictures in {layout}, {order}",
        "put these together in {layout}, {order}",
    ),
    "extract": TemplatePhrases(
        "This picture shows {several} pictures next to each other. Extract the one {panel} and show it alone.",
        "Extract the {panel_name} picture",
        "I only want the {panel_name} one of these pictures",
    ),
}
CHINESE = {
    "brighten": TemplatePhrases("把整张图片调亮，让暗部清晰可见，内容保持不变。", "把画面调亮", "太暗了，帮我弄亮一点"),
    "darken": TemplatePhrases("把整张图片调暗，像光线变少了一样，内容保持不变。", "把画面调暗", "太亮了，帮我调暗一点"),
    "raise_contrast": TemplatePhrases(
        "提高图片的对比度，让亮部更亮、暗部更暗，内容保持不变。", "提高画面的对比度", "画面有点平，对比度加强一些"
    ),
    "lower_contrast": TemplatePhrases(
        "降低图片的对比度，让画面柔和均匀，内容保持不变。", "降低画面的对比度", "太硬了，对比度弱一点"
    ),
    "saturate": TemplatePhrases(
        "提高图片的饱和度，让颜色更加鲜艳，内容和明暗保持不变。", "让画面的颜色更鲜艳", "颜色再鲜艳点"
    ),
    "desaturate": TemplatePhrases(
        "降低图片的饱和度，让颜色更加素淡，内容和明暗保持不变。", "让画面的颜色更素淡", "颜色太艳了，淡一点"
    ),
    "warm": TemplatePhrases("把整张图片调成更暖的色调，红色多一些，蓝色少一些。", "把画面调成暖色调", "弄得暖一点"),
    "cool": TemplatePhrases(
        "把整张图片调成更冷的色调，蓝色多一些，红色少一些。", "把画面调成冷色调", "色调冷一点，偏蓝"
    ),
    "drain": TemplatePhrases("把图片变成黑白照片，内容和明暗保持不变。", "把画面变成黑白", "帮我变成黑白的"),
    "colourise": TemplatePhrases(
        "给这张黑白图片上色，颜色要自然，内容保持不变。", "给黑白画面上色", "这张黑白老照片帮我上个色"
    ),
    "recolour": TemplatePhrases(
        "把图片中所有{old}的部分改成{new}，保留明暗变化，其他颜色不变。",
        "把画面中{old}的部分改成{new}",
        "{old}的换成{new}",
    ),
    "blur": TemplatePhrases("把整张图片柔和地模糊，让细节消失。", "把画面变模糊", "整张弄模糊一点"),
    "sharpen": TemplatePhrases(
        "去除图片的模糊，让边缘和纹理重新清晰，内容保持不变。", "把模糊的画面变清晰", "糊了，帮我变清晰"
    ),
    "grain": TemplatePhrases("给整张图片加上明显的颗粒，像高感光度胶片一样。", "给画面加上颗粒", "加点噪点，颗粒感"),
    "denoise": TemplatePhrases("去除图片中的噪点，同时保留边缘和纹理。", "去除画面的噪点", "噪点太多，帮我去掉"),
    "decompress": TemplatePhrases(
        "去除图片的压缩痕迹，包括方块、色带和边缘的波纹。", "去除画面的压缩痕迹", "压缩得都是方块，帮我修一下"
    ),
    "upscale": TemplatePhrases(
        "恢复这张低分辨率图片丢失的细节，让它在原尺寸下清晰。", "恢复低分辨率画面的细节", "分辨率太低，把细节补回来"
    ),
    "add_text": TemplatePhrases(
        "在图片{place}用{colour}的字写上“{text}”，其他内容保持不变。",
        "在画面{place}加上{colour}文字“{text}”",
        "{place}加个{colour}的“{text}”",
    ),
    "remove_text": TemplatePhrases(
        "去掉图片{place}{colour}的文字“{text}”，并恢复被遮住的内容。",
        "去掉画面{place}的文字“{text}”",
        "{place}的“{text}”删掉",
    ),
    "replace_text": TemplatePhrases(
        "把图片{place}的文字“{old}”换成“{new}”，仍用{colour}的字，位置不变。",
        "把画面{place}的文字“{old}”换成“{new}”",
        "{place}的“{old}”改成“{new}”",
    ),
    "add_sticker": TemplatePhrases(
        "在图片{place}加上{things}贴纸，其他内容保持不变。", "在画面{place}加上{things}", "{place}贴{things}"
    ),
    "remove_sticker": TemplatePhrases(
        "去掉图片{place}的{the_things}，并恢复被遮住的内容。",
        "去掉画面{place}的{the_things}",
        "{place}的{the_things}不要了",
    ),
    "replace_sticker": TemplatePhrases(
        "把图片{place}的{the_old_things}换成同样大小的{new_things}，其他内容保持不变。",
        "把画面{place}的{the_old_things}换成{new_things}",
        "{place}的{the_old_things}换成{new_things}",
    ),
    "crop": TemplatePhrases(
        "裁剪图片，裁掉{cut_side}的一条，其余部分保持不变。", "裁掉画面{cut_side}的一部分", "{cut_side}裁掉一点"
    ),
    "extend": TemplatePhrases(
        "把图片{grown_side}扩展，补上与场景连贯的内容，原有内容保持不变。",
        "把画面{grown_side}扩展",
        "{grown_side}多补一些画面",
    ),
    "compose": TemplatePhrases(
        "把给出的图片{layout}，{order}，中间不留空隙。", "把这些图片{layout}，{order}", "把它们{layout}，{order}"
    ),
    "extract": TemplatePhrases(
        "这张图由{several}张图片拼成，把{panel_name}的那一张提取出来，单独显示。",
        "提取{panel_name}的那张图片",
        "我只要{panel_name}那张图片",
    ),
}
TABLES: Mapping[str, Mapping[str, TemplatePhrases]] = {"en": ENGLISH, "cn": CHINESE}

_PLACES = {
    "en": {
        "top left": "in the top left corner",
        "top middle": "at the top",
        "top right": "in the top right corner",
        "middle left": "on the left",
        "middle middle": "in the centre",
        "middle right": "on the right",
        "bottom left": "in the bottom left corner",
        "bottom middle": "at the bottom",
        "bottom right": "in the bottom right corner",
    },
    "cn": {
        "top left": "左上角",
        "top middle": "上方",
        "top right": "右上角",
        "middle left": "左侧",
        "middle middle": "正中间",
        "middle right": "右侧",
        "bottom left": "左下角",
        "bottom middle": "下方",
        "bottom right": "右下角",
    },
}
_COLOURS_CN = {
    "red": "红色",
    "orange": "橙色",
    "yellow": "黄色",
    "green": "绿色",
    "blue": "蓝色",
    "purple": "紫色",
    "white": "白色",
    "black": "黑色",
}
_SHAPES_CN = {
    "star": "五角星",
    "heart": "爱心",
    "circle": "圆形",
    "triangle": "三角形",
    "square": "正方形",
    "diamond": "菱形",
}
_COUNTS = {"en": {"1": "a", "2": "two", "3": "three"}, "cn": {"1": "一个", "2": "两个", "3": "三个"}}
_CUT_SIDES = {
    "en": {
        "left": "on the left",
        "right": "on the right",
        "top": "at the top",
        "bottom": "at the bottom",
        "all": "on all sides",
    },
    "cn": {"left": "左边", "right": "右边", "top": "上边", "bottom": "下边", "all": "四周"},
}
_GROWN_SIDES = {
    "en": {
        "left": "to the left",
        "right": "to the right",
        "top": "upwards",
        "bottom": "downwards",
        "all": "on all sides",
    },
    "cn": {"left": "向左", "right": "向右", "top": "向上", "bottom": "向下", "all": "向四周"},
}
_LAYOUTS = {
    "en": {"row": "a row", "column": "a column", "grid": "a grid of two by two"},
    "cn": {"row": "左右并排", "column": "上下排列", "grid": "拼成两行两列"},
}
_ORDERS = {
    "en": {
        "row": "the first one on the left and the second on the right",
        "column": "the first one at the top and the second at the bottom",
        "grid": "the first two at the top and the other two at the bottom",
    },
    "cn": {"row": "第一张在左，第二张在右", "column": "第一张在上，第二张在下", "grid": "前两张在上，后两张在下"},
}
_SEVERAL = {
    "en": {"row": "two", "column": "two", "grid": "four"},
    "cn": {"row": "两", "column": "两", "grid": "四"},
}
_PANELS = {
    "en": {"left": "on the left", "right": "on the right", "top": "at the top", "bottom": "at the bottom"},
    "cn": {"left": "左边", "right": "右边", "top": "上边", "bottom": "下边"},
}
_PANEL_NAMES = {
    "en": {"top": "upper", "bottom": "lower"},
    "cn": _PANELS["cn"]
    | {"top left": "左上角", "top right": "右上角", "bottom left": "左下角", "bottom right": "右下角"},
}


def instructions(edit: MadeEdit) -> dict[str, dict[str, str]]:
    """Return the words for an edit, by kind and language."""
    if edit.steps:
        return {kind: {language: _joined(edit.steps, language, kind) for language in LANGUAGES} for kind in KINDS}
    return {kind: {language: phrase(edit, language, kind) for language in LANGUAGES} for kind in KINDS}


def phrase(edit: MadeEdit, language: str, kind: str) -> str:
    """Return the words for an atomic edit."""
    pattern = getattr(TABLES[language][edit.template], kind)
    text = pattern.format(**words(edit, language))
    if language == "en" and kind == "concise":
        return f"{text}."
    return f"{text}。" if language == "cn" and kind == "concise" else str(text)


def words(edit: MadeEdit, language: str) -> dict[str, str]:
    """Return what stands for the slots of an edit in a language."""
    slots = edit.slots
    found: dict[str, str] = {}
    if "place" in slots:
        found["place"] = _PLACES[language][slots["place"]]
    if "colour" in slots:
        found["colour"] = _colour(slots["colour"], language)
    if "text" in slots:
        found["text"] = slots["text"]
    if "side" in slots:
        found["cut_side"] = _CUT_SIDES[language][slots["side"]]
        found["grown_side"] = _GROWN_SIDES[language][slots["side"]]
    if "layout" in slots:
        found["layout"] = _LAYOUTS[language][slots["layout"]]
        found["order"] = _ORDERS[language][slots["layout"]]
        found["several"] = _SEVERAL[language][slots["layout"]]
    if "panel" in slots:
        panel = slots["panel"]
        found["panel"] = _PANELS[language].get(panel) or _PLACES[language][panel]
        found["panel_name"] = _PANEL_NAMES[language].get(panel, panel)
    return found | _old_and_new(edit, language) | _things(slots, language)


def structured(edit: MadeEdit) -> str:
    """Return an edit as fields, in the order of its slots: a caption that needs no model."""
    if edit.steps:
        return "; ".join(f"step {number}: {structured(step)}" for number, step in enumerate(edit.steps, 1))
    fields = {"task": CATEGORIES[edit.template], "edit": edit.template.replace("_", " "), **edit.slots}
    return ", ".join(f"{name}: {value}" for name, value in fields.items())


def _old_and_new(edit: MadeEdit, language: str) -> dict[str, str]:
    if "old" not in edit.slots or edit.template == "replace_sticker":
        return {}
    old, new = edit.slots["old"], edit.slots["new"]
    if edit.template == "recolour":
        return {"old": _colour(old, language), "new": _colour(new, language)}
    return {"old": old, "new": new}


def _things(slots: Slots, language: str) -> dict[str, str]:
    """Return names of the shapes that an edit speaks of, with their count and colour."""
    if "count" not in slots:
        return {}
    count, colour = slots["count"], slots["colour"]
    if "shape" in slots:
        return {
            "things": _named(count, colour, slots["shape"], language),
            "the_things": _known(count, colour, slots["shape"], language),
        }
    return {
        "the_old_things": _known(count, colour, slots["old"], language),
        "new_things": _named(count, colour, slots["new"], language),
    }


def _named(count: str, colour: str, shape: str, language: str) -> str:
    """Return things that were not spoken of before, as "two red stars"."""
    if language == "cn":
        return f"{_COUNTS['cn'][count]}{_COLOURS_CN[colour]}的{_SHAPES_CN[shape]}"
    if count != "1":
        return f"{_COUNTS['en'][count]} {colour} {shape}s"
    article = "an" if colour[0] in "aeiou" else "a"
    return f"{article} {colour} {shape}"


def _known(count: str, colour: str, shape: str, language: str) -> str:
    """Return things that are there, as "the two red stars"."""
    if language == "cn":
        number = "" if count == "1" else _COUNTS["cn"][count]
        return f"{number}{_COLOURS_CN[colour]}的{_SHAPES_CN[shape]}"
    if count == "1":
        return f"the {colour} {shape}"
    return f"the {_COUNTS['en'][count]} {colour} {shape}s"


def _colour(name: str, language: str) -> str:
    return _COLOURS_CN[name] if language == "cn" else name


def _joined(steps: tuple[MadeEdit, ...], language: str, kind: str) -> str:
    """Return the words for several edits, one after the other."""
    clauses = [re.sub(r"[.。]$", "", phrase(step, language, "concise")) for step in steps]
    if language == "cn":
        whole = "先" + "，再".join(clauses)
        return {"detailed": f"{whole}，其他内容保持不变。", "concise": f"{whole}。", "user": whole}[kind]
    later = [clause[0].lower() + clause[1:] for clause in clauses[1:]]
    joint = " and then " if kind == "user" else ", then "
    whole = joint.join([clauses[0], *later])
    if kind == "user":
        return whole[0].lower() + whole[1:]
    return f"{whole}." if kind == "concise" else f"{whole}. Leave everything else unchanged."
