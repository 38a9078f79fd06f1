"""What pruning does to answers: scored questions, the unpruned model and controls beside the artifact, intervals."""

from tokcarve.exporters.evaluation.engine import Evaluation, evaluate

__all__ = ["Evaluation", "evaluate"]
