"""What a failure looks like from outside: 2 for your input, 1 for our fault, 130 for Ctrl-C; one sentence each."""

import functools
import os
import sys
import traceback
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import typer

from tokcarve.passes.errors import TokcarveError

__all__ = ["INTERRUPTED", "guarded", "needs_compress"]

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""

P = ParamSpec("P")
R = TypeVar("R")

_HOST_PACKAGES = {
    "huggingface_hub",
    "jaxtyping",
    "onnx",
    "onnx_ir",
    "onnxscript",
    "safetensors",
    "torch",
    "transformers",
}


def guarded(verb: Callable[P, R]) -> Callable[P, R]:
    """The same verb, its exceptions turned into a line on stderr and an exit code."""

    @functools.wraps(verb)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return verb(*args, **kwargs)
        except (typer.Exit, typer.Abort, typer.BadParameter, BrokenPipeError):
            raise
        except TokcarveError as error:
            raise _exit(str(error), 2) from error
        except KeyboardInterrupt as error:
            kept = f"; {error}" if str(error) else ""
            raise _exit(f"interrupted; nothing half-written is left{kept}", INTERRUPTED) from error
        except ModuleNotFoundError as error:
            if (error.name or "").split(".")[0] not in _HOST_PACKAGES:
                raise _exit(_fault(error), 1) from error
            raise _exit(needs_compress(error.name or ""), 2) from error
        except Exception as error:
            raise _exit(_fault(error), 1) from error

    return run


def needs_compress(package: str) -> str:
    """What to say where a package of the `compress` extra is not installed."""
    return f"{package} is not installed, and this needs it: pip install 'tokcarve[compress]'"


def _fault(error: Exception) -> str:
    text = (str(error).strip().splitlines() or [""])[0]
    return (
        f"internal error: {type(error).__name__}: {text} (a fault of tokcarve, not of your input; "
        "run again with TOKCARVE_DEBUG=1 for the trace)"
    )


def _exit(text: str, code: int) -> typer.Exit:
    if os.environ.get("TOKCARVE_DEBUG") == "1":
        traceback.print_exc()
    sys.stdout.flush()
    # typer looks only at whether stderr is a terminal, rich also at what https://no-color.org asks for
    plain = bool(os.environ.get("NO_COLOR"))
    typer.secho(text, fg=None if plain else typer.colors.RED, err=True)
    return typer.Exit(code)
