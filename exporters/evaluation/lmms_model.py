"""An artifact as a model of lmms-eval: its own tasks and scores, answered by `tokcarve eval`'s speakers.

One image per question, greedy, generation only: a task that asks for more is refused instead of answered differently.
Imports torch, because lmms-eval does.
"""

import warnings
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from lmms_eval.api.model import lmms
from PIL import Image

from tokcarve.exporters.device.playing import Asked
from tokcarve.exporters.device.route import Wish
from tokcarve.exporters.evaluation.cast import PRUNED, UNPRUNED
from tokcarve.exporters.evaluation.opened import open_runtime
from tokcarve.exporters.evaluation.speaking import Preparer
from tokcarve.passes.errors import EvaluationError
from tokcarve.recipes.artifact import read_artifact

__all__ = ["TokcarveModel"]

_PLACEHOLDER = "<image>"
_DEFAULT_NEW = 16
_IGNORED = frozenset(("batch_size", "max_batch_size", "device"))


class TokcarveModel(lmms):  # type: ignore[misc]
    """`--model_args artifact=DIR[,runtime=ort|torch][,side=pruned|unpruned][,tokens=N][,mean_tokens=N][,threads=N]`.

    The batch is that of the export, and the device what ONNX Runtime finds, whatever lmms-eval is told of them.
    """

    is_simple = True

    def __init__(
        self,
        artifact: str,
        runtime: str = "ort",
        side: str = PRUNED,
        tokens: int | None = None,
        mean_tokens: int | None = None,
        threads: int | None = None,
        **others: Any,
    ) -> None:
        super().__init__()
        unknown = sorted(set(others) - _IGNORED)
        if unknown:
            raise EvaluationError(
                f"--model_args {unknown[0]} is unknown; give artifact, runtime, side, tokens, mean_tokens or threads"
            )
        for name, value, allowed in (("runtime", runtime, ("ort", "torch")), ("side", side, (PRUNED, UNPRUNED))):
            if value not in allowed:
                raise EvaluationError(f"--model_args {name}={value} is neither {' nor '.join(allowed)}")
        found = read_artifact(Path(str(artifact)))
        wish = Wish(tokens=tokens, mean_tokens=mean_tokens).checked(found.manifest)
        opened = open_runtime(found, runtime, controls=None, threads=threads)
        self.preparer = Preparer(found.processor, found.manifest.geometry.image_token_id, opened.max_text)
        self.speaker = opened.whole() if side == UNPRUNED else opened.carved(wish)()
        self.most = opened.max_new

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """The answer to every request; EvaluationError for one that is not about one image, or not greedy."""
        asked = [self._asked(request.args) for request in requests]
        found: list[str] = []
        while len(found) < len(asked):
            start = len(found)
            most = asked[start][1]
            _, alike = next(groupby(asked[start : start + self.speaker.batch], key=lambda one: one[1]))
            chunk = [one for one, _, _ in alike]
            for (_, _, until), spoken in zip(asked[start:], self.speaker.free(chunk, most), strict=False):
                found.append(_cut(self.preparer.text(spoken.tokens), until))
        return found

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        """Refused: EvaluationError."""
        raise EvaluationError("tokcarve answers one question about an image at a time; choose a task of one round")

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Refused: EvaluationError."""
        raise EvaluationError("tokcarve generates answers; choose a task whose output_type is generate_until")

    def _asked(self, arguments: Sequence[Any]) -> tuple[Asked, int, list[str]]:
        """A request made ready, the most tokens of its answer, and where to cut it."""
        context, settings, to_visual, number, task, split = arguments
        visuals = to_visual(self.task_dict[task][split][number]) or []
        if len(visuals) != 1 or not isinstance(visuals[0], Image.Image):
            raise EvaluationError(
                f"{task} shows {len(visuals)} images or videos with question {number}, and an artifact answers about "
                "one image; choose another task"
            )
        until = settings.get("until", [])
        text = context.replace(_PLACEHOLDER, " ").strip()
        asked = self.preparer.asked(visuals[0].convert("RGB"), text)
        return asked, self._limit(settings, task), [until] if isinstance(until, str) else list(until)

    def _limit(self, settings: Mapping[str, Any], task: str) -> int:
        if settings.get("do_sample") or (settings.get("temperature") or 0) > 0 or (settings.get("num_beams") or 1) > 1:
            raise EvaluationError(
                f"{task} asks for sampling or beams, and tokcarve answers greedily; set temperature=0"
            )
        wanted = int(settings.get("max_new_tokens", _DEFAULT_NEW))
        if self.most is None or wanted <= self.most:
            return wanted
        warnings.warn(
            f"{task} asks for up to {wanted} tokens, and the export holds {self.most}: longer answers are cut; export "
            f"again with --max-new {wanted}",
            stacklevel=2,
        )
        return self.most


def _cut(text: str, until: Sequence[str]) -> str:
    """The text before the first of the stop strings."""
    ends = [text.find(one) for one in until if one and one in text]
    return text[: min(ends)] if ends else text
