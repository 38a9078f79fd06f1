"""What a method decides per image, or learns, frozen into constants, and what freezing costs on samples held out."""

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from tokcarve.passes.calibrate import frozen_counts
from tokcarve.passes.errors import CheckError, MethodError
from tokcarve.passes.geometry import Geometry
from tokcarve.passes.stage import Fit, Frozen, Method
from tokcarve.recipes.calibration.bench import Bench
from tokcarve.recipes.calibration.decide import decide
from tokcarve.recipes.calibration.train import train
from tokcarve.recipes.calibration.work import Candidate
from tokcarve.recipes.carve import name_of, params_of
from tokcarve.recipes.manifest import CheckRecord

__all__ = ["check_capture", "counts_of", "freeze", "is_open", "leaves_open", "per_image", "tuned"]

CAPTURE_TOLERANCE = 1e-4
FIT = "fit"  # whose state the journal keeps
CAPTURED = 4  # images on which the captured graph is compared with the checkpoint


def is_open(method: Method, geometry: Geometry, tokens: int) -> bool:
    """Whether samples have something to say about a method at this count."""
    return tokens < geometry.total and (method.dynamic() is not None or method.learns(geometry, tokens))


def leaves_open(method: Method, geometry: Geometry, tokens: int) -> bool:
    """Whether samples have anything to decide about a method at this count, parameters too."""
    return is_open(method, geometry, tokens) or method.decides(geometry, tokens) is not None


def tuned(
    bench: Bench, method: Method, tokens: int, positions: str = "renumbered"
) -> tuple[Method, Frozen | None, dict[str, Any]]:
    """`method` with its open parameters decided, what is frozen beside them, and a record of both.

    MethodError for a method that leaves nothing open.
    """
    settled, record = decide(bench, method, tokens, positions)
    frozen = None
    if not record or is_open(settled, bench.geometry, tokens):
        frozen, more = freeze(bench, settled, tokens, positions)
        record |= more
    return settled, frozen, record


def freeze(bench: Bench, method: Method, tokens: int, positions: str = "renumbered") -> tuple[Frozen, dict[str, Any]]:
    """Freezes what `method` decides per image, or learns from samples, into constants, with a record of it.

    MethodError for a method that leaves nothing open.
    """
    trainee = method.trainable(bench.geometry, tokens)
    if trainee is not None:
        return train(bench, method, trainee, tokens, positions)
    fit = method.fit(bench.geometry, tokens)
    if fit is not None:
        return _fitted(bench, fit)
    dynamic = per_image(bench, method, tokens, positions)
    if dynamic is not None:
        return _counted(bench, method, dynamic, tokens)
    raise MethodError(f"{method.facts.title} leaves nothing open to calibrate with these parameters")


def per_image(bench: Bench, method: Method, tokens: int, positions: str = "renumbered") -> Method | None:
    """The form of `method` that decides per image, with what samples say of its open parameters; None where none is."""
    if method.dynamic() is None:
        return None
    settled, _ = decide(bench, method, tokens, positions)
    return settled.dynamic()


def counts_of(bench: Bench, dynamic: Method, tokens: int) -> list[dict[str, int]]:
    """Tokens that a dynamic form leaves behind every site of each sample that calibrates."""
    candidate = Candidate(method=name_of(dynamic), params=params_of(dynamic), tokens=tokens).plain()
    tasks = [{"do": "counts", "sample": sample, "candidate": candidate} for sample in bench.learning]
    return [record["counts"] for record in bench.runner.map(tasks, f"counting at {tokens} tokens")]


def check_capture(bench: Bench) -> CheckRecord:
    """Compares the captured graph with the checkpoint on a few samples; CheckError where it is another model."""
    tasks = [{"do": "capture", "sample": sample} for sample in bench.samples[:CAPTURED]]
    worst = max(record["difference"] for record in bench.runner.map(tasks, "checking the captured graph"))
    if not worst <= CAPTURE_TOLERANCE:
        raise CheckError(
            f"the captured vision graph differs from the checkpoint by {worst:.1e}, allowed {CAPTURE_TOLERANCE:.0e}; "
            "this is a fault of tokcarve, please report the checkpoint"
        )
    return CheckRecord(
        name="captured vision graph equals the checkpoint",
        passed=True,
        detail=f"largest difference {worst:.1e}, allowed {CAPTURE_TOLERANCE:.0e}, {len(tasks)} images",
    )


def _counted(bench: Bench, method: Method, dynamic: Method, tokens: int) -> tuple[Frozen, dict[str, Any]]:
    observed = counts_of(bench, dynamic, tokens)
    counts = frozen_counts(observed, tokens, bench.quantile)
    exact = Candidate(method=name_of(dynamic), params=params_of(dynamic), tokens=tokens).plain()
    fixed = Candidate(method=name_of(method), params=params_of(method), tokens=tokens, counts=counts).plain()
    tasks = [{"do": "agreement", "sample": sample, "dynamic": exact, "frozen": fixed} for sample in bench.held]
    overlaps = [record["overlap"] for record in bench.runner.map(tasks, "comparing with the exact form")]
    agreement = {
        "images": len(overlaps),
        "identical": sum(overlap == 1 for overlap in overlaps) / len(overlaps),
        "overlap": sum(overlaps) / len(overlaps),
    }
    spread = {site: [min(found), max(found)] for site in counts if (found := [image[site] for image in observed])}
    return Frozen(counts=counts), {"counts": counts, "spread": spread, "agreement": agreement}


def _fitted(bench: Bench, fit: Fit) -> tuple[Frozen, dict[str, Any]]:
    journal = bench.runner.journal
    done, state = journal.saved(FIT)
    if done:
        fit.restore(state)
    for tokens in _tokens(bench, fit.site, bench.learning[done:], "learning"):
        fit.add(tokens)
        done += 1
        journal.save(done, fit.state(), FIT)
    tensors = fit.solve()
    losses = [fit.loss(tensors, tokens) for tokens in _tokens(bench, fit.site, bench.held, "measuring the loss")]
    shapes = {name: list(tensor.shape) for name, tensor in tensors.items()}
    return Frozen(tensors=tensors), {"tensors": shapes, "held_out_loss": sum(losses) / len(losses)}


def _tokens(bench: Bench, site: str, samples: range, what: str) -> Iterator[Tensor]:
    tasks = [{"do": "tokens", "sample": sample, "site": site} for sample in samples]
    for record in bench.runner.map(tasks, what, keep=lambda record: False):
        yield record["tokens"]
