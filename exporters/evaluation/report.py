"""The record of an evaluation as tables, a column per side: in Markdown for a file, in rows for a terminal."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tokcarve.exporters.evaluation.questions import asked_about

__all__ = ["Table", "markdown", "tables"]

_SCORES = {"score": "score", "macro": "by family", "exact": "exact", "loyalty": "loyal"}
_NATS = {"kl": "KL", "kl_first": "KL, first"}
_POPE = {
    "accuracy": "accuracy",
    "precision": "precision",
    "recall": "recall",
    "f1": "F1",
    "yes_ratio": "said yes",
    "unclear": "said neither",
}
_APART = {"hallucination": "yes to absent", "localisation": "place right"}
_DIFFERENCES = ("score", "macro", "exact", "loyalty", "kl", "hallucination", "localisation")

_Sides = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Table:
    """A title, heads and rows of text."""

    title: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]


def tables(record: Mapping[str, Any]) -> list[Table]:
    """What a reader needs, in order: scores, families, yes-no questions, hallucination and places, differences."""
    sides: _Sides = record["sides"]
    first = next(iter(sides.values()))
    counts = [("tokens", *(str(one["tokens"]) for one in sides.values()))]
    counts.append(("mean tokens", *(f"{one['tokens_mean']:.4g}" for one in sides.values())))
    if any("shares" in one for one in sides.values()):
        counts.append(("chosen", *(_chosen(one.get("shares", {})) for one in sides.values())))
    if any(one["runs"] > 1 for one in sides.values()):
        counts.append(("runs", *(str(one["runs"]) for one in sides.values())))
    nats = [
        (title, *("" if one[key] is None else f"{one[key]:.4f}" for one in sides.values()))
        for key, title in _NATS.items()
    ]
    parts = {"scores, percent (KL: nats per token)": [*counts, *_shares(sides, _SCORES), *nats]}
    parts["score by family, percent"] = _shares(sides, {one: one for one in first["families"]}, "families")
    if first["pope"]:
        parts["yes-no questions as POPE scores them, percent"] = _shares(sides, _POPE, "pope")
    apart = {key: title for key, title in _APART.items() if first[key] is not None}
    parts["hallucination and localisation, percent"] = _shares(sides, apart)
    made = [Table(title=title, heads=("", *sides), rows=rows) for title, rows in parts.items() if rows]
    return [*made, _differences(record["differences"])]


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
        f"- {asked_about(data['questions'], data['images'])} of `{data['source']}` (sha256 "
        f"{data['sha256'][:12]}), {len(data['unanswerable'])} lines unanswerable",
        f"- runtime {record['runtime']}, up to {record['max_new']} tokens, seed {record['seed']}, tokcarve "
        f"{record['tokcarve']}",
        f"- gate ({gate['rule']}): {state}; {gate['detail']}",
        f"- ran on {'; '.join(ran)}",
        "- score: VQA's soft match, mean over questions; by family: mean over families; loyal: answers equal to the "
        "unpruned model's; mean tokens: over the layers of the language model; chosen: budgets by the router's choice",
        *(f"- {note}" for note in record["notes"]),
    ]
    for table in tables(record):
        lines += ["", f"## {table.title[0].upper()}{table.title[1:]}", "", _row(table.heads)]
        lines += [f"|{'---|' + '--:|' * (len(table.heads) - 1)}", *map(_row, table.rows)]
    if data["unanswerable"]:
        lines += ["", "## Unanswerable lines", "", *(f"- {reason}" for reason in data["unanswerable"])]
    return "\n".join(lines) + "\n"


def _shares(sides: _Sides, titles: Mapping[str, str], group: str | None = None) -> list[tuple[str, ...]]:
    """A row per measure, of a group of the record where one is named."""
    found = [side if group is None else side[group] for side in sides.values()]
    return [(title, *(_percent(one[key]) for one in found)) for key, title in titles.items()]


def _chosen(shares: Mapping[str, float]) -> str:
    """The budgets that a router chose, with the share of the questions that each answered."""
    return ", ".join(f"{tokens}: {100 * share:.0f} %" for tokens, share in shares.items())


def _differences(found: Mapping[str, Mapping[str, Any]]) -> Table:
    """A row per measure, a column per side that the artifact is compared with."""
    titles = {**_SCORES, **_NATS, **_APART}
    keys = [key for key in _DIFFERENCES if all(one[key] is not None for one in found.values())]
    rows = [(titles[key], *(_gap(key, one[key]) for one in found.values())) for key in keys]
    if all(one["pope"] and one["pope"]["f1"] for one in found.values()):
        rows.append(("F1", *(_gap("f1", one["pope"]["f1"]) for one in found.values())))
    title = "differences in points (KL: nats) with 95 % intervals over images"
    return Table(title=title, heads=("", *found), rows=rows)


def _gap(key: str, found: Sequence[float | None]) -> str:
    """A difference and its interval: those of divergences are in nats, all others in points."""
    spelled = ["" if one is None else f"{one:+.4f}" if key in _NATS else f"{100 * one:+.1f}" for one in found]
    return f"{spelled[0]} [{spelled[1]}, {spelled[2]}]" if spelled[1] else f"{spelled[0]} (no interval)"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
