"""A judge in this process: a vision-language model of transformers, asked for the score tokens' logits themselves."""

import io
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from callbacks.judge.prompt import JudgePrompt, Question
from callbacks.judge.server import Answer, JudgeError
from firered_lit.draws import generator
from firered_lit.errors import UserError, first_line
from firered_lit.judges.reply import Kind, Reply
from firered_lit.judges.request import ChatRequest, MessagePicture
from firered_lit.models.conditioning import show
from firered_lit.models.family import open_base
from firered_lit.places import user_path
from firered_lit.rewards.judge import before_marker, expected_score

QWEN = (  # the chat form of Qwen2-VL and Qwen2.5-VL, for folders whose processor has none
    "<|im_start|>user\n{content}<|im_end|>\n<|im_start|>assistant\n",
    "<|vision_start|><|image_pad|><|vision_end|>",
)
FILES: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}  # nothing is fetched, no code is run


class LocalVLM:
    """A vision-language model from a folder; of a Qwen-Image base (or "tiny") its own text encoder.

    The folder is looked at at once, the weights are loaded when a run begins, onto the device of its process, or with
    the first question.

    Args:
        model: A folder with config.json, a diffusers folder of the Qwen-Image family, or "tiny".
        temperature: Temperature of the rationale; 0 takes the likeliest words.
        max_tokens: Tokens of the rationale, at most.
        area: Pixels that each picture is scaled to, about.
        device: Device of the model; null takes that of the process that asks, outside of a run the first GPU or CPU.
        seed: Seed of the rationales' draws, whose key also has the sample, the picture and the pass.

    Raises:
        UserError: the folder holds no vision-language model.
    """

    name = "local"
    parallel = 1

    def __init__(
        self,
        model: str,
        temperature: float = 0.7,
        max_tokens: int = 128,
        area: int = 512 * 512,
        device: str | None = None,
        seed: int = 0,
    ) -> None:
        self.version = model
        self.temperature = temperature
        self.max_tokens = max_tokens
        self.area = area
        self.seed = seed
        self.folders = _folders(model)
        self.device = None if device is None else torch.device(device)
        self._lock = threading.RLock()
        self._model: Any = None
        self._processor: Any = None

    @property
    def model(self) -> Any:
        """The model, loaded."""
        self.load()
        return self._model

    @property
    def processor(self) -> Any:
        """The model's processor."""
        self.load()
        return self._processor

    def load(self, device: torch.device | None = None) -> None:
        """Load the weights onto the recipe's device, else onto this one, else onto the first GPU or the CPU. Once.

        Raises:
            UserError: the folder's files are not those of a vision-language model.
        """
        with self._lock:
            if self._model is not None:
                return
            self.device = self.device or device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
            model, self._processor = _load(self.version, self.folders)
            self._model = model.eval().requires_grad_(False).to(self.device)

    def ask(self, question: Question, number: int) -> Answer:
        if "<|" in question.instruction:
            raise JudgeError("the instruction holds a control token")
        with self._lock:
            suffix, tokens = self.score_tokens(question.prompt)
            pictures = [show(Image.open(io.BytesIO(png)).convert("RGB"), self.area) for png in question.pictures]
            chat = self._chat(question.text, len(pictures))
            said = ""
            if question.prompt.rationale:
                words = self._generate(chat, pictures, "judge", question.sample, question.image, number)
                said = before_marker(words, question.prompt.marker).rstrip() + "\n"
            logits = self._logits(chat + said + suffix, pictures)[tokens]
        values = torch.tensor(list(question.prompt.values.values()))
        score = float(expected_score(logits, values))
        if score != score:
            raise JudgeError("its logits are no numbers")
        return Answer(said + suffix, score)

    def say(self, text: str, pictures: tuple[bytes, ...], *key: object) -> str:
        """Return words about PNG pictures, sampled by `key`."""
        if "<|" in text:
            raise JudgeError("the request holds a control token")
        with self._lock:
            shown = [show(Image.open(io.BytesIO(png)).convert("RGB"), self.area) for png in pictures]
            return self._generate(self._chat(text, len(shown)), shown, "say", *key)

    def answer(self, request: ChatRequest) -> Reply:
        """Return the words of a chat completion, its parts in their order; `top_p` and the like are not heeded.

        They are sampled by the request itself, so that the same request has the same answer.
        """
        parts: list[str | Image.Image] = []
        for message in request.messages:
            content = message["content"]
            for part in [content] if isinstance(content, str) else content:
                if isinstance(part, MessagePicture):
                    parts.append(show(Image.open(io.BytesIO(part.data)).convert("RGB"), self.area))
                elif isinstance(part, str) and "<|" not in part:
                    parts.append(part)
                else:
                    return Reply(Kind.REJECTED, reason="the request holds a control token, or a part of another kind")
        pictures = [part for part in parts if not isinstance(part, str)]
        key = ("answer", request.digest, request.repeat)
        temperature = request.settings.get("temperature", self.temperature)
        most = request.settings.get("max_tokens", self.max_tokens)
        with self._lock:
            text = self._generate(self._chat_of(parts), pictures, *key, temperature=temperature, most=most)
        if not text.strip():
            return Reply(Kind.UNPARSED, text, reason="an answer without words")
        return Reply(Kind.ANSWERED, text)

    def score_tokens(self, prompt: JudgePrompt) -> tuple[str, Tensor]:
        """Return the text up to the score, and the score tokens' ids (S,). Raises UserError for a score of several."""

        def ids(text: str) -> list[int]:
            return self.processor.tokenizer(text, add_special_tokens=False).input_ids

        full = [ids(f"{prompt.marker} {token}") for token in prompt.values]
        for suffix in (f"{prompt.marker} ", prompt.marker):
            head = ids(suffix)
            if all(len(row) == len(head) + 1 and row[:-1] == head for row in full):
                return suffix, torch.tensor([row[-1] for row in full])
        raise UserError(f"judge {self.version}: a score of {prompt.name} is more than one token of this model")

    @torch.no_grad()
    def _generate(
        self,
        chat: str,
        pictures: list[Image.Image],
        *key: object,
        temperature: float | None = None,
        most: int | None = None,
    ) -> str:
        """Return words, sampled by our own draws: the likeliest token after Gumbel noise is one of the softmax."""
        if temperature is None:
            temperature = self.temperature
        if most is None:
            most = self.max_tokens
        inputs = self.processor(text=[chat], images=pictures or None, return_tensors="pt").to(self.device)
        drawn = generator(self.seed, *key)

        def perturb(_: Tensor, logits: Tensor) -> Tensor:
            noise = -torch.log(-torch.log(torch.rand(logits.shape, generator=drawn).clamp(1e-20, 1 - 1e-7)))
            return logits.float() + temperature * noise.to(logits.device)

        more = {"do_sample": False, "num_beams": 1, "max_new_tokens": most, "temperature": None}
        ids = self.model.generate(**inputs, **more, top_p=None, top_k=None, logits_processor=[perturb])
        new = ids[0, inputs["input_ids"].shape[1] :]
        text = self.processor.tokenizer.decode(new, skip_special_tokens=True)
        return text.replace("<|", "")

    @torch.no_grad()
    def _logits(self, text: str, pictures: list[Image.Image]) -> Tensor:
        """Return logits (V,) of the token after `text`, on the host."""
        inputs = self.processor(text=[text], images=pictures, return_tensors="pt").to(self.device)
        return self.model(**inputs).logits[0, -1].float().cpu()

    def _chat(self, text: str, pictures: int) -> str:
        """Return the chat of a question whose pictures come first."""
        return self._chat_of([*([None] * pictures), text])

    def _chat_of(self, parts: Sequence[object]) -> str:
        """Return the chat of one user's message; what is no text is a picture."""
        if self.folders.own_chat:
            form, picture = QWEN
            return form.format(content="".join(part if isinstance(part, str) else picture for part in parts))
        content = [{"type": "text", "text": part} if isinstance(part, str) else {"type": "image"} for part in parts]
        messages = [{"role": "user", "content": content}]
        return self.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)


@dataclass(frozen=True)
class Folders:
    """The folders of a judge's files, and whether it is asked in our own chat form."""

    model: Path
    processor: Path
    own_chat: bool


def _folders(name: str) -> Folders:
    """Return the folders of a judge; nothing is loaded. Raises UserError when it is no vision-language model."""
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    folder = user_path(name)
    if name == "tiny" or (folder / "model_index.json").is_file():
        base = open_base(name)
        if not (base.folder / "processor").is_dir():
            raise UserError(f"judge {name}: a base without a processor; take an edit base or a model's own folder")
        return Folders(base.part("text_encoder"), base.folder / "processor", True)
    if not (folder / "config.json").is_file():
        raise UserError(f"judge {name}: no model folder (config.json or model_index.json)")
    try:
        kind = AutoConfig.from_pretrained(folder, **FILES).model_type
    except Exception as problem:  # a library's own words for a file that it cannot use
        raise _no_judge(name, problem) from problem
    if kind not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        raise UserError(f"judge {name}: no vision-language model of transformers (a model of type {kind!r})")
    return Folders(folder, folder, False)


def _load(name: str, folders: Folders) -> tuple[Any, Any]:
    """Return the model and its processor."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    try:
        model = AutoModelForImageTextToText.from_pretrained(folders.model, dtype="auto", use_safetensors=True, **FILES)
        return model, AutoProcessor.from_pretrained(folders.processor, **FILES)
    except torch.OutOfMemoryError:
        raise
    except Exception as problem:  # a library's own words for a file that it cannot use
        raise _no_judge(name, problem) from problem


def _no_judge(name: str, problem: Exception) -> UserError:
    return UserError(f"judge {name}: no vision-language model of transformers ({first_line(problem)})")
