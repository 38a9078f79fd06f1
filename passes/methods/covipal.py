"""CoViPAL: a small transformer, trained on samples, scores visual tokens before the language model by the question.

Source      arXiv:2508.17243 (Findings of EMNLP 2025); no code and no weights were found.
Reads       tokens [batch, n, hidden] behind the connector; text_rows [batch, rows, hidden], text_places [batch, rows].
Gives       score [batch, n], logits of the share of the question's attention that a token will get deep in the language
            model; higher means keep.
Cost        about 2 n P FLOPs for P parameters: a matrix product each, none of them quadratic in n.
Differs     the two stages of training are one loss: the divergence of the softly pruned model from the full one on its
            own answer, and `guide` times (the divergence, in nats, of the softmax of the scores from what text rows
            attend to at `guide_layer`, and a tenth of the mean square between them). Of the layers from two before the
            middle to three quarters of the depth, samples take the one whose attention, as the choice of what enters,
            leaves the model most like itself. Gates are sigmoids that sum to the count and sharpen tenfold. Depth and
            widths are a third party's, the norms root mean square.
Raises      MethodError without trained tensors, for a width that the heads do not divide, or a layer that is not there.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tokcarve.passes.errors import MethodError
from tokcarve.passes.geometry import Geometry
from tokcarve.passes.scorer import block_shapes, scored
from tokcarve.passes.stage import Carry, Frozen, Method, MethodFacts, Outcome, Signals, Stage
from tokcarve.passes.trainee import Trainee, Trial, sharp

__all__ = ["CoViPAL", "Scorer"]


@dataclass(frozen=True, kw_only=True)
class CoViPAL(Method):
    """width: of the blocks (None: 512, or what the model has where that is less). guide, guide_layer: see the header;
    0-based (None: the one that samples choose)."""

    blocks: int = 4
    width: int | None = None
    heads: int = 8
    guide: float = 1.0
    guide_layer: int | None = None

    facts: ClassVar[MethodFacts] = MethodFacts(
        title="CoViPAL",
        stage="after the connector",
        text_aware=True,
        reads=("tokens", "text_rows", "text_places"),
        count="exact",
        cost="a small trained transformer, linear in the tokens",
        source="arXiv:2508.17243",
        licence="no code",
    )

    def trainable(self, geometry: Geometry, tokens: int) -> Trainee | None:
        """The scorer."""
        return Scorer(self, geometry, tokens) if tokens < geometry.total else None

    def stages(self, geometry: Geometry, tokens: int, frozen: Frozen | None) -> tuple[Stage, ...]:
        """One cut behind the connector."""
        if tokens == geometry.total:
            return ()
        if frozen is None or "head.weight" not in frozen.tensors:
            raise MethodError("covipal scores with a trained module, and there is none; pass --samples to train it")
        tensors = frozen.tensors

        def rule(signals: Signals, carry: Carry) -> Outcome:
            rows = signals["tokens"]
            here = {name: tensor.to(rows.device) for name, tensor in tensors.items()}
            return {"score": scored(here, rows, signals["text_rows"], signals["text_places"], self.heads)}

        return (Stage(site="connector", reads=self.facts.reads, rule=rule, how="choose", keep=tokens),)


class Scorer(Trainee):
    """The transformer and its loss."""

    def __init__(self, method: CoViPAL, geometry: Geometry, tokens: int) -> None:
        layers, hidden, heads = geometry.text.layers, geometry.text.hidden, method.heads
        named = method.guide_layer
        if named is not None and not 0 <= named < layers:
            raise MethodError(f"guide_layer={named} of covipal is none of the {layers} layers; choose 0..{layers - 1}")
        width = min(512, hidden // heads * heads) if method.width is None else method.width
        if width < 1 or width % heads:
            raise MethodError(f"width={width} of covipal is no multiple of its {heads} heads; choose one that is")
        super().__init__(method, geometry, tokens)
        self.guide = method.guide
        among = range(max(0, layers // 2 - 2), min(3 * layers // 4, layers - 1) + 1) if named is None else (named,)
        self.teachers = tuple((f"language.layers.{layer}", "text_attention") for layer in among)
        self.teacher = self.teachers[0]
        self.shapes = block_shapes(method.blocks, width, hidden)

    def values(self, taught: Tensor) -> Tensor:
        """What the text rows attend to, over all heads."""
        return taught.sum(dim=(1, 2))

    def gate(self, score: Tensor, keep: int, done: float) -> Tensor:
        """Gates that sum to `keep`."""
        return sharp(score, keep, 10.0**done)

    def loss(self, trial: Trial) -> Tensor:
        """The divergence, and how far the scores are from the attention that a deep layer pays."""
        assert trial.taught is not None
        paid = self.values(trial.taught)
        share = paid / paid.sum(dim=1, keepdim=True).clamp_min(1e-12)
        guess = torch.log_softmax(trial.scores["connector"], dim=1)
        apart = (share * (share.clamp_min(1e-12).log() - guess)).sum()
        square = (share.shape[1] * (guess.exp() - share)).square().mean()
        return trial.divergence + self.guide * (apart + 0.1 * square)
