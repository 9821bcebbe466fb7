"""The pages for users: each says first when one needs it, both languages agree, and errors are quoted as they are."""

import ast
import re
import shlex
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
DOCS = ROOT / "docs"
PAGES = [page for page in sorted(DOCS.glob("*.md")) if page.name != "tree.md"]
CHINESE = sorted((DOCS / "zh").glob("*.md"))
LANGUAGES = [(ROOT / "README.md", ROOT / "README.zh-CN.md"), *((DOCS / page.name, page) for page in CHINESE)]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r"^    (?:python|make) .*$", re.MULTILINE)
CJK = re.compile(r"[\u3000-\u9fff\uff00-\uffef]")
LANGUAGE = {"变成冬天": "Make it winter", "instruction_cn": "instruction"}  # what a Chinese page asks in Chinese


def blocks(page: Path) -> list[tuple[str, str]]:
    """Return the language and the content of a page's blocks."""
    return [(language, content) for language, content in FENCE.findall(page.read_text(encoding="utf-8")) if language]


def commands(page: Path) -> list[list[str]]:
    """Return the words of every command that a page prints in a block or as an indented line, without remarks."""
    text = page.read_text(encoding="utf-8")
    lines = [line for language, block in blocks(page) if language == "bash" for line in joined(block)]
    lines += [re.split(" {5,}", line.strip())[0] for line in INDENTED.findall("\n".join(joined(FENCE.sub("", text))))]
    return [[LANGUAGE.get(word, word) for word in shlex.split(line, comments=True)] for line in lines if line.strip()]


def joined(text: str) -> list[str]:
    """Return the lines of a text, those that go on behind a backslash as one."""
    return re.sub(r"\\\n *", " ", text).splitlines()


def without_remarks(block: str) -> str:
    """Return a block of code without comments, and in English where it asks for an edit."""
    for chinese, english in LANGUAGE.items():
        block = block.replace(chinese, english)
    return re.sub(r"\s*#.*", "", block)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_says_first_when_one_needs_it(page):
    first = page.read_text(encoding="utf-8").split("\n\n")[1]
    assert first.startswith("When "), f"{page.name} begins with {first[:60]!r}"


@pytest.mark.parametrize("page", CHINESE, ids=lambda page: page.stem)
def test_a_chinese_page_says_first_when_one_needs_it_and_leads_to_the_english_one(page):
    title, link, first = page.read_text(encoding="utf-8").split("\n\n")[:3]
    assert CJK.search(title)
    assert link == f"[English](../{page.name})"
    assert first.startswith("如果")


@pytest.mark.parametrize(("english", "chinese"), LANGUAGES, ids=lambda page: page.stem)
def test_both_languages_print_the_same_commands(english, chinese):
    assert commands(chinese) == commands(english)


def test_the_pages_in_two_languages_have_commands():
    assert sum(len(commands(page)) for _, page in LANGUAGES) > 10


@pytest.mark.parametrize(("english", "chinese"), LANGUAGES, ids=lambda page: page.stem)
def test_both_languages_show_the_same_rows_and_recipes(english, chinese):
    shown = [
        [(language, without_remarks(block)) for language, block in blocks(page) if language not in ("", "bash")]
        for page in (english, chinese)
    ]
    assert shown[0] == shown[1]


@pytest.mark.parametrize(("english", "chinese"), LANGUAGES, ids=lambda page: page.stem)
def test_both_languages_have_the_same_chapters_and_tables(english, chinese):
    def shape(page: Path) -> list[str]:
        lines = FENCE.sub("", page.read_text(encoding="utf-8")).splitlines()
        return [line.split()[0] for line in lines if line.startswith("#")] + [line for line in lines if "|---" in line]

    def rows(page: Path) -> int:
        return sum(line.startswith("|") for line in page.read_text(encoding="utf-8").splitlines())

    assert shape(english) == shape(chinese)
    assert rows(english) == rows(chinese)


@cache
def texts_of_the_code() -> str:
    """Return every text that stands in the code of the rooms, pieces of one message with `...` between them."""
    texts = []
    for room in ("firered_lit", "datamodules", "callbacks"):
        for file in (ROOT / room).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    texts.append(node.value)
    return "\n".join(texts)


OF_LIBRARIES = {"CUDA out of memory"}


def test_the_errors_of_the_faq_are_those_of_the_code():
    quoted = re.findall(r"\*\*`([^`]+)`\*\*", (DOCS / "faq.md").read_text(encoding="utf-8").replace("\n", " "))
    assert len(quoted) > 30
    known = texts_of_the_code()
    for line in quoted:
        pieces = [piece.strip(" '") for piece in re.split(r"\.\.\.", line)]
        lost = [piece for piece in pieces if len(piece) > 3 and piece not in known and piece not in OF_LIBRARIES]
        assert lost == [], f"{line!r}: nothing in the code says {lost}"
