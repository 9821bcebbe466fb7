"""A recipe that was changed at random ends as it should: refused in one line with exit code 2, or accepted."""

import copy
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import yaml
from commands import Reached, ended_well
from lightning.pytorch.strategies.launchers.subprocess_script import _SubprocessScriptLauncher

import callbacks.signals
import datamodules.prepare.write
import firered_lit.mine.run
from firered_lit import checking
from firered_lit.config import recipe
from firered_lit.config.dialect import dump
from firered_lit.config.nameable import NAMES, ROOTS

ROOT = Path(__file__).resolve().parents[2]
QUICK, SLOW = 500, 10_000
SECONDS = 120.0  # of one command; the first imports what it needs

VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2, 7, 10**30, -(10**12), 1 << 63, 0.5, -0.0, 1e-300, 1e300),
    *(float("nan"), float("inf"), float("-inf"), "", " ", "word", "1", "1e-4", "true", "null", "~", "???"),
    *("${run.dir}", "${stage}", "${data.root}", "${nothing.here}", "${a", "$", "é漢字\U0001f600", "a" * 5000),
    *("../../x", "/dev/null", "/proc/self/mem", "~nobody-has-this-name/x", "http://127.0.0.1:9/x", "s3://x/y"),
    *([], {}, [[]], [None], [1, "x"], {"a": 1}, {"": 1}, {"_target_": "os.system"}, {"_partial_": True}),
    *({"_target_": None}, {"_target_": []}, {1: 2}, [{"_target_": "torch.optim.AdamW"}]),
)
GIVEN = {  # what a recipe waits for, of the verbs that are run as far as their work
    "fit": ("run.dir=run", "data.root=data", "logger=null"),
    "prepare": ("source=rows", "out=out"),
    "mine": ("out=out", "task.data.root=data"),
}
LINES = (
    *("- a", "a: b: c", "\t", "? x", "[", "}", "{a: ", "'", '"', "&a b", "*a", "!!python/object:os.system x", "---"),
    *("...", "%YAML 9.9", "<<: {a: 1}", "base: [a", "base: base.yaml", "base: {}", "base: [1]", "base: [.]", ": x"),
    *("_target_: x", "a: |", "  x: >-", "0: 1", "null: 1", "true: x", "? [a]\n: b", "a: !!int x", "# " + "x" * 300),
)
BYTES = (b"\xff", b"\x00", b"\xef\xbb\xbf", b"\r", b"\x0b", b"\xc2\x85", b"\xe2\x80\xa8", b"\xed\xa0\x80", b"\x1b[2J")


@pytest.fixture(scope="module")
def recipes() -> dict[str, str]:
    """Every shipped recipe, its bases laid under it: name -> text."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        return {name: dump(recipe.load(name).root) for name in checking.everything()}


@pytest.fixture
def stopped(small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to run in, where `fit`, `prepare` and `mine` go as far as their work."""

    def reach(*_: object, **__: object) -> None:
        raise Reached

    monkeypatch.setattr(L.Trainer, "_run_stage", reach)
    monkeypatch.setattr(_SubprocessScriptLauncher, "launch", reach)  # of several processes
    monkeypatch.setattr(callbacks.signals, "_PATIENCE", 1e6)  # after which one of several ends its process
    monkeypatch.setattr(datamodules.prepare.write, "Encoder", reach)
    monkeypatch.setattr(firered_lit.mine.run, "_work", reach)
    monkeypatch.chdir(tmp_path)
    for name in ("data", "rows"):
        (tmp_path / name).symlink_to(small_data / name)
    return tmp_path


def tree(text: str) -> Any:
    """Return a recipe's tree, read by the loader in C: it is read again for every seed."""
    return yaml.load(text, Loader=yaml.CSafeLoader)


def nodes(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Give the place of everything below a node."""
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for name, child in children:
        yield (*path, name)
        yield from nodes(child, (*path, name))


def changed_tree(draw: random.Random, text: str) -> str:
    """Change one to three things in a recipe's tree, and write it as a file again."""
    root = tree(text)
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        places = list(nodes(root))
        if not places:
            break
        place = draw.choice(places)
        parent = root
        for name in place[:-1]:
            parent = parent[name]
        name = place[-1]
        kind = draw.randrange(8)
        if kind <= 2:
            parent[name] = copy.deepcopy(draw.choice(VALUES))
        elif kind == 3:
            del parent[name]
        elif kind == 4 and isinstance(parent, dict):
            parent[draw.choice((f"{name}x", f"{name}"[:-1], "_target_", "_partial_", 3, ""))] = parent.pop(name)
        elif kind == 5:
            deeper = parent[name]
            for _ in range(draw.choice((1, 2, 60))):
                deeper = [deeper] if draw.random() < 0.5 else {"a": deeper}
            parent[name] = deeper
        elif kind == 6:
            parent[name] = {"_target_": draw.choice(tuple(NAMES)), "_partial_": draw.random() < 0.3}
        else:
            other = root
            for step in draw.choice(places):
                other = other[step]
            parent[name] = copy.deepcopy(other)
    return yaml.safe_dump(root, sort_keys=False, allow_unicode=True)


def changed_text(draw: random.Random, text: str) -> bytes:
    """Change a recipe's lines or bytes."""
    lines = text.splitlines()
    for _ in range(draw.choice((1, 1, 2, 5))):
        at = draw.randrange(len(lines))
        kind = draw.randrange(6)
        if kind == 0:
            lines.insert(at, draw.choice(LINES))
        elif kind == 1:
            lines[at] = " " * draw.randrange(5) + lines[at].lstrip()
        elif kind == 2:
            lines[at] = lines[draw.randrange(len(lines))]
        elif kind == 3:
            lines[at] = lines[at][: draw.randrange(len(lines[at]) + 1)]
        elif kind == 4:
            lines[at] = lines[at].partition(":")[0] + ": " + draw.choice(LINES)
        else:
            lines[at : at + 1] = []
            lines = lines or [""]
    raw = "\n".join(lines).encode()
    if draw.random() < 0.3:
        at = draw.randrange(len(raw) + 1)
        raw = raw[:at] + draw.choice(BYTES) + raw[at:]
    if draw.random() < 0.1:
        raw = raw[: draw.randrange(len(raw) + 1)]
    return raw


def override(draw: random.Random, text: str) -> str:
    """Return `key=value` for the command line."""
    keys = [".".join(map(str, place)) for place in nodes(tree(text))]
    key = draw.choice([*keys, "", ".", "a..b", "run", "base", "_target_"])
    value = draw.choice(VALUES)
    shown = draw.choice((str(value), yaml.safe_dump(value, default_flow_style=True).splitlines()[0], "{a: [", "'x"))
    return f"{key}={shown}"


def command(draw: random.Random, recipes: dict[str, str], folder: Path) -> list[str]:
    """Write a changed recipe and return the command that runs or checks it."""
    name = draw.choice(sorted(recipes))
    text = recipes[name]
    verb = ROOTS[tree(text)["_target_"]]
    given = GIVEN.get(verb, ())
    path = folder / "changed.yaml"
    way = draw.randrange(5)
    if way <= 1:
        path.write_bytes(changed_text(draw, text))
    elif way <= 3:
        path.write_text(changed_tree(draw, text), encoding="utf-8")
    else:
        path.write_text(text, encoding="utf-8")
    settings = [setting for setting in given if draw.random() < 0.95]
    if way == 4:
        settings += [override(draw, text) for _ in range(draw.choice((1, 2, 3)))]
    if "/tiny/" in name and verb in GIVEN and draw.random() < 0.6:
        return [verb, "--recipe", "changed.yaml", *settings]
    more = ["--gpus", "2"] if draw.random() < 0.05 else []
    return ["check", "--recipe", "changed.yaml", *more, *settings]


def fuzz(seeds: range, recipes: dict[str, str], folder: Path) -> dict[str, int]:
    """Run one changed recipe per seed; returns how often each ending came."""
    endings: dict[str, int] = {}
    for seed in seeds:
        arguments = command(random.Random(f"recipe {seed}"), recipes, folder)
        code = ended_well(arguments, SECONDS, f"seed {seed}: {arguments}")
        ending = f"{arguments[0]} {code}"
        endings[ending] = endings.get(ending, 0) + 1
    print(endings)
    return endings


def test_changed_recipes_are_refused_in_one_line_or_accepted(recipes: dict[str, str], stopped: Path) -> None:
    endings = fuzz(range(QUICK), recipes, stopped)
    assert endings["check 0"] > 5
    assert endings["fit 2"] > 20


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_many_changed_recipes_are_refused_in_one_line_or_accepted(recipes: dict[str, str], stopped: Path) -> None:
    fuzz(range(QUICK, SLOW), recipes, stopped)
