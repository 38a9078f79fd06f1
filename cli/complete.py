"""What a shell may offer for a half-written value: methods, models, boards, recipes, precisions. Nothing large loads.

`tokcarve --install-completion` sets it up for the shell that it is called from.
"""

from collections.abc import Iterable
from pathlib import Path

__all__ = ["boards", "methods", "models", "precisions", "recipes"]


def methods(incomplete: str) -> list[str]:
    """Methods that begin so."""
    from tokcarve.recipes.method_recipes import METHOD_RECIPES

    return _begin(METHOD_RECIPES, incomplete)


def models(incomplete: str) -> list[str]:
    """Aliases and directories that begin so."""
    from tokcarve.passes.checkpoint import ALIASES

    return _begin(ALIASES, incomplete) + _paths(incomplete, "")


def boards(incomplete: str) -> list[str]:
    """Boards that begin so, and behind an @ the releases of TensorRT that the board runs."""
    from tokcarve.exporters.device.boards import BOARDS, RELEASES

    named = [f"{name}@{RELEASES[one].number}" for name, board in BOARDS.items() for one in board.releases]
    return _begin(named if "@" in incomplete else BOARDS, incomplete)


def recipes(incomplete: str) -> list[str]:
    """Shipped recipes, YAML files and directories that begin so."""
    from tokcarve.recipes.files import shipped_recipes

    return _begin(shipped_recipes(), incomplete) + _paths(incomplete, ".yaml")


def precisions(incomplete: str) -> list[str]:
    """Precisions that begin so."""
    from tokcarve.exporters.precision import PRECISIONS

    return _begin(PRECISIONS, incomplete)


def _begin(names: Iterable[str], incomplete: str) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]


def _paths(incomplete: str, suffix: str) -> list[str]:
    """Directories that begin so, with a slash behind them, and files with the suffix where there is one."""
    head, slash, tail = incomplete.rpartition("/")
    folder = Path(head or slash or ".").expanduser()
    found = sorted(folder.glob(f"{tail}*")) if folder.is_dir() else []
    shown = [(path, f"{head}{slash}{path.name}") for path in found if tail or not path.name.startswith(".")]
    folders = [f"{text}/" for path, text in shown if path.is_dir()]
    return folders + [text for path, text in shown if suffix and path.name.endswith(suffix)]
