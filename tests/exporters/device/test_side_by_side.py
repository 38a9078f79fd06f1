"""Two artifacts side by side: what is equal, what is told, and what is refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from exported import make_artifact, make_export
from refusals import refused
from spoken import said, told

from tokcarve.exporters.device import side_by_side
from tokcarve.exporters.device.side_by_side import Overlap, compare_artifacts
from tokcarve.passes.errors import ArtifactError
from tokcarve.recipes.compress import compress


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    place = tmp_path_factory.mktemp("pair")
    first = make_artifact(place)
    make_export(first)
    second = compress(str(place / "base"), method="uniform", tokens=32, out=place / "second").directory
    make_export(second)
    return first, second


@pytest.fixture
def copies(pair: tuple[Path, Path], tmp_path: Path) -> tuple[Path, Path]:
    one, other = (Path(shutil.copytree(place, tmp_path / place.name)) for place in pair)
    return one, other


def test_what_both_keep_of_the_same_images(pair: tuple[Path, Path]) -> None:
    overlap = compare_artifacts(*pair).overlap
    kept = []
    for place in pair:
        with np.load(place / "export" / "golden.npz") as stored:
            kept.append(stored["kept_indices"])
    by_hand = [len(set(a) & set(b)) / len(set(a) | set(b)) for a, b in zip(*kept, strict=True)]
    assert overlap.jaccard == pytest.approx(by_hand) and 0 < max(by_hand) < 1
    assert overlap.of == "golden samples that both have"
    assert compare_artifacts(pair[0], pair[0]).overlap.mean == 1.0


def test_other_golden_samples_are_not_taken_for_the_same(
    copies: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = copies[1] / "export" / "golden.npz"
    with np.load(path) as stored:
        arrays = dict(stored)
    arrays["pixel_values"] = arrays["pixel_values"] + np.float32(1)
    np.savez(path, **arrays)
    monkeypatch.setattr(side_by_side, "_on_scenes", lambda entry: [frozenset({1, 2}), frozenset({3})])
    overlap = compare_artifacts(*copies).overlap
    assert overlap.of.startswith("bundled scenes") and overlap.jaccard == (1.0, 1.0)


def test_scenes_are_asked_of_both(pair: tuple[Path, Path]) -> None:
    entries = compare_artifacts(*pair).entries
    kept = side_by_side._on_scenes(entries[0])
    assert len(kept) == 4 and all(len(one) == 16 for one in kept)


def test_the_json_and_the_table(pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    fields = told("compare", *pair)
    assert fields["a"]["numbers"]["tokens_entering"] == 16 and fields["b"]["numbers"]["tokens_entering"] == 32
    assert fields["a"]["flops"]["prefill"] < fields["b"]["flops"]["prefill"]
    assert fields["a"]["weights_bytes"] == (pair[0].parent / "base" / "model.safetensors").stat().st_size
    sizes, files = fields["a"]["export"]["bytes"], list((pair[0] / "export").rglob("*"))
    assert sum(sizes.values()) == sum(
        one.stat().st_size for one in files if one.is_file() and one.name != "export.json"
    )
    assert fields["warnings"] == []
    monkeypatch.setenv("COLUMNS", "120")
    text = said("compare", *pair)
    for words in ("vtc_cls", "uniform", "16 of 64", "32 of 64", "kept patches: Jaccard", "faces"):
        assert words in text


def test_saved_results_are_told_and_what_makes_them_unlike(copies: tuple[Path, Path]) -> None:
    for place, load, cores, sha in zip(copies, (1.0, 2.0), (2, 2), ("a", "b"), strict=True):
        stages = {"encoder": {"pruned": {"p50_ms": 12.5}}}
        profile = {"machine": {"load": load, "cores": cores}, "stages": stages}
        (place / "profile.json").write_text(json.dumps(profile))
        (place / "evaluation").mkdir()
        record = {"data": {"sha256": sha}, "sides": {"pruned": {"score": 0.75}, "unpruned": {"score": 0.875}}}
        (place / "evaluation" / "evaluation.json").write_text(json.dumps(record))
    found = compare_artifacts(*copies)
    assert found.warnings == ("the saved evaluations differ in their data",)
    text = said("compare", *copies)
    assert "encoder ms" in text and "12.5" in text and "75.0%" in text and "87.5%" in text


def test_saved_results_that_are_none(copies: tuple[Path, Path]) -> None:
    (copies[0] / "profile.json").write_text("[1]")
    with pytest.raises(ArtifactError, match="profile.json holds no JSON object"):
        compare_artifacts(*copies)


def test_other_base_models_are_refused_unless_anyway(
    pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    other = compress("tiny", method="vtc_cls", tokens=64, out=tmp_path / "tiny64").directory
    text = refused("compare", pair[0], other)
    assert "is made of base" in text and "of tiny" in text and "--anyway" in text
    fields = told("compare", pair[0], other, "--anyway")
    assert "of tiny" in fields["warnings"][0]
    assert fields["overlap"] == {"samples": None, "jaccard": [], "mean": None, "why": "not both are exported"}
    assert "is no artifact" in refused("compare", pair[0], tmp_path) or "no artifact" in refused(
        "compare", pair[0], tmp_path
    )


def test_an_empty_choice_is_like_another_empty_one() -> None:
    assert side_by_side._jaccard(frozenset(), frozenset()) == 1.0
    assert Overlap(why="x").mean is None
