"""Models of the Hugging Face hub: which repository and commit, and only those files that are needed."""

import re
from pathlib import Path
from typing import NamedTuple

from ..errors import UserError, first_line

# What is downloaded of every part: configs, tokenizers, indices of weights, and the model card.
CONFIGS = ("*.json", "*.txt", "*.jinja", "README.md")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


class Snapshot(NamedTuple):
    """One commit of a repository, in the hub's cache.

    folder: its files, those that are here by now.
    """

    repository: str
    commit: str
    folder: Path

    def __str__(self) -> str:
        return f"{self.repository}@{self.commit}"


def parse(name: str) -> tuple[str, str | None] | None:
    """Return the repository and the revision of `owner/name` or `owner/name@revision`; None of anything else."""
    repository, at, revision = name.partition("@")
    if not _REPOSITORY.fullmatch(repository) or repository.startswith(("./", "../", "~")) or (at and not revision):
        return None
    return repository, revision or None


def snapshot_of(folder: Path) -> Snapshot | None:
    """Return what a folder of the hub's cache is of: .../models--owner--name/snapshots/COMMIT; None of any other."""
    store = folder.parent.parent.name
    if folder.parent.name != "snapshots" or not store.startswith("models--") or not _COMMIT.fullmatch(folder.name):
        return None
    return Snapshot(store.removeprefix("models--").replace("--", "/", 1), folder.name, folder)


def download_configs(name: str) -> Path:
    """Download all of a model but its weights, and return the folder of its commit.

    Args:
        name: `owner/name` or `owner/name@revision`; the revision is a branch, a tag or a commit.

    Raises:
        UserError: the hub does not give it, and it is not in the cache.
    """
    found = parse(name)
    if found is None:
        raise UserError(f"{name}: no such folder, and not a hub id (owner/name or owner/name@revision)")
    repository, revision = found
    return _download(name, repository, revision, None, CONFIGS)


def download_part(snapshot: Snapshot, part: str) -> None:
    """Download one component of a model, of the same commit as what is here of it.

    Raises:
        UserError: the hub does not give it.
    """
    cache = snapshot.folder.parents[2]
    _download(str(snapshot), snapshot.repository, snapshot.commit, cache, (f"{part}/*",))


def _download(name: str, repository: str, revision: str | None, cache: Path | None, patterns: tuple[str, ...]) -> Path:
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(
            repository,
            revision=revision,
            cache_dir=cache,
            allow_patterns=list(patterns),
            ignore_patterns=["*.bin", "*.pt", "*.ckpt"],
        )
    except Exception as problem:  # of the hub, the network, the cache or the name
        reason = first_line(problem)
        raise UserError(f"{name}: no folder of that name here, and the hub does not give it: {reason}") from problem
    return Path(folder)
