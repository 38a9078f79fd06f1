"""TokenCarve's contribution by each of its forms: how near to the singular vectors, and what it costs.

    python benchmarks/contribution.py [--tokens 128] [--scenes 8] [--repeats 5]

Against eigenvectors in float64, behind layer 1 of the recorded model of the tests (4 prompts, 64 wide) and of the
bundled one (all questions of evaluation scenes, 128 wide), 576 tokens each: the rank correlation of the contributions
(Spearman, the least of all prompts), and the share of the tokens left that are the same (mean, and the least). Nodes,
seconds to lower and milliseconds are of a graph that holds the contribution alone, of 576 tokens 128 and 4096 wide, in
ONNX Runtime on the CPU, float32, batch 1.
"""

import argparse
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from answering import batches
from torch import Tensor, fx, nn
from transformers import AutoProcessor
from vision import open_graph

from tokcarve.exporters.device.timing import distribution, time_in_turn
from tokcarve.exporters.eager import reduce_prompt
from tokcarve.exporters.onnx import lower
from tokcarve.exporters.weights import WeightFile
from tokcarve.passes import families
from tokcarve.passes.choose import rank
from tokcarve.passes.families.load import read_model
from tokcarve.passes.graph import TokenGraphs, visual_start
from tokcarve.passes.insert import rewrite
from tokcarve.passes.methods.tokencarve import TokenCarve, carving
from tokcarve.tiny import checkpoint_dir, evaluation

GOLDENS = Path(__file__).resolve().parents[1] / "tests" / "goldens"
FORMS = {f"singular, {rounds} rounds": TokenCarve(rounds=rounds) for rounds in (10, 20, 30, 40)}
FORMS["norm"] = TokenCarve(contribution="norm")
WIDTHS = (128, 4096)
EXACT = TokenCarve(contribution="eigh")


class Taps(fx.Interpreter):
    """Runs a carved language graph and keeps what its rule was given."""

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        if str(target).startswith("select_rule_"):
            self.signals = args[0]
        return super().call_module(target, args, kwargs)


@torch.no_grad()
def signals(graphs: TokenGraphs, features: Tensor, ids: Tensor, lengths: Tensor) -> dict[str, Tensor]:
    """What TokenCarve reads of these prompts."""
    carved = rewrite(graphs, EXACT.stages(graphs.geometry, 64, None)).graphs
    embeds, positions = graphs.embedding(ids, features, None)
    taps = Taps(carved.language)
    taps.run(embeds, positions, lengths, visual_start(ids, graphs.geometry.image_token_id))
    return taps.signals


def recorded() -> Iterator[dict[str, Tensor]]:
    graphs = families.capture(read_model(GOLDENS / "model"))
    with np.load(GOLDENS / "inputs.npz") as found, torch.no_grad():
        ids = torch.from_numpy(found["input_ids"]).long()
        features = graphs.see(torch.from_numpy(found["pixel_values"])).features
    yield signals(graphs, features, ids, torch.full((len(ids),), ids.shape[1]))


def bundled(scenes: int) -> Iterator[dict[str, Tensor]]:
    graphs, total = families.capture(read_model(checkpoint_dir())), 576
    samples = list(islice(evaluation(), 64 * scenes))
    for batch in islice(batches(samples, AutoProcessor.from_pretrained(checkpoint_dir()), scenes=1), scenes):
        image = graphs.geometry.image_token_id
        prompt = reduce_prompt(batch.ids, batch.mask, image_token_id=image, total=total, keep=total)
        with torch.no_grad():
            features = graphs.see(batch.pixels).features[batch.scene]
        yield signals(graphs, features, prompt.input_ids, prompt.lengths)


@torch.no_grad()
def compared(form: TokenCarve, work: list[dict[str, Tensor]], tokens: int) -> str:
    """Least rank correlation, mean and least share of equal tokens, as the cells of a row."""
    alike, same = [], []
    for given in work:
        total = given["states"].shape[1]
        ours, theirs = (rank(one.contributions(given["states"])).double() for one in (form, EXACT))
        alike.append(1 - 6 * (ours - theirs).square().sum(dim=1) / (total**3 - total))
        kept = [carving(one.points(given), given["states"], tokens)["index"] for one in (form, EXACT)]
        same.append((kept[0].unsqueeze(2) == kept[1].unsqueeze(1)).any(dim=2).double().mean(dim=1))
    shares = 100 * torch.cat(same)
    return f"{torch.cat(alike).min():.5f} | {shares.mean():.1f} % ({shares.min():.0f} %)"


def cost(form: TokenCarve, width: int, repeats: int) -> str:
    """Nodes, seconds to lower, and milliseconds, as the cells of a row."""
    alone, states, started = nn.Module(), torch.randn(1, 576, width), time.perf_counter()
    alone.forward = form.contributions
    model = lower(alone, (states,), input_names=("states",), output_names=("contributions",))
    seconds = time.perf_counter() - started
    with TemporaryDirectory() as folder, WeightFile(Path(folder) / "weights.data") as weights:
        weights.save(model, Path(folder) / "graph.onnx")
        weights.flush()
        session = open_graph(Path(folder) / "graph.onnx")
        given = {"states": states.numpy()}
        (found,) = time_in_turn([lambda _: session.run(None, given)], warm_up=1, repeats=repeats, tick=lambda: None)
    return f"{len(model.graph)} | {seconds:.0f} | {distribution(found).p50:.1f}"


def main() -> None:
    """Print one row per form."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--scenes", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    work = {"recorded": list(recorded()), "bundled": list(bundled(options.scenes))}
    heads = [f"{name} {what}" for name in work for what in ("rank", "same")]
    heads += [f"{what}, {width} wide" for width in WIDTHS for what in ("nodes", "s", "ms")]
    print("|".join(["| form ", *(f" {head} " for head in heads), ""]), "|---" + "|--:" * len(heads) + "|", sep="\n")
    for name, form in FORMS.items():
        cells = [compared(form, given, options.tokens) for given in work.values()]
        cells += [cost(form, width, options.repeats) for width in WIDTHS]
        print("| " + " | ".join([name, *cells]) + " |", flush=True)


if __name__ == "__main__":
    main()
