"""The page of an evaluation in a real browser: its cards, its filters, and that nothing out of the data is run.

Chromium comes from the distribution's packages. Without one these tests skip, and say so.
"""

import re
import shutil
import threading
import time
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from evaluated import CATEGORIES, MadeUp, evaluated, made_up
from playwright.sync_api import sync_playwright

from firered_lit.evaluation.protocols import Item
from firered_lit.evaluation.report import write

MODELS = ("ours", "theirs")
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
EVIL = """<script>window.planted=1</script><img src=x onerror="window.planted=2">'"`;//</script></textarea>&lt;"""


@pytest.fixture(scope="module")
def chromium():
    """A headless browser that opens pages from the disk."""
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.skip(f"no browser is installed (looked for {', '.join(BROWSERS)}): apt-get install chromium")
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=program)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory):
    """An evaluation of 60 items by two models, reported."""
    out = tmp_path_factory.mktemp("evaluation")
    benchmark = made_up(60)
    folder = evaluated(out, benchmark)
    write(folder, [benchmark], MODELS, seed=0)
    return folder


class Visit:
    """A page that is open, with all that it asked for and complained of."""

    def __init__(self, browser, folder):
        self.page = browser.new_page(viewport={"width": 1300, "height": 900})
        self.asked = []
        self.failed = []
        self.errors = []
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("requestfailed", lambda request: self.failed.append(request.url))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("dialog", lambda dialog: self.errors.append("a dialog was opened"))
        self.home = (folder.report / "index.html").as_uri()
        self.page.goto(self.home)
        self.page.wait_for_selector("html[data-ready]")

    def shown(self):
        """The items that are shown, in their order, as (suite, id)."""
        found = self.page.evaluate("shown.map((item) => [item.suite, item.id])")
        visible = self.page.locator("article:visible").count()
        assert visible == len(found), "a card is visible for each item that is counted, and no other"
        return [tuple(pair) for pair in found]

    def choose(self, name, label):
        self.page.select_option(f"#{name}", label=label)
        return self.shown()

    def until(self, condition):
        """Wait for what is true in the page before long; the content policy forbids the driver's own way to wait."""
        end = time.monotonic() + 20
        while not self.page.evaluate(condition):
            assert time.monotonic() < end, f"never came true: {condition}"
            self.page.wait_for_timeout(20)

    def key(self, key):
        self.page.keyboard.press(key)


@pytest.fixture
def visit(chromium, evaluation):
    opened = Visit(chromium, evaluation)
    yield opened
    assert opened.errors == []
    assert opened.failed == []
    opened.page.close()


def test_the_page_has_a_card_for_every_item(visit):
    assert visit.page.locator("article").count() == 60
    assert len(visit.shown()) == 60
    assert visit.page.locator("#count").inner_text() == "60 of 60 items"


def test_a_card_shows_source_edits_instruction_and_the_judges_words(visit):
    card = visit.page.locator("article:visible").first
    visit.key("j")
    assert card.locator(".instruction").inner_text() == "Paint number 0 green"
    assert card.locator("img").count() == 3
    visit.until("[...document.querySelectorAll('article:first-child img')].every((one) => one.naturalWidth > 0)")
    card.locator("summary").first.click()
    assert "The edit follows the instruction in part." in card.locator(".words").first.inner_text()


def test_cards_far_below_are_filled_when_they_are_scrolled_to(visit):
    last = visit.page.locator("article").last
    assert last.locator("img").count() == 0
    last.scroll_into_view_if_needed()
    visit.until("document.querySelector('#items article:last-child .instruction') !== null")


def test_filters_leave_what_they_name(visit):
    assert visit.choose("language", "zh") == [("rededit_cn", str(number)) for number in range(30)]
    assert visit.choose("category", CATEGORIES[2]) == [("rededit_cn", "2"), ("rededit_cn", "17")]
    visit.choose("category", "all")
    assert visit.choose("failure", "refused") == [("rededit_cn", "3"), ("rededit_cn", "23")]
    assert visit.choose("failure", "unparsed") == [("rededit_cn", "5"), ("rededit_cn", "25")]
    assert visit.choose("failure", "no picture") == [("rededit_cn", name) for name in ("7", "8", "27", "28")]
    visit.choose("failure", "all")
    visit.choose("language", "all")
    assert visit.choose("suite", "rededit_en") == [("rededit_en", str(number)) for number in range(30)]
    visit.choose("suite", "all")
    visit.page.fill("#search", "NUMBER 16 ")
    assert visit.shown() == [("rededit_en", "8")]
    assert visit.page.locator("#count").inner_text() == "1 of 60 items"


def test_an_answer_without_words_shows_none(visit):
    visit.choose("failure", "refused")
    card = visit.page.locator("article:visible").first
    visit.key("j")
    assert card.locator(".state").all_inner_texts() == ["refused", "refused"]
    assert card.locator(".words").count() == 0


def test_the_widest_gaps_come_first_when_asked_for(visit):
    visit.choose("order", "widest gap first")
    gaps = visit.page.evaluate("shown.map((item) => item.gap)")
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[0] > gaps[-1]
    visit.choose("order", "lowest score first")
    lowest = visit.page.evaluate("shown.map(lowest)")
    assert lowest == sorted(lowest)
    assert visit.choose("order", "same id together")[:4] == [
        ("rededit_en", "0"),
        ("rededit_cn", "0"),
        ("rededit_en", "1"),
        ("rededit_cn", "1"),
    ]


def test_the_keyboard_walks_through_items_and_pictures(visit):
    def focused():
        return visit.page.evaluate("document.activeElement.item && document.activeElement.item.id")

    def enlarged():
        return visit.page.locator("#large-caption").inner_text().split(":")[0]

    visit.key("j")
    visit.key("j")
    assert focused() == "0"
    assert visit.page.evaluate("document.activeElement.item.suite") == "rededit_cn"
    visit.key("k")
    assert visit.page.evaluate("document.activeElement.item.suite") == "rededit_en"
    visit.key("w")
    assert visit.page.locator("article:visible").first.locator("details[open]").count() == 2
    visit.key("Enter")
    assert enlarged() == "ours"
    visit.key("ArrowRight")
    assert enlarged() == "theirs"
    visit.key(" ")
    assert enlarged() == "source 1"
    visit.key(" ")
    assert enlarged() == "theirs"
    visit.key("Escape")
    assert not visit.page.locator("#large").is_visible()
    visit.key("g")
    assert visit.page.locator("#order").input_value() == "widest gap first"
    visit.key("/")
    visit.page.keyboard.type("jg")
    assert visit.page.locator("#search").input_value() == "jg"


class SomeWithThreeSources(MadeUp):
    """Items of which the first has three source pictures."""

    def sources(self, item):
        count = 3 if item == self.contents[0] else 1
        return super().sources(item) * count


def test_space_turns_to_the_model_that_was_shown_before_whatever_number_of_sources_an_item_has(chromium, tmp_path):
    benchmark = SomeWithThreeSources(made_up(4).items())
    folder = evaluated(tmp_path, benchmark)
    write(folder, [benchmark], MODELS, seed=0)
    opened = Visit(chromium, folder)
    for key in ("j", "Enter", "ArrowRight", " ", "Escape", "j"):
        opened.key(key)
    opened.page.locator("article:focus img").first.click()
    opened.key(" ")
    assert opened.page.locator("#large-caption").inner_text() == "theirs: 把第1个涂成绿色"
    opened.page.close()


def test_tables_name_the_judge_and_count_what_was_expected_and_scored(visit):
    first = visit.page.locator("details.table").first
    assert "Judge: made-up-judge (2026-01-31)" in first.inner_text()
    assert "of 30 items 24 have an official and 24 a strict score" in first.locator(".warning").first.inner_text()
    for head in first.locator("thead th").all()[1:]:
        assert "30 expected, 24 scored, 2 missing, 2 refused, 2 unparsed" in head.inner_text()
    for plot in visit.page.locator("#plots img").all():
        assert plot.evaluate("(one) => one.complete && one.naturalWidth > 0")


def test_no_request_leaves_the_folder(visit, evaluation):
    visit.page.locator("article").last.scroll_into_view_if_needed()
    visit.page.wait_for_timeout(200)
    home = evaluation.report.as_uri() + "/"
    assert len(visit.asked) > 10
    assert [url for url in visit.asked if not url.startswith(home)] == []


def test_the_page_works_in_another_place(chromium, evaluation, tmp_path):
    moved = replace(evaluation, out=tmp_path)
    shutil.copytree(evaluation.report, moved.report)
    opened = Visit(chromium, moved)
    opened.key("j")
    opened.until("[...document.images].slice(0, 8).every((one) => one.naturalWidth > 0)")
    assert opened.failed == []
    opened.page.close()


# Hostile data


def hostile() -> MadeUp:
    """A benchmark of six items whose every word tries to be run."""
    items = []
    for number in range(6):
        language = ("en", EVIL)[number % 2]
        name = f'{"../" * 3}{number}"><script>window.planted=3</script>.png'
        facts = {"seed": number}
        items.append(Item("rededit_en", f"{EVIL}{number}", EVIL, language, EVIL, (name,), f"{number}.png", facts))
    return MadeUp(items, names=("rededit_en",))


@pytest.fixture(scope="module")
def hostile_evaluation(tmp_path_factory):
    out = tmp_path_factory.mktemp("hostile")
    benchmark = hostile()
    names = ('<b>"bold" $x$', "javascript:alert(1)")
    folder = evaluated(out, benchmark, names, words=f"{EVIL}\ud800 ]]> -->\u2028")
    (out.parent / "secret.png").write_bytes(benchmark.sources(benchmark.items()[0])[0])
    table = folder.model_items(names[1])
    table.write_text(
        table.read_text("utf-8").replace('"pictures/javascript:alert(1)/rededit_en/2.png"', '"../secret.png"')
    )
    write(folder, [benchmark], names, seed=0)
    return folder


def test_words_and_names_that_look_like_code_are_shown_and_not_run(chromium, hostile_evaluation):
    opened = Visit(chromium, hostile_evaluation)
    page = opened.page
    assert page.locator("article").count() == 6
    card = page.locator("article").first
    card.scroll_into_view_if_needed()
    card.locator("summary").first.click()
    assert card.locator(".instruction").inner_text() == EVIL
    assert "<script>window.planted=1</script>" in card.locator(".words").first.inner_text()
    assert '<b>"bold" $x$' in page.locator("#legend").inner_text()
    assert EVIL in page.locator("details.table tbody th").first.inner_text()
    page.keyboard.press("j")
    page.keyboard.press("Enter")
    page.wait_for_timeout(200)
    assert page.evaluate("window.planted") is None
    assert page.locator("script").count() == 2, "the page's own, and its block of data"
    home = hostile_evaluation.report.as_uri() + "/"
    assert [url for url in opened.asked if not url.startswith(home)] == []
    assert opened.errors == []
    page.close()


def test_a_picture_outside_of_the_evaluation_is_not_shown(chromium, hostile_evaluation):
    opened = Visit(chromium, hostile_evaluation)
    opened.page.locator("article").nth(2).scroll_into_view_if_needed()
    assert "its name leads out of the evaluation's folder" in opened.page.locator("article").nth(2).inner_text()
    opened.page.close()


INTRUSIONS = {
    "an element of script": "const one = document.createElement('script'); one.text = 'window.planted = 1';"
    " document.body.append(one)",
    "markup": "document.body.innerHTML = '<img src=x onerror=\"window.planted=1\">'",
    "an address": "location.href = 'javascript:window.planted=1'",
}


@pytest.fixture(scope="module")
def without_policy(evaluation, tmp_path_factory):
    """The same report without its content policy, on which all that must not happen does."""
    bare = replace(evaluation, out=tmp_path_factory.mktemp("bare"))
    shutil.copytree(evaluation.report, bare.report)
    index = bare.report / "index.html"
    page, count = re.subn(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", index.read_text("utf-8"))
    assert count == 1
    index.write_text(page, "utf-8")
    return bare


@pytest.mark.parametrize("name", INTRUSIONS)
def test_the_page_runs_nothing_that_gets_into_its_tree(chromium, evaluation, without_policy, name):
    def planted(folder):
        opened = Visit(chromium, folder)
        opened.page.evaluate(f"() => {{ try {{ {INTRUSIONS[name]} }} catch {{}} }}")
        opened.page.wait_for_timeout(100)
        found = opened.page.evaluate("window.planted")
        opened.page.close()
        return found

    assert planted(evaluation) is None
    assert planted(without_policy) == 1


def test_the_page_runs_nothing_that_gets_into_its_file(chromium, evaluation, tmp_path):
    planted = "<script>window.planted = 1</script><img src=x onerror='window.planted = 2'><script src=evil.js></script>"
    broken = replace(evaluation, out=tmp_path)
    shutil.copytree(evaluation.report, broken.report)
    (broken.report / "evil.js").write_text("window.planted = 3;")
    index = broken.report / "index.html"
    index.write_text(index.read_text("utf-8").replace("</body>", f"{planted}</body>"), "utf-8")
    opened = Visit(chromium, broken)
    opened.page.wait_for_timeout(100)
    assert opened.page.evaluate("window.planted") is None
    opened.page.close()


class Counter(BaseHTTPRequestHandler):
    """Answers everything and notes what was asked of its server."""

    def do_GET(self):
        self.server.asked.append(self.path.removeprefix("/"))
        self.send_response(200)
        self.end_headers()

    def do_POST(self):
        self.do_GET()

    def log_message(self, *_):
        """Say nothing."""


@pytest.mark.parametrize("policy", [True, False], ids=["with its policy", "without"])
def test_the_content_policy_lets_no_request_out(chromium, evaluation, without_policy, policy):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Counter)
    server.asked = []
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}"
    opened = Visit(chromium, evaluation if policy else without_policy)
    opened.page.evaluate(
        """(address) => {
            fetch(`${address}/fetch`, { mode: "no-cors" }).catch(() => {});
            new Image().src = `${address}/image`;
            const style = document.createElement("link");
            Object.assign(style, { rel: "stylesheet", href: `${address}/style` });
            const frame = document.createElement("iframe");
            frame.src = `${address}/frame`;
            const answer = document.createElement("iframe");
            answer.name = "answer";
            const form = document.createElement("form");
            Object.assign(form, { action: `${address}/form`, method: "post", target: "answer" });
            document.body.append(style, frame, answer, form);
            form.submit();
        }""",
        address,
    )
    everything = {"fetch", "image", "style", "frame", "form"}
    end = time.monotonic() + (0.3 if policy else 20)
    while time.monotonic() < end and not everything <= set(server.asked):
        opened.page.wait_for_timeout(20)
    opened.page.close()
    server.shutdown()
    server.server_close()
    thread.join()
    assert set(server.asked) == (set() if policy else everything)
