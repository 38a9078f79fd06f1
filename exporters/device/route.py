"""Which budget of a set answers about an image: the one that was named, or the router's choice.

The router predicts what every budget loses (see RouterRecord of recipes/manifest.py); prices for other means than the
one that was calibrated are in its record, so that a device changes the mean without a new export.
"""

from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokcarve.exporters.device.face import ROUTER
from tokcarve.exporters.device.session import Face, open_face
from tokcarve.passes.errors import BudgetError
from tokcarve.passes.routing import chosen
from tokcarve.recipes.manifest import Manifest, RouterRecord

__all__ = ["Choice", "OrtRouter", "Wish", "decide", "price_of", "route_in_ort"]


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What the user says of budgets: one of them, or another mean than was calibrated."""

    tokens: int | None = None
    mean_tokens: int | None = None

    def checked(self, manifest: Manifest) -> "Wish":
        """The wish, where the artifact can grant it; raises as `named`, and for a mean outside its budgets."""
        if self.named(manifest) is None and manifest.router is not None:
            price_of(manifest.router, self.mean_tokens)
        return self

    def named(self, manifest: Manifest) -> int | None:
        """The budget that is to answer, None where the router chooses.

        BudgetError for a budget that the artifact does not have, and for a mean where nothing is chosen.
        """
        if self.mean_tokens is not None and self.tokens is not None:
            raise BudgetError(
                f"--tokens {self.tokens} names a budget and --mean-tokens {self.mean_tokens} lets the router choose; "
                "give one of them"
            )
        if self.mean_tokens is not None and manifest.router is None:
            raise BudgetError(
                f"--mean-tokens {self.mean_tokens} is about a budget set, and this artifact has one budget of "
                f"{manifest.budget.tokens} tokens; leave it out, or compress with several --tokens"
            )
        if self.tokens is not None:
            manifest.schedule_of(self.tokens)
        return self.tokens if self.tokens is not None or manifest.router is not None else manifest.budget.tokens


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The budget for an image, what the router predicts of each (mean logarithm of the loss in nats), the price that a
    token had, and the milliseconds that it took."""

    tokens: int
    budgets: tuple[int, ...]
    predicted: tuple[float, ...]
    price: float
    ms: float

    def record(self) -> dict[str, Any]:
        """This choice as JSON."""
        return {
            "tokens": self.tokens,
            "budgets": list(self.budgets),
            "predicted": list(self.predicted),
            "price": self.price,
            "ms": self.ms,
        }


def price_of(record: RouterRecord, mean: int | None) -> float:
    """The price for a mean of tokens, the calibrated one for None; BudgetError for one outside the set."""
    least, most = record.tokens[0], record.tokens[-1]
    if mean is None:
        return record.price
    if not least <= mean <= most:
        raise BudgetError(
            f"--mean-tokens {mean} is no mean of {', '.join(map(str, record.tokens))} tokens; choose {least}..{most}"
        )
    return [price for reached, price in record.prices if reached <= mean][-1]


def decide(record: RouterRecord, losses: NDArray[Any], mean: int | None, ms: float) -> Choice:
    """The choice for one image by predicted losses [budgets]."""
    price = price_of(record, mean)
    row = losses.astype(np.float64)
    place = int(chosen(row[None], record.tokens, price)[0])
    return Choice(
        tokens=record.tokens[place],
        budgets=record.tokens,
        predicted=tuple(row.tolist()),
        price=price,
        ms=ms,
    )


class OrtRouter:
    """The exported router of a face, for another `mean` than was calibrated where one is given."""

    def __init__(self, face: Face, mean: int | None) -> None:
        assert face.record.router is not None
        self.record, self.batch, self.mean = face.record.router, face.record.batch, mean
        price_of(self.record, mean)
        self.graph = face.open(ROUTER)

    def __call__(self, pixels: NDArray[np.float32]) -> Choice:
        """The choice for an image [1, 3, height, width]."""
        batch = np.repeat(pixels, self.batch, axis=0)
        started = perf_counter()
        losses = self.graph.run({"pixel_values": batch})["losses"][0]
        return decide(self.record, losses, self.mean, (perf_counter() - started) * 1000)


def route_in_ort(artifact: Path, pixels: NDArray[np.float32], mean: int | None, threads: int | None) -> Choice:
    """The choice of an artifact's exported router for an image [1, 3, height, width]."""
    return OrtRouter(open_face(artifact, threads), mean)(pixels)
