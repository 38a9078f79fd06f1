"""A question about one picture answered by a carved model in torch: what the exported graphs are compared with.

Image and prompt are prepared by the code of the device side, so that only the model differs from `run --runtime ort`.
"""

from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor

from tokcarve.exporters.device.answer import OnToken
from tokcarve.exporters.device.conversation import Conversation
from tokcarve.exporters.device.route import Choice, Wish, decide, price_of
from tokcarve.exporters.eager import CarvedModel
from tokcarve.passes.errors import ExportError
from tokcarve.passes.families.load import read_model
from tokcarve.passes.inputs.images import load_image_processor
from tokcarve.passes.inputs.prompt import PromptError, load_prompter
from tokcarve.recipes.artifact import Artifact
from tokcarve.recipes.carve import carve, router_of

__all__ = ["ANY", "Reply", "TorchRouter", "TorchVoice", "converse_in_torch", "reply_in_torch", "use_threads"]


ANY = Wish()
"""The router chooses, for the mean that was calibrated."""


@dataclass(frozen=True, kw_only=True)
class Reply:
    """`tokens` end with the stop token if one came; kept patch ids ascend; `timings` are milliseconds by part."""

    text: str
    tokens: tuple[int, ...]
    kept_indices: tuple[int, ...]
    timings: dict[str, Any]
    device: str
    choice: Choice | None = None


@torch.inference_mode()
def reply_in_torch(
    artifact: Artifact,
    image: Image,
    prompt: str,
    max_new: int,
    threads: int | None,
    on_token: OnToken | None = None,
    wish: Wish = ANY,
) -> Reply:
    """Up to `max_new` greedy tokens about `image`; in a budget set by the one that `wish` names or the router chooses.

    Raises PromptError for fewer than one token or a prompt that names an image itself, and what `load` raises.
    """
    if max_new < 1:
        raise PromptError(f"max_new={max_new} asks for no answer; give 1 or more")
    use_threads(threads)
    geometry = artifact.manifest.geometry
    started = perf_counter()
    prompter = load_prompter(artifact.processor, geometry.image_token_id)
    ids = torch.tensor([prompter.encode(prompt, geometry.total)])
    pixels = torch.from_numpy(load_image_processor(artifact.processor)([image]))
    prepared = _since(started)
    model, choice = _load(artifact, pixels, wish)
    _check_stateless(model, artifact)
    started = perf_counter()
    made = model(input_ids=ids, pixel_values=pixels, use_cache=True)
    assert made.logits is not None
    tokens = [int(made.logits[0, -1].argmax())]
    first, steps = _since(started), list[float]()
    _tell(on_token, tokens)
    while len(tokens) < max_new and tokens[-1] not in geometry.eos_token_ids:
        started = perf_counter()
        step = model(input_ids=torch.tensor([tokens[-1:]]), past_key_values=made.past_key_values)
        tokens.append(int(step.logits[0, -1].argmax()))
        steps.append(_since(started))
        _tell(on_token, tokens)
    kept = list(made.kept.values())[-1][0].tolist() if made.kept else list(range(geometry.total))
    timings = {"preprocess": prepared, "vision": None, "embedding": None, "prefill": None, "first_token": first}
    return Reply(
        text=prompter.decode(tokens),
        tokens=tuple(tokens),
        kept_indices=tuple(kept),
        timings={**timings, "decode": steps},
        device=str(model.device),
        choice=choice,
    )


class TorchVoice:
    """A carved model in torch about one image; its caches grow as they need."""

    def __init__(self, model: CarvedModel, pixels: Tensor) -> None:
        self.model, self.pixels = model, pixels
        self.room = model.graphs.geometry.text.max_positions
        self.kept = np.empty(0, np.int64)

    def begin(self, ids: list[int]) -> int:
        """As `Voice.begin`."""
        made = self.model(input_ids=torch.tensor([ids]), pixel_values=self.pixels, use_cache=True)
        assert made.logits is not None
        total = self.model.graphs.geometry.total
        self.kept = list(made.kept.values())[-1][0].numpy() if made.kept else np.arange(total)
        self.room -= len(ids)
        self.cache = made.past_key_values
        return int(made.logits[0, -1].argmax())

    def say(self, token: int) -> int:
        """As `Voice.say`."""
        made = self.model(input_ids=torch.tensor([[token]]), past_key_values=self.cache)
        assert made.logits is not None
        self.room -= 1
        return int(made.logits[0, -1].argmax())


def converse_in_torch(
    artifact: Artifact, image: Image, threads: int | None, wish: Wish = ANY
) -> tuple[str, Conversation, Choice | None]:
    """A conversation about `image` with the model in torch, where it runs, and what the router chose."""
    use_threads(threads)
    geometry = artifact.manifest.geometry
    prompter = load_prompter(artifact.processor, geometry.image_token_id)
    pixels = torch.from_numpy(load_image_processor(artifact.processor)([image]))
    model, choice = _load(artifact, pixels, wish)
    _check_stateless(model, artifact)
    talk = Conversation(prompter, TorchVoice(model, pixels), geometry.eos_token_ids, geometry.total)
    return str(model.device), talk, choice


def _load(artifact: Artifact, pixels: Tensor, wish: Wish) -> tuple[CarvedModel, Choice | None]:
    """The model that answers about an image [1, 3, height, width], and by what choice of the router."""
    tokens, choice = wish.named(artifact.manifest), None
    base = read_model(artifact.open_base().path)
    if tokens is None:
        choice = TorchRouter(base, artifact, wish.mean_tokens)(pixels)
        tokens = choice.tokens
    return CarvedModel(carve(base, artifact, tokens).graphs, base).eval().requires_grad_(False), choice


class TorchRouter:
    """The router of a budget set in torch, in front of its unpruned model; as OrtRouter."""

    def __init__(self, base: Any, artifact: Artifact, mean: int | None) -> None:
        router = router_of(base, artifact)
        assert router is not None and artifact.manifest.router is not None
        self.router, self.record, self.mean = router, artifact.manifest.router, mean
        price_of(self.record, mean)

    @torch.no_grad()
    def __call__(self, pixels: Tensor) -> Choice:
        """The choice for an image [1, 3, height, width]."""
        started = perf_counter()
        return decide(self.record, self.router(pixels)[0].numpy(), self.mean, _since(started))


def use_threads(threads: int | None) -> None:
    """Lets torch compute in `threads` threads, where that is a number; ExportError for one below 1."""
    if threads is not None and threads < 1:
        raise ExportError(f"threads={threads} is no thread count; give 1 or more, or nothing for the default")
    if threads is not None:
        torch.set_num_threads(threads)


def _check_stateless(model: CarvedModel, artifact: Artifact) -> None:
    if model.graphs.asks:
        raise PromptError(
            f"a model carved by {artifact.manifest.method.name} keeps a state between images, which only exported "
            "graphs are shown here; leave out --runtime torch, or call the model from Python with that state"
        )


def _tell(on_token: OnToken | None, tokens: list[int]) -> None:
    if on_token is not None:
        on_token(0, tokens[-1])


def _since(started: float) -> float:
    return (perf_counter() - started) * 1000
