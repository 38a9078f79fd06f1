"""Options that may stand without a value: `--sweep-tokens` alone reads `--sweep-tokens auto`."""

import re
from collections.abc import Iterator, Sequence
from typing import Any

from typer.core import TyperCommand

__all__ = ["BARE", "BareOptions"]

BARE = {"--sweep-tokens": "auto"}
"""What they mean alone."""


class BareOptions(TyperCommand):
    """A command whose BARE options take numbers with commas between them, or nothing."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As ever, with what was left out filled in."""
        return super().parse_args(ctx, list(_filled(args)))


def _filled(args: Sequence[str]) -> Iterator[str]:
    for word, after in zip(args, [*args[1:], ""], strict=True):
        yield word
        if word in BARE and after != BARE[word] and re.fullmatch(r"[\d,]+", after) is None:
            yield BARE[word]
