"""A row that is left out, and why."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Refusal:
    """A row that is left out: where, which field, its category for counting, and a line for the person who mends it."""

    where: str
    field: str
    reason: str
    detail: str

    def __str__(self) -> str:
        return f"{self.where}: {self.field}: {self.detail}"


class Refuse(Exception):  # noqa: N818, it carries a refusal, it is no fault
    """A row that cannot be used: its field, the category for counting, and a line for the person who mends it."""

    def __init__(self, field: str, reason: str, detail: str) -> None:
        self.args = (field, reason, detail)
