"""The latency staircase by hand: where its steps are, and what is suggested."""

from dataclasses import replace

import pytest
from toy_face import write_toy

from tokcarve.cli.bare import BareOptions
from tokcarve.exporters.device.intervals import Interval
from tokcarve.exporters.device.rounds import Effort
from tokcarve.exporters.device.session import open_face
from tokcarve.exporters.device.sweep import Point, Staircase, counts_around, sweep_tokens
from tokcarve.exporters.device.timing import distribution
from tokcarve.passes.errors import ExportError


def point(tokens: int, costs: float, sure: float = 0.005) -> Point:
    """A prefill that takes so many times the time of 64 tokens, known to `sure`, with FLOPs like its tokens."""
    faster = 1 / costs
    interval = Interval(low=faster * (1 - sure), high=faster * (1 + sure))
    return Point(
        tokens=tokens,
        rows=tokens + 64,
        milliseconds=distribution([10 * costs]),
        faster=replace(distribution([faster]), interval=interval),
        computes=tokens / 64,
    )


def stairs(*costs: tuple[int, float]) -> Staircase:
    return Staircase(wish=64, points=tuple(point(*one) for one in costs), tolerance=0.03)


def test_a_staircase_has_steps_and_free_tokens() -> None:
    # 72 to 96 are free behind 64; at 104 a tile of a third more begins; 56 is a step below
    found = stairs((56, 0.7), (64, 1.0), (72, 1.0), (80, 1.01), (96, 1.02), (104, 1.35), (112, 1.36))
    assert found.steps == (64, 104) and found.suggested == 96
    record = found.record()
    assert [one["tokens"] for one in record["points"] if one["step"]] == [64, 104]
    assert record["points"][5]["over_wish"] == pytest.approx(1.35) and record["wish"] == 64


def test_what_may_be_noise_is_no_step() -> None:
    found = Staircase(wish=64, points=(point(64, 1.0), point(72, 1.35, 0.4), point(80, 1.36)), tolerance=0.03)
    assert found.steps == () and [one["tight"] for one in found.record()["points"]] == [True, False, True]


def test_a_ramp_has_no_steps_and_nothing_is_free() -> None:
    found = stairs((56, 0.875), (64, 1.0), (72, 1.125), (80, 1.25))
    assert found.steps == () and found.suggested == 64


def test_fewer_tokens_are_never_suggested() -> None:
    assert stairs((48, 1.0), (64, 1.0), (72, 1.5)).suggested == 64


def test_counts_are_tiles_around_the_wish() -> None:
    assert counts_around(64, 576) == (56, 64, 72, 80, 88, 96, 112, 128)
    assert counts_around(6, 20) == (6, 14)
    with pytest.raises(ExportError, match="all 576 visual tokens of this artifact enter the language model"):
        counts_around(576, 576)


def test_a_sweep_of_the_wish_alone_is_refused(tmp_path_factory: pytest.TempPathFactory) -> None:
    directory = tmp_path_factory.mktemp("toy")
    write_toy(directory)
    with pytest.raises(ExportError, match="nothing to compare 4 tokens with; name other counts, as 4,12"):
        sweep_tokens(open_face(directory), 4, [4], Effort(), lambda *_: None)


@pytest.mark.parametrize(
    ("words", "read"),
    [
        (["--sweep-tokens"], ["--sweep-tokens", "auto"]),
        (["--sweep-tokens", "auto"], ["--sweep-tokens", "auto"]),
        (["--sweep-tokens", "64,72", "dir"], ["--sweep-tokens", "64,72", "dir"]),
        (["dir", "--sweep-tokens", "--json"], ["dir", "--sweep-tokens", "auto", "--json"]),
        (["--sweep-tokens", "dir"], ["--sweep-tokens", "auto", "dir"]),
    ],
)
def test_the_option_may_stand_alone(words: list[str], read: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []
    monkeypatch.setattr("typer.core.TyperCommand.parse_args", lambda self, ctx, args: seen.append(args) or args)
    BareOptions("profile").parse_args(None, words)
    assert seen == [read]
