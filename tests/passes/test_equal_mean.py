"""Schedules of one mean: never a row more, against plain loops, and the ratios that the authors publish."""

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokcarve.passes.equal_mean import EqualMean, layers_between

PUBLISHED = {0.5: (0.72332, 0.74875, 0.487), 0.25: (0.26510, 0.98334, 0.87733), 0.1: (0.11662, 1.0, 0.6011)}
"""Mean share and the three ratios for 28 layers cut into 9, 9 and 10."""


def rows(counts: tuple[int, ...], layers: tuple[int, ...]) -> int:
    return sum(count * deep for count, deep in zip(counts, layers, strict=True))


@st.composite
def schedules(draw: st.DrawFn) -> EqualMean:
    total = draw(st.integers(1, 80))
    cuts = draw(st.integers(0, 3))
    counts = sorted(draw(st.lists(st.integers(1, total), min_size=cuts + 1, max_size=cuts + 1)), reverse=True)
    layers = draw(st.lists(st.integers(1, 12), min_size=cuts + 1, max_size=cuts + 1))
    return EqualMean(total=total, counts=tuple(counts), layers=tuple(layers), exact=draw(st.booleans()))


@st.composite
def points(draw: st.DrawFn, equal: EqualMean) -> dict[str, float]:
    share = st.floats(0, 1)
    return {"entering": draw(share)} | {f"ratios.{cut}": draw(share) for cut in range(equal.solved - 1)}


def looped(equal: EqualMean, point: Mapping[str, float]) -> tuple[int, ...]:
    """The counts one after the other: the nearest to what is wanted behind which the rows can still be spent."""
    last = equal.counts[-1:] if equal.exact else ()
    whole, least = rows(equal.counts, equal.layers), last[0] if last else 1
    found: tuple[int, ...] = ()
    wanted = point["entering"] * equal.total
    for place in range(equal.solved):
        most = found[-1] if found else equal.total

        def filled(count: int, rest: int, found: tuple[int, ...] = found, place: int = place) -> int:
            return rows((*found, count, *[rest] * (equal.solved - place), *last), equal.layers)

        affordable = [count for count in range(1, most + 1) if filled(count, least) <= whole]
        spending = [count for count in affordable if filled(count, count) >= whole]
        found += (min(spending or affordable[-1:], key=lambda count: (abs(count - round(wanted)), count)),)
        wanted = found[-1] * point.get(f"ratios.{place}", 1.0)
    fits = [one for one in range(1, found[-1] + 1) if rows((*found, one, *last), equal.layers) <= whole]
    return (*found, fits[-1], *last)


@given(st.data())
def test_every_point_costs_as_much_and_never_more(data: st.DataObject) -> None:
    equal = data.draw(schedules())
    point = data.draw(points(equal)) if equal.solved > 0 else {}
    found = equal.at(point)
    assert len(found) == len(equal.counts) and found[-1] >= 1 and found[0] <= equal.total
    assert all(before >= behind for before, behind in zip(found, found[1:], strict=False))
    slack = rows(equal.counts, equal.layers) - rows(found, equal.layers)
    assert 0 <= slack < max(equal.layers)
    if equal.exact:
        assert found[-1] == equal.counts[-1]
    if point:
        assert found == looped(equal, point)


@given(st.data())
def test_the_start_is_the_schedule_itself(data: st.DataObject) -> None:
    equal = data.draw(schedules())
    space = equal.space(1.0, 1.5, 0.5)
    assert list(space) == ["entering", "ratios.0", "ratios.1"][: max(0, equal.solved)]
    assert all(span.of == "ratios" for span in space.values())
    assert equal.at({name: span.start for name, span in space.items()}) == equal.counts
    if space:
        low, high = space["entering"].low, space["entering"].high
        assert 0 < low <= high <= 1
        mean = rows(equal.counts, equal.layers) / sum(equal.layers)
        assert high * equal.total <= round(1.5 * mean) + 1


def test_by_hand() -> None:
    # 10 + 10 + 12 layers, 2000 rows
    equal = EqualMean(total=576, counts=(80, 60, 50), layers=(10, 10, 12), exact=False)
    assert equal.at({"entering": 100 / 576, "ratios.0": 0.5}) == (100, 50, 41)  # 492 of 500 rows spent
    assert equal.at({"entering": 100 / 576, "ratios.0": 1.0}) == (100, 98, 1)  # at least one behind the last
    assert equal.at({"entering": 70 / 576, "ratios.0": 0.1}) == (70, 60, 58)  # no more behind than before
    fixed = EqualMean(total=576, counts=(80, 60, 50), layers=(10, 10, 12), exact=True)
    assert fixed.at({"entering": 85 / 576}) == (85, 55, 50)
    assert fixed.at({"entering": 1.0}) == (90, 50, 50) and fixed.at({"entering": 0.0}) == (70, 70, 50)
    tight = EqualMean(total=9, counts=(5, 1, 1), layers=(1, 2, 1), exact=False)
    assert tight.at({"entering": 4 / 9, "ratios.0": 1.0}) == (4, 1, 1)  # a row is left that no count can take
    entering = fixed.space(1.0, 1.5, 0.5)["entering"]
    assert [round(576 * share) for share in (entering.low, entering.start, entering.high)] == [70, 80, 90]


@pytest.mark.parametrize("mean", PUBLISHED)
def test_the_last_ratio_is_the_published_one(mean: float) -> None:
    total = 10**7
    level = EqualMean(total=total, counts=(round(mean * total),) * 3, layers=(9, 9, 10), exact=False)
    first, second, third = PUBLISHED[mean]
    ratios = level.ratios({"entering": first, "ratios.0": second})
    assert ratios[0] == pytest.approx(second, abs=1e-6)
    # the published digits come to the mean within 1e-3, which is a share of what the last layers hold
    assert ratios[1] == pytest.approx(third, abs=1e-3 * 28 / 10 / (first * second))


def test_layers_between_sites() -> None:
    assert layers_between(32, ("language.layers.9", "language.layers.19")) == (10, 10, 12)
    assert layers_between(6, ()) == (6,)
