"""Methods whose mathematics knows no places: shuffled patches give the same patches, shuffled."""

from typing import Any

import pytest
import torch
from models import TOTAL, build
from torch import Tensor

from tokcarve.passes import families
from tokcarve.passes.choose import top_in_order
from tokcarve.passes.methods import METHODS
from tokcarve.passes.stage import Carry, Outcome

BATCH, HEADS, WIDTH, KEEP = 2, 4, 24, 16
PLACELESS: dict[str, dict[str, Any]] = {
    "vtc_cls": {},
    "flowcut": {"form": "single"},
    "divprune": {},
    "todre": {"exit": False},
    "cdpruner": {},
    "recoverable": {},
}
PLACED: dict[str, dict[str, Any]] = {
    "hiprune": {"alpha": 1.0},
    "visionzip": {},
    "visiondrop": {"scope": "encoder"},
    "holov": {},
    "vflowopt": {"cell": 2.5, "scope": "first"},
    "tome": {},
    "turbo": {},
}


def signals(seed: int) -> dict[str, Tensor]:
    """Every tap that these methods read, as a layer might give it."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(BATCH, *shape, generator=generator)

    return {
        "tokens": draw(TOTAL, WIDTH),
        "text": draw(WIDTH),
        "cls_attention": torch.softmax(2 * draw(HEADS, 1 + TOTAL), dim=-1),
        "attention": torch.softmax(2 * draw(1 + TOTAL, 1 + TOTAL), dim=-1),
        "keys": draw(HEADS, 1 + TOTAL, WIDTH // HEADS),
        "values": draw(HEADS, 1 + TOTAL, WIDTH // HEADS),
        "next_keys": draw(HEADS, 1 + TOTAL, WIDTH // HEADS),
        "next_cls_query": draw(HEADS, 1, WIDTH // HEADS),
    }


def shuffled(given: dict[str, Tensor], order: Tensor) -> dict[str, Tensor]:
    """The same patches in another order, [CLS] where it was."""
    rows = torch.cat([torch.zeros(1, dtype=torch.long), 1 + order])
    along = {"tokens": (1, order), "cls_attention": (2, rows), "keys": (2, rows), "values": (2, rows)}
    along["next_keys"] = (2, rows)
    made = {name: t.index_select(*along[name]) if name in along else t for name, t in given.items()}
    made["attention"] = given["attention"][:, rows][:, :, rows]
    return made


def kept(name: str, params: dict[str, Any], given: dict[str, Tensor]) -> Tensor:
    """The patches that are left [batch, keep], by the rules alone, every site seeing the same."""
    carry: Carry = {}
    outcome: Outcome = {}
    for stage in METHODS[name](**params).stages(families.capture(build()).geometry, KEEP, None):
        if stage.site.endswith(".attention") and stage.keep < TOTAL - TOTAL // 4:
            break  # a second merge would read fewer rows than these are
        outcome = stage.rule({tap: given[tap] for tap in stage.reads}, carry)
        carry = {key: outcome[key] for key in stage.carries}
    return outcome["index"] if "index" in outcome else top_in_order(outcome["score"], KEEP)


def follows(name: str, params: dict[str, Any]) -> bool:
    """Whether the kept patches of a shuffled image are the shuffled kept patches."""
    order = torch.randperm(TOTAL, generator=torch.Generator().manual_seed(1))
    given = signals(0)
    plain, moved = (kept(name, params, one) for one in (given, shuffled(given, order)))
    return all(set(order[moved[i]].tolist()) == set(plain[i].tolist()) for i in range(BATCH))


@pytest.mark.parametrize("name", PLACELESS)
def test_shuffled_patches_are_kept_shuffled(name: str) -> None:
    assert follows(name, PLACELESS[name])


@pytest.mark.parametrize("name", PLACED)
def test_methods_that_know_places_do_not(name: str) -> None:
    assert not follows(name, PLACED[name])
