"""Artifacts made from nothing, without torch: a manifest that fits a checkpoint directory."""

from pathlib import Path
from typing import Any

from tokcarve.passes.checkpoint import Checkpoint, weights_identity
from tokcarve.passes.geometry import Geometry, TextGeometry, VisionGeometry
from tokcarve.recipes.artifact import Artifact, write_artifact
from tokcarve.recipes.files import dump_recipe
from tokcarve.recipes.make import make_recipe
from tokcarve.recipes.manifest import BudgetRecord, Manifest, MethodRecord, ModelRecord, Numbers, StageEntry
from tokcarve.recipes.schema import Recipe

GEOMETRY = Geometry(
    vision=VisionGeometry(
        kind="clip",
        image_size=112,
        patch_size=14,
        grid=(8, 8),
        hidden=32,
        heads=4,
        head_dim=8,
        mlp=64,
        layers=6,
        layers_used=5,
        prefix=1,
    ),
    text=TextGeometry(
        kind="llama",
        hidden=48,
        heads=4,
        kv_heads=2,
        head_dim=12,
        mlp=96,
        layers=3,
        vocab=448,
        max_positions=256,
        sliding_window=None,
    ),
    total=64,
    image_token_id=447,
    eos_token_ids=(2,),
    pad_token_id=0,
)


def recipe_of(base: Checkpoint) -> Recipe:
    """VTC-CLS to 16 tokens."""
    return make_recipe(base.name, method="vtc_cls", tokens=16)


def manifest_of(base: Checkpoint, *, seed: int = 0) -> Manifest:
    """What compress would record for `recipe_of`."""
    return Manifest(
        model=ModelRecord(
            name=base.name,
            revision=base.revision,
            architecture=base.architecture,
            weights=weights_identity(base),
        ),
        geometry=GEOMETRY,
        method=MethodRecord(name="vtc_cls", params={"layers": 3}),
        budget=BudgetRecord(asked={"tokens": 16}, tokens=16, total=64),
        schedule=(StageEntry(site="vision.layers.4", total=64, keep=16, how="choose"),),
        positions="renumbered",
        numbers=Numbers(tokens_entering=16, tokens_mean=16.0, kv_mib=0.0044, kv_mib_unpruned=0.0176),
        kv_rows=(16, 16, 16),
        seed=seed,
        versions={"tokcarve": "0.1.0"},
    )


def write(directory: Path, base: Checkpoint, *, seed: int = 0, **options: Any) -> Artifact:
    """An artifact of `base` in `directory`."""
    return write_artifact(directory, manifest_of(base, seed=seed), dump_recipe(recipe_of(base)), base, **options)
