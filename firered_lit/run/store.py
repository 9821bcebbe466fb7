"""The address of a run's MLflow store, and `run.json` in the run's folder. Imports no MLflow."""

import fcntl
import os
import shlex
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from firered_lit.errors import UserError
from firered_lit.files import write_json
from firered_lit.textfiles import read_object

RECORD = "run.json"
_ENTRIES = {
    **dict.fromkeys(("stage", "base", "base_folder", "revision", "mlflow_run_id", "mlflow_uri"), str),
    **dict.fromkeys(("sizes", "data"), dict),
}
_CREDENTIALS = ("MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")
_OPTIONS = ("charset", "driver", "encrypt", "sslmode", "trustservercertificate")  # of a database's address


def store_uri(uri: str | None, folder: Path, name: str = "logger.uri") -> str:
    """Return the address of the store, absolute.

    Args:
        uri: as the recipe gives it; None for the default one.
        folder: holds the default store.
        name: of the address in the recipe, for messages.

    Raises:
        UserError: neither a SQLite file, another database, nor a server; a server that would get credentials of the
            environment that are not meant for it; a database with options that load or read files.
    """
    if uri is None:
        return f"sqlite:///{folder.resolve() / 'mlflow.db'}"
    scheme = urlsplit(uri).scheme
    if scheme == "sqlite":
        return f"sqlite:///{Path(uri.removeprefix('sqlite:///')).resolve()}"
    if scheme.split("+")[0] not in ("http", "https", "postgresql", "mysql", "mssql", "databricks"):
        raise UserError(f"{name}={uri}: give sqlite:///FILE, a database or http(s)://SERVER")
    if scheme in ("http", "https"):
        _refuse_to_send_credentials(uri, name)
    elif strange := _strange_options(uri):
        raise UserError(f"{name}={uri}: the option {strange} is not for a recipe; allowed are {', '.join(_OPTIONS)}")
    return uri


def _refuse_to_send_credentials(uri: str, name: str) -> None:
    """Refuse a server that the credentials in the environment are not meant for: MLflow would send them to it.

    Raises:
        UserError: there are some, and MLFLOW_TRACKING_URI does not name this server.
    """
    held = [name for name in _CREDENTIALS if os.environ.get(name)]
    meant = os.environ.get("MLFLOW_TRACKING_URI", "")
    if held and meant.rstrip("/") != uri.rstrip("/"):
        raise UserError(
            f"{name}={uri}: MLflow would send {held[0]} there; if that is meant, set MLFLOW_TRACKING_URI={uri} too"
        )


def _strange_options(uri: str) -> str:
    """Return the first option of a database's address that may load a library or read a file; nothing without one."""
    for name, value in parse_qsl(urlsplit(uri).query, keep_blank_values=True):
        if name.lower() not in _OPTIONS or "/" in value or "\\" in value:
            return f"{name}={value}"
    return ""


def artifacts_of(uri: str) -> str | None:
    """Return the artifact folder of a local store, beside its database. A server decides for itself."""
    if not uri.startswith("sqlite:///"):
        return None
    return (Path(uri.removeprefix("sqlite:///")).parent / "mlflow-artifacts").as_uri()


def ui_command(uri: str) -> str:
    """The command that shows the runs of a local store; for a server, its address."""
    if urlsplit(uri).scheme in ("http", "https"):
        return uri
    command = "mlflow" if shutil.which("mlflow") else f"{shlex.quote(sys.executable)} -m mlflow"
    return f"{command} ui --backend-store-uri {shlex.quote(uri)}"


@contextmanager
def alone(uri: str) -> Iterator[None]:
    """One process at a time while a SQLite store is opened: the first one makes its tables."""
    if not uri.startswith("sqlite:///"):
        yield
        return
    database = Path(uri.removeprefix("sqlite:///"))
    database.parent.mkdir(parents=True, exist_ok=True)
    with database.with_name(f".{database.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def read_record(run_dir: Path) -> dict[str, Any]:
    """Return what `run.json` holds; nothing when it is not there.

    Raises:
        UserError: it is damaged, or an entry is of another type than what is written there.
    """
    path = run_dir / RECORD
    record = read_object(path) if path.exists() else {}
    for name, kind in _ENTRIES.items():
        value = record.get(name)
        if value is not None and not isinstance(value, kind):
            raise UserError(f"{path}: damaged: {name}: expected a {kind.__name__}, got {value!r}")
    return record


def update_record(run_dir: Path, **entries: Any) -> None:
    """Set entries of `run.json`, keeping the others; atomic."""
    write_json(run_dir / RECORD, read_record(run_dir) | entries)
