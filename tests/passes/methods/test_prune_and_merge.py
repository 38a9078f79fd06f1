"""Prune-and-Merge: positions by hand, what the fixed matrix loses, and its way through recipes and artifacts."""

import contextlib
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from models import TOTAL, Tower, build, pictures, write
from safetensors.torch import load_file
from torch import Tensor

import tokcarve
from tokcarve.passes import families
from tokcarve.passes.calibrate import tokens_at
from tokcarve.passes.errors import ArtifactError, MethodError
from tokcarve.passes.families.load import read_model
from tokcarve.passes.geometry import even_positions
from tokcarve.passes.inputs.samples import open_samples
from tokcarve.passes.insert import rewrite
from tokcarve.passes.invariants import check_carved
from tokcarve.passes.methods.pooling import Pooling
from tokcarve.passes.methods.prune_and_merge import LeastSquares, PruneAndMerge, spread_out
from tokcarve.passes.stage import Frozen
from tokcarve.recipes.artifact import read_artifact
from tokcarve.recipes.calibration.questions import Asker

SITE = "vision.layers.4"
TOWERS: list[Tower] = ["clip", "siglip"]


@pytest.mark.parametrize(
    ("gram", "keep", "picked"),
    [
        ([[1, 0, 0], [0, 3, 0], [0, 0, 2]], 2, [1, 2]),
        ([[1, 0, 0], [0, 3, 0], [0, 0, 2]], 3, [0, 1, 2]),
        # the second token explains most of the first: 4 - 4 * 4 / 5 = 0.8 is left of it, less than 2
        ([[4, 4, 0], [4, 5, 0], [0, 0, 2]], 1, [1]),
        ([[4, 4, 0], [4, 5, 0], [0, 0, 2]], 2, [1, 2]),
        # half of it is explained: 4 - 2 * 2 / 5 = 3.2, more than 2
        ([[4, 2, 0], [2, 5, 0], [0, 0, 2]], 2, [0, 1]),
        ([[1, 1], [1, 1]], 2, [0, 1]),  # the first leaves nothing of the second to explain
    ],
)
def test_positions_by_hand(gram: list[list[int]], keep: int, picked: list[int]) -> None:
    assert spread_out(torch.tensor(gram, dtype=torch.float64), keep) == picked


def random_tokens(seed: int, images: int, count: int, rank: int, hidden: int = 5) -> Tensor:
    """Tokens [images, count, hidden] that are mixtures of `rank` of them, the same mixture in every image."""
    draw = torch.Generator().manual_seed(seed)
    mixture = torch.randn(count, rank, generator=draw)
    return mixture @ torch.randn(images, rank, hidden, generator=draw)


def learned(tokens: Tensor, keep: int, ridge: float = 1e-3) -> tuple[LeastSquares, dict[str, Tensor]]:
    fit = LeastSquares(SITE, tokens.shape[1], keep, ridge)
    fit.add(tokens)
    return fit, fit.solve()


class TestFit:
    @given(st.integers(0, 99), st.integers(2, 8), st.data())
    def test_as_many_as_the_samples_have_dimensions_lose_nothing(
        self, seed: int, count: int, data: st.DataObject
    ) -> None:
        rank = data.draw(st.integers(1, count))
        tokens = random_tokens(seed, 6, count, rank)
        fit, tensors = learned(tokens, rank, ridge=1e-9)
        assert tensors["merge"].shape == (rank, count) and tensors["merge"].dtype == torch.float32
        assert tensors["index"].shape == (rank,) and tensors["index"].dtype == torch.int64
        assert (tensors["index"][1:] > tensors["index"][:-1]).all()
        assert fit.loss(tensors, random_tokens(seed, 9, count, rank)[3:]) < 1e-6

    @given(st.integers(0, 99), st.integers(2, 12))
    def test_more_tokens_never_lose_more(self, seed: int, count: int) -> None:
        tokens = random_tokens(seed, 5, count, count, hidden=3)
        held = random_tokens(seed + 1, 5, count, count, hidden=3)
        losses = [fit.loss(made, held) for fit, made in (learned(tokens, keep) for keep in range(1, count + 1))]
        assert all(later <= earlier + 1e-6 for earlier, later in zip(losses, losses[1:], strict=False))
        assert losses[-1] < 1e-9, "all of them lose nothing"

    def test_the_loss_by_hand(self) -> None:
        tokens = torch.tensor([[[3.0], [1.0]], [[7.0], [5.0]]])  # varies within each image by 1 + 1
        mean, first = torch.tensor([[0.5, 0.5]]), torch.tensor([[1.0, 0.0]])
        fit = LeastSquares(SITE, 2, 1, 1e-3)
        assert fit.loss({"merge": mean}, tokens) == pytest.approx(1.0)  # rebuilt as 2, 2 and 6, 6
        assert fit.loss({"merge": first}, tokens[:1]) == pytest.approx(0.5)  # rebuilt as 3, 0: 1 of 2 is lost

    def test_kept_positions_are_rebuilt_from_themselves(self) -> None:
        _, tensors = learned(random_tokens(0, 8, 9, 9), 4)
        recover = torch.linalg.pinv(tensors["merge"])
        torch.testing.assert_close(recover[tensors["index"]], torch.eye(4), atol=1e-4, rtol=0)

    def test_batches_add_up(self) -> None:
        tokens = random_tokens(0, 12, 9, 9)
        whole, tensors = learned(tokens, 4)
        parts = LeastSquares(SITE, 9, 4, 1e-3)
        for start, end in ((0, 1), (1, 5), (5, 10), (10, 12)):
            batch, before = tokens[start:end], tokens[start:end].clone()
            parts.add(batch)
            assert torch.equal(batch, before)
        torch.testing.assert_close(parts.gram, whole.gram, atol=1e-9, rtol=0)
        again = parts.solve()
        assert torch.equal(again["index"], tensors["index"])
        torch.testing.assert_close(again["merge"], tensors["merge"], atol=1e-6, rtol=0)

    def test_the_ridge_shrinks_what_is_rebuilt(self) -> None:
        tokens = random_tokens(0, 8, 9, 9)
        sizes = [torch.linalg.pinv(learned(tokens, 4, ridge)[1]["merge"]).norm() for ridge in (1e-6, 0.1, 10.0)]
        assert sizes[0] > sizes[1] > sizes[2]


@torch.no_grad()
def seen(tower: Tower, images: int, seed: int) -> Tensor:
    """What leaves the tower of the small model: [images, 64, 32]."""
    graphs = families.capture(build("llama", tower))
    site = f"vision.layers.{graphs.geometry.vision.layers_used - 1}"
    return tokens_at(graphs, site, pictures(images, seed=seed))


@pytest.mark.parametrize("tower", TOWERS)
def test_it_loses_less_than_even_positions_and_average_pooling(tower: Tower) -> None:
    geometry = families.capture(build("llama", tower)).geometry
    samples, held = seen(tower, 40, 0), seen(tower, 16, 99)
    for keep in (16, 32, 48):
        fit = PruneAndMerge().fit(geometry, keep)
        assert isinstance(fit, LeastSquares)
        fit.add(samples)
        gram = fit.gram + 0.001 * fit.gram.diagonal().mean() * torch.eye(TOTAL)
        even = torch.tensor(even_positions(keep, TOTAL))
        recover = torch.linalg.solve(gram[even][:, even], gram[even]).T
        (pooling,) = Pooling().stages(geometry, keep, None)
        pooled = pooling.rule({"tokens": held[:1]}, {})["weights"][0]
        ours, uniform = fit.loss(fit.solve(), held), fit.loss({"merge": torch.linalg.pinv(recover).float()}, held)
        assert 0 < ours < 0.96 * uniform < 1
        assert ours < 0.96 * fit.loss({"merge": pooled}, held)


@pytest.mark.parametrize("tower", TOWERS)
def test_the_graph_merges_with_the_learned_matrix(tower: Tower) -> None:
    graphs = families.capture(build("llama", tower))
    fit = PruneAndMerge().fit(graphs.geometry, 16)
    assert fit is not None and fit.site == f"vision.layers.{graphs.geometry.vision.layers_used - 1}"
    fit.add(seen(tower, 20, 0))
    tensors = fit.solve()
    result = rewrite(graphs, PruneAndMerge().stages(graphs.geometry, 16, Frozen(tensors=tensors)))
    check_carved(result.graphs, result.schedule)
    with torch.no_grad():
        features, kept = result.graphs.vision(pictures(3, seed=5))
        expected = graphs.parts.connector(tensors["merge"] @ seen(tower, 3, 5))
    torch.testing.assert_close(features, expected, atol=1e-5, rtol=0)
    assert torch.equal(kept[fit.site], tensors["index"].expand(3, -1))


@pytest.mark.parametrize("frozen", [None, Frozen(), Frozen(counts={SITE: 16})])
def test_without_samples_it_is_refused(frozen: Frozen | None) -> None:
    geometry = families.capture(build()).geometry
    with pytest.raises(MethodError, match="prune_and_merge learns its matrix from samples, .* pass --samples"):
        PruneAndMerge().stages(geometry, 16, frozen)
    assert PruneAndMerge().stages(geometry, TOTAL, frozen) == () and PruneAndMerge().fit(geometry, TOTAL) is None


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = build("qwen2", "clip", vision_layers=5, text_layers=2)
    return write(model, tmp_path_factory.mktemp("base") / "model")


def compress(base: Path, place: Path, out: str = "artifact", **settings: Any) -> Path:
    chosen = {"samples": "scenes", "count": 9, **settings}
    with contextlib.chdir(place):
        return tokcarve.compress(str(base), method="prune_and_merge", tokens=16, out=out, **chosen).directory


@pytest.fixture(scope="module")
def artifact(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compress(base, tmp_path_factory.mktemp("artifact"))


def test_an_artifact_holds_what_its_samples_teach(base: Path, artifact: Path) -> None:
    tensors = load_file(artifact / "modules.safetensors")
    graphs = families.capture(read_model(base))
    fit = PruneAndMerge().fit(graphs.geometry, 16)
    assert fit is not None
    asker = Asker(base, graphs.geometry)
    pixels = torch.cat([asker.pixels(sample.image) for sample in open_samples("scenes", count=9, seed=0)])
    fit.add(tokens_at(graphs, fit.site, pixels[:7]))  # two of nine are held out
    own = fit.solve()
    assert torch.equal(own["index"], tensors["index"])
    torch.testing.assert_close(own["merge"], tensors["merge"], atol=1e-4, rtol=0)
    record = read_artifact(artifact).manifest.calibration
    assert record is not None and record["tensors"] == {"index": [16], "merge": [16, TOTAL]}
    lost = sum(fit.loss(tensors, tokens_at(graphs, fit.site, pixels[i : i + 1])) for i in (7, 8)) / 2
    assert record["held_out_loss"] == pytest.approx(lost, rel=1e-4) and 0 < lost < 1


def test_a_loaded_artifact_is_the_rewritten_checkpoint(base: Path, artifact: Path) -> None:
    graphs = families.capture(read_model(base))
    frozen = Frozen(tensors=load_file(artifact / "modules.safetensors"))
    expected = rewrite(graphs, PruneAndMerge().stages(graphs.geometry, 16, frozen)).graphs
    loaded = tokcarve.load(artifact)
    with torch.no_grad():
        (features, kept), (wanted, ids) = (g.vision(pictures(3)) for g in (loaded.graphs, expected))
        whole, _ = graphs.vision(pictures(3))
    assert torch.equal(features, wanted) and features.shape == (3, 16, whole.shape[2])
    assert all(torch.equal(kept[site], ids[site]) for site in ids)
    assert [entry.site for entry in read_artifact(artifact).manifest.schedule] == list(ids)


def test_running_again_gives_the_same_bytes(base: Path, artifact: Path, tmp_path: Path) -> None:
    again = compress(base, tmp_path)
    files = sorted(path.relative_to(artifact) for path in artifact.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(again) for path in again.rglob("*") if path.is_file())
    assert Path("modules.safetensors") in files
    same = (file for file in files if file.name != "made.json")
    assert all((artifact / file).read_bytes() == (again / file).read_bytes() for file in same)


@pytest.mark.parametrize("change", ["a bit", "cut", "gone"])
def test_changed_tensors_are_refused(base: Path, tmp_path: Path, change: str) -> None:
    place = compress(base, tmp_path) / "modules.safetensors"
    stored = place.read_bytes()
    place.write_bytes(stored[:-1] + bytes([stored[-1] ^ 1]) if change == "a bit" else stored[:-4])
    if change == "gone":
        place.unlink()
    with pytest.raises(ArtifactError, match="modules.safetensors is not what tokcarve.json .* compress` again"):
        tokcarve.load(place.parent)
    place.write_bytes(stored)
    tokcarve.load(place.parent)


def test_compress_without_samples_is_refused(base: Path, tmp_path: Path) -> None:
    with pytest.raises(MethodError, match="prune_and_merge learns its merge from samples; pass --samples"):
        compress(base, tmp_path, samples=None, count=None)
    assert not (tmp_path / "artifact").exists()
