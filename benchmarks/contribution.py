"""TokenCarve's contribution by each of its forms: how near to the singular vectors, and what it costs.

    python benchmarks/contribution.py [--scenes 8]

Of 576 tokens behind layer 1, on the recorded prompts of the tests (64 wide), on all questions of the bundled model's
first evaluation scenes (128 wide), and on rows that were drawn (896 wide; smooth over the picture, of uneven length,
with singular values that fall as k^-0.25, k^-0.5 and k^-1, without and with a mean that all share): the rank
correlation with the contributions by eigenvectors in float64 (Spearman, least of all prompts), and the share of 128
tokens left that are the same (mean). "others" counts the prompts for which ONNX Runtime leaves other tokens than torch.
Nodes and milliseconds (median of 7) are of a graph that holds the contribution alone, in ONNX Runtime on the CPU,
float32, batch 1.
"""

import argparse
from collections.abc import Callable
from dataclasses import replace
from itertools import islice, product
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import torch
from answering import answers, batches
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d
from transformers import AutoProcessor

from tokcarve.exporters.device.timing import distribution, time_in_turn
from tokcarve.exporters.onnx import lower
from tokcarve.passes import families
from tokcarve.passes.choose import rank
from tokcarve.passes.families.load import read_model
from tokcarve.passes.graph import TokenGraphs
from tokcarve.passes.insert import rewrite
from tokcarve.passes.methods.tokencarve import TokenCarve, carving
from tokcarve.passes.stage import Carry, Outcome, Signals
from tokcarve.tiny import checkpoint_dir, evaluation

GOLDENS = Path(__file__).resolve().parents[1] / "tests" / "goldens"
TOTAL, TOKENS = 576, 128
FORMS = {f"all, {rounds} rounds": TokenCarve(directions=TOTAL, rounds=rounds) for rounds in (10, 20, 40)}
FORMS |= {f"{few} leading": TokenCarve(directions=few) for few in (32, 64, 128, 192)}
FORMS["norm"] = TokenCarve(contribution="norm")
EXACT = TokenCarve(contribution="eigh")
HEADS = "| directions | rank, recorded | same | others | rank, bundled | same | others | rank, drawn | same | others |"
HEADS += " nodes | ms, 896 wide | ms, 4096 wide |"
Given = tuple[Tensor, Tensor]  # attention of the last row [batch, heads, 576], states [batch, 576, hidden]


def watched(graphs: TokenGraphs, given: list[Given]) -> TokenGraphs:
    """The graphs under TokenCarve, which add what it reads to `given`, prompt by prompt."""
    (stage,) = EXACT.stages(graphs.geometry, 64, None)

    def rule(signals: Signals, carry: Carry) -> Outcome:
        given.extend(zip(signals["last_attention"].split(1), signals["states"].split(1), strict=True))
        return stage.rule(signals, carry)

    return rewrite(graphs, [replace(stage, rule=rule)]).graphs


@torch.no_grad()
def recorded() -> list[Given]:
    graphs = watched(families.capture(read_model(GOLDENS / "model")), given := [])
    with np.load(GOLDENS / "inputs.npz") as found:
        pixels, ids = (torch.from_numpy(found[name]) for name in ("pixel_values", "input_ids"))
    graphs.read(ids.long(), graphs.see(pixels), torch.full((len(ids),), ids.shape[1]))
    return given


def bundled(scenes: int) -> list[Given]:
    graphs = watched(families.capture(read_model(checkpoint_dir())), given := [])
    processor, samples = AutoProcessor.from_pretrained(checkpoint_dir()), list(islice(evaluation(), 64 * scenes))
    answers(graphs, list(islice(batches(samples, processor, scenes=1), scenes)), processor.tokenizer)
    return given


def drawn() -> list[Given]:
    draw, given = torch.Generator().manual_seed(0), []
    for falling, mean in product((0.25, 0.5, 1.0), (0, 3)):
        grid = torch.randn(TOTAL, 1, 24, 24, generator=draw)
        smooth = avg_pool2d(grid, 3, stride=1, padding=1).flatten(1).T
        rows = smooth * torch.arange(1.0, TOTAL + 1) ** -falling @ torch.randn(TOTAL, 896, generator=draw)
        rows = rows * torch.exp(0.3 * torch.randn(TOTAL, 1, generator=draw))
        shared = torch.randn(896, generator=draw)
        rows = rows + mean * shared / shared.norm() * rows.norm(dim=1).mean()
        seen = torch.randn(1, 4, TOTAL, generator=draw).softmax(dim=2)
        given.append((seen, rows.unsqueeze(0)))
    return given


def opened(function: Callable[..., Tensor], *inputs: Tensor) -> tuple[int, Callable[..., Tensor]]:
    """The nodes of a function's graph, and the function in ONNX Runtime."""
    module, names = nn.Module(), [f"input_{i}" for i in range(len(inputs))]
    module.forward = function
    model = lower(module, inputs, input_names=names, output_names=("output",))
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    return len(model.graph), lambda *given: torch.from_numpy(
        session.run(None, dict(zip(names, map(Tensor.numpy, given), strict=True)))[0]
    )


@torch.no_grad()
def compared(form: TokenCarve, work: list[Given]) -> list[str]:
    """The cells about what a form leaves of every prompt."""

    def left(seen: Tensor, states: Tensor, form: TokenCarve = form) -> Tensor:
        return carving(form.points({"last_attention": seen, "states": states}), states, TOKENS)["index"]

    alike, same, others = [], [], 0
    in_runtime = opened(left, *work[0])[1]
    for given in work:
        apart = torch.sub(*(rank(one.contributions(given[1])).double() for one in (form, EXACT)))
        alike.append(1 - 6 * float(apart.square().sum()) / (TOTAL**3 - TOTAL))
        kept, wanted = left(*given), left(*given, EXACT)
        same.append(len(set(kept[0].tolist()) & set(wanted[0].tolist())) / TOKENS)
        others += not torch.equal(kept, in_runtime(*given))
    return [f"{min(alike):.5f}", f"{100 * sum(same) / len(same):.1f} %", f"{others} of {len(work)}"]


def main() -> None:
    """Print one row per form."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--scenes", type=int, default=8)
    work = recorded(), bundled(parser.parse_args().scenes), drawn()
    print(HEADS, "|---" + "|--:" * (HEADS.count("|") - 2) + "|", sep="\n")
    for name, form in FORMS.items():
        cells = [cell for some in work for cell in compared(form, some)]
        for width in (896, 4096):
            states = torch.randn(1, TOTAL, width, generator=torch.Generator().manual_seed(0))
            nodes, run = opened(form.contributions, states)
            (found,) = time_in_turn([lambda _, run=run, x=states: run(x)], warm_up=1, repeats=7, tick=lambda: None)
            cells += [str(nodes)] * (width == 896) + [f"{distribution(found).p50:.1f}"]
        print("| " + " | ".join([name, *cells]) + " |", flush=True)


if __name__ == "__main__":
    main()
