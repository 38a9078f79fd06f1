"""Runs the command line where torch, transformers and onnx cannot be imported: `python no_torch.py VERB ...`."""

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

BLOCKED = {"torch", "transformers", "onnx", "onnxscript", "onnx_ir", "safetensors", "huggingface_hub", "jaxtyping"}


class Blocker(MetaPathFinder):
    """Makes the packages in BLOCKED look as if they were not installed."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Refuses a blocked package, and leaves every other one to the next finder."""
        if fullname.partition(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"No module named {fullname!r}", name=fullname)
        return None


if __name__ == "__main__":
    sys.meta_path.insert(0, Blocker())
    from tokcarve.cli.main import main

    main()
