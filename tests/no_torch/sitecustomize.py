"""With this folder on PYTHONPATH, torch, transformers and onnx look as if they were not installed, in children too."""

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

BLOCKED = {"torch", "transformers", "onnx", "onnxscript", "onnx_ir", "safetensors", "huggingface_hub", "jaxtyping"}


class Blocker(MetaPathFinder):
    """Refuses the packages in BLOCKED, and leaves every other one to the next finder."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname.partition(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"No module named {fullname!r}", name=fullname)
        return None


sys.meta_path.insert(0, Blocker())
