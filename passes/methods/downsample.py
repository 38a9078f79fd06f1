"""Image down-sampling: the control that spends fewer tokens on a smaller picture, in the whole tower.

Source      the oldest alternative to pruning; position embeddings interpolated as the checkpoint's own model does.
Reads       nothing: the image shrinks by a constant matrix.
Gives       the patches of a grid (h, w) with h * w == keep, the most square one that the count has.
Cost        none; every vision layer gets shorter.
Differs     a count that is no square changes the image's proportions. The index of a token is the patch in the middle
            of what it covers.
Raises      MethodError for a count without such a grid.
"""

from dataclasses import dataclass
from typing import ClassVar

from tokcarve.passes.errors import MethodError
from tokcarve.passes.geometry import Geometry, lattice
from tokcarve.passes.stage import Frozen, Method, MethodFacts, Stage

__all__ = ["Downsample"]


@dataclass(frozen=True, kw_only=True)
class Downsample(Method):
    """No hyper-parameters: the count fixes the grid."""

    facts: ClassVar[MethodFacts] = MethodFacts(
        title="image down-sampling",
        stage="before the vision tower",
        text_aware=False,
        reads=(),
        count="exact, where the count is a grid",
        cost="nothing: the tower sees a smaller image",
        source="control",
        licence="none needed",
    )

    def stages(self, geometry: Geometry, tokens: int, frozen: Frozen | None) -> tuple[Stage, ...]:
        """One resize before the tower."""
        if tokens == geometry.total:
            return ()
        rows, columns = geometry.vision.grid
        grid = lattice(tokens, rows, columns)
        if grid is None:
            near = sorted(range(1, geometry.total), key=lambda n: abs(n - tokens))
            fits = sorted([n for n in near if lattice(n, rows, columns)][:2])
            raise MethodError(
                f"downsample needs a grid of at most {rows} x {columns} patches, and {tokens} is none; "
                f"{' and '.join(map(str, fits))} are"
            )
        return (Stage(site="pixels", how="resize", keep=tokens, grid=grid),)
