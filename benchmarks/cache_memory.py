"""Whether shorter caches are memory that a process really does not take: peak memory of answering, both sides.

    python benchmarks/cache_memory.py [--tokens 64] [--batch 4] [METHOD ...]

A random model whose keys and values are as wide as those of LLaVA-1.5-7B per layer, and little else: 8 language layers,
16 heads of 128. Each side answers once in a process of its own; "saved" is the difference of their peaks, which the KV
of prefill and decode should explain (a prefill gives its rows out once, and decode's buffers hold them again).
"""

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from shapes import llava
from transformers import LlamaConfig, LlavaForConditionalGeneration

import tokcarve
from tokcarve.exporters.device.face import read_export
from tokcarve.exporters.device.memory import measure_memory
from tokcarve.exporters.export import export_artifact
from tokcarve.exporters.faces.kind import Request
from tokcarve.passes.flops import kv_bytes

MIB = 2.0**20


def write_checkpoint(directory: Path) -> None:
    """Few weights, wide caches."""
    torch.manual_seed(0)
    text = LlamaConfig(
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=8,
        num_attention_heads=16,
        num_key_value_heads=16,
        head_dim=128,
        vocab_size=1024,
        max_position_embeddings=4096,
    )
    shape = llava(text, 1023)
    shape.vision_config.hidden_size, shape.vision_config.intermediate_size = 128, 256
    shape.vision_config.num_hidden_layers, shape.vision_config.num_attention_heads = 3, 4
    LlavaForConditionalGeneration(shape).eval().save_pretrained(directory)


def main() -> None:
    """Print one row per method."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("methods", nargs="*", default=["fastv", "pyramiddrop", "tokencarve"])
    options = parser.parse_args()
    with TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "checkpoint"
        write_checkpoint(checkpoint)
        print("| method | KV MiB | unpruned | peak MiB | unpruned | KV less | saved |\n|---|--:|--:|--:|--:|--:|--:|")
        for method in options.methods:
            out = Path(folder) / method
            tokcarve.compress(str(checkpoint), method=method, tokens=options.tokens, out=out)
            export_artifact(out, Request(batch=options.batch, max_text=64, max_new=64))
            face = read_export(out)
            sides = (face.pruned, face.baseline)
            kv = [face.batch * kv_bytes(face.geometry.text, side.capacities, element=4) / MIB for side in sides]
            peak = [measure_memory(out, baseline=whole, threads=1).peak_mib for whole in (False, True)]
            print(
                f"| {method} | {kv[0]:.1f} | {kv[1]:.1f} | {peak[0]:.0f} | {peak[1]:.0f} | {kv[1] - kv[0]:.1f} "
                f"| {peak[1] - peak[0]:.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
