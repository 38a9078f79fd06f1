"""Speed on a model of honest size with random weights: CLIP-L/336 tower, text model shaped like Qwen2-0.5B.

    python benchmarks/speed.py [--tokens 64] [--max-text 64] [--repeats 12] [--keep DIR]

Every row is a whole artifact: compressed, exported, proven and profiled, pruned and unpruned graphs in turn in one run
(ONNX Runtime, float32). "realised" is the measured speed-up over the one that the saved FLOPs promise.
"""

import argparse
import contextlib
import tempfile
from pathlib import Path

import torch
from shapes import llava, qwen2_half_billion
from transformers import LlavaForConditionalGeneration

import tokcarve
from tokcarve.exporters.device.profile import profile
from tokcarve.exporters.device.rounds import Effort
from tokcarve.exporters.export import export_artifact
from tokcarve.exporters.faces.kind import Request
from tokcarve.recipes.artifact import read_artifact

METHODS = {
    "vtc_cls": {},
    "flowcut": {"form": "static"},
    "pooling": {},
}


def write_checkpoint(directory: Path) -> None:
    """The model of honest size as a checkpoint."""
    random_model().save_pretrained(directory)


def random_model() -> LlavaForConditionalGeneration:
    """Random weights, seeded, wide enough that attention is not flat."""
    torch.manual_seed(0)
    shape = llava(qwen2_half_billion(), 151646)
    model = LlavaForConditionalGeneration(shape).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() < 2:
                weight.fill_(0.0 if name.endswith("bias") else 1.0)
            else:
                weight.normal_(0.0, 1.5 / weight[0].numel() ** 0.5)
    return model


def measure(checkpoint: Path, place: Path, method: str, options: argparse.Namespace) -> None:
    """Compress, export and profile one method, and print its row."""
    out = place / f"{method}-{options.tokens}-{options.max_text}"
    if not (out / "export").is_dir():
        params = METHODS[method]
        tokcarve.compress(str(checkpoint), method=method, tokens=options.tokens, params=params, out=out, force=True)
        export_artifact(out, Request(max_text=options.max_text, max_new=16))
    artifact = read_artifact(out)
    effort = Effort(repeats=options.repeats, warm_up=2)
    found = profile(artifact.directory, artifact.manifest.schedule, effort=effort, answers=(1,))
    encoder, prefill, first = (found.stages[name] for name in ("encoder", "prefill", "first_token"))
    print(
        f"| {method} | {encoder.unpruned.p50:.0f} | {encoder.pruned.p50:.0f} "
        f"| {100 * found.selector_shares['vision']:.2f} % "
        f"| {prefill.unpruned.p50:.0f} | {prefill.pruned.p50:.0f} "
        f"| {prefill.speedup:.2f} | {prefill.predicted:.2f} | {prefill.realised:.2f} | {first.speedup:.2f} |",
        flush=True,
    )
    print(f"    {found.verdict}", flush=True)


def main() -> None:
    """Print one row per method."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--max-text", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=12)
    parser.add_argument("--keep", type=Path, help="work here, and use what an earlier run left here")
    parser.add_argument("methods", nargs="*", default=list(METHODS))
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        place = options.keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        checkpoint = place / "checkpoint"
        if not (checkpoint / "config.json").is_file():
            write_checkpoint(checkpoint)
        print("| method | encoder ms, unpruned | pruned | selector | prefill ms, unpruned | pruned | speed-up ", end="")
        print("| predicted | realised | first token speed-up |")
        print("|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|", flush=True)
        for method in options.methods:
            measure(checkpoint, place, method, options)


if __name__ == "__main__":
    main()
