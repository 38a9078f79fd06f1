"""The vision graph of a method by itself, lowered, opened in ONNX Runtime and timed: what the benchmarks share."""

import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
from torch import Tensor, nn

from tokcarve.exporters.device.timing import distribution, profiled_share, time_in_turn
from tokcarve.exporters.modules import face_graphs, shapes
from tokcarve.exporters.onnx import lower, weight_names
from tokcarve.exporters.weights import WeightFile
from tokcarve.passes.graph import TokenGraphs

__all__ = ["Cost", "feeds", "open_graph", "probe", "time_graph", "write_graph"]

MAX_TEXT = 64
RUNS = 3


@dataclass(frozen=True)
class Cost:
    """Milliseconds of the vision graph (p50) and of what selection adds to it, and that part's share in 0..1."""

    encoder: float
    selector: float
    share: float
    plain: float


def write_graph(
    which: str, graphs: TokenGraphs, model: nn.Module, tokens: int, weights: WeightFile, path: Path, max_new: int = 1
) -> float:
    """Writes the graph `which` for prompts of up to 64 text tokens, batch 1; seconds from torch to file."""
    started = time.perf_counter()
    piece = face_graphs(graphs, shapes(graphs, tokens=tokens, batch=1, max_text=MAX_TEXT, max_new=max_new))[which]
    found = lower(
        piece.module,
        piece.inputs,
        input_names=piece.input_names,
        output_names=piece.output_names,
        names=weight_names(model),
    )
    weights.save(found, path)
    return time.perf_counter() - started


def open_graph(path: Path, *, profile: str | None = None, threads: int = 0) -> Any:
    """An ONNX Runtime session on the CPU; `profile` is the prefix of the files that its node times go to.

    `threads` is per operator, 0 leaves it to ONNX Runtime.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.intra_op_num_threads = threads
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, profile
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def feeds(session: Any, pixels: Tensor, ids: Tensor, lengths: Tensor) -> dict[str, np.ndarray]:
    """What `session` takes of these; prompts [batch, rows] are padded to its length."""
    given: dict[str, np.ndarray] = {"pixel_values": pixels.numpy(), "prompt_lengths": lengths.numpy()}
    for one in session.get_inputs():
        if one.name == "input_ids":
            given["input_ids"] = np.pad(ids.numpy(), ((0, 0), (0, one.shape[1] - ids.shape[1])))
    return {one.name: given[one.name] for one in session.get_inputs()}


def time_graph(path: Path, plain: Path, prompt: tuple[Tensor, Tensor, Tensor], repeats: int, threads: int = 0) -> Cost:
    """Both graphs in turn, then node times of the first."""
    sessions = [open_graph(one, threads=threads) for one in (path, plain)]
    inputs = [feeds(one, *prompt) for one in sessions]
    ways = [lambda _, one=one, given=given: one.run(None, given) for one, given in zip(sessions, inputs, strict=True)]
    mine, theirs = (distribution(found).p50 for found in time_in_turn(ways, warm_up=1, repeats=repeats, tick=_quiet))
    share = _selector_share(path, inputs[0], threads)
    return Cost(encoder=mine, selector=share * mine, share=share, plain=theirs)


def _quiet() -> None:
    pass


def _selector_share(path: Path, given: dict[str, np.ndarray], threads: int) -> float:
    with TemporaryDirectory() as folder:
        session = open_graph(path, profile=str(Path(folder) / "profile"), threads=threads)
        for _ in range(RUNS):
            session.run(None, given)
        return profiled_share(Path(session.end_profiling()), RUNS)


def probe(graphs: TokenGraphs, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Seeded pixels and a short made-up question."""
    side = graphs.geometry.vision.image_size
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(1, 3, 9, 9, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=(side, side), mode="bicubic", align_corners=False)
    pixels = smooth + 0.1 * torch.randn(1, 3, side, side, generator=generator)
    ids = torch.tensor([[5, graphs.geometry.image_token_id, *range(6, 26)]])
    return pixels, ids, torch.tensor([ids.shape[1]])
