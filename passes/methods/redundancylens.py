"""RedundancyLens: keep every visual token, and work less on them in half of the layers of the language model.

Source      arXiv:2501.19036 and notes on it; no code was published.
Reads       the layers' own MLP activations of every tenth visual row.
Gives       in `attention_layers`, attention without what lies `window` or more rows back among visual tokens; in
            `feed_layers`, an MLP of `share` of the neurons for visual rows: those with the largest mean activation, in
            absolute value, over the tenth that is probed. Text rows and decoding are untouched, and so are the caches.
Cost        two of three MLP products for a tenth of the visual rows, and a gather of the chosen weights.
Differs     the layers are the last half unless told: the published ranking of layers was not. Probes are spread evenly.
            The window is a mask: attention of a static graph then costs what it did, 7 % of a layer 4096 wide.
Raises      MethodError for fewer tokens than the model has, and for layers it does not have.
"""

from dataclasses import dataclass
from typing import ClassVar

from tokcarve.passes.errors import MethodError
from tokcarve.passes.geometry import Geometry
from tokcarve.passes.stage import Frozen, Method, MethodFacts, Stage

__all__ = ["RedundancyLens"]


@dataclass(frozen=True, kw_only=True)
class RedundancyLens(Method):
    """attention_layers, feed_layers: which language layers (0-based) do less of either; None is the last half."""

    attention_layers: tuple[int, ...] | None = None
    feed_layers: tuple[int, ...] | None = None
    window: int = 256
    share: float = 0.2

    facts: ClassVar[MethodFacts] = MethodFacts(
        title="RedundancyLens",
        stage="in the language model",
        text_aware=False,
        reads=(),
        count="keeps all",
        cost="the MLP activations of a tenth of the visual tokens",
        source="arXiv:2501.19036",
        licence="no code",
    )

    def stages(self, geometry: Geometry, tokens: int, frozen: Frozen | None) -> tuple[Stage, ...]:
        """A lean stage at every layer that does less of anything."""
        if tokens != geometry.total:
            raise MethodError(
                f"redundancylens keeps all {geometry.total} visual tokens and works less on them, and {tokens} were "
                f"asked for; ask for {geometry.total}, and choose layers and share with --param"
            )
        layers, neurons = geometry.text.layers, round(self.share * geometry.text.mlp)
        half = tuple(range(layers - layers // 2, layers))
        attention, feed = (half if one is None else one for one in (self.attention_layers, self.feed_layers))
        beyond = [layer for layer in (*attention, *feed) if not 0 <= layer < layers]
        if beyond:
            raise MethodError(f"this language model has layers 0..{layers - 1}, and layer {beyond[0]} was named")
        return tuple(
            Stage(
                site=f"language.layers.{layer}",
                how="lean",
                keep=tokens,
                window=self.window if layer in attention else None,
                neurons=max(1, neurons) if layer in feed else None,
            )
            for layer in sorted({*attention, *feed})
        )
