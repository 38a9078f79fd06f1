"""What an export says of its stages: by hand, and on a real export equal to what torch follows."""

import numpy as np
from looks import picture

from tokcarve.exporters.device.pipeline import Pipeline
from tokcarve.exporters.export import ExportResult
from tokcarve.exporters.pictures.carved import of_artifact
from tokcarve.exporters.pictures.exported import named_stages, of_export
from tokcarve.recipes.artifact import read_artifact
from tokcarve.recipes.manifest import StageEntry


def entry(site: str, total: int, keep: int, how: str = "choose") -> StageEntry:
    return StageEntry(site=site, total=total, keep=keep, how=how)  # type: ignore[arg-type]


def test_ids_of_the_language_model_count_what_entered_it() -> None:
    seen = {"kept_indices": np.array([[2, 5, 7, 9]], np.int32)}
    prefilled = {"logits": np.zeros(1), "kept_indices.1": np.array([[0, 2, 3]]), "kept_indices.3": np.array([[2]])}
    pipeline = Pipeline.__new__(Pipeline)
    found = pipeline.kept_by_site(seen, prefilled)
    assert {site: ids.tolist() for site, ids in found.items()} == {
        "": [[2, 5, 7, 9]],
        "language.layers.1": [[2, 7, 9]],
        "language.layers.3": [[7]],
    }
    assert pipeline.kept(seen, prefilled).tolist() == [[7]]


def test_earlier_stages_of_the_vision_graph_are_not_known() -> None:
    schedule = [entry("vision.layers.0", 10, 6), entry("vision.layers.2", 6, 4), entry("language.layers.1", 4, 2)]
    stages = named_stages(schedule, {"": (2, 5, 7, 9), "language.layers.1": (2, 9)})
    assert [stage.patches for stage in stages] == [None, (2, 5, 7, 9), (2, 9)]


def test_lean_layers_keep_what_there_is_and_an_exit_nothing() -> None:
    schedule = [entry("language.layers.0", 3, 3, "lean"), entry("language.layers.1", 3, 0, "exit")]
    stages = named_stages(schedule, {"": (0, 1, 2)})
    assert [stage.patches for stage in stages] == [(0, 1, 2), ()]


def test_a_real_export_keeps_what_torch_keeps(result: ExportResult) -> None:
    artifact, image = read_artifact(result.directory.parent), picture(180, 120)
    exported = of_export(artifact, "a", image, "why?", 4, asked=True)
    carved = of_artifact(artifact, "a", image, "why?", 4)
    assert exported.last.patches == carved.last.patches and exported.answer == carved.answer
    assert exported.notes and not carved.notes and carved.last.scores and exported.last.scores is None
