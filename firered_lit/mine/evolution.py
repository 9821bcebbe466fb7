"""Instruction evolution: from atomic requests to compound ones, written by a vision-language model, checked by rule."""

import io
import json
import os
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
from .run import Line, Wanted

EVOLVED, MANIFEST = "evolved.jsonl", "manifest.jsonl"
Item = tuple[Line, list[Image.Image]]


class Writer(Protocol):
    """A vision-language model that writes, from several threads: the judge's own, see `callbacks.judge_server`."""

    name: str
    version: str
    temperature: float
    parallel: int  # questions it may be asked at once

    def say(self, text: str, pictures: tuple[bytes, ...], *key: object) -> str:
        """Answer a question about PNG pictures; `key` tells one answer from another. Raises when there is none."""
        ...


class Requests(Protocol):
    """Requests with their source images, by number. One that cannot be used is a line with `refused`."""

    def __len__(self) -> int: ...

    def made_from(self) -> Line: ...

    def items(self, wanted: Wanted) -> Iterator[tuple[int, Item]]: ...


class Evolution:
    """Every atomic request made one of `least` to `most` operations, drawn by its id. FireRed (2602.13344), 3.6.

    requests: a table of any layout. writer: `callbacks.judge_server.Server` or `callbacks.judge_local.LocalVLM`. tries:
    how often an answer that `compound.compound` refuses is asked for again. The prompt is `evolve.txt`.

    Writes evolved.jsonl in the layout of prompts (`image`, `prompt`, `requirement`), which preference mining reads with
    the pictures made for it, and manifest.jsonl with every answer's fate.
    """

    unit = "request"

    def __init__(
        self, requests: Requests, writer: Writer, least: int = 2, most: int = 3, tries: int = 2, seed: int = 0
    ) -> None:
        if not 2 <= least <= most or tries < 1:
            raise UserError(f"task: least={least} most={most} tries={tries}: 2 <= least <= most, and tries at least 1")
        self.requests, self.writer, self.prompt = requests, writer, template()
        self.least, self.most, self.tries, self.seed = least, most, tries, seed
        self.ahead = 2 * writer.parallel
        self.pool = ThreadPoolExecutor(writer.parallel, thread_name_prefix="writer")

    def made_from(self) -> Line:
        asked = {"prompt": self.prompt.digest, "least": self.least, "most": self.most, "tries": self.tries}
        who = {"writer_version": self.writer.version, "temperature": self.writer.temperature, "seed": self.seed}
        return {"kind": "evolution"} | self.requests.made_from() | asked | who

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
        """In the pool. The compound request, or why every try was refused."""
        atomic = line.get("instruction") or line.get("instruction_cn") or ""
        operations = chooser(self.seed, "evolve", line["id"]).randint(self.least, self.most)
        question, reasons = self.prompt.ask(atomic, operations, len(pictures)), []
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
        """The manifest, and the rows of what was taken."""
        made, reasons, unanswered = 0, Counter[str](), 0
        with replacing(folder / MANIFEST) as manifest, replacing(folder / EVOLVED) as table:
            for line in lines():
                line.pop(AGAIN, None)
                manifest.write(json.dumps(line, ensure_ascii=False) + "\n")
                unanswered += "unanswered" in line
                reasons.update(line.get("reasons", [line["refused"]] if "refused" in line else []))
                if "compound" in line:
                    made += 1
                    table.write(json.dumps(self._row(line, folder), ensure_ascii=False) + "\n")
        said = [f"evolved  {made:>8} of {len(self)} requests"]
        said += [f"refused  {count:>8} {why}" for why, count in reasons.most_common()]
        if unanswered:
            said.append(f"no answer{unanswered:>8} requests; run again to ask for them")
        return said

    def _row(self, line: Line, folder: Path) -> Line:
        """A row of evolved.jsonl."""
        made = Compound(**line["compound"])
        images = [path if "://" in path else os.path.relpath(path, folder) for path in line["source_image"]]
        row = {"id": f"{line['id']}.compound", "task": "compound", "image": images or None, "prompt": made.instruction}
        row["requirement"] = "; ".join(made.operations)
        row |= {"atomic": line["id"], "operations": list(made.operations), "written_by": self.writer.version}
        return row | {"prompt_version": self.prompt.version, "prompt_hash": self.prompt.digest}

    def close(self) -> None:
        getattr(self.writer, "close", lambda: None)()
        self.pool.shutdown(cancel_futures=True)


def _png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=1)
    return file.getvalue()
