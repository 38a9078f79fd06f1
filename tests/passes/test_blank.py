"""Models without their large weights: traced as the whole ones are, and every weight found in its file."""

import json
from pathlib import Path

import pytest
import torch
from models import build, write
from safetensors.torch import load_file, save_file

from tokcarve.passes import families
from tokcarve.passes.checkpoint import open_directory
from tokcarve.passes.errors import ModelError
from tokcarve.passes.families import blank
from tokcarve.passes.families.blank import Blank, blank_model
from tokcarve.passes.families.load import read_model


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(build("llama", "clip", dtype=torch.bfloat16), tmp_path_factory.mktemp("blank") / "model")


@pytest.fixture
def made(place: Path, monkeypatch: pytest.MonkeyPatch) -> Blank:
    monkeypatch.setattr(blank, "READ_BELOW", 256)
    return blank_model(open_directory(place))


def test_every_weight_is_found_where_it_belongs(place: Path, made: Blank) -> None:
    whole = dict(read_model(place).named_parameters())
    found = dict(made.model.named_parameters())
    assert found.keys() == whole.keys() and {one.dtype for one in found.values()} == {torch.float32}
    large = [name for name, weight in found.items() if weight.nbytes >= 256]
    assert len(large) > 20
    for name, weight in found.items():
        assert torch.equal(made.stored[weight.data_ptr()].view().float(), whole[name])
        assert name in large or torch.equal(weight, whole[name]), "a small one is read"


def test_constants_of_the_model_are_there(place: Path, made: Blank) -> None:
    whole = dict(read_model(place).named_buffers())
    assert whole and all(torch.equal(one, whole[name]) for name, one in made.model.named_buffers())


def test_what_is_captured_is_the_same(place: Path, made: Blank) -> None:
    one, other = (families.capture(model) for model in (made.model, read_model(place)))
    assert one.vision.code == other.vision.code and one.language.code == other.language.code
    assert one.geometry == other.geometry


def test_a_view_reads_half_precision_bit_for_bit(place: Path, made: Blank) -> None:
    raw = load_file(next(place.glob("*.safetensors")))
    for stored in made.stored.values():
        view = stored.view()
        assert view.dtype == torch.bfloat16 and torch.equal(view.view(torch.int16), raw[stored.name].view(torch.int16))


def rewrite(place: Path, target: Path, change: object) -> Path:
    target.mkdir()
    for path in place.iterdir():
        if path.suffix == ".json":
            (target / path.name).write_bytes(path.read_bytes())
    raw = load_file(next(place.glob("*.safetensors")))
    save_file(change(raw), target / "model.safetensors", metadata={"format": "pt"})  # type: ignore[operator]
    return target


def test_weights_of_another_kind_are_refused(place: Path, tmp_path: Path) -> None:
    name = "language_model.model.embed_tokens.weight"

    def quantised(raw: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        key = next(key for key in raw if key.endswith("embed_tokens.weight"))
        return raw | {key: raw[key].to(torch.int8)}

    with pytest.raises(ModelError, match="is I8, and weights must be of F64, F32, F16, BF16"):
        blank_model(open_directory(rewrite(place, tmp_path / name, quantised)))


def test_a_missing_weight_is_refused(place: Path, tmp_path: Path) -> None:
    def poorer(raw: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {key: one for key, one in raw.items() if not key.endswith("layers.1.mlp.up_proj.weight")}

    other = rewrite(place, tmp_path / "poorer", poorer)
    (other / "model.safetensors.index.json").unlink(missing_ok=True)
    with pytest.raises(ModelError, match="1 weights are missing"):
        blank_model(open_directory(other))


def test_a_weight_of_another_shape_is_refused(place: Path, tmp_path: Path) -> None:
    other = rewrite(place, tmp_path / "other", dict)
    config = json.loads((other / "config.json").read_text())
    config["text_config"]["intermediate_size"] *= 2
    (other / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="cannot be loaded"):
        blank_model(open_directory(other))
