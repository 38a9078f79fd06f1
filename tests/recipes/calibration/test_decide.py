"""What samples settle: every criterion against plain loops over the model's own layers, and what is recorded of it."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from deciding import LAYERS, bench, hired, looked, maps, prompt, write_base
from layerwise import ran, said
from models import TOTAL
from transformers import LlavaForConditionalGeneration

from tokcarve.passes.errors import MethodError
from tokcarve.passes.methods import METHODS
from tokcarve.passes.methods.redundancylens import RedundancyLens
from tokcarve.passes.methods.visiondrop import VisionDrop
from tokcarve.passes.stage import Look, Method
from tokcarve.recipes.calibration.auto import candidate_of
from tokcarve.recipes.calibration.decide import decide
from tokcarve.recipes.calibration.freeze import freeze
from tokcarve.recipes.calibration.proof import fixed
from tokcarve.recipes.calibration.work import FIRST_TOKENS, Candidate, Worker
from tokcarve.recipes.carve import params_of


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def worker(base: Path) -> Worker:
    return hired(bench(base))


@pytest.fixture(scope="module")
def eager(base: Path) -> Any:
    model: Any = LlavaForConditionalGeneration
    return model.from_pretrained(base, attn_implementation="eager").eval()


class TestToDRE:
    def test_text_looks_at_what_is_left_of_the_image(self, base: Path, worker: Worker, eager: Any) -> None:
        method = METHODS["todre"]()
        candidate = Candidate(method="todre", params={"exit": False}, tokens=16).plain()
        for sample, look in zip((0, 3), looked(base, method, 16, (0, 3)), strict=True):
            with torch.no_grad():
                features = worker.carved(candidate).graphs.see(worker.pixels(sample)).features[0]
            rows, image = prompt(worker, sample, features)
            expected = []
            for attention in maps(eager, rows)[: LAYERS - 1]:
                mean = attention.mean(dim=0)
                text = range(image.stop, len(rows))
                seen = [sum(float(mean[i, j]) for j in range(image.start, image.stop)) for i in text]
                expected.append(sum(seen) / len(seen))
            assert look.seen["attended"] == pytest.approx(expected, abs=1e-5)
            assert len({round(one, 3) for one in expected}) == LAYERS - 1

    @pytest.mark.parametrize(
        ("attended", "quantile", "layer"),
        [
            ([[0.5, 0.2, 0.05, 0.01]], None, 2),
            ([[0.5, 0.05, 0.2, 0.01]], None, 3),  # what fades once may come back
            ([[0.05, 0.05, 0.05, 0.05]], None, 0),
            ([[0.5, 0.2, 0.05, 0.01], [0.5, 0.05, 0.05, 0.05]], None, 2),  # 1.5, rounded to the later
            ([[0.5, 0.05, 0.05, 0.05]] * 9 + [[0.5, 0.5, 0.5, 0.05]], 0.5, 1),
            ([[0.5, 0.5, 0.5, 0.1]], None, None),  # 0.1 is not below
        ],
    )
    def test_by_hand(self, base: Path, attended: list[list[float]], quantile: float | None, layer: int | None) -> None:
        decision = METHODS["todre"]().decides(bench(base).geometry, 16, quantile)
        assert decision is not None
        settled, spread = decision.settle([Look(seen={"attended": one}) for one in attended])
        assert params_of(settled) == {"exit": layer is not None, "layer": layer, "threshold": 0.1}
        assert spread["layer"][0] <= (LAYERS - 1 if layer is None else layer) <= spread["layer"][1] + 1


class TestDyVTE:
    def test_the_label_is_a_plain_loops(self, base: Path, worker: Worker) -> None:
        model, stops = worker.model, worker.graphs.geometry.eos_token_ids
        for sample, look in zip((1, 2), looked(base, METHODS["dyvte"](), TOTAL, (1, 2)), strict=True):
            with torch.no_grad():
                features = worker.graphs.see(worker.pixels(sample)).features[0]
            rows, image = prompt(worker, sample, features)
            spoken = [one for one in worker.full(sample).tokens]
            spoken = spoken[: next((i + 1 for i, one in enumerate(spoken) if one in stops), FIRST_TOKENS)]
            more = torch.cat([rows, model.get_input_embeddings()(torch.tensor(spoken[:-1], dtype=torch.long))])
            for layer in range(LAYERS - 1):
                places = torch.arange(len(more))
                middle, _ = ran(model, range(layer + 1), more, places)
                for hidden, key in ((image, "surprise"), (None, "full_surprise")):
                    last, _ = ran(model, range(layer + 1, LAYERS), middle, places, hidden=hidden)
                    logits = said(model, last)[len(rows) - 1 :]
                    sure = torch.log_softmax(logits, dim=1)
                    cost = -sum(float(sure[i, one]) for i, one in enumerate(spoken)) / len(spoken)
                    assert look.tried[0][layer][key] == pytest.approx(cost, abs=1e-3)
                    if hidden is not None:
                        assert look.tried[0][layer]["same"] == (logits.argmax(1).tolist() == spoken)

    @pytest.mark.parametrize(
        ("exits", "quantile", "layer"),
        [
            (["nyyy"], None, 1),
            (["ynyy", "yyyy"], None, 1),  # 2 and 0
            (["nyyy", "nnny"], None, 2),
            (["nnnn"], None, 3),  # none suits: the last there is
            (["nyyy"] * 3 + ["nnny"], 0.5, 1),
            (["nyyy"] * 3 + ["nnny"], 1.0, 3),
        ],
    )
    def test_by_hand(self, base: Path, exits: list[str], quantile: float | None, layer: int) -> None:
        decision = METHODS["dyvte"]().decides(bench(base).geometry, TOTAL, quantile)
        assert decision is not None
        answers = {
            "y": {"same": True, "surprise": 0.205, "full_surprise": 0.2},
            "n": {"same": True, "surprise": 0.207, "full_surprise": 0.2},
        }
        looks = [Look(tried=[[answers[one] for one in sample]]) for sample in exits]
        assert decision.settle(looks)[0] == METHODS["dyvte"](layer=layer)
        looks = [Look(tried=[[{**answers["y"], "same": one == "y"} for one in sample]]) for sample in exits]
        assert decision.settle(looks)[0] == METHODS["dyvte"](layer=layer)


class TestVisionDrop:
    def test_widths_are_those_of_the_models_own_attention(self, base: Path, worker: Worker, eager: Any) -> None:
        method = VisionDrop(layers=(0, 1, 3))
        (look,) = looked(base, method, 16, (2,))
        with torch.no_grad():
            features = worker.graphs.see(worker.pixels(2)).features[0]
            tower = eager.model.vision_tower(worker.pixels(2), output_attentions=True).attentions
        rows, image = prompt(worker, 2, features)
        found = maps(eager, rows)
        scores = [tower[worker.graphs.geometry.vision.layers_used - 1][0].sum(dim=0)[0, 1:]]
        scores += [found[layer].mean(dim=0)[image, image].mean(dim=0) for layer in (1, 2)]
        for score, wide in zip(scores, look.seen["widths"], strict=True):
            shares = [float(one) / float(score.sum()) for one in score]
            assert wide == pytest.approx(math.exp(-sum(one * math.log(one) for one in shares)), rel=1e-4)

    @pytest.mark.parametrize(("tokens", "layers"), [(8, (0, 1, 3)), (16, (0, 1, 2)), (12, (1,)), (30, (0, 3))])
    @pytest.mark.parametrize("quantile", [None, 0.9])
    def test_the_mean_stays(self, base: Path, tokens: int, layers: tuple[int, ...], quantile: float | None) -> None:
        geometry, method = bench(base).geometry, VisionDrop(layers=layers)
        decision = method.decides(geometry, tokens, quantile)
        assert decision is not None
        widths = [[50.0, 30.0, 12.0][: len(layers)], [44.0, 33.0, 20.0][: len(layers)]]
        settled, spread = decision.settle([Look(seen={"widths": one}) for one in widths])
        assert spread["width 0"] == [44.0, 50.0]

        def entering(method: Method) -> list[int]:
            rows, left = [], TOTAL
            plan = {stage.site: stage.keep for stage in method.stages(geometry, tokens, None)}
            left = plan.get(f"vision.layers.{geometry.vision.layers_used - 1}", TOTAL)
            for layer in range(LAYERS):
                rows.append(left)
                left = plan.get(f"language.layers.{layer}", left)
            return rows

        assert sum(entering(settled)) == sum(entering(method))
        assert entering(settled)[-1] == tokens
        assert settled.decides(geometry, tokens) is None

    @pytest.mark.parametrize("counts", [(20,), (30, 20, 10), (20, 30, 16), (65, 30, 20), (20, 18, 15)])
    def test_counts_that_cannot_be(self, base: Path, counts: tuple[int, ...]) -> None:
        with pytest.raises(MethodError, match="must be 3 that never rise from 64 to 16"):
            VisionDrop(layers=(0, 1, 3), counts=counts[:2] if counts[-1] == 10 else counts).stages(
                bench(base).geometry, 16, None
            )


class TestATPLlava:
    def test_levels_are_those_of_the_models_own_attention(self, base: Path, worker: Worker, eager: Any) -> None:
        (look,) = looked(base, METHODS["atp_llava"](form="budget", layers=(0, 1, 3)), 8, (2,))
        with torch.no_grad():
            features = worker.graphs.see(worker.pixels(2)).features[0]
        rows, image = prompt(worker, 2, features)
        found, least = maps(eager, rows), [1.0] * TOTAL
        for layer, levels in zip((0, 1, 3), look.seen["levels"], strict=True):
            mean = found[layer].mean(dim=0)
            both = (mean[image, image].mean(dim=0) + mean[image.stop :, image].mean(dim=0)) / 2
            # who does not pass behind one cut passes behind none after it
            least = [
                min(a, float(b)) for a, b in zip(least, (both - both.min()) / (both.max() - both.min()), strict=True)
            ]
            assert levels == pytest.approx(sorted(least, reverse=True), abs=1e-4)


class TestRedundancyLens:
    @pytest.mark.parametrize("kinds", [("attention_layers", "feed_layers"), ("feed_layers",), ("attention_layers",)])
    @pytest.mark.parametrize("quantile", [None, 0.75])
    def test_it_is_a_greedy_loop(self, base: Path, kinds: tuple[str, ...], quantile: float | None) -> None:
        generator = torch.Generator().manual_seed(len(kinds))
        tables = {kind: torch.rand(3, LAYERS, LAYERS, generator=generator) for kind in kinds}

        def cost(sample: int, kind: str, layers: Sequence[int]) -> float:
            return sum(float(tables[kind][sample, i, j]) for i in layers for j in layers)

        named: dict[str, Any] = {one: (4,) for one in ("attention_layers", "feed_layers") if one not in kinds}
        decision = RedundancyLens(**named).decides(bench(base).geometry, TOTAL, quantile)
        assert decision is not None
        looks = [Look() for _ in range(3)]
        while tries := decision.tries(looks):
            rounds = []
            for sample, look in enumerate(looks):
                one_round = []
                for one in tries:
                    layers = {kind: params_of(one)[kind] for kind in ("attention_layers", "feed_layers")}
                    (kind,) = (kind for kind, chosen in layers.items() if chosen)
                    one_round.append({"kl": cost(sample, kind, layers[kind])})
                rounds.append(Look(tried=[*look.tried, one_round]))
            looks = rounds
        expected = dict(named)
        for kind in kinds:
            chosen: list[int] = []
            while len(chosen) < LAYERS // 2:
                left = [layer for layer in range(LAYERS) if layer not in chosen]

                def missed(layer: int, kind: str = kind, chosen: Sequence[int] = tuple(chosen)) -> float:
                    found = sorted(cost(sample, kind, (*chosen, layer)) for sample in range(3))
                    return statistics.mean(found) if quantile is None else (found[1] + found[2]) / 2

                chosen.append(min(left, key=missed))
            expected[kind] = tuple(sorted(chosen))
        assert decision.settle(looks)[0] == RedundancyLens(**expected)

    def test_a_tie_goes_to_the_later_layer(self, base: Path) -> None:
        decision = RedundancyLens().decides(bench(base).geometry, TOTAL)
        assert decision is not None
        looks = [Look()]
        while tries := decision.tries(looks):
            looks = [Look(tried=[*looks[0].tried, [{"kl": 0.0} for _ in tries]])]
        assert decision.settle(looks)[0] == RedundancyLens(attention_layers=(3, 4), feed_layers=(3, 4))


class TestASViT:
    """Thresholds that samples scale, and counts that stand in for them."""

    def passing(self, worker: Worker, samples: Sequence[int], scale: float) -> list[int]:
        params = {"form": "threshold", "scale": scale}
        plain = Candidate(method="as_vit", params=params, tokens=16).plain()
        return [
            worker({"do": "counts", "sample": i, "candidate": plain})["passing"]["vision.layers.3"] for i in samples
        ]

    def test_the_mean_that_passes_is_what_was_asked_for(self, base: Path, worker: Worker) -> None:
        stand = bench(base)
        settled, record = decide(stand, METHODS["as_vit"](), 16, "renumbered")
        passing = self.passing(worker, stand.learning, params_of(settled)["scale"])
        assert abs(statistics.mean(passing) - 16) < 0.5 and min(passing) < max(passing)
        assert record["decided"]["fixed"] == {"scale": params_of(settled)["scale"]}
        assert record["decided"]["spread"] == {"passing": [min(passing), max(passing)]}

    def test_a_quantile_is_of_counts_and_the_scale_stays(self, base: Path) -> None:
        stand = bench(base)
        usual, _ = decide(stand, METHODS["as_vit"](), 16, "renumbered")
        high = replace(stand, quantile=0.9)
        settled, record = decide(high, METHODS["as_vit"](), 16, "renumbered")
        assert settled == usual and record["decided"]["by"] == "mean"
        counts, more = (freeze(one, usual, 16)[0].counts["vision.layers.1"] for one in (stand, high))
        assert counts < more < TOTAL

    def test_what_is_frozen_is_of_the_form_that_samples_settled(self, base: Path) -> None:
        """Also where nobody has asked what samples say of its open parameters before."""
        stand, method = bench(base), METHODS["as_vit"]()
        settled, _ = decide(stand, method, 16, "renumbered")
        counts = freeze(stand, settled, 16)[0].counts
        assert freeze(stand, method, 16)[0].counts == counts
        assert candidate_of(stand, method, 16, "renumbered").counts == counts
        assert counts != freeze(stand, METHODS["as_vit"](scale=4.0), 16)[0].counts

    def test_freezing_is_compared_with_the_thresholds_that_samples_scaled(self, base: Path, worker: Worker) -> None:
        stand, method = bench(base), METHODS["as_vit"]()
        settled, frozen, record = fixed(stand, method, 16, "renumbered")
        assert frozen is not None and record["proof"]["against"] == "the form that decides per image"
        plain = [Candidate(method="as_vit", params=params_of(settled), tokens=16, counts=frozen.counts).plain()]
        dynamic = settled.dynamic()
        assert dynamic is not None
        plain.append(Candidate(method="as_vit", params=params_of(dynamic), tokens=16).plain())
        tasks = [{"do": "likeness", "sample": sample, "candidates": plain} for sample in stand.held]
        pairs = [[one["kl"] for one in worker(task)["likeness"]] for task in tasks]
        for place, side in enumerate(("frozen", "other")):
            assert record["proof"]["kl"][side] == pytest.approx(statistics.mean(pair[place] for pair in pairs))
        assert record["proof"]["kl"]["frozen"] != record["proof"]["kl"]["other"]
