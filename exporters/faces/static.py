"""The faces of static graphs: `ort`, four graphs per side that ONNX Runtime runs, and `trt`, the same for TensorRT.

A budget set adds four graphs per further budget, which read the same weights, and a router.
"""

import importlib
from collections.abc import Iterator
from dataclasses import replace
from typing import ClassVar

from tokcarve.exporters import verify
from tokcarve.exporters.device import compare
from tokcarve.exporters.device.boards import find_target
from tokcarve.exporters.device.compare import Check
from tokcarve.exporters.device.face import ROUTER
from tokcarve.exporters.device.pipeline import Pipeline
from tokcarve.exporters.device.session import Face
from tokcarve.exporters.engine_check import EngineFace
from tokcarve.exporters.faces.kind import FaceKind, Proof, Request, Work
from tokcarve.exporters.golden import Golden
from tokcarve.exporters.limits import trt_refused
from tokcarve.exporters.modules import FaceGraph
from tokcarve.exporters.proving import CPU, proving_face, unshown
from tokcarve.exporters.source import Source
from tokcarve.exporters.trt import prove_trt
from tokcarve.recipes.artifact import Artifact

__all__ = ["Ort", "Trt"]


class Ort(FaceKind):
    """Static graphs for ONNX Runtime, `run` and `profile`."""

    name: ClassVar[str] = "ort"
    about: ClassVar[str] = "static graphs for ONNX Runtime, run and profile"

    def pieces(self, source: Source) -> Iterator[tuple[str, FaceGraph]]:
        """Four graphs per budget and of the whole model, and the router of a set."""
        return source.pieces()

    def prove(self, work: Work) -> Proof:
        """ONNX Runtime against torch on the golden samples of every budget."""
        left, face = ["no run on an edge device"], proving_face(work.root, work.draft, CPU)
        checks, open_questions = _compare(face, work)
        left += open_questions
        if work.goldens:
            left[:0] = [*unshown(face), "ONNX Runtime ran on the CPU; no GPU provider was tried"]
        return Proof(checks=tuple(checks), not_checked=tuple(left))


class Trt(Ort):
    """The same graphs for TensorRT: checked by its rules, with engines or the script that builds them."""

    name: ClassVar[str] = "trt"
    about: ClassVar[str] = "the same static graphs for TensorRT, with engines or the script that builds them"

    def refuses(self, artifact: Artifact, request: Request) -> str | None:
        """What TensorRT cannot do, on the target where one is named."""
        return trt_refused(artifact.manifest, request)

    def prove(self, work: Work) -> Proof:
        """Lint, and a build on the CPU where tensorrt-rtx is here; and what ONNX Runtime makes of the graphs, unless
        the export has that from `ort`."""
        proof = Proof() if Ort.name in work.request.faces else super().prove(work)
        weights = {graph.name: graph.weight_bytes for graph in self.graphs(work)}
        target = find_target(work.request.target) if work.request.target is not None else None
        found = prove_trt(work.onnx, weights, work.directory / self.name, target, work.draft.opset)
        checks, left = proof.checks + found.checks, proof.not_checked + found.not_checked
        if found.engines and not (target is not None and target.ahead):
            engines = EngineFace(artifact=work.root, record=work.draft, trt=importlib.import_module("tensorrt"))
            made, open_questions = _compare(engines, work)
            checks += tuple(replace(one, name=f"TensorRT engines, {one.name}") for one in made)
            left += tuple(f"TensorRT engines, {text}" for text in open_questions)
        return replace(found, checks=checks, not_checked=left)


def _compare(face: Face, work: Work) -> tuple[list[Check], list[str]]:
    """What runs the graphs of `face` against torch, and what rounding leaves open; CheckError for the first budget
    where it differs."""
    source, checks, left = work.source, list[Check](), list[str]()
    for one, golden in work.goldens:
        further = one is not source.largest
        label = f"pruned to {one.budget}" if further else "pruned"
        made = _numbers(Pipeline(face, baseline=False, budget=one.budget if further else None), golden, label)
        left += compare.uncompared(made, label)
        if not further:
            made += _numbers(Pipeline(face, baseline=True), golden, "unpruned")
            if source.router is not None and work.router is not None:
                made.append(verify.check_router(face.open(ROUTER), work.router, golden.samples, work.draft.dtype))
        verify.require(made)
        checks += made
    return checks, left


def _numbers(pipeline: Pipeline, golden: Golden, side: str) -> list[Check]:
    expected = golden.plain if pipeline.baseline else golden.pruned
    made = verify.check_numbers(pipeline, golden.samples, expected, side=side, dtype=pipeline.record.dtype)
    pipeline.release()
    return made
