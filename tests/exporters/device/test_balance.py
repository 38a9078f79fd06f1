"""What the machine can do: that the model written by hand is the one meant, and that its figures are figures."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from toy_face import write_toy

from tokcarve.exporters.device import balance
from tokcarve.exporters.device.balance import Balance, measure_balance
from tokcarve.exporters.device.session import open_face


def test_the_chain_is_an_onnx_model_of_products(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(balance, "_WIDTH", 4)
    monkeypatch.setattr(balance, "_MATRICES", 3)
    matrix = np.arange(16, dtype=np.float32).reshape(4, 4)
    model = onnx.load_from_string(balance._chain(1, matrix.tobytes()))
    onnx.checker.check_model(model)
    assert [node.op_type for node in model.graph.node] == ["MatMul"] * 3
    assert [list(node.input) for node in model.graph.node] == [
        ["rows", "matrix.0"],
        ["rows.0", "matrix.1"],
        ["rows.1", "matrix.2"],
    ]
    assert len({one.name for one in model.graph.initializer}) == 3
    assert all(np.array_equal(numpy_helper.to_array(one), matrix) for one in model.graph.initializer)


def test_figures_are_those_of_the_machine(tmp_path: Path) -> None:
    write_toy(tmp_path)
    found = measure_balance(open_face(tmp_path, threads=1))
    assert found is not None
    assert 1e8 < found.flops < 1e16 and 1e8 < found.bytes < 1e14  # any computer there is
    # one row computes two FLOPs per four bytes; a machine that is no better at many rows has no caches and no registers
    assert found.flops_per_byte > 0.5


def test_balance_by_hand() -> None:
    one = Balance(flops=20e9, bytes=4.0 * 2**30)
    assert one.flops_per_byte == pytest.approx(20e9 / 2**32)
    assert one.record() == {
        "gflops_per_second": pytest.approx(20), "gib_per_second": pytest.approx(4),
        "flops_per_byte": one.flops_per_byte,
    }  # fmt: skip


def test_more_rows_are_tried_while_they_help(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def spent(run: Any) -> float:
        (given,) = (cell.cell_contents for cell in run.__closure__ if isinstance(cell.cell_contents, np.ndarray))
        seen.append(len(given))
        # twice the rows in the same time, up to 256; from there on in twice the time
        return max(1.0, len(given) / 256)

    monkeypatch.setattr(balance, "_best", spent)
    write_toy(tmp_path)
    found = balance._measured.__wrapped__("float32", 1, open_face(tmp_path, threads=1).providers)
    assert seen == [64, 128, 256, 512, 1]
    assert found.flops == 8 * 2 * 256 * 2048**2
