"""A server that edits pictures: `POST {url}/images/edits`, as OpenAI's interface has it."""

import asyncio
import base64
import io
import json
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from firered_lit.config.api_keys import KeyVariable
from firered_lit.errors import UserError
from firered_lit.evaluation.models import fingerprints
from firered_lit.evaluation.protocols import Item
from firered_lit.judges.address import ServerAddress
from firered_lit.judges.client import PASSING, retry_after
from firered_lit.judges.reply import one_line

if TYPE_CHECKING:
    from PIL import Image

LARGEST = 1 << 28  # bytes of one answer


class PassingError(Exception):
    """The error of a try after which another one may succeed.

    Args:
        reason: In one line.
        wait: Seconds that the server asks to wait; None where it does not say.
    """

    def __init__(self, reason: str, wait: float | None = None) -> None:
        super().__init__(reason)
        self.wait = wait


class ServerModel:
    """Draw on a server with OpenAI's `images/edits`. Redirects are never followed, and no address in an answer is.

    Args:
        url: As http://localhost:8000/v1.
        name: The name that the server knows the model by.
        key_variable: Environment variable that holds the key, where the server wants one; its name ends in _API_KEY.
        fields: More fields of the form, as {size: auto, num_inference_steps: 40}; plain values.
        send_seed: Send the field `seed`.
        parallel: Requests under way at once.
        timeout: Seconds that one try may take.
        retries: Tries after the first.
        backoff: Seconds before the second try; twice as long before each later one.
        longest_wait: Seconds, at most, that a `Retry-After` is waited for.

    Raises:
        UserError: The URL is none, or carries a password.
    """

    def __init__(
        self,
        url: str,
        name: str,
        key_variable: KeyVariable = "OPENAI_API_KEY",
        fields: Mapping[str, Any] | None = None,
        send_seed: bool = True,
        parallel: int = 4,
        timeout: float = 300.0,
        retries: int = 3,
        backoff: float = 2.0,
        longest_wait: float = 120.0,
    ) -> None:
        self.address = ServerAddress.of(url, key_variable)
        self.name = name
        self.fields = dict(fields or {})
        self.send_seed = send_seed
        self.parallel = parallel
        self.timeout = timeout
        self.retries = retries
        self.backoff = backoff
        self.longest_wait = longest_wait

    def fingerprint(self) -> str:
        """Return a hash of the address, the model's name and the fields; what the server does with them is its own."""
        return fingerprints.of_settings(
            kind="server", url=self.address.url, name=self.name, fields=self.fields, seed=self.send_seed
        )

    def draw(self, item: Item, sources: "Sequence[Image.Image]", seed: int) -> bytes:
        """Return the file that the server answers with.

        Raises:
            UserError: It declines, or gives no picture after the last try.
        """
        return asyncio.run(self._draw(item.instruction, sources, seed))

    def close(self) -> None:
        """Nothing is open: each picture has a connection of its own."""

    async def _draw(self, prompt: str, sources: "Sequence[Image.Image]", seed: int) -> bytes:
        for tries in range(self.retries + 1):
            try:
                return await self._try(prompt, sources, seed)
            except PassingError as problem:
                if tries == self.retries:
                    raise UserError(f"{self.address.url}: {problem}, after {tries + 1} tries") from None
                wait = self.backoff * 2**tries
                if problem.wait is not None:
                    wait = max(wait, min(problem.wait, self.longest_wait))
                await asyncio.sleep(wait)
        raise AssertionError("unreachable")

    async def _try(self, prompt: str, sources: "Sequence[Image.Image]", seed: int) -> bytes:
        import aiohttp

        form = aiohttp.FormData(default_to_multipart=True)
        form.add_field("model", self.name)
        form.add_field("prompt", prompt)
        form.add_field("n", "1")
        form.add_field("response_format", "b64_json")
        if self.send_seed:
            form.add_field("seed", str(seed))
        for name, value in self.fields.items():
            form.add_field(name, value if isinstance(value, str) else json.dumps(value))
        field = "image" if len(sources) == 1 else "image[]"
        for number, source in enumerate(sources):
            file = io.BytesIO()
            source.save(file, "PNG")
            form.add_field(field, file.getvalue(), filename=f"image-{number}.png", content_type="image/png")

        headers = {} if self.address.key is None else {"Authorization": f"Bearer {self.address.key}"}
        patience = aiohttp.ClientTimeout(total=self.timeout)
        try:
            async with aiohttp.ClientSession(timeout=patience, headers=headers) as session:
                target = f"{self.address.url}/images/edits"
                async with session.post(target, data=form, proxy=self.address.proxy, allow_redirects=False) as response:
                    body = bytearray()
                    async for piece in response.content.iter_any():
                        body += piece
                        if len(body) > LARGEST:
                            break
                    return self._picture(response.status, response.headers.get("Retry-After"), bytes(body))
        except TimeoutError:
            raise PassingError(f"no answer in {self.timeout:g} s") from None
        except (aiohttp.ClientError, OSError) as problem:
            raise PassingError(one_line(f"{type(problem).__name__} {problem}")) from None

    def _picture(self, status: int, later: str | None, body: bytes) -> bytes:
        """Return the picture in an answer.

        Args:
            status: Of HTTP.
            later: The header `Retry-After`.
            body: The answer.

        Raises:
            PassingError: Another try may give one.
            UserError: None would.
        """
        if status in PASSING or status >= 500:
            raise PassingError(f"HTTP {status}", retry_after(later, time.time()))
        if status != 200:
            raise UserError(f"{self.address.url}: HTTP {status}: {one_line(body.decode(errors='replace'))}")
        if len(body) > LARGEST:
            raise UserError(f"{self.address.url}: an answer of more than {LARGEST >> 20} MB")
        try:
            encoded = json.loads(body)["data"][0].get("b64_json")
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
            raise PassingError("an answer of another form") from None
        if not isinstance(encoded, str):
            raise UserError(f"{self.address.url}: an answer without b64_json; addresses of pictures are not followed")
        try:
            return base64.b64decode(encoded, validate=True)
        except ValueError:
            raise PassingError("an answer that is no base64") from None
