"""`--sweep-tokens` and `--batch` of `tokcarve profile`: the graphs that they need, and their tables."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tokcarve.cli.output import Progress, print_line, print_table
from tokcarve.cli.profile_tables import sure

if TYPE_CHECKING:
    from tokcarve.exporters.device.profile import Profile
    from tokcarve.exporters.device.sweep import Batch, Staircase
    from tokcarve.recipes.artifact import Artifact

__all__ = ["Swept", "measure_sweep", "prepare_sweep", "print_sweep"]


@dataclass(frozen=True, kw_only=True)
class Swept:
    """What was asked for and found; None and empty where it was not."""

    staircase: "Staircase | None"
    batches: tuple["Batch", ...]

    def record(self) -> dict[str, Any]:
        """This as JSON."""
        return {
            "sweep": None if self.staircase is None else self.staircase.record(),
            "batches": [one.record() for one in self.batches],
        }


def prepare_sweep(
    found: "Artifact", tokens: Sequence[int] | None, batches: Sequence[int], progress: Progress | None
) -> tuple[int, ...]:
    """Makes what graphs are missing, and gives the counts to sweep, `tokens` or, where it is empty, those around the
    artifact's own; None sweeps none. Raises ExportError where graphs are missing and cannot be made here."""
    from tokcarve.exporters.device.face import read_export
    from tokcarve.exporters.device.scratch import read_sweep
    from tokcarve.exporters.device.sweep import counts_around, others_of
    from tokcarve.passes.errors import ExportError

    record = read_export(found.directory)
    wish = record.pruned.tokens
    counts = () if tokens is None else tuple(tokens) or counts_around(wish, record.total)
    if tokens is not None:
        others_of(counts, wish)
    wanted = (*counts, wish) if counts else ()
    known = read_sweep(found.directory, record)
    if set(wanted) <= set(known.tokens) and set(batches) <= {*known.batches, record.batch}:
        return counts
    try:
        from tokcarve.exporters.scratch import make_scratch
    except ModuleNotFoundError as error:
        raise ExportError(
            f"graphs of other shapes are needed, and {error.name} is not here to make them; run the same command once "
            "where tokcarve[compress] and the checkpoint are: it leaves them in the artifact's export/sweep, which can "
            "be copied here"
        ) from error
    make_scratch(found, tokens=wanted, batches=batches, progress=progress)
    return counts


def measure_sweep(
    made: "Profile", counts: Sequence[int], batches: Sequence[int], threads: int | None, progress: Progress | None
) -> Swept:
    """Measures the counts and the batches with the effort of `made`, whose longest answer is that of the batches."""
    from tokcarve.exporters.device.session import open_face
    from tokcarve.exporters.device.sweep import sweep_batches, sweep_tokens

    face, wish = open_face(made.artifact, threads), made.side.tokens
    tell = progress if progress is not None else lambda what, done, total: None
    stairs = sweep_tokens(face, wish, counts, made.effort, tell) if counts else None
    found = sweep_batches(face, batches, made.max_new, made.effort, made.memory, tell) if batches else ()
    return Swept(staircase=stairs, batches=found)


def print_sweep(swept: Swept) -> None:
    """The staircase with what it suggests, and a row per batch."""
    if swept.staircase is not None:
        _print_staircase(swept.staircase)
        print_line("")
    if swept.batches:
        rows = [_batch(one) for one in swept.batches]
        columns = ("batch", "images/s", "unpruned", "tokens/s", "unpruned", "first token", "end to end")
        title = f"batches: answers of {swept.batches[0].new} new tokens, and the gains"
        print_table(title, columns, rows)


def _print_staircase(stairs: "Staircase") -> None:
    rows = [
        (
            f"{one.tokens}{' (wish)' if one.tokens == stairs.wish else ''}",
            one.rows,
            f"{one.milliseconds.p50:.2f}",
            f"{one.costs:.3f}",
            sure(one.faster),
            f"{one.computes:.3f}",
            "step" if one.tokens in stairs.steps else "",
        )
        for one in stairs.points
    ]
    columns = ("tokens", "rows", "prefill ms", "of the wish", "95 %", "FLOPs", "")
    print_table("the whole language model over other counts of visual tokens", columns, rows)
    more = stairs.suggested - stairs.wish
    if more:
        print_line(
            f"suggested: {stairs.suggested} tokens, {more} more in the same time (within {stairs.tolerance:.0%})"
        )
    else:
        print_line(f"suggested: {stairs.wish} tokens; no more of those that were measured take the same time")


def _batch(one: "Batch") -> tuple[str, ...]:
    images = [f"{one.images(side):.2f}" for side in (0, 1)]
    tokens = [f"{one.new * one.images(side):.1f}" for side in (0, 1)]
    return (
        str(one.batch),
        images[0],
        images[1],
        tokens[0],
        tokens[1],
        f"{one.first[2].p50:.2f}x",
        f"{one.whole[2].p50:.2f}x",
    )
