"""`tokcarve methods`: the table of what can be asked for."""

import json
from dataclasses import asdict
from typing import Annotated

import typer

from tokcarve.cli.output import emit_json, print_table

__all__ = ["methods"]


def methods(as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False) -> None:
    """List the methods: where they cut, what they read and cost, where they come from."""
    from tokcarve.passes.methods import METHODS
    from tokcarve.recipes.method_recipes import METHOD_RECIPES

    found = []
    for name, method in METHODS.items():
        parameters = {key: field.default for key, field in METHOD_RECIPES[name].model_fields.items() if key != "name"}
        found.append({"name": name, **asdict(method.facts), "parameters": parameters})
    if as_json:
        emit_json("methods", {"methods": found})
        return
    for row in found:
        # as --param reads them back
        row["set with --param"] = ", ".join(
            f"{key}={value if isinstance(value, str) else json.dumps(value)}"
            for key, value in row["parameters"].items()
        )
    tables = {
        "what they do": ("name", "stage", "text_aware", "count", "cost"),
        "where they come from": ("name", "set with --param", "source", "licence"),
    }
    for title, columns in tables.items():
        names = tuple(name.replace("_", " ") for name in columns)
        print_table(title, names, [tuple(row[name] for name in columns) for row in found])
