"""The record of an evaluation as tables: in Markdown for a file, in rows for a terminal."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Table", "markdown", "tables"]

_SCORES = {"score": "score", "macro": "by family", "exact": "exact", "loyalty": "loyal"}
_APART = {"hallucination": "yes to what is absent", "localisation": "place right"}
_DIFFERENCES = {
    "score": "score",
    "macro": "score by family",
    "loyalty": "loyal",
    "kl": "KL",
    "hallucination": "yes to absent",
    "localisation": "place right",
}
_NATS = frozenset(("kl", "kl_first"))


@dataclass(frozen=True, kw_only=True)
class Table:
    """A title, heads and rows of text."""

    title: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]


def tables(record: Mapping[str, Any]) -> list[Table]:
    """What a reader needs, in order: scores, families, yes-no questions, hallucination and places, differences."""
    sides: Mapping[str, Mapping[str, Any]] = record["sides"]
    families = list(next(iter(sides.values()))["families"])
    made = [
        Table(
            title="scores, percent; KL from the unpruned, nats per token",
            heads=("side", "tokens", "mean", *_SCORES.values(), "KL", "first"),
            rows=[_scores(name, side) for name, side in sides.items()],
        )
    ]
    if families:
        heads = ("side", *families)
        rows = [(name, *(_share(side["families"][one]) for one in families)) for name, side in sides.items()]
        made.append(Table(title="score by family, percent", heads=heads, rows=rows))
    if all(side["pope"] for side in sides.values()):
        heads = ("side", "accuracy", "precision", "recall", "F1", "yes", "neither")
        keys = ("accuracy", "precision", "recall", "f1", "yes_ratio", "unclear")
        rows = [(name, *(_share(side["pope"][one]) for one in keys)) for name, side in sides.items()]
        made.append(Table(title="yes-no questions as POPE scores them, percent", heads=heads, rows=rows))
    apart = [key for key in _APART if all(side[key] is not None for side in sides.values())]
    if apart:
        heads = ("side", *(_APART[key] for key in apart))
        rows = [(name, *(_share(side[key]) for key in apart)) for name, side in sides.items()]
        made.append(Table(title="hallucination and localisation, percent", heads=heads, rows=rows))
    rows = [row for name, one in record["differences"].items() for row in _differences(name, one)]
    heads = ("difference", "of", "is", "from", "to")
    made.append(Table(title="differences in points (KL: nats), 95 % intervals over images", heads=heads, rows=rows))
    return made


def markdown(record: Mapping[str, Any]) -> str:
    """The whole record as a page."""
    data, gate = record["data"], record["gate"]
    ran = [f"{name}: {side['provider']} ({side['runtime']})" for name, side in record["sides"].items()]
    state = "open" if gate["passed"] else "closed, and ignored as asked"
    lines = [
        f"# Evaluation of {record['method']} on {record['model']}",
        "",
        f"{record['verdict'][0].upper()}{record['verdict'][1:]}.",
        "",
        f"- {data['questions']} questions about {data['images']} images of `{data['source']}` (sha256 "
        f"{data['sha256'][:12]}), {len(data['unanswerable'])} lines unanswerable",
        f"- runtime {record['runtime']}, up to {record['max_new']} tokens, seed {record['seed']}, tokcarve "
        f"{record['tokcarve']}",
        f"- gate ({gate['rule']}): {state}; {gate['detail']}",
        f"- ran on {'; '.join(ran)}",
        "- score: VQA's soft match, mean over questions; by family: mean over families; loyal: answers equal to the "
        "unpruned model's; first: KL of the first token",
        *(f"- {note}" for note in record["notes"]),
    ]
    for table in tables(record):
        lines += ["", f"## {table.title[0].upper()}{table.title[1:]}", "", _row(table.heads)]
        lines += [f"|{'---|' + '--:|' * (len(table.heads) - 1)}", *map(_row, table.rows)]
    if data["unanswerable"]:
        lines += ["", "## Unanswerable lines", "", *(f"- {reason}" for reason in data["unanswerable"])]
    return "\n".join(lines) + "\n"


def _scores(name: str, side: Mapping[str, Any]) -> tuple[str, ...]:
    runs = f" ({side['runs']} draws)" if side["runs"] > 1 else ""
    shares = (_share(side[key]) for key in _SCORES)
    nats = (_nats(side[key]) for key in ("kl", "kl_first"))
    counts = (str(side["tokens"]), f"{side['tokens_mean']:.4g}")
    return (f"{name}{runs}", *counts, *shares, *nats)


def _differences(name: str, found: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """A row per difference; those of divergences are in nats, all others in points."""
    rows = []
    for key, title in _DIFFERENCES.items():
        if found[key] is not None:
            rows.append((name, title, *(_gap(key, value) for value in found[key])))
    if found["pope"]:
        rows.append((name, "yes-no F1", *(_gap("f1", value) for value in found["pope"]["f1"] or [None] * 3)))
    return rows


def _gap(key: str, value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:+.4f}" if key in _NATS else f"{100 * value:+.1f}"


def _share(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"


def _nats(value: float) -> str:
    return f"{value:.4f}"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
