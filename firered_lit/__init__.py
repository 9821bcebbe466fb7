"""Train an instruction image editor from a Qwen-Image-family diffusion transformer, stage by stage.

The names of `__all__` are the Python interface, see docs/api.md. Each is loaded when it is first used, so importing the
package loads nothing else. `__init__.pyi` names the same for editors and type checkers.
"""

import importlib

__version__ = "0.1.0"

# A name of the interface, and the module that has it.
_HOMES = {
    "Editor": "firered_lit.editing",
    "Finding": "firered_lit.checking",
    "UserError": "firered_lit.errors",
    "check": "firered_lit.api",
    "check_data": "firered_lit.api",
    "curate": "firered_lit.api",
    "evaluate": "firered_lit.api",
    "export": "firered_lit.exporting",
    "fit": "firered_lit.api",
    "prepare": "firered_lit.api",
    "score_images": "callbacks.rewards.ocr",
}
__all__ = [
    "Editor",
    "Finding",
    "UserError",
    "check",
    "check_data",
    "curate",
    "evaluate",
    "export",
    "fit",
    "prepare",
    "score_images",
]


def __getattr__(name: str) -> object:
    """Return a name of the interface, from the module that has it."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Return the names of the package, those that are not loaded yet included."""
    return sorted({*globals(), *__all__})
