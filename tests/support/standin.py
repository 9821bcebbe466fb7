"""Stand-in copies of REDEdit-Bench, ImgEdit Basic and GEdit-Bench: their layouts, with scenes and prompts of our own.

The pictures are held-out edits of the learning world, so that the shipped world model can edit them, and the target of
every item is known: `targets/` of each copy holds it under the name that the official scripts give an edited picture.
"""

import io
import json
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from datamodules.world.families import WorldEdit
from datamodules.world.sample import edit
from datamodules.world.scene import draw

SIDE = 64
REDEDIT = {  # task -> family of the learning world; a composition has one picture there, so things are added instead
    "add": "add", "adjust": "adjust", "background": "background", "beauty": "beauty", "color": "color",
    "compose": "add", "extract": "extract", "lowlevel": "restore", "motion": "motion", "portrait": "portrait",
    "remove": "remove", "replace": "replace", "stylize": "style", "text": "text", "viewpoint": "viewpoint",
}  # fmt: skip
IMGEDIT = {
    "background": "background", "action": "motion", "extract": "extract", "style": "style", "remove": "remove",
    "replace": "replace", "add": "add", "adjust": "color", "compose": "adjust",
}  # fmt: skip
GEDIT = {
    "background_change": "background", "color_alter": "color", "material_alter": "replace", "motion_change": "motion",
    "ps_human": "portrait", "style_change": "style", "subject-add": "add", "subject-remove": "remove",
    "subject-replace": "replace", "text_change": "text", "tone_transfer": "adjust",
}  # fmt: skip
CRITERIA = ("Does What Was Asked", "Looks Right", "Keeps The Rest")


def write_rededit(folder: Path, each: int = 4) -> Path:
    """Write `each` items of each of the fifteen tasks, with instructions in both languages; see `published_rededit`."""
    rows = []
    for task, family in REDEDIT.items():
        for _ in range(each):
            number = len(rows)
            found = _held_out(family, number)
            name = f"{task}-{number + 1}.png"
            place = "id" if task == "portrait" else task
            _save(draw(found.sources[0], SIDE), folder / "redbench" / place / name)
            _save(draw(found.target, SIDE), folder / "targets" / task / name)
            rows.append(
                {
                    "id": str(number + 1),
                    "source": f"redbench/{place}/{name}",
                    "a_to_b_instructions": found.texts["original/cn"],
                    "a_to_b_instructions_eng": found.texts["original/en"],
                    "task": task,
                }
            )
    _write_lines(folder / "redbench.jsonl", rows)
    prompts = {task: _prompt(task, "<edit_prompt>") for task in REDEDIT}
    _write_json(folder / "prompts.json", prompts)
    return folder


def write_imgedit(folder: Path, each: int = 4, parquet: bool = False) -> Path:
    """Write `each` items of each of the nine types, as JSON beside JPEG files or as one parquet file."""
    index = {}
    table = []
    for kind, family in IMGEDIT.items():
        for _ in range(each):
            number = len(table)
            found = _held_out(family, 1000 + number)
            key = str(3 * number + 7)  # official keys leave numbers out
            name = f"daily object/{kind}/{number:09d}.jpg"
            source = draw(found.sources[0], SIDE)
            _save(draw(found.target, SIDE), folder / "targets" / f"{key}.png")
            text = found.texts["original/en"]
            index[key] = {"id": name, "prompt": text, "edit_type": kind}
            table.append({"key": key, "image": _embedded(source, "JPEG"), "prompt": text, "edit_type": kind})
            if not parquet:
                _save(source, folder / "Benchmark" / "singleturn" / name)
    if parquet:
        _write_parquet(folder / "data" / "train-00000-of-00001.parquet", table)
    else:
        _write_json(folder / "basic_edit.json", index)
    _write_json(folder / "prompts.json", {kind: _prompt(kind, "<edit_prompt>") for kind in IMGEDIT})
    return folder


def write_gedit(folder: Path, each: int = 2) -> Path:
    """Write `each` items of each of the eleven groups and both languages as parquet files.

    As in the official table, two English rows share one key, and a key stands in both languages.
    """
    rows = []
    for language in ("en", "cn"):
        for group, family in GEDIT.items():
            for i in range(each):
                number = 2000 + 100 * len(GEDIT) * i + sorted(GEDIT).index(group)
                found = _held_out(family, number)
                same_key = language == "en" and group == "subject-remove" and i == 1
                key = f"{number - 100 * len(GEDIT) if same_key else number:032x}"
                source = draw(found.sources[0], SIDE)
                name = f"{key}-2.png" if same_key else f"{key}.png"
                _save(draw(found.target, SIDE), folder / "targets" / "fullset" / group / language / name)
                rows.append(
                    {
                        "task_type": group,
                        "key": key,
                        "instruction": found.texts[f"original/{language}"],
                        "instruction_language": language,
                        "input_image": _embedded(source, "PNG"),
                        "input_image_raw": _embedded(source, "PNG"),
                        "Intersection_exist": i == 0,
                    }
                )
    half = len(rows) // 2 + 3
    _write_parquet(folder / "data" / "train-00000-of-00002.parquet", rows[:half])
    _write_parquet(folder / "data" / "train-00001-of-00002.parquet", rows[half:])
    (folder / "vie_prompts.py").write_text(VIE_PROMPTS, encoding="utf-8")
    return folder


VIE_PROMPTS = '''# Stand-in rules, not VIEScore's.
raise RuntimeError("a prompt file is read, never run")

_context_no_delimit = """You look at pictures and give marks.
Answer with JSON alone:
{
"score" : [...],
"reasoning" : "..."
}"""

_prompts_0shot_two_image_edit_rule = """RULES:

The first picture is the one before, the second the one after.
"""

_prompts_0shot_tie_rule_SC = """
From 0 to 10, mark how well the second picture does what was asked, and how little else it changes.
Put both marks in a list.
Asked: <instruction>
"""

_prompts_0shot_rule_PQ = """RULES:

From 0 to 10, mark how natural the picture is, and how free of artifacts.
Put both marks in a list.
"""
'''


def _held_out(family: str, number: int) -> WorldEdit:
    return edit(17, number, "held_out", (family,))


def _prompt(kind: str, asked: str) -> str:
    lines = [f"Stand-in rules for {kind}. Asked: {asked}", "Give each criterion a number from 1 to 5, on its own line:"]
    return "\n".join([*lines, *(f"{name}: number" for name in CRITERIA)])


def _embedded(picture: Image.Image, kind: str) -> dict[str, object]:
    file = io.BytesIO()
    picture.save(file, kind)
    return {"bytes": file.getvalue(), "path": None}


def _save(picture: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False, indent=1), encoding="utf-8")


def _write_lines(path: Path, rows: list[dict[str, str]]) -> None:
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8")


def _write_parquet(path: Path, rows: list[dict[str, object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=7)


if __name__ == "__main__":
    out = Path(sys.argv[1])
    write_rededit(out / "rededit")
    write_imgedit(out / "imgedit")
    write_gedit(out / "gedit")
