"""Reading the JSON files of a checkpoint's processor."""

import json
from pathlib import Path
from typing import Any

from tokcarve.passes.errors import ArtifactError

__all__ = ["read_object"]


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in `path`, or an empty one if there is no such file.

    Raises ArtifactError if the file cannot be read or holds something else.
    """
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path} cannot be read ({error}); take it from the checkpoint again") from None
    if not isinstance(content, dict):
        raise ArtifactError(f"{path} holds no JSON object; take it from the checkpoint again")
    return content
