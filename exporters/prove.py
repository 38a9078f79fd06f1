"""The proof of an export before it takes its place: its graphs by rules, its weights by value, its numbers by torch."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from tokcarve.exporters import verify
from tokcarve.exporters.device.compare import Check
from tokcarve.exporters.device.face import WEIGHTS
from tokcarve.exporters.faces.kind import FaceKind, Proof, Work
from tokcarve.exporters.golden import Golden
from tokcarve.exporters.sizes import check_size
from tokcarve.exporters.wellformed import check_graph

__all__ = ["judge", "prove"]

Progress = Callable[[str, int, int], None]


def prove(work: Work, kinds: Sequence[FaceKind], tell: Progress) -> dict[str, Proof]:
    """Checks everything in `work`: what all faces share under the name "", then each face under its own.

    CheckError for the first check that does not hold.
    """
    source = work.source
    paths = [work.onnx / graph.name for graph in work.graphs]
    tell("checking", 0, len(kinds) + 1)
    checks = [check_graph(path, work.draft.open.get(path.name, ()), work.draft.opset) for path in paths]
    checks.append(check_size((work.onnx / WEIGHTS).stat().st_size, work.predicted))
    checks.append(verify.check_weights(paths, source.named, source.stored))
    verify.require(checks)
    power, left = _power(work)
    proofs = {"": Proof(checks=(*checks, *power), not_checked=tuple(left))}
    for done, kind in enumerate(kinds):
        tell("checking", done + 1, len(kinds) + 1)
        proofs[kind.name] = kind.prove(work)
        verify.require(proofs[kind.name].checks)
    tell("checking", len(kinds) + 1, len(kinds) + 1)
    return proofs


def _power(work: Work) -> tuple[list[Check], list[str]]:
    """Whether golden comparisons can fail, and what they leave open."""
    checks, left = list[Check](), list[str]()
    for one, golden in work.goldens:
        further = one is not work.source.largest
        power, open_questions = judge(golden, work.draft.dtype)
        checks += [
            replace(check, name=f"pruned to {one.budget}: {check.name}" if further else check.name) for check in power
        ]
        left += [f"pruned to {one.budget}: {text}" if further else text for text in open_questions]
    return checks, left


def judge(golden: Golden, dtype: str = "float32") -> tuple[list[Check], list[str]]:
    """What the golden comparison is worth: the check of power if it has any, and what it leaves open."""
    power, left = verify.check_power(golden, dtype), list[str]()
    if not power.passed:
        left.append(f"the comparison of logits has no power to tell the pruned model apart: {power.detail}")
    if golden.skipped:
        left.append(f"{golden.skipped} images were passed over: rounding decides what they keep or merge")
    return [power] if power.passed else [], left
