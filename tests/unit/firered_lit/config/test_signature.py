"""Signatures read from source equal those of the imported objects."""

import ast
import importlib
import inspect
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from firered_lit.config import annotation, dialect, source
from firered_lit.config.signature import Signature, signature

ROOT = Path(__file__).resolve().parents[4]


def targets_of(node: object) -> set[str]:
    """Every `_target_` below a node."""
    if isinstance(node, dict):
        own = {node["_target_"]} if "_target_" in node else set()
        return own.union(*map(targets_of, node.values()))
    return set().union(*map(targets_of, node)) if isinstance(node, list) else set()


def recipe_targets() -> set[str]:
    files = (ROOT / "recipes").rglob("*.yaml")
    return set().union(*(targets_of(dialect.parse(p.read_text("utf-8"), p.name)) for p in files))


LIBRARY = [
    "torch.optim.AdamW",
    "torch.optim.SGD",
    "torch.optim.Muon",
    "torch.optim.Adafactor",
    "torch.optim.lr_scheduler.LambdaLR",
    "torch.optim.lr_scheduler.CosineAnnealingLR",
    "torch.optim.lr_scheduler.LinearLR",
    "torch.optim.lr_scheduler.SequentialLR",
    "torch.optim.lr_scheduler.OneCycleLR",
    "torch.optim.lr_scheduler.ReduceLROnPlateau",
    "lightning.pytorch.Trainer",
    "lightning.pytorch.loggers.TensorBoardLogger",
    "lightning.pytorch.loggers.MLFlowLogger",
    "lightning.pytorch.loggers.WandbLogger",
    "lightning.pytorch.loggers.CSVLogger",
    "lightning.pytorch.callbacks.ModelCheckpoint",
    "lightning.pytorch.callbacks.LearningRateMonitor",
    "lightning.pytorch.callbacks.TQDMProgressBar",
    "lightning.pytorch.strategies.DDPStrategy",
    "lightning.pytorch.strategies.FSDPStrategy",
    "lightning.pytorch.strategies.ModelParallelStrategy",
    "lightning.pytorch.profilers.SimpleProfiler",
    "bitsandbytes.optim.AdamW8bit",
    "bitsandbytes.optim.PagedAdamW8bit",
    "bitsandbytes.optim.Lion8bit",
    "torchmetrics.Accuracy",
    "torchmetrics.MeanMetric",
    "torchmetrics.image.PeakSignalNoiseRatio",
    "torchmetrics.image.StructuralSimilarityIndexMeasure",
    "torchmetrics.MetricCollection",
]
OURS = ["firered_lit.models.sizes.Sizes", "firered_lit.models.sizes.shape_table", "firered_lit.batch.EditBatch"]


@pytest.mark.parametrize("target", sorted({*LIBRARY, *OURS, *recipe_targets()}))
def test_equals_the_imported_object(target):
    if target not in LIBRARY and source.module_source(target.rpartition(".")[0]) is None:
        pytest.skip("not written yet")
    module, _, name = target.rpartition(".")
    thing = getattr(importlib.import_module(module), name)
    expected = inspect.signature(thing).parameters.values()
    named = [p for p in expected if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    found = signature(target)
    assert [(p.name, p.required) for p in found.parameters] == [(p.name, p.default is p.empty) for p in named]
    assert found.open == any(p.kind is p.VAR_KEYWORD for p in expected)
    assert found.kind == ("class" if inspect.isclass(thing) else "function")
    assert found.name == thing.__name__
    assert found.home == thing.__module__ or thing.__module__ == "torch.optim"  # torch renames two of its modules


MODULE = """
from __future__ import annotations
import os
from dataclasses import KW_ONLY, dataclass, field
from typing import TYPE_CHECKING, ClassVar, Generic, Literal, TypeVar, overload
from .inner import *
from .inner import Plain as Renamed
from . import inner
if TYPE_CHECKING:
    from nowhere import Lazy
T = TypeVar("T")

class Base:
    def __init__(self, width: int, height: "int | None" = None, *, depth=1): ...
class Child(Base): ...
class Left(Base): ...
class Right(Base):
    def __init__(self, right): ...
class Diamond(Left, Right): ...
class FromElsewhere(inner.Plain, Generic[T]): ...
class Empty: ...
class Unreadable(dict): ...
class Maker:
    def __new__(cls, a, /, b, **rest):
        return rest
class Swallows:
    def __init__(self, a, **rest): ...
class Passes(Base):
    def __init__(self, colour, **rest):
        super().__init__(**rest)
class PassesSome(Passes):
    def __init__(self, width, **rest):
        super().__init__("red", height=3, **rest)
class PassesMore(Left):
    def __init__(self, size=1, **rest):
        super().__init__(size, **rest)
class Keeps(Base):
    def __init__(self, colour, **rest):
        self.rest = rest
        super().__init__(**rest)
class PassesStars(Base):
    def __init__(self, *args, **rest):
        super().__init__(*args, **rest)
class PassesToUnknown(dict):
    def __init__(self, colour, **rest):
        super().__init__(**rest)
class PassesToNone:
    def __init__(self, colour, **rest):
        super().__init__(**rest)
def swallows(a, **rest): ...
def takes(a, **rest): return rest
@dataclass(frozen=True)
class Old:
    a: int
    b: ClassVar[int] = 3
    c: list = field(default_factory=list)
    _: KW_ONLY
    d: str = field(init=False)
    e: Literal["x", "y"] = "x"
@dataclass
class New(Old):
    a: float = 2.0
    f: int = field(kw_only=True)
@overload
def many(a: int) -> int: ...
@overload
def many(a: str) -> str: ...
def many(a, b=None): ...
try:
    from nowhere_at_all import Optional
except ImportError:
    class Optional:
        def __init__(self, fallback): ...
Alias = Child
Twice = Base
if TYPE_CHECKING:
    from .inner import Plain as Twice
value = 3
circle = circle2
circle2 = circle
longer = longer.more
from planted.gone import *
def positional(a, b=2, /, c=3, *more, d, e=5): ...
"""
INNER = """
from .mod import *
class Plain:
    def __init__(self, plain: float = 1.0): ...
def starred(x): ...
"""


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("written")
    (folder / "planted").mkdir()
    (folder / "planted" / "__init__.py").write_text("raise SystemExit('imported')")
    (folder / "planted" / "mod.py").write_text(MODULE)
    (folder / "planted" / "inner.py").write_text(INNER)
    sys.path.insert(0, str(folder))
    yield "planted.mod"
    sys.path.remove(str(folder))
    assert "planted" not in sys.modules


def names(found: Signature) -> str:
    shown = [p.name if p.required else f"{p.name}=" for p in found.parameters]
    return " ".join([*shown, "**"] if found.open else shown)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Base", "width height= depth="),
        ("Child", "width height= depth="),
        ("Alias", "width height= depth="),
        ("Twice", "width height= depth="),
        ("Diamond", "right"),
        ("FromElsewhere", "plain="),
        ("Renamed", "plain="),
        ("Plain", "plain="),
        ("starred", "x"),
        ("inner.Plain", "plain="),
        ("Empty", ""),
        ("Unreadable", "**"),
        ("Maker", "b **"),
        ("Swallows", "a"),
        ("Passes", "colour width height= depth="),
        ("PassesSome", "width depth="),
        ("PassesMore", "size= height= depth="),
        ("Keeps", "colour **"),
        ("PassesStars", "**"),
        ("PassesToUnknown", "colour **"),
        ("PassesToNone", "colour"),
        ("swallows", "a"),
        ("takes", "a **"),
        ("Old", "a c= e="),
        ("New", "a= c= e= f"),
        ("many", "a b="),
        ("Optional", "fallback"),
        ("positional", "c= d e="),
    ],
)
def test_follows_re_exports_bases_and_fields(written, name, expected):
    assert names(signature(f"{written}.{name}")) == expected


def test_keeps_the_annotation_text_and_the_defining_module(written):
    found = signature(f"{written}.Renamed")
    assert (found.home, found.name) == ("planted.inner", "Plain")
    assert [p.annotation for p in signature(f"{written}.Child").parameters] == ["int", "int | None", None]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("Base.__init__", "inside"),
        ("value", "not a class or function"),
        ("inner", "is a module"),
        ("circle", "circle"),
        ("longer", "circle"),
        ("nothing", "planted.mod has no 'nothing'"),
        ("Lazy", "no package 'nowhere'"),
        ("os.nothing.at.all", "os has no 'nothing'"),
        ("a b", "not a dotted name"),
    ],
)
def test_says_why_a_name_leads_nowhere(written, name, reason):
    with pytest.raises(source.NotFoundError, match=reason) as refused:
        signature(f"{written}.{name}")
    assert "\n" not in str(refused.value)


def test_knows_what_stands_there_instead(written):
    with pytest.raises(source.NotFoundError) as refused:
        signature(f"{written}.Chlid")
    assert {"Child", "Base"} <= set(refused.value.known)


def test_an_import_shows_where_a_thing_is_really_defined():
    assert signature("firered_lit.config.recipe.UserError").home == "firered_lit.errors"
    assert signature("firered_lit.config.recipe.os.fspath").home == "os"


def test_reads_without_importing():
    code = textwrap.dedent("""
        import sys
        from firered_lit.config.signature import signature
        for target in sys.argv[1:]:
            signature(target)
        heavy = {"torch", "lightning", "numpy", "bitsandbytes", "torchmetrics"} & set(sys.modules)
        assert not heavy, heavy
    """)
    done = subprocess.run([sys.executable, "-c", code, *LIBRARY], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


class OneAtATime:
    """`ast.parse`, which notes whether two threads were in it at once, and fails as often as it is set to."""

    def __init__(self, failures: int = 0) -> None:
        self.failures, self.inside, self.together = failures, 0, False

    def __call__(self, *arguments, **options):
        self.inside += 1
        time.sleep(0.01)
        self.together |= self.inside > 1
        self.inside -= 1
        if self.failures:
            self.failures -= 1
            raise SystemError("AST constructor recursion depth mismatch (before=63, after=64)")
        return PARSE(*arguments, **options)


PARSE = ast.parse


def test_source_is_parsed_by_one_thread_at_a_time(monkeypatch):
    watched = OneAtATime()
    monkeypatch.setattr(ast, "parse", watched)
    with ThreadPoolExecutor(4) as pool:
        trees = list(pool.map(source.parse, [f"x = {number}" for number in range(8)]))
        assert all(pool.map(annotation.fits, ["int"] * 8, range(8)))
    assert [ast.unparse(tree) for tree in trees] == [f"x = {number}" for number in range(8)]
    assert not watched.together


def test_source_is_parsed_again_when_another_thread_has_disturbed_the_parser(monkeypatch):
    monkeypatch.setattr(ast, "parse", OneAtATime(failures=1))
    assert ast.unparse(source.parse("x = 1")) == "x = 1"
    monkeypatch.setattr(ast, "parse", OneAtATime(failures=1))
    assert not annotation.fits("int", "a word")
