"""Average pooling of the projected tokens over a grid of cells: the control for everything that chooses.

Source      arXiv:2405.17430 (test-time scales) and arXiv:2406.20092; any count by adaptive windows.
Reads       nothing: the pooling matrix is a constant of the graph.
Gives       weights [batch, keep, n], every row sums to 1.
Cost        one [keep, n] x [n, hidden] product after the connector.
Differs     windows of adjacent cells overlap where the grid does not divide; a count without a lattice pools along
            the raster. The index of a cell is its centre token.
Raises      nothing of its own.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tokcarve.passes.geometry import Geometry, centres, even_positions, lattice
from tokcarve.passes.stage import Carry, Frozen, Method, MethodFacts, Outcome, Signals, Stage

__all__ = ["Pooling", "window_weights"]


def window_weights(count: int, total: int) -> Tensor:
    """[count, total]: row i averages floor(i total / count) .. ceil((i+1) total / count) - 1."""
    weights = torch.zeros(count, total)
    for i in range(count):
        start, end = i * total // count, -(-(i + 1) * total // count)
        weights[i, start:end] = 1 / (end - start)
    return weights


@dataclass(frozen=True, kw_only=True)
class Pooling(Method):
    """No hyper-parameters: the count fixes the cells."""

    facts: ClassVar[MethodFacts] = MethodFacts(
        title="average pooling",
        stage="after the connector",
        text_aware=False,
        reads=("tokens",),
        count="exact",
        cost="one constant matrix product",
        source="arXiv:2405.17430",
        licence="Apache-2.0",
    )

    def stages(self, geometry: Geometry, tokens: int, frozen: Frozen | None) -> tuple[Stage, ...]:
        """One merge after the connector."""
        if tokens == geometry.total:
            return ()
        rows, columns = geometry.vision.grid
        shape = lattice(tokens, rows, columns)
        weights = (
            window_weights(tokens, geometry.total)
            if shape is None
            else torch.kron(window_weights(shape[0], rows), window_weights(shape[1], columns))
        )
        table = weights.tolist()
        middle = even_positions(tokens, geometry.total) if shape is None else centres(shape, geometry.vision.grid)

        def rule(signals: Signals, carry: Carry) -> Outcome:
            batch, device = signals["tokens"].shape[0], signals["tokens"].device
            index = torch.tensor(middle, device=device).unsqueeze(0).expand(batch, -1)
            return {"weights": torch.tensor(table, device=device).unsqueeze(0), "index": index}

        return (Stage(site="connector", reads=("tokens",), rule=rule, how="merge", keep=tokens),)
