"""The report of a curation says what was dropped, shows it, and takes names and captions for text alone."""

import re
from html.parser import HTMLParser

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from raw_pictures import lines, loose, picture, save, table

from datamodules.sources.raw import RawRows
from firered_lit.curation.changes import follow, read_changes
from firered_lit.curation.fit import Duplicates
from firered_lit.curation.hashes import Hashes
from firered_lit.curation.photometric import Photometric
from firered_lit.curation.run import curate
from firered_lit.curation.words import Words
from firered_lit.errors import UserError

RULES = {"dark": {"column": "photometric.brightest", "below_quantile": 0.3}}
HOSTILE = "</figcaption><script>alert('1')</script>|`x`<img src=x onerror=alert(1)> [l](javascript:x)\u202e & \x07"


class Tags(HTMLParser):
    """The tags of a page, their attributes, and the text that a reader sees."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.attributes, self.text = [], [], ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [name for name, _ in attrs]

    def handle_data(self, data):
        self.text += data


def run(source, out, **options):
    annotators = {"photometric": Photometric(), "hashes": Hashes(), "words": Words()}
    given = {"annotators": annotators, "rules": RULES, "duplicates": Duplicates(), "workers": 0}
    curate(source=str(source), out=str(out), rows=RawRows(str(source)), **{**given, **options})
    report = out / "report"
    return (report / "index.html").read_text(encoding="utf-8"), (report / "report.md").read_text(encoding="utf-8")


@pytest.fixture
def hostile(tmp_path):
    """Rows whose names, captions, tasks and sources are written to break out of a page."""
    folder = loose(tmp_path / "raw", 8, side=64)
    save(folder / "0008.jpg", picture(0, 64), quality=80)
    row = {"source_image": None, "task": HOSTILE, "license": HOSTILE, "category": HOSTILE}
    rows = [
        {
            **row,
            "id": f"{HOSTILE}{i}",
            "source": f"{HOSTILE} {i % 2}",
            "instruction": HOSTILE,
            "target_image": f"{i:04d}.jpg",
        }
        for i in range(9)
    ]
    rows.append({**rows[0], "id": "lost", "target_image": f"{HOSTILE.replace('/', '')}.jpg"})
    return table(folder / "rows.jsonl", rows)


def test_hostile_text_is_text(hostile, tmp_path):
    page, markdown = run(hostile, tmp_path / "out")
    parsed = Tags(page)
    assert {"script", "a", "iframe", "form", "link"}.isdisjoint(parsed.tags)
    assert "onerror" not in parsed.attributes
    assert "href" not in parsed.attributes
    assert "alert('1')" in parsed.text, "it is shown, as text"
    assert "default-src 'none'" in page
    assert "\u202e" not in page + markdown
    assert "\x07" not in page + markdown
    assert re.search(r"(?<!\\)[<`\[]", markdown) is None
    cells = [line for line in markdown.splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in cells} <= {6, 7}


def test_the_funnel_and_the_pictures_are_those_of_the_decisions(hostile, tmp_path):
    page, markdown = run(hostile, tmp_path / "out")
    kept = len(lines(tmp_path / "out" / "selected.jsonl"))
    assert f"10 rows, {kept} kept" in page
    rows = {line.split(" | ")[0].strip("| "): line.split(" | ")[1:4] for line in markdown.splitlines() if "| " in line}
    assert rows["picture: missing image"][0] == "1"
    assert rows["dark"] == ["3", "3", "6"]
    assert rows["duplicate"][0] == "1"
    table_of_kept = [line for line in markdown.split("## By ")[1].splitlines()[4:] if line]
    shares = [float(line.split(" | ")[4].removesuffix(" %")) for line in table_of_kept]
    assert sum(shares) == pytest.approx(100, abs=0.11), "the mixture"
    assert page.count("<img") == 3 + 1 + 2, "the dark ones, the copy, and the copy beside its twin"
    assert "photometric.brightest 0." in page
    assert page.count("<svg") == 1


def test_at_most_sixteen_dropped_pictures_of_a_reason_are_shown_the_same_ones_for_a_seed(tmp_path):
    source = loose(tmp_path / "raw", 30, side=32)
    everything = {"bright": {"column": "photometric.brightness", "above": 0.0}}
    page, _ = run(source, tmp_path / "out", rules=everything, duplicates=None)
    names = re.findall(r"<figcaption>(\d{4}.jpg)", page)
    assert len(names) == 16
    assert (
        re.findall(r"<figcaption>(\d{4}.jpg)", run(source, tmp_path / "out", rules=everything, duplicates=None)[0])
        == names
    )
    other, _ = run(source, tmp_path / "out", rules=everything, duplicates=None, seed=1)
    assert re.findall(r"<figcaption>(\d{4}.jpg)", other) != names


def test_a_report_without_decisions_is_refused(tmp_path):
    source = loose(tmp_path / "raw", 2, side=32)
    with pytest.raises(UserError, match=r"selection.json: missing; run the step select first"):
        run(source, tmp_path / "out", steps=["annotate", "report"])


def test_what_another_threshold_changed_is_said_and_shown_until_something_else_changes(hostile, tmp_path, capsys):
    out = tmp_path / "out"
    run(hostile, out)
    assert not (out / "changes.parquet").exists()
    before = reasons(out)
    stricter = {"dull": {"column": "photometric.saturation", "below_quantile": 0.5}, **RULES}
    capsys.readouterr()
    html, markdown = run(hostile, out, rules=stricter, steps=["select", "report"])
    pairs = enumerate(zip(before, reasons(out), strict=True))
    changed = {number: pair for number, pair in pairs if pair[0] != pair[1]}
    assert {pair[1] for pair in changed.values()} == {"dull"}
    rows = pq.read_table(out / "changes.parquet").to_pylist()
    assert {row["row"]: (row["before"], row["now"]) for row in rows} == changed
    assert f"{len(changed):>8} rows since the selection before" in capsys.readouterr().out
    went = sum(pair == (None, "dull") for pair in changed.values())
    assert f"| kept | dull | {went} |" in markdown
    parsed = Tags(html)
    assert "Since the selection before" in parsed.text
    assert {"script", "a"}.isdisjoint(parsed.tags), "names of rows are text alone"
    # The same selection again changes nothing of that; the one before it turns it round.
    same = (out / "changes.parquet").read_bytes()
    run(hostile, out, rules=stricter, steps=["select"])
    assert (out / "changes.parquet").read_bytes() == same
    run(hostile, out, steps=["select"])
    back = pq.read_table(out / "changes.parquet").to_pylist()
    assert {row["row"]: (row["now"], row["before"]) for row in back} == changed


def test_the_most_rows_that_changed_alike_come_first_and_their_first_rows_are_named(tmp_path):
    (tmp_path / "state").mkdir()

    def decide(found, weight=1.0):
        columns = {"id": [f"r{number}" for number in range(len(found))], "kept": [reason is None for reason in found]}
        columns |= {"reason": pa.array(found, pa.string()), "weight": [weight] * len(found)}
        (tmp_path / "decisions.parquet").unlink(missing_ok=True)  # a file that is replaced, never written into
        pq.write_table(pa.table(columns), tmp_path / "decisions.parquet")
        return follow(tmp_path)

    assert decide([None] * 7) == []
    said = decide(["blurred", "blurred", None, "dark", "dark", "dark", "dark"])
    assert [line.split()[1:] for line in said[:2]] == [["4", "kept", "->", "dark"], ["2", "kept", "->", "blurred"]]
    assert [change.ids for change in read_changes(tmp_path)] == [("r3", "r4", "r5"), ("r0", "r1")]
    before = (tmp_path / "changes.parquet").read_bytes()
    assert decide(["blurred", "blurred", None, "dark", "dark", "dark", "dark"], weight=0.5) == []
    assert (tmp_path / "changes.parquet").read_bytes() == before, "weights alone are no change"


def reasons(out):
    return pq.read_table(out / "decisions.parquet").column("reason").to_pylist()
