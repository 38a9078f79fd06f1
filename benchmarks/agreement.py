"""Torch against ONNX Runtime on evaluation scenes: kept sets, logits, greedy answers; and that unpruned differs.

    python benchmarks/agreement.py ARTIFACT [--scenes 100]

ARTIFACT must have been exported for batch 1.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from transformers import AutoProcessor

import tokcarve
from tokcarve.exporters.device.pipeline import Pipeline, greedy
from tokcarve.exporters.device.session import open_face
from tokcarve.exporters.eager import CarvedModel, reduce_prompt
from tokcarve.passes import families
from tokcarve.recipes.artifact import read_artifact
from tokcarve.tiny import evaluation

NEW_TOKENS = 8
TOLERANCE = 1e-4


def one_scene(model: CarvedModel, pipeline: Pipeline, pixels: torch.Tensor, ids: torch.Tensor) -> dict[str, object]:
    """Both runtimes on one question: kept sets equal, largest logit difference, tokens equal, ONNX Runtime's logits."""
    with torch.no_grad():
        out = model(pixel_values=pixels, input_ids=ids)
        said = model.generate(pixel_values=pixels, input_ids=ids, max_new_tokens=NEW_TOKENS, do_sample=False)
    kept = list(out.kept.values())[-1] if out.kept else torch.arange(pipeline.side.tokens)[None]
    geometry = model.graphs.geometry
    prompt = reduce_prompt(
        ids, None, image_token_id=geometry.image_token_id, total=geometry.total, keep=pipeline.side.tokens
    )
    rows = pipeline.record.max_text + pipeline.side.tokens
    padded = np.full((1, rows), geometry.pad_token_id, np.int64)
    padded[:, : prompt.input_ids.shape[1]] = prompt.input_ids.numpy()
    lengths = prompt.lengths.numpy()
    seen = pipeline.vision(pixels.numpy(), padded, lengths)
    made = pipeline.prefill(pipeline.embed(padded, seen), lengths)
    cache, tokens = pipeline.cache(made), [greedy(made["logits"])]
    for step in range(NEW_TOKENS - 1):
        tokens.append(greedy(pipeline.step(tokens[-1], lengths, step, cache)["logits"]))
    expected = said[0, ids.shape[1] :].tolist()
    found = [int(token.item()) for token in tokens][: len(expected)]
    return {
        "kept": np.array_equal(seen["kept_indices"], kept.numpy()),
        "difference": float(np.abs(made["logits"][:, -1] - out.logits[:, -1].numpy()).max()),
        "tokens": found == expected,
        "logits": made["logits"][0, -1],
    }


def main() -> None:
    """Print what agreed, and exit with 1 if anything did not."""
    parser = argparse.ArgumentParser()
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--scenes", type=int, default=100)
    options = parser.parse_args()
    artifact = read_artifact(options.artifact)
    model = tokcarve.load(options.artifact)
    processor = AutoProcessor.from_pretrained(artifact.processor, local_files_only=True)
    face = open_face(options.artifact, None)
    pruned, plain = Pipeline(face, baseline=False), Pipeline(face, baseline=True)
    kept, tokens, worst, differs, scenes = 0, 0, 0.0, 0, 0
    base = CarvedModel(families.capture(model.base), model.base).eval()
    for sample in list(evaluation(4 * options.scenes))[::4]:
        turn = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": sample.question}]}]
        text = processor.apply_chat_template(turn, add_generation_prompt=True)
        made = processor(images=sample.image, text=text, return_tensors="pt")
        one = one_scene(model, pruned, made["pixel_values"], made["input_ids"])
        whole = one_scene(base, plain, made["pixel_values"], made["input_ids"])
        kept += one["kept"]
        tokens += one["tokens"] and whole["tokens"]
        worst = max(worst, one["difference"], whole["difference"])
        differs += bool(np.abs(one["logits"] - whole["logits"]).max() > 10 * TOLERANCE)
        scenes += 1
    print(f"{scenes} scenes: kept sets equal on {kept}, greedy tokens equal on {tokens} (pruned and unpruned)")
    print(f"largest logit difference {worst:.1e} (allowed {TOLERANCE:.0e}); unpruned differs on {differs}")
    if min(kept, tokens) < scenes or worst > TOLERANCE or differs < scenes:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
