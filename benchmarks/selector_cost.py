"""What selection costs on the tower that is used most: CLIP-L/336 and a 4096-wide projector with random weights.

    python benchmarks/selector_cost.py [--tokens 192 64] [--methods tome divprune] [--repeats 5]

ONNX Runtime on the CPU, float32, batch 1. "selector" is the share of the vision graph's node time that nodes of the
selection take; encoder times are medians with the pruned and the unpruned graph run in turn.
"""

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from shapes import llava
from transformers import LlamaConfig, LlavaForConditionalGeneration
from vision import probe, time_graph, write_graph

from tokcarve.exporters.weights import WeightFile
from tokcarve.passes import families
from tokcarve.passes.calibrate import tokens_at
from tokcarve.passes.errors import MethodError
from tokcarve.passes.graph import TokenGraphs
from tokcarve.passes.methods import METHODS
from tokcarve.passes.stage import Frozen
from tokcarve.recipes.carve import method_of, rewritten

IMAGE_TOKEN = 511


def tower() -> LlavaForConditionalGeneration:
    """CLIP-L/336, the projector of a 7B model, and one small language layer that is never run."""
    torch.manual_seed(0)
    text = LlamaConfig(
        hidden_size=4096, intermediate_size=64, num_hidden_layers=1, num_attention_heads=32, vocab_size=512
    )
    shape = llava(text, IMAGE_TOKEN)
    model = LlavaForConditionalGeneration._from_config(shape, attn_implementation="sdpa").eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() < 2:
                weight.fill_(0.0 if name.endswith("bias") else 1.0)
            else:
                weight.normal_(0.0, 1.5 / weight[0].numel() ** 0.5)
    return model


def carved(base: TokenGraphs, name: str, tokens: int) -> TokenGraphs:
    """The graphs under a method with its defaults; one that learns gets two made-up images."""
    method, frozen = method_of(name, {}), None
    fit = method.fit(base.geometry, tokens)
    if fit is not None:
        for seed in range(2):
            fit.add(tokens_at(base, fit.site, probe(base, seed)[0]))
        frozen = Frozen(tensors=fit.solve())
    trainee = method.trainable(base.geometry, tokens)
    if trainee is not None:
        frozen = Frozen(tensors=trainee.start(0))
    return rewritten(base, method, tokens, frozen).graphs


def main() -> None:
    """Print one row per method and count."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--tokens", type=int, nargs="+", default=(192, 64))
    parser.add_argument("--methods", nargs="+", default=[name for name in METHODS if name != "none"])
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    model = tower()
    base = families.capture(model)
    print("| method | tokens | encoder ms, unpruned | pruned | ratio | selector ms | selector | export s |")
    print("|---|--:|--:|--:|--:|--:|--:|--:|")
    with TemporaryDirectory() as folder, WeightFile(Path(folder) / "weights.data") as weights:
        plain, path = Path(folder) / "plain.onnx", Path(folder) / "vision.onnx"
        write_graph("vision", base, model, base.geometry.total, weights, plain)
        for tokens in options.tokens:
            for name in options.methods:
                try:
                    graphs = carved(base, name, tokens)
                except MethodError as error:
                    print(f"| {name} | {tokens} | refused: {error} |", flush=True)
                    continue
                seconds = write_graph("vision", graphs, model, tokens, weights, path)
                weights.flush()
                cost = time_graph(path, plain, probe(base), options.repeats)
                print(
                    f"| {name} | {tokens} | {cost.plain:.0f} | {cost.encoder:.0f} | {cost.encoder / cost.plain:.2f} "
                    f"| {cost.selector:.1f} | {100 * cost.share:.2f} % | {seconds:.0f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
