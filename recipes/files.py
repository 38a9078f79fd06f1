"""Recipe files: YAML in, YAML out, and every fault of a file in one answer, each with its key and what is near it."""

import re
import reprlib
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from tokcarve.passes.errors import RecipeError
from tokcarve.recipes.method_recipes import METHOD_RECIPES
from tokcarve.recipes.schema import Budget, Calibration, Recipe, nearest

__all__ = ["dump_recipe", "load_recipe", "parse_recipe", "shipped_recipes"]

_MOST_BYTES = 64 * 1024
# which kind of method, of share, of tokens: parts of a fault's place that are no keys
_TAGS = {(1, "method"), (2, "budget", "keep"), (2, "budget", "tokens")}
_SECTIONS: dict[str, type[BaseModel]] = {"budget": Budget, "calibration": Calibration}


class _Loader(yaml.SafeLoader):
    """Safe YAML without aliases, and without keys that silently replace each other."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.constructor.ConstructorError(None, None, "aliases are not used in recipes")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Any] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key must be a word", key.start_mark)
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key.value!r} occurs twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


# YAML 1.1 takes 3e9 and 3.0e9 for words, which no writer of a recipe means
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def load_recipe(path: Path) -> Recipe:
    """The recipe in a YAML file; raises RecipeError with all of its faults, one per line."""
    try:
        with path.open("rb") as stream:
            content = stream.read(_MOST_BYTES + 1)
    except FileNotFoundError:
        raise RecipeError(f"recipe {path} does not exist; shipped are {', '.join(shipped_recipes())}") from None
    except OSError as error:
        raise RecipeError(f"recipe {path} cannot be read ({error.strerror}); give a YAML file") from None
    if len(content) > _MOST_BYTES:
        raise RecipeError(f"recipe {path} is larger than {_MOST_BYTES} bytes, so it is no recipe; give a YAML file")
    try:
        fields = yaml.load(content, Loader=_Loader)  # noqa: S506 - a subclass of SafeLoader
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise RecipeError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(fields, dict):
        raise RecipeError(f"{path}: holds {type(fields).__name__}, not keys and values such as `model: tiny`")
    return parse_recipe(fields, str(path))


def parse_recipe(fields: dict[str, Any], source: str) -> Recipe:
    """The recipe that plain values make; raises RecipeError with every fault, each line starting with `source`."""
    try:
        return Recipe.model_validate(fields)
    except ValidationError as error:
        raise RecipeError("\n".join(f"{source}: {line}" for line in _faults(error))) from None


def dump_recipe(recipe: Recipe) -> str:
    """The recipe as YAML, complete: every default is written out."""
    return yaml.safe_dump(recipe.model_dump(mode="json", exclude_none=True), sort_keys=False, allow_unicode=True)


def shipped_recipes() -> dict[str, Path]:
    """The recipes that come with tokcarve, by name."""
    return {path.stem: path for path in sorted(Path(__file__).parent.glob("*.yaml"))}


def _faults(error: ValidationError) -> list[str]:
    lines, misspelt, missing = [], set(), []
    for fault in error.errors(include_url=False):
        place = tuple(str(part) for part in fault["loc"])
        keys = _known_keys(place)
        shown = ".".join(part for i, part in enumerate(place) if (i, *place[:i]) not in _TAGS)
        if fault["type"] == "missing":
            missing.append((shown, f"{shown}: required, but not there"))
        elif fault["type"] == "extra_forbidden":
            hint = nearest(place[-1], keys)
            if hint:
                misspelt.add(".".join([*shown.split(".")[:-1], hint.rsplit(" ", 1)[1].strip("'")]))
            lines.append(f"{shown}: unknown key{hint}; keys here are {', '.join(keys)}")
        elif fault["type"] in ("union_tag_invalid", "union_tag_not_found"):
            lines.append(_method_fault(fault["input"]))
        else:
            got = "" if fault["type"] == "value_error" else f", got {reprlib.repr(fault['input'])}"
            lines.append(f"{shown}: {fault['msg'].removeprefix('Value error, ')}{got}")
    # a misspelt key is one fault, not two: its right name is not reported as missing too
    return [line for key, line in missing if key not in misspelt] + lines


def _known_keys(place: tuple[str, ...]) -> list[str]:
    if len(place) == 1:
        return list(Recipe.model_fields)
    model = METHOD_RECIPES.get(place[1]) if place[0] == "method" else _SECTIONS.get(place[0])
    return list(model.model_fields) if model is not None else []


def _method_fault(given: Any) -> str:
    name = given.get("name") if isinstance(given, dict) else given
    if name is None:
        return f"method.name: required, but not there; methods are {', '.join(METHOD_RECIPES)}"
    hint = nearest(str(name), METHOD_RECIPES)
    return f"method.name: unknown method {name!r}{hint}; methods are {', '.join(METHOD_RECIPES)}"
