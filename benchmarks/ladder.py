"""Every face of every method, exported and proven: which pass their ladder, which a method cannot have and why.

    python benchmarks/ladder.py --tokens 64 128 --out ladder.jsonl     (resumes; one line per method and count)
    python benchmarks/ladder.py table ladder.jsonl

Every artifact is made of the bundled checkpoint, exported with `--face all` and proven a second time from its files by
`verify`. A method that must be trained is, in a few steps: that the export holds says nothing of how well it
chooses. Methods that keep every visual token, and work less on them or let all go at once, have one line.
"""

import argparse
import json
import sys
import time
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tokcarve.exporters.export import export_artifact
from tokcarve.exporters.faces import FACES
from tokcarve.exporters.faces.kind import ALL, Request
from tokcarve.exporters.recheck import recheck
from tokcarve.passes.errors import TokcarveError
from tokcarve.passes.methods import METHODS
from tokcarve.recipes.artifact import Artifact
from tokcarve.recipes.compress import compress

SAMPLES: dict[str, Any] = {"samples": "scenes", "count": 8}
"""What a method gets to see that learns from samples, in STEPS steps."""
STEPS = 4
KEEPING = frozenset(("redundancylens", "dyvte"))
"""Methods that have no count."""


def made(method: str, tokens: int, out: Path) -> tuple[Artifact, bool]:
    """The artifact, and whether the method had to see samples."""
    try:
        return compress("tiny", method=method, tokens=tokens, out=out), False
    except TokcarveError as error:
        if "learns its" not in str(error):
            raise
        steps = STEPS if "learns its module" in str(error) else None
    return compress("tiny", method=method, tokens=tokens, out=out, steps=steps, **SAMPLES), True


def climb(method: str, tokens: int, place: Path) -> dict[str, Any]:
    """One line of the table."""
    found: dict[str, Any] = {"method": method, "tokens": tokens}
    try:
        artifact, sampled = made(method, tokens, place / "artifact")
    except TokcarveError as error:
        return found | {"cannot": str(error)}
    try:
        started = time.perf_counter()
        result = export_artifact(artifact.directory, Request(faces=(ALL,)))
        seconds = time.perf_counter() - started
        report = recheck(artifact.directory)
    except TokcarveError as error:
        return found | {"error": str(error)}
    return found | {
        "sampled": sampled,
        "faces": list(result.record.faces),
        "refused": result.record.refused,
        "checks": len(result.record.checks),
        "again": len(report.checks),
        "failed": [f"{check.name}: {check.detail}" for check in report.failed],
        "not_checked": list(result.record.not_checked),
        "seconds": round(seconds, 1),
    }


def run(options: argparse.Namespace) -> None:
    """Write a line per method and count that is not in the file yet."""
    out: Path = options.out
    lines = [json.loads(line) for line in out.read_text().splitlines()] if out.is_file() else []
    done = {(line["method"], line["tokens"]) for line in lines}
    methods = [method for method in options.methods or METHODS if method != "none"]
    pairs = [(method, 576 if method in KEEPING else tokens) for tokens in options.tokens for method in methods]
    for method, tokens in dict.fromkeys(pairs):
        if (method, tokens) not in done:
            with TemporaryDirectory() as place:
                line = climb(method, tokens, Path(place))
            with out.open("a") as stream:
                stream.write(json.dumps(line) + "\n")
            held = line.get("error") or line.get("cannot") or f"{', '.join(line['faces'])} {line['failed']}"
            print(method, tokens, held, file=sys.stderr)


def table(lines: list[dict[str, Any]]) -> str:
    """Markdown: a row per method and count, a column per face, and below it why faces were refused."""
    rows = [f"| method | tokens | {' | '.join(FACES)} | checks | again from files | export s |"]
    rows.append("|---|--:|" + "---|" * len(FACES) + "--:|--:|--:|")
    reasons, order = Counter[str](), list(METHODS)
    for line in sorted(lines, key=lambda line: (order.index(line["method"]), line["tokens"])):
        if "error" in line:
            rows.append(f"| {line['method']} | {line['tokens']} | **{line['error']}** |")
            continue
        if "cannot" in line:
            rows.append(f"| {line['method']} | {line['tokens']} |{' – |' * len(FACES)} | | |")
            reasons[f"{line['method']} at {line['tokens']}: {line['cannot']}"] += 1
            continue
        cells = []
        for face in FACES:
            held = "passed" if not line["failed"] else f"**{len(line['failed'])} failed**"
            cells.append(held if face in line["faces"] else "–")
        reasons.update(f"{face}: {why}" for face, why in line["refused"].items())
        figures = f"{line['checks']} | {line['again']} | {line['seconds']}"
        rows.append(f"| {line['method']} | {line['tokens']} | {' | '.join(cells)} | {figures} |")
    return "\n".join([*rows, "", *(f"- {why} ({count} x)" for why, count in sorted(reasons.items()))])


def main() -> None:
    """Run what is missing, or print the table; exit with 1 where something failed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("show", nargs="*", help="table FILE")
    parser.add_argument("--tokens", type=int, nargs="+", default=[64, 128])
    parser.add_argument("--methods", nargs="+")
    parser.add_argument("--out", type=Path, default=Path("ladder.jsonl"))
    options = parser.parse_args()
    if not options.show:
        run(options)
    lines = [
        json.loads(line) for line in Path(options.show[-1] if options.show else options.out).read_text().splitlines()
    ]
    print(table(lines))
    if any(line.get("failed") or "error" in line for line in lines):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
