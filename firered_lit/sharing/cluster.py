"""A function over items, spread over a Ray cluster by Daft: an item whose worker died is given to another one."""

import os
import pickle
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from typing import Any, TypeVar

from firered_lit.errors import UserError
from firered_lit.sharing.sendable import sendable

ADDRESS = "RAY_ADDRESS"  # the environment variable that names a cluster
T = TypeVar("T")
U = TypeVar("U")


def connect(workers: int) -> int:
    """Connect to the cluster that RAY_ADDRESS names, or start a Ray on this machine; once in a process.

    Args:
        workers: Processors of a Ray that is started.

    Returns:
        The cluster's processors.

    Raises:
        UserError: Daft or Ray is not installed, or the cluster is not reached.
    """
    os.environ.setdefault("DO_NOT_TRACK", "1")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    daft, ray = _installed()
    if not ray.is_initialized():
        address = os.environ.get(ADDRESS)
        failed = f"{ADDRESS}={address}: no Ray cluster is reached there" if address else "no Ray starts here"
        try:
            if address:
                ray.init(address=address, log_to_driver=False, logging_level="ERROR")
            else:
                processors = max(1, workers)
                quiet = {"include_dashboard": False, "log_to_driver": False, "logging_level": "ERROR"}
                ray.init("local", num_cpus=processors, **quiet)
        except (ConnectionError, ValueError, RuntimeError) as problem:
            said = " ".join(str(problem).split())
            raise UserError(f"runner=ray: {failed}: {said}") from None
    daft.set_runner_ray(noop_if_initialized=True)
    return max(1, int(ray.cluster_resources().get("CPU", 1)))


def spread(function: Callable[[T], U], items: Sequence[T]) -> Iterator[U]:
    """Call a function with each item somewhere in the cluster, and yield what it returns as it comes.

    Args:
        function: Of a module that the workers find too. It may be called again with an item whose worker died.
        items: What it is called with, as many at a time as there are processors.

    Raises:
        UserError: `function` cannot be sent, or the cluster ends before the work does.
    """
    daft, _ = _installed()
    sent = sendable(function, "take runner=processes")
    paths = list(sys.path)

    def call(pickled: Any) -> list[bytes]:
        """Do it in a worker, to which this function is sent as a whole."""
        import pickle
        import sys

        sys.path.extend(path for path in paths if path not in sys.path)
        work = pickle.loads(sent)  # noqa: S301, from the command that this worker works for
        return [pickle.dumps(work(pickle.loads(item))) for item in pickled.to_pylist()]  # noqa: S301, likewise

    called = daft.func.batch(return_dtype=daft.DataType.binary())(call)
    table = daft.from_pydict({"item": [sendable(item, "take runner=processes") for item in items]})
    answers = table.into_partitions(len(items)).select(called(daft.col("item")).alias("answer"))
    try:
        for row in answers.iter_rows():
            yield pickle.loads(row["answer"])  # noqa: S301, from a worker of this command
    except UserError:
        raise
    except Exception as problem:
        said = " ".join(str(problem).split())
        raise UserError(
            f"runner=ray: the cluster ended before the work did ({said[:500]}); what is done stays, run again to go on"
        ) from problem


def _installed() -> tuple[Any, Any]:
    """Return Daft and Ray.

    Raises:
        UserError: They are not installed.
    """
    needs_cluster()
    import daft
    import ray

    return daft, ray


def needs_cluster() -> None:
    """Raise UserError where Daft and Ray are not installed."""
    if find_spec("daft") is None or find_spec("ray") is None:
        raise UserError("runner=ray needs Daft and Ray: pip install -c constraints.txt '.[cluster]'")
