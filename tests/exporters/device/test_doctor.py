"""What doctor finds: things that are started, files that are read, packages that lack; and what follows from that."""

import json
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from device_shell import on_a_device
from spoken import documented, said

from tokcarve.exporters.device import host, packages, starts
from tokcarve.exporters.device.doctor import Findings, Started, abilities
from tokcarve.exporters.device.host import Gpu, Host, gpus_of, hub_state, jetson_at, this_host
from tokcarve.exporters.device.packages import Package, known_packages

VERBS = ("compress", "run", "recipes")
HOST = Host(system="Linux", python="3.11", cores=2, memory=8.0, memory_free=4.0, disk_free=9.0, gpus=(), jetson=None)
CPU = Started(name="CPUExecutionProvider", version="1.31", why=None)
TORCH = Package(name="torch", extra="compress", least="2.9", found="2.13.0+cpu")


def found(**changes: object) -> Findings:
    usual: dict[str, object] = {
        "host": HOST,
        "packages": (TORCH,),
        "providers": (CPU,),
        "tensorrt": (Started(name="tensorrt", version=None, why="No module named 'tensorrt'"),),
        "hub": (True, "reachable"),
    }
    return Findings(**{**usual, **changes})  # type: ignore[arg-type]


def works(findings: Findings) -> dict[str, str | None]:
    return {one.name: one.why for one in abilities(findings, VERBS)}


def test_the_hand_made_model_is_a_model() -> None:
    model = onnx.load_from_string(starts.one_node())
    onnx.checker.check_model(model, full_check=True)
    session = ort.InferenceSession(starts.one_node(), providers=["CPUExecutionProvider"])
    x = np.array([1, 2, 3, 4], np.float32)
    assert session.run(None, {"x": x})[0].tolist() == [2, 4, 6, 8]


def test_what_starts_and_what_does_not() -> None:
    names, why = starts.providers()
    assert "CPUExecutionProvider" in names and why is None
    assert starts.starts("CPUExecutionProvider") == (ort.__version__, None)
    version, why = starts.starts("NoSuchExecutionProvider")
    assert version == ort.__version__ and why is not None and "CPUExecutionProvider in its place" in why


def test_a_process_that_crashes_or_says_nothing_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    for script, words in (
        ("import os; os.kill(os.getpid(), 11)", "it crashed (signal 11)"),
        ("raise SystemExit('no library')", "no library"),
    ):
        monkeypatch.setattr(starts, "_command", lambda what, script=script: [sys.executable, "-c", script])
        assert starts.starts("anything") == (None, words)


def test_packages_are_those_of_the_metadata() -> None:
    by_name = {one.name: one for one in known_packages()}
    assert by_name["torch"].extra == "compress" and by_name["numpy"].extra is None
    assert by_name["torch"].works and "pytest" not in by_name, "what only developers need is left out"
    assert by_name["ray"].install == "pip install 'tokcarve[ray]'"


def test_versions_are_compared_as_numbers() -> None:
    def old(found: str | None, least: str) -> bool:
        return not Package(name="x", extra=None, least=least, found=found).works

    assert not old("2.13.0+cpu", "2.9") and not old("2.9", "2.9")
    assert old("2.8.1", "2.9") and old(None, "2.9")


def test_a_package_without_its_module_is_not_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages.importlib.util, "find_spec", lambda name: None)
    assert all(one.found is None for one in known_packages())


def test_without_metadata_tokcarve_itself_is_what_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(name: str) -> None:
        raise packages.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(packages.importlib.metadata, "requires", unknown)
    (one,) = known_packages()
    assert (one.name, one.works, one.install) == ("tokcarve", False, "pip install tokcarve")


def test_nvidia_smi_is_read() -> None:
    text = "NVIDIA H200, 570.1, 143771, 143000\nNVIDIA GeForce RTX 3060, 570.1, [N/A], [N/A]\n\n"
    first, second = gpus_of(text)
    assert first == Gpu(name="NVIDIA H200", driver="570.1", memory=143771 / 1024, free=143000 / 1024)
    assert (second.memory, second.free) == (None, None)
    assert str(first) == "NVIDIA H200, driver 570.1, 139.6 of 140.4 GiB free"
    assert str(second) == "NVIDIA GeForce RTX 3060, driver 570.1"
    assert gpus_of("") == gpus_of("No devices were found\n") == ()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic", "L4T 36.4.3 (JetPack 6)"),
        ("# R38 (release), REVISION: 2.0, GCID: 1", "L4T 38.2.0 (JetPack 7.0 or 7.1)"),
        ("# R99 (release), REVISION: 1.0", "L4T 99.1.0"),
        ("something else", "a Jetson whose release is not known"),
    ],
)
def test_a_jetson_is_known_by_its_release(text: str, said: str, tmp_path: Path) -> None:
    assert jetson_at(tmp_path) is None
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "nv_tegra_release").write_text(text)
    assert jetson_at(tmp_path) == said


def test_a_hub_is_not_asked_where_it_is_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("the hub was asked")

    monkeypatch.setattr(host.urllib.request, "urlopen", never)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert hub_state() == (
        False,
        "offline, because HF_HUB_OFFLINE is set; models come from the local cache or a directory",
    )


def test_a_hub_that_answers_or_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)

    def fails(error: Exception) -> None:
        def ask(*_: object, **__: object) -> None:
            raise error

        monkeypatch.setattr(host.urllib.request, "urlopen", ask)

    fails(host.urllib.error.HTTPError("x", 403, "no", None, None))  # type: ignore[arg-type]
    assert hub_state() == (True, "reachable")
    fails(host.urllib.error.URLError("no route"))
    assert hub_state()[0] is False and "not reachable (no route)" in hub_state()[1]


def test_this_machine_has_memory_and_a_disk() -> None:
    here = this_host()
    assert 0 < here.memory_free <= here.memory and here.disk_free > 0 and here.cores >= 1


def test_all_is_well() -> None:
    assert works(found()) == {
        **dict.fromkeys(("compress", "run", "recipes", "run --runtime torch", "calibration on a dataset on disk")),
        **dict.fromkeys(("calibration --trials (search)", "calibration --on ray", "faces ort, hf and trt, to write")),
        "face genai, to prove": None,
        "TensorRT for RTX: check graphs, build engines for rtx": "this ONNX Runtime has no tensorrt_rtx",
        "TensorRT: build engines for this GPU": "No module named 'tensorrt'",
        "answers on a GPU (CUDA)": "this ONNX Runtime has no CUDAExecutionProvider",
        "models from a hub": None,
    }


def test_what_is_missing_is_named_with_what_brings_it() -> None:
    missing = Package(name="torch", extra="compress", least="2.9", found=None)
    old = Package(name="ray", extra="ray", least="2.40", found="2.1")
    by_name = {one.name: one for one in abilities(found(packages=(missing, old)), VERBS)}
    assert by_name["compress"].why == "not installed: torch"
    assert by_name["compress"].install == "pip install 'tokcarve[compress]'"
    assert by_name["calibration --on ray"].why == "not installed: torch; ray 2.1 is older than 2.40"
    assert by_name["run"].why is None and by_name["recipes"].why is None


def test_without_a_working_onnx_runtime_nothing_runs() -> None:
    broken = Started(name="CPUExecutionProvider", version=None, why="it crashed (signal 4)")
    said = works(found(providers=(broken,)))
    assert said["run"] == "it crashed (signal 4)"
    assert said["recipes"] is None, "recipes are read without it"


def test_on_a_device_without_torch_it_says_so_and_leaves_with_zero() -> None:
    done = on_a_device("doctor", "--json")
    assert done.returncode == 0, done.stderr
    fields = json.loads(done.stdout)
    assert set(fields) - {"format", "verb"} == documented("doctor")
    able = {one["name"]: one for one in fields["works"]}
    assert able["run"]["works"] and able["doctor"]["works"] and not able["compress"]["works"]
    assert "torch" in able["compress"]["why"] and able["compress"]["install"] == "pip install 'tokcarve[compress]'"
    assert [one["name"] for one in fields["providers"] if one["works"]][-1] == "CPUExecutionProvider"


def test_the_table_names_what_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tokcarve.exporters.device.doctor.examine", lambda: found(packages=()))
    monkeypatch.setenv("COLUMNS", "120")
    text = said("doctor")
    for words in ("CPUExecutionProvider", "reachable", "No module named 'tensorrt'", "compress", "9.0 GiB free"):
        assert words in text


def test_another_distribution_of_onnx_runtime_is_onnx_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        if name == "onnxruntime-gpu":
            raise packages.importlib.metadata.PackageNotFoundError(name)
        return "99.9"

    monkeypatch.setattr(packages.importlib.metadata, "version", version)
    found = {one.name: one for one in known_packages()}
    assert found["onnxruntime-gpu"].works and found["onnxruntime-gpu"].found == "99.9"
