"""The table of methods: accuracy, loyalty and cost of every method at every count, controls in the same table.

    python benchmarks/methods.py answer --tokens 192 128 64 32 --out answers.jsonl     (resumes; one line per run)
    python benchmarks/methods.py time --tokens 192 128 64 32 --out times.jsonl         (ONNX Runtime, 1 core, batch 1)
    python benchmarks/methods.py table answers.jsonl times.jsonl > docs/methods-table.md
    python benchmarks/methods.py compact answers.jsonl [--families counting]

Accuracy is exact match over existence, colour, shape, place and digit on the evaluation scenes of the bundled
checkpoint; "same" is the share of all answers that equal the unpruned model's. Intervals are 95 % of a paired
bootstrap over scenes, so both sides of a difference answer the same questions.
"""

import argparse
import json
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory

import numpy as np
from answering import answers, batches, carved, numbers
from transformers import AutoProcessor
from vision import open_graph, probe, time_graph, write_graph

from tokcarve.exporters.device.timing import distribution, time_in_turn
from tokcarve.exporters.weights import WeightFile
from tokcarve.passes import families
from tokcarve.passes.checkpoint import resolve
from tokcarve.passes.errors import BudgetError, MethodError
from tokcarve.passes.families.load import read_model
from tokcarve.passes.methods import METHODS
from tokcarve.recipes.budgets import resolve_budget
from tokcarve.recipes.carve import method_of
from tokcarve.recipes.schema import Budget
from tokcarve.tiny import CORE, evaluation

CONTROLS = ("random", "uniform", "pooling", "downsample")
VARIANTS: dict[str, list[tuple[str, dict[str, object]]]] = {
    "random": [("random", {"seed": seed}) for seed in range(3)],
    "flowcut exact": [("flowcut", {"form": "exact"})],
    "flowcut single": [("flowcut", {"form": "single"})],
    "holov holistic": [("holov", {"rank_by": "holistic"})],
    "tome, size ignored": [("tome", {"proportional": False})],
    "visiondrop encoder": [("visiondrop", {"scope": "encoder"})],
    "vflowopt first": [("vflowopt", {"scope": "first"})],
    "todre no exit": [("todre", {"exit": False})],
    "sparsevlm plus": [("sparsevlm", {"version": "plus"})],
    "flowcut language": [("flowcut", {"language_stage": True})],
}
RUNS = {name: [(name, {})] for name in METHODS if name != "none"} | VARIANTS
PLAIN = "none"
INTRODUCTION = """# Every method at every budget

Made by `python benchmarks/methods.py table`; how is said at the head of that file. A budget is a count behind the
last stage, or a mean over the layers of the language model; entering, mean and KV MiB (fp16) are of visual tokens.
Accuracy is exact match over existence, colour, shape, place and digit on the evaluation scenes of the bundled
checkpoint; "same" is the share of all answers, counting and comparison too, that equal the unpruned model's. Brackets
are 95 % intervals of a paired bootstrap over scenes, in points; a method "beats" the best control of its budget where
the whole interval is above zero. Random is the mean of three seeds. Encoder, selector and prefill are milliseconds of
the vision graph, of the part of it that choosing takes, and of the prompt with 64 text tokens, in ONNX Runtime on one
core of a shared machine; ratio is the vision graph over the unpruned one, measured in turn. This tower is 128 wide,
so choosing weighs more than on CLIP-L.
"""
DRAWS = 2000


def answer(options: argparse.Namespace) -> None:
    """One line per method and budget: hits and sameness of every question, in order."""
    checkpoint = resolve("tiny")
    model = read_model(checkpoint.path)
    processor = AutoProcessor.from_pretrained(checkpoint.path, local_files_only=True)
    samples = list(evaluation(options.samples))
    work, base = list(batches(samples, processor)), families.capture(model)
    full = answers(base, work, processor.tokenizer)
    log = Log(options.out, full, samples)
    log.write(PLAIN, f"{base.geometry.total} tokens", [full], numbers(base))
    wishes = {f"{n} tokens": Budget(tokens=n) for n in options.tokens}
    wishes |= {f"mean {n}": Budget(avg_tokens=n) for n in options.mean}
    for wish, budget in wishes.items():
        for name in options.methods or RUNS:
            if (name, wish) in log.done:
                continue
            try:
                methods = [method_of(*run) for run in RUNS[name]]
                count = resolve_budget(budget, methods[0], base.geometry)
                found = [carved(base, model, method, count, checkpoint) for method in methods]
            except (BudgetError, MethodError) as error:
                print(f"{name} at {wish}: {error}", flush=True)
                continue
            given = [answers(graphs, work, processor.tokenizer) for graphs in found]
            log.write(name, wish, given, numbers(found[0]))


class Log:
    """The file of answers, a line per method and budget; hits of several runs are averaged."""

    def __init__(self, out: Path, full: list[str], samples: list) -> None:
        self.out, self.full, self.samples, self.done = out, full, samples, read(out)

    def write(self, name: str, wish: str, given: list[list[str]], counts: dict[str, float]) -> None:
        """Appends a line, unless it is there already."""
        if (name, wish) in self.done:
            return
        hits = [[float(a == s.answer.lower()) for a, s in zip(one, self.samples, strict=True)] for one in given]
        same = [[float(a == f) for a, f in zip(one, self.full, strict=True)] for one in given]
        line = {
            "method": name,
            "budget": wish,
            **counts,
            "hits": [mean(column) for column in zip(*hits, strict=True)],
            "same": mean(mean(one) for one in same),
            "family": [s.family for s in self.samples],
            "scene": np.unique([id(s.image) for s in self.samples], return_inverse=True)[1].tolist(),
        }
        with self.out.open("a") as stream:
            stream.write(json.dumps(line) + "\n")
        core = [h for h, s in zip(line["hits"], self.samples, strict=True) if s.family in CORE]
        print(f"{name} at {wish}: {100 * mean(core):.1f} %, same {100 * line['same']:.1f} %", flush=True)


def read(path: Path) -> dict[tuple[str, str], dict]:
    """The lines of a file by method and budget."""
    lines = path.read_text().splitlines() if path.exists() else []
    return {(one["method"], one["budget"]): one for one in map(json.loads, lines)}


def clock(options: argparse.Namespace) -> None:
    """One line per method and count: milliseconds of the vision graph, of selection, and of prefill."""
    checkpoint = resolve("tiny")
    model = read_model(checkpoint.path)
    base, done = families.capture(model), read(options.out)
    total = base.geometry.total
    with TemporaryDirectory() as folder, WeightFile(Path(folder) / "weights.data") as weights:
        plain = Path(folder) / "plain.onnx"
        write_graph("vision", base, model, total, weights, plain)
        prefill = {n: Path(folder) / f"prefill{n}.onnx" for n in (total, *options.tokens)}
        for n, path in prefill.items():
            write_graph("prefill", base, model, n, weights, path)
        weights.flush()
        ways = [_run(path) for path in prefill.values()]
        found = time_in_turn(ways, warm_up=2, repeats=15, tick=lambda: None)
        spent = {n: distribution(one).p50 for n, one in zip(prefill, found, strict=True)}
        for tokens in options.tokens:
            for name in options.methods or RUNS:
                if (name, f"{tokens} tokens") in done:
                    continue
                try:
                    graphs = carved(base, model, method_of(*RUNS[name][0]), tokens, checkpoint)
                except MethodError:
                    continue
                path = Path(folder) / "vision.onnx"
                write_graph("vision", graphs, model, tokens, weights, path)
                weights.flush()
                cost = time_graph(path, plain, probe(base), repeats=15, threads=1)
                line = {
                    "method": name,
                    "budget": f"{tokens} tokens",
                    "encoder": cost.encoder,
                    "selector": cost.selector,
                }
                line |= {"plain": cost.plain, "prefill": spent[tokens], "plain_prefill": spent[total]}
                with options.out.open("a") as stream:
                    stream.write(json.dumps(line) + "\n")
                print(line, flush=True)


def _run(path: Path) -> object:
    session = open_graph(path, threads=1)
    kinds = {"tensor(float)": np.float32, "tensor(int64)": np.int64}
    given = {one.name: np.zeros(one.shape, kinds[one.type]) for one in session.get_inputs()}
    given["prompt_lengths"] += given["position_ids"].shape[1]
    return lambda _: session.run(None, given)


def interval(one: np.ndarray, other: np.ndarray, scene: np.ndarray) -> tuple[float, float, float]:
    """Mean of one - other and the 95 % bootstrap interval over scenes, in points."""
    scenes = int(scene.max()) + 1
    gain = np.bincount(scene, one - other, minlength=scenes)
    count = np.bincount(scene, minlength=scenes)
    draws = np.random.default_rng(0).integers(0, scenes, (DRAWS, scenes))
    found = gain[draws].sum(1) / count[draws].sum(1)
    low, high = np.quantile(found, [0.025, 0.975])
    return 100 * float((one - other).mean()), 100 * float(low), 100 * float(high)


def table(options: argparse.Namespace) -> None:
    """Markdown on stdout, one part per count, best method first."""
    said, times = read(options.answers), read(options.times)
    full = next(line for (name, _), line in said.items() if name == PLAIN)
    core = np.array([family in CORE for family in full["family"]])
    scene = np.unique(np.array(full["scene"])[core], return_inverse=True)[1]

    def hits(line: dict) -> np.ndarray:
        return np.array(line["hits"])[core]

    whole = hits(full)
    print(INTRODUCTION)
    print(f"Unpruned: {100 * whole.mean():.1f} % on {core.sum()} questions about {scene.max() + 1} scenes.")
    for wish in dict.fromkeys(wish for name, wish in said if name != PLAIN):
        lines = {name: line for (name, asked), line in said.items() if asked == wish and name != PLAIN}
        controls = [name for name in CONTROLS if name in lines]
        best = max(controls, key=lambda name: hits(lines[name]).mean(), default=PLAIN)
        print(f"\n## {wish}\n\n" + (f"Best control: {best}.\n" if controls else "No control: no token is dropped.\n"))
        costs = "encoder ms | ratio | selector ms | prefill ms"
        head = "method | entering | mean | KV MiB | accuracy | against unpruned | same | against the best control"
        print(f"| {head} | {costs} |")
        print("|---|--:|--:|--:|--:|--:|--:|---|--:|--:|--:|--:|")
        for name, line in sorted(lines.items(), key=lambda pair: -hits(pair[1]).mean()):
            loss = "{:+.1f} [{:+.1f}, {:+.1f}]".format(*interval(hits(line), whole, scene))
            gain = interval(hits(line), hits(lines.get(best, full)), scene)
            verdict = "beats it" if gain[1] > 0 else "worse" if gain[2] < 0 else "does not beat it"
            against = "control" if name in CONTROLS else "{:+.1f} [{:+.1f}, {:+.1f}]: ".format(*gain) + verdict
            time = times.get((name, wish))
            spent = " | | | "
            if time is not None:
                ratio = time["encoder"] / time["plain"]
                spent = f"{time['encoder']:.1f} | {ratio:.2f} | {time['selector']:.2f} | {time['prefill']:.1f}"
            accuracy = f"{100 * hits(line).mean():.1f} | {loss} | {100 * line['same']:.1f}"
            counts = f"{line['entering']:.0f} | {line['mean']:.0f} | {line['kv_mib']:.2f}"
            print(f"| {name} | {counts} | {accuracy} | {against} | {spent} |")
    if times:
        plain, prefill = (mean(line[key] for line in times.values()) for key in ("plain", "plain_prefill"))
        print(f"\nUnpruned: encoder {plain:.1f} ms, prefill {prefill:.1f} ms (means over the whole run).")


def compact(options: argparse.Namespace) -> None:
    """Markdown on stdout: accuracy, and sameness in brackets, method by budget, best at the last budget first."""
    said = read(options.answers)
    wishes = list(dict.fromkeys(wish for name, wish in said if name != PLAIN))
    rows: dict[str, dict[str, dict]] = {}
    for (name, wish), line in said.items():
        if name != PLAIN:
            rows.setdefault(name, {})[wish] = line

    def hits(line: dict) -> float:
        return 100 * mean(
            h for h, family in zip(line["hits"], line["family"], strict=True) if family in options.families
        )

    print("| method | " + " | ".join(wishes) + " |\n|---|" + "--:|" * len(wishes))
    for name, found in sorted(rows.items(), key=lambda pair: -hits(list(pair[1].values())[-1])):
        cells = [f"{hits(found[w]):.1f} ({100 * found[w]['same']:.1f})" if w in found else "" for w in wishes]
        print(f"| {name} | " + " | ".join(cells) + " |")


def main() -> None:
    """Parse the verb and run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(required=True)
    for name, verb in (("answer", answer), ("time", clock)):
        one = verbs.add_parser(name)
        one.add_argument("--tokens", type=int, nargs="*", default=(192, 128, 64, 32))
        one.add_argument("--mean", type=int, nargs="*", default=())
        one.add_argument("--methods", nargs="+")
        one.add_argument("--samples", type=int, default=1000)
        one.add_argument("--out", type=Path, required=True)
        one.set_defaults(verb=verb)
    one = verbs.add_parser("table")
    one.add_argument("answers", type=Path)
    one.add_argument("times", type=Path, nargs="?", default=Path("no-times"))
    one.set_defaults(verb=table)
    one = verbs.add_parser("compact")
    one.add_argument("answers", type=Path)
    one.add_argument("--families", nargs="+", default=CORE)
    one.set_defaults(verb=compact)
    options = parser.parse_args()
    options.verb(options)


if __name__ == "__main__":
    main()
