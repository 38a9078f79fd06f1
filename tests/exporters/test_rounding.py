"""Where rounding decides what is kept: explained patch by patch, and never an excuse for anything else."""

import numpy as np
import pytest
import torch
from models import build

from tokcarve.exporters import golden
from tokcarve.exporters.device.compare import TOLERANCES, Said, check_said, uncompared
from tokcarve.exporters.golden import make_samples, reference
from tokcarve.passes import families
from tokcarve.passes.insert import rewrite
from tokcarve.passes.methods import METHODS


def said(kept: list[int], logits: float = 0.0, undecided: tuple[int, ...] = ()) -> Said:
    """A sample of 8 patches and 2 tokens."""
    opened = np.zeros(8, np.bool_)
    opened[list(undecided)] = True
    return Said(
        kept=np.array(kept),
        features=np.ones((len(kept), 3), np.float32),
        logits=np.array([1.0, logits], np.float32),
        tokens=np.array([0, 0]),
        margins=np.array([1.0, 1.0]),
        open=opened,
    )


def verdicts(found: list[Said], expected: list[Said], dtype: str = "float16") -> dict[str, bool]:
    checks = check_said(found, expected, side="side", dtype=dtype)
    return {check.name.removeprefix("side: "): check.passed for check in checks}


def test_equal_sets_are_compared_number_by_number() -> None:
    assert verdicts([said([1, 2])], [said([1, 2])]) == dict.fromkeys(
        ("kept indices", "image features", "logits", "greedy tokens"), True
    )
    assert not verdicts([said([1, 2], logits=0.5)], [said([1, 2])])["logits"]


def test_patches_that_rounding_swaps_are_explained() -> None:
    found, expected = [said([1, 3], logits=0.9), said([4, 5])], [said([1, 2], undecided=(2, 3)), said([4, 5])]
    assert all(verdicts(found, expected).values()), "the numbers of the swapped sample are not compared"
    check = check_said(found, expected, side="side", dtype="float16")[0]
    assert check.detail == "equal on 1 of 2 samples; up to 2 patches differ, all within rounding"


@pytest.mark.parametrize("undecided", [(), (2,), (3,), (5, 6)])
def test_other_patches_are_not(undecided: tuple[int, ...]) -> None:
    found, expected = [said([1, 3]), said([4, 5])], [said([1, 2], undecided=undecided), said([4, 5])]
    assert not verdicts(found, expected)["kept indices"]


def test_nothing_compared_is_said() -> None:
    checks = check_said([said([1, 3])], [said([1, 2], undecided=(2, 3))], side="pruned", dtype="float16")
    assert [check.name for check in checks] == ["pruned: kept indices"] and checks[0].passed
    assert "no number was compared" in uncompared(checks, "pruned")[0]
    assert uncompared(check_said([said([1, 2])], [said([1, 2])], side="pruned", dtype="float16"), "pruned") == ()


def test_every_dtype_has_its_tolerance() -> None:
    assert TOLERANCES["float32"] < TOLERANCES["float16"] < TOLERANCES["bfloat16"] < 0.1
    half = [said([1, 2], logits=0.01)]
    assert verdicts(half, [said([1, 2])])["logits"] and not verdicts(half, [said([1, 2])], "float32")["logits"]


def test_torch_itself_says_which_patches_are_open() -> None:
    graphs = [
        rewrite(families.capture(model), METHODS["vtc_cls"]().stages(families.capture(model).geometry, 16, None)).graphs
        for model in (build(dtype=dtype) for dtype in (torch.float32, torch.bfloat16))
    ]
    samples, skipped = make_samples(graphs[0], graphs[1], count=2, max_text=6)
    assert skipped > 0, "bfloat16 keeps other patches of some image"
    assert not any(reference(graphs[0], sample, 1, graphs[1]).open.any() for sample in samples)
    rough, _ = make_samples(graphs[0], None, count=4, max_text=6)
    found = [reference(graphs[0], sample, 1, graphs[1]) for sample in rough]
    assert any(one.open.any() for one in found)
    assert all(not reference(graphs[0], sample, 1).open.any() for sample in rough)


def test_one_ambiguous_image_has_every_image_tried_harder(monkeypatch: pytest.MonkeyPatch) -> None:
    model = families.capture(build())
    graphs = rewrite(model, METHODS["vtc_cls"]().stages(model.geometry, 16, None)).graphs
    asked: list[int] = []

    def steady(graphs: object, sample: object, generator: object, nudges: int) -> bool:
        asked.append(nudges)
        return len(asked) not in (2, 4)

    monkeypatch.setattr(golden, "stable", steady)
    samples, skipped = make_samples(graphs, count=3, max_text=6)
    assert len(samples) == 3 and skipped == 1
    assert asked == [3, 3, 12, 12, 12, 12], "the first was accepted after three changes, and is tried again"
    asked[:] = [0] * 9
    assert make_samples(graphs, count=2, max_text=6)[1] == 0 and asked[9:] == [3, 3]


def test_float32_itself_may_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    model = families.capture(build())
    graphs = rewrite(model, METHODS["vtc_cls"]().stages(model.geometry, 16, None)).graphs
    samples, _ = make_samples(graphs, count=1, max_text=6)
    assert not reference(graphs, samples[0], 1, graphs).open.any()
    monkeypatch.setattr(golden, "_NUDGE", 0.1)  # stands for a method that changes no wider than rounding sway
    opened = reference(graphs, samples[0], 1, graphs).open
    assert 0 < int(opened.sum()) < len(opened), "only those that were swayed"
