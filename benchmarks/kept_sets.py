"""Every method and count: ONNX Runtime keeps the tokens that torch keeps, and TensorRT for RTX builds the vision graph.

    python benchmarks/kept_sets.py [--methods tome divprune] [--tokens 192 128 64 32] [--scenes 100] [--no-rtx]

Runs on the bundled checkpoint and its evaluation scenes. Where the two keep or merge otherwise, a scene is "ambiguous"
when torch alone decides otherwise after a change of its pixels by 1e-5, and "wrong" when it does not; "difference" is
the largest one between image features on all other scenes, as a share of the largest feature. Exits with 1 if anything
is wrong or refused.
"""

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx_ir as ir
import torch
from answering import carved, talk
from transformers import AutoProcessor
from vision import feeds, open_graph, write_graph

from tokcarve.exporters.lint import lint_file
from tokcarve.exporters.tensorrt import check_with_rtx
from tokcarve.exporters.weights import WeightFile
from tokcarve.passes import families
from tokcarve.passes.checkpoint import resolve
from tokcarve.passes.errors import MethodError
from tokcarve.passes.families.load import read_model
from tokcarve.passes.graph import TokenGraphs
from tokcarve.passes.methods import METHODS
from tokcarve.recipes.carve import method_of
from tokcarve.tiny import evaluation

MERGED_ELSEWHERE = 1e-5  # between runtimes: a larger difference of features is another decision, not rounding
NUDGED = 5e-5  # behind a change of pixels by 1e-5, which alone moves features by up to 2e-5
NUDGES = 30

Prompt = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def scenes(processor: object, count: int) -> list[Prompt]:
    """Pixels, ids (one image token) and length of one question about each of `count` scenes."""
    found = []
    for sample in list(evaluation(4 * count))[::4]:
        text = processor.apply_chat_template(talk(sample.question), add_generation_prompt=True)
        ids = processor.tokenizer(text, return_tensors="pt")["input_ids"]
        pixels = processor.image_processor(images=sample.image, return_tensors="pt")["pixel_values"]
        found.append((pixels, ids, torch.tensor([ids.shape[1]])))
    return found


def ambiguous(graphs: TokenGraphs, prompt: Prompt, sets: bool) -> bool:
    """Whether torch itself keeps something else (`sets`), or the same but merged elsewhere, when pixels change by 1e-5:
    two right programs may differ."""
    generator = torch.Generator().manual_seed(0)
    features, kept, _ = graphs.see(*prompt)
    for _ in range(NUDGES):
        nudged = prompt[0] + 1e-5 * torch.randn(prompt[0].shape, generator=generator)
        other, again, _ = graphs.see(nudged, *prompt[1:])
        moved = bool((features - other).abs().max() > NUDGED * features.abs().max())
        if any(not torch.equal(kept[site], again[site]) for site in kept) if sets else moved:
            return True
    return False


@torch.no_grad()
def compare(graphs: TokenGraphs, path: Path, prompts: list[Prompt]) -> tuple[int, int, int, float]:
    """On how many prompts both keep the same tokens; how many prompts, kept or merged otherwise, are ambiguous, and how
    many are not; and the largest difference of features on all others."""
    session, equal, unclear, wrong, worst = open_graph(path), 0, 0, 0, 0.0
    for prompt in prompts:
        features, kept, _ = graphs.see(*prompt)
        found, ids = session.run(None, feeds(session, *prompt))
        same = bool(np.array_equal(ids, list(kept.values())[-1].numpy()))
        difference = float(np.abs(found - features.numpy()).max() / features.abs().max())
        equal += same
        if same and difference <= MERGED_ELSEWHERE:
            worst = max(worst, difference)
        elif ambiguous(graphs, prompt, not same):
            unclear += 1
        else:
            wrong += 1
    return equal, unclear, wrong, worst


def main() -> None:
    """Print one row per method and count."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--methods", nargs="+", default=[name for name in METHODS if name != "none"])
    parser.add_argument("--tokens", type=int, nargs="+", default=(192, 128, 64, 32))
    parser.add_argument("--scenes", type=int, default=100)
    parser.add_argument("--no-rtx", action="store_true")
    options = parser.parse_args()
    checkpoint = resolve("tiny")
    model = read_model(checkpoint.path)
    prompts = scenes(AutoProcessor.from_pretrained(checkpoint.path, local_files_only=True), options.scenes)
    base, failed = families.capture(model), 0
    print(
        "| method | tokens | nodes | same sets | ambiguous | wrong | difference | lint | TensorRT for RTX | export s |"
    )
    print("|---|--:|--:|--:|--:|--:|--:|---|---|--:|")
    for name in options.methods:
        for tokens in options.tokens:
            try:
                graphs = carved(base, model, method_of(name, {}), tokens, checkpoint)
            except MethodError as error:
                print(f"| {name} | {tokens} | refused: {error} |", flush=True)
                continue
            with TemporaryDirectory() as folder, WeightFile(Path(folder) / "weights.data") as weights:
                path = Path(folder) / "vision.onnx"
                seconds = write_graph("vision", graphs, model, tokens, weights, path)
                weights.flush()
                equal, unclear, wrong, worst = compare(graphs, path, prompts)
                findings = lint_file(path)
                report = None if options.no_rtx else check_with_rtx(path)
                nodes = len(ir.load(path).graph)
            said = "not asked" if report is None else f"built in {report.seconds:.0f} s" if report.passed else "REFUSED"
            refused = bool(findings) or (report is not None and not report.passed)
            failed += refused or wrong > 0
            row = f"| {name} | {tokens} | {nodes} | {equal}/{len(prompts)} | {unclear} | {wrong} | {worst:.1e} "
            row += f"| {len(findings)} findings "
            print(f"{row}| {said} | {seconds:.0f} |", flush=True)
            if report is not None and not report.passed:
                print(report.problems, flush=True)
    if failed:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
