"""One export for all tests of what an export is."""

import pytest
from exported import make_artifact, make_export

from tokcarve.exporters.export import ExportResult


@pytest.fixture(scope="session")
def result(tmp_path_factory: pytest.TempPathFactory) -> ExportResult:
    """A random model with VTC-CLS, batch 2, original positions; do not write to it."""
    artifact = make_artifact(tmp_path_factory.mktemp("export"), positions="original")
    return make_export(artifact, batch=2)
