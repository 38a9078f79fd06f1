"""Calibration: what the dynamic form decided is counted truly, frozen soundly and compared fairly."""

import pytest
import torch
from models import TOTAL, build, pictures
from torch import Tensor
from watcher import Watcher

from tokcarve.passes import families
from tokcarve.passes.calibrate import Observed, frozen_counts, observe, shared, tokens_at
from tokcarve.passes.flow import drop_count, entropy_ratio, shares
from tokcarve.passes.graph import TokenGraphs
from tokcarve.passes.insert import RewriteResult, rewrite
from tokcarve.passes.methods.flowcut import FlowCut
from tokcarve.passes.methods.vtc_cls import VtcCls
from tokcarve.passes.stage import Carry, Frozen, Method, Outcome, Signals, Stage


@pytest.fixture(scope="module")
def graphs() -> TokenGraphs:
    return families.capture(build())


def carved(graphs: TokenGraphs, method: Method, tokens: int = 8, counts: dict[str, int] | None = None) -> RewriteResult:
    return rewrite(graphs, method.stages(graphs.geometry, tokens, None if counts is None else Frozen(counts=counts)))


def seen(*counts: int, kept: tuple[int, ...] = (0,)) -> Observed:
    return Observed(counts={f"vision.layers.{i}": count for i, count in enumerate(counts)}, kept=frozenset(kept))


@pytest.mark.parametrize(
    ("observed", "tokens", "frozen"),
    [
        ([seen(50, 30, 12)], 8, [50, 30, 12]),
        ([seen(50, 30), seen(53, 34), seen(50, 32)], 8, [51, 32]),
        ([seen(9, 8), seen(8, 8)], 8, [8, 8]),  # 8.5 goes to the even number
        ([seen(40, 20), seen(20, 20)], 25, [30, 25]),  # never below the budget
        ([seen(20, 40)], 8, [20, 20]),  # never rises with depth
        ([seen()], 8, []),
    ],
)
def test_frozen_counts(observed: list[Observed], tokens: int, frozen: list[int]) -> None:
    assert list(frozen_counts([image.counts for image in observed], tokens).values()) == frozen


def test_a_quantile_in_place_of_the_mean() -> None:
    observed = [{"vision.layers.0": count} for count in (10, 20, 30, 40, 100)]
    found = [frozen_counts(observed, 8, quantile)["vision.layers.0"] for quantile in (None, 0.5, 0.75, 1.0)]
    assert found == [40, 30, 40, 100]


def by_hand(graphs: TokenGraphs, image: Tensor, tokens: int, cuts: tuple[int, ...]) -> tuple[dict[str, int], set[int]]:
    """FlowCut on one image in plain loops: rows are really removed, layer by layer."""
    hidden, alive = graphs.parts.patches(image), torch.arange(TOTAL)
    average, counts = torch.empty(0), {}
    last = graphs.geometry.vision.layers_used - 2
    for i, block in enumerate(graphs.parts.vision_blocks[: last + 1]):
        rows = block.normed(hidden)
        query, key, value = (block.project(name, rows) for name in "qkv")
        attention = torch.softmax(query[:, :, :1] @ key.transpose(-1, -2) * block.scale, dim=-1)[:, :, 0]
        share, score = shares(attention, value)
        average = score if i == 0 else (average + score) / 2
        hidden = block(hidden)
        if i not in cuts:
            continue
        n = len(alive)
        ratio = entropy_ratio(share, torch.tensor([float(n)]))
        left = tokens if i == last else max(tokens, n - int(drop_count(torch.tensor(n), tokens, last - i, ratio)))
        keep = sorted(sorted(range(n), key=lambda j: (-float(average[0, j]), j))[:left])
        alive, average = alive[keep], average[:, keep]
        hidden = torch.cat([hidden[:, :1], hidden[:, 1:][:, keep]], dim=1)
        if i != last:
            counts[f"vision.layers.{i}"] = left
    return counts, set(alive.tolist())


@pytest.mark.parametrize(("interval", "cuts"), [(1, (0, 1, 2, 3)), (2, (1, 3))])
def test_what_is_observed_is_what_a_plain_loop_counts(
    graphs: TokenGraphs, interval: int, cuts: tuple[int, ...]
) -> None:
    pixels = pictures(6, seed=4)
    found = observe(carved(graphs, FlowCut(form="exact", interval=interval)), pixels)
    assert len(found) == 6
    for image, pixel in zip(found, pixels, strict=True):
        with torch.no_grad():
            counts, kept = by_hand(graphs, pixel[None], 8, cuts)
        assert image.counts == counts
        assert image.kept == kept
    assert len({image.kept for image in found}) == 6, "every image keeps something else"


def test_what_would_pass_is_seen_where_a_rule_says_it(graphs: TokenGraphs) -> None:
    def rule(signals: Signals, carry: Carry) -> Outcome:
        score = signals["tokens"].sum(dim=2)
        return {"score": score, "passing": (score > 0).sum(dim=1)}

    site, pixels = "vision.layers.2", pictures(3)
    stage = Stage(site=site, reads=("tokens",), rule=rule, how="choose", keep=5)
    found = observe(rewrite(graphs, [stage]), pixels)
    expected = (tokens_at(graphs, site, pixels).sum(dim=2) > 0).sum(dim=1).tolist()
    assert [one.passing for one in found] == [{site: count} for count in expected] and len(set(expected)) > 1
    assert [(one.counts, len(one.kept)) for one in found] == [({}, 5)] * 3
    assert observe(carved(graphs, FlowCut(form="exact")), pixels)[0].passing == {}


def test_observing_in_batches_or_one_by_one_is_the_same(graphs: TokenGraphs) -> None:
    exact = carved(graphs, FlowCut(form="exact", interval=1))
    pixels = pictures(4)
    assert observe(exact, pixels) == [image for pixel in pixels for image in observe(exact, pixel[None])]


def test_a_form_shares_all_with_itself(graphs: TokenGraphs) -> None:
    exact = carved(graphs, FlowCut(form="exact"))
    assert [shared(exact, exact, pixel[None]) for pixel in pictures(3, seed=1)] == [1.0] * 3


def test_what_is_shared_by_hand(graphs: TokenGraphs) -> None:
    dynamic, frozen = (carved(graphs, VtcCls(), tokens=tokens) for tokens in (4, 10))
    pixels = pictures(1)
    (wanted,), (other,) = (observe(one, pixels) for one in (dynamic, frozen))
    assert shared(dynamic, frozen, pixels) == len(wanted.kept & other.kept) / 4
    assert shared(frozen, dynamic, pixels) == len(wanted.kept & other.kept) / 10


def test_frozen_counts_make_a_static_form_close_to_the_dynamic_one(graphs: TokenGraphs) -> None:
    method = FlowCut()
    exact = carved(graphs, FlowCut(form="exact"), tokens=16)
    learned = [image.counts for image in observe(exact, pictures(12, seed=1))]
    static = carved(graphs, method, tokens=16, counts=frozen_counts(learned, 16))
    wild = carved(graphs, method, tokens=16, counts={"vision.layers.1": 16})
    held_out = pictures(8, seed=2)
    near, far = ([shared(exact, one, pixel[None]) for pixel in held_out] for one in (static, wild))
    assert sum(near) / 8 > 0.9 and sum(near) > sum(far)


def test_nothing_is_open_when_all_tokens_are_kept(graphs: TokenGraphs) -> None:
    exact = carved(graphs, FlowCut(form="exact"), tokens=TOTAL)
    pixels = pictures(2)
    observed = observe(exact, pixels)
    assert observed == [Observed(counts={}, kept=frozenset(range(TOTAL)))] * 2
    assert frozen_counts([image.counts for image in observed], TOTAL) == {}
    assert shared(exact, exact, pixels[:1]) == 1.0


def test_masks_are_watched_where_they_are_made(graphs: TokenGraphs) -> None:
    exact = carved(graphs, FlowCut(form="exact", interval=1))
    watcher = Watcher(exact.graphs.vision)
    pixels = pictures(2)
    with torch.no_grad():
        watcher.run(pixels)
    for i, image in enumerate(observe(exact, pixels)):
        assert image.counts == {
            f"vision.layers.{n}": int(watcher.seen[f"select_alive_l{n}"][i].sum()) for n in range(3)
        }
