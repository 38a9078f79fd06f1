"""The recipes that come with tokcarve, and what is said at the head of their files.

A file begins with comments: what it is for, in one line, and where it is made for a board the options of `tokcarve
export` that go with it, as `# export: --trt --target orin --precision fp16`.
"""

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokcarve.passes.errors import RecipeError
from tokcarve.recipes.files import load_recipe, shipped_recipes
from tokcarve.recipes.schema import Recipe, learns, nearest

__all__ = ["RecipeFile", "all_shipped", "find_recipe"]

_EXPORT = "export:"


@dataclass(frozen=True, kw_only=True)
class RecipeFile:
    """A recipe file that was read whole: what `--recipe` calls it, what its head says, and the text of all of it."""

    name: str
    about: str
    export: tuple[str, ...]
    recipe: Recipe
    text: str

    @property
    def target(self) -> str | None:
        """The board that it is made for, as `export --target` takes it."""
        return _option(self.export, "--target")

    @property
    def precision(self) -> str:
        """What its export computes in."""
        return _option(self.export, "--precision") or "fp32"

    @property
    def commands(self) -> tuple[str, ...]:
        """What makes it: a plan, where one is possible, the artifact, the export."""
        board = f" --target {self.target}" if self.target is not None else ""
        named = shlex.quote(self.name)
        plan = f"tokcarve plan --recipe {named}{board} --precision {self.precision}"
        # a plan reads no samples, which here decide the count, the method or what a router chooses
        decided = learns(self.recipe.method.name, self.recipe.budget.model_dump(mode="json"))
        return (
            *(() if decided else (plan,)),
            f"tokcarve compress --recipe {named}",
            shlex.join(("tokcarve", "export", *self.export)),
        )

    def record(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "name": self.name,
            "about": self.about,
            "target": self.target,
            "precision": self.precision,
            "recipe": self.recipe.model_dump(mode="json", exclude_none=True),
            "commands": list(self.commands),
        }


def all_shipped() -> tuple[RecipeFile, ...]:
    """Every shipped recipe, by name."""
    return tuple(_read(name, path) for name, path in shipped_recipes().items())


def find_recipe(name: str) -> RecipeFile:
    """A shipped recipe by its name, or the one in a file; RecipeError with every fault of a file, and for a name that
    is neither."""
    shipped = shipped_recipes()
    if name in shipped:
        return _read(name, shipped[name])
    if not Path(name).exists() and "/" not in name and not name.endswith((".yaml", ".yml")):
        raise RecipeError(
            f"no recipe {name!r} is shipped{nearest(name.replace('_', '-'), shipped)}, and there is no such file; give "
            f"a YAML file or one of {', '.join(shipped)}"
        )
    return _read(name, Path(name))


def _read(name: str, path: Path) -> RecipeFile:
    recipe = load_recipe(path)
    text = path.read_text(encoding="utf-8")
    head = [line.lstrip("# ").strip() for line in text.splitlines() if line.startswith("#")]
    said = [line for line in head if not line.startswith(_EXPORT)]
    flags = next((line.removeprefix(_EXPORT) for line in head if line.startswith(_EXPORT)), "")
    try:
        words = tuple(word for one in shlex.split(flags) for word in _parted(one))
    except ValueError as error:
        raise RecipeError(
            f"{path}: the comment `# {_EXPORT}{flags}` is no list of options of `tokcarve export` ({error}); give some "
            "such as `# export: --trt --target orin`"
        ) from None
    return RecipeFile(name=name, about=said[0] if said else "", export=words, recipe=recipe, text=text)


def _parted(word: str) -> list[str]:
    """`--target=orin` as two words."""
    return word.split("=", 1) if word.startswith("--") and "=" in word else [word]


def _option(words: tuple[str, ...], name: str) -> str | None:
    return words[words.index(name) + 1] if name in words[:-1] else None
