"""The facts of one sample: made from its row, stored beside its tensors, read by stages, rewards and grids."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Facts:
    """What is known of one sample beside its pictures. A text that is not known is empty.

    Args:
        id: Id of its record.
        task: Kind of edit.
        instruction: Text that the sample shows in this batch; empty where it was dropped.
        target_text: Words that the target should show.
        replaced_text: Words of the first source whose place those take.
        requirement: Criteria that a judge is given.
        cluster: Group of similar samples, for sampling weights.
        layout: Where the target's words stand on a picture, as JSON holds it; None where `prepare` has not read it.
        order: Number, from 1, of the row's reference that stands at each place; () when all stand at their own.
    """

    id: str
    task: str = ""
    instruction: str = ""
    target_text: str = ""
    replaced_text: str = ""
    requirement: str = ""
    cluster: str = ""
    layout: Mapping[str, Any] | None = None
    order: tuple[int, ...] = ()

    def columns(self) -> dict[str, str]:
        """Return the facts that a row states in columns of the same name, without those that are not known.

        Id, task and instruction are not among them.
        """
        named = {
            "target_text": self.target_text,
            "replaced_text": self.replaced_text,
            "requirement": self.requirement,
            "cluster": self.cluster,
        }
        return {column: text for column, text in named.items() if text}


def to_meta(facts: Facts) -> dict[str, Any]:
    """Return facts as the JSON `meta` of a stored sample has them.

    The id is stored beside `meta`. The instruction is not stored: each visit chooses one of the sample's instructions.
    """
    meta: dict[str, Any] = {
        "task": facts.task,
        "cluster": facts.cluster,
        "target_text": facts.target_text,
    }

    # Facts that few samples have.
    if facts.replaced_text:
        meta["replaced_text"] = facts.replaced_text
    if facts.requirement:
        meta["requirement"] = facts.requirement
    if facts.order:
        meta["order"] = facts.order
    if facts.layout:
        meta["text_layout"] = facts.layout
    return meta


def from_meta(id: str, meta: Mapping[str, Any]) -> Facts:
    """Return the facts of a stored sample, which shows no instruction yet.

    Args:
        id: Id of the sample.
        meta: Its JSON, of this version or an earlier one.
    """
    return Facts(
        id=id,
        task=meta["task"],
        target_text=meta.get("target_text") or "",
        replaced_text=meta.get("replaced_text") or "",
        requirement=meta.get("requirement") or "",
        cluster=meta.get("cluster") or "",
        layout=meta.get("text_layout"),
        order=tuple(meta.get("order") or ()),
    )
