"""A budget set on the bundled checkpoint: the router at several means beside fixed budgets and random routing.

    python benchmarks/router.py learn --samples 192 --budgets 32 64 128 192 --out learned.npz      (minutes)
    python benchmarks/router.py judge --scenes 150 --out judged.npz                               (minutes)
    python benchmarks/router.py table learned.npz judged.npz --means 48 64 96 128

The router learns from calibration scenes, as compress does, once per mean, and is judged on evaluation scenes with all
their questions. Fixed is the same method at one count for all, the smallest one judged that is no less than the mean.
Loss is the KL of the first four answer tokens to the unpruned model, in nats; accuracy is exact match, in percent.
Intervals are 95 % of a paired bootstrap over scenes; random routing has the router's shares.
"""

import argparse
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from answering import spell
from transformers import AutoProcessor

from tokcarve.passes import families
from tokcarve.passes.asking import ask, likeness
from tokcarve.passes.checkpoint import resolve
from tokcarve.passes.families.load import read_model
from tokcarve.passes.inputs.samples import Sample
from tokcarve.passes.router import Glimpse, router_layer
from tokcarve.passes.routing import chosen
from tokcarve.recipes.calibration.bench import bench_of
from tokcarve.recipes.calibration.questions import Asker
from tokcarve.recipes.calibration.route import Measured, Part, fit_router, measure
from tokcarve.recipes.carve import method_of, rewritten
from tokcarve.recipes.schema import Calibration
from tokcarve.tiny import evaluation

METHODS = {"hiprune": ("hiprune", {}), "flowcut single": ("flowcut", {"form": "single"}), "vtc_cls": ("vtc_cls", {})}
METHODS |= {"divprune": ("divprune", {})}
NEW_TOKENS = 4
DRAWS = 2000


def learn(options: argparse.Namespace) -> None:
    """What calibration scenes say."""
    checkpoint = resolve("tiny")
    graphs = families.capture(read_model(checkpoint.path))
    bench = bench_of(checkpoint, graphs.geometry, Calibration(count=options.samples))
    bench.runner.tell = lambda what, done, total: done % 32 or print(what, done, total, flush=True)
    parts = [Part(tokens=tokens, frozen=None, record=None) for tokens in options.budgets]
    made = measure(bench, method_of(*METHODS[options.method]), "renumbered", parts)
    np.savez(options.out, method=options.method, counts=options.budgets, **asdict(made))


@torch.no_grad()
def judge(options: argparse.Namespace) -> None:
    """Features of evaluation scenes, and losses and hits of every question under every budget."""
    checkpoint = resolve("tiny")
    base = families.capture(read_model(checkpoint.path))
    glimpse = Glimpse(base.parts, base.geometry, router_layer(base.geometry))
    asker = Asker(checkpoint.path, base.geometry)
    tokenizer = AutoProcessor.from_pretrained(checkpoint.path, local_files_only=True).tokenizer
    method = method_of(*METHODS[options.method])
    models = [base, *(rewritten(base, method, count, None).graphs for count in options.budgets)]
    stops = base.geometry.eos_token_ids
    features, losses, hits, scene = [], [], [], []
    groups: dict[int, list] = {}
    for sample in evaluation(1000):
        groups.setdefault(id(sample.image), []).append(sample)
    for number, group in enumerate(list(groups.values())[: options.scenes]):
        pixels = asker.pixels(group[0].image)
        features.append(glimpse(pixels)[0].double().numpy())
        seen = [one.see(pixels) for one in models]
        for sample in group:
            asked = Sample(image=sample.image, prompt=sample.question, answer=None, source="")
            question = asker.question(asked, base)
            full = ask(base, question, NEW_TOKENS, seen=seen[0])
            answered = []
            for one, what in zip(models[1:], seen[1:], strict=True):
                made = ask(one, question, NEW_TOKENS, full.tokens, what)
                free = full if made.tokens == full.tokens else ask(one, question, NEW_TOKENS, None, what)
                answered.append((likeness(full, made, stops).kl, spell(tokenizer, free.tokens, stops)))
            losses.append([kl for kl, _ in answered])
            hits.append([text == sample.answer.lower() for _, text in answered])
            scene.append(number)
        if number % 10 == 0:
            print(number, flush=True)
    np.savez(options.out, counts=options.budgets, features=features, losses=losses, hits=hits, scene=scene)


def table(options: argparse.Namespace) -> None:
    """Markdown on stdout."""
    stored, held = np.load(options.learned), np.load(options.judged)
    names = ("features", "wanted", "losses")
    samples = Measured(
        **{name: stored[name] for name in names}, learning=int(stored["learning"]), layer=int(stored["layer"])
    )
    every, scene = [int(count) for count in stored["counts"]], held["scene"]
    tokens = [count for count in every if count in (options.budgets or every)]
    columns = [every.index(count) for count in tokens]
    judged = [int(count) for count in held["counts"]]
    places = np.array([judged.index(count) for count in tokens])
    samples = replace(samples, wanted=samples.wanted[:, columns], losses=samples.losses[:, columns])
    both = {"loss": held["losses"], "accuracy": 100.0 * held["hits"]}
    said = f"learned from {samples.learning} scenes, judged on {scene.max() + 1} with {len(scene)} questions"
    print(f"{stored['method'].item()}, budgets {tokens}, {said}\n")
    print(
        "| mean | reached | shares | measure | router | fixed at | fixed | random | router - fixed | router - random |"
    )
    print("|--:|--:|---|---|--:|--:|--:|--:|---|---|")
    for mean in options.means:
        line, record = fit_router(samples, tokens, mean)
        taken = chosen(line(held["features"]), tokens, record.price)
        shares = np.bincount(taken, minlength=len(tokens)) / len(taken)
        reached, spelled = np.asarray(tokens)[taken].mean(), " ".join(f"{share:.2f}" for share in shares)
        alone = min(count for count in judged if count >= mean)
        for name, of in both.items():
            routed = of[np.arange(len(scene)), places[taken[scene]]]
            fixed, drawn = of[:, judged.index(alone)], of[:, places] @ shares
            gains = ["{:+.3f} [{:+.3f}, {:+.3f}]".format(*interval(routed - one, scene)) for one in (fixed, drawn)]
            row = " | ".join((*(f"{one.mean():.3f}" for one in (fixed, drawn)), *gains))
            print(f"| {mean} | {reached:.0f} | {spelled} | {name} | {routed.mean():.3f} | {alone} | {row} |")


def interval(gain: np.ndarray, scene: np.ndarray) -> tuple[float, float, float]:
    """The mean over questions and its interval over scenes."""
    scenes = int(scene.max()) + 1
    total, count = np.bincount(scene, gain, minlength=scenes), np.bincount(scene, minlength=scenes)
    draws = np.random.default_rng(0).integers(0, scenes, (DRAWS, scenes))
    low, high = np.quantile(total[draws].sum(1) / count[draws].sum(1), [0.025, 0.975])
    return float(gain.mean()), float(low), float(high)


def main() -> None:
    """Parse the verb and run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(required=True)
    for name, verb, what, count in (("learn", learn, "--samples", 192), ("judge", judge, "--scenes", 150)):
        one = verbs.add_parser(name)
        one.add_argument("--method", choices=METHODS, default="hiprune")
        one.add_argument("--budgets", type=int, nargs="+", default=(32, 48, 64, 96, 128, 192))
        one.add_argument(what, type=int, default=count)
        one.add_argument("--out", type=Path, required=True)
        one.set_defaults(verb=verb)
    one = verbs.add_parser("table")
    one.add_argument("learned", type=Path)
    one.add_argument("judged", type=Path)
    one.add_argument("--means", type=int, nargs="+", default=(48, 64, 96, 128))
    one.add_argument("--budgets", type=int, nargs="+", help="a part of those that were learned")
    one.set_defaults(verb=table)
    options = parser.parse_args()
    options.verb(options)


if __name__ == "__main__":
    main()
