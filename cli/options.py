"""Arguments and options that several verbs have, with what a shell offers for them."""

from typing import Annotated

import typer

from tokcarve.cli import complete

__all__ = ["METHOD", "MODEL", "PRECISION", "RECIPE", "TARGET"]

MODEL = Annotated[
    str | None,
    typer.Argument(help="A directory, a hub id (owner/name) or an alias.", autocompletion=complete.models),
]
METHOD = Annotated[
    str | None,
    typer.Option(help="How tokens are chosen; `tokcarve methods` lists them.", autocompletion=complete.methods),
]
RECIPE = Annotated[
    str | None,
    typer.Option(help="A YAML file, or the name of a shipped recipe.", autocompletion=complete.recipes),
]
PRECISION = Annotated[
    str,
    typer.Option(
        help="fp32, fp16, bf16, or int8 or int4 weights of the language model.", autocompletion=complete.precisions
    ),
]
TARGET = Annotated[
    str | None,
    typer.Option(
        help="The board that it is for: BOARD[@TENSORRT], as orin, orin@10.3, thor, rtx.",
        autocompletion=complete.boards,
    ),
]
