"""Files stay short enough to read at one sitting, functions on one screen, comments rare."""

import ast
import io
import tokenize
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MOST_LINES, MOST_METHOD_LINES, MOST_FUNCTION_LINES, MOST_COMMENTS = 300, 150, 50, 10


def _sources() -> Iterator[Path]:
    for folder in ("cli", "exporters", "passes", "recipes", "tiny"):
        yield from sorted((ROOT / folder).rglob("*.py"))


def _lines(file: Path) -> int:
    return len(file.read_text().splitlines())


def test_files_are_short() -> None:
    long = [f"{file.relative_to(ROOT)}: {_lines(file)}" for file in _sources() if _lines(file) > MOST_LINES]
    assert not long, f"split these, the limit is {MOST_LINES} lines: {long}"


def test_method_files_are_shorter() -> None:
    files = sorted((ROOT / "passes" / "methods").glob("*.py"))
    long = [f"{file.name}: {_lines(file)}" for file in files if _lines(file) > MOST_METHOD_LINES]
    assert not long, f"a method takes at most {MOST_METHOD_LINES} lines: {long}"


def test_functions_fit_a_screen() -> None:
    long = []
    for file in _sources():
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > MOST_FUNCTION_LINES:
                    long.append(f"{file.relative_to(ROOT)}:{node.lineno} {node.name}: {lines}")
    assert not long, f"split these, the limit is {MOST_FUNCTION_LINES} lines: {long}"


def test_comments_are_rare() -> None:
    wordy = []
    for file in _sources():
        text = file.read_text()
        comments = [t for t in tokenize.generate_tokens(io.StringIO(text).readline) if t.type == tokenize.COMMENT]
        if len(comments) > 3 and len(comments) * 100 > MOST_COMMENTS * _lines(file):
            wordy.append(f"{file.relative_to(ROOT)}: {len(comments)} in {_lines(file)} lines")
    assert not wordy, f"comments say why, at most {MOST_COMMENTS} in 100 lines: {wordy}"
