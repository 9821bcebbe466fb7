"""LoRA by peft: small trained factors beside frozen weights. LoRA (2106.09685): W x + (alpha / rank) B A x."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..draws import generator
from ..errors import UserError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from .transformer import Transformer

TARGETS = (
    *("to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj", "to_out.0", "to_add_out"),
    *("img_mlp.net.2", "img_mod.1", "txt_mlp.net.2", "txt_mod.1"),
)
ADAPTER = "default"


@dataclass(frozen=True)
class LoRA:
    """The weights that get an adapter, and its size.

    Args:
        rank: of the two factors, at least 1.
        alpha: above 0; the adapter's output is scaled by alpha / rank.
        targets: names of linear layers, or the ends of their names.
        dropout: share of the adapter's inputs that training sets to zero, in [0, 1).
    """

    rank: int
    alpha: float
    targets: Sequence[str] = TARGETS
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.rank < 1 or self.alpha <= 0 or not 0 <= self.dropout < 1:
            given = f"rank={self.rank} alpha={self.alpha} dropout={self.dropout}"
            raise UserError(f"lora: {given}: rank is at least 1, alpha above 0, dropout in [0, 1)")
        if isinstance(self.targets, str) or not self.targets:
            raise UserError(f"lora.targets={self.targets!r}: expected a list of module names, as [to_q, to_k]")
        object.__setattr__(self, "targets", tuple(self.targets))

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    def as_dict(self) -> dict[str, object]:
        return {"rank": self.rank, "alpha": self.alpha, "targets": list(self.targets), "dropout": self.dropout}


def add_adapter(transformer: "Transformer", lora: LoRA, seed: int) -> None:
    """Freeze `transformer` and put a trainable float32 adapter beside it, which changes nothing yet (B = 0).

    A is uniform in +-1 / sqrt(inputs), as peft draws it, but keyed by (seed, module): the same on every rank and in
    every run. The global random state is left as it was. The adapter computes in the precision of its inputs, see
    `Factor`. Raises UserError for a target that is no linear layer.
    """
    import torch
    from peft import LoraConfig
    from peft.tuners.lora import LoraLayer

    from .factor import Factor

    names = matched(transformer, lora.targets)
    transformer.requires_grad_(False)
    alpha: Any = lora.alpha  # peft takes fractions too, whatever its annotation says
    config = LoraConfig(r=lora.rank, lora_alpha=alpha, target_modules=names, lora_dropout=lora.dropout)
    with torch.random.fork_rng(devices=[]):
        transformer.add_adapter(config, ADAPTER)
    for module in transformer.modules():
        if isinstance(module, LoraLayer):
            module.cast_input_dtype_enabled = False  # peft's cast of the inputs to float32
            for factors_of_layer in (module.lora_A, module.lora_B):
                linear: Any = factors_of_layer[ADAPTER]
                factors_of_layer[ADAPTER] = Factor.of(linear)
    for key, parameter in transformer.named_parameters():
        if not is_adapter(key):
            continue
        parameter.data = parameter.data.float()
        parameter.data.copy_(first_values(key, parameter.shape, seed))


def first_values(key: str, shape: "torch.Size", seed: int) -> "Tensor":
    """Return the first values of an adapter's parameter, by its name in the transformer."""
    import torch

    if ".lora_A." not in key:
        return torch.zeros(shape)
    return shape[1] ** -0.5 * (torch.rand(shape, generator=generator(seed, "lora", key)) * 2 - 1)


def matched(transformer: "Transformer", targets: Sequence[str]) -> list[str]:
    """Return the names of the linear layers that `targets` mean, save those of the last block that no loss reaches.

    Raises:
        UserError: a target is no linear layer, or none is left.
    """
    from torch import nn

    linear = [name for name, module in transformer.named_modules() if isinstance(module, nn.Linear)]
    for target in targets:
        if not any(_ends(name, target) for name in linear):
            raise UserError(f"lora.targets: no linear layer is named {target!r}{_nearest(target, linear)}")
    last = f"transformer_blocks.{len(transformer.transformer_blocks) - 1}."
    dead = (f"{last}attn.to_add_out", f"{last}attn.add_q_proj", f"{last}txt_mlp.")
    names = []
    for name in linear:
        is_target = any(_ends(name, target) for target in targets)
        if is_target and not name.startswith(dead):
            names.append(name)
    if not names:
        raise UserError(f"lora.targets={list(targets)}: only text layers of the last block, which no loss reaches")
    return names


def is_adapter(key: str) -> bool:
    """Return whether a key of a state dict belongs to an adapter."""
    return ".lora_A." in key or ".lora_B." in key


def factors(weights: "Mapping[str, Tensor]") -> "dict[str, tuple[Tensor, Tensor]]":
    """Return module -> (A (rank, inputs), B (outputs, rank)) from the transformer's state dict."""
    end = f".lora_A.{ADAPTER}.weight"
    pairs = {}
    for key, a in weights.items():
        if key.endswith(end):
            name = key.removesuffix(end)
            pairs[name] = (a, weights[f"{name}.lora_B.{ADAPTER}.weight"])
    return pairs


def delta(a: "Tensor", b: "Tensor", scale: float = 1.0) -> "Tensor":
    """Return the change of a weight by an adapter: scale * B A, (outputs, inputs), float32."""
    return scale * (b.float() @ a.float())


def merge(transformer: "nn.Module", trained: "Mapping[str, tuple[Tensor, Tensor]]", scale: float) -> None:
    """Add trained factors to the weights of a plain transformer, in float32, rounded once to the weight's precision."""
    import torch

    with torch.no_grad():
        for name, (a, b) in trained.items():
            weight = transformer.get_parameter(f"{name}.weight")
            weight.copy_(weight.float() + delta(a, b, scale).to(weight.device))


def put_beside(transformer: "nn.Module", trained: "Mapping[str, tuple[Tensor, Tensor]]", scale: float) -> None:
    """Let linear layers add what trained factors add, and leave their weights, which may be quantised, alone.

    Args:
        transformer: a plain transformer, on its device.
        trained: module -> (A (rank, inputs), B (outputs, rank)).
        scale: of the product.
    """
    for name, (a, b) in trained.items():
        layer = transformer.get_submodule(name)
        device = layer.get_parameter("weight").device
        layer.register_forward_hook(_Beside(a.to(device), (scale * b.float()).to(device)))


class _Beside:
    """A forward hook that adds B A x to a layer's output."""

    def __init__(self, a: "Tensor", b: "Tensor") -> None:
        self.a = a
        self.b = b

    def __call__(self, layer: "nn.Module", inputs: "tuple[Tensor, ...]", output: "Tensor") -> "Tensor":
        x = inputs[0]
        return output + x @ self.a.to(x.dtype).mT @ self.b.to(x.dtype).mT


def _ends(name: str, target: str) -> bool:
    """Return whether a module's name is `target`, or ends in it after a dot."""
    return name == target or name.endswith(f".{target}")


def _nearest(target: str, names: Sequence[str]) -> str:
    """Return in words the ends of existing names that look most like `target`."""
    ends = set()
    for name in names:
        inside = name.split(".", 2)[2] if name.startswith("transformer_blocks.") else name
        ends.add(inside)
        ends.add(inside.removeprefix("attn."))
    close = difflib.get_close_matches(target, sorted(ends), n=3, cutoff=0.5)
    if close:
        return f"; the nearest are {', '.join(close)}"
    return f"; a block has {', '.join(sorted(TARGETS))}"
