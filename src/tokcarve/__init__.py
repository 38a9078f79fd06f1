"""Compile vision-language models with fewer visual tokens into static graphs for edge GPUs.

    artifact = tokcarve.compress("llava-1.5-7b", method="flowcut", tokens=64, out="dir")
    model = tokcarve.load("dir")

Both need `pip install tokcarve[compress]`; importing `tokcarve` itself imports neither torch nor transformers.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokcarve.exporters.eager import load
    from tokcarve.recipes.compress import compress

__all__ = ["__version__", "compress", "load"]

__version__ = "0.1.0"

_HOMES = {"compress": "tokcarve.recipes.compress", "load": "tokcarve.exporters.eager"}


def __getattr__(name: str) -> Any:
    """Import the home of `compress` or `load` when it is first asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module 'tokcarve' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
