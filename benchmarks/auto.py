"""What `--keep auto` and `--method auto` promise, on the bundled checkpoint and on scenes that they have not seen.

    python benchmarks/auto.py keep [--method divprune] [--limits 0.02 0.05 0.2] [--samples 160] [--fresh 200]
    python benchmarks/auto.py method [--tokens 64 128] [--samples 160] [--fresh 200]

keep: for each limit, the count that was chosen, and its loss (KL in nats per token and the share of other answers) on
the samples that calibrate, on those held out (where the promise is made), and on fresh scenes. method: every method
that serves the budget by its KL on the fresh scenes, the chosen one marked, with the 95 % interval (paired bootstrap
over scenes) of its difference to the chosen one; in brackets the place it had on the samples that calibrate.
"""

import argparse
import json
from pathlib import Path
from tempfile import TemporaryDirectory

from tokcarve.passes import families
from tokcarve.passes.checkpoint import resolve
from tokcarve.passes.families.load import read_config
from tokcarve.passes.methods import METHODS
from tokcarve.recipes.calibration.auto import best_method, candidate_of, serving, smallest_count
from tokcarve.recipes.calibration.bench import Bench, bench_of
from tokcarve.recipes.calibration.intervals import paired
from tokcarve.recipes.calibration.work import Candidate
from tokcarve.recipes.carve import name_of
from tokcarve.recipes.schema import Budget, Calibration
from tokcarve.tiny import evaluation

POSITIONS = "renumbered"


def opened(samples: str, count: int) -> Bench:
    """A bench on `count` samples of a set."""
    checkpoint = resolve("tiny")
    geometry = families.geometry(read_config(checkpoint.path))
    return bench_of(checkpoint, geometry, Calibration(samples=samples, count=count))


def unseen(folder: Path, count: int) -> Bench:
    """A bench on one question each about evaluation scenes, which are written to `folder`."""
    lines, seen = list[str](), set[bytes]()
    for sample in evaluation():
        if len(lines) == count:
            break
        picture = sample.image.tobytes()
        if picture not in seen:
            seen.add(picture)
            name = f"{len(lines)}.png"
            sample.image.save(folder / name)
            lines.append(json.dumps({"image": name, "prompt": sample.question, "answer": sample.answer}))
    (folder / "questions.jsonl").write_text("\n".join(lines))
    return opened(str(folder / "questions.jsonl"), count)


def records(bench: Bench, candidates: list[Candidate]) -> list[list[dict]]:
    """The likeness of every candidate on every sample of a bench."""
    plain = [candidate.plain() for candidate in candidates]
    tasks = [{"do": "likeness", "sample": sample, "candidates": plain} for sample in bench.samples]
    rows = [record["likeness"] for record in bench.runner.map(tasks, "")]
    return [list(column) for column in zip(*rows, strict=True)]


def spelled(kl: float, changed: float) -> str:
    return f"{kl:.4f} | {100 * changed:.1f} %"


def keep(options: argparse.Namespace, folder: Path) -> None:
    """One row per limit."""
    bench, fresh = opened("scenes", options.samples), unseen(folder, options.fresh)
    print("| limit | tokens | KL | others | held-out KL | others | fresh KL | others | held-out within the limit |")
    print("|--:|--:|--:|--:|--:|--:|--:|--:|---|")
    for limit in options.limits:
        choice = smallest_count(bench, METHODS[options.method](), limit, POSITIONS)
        auto = choice.record["auto"]
        learned = next(one for one in auto["curve"] if one["tokens"] == choice.tokens)
        held = auto["held_out"][-1]
        (seen,) = records(fresh, [candidate_of(bench, choice.method, choice.tokens, POSITIONS)])
        there = sum(one["kl"] for one in seen) / len(seen), sum(not one["same"] for one in seen) / len(seen)
        met = max(held["kl"], held["changed"]) <= limit
        sides = (spelled(one["kl"], one["changed"]) for one in (learned, held))
        print(f"| {limit} | {choice.tokens} | {' | '.join(sides)} | {spelled(*there)} | {'yes' if met else 'NO'} |")


def method(options: argparse.Namespace, folder: Path) -> None:
    """A table per count, the best on the fresh scenes first."""
    bench, fresh = opened("scenes", options.samples), unseen(folder, options.fresh)
    for tokens in options.tokens:
        among = serving(bench.geometry, Budget(tokens=tokens), POSITIONS)
        choice = best_method(bench, among, POSITIONS)
        chosen = name_of(choice.method)
        places = {line["method"]: place for place, line in enumerate(choice.record["auto"]["methods"], start=1)}
        candidates = [candidate_of(bench, one, count, POSITIONS) for one, count in among.able]
        found = dict(zip((one.method for one in candidates), records(fresh, candidates), strict=True))
        kl = {name: [one["kl"] for one in seen] for name, seen in found.items()}
        print(f"\n{tokens} tokens: {chosen} was chosen\n\n| method | fresh KL | others | KL minus the chosen one's |")
        print("|---|--:|--:|--:|")
        for name in sorted(kl, key=lambda one: sum(kl[one])):
            others = sum(not one["same"] for one in found[name]) / len(found[name])
            low, high = paired(kl[name], kl[chosen])[1:]
            mark = " (chosen)" if name == chosen else f" ({places[name]})"
            mean = sum(kl[name]) / len(kl[name])
            print(f"| {name}{mark} | {spelled(mean, others)} | [{low:+.4f}, {high:+.4f}] |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(required=True)
    first, second = (verbs.add_parser(verb.__name__) for verb in (keep, method))
    first.add_argument("--method", default="divprune")
    first.add_argument("--limits", type=float, nargs="+", default=[0.02, 0.05, 0.2])
    second.add_argument("--tokens", type=int, nargs="+", default=[64, 128])
    for one, verb in ((first, keep), (second, method)):
        one.add_argument("--samples", type=int, default=160)
        one.add_argument("--fresh", type=int, default=200)
        one.set_defaults(verb=verb)
    options = parser.parse_args()
    with TemporaryDirectory() as folder:
        options.verb(options, Path(folder))


if __name__ == "__main__":
    main()
