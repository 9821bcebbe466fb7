"""The command line: fixed calls, one-line errors, exit codes, and nothing heavy before it is needed."""

import os
import re
import subprocess
import sys
import time
import types
from pathlib import Path
from unittest.mock import patch

import pytest
from PIL import Image

from firered_lit import checking, cli
from firered_lit.config import nameable
from firered_lit.errors import UserError

ROOT = Path(__file__).resolve().parents[3]


def python(*arguments: str, cwd: Path = ROOT, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, capture_output=True, text=True, env={**os.environ, **env}, timeout=120
    )


@pytest.fixture
def stub(monkeypatch, tmp_path):
    """A recipe of a root function that stands in for `fit`, in the current folder; the options that choose it."""
    (tmp_path / "stubs.py").write_text(
        "calls = []\n"
        "def run(dir: str, steps: int = 1, stage=None, recipe=None):\n"
        "    calls.append({'dir': dir, 'steps': steps, 'stage': stage, 'recipe': recipe})\n"
        "    if dir == 'ctrl-c': raise KeyboardInterrupt\n"
        "    if dir == 'broken': raise RuntimeError('two\\nlines')\n"
        "    return {'requeue': 75, 'nothing': None}.get(dir, 0)\n"
        "class Stage:\n"
        "    def __init__(self, rate: float = 0.1):\n"
        "        if rate < 0: raise ValueError('rate below 0')\n"
        "        self.rate = rate\n"
    )
    (tmp_path / "r.yaml").write_text(
        "_target_: stubs.run\ndir: ???\nsteps: 1\nstage: {_target_: stubs.Stage, rate: 0.5}\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    others = {name: verb for name, verb in nameable.ROOTS.items() if verb != "fit"}
    with patch.dict(nameable.ROOTS, others | {"stubs.run": "fit"}, clear=True):
        yield ["--recipe", "r.yaml", "--allow", "stubs"]
    sys.modules.pop("stubs", None)


def called() -> list[dict]:
    return sys.modules["stubs"].calls if "stubs" in sys.modules else []


def one_line(capsys) -> str:
    """The single line on stderr."""
    text = capsys.readouterr().err
    assert text.count("\n") == 1, text
    return text.rstrip("\n")


def test_help_is_quick_and_loads_nothing_heavy():
    script = (
        "import sys, firered_lit.cli as cli\n"
        "try: cli.main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'yaml', 'omegaconf', 'numpy', 'lightning', 'PIL'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    assert python("-c", script).returncode == 0
    seconds = []
    for _ in range(3):
        begin = time.perf_counter()
        done = python("-m", "firered_lit", "--help")
        seconds.append(time.perf_counter() - begin)
    assert done.returncode == 0
    assert all(verb.name in done.stdout for verb in cli.VERBS)
    assert min(seconds) < 1


@pytest.mark.parametrize("verb", [verb.name for verb in cli.VERBS])
def test_every_verb_explains_itself(verb, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main([verb, "--help"])
    assert end.value.code == 0
    assert "--debug" in capsys.readouterr().out


def test_a_recipe_is_built_and_called_with_itself(stub):
    assert cli.main(["fit", "dir=a", *stub, "steps=3", "stage.rate=1e-3"]) == 0
    (call,) = called()
    assert (call["dir"], call["steps"], call["stage"].rate) == ("a", 3, 1e-3)
    assert call["recipe"] == {
        "_target_": "stubs.run",
        "dir": "a",
        "steps": 3,
        "stage": {"_target_": "stubs.Stage", "rate": 1e-3},
    }


@pytest.mark.parametrize(("folder", "code"), [("fine", 0), ("nothing", 0), ("requeue", 75)])
def test_the_exit_code_is_what_the_run_returns(stub, folder, code):
    assert cli.main(["fit", *stub, f"dir={folder}"]) == code


ERRORS = [
    (
        ["dir=a", "stepz=1"],
        2,
        r"error: r.yaml \(command line\): stepz: run has no argument 'stepz'; did you mean 'steps'\?",
    ),
    (["dir=a", "steps=x"], 2, r"error: r.yaml \(command line\): steps: expected int, got text 'x'"),
    (["dir=a", "stage.rat=1"], 2, r"error: .*: stage.rat: Stage has no argument 'rat'; did you mean 'rate'\?"),
    ([], 2, r"error: r.yaml: dir: needs a value: add dir=VALUE to the command"),
    (["dir=a", "recipe={}"], 2, r"error: .*: recipe: run has no argument 'recipe'"),
    (["dir=a", "stage._target_=os.system"], 2, r"error: .*stage._target_: 'os.system' is not among .*"),
    (["dir=a", "_target_=stubs.Stage"], 2, r"error: .*: dir: Stage has no argument 'dir'"),
    (
        ["dir=a", "stage.rate=-1"],
        2,
        r"error: stage \(stubs.Stage\): ValueError: rate below 0",
    ),
    (["dir=broken"], 1, r"error: RuntimeError: two lines \(run again with --debug for the traceback\)"),
    (["dir=ctrl-c"], 130, r"error: stopped by Ctrl-C"),
]


@pytest.mark.parametrize(("overrides", "code", "line"), ERRORS)
def test_an_error_is_one_line_and_a_code(stub, capsys, overrides, code, line):
    assert cli.main(["fit", *stub, *overrides]) == code
    assert re.fullmatch(line, one_line(capsys))


@pytest.mark.parametrize("place", [0, 1, 9])
def test_debug_shows_the_traceback_wherever_it_stands(stub, capsys, place):
    words = ["fit", *stub, "dir=broken"]
    words.insert(place, "--debug")
    assert cli.main(words) == 1
    text = capsys.readouterr().err
    assert "Traceback" in text
    assert text.endswith("error: RuntimeError: two lines\n")


def test_a_process_of_a_distributed_run_says_which_it_is(stub, capsys, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert cli.main(["fit", *stub, "dir=broken"]) == 1
    assert one_line(capsys).startswith("[rank 1] error: RuntimeError")


def test_a_recipe_of_another_verb_is_sent_there(stub, capsys, tmp_path):
    (tmp_path / "p.yaml").write_text("_target_: datamodules.prepare.write.prepare\nsource: x")
    assert cli.main(["fit", "--recipe", "p.yaml"]) == 2
    expected = "error: p.yaml: _target_: this recipe is for `prepare`: python -m firered_lit prepare --recipe ..."
    assert one_line(capsys) == expected


def test_a_recipe_that_no_verb_runs_is_refused(stub, capsys, tmp_path):
    (tmp_path / "p.yaml").write_text("_target_: stubs.Stage")
    assert cli.main(["fit", "--recipe", "p.yaml", "--allow", "stubs"]) == 2
    assert one_line(capsys) == "error: p.yaml: _target_: a recipe for `fit` starts with `_target_: stubs.run`"


def test_sys_argv_is_left_for_the_other_processes(stub, monkeypatch):
    words = ["firered_lit", "fit", *stub, "dir=a", "--debug"]
    monkeypatch.setattr(sys, "argv", list(words))
    assert cli.main() == 0
    assert sys.argv == words


USAGE = [
    [],
    ["nonsense"],
    ["fit"],
    ["fit", "--recpe", "x"],
    ["fit", "--recipe=x", "--unknown=1"],
    ["fit", "--recipe", "x", "stray"],
    ["edit", "--model", "m", "--prompt", "p", "--out", "o", "a=b"],
    ["edit", "--model", "m", "--prompt", "p", "--out", "o", "--steps", "0"],
    ["edit", "--model", "m", "--prompt", "p", "--out", "o", "--width", "1.5"],
    ["edit", "--model", "m"],
    ["export", "--run", "r"],
]


@pytest.mark.parametrize("words", USAGE, ids=" ".join)
def test_bad_usage_exits_with_2(words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    try:
        code = cli.main(words)
    except SystemExit as end:
        code = end.code
    assert code == 2
    assert "error:" in capsys.readouterr().err.splitlines()[-1]


def test_an_unknown_option_is_never_taken_for_an_override(stub, capsys):
    with pytest.raises(SystemExit):
        cli.main(["fit", *stub, "dir=a", "--stepz=1"])
    assert capsys.readouterr().err.endswith("error: fit: unrecognized arguments: --stepz=1\n")


def test_edit_and_export_pass_on_what_they_were_given(monkeypatch):
    calls = []
    for name, home in (("edit", "editing"), ("export", "exporting"), ("average", "checkpoints.average")):
        module = types.ModuleType(f"firered_lit.{home}")
        setattr(module, name, lambda _name=name, **given: calls.append((_name, given)))
        monkeypatch.setitem(sys.modules, f"firered_lit.{home}", module)
    edit = (
        "edit --model M --image A --image B --prompt T --out F --steps 2 --seed 0 --width 128 --height 96 --guidance 1"
    )
    assert cli.main([*edit.split(), "--lora", "L", "--stock", "--memory", "24"]) == 0
    assert cli.main(["export", "--run", "R", "--out", "D"]) == 0
    assert cli.main(["export", "--run", "R", "--out", "D", "--checkpoint", "best", "--merge", "--ema", "--log"]) == 0
    assert cli.main(["average", "--run", "R", "--last", "2", "--out", "F.ckpt"]) == 0
    given = {"model": "M", "images": ["A", "B"], "prompt": "T", "out": "F", "steps": 2, "seed": 0}
    given |= {"width": 128, "height": 96, "guidance": 1.0, "stock": True, "loras": ["L"], "memory": 24}
    base = {"dtype": "base"}
    assert calls == [
        ("edit", given),
        ("export", {"run": "R", "out": "D", "checkpoint": "last", "merge": False, "ema": False, "log": False, **base}),
        ("export", {"run": "R", "out": "D", "checkpoint": "best", "merge": True, "ema": True, "log": True, **base}),
        ("average", {"run": "R", "out": "F.ckpt", "last": 2}),
    ]


def test_those_functions_take_what_is_passed():
    """Held against the real signatures, without their imports."""
    from firered_lit.config.signature import signature

    edit = {p.name for p in signature("firered_lit.editing.edit").parameters}
    names = {"model", "images", "prompt", "out", "steps", "seed", "width", "height", "guidance", "stock", "loras"}
    names.add("memory")
    assert names <= edit
    assert {"run", "out", "checkpoint"} <= {p.name for p in signature("firered_lit.exporting.export").parameters}
    assert len([p for p in signature("firered_lit.models.tiny.make_tiny").parameters if p.required]) == 1


@pytest.mark.parametrize("name", ["datamodules", "callbacks"])
@pytest.mark.parametrize("kind", ["package", "file"])
def test_another_package_of_that_name_in_the_current_folder_is_one_line(tmp_path, name, kind):
    if kind == "file":
        (tmp_path / f"{name}.py").write_text("raise SystemExit('imported')")
    else:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit('imported')")
    done = python("-m", "firered_lit", "check", cwd=tmp_path, PYTHONPATH=os.pathsep.join(["", str(ROOT)]))
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"error: the package '{name}' must lie in {ROOT}, beside firered_lit, but {tmp_path}")


def test_known_noise_is_silenced_and_warnings_are_not(monkeypatch):
    import logging

    monkeypatch.delenv("MLFLOW_DISABLE_TELEMETRY", raising=False)
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "true")
    cli.quiet()
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"
    assert os.environ["TOKENIZERS_PARALLELISM"] == "true"  # the user's choice stays
    logger = logging.getLogger("bitsandbytes.backends.cpu.ops")
    noise, warning = (
        logger.makeRecord(logger.name, logging.WARNING, "f", 1, text, (), None)
        for text in ("Failed to load CPU gemm_4bit_forward from kernels-community: %s", "something real")
    )
    assert not logger.filter(noise)
    assert logger.filter(warning)


# check


def test_check_lists_every_problem_and_exits_with_2(stub, capsys, tmp_path):
    (tmp_path / "bad.yaml").write_text("_target_: stubs.run\ndir: 3\nsteps: x\nstage: {_target_: os.system}\n")
    (tmp_path / "worse.yaml").write_text("a: [")
    (tmp_path / "other.yaml").write_text("_target_: stubs.Stage")
    paths = ["r.yaml", "bad.yaml", "worse.yaml", "other.yaml"]
    assert cli.main(["check", "--recipe", *paths, "--allow", "stubs"]) == 2
    shown = capsys.readouterr()
    assert shown.out.splitlines() == [
        "r.yaml: fits `fit` (wants dir)",
        "error: bad.yaml: dir: expected str, got an int 3; put text in quotes",
        "error: bad.yaml: steps: expected int, got text 'x'",
        "error: bad.yaml: stage._target_: 'os.system' is not among the things that a recipe may name; "
        "a package of your own is added by --allow PACKAGE",
        "error: worse.yaml:1: not valid YAML: expected the node content, but found '<stream end>'",
        "error: other.yaml: _target_: no verb runs this; one of datamodules.prepare.write.prepare,"
        " firered_lit.mine.run.mine, "
        "firered_lit.evaluation.run.evaluate, firered_lit.curation.run.curate, stubs.run does",
    ]
    assert shown.err == "error: check found 5 problems, each on its line above\n"


def test_check_takes_overrides_for_a_named_recipe(stub, capsys):
    assert cli.main(["check", "--recipe", "r.yaml", "--allow", "stubs", "--", "steps=x"]) == 2
    assert "steps: expected int" in capsys.readouterr().out
    assert cli.main(["check", "steps=x"]) == 2
    assert one_line(capsys) == "error: check: steps=x: say with --recipe which recipe it changes"


def test_check_takes_overrides_behind_the_recipes_that_they_change(stub, capsys, tmp_path):
    assert cli.main(["check", "--allow", "stubs", "--recipe", "r.yaml", "steps=3", "dir=a"]) == 0
    assert capsys.readouterr().out == "r.yaml: fits `fit`\n"
    assert cli.main(["check", "--allow", "stubs", "--recipe", "r.yaml", "steps=x", "--debug"]) == 2
    assert "error: r.yaml (command line): steps: expected int, got text 'x'" in capsys.readouterr().out
    assert cli.main(["check", "--recipe", "steps=x"]) == 2
    assert one_line(capsys) == "error: check: steps=x: say with --recipe which recipe it changes"
    (tmp_path / "a=b.yaml").write_text((tmp_path / "r.yaml").read_text())
    assert cli.main(["check", "--allow", "stubs", "--recipe", "a=b.yaml", "dir=a"]) == 0
    assert capsys.readouterr().out == "a=b.yaml: fits `fit`\n"


def test_check_prints_what_a_recipe_may_name(capsys):
    assert cli.main(["check", "--names", "--allow", "mine"]) == 0
    words = capsys.readouterr().out.split()
    assert set(words) >= nameable.NAMES
    assert "mine" in words
    assert "os.system" not in words


def test_every_recipe_is_found_and_fragments_are_not(tmp_path, monkeypatch):
    for name in ("sft.yaml", "tiny/sft.yaml", "tiny/deep/more.yml", "base/fit.yaml", "tiny/base/x.yaml"):
        (tmp_path / "recipes" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "recipes" / name).write_text("a: 1")
    monkeypatch.chdir(tmp_path)
    found = checking.everything(tmp_path / "recipes")
    assert found == ["recipes/sft.yaml", "recipes/tiny/deep/more.yml", "recipes/tiny/sft.yaml"]


def test_a_check_of_nothing_does_not_pass(tmp_path):
    with pytest.raises(UserError, match="no recipes here; name one with --recipe"):
        checking.everything(tmp_path)


def test_the_projects_recipes_fit_and_nothing_heavy_is_imported():
    script = (
        "import sys\n"
        "from firered_lit import checking\n"
        "found = list(checking.recipes())\n"
        "assert len(found) >= 4 and not any(f.wrong for f in found), found\n"
        "assert not {'torch', 'lightning', 'numpy'} & set(sys.modules)\n"
    )
    done = python("-c", script)
    assert done.returncode == 0, done.stderr


def test_the_environment_is_told(monkeypatch):
    lines = [finding.line for finding in checking.environment()]
    assert lines[0].startswith("python 3.")
    assert any(re.fullmatch(r"torch \d+\.\d+.*", line) for line in lines)
    assert any(line.startswith("accelerators: ") for line in lines)
    assert any("lose the 3-D text positions" in line for line in lines) == checking.loses_text_positions()
    assert not any(finding.wrong for finding in checking.environment())


@pytest.mark.parametrize(
    ("requirement", "line", "wrong"),
    [
        ("pyyaml", "pyyaml ", False),
        ("pyyaml>=5.4", "pyyaml ", False),
        ("pyyaml>=6.0.1000", "too old, 6.0.1000 or newer is needed", True),
        ("no-such-package-here>=1", "no-such-package-here is not installed; run: pip install", True),
    ],
)
def test_a_requirement_is_held_against_what_is_installed(requirement, line, wrong):
    found = checking._package(requirement)
    assert line in found.line
    assert found.wrong is wrong


def test_check_reads_what_prepare_wrote(tmp_path, capsys):
    (tmp_path / "data.json").write_text('{"format": 1, "tasks": {"color": 3}}')
    assert cli.main(["check", "--data", str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines() == ["format: 1", 'tasks: {"color": 3}']
    (tmp_path / "data.json").write_text("{")
    assert cli.main(["check", "--data", str(tmp_path)]) == 2
    message = one_line(capsys)
    assert "data.json: not valid JSON" in message
    assert "not what `prepare` writes" in message


def test_check_reads_a_source_file(tmp_path, capsys):
    row = '{"source_image": null, "target_image": "b.png", "instruction": "make it red"}\n'
    (tmp_path / "edits.jsonl").write_text(row)
    Image.new("RGB", (64, 64)).save(tmp_path / "b.png")
    assert cli.main(["check", "--data", str(tmp_path / "edits.jsonl")]) == 0
    assert capsys.readouterr().out.startswith("rows        1: ")


def test_check_of_data_that_is_not_there_is_one_line(tmp_path, capsys):
    assert cli.main(["check", "--data", str(tmp_path / "none.jsonl")]) == 2
    assert "no such file" in one_line(capsys)


def test_a_reader_that_has_seen_enough_is_no_error(tmp_path, root):
    """`check --data FILE | head -0`: no traceback, no error line, exit code 0."""
    row = '{"source_image": null, "target_image": "b.png", "instruction": "red", "id": %d}\n'
    (tmp_path / "edits.jsonl").write_text("".join(row % i for i in range(50)))
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "firered_lit", "check", "--data", str(tmp_path / "edits.jsonl")]
    done = subprocess.run(command, cwd=root, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (0, "")


def test_check_takes_the_layout(tmp_path, capsys):
    (tmp_path / "e.jsonl").write_text('{"image": "b.png", "prompt": "red"}\n')
    assert cli.main(["check", "--data", str(tmp_path / "e.jsonl")]) == 2
    assert "say layout=diffsynth or layout=edit-r1" in capsys.readouterr().out
    assert cli.main(["check", "--data", str(tmp_path / "e.jsonl"), "--layout", "diffsynth"]) == 2
    assert "missing image" in capsys.readouterr().out
    assert cli.main(["check", "--data", str(tmp_path / "e.jsonl"), "--layout", "x"]) == 2
