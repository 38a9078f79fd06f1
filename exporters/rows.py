"""How many rows of text the graphs of a model may have room for."""

from tokcarve.passes.errors import ExportError
from tokcarve.passes.geometry import Geometry

__all__ = ["check_rows"]


def check_rows(geometry: Geometry, *, max_text: int, max_new: int, batch: int = 1) -> None:
    """Raises ExportError for sizes that are too small, and for more rows than the model has positions or attends to."""
    for name, value, least in (("batch", batch, 1), ("max-text", max_text, 4), ("max-new", max_new, 1)):
        if value < least:
            raise ExportError(f"--{name} {value} is too small; give {least} or more")
    longest, limit = geometry.total + max_text + max_new, geometry.text.max_positions
    window = geometry.text.sliding_window
    asked = f"--max-text {max_text} and --max-new {max_new} with {geometry.total} visual tokens make {longest}"
    if longest > limit:
        raise ExportError(f"{asked} positions, and the model has {limit}; give less text or fewer new tokens")
    if window is not None and longest > window:
        raise ExportError(
            f"{asked} rows, more than the model's attention window of {window}; give less text or fewer new tokens"
        )
