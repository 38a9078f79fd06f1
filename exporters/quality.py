"""What pruning and precision each do to answers, side by side, on made-up samples: no labels are needed.

Every model is made to say what the whole model says in float32, and asked at each token what it would have said. The
samples are made as golden ones are, but are the same whatever the precision, so that exports can be compared.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tokcarve.exporters.device.face import Quality, QualityRow
from tokcarve.exporters.device.pipeline import Pipeline
from tokcarve.exporters.device.playing import play
from tokcarve.exporters.device.session import Face
from tokcarve.exporters.golden import NEW_TOKENS, asked, make_samples
from tokcarve.exporters.source import Source
from tokcarve.passes.asking import Question, ask
from tokcarve.recipes.carve import carve, whole

__all__ = ["Heard", "hear", "measure"]

# times as many samples as are compared number by number: shares of few tokens say little
_TIMES, _SEED = 2, 1


@dataclass(frozen=True, kw_only=True)
class Heard:
    """Answers in float32 by torch: what the whole model says of each sample, past any stop, and the logits
    [tokens, vocab] of every row of it, by the whole and by the carved model."""

    samples: tuple[Question, ...]
    said: tuple[tuple[int, ...], ...]
    full: tuple[Tensor, ...]
    carved: tuple[Tensor, ...]


def hear(source: Source, model: nn.Module) -> Heard:
    """Samples answered by `model`, which has the checkpoint's weights as they are, whole and carved."""
    sizes, batch = source.largest.sizes, source.largest.sizes.batch
    plain, carved = whole(model, source.artifact), carve(model, source.artifact, source.largest.budget).graphs
    count, text = batch * max(1, source.sampled * _TIMES // batch), sizes.prompt - sizes.tokens
    samples, _ = make_samples(carved, count=count, max_text=text, seed=_SEED)
    said, full, pruned = [], [], []
    for sample in samples:
        reply = ask(plain, sample, min(NEW_TOKENS, sizes.max_new))
        said.append(tuple(reply.tokens))
        full.append(reply.logits)
        pruned.append(ask(carved, sample, len(reply.tokens), reply.tokens).logits)
    return Heard(samples=samples, said=tuple(said), full=tuple(full), carved=tuple(pruned))


def measure(heard: Heard, face: Face) -> Quality:
    """The table: both models in float32 and, where the export has another precision, both as it has them, by ONNX
    Runtime as it runs them for a user, or as `face` says."""
    name = face.record.precision
    rows = [_row("fp32", heard, heard.full), _row("fp32, pruned", heard, heard.carved)]
    if name != "fp32":
        rows += [
            _row(f"{name}{'' if baseline else ', pruned'}", heard, _answers(face, heard, baseline))
            for baseline in (True, False)
        ]
    return Quality(samples=len(heard.said), tokens=sum(map(len, heard.said)), rows=tuple(rows))


def _answers(face: Face, heard: Heard, baseline: bool) -> list[Tensor]:
    """Logits [tokens, vocab] of every sample by the exported graphs."""
    pipeline, found = Pipeline(face, baseline=baseline), list[Tensor]()
    batch = face.record.batch
    for start in range(0, len(heard.said), batch):
        some = heard.said[start : start + batch]
        samples = [asked(one) for one in heard.samples[start : start + batch]]
        made = play(pipeline, samples, len(some[0]), some)
        found += torch.stack([torch.from_numpy(one["logits"][:, 0]) for one in made.steps], dim=1)
    pipeline.release()
    return found


def _row(name: str, heard: Heard, logits: Sequence[Tensor]) -> QualityRow:
    same, divergence, count = 0, 0.0, sum(map(len, heard.said))
    for said, full, found in zip(heard.said, heard.full, logits, strict=True):
        same += int((found.argmax(dim=1) == torch.tensor(said)).sum())
        wanted, other = (torch.log_softmax(one.double(), dim=1) for one in (full, found))
        divergence += float((wanted.exp() * (wanted - other)).sum(dim=1).clamp_min(0).sum())
    return QualityRow(graphs=name, agreement=same / count, kl=divergence / count)
