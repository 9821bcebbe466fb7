"""The model and the settings of a request: those of the official script, replaced or joined by a user's."""

from collections.abc import Mapping
from typing import Any

from ..protocols import Asking


def model_of(asking: Asking, official: str) -> str:
    """Return the name that the server knows the judge by."""
    return asking.model or official


def settings_of(asking: Asking, official: Mapping[str, Any]) -> dict[str, Any]:
    """Return the official settings with the user's in their place; one that the user sets to None is not sent."""
    merged = {**official, **asking.settings}
    return {name: value for name, value in merged.items() if value is not None}
