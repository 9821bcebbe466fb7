"""Marks a run as failed when the process that trains it dies without a word (kill -9, out of memory).

Started by `tracking.MLflow` as a process in a session of its own: `python watchdog.py URI RUN_ID SESSION PARENT_PID`.
While it waits it holds a pipe and a few megabytes; MLflow is imported only when there is something to say.
"""

import os
import select
import signal
import sys

_LOOK = 1.0  # seconds between looks at the parent: a forked data worker may hold the pipe open longer than it lives


def wait_for_the_end(parent: int) -> bool:
    """Block until the parent says that it is done (True) or is gone (False)."""
    while True:
        ready, _, _ = select.select([sys.stdin], [], [], _LOOK)
        if ready:
            return os.read(sys.stdin.fileno(), 1) != b""
        if os.getppid() != parent:
            return False


def mark_failed(uri: str, run_id: str, session: str) -> None:
    """Set the run FAILED, unless it has ended already or another process has taken it up since."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(uri)
    run = client.get_run(run_id)
    if run.info.status == "RUNNING" and run.data.tags.get("session") == session:
        client.set_tag(run_id, "ended", "killed without a word: SIGKILL, out of memory or a crash of the machine")
        client.set_terminated(run_id, "FAILED")


def main() -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    uri, run_id, session, parent = sys.argv[1:]
    if not wait_for_the_end(int(parent)):
        mark_failed(uri, run_id, session)


if __name__ == "__main__":
    main()
