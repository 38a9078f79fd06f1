"""An evaluation as JSON: the sides with their scores, the differences with intervals, and a verdict in words."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tokcarve import __version__
from tokcarve.exporters.evaluation.cast import PRUNED, UNPRUNED, Role
from tokcarve.exporters.evaluation.gate import Gate
from tokcarve.exporters.evaluation.questions import QuestionSet
from tokcarve.exporters.evaluation.scores import Measures

__all__ = ["FAMILY", "POPE", "Side", "evaluation_record"]

FAMILY, POPE = "family ", "pope "
"""What names of measures begin with that are grouped in the record."""
_FEW = 30  # pictures, below which a bootstrap is too sure of itself

Difference = list[float | None] | None


@dataclass(frozen=True, kw_only=True)
class Side:
    """A side that has answered: where its first run ran, and its measures."""

    role: Role
    provider: str
    measures: Measures


def evaluation_record(
    about: Mapping[str, Any], asked: QuestionSet, gate: Gate, sides: Sequence[Side], notes: Sequence[str]
) -> dict[str, Any]:
    """The whole record; the first side is the unpruned one, the second the artifact's, the rest are controls."""
    whole, pruned, *controls = sides
    pictures = max(asked.groups) + 1
    best = max(controls, key=lambda side: side.measures.values()["score"] or 0.0, default=None)
    seed = int(about["seed"])
    differences = {f"{PRUNED} - {UNPRUNED}": _grouped(pruned.measures.less(whole.measures, seed))}
    if best is not None:
        differences[f"{PRUNED} - {best.role.name}"] = _grouped(pruned.measures.less(best.measures, seed))
    if pictures < _FEW:
        notes = [*notes, f"fewer than {_FEW} images make intervals that are too narrow, or none; ask about more"]
    families = Counter(one.family for one in asked.questions)
    return {
        "tokcarve": __version__,
        **about,
        "data": {
            "source": asked.source,
            "sha256": asked.sha256,
            "questions": len(asked.questions),
            "images": pictures,
            "families": dict(families),
            "unanswerable": list(asked.unanswerable),
        },
        "gate": gate.record(),
        "sides": {side.role.name: _side(side) for side in sides},
        "best_control": None if best is None else best.role.name,
        "differences": differences,
        "verdict": _verdict(whole, pruned, best, differences),
        "notes": list(notes),
    }


def _side(side: Side) -> dict[str, Any]:
    role = side.role
    counts = {"tokens": role.tokens, "tokens_mean": role.mean, "runs": len(role.runs)}
    ran = {"method": role.method, "runtime": role.runtime, "provider": side.provider}
    routed = {} if role.shares is None else {"shares": {str(one): share for one, share in role.shares.items()}}
    return {**ran, **counts, **routed, **_grouped(side.measures.values())}


def _grouped(values: Mapping[str, Any]) -> dict[str, Any]:
    """Measures by name, those of families and of POPE in groups of their own; None for POPE without its questions."""
    families = {name.removeprefix(FAMILY): one for name, one in values.items() if name.startswith(FAMILY)}
    pope = {name.removeprefix(POPE): one for name, one in values.items() if name.startswith(POPE)}
    rest = {name: one for name, one in values.items() if not name.startswith((FAMILY, POPE))}
    named = {name: one for name, one in families.items() if name}
    return {**rest, "pope": None if pope["accuracy"] is None else pope, "families": named}


def _verdict(whole: Side, pruned: Side, best: Side | None, differences: Mapping[str, Mapping[str, Any]]) -> str:
    """What pruning costs in answers, and whether choosing what to keep was worth it."""
    scores = [side.measures.values()["score"] or 0.0 for side in (pruned, whole)]
    loss, *gains = (one["score"] for one in differences.values())
    mean = " on average" if pruned.role.shares is not None else ""
    counts = f"{pruned.role.tokens} of {whole.role.tokens} visual tokens{mean}"
    text = f"with {counts} {scores[0]:.1%} of the answers are right instead of {scores[1]:.1%}: {_spelled(loss)}"
    if best is None:
        return f"{text}; no control says what dropping blindly would cost"
    gain: Difference = gains[0]
    assert gain is not None
    low, high = gain[1:]
    if low is not None and low > 0:
        won = "beats"
    elif high is not None and high < 0:
        won = "is worse than"
    else:
        won = "cannot be told from"
    return f"{text}; it {won} the best control, {best.role.name}: {_spelled(gain)}"


def _spelled(found: Difference) -> str:
    """A difference of shares in points with its interval."""
    if found is None or found[0] is None:
        return "not defined"
    points = f"{100 * found[0]:+.1f} points"
    if found[1] is None or found[2] is None:
        return f"{points} (no interval)"
    return f"{points} (95 % {100 * found[1]:+.1f} to {100 * found[2]:+.1f})"
