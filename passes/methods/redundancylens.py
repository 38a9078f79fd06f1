"""RedundancyLens: keep every visual token, and work less on them in half of the layers of the language model.

Source      arXiv:2501.19036 and notes on it; no code was published.
Reads       the layers' own MLP activations of every tenth visual row.
Gives       in `attention_layers`, attention without what lies `window` or more rows back among visual tokens; in
            `feed_layers`, an MLP of `share` of the neurons for visual rows: those with the largest mean activation, in
            absolute value, over the tenth that is probed. Text rows and decoding are untouched, and so are the caches.
Cost        two of three MLP products for a tenth of the visual rows, and a gather of the chosen weights. To calibrate,
            a prefill for each of about 3/4 L^2 trials per sample, L layers.
Differs     the layers are the last half unless told. From samples they are the first half of the published ranking:
            greedy, the layer next whose work, with that of those before it, is missed least, attention and MLP apart;
            missed is the divergence from the full model's answer in nats, where the paper takes scores of benchmarks.
            The paper gives the last layers first without a trial, how many is not known; here only a tie goes to the
            later. Probes are spread evenly.
            The window is a mask: attention of a static graph then costs what it did, 7 % of a layer 4096 wide.
Raises      MethodError for fewer tokens than the model has, and for layers it does not have.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from tokcarve.passes.decide import least_and_most, typical
from tokcarve.passes.errors import MethodError
from tokcarve.passes.geometry import Geometry
from tokcarve.passes.stage import Decision, Frozen, Look, Method, MethodFacts, Stage

__all__ = ["RedundancyLens"]

KINDS = ("attention_layers", "feed_layers")


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

    def decides(self, geometry: Geometry, tokens: int, quantile: float | None = None) -> Decision | None:
        """The layers that were not named."""
        kinds = tuple(kind for kind in KINDS if getattr(self, kind) is None)
        return _Ranking(self, geometry.text.layers, kinds, quantile) if kinds else None


@dataclass(frozen=True)
class _Ranking(Decision):
    """A greedy search for half of `layers`, in as many rounds, for each of `kinds` apart."""

    method: RedundancyLens
    layers: int
    kinds: tuple[str, ...]
    quantile: float | None

    def tries(self, looks: Sequence[Look]) -> tuple[Method, ...]:
        """Every layer that is not ranked, beside those that are."""
        if len(looks[0].tried) == self.layers // 2:
            return ()
        ranked = self._ranked(looks)[0]
        return tuple(
            self._with({kind: (*ranked[kind], layer)}, ())
            for kind in self.kinds
            for layer in self._others(ranked[kind])
        )

    def settle(self, looks: Sequence[Look]) -> tuple[Method, dict[str, list[int | float]]]:
        """The layers ranked first, in order of depth."""
        ranked, missed = self._ranked(looks)
        layers = {kind: tuple(sorted(found)) for kind, found in ranked.items()}
        nats = {f"nats of {kind}": least_and_most(found) for kind, found in missed.items()}
        return self._with(layers, None), nats

    def _with(self, layers: Mapping[str, tuple[int, ...]], rest: tuple[int, ...] | None) -> RedundancyLens:
        """The method with these layers by kind; another kind has `rest`, or with None what it had."""
        attention, feed = (layers.get(kind, getattr(self.method, kind) if rest is None else rest) for kind in KINDS)
        return replace(self.method, attention_layers=attention, feed_layers=feed)

    def _others(self, ranked: Sequence[int]) -> list[int]:
        return [layer for layer in range(self.layers) if layer not in ranked]

    def _ranked(self, looks: Sequence[Look]) -> tuple[dict[str, list[int]], dict[str, list[int | float]]]:
        """Layers by kind, best first, and what each sample misses with all of them."""
        ranked: dict[str, list[int]] = {kind: [] for kind in self.kinds}
        missed: dict[str, list[float]] = {}
        for tried in zip(*(look.tried for look in looks), strict=True):
            found = iter(list(zip(*tried, strict=True)))
            for kind in self.kinds:
                costs = {layer: [one["kl"] for one in next(found)] for layer in self._others(ranked[kind])}
                best = min(costs, key=lambda layer: (typical(costs[layer], self.quantile), -layer))
                ranked[kind].append(best)
                missed[kind] = costs[best]
        return ranked, missed
