"""Every command that README and the pages print: split by a real shell, parsed, checked and built as it stands there.

No training starts: a recipe's parts are built, and the call of its root is left out. What a command needs and this
place does not have (data, a run, a model) may be missing, and nothing else may be wrong.
"""

import contextlib
import io
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from firered_lit import cli
from firered_lit.config import build, nameable, recipe
from firered_lit.serve import server

ROOT = Path(__file__).resolve().parents[3]
PAGES = [*sorted(ROOT.glob("README*.md")), ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
VERBS = {verb.name for verb in cli.VERBS}
TOOLS = {"exit", "if", "mlflow", "pip", "scontrol"}  # of others
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
MISSING = re.compile(
    r"no such file|no folder|no such folder|holds no data|not a run's folder|has 0 checkpoints|no LoRA there|no encoder"
)


class Printed(NamedTuple):
    """A command as a page prints it. `whole`: in a block, to be typed as it is; else within a sentence."""

    page: str
    text: str
    whole: bool


def printed(page: Path) -> Iterator[Printed]:
    """Commands of the shell blocks, of the indented lines and of the inline code of a page."""
    content = page.read_text(encoding="utf-8")
    for language, block in FENCE.findall(content):
        first = block.lstrip().split(maxsplit=1)[0] if block.strip() else ""
        if language in ("bash", "sh", "console") or (not language and first in ("python", "make", "pip")):
            yield Printed(page.name, block, whole=True)
    prose = FENCE.sub("", content)
    for line in re.findall(r"^    ((?:python|make|mlflow) .*)$", re.sub(r"\\\n +", " ", prose), re.MULTILINE):
        yield Printed(page.name, line, whole=True)
    for span in re.findall(r"`([^`]+)`", prose):
        words = span.replace("\n", " ").split()
        with_python = words[:2] == ["python", "-m"] or (words[:1] == ["python"] and len(words) > 1)
        with_verb = words[0] in VERBS and len(words) > 1 and any(w.startswith("--") or "=" in w for w in words)
        if with_python or with_verb or (words[0] == "make" and len(words) == 2):
            text = span.replace("\n", " ")
            yield Printed(page.name, f"python -m firered_lit {text}" if with_verb else text, whole=False)


def split(command: str, folder: Path) -> list[list[str]]:
    """The words of every command of a script, as bash passes them on. None of them is run."""
    script = "PATH=/nowhere\ncommand_not_found_handle() { printf '%s\\0' \"$@\"; printf '\\1\\0'; }\n" + command
    done = subprocess.run(["/bin/bash", "-c", script], cwd=folder, capture_output=True, text=True, env={}, check=False)
    assert done.stderr == "", f"bash: {done.stderr}"
    return [words.split("\0")[:-1] for words in done.stdout.split("\1\0")[:-1]]


right: list[list[str]] = []  # commands that were checked
RUN_WHOLE = ROOT / "docs" / "extend.md"  # by tests/recipes/test_extend.py, from its first command to its last
COMMANDS = [one for page in PAGES if page != RUN_WHOLE for one in printed(page)]


@pytest.fixture
def checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Printed], None]:
    """Check one printed text, in an empty folder that has the recipes."""
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    real = build.build

    def parts_alone(node: Any, *rest: Any, **more: Any) -> Any:
        """Build as ever; what is returned for the root of a recipe does nothing."""
        made = real(node, *rest, **more)
        is_root = isinstance(node, dict) and node.get(recipe.TARGET) in nameable.ROOTS
        return (lambda **_: 0) if is_root else made

    async def not_listening(*_: Any) -> None:
        """Stand in for the server's wait for visitors."""

    def check(one: Printed) -> None:
        monkeypatch.setattr(build, "build", parts_alone)
        monkeypatch.setattr(server, "_serve", not_listening)
        for words in split(one.text, tmp_path):
            if words not in right:  # the Chinese page prints much of the English one
                _check(words, one)
                right.append(words)

    return check


def _check(words: list[str], one: Printed) -> None:
    """Check one command, by what it runs."""
    if words[0] in ("srun", "torchrun"):
        words = words[words.index("python") :]
    if words[0] == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert set(words[1:]) <= set(targets), f"no such target of make: {words}"
    elif words[:3] == ["python", "-m", "firered_lit"]:
        _command_line(words[3:], one.whole)
    elif words[:2] == ["python", "-c"]:
        exec(compile(words[2], one.page, "exec"), {})
    elif words[0] == "python":
        _program(words[1:])
    else:
        assert words[0] in TOOLS, f"nobody knows what {words[0]!r} is"


def _program(words: list[str]) -> None:
    """A program of this repository: it is there, and knows the options."""
    if words[0] == "-m":
        module = ROOT / words[1].replace(".", "/")
        files = [module.with_suffix(".py"), module / "__main__.py"]
        words = words[1:]
    else:
        files = [ROOT / words[0]]
    found = [file for file in files if file.is_file()]
    assert found, f"no such program: {words[0]}"
    text = found[0].read_text()
    for word in words[1:]:
        if word.startswith("--"):
            assert f'"{word.partition("=")[0]}"' in text, f"{found[0].name} has no option {word}"


def _command_line(words: list[str], whole: bool) -> None:
    """A command of ours. One within a sentence may leave out what does not matter there; its options must be right."""
    assert words[0] in VERBS, f"no such verb: {words[0]}"
    if "..." in words:
        return
    if not whole:
        known = _help(words[0])
        assert all(word in known for word in words if word.startswith("--")), f"{words[0]} has no such option: {words}"
        if words[0] not in ("fit", "prepare", "mine"):
            return
        words = _within_a_sentence(words)
    code, text = _said(words)
    wrong = [line for line in text.splitlines() if "error:" in line and "check found" not in line]
    absent = code == 2 and wrong and all(MISSING.search(line) for line in wrong)
    assert code == 0 or absent, f"{' '.join(words)}: {code} {wrong}"


@cache
def _help(verb: str) -> str:
    return _said([verb, "--help"])[1]


def _said(words: list[str]) -> tuple[int, str]:
    """The exit code of a command, and what it printed."""
    shown = io.StringIO()
    with contextlib.redirect_stderr(shown), contextlib.redirect_stdout(shown):
        try:
            code = cli.main(words)
        except SystemExit as end:
            code = int(end.code or 0)
    return code, shown.getvalue()


def _within_a_sentence(words: list[str]) -> list[str]:
    """The check of a recipe's command of which a sentence shows a part, without the values that it waits for."""
    verb, *rest = words
    kinds = [word for word in rest if verb == "mine" and "=" not in word and "/" not in word and word[0] != "-"]
    if kinds:
        return ["check", "--recipe", f"recipes/mine_{kinds[0].replace('-', '_')}.yaml", *rest[1:]]
    if "--recipe" not in rest:
        rest = ["--recipe", "recipes/sft.yaml" if verb == "fit" else "recipes/prepare.yaml", *rest]
    return ["check", *rest]


@pytest.mark.parametrize("one", COMMANDS, ids=lambda one: f"{one.page}: {' '.join(one.text.split())[:60]}")
def test_a_printed_command_does_what_the_page_says(checked, one):
    checked(one)


def test_the_pages_print_commands_of_every_verb():
    text = "\n".join(one.text for one in COMMANDS)
    assert len(COMMANDS) > 40
    assert all(re.search(rf"\b{verb}\b", text) for verb in VERBS)


WRONG = [
    "python -m firered_lit prepare source=edits.jsonl out=data",
    "python -m firered_lit fit --recipe recipes/sft.yaml data.root=data run.dir=run trainer.max_stepz=3",
    "python -m firered_lit fit --recipe recipes/sft.yaml data.root=data run.dir=run data.captions={original: 1}",
    "python -m firered_lit fit --recipe recipes/sft.yaml data.root=data run.dir=run stage.optimizer.lr=fast",
    "python -m firered_lit fit --recipe recipes/sfft.yaml data.root=data run.dir=run",
    "python -m firered_lit fit --recipe recipes/prepare.yaml source=data out=run",
    "python -m firered_lit exprt --run runs/mine --out models/mine",
    "python -m firered_lit export --run runs/mine --output models/mine",
    "python -m firered_lit edit --model M --image a.jpg --prompt Make it winter --out b.png",
    'python -m firered_lit edit --model M --prompt "Make it winter --out b.png',
    "python benchmarks/none.py",
    "python benchmarks/ablations.py --learnt .learn",
    "make demonstration",
    "firered-litt check",
]


@pytest.mark.parametrize("command", WRONG)
def test_a_wrong_command_is_seen(checked, command):
    with pytest.raises(AssertionError):
        checked(Printed("page.md", command, whole=True))


BARE = re.compile(r"(?<!['\"\w.])[a-z_]+(\.\w+)*=[\[{]")  # in text
BARE_IN_CODE = re.compile(r"(?<!['\"\w.])[a-z_]+(\.\w+)+=(\[|\{_|\{\{)")  # {{ is a brace of an f-string


def shown(file: Path) -> str:
    """Return a file without its blocks of Python, where a keyword may be a mapping."""
    text = file.read_text(encoding="utf-8")
    return re.sub(r"^```python\n.*?^```", "", text, flags=re.MULTILINE | re.DOTALL) if file.suffix == ".md" else text


def test_a_mapping_in_a_page_a_recipe_or_an_error_stands_in_quotes():
    """What is printed as `key={...}` is split by a shell unless it is quoted."""
    texts = [*PAGES, *(ROOT / "recipes").rglob("*.yaml")]
    code = [file for room in ("firered_lit", "datamodules", "callbacks") for file in (ROOT / room).rglob("*.py")]
    searches = [*((file, BARE) for file in texts), *((file, BARE_IN_CODE) for file in code)]
    bare = [f"{file.name}: {found.group()}" for file, text in searches for found in text.finditer(shown(file))]
    assert bare == []


def test_the_remedy_for_captions_is_taken_as_it_is_printed():
    from datamodules.sampling.captions import Captions
    from firered_lit.errors import UserError

    with pytest.raises(UserError) as refused:
        Captions({"original": 1.0, "rewritten": 1.0}, None, 0.0).refuse_absent({"original/en": 3})
    words = shlex.split(str(refused.value).partition("set ")[2])
    captions = recipe.load(ROOT / "recipes/sft.yaml", words).root["data"]["captions"]
    Captions(captions, None, 0.0).refuse_absent({"original/en": 3})


@pytest.mark.slow
@pytest.mark.parametrize("verb", sorted(VERBS))
def test_a_printed_command_of_each_verb_starts_from_a_real_shell(tmp_path, verb):
    """The very words of a page, in bash, with the interpreter of this environment."""
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    texts = [one.text.replace("\\\n", " ") for one in sorted(COMMANDS, key=lambda one: not one.whole)]
    lines = [line for text in texts for line in text.splitlines() if "..." not in line]
    line = next(line for line in lines if line.startswith(f"python -m firered_lit {verb} "))
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        ["/bin/bash", "-c", line], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 or (done.returncode == 2 and MISSING.search(done.stderr)), done.stderr
    assert "Traceback" not in done.stderr
