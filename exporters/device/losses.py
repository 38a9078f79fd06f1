"""What a router's graph predicts against what was recorded of torch."""

from pathlib import Path

import numpy as np

from tokcarve.exporters.device.compare import Check, Floats, close
from tokcarve.exporters.device.session import Graph
from tokcarve.passes.errors import ArtifactError

__all__ = ["check_losses", "read_losses"]


def read_losses(path: Path) -> tuple[Floats, Floats]:
    """The pixels [samples, 3, height, width] of a golden file and the losses [samples, budgets] that torch's router
    predicts of them; ArtifactError where there are none."""
    with np.load(path, allow_pickle=False) as stored:
        if "losses" not in stored:
            raise ArtifactError(f"{path} holds no losses; export again with `tokcarve export`")
        return stored["pixel_values"], stored["losses"]


def check_losses(graph: Graph, pixels: Floats, expected: Floats, dtype: str = "float32") -> Check:
    """What the graph of a router predicts of pixels [samples, 3, height, width] against `expected` [samples, budgets];
    the number of samples is a multiple of the exported batch."""
    batch = graph.shapes["pixel_values"][0]
    starts = range(0, len(pixels), batch)
    found = [graph.run({"pixel_values": pixels[start : start + batch]})["losses"] for start in starts]
    return close("router: predicted losses", [(np.concatenate(found), expected)], dtype)
