"""A judge in this process: a vision-language model of transformers, asked for the score tokens' logits themselves."""

import io
import threading
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from callbacks.judge_prompt import Prompt, Question
from callbacks.judge_server import Answer, JudgeError
from firered_lit.draws import generator
from firered_lit.errors import UserError
from firered_lit.models.conditioning import show
from firered_lit.models.family import open_base
from firered_lit.rewards.judge import expected_score

QWEN = (  # the chat form of Qwen2-VL and Qwen2.5-VL, for folders whose processor has none
    "<|im_start|>user\n{pictures}{text}<|im_end|>\n<|im_start|>assistant\n",
    "<|vision_start|><|image_pad|><|vision_end|>",
)


class LocalVLM:
    """A vision-language model from a folder; of a Qwen-Image base (or "tiny") its own text encoder.

    Args:
        model: a folder with config.json, a diffusers folder of the Qwen-Image family, or "tiny".
        temperature: of the rationale; 0 takes the likeliest words. max_tokens: of the rationale.
        area: pixels that each picture is made to, about.
        device: null takes the first GPU, else the CPU.
        seed: keys the rationales, with the sample, the picture and the pass.
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
        self.version, self.temperature, self.max_tokens, self.area = model, temperature, max_tokens, area
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.seed, self._lock = seed, threading.Lock()
        self.model, self.processor, self.own_chat = _load(model)
        self.model.eval().requires_grad_(False).to(self.device)

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
                said = words.split(question.prompt.marker)[0].rstrip() + "\n"
            logits = self._logits(chat + said + suffix, pictures)[tokens]
        values = torch.tensor(list(question.prompt.values.values()))
        score = float(expected_score(logits, values))
        if score != score:
            raise JudgeError("its logits are no numbers")
        return Answer(said + suffix, score)

    def say(self, text: str, pictures: tuple[bytes, ...], *key: object) -> str:
        """Words about PNG pictures; sampled by `key`."""
        if "<|" in text:
            raise JudgeError("the request holds a control token")
        with self._lock:
            shown = [show(Image.open(io.BytesIO(png)).convert("RGB"), self.area) for png in pictures]
            return self._generate(self._chat(text, len(shown)), shown, "say", *key)

    def score_tokens(self, prompt: Prompt) -> tuple[str, Tensor]:
        """The text up to the score, and the score tokens' ids (S,). UserError when a score is more than one token."""

        def ids(text: str) -> list[int]:
            return self.processor.tokenizer(text, add_special_tokens=False).input_ids

        full = [ids(f"{prompt.marker} {token}") for token in prompt.values]
        for suffix in (f"{prompt.marker} ", prompt.marker):
            head = ids(suffix)
            if all(len(row) == len(head) + 1 and row[:-1] == head for row in full):
                return suffix, torch.tensor([row[-1] for row in full])
        raise UserError(f"judge {self.version}: a score of {prompt.name} is more than one token of this model")

    @torch.no_grad()
    def _generate(self, chat: str, pictures: list[Image.Image], *key: object) -> str:
        """Words sampled by our own randomness: the likeliest token after Gumbel noise is a draw from the softmax."""
        inputs = self.processor(text=[chat], images=pictures or None, return_tensors="pt").to(self.device)
        drawn = generator(self.seed, *key)

        def perturb(_: Tensor, logits: Tensor) -> Tensor:
            noise = -torch.log(-torch.log(torch.rand(logits.shape, generator=drawn).clamp(1e-20, 1 - 1e-7)))
            return logits.float() + self.temperature * noise.to(logits.device)

        more = {"do_sample": False, "num_beams": 1, "max_new_tokens": self.max_tokens, "temperature": None}
        ids = self.model.generate(**inputs, **more, top_p=None, top_k=None, logits_processor=[perturb])
        new = ids[0, inputs["input_ids"].shape[1] :]
        text = self.processor.tokenizer.decode(new, skip_special_tokens=True)
        return text.replace("<|", "")

    @torch.no_grad()
    def _logits(self, text: str, pictures: list[Image.Image]) -> Tensor:
        """Logits (V,) of the token after `text`, on the host."""
        inputs = self.processor(text=[text], images=pictures, return_tensors="pt").to(self.device)
        return self.model(**inputs).logits[0, -1].float().cpu()

    def _chat(self, text: str, pictures: int) -> str:
        if self.own_chat:
            form, picture = QWEN
            return form.format(pictures=picture * pictures, text=text)
        content = [*({"type": "image"} for _ in range(pictures)), {"type": "text", "text": text}]
        messages = [{"role": "user", "content": content}]
        return self.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)


def _load(name: str) -> tuple[Any, Any, bool]:
    """Model, processor, and whether it is asked in our own chat form."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    folder = Path(name).expanduser()
    if name == "tiny" or (folder / "model_index.json").is_file():
        base = open_base(name)
        if not (base.folder / "processor").is_dir():
            raise UserError(f"judge {name}: a base without a processor; take an edit base or a model's own folder")
        parts, own_chat = (base.folder / "text_encoder", base.folder / "processor"), True
    elif (folder / "config.json").is_file():
        parts, own_chat = (folder, folder), False
    else:
        raise UserError(f"judge {name}: no model folder (config.json or model_index.json)")
    own_code_only = {"local_files_only": True, "trust_remote_code": False}  # never the folder's Python files
    try:
        model = AutoModelForImageTextToText.from_pretrained(parts[0], dtype="auto", **own_code_only)
        return model, AutoProcessor.from_pretrained(parts[1], **own_code_only), own_chat
    except (OSError, ValueError, KeyError) as problem:
        reason = str(problem).strip().splitlines()[0]
        raise UserError(f"judge {name}: no vision-language model of transformers ({reason})") from problem
