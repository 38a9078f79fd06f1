"""Stages followed in torch: by hand for merging and masking, and against the graphs' own indices for every method."""

import numpy as np
import pytest
import torch
from matrix import TOTAL, carve, easy
from models import pictures

from tokcarve.exporters.pictures.following import follow, stages_of
from tokcarve.passes.asking import Question, ask
from tokcarve.passes.geometry import Geometry
from tokcarve.passes.graph import all_kept
from tokcarve.passes.methods import METHODS
from tokcarve.passes.stage import Stage
from tokcarve.passes.writer import module_name


def small(geometry: Geometry, total: int) -> Geometry:
    return geometry.__class__(**{**vars(geometry), "total": total})


@pytest.fixture(scope="module")
def geometry() -> Geometry:
    return small(carve("uniform", "clip", TOTAL).graphs.geometry, 6)


def merging(site: str, **more: object) -> Stage:
    return Stage(site=site, how="merge", keep=2, rule=lambda signals, carry: {}, **more)  # type: ignore[arg-type]


def test_merged_tokens_stand_for_what_went_into_them(geometry: Geometry) -> None:
    first = {
        "index": torch.tensor([[1, 4]]),
        "sources": torch.tensor([[0, 5]]),
        "weights": torch.tensor([[[0.5, 0.0], [0.0, 0.3]]]),
        "own": torch.tensor([[0.5, 0.7]]),
    }
    then = {"index": torch.tensor([[1]]), "weights": torch.tensor([[[0.5, 0.5]]])}
    stages = (merging("vision.layers.0"), Stage(site="vision.layers.1", how="merge", keep=1))
    heard = {module_name("rule", "vision.layers.0"): first, module_name("rule", "vision.layers.1"): then}
    one, two = stages_of(stages, heard, geometry)
    assert one.patches == (1, 4) and one.groups == ((0, 1), (4, 5)) and (one.total, one.keep) == (6, 2)
    assert two.patches == (4,) and two.groups == ((0, 1, 4, 5),) and two.total == 2


def test_the_cls_row_is_no_patch(geometry: Geometry) -> None:
    outcome = {
        "index": torch.tensor([[-1, 2]]),
        "weights": torch.tensor([[[1.0, 0, 0, 0, 0, 0, 0], [0, 0, 0, 0.5, 0.5, 0, 0]]]),
    }
    heard = {module_name("rule", "connector"): outcome}
    (found,) = stages_of((merging("connector", takes_cls=True),), heard, geometry)
    assert found.patches == (-1, 2) and found.groups == ((), (2, 3))
    assert found.members() == {2: 2, 3: 2}


def test_masked_tokens_are_gone_though_the_tensor_stays(geometry: Geometry) -> None:
    stages = (
        Stage(site="vision.layers.0", how="mask", keep=6),
        Stage(site="vision.layers.1", how="choose", keep=2),
    )
    alive = torch.tensor([[True, False, True, True, False, True]])
    heard = {
        module_name("rule", "vision.layers.0"): {"score": torch.tensor([[6.0, 1, 5, 4, 2, 3]])},
        module_name("alive", "vision.layers.0"): alive,
        module_name("rule", "vision.layers.1"): {"score": torch.tensor([[1.0, 9, 2, 3, 9, float("nan")]])},
        module_name("choose", "vision.layers.1"): torch.tensor([[2, 3]]),
    }
    mask, cut = stages_of(stages, heard, geometry)
    assert mask.patches == (0, 2, 3, 5) and mask.keep == 4 and len(mask.scores or {}) == 6
    assert cut.patches == (2, 3) and cut.scores == {0: 1.0, 2: 2.0, 3: 3.0}, "neither the dead nor what is no number"


@pytest.mark.parametrize("case", [*METHODS, "flowcut exact", "flowcut, language stage"])
def test_every_method_is_followed_to_what_its_graphs_keep(case: str) -> None:
    result = carve(case, "clip", easy(case))
    state = {name: torch.rand(1, TOTAL) for name in result.graphs.asks}
    question = Question(pixel_values=pictures(1, seed=4), before=(1, 7, 8), after=(9, 11, 12, 13), state=state)
    stages, tokens = follow(result, question, 1)
    reply = ask(result.graphs, question, 1)
    assert tokens == reply.tokens
    truth = {site: tuple(ids[0].tolist()) for site, ids in all_kept(reply.seen, reply.read).items()}
    assert {stage.site: stage.patches for stage in stages if stage.how in ("choose", "merge", "resize")} == truth
    for planned, stage in zip(result.schedule, stages, strict=True):
        assert planned.site == stage.site and stage.patches is not None
        assert stage.how == "mask" or len(stage.patches) == stage.keep == planned.keep
        if stage.how == "choose":
            best = sorted((stage.scores or {}).values())[-stage.keep :]
            kept = sorted((stage.scores or {}).get(patch, -np.inf) for patch in stage.patches)
            assert kept == pytest.approx(best), "the highest scores are those of the patches that are kept"
        if stage.groups is not None:
            together = [patch for group in stage.groups for patch in group]
            assert len(together) == len(set(together)) <= TOTAL
