"""What a user can cause to go wrong: each error is one sentence with the value, the place, the range and a way on."""

__all__ = [
    "ArtifactError",
    "BudgetError",
    "CheckError",
    "EvaluationError",
    "ExportError",
    "ImageError",
    "InvariantError",
    "MethodError",
    "ModelError",
    "RecipeError",
    "SampleError",
    "TapNotFound",
    "TokcarveError",
]


class TokcarveError(Exception):
    """The base of every failure that the input caused; the command line prints its text and exits with 2."""


class ModelError(TokcarveError):
    """A checkpoint cannot be found, read or handled."""


class BudgetError(TokcarveError):
    """A budget does not fit the visual tokens of the model."""


class MethodError(TokcarveError):
    """A method or one of its parameters is unknown, or the method cannot serve this model or budget."""


class TapNotFound(MethodError):
    """A method reads from a place that the graph does not have."""


class SampleError(TokcarveError):
    """A sample set is empty, unreadable or mostly broken."""


class ImageError(TokcarveError):
    """A file is not an image that can be used."""


class RecipeError(TokcarveError):
    """A recipe has faults; its text lists all of them, one per line."""


class ArtifactError(TokcarveError):
    """An artifact cannot be read, written or trusted."""


class ExportError(TokcarveError):
    """A model cannot be written for, or loaded by, a runtime."""


class CheckError(ExportError):
    """Two forms of a model that must agree do not."""


class EvaluationError(TokcarveError):
    """An evaluation cannot be trusted, so nothing of it is reported."""


class InvariantError(TokcarveError):
    """A pass broke, or met, a graph that does not hold what every graph of its stage must hold."""
