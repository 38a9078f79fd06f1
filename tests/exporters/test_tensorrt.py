"""Asking TensorRT: what counts as a problem, what happens without it or when it crashes, and engines."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from onnx.parser import parse_model

from tokcarve.exporters import tensorrt
from tokcarve.exporters.build_script import SCRIPT
from tokcarve.exporters.device.boards import find_target
from tokcarve.exporters.tensorrt import build_engine, check_with_rtx, gpu_for
from tokcarve.exporters.trt import prove_trt
from tokcarve.passes.errors import ExportError

CLEAN = "g (float[1,4] x) => (float[1,4] y) { y = Relu(x) }"
BAD = {
    "an input that nothing reads": "g (float[1,4] x, float[1,4] z) => (float[1,4] y) { y = Relu(x) }",
    "a shape that depends on data": "g (float[1,4] x) => (int64[2,n] y) { y = NonZero(x) }",
    "more than TopK can": (
        "g (float[1,5000] x) => (float[1,4000] y, int64[1,4000] i) <int64[1] k = {4000}> { y, i = TopK(x, k) }"
    ),
    "a count that is computed": "g (float[1,5] x, int64[1] k) => (float[1,n] y, int64[1,n] i) { y, i = TopK(x, k) }",
    "a scatter that adds": (
        "g (float[1,5] x, int64[1,2] i, float[1,2] u) => (float[1,5] y) "
        '{ y = ScatterElements<axis=1, reduction="add">(x, i, u) }'
    ),
}


def write(path: Path, text: str, opset: int = 18) -> Path:
    path.write_bytes(parse_model(f'<ir_version: 10, opset_import: ["" : {opset}]> {text}').SerializeToString())
    return path


@pytest.mark.tensorrt
def test_a_clean_graph_passes(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    report = check_with_rtx(write(tmp_path / "clean.onnx", CLEAN))
    assert report.ran
    assert report.passed, report.problems
    assert report.engine_bytes > 0
    assert report.tool.startswith("tensorrt-rtx ")


@pytest.mark.tensorrt
@pytest.mark.parametrize("what", BAD)
def test_a_bad_graph_fails(what: str, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    report = check_with_rtx(write(tmp_path / "bad.onnx", BAD[what]))
    assert report.ran
    assert not report.passed
    assert report.problems


@pytest.mark.tensorrt
def test_a_length_that_attention_ignores_is_no_engine(tmp_path: Path) -> None:
    """TensorRT builds it, says only that an input is unused, and then attends to the padding."""
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    shape = "float16[1,2,4,16]"
    text = f"g ({shape} q, {shape} k, {shape} v, int64[1] n) => ({shape} y) {{ y = Attention(q, k, v, , , , n) }}"
    report = check_with_rtx(write(tmp_path / "padded.onnx", text, opset=24))
    assert report.engine_bytes > 0
    assert not report.passed
    assert report.problems[0] == "Unused Input: n"
    without = text.replace(", int64[1] n", "").replace(", , , , n", "")
    assert check_with_rtx(write(tmp_path / "plain.onnx", without, opset=24)).passed


@pytest.mark.tensorrt
def test_a_weight_that_is_clamped_is_no_engine(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    text = "g (float[1,2] x) => (float[1,2] y) <double[1,2] w = {%s, 1.0}> { f = Cast<to=1>(w) y = Mul(x, f) }"
    report = check_with_rtx(write(tmp_path / "large.onnx", text % "1e300"))
    assert not report.passed
    assert "Clamping" in report.problems[0]
    assert check_with_rtx(write(tmp_path / "small.onnx", text % "1e30")).passed


@pytest.mark.parametrize(
    ("said", "fatal"),
    [
        ("Unused Input: z", True),
        ("Weight at index 0: 1e+300 is out of range. Clamping to: 3.40282e+38", True),
        ("Your ONNX model has INT64 weights. Attempting to cast down to INT32.", True),
        ("Make sure input input_ids has Int64 binding.", False),
    ],
)
def test_warnings_of_wrong_results_are_problems_and_others_are_not(
    said: str, fatal: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fields = {"version": "0", "parsed": True, "errors": [], "warnings": [said], "dynamic": [], "bytes": 4}
    fields |= {"seconds": 0.1, "peak_mib": 1.0, "loaded": None, "load_errors": []}
    done = SimpleNamespace(returncode=0, stdout=json.dumps(fields), stderr="")
    monkeypatch.setattr(tensorrt.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(tensorrt.subprocess, "run", lambda *args, **kwargs: done)
    assert check_with_rtx(tmp_path / "any.onnx").problems == ((said,) if fatal else ())


def test_without_the_checker_nothing_is_claimed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    graph = write(tmp_path / "clean.onnx", CLEAN)
    report = check_with_rtx(graph)
    assert (report.ran, report.passed) == (False, False)
    assert "pip install" in report.problems[0]
    outcome = prove_trt(tmp_path, {"clean.onnx": 0}, tmp_path / "trt")
    assert any("no graph was parsed or built" in text for text in outcome.not_checked)
    assert not any("tensorrt-rtx" in check.name for check in outcome.checks)


@pytest.mark.parametrize(
    ("code", "output", "expected"),
    [
        (-11, "", "crashed (signal 11)"),
        (1, "", "it said nothing"),
        (0, "not json", "the builder stopped"),
    ],
)
def test_a_builder_that_dies_is_a_problem_and_not_ours(
    code: int, output: str, expected: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    done = SimpleNamespace(returncode=code, stdout=output, stderr="")
    monkeypatch.setattr(tensorrt.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(tensorrt.subprocess, "run", lambda *args, **kwargs: done)
    report = check_with_rtx(tmp_path / "any.onnx")
    assert not report.passed
    assert expected in report.problems[0]


def test_an_engine_that_was_refused_is_not_left(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def run(command: list[str], **kwargs: Any) -> SimpleNamespace:
        Path(command[-2]).write_bytes(b"half")
        said = '{"version": "0", "parsed": true, "errors": ["K is too large"], "warnings": [], "dynamic": [], '
        return SimpleNamespace(
            returncode=0, stdout=said + '"bytes": 4, "seconds": 0.1, "peak_mib": 1.0, "loaded": null}', stderr=""
        )

    monkeypatch.setattr(tensorrt.subprocess, "run", run)
    with pytest.raises(ExportError, match="K is too large"):
        build_engine(tmp_path / "any.onnx", tmp_path / "any.engine", tmp_path / "timing.cache")
    assert not (tmp_path / "any.engine").exists()


@pytest.mark.parametrize(
    ("target", "capability", "version", "here"),
    [
        (None, (9, 0), "11.4.0.106", True),
        ("orin", (8, 7), "10.3.0", True),
        ("orin", (8, 7), "11.4.0.106", True),
        ("orin@10.3", (8, 7), "10.16.1", False),
        ("orin", (9, 0), "10.3.0", False),
        ("thor", (11, 0), "10.3.0", False),
    ],
)
def test_engines_are_built_for_the_gpu_that_is_meant(
    target: str | None, capability: tuple[int, int], version: str, here: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensorrt.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(tensorrt.importlib.metadata, "version", lambda name: version)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda: capability)
    assert gpu_for(find_target(target) if target is not None else None) == here


def test_without_tensorrt_a_script_is_written_and_said(tmp_path: Path) -> None:
    if gpu_for(None):
        pytest.skip("engines can be built here")
    write(tmp_path / "clean.onnx", CLEAN)
    outcome = prove_trt(tmp_path, {"clean.onnx": 0}, tmp_path / "trt")
    assert "No TensorRT engine was built here" in outcome.said
    assert outcome.engines == ()
    assert outcome.script == SCRIPT
    assert "no TensorRT engine was built, so that none was compared with torch" in outcome.not_checked
    assert (tmp_path / "trt" / SCRIPT).stat().st_mode & 0o100


def test_findings_of_the_lint_are_failed_checks(tmp_path: Path) -> None:
    write(tmp_path / "bad.onnx", BAD["more than TopK can"])
    outcome = prove_trt(tmp_path, {"bad.onnx": 0}, tmp_path / "trt")
    failed = [check for check in outcome.checks if not check.passed]
    assert any("topk-limit" in check.detail for check in failed)
