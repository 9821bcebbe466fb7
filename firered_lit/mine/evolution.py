"""Instruction evolution: from atomic requests to compound ones, written by a vision-language model, checked by rule."""

import io
import json
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Protocol

from PIL import Image

from ..draws import chooser
from ..errors import UserError
from ..files import replacing
from .compound import Compound, Invalid, compound, template
from .ledger import AGAIN
from .request import relative_to
from .run import Line, Wanted

EVOLVED, MANIFEST = "evolved.jsonl", "manifest.jsonl"
Item = tuple[Line, list[Image.Image]]


class Writer(Protocol):
    """A vision-language model that writes, from several threads: the judge's own, see `callbacks.judge.server`."""

    name: str
    version: str
    temperature: float
    parallel: int  # questions it may be asked at once

    def say(self, text: str, pictures: tuple[bytes, ...], *key: object) -> str:
        """Answer a question about PNG pictures; `key` tells one answer from another. Raises when there is none."""
        ...


class EvolutionRequests(Protocol):
    """Requests with their source images, by number. One that cannot be used is a line with `refused`."""

    def __len__(self) -> int: ...

    def made_from(self) -> Line: ...

    def items(self, wanted: Wanted) -> Iterator[tuple[int, Item]]: ...


class Evolution:
    """Every atomic request made one of `least` to `most` operations, drawn by its id. FireRed (2602.13344), 3.6.

    The prompt is `evolve.txt`.

    Args:
        requests: a table of any layout.
        writer: `callbacks.judge.server.Server` or `callbacks.judge.local.LocalVLM`.
        least, most: operations of a compound request, at least 2.
        tries: questions for one request, at least 1, until an answer is one that `compound.compound` takes.
        seed: of the number of operations, and of the writer's answers.

    Writes evolved.jsonl in the layout of prompts (`image`, `prompt`, `requirement`), which preference mining reads with
    the pictures made for it, and manifest.jsonl with every answer's fate.
    """

    unit = "request"

    def __init__(
        self, requests: EvolutionRequests, writer: Writer, least: int = 2, most: int = 3, tries: int = 2, seed: int = 0
    ) -> None:
        if not 2 <= least <= most or tries < 1:
            raise UserError(f"task: least={least} most={most} tries={tries}: 2 <= least <= most, and tries at least 1")
        self.requests = requests
        self.writer = writer
        self.prompt = template()
        self.least = least
        self.most = most
        self.tries = tries
        self.seed = seed
        self.ahead = 2 * writer.parallel
        self.pool = ThreadPoolExecutor(writer.parallel, thread_name_prefix="writer")

    def made_from(self) -> Line:
        return {
            "kind": "evolution",
            **self.requests.made_from(),
            "prompt": self.prompt.digest,
            "least": self.least,
            "most": self.most,
            "tries": self.tries,
            "writer_version": self.writer.version,
            "temperature": self.writer.temperature,
            "seed": self.seed,
        }

    def __len__(self) -> int:
        return len(self.requests)

    def open(self, folder: Path) -> None:
        """Nothing to load."""

    def items(self, wanted: Wanted) -> Iterator[tuple[int, Item]]:
        return self.requests.items(wanted)

    def begin(self, item: Item) -> tuple[Line, "Future[Line] | None"]:
        line, pictures = item
        if "refused" not in line and not pictures:
            line = line | {"refused": "no source image"}
        if "refused" in line:
            return line, None
        return line, self.pool.submit(self._write, line, tuple(map(_png, pictures)))

    def finish(self, begun: tuple[Line, "Future[Line] | None"]) -> Line:
        line, future = begun
        if future is None:
            return line
        try:
            return line | future.result()
        except UserError:
            raise
        except Exception as problem:  # a server may fail in any way
            return line | {"unanswered": " ".join(f"{type(problem).__name__}: {problem}".split()), AGAIN: True}

    def _write(self, line: Line, pictures: tuple[bytes, ...]) -> Line:
        """Return the compound request, or why every try was refused. Runs in the pool."""
        atomic = line.get("instruction") or line.get("instruction_cn") or ""
        operations = chooser(self.seed, "evolve", line["id"]).randint(self.least, self.most)
        question = self.prompt.ask(atomic, operations, len(pictures))
        reasons: list[str] = []
        for attempt in range(self.tries):
            answer = self.writer.say(question, pictures, self.seed, line["id"], attempt)
            try:
                made = compound(answer, atomic, operations, len(pictures))
            except Invalid as problem:
                reasons.append(str(problem))
            else:
                return {"compound": asdict(made), "reasons": reasons}
        return {"reasons": reasons, "refused": reasons[-1]}

    def conclude(self, lines: Callable[[], Iterator[Line]], folder: Path) -> list[str]:
        """Write the manifest, and the rows of the compound requests."""
        evolved = 0
        unanswered = 0
        reasons = Counter[str]()
        with replacing(folder / MANIFEST) as manifest, replacing(folder / EVOLVED) as table:
            for line in lines():
                line.pop(AGAIN, None)
                manifest.write(json.dumps(line, ensure_ascii=False) + "\n")
                reasons.update(_reasons(line))
                if "unanswered" in line:
                    unanswered += 1
                if "compound" in line:
                    evolved += 1
                    table.write(json.dumps(self._row(line, folder), ensure_ascii=False) + "\n")

        report = [f"evolved  {evolved:>8} of {len(self)} requests"]
        report += [f"refused  {count:>8} {why}" for why, count in reasons.most_common()]
        if unanswered:
            report.append(f"no answer{unanswered:>8} requests; run again to ask for them")
        return report

    def _row(self, line: Line, folder: Path) -> Line:
        """Return a row of evolved.jsonl. Paths are relative to the folder, URLs as they are."""
        made = Compound(**line["compound"])
        images = [relative_to(folder, path) for path in line["source_image"]]
        return {
            "id": f"{line['id']}.compound",
            "task": "compound",
            "image": images or None,
            "prompt": made.instruction,
            "requirement": "; ".join(made.operations),
            "atomic": line["id"],
            "operations": list(made.operations),
            "written_by": self.writer.version,
            "prompt_version": self.prompt.version,
            "prompt_hash": self.prompt.digest,
        }

    def close(self) -> None:
        close = getattr(self.writer, "close", None)
        if close is not None:
            close()
        self.pool.shutdown(cancel_futures=True)


def _reasons(line: Line) -> list[str]:
    """Return why answers to a request were refused, or why it was not asked at all."""
    if "reasons" in line:
        return line["reasons"]
    if "refused" in line:
        return [line["refused"]]
    return []


def _png(image: Image.Image) -> bytes:
    """Return a picture as a PNG file."""
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=1)
    return file.getvalue()
