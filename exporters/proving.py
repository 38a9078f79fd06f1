"""The static graphs as a proof runs them: products as exact as the graph says, bfloat16 by float32 twins on a CPU."""

from dataclasses import replace
from pathlib import Path

from tokcarve.exporters.device.face import ExportRecord
from tokcarve.exporters.device.session import Face

__all__ = ["CPU", "proving_face", "unshown"]

CPU = ("CPUExecutionProvider",)


def proving_face(
    artifact: Path, record: ExportRecord, providers: tuple[str, ...] | None = None, *, exact: bool = True
) -> Face:
    """The face of an export for comparing numbers, on `providers` unless these are to be found; `exact` as in `Face`.

    ModuleNotFoundError where a bfloat16 export meets a CPU without onnx.
    """
    face = Face(artifact=artifact, record=record, exact=exact)
    face = face if providers is None else replace(face, providers=providers)
    if record.dtype != "bfloat16" or face.providers != CPU:
        return face
    from tokcarve.exporters.widen import widened

    return replace(face, reader=widened)


def unshown(face: Face) -> list[str]:
    """What a comparison of numbers on `face` leaves open of its precision."""
    left = []
    if face.reader is not None:
        left.append(
            "bfloat16: ONNX Runtime computes in it on no CPU, so float32 twins of the graphs ran, with the same "
            "weights; rounding between operators was not seen"
        )
    if face.record.precision in ("int8", "int4"):
        left.append(
            "int8 activations: on a CPU ONNX Runtime multiplies quantised weights with activations that it rounds to "
            "8 bits; the proof ran without that"
        )
    return left
