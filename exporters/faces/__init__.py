"""The faces that an export can have, by name: one runtime's own layout each."""

from tokcarve.exporters.faces.genai import Genai
from tokcarve.exporters.faces.hf import Hf
from tokcarve.exporters.faces.kind import FaceKind
from tokcarve.exporters.faces.static import Ort, Trt

__all__ = ["FACES", "NOT_WRITTEN"]

FACES: dict[str, FaceKind] = {kind.name: kind for kind in (Ort(), Trt(), Hf(), Genai())}
"""A further face is its file and a line here."""

NOT_WRITTEN = {
    "edgellm": "TensorRT Edge-LLM makes no graphs of a LLaVA model that a choice could be put into, and its runner "
    "counts image tokens by the grid; face trt has static graphs for TensorRT itself"
}
"""Runtimes that a user may ask for by name, and why there is no face for them."""
