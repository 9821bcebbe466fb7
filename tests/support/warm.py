"""Processes without the seconds that imports take: they are forked from a server that has imported the libraries.

Each has its own environment, folder, output and signals, and can be killed, as if it had been started by itself.
"""

import gc
import multiprocessing
import os
import runpy
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lightning_utilities.core.rank_zero import rank_zero_only

LIBRARIES = [  # of the server: what a training, an export and a notebook import
    *("torch._dynamo", "torch.distributed.fsdp", "lightning", "peft", "mlflow.tracking", "matplotlib.pyplot"),
    "diffusers.pipelines.qwenimage.pipeline_qwenimage_edit_plus",
    *("transformers.models.qwen2_5_vl.modeling_qwen2_5_vl", "transformers.models.qwen2_5_vl.processing_qwen2_5_vl"),
    *("firered_lit.training", "firered_lit.run.tracking", "firered_lit.exporting", "firered_lit.stages.nft"),
    *("datamodules.edits", "datamodules.prepare.write", "callbacks.grids.sample_grid", "callbacks.signals"),
]


class Started:
    """A function in a process of its own, which is handled as a `subprocess.Popen` is.

    Args:
        function: Of a module that can be imported; its SystemExit is the exit code.
        args: The function's.
        log: The file to which stdout and stderr are appended.
        environment: All variables of the process; those of this one by default.
        folder: Its working folder; that of this process by default.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        *args: Any,
        log: Path,
        environment: Mapping[str, str] | None = None,
        folder: Path | None = None,
    ) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(LIBRARIES)  # heeded by a server that does not run yet
        given = (function, args, log, dict(environment or os.environ), folder or Path.cwd())
        self.process = context.Process(target=_run, args=given)
        self.process.start()
        self.pid = self.process.pid
        self.args = (function.__name__, *args)

    @property
    def returncode(self) -> int | None:
        return self.process.exitcode

    def poll(self) -> int | None:
        return self.process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self.process.join(timeout)
        code = self.process.exitcode
        if code is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.process.kill()

    def __enter__(self) -> "Started":
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self.wait()


def _run(function: Callable[..., Any], args: tuple[Any, ...], log: Path, environment: dict, folder: Path) -> None:
    """Call the function in the forked process, set up as given."""
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    gc.freeze()  # what the server has imported is never garbage
    multiprocessing.set_start_method(None, force=True)  # its own processes start as they do elsewhere
    if environment.get("PYTHONWARNINGS") == "ignore":  # which Python reads as it starts
        warnings.simplefilter("ignore")
    if "RANK" in environment:  # which Lightning reads as it is imported
        rank_zero_only.rank = int(environment["RANK"])
    function(*args)


def module(name: str, *arguments: str) -> None:
    """Do what `python -m NAME ARGUMENTS` does."""
    sys.argv = [name, *arguments]
    runpy.run_module(name, run_name="__main__", alter_sys=True)


def script(path: Path, *arguments: str) -> None:
    """Do what `python PATH ARGUMENTS` does."""
    sys.argv = [str(path), *arguments]
    sys.path.insert(0, str(path.parent))
    runpy.run_path(str(path), run_name="__main__")


def inline(lines: str, *arguments: str) -> None:
    """Do what `python -c LINES ARGUMENTS` does."""
    sys.argv = ["-c", *arguments]
    exec(compile(lines, "<string>", "exec"), {"__name__": "__main__"})


def ranks(count: int, function: Callable[..., Any], *args: Any, log: Path, timeout: float, **options: Any) -> int:
    """Call a function in each of `count` processes that torchrun's variables describe, and return the exit code.

    One that fails ends the others. `options` are those of `Started`.
    """
    environment = dict(options.pop("environment", os.environ))
    environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "TORCHELASTIC_RUN_ID": "none"}
    environment |= {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "GROUP_RANK": "0"}
    processes = []
    for rank in range(count):
        own = environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        processes.append(Started(function, *args, log=log, environment=own, **options))
    end = time.monotonic() + timeout
    try:
        while True:
            codes = [process.poll() for process in processes]
            failed = next((code for code in codes if code), None)
            if failed is not None:
                return failed
            if None not in codes:
                return 0
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired(processes[0].args, timeout)
            time.sleep(0.02)
    finally:
        for process in processes:
            process.kill()


def free_port() -> int:
    """Return a port on which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
