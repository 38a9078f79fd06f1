"""What a search for hyper-parameters is worth: a method with its defaults, and calibrated at the same mean.

    python benchmarks/search.py --journals DIR [--methods vflowopt] [--tokens 64] [--mean 224] [--trials 50]

The search sees calibration scenes of the bundled checkpoint, three quarters of `--limit`; cosines are means over the
last quarter, accuracy is exact match on evaluation scenes over the families of benchmarks/methods.py, with the 95 %
interval of a paired bootstrap over scenes, in points. "same" is the share of all answers that equal the unpruned
model's. What was computed stays in `--journals`, and a second run goes on from it.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from answering import Batch, answers, batches, numbers
from methods import interval
from transformers import AutoProcessor

from tokcarve.passes import families
from tokcarve.passes.checkpoint import Checkpoint, resolve
from tokcarve.passes.families.load import read_model
from tokcarve.passes.graph import TokenGraphs
from tokcarve.passes.stage import Method
from tokcarve.recipes.budgets import resolve_budget
from tokcarve.recipes.calibration.bench import How, bench_of
from tokcarve.recipes.calibration.search import search, search_of
from tokcarve.recipes.carve import method_of, rewritten
from tokcarve.recipes.make import make_recipe
from tokcarve.tiny import CORE, Sample, evaluation

HEADER = """| method | budget | | cosine | held out | mean | accuracy | same | against the defaults | same |
|---|---|---|--:|--:|--:|--:|--:|--:|--:|"""


@dataclass(frozen=True)
class Ground:
    """The bundled model and the questions it is asked."""

    checkpoint: Checkpoint
    base: TokenGraphs
    tokenizer: object
    work: list[Batch]
    samples: list[Sample]
    full: list[str]

    def answers(self, method: Method, tokens: int) -> tuple[np.ndarray, np.ndarray, float]:
        """Hits and sameness of every question, and the mean count over the layers of the language model."""
        graphs = rewritten(self.base, method, tokens, None).graphs
        given = answers(graphs, self.work, self.tokenizer)
        hits = [float(a == s.answer.lower()) for a, s in zip(given, self.samples, strict=True)]
        same = [float(a == f) for a, f in zip(given, self.full, strict=True)]
        return np.array(hits), np.array(same), numbers(graphs)["mean"]


def compare(name: str, wish: str, budget: dict[str, int], ground: Ground, options: argparse.Namespace) -> list[str]:
    """Two lines of the table, and what the search chose."""
    recipe = make_recipe(
        "tiny",
        method=name,
        samples="scenes",
        count=options.limit,
        trials=options.trials,
        seed=options.seed,
        **budget,
    )
    geometry, method = ground.base.geometry, method_of(name, {})
    tokens = resolve_budget(recipe.budget, method, geometry)
    wanted = search_of(recipe, method, geometry, tokens)
    assert wanted is not None and recipe.calibration is not None
    options.journals.mkdir(parents=True, exist_ok=True)
    journal = options.journals / f"{name}-{wish.replace(' ', '-')}-{options.limit}-{options.seed}.jsonl"
    bench = bench_of(ground.checkpoint, geometry, recipe.calibration, How(resume=True), journal)
    found = search(bench, wanted)
    bench.runner.journal.close(done=False)
    ways = {"default": (method, tokens), "best": (found.method, found.tokens)}
    said = {way: ground.answers(*one) for way, one in ways.items()}
    core = np.array([s.family in CORE for s in ground.samples])
    scenes = np.unique([id(s.image) for s in ground.samples], return_inverse=True)[1]
    lines = []
    for way, (hits, same, mean) in said.items():
        gain = interval(hits[core], said["default"][0][core], np.unique(scenes[core], return_inverse=True)[1])
        alike = interval(same, said["default"][1], scenes)
        more = ["", ""] if way == "default" else ["{:+.1f} [{:+.1f}, {:+.1f}]".format(*one) for one in (gain, alike)]
        cosine, held = (found.record[part][way] for part in ("cosine", "held_out"))
        lines.append(
            f"| {name} | {wish} | {'defaults' if way == 'default' else 'calibrated'} | {cosine:.4f} | {held:.4f} "
            f"| {mean:.2f} | {100 * hits[core].mean():.1f} | {100 * same.mean():.1f} | {more[0]} | {more[1]} |"
        )
    place, trials = found.record["best"], found.record["trials"]
    refused = sum("refused" in trial for trial in trials)
    return [*lines, f"{name}, {wish}: trial {place} of {len(trials)}, {refused} refused; {found.method}"]


def main() -> None:
    """Print the table, then what was chosen."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--journals", type=Path, required=True)
    parser.add_argument("--methods", nargs="+", default=["vflowopt"])
    parser.add_argument("--tokens", type=int, nargs="*", default=[64])
    parser.add_argument("--mean", type=int, nargs="*", default=[224])
    parser.add_argument("--limit", type=int, default=64)
    parser.add_argument("--trials", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--questions", type=int, default=1000)
    options = parser.parse_args()
    checkpoint = resolve("tiny")
    model = read_model(checkpoint.path)
    processor = AutoProcessor.from_pretrained(checkpoint.path, local_files_only=True)
    samples = list(evaluation(options.questions))
    work, base = list(batches(samples, processor)), families.capture(model)
    full = answers(base, work, processor.tokenizer)
    ground = Ground(checkpoint, base, processor.tokenizer, work, samples, full)
    wishes = {f"{n} tokens": {"tokens": n} for n in options.tokens}
    wishes |= {f"mean {n}": {"avg_tokens": n} for n in options.mean}
    print(HEADER, flush=True)
    chosen = []
    for name in options.methods:
        for wish, budget in wishes.items():
            *lines, choice = compare(name, wish, budget, ground, options)
            print("\n".join(lines), flush=True)
            chosen.append(choice)
    print("\n" + "\n".join(chosen))


if __name__ == "__main__":
    main()
