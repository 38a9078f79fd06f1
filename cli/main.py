"""The table of verbs. Exit codes: 0 done, 2 your input, 1 our fault, 130 interrupted."""

import os
import sys
from typing import Annotated

import typer

from tokcarve import __version__
from tokcarve.cli.bare import BareOptions
from tokcarve.cli.compare import compare
from tokcarve.cli.compress import compress
from tokcarve.cli.doctor import doctor
from tokcarve.cli.eval import eval as _eval
from tokcarve.cli.export import export
from tokcarve.cli.failures import INTERRUPTED, guarded
from tokcarve.cli.inspect import inspect
from tokcarve.cli.methods import methods
from tokcarve.cli.plan import plan
from tokcarve.cli.profile import profile
from tokcarve.cli.recipes import recipes
from tokcarve.cli.run import run
from tokcarve.cli.show import show
from tokcarve.cli.sweep import sweep
from tokcarve.cli.verify import verify

__all__ = ["app", "main"]

app = typer.Typer(
    name="tokcarve",
    help="Compile vision-language models with fewer visual tokens into static graphs for edge GPUs.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _version(wanted: bool) -> bool:
    if wanted:
        print(f"tokcarve {__version__}")
        raise typer.Exit
    return wanted


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Compile vision-language models with fewer visual tokens into static graphs for edge GPUs."""


_VERBS = (compress, export, verify, run, profile, _eval, show, sweep, plan, compare, recipes, inspect, methods, doctor)
for _verb in _VERBS:
    app.command(_verb.__name__, cls=BareOptions)(guarded(_verb))


def main() -> None:
    """The `tokcarve` command."""
    if not sys.stderr.isatty():
        # the bars of other libraries would fill a log file
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        app(prog_name="tokcarve")
    except SystemExit as left:
        if left.code != INTERRUPTED:
            raise
        # `python -m` ends itself by the signal where Ctrl-C came in text that it was executing, whatever was made of it
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(INTERRUPTED)
