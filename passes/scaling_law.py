"""What the scaling law of "Inference Optimal VLMs Need Fewer Visual Tokens and More Parameters" says of a plan.

Source      arXiv 2411.03312 (ICLR 2025), Y(N, T) = (A / N^alpha) (B / T^beta) + D: the mean error Y of a VLM whose
            language model has N parameters and sees T tokens, text included; a prefill costs as N T does.
Fitted by   its authors, on LLaVA-NeXT with Qwen1.5 of 0.5 to 14 billion parameters, trained with compressed tokens. It
            is their law and not one of models or methods here: methods without such training may lose more.

What is printed are ratios of the part of the error that N and T reduce, Y - D, so that neither A, B nor D is needed.
"""

from dataclasses import dataclass
from typing import Any

__all__ = ["ALPHA", "BETA", "BETA_READING", "SOURCE", "Law", "scaling_law"]

SOURCE = "arXiv 2411.03312, fitted by its authors on models that were trained with fewer tokens"
ALPHA, BETA = 0.077, 0.015
"""Their exponents of parameters and of tokens for visual reasoning."""
BETA_READING = 0.048
"""Their exponent of tokens where text in the image is to be read."""


@dataclass(frozen=True, kw_only=True)
class Law:
    """Ratios to the unpruned model, above 1 is more: the reducible error with the tokens that are left, for visual
    reasoning and where text is read; `as_parameters`: how many times fewer parameters with all tokens come to the same
    in reasoning; `larger`: how many times the parameters the prefill of the unpruned model would pay for with the
    tokens that are left, and `larger_error`, the reducible error of that model in reasoning."""

    reasoning: float
    reading: float
    as_parameters: float
    larger: float
    larger_error: float

    @property
    def sentence(self) -> str:
        """The law in words, said to be its authors'."""
        if self.larger == 1:
            return f"every token is left, so that the law says nothing of this plan ({SOURCE})"
        return (
            f"the tokens that are left raise the reducible error of visual reasoning {_by(self.reasoning)}, as much as "
            f"a language model {self.as_parameters:.2f} times smaller would, and of reading text {_by(self.reading)}; "
            f"a language model {self.larger:.1f} times larger with as few tokens costs what this one costs unpruned, "
            f"and has {_by(self.larger_error)} of it ({SOURCE})"
        )

    def record(self) -> dict[str, Any]:
        """As JSON, with the exponents and their source."""
        return {
            "source": SOURCE,
            "alpha": ALPHA,
            "beta": {"reasoning": BETA, "reading": BETA_READING},
            "reducible_error": {"reasoning": self.reasoning, "reading": self.reading},
            "as_parameters": self.as_parameters,
            "larger_model": {"parameters": self.larger, "reducible_error": self.larger_error},
            "sentence": self.sentence,
        }


def scaling_law(total: float | int, kept: float | int, text: int) -> Law:
    """The law for `kept` of `total` visual tokens, as means over the language layers, beside `text` rows of text."""
    fewer = (text + total) / (text + kept)
    reasoning = fewer**BETA
    return Law(
        reasoning=reasoning,
        reading=fewer**BETA_READING,
        as_parameters=reasoning ** (1 / ALPHA),
        larger=fewer,
        larger_error=fewer ** (BETA - ALPHA),
    )


def _by(ratio: float | int) -> str:
    percent = 100 * (ratio - 1)
    return f"by {percent:.1f} %" if percent >= 0 else f"{-percent:.1f} % less"
