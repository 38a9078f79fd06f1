"""What a budget set costs: every budget beside the unpruned model, the router, and what both come to on average.

`SetProfile.record()` is the JSON of `Profile` for the largest budget, and

    router {p50_ms, p95_ms, mean_ms, min_ms, share_of_encoder (of the unpruned one), mean_tokens, shares,
        expected {stage: ms}}: shares of the budgets on the samples that calibration held out, and the medians of every
        stage under these shares, the router in front of the first token and of the whole answer
    budgets: a list of the same objects for every budget, the smallest first
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tokcarve.exporters.device.face import ROUTER
from tokcarve.exporters.device.machine import load_now
from tokcarve.exporters.device.profile import Profile, Tick, profile
from tokcarve.exporters.device.rounds import Effort
from tokcarve.exporters.device.session import open_face
from tokcarve.exporters.device.timing import Distribution, distribution, time_in_turn
from tokcarve.recipes.manifest import Manifest, RouterRecord

__all__ = ["SetProfile", "profile_set"]

_BEHIND_ROUTER = ("first_token", "end_to_end")


@dataclass(frozen=True, kw_only=True)
class SetProfile:
    """A profile per budget, the smallest first, and the router's milliseconds per batch."""

    budgets: Mapping[int, Profile]
    router: Distribution
    chooses: RouterRecord

    @property
    def largest(self) -> Profile:
        """The profile of the budget that loses least."""
        return self.budgets[max(self.budgets)]

    @property
    def expected(self) -> dict[str, float]:
        """Median milliseconds of every stage under the shares of the held-out samples."""
        shares = dict(zip(self.chooses.tokens, self.chooses.held_out.shares, strict=True))
        return {
            stage: sum(share * self.budgets[tokens].stages[stage].pruned.p50 for tokens, share in shares.items())
            + (self.router.p50 if stage in _BEHIND_ROUTER else 0)
            for stage in self.largest.stages
        }

    def record(self) -> dict[str, Any]:
        """All of it as JSON."""
        held, router = self.chooses.held_out, self.router
        return {
            **self.largest.record(),
            "router": {
                "p50_ms": router.p50,
                "p95_ms": router.p95,
                "mean_ms": router.mean,
                "min_ms": router.least,
                "share_of_encoder": router.p50 / self.largest.stages["encoder"].unpruned.p50,
                "mean_tokens": held.mean_tokens,
                "shares": list(held.shares),
                "expected": self.expected,
            },
            "budgets": [{"budget": tokens, **made.record()} for tokens, made in self.budgets.items()],
        }


def profile_set(
    artifact: Path,
    manifest: Manifest,
    *,
    effort: Effort | None = None,
    answers: Sequence[int] | None = None,
    threads: int | None = None,
    tick: Tick | None = None,
    load: float | None = None,
) -> SetProfile:
    """Measures every budget of a set as `profile` does, and the router; raises as `profile`."""
    assert manifest.router is not None
    say: Tick = tick or (lambda what, done, total: None)
    effort, load = effort or Effort(), load_now() if load is None else load
    made = {
        tokens: profile(
            artifact,
            manifest.schedule_of(tokens),
            budget=tokens,
            effort=effort,
            answers=answers,
            threads=threads,
            tick=partial(_named, say, tokens),
            load=load,
        )
        for tokens in manifest.counts
    }
    graph = open_face(artifact, threads).open(ROUTER)
    noise = np.random.default_rng(0).standard_normal(graph.shapes["pixel_values"])
    feeds = {"pixel_values": noise.astype(graph.types["pixel_values"])}
    say("router", 0, 1)
    repeats = effort.repeats or 2 * effort.least
    (spent,) = time_in_turn([lambda _: graph.run(feeds)], warm_up=effort.warm_up, repeats=repeats, tick=lambda: None)
    say("router", 1, 1)
    return SetProfile(budgets=made, router=distribution(spent), chooses=manifest.router)


def _named(say: Tick, tokens: int, what: str, done: int, total: int) -> None:
    say(f"{tokens} tokens: {what}", done, total)
