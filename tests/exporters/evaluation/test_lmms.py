"""The plug-in of lmms-eval: found by its entry point, answering as `tokcarve eval` does, refusing what it cannot.

A stand-in has the parts of lmms-eval 0.7 that it touches; with lmms-eval itself installed, that is used.
"""

import importlib
import importlib.util
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from toy_face import write_toy

from tokcarve.exporters.device.answer import Answerer
from tokcarve.passes.errors import EvaluationError

ROOT = Path(__file__).resolve().parents[3]
GROUP = "lmms_eval.models"


class Base:
    """What tokcarve inherits of lmms-eval's model class."""

    def __init__(self) -> None:
        self.task_dict: dict[str, Any] = {}


@dataclass
class Manifest:
    """What its registry takes."""

    model_id: str
    simple_class_path: str


@pytest.fixture
def harness(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    name = "tokcarve.exporters.evaluation.lmms_model"
    if importlib.util.find_spec("lmms_eval") is None:
        parts = {"lmms_eval": {}, "lmms_eval.api": {}, "lmms_eval.api.model": {"lmms": Base}, "lmms_eval.models": {}}
        for module, members in (parts | {"lmms_eval.models.registry_v2": {"ModelManifest": Manifest}}).items():
            made = ModuleType(module)
            vars(made).update(members)
            monkeypatch.setitem(sys.modules, module, made)
    monkeypatch.delitem(sys.modules, name, raising=False)
    yield
    sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    artifact = tmp_path_factory.mktemp("lmms") / "toy"
    write_toy(artifact, batch=2)
    return artifact


def model_class() -> Any:
    """What the entry point of pyproject.toml leads lmms-eval to."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    module, _, function = project["entry-points"][GROUP]["tokcarve"].partition(":")
    manifest = getattr(importlib.import_module(module), function)()
    assert manifest.model_id == "tokcarve"
    path, _, name = manifest.simple_class_path.rpartition(".")
    return getattr(importlib.import_module(path), name)


def pictures(count: int) -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (28, 28, 3), dtype=np.uint8)) for _ in range(count)]


def request(number: int, text: str, settings: dict[str, Any], visual: Callable[[Any], Any]) -> Any:
    return SimpleNamespace(args=(text, settings, visual, number, "task", "test"))


def ready(toy: Path, images: list[Image.Image], **settings: Any) -> Any:
    model = model_class()(artifact=str(toy), batch_size=1, device="cpu", max_batch_size=None, **settings)
    model.task_dict = {"task": {"test": [{"image": image} for image in images]}}
    return model


def test_it_answers_as_the_device_does(harness: None, toy: Path) -> None:
    images = pictures(5)
    model = ready(toy, images)
    texts = [f"what is {number}?" for number in range(5)]
    # of two lengths, so that a batch of the export cannot be filled with all of them
    asked = [
        request(number, f"<image>\n{text}", {"max_new_tokens": 3 + (number == 1)}, lambda doc: [doc["image"]])
        for number, text in enumerate(texts)
    ]
    answerer = Answerer(toy)
    expected = [
        answerer.answer([image], [text], 3 + (number == 1)).text[0].strip()
        for number, (image, text) in enumerate(zip(images, texts, strict=True))
    ]
    assert model.generate_until(asked) == expected and len(set(expected)) > 1
    whole = ready(toy, images, side="unpruned").generate_until(asked)
    assert whole != expected, "the unpruned side is another model"


def test_a_short_request_between_others_of_a_batch(harness: None, tmp_path: Path) -> None:
    write_toy(tmp_path / "toy", batch=4)
    images, limits = pictures(4), [5, 2, 5, 5]
    model = ready(tmp_path / "toy", images)
    asked = [
        request(number, f"<image>\nwhat is {number}?", {"max_new_tokens": limit}, lambda doc: [doc["image"]])
        for number, limit in enumerate(limits)
    ]
    assert model.generate_until(asked) == [model.generate_until([one])[0] for one in asked]


def test_answers_end_at_stop_strings_and_long_ones_with_a_warning(harness: None, toy: Path) -> None:
    model = ready(toy, pictures(1))
    full = model.generate_until([request(0, "why?", {"max_new_tokens": 4}, lambda doc: [doc["image"]])])[0]
    until = full[len(full) // 2]
    settings = {"max_new_tokens": 4, "until": [until]}
    assert model.generate_until([request(0, "why?", settings, lambda doc: [doc["image"]])]) == [full.split(until)[0]]
    with pytest.warns(UserWarning, match=r"up to 99 tokens, and the export holds 12.*--max-new 99"):
        model.generate_until([request(0, "why?", {"max_new_tokens": 99}, lambda doc: [doc["image"]])])


def test_what_it_cannot_do_is_refused(harness: None, toy: Path) -> None:
    model, none = ready(toy, pictures(1)), {"max_new_tokens": 2}
    for settings, visual, message in [
        (none, lambda doc: [doc["image"]] * 2, "shows 2 images or videos"),
        (none, lambda doc: [], "shows 0 images"),
        (none, lambda doc: ["a.mp4"], "shows 1 images or videos"),
        (none | {"temperature": 0.7}, lambda doc: [doc["image"]], "answers greedily"),
        (none | {"num_beams": 3}, lambda doc: [doc["image"]], "answers greedily"),
    ]:
        with pytest.raises(EvaluationError, match=message):
            model.generate_until([request(0, "why?", settings, visual)])
    for refused in (model.loglikelihood, model.generate_until_multi_round):
        with pytest.raises(EvaluationError, match="choose a task"):
            refused([])
    for settings in ({"pretrained": "x"}, {"runtime": "trt"}, {"side": "both"}):
        with pytest.raises(EvaluationError, match="--model_args"):
            ready(toy, [], **settings)


def test_nothing_of_tokcarve_imports_the_harness_unless_it_loads_it() -> None:
    assert "lmms_eval" not in sys.modules or importlib.util.find_spec("lmms_eval") is not None
    import tokcarve.exporters.evaluation.lmms as plugin

    assert plugin.manifest and "tokcarve.exporters.evaluation.lmms_model" not in sys.modules
