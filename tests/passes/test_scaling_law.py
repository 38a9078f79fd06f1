"""The published law, worked by hand."""

import pytest

from tokcarve.passes.scaling_law import ALPHA, BETA, BETA_READING, SOURCE, scaling_law


def test_five_times_fewer_rows_by_hand() -> None:
    law = scaling_law(576, 64, text=64)  # 640 rows become 128
    assert law.larger == 5
    assert law.reasoning == pytest.approx(5**0.015) == pytest.approx(1.02444, abs=1e-5)
    assert law.reading == pytest.approx(5**0.048) == pytest.approx(1.08031, abs=1e-5)
    # (N0 / N1)^0.077 = 5^0.015 where N0 / N1 = 5^(0.015 / 0.077) = 5^0.194805
    assert law.as_parameters == pytest.approx(5**0.194805, rel=1e-5) == pytest.approx(1.3683, abs=1e-3)
    assert law.larger_error == pytest.approx(5 ** (0.015 - 0.077)) == pytest.approx(0.9050, abs=1e-4)


def test_nothing_dropped_changes_nothing() -> None:
    law = scaling_law(576, 576, text=64)
    assert (law.reasoning, law.reading, law.as_parameters, law.larger, law.larger_error) == (1, 1, 1, 1, 1)


def test_the_law_is_said_to_be_its_authors() -> None:
    record = scaling_law(576, 64, text=64).record()
    assert record["source"] == SOURCE and "2411.03312" in SOURCE and "authors" in SOURCE
    assert SOURCE in record["sentence"]
    assert (record["alpha"], record["beta"]) == (ALPHA, {"reasoning": BETA, "reading": BETA_READING})
    assert "by 2.4 %" in record["sentence"] and "9.5 % less" in record["sentence"]
