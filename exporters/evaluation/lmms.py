"""The plug-in by which lmms-eval finds `--model tokcarve`; lmms-eval alone imports it, through its entry point.

lmms-eval --model tokcarve --model_args artifact=DIR --tasks pope
"""

from typing import Any

__all__ = ["manifest"]


def manifest() -> Any:
    """What the entry point group `lmms_eval.models` asks for: a ModelManifest (lmms-eval 0.6.1 or newer)."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(
        model_id="tokcarve", simple_class_path="tokcarve.exporters.evaluation.lmms_model.TokcarveModel"
    )
