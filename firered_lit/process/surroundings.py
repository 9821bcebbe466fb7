"""The surroundings of our code in a process: libraries that are too loud, packages that could take our rooms' names."""

import os
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

from firered_lit.errors import UserError

_DEFAULTS = {"MLFLOW_DISABLE_TELEMETRY": "true", "TOKENIZERS_PARALLELISM": "false"}
_NOISE = {
    "bitsandbytes.backends.cpu.ops": "gemm_4bit_forward",  # an optional kernel of inference, never used here
    "diffusers.quantizers.torchao.torchao_quantizer": "Unable to import `torchao` Tensor",
    "torch.utils._pytree": "Calling register_constant() on Enum",  # torchao's, of one of its own classes
}


def quiet_libraries() -> None:
    """Keep libraries from phoning home and from known harmless noise. What the user set stays."""
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)

    import logging

    for name, text in _NOISE.items():
        logging.getLogger(name).addFilter(lambda record, text=text: text not in str(record.msg))  # type: ignore[misc]


def refuse_other_rooms() -> None:
    """See that `datamodules` and `callbacks` are ours: the names are common, and the current folder comes first.

    Raises:
        UserError: One is missing, or another package of its name stands before it.
    """
    home = Path(__file__).resolve().parents[2]
    for room in ("datamodules", "callbacks"):
        spec = find_spec(room)
        locations: Iterable[str | None] = ()
        if spec is not None:
            locations = spec.submodule_search_locations or [spec.origin]
        places = [Path(location).resolve() for location in locations if location is not None]
        if home / room not in places or places[0] != home / room:
            found = f"{places[0]} stands before it" if places else "it is missing"
            raise UserError(f"the package {room!r} must lie in {home}, beside firered_lit, but {found}; run elsewhere")
