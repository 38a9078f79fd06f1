"""Two artifacts side by side: what is equal, what is told, and what is refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from refusals import refused
from spoken import said, told
from toy_face import write_toy

from tokcarve.exporters.device import side_by_side
from tokcarve.exporters.device.side_by_side import Overlap, compare_artifacts
from tokcarve.passes.checkpoint import WeightsIdentity
from tokcarve.passes.errors import ArtifactError
from tokcarve.passes.flops import count_flops, decode_flops, rows_of
from tokcarve.recipes.artifact import read_artifact
from tokcarve.recipes.manifest import seal


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    places = tmp_path / "four", tmp_path / "eight"
    for place, tokens in zip(places, (4, 8), strict=True):
        write_toy(place, tokens=tokens, max_text=64)
    return places


def keep(artifact: Path, kept: list[list[int]], *, image: float = 0.0) -> None:
    """Golden samples of which torch kept so much; images and prompts are the same for all, shifted by `image`."""
    pixels = np.arange(len(kept) * 12, dtype=np.float32).reshape(len(kept), 3, 2, 2) + np.float32(image)
    ids = np.arange(len(kept) * 5, dtype=np.int64).reshape(len(kept), 5)
    np.savez(
        artifact / "export" / "golden.npz",
        pixel_values=pixels,
        input_ids=ids,
        prompt_lengths=np.full(len(kept), 5, np.int64),
        kept_indices=np.array(kept, np.int64),
    )


def test_what_both_keep_of_the_same_images_by_hand(pair: tuple[Path, Path]) -> None:
    keep(pair[0], [[0, 1, 2, 3], [-1, 4, 5, 6]])
    keep(pair[1], [[2, 3, 4, 5], [4, 5, 6, 7]])
    overlap = compare_artifacts(*pair).overlap
    # {2, 3} of {0..5}, and {4, 5, 6} of {4..7}: the [CLS] row is no patch
    assert overlap.jaccard == pytest.approx((2 / 6, 3 / 4)) and overlap.mean == pytest.approx((2 / 6 + 3 / 4) / 2)
    assert overlap.of == "golden samples that both have"
    assert compare_artifacts(pair[0], pair[0]).overlap.mean == 1.0


def test_other_golden_samples_are_not_taken_for_the_same(pair: tuple[Path, Path]) -> None:
    keep(pair[0], [[0, 1, 2, 3]])
    keep(pair[1], [[0, 1, 2, 3]], image=1.0)
    overlap = compare_artifacts(*pair).overlap
    assert overlap.of == "bundled scenes, for their golden samples differ" and len(overlap.jaccard) == 4
    # the brightest 4 patches are among the brightest 8
    assert set(overlap.jaccard) == {0.5}


def test_scenes_are_different_pictures(pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    class Fake:
        asks = ()

        def __init__(self, artifact: Path) -> None:
            pass

        def answer(self, images: list[object], prompts: list[str], new: int) -> object:
            seen.extend(images)
            return type("Answers", (), {"kept_indices": np.zeros((len(images), 1), np.int64)})

    monkeypatch.setattr("tokcarve.exporters.device.answer.Answerer", Fake)
    assert side_by_side._on_scenes(compare_artifacts(*pair).entries[0]) == [frozenset({0})] * 4
    assert len({image.tobytes() for image in seen[:4]}) == 4  # type: ignore[attr-defined]


def test_the_json_and_the_table(pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    fields = told("compare", *pair)
    first = read_artifact(pair[0]).manifest
    assert fields["a"]["numbers"] == first.numbers.model_dump(mode="json")
    assert (
        fields["a"]["flops"]["prefill"]
        == count_flops(first.geometry, rows_of(first.geometry, first.schedule, 64)).prefill
    )
    assert fields["a"]["flops"]["prefill"] < fields["b"]["flops"]["prefill"]
    graphs = list((pair[0] / "export" / "onnx").iterdir())
    assert fields["a"]["export"]["bytes"] == {"weights": 0, "onnx": sum(one.stat().st_size for one in graphs)}
    assert fields["a"]["export"]["faces"] == ["ort"] and fields["warnings"] == []
    monkeypatch.setenv("COLUMNS", "120")
    text = said("compare", *pair)
    for words in ("uniform", "4 of 16", "8 of 16", "kept patches: Jaccard 0.50", "batch 1, 64 text, 12 new"):
        assert words in text


def test_saved_results_are_told_and_what_makes_them_unlike(pair: tuple[Path, Path]) -> None:
    for place, load, cores, sha in zip(pair, (1.0, 2.0), (2, 2), ("a", "b"), strict=True):
        stages = {"encoder": {"pruned": {"p50_ms": 12.5}}}
        profile = {"machine": {"load": load, "cores": cores}, "stages": stages}
        (place / "profile.json").write_text(json.dumps(profile))
        (place / "evaluation").mkdir()
        record = {"data": {"sha256": sha}, "sides": {"pruned": {"score": 0.75}, "unpruned": {"score": 0.875}}}
        (place / "evaluation" / "evaluation.json").write_text(json.dumps(record))
    found = compare_artifacts(*pair)
    assert found.warnings == ("the saved evaluations differ in their data",)
    text = said("compare", *pair)
    assert "encoder ms" in text and "12.5" in text and "75.0%" in text and "87.5%" in text


def test_what_figures_depend_on_is_told(pair: tuple[Path, Path]) -> None:
    digest = read_artifact(pair[0]).manifest.digest
    for place, batch, source in zip(pair, (1, 4), ("a.jsonl", "b.jsonl"), strict=True):
        profile = {"machine": {"cores": 2}, "batch": batch, "made_of": {"artifact": digest, "export": None}}
        (place / "profile.json").write_text(json.dumps(profile))
        (place / "evaluation").mkdir()
        record = {"data": {"sha256": "a", "source": source}, "runtime": "ort", "max_new": 16, "sides": {}}
        (place / "evaluation" / "evaluation.json").write_text(json.dumps(record))
    first, second = compare_artifacts(*pair).warnings
    assert first == "the saved profiles differ in their batch"
    assert second == f"the saved profile of {pair[1]} is of another artifact; run `tokcarve profile` again"


def test_numbers_that_are_none_are_refused(pair: tuple[Path, Path]) -> None:
    (pair[0] / "profile.json").write_text('{"batch": NaN}')
    with pytest.raises(ArtifactError, match="NaN is no number"):
        compare_artifacts(*pair)


def test_decoding_reads_what_every_layer_stores(pair: tuple[Path, Path]) -> None:
    entry = compare_artifacts(*pair).entries[0]
    manifest = entry.artifact.manifest
    assert entry.flops["decode"] == decode_flops(manifest.geometry.text, [rows + 64 for rows in manifest.kv_rows])


def test_saved_results_that_are_none(pair: tuple[Path, Path]) -> None:
    (pair[0] / "profile.json").write_text("[1]")
    with pytest.raises(ArtifactError, match="profile.json holds no JSON object"):
        compare_artifacts(*pair)


def test_other_base_models_are_refused_unless_anyway(
    pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.rmtree(pair[1] / "export")
    manifest = read_artifact(pair[1]).manifest
    other = manifest.model.model_copy(update={"weights": WeightsIdentity(identity="1" * 64, files=())})
    (pair[1] / "tokcarve.json").write_text(seal(manifest.model_copy(update={"model": other})).model_dump_json())
    text = refused("compare", *pair)
    assert "four is made of toy" in text and "whose weights differ" in text and "--anyway" in text
    fields = told("compare", *pair, "--anyway")
    assert "whose weights differ" in fields["warnings"][0]
    assert fields["overlap"] == {"samples": None, "jaccard": [], "mean": None, "why": "not both are exported"}
    assert "warning: " in said("compare", *pair, "--anyway")


def test_prompts_that_do_not_fit_are_said_to_be_why(tmp_path: Path) -> None:
    for name in ("one", "other"):
        write_toy(tmp_path / name, max_text=9)
    overlap = compare_artifacts(tmp_path / "one", tmp_path / "other").overlap
    assert overlap.jaccard == () and overlap.why is not None and "this export holds 9" in overlap.why


def test_what_is_no_artifact_is_refused(
    pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "is no artifact" in refused("compare", pair[0], tmp_path)
    assert "does not exist" in refused("compare", pair[0], tmp_path / "no")


def test_an_empty_choice_is_like_another_empty_one() -> None:
    assert side_by_side._jaccard(frozenset(), frozenset()) == 1.0
    assert Overlap(why="x").mean is None
