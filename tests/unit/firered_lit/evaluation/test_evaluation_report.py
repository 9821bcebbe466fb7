"""The report of an evaluation: counts and warnings, escaped words, plots, thumbnails, and what MLflow gets."""

import io
import json
import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from evaluated import MadeUp, evaluated, made_up
from icc import DISPLAY_P3, in_srgb, rgb_profile
from mlflow.tracking import MlflowClient
from PIL import Image

from firered_lit.errors import UserError
from firered_lit.evaluation.protocols import EvaluationFolder, Item
from firered_lit.evaluation.report import write
from firered_lit.evaluation.report.markdown import escaped
from firered_lit.evaluation.report.record import RunRecord
from firered_lit.evaluation.report.results import read
from firered_lit.evaluation.report.thumbnails import Thumbnails
from firered_lit.run.store import read_record

MODELS = ("ours", "theirs")


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory):
    """An evaluation of 60 items by two models, reported into MLflow too."""
    out = tmp_path_factory.mktemp("evaluation")
    benchmark = made_up(60)
    folder = evaluated(out, benchmark)
    write(folder, [benchmark], MODELS, seed=0, mlflow=RunRecord())
    return folder, benchmark


def report(folder: EvaluationFolder) -> dict:
    return json.loads((folder.report / "report.json").read_text("utf-8"))


def test_the_report_has_scores_counts_judge_and_statistics_of_every_suite(evaluation):
    folder, _ = evaluation
    content = report(folder)
    assert list(content["suites"]) == ["rededit_en", "rededit_cn"]
    suite = content["suites"]["rededit_cn"]
    assert suite["judge"] == "made-up-judge (2026-01-31)"
    counts = {"expected": 30, "scored": 24, "missing": 2, "refused": 2, "unparsed": 2}
    assert suite["models"]["theirs"]["counts"] == {"official": counts, "strict": counts}
    scores = json.loads(folder.model_scores("theirs").read_text("utf-8"))
    assert suite["models"]["theirs"]["scores"] == scores["rededit_cn"]
    assert content["comparisons"] == json.loads(folder.statistics.read_text("utf-8"))["comparisons"]


def test_every_table_of_markdown_counts_in_its_head_and_warns(evaluation):
    folder, _ = evaluation
    text = (folder.report / "report.md").read_text("utf-8")
    sections = text.split("\n## ")[1:]
    assert len(sections) == 4
    for section in sections:
        assert "Judge: made-up-judge" in section
        assert section.count("30 expected, 24 scored, 2 missing, 2 refused, 2 unparsed") >= 2
        assert section.count("**Warning**") == 2
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in section.splitlines() if line.startswith("|")}
        assert len(widths) == 1, "every row has as many cells as the head"


def test_a_complete_evaluation_has_no_warning(tmp_path):
    benchmark = MadeUp(made_up(4).items())
    folder = evaluated(tmp_path, benchmark)
    write(folder, [benchmark], MODELS, seed=0)
    assert "Warning" not in (folder.report / "report.md").read_text("utf-8")
    assert [suite["warnings"] for suite in report(folder)["suites"].values()] == [[], []]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a|b", "a\\|b"),
        ("<script>alert(1)</script>", "\\<script\\>alert(1)\\</script\\>"),
        ("![x](http://elsewhere/x.png)", "\\!\\[x\\](http://elsewhere/x.png)"),
        ("one\ntwo\r| three", "one two \\| three"),
        ("`code` and *stars* and &lt;", "\\`code\\` and \\*stars\\* and \\&lt;"),
    ],
)
def test_markdown_shows_words_as_they_are(text, shown):
    assert escaped(text) == shown


def test_plots_are_drawn_of_every_suite_with_a_bar_per_model(evaluation):
    folder, _ = evaluation
    plots = sorted(path.name for path in (folder.report / "plots").iterdir())
    assert plots == ["rededit_cn_bars.svg", "rededit_cn_radar.svg", "rededit_en_bars.svg", "rededit_en_radar.svg"]
    for name in plots:
        text = "".join(ElementTree.parse(folder.report / "plots" / name).getroot().itertext())
        assert "viewpoint" in text
        assert "theirs" in text


def test_names_that_look_like_formulas_are_drawn_as_they_are(tmp_path):
    items = [
        Item("rededit_en", str(n), f"$x_{n}", "en", "Do it", ("a.png",), f"{n}.png", {"seed": n}) for n in range(4)
    ]
    benchmark = MadeUp(items, names=("rededit_en",))
    folder = evaluated(tmp_path, benchmark, ("$\\frac$", "_hidden"))
    write(folder, [benchmark], ("$\\frac$", "_hidden"), seed=0)
    text = (folder.report / "plots" / "rededit_en_bars.svg").read_text("utf-8")
    assert "$x_0" in text
    assert "$\\frac$" in text
    assert "_hidden" in text


def test_a_report_that_is_written_again_makes_no_thumbnail_twice_and_keeps_no_old_one(tmp_path):
    benchmark = made_up(4)
    folder = evaluated(tmp_path, benchmark)
    write(folder, [benchmark], MODELS, seed=0)
    pictures = folder.report / "pictures"
    before = {path.name: path.stat().st_mtime_ns for path in pictures.iterdir()}
    page = (folder.report / "index.html").read_bytes()
    write(folder, [benchmark], MODELS, seed=0)
    assert {path.name: path.stat().st_mtime_ns for path in pictures.iterdir()} == before
    assert (folder.report / "index.html").read_bytes() == page
    write(folder, [benchmark], MODELS[:1], seed=0)
    assert len(list(pictures.iterdir())) == 2 + 4


def test_a_picture_that_cannot_be_read_is_named_on_its_card_and_stops_nothing(tmp_path):
    benchmark = made_up(6)
    folder = evaluated(tmp_path, benchmark)
    first, second, third = benchmark.items()[:3]
    folder.picture("ours", first).write_bytes(b"no picture")
    folder.picture("ours", second).unlink()
    folder.picture("ours", third).write_bytes(folder.picture("ours", third).read_bytes()[:200])
    write(folder, [benchmark], MODELS, seed=0)
    page = (folder.report / "index.html").read_text("utf-8")
    assert page.count("not a picture that can be read") == 2
    assert page.count("cannot be read: No such file or directory") == 1


def test_a_thumbnail_has_the_colours_that_a_viewer_shows(tmp_path):
    colour = (200, 60, 30)
    seen = in_srgb(colour, DISPLAY_P3)
    assert np.abs(seen - colour).max() > 10
    pictures = [
        (Image.new("RGB", (64, 64), colour), rgb_profile(DISPLAY_P3), seen),
        (Image.new("RGBA", (64, 64), (*colour, 0)), None, (255, 255, 255)),
    ]
    for picture, profile, expected in pictures:
        file = io.BytesIO()
        picture.save(file, "PNG", icc_profile=profile)
        thumbnail = Thumbnails(tmp_path).of(file.getvalue())
        with Image.open(tmp_path / thumbnail.name) as shown:
            assert np.abs(np.asarray(shown, int) - expected).max() <= 4


def test_a_suite_whose_name_begins_with_that_of_another_has_its_own_items(tmp_path):
    names = ("edits", "edits_en")
    items = [Item(names[n % 2], str(n), "add", "en", "Do it", ("a.png",), f"{n}.png", {"seed": n}) for n in range(4)]
    benchmark = MadeUp(items, names=names)
    folder = evaluated(tmp_path, benchmark, ("ours",))
    assert read(folder, [benchmark], ["ours"]).origins == {"edits": "edits", "edits_en": "edits_en"}


def test_a_line_that_is_no_item_is_named(tmp_path):
    benchmark = made_up(4)
    folder = evaluated(tmp_path, benchmark)
    with pytest.raises(UserError, match=r"models/nobody/items\.jsonl: cannot be read"):
        write(folder, [benchmark], ("nobody",), seed=0)
    path = folder.model_items("ours")
    path.write_text(path.read_text("utf-8") + '{"suite": "rededit_en"}\n')
    with pytest.raises(UserError, match=r"items\.jsonl: line 5: no item of an evaluation"):
        write(folder, [benchmark], MODELS, seed=0)
    path.write_text("")
    with pytest.raises(UserError, match="run the steps draw, judge and score before report"):
        write(folder, [benchmark], ("ours",), seed=0)


def test_one_model_without_statistics_is_reported(tmp_path):
    benchmark = made_up(4)
    folder = evaluated(tmp_path, benchmark, ("ours",))
    folder.statistics.unlink()
    write(folder, [benchmark], ("ours",), seed=0)
    assert list(report(folder)["suites"]) == ["rededit_en", "rededit_cn"]


def test_the_judges_noise_the_arena_agreement_and_texts_have_tables_of_their_own(tmp_path):
    benchmark = made_up(4)
    folder = evaluated(tmp_path, benchmark)
    estimate = {"value": 0.5, "low": 0.25, "high": 0.75, "items": 9}
    pair = {"first": "ours", "second": "theirs", "wins": 3, "ties": 2, "losses": 1}
    arena = {"models": {"ours": estimate}, "results": [pair], "pairs": 6, "left_out": 1, "first_shown_wins": estimate}
    statistics = json.loads(folder.statistics.read_text("utf-8"))
    statistics["noise"] = {"rededit_en": {"deviation": 0.3, "identical": 0.8, "items": 50, "floor": 0.07}}
    statistics["arena"] = {
        "rededit_en": arena,
        "rededit_cn": {"models": None, "ties": None, "results": [], "reason": "few"},
    }
    statistics["agreement"] = {"all": estimate, "decided": estimate, "kappa": None}
    statistics["text"] = {"rededit_en": {"ours": {"ED": 1.5, "CR": None, "readers": ["a", "b"]}}}
    folder.statistics.write_text(json.dumps(statistics), "utf-8")
    write(folder, [benchmark], MODELS, seed=0)
    text = (folder.report / "report.md").read_text("utf-8")
    assert "| rededit\\_en | 0.300 | 0.800 | 50 | 0.070 |" in text
    assert "| ours | 0.500 (0.25 to 0.75) | 9 |" in text
    assert "| ours against theirs | 3 / 2 / 1 |" in text
    assert "no strengths: few" in text
    assert "| decided | 0.500 (0.25 to 0.75) |" in text
    assert "| ours | 1.500 | – | a, b |" in text


# MLflow


def recorded(folder: EvaluationFolder, model: str) -> tuple[MlflowClient, str]:
    record = read_record(folder.model_items(model).parent)
    return MlflowClient(record["mlflow_uri"]), record["mlflow_run_id"]


def artifacts(client: MlflowClient, run_id: str, folder: str = "evaluation") -> set[str]:
    return {Path(entry.path).name for entry in client.list_artifacts(run_id, folder)}


def test_mlflow_gets_numbers_tables_and_plots_and_no_picture(evaluation):
    folder, _ = evaluation
    client, run_id = recorded(folder, "theirs")
    run = client.get_run(run_id)
    scores = json.loads(folder.model_scores("theirs").read_text("utf-8"))
    strict = scores["rededit_en"]["strict"]
    assert run.data.metrics["evaluation/rededit_en/strict/overall"] == strict["overall"]["score"]
    assert run.data.metrics["evaluation/rededit_en/strict/text"] == strict["text"]["score"]
    assert run.data.metrics["evaluation/rededit_en/official/items/scored"] == 24
    assert run.data.tags["evaluation.rededit_en.judge"] == "made-up-judge (2026-01-31)"
    assert run.info.run_name == "theirs"
    assert run.info.status == "FINISHED"
    assert {"report.md", "report.json", "rededit_en.csv", "plots"} <= artifacts(client, run_id)
    assert "rededit_cn_radar.svg" in artifacts(client, run_id, "evaluation/plots")
    assert "pictures" not in artifacts(client, run_id)


def test_a_repeated_report_goes_on_in_its_mlflow_run_and_records_pictures_by_choice(evaluation):
    folder, benchmark = evaluation
    client, run_id = recorded(folder, "ours")
    write(folder, [benchmark], MODELS, seed=3, mlflow=RunRecord(pictures=2))
    assert recorded(folder, "ours")[1] == run_id
    assert artifacts(client, run_id, "evaluation/pictures") == {"000.png", "001.png"}


def test_a_store_that_fails_costs_a_warning(tmp_path, caplog):
    benchmark = made_up(4)
    folder = evaluated(tmp_path, benchmark, ("ours",))
    uri = f"sqlite:///{tmp_path}/store.db"
    (tmp_path / "store.db").write_bytes(b"no database at all" * 100)
    write(folder, [benchmark], ("ours",), seed=0, mlflow=RunRecord(uri=uri))
    assert "MLflow: the evaluation of ours is not recorded" in caplog.text
    assert (folder.report / "index.html").exists()


@pytest.mark.parametrize("settings", [{"pictures": -1}, {"uri": "ftp://elsewhere"}])
def test_settings_of_the_record_that_mean_nothing_are_refused_by_their_name(settings):
    (name,) = settings
    with pytest.raises(UserError, match=rf"^mlflow\.{name}="):
        RunRecord(**settings)
