"""A function in a process of its own, which can have processes of its own and can be killed."""

import multiprocessing
import signal


def started(function, *args, **options):
    """Start a function of a module, and return its process."""
    context = multiprocessing.get_context("forkserver")
    process = context.Process(target=function, args=args, kwargs=options)
    process.start()
    return process


def kill(process):
    """Kill a process as `kill -9` does, and return whether it was at work."""
    process.kill()
    process.join()
    return process.exitcode == -signal.SIGKILL
