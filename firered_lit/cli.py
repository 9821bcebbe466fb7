"""The command line: a verb is a row of `VERBS`. What it needs is imported when it runs, so that `--help` is instant."""

import argparse
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from firered_lit.errors import UserError
from firered_lit.process import stopping

Arguments = argparse.Namespace
Parser = argparse.ArgumentParser


class Verb(NamedTuple):
    """One word of the command line: what it does, its options, and what runs it and returns the exit code."""

    name: str
    help: str
    options: Callable[[Parser], None]
    run: Callable[[Arguments], int]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0, 2 for bad input, 130 after Ctrl-C, 1 for anything else.

    SIGTERM and SIGUSR1 end it by 75. `sys.argv` stays as it is: the processes of a distributed run are started from it.
    """
    with stopping.watching():
        return _main(argv)


def _main(argv: Sequence[str] | None) -> int:
    arguments = _parse(sys.argv[1:] if argv is None else list(argv))
    quiet()
    try:
        from firered_lit.process.surroundings import refuse_other_rooms

        refuse_other_rooms()
        code = arguments.verb.run(arguments)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # whoever read, `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return _fail("stopped by Ctrl-C", arguments, 130)
    except UserError as error:
        return _fail(str(error), arguments, error.exit_code)
    except Exception as error:
        if isinstance(error, OSError) and error.filename is not None:  # the file system refuses, not our code
            return _fail(f"{error.filename}: {error.strerror}", arguments, UserError.exit_code)
        notes = "".join(f" [{note}]" for note in getattr(error, "__notes__", ()))
        hint = "" if arguments.debug else " (run again with --debug for the traceback)"
        return _fail(f"{type(error).__name__}: {error}{notes}{hint}", arguments, 1)


def _parse(argv: list[str]) -> Arguments:
    """The verb and its options. Overrides (`key.path=value`) may stand anywhere after the verb."""
    parser = Parser("firered_lit", description="Train, export and use an instruction image editor.", allow_abbrev=False)
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    rows = parser.add_subparsers(metavar="VERB", required=True)
    for verb in VERBS:
        row = rows.add_parser(verb.name, help=verb.help, description=verb.help, allow_abbrev=False)
        row.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help="show the traceback")
        row.set_defaults(verb=verb, overrides=[])
        verb.options(row)
    arguments, extra = parser.parse_known_args(argv)
    takes_overrides = hasattr(arguments, "allow")
    strange = [text for text in extra if text.startswith("-") or "=" not in text or not takes_overrides]
    if strange:
        parser.error(f"{arguments.verb.name}: unrecognized arguments: {' '.join(strange)}")
    arguments.overrides = [*arguments.overrides, *extra]
    return arguments


def _recipe_options(parser: Parser) -> None:
    parser.add_argument("--recipe", required=True, metavar="PATH", help="a YAML file, or a name that `recipes` lists")
    _override_options(parser)


def _override_options(parser: Parser) -> None:
    parser.add_argument(
        "--allow", action="append", default=[], metavar="PACKAGE", help="let the recipe name what it holds"
    )
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="change a value of the recipe")


def _mine_options(parser: Parser) -> None:
    parser.add_argument("--recipe", metavar="PATH", help="a YAML file, or a name that `recipes` lists")
    _override_options(parser)
    parser.usage = "firered_lit mine (--recipe PATH | semi-hard | preferences | evolution) [key.path=value ...]"


def _edit_options(parser: Parser) -> None:
    parser.add_argument("--model", required=True, metavar="DIR", help="a diffusers folder, a hub id or a run")
    parser.add_argument(
        "--lora", action="append", default=[], metavar="PATH[@X]", help="a LoRA or a LoRA run; repeat for more"
    )
    parser.add_argument("--image", action="append", default=[], metavar="FILE", help="a reference; repeat for more")
    asked = parser.add_mutually_exclusive_group(required=True)
    asked.add_argument("--prompt", metavar="TEXT", help="the instruction")
    asked.add_argument("--prompts", metavar="FILE", help="many, a row of JSON each: instruction, images, seed, ...")
    parser.add_argument(
        "--out", required=True, metavar="PATH", help="the edited image's file; a folder for several images"
    )
    parser.add_argument("--steps", type=_positive, default=40, metavar="N", help="of the sampler (default: 40)")
    parser.add_argument(
        "--seed", type=_natural, action="append", default=[], metavar="N", help="of the noise (0); repeat for more"
    )
    parser.add_argument("--width", type=_positive, metavar="PX", help="of the result (default: as the last image)")
    parser.add_argument("--height", type=_positive, metavar="PX", help="of the result (default: as the last image)")
    parser.add_argument("--guidance", type=float, default=4.0, metavar="G", help="true_cfg_scale (default: 4.0)")
    parser.add_argument("--stock", action="store_true", help="use the stock diffusers pipeline, as it is")
    parser.add_argument(
        "--memory", type=_positive, metavar="GB", help="of the GPU: what does not fit is quantised or offloaded"
    )


def _export_options(parser: Parser) -> None:
    parser.add_argument("--run", required=True, metavar="RUN", help="the folder of a run")
    parser.add_argument("--out", required=True, metavar="DIR", help="where the diffusers folder goes")
    parser.add_argument("--checkpoint", default="last", metavar="WHICH", help="last, best or a file (default: last)")
    parser.add_argument(
        "--merge", action="store_true", help="of a LoRA run: a whole model with the LoRA in its weights"
    )
    parser.add_argument("--ema", action="store_true", help="the averaged weights")
    parser.add_argument("--log", action="store_true", help="keep the result in the run's MLflow record as well")
    parser.add_argument(
        "--dtype",
        choices=("base", "float32", "bfloat16"),
        default="base",
        help="precision of the weights (default: that of the base)",
    )


def _average_options(parser: Parser) -> None:
    parser.add_argument("--run", required=True, metavar="RUN", help="the folder of a run")
    parser.add_argument("--last", type=_positive, default=3, metavar="N", help="how many checkpoints (default: 3)")
    parser.add_argument(
        "--out", required=True, metavar="FILE", help="the checkpoint to write, for `export --checkpoint`"
    )


def _check_options(parser: Parser) -> None:
    parser.add_argument("--recipe", nargs="+", action="extend", metavar="PATH", help="these only, not all of recipes/")
    parser.add_argument("--names", action="store_true", help="print what a recipe may name, and nothing else")
    parser.add_argument(
        "--data",
        metavar="PATH",
        help="say what is understood of a source file or a prepared folder; or of target=DIR control=DIR",
    )
    parser.add_argument("--layout", default="", metavar="NAME", help="of the rows, when their columns do not tell")
    parser.add_argument("--allow-urls", action="store_true", help="let --data fetch images that are http(s) addresses")
    parser.add_argument("--capacity", type=_positive, metavar="TOKENS", help="of the bucket table of a prepared folder")
    parser.add_argument("--gpus", type=_positive, metavar="N", help="estimate the memory that --recipe needs on N GPUs")
    parser.add_argument("--gpu-memory", type=_positive, default=80, metavar="GB", help="of one GPU (default: 80)")
    parser.add_argument("--make-tiny", metavar="DIR", help="build the tiny pipeline in DIR, and nothing else")
    _override_options(parser)


def _serve_options(parser: Parser) -> None:
    parser.add_argument("--run", metavar="RUN", help="the folder of a run: its base, checkpoints and average")
    parser.add_argument("--model", metavar="DIR", help="a diffusers folder or hub id, in place of a run")
    parser.add_argument("--lora", action="append", default=[], metavar="PATH[@X]", help="a LoRA; repeat for more")
    parser.add_argument("--host", default="127.0.0.1", help="where to listen (default: this machine alone)")
    parser.add_argument("--port", type=int, default=8765, metavar="N", help="0 takes a free one (default: 8765)")
    parser.add_argument("--steps", type=_positive, default=40, metavar="N", help="of the sampler (default: 40)")
    parser.add_argument("--guidance", type=float, default=4.0, metavar="G", help="true_cfg_scale (default: 4.0)")
    parser.add_argument("--keep", type=_positive, default=1, metavar="N", help="models kept in memory (default: 1)")


def _recipes_options(parser: Parser) -> None:
    parser.add_argument("name", nargs="?", default="", metavar="NAME", help="print this one, its bases folded in")
    parser.add_argument("--out", metavar="FILE", help="write it there in place of printing it")


def _natural(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected a whole number, 0 or more, got {text!r}")
    return int(text)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number above 0, got {text!r}")
    return int(text)


def _run_recipe(arguments: Arguments) -> int:
    """Read the recipe, refuse what does not fit, build its nodes and call its root."""
    from firered_lit.config import running

    recipe = running.open_recipe(arguments.verb.name, arguments.recipe, arguments.overrides, arguments.allow)
    return running.run_recipe(recipe, arguments.allow)


def _run_mine(arguments: Arguments) -> int:
    """`mine semi-hard` is `mine --recipe recipes/mine_semi_hard.yaml`."""
    words = [text for text in arguments.overrides if "=" not in text]
    if len(words) + bool(arguments.recipe) != 1:
        raise UserError("mine: name one recipe, by --recipe PATH or as semi-hard, preferences or evolution")
    if words:
        arguments.overrides.remove(words[0])
        arguments.recipe = f"mine_{words[0].replace('-', '_')}"
    return _run_recipe(arguments)


def _run_edit(arguments: Arguments) -> int:
    names = ("model", "prompt", "out", "steps", "width", "height", "guidance", "stock")
    options = {name: getattr(arguments, name) for name in names}
    if arguments.memory is not None:
        options["memory"] = arguments.memory
    if arguments.prompts is not None:
        options["prompts"] = arguments.prompts
        seeds = arguments.seed
    else:
        seeds = arguments.seed or [0]
    seed = seeds[0] if len(seeds) == 1 else seeds
    _call("firered_lit.editing.edit", images=arguments.image, loras=arguments.lora, seed=seed, **options)
    return 0


def _run_export(arguments: Arguments) -> int:
    names = ("run", "out", "checkpoint", "merge", "ema", "log", "dtype")
    _call("firered_lit.exporting.export", **{name: getattr(arguments, name) for name in names})
    return 0


def _run_average(arguments: Arguments) -> int:
    _call("firered_lit.checkpoints.average.average", run=arguments.run, out=arguments.out, last=arguments.last)
    return 0


def _run_check(arguments: Arguments) -> int:
    """Recipes and environment; or one source of data; or the tiny pipeline."""
    if arguments.make_tiny:
        print(_call("firered_lit.models.tiny.make_tiny", arguments.make_tiny) or arguments.make_tiny)
        return 0
    from firered_lit import checking

    if arguments.names:
        print("\n".join(checking.names(arguments.allow)))
        return 0
    _part_overrides(arguments)
    if arguments.data:
        from firered_lit.config.recipe import parse_override

        path, words = arguments.data, list(arguments.overrides)
        if "=" in path and not os.path.lexists(path):
            words.append(path)
            path = ""
        described = dict(parse_override(word) for word in words)
        found = checking.data(path, arguments.layout, arguments.allow_urls, arguments.capacity, described)
        return checking.report(found)
    if arguments.gpus and not arguments.recipe:
        raise UserError("check --gpus: say with --recipe whose memory to estimate")
    gpus, memory = arguments.gpus, arguments.gpu_memory
    lines = checking.recipes(arguments.recipe, arguments.overrides, arguments.allow, gpus=gpus, gpu_memory=memory)
    return checking.report(lines if arguments.recipe else [*lines, *checking.environment()])


def _run_serve(arguments: Arguments) -> int:
    names = ("run", "model", "host", "port", "steps", "guidance", "keep")
    options = {name: getattr(arguments, name) for name in names}
    _call("firered_lit.serve.server.serve", loras=arguments.lora, **options)
    return 0


def _run_recipes(arguments: Arguments) -> int:
    """List the shipped recipes, or print or write one with its bases folded in."""
    from firered_lit.config import shipped

    if not arguments.name:
        if arguments.out:
            raise UserError(
                f"recipes --out {arguments.out}: name the recipe to write, as in `recipes sft_lora --out ...`"
            )
        rows = shipped.listing()
        width = max(len(row.name) for row in rows) + 2
        print("\n".join(f"{row.name:{width}}{row.summary}" for row in rows))
        return 0

    from firered_lit.config import recipe

    text = recipe.fold(arguments.name)
    if not arguments.out:
        print(text, end="")
        return 0
    if os.path.lexists(arguments.out):
        raise UserError(f"recipes --out {arguments.out}: it exists already; name another file")
    from firered_lit.files import write_text

    write_text(arguments.out, text)
    print(f"{arguments.out}: a copy of {arguments.name}; use it by --recipe {arguments.out}")
    return 0


def _part_overrides(arguments: Arguments) -> None:
    """Take `key.path=value` out of what stands behind `check --recipe`, where argparse leaves it among the files."""
    words = arguments.recipe or []
    overrides = [word for word in words if "=" in word and not os.path.lexists(word)]
    if overrides:
        arguments.recipe = [word for word in words if word not in overrides]
        arguments.overrides = [*overrides, *arguments.overrides]


def _call(name: str, *args: Any, **kwargs: Any) -> Any:
    """The function at a dotted name, imported now and called."""
    module, _, function = name.rpartition(".")
    return getattr(importlib.import_module(module), function)(*args, **kwargs)


def quiet() -> None:
    """Show names that the terminal cannot, and keep libraries quiet."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a name that the terminal cannot show is no failure
    from firered_lit.process.surroundings import quiet_libraries

    quiet_libraries()


def _fail(message: str, arguments: Arguments, code: int) -> int:
    """Print one line on stderr, and the traceback when asked for. Returns the code."""
    if arguments.debug:
        import traceback

        traceback.print_exc()
    rank = os.environ.get("LOCAL_RANK", "0")
    prefix = f"[rank {rank}] " if rank != "0" else ""
    print(f"{prefix}error: {' '.join(message.splitlines())}", file=sys.stderr)
    return code


VERBS = (
    Verb("fit", "train as a recipe says", _recipe_options, _run_recipe),
    Verb("prepare", "encode a dataset once, for training", _recipe_options, _run_recipe),
    Verb("mine", "make pairs and prompts worth learning from", _mine_options, _run_mine),
    Verb("eval", "score models on a benchmark: draw, judge, score, report", _recipe_options, _run_recipe),
    Verb("curate", "make a training set out of raw pictures and pairs", _recipe_options, _run_recipe),
    Verb("edit", "edit an image with a trained model", _edit_options, _run_edit),
    Verb("serve", "open a local page to try a model or a run's checkpoints", _serve_options, _run_serve),
    Verb("export", "write a run as a diffusers folder or LoRA files", _export_options, _run_export),
    Verb("average", "average a run's last checkpoints into one", _average_options, _run_average),
    Verb("recipes", "list the shipped recipes, or copy one", _recipes_options, _run_recipes),
    Verb("check", "hold recipes, data and environment against what they need", _check_options, _run_check),
)
