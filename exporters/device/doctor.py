"""What works on this machine and what does not, each with why and with what to install.

Nothing is taken on trust: providers and TensorRT are started, in processes of their own.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from tokcarve import __version__
from tokcarve.exporters.device.host import Host, hub_state, this_host
from tokcarve.exporters.device.packages import Package, known_packages
from tokcarve.exporters.device.starts import providers, starts

__all__ = ["Ability", "Findings", "Started", "abilities", "examine"]

_CPU, _CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
_HOST_VERBS = ("compress", "export", "inspect", "methods", "plan", "sweep")
"""Verbs that need torch; all others need only what every device has, and most of them ONNX Runtime."""
_PLAIN_VERBS = ("compare", "doctor", "recipes")
_TENSORRT = {"tensorrt": "trt", "tensorrt_rtx": "check"}
"""The modules of TensorRT, and the extra that brings each."""


@dataclass(frozen=True, kw_only=True)
class Started:
    """Something that was tried: its version where it said one, and why it does not work, None where it does."""

    name: str
    version: str | None
    why: str | None


@dataclass(frozen=True, kw_only=True)
class Ability:
    """Something that tokcarve does, and why it cannot be done here, None where it can; install: what would help."""

    name: str
    why: str | None = None
    install: str | None = None

    def record(self) -> dict[str, Any]:
        """As JSON."""
        return {"name": self.name, "works": self.why is None, "why": self.why, "install": self.install}


@dataclass(frozen=True, kw_only=True)
class Findings:
    """All that was found."""

    host: Host
    packages: tuple[Package, ...]
    providers: tuple[Started, ...]
    tensorrt: tuple[Started, ...]
    hub: tuple[bool, str]

    def record(self, verbs: Sequence[str]) -> dict[str, Any]:
        """As JSON, with what of `verbs` and of everything else works."""
        return {
            "version": __version__,
            "machine": self.host.record(),
            "providers": [_said(one) for one in self.providers],
            "tensorrt": [_said(one) for one in self.tensorrt],
            "packages": [one.record() for one in self.packages],
            "hub": {"reachable": self.hub[0], "found": self.hub[1]},
            "works": [one.record() for one in abilities(self, verbs)],
        }


def examine() -> Findings:
    """Look at this machine; takes some seconds, for what is there is started."""
    names, why = providers()
    tried = [Started(name=name, version=version, why=said) for name in names for version, said in (starts(name),)]
    if why is not None:
        tried = [Started(name=_CPU, version=None, why=why)]
    return Findings(
        host=this_host(),
        packages=known_packages(),
        providers=tuple(tried),
        tensorrt=tuple(
            Started(name=name, version=version, why=said) for name in _TENSORRT for version, said in (starts(name),)
        ),
        hub=hub_state(),
    )


def abilities(found: Findings, verbs: Sequence[str]) -> tuple[Ability, ...]:
    """Every verb, face and way of working, and whether it works here."""
    by_name = {one.name: one for one in (*found.providers, *found.tensorrt)}
    lacking = {extra: _lacking(found.packages, extra) for extra in {one.extra for one in found.packages}}

    def needs(name: str, *extras: str | None) -> Ability:
        short = [one for extra in (None, *extras) for one in lacking.get(extra, ())]
        if not short:
            return Ability(name=name)
        return Ability(name=name, why=_short(short), install=", ".join(dict.fromkeys(one.install for one in short)))

    def tried(name: str, what: str, install: str | None) -> Ability:
        one = by_name.get(what)
        why = f"this ONNX Runtime has no {what}" if one is None else one.why
        return Ability(name=name, why=why, install=None if why is None else install)

    cpu = tried("ONNX Runtime", _CPU, "pip install tokcarve")

    def verb(name: str) -> Ability:
        if name in _HOST_VERBS:
            return needs(name, "compress")
        return needs(name) if cpu.why is None or name in _PLAIN_VERBS else replace(cpu, name=name)

    return (
        *map(verb, verbs),
        needs("run --runtime torch", "compress"),
        needs("calibration on a dataset on disk", "compress", "datasets"),
        needs("calibration --trials (search)", "compress", "search"),
        needs("calibration --on ray", "compress", "ray"),
        needs("faces ort, hf and trt, to write", "compress"),
        needs("face genai, to prove", "compress", "genai"),
        tried("TensorRT for RTX: check graphs, build engines for rtx", "tensorrt_rtx", "pip install 'tokcarve[check]'"),
        tried("TensorRT: build engines for this GPU", "tensorrt", _tensorrt(found)),
        tried("answers on a GPU (CUDA)", _CUDA, _cuda(found)),
        Ability(name="models from a hub", why=None if found.hub[0] else found.hub[1]),
    )


def _lacking(packages: Iterable[Package], extra: str | None) -> tuple[Package, ...]:
    return tuple(one for one in packages if one.extra == extra and not one.works)


def _short(packages: Sequence[Package]) -> str:
    missing = ", ".join(one.name for one in packages if one.found is None)
    old = [f"{one.name} {one.found} is older than {one.least}" for one in packages if one.found is not None]
    return "; ".join([f"not installed: {missing}"] * bool(missing) + old)


def _cuda(found: Findings) -> str:
    if not found.host.gpus and found.host.jetson is None:
        return "a machine with an NVIDIA GPU and its driver"
    return "the CUDA and cuDNN libraries that this onnxruntime-gpu names"


def _tensorrt(found: Findings) -> str:
    if found.host.jetson is None:
        return "pip install 'tokcarve[trt]', where a GPU is"
    return "sudo apt install python3-libnvinfer, which JetPack brings"


def _said(one: Started) -> Mapping[str, Any]:
    return {**asdict(one), "works": one.why is None}
