"""The faces that an export can have, by name: one runtime's own layout each."""

from tokcarve.exporters.faces.genai import Genai
from tokcarve.exporters.faces.hf import Hf
from tokcarve.exporters.faces.kind import FaceKind
from tokcarve.exporters.faces.static import Ort, Trt

__all__ = ["FACES"]

FACES: dict[str, FaceKind] = {kind.name: kind for kind in (Ort(), Trt(), Hf(), Genai())}
"""A further face is its file and a line here."""
