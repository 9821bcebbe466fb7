"""Requests for edits: several phrasings of a request, in English and Chinese, and three kinds of caption."""

from random import Random

ORIGINAL = {  # family -> English, Chinese; {x} the thing asked for, {y} what it becomes, {p} a place
    "add": (
        ("Add a {x} at the {p}", "Put a {x} in the {p} corner", "Place a {x} at the {p}"),
        ("在{p}添加一个{x}", "在{p}放一个{x}", "给{p}加上一个{x}"),
    ),
    "remove": (("Remove the {x}", "Delete the {x}", "Take away the {x}"), ("移除{x}", "删除{x}", "去掉{x}")),
    "replace": (
        ("Replace the {x} with a {y}", "Swap the {x} for a {y}", "Turn the {x} into a {y}"),
        ("把{x}替换成{y}", "用{y}代替{x}", "将{x}变成{y}"),
    ),
    "color": (
        ("Make the {x} {y}", "Change the color of the {x} to {y}", "Paint the {x} {y}"),
        ("把{x}变成{y}", "将{x}的颜色改为{y}", "把{x}涂成{y}"),
    ),
    "adjust": (
        ("Make the picture {y}", "Adjust the picture so that it is {y}", "I want the picture {y}"),
        ("让图片{y}", "调整图片，使其{y}", "把画面调得{y}"),
    ),
    "background": (
        ("Change the background to {y}", "Make the background {y}", "Put everything on a {y} background"),
        ("把背景换成{y}", "将背景改为{y}", "背景变成{y}"),
    ),
    "motion": (
        ("Move the {x} to the {p}", "Shift the {x} to the {p} corner", "Drag the {x} to the {p}"),
        ("把{x}移到{p}", "将{x}移动到{p}", "让{x}到{p}去"),
    ),
    "extract": (
        ("Extract the {x} on a white background", "Cut out the {x}", "Keep only the {x}, on white"),
        ("抠出{x}，背景为白色", "提取{x}", "只保留{x}，背景变白"),
    ),
    "text": (
        (
            'Change the word "{x}" to "{y}"',
            'Replace "{x}" with "{y}" on the sign',
            'The sign should say "{y}", not "{x}"',
        ),
        ("把文字“{x}”改成“{y}”", "将招牌上的“{x}”替换为“{y}”", "招牌应写“{y}”，而不是“{x}”"),
    ),
    "write": (
        ('Write "{y}" on the sign', 'Add the word "{y}" to the sign', 'Let the empty sign say "{y}"'),
        ("在招牌上写“{y}”", "给招牌加上文字“{y}”", "让空招牌写着“{y}”"),
    ),
    "style": (
        ("Turn the picture into {y}", "Make it look like {y}", "Redraw this as {y}"),
        ("把图片变成{y}", "让它看起来像{y}", "改成{y}的风格"),
    ),
    "restore": (
        ("Remove the {x} from the picture", "Repair the {x}", "Restore the picture, there is {x} in it"),
        ("去除图片的{x}", "修复{x}", "图片有{x}，请还原"),
    ),
    "viewpoint": (("{y}", "{y}, please", "{y} for me"), ("{y}", "请{y}", "帮我{y}")),
    "portrait": (("{y}", "{y}, please", "{y} in this portrait"), ("{y}", "请{y}", "在这张肖像中{y}")),
    "beauty": (("{y}", "Retouch the face: {y}", "{y}, please"), ("{y}", "美化面部：{y}", "请{y}")),
    "compose": (("{y}",), ("{y}",)),
}
STRUCTURED = ("{task}: {text}. Keep the rest", "{task}：{text}。其余不变")
INSTRUCTIVE = (
    ("Please edit this picture for me. {text}", "{text}, and leave everything else as it is"),
    ("请帮我修图。{text}", "{text}，其他地方保持不变"),
)
KINDS = {  # column of a row -> caption kind and language
    "instruction": "original/en", "instruction_cn": "original/cn", "structured": "structured/en",
    "structured_cn": "structured/cn", "instructive": "instructive/en", "instructive_cn": "instructive/cn",
}  # fmt: skip
TASKS_CN = {
    "add": "添加", "remove": "移除", "replace": "替换", "color": "改色", "adjust": "调整", "background": "背景",
    "motion": "移动", "extract": "提取", "text": "文字", "style": "风格", "restore": "修复", "compose": "合成",
    "viewpoint": "视角", "portrait": "肖像", "beauty": "美化",
}  # fmt: skip


def instructions(rng: Random, task: str, en: dict[str, str], cn: dict[str, str], phrasing: str = "") -> dict[str, str]:
    """Return the request in every caption kind and language: "original/en" -> text. `phrasing`: of another family."""
    english, chinese = ORIGINAL[phrasing or task]
    texts = rng.choice(english).format(**en), rng.choice(chinese).format(**cn)
    found: dict[str, str] = {}
    for language, text, task_name, place in (("en", texts[0], task, 0), ("cn", texts[1], TASKS_CN[task], 1)):
        found[f"original/{language}"] = text
        found[f"structured/{language}"] = STRUCTURED[place].format(task=task_name, text=text)
        found[f"instructive/{language}"] = rng.choice(INSTRUCTIVE[place]).format(text=text)
    return found
