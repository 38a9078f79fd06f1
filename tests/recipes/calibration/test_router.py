"""A budget set: prices and choices by hand, a ridge against plain equations, and a router that finds what is there."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml
from models import build, pictures
from numpy.typing import NDArray

from tokcarve.passes import families, ridge
from tokcarve.passes.errors import RecipeError
from tokcarve.passes.router import PREFIX, Glimpse, Router, router_layer
from tokcarve.passes.routing import chosen, mean_tokens, price_for
from tokcarve.recipes.calibration.route import Measured, fit_router, judged, questions
from tokcarve.recipes.files import dump_recipe, parse_recipe

Array = NDArray[np.float64]
TOKENS = (2, 4, 8)


def test_a_set_learns_from_scenes_unless_told() -> None:
    fields = {"model": "tiny", "method": {"name": "vtc_cls"}, "budget": {"tokens": [64, 32, 48, 16]}}
    recipe = parse_recipe(fields, "here")
    assert recipe.calibration is not None and recipe.calibration.samples == "scenes"
    assert recipe.budget.asked == {"tokens": (16, 32, 48, 64), "mean_tokens": 40}, "between the two in the middle"
    again = parse_recipe(yaml.safe_load(dump_recipe(recipe)), "again")
    assert again == recipe
    assert parse_recipe({**fields, "budget": {"tokens": 16}}, "here").calibration is None
    with pytest.raises(RecipeError, match=r"here: budget.tokens: \[64\] is no set of budgets; give two or more"):
        parse_recipe({**fields, "budget": {"tokens": [64]}}, "here")
    with pytest.raises(RecipeError, match="here: budget.tokens.1: Input should be a valid integer, got 'x'"):
        parse_recipe({**fields, "budget": {"tokens": [64, "x"]}}, "here")


def test_a_price_on_tokens_chooses_by_hand() -> None:
    losses = np.array([[9.0, 5.0, 1.0], [3.0, 2.5, 2.4], [1.0, 1.0, 1.0]])
    # nats saved per token: 2 then 1; 0.25 then 0.025; nothing
    assert chosen(losses, TOKENS, 0.5).tolist() == [2, 0, 0]
    assert chosen(losses, TOKENS, 0.1).tolist() == [2, 1, 0]
    assert chosen(losses, TOKENS, 3.0).tolist() == [0, 0, 0]
    assert mean_tokens(losses, TOKENS, 0.1) == (8 + 4 + 2) / 3
    assert chosen(losses, TOKENS, 0.0)[2] == 0, "of equal losses the fewer tokens"


@pytest.mark.parametrize("target", [2, 3, 4.7, 5, 6.5, 8])
def test_the_least_price_that_meets_a_mean(target: float) -> None:
    losses = np.random.default_rng(0).random((40, 3)).cumsum(axis=1)[:, ::-1]
    price = price_for(losses, TOKENS, float(target))
    reached = mean_tokens(losses, TOKENS, price)
    assert reached <= target
    tried = [mean_tokens(losses, TOKENS, one) for one in np.linspace(-3, 3, 20001)]
    assert reached == max(one for one in tried if one <= target)


def test_a_ridge_is_the_solution_of_its_equations() -> None:
    generator = np.random.default_rng(1)
    features, wanted = generator.normal(3, 2, (12, 5)), generator.normal(size=(12, 2))
    features[:, 4] = 7.0
    line = ridge.ridge(features, wanted, 0.3)
    rows = (features[:, :4] - features[:, :4].mean(0)) / features[:, :4].std(0)
    gram = rows.T @ rows / 5 + 0.3 * np.eye(4)
    plain = np.linalg.solve(gram, rows.T @ (wanted - wanted.mean(0)) / 5)
    assert np.allclose(line(features), wanted.mean(0) + rows @ plain)
    assert np.array_equal(line.weight[4], [0, 0]), "a constant feature has no say"


def test_left_out_samples_are_not_shown() -> None:
    generator = np.random.default_rng(2)
    features, wanted = generator.normal(size=(17, 4)), generator.normal(size=(17, 2))
    before = ridge.left_out(features, wanted, 1.0)
    wanted[3] += 100
    after = ridge.left_out(features, wanted, 1.0)
    same = [np.allclose(a, b) for a, b in zip(before, after, strict=True)]
    assert [i for i, one in enumerate(same) if one] == [3, 11], "the fold of sample 3 is 3 and 11"


def samples(features: Array, losses: Array) -> Measured:
    return Measured(features=features, wanted=np.log(losses), losses=losses, learning=120, layer=0)


def test_a_router_finds_the_images_that_need_tokens() -> None:
    generator = np.random.default_rng(3)
    features = generator.normal(size=(160, 6))
    hard = features[:, 2] > 0
    losses = np.where(hard[:, None], [4.0, 2.0, 0.1], [0.12, 0.11, 0.1]) * generator.uniform(0.8, 1.25, (160, 1))
    _, record = fit_router(samples(features, losses), TOKENS, 5)
    held = record.held_out
    assert held.images == 40 and held.mean_tokens == pytest.approx(5, abs=0.8)
    assert held.oracle <= held.loss < 0.5 * held.random
    assert held.loss < 0.5 * held.fixed[1], "better than 4 tokens for all"
    assert record.explained > 0.5
    means = [mean for mean, _ in record.prices]
    prices = [price for _, price in record.prices]
    assert means == sorted(means) and (means[0], means[-1]) == (2, 8)
    assert prices == sorted(prices, reverse=True)


def test_a_router_without_anything_to_find_is_no_better_than_chance() -> None:
    generator = np.random.default_rng(4)
    losses = generator.uniform(0.5, 1, (160, 3)) * np.array([[4.0, 2.0, 1.0]])
    _, record = fit_router(samples(generator.normal(size=(160, 6)), losses), TOKENS, 4)
    assert record.explained < 0.1
    assert record.held_out.loss == pytest.approx(record.held_out.random, rel=0.25)


def test_what_is_judged_by_hand() -> None:
    losses = np.array([[4.0, 2.0, 0.0], [1.0, 1.0, 1.0]])
    made = judged(losses, losses[::-1], TOKENS, 0.1)
    assert made.shares == (0.5, 0, 0.5) and made.mean_tokens == 5
    assert made.loss == (4 + 1) / 2, "it gives the tokens to the wrong image"
    assert made.oracle == (0 + 1) / 2
    assert made.random == (4 + 0 + 1 + 1) / 4
    assert made.fixed == (2.5, 1.5, 0.5)


def test_questions_are_an_images_own_and_those_behind_it() -> None:
    assert questions(["a", "b", "a", "c"]) == [["a", "b", "c"], ["b", "a", "c"], ["a", "c", "b"], ["c", "a", "b"]]
    assert questions([None, None]) == [[None], [None]]
    assert questions(list("abcdef"))[4] == ["e", "f", "a", "b"]


@pytest.mark.parametrize("tower", ["clip", "siglip"])
def test_a_glimpse_by_plain_loops(tower: str) -> None:
    graphs = families.capture(build(tower=tower))  # type: ignore[arg-type]
    parts, geometry, pixels = graphs.parts, graphs.geometry, pictures(2)
    with torch.no_grad():
        made = Glimpse(parts, geometry, 1)(pixels)
        inside = parts.vision_blocks[0](parts.patches(pixels))
        rows = parts.vision_blocks[1](inside)[:, geometry.vision.prefix :]
        expected = [rows.mean(1), rows.std(1, correction=0)]
        if geometry.vision.prefix:
            block = parts.vision_blocks[1]
            normed = block.normed(inside)
            for head in range(geometry.vision.heads):
                query, keys = block.project("q", normed)[:, head, 0], block.project("k", normed)[:, head, 1:]
                share = torch.softmax((keys @ query.unsqueeze(2)).squeeze(2) * block.scale, dim=1)
                expected.append(-(share * share.log()).sum(1, keepdim=True))
    assert torch.allclose(made, torch.cat(expected, dim=1), atol=1e-4)
    router = Router(
        Glimpse(parts, geometry, 1),
        {f"{PREFIX}weight": torch.ones(made.shape[1], 3), f"{PREFIX}bias": torch.arange(3.0)},
    )
    with torch.no_grad():
        assert torch.allclose(router(pixels), made.sum(1, keepdim=True) + torch.arange(3.0), atol=1e-3)


def test_the_layer_is_early() -> None:
    geometry = families.capture(build()).geometry
    assert router_layer(geometry) == 0
    deep = replace(geometry, vision=replace(geometry.vision, layers_used=23))
    assert router_layer(deep) == 1
