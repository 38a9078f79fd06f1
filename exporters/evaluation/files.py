"""Where an evaluation is kept: evaluation.json, evaluation.md and answers.jsonl, all at once or not at all."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokcarve.exporters.evaluation.report import markdown
from tokcarve.passes.errors import ArtifactError
from tokcarve.recipes.atomic import check_target, replace_directory, write_file

__all__ = ["ANSWERS", "FOLDER", "RECORD", "REPORT", "check_place", "journal_of", "write_evaluation"]

FOLDER = "evaluation"
"""Where an artifact keeps its evaluation, unless told."""
RECORD, REPORT, ANSWERS = "evaluation.json", "evaluation.md", "answers.jsonl"


def journal_of(out: Path) -> Path:
    """Where the evaluation that goes to `out` keeps its journal."""
    return out.parent / f".{out.name}.journal.jsonl"


def check_place(out: Path) -> None:
    """ArtifactError for a place that holds anything else than an evaluation, or cannot be written."""
    place = Path(os.path.realpath(out))
    check_target(place)
    if place.is_dir():
        foreign = sorted({path.name for path in place.iterdir()} - {RECORD, REPORT, ANSWERS})
        if foreign:
            raise ArtifactError(
                f"{out} holds {foreign[0]}, which is no part of an evaluation, so it stays; choose another --out"
            )


def write_evaluation(out: Path, record: Mapping[str, Any], lines: Sequence[Mapping[str, Any]]) -> None:
    """Puts the three files at `out`, in place of an earlier evaluation."""
    with replace_directory(Path(os.path.realpath(out))) as work:
        write_file(work / RECORD, json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
        write_file(work / REPORT, markdown(record))
        write_file(work / ANSWERS, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
