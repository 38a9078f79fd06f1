"""Looking inside a graph while it runs."""

from typing import Any

from torch import fx

__all__ = ["Watcher"]


class Watcher(fx.Interpreter):
    """Runs a graph (`run(*inputs)`) and keeps in `seen` what every module returned, by module name."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.seen: dict[str, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        self.seen[str(n.target)] = value = super().run_node(n)
        return value
