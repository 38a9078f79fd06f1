"""Two profiles of one artifact, one after the other: whether they agree within the intervals that each states.

    python benchmarks/profile_agreement.py ARTIFACT [--seconds 60] [--answers 1,16,64]

A row per stage and per answer: the gain that each profile measured, with its 95 % interval, and whether the two have a
value in common; then, for both, whether parts add up to the whole and how far the predicted gain is from the measured.
The exit code is 1 where gains of encoder, prefill, decode or an answer do not agree.
"""

import argparse
import sys
from pathlib import Path

from tokcarve.exporters.device.intervals import Interval
from tokcarve.exporters.device.profile import Profile, profile
from tokcarve.exporters.device.rounds import Effort
from tokcarve.exporters.device.timing import Distribution
from tokcarve.recipes.artifact import read_artifact

STAGES = ("encoder", "prefill", "decode")


def gains(made: Profile) -> dict[str, Distribution]:
    """The ratios that have to agree, by name."""
    found = {name: made.stages[name].ratio for name in STAGES}
    return found | {f"answer of {one.new}": one.ratio for one in made.answers}


def shown(interval: Interval | None) -> str:
    """The ends of an interval."""
    return "unknown" if interval is None else f"{interval.low:.3f} to {interval.high:.3f}"


def agree(one: Distribution, other: Distribution) -> bool:
    """Whether both are known and have a value in common."""
    return one.interval is not None and other.interval is not None and one.interval.meets(other.interval)


def main() -> int:
    """Print the tables; 1 where profiles do not agree."""
    parser = argparse.ArgumentParser()
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--answers", default="1,16,64")
    options = parser.parse_args()
    artifact = read_artifact(options.artifact)
    lengths, effort = [int(word) for word in options.answers.split(",")], Effort(seconds=options.seconds)
    two = [profile(artifact.directory, artifact.manifest.schedule, effort=effort, answers=lengths) for _ in range(2)]
    print("| gain of | first | 95 % | second | 95 % | agree |\n|---|--:|---|--:|---|---|")
    wrong = 0
    for (name, one), other in zip(gains(two[0]).items(), gains(two[1]).values(), strict=True):
        wrong += not agree(one, other)
        words = f"{one.p50:.3f} | {shown(one.interval)} | {other.p50:.3f} | {shown(other.interval)}"
        print(f"| {name} | {words} | {'yes' if agree(one, other) else 'no'} |")
    print("\n| profile | new tokens | whole over parts, pruned | unpruned | measured | predicted | apart |")
    print("|---|--:|--:|--:|--:|--:|--:|")
    for number, made in enumerate(two, 1):
        for one in made.answers:
            apart = one.predicted / one.ratio.p50 - 1
            sums = " | ".join(f"{side.p50:.3f}" for side in one.sums)
            print(f"| {number} | {one.new} | {sums} | {one.ratio.p50:.3f} | {one.predicted:.3f} | {apart:+.1%} |")
        print(f"\n{number}: {made.stages['prefill'].rounds} rounds; {made.verdict}\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
