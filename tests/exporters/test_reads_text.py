"""A method that reads the question: its vision graph takes the prompt, in torch, in ONNX Runtime and on the device."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from exported import KEEP, make_artifact, make_export
from models import IMAGE, TOTAL, pictures
from numpy.typing import NDArray

import tokcarve
from tokcarve.exporters.device.answer import Answerer
from tokcarve.exporters.device.face import EXPORT, FOLDER
from tokcarve.exporters.device.profile import profile
from tokcarve.exporters.device.rounds import Effort
from tokcarve.exporters.export import ExportResult
from tokcarve.recipes.artifact import read_artifact

QUESTIONS = ([5, 6, 7], [40, 41, 42, 43, 44, 45])


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_artifact(tmp_path_factory.mktemp("text"), method="cdpruner")


@pytest.fixture(scope="module")
def result(place: Path) -> ExportResult:
    return make_export(place, batch=2)


def asked(image: int, tokens: int) -> list[list[int]]:
    """The two questions behind `tokens` image tokens."""
    return [[1, *[image] * tokens, *question] for question in QUESTIONS]


@torch.no_grad()
def kept_by_torch(place: Path) -> NDArray[np.int64]:
    """What torch keeps of one picture for either question."""
    model = tokcarve.load(place)
    image = model.graphs.geometry.image_token_id
    rows = []
    for ids in asked(image, TOTAL):
        out = model(input_ids=torch.tensor([ids]), pixel_values=pictures(1))
        assert out.kept is not None
        rows.append(out.kept["connector"][0].numpy())
    return np.stack(rows)


def test_the_vision_graph_takes_the_prompt(result: ExportResult) -> None:
    names = {
        name: [one.name for one in onnx.load(result.directory / FOLDER / name, load_external_data=False).graph.input]
        for name in ("vision.onnx", "baseline.vision.onnx")
    }
    assert names["vision.onnx"] == ["pixel_values", "input_ids", "prompt_lengths"]
    assert names["baseline.vision.onnx"] == ["pixel_values"]
    assert {"pruned: kept indices", "pruned: greedy tokens", "power"} <= {c.name for c in result.record.checks}


def test_the_table_of_embeddings_is_stored_once(result: ExportResult) -> None:
    weights = result.directory / FOLDER / "weights.data"
    table = 448 * 48 * 4
    model = tokcarve.load(result.directory.parent)
    total = sum(p.numel() for p in model.base.parameters()) * 4
    assert weights.stat().st_size < total + table


def test_the_question_decides_what_is_kept_as_in_torch(place: Path, result: ExportResult) -> None:
    answerer = Answerer(place)
    pixels = pictures(1).repeat(2, 1, 1, 1).numpy()
    image = answerer.record.geometry.image_token_id
    made = answerer.generate(pixels, asked(image, KEEP), 2)
    expected = kept_by_torch(place)
    assert not np.array_equal(expected[0], expected[1])
    assert np.array_equal(made.kept_indices, expected)


def test_generate_goes_on_without_the_picture(place: Path) -> None:
    model = tokcarve.load(place)
    ids = torch.tensor(asked(model.graphs.geometry.image_token_id, TOTAL)[:1])
    said = model.generate(input_ids=ids, pixel_values=pictures(1), max_new_tokens=3, do_sample=False)
    assert said.shape[1] > ids.shape[1] and IMAGE > 0


def test_profile_feeds_the_prompt(place: Path, result: ExportResult) -> None:
    assert (place / EXPORT).is_dir()
    found = profile(place, read_artifact(place).manifest.schedule, effort=Effort(repeats=1, warm_up=0))
    assert found.selector_shares["vision"] > 0
