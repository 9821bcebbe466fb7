"""Data as the users of other trainers have it is read as it is, or with one option; refusals name what is missing."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from datamodules.sources.raw import RawRows
from datamodules.sources.records import Refusal, read
from datamodules.sources.source import Source, from_words
from datamodules.sources.tables import notes, survey
from firered_lit.api import check_data
from firered_lit.cli import main
from firered_lit.errors import UserError

STEMS = ("a", "b")
TEXTS = {"a": "make it red", "b": "变蓝"}


def picture(path, shade=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (64, 64), (shade, 0, 0)).save(path)


def text(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")
    return path


def pictures(folder, ending=".png", stems=STEMS, shade=0):
    for number, stem in enumerate(stems):
        picture(folder / f"{stem}{ending}", shade + number)


def captions(folder, ending=".txt"):
    for stem in STEMS:
        text(folder / f"{stem}{ending}", TEXTS[stem])


def pairs(root, target, *controls, ending=".txt"):
    """Folders of targets with captions, and of sources of the same stems."""
    pictures(root / target, ".jpg", shade=10)
    captions(root / target, ending)
    for number, control in enumerate(controls, 2):
        pictures(root / control, shade=20 * number)


# Each writes a user's data and returns what names it, with the sources of `a` that are expected.
def musubi_folders(root):
    pairs(root, "image_dir")
    pictures(root / "control_dir", stems=("a_0", "a_1", "b_0"), shade=50)
    return Source(target=str(root / "image_dir"), control=str(root / "control_dir")), ["a_0.png", "a_1.png"]


def musubi_toml(root):
    pairs(root, "images", "controls")
    text(
        root / "dataset.toml",
        '[general]\nresolution = [1024, 1024]\ncaption_extension = ".txt"\nbatch_size = 1\n\n[[datasets]]\n'
        f'image_directory = "{root}/images"\ncontrol_directory = "controls"\ncache_directory = "cache"\n',
    )
    return root / "dataset.toml", ["a.png"]


def musubi_jsonl(root):
    pairs(root, "images", "c1", "c2")
    rows = [
        {"image_path": f"images/{s}.jpg", "control_path_0": f"c1/{s}.png", "control_path_1": f"c2/{s}.png",
         "caption": TEXTS[s]}
        for s in STEMS
    ]  # fmt: skip
    text(root / "meta.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    text(root / "d.toml", '[[datasets]]\nimage_jsonl_file = "meta.jsonl"\ncache_directory = "cache"\n')
    return root / "d.toml", ["a.png", "a.png"]


def toolkit_folders(root):
    pairs(root, "target", "control_1", "control_2")
    return root, ["a.png", "a.png"]


def toolkit_yaml(root):
    pairs(root, "after", "before", "style")
    text(
        root / "train.yaml",
        "job: extension\nconfig:\n  name: mine\n  process:\n    - type: diffusion_trainer\n      datasets:\n"
        f"        - folder_path: {root}/after\n          control_path:\n            - {root}/before\n"
        f"            - {root}/style\n          caption_ext: txt\n          resolution: [512, 1024]\n",
    )
    return root / "train.yaml", ["a.png", "a.png"]


def toolkit_page_yaml(root):
    """As its page writes it: a slot for every control."""
    pairs(root, "after", "before", "style")
    text(
        root / "job.yml",
        f"config:\n  process:\n  - datasets:\n    - folder_path: {root}/after\n      control_path_1: {root}/before\n"
        f"      control_path_2: {root}/style\n      control_path_3: null\n      num_repeats: 1\n",
    )
    return root / "job.yml", ["a.png", "a.png"]


def kohya_metadata(root):
    pairs(root, "img", "before")
    content = {str(root / "img" / "a.jpg"): {"caption": TEXTS["a"]}, "b": {"tags": TEXTS["b"]}}
    text(root / "meta.json", json.dumps(content))
    named = Source(target=str(root / "img"), control=str(root / "before"), captions=str(root / "meta.json"))
    return named, ["a.png"]


def sd_scripts_toml(root):
    pairs(root, "img", "cond", ending=".caption")
    text(
        root / "config.toml",
        "[general]\nshuffle_caption = false\n[[datasets]]\nresolution = 1024\n  [[datasets.subsets]]\n"
        "  image_dir = 'img'\n  conditioning_data_dir = 'cond'\n  caption_extension = '.caption'\n",
    )
    return root / "config.toml", ["a.png"]


def instruct_pix2pix(root):
    """The columns of diffusers' example, with pictures in the table as Hugging Face writes them."""
    rows = []
    for number, stem in enumerate(STEMS):
        for name in ("s", "t"):
            picture(root / f"{name}{stem}.png", 40 * number + ord(name) % 30)
        before, after = ({"bytes": (root / f"{n}{stem}.png").read_bytes(), "path": None} for n in ("s", "t"))
        rows.append({"input_image": before, "edit_prompt": TEXTS[stem], "edited_image": after})
    pq.write_table(pa.Table.from_pylist(rows), root / "train.parquet")
    return root / "train.parquet", ["train.parquet:1:input_image"]


def image_folder(root):
    """Hugging Face's imagefolder with metadata, whose columns are anybody's."""
    pairs(root, "train", "train/src")
    rows = "".join(f"{s}.jpg,src/{s}.png,{TEXTS[s]}\n" for s in STEMS)
    text(root / "train" / "metadata.csv", f"file_name,input_file_name,text\n{rows}")
    columns = {"source": "input_file_name", "target": "file_name", "instruction": "text"}
    return Source(str(root), columns=columns), ["a.png"]


def diffsynth_csv(root):
    pairs(root, "targets", "sources")
    rows = "".join(f"targets/{s}.jpg,{TEXTS[s]},sources/{s}.png\n" for s in STEMS)
    return text(root / "metadata.csv", f"image,prompt,edit_image\n{rows}"), ["a.png"]


def omnigen2(root):
    pairs(root, "out", "in")
    rows = [
        {"task_type": "edit", "instruction": TEXTS[s], "input_images": [f"in/{s}.png"], "output_image": f"out/{s}.jpg"}
        for s in STEMS
    ]
    return text(root / "edit.jsonl", "".join(json.dumps(row) + "\n" for row in rows)), ["a.png"]


def columns_of_ones_own(root):
    pairs(root, "after", "before", "style")
    rows = [{"pre": f"before/{s}.png", "ref": f"style/{s}.png", "post": f"after/{s}.jpg", "caption": TEXTS[s]}
            for s in STEMS]  # fmt: skip
    path = text(root / "e.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    return Source(str(path), columns={"source": ["pre", "ref"], "target": "post"}), ["a.png", "a.png"]


def any_folders(root):
    pairs(root, "new", "old")
    for stem in STEMS:
        (root / "new" / f"{stem}.txt").rename(text(root / "words" / f"{stem}.txt", ""))
    named = {"target": root / "new", "control": root / "old", "captions": root / "words"}
    return Source(**{name: str(path) for name, path in named.items()}), ["a.png"]


WAYS = [
    musubi_folders, musubi_toml, musubi_jsonl, toolkit_folders, toolkit_yaml, toolkit_page_yaml, kohya_metadata,
    sd_scripts_toml, instruct_pix2pix, image_folder, diffsynth_csv, omnigen2, columns_of_ones_own, any_folders,
]  # fmt: skip


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_data_of_another_tool_is_read(tmp_path, way):
    source, expected = way(tmp_path)
    first, second = read(source)
    assert not isinstance(first, Refusal), first
    assert [reference.rpartition("/")[2] for reference in first.references] == expected
    assert (first.instructions, second.instructions) == ({"original/en": TEXTS["a"]}, {"original/cn": TEXTS["b"]})
    assert first.target not in first.references
    assert first.target.rpartition("/")[2] in ("a.jpg", "train.parquet:1:edited_image")
    assert survey(source)[0] == 2


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_data_of_another_tool_is_curated_from_the_same_source(tmp_path, way):
    source, expected = way(tmp_path)
    given = vars(source).items() if isinstance(source, Source) else [("path", str(source))]
    settings = {name: value for name, value in given if value}
    rows = RawRows(settings.pop("path", ""), **{name: settings[name] for name in settings if name != "chosen"})
    first, second = rows.rows(lambda number: True)
    assert (first.kind, second.kind) == ("edit", "edit"), (first.detail, second.detail)
    assert len(first.pictures) == 1 + len(expected)

    # A curated row is understood by itself.
    line = rows.line(first, tmp_path)
    again = text(tmp_path / "curated" / "rows.jsonl", json.dumps(line))
    (record,) = read(again)
    assert record.instructions == {"original/en": TEXTS["a"]}
    assert len(record.references) == len(expected)


def test_check_reads_folders_and_columns_named_on_the_command_line(tmp_path, capsys):
    source, _ = any_folders(tmp_path / "hats")
    words = [f"{name}={getattr(source, name)}" for name in ("target", "control", "captions")]
    assert main(["check", "--data", *words]) == 0
    out = capsys.readouterr().out
    assert "2 good, 0 refused" in out
    assert "hats 2" in out  # the task: the folder that holds them
    columns_of_ones_own(tmp_path)
    words = ["columns.source=[pre, ref]", "columns.target=post"]
    assert main(["check", "--data", str(tmp_path / "e.jsonl"), *words]) == 0
    assert "`pre` and `ref` are the sources, `post` the target" in capsys.readouterr().out
    found = check_data(tmp_path / "e.jsonl", columns={"source": "pre", "target": "post"})
    assert any("`pre` is the source, `post` the target" in finding.line for finding in found)
    assert main(["check", "--data", str(tmp_path / "e.jsonl"), "columns.sorce=pre"]) == 2
    assert "is columns.source meant" in capsys.readouterr().err


def test_ids_do_not_depend_on_where_the_folders_lie(tmp_path):
    ids = []
    for place in ("here", "there"):
        (tmp_path / place).mkdir()
        source, _ = toolkit_yaml(tmp_path / place / "hats")
        ids.append([record.id for record in read(source)])
    assert ids[0] == ids[1]


def test_data_sets_of_one_file_are_tasks(tmp_path):
    for name in ("hats", "coats"):
        pairs(tmp_path, f"{name}_after", f"{name}_before")
    entries = "".join(
        f'[[datasets]]\nimage_directory = "{n}_after"\ncontrol_directory = "{n}_before"\nnum_repeats = 3\n'
        for n in ("hats", "coats")
    )
    path = text(tmp_path / "d.toml", entries)
    assert [record.task for record in read(path)] == ["hats_after"] * 2 + ["coats_after"] * 2
    assert notes(path) == [f"{path}: datasets[{n}]: num_repeats=3 is left aside" for n in (0, 1)]


def test_a_note_says_of_every_setting_that_would_change_the_data_that_it_is_left_aside(tmp_path):
    pairs(tmp_path, "after", "before")
    kohya = text(
        tmp_path / "d.toml",
        "[general]\nflip_aug = true\nnum_repeats = 1\n[[datasets]]\nrandom_crop = true\n"
        'image_directory = "after"\ncontrol_directory = "before"\ncaption_prefix = ""\n',
    )
    assert notes(kohya) == [f"{kohya}: datasets[0]: {name}=true is left aside" for name in ("flip_aug", "random_crop")]
    toolkit = text(
        tmp_path / "d.yaml",
        "config:\n  process:\n  - trigger_word: hats\n    datasets:\n"
        "    - {folder_path: after, control_path: before, flip_x: true, flip_y: false}\n",
    )
    where = f"{toolkit}: config.process[0].datasets[0]"
    assert notes(toolkit) == [f"{where}: trigger_word=hats is left aside", f"{where}: flip_x=true is left aside"]


# -- What is refused, and what it says --
def refusals(source):
    return [row for row in read(source) if isinstance(row, Refusal)]


@pytest.mark.parametrize(
    ("names", "reason", "words"),
    [
        (("a_0", "a_2"), "missing image", "a_1.* does not exist"),
        (("a_0", "a_0000"), "several files", "has the number of another"),
        (("a_0", "a"), "several files", "keep one manner"),
        (("a_5",), "missing image", "a_0.* does not exist"),
    ],
)
def test_numbered_sources_have_no_holes_and_no_twins(tmp_path, names, reason, words):
    pictures(tmp_path / "t", stems=("a",))
    pictures(tmp_path / "c", stems=names, shade=9)
    (found,) = read(Source(target=str(tmp_path / "t"), control=str(tmp_path / "c")))
    assert (found.field, found.reason) == ("control", reason)
    assert words in found.detail


def test_a_source_that_has_a_target_of_its_own_is_no_other_targets(tmp_path):
    for name, shade in (("t", 0), ("c", 9)):
        pictures(tmp_path / name, stems=("a", "a_1"), shade=shade)
    for stem in ("a", "a_1"):
        text(tmp_path / "t" / f"{stem}.txt", "red")
    rows = list(read(Source(target=str(tmp_path / "t"), control=str(tmp_path / "c"))))
    assert [len(row.references) for row in rows] == [1, 1]


UNREAD = [
    ("[[datasets]]\nvideo_directory = 'v'\n", r"datasets\[0\]: video_directory: no edits"),
    ("[[datasets]]\nimage_directory = 'gone'\n", "gone: no such folder, neither beside"),
    ("[[datasets]]\nimage_directory = '~nobody-here/gone'\n", "~nobody-here/gone: no such folder, neither beside"),
    ("[[datasets]]\ncache_directory = 'c'\n", "names no pictures; expected image_directory"),
    ("[general]\nresolution = 512\n", "describes no data set; expected"),
    ("[[datasets]\n", "not valid TOML"),
    ("[[datasets]]\nimage_directory = 7\n", "expected a path, got 7"),
]


@pytest.mark.parametrize(("content", "words"), UNREAD)
def test_a_data_set_file_that_cannot_be_read_says_why(tmp_path, content, words):
    with pytest.raises(UserError, match=words):
        list(read(text(tmp_path / "d.toml", content)))


def test_a_folder_without_tables_is_refused_with_the_nearest_layout(tmp_path):
    pairs(tmp_path, "after", "before")
    with pytest.raises(UserError, match=r"nearest to ai-toolkit, whose target/ and control/ are missing; .*control="):
        list(read(tmp_path))
    (tmp_path / "before").rename(tmp_path / "control")
    with pytest.raises(UserError, match=r"whose target/ is missing; say which of its folders \(after, control\)"):
        list(read(tmp_path))
    with pytest.raises(UserError, match=r"for its pictures: target=.*after control=DIR"):
        list(read(tmp_path / "after"))
    text(tmp_path / "dataset.toml", "")
    with pytest.raises(UserError, match=r"to read what dataset.toml describes: source="):
        list(read(tmp_path))


def test_metadata_alone_are_refused_with_what_is_missing(tmp_path):
    path = text(tmp_path / "meta.json", json.dumps({"a": {"caption": "red", "train_resolution": [64, 64]}}))
    with pytest.raises(UserError, match=r"kohya's metadata; name the folder of its pictures: target=DIR captions="):
        list(read(path))


COLUMNS = [
    ({"source": "befor"}, "no column 'befor'; is 'before' meant?"),
    ({"source": "before", "target": "after"}, "none of instruction, instruction_cn, caption"),
    ({"source": "before", "target": "after", "instruction": "wrds"}, "no column 'wrds'; is 'words' meant?"),
]


@pytest.mark.parametrize("name", ["source", "target", "instruction"])
@pytest.mark.parametrize("value", [5, True, [5], {"a": 1}, 0.5])
def test_a_column_s_name_is_text(name, value):
    with pytest.raises(UserError, match=f"columns.{name}=.*: expected the name of a column"):
        _ = Source("e.jsonl", columns={name: value}).chosen


@pytest.mark.parametrize(("columns", "words"), COLUMNS)
def test_a_column_that_is_not_there_is_named_with_the_nearest(tmp_path, columns, words):
    path = text(tmp_path / "e.jsonl", json.dumps({"before": "a.png", "after": "b.png", "words": "red"}))
    (found,) = refusals(Source(str(path), columns=columns))
    assert found.reason == "wrong columns"
    assert words in found.detail
    (found,) = refusals(path)
    assert "columns.source=" in found.detail


def test_two_columns_that_may_be_the_instruction_are_refused_until_one_is_named(tmp_path):
    row = {"before": "a.png", "after": "b.png", "caption": "red", "prompt": "make it red"}
    path = text(tmp_path / "e.jsonl", json.dumps(row))
    columns = {"source": "before", "target": "after"}
    (found,) = refusals(Source(str(path), columns=columns))
    assert "caption and prompt may each be the instruction" in found.detail
    (record,) = read(Source(str(path), columns=columns | {"instruction": "prompt"}))
    assert record.instructions == {"original/en": "make it red"}
    path = text(tmp_path / "f.jsonl", json.dumps(row | {"instruction": "turn it red"}))
    (record,) = read(Source(str(path), columns=columns))
    assert record.instructions == {"original/en": "turn it red"}


def test_a_source_is_named_once(tmp_path):
    for settings, words in (
        ({}, "no data: name source="),
        ({"control": "c"}, "name the folder of the targets too"),
        ({"path": "e.jsonl", "target": "t"}, "name one"),
        ({"target": "t", "layout": "musubi"}, "have no columns"),
        ({"path": "e.jsonl", "layout": "musuby"}, "is musubi meant"),
    ):
        with pytest.raises(UserError, match=words):
            Source(**settings)
    with pytest.raises(UserError, match="is control meant"):
        from_words("", "", {"contrl": "c"})
    with pytest.raises(UserError, match="no such folder of pictures"):
        list(read(Source(target=str(tmp_path / "gone"))))
