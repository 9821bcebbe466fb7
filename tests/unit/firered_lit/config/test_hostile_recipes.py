"""A recipe from a stranger: whatever it tries to run, read, send or import is refused, and nothing has happened."""

import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from firered_lit import cli

WATCHED = (
    *("os.system", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "os.startfile"),
    *("os.remove", "os.rename", "os.mkdir", "os.symlink", "shutil.rmtree", "subprocess.Popen", "pty.spawn"),
    *("socket.connect", "socket.bind", "socket.getaddrinfo", "socket.gethostbyname", "urllib.Request", "ctypes.dlopen"),
)
_seen: list[str] | None = None


def _listen(event: str, arguments: tuple[object, ...]) -> None:
    """Note what a recipe must not cause. An audit hook cannot be taken away, so it sleeps while `_seen` is None."""
    if _seen is None:
        return
    if event in WATCHED:
        _seen.append(f"{event} {arguments}")
    if event == "open" and "stolen" in str(arguments[0]):
        _seen.append(f"open {arguments[0]}")
    if event == "import" and str(arguments[0]).partition(".")[0] in ("evil", "torch", "lightning", "mlflow"):
        _seen.append(f"import {arguments[0]}")


sys.addaudithook(_listen)


@pytest.fixture
def watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What happens that must not, in a current folder with a secret file and a module of the stranger's."""
    global _seen
    (tmp_path / "stolen.txt").write_text("a secret")
    (tmp_path / "evil.py").write_text("import os\n\ndef run(**anything): os.system('true')\nclass Part: pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    _seen = []
    yield _seen
    _seen = None


SERVER = "_target_: callbacks.judge.server.Server, url: 'http://127.0.0.1:9/v1', model: m"
WORKER = "_target_: callbacks.ocr.worker.EngineProcess, factory: 'os:system', options: {command: 'true'}"
READ = "callbacks: {x: {_target_: callbacks.ocr.worker.read_each, images: [], engine: {%s}}}"


def called(target: str, **arguments: object) -> str:
    """A callback that is really a call of `target`."""
    given = "".join(f", {name}: {value}" for name, value in arguments.items())
    return f"callbacks: {{x: {{_target_: {target}{given}}}}}"


HOSTILE = {
    # Processes.
    "a shell command": called("os.system", command="true"),
    "a process": called("subprocess.Popen", args="[true]"),
    "the module under os": called("posix.system", command="true"),
    "a command through our own worker": READ % WORKER,
    "our worker alone": f"callbacks: {{x: {{{WORKER}}}}}",
    "a function that calls what it gets": READ % "_target_: evil.Part",
    "a program in another terminal": called("pty.spawn", argv="'true'"),
    "what a module of ours imports": called("firered_lit.training.os.system", command="true"),
    "what a callback's module imports": called("callbacks.signals.subprocess.Popen", args="[true]"),
    "git of our own": called("firered_lit.run.provenance.git_state", folder="."),
    # Files.
    "a file that is read": called("builtins.open", file="stolen.txt"),
    "a file that is written": called("pathlib.Path", args="stolen.new"),
    "a folder that is removed": called("shutil.rmtree", path="stolen"),
    "a pickle": called("pickle.load", file="stolen.txt"),
    "a checkpoint with code": called("torch.load", f="stolen.txt"),
    "our own reader of text": called("callbacks.judge.prompt.read_prompt", name="stolen.txt"),
    "our own writer": called("firered_lit.run.store.update_record", run_dir="stolen"),
    "Lightning's pickled checkpoints": called("lightning.pytorch.callbacks.ModelCheckpoint", dirpath="stolen"),
    "a model registry": "trainer: {_target_: lightning.pytorch.Trainer, _partial_: true, model_registry: me/stolen}",
    # The network, and secrets on their way out.
    "a socket": called("socket.create_connection", address="[127.0.0.1, 9]"),
    "a download": called("urllib.request.urlopen", url="http://127.0.0.1:9/"),
    "a hub repository with code": called("torch.hub.load", repo_or_dir="a/b", model="m"),
    "a logger of somebody's server": "logger: {_target_: lightning.pytorch.loggers.WandbLogger, save_dir: x}",
    "a secret of the environment as a key": f"stage: {{{SERVER}, key_variable: AWS_SECRET_ACCESS_KEY}}",
    "a variable that only begins as a key's": f"stage: {{{SERVER}, key_variable: A_API_KEY_AWS_SECRET_ACCESS}}",
    "a secret by interpolation": "run: {_target_: firered_lit.training.Run, dir: '${oc.env:AWS_SECRET_ACCESS_KEY}'}",
    "a secret in a nested interpolation": "run: {dir: '${a${oc.env:AWS_SECRET_ACCESS_KEY}}'}",
    "code by interpolation": "run: {dir: '${oc.create:${oc.decode:1}}'}",
    "the environment itself": called("os.environ.get", key="AWS_SECRET_ACCESS_KEY"),
    # Imports.
    "a module of the stranger's": called("evil.run"),
    "a class of the stranger's": called("evil.Part"),
    "an import": called("importlib.import_module", name="evil"),
    "a program as a module": called("runpy.run_module", mod_name="evil"),
    "text that is code": called("builtins.eval", source="'1'"),
    "a tag of YAML": "stage: !!python/object/apply:os.system [true]",
    "another package opened by the recipe": "allow: [evil]\n" + called("evil.run"),
    # What calls what it is given.
    "a callback that calls": called("lightning.pytorch.callbacks.LambdaCallback", on_fit_start="evil.run"),
    "an optimizer's class as an argument": "stage: {_target_: torchao.optim.CPUOffloadOptimizer, params: []}",
    "a rate that is called": "stage: {_target_: torch.optim.lr_scheduler.LambdaLR, lr_lambda: evil.run}",
    "a library that calls a part": (
        "trainer: {_target_: lightning.pytorch.strategies.DDPStrategy,"
        " ddp_comm_hook: {_target_: firered_lit.optim.constant, _partial_: true}}"
    ),
    "a part among a library's open arguments": (
        "trainer: {_target_: lightning.pytorch.profilers.PyTorchProfiler,"
        " on_trace_ready: {_target_: firered_lit.optim.constant, _partial_: true}}"
    ),
    "a call that waits": called("os.system", _partial_="true"),
    "a call inside of a part": (
        "stage: {_target_: callbacks.rewards.correctness.Correctness, read: {_target_: os.system, _partial_: true}}"
    ),
    "a call deep in lists": "callbacks: {x: {a: [[{b: [{_target_: os.system, command: 'true'}]}]]}}",
    "a whole run inside of a run": called(
        "datamodules.prepare.write.prepare", source="stolen.txt", out="stolen", model="tiny"
    ),
    "a run that waits inside of a run": called("firered_lit.training.fit", _partial_="true"),
    "something private": called("firered_lit.training._replace", path="stolen", text="x"),
    "a dunder": called("callbacks.ema.EMA.__init__.__globals__"),
    "a method": called("firered_lit.stages.sft.SFT.load_from_checkpoint", checkpoint_path="stolen.txt"),
    "a name that hides": called("firered_lit.optim.constant.__class__"),
    "the builder itself": called("firered_lit.config.build.build", node="{}"),
    "the command line itself": called("firered_lit.cli.main", argv="[edit]"),
}


REASON = re.compile(
    "not among the things that a recipe may name|names something private|stands at the top of a recipe alone"
    "|ends in _API_KEY|gives a library nothing to call|not for a recipe to give|resolvers are not part of a recipe"
    "|a name has letters|could not determine a constructor|has no argument 'allow'"
)
GOOD = "base: [recipes/tiny/sft.yaml]\nrun: {dir: run}\ndata: {root: data}\n"


def test_the_recipe_under_the_hostile_lines_is_a_good_one(watched, tmp_path):
    (tmp_path / "r.yaml").write_text(GOOD)
    assert cli.main(["check", "--recipe", "r.yaml"]) == 0
    assert watched == []


@pytest.mark.parametrize("way", HOSTILE)
@pytest.mark.parametrize("verb", ["check", "fit"])
def test_a_hostile_recipe_is_refused_and_nothing_has_happened(watched, tmp_path, capsys, verb, way):
    (tmp_path / "good.yaml").write_text(GOOD)
    (tmp_path / "r.yaml").write_text(f"base: [good.yaml]\n{HOSTILE[way]}\n")
    before, environment = set(sys.modules), dict(os.environ)
    assert cli.main([verb, "--recipe", "r.yaml"]) == 2
    assert watched == []
    assert "evil" not in set(sys.modules) - before
    assert environment.items() <= os.environ.items()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["evil.py", "good.yaml", "r.yaml", "stolen.txt"]
    shown = capsys.readouterr()
    wrong = [line for line in (shown.out + shown.err).splitlines() if "r.yaml" in line]
    assert wrong
    assert all(REASON.search(line) for line in wrong), wrong
    assert "a secret" not in shown.out + shown.err


def test_at_least_thirty_ways_are_tried():
    assert len(HOSTILE) >= 30


def test_the_watch_sees_what_it_is_for(watched):
    """The proof that nothing has happened would be empty if the hook were deaf."""
    os.system("true")
    Path("stolen.txt").read_text()
    assert [line.split()[0] for line in watched] == ["os.system", "open"]
