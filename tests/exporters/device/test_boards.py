"""What a target stands for, and what boards cannot do."""

import pytest

from tokcarve.exporters.device.boards import BOARDS, RELEASES, find_target, opset_refused, precision_refused
from tokcarve.passes.errors import ExportError


def test_boards_run_releases_of_the_table() -> None:
    assert {one for board in BOARDS.values() for one in board.releases} == set(RELEASES)
    assert all(board.name == name for name, board in BOARDS.items())


@pytest.mark.parametrize(
    ("text", "releases"),
    [
        ("orin", ("10.3", "10.16", "11")),
        ("orin-nano", ("10.3", "10.16")),
        ("orin@10.3", ("10.3",)),
        ("orin@jp6", ("10.3",)),
        ("orin@jp6.2", ("10.3",)),
        ("orin@jp7", ("10.16", "11")),
        ("orin@jp7.2.2+11.4.1", ("11",)),
        ("thor@10.13.3.9", ("10.13",)),
        ("thor@jp7.1", ("10.13",)),
        ("rtx", ("rtx-1.7",)),
        ("rtx@1.7", ("rtx-1.7",)),
        ("rtx@rtx-1.7", ("rtx-1.7",)),
    ],
)
def test_a_target_is_a_board_with_its_releases(text: str, releases: tuple[str, ...]) -> None:
    target = find_target(text)
    assert target.names == releases
    assert target.ahead == text.startswith("rtx")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("l4", ("no board 'l4'", "orin, orin-nx")),
        ("", ("no board ''",)),
        ("orin@10.13", ("no TensorRT 10.13 for a Jetson AGX Orin", "orin@10.3", "another board (thor)")),
        ("orin@jp6+11", ("no JetPack 6 with TensorRT 11", "TensorRT 10.3 (JetPack 6)")),
        ("orin-nx@11", ("no TensorRT 11 for a Jetson Orin NX", "(orin, thor)")),
        ("thor@10.3", ("no TensorRT 10.3 for a Jetson Thor",)),
        ("thor@jp6", ("no JetPack 6 for a Jetson Thor",)),
        ("orin@10", ("no TensorRT 10 for",)),
        ("orin@10.31", ("no TensorRT 10.31 for",)),
        ("orin@", ("no TensorRT ''",)),
        ("orin@jp", ("no JetPack",)),
    ],
)
def test_what_there_is_not_is_refused_with_what_there_is(text: str, words: tuple[str, ...]) -> None:
    with pytest.raises(ExportError) as error:
        find_target(text)
    assert all(word in str(error.value) for word in words), error.value
    assert str(error.value).startswith(f"--target {text}")


def test_tensor_cores_have_precisions_from_a_compute_capability_on() -> None:
    assert [(name, board.fp8, board.fp4) for name, board in BOARDS.items()] == [
        ("orin", False, False),
        ("orin-nx", False, False),
        ("orin-nano", False, False),
        ("thor", True, True),
        ("rtx", False, False),
    ]


@pytest.mark.parametrize("precision", ["fp8", "nvfp4"])
def test_precisions_that_a_board_has_not_are_refused(precision: str) -> None:
    refusal = precision_refused(find_target("orin"), precision)
    assert refusal is not None
    assert f"--precision {precision}" in refusal
    assert "8.7" in refusal
    assert "thor" in refusal
    assert precision_refused(find_target("thor"), precision) is None


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8", "int4"])
def test_precisions_that_every_board_has_are_not(precision: str) -> None:
    assert all(precision_refused(find_target(name), precision) is None for name in BOARDS)


def test_opsets_that_a_release_does_not_read_are_refused() -> None:
    assert opset_refused(find_target("orin").releases, 20) is None
    assert opset_refused(find_target("orin@10.16").releases, 23) is None
    refusal = opset_refused(find_target("orin").releases, 21)
    assert refusal is not None
    assert "--opset 21" in refusal
    assert "TensorRT 10.3" in refusal
    assert "--opset 20" in refusal
