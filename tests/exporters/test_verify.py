"""Every check of an export can fail: each mutation below is one way of being wrong, and one check that sees it."""

import dataclasses
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from exported import KEEP, MAX_NEW, MAX_TEXT
from models import TOTAL
from onnx import TensorProto, helper
from torch import nn

from tokcarve.exporters.device.compare import Check
from tokcarve.exporters.device.face import EXPORT, FOLDER, ExportRecord
from tokcarve.exporters.device.pipeline import Pipeline
from tokcarve.exporters.device.session import Face
from tokcarve.exporters.export import ExportResult
from tokcarve.exporters.golden import Golden, make_samples, reference
from tokcarve.exporters.prove import judge
from tokcarve.exporters.verify import check_numbers, check_power, check_weights
from tokcarve.exporters.wellformed import check_graph
from tokcarve.passes import families
from tokcarve.passes.families.load import read_model
from tokcarve.recipes.artifact import read_artifact
from tokcarve.recipes.carve import carve


@dataclass(frozen=True)
class World:
    artifact: Path
    record: ExportRecord
    golden: Golden
    model: nn.Module

    @property
    def face(self) -> Path:
        return self.artifact / EXPORT / FOLDER


@pytest.fixture(scope="module")
def world(result: ExportResult) -> World:
    artifact = result.directory.parent
    found = read_artifact(artifact)
    model = read_model(found.open_base().path)
    carved, plain = carve(model, found).graphs, families.capture(model)
    samples, skipped = make_samples(carved, count=4, max_text=MAX_TEXT)
    golden = Golden(
        samples=samples,
        pruned=tuple(reference(carved, sample, MAX_NEW) for sample in samples),
        plain=tuple(reference(plain, sample, MAX_NEW) for sample in samples),
        skipped=skipped,
    )
    return World(artifact, result.record, golden, model)


@pytest.fixture
def copy(world: World, tmp_path: Path) -> World:
    shutil.copytree(world.artifact, tmp_path / "copy")
    return dataclasses.replace(world, artifact=tmp_path / "copy")


def numbers(world: World, *, baseline: bool = False) -> dict[str, Check]:
    face = Face(artifact=world.artifact, record=world.record, providers=("CPUExecutionProvider",))
    expected = world.golden.plain if baseline else world.golden.pruned
    checks = check_numbers(Pipeline(face, baseline=baseline), world.golden.samples, expected, side="side")
    return {check.name.removeprefix("side: "): check for check in checks}


def failed(checks: dict[str, Check]) -> set[str]:
    return {name for name, check in checks.items() if not check.passed}


@pytest.mark.parametrize("baseline", [False, True])
def test_a_true_export_passes(world: World, baseline: bool) -> None:
    checks = numbers(world, baseline=baseline)
    assert len(checks) == 5
    assert failed(checks) == set()
    assert all(check.tolerance == 1e-4 for check in checks.values() if check.value is not None)


def test_samples_cover_short_and_full_prompts_and_differ(world: World) -> None:
    lengths = [len(sample.before) + len(sample.after) for sample in world.golden.samples]
    assert max(lengths) == MAX_TEXT
    assert min(lengths) < MAX_TEXT
    kept = {tuple(one.kept.tolist()) for one in world.golden.pruned}
    assert len(kept) == len(world.golden.samples), "every image keeps other patches"


def test_a_tampered_weight_is_seen_twice(copy: World) -> None:
    data = copy.face / "weights.data"
    raw = np.fromfile(data, np.float32)
    raw[1000:3000] += 0.5
    raw.tofile(data)
    paths = sorted(copy.face.glob("*.onnx"))
    assert not check_weights(paths, dict(copy.model.named_parameters()), {}).passed
    assert failed(numbers(copy)) | failed(numbers(copy, baseline=True))


def test_a_graph_of_another_method_is_seen(copy: World) -> None:
    graph = onnx.load(copy.face / "vision.onnx", load_external_data=False)
    best = next(node for node in graph.graph.node if node.op_type == "TopK")
    del best.attribute[:]
    best.attribute.extend([helper.make_attribute("axis", -1), helper.make_attribute("largest", 0)])
    onnx.save(graph, copy.face / "vision.onnx")
    assert {"kept indices", "image features", "logits"} <= failed(numbers(copy)), "it keeps the worst patches"


def edit(path: Path, change: Callable[[onnx.GraphProto], None]) -> None:
    model = onnx.load(path, load_external_data=False)
    change(model.graph)
    onnx.save(model, path)


def shift_indices(graph: onnx.GraphProto) -> None:
    for node in graph.node:
        for i, name in enumerate(node.output):
            if name == "kept_indices":
                node.output[i] = "true_indices"
    for node in graph.node:
        for i, name in enumerate(node.input):
            if name == "kept_indices":
                node.input[i] = "true_indices"
    graph.initializer.append(helper.make_tensor("one_more", TensorProto.INT64, [1], [1]))
    graph.node.append(helper.make_node("Add", ["true_indices", "one_more"], ["kept_indices"]))


def test_wrong_indices_with_right_features_are_seen(copy: World) -> None:
    edit(copy.face / "vision.onnx", shift_indices)
    checks = numbers(copy)
    assert "kept indices" in failed(checks)
    assert "image features" not in failed(checks)
    assert "first sample 0" in checks["kept indices"].detail


def test_a_decode_that_forgets_its_new_rows_is_seen(copy: World) -> None:
    def forget(graph: onnx.GraphProto) -> None:
        graph.initializer.append(helper.make_tensor("never", TensorProto.INT64, [1], [0]))
        for node in graph.node:
            for i, name in enumerate(node.input):
                if name == "step":
                    node.input[i] = "never"

    edit(copy.face / "decode.onnx", forget)
    assert failed(numbers(copy)) == {"greedy tokens"}


def test_padding_that_leaks_into_the_answer_is_seen(copy: World) -> None:
    def ignore_lengths(graph: onnx.GraphProto) -> None:
        graph.initializer.append(helper.make_tensor("all_rows", TensorProto.INT64, [2], [KEEP + MAX_TEXT] * 2))
        for node in graph.node:
            for i, name in enumerate(node.input):
                if name == "prompt_lengths":
                    node.input[i] = "all_rows"

    edit(copy.face / "prefill.onnx", ignore_lengths)
    assert "logits" in failed(numbers(copy))


def test_not_a_number_is_a_difference(world: World) -> None:
    broken = tuple(dataclasses.replace(one, logits=one.logits * float("nan")) for one in world.golden.pruned)
    spoiled = dataclasses.replace(world, golden=dataclasses.replace(world.golden, pruned=broken))
    assert "logits" in failed(numbers(spoiled))


def test_power_needs_the_unpruned_model_to_differ(world: World) -> None:
    assert check_power(world.golden).passed
    same = dataclasses.replace(world.golden, plain=world.golden.pruned)
    check = check_power(same)
    assert not check.passed
    assert check.value == 0.0
    kept, gaps = judge(same)
    assert kept == []
    assert any("no power" in text for text in gaps)


def test_a_token_within_the_tolerance_of_the_best_is_a_tie(world: World) -> None:
    flipped = (
        tuple(
            dataclasses.replace(one, tokens=(one.tokens + 1) % 100, margins=torch.zeros_like(one.margins))
            for one in world.golden.pruned[:1]
        )
        + world.golden.pruned[1:]
    )
    tied = numbers(dataclasses.replace(world, golden=dataclasses.replace(world.golden, pruned=flipped)))
    assert tied["greedy tokens"].passed
    assert "1 ties" in tied["greedy tokens"].detail
    sure = tuple(dataclasses.replace(one, margins=torch.ones_like(one.margins)) for one in flipped)
    clear = numbers(dataclasses.replace(world, golden=dataclasses.replace(world.golden, pruned=sure)))
    assert failed(clear) == {"greedy tokens"}


def test_weights_of_another_model_are_seen(world: World) -> None:
    others = {name: weight + 1 for name, weight in world.model.named_parameters()}
    check = check_weights(sorted(world.face.glob("*.onnx")), others, {})
    assert not check.passed
    assert "not the checkpoint's" in check.detail


def test_no_weights_compared_is_no_pass(world: World) -> None:
    assert not check_weights([], {}, {}).passed


@pytest.mark.parametrize("name", ["vision", "embedding", "prefill", "decode"])
def test_a_true_graph_is_valid(world: World, name: str) -> None:
    check = check_graph(world.face / f"{name}.onnx")
    assert check.passed, check.detail
    assert "opset 18" in check.detail


def open_a_dimension(graph: onnx.GraphProto) -> None:
    graph.input[0].type.tensor_type.shape.dim[0].dim_param = "batch"
    del graph.value_info[:]


def lose_a_node(graph: onnx.GraphProto) -> None:
    del graph.node[len(graph.node) // 2]


def borrow_an_operator(graph: onnx.GraphProto) -> None:
    next(node for node in graph.node if node.op_type == "Softmax").domain = "com.microsoft"


@pytest.mark.parametrize("change", [open_a_dimension, lose_a_node, borrow_an_operator])
def test_a_broken_graph_is_not(copy: World, change: Callable[[onnx.GraphProto], None]) -> None:
    edit(copy.face / "vision.onnx", change)
    assert not check_graph(copy.face / "vision.onnx").passed


def test_a_missing_weight_file_is_seen(copy: World) -> None:
    (copy.face / "weights.data").unlink()
    assert not check_graph(copy.face / "vision.onnx").passed


def test_counts_of_the_record(world: World) -> None:
    assert world.record.pruned.tokens == KEEP
    assert world.record.baseline.tokens == TOTAL
    assert world.record.pruned.rows == (KEEP + MAX_TEXT,) * 2
    assert world.record.pruned.capacities == (KEEP + MAX_TEXT + MAX_NEW,) * 2
