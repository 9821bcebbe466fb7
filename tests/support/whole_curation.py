"""A curation of every step, for tests that share it, kill it or spread it; in a module that other processes find."""

import json

from raw_annotators import Look
from raw_pictures import CREDIT, picture, save, table
from support.stub_judge import pictures, words

from datamodules.sources.raw import RawRows
from firered_lit.curation import run as room
from firered_lit.curation.fill import Fill
from firered_lit.curation.fit import Clusters, Duplicates
from firered_lit.curation.hashes import Hashes
from firered_lit.curation.label.label import Label
from firered_lit.curation.make.maker import Make, Making
from firered_lit.curation.photometric import Photometric
from firered_lit.curation.select import Quota
from firered_lit.curation.words import Words
from firered_lit.evaluation.judge_server import JudgeServer

PARALLEL = 4  # requests under way at once
# What begins each step: an attribute of a class or of the module that runs them.
BEGINS = {
    "annotate": (room, "_annotate"),
    "fit": (room, "fit"),
    "select": (room, "_selected"),
    "label": (Label, "run"),
    "write": (room, "_write"),
    "make": (Making, "run"),
    "fill": (Fill, "run"),
    "report": (room, "report"),
}


def mixed_table(folder, count):
    """Pictures without a source, and every third row an edit; of each seven pictures two are much the same."""
    rows = []
    for number in range(count):
        pixels = picture(number - number % 7 // 6)
        row = {"id": f"p{number}", "source_image": None, "target_image": f"{number}.png", "license": CREDIT}
        row |= {"instruction": f"Scene {number}", "task": "text-to-image"}
        if number % 3 == 2:
            save(folder / f"{number}_source.png", pixels)
            pixels = pixels.copy()
            pixels[20:60, 20:60] = 255 - pixels[20:60, 20:60]
            row |= {"source_image": f"{number}_source.png", "instruction": f"Invert square {number}", "task": "colour"}
        save(folder / f"{number}.png", pixels)
        rows.append(row)
    return table(folder / "rows.jsonl", rows)


def answer(body, digest):
    """Answer both prompts; one row in ten is misaligned."""
    texts = ("structured", "detailed_en", "detailed_cn", "concise_en", "concise_cn", "user_en", "user_cn")
    if '"alignment"' not in words(body):
        found = {name: f"{name} of {len(pictures(body))} pictures" for name in texts}
        return json.dumps(found | {"category": "none"})
    score = 2 if digest.share("score") < 0.1 else 5
    return json.dumps({"alignment": score, "quality": 4, "sides": True, "viewpoint": True, "counts": True})


def everything(source, out, url, announced=None, **options):
    """Run every step. `announced` is a connection that is sent the name of each step as it begins."""
    for step in BEGINS if announced is not None else ():
        _announce(step, announced)
    server = JudgeServer(url, "stub", retries=1, backoff=0.01, parallel=PARALLEL, timeout=60)
    given = {
        "annotators": {"photometric": Photometric(), "hashes": Hashes(), "look": Look(), "words": Words()},
        "rules": {
            "dark": {"column": "photometric.brightest", "below": 0.2},
            "misaligned": {"column": "label.alignment", "below": 4},
        },
        "duplicates": Duplicates(best={"photometric.noise": "lowest"}),
        "clusters": Clusters("look.vector", count=3, sample=20),
        "quotas": [Quota("row.kind", most=12)],
        "label": Label(server),
        "make": Make(each=2, several=0.5, part_rows=4),
        "fill": Fill(least=3, tasks=["text", "color"]),
        "shard_rows": 4,
        "workers": 2,
    }
    room.curate(source=str(source), out=str(out), rows=RawRows(str(source)), **{**given, **options})


def _announce(step, announced):
    place, name = BEGINS[step]
    begin = getattr(place, name)

    def announcing(*args, **options):
        announced.send(step)
        return begin(*args, **options)

    setattr(place, name, announcing)
