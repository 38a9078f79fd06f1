"""The journal: what was kept comes back, a line cut short does not, and other facts are refused."""

from pathlib import Path

import pytest
import torch

from tokcarve.passes.errors import SampleError
from tokcarve.recipes.calibration.journal import Journal, journal_of

FACTS = {"model": "a", "sample set": "b"}
FIRST, SECOND = {"do": "x", "sample": 1}, {"sample": 2, "do": "x"}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return journal_of(tmp_path / "out")


def written(path: Path) -> Journal:
    journal = Journal(path, FACTS)
    journal.put(FIRST, {"kl": 0.1 + 0.2})
    journal.put(SECOND, {"kl": 1e-300})
    journal.close(done=False)
    return journal


def test_records_come_back_to_the_last_bit(path: Path) -> None:
    written(path)
    again = Journal(path, FACTS, resume=True)
    assert again.get({"sample": 1, "do": "x"}) == {"kl": 0.1 + 0.2}
    assert again.get(SECOND) == {"kl": 1e-300}
    assert again.get({"do": "x", "sample": 3}) is None


def test_without_resume_it_begins_again(path: Path) -> None:
    written(path)
    assert Journal(path, FACTS).get(FIRST) is None
    fresh = Journal(path, FACTS)
    fresh.put(SECOND, {"kl": 5})
    fresh.close(done=False)
    assert Journal(path, FACTS, resume=True).get(FIRST) is None


@pytest.mark.parametrize("cut", [1, 5, 20])
def test_a_line_cut_short_is_done_again_and_does_not_spoil_the_next(path: Path, cut: int) -> None:
    written(path)
    path.write_text(path.read_text()[:-cut])
    again = Journal(path, FACTS, resume=True)
    assert again.get(FIRST) is not None and (again.get(SECOND) is None or cut == 1)
    again.put(SECOND, {"kl": 7})
    again.close(done=False)
    third = Journal(path, FACTS, resume=True)
    assert third.get(FIRST) == {"kl": 0.1 + 0.2} and third.get(SECOND) == {"kl": 7}


def test_other_facts_are_refused_by_name(path: Path) -> None:
    written(path)
    with pytest.raises(SampleError, match="cannot be resumed: sample set was b and is c; give what was given then"):
        Journal(path, FACTS | {"sample set": "c"}, resume=True)
    path.write_text("{}\n")
    with pytest.raises(SampleError, match="is no journal of a calibration; remove it, or leave --resume out"):
        Journal(path, FACTS, resume=True)


def test_done_removes_it_and_nothing_to_resume_is_nothing(path: Path) -> None:
    assert Journal(path, FACTS, resume=True).get(FIRST) is None
    journal = Journal(path, FACTS)
    journal.put(FIRST, {})
    journal.save(1, {"sum": torch.ones(2)}, "fit")
    assert len(list(path.parent.iterdir())) == 2
    journal.close(done=True)
    assert list(path.parent.iterdir()) == []


def test_gathered_state_comes_back_under_the_same_facts(path: Path) -> None:
    journal = Journal(path, FACTS)
    journal.save(1, {"sum": torch.ones(2)}, "fit")
    journal.save(2, {"sum": torch.full((2,), 0.1, dtype=torch.float64)}, "fit")
    journal.close(done=False)
    done, state = Journal(path, FACTS, resume=True).saved("fit")
    assert Journal(path, FACTS, resume=True).saved("training") == (0, {})
    assert done == 2 and torch.equal(state["sum"], torch.full((2,), 0.1, dtype=torch.float64))
    assert Journal(path, FACTS).saved("fit") == (0, {})
    with pytest.raises(SampleError, match="model was a and is z"):
        Journal(path, FACTS | {"model": "z"}, resume=True).saved("fit")


def test_no_path_keeps_nothing(tmp_path: Path) -> None:
    journal = Journal(None, FACTS)
    journal.put(FIRST, {})
    journal.save(1, {}, "fit")
    journal.close(done=True)
    assert journal.get(FIRST) is None and list(tmp_path.iterdir()) == []
