"""One artifact, the same questions, three ways: torch, ONNX Runtime, and lmms-eval with its own task and score.

    python benchmarks/same_score.py ARTIFACT --count 24        (with lmms-eval installed beside tokcarve)

Prints a table in Markdown, and exits with 1 where a score or a single answer differs.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from lmms_task import write

from tokcarve.exporters.evaluation import evaluate
from tokcarve.tiny import evaluation

SIDES = ("unpruned", "pruned")
TASK = "tokcarve_scenes"


def by_tokcarve(artifact: Path, data: Path, runtime: str) -> dict[str, list[tuple[str, float]]]:
    """What each side says to every question, and its score."""
    made = evaluate(artifact, data=data, runtime=runtime, controls=None, gate=False)
    return {side: [(one["said"][side], one["score"][side]) for one in made.lines()] for side in SIDES}


def by_lmms_eval(artifact: Path, folder: Path, side: str) -> list[tuple[str, float]]:
    """The same by lmms-eval, in a process of its own and without a network."""
    out = folder / side
    command = [
        sys.executable,
        "-m",
        "lmms_eval",
        "--model",
        "tokcarve",
        "--model_args",
        f"artifact={artifact},side={side}",
    ]
    command += ["--include_path", str(folder), "--tasks", TASK, "--output_path", str(out), "--log_samples"]
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(folder / "cache")}
    subprocess.run(command, check=True, env={**os.environ, **offline}, stdout=subprocess.DEVNULL)
    (samples,) = out.rglob(f"*samples_{TASK}.jsonl")
    rows = sorted((json.loads(line) for line in samples.read_text().splitlines()), key=lambda row: row["doc_id"])
    said = (row["filtered_resps"] for row in rows)
    texts = [one[0] if isinstance(one, list) else one for one in said]
    return [(text, row["equal"]) for text, row in zip(texts, rows, strict=True)]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--count", type=int, default=24)
    options = parser.parse_args()
    artifact = options.artifact.resolve()
    with TemporaryDirectory() as work:
        folder = Path(work)
        write(folder, list(evaluation(options.count)))
        found = {way: by_tokcarve(artifact, folder / "questions.jsonl", way) for way in ("torch", "ort")}
        found["lmms-eval"] = {side: by_lmms_eval(artifact, folder, side) for side in SIDES}
    print(f"| side, {options.count} questions | torch | ONNX Runtime | lmms-eval | answers |\n|---|--:|--:|--:|---|")
    alike = True
    for side in SIDES:
        scores = [100 * sum(score for _, score in way[side]) / options.count for way in found.values()]
        same = len({tuple(way[side]) for way in found.values()}) == 1
        alike = alike and same
        print(f"| {side} | {' | '.join(f'{one:.2f}' for one in scores)} | {'equal' if same else 'differ'} |")
    if not alike:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
