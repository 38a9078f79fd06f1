"""The packages that tokcarve works with: which extra brings each, which version is wanted, and which is here."""

import contextlib
import importlib.metadata
import importlib.util
import re
import sys
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["Package", "known_packages"]

_REQUIREMENT = re.compile(r"(?P<name>[\w.-]+)>=(?P<least>[\w.]+)(;(?P<marker>.*))?")
# packages whose module has another name than the one with underscores
_MODULES = {
    "onnxruntime-genai-cuda": "onnxruntime_genai",
    "onnxruntime-gpu": "onnxruntime",
    "pillow": "PIL",
    "pyyaml": "yaml",
}
# other distributions of the same module: of ONNX Runtime on a CPU alone, and for the GPU of a board
_OTHERS = {"onnxruntime-gpu": ("onnxruntime",), "onnxruntime-genai-cuda": ("onnxruntime-genai",)}
_EXTRA = re.compile(r"extra == '(\w+)'")


@dataclass(frozen=True, kw_only=True)
class Package:
    """One package: `extra` brings it (None: tokcarve itself does), `least` is the version that is wanted."""

    name: str
    extra: str | None
    least: str
    found: str | None

    @property
    def works(self) -> bool:
        """Whether it is here and new enough."""
        return self.found is not None and _number(self.found) >= _number(self.least)

    @property
    def install(self) -> str:
        """The command that brings it."""
        return "pip install tokcarve" if self.extra is None else f"pip install 'tokcarve[{self.extra}]'"

    def record(self) -> dict[str, Any]:
        """As JSON."""
        return {**asdict(self), "works": self.works}


def known_packages() -> tuple[Package, ...]:
    """Every package that tokcarve's own metadata names for this system, but those of the extra `dev`; where it is not
    installed, only itself."""
    try:
        named = importlib.metadata.requires("tokcarve") or ()
    except importlib.metadata.PackageNotFoundError:
        return (Package(name="tokcarve", extra=None, least="0", found=None),)
    found = []
    for requirement in named:
        match = _REQUIREMENT.fullmatch(requirement.replace(" ;", ";"))
        marker = (match["marker"] or "") if match else ""
        extra = _EXTRA.search(marker)
        if match is None or not _for_this_system(marker) or (extra is not None and extra[1] == "dev"):
            continue
        found.append(
            Package(
                name=match["name"],
                extra=None if extra is None else extra[1],
                least=match["least"],
                found=_version(match["name"]),
            )
        )
    return tuple(sorted(found, key=lambda one: (one.extra is not None, one.extra or "", one.name)))


def _for_this_system(marker: str) -> bool:
    darwin = sys.platform == "darwin"
    return not (("!= 'darwin'" in marker and darwin) or ("== 'darwin'" in marker and not darwin))


def _version(name: str) -> str | None:
    """The version of a package whose module Python finds, by whichever distribution brings it; None without one."""
    try:
        if importlib.util.find_spec(_MODULES.get(name, name.replace("-", "_"))) is None:
            return None
    except ModuleNotFoundError:
        return None
    for one in (name, *_OTHERS.get(name, ())):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(one)
    return None


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version.partition("+")[0])[:3])
