"""One weight file for many graphs: what is shared, where it lies, and what is refused."""

import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tokcarve.exporters import weights as weights_module
from tokcarve.exporters.onnx import lower, weight_names
from tokcarve.exporters.verify import check_weights
from tokcarve.exporters.weights import ALIGNMENT, WeightFile, pieces
from tokcarve.passes.errors import ExportError
from tokcarve.passes.families.blank import Stored
from tokcarve.passes.shards import read_header


class Two(nn.Module):
    def __init__(self, first: nn.Linear, second: nn.Linear) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.second(torch.relu(self.first(x)))
        return out


def lowered(module: nn.Module, names: dict[int, str]) -> ir.Model:
    return lower(module, (torch.ones(1, 4, 32),), input_names=["x"], output_names=["y"], names=names)


def run(path: Path, x: Tensor) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": x.numpy()})[0])


@pytest.fixture
def model() -> nn.ModuleDict:
    torch.manual_seed(0)
    return nn.ModuleDict({name: nn.Linear(32, 32) for name in "abc"})


def test_graphs_share_a_tensor_and_still_run(model: nn.ModuleDict, tmp_path: Path) -> None:
    names, one, two = weight_names(model), Two(model["a"], model["b"]), Two(model["b"], model["c"])
    with WeightFile(tmp_path / "weights.data") as weights:
        for name, module in (("one", one), ("two", two)):
            weights.save(lowered(module, names), tmp_path / f"{name}.onnx")
    assert sorted(place.name for place in weights.placed) == ["a.weight.T", "b.weight.T", "c.weight.T"]
    x = torch.randn(1, 4, 32)
    for name, module in (("one", one), ("two", two)):
        np.testing.assert_allclose(run(tmp_path / f"{name}.onnx", x), module(x).detach().numpy(), atol=1e-5)


def test_equal_contents_of_different_tensors_are_written_once(model: nn.ModuleDict, tmp_path: Path) -> None:
    model["b"].load_state_dict(model["a"].state_dict())
    with WeightFile(tmp_path / "weights.data") as weights:
        weights.save(lowered(Two(model["a"], model["b"]), weight_names(model)), tmp_path / "one.onnx")
    assert len(weights.placed) == 1


def test_tensors_are_aligned_and_do_not_overlap(model: nn.ModuleDict, tmp_path: Path) -> None:
    with WeightFile(tmp_path / "weights.data") as weights:
        weights.save(lowered(Two(model["a"], model["b"]), {}), tmp_path / "one.onnx")
    ends = 0
    for place in weights.placed:
        assert place.offset % ALIGNMENT == 0
        assert place.offset >= ends
        ends = place.offset + place.length
    assert (tmp_path / "weights.data").stat().st_size == ends


def test_a_large_tensor_starts_on_a_page(tmp_path: Path) -> None:
    big = Two(nn.Linear(32, 8192), nn.Linear(8192, 48))
    with WeightFile(tmp_path / "weights.data") as weights:
        weights.save(lowered(big, weight_names(big)), tmp_path / "one.onnx")
    assert all(place.offset % 4096 == 0 for place in weights.placed if place.length >= 2**20)
    assert any(place.length >= 2**20 for place in weights.placed)


def test_small_tensors_stay_in_the_graph(model: nn.ModuleDict, tmp_path: Path) -> None:
    with WeightFile(tmp_path / "weights.data") as weights:
        weights.save(lowered(Two(model["a"], model["b"]), weight_names(model)), tmp_path / "one.onnx")
    initializers = ir.load(tmp_path / "one.onnx").graph.initializers
    assert isinstance(initializers["a.weight.T"].const_value, ir.ExternalTensor)
    assert not isinstance(initializers["a.bias"].const_value, ir.ExternalTensor)
    assert (tmp_path / "one.onnx").stat().st_size < 4096


def test_the_transpose_of_a_weight_is_found_by_name(model: nn.ModuleDict, tmp_path: Path) -> None:
    with WeightFile(tmp_path / "weights.data") as weights:
        weights.save(lowered(Two(model["a"], model["b"]), weight_names(model)), tmp_path / "one.onnx")
    stored = ir.load(tmp_path / "one.onnx").graph.initializers["a.weight.T"].const_value
    np.testing.assert_array_equal(stored.numpy(), model["a"].weight.detach().numpy().T)


def test_a_graph_in_another_directory_is_refused(model: nn.ModuleDict, tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    with WeightFile(tmp_path / "weights.data") as weights, pytest.raises(ExportError, match="another directory"):
        weights.save(lowered(Two(model["a"], model["b"]), {}), tmp_path / "inner" / "one.onnx")


def test_writing_again_gives_the_same_bytes(model: nn.ModuleDict, tmp_path: Path) -> None:
    written = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        with WeightFile(tmp_path / name / "weights.data") as weights:
            weights.save(lowered(Two(model["a"], model["b"]), weight_names(model)), tmp_path / name / "one.onnx")
        written.append([path.read_bytes() for path in sorted((tmp_path / name).iterdir())])
    assert written[0] == written[1]


def stored_as(path: Path, tensor: Tensor) -> Stored:
    save_file({"w": tensor}, path)
    return Stored(path=path, name="w", entry=read_header(path)["w"])


def joined(parts: Iterable[Tensor]) -> bytes:
    return b"".join(part.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() for part in parts)


@pytest.mark.parametrize("flipped", [False, True])
@pytest.mark.parametrize("kind", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(40, 40), (3, 700), (700, 1)])
def test_a_blank_weight_is_written_as_the_checkpoint_has_it(
    tmp_path: Path, shape: tuple[int, int], kind: torch.dtype, flipped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights_module, "_PIECE", 4096)
    truth, blank = torch.randn(shape).to(kind), torch.full(shape, 7.0)
    origin = stored_as(tmp_path / "one.safetensors", truth)
    raw = blank.t() if flipped else blank
    tensor = ir.tensor_adapters.TorchTensor(raw, name="w")
    found = joined(pieces(origin, tensor))
    expected = (truth.t() if flipped else truth).float().contiguous()
    assert found == expected.numpy().tobytes()


def test_a_blank_weight_goes_to_the_file_once(tmp_path: Path) -> None:
    model, truth = Two(nn.Linear(32, 32), nn.Linear(32, 32)), torch.randn(32, 32)
    expected = torch.relu(torch.ones(1, 4, 32) @ truth.t() + model.first.bias) @ truth.t() + model.second.bias
    origin = stored_as(tmp_path / "one.safetensors", truth)
    known = {model.first.weight.data_ptr(): origin, model.second.weight.data_ptr(): origin}
    model.second.weight = model.first.weight
    with WeightFile(tmp_path / "weights.data", known) as weights:
        weights.save(lowered(model, weight_names(model)), tmp_path / "one.onnx")
    assert len(weights.placed) == 1 and weights.placed[0].length == truth.nbytes
    np.testing.assert_allclose(run(tmp_path / "one.onnx", torch.ones(1, 4, 32)), expected.detach().numpy(), atol=1e-4)


@pytest.mark.parametrize("flipped", [False, True])
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("wanted", [torch.float16, torch.bfloat16])
def test_a_blank_weight_is_rounded_to_what_the_graph_reads(
    tmp_path: Path, wanted: torch.dtype, stored: torch.dtype, flipped: bool
) -> None:
    truth, blank = torch.randn(40, 30).to(stored), torch.zeros(40, 30, dtype=wanted)
    origin = stored_as(tmp_path / "one.safetensors", truth)
    raw = blank.t() if flipped else blank
    found = joined(pieces(origin, ir.tensor_adapters.TorchTensor(raw, name="w")))
    expected = (truth.t() if flipped else truth).to(wanted).contiguous()
    assert found == expected.view(torch.uint8).numpy().tobytes()


def test_numbers_that_float16_cannot_hold_are_refused(tmp_path: Path) -> None:
    truth = torch.randn(40, 40)
    truth[3, 4] = 7e4
    origin = stored_as(tmp_path / "one.safetensors", truth)
    half, brain = (
        ir.tensor_adapters.TorchTensor(torch.zeros(40, 40, dtype=dtype), name="w")
        for dtype in (torch.float16, torch.bfloat16)
    )
    with pytest.raises(
        ExportError, match=r"'w' of .* float16 cannot hold \(more than 65504\); export with --precision"
    ):
        list(pieces(origin, half))
    assert len(joined(pieces(origin, brain))) == truth.numel() * 2


def test_a_part_of_a_blank_weight_is_refused(tmp_path: Path) -> None:
    blank = torch.zeros(40, 40)
    origin = stored_as(tmp_path / "one.safetensors", torch.randn(40, 40))
    with pytest.raises(ExportError, match=r"is read in part, as \[20, 40\]"):
        list(pieces(origin, ir.tensor_adapters.TorchTensor(blank[:20], name="w")))


SIDES = 1400, 1040
"""Rows and columns of a matrix that is too large to be compared as a whole."""


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Tensor], dict[int, Stored]]:
    """A graph that reads two such matrices, turned, from its weight file, as `check_weights` takes it."""
    folder = tmp_path_factory.mktemp("large")
    model = nn.Sequential(nn.Linear(SIDES[1], SIDES[0], bias=False), nn.Linear(SIDES[0], SIDES[1], bias=False))
    truths = [torch.randn(layer.weight.shape) for layer in model]
    origins = [stored_as(folder / f"{at}.safetensors", truth) for at, truth in enumerate(truths)]
    known = {layer.weight.data_ptr(): origin for layer, origin in zip(model, origins, strict=True)}
    graph = lower(
        model, (torch.ones(1, 4, SIDES[1]),), input_names=["x"], output_names=["y"], names=weight_names(model)
    )
    with WeightFile(folder / "weights.data", known, direct=True) as weights:
        weights.save(graph, folder / "one.onnx")
    return folder / "one.onnx", dict(model.named_parameters()), known


Change = Callable[[np.ndarray], np.ndarray]


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda held: held.T.reshape(held.shape), id="not turned"),
        pytest.param(lambda held: np.roll(held, 1, axis=1), id="moved by a column"),
        pytest.param(lambda held: np.roll(held, 1, axis=0), id="moved by a row"),
        pytest.param(lambda held: held * np.float32(1 + 2**-23), id="rounded otherwise"),
        pytest.param(lambda held: np.concatenate([held[:-1], 0 * held[-1:]]), id="without the last row"),
        pytest.param(lambda held: np.concatenate([0 * held[:1], held[1:]]), id="without the first row"),
        pytest.param(lambda held: np.concatenate([held[:700], 0 * held[700:]]), id="half"),
    ],
)
def test_a_large_matrix_that_is_another_is_found(
    large: tuple[Path, dict[str, Tensor], dict[int, Stored]], tmp_path: Path, change: Change
) -> None:
    graph, named, known = large
    assert check_weights([graph], named, known).passed
    shutil.copytree(graph.parent, tmp_path / "copy")
    held = np.memmap(tmp_path / "copy" / "weights.data", np.float32, "r+", shape=SIDES[::-1])
    held[:] = change(np.array(held))
    held.flush()
    check = check_weights([tmp_path / "copy" / "one.onnx"], named, known)
    assert not check.passed and "'0.weight.T' of one.onnx" in check.detail
