"""`tokcarve recipes`: the recipes that come with it, one of them, or a file of yours, checked whole.

`--json`: recipes, a list of {name, about, target (board and perhaps TensorRT, null for none), precision, recipe (every
key, defaults written out), commands (that plan, make and export it)}; of one recipe where one was named.
"""

from typing import Annotated

import typer

from tokcarve.cli import complete
from tokcarve.cli.output import emit_json, print_facts, print_line, print_table

__all__ = ["recipes"]


def recipes(
    name: Annotated[
        str | None,
        typer.Argument(help="A shipped recipe, or a YAML file; all shipped ones.", autocompletion=complete.recipes),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """List the shipped recipes, print one, or check a file and name every fault of it."""
    from tokcarve.recipes.shipped import all_shipped, find_recipe

    found = all_shipped() if name is None else (find_recipe(name),)
    if as_json:
        emit_json("recipes", {"recipes": [one.record() for one in found]})
        return
    if name is None:
        rows = [(one.name, one.target or "any", one.about) for one in found]
        print_table("recipes", ("name", "board", "what it is"), rows)
        print_line("next: tokcarve recipes NAME, or tokcarve compress --recipe NAME")
        return
    (one,) = found
    recipe = one.recipe
    budget = ", ".join(f"{key}={value}" for key, value in recipe.budget.asked.items())
    facts = {"model": recipe.model, "method": recipe.method.name, "budget": budget, "faults": "none"}
    print_facts(one.name, facts)
    print_line("")
    print_line(one.text.rstrip())
    print_line("")
    for command in one.commands:
        print_line(command)
