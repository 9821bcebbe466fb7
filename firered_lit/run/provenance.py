"""The versions that made a run: the state of the code and the installed packages."""

import subprocess
from importlib.metadata import distributions
from pathlib import Path


def git_state(folder: Path) -> dict[str, str]:
    """Commit, branch and whether files differ from it, of the checkout that tracks `folder`; nothing outside of one."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", "-C", folder, *arguments], capture_output=True, text=True, timeout=20, check=True)
        return done.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", ".")
        dirty = bool(git("status", "--porcelain", "--untracked-files=no"))
        commit, branch = git("rev-parse", "HEAD"), git("rev-parse", "--abbrev-ref", "HEAD")
    except (OSError, subprocess.SubprocessError):
        return {}
    return {"git.commit": commit, "git.branch": branch, "git.dirty": str(dirty).lower()}


def packages() -> dict[str, str]:
    """Every installed distribution and its version."""
    return dict(sorted((d.metadata["Name"], d.version) for d in distributions() if d.metadata["Name"]))
