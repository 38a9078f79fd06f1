"""A method with a state, frame after frame, against torch with the same history."""

from pathlib import Path

import numpy as np
import pytest
import torch
from exported import KEEP, MAX_NEW, make_artifact, make_export
from models import SIDE
from PIL import Image

from tokcarve.exporters.device.answer import Answerer
from tokcarve.exporters.device.episode import ActionHistory, Episode, Order
from tokcarve.exporters.eager import load
from tokcarve.exporters.export import export_artifact
from tokcarve.exporters.faces.kind import Request
from tokcarve.passes.errors import ExportError
from tokcarve.passes.inputs.prompt import PromptError


@pytest.mark.parametrize(("order", "wanted"), [("published", 73.0), ("paper", 86.912)])
def test_the_weights_of_a_history(order: Order, wanted: float) -> None:
    history = ActionHistory(2, order=order)
    assert not history.full and history.guide().tolist() == [[0.0, 0.0]]
    for value in (1.0, 10.0, 100.0):
        history.add(np.array([[value], [value]], np.float32), np.array([1]))
    np.testing.assert_allclose(history.guide(), [[0.0, wanted]], rtol=1e-6)
    assert history.full
    history.add(np.zeros((1, 2), np.float32), np.array([0, 1]))
    assert history.guide()[0, 1] == pytest.approx({"published": 90.0, "paper": 69.12}[order]), "the oldest is forgotten"
    history.clear()
    assert not history.full


@pytest.mark.parametrize(("window", "decay"), [(0, 0.8), (3, 0.0), (3, 1.1)])
def test_a_history_that_is_none(window: int, decay: float) -> None:
    with pytest.raises(ExportError, match="is no history"):
        ActionHistory(4, window=window, decay=decay)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = make_artifact(tmp_path_factory.mktemp("vla"), "vla_pruner", text_layers=6)
    export_artifact(made, Request(max_text=24, max_new=MAX_NEW))
    return made


def frames(count: int) -> list[Image.Image]:
    noise = np.random.default_rng(5).integers(0, 256, (count, 8, 8, 3), np.uint8)
    return [Image.fromarray(one).resize((SIDE, SIDE)) for one in noise]


def test_frames_are_answered_with_what_the_actions_before_looked_at(artifact: Path) -> None:
    episode, model = Episode(artifact), load(artifact)
    history = ActionHistory(64)
    prompter, images = episode.pruned.prompter, episode.pruned.images
    for i, image in enumerate(frames(5)):
        made = episode.answer(image, "go on", MAX_NEW)
        assert made.pruned == (i >= 3)
        assert made.answers.kept_indices.shape[1] == (KEEP if made.pruned else 64)
        if made.pruned:
            ids = torch.tensor([prompter.encode("go on", 64)])
            pixels, guide = torch.from_numpy(images([image])), torch.from_numpy(history.guide())
            with torch.no_grad():
                out = model(input_ids=ids, pixel_values=pixels, use_cache=True, guide=guide)
            assert out.kept is not None and out.logits is not None and out.given is not None
            assert out.kept["language.layers.2"][0].tolist() == made.answers.kept_indices[0].tolist()
            assert int(out.logits[0, -1].argmax()) == made.answers.tokens[0][0]
            told = made.answers.given["action_attention"]
            np.testing.assert_allclose(out.given["action_attention"][0], told[0, 0], atol=1e-5)
            assert told.shape == (1, len(made.answers.tokens[0]), KEEP)
        history.add(made.answers.given["action_attention"][0], made.answers.kept_indices[0])
    np.testing.assert_array_equal(history.guide(), episode.history.guide())


def test_another_history_keeps_other_tokens(artifact: Path) -> None:
    answerer, image = Answerer(artifact), frames(1)
    guides = np.random.default_rng(0).random((2, 1, 64), np.float32)
    one, other = (answerer.answer(image, ["go on"], 1, state={"guide": g}).kept_indices for g in guides)
    assert set(one[0]) != set(other[0])


def test_one_image_without_a_history_is_refused(artifact: Path) -> None:
    with pytest.raises(PromptError, match="chooses by 'guide', which it gathers from image to image"):
        Answerer(artifact).answer(frames(1), ["go on"])


def test_an_artifact_without_a_state_has_no_episodes(tmp_path: Path) -> None:
    made = make_artifact(tmp_path)
    make_export(made)
    with pytest.raises(ExportError, match="keeps no state between images"):
        Episode(made)
