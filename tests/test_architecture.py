"""The house as described is the house as built.

`python tests/test_architecture.py` writes docs/tree.md and the keys in docs/recipes.md.
"""

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent / "support"))
import recipe_keys

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("firered_lit", "datamodules", "callbacks")
MODULES = sorted(p for room in ROOMS for p in (ROOT / room).rglob("*.py"))
RECIPES = sorted((ROOT / "recipes").rglob("*.yaml"))


def dotted(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def summary(path: Path) -> str:
    """The first line of a module's docstring, or of a recipe's opening comment."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        lines = (ast.get_docstring(ast.parse(text)) or "").splitlines()
    else:
        lines = [line.removeprefix("#").strip() for line in text.splitlines() if line.startswith("#")]
    return lines[0] if lines else ""


def tree() -> str:
    """One line per file of the rooms, the recipes and the benchmarks."""
    files = [p for p in MODULES if p.name != "__init__.py"] + RECIPES + sorted((ROOT / "benchmarks").glob("*.py"))
    lines, folder = [], None
    for path in sorted(files, key=lambda p: (str(p.parent), p.name)):
        if path.parent != folder:
            folder = path.parent
            room = folder / "__init__.py"
            title = summary(room) if room.exists() else ""
            lines.append(f"{folder.relative_to(ROOT)}/".ljust(30) + title if title else f"{folder.relative_to(ROOT)}/")
        lines.append(f"  {path.name}".ljust(30) + summary(path))
    return "```\n" + "\n".join(line.rstrip() for line in lines) + "\n```"


def page() -> str:
    """docs/tree.md: the tree under a headline."""
    return f"# Every file\n\nWritten by `python tests/test_architecture.py`.\n\n{tree()}\n"


def test_the_page_of_the_tree_is_the_tree() -> None:
    written = (ROOT / "docs/tree.md").read_text(encoding="utf-8")
    assert written == page(), "run `python tests/test_architecture.py` to write docs/tree.md"


def test_the_page_of_recipes_has_every_key() -> None:
    written = recipe_keys.PAGE.read_text(encoding="utf-8")
    assert written == recipe_keys.page(), "run `python tests/test_architecture.py` to write docs/recipes.md"


def test_every_key_of_a_recipe_has_a_meaning() -> None:
    assert recipe_keys.undescribed() == [], "describe these in an `Args:` list of their class or function"


def test_the_readmes_map_names_the_rooms_that_there_are() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    drawing = readme.split("## The map")[1].split("```")[1]
    rooms = re.findall(r"[\w]+/", drawing)
    assert {"firered_lit/", "datamodules/", "callbacks/", "recipes/"} <= set(rooms)
    homes = (ROOT, ROOT / "firered_lit", ROOT / "recipes")
    missing = [room for room in rooms if not any((home / room).is_dir() for home in homes)]
    assert missing == []


def test_the_readmes_links_lead_somewhere() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)]+)\)", readme) if not link.startswith("http")]
    assert len(links) >= 5
    assert [link for link in links if not leads_somewhere(link)] == []


def leads_somewhere(link: str) -> bool:
    """Return whether a file, and in it the heading that a link may name, is there."""
    file, _, heading = link.partition("#")
    if not (ROOT / file).exists():
        return False
    headings = re.findall(r"^#+ (.+)$", (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE) if heading else []
    return not heading or heading in [re.sub(r"[^\w -]", "", text.lower()).replace(" ", "-") for text in headings]


@pytest.mark.parametrize("path", MODULES, ids=dotted)
def test_every_module_can_be_imported_and_says_what_it_is(path: Path) -> None:
    if path.name != "__main__.py":
        importlib.import_module(dotted(path))
    assert summary(path), f"{path.name} has no docstring"


def test_no_two_classes_have_one_name() -> None:
    places: dict[str, list[str]] = {}
    for path in [*MODULES, *sorted((ROOT / "benchmarks").rglob("*.py"))]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                places.setdefault(node.name, []).append(str(path.relative_to(ROOT)))
    assert {name: paths for name, paths in places.items() if len(paths) > 1} == {}


def test_no_room_is_called_after_nothing() -> None:
    assert not [p.name for p in MODULES if re.search(r"util|helper|common|misc", p.stem)]


def test_every_recipe_fits_its_signatures() -> None:
    assert RECIPES, "no recipe found"
    runnable = [p for p in RECIPES if p.parent.name != "base"]
    assert runnable
    done = subprocess.run([sys.executable, "-m", "firered_lit", "check"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr + done.stdout
    for recipe in runnable:
        assert str(recipe.relative_to(ROOT)) in done.stdout


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_recipe_is_one_screen_and_says_what_it_is(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 60
    assert summary(path)
    assert isinstance(yaml.safe_load(text), dict)


def test_nothing_of_this_machine_or_of_an_index_is_committed() -> None:
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True).stdout.split("\0")
    if not any(tracked):
        pytest.skip("not a git checkout")
    forbidden = re.compile(r"(index[-_]url\s*[=:]|--index\b|/root/|/home/\w+/|@ file://)")
    for name in filter(None, tracked):
        path = ROOT / name
        if (
            path.suffix in {".py", ".md", ".toml", ".yaml", ".txt", ".ipynb", ""}
            and path.is_file()
            and path != Path(__file__)
        ):
            assert not forbidden.search(path.read_text(encoding="utf-8", errors="ignore")), name


if __name__ == "__main__":
    (ROOT / "docs/tree.md").write_text(page(), encoding="utf-8")
    recipe_keys.PAGE.write_text(recipe_keys.page(), encoding="utf-8")
