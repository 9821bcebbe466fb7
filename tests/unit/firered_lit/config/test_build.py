"""What a recipe may name, how its arguments are held against signatures, and what is built from it."""

import copy
import functools
import json
import sys

import pytest
import torch

from firered_lit import cli
from firered_lit.config.annotation import fits
from firered_lit.config.build import admit, build, problems, validate
from firered_lit.config.nameable import LIBRARIES, NAMES, OURS, RENAMED, ROOTS, WITHHELD
from firered_lit.config.recipe import Recipe, load
from firered_lit.errors import UserError

ATTACKS = [
    "os.system",
    "posix.system",
    "subprocess.Popen",
    "builtins.eval",
    "builtins.open",
    "eval",
    "torch.load",
    "torch.hub.load",
    "torch.serialization.load",
    "pickle.loads",
    "importlib.import_module",
    "runpy.run_path",
    "firered_lit.config.build.importlib.import_module",
    "firered_lit.config.build.build",
    "firered_lit.config.recipe.load",
    "firered_lit.cli.main",
    "firered_lit.training.os.system",
    "firered_lit.training.json.load",
    "firered_lit.training.yaml.unsafe_load",
    "firered_lit.training.L.LightningModule.load_from_checkpoint",
    "firered_lit.training.UserError",
    "firered_lit.stages.sft.SFT.load_from_checkpoint",
    "firered_lit.stages.sft.torch.load",
    "firered_lit.models.family.json.loads",
    "firered_lit.training._replace",
    "firered_lit.training.__builtins__.eval",
    "firered_lit.training.Run.__init__",
    "firered_lit.fitter.fit",
    "datamodules.sampling.buckets.np.load",
    "callbacks.checkpoint.os.remove",
    "lightning.pytorch.LightningModule",
    "lightning.pytorch.LightningModule.load_from_checkpoint",
    "lightning.pytorch.Trainer.fit",
    "lightning.pytorch.callbacks.LambdaCallback",
    "lightning.pytorch.callbacks.ModelCheckpoint",
    "lightning.pytorch.loggers.MLFlowLogger",
    "lightning.pytorch.loggers.WandbLogger",
    "lightning.pytorch.strategies.DeepSpeedStrategy",
    "callbacks.ocr.engine.paddle_engine",
    "callbacks.ocr.worker.EngineProcess",
    "callbacks.ocr.worker.read_each",
    "torchao.optim.CPUOffloadOptimizer",
    "torch.optim.lr_scheduler.LambdaLR",
    "torchmetrics.image.FrechetInceptionDistance",
    "lightning.pytorch.cli.LightningCLI",
    "lightning.pytorch.core.saving.load_hparams_from_yaml",
    "lightning.pytorch.loggers.tensorboard.os.system",
    "lightning.pytorch.callbacks.torch.load",
    "lightning.fabric.utilities.cloud_io.get_filesystem",
    "torch.optim.torch.load",
    "torch.optim.lr_scheduler.types.FunctionType",
    "torch.optim.swa_utils.deepcopy",
    "torch.optim.swa_utils.get_ema_avg_fn",
    "bitsandbytes.optim.optimizer.torch.load",
    "torchmetrics.utilities.imports.module_available",
    "torchmetrics.functional.accuracy",
    "torch.optimizers.AdamW",
    "../torch.optim.AdamW",
    "torch.optim.AdamW\n",
    "",
]


@pytest.mark.parametrize("target", ATTACKS)
def test_nothing_that_loads_code_or_files_can_be_named(target):
    with pytest.raises(UserError) as refused:
        admit(target)
    assert "\n" not in str(refused.value)
    with pytest.raises(UserError):
        build({"a": [{"_target_": target, "_partial_": True}]})
    recipe = Recipe("r.yaml", {"_target_": "torch.optim.AdamW", "params": {"_target_": target}})
    assert "r.yaml: params._target_: " in str(next(problems(recipe)))


@pytest.mark.parametrize("target", [3, None, True, ["os.system"], {"x": 1}])
def test_a_target_is_a_name(target):
    with pytest.raises(UserError, match="expected the dotted name of a class or function, got "):
        admit(target)


def test_what_trains_can_be_named():
    for target in (  # a sample of the list
        "torch.optim.AdamW",
        "torch.optim.Muon",
        "torch.optim.lr_scheduler.CosineAnnealingLR",
        "bitsandbytes.optim.AdamW8bit",
        "torchmetrics.image.PeakSignalNoiseRatio",
        "lightning.pytorch.Trainer",
        "lightning.pytorch.loggers.TensorBoardLogger",
        "lightning.pytorch.callbacks.LearningRateMonitor",
        "lightning.pytorch.strategies.DDPStrategy",
        "lightning.pytorch.profilers.SimpleProfiler",
        "firered_lit.training.fit",
        "firered_lit.training.Run",
        "firered_lit.stages.sft.SFT",
        "callbacks.checkpoint.Checkpoint",
    ):
        assert admit(target).name == target.rpartition(".")[2]


def test_every_name_on_the_list_is_a_class_or_function_there():
    kinds = {name: admit(name).kind for name in NAMES}
    assert set(NAMES) == {*ROOTS, *OURS, *LIBRARIES}
    assert len(NAMES) == len(ROOTS) + len(OURS) + len(LIBRARIES)
    assert {kinds[name] for name in LIBRARIES} == {"class"}


def test_what_is_withheld_is_an_argument():
    for target, names in WITHHELD.items():
        assert set(names) <= {parameter.name for parameter in admit(target).parameters}


def test_no_name_on_the_list_takes_a_command_a_module_or_a_callables_name():
    """Arguments named as such, or annotated as something to call that text could stand for."""
    suspicious = {"command", "cmd", "args", "argv", "module", "factory", "function", "func", "code", "script", "env"}
    for name in (*ROOTS, *OURS):
        for parameter in admit(name).parameters:
            assert parameter.name not in suspicious, (name, parameter)
            if "Callable" in (parameter.annotation or ""):
                assert not fits(parameter.annotation, "os:system"), (name, parameter)


def test_what_a_verb_runs_stands_at_the_top_alone():
    assert set(ROOTS.values()) < {verb.name for verb in cli.VERBS}
    for root in ROOTS:
        assert admit(root).kind == "function"
        with pytest.raises(UserError, match="stands at the top of a recipe alone"):
            admit(root, nested=True)
        with pytest.raises(UserError, match="stands at the top of a recipe alone"):
            build({"callbacks": {"x": {"_target_": root, "_partial_": True}}})


@pytest.mark.parametrize(("old", "new"), RENAMED.items())
def test_an_old_name_is_refused_with_the_new_one(old, new):
    assert new in NAMES
    with pytest.raises(UserError, match=f"'{old}' is now called '{new}'; write the new name"):
        admit(old, nested=True)


def test_the_nearest_name_is_offered():
    with pytest.raises(
        UserError, match=r"did you mean 'torch.optim.AdamW'\?; a package of your own is added by --allow"
    ):
        admit("torch.optim.AdmW")
    with pytest.raises(UserError, match=r"did you mean 'torch.optim.AdamW'\?"):
        admit("torch.optim.adamw.AdamW")
    with pytest.raises(UserError, match=r"did you mean 'firered_lit.stages.sft.SFT'\?"):
        admit("firered_lit.stages.sftt.SFT")


def test_the_hint_at_allow_is_never_hidden():
    for target in ("firered_rewards.mine.Part", "torch.optm.AdamW", "mine.Part"):
        with pytest.raises(UserError, match="a package of your own is added by --allow PACKAGE"):
            admit(target)


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A package of the user's that notes when it is imported."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "__init__.py").write_text("")
    (tmp_path / "mine" / "parts.py").write_text(
        "import functools\n"
        "class Part:\n"
        "    def __init__(self, size: int, name: str = 'x', *, rate: float | None = None, inner=None): \n"
        "        if size < 0: raise ValueError(f'size {size}')\n"
        "        self.size, self.name, self.rate, self.inner = size, name, rate, inner\n"
        "def join(parts, scale: float = 1.0, **options): return parts, scale, options\n"
        "@functools.lru_cache\n"
        "def cached(): return 1\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "mine"
    for name in [name for name in sys.modules if name.split(".")[0] == "mine"]:
        del sys.modules[name]


def test_only_the_command_line_opens_a_package(mine):
    node = {"_target_": "mine.parts.Part", "size": 2}
    with pytest.raises(UserError, match="a package of your own is added by --allow PACKAGE"):
        build(node)
    assert "mine.parts" not in sys.modules
    assert build(node, allow=["mine"]).size == 2
    with pytest.raises(UserError):
        build(node, allow=["mi"])  # a package, not a prefix of letters
    assert build(node, allow=["mine.parts.Part"]).size == 2  # or one thing in it


def test_a_package_that_is_opened_opens_nothing_that_it_imports(mine):
    with pytest.raises(UserError, match=r"is really functools\.lru_cache, which a recipe may not name"):
        admit("mine.parts.functools.lru_cache", allow=["mine"])


def test_one_thing_of_a_library_can_be_opened_by_its_name():
    logger = "lightning.pytorch.loggers.WandbLogger"
    assert admit(logger, allow=[logger]).home == "lightning.pytorch.loggers.wandb"


def test_a_recipe_cannot_open_a_package_itself(mine):
    recipe = Recipe(
        "r.yaml", {"_target_": "firered_lit.training.fit", "allow": ["mine"], "stage": {"_target_": "mine.parts.Part"}}
    )
    found = [str(problem) for problem in problems(recipe)]
    assert "r.yaml: allow: fit has no argument 'allow'" in found
    assert any("stage._target_: 'mine.parts.Part' is not among" in line for line in found)


def test_children_are_built_first_and_the_recipe_stays_as_it_was(mine):
    part = {"_target_": "mine.parts.Part", "size": 1}
    node = {
        "_target_": "mine.parts.join",
        "parts": [part, {"deep": {**part, "inner": part}}],
        "scale": 2,
        "more": {"a": 1},
    }
    before = json.dumps(node)
    parts, scale, options = build(node, allow=["mine"])
    assert (parts[0].size, parts[1]["deep"].inner.size, scale, options) == (1, 1, 2, {"more": {"a": 1}})
    assert parts[1]["deep"].inner is not parts[0]
    assert json.dumps(node) == before


def test_partial_waits_for_the_rest(mine):
    made = build({"_target_": "mine.parts.Part", "_partial_": True, "name": "n"}, allow=["mine"])
    assert isinstance(made, functools.partial)
    assert (made(size=3).size, made(size=3).name) == (3, "n")


def test_null_takes_a_node_away_but_stays_a_plain_value(mine):
    part = {"_target_": "mine.parts.Part", "size": 1}
    assert len(build([part, None], allow=["mine"])) == 1
    assert list(build({"a": part, "b": None}, allow=["mine"])) == ["a"]
    assert build({"a": 1, "b": None}) == {"a": 1, "b": None}
    assert build([1, None]) == [1, None]


def test_an_error_says_what_was_being_built(mine):
    with pytest.raises(UserError, match=r"a\.0 .mine\.parts\.Part.: ValueError: size -1"):
        build({"a": [{"_target_": "mine.parts.Part", "size": -1}]}, allow=["mine"])


def test_what_is_no_class_or_function_once_imported_is_refused(mine):
    with pytest.raises(UserError, match="not a class or function"):
        build({"_target_": "mine.parts.cached"}, allow=["mine"])


SFT = """
_target_: mine.parts.join
parts:
  first: {_target_: mine.parts.Part, size: 1}
"""
WRONG = [
    ("parts.first.sise=3", "parts.first.sise: Part has no argument 'sise'; did you mean 'size'?"),
    ("parts.first.size=x", "parts.first.size: expected int, got text 'x'"),
    ("parts.first.size=1.5", "parts.first.size: expected int, got a float 1.5"),
    ("parts.first.size=true", "parts.first.size: expected int, got a bool True"),
    ("parts.first.size=null", "parts.first.size: expected int, got empty None"),
    ("parts.first.rate=fast", "parts.first.rate: expected float | None, got text 'fast'"),
    ("parts.first.name=2024", "parts.first.name: expected str, got an int 2024; put text in quotes"),
    (
        "parts.first={_target_: mine.parts.Part, name: a, _partial_: 1}",
        "parts.first._partial_: expected true or false, got 1",
    ),
    ("parts.first._partial=true", "parts.first._partial: Part has no argument '_partial'"),
    ("parts.first._target_=mine.parts.Prat", "parts.first._target_: mine.parts has no 'Prat'; did you mean 'Part'?"),
    (
        "parts.first._target_=mine.parts.join",
        "parts.first: join needs the argument 'parts' (or `_partial_: true`, when",
    ),
    ("_partial_=true", "_partial_: the root is called, never partial"),
    ("parts={_targte_: x}", "parts._targte_: has no meaning here; did you mean '_target_'?"),
    ("parts={_partial_: true}", "parts._partial_: has no meaning here without a _target_"),
    ("scale='???'", "scale: needs a value: add scale=VALUE to the command"),
]


@pytest.mark.parametrize(("override", "message"), WRONG)
def test_what_does_not_fit_is_refused_with_file_key_and_hint(mine, tmp_path, override, message):
    path = tmp_path / "r.yaml"
    path.write_text(SFT)
    with pytest.raises(UserError) as refused:
        validate(load(path, [override]), allow=["mine"])
    assert str(refused.value).startswith(f"{path} (command line): {message}")
    assert "\n" not in str(refused.value)
    assert "mine.parts" not in sys.modules  # nothing was imported to know


@pytest.mark.parametrize(
    "override",
    ["parts.first.rate=1", "parts.first.rate=null", "scale=3", "parts.first.inner={a: 1}", "anything=1", "parts=null"],
)
def test_what_fits_passes(mine, tmp_path, override):
    path = tmp_path / "r.yaml"
    path.write_text(SFT)
    validate(load(path, [override]), allow=["mine"])


def test_what_the_caller_supplies_is_neither_missing_nor_settable(mine, tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text("_target_: mine.parts.Part\nname: a")
    validate(load(path), allow=["mine"], supplied=["size"])
    with pytest.raises(UserError, match=r"_target_: Part needs the argument 'size'$"):
        validate(load(path), allow=["mine"])
    with pytest.raises(UserError, match="size: Part has no argument 'size'"):
        validate(load(path, ["size=1"]), allow=["mine"], supplied=["size"])


def test_a_fragment_is_not_a_recipe(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text("stage: {seed: 0}")
    with pytest.raises(UserError, match=r"r.yaml: no _target_ at the top"):
        validate(load(path))


FITS = [
    ("int", 1, True),
    ("int", True, False),
    ("int", 1.0, False),
    ("float", 1, True),
    ("float", "1", False),
    ("float", False, False),
    ("bool", 1, False),
    ("str | None", None, True),
    ("'str | None'", 3, False),
    ("Optional[Union[int, str]]", "a", True),
    ("Optional[Union[int, str]]", 1.5, False),
    ("Union[int, float]", None, False),
    ("Literal['a', 'b', 3]", "a", True),
    ("Literal['a', 'b', 3]", "c", False),
    ("Literal['a', 'b', 3]", 3, True),
    ("list[int]", [1, 2], True),
    ("list[int]", [1, "2"], False),
    ("list[int]", 1, False),
    ("Sequence[str]", "ab", False),
    ("tuple[float, float]", [0.9, 0.99], True),
    ("tuple[float, float]", [0.9], False),
    ("tuple[int, ...]", [1, 2, 3], True),
    ("dict[str, float]", {"a": 1}, True),
    ("dict[str, float]", {"a": "b"}, False),
    ("Mapping[str, Any]", [1], False),
    ("float | Tensor", "x", False),
    ("float | Tensor", 1e-3, True),
    ("Callable[..., Optimizer]", "adam", False),
    ("Callable[..., Optimizer] | None", None, True),
    ("torch.nn.Module", 3, False),
    ("str | Path", "a", True),
    ("_PRECISION_INPUT", 16, True),
    ("Any", [1], True),
    (None, 3, True),
    ("not valid(", 3, True),
    ("list", {"a": 1}, False),
    ("dict", {"a": 1}, True),
]


@pytest.mark.parametrize(("annotation", "value", "expected"), FITS)
def test_plain_values_against_annotations(annotation, value, expected):
    assert fits(annotation, value) is expected


def test_values_not_known_yet_fit_anywhere():
    assert fits("list[int]", [1, "???"], lambda value: value == "???")
    assert not fits("list[int]", ["!!!", "???"], lambda value: value == "???")


WRONG_OBJECTS = {
    "stage: {_target_: callbacks.signals.Signals}": r"stage: expected Stage, got Signals",
    "data: {_target_: firered_lit.stages.guard.Guard}": r"data: expected LightningDataModule, got Guard",
    "checkpoint: {_target_: firered_lit.stages.guard.Guard}": r"checkpoint: expected Callback, got Guard",
    "callbacks: {grid: {_target_: firered_lit.stages.guard.Guard}}": r"callbacks\.grid: expected Callback, got Guard",
    "stage: {guard: {_target_: callbacks.signals.Signals}}": r"stage\.guard: expected Guard, got Signals",
    "stage: {backbone: {lora: {_target_: callbacks.signals.Signals}}}": r"backbone\.lora: expected LoRA, got Signals",
    "stage: {preview: {_target_: callbacks.signals.Signals, _partial_: true}}": "expected Preview, got Factory",
    "stage: {weight: 1.0e+30}": r"stage\.weight: expected Callable, got float",
    "callbacks: {grid: [1]}": r"callbacks\.grid: expected Callback, got list",
    "run: {_target_: callbacks.signals.Signals}": r"run: expected Run, got Signals",
}


@pytest.mark.parametrize("lines", WRONG_OBJECTS)
def test_an_object_of_another_class_than_its_place_asks_for_is_refused_by_its_key(root, tmp_path, lines):
    """Each is a part that a recipe may name, or a plain value, and stands where another part belongs."""
    file = tmp_path / "recipe.yaml"
    file.write_text(f"base: {root / 'recipes' / 'tiny' / 'sft.yaml'}\n{lines}\n")
    given = {"run": f"run.dir={tmp_path}", "data": f"data.root={tmp_path}", "logger": "logger=null"}
    loaded = load(file, [setting for key, setting in given.items() if key != lines.partition(":")[0]])
    validate(loaded, supplied=("recipe",))
    node = {key: value for key, value in loaded.root.items() if key == lines.partition(":")[0] or key == "_target_"}
    with pytest.raises(UserError, match=WRONG_OBJECTS[lines]):
        build({**node, "_partial_": True})


@pytest.mark.parametrize(
    "key", ["stage.seed", "run.dir", "checkpoint.every", "run.validate_first", "trainer.max_steps"]
)
@pytest.mark.parametrize("partial", ["", ", _partial_: true"])
def test_an_object_where_a_plain_value_belongs_is_refused_before_anything_is_built(root, tmp_path, key, partial):
    thing = f"{{_target_: callbacks.signals.Signals{partial}}}"
    given = [f"run.dir={tmp_path}", f"data.root={tmp_path}", f"{key}={thing}"]
    loaded = load(root / "recipes" / "tiny" / "sft.yaml", given)
    found = next(problems(loaded, supplied=("recipe",)))
    assert f"{key}: expected" in str(found)


FACTORIES = {
    "stage.weight": ("callbacks.signals.Signals", r"stage\.weight: TypeError: .*unexpected keyword argument 'law'"),
    "stage.timesteps": ("firered_lit.optim.constant", r"stage\.timesteps: AttributeError: "),
    "stage.schedule": ("torch.optim.AdamW", r"stage\.schedule: TypeError: "),
    "stage.optimizer": ("callbacks.signals.Signals", r"stage\.optimizer: "),
}


@pytest.mark.parametrize("key", FACTORIES)
def test_a_factory_of_something_else_is_refused_by_its_key_when_it_is_first_called(root, tmp_path, key):
    target, said = FACTORIES[key]
    given = [f"run.dir={tmp_path}", f"data.root={tmp_path}", f"{key}={{_target_: {target}, _partial_: true}}"]
    loaded = load(root / "recipes" / "tiny" / "continued_pretrain.yaml", given)
    stage = build(loaded.root["stage"], key="stage")
    parameters = [torch.nn.Parameter(torch.ones(2))]
    calls = {
        "stage.weight": lambda: stage.weight(torch.ones(2), law=None),
        "stage.timesteps": lambda: stage.timesteps(torch.rand(3)),
        "stage.schedule": lambda: stage.schedule_factory(torch.optim.SGD(parameters)),
        "stage.optimizer": lambda: stage.optimizer_factory(parameters),
    }
    with pytest.raises(UserError, match=said):
        calls[key]()


@pytest.mark.parametrize("key", ["run", "stage", "data", "stage.backbone"])
def test_nothing_where_an_object_belongs_is_refused_before_anything_is_built(root, tmp_path, key):
    given = [f"run.dir={tmp_path}", f"data.root={tmp_path}", f"{key}=null", "logger=null"]
    loaded = load(root / "recipes" / "tiny" / "sft.yaml", [text for text in given if not text.startswith(f"{key}.")])
    lines = [str(problem) for problem in problems(loaded, supplied=("recipe",))]
    assert any(f"{key}: expected a" in line and "got empty None" in line for line in lines), lines


def test_a_factory_is_a_partial_whose_later_calls_are_plain():
    made = build({"_target_": "firered_lit.flow.timesteps.uniform", "_partial_": True}, key="stage.timesteps")
    assert isinstance(made, functools.partial)
    assert torch.equal(made(torch.ones(2)), torch.ones(2))
    assert copy.deepcopy(made).called
    with pytest.raises(TypeError):
        made()


@pytest.mark.parametrize("value", ["{}", "{draws: 8}", "[1]", "8"])
def test_plain_values_where_an_object_of_ours_belongs_are_refused_by_their_key(root, capsys, value):
    recipe = str(root / "recipes/tiny/mine_semi_hard.yaml")
    assert cli.main(["check", "--recipe", recipe, f"task={value}" if value[0] != "{" else "task=null", "out=x"]) == 2
    assert "task: expected a Task, named by _target_" in capsys.readouterr().out


@pytest.mark.parametrize("number", [1 << 63, -(1 << 63), 10**30])
def test_a_whole_number_beyond_64_bits_is_refused_by_its_key(root, capsys, number):
    assert cli.main(["check", "--recipe", str(root / "recipes/sft.yaml"), f"data.capacity={number}"]) == 2
    assert "data.capacity: expected a whole number of 64 bits" in capsys.readouterr().out


def test_a_rewards_name_that_is_no_text_is_one_line(root, capsys):
    assert cli.main(["check", "--recipe", str(root / "recipes/tiny/nft.yaml"), "callbacks.reward.name={a: 1}"]) == 2
    assert "callbacks.reward.name: reward {'a': 1}: a name has letters" in capsys.readouterr().out
