"""Answers from stages by hand: sums, predictions, how much is decode, and up to which length pruning pays."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokcarve.exporters.device.answers import PAYS, BreakEven, answers_of, break_even, check_answers, decode_share
from tokcarve.exporters.device.rounds import Samples
from tokcarve.passes.errors import ExportError


def stages(first: tuple[float, float], step: tuple[float, float], cache: float = 1.0) -> dict[str, Samples]:
    """Three quiet rounds: encoder 10 and embedding 1 ms on both sides, `first` is prefill."""
    both = {"encoder": (10.0, 10.0), "embedding": (1.0, 1.0), "prefill": first, "cache": (cache, cache), "decode": step}
    return {name: ([float(pruned)] * 3, [float(unpruned)] * 3) for name, (pruned, unpruned) in both.items()}


def test_an_answer_beside_its_stages() -> None:
    samples = stages((20, 89), (2, 3))
    # 10 + 1 + 20 and, from the second token on, 1 and 2 per step; unpruned 10 + 1 + 89, 1 and 3
    samples |= {"answer.1": ([31.0] * 3, [100.0] * 3), "answer.5": ([41.0] * 3, [113.0] * 3)}
    one, five = answers_of(samples, (1, 5))
    assert one.predicted == pytest.approx(100 / 31) == one.ratio.p50
    assert one.sums[0].p50 == one.sums[1].p50 == 1 and one.adds_up
    assert five.predicted == pytest.approx(113 / 40) and five.ratio.p50 == pytest.approx(113 / 41)
    assert five.sums[0].p50 == pytest.approx(41 / 40) and five.adds_up
    assert decode_share(samples, 5) == pytest.approx(8 / 40) and decode_share(samples, 1) == 0


def test_what_does_not_add_up_is_told() -> None:
    samples = stages((20, 89), (2, 3)) | {"answer.1": ([31.0] * 3, [106.0] * 3)}
    (one,) = answers_of(samples, (1,))
    assert one.sums[1].p50 == pytest.approx(1.06) and not one.adds_up
    assert one.record()["whole_over_parts"] == {"pruned": 1.0, "unpruned": pytest.approx(1.06)}
    assert one.record()["adds_up"] is False


@pytest.mark.parametrize(
    ("first", "step", "expected", "said"),
    [
        # 111 against 31: ahead by 76.9 at the first token, by 74.8 at the second, then by 2 less per step
        ((20, 100), (20, 20), BreakEven(shortest=1, longest=39), "break-even (1.1x) below 40 new tokens"),
        ((20, 100), (10, 12), BreakEven(shortest=1, longest=None), "answers of any length are 1.1x faster or more"),
        ((20, 20), (10, 10), BreakEven(shortest=None, longest=None), "no answer is 1.1x faster, however short or long"),
        # ahead at the first token, behind at the second for its cache, ahead again as steps go on
        ((20, 24), (10, 12), BreakEven(shortest=1, longest=None), "answers of any length are 1.1x faster or more"),
        # behind by 2.3 at the second token; every step gains 2 - 1.1
        ((20, 20), (1, 2), BreakEven(shortest=5, longest=None), "answers from 5 new tokens on are 1.1x faster or more"),
    ],
)
def test_break_even_by_hand(
    first: tuple[float, float], step: tuple[float, float], expected: BreakEven, said: str
) -> None:
    found = break_even(stages(first, step))
    assert found == expected and str(found) == said


@given(*[st.floats(0.5, 50)] * 4)
def test_break_even_is_where_the_sums_cross(pruned: float, unpruned: float, step: float, other: float) -> None:
    samples = stages((pruned, unpruned), (step, other))
    found = break_even(samples)

    def pays(new: int) -> bool:
        sums = [
            11 + first + (1 + (new - 1) * each if new > 1 else 0) for first, each in ((pruned, step), (unpruned, other))
        ]
        return sums[1] >= PAYS * sums[0]

    held = [new for new in range(1, 60) if pays(new)]
    within = [
        new for new in range(1, 60)
        if found.shortest is not None and found.shortest <= new <= (found.longest or new)
    ]  # fmt: skip
    assert len(set(held) ^ set(within)) <= 1  # rounding at the crossing


def test_lengths_are_those_that_fit() -> None:
    assert check_answers(None, 128) == (1, 16, 64) and check_answers(None, 12) == (1, 12)
    assert check_answers([5, 2, 5], 12) == (2, 5)
    with pytest.raises(ExportError, match=r"13 new tokens do not fit this export; choose 1\.\.12"):
        check_answers([1, 13], 12)
    with pytest.raises(ExportError, match="no answer length does not fit"):
        check_answers([], 12)
