"""Prune-and-Merge: one fixed matrix for every image, by least squares on calibration samples.

Source      the Prune-and-Merge ViT (reference code: NUST-Machine-Intelligence-Laboratory/prune_and_merge), made closed
            form: the tower stays frozen, nothing is trained.
Reads       tokens [batch, n, hidden] after the last used vision layer, of samples while it learns.
Gives       weights [keep, n]: those tokens at `keep` patches from which regression rebuilds all n with least error.
Cost        one constant [keep, n] x [n, hidden] product.
Differs     the reference ranks positions by gradients and trains merge and recover matrices; here positions are picked
            one by one where the samples are rebuilt worst, recover follows by ridge regression, merge is its inverse.
            One place instead of several blocks. The ridge is a share of the mean energy of a token.
Raises      MethodError when nothing was learned from samples.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tokcarve.passes.errors import MethodError
from tokcarve.passes.geometry import Geometry
from tokcarve.passes.stage import Carry, Fit, Frozen, Method, MethodFacts, Outcome, Signals, Stage

__all__ = ["LeastSquares", "PruneAndMerge", "spread_out"]


def spread_out(gram: Tensor, keep: int) -> list[int]:
    """`keep` tokens of a Gram matrix [n, n], each where those before explain the least energy; ascending."""
    rest, picked = gram.clone(), list[int]()
    for _ in range(keep):
        energy = rest.diagonal().clone()
        energy[picked] = -1
        picked.append(int(energy.argmax()))
        column = rest[:, picked[-1]] / rest[picked[-1], picked[-1]].clamp_min(1e-12).sqrt()
        rest = rest - torch.outer(column, column)
    return sorted(picked)


class LeastSquares(Fit):
    """The Gram matrix of the samples' tokens, and the merge that follows from it."""

    def __init__(self, site: str, total: int, keep: int, ridge: float) -> None:
        self.site, self.keep, self.ridge = site, keep, ridge
        self.gram = torch.zeros(total, total, dtype=torch.float64)

    def add(self, tokens: Tensor) -> None:
        """Adds what the tokens [batch, n, hidden] have in common."""
        rows = tokens.double().cpu()
        self.gram += torch.einsum("bnh,bmh->nm", rows, rows)

    def state(self) -> dict[str, Tensor]:
        """gram float64 [n, n]."""
        return {"gram": self.gram}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Takes the Gram matrix of an earlier run."""
        self.gram = state["gram"].clone()

    def solve(self) -> dict[str, Tensor]:
        """merge float32 [keep, n] and index int64 [keep]."""
        gram = self.gram + self.ridge * self.gram.diagonal().mean() * torch.eye(len(self.gram), dtype=torch.float64)
        index = torch.tensor(spread_out(gram, self.keep))
        recover = torch.linalg.solve(gram[index][:, index], gram[index]).T
        return {"merge": torch.linalg.pinv(recover).float(), "index": index}

    def loss(self, tensors: Mapping[str, Tensor], tokens: Tensor) -> float:
        """Share of the variance within an image that is lost between merging and rebuilding."""
        merge, rows = tensors["merge"].double(), tokens.double()
        gone = rows - torch.linalg.pinv(merge) @ (merge @ rows)
        varies = rows - rows.mean(dim=1, keepdim=True)
        return float(gone.square().sum() / varies.square().sum().clamp_min(1e-12))


@dataclass(frozen=True, kw_only=True)
class PruneAndMerge(Method):
    """ridge: how much the regression trusts a smooth solution over the samples."""

    ridge: float = 0.001

    facts: ClassVar[MethodFacts] = MethodFacts(
        title="Prune-and-Merge",
        stage="after the last used vision layer",
        text_aware=False,
        reads=("tokens",),
        count="exact",
        cost="one constant matrix product",
        source="prune_and_merge (reference code)",
        licence="unknown",
    )

    def fit(self, geometry: Geometry, tokens: int) -> Fit | None:
        """Learns from the tokens that enter the connector."""
        return LeastSquares(_site(geometry), geometry.total, tokens, self.ridge) if tokens < geometry.total else None

    def stages(self, geometry: Geometry, tokens: int, frozen: Frozen | None) -> tuple[Stage, ...]:
        """One constant merge before the connector."""
        if tokens == geometry.total:
            return ()
        if frozen is None or "merge" not in frozen.tensors:
            raise MethodError("prune_and_merge learns its matrix from samples, and none were given; pass --samples")
        merge, index = frozen.tensors["merge"], frozen.tensors["index"]

        def rule(signals: Signals, carry: Carry) -> Outcome:
            batch, device = signals["tokens"].shape[0], signals["tokens"].device
            return {"weights": merge.to(device).unsqueeze(0), "index": index.to(device).expand(batch, -1)}

        return (Stage(site=_site(geometry), reads=("tokens",), rule=rule, how="merge", keep=tokens),)


def _site(geometry: Geometry) -> str:
    return f"vision.layers.{geometry.vision.layers_used - 1}"
