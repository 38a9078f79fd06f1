"""The carved model in torch: the two lines of Python a user types, and the reference every export is compared with."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import DynamicCache, GenerationConfig
from transformers.generation.utils import GenerationMixin
from transformers.utils.generic import ModelOutput

from tokcarve.passes.errors import ExportError
from tokcarve.passes.families.load import read_model
from tokcarve.passes.graph import TokenGraphs, all_kept, thread, visual_start
from tokcarve.recipes.artifact import read_artifact
from tokcarve.recipes.carve import carve

__all__ = ["CarvedModel", "CarvedOutput", "Prompt", "load", "reduce_prompt"]


@dataclass
class CarvedOutput(ModelOutput):
    """logits [batch, rows, vocab] of the rows that are left, the last prompt token last; image_features
    [batch, keep, hidden]; kept {site: int64 [batch, keep]}, original patch indices; given: what the method tells
    whoever runs it, by name."""

    logits: Tensor | None = None
    image_features: Tensor | None = None
    kept: dict[str, Tensor] | None = None
    past_key_values: Any = None
    given: dict[str, Tensor] | None = None


@dataclass(frozen=True)
class Prompt:
    """A prompt batch ready for the language graph: ids right-padded, `lengths` int64 [batch] real rows each."""

    input_ids: Tensor
    lengths: Tensor


def reduce_prompt(
    input_ids: Int[Tensor, "batch rows"], attention_mask: Tensor | None, *, image_token_id: int, total: int, keep: int
) -> Prompt:
    """The prompt with `keep` of its `total` image tokens, its real rows first and padding last.

    ExportError when a prompt does not hold exactly `total` image tokens.
    """
    image = input_ids == image_token_id
    for row, found in enumerate(image.sum(dim=1).tolist()):
        if found != total:
            raise ExportError(
                f"prompt {row} holds {found} image tokens, and this model reads exactly one image of {total}; "
                "make input_ids with the checkpoint's own processor"
            )
    real = torch.ones_like(image) if attention_mask is None else attention_mask.bool()
    left = ~image | (torch.cumsum(image.long(), dim=1) <= keep)
    shape = (input_ids.shape[0], input_ids.shape[1] - total + keep)
    ids, real = input_ids[left].view(shape), real[left].view(shape)
    order = torch.argsort((~real).long(), dim=1, stable=True)
    return Prompt(input_ids=torch.gather(ids, 1, order), lengths=real.sum(dim=1))


class CarvedModel(nn.Module, GenerationMixin):
    """A checkpoint with visual tokens carved; called and generating like the Hugging Face model it came from.

    input_ids are those of the Hugging Face processor for the unpruned model.
    """

    main_input_name = "input_ids"
    _is_stateful = False

    def __init__(self, graphs: TokenGraphs, base: Any) -> None:
        super().__init__()
        self.graphs = graphs
        # in a tuple, so that the base model's weights are not registered a second time
        self._base = (base,)
        self.config = base.config
        self.generation_config: GenerationConfig = base.generation_config
        self.embed_tokens = graphs.parts.embed_tokens
        self.vision = graphs.vision
        self.language = graphs.language

    @property
    def base(self) -> Any:
        """The Hugging Face model whose weights these are."""
        return self._base[0]

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """What the weights are stored in."""
        return next(self.parameters()).dtype

    def can_generate(self) -> bool:
        """Always: this is what transformers asks before generate."""
        return True

    def get_input_embeddings(self) -> nn.Module:
        """The token embedding of the language model."""
        return self.embed_tokens

    def get_experts_implementation(self) -> dict[str, str]:
        """No expert layers: transformers asks before it decodes."""
        return {}

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return True

    def prepare_inputs_for_generation(self, input_ids: Tensor, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """The whole prompt first, then one token a step."""
        past = kwargs.get("past_key_values")
        first = past is None or past.get_seq_length() == 0
        chosen = {name: kwargs.get(name) for name in ("attention_mask", "past_key_values", "use_cache")}
        if first:
            chosen["pixel_values"] = kwargs.get("pixel_values")
        return {"input_ids": input_ids if first else input_ids[:, -1:], **chosen}

    def forward(
        self,
        input_ids: Int[Tensor, "batch rows"],
        pixel_values: Float[Tensor, "batch channels height width"] | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> CarvedOutput:
        """The prompt with its image, or (with a filled cache) the next token [batch, 1]."""
        if past_key_values is not None and past_key_values.get_seq_length() > 0:
            return self._next(input_ids, past_key_values)
        if pixel_values is None:
            raise ExportError("pixel_values is missing; a carved model reads one image with every prompt")
        geometry = self.graphs.geometry
        prompt = reduce_prompt(
            input_ids,
            attention_mask,
            image_token_id=geometry.image_token_id,
            total=geometry.total,
            keep=thread(self.graphs.vision).count,
        )
        seen = self.graphs.see(pixel_values.to(self.dtype), prompt.input_ids, prompt.lengths)
        given = {name: kwargs[name] for name in self.graphs.language_inputs if name in kwargs}
        read, positions = self.graphs.read(prompt.input_ids, seen, prompt.lengths, given)
        if use_cache or past_key_values is not None:
            past_key_values = past_key_values if past_key_values is not None else DynamicCache()
            for layer, (key, value) in enumerate(zip(read.keys, read.values, strict=True)):
                past_key_values.update(key, value, layer)
            end = torch.gather(positions, 1, (prompt.lengths - 1).unsqueeze(1))
            start = visual_start(prompt.input_ids, geometry.image_token_id)
            past_key_values.carved = (prompt.lengths, end + 1, read.keys[0].shape[2], start)
        dropped = prompt.input_ids.shape[1] - read.logits.shape[1]
        return CarvedOutput(
            logits=_right_aligned(read.logits, prompt.lengths - dropped),
            image_features=seen.features,
            kept=all_kept(seen, read),
            past_key_values=past_key_values,
            given=read.given,
        )

    def _next(self, input_ids: Tensor, cache: Any) -> CarvedOutput:
        lengths, position, rows, start = cache.carved
        past_keys = [layer.keys for layer in cache.layers]
        past_values = [layer.values for layer in cache.layers]
        step = past_keys[0].shape[2] - rows
        repeats = input_ids.shape[0] // lengths.shape[0]
        lengths, position, start = (one.repeat_interleave(repeats, dim=0) for one in (lengths, position, start))
        made = self.graphs.step(input_ids, position + step, lengths, step, (past_keys, past_values), step, start)
        for layer, (key, value) in enumerate(zip(made.keys, made.values, strict=True)):
            cache.update(key, value, layer)
        return CarvedOutput(logits=made.logits, past_key_values=cache, given=made.given)


def _right_aligned(logits: Tensor, lengths: Tensor) -> Tensor:
    rows = logits.shape[1]
    order = torch.arange(rows, device=logits.device).unsqueeze(0)
    at = (order - (rows - lengths.unsqueeze(1))) % rows
    return torch.gather(logits, 1, at.unsqueeze(-1).expand_as(logits))


def load(
    directory: str | Path, *, tokens: int | None = None, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> CarvedModel:
    """The model an artifact describes, with the weights of its base checkpoint; of a budget set that of `tokens`, or of
    the largest count.

    ArtifactError when the artifact is missing, edited or its base weights changed; ModelError when they do not load.
    """
    artifact = read_artifact(Path(directory))
    base = read_model(artifact.open_base().path, dtype=dtype, device=device)
    return CarvedModel(carve(base, artifact, tokens).graphs, base).eval()
