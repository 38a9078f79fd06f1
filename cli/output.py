"""How every verb speaks: one JSON object on stdout or tables for people, progress and errors on stderr."""

import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

__all__ = [
    "Progress",
    "as_object",
    "checked_rows",
    "emit_json",
    "print_facts",
    "print_line",
    "print_table",
    "progress_bars",
]

Progress = Callable[[str, int, int], None]
"""Called with (what is being done, how much of it is done, how much there is)."""


def as_object(verb: str, fields: Mapping[str, Any]) -> str:
    """The one object of `--json`: {"format": 1, "verb": ..., ...}, keys in the order given."""
    return json.dumps({"format": 1, "verb": verb, **fields}, indent=2, ensure_ascii=False, allow_nan=False)


def emit_json(verb: str, fields: Mapping[str, Any]) -> None:
    """Print `as_object`."""
    print(as_object(verb, fields))


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """A table on stdout; columns whose cells are all numbers stand to the right."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD)
    for place, name in enumerate(columns):
        numbers = all(isinstance(row[place], int | float) for row in rows)
        justify: Literal["left", "right"] = "right" if numbers and rows else "left"
        word = max((len(word) for word in name.split()), default=0)
        table.add_column(name, justify=justify, overflow="fold", no_wrap=place == 0, min_width=word)
    for row in rows:
        table.add_row(*(_cell(value) for value in row))
    Console(highlight=False, markup=False).print(table)


def print_facts(title: str, facts: Mapping[str, Any]) -> None:
    """Named values on stdout, one per line; None is left out."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="bold", box=None, show_header=False, padding=(0, 2))
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in facts.items():
        if value is not None:
            table.add_row(name, _cell(value))
    Console(highlight=False, markup=False).print(table)


def checked_rows(checks: Sequence[tuple[str, str]], *, together: bool = True) -> list[tuple[str, str]]:
    """One row per check (name, what was found); `together` those made of every file ("a.onnx: ...") are one row."""

    def what(name: str) -> str | None:
        file, _, rest = name.partition(": ")
        return rest if together and rest and "." in file and " " not in file else None

    of_files = Counter(found for name, _ in checks if (found := what(name)) is not None)
    return [(name, f"{count} files") for name, count in of_files.items()] + [
        (name, detail) for name, detail in checks if what(name) is None
    ]


def print_line(text: str) -> None:
    """One line on stdout, as it is."""
    print(text)


@contextmanager
def progress_bars() -> Iterator[Progress | None]:
    """Bars on stderr, one per kind of work; nothing where stderr is no terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

    with Bars(console=Console(stderr=True), transient=True) as bars:
        tasks: dict[str, TaskID] = {}

        def advance(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done, total=total)

        yield advance


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
