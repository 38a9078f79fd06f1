"""What `export --precision` costs and does on the bundled checkpoint: size, agreement, and answers on its scenes.

    python benchmarks/precision.py [--method divprune] [--tokens 64] [--scenes 12] [--precisions fp32 int4]

Exports once per precision and asks ONNX Runtime, on the CPU and as it runs for a user, every question about the first
scenes of the evaluation split, by the pruned and by the unpruned graphs; bfloat16 by their float32 twins. "Same token"
and nats are the table that `export` prints, on the golden samples; "same answer" is beside the unpruned model in fp32.
"""

import argparse
import tempfile
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import numpy as np

from tokcarve.exporters.device.face import FOLDER, WEIGHTS
from tokcarve.exporters.device.pipeline import Pipeline, greedy
from tokcarve.exporters.export import export_artifact
from tokcarve.exporters.faces.kind import Request
from tokcarve.exporters.precision import PRECISIONS
from tokcarve.exporters.proving import CPU, proving_face
from tokcarve.passes.inputs.images import load_image_processor
from tokcarve.passes.inputs.prompt import load_prompter
from tokcarve.recipes.compress import compress
from tokcarve.tiny import CORE, Sample, evaluation

NEW_TOKENS = 6
HEAD = "| weights | MiB | graphs | same token % | nats | accuracy % | counting % | same answer % |"


def answers(pipeline: Pipeline, processor: Path, samples: list[Sample]) -> Iterator[str]:
    """The answer to every question, in order; an image is encoded once for all questions about it."""
    record, tokens = pipeline.record, pipeline.side.tokens
    images = load_image_processor(processor)
    prompter = load_prompter(processor, record.geometry.image_token_id)
    for _, group in groupby(samples, key=lambda sample: id(sample.image)):
        asked, seen = list(group), None
        for sample in asked:
            prompt = prompter.encode(sample.question, tokens)
            ids = np.full((1, record.max_text + tokens), record.geometry.pad_token_id, np.int64)
            ids[0, : len(prompt)] = prompt
            lengths = np.array([len(prompt)], np.int64)
            if seen is None:
                seen = pipeline.vision(images([sample.image]), ids, lengths)
            made = pipeline.prefill(pipeline.embed(ids, seen), lengths)
            cache, said = pipeline.cache(made), [greedy(made["logits"])]
            while len(said) < NEW_TOKENS and int(said[-1][0, 0]) not in record.geometry.eos_token_ids:
                said.append(greedy(pipeline.step(said[-1], lengths, len(said) - 1, cache)["logits"]))
            yield prompter.decode([int(one[0, 0]) for one in said]).strip().lower()


def share(hits: list[bool]) -> float:
    """In per cent."""
    return 100 * sum(hits) / len(hits)


def main() -> None:
    """Print two rows per precision: the whole model, and the pruned one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", default="divprune")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--scenes", type=int, default=12)
    parser.add_argument("--precisions", nargs="+", default=list(PRECISIONS), choices=list(PRECISIONS))
    options = parser.parse_args()
    samples = list(evaluation(1000))
    known = list(dict.fromkeys(id(sample.image) for sample in samples))[: options.scenes]
    samples = [sample for sample in samples if id(sample.image) in known]
    print(f"{len(samples)} questions about {len(known)} scenes; {options.method}, {options.tokens} tokens\n\n{HEAD}")
    print("|---|--:|---|--:|--:|--:|--:|--:|")
    whole: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        artifact = Path(folder) / "artifact"
        compress("tiny", method=options.method, tokens=options.tokens, out=str(artifact))
        for name in options.precisions:
            made = export_artifact(artifact, Request(precision=name, max_new=NEW_TOKENS + 2, max_text=40), force=True)
            face = proving_face(artifact, made.record, CPU, exact=False)
            size = made.record.files[f"{FOLDER}/{WEIGHTS}"].bytes / 2**20
            rows = {row.graphs: row for row in made.record.quality.rows}
            for baseline in (True, False):
                found = list(answers(Pipeline(face, baseline=baseline), artifact / "processor", samples))
                whole = whole or found
                row = rows[f"{name}{'' if baseline else ', pruned'}"]
                right = [answer == sample.answer.lower() for answer, sample in zip(found, samples, strict=True)]
                pairs = list(zip(right, samples, strict=True))
                core, counting = (
                    share([hit for hit, sample in pairs if sample.family in some]) for some in (CORE, ("counting",))
                )
                same = share([a == b for a, b in zip(found, whole, strict=True)])
                print(
                    f"| {name} | {size:.2f} | {'whole' if baseline else 'pruned'} | {100 * row.agreement:.1f} | "
                    f"{row.kl:.4f} | {core:.1f} | {counting:.1f} | {same:.1f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
