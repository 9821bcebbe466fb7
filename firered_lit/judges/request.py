"""A question to a chat model, exactly as it is sent."""

import base64
import hashlib
import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any


@dataclass(frozen=True)
class MessagePicture:
    """A picture among a message's parts.

    Args:
        data: the file, which is sent as it is.
        mime: what the request calls it; nothing checks that the file is one.
        detail: OpenAI's `detail` of a picture; None sends none.
    """

    data: bytes
    mime: str = "image/png"
    detail: str | None = None

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the file."""
        return hashlib.sha256(self.data).hexdigest()

    def label(self) -> str:
        """Return what stands for the data URL where a request is hashed or written down."""
        return f"{self.mime};sha256,{self.digest}"


Part = str | MessagePicture | Mapping[str, Any]  # text, a picture, or a part of a message as the server takes it


@dataclass(frozen=True)
class ChatRequest:
    """One chat completion. What is not named here is not sent.

    Args:
        model: the name that the server knows the model by.
        messages: role and content of each. A content is text or a list of `Part`, in the order that the model sees.
        settings: everything else of the body, such as temperature, max_tokens, seed.
        repeat: not sent. Tells equal questions apart that are asked several times.
        facts: not sent. What the caller wants to find in the log beside the answer.
    """

    model: str
    messages: Sequence[Mapping[str, Any]]
    settings: Mapping[str, Any] = field(default_factory=dict)
    repeat: int = 0
    facts: Mapping[str, Any] = field(default_factory=dict)

    def body(self) -> bytes:
        """Return the JSON that is sent.

        Pictures are put into the finished text: base64 has nothing that JSON would escape, and looking for it in
        megabytes takes longer than all the rest.
        """
        pictures: list[MessagePicture] = []
        mark = f"picture {secrets.token_hex(16)}"

        def marked(picture: MessagePicture) -> str:
            pictures.append(picture)
            return f"data:{picture.mime};base64,{mark}"

        text = _utf8(json.dumps(self._content(marked), ensure_ascii=False))
        pieces = text.split(mark.encode())
        parts = [pieces[0]]
        for picture, piece in zip(pictures, pieces[1:], strict=True):
            parts.append(base64.b64encode(picture.data))
            parts.append(piece)
        return b"".join(parts)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of what is sent, each picture by its own hash, whatever the order of the settings."""
        text = json.dumps(self._content(MessagePicture.label), sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(_utf8(text)).hexdigest()

    @cached_property
    def prompt_digest(self) -> str:
        """SHA-256 of the words of all messages, in their order."""
        return hashlib.sha256(_utf8("\n".join(self._words()))).hexdigest()

    @property
    def size(self) -> int:
        """About how many bytes the body has: pictures grow by a third."""
        return sum(len(picture.data) for picture in self.pictures) * 4 // 3 + sum(map(len, self._words()))

    @property
    def pictures(self) -> list[MessagePicture]:
        """The pictures of all messages, in their order."""
        return [part for message in self.messages for part in _parts(message) if isinstance(part, MessagePicture)]

    def _content(self, shown: Callable[[MessagePicture], str]) -> dict[str, Any]:
        """The body, with what `shown` makes of a picture in its place."""
        messages = [dict(message) | {"content": _content_of(message, shown)} for message in self.messages]
        return {"model": self.model, "messages": messages, **self.settings}

    def _words(self) -> list[str]:
        words = []
        for message in self.messages:
            for part in _parts(message):
                if isinstance(part, str):
                    words.append(part)
                elif isinstance(part, Mapping) and isinstance(part.get("text"), str):
                    words.append(part["text"])
        return words


def user(*parts: Part) -> dict[str, Any]:
    """Return one user's message of these parts, in this order."""
    return {"role": "user", "content": list(parts)}


def _utf8(text: str) -> bytes:
    """Return a text's bytes; half of a surrogate pair is escaped as JSON does."""
    return text.encode("utf-8", "backslashreplace")


def _parts(message: Mapping[str, Any]) -> Sequence[Part]:
    content = message["content"]
    return [content] if isinstance(content, str) else content


def _content_of(message: Mapping[str, Any], shown: Callable[[MessagePicture], str]) -> Any:
    """A message's content as the server takes it."""
    content = message["content"]
    if isinstance(content, str):
        return content
    return [_part(part, shown) for part in content]


def _part(part: Part, shown: Callable[[MessagePicture], str]) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    if isinstance(part, MessagePicture):
        image = {"url": shown(part)}
        if part.detail is not None:
            image["detail"] = part.detail
        return {"type": "image_url", "image_url": image}
    return dict(part)
