"""The boards that TensorRT graphs are written for, and the TensorRT releases that each can run: one table of both.

The lint takes its versions from here, `export --target` its refusals, and the build script what it says.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from tokcarve.passes.errors import ExportError

__all__ = [
    "BOARDS",
    "RELEASES",
    "Board",
    "Release",
    "Target",
    "find_target",
    "opset_refused",
    "precision_refused",
    "readers",
    "unread",
]


@dataclass(frozen=True, kw_only=True)
class Release:
    """One TensorRT: `name` is what rules and targets call it, `version` how NVIDIA numbers it, `found` where.

    jetpacks: those that it runs on, none off Jetson; opset: the newest ONNX opset that it reads, None where no limit
    below what torch writes is known.
    """

    name: str
    version: str
    found: str
    jetpacks: tuple[str, ...] = ()
    opset: int | None = None

    @property
    def number(self) -> str:
        """Its version without the name of the product."""
        return self.name.removeprefix("rtx-")

    def __str__(self) -> str:
        product = "TensorRT" if self.number == self.name else "TensorRT for RTX"
        return f"{product} {self.number} ({self.found})"


RELEASES = {
    one.name: one
    for one in (
        # later operators have no importer there
        Release(name="10.3", version="10.3", found="JetPack 6", jetpacks=("6",), opset=20),
        Release(name="10.13", version="10.13.3.9", found="JetPack 7.0 and 7.1", jetpacks=("7.0", "7.1")),
        Release(name="10.16", version="10.16", found="JetPack 7.2", jetpacks=("7.2",)),
        Release(
            name="11", version="11.4.1", found="SBSA package on JetPack 7.2.2, and discrete GPUs", jetpacks=("7.2.2",)
        ),
        Release(name="rtx-1.7", version="1.7", found="PC"),
    )
}
"""Every TensorRT that graphs are checked for, by name, as NVIDIA's JetPack releases bring them."""

_NEEDS = {"fp8": (8, 9), "nvfp4": (10, 0), "mxfp8": (10, 0), "mxfp4": (10, 0), "fp4": (10, 0)}
"""The compute capability from which tensor cores have a precision; every board here has those that are not named."""


@dataclass(frozen=True, kw_only=True)
class Board:
    """What an engine runs on: compute capabilities (major, minor), the sizes of memory in GiB that it is sold with,
    the largest first and none where they differ too much, and the TensorRT releases that it can run, by name."""

    name: str
    title: str
    compute: tuple[tuple[int, int], ...]
    memory: tuple[int, ...]
    releases: tuple[str, ...]

    @property
    def fp8(self) -> bool:
        """Whether its tensor cores compute in 8-bit floats."""
        return self.computes_in("fp8")

    @property
    def fp4(self) -> bool:
        """Whether its tensor cores compute in 4-bit floats."""
        return self.computes_in("fp4")

    def computes_in(self, precision: str) -> bool:
        """Whether every GPU of this kind has tensor cores for a precision, named as `--precision` names it."""
        return min(self.compute) >= _NEEDS.get(precision, (0, 0))


_ORIN = (8, 7)
BOARDS = {
    one.name: one
    for one in (
        Board(
            name="orin",
            title="Jetson AGX Orin",
            compute=(_ORIN,),
            memory=(64, 32),
            releases=("10.3", "10.16", "11"),
        ),
        Board(name="orin-nx", title="Jetson Orin NX", compute=(_ORIN,), memory=(16, 8), releases=("10.3", "10.16")),
        Board(name="orin-nano", title="Jetson Orin Nano", compute=(_ORIN,), memory=(8, 4), releases=("10.3", "10.16")),
        Board(
            name="thor",
            title="Jetson Thor",
            compute=((11, 0),),
            memory=(128, 64),
            releases=("10.13", "10.16", "11"),
        ),
        Board(
            name="rtx",
            title="RTX GPU of a PC, Ampere and later",
            compute=((8, 6), (8, 9), (12, 0)),
            memory=(),
            releases=("rtx-1.7",),
        ),
    )
}
"""Every board, by the name that `--target` takes."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """A board with the releases that are meant, as `text` asked for them."""

    text: str
    board: Board
    releases: tuple[Release, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Of its releases."""
        return tuple(one.name for one in self.releases)

    @property
    def ahead(self) -> bool:
        """Whether its engines are built on the CPU of any machine, and not on the board."""
        return all(name.startswith("rtx-") for name in self.names)

    def __str__(self) -> str:
        return f"{self.board.title}, {' or '.join(map(str, self.releases))}"


def find_target(text: str) -> Target:
    """What BOARD[@WISH[+WISH]] stands for; a wish is a version of TensorRT (10.3) or of JetPack (jp6).

    Raises ExportError for a board that is not in the table and for what no JetPack of the board brings.
    """
    name, at, rest = text.partition("@")
    board = BOARDS.get(name)
    if board is None:
        raise ExportError(
            f"--target {text}: no board {name!r} is known; give one of {', '.join(BOARDS)}, and perhaps the TensorRT "
            "behind an @, as in orin@10.3"
        )
    left = [RELEASES[one] for one in board.releases]
    for wish in rest.split("+") if at else ():
        left = [one for one in left if _meets(one, wish)]
    if not left:
        raise ExportError(_impossible(text, board, rest))
    return Target(text=text, board=board, releases=tuple(left))


def _meets(release: Release, wish: str) -> bool:
    if wish.startswith("jp"):
        # JetPack 7 is 7.0 and whatever came after it, JetPack 6.2 is a 6
        return any(_part(wish[2:], one) or _part(one, wish[2:]) for one in release.jetpacks)
    return _part(release.number, wish.removeprefix("rtx-"))


def _part(short: str, long: str) -> bool:
    """Whether `long` is the version `short` or a closer name for one of it."""
    return bool(short) and f"{long}.".startswith(f"{short}.")


def _impossible(text: str, board: Board, wishes: str) -> str:
    """Why the board cannot be what was wished, with what it can and with the boards that could."""
    others = [one.name for one in BOARDS.values() if _possible(one, wishes)]
    elsewhere = f", or for another board ({', '.join(others)})" if others else ""
    has = "; ".join(str(RELEASES[one]) for one in board.releases)
    closest = ", ".join(f"{board.name}@{RELEASES[one].number}" for one in board.releases)
    wished = " with ".join(
        f"JetPack {one[2:]}" if one.startswith("jp") else f"TensorRT {one or repr(one)}" for one in _split(wishes)
    )
    return (
        f"--target {text}: there is no {wished} for a {board.title}, which runs {has}; export for one of these "
        f"({closest}){elsewhere}"
    )


def _possible(board: Board, wishes: str) -> bool:
    return any(all(_meets(RELEASES[one], wish) for wish in _split(wishes)) for one in board.releases)


def _split(wishes: str) -> list[str]:
    return wishes.split("+")


def precision_refused(target: Target, precision: str) -> str | None:
    """Why the target cannot run graphs of a precision (as `--precision` names it), and what it can; None if it can."""
    if target.board.computes_in(precision):
        return None
    major, minor = min(target.board.compute)
    could = [one.name for one in BOARDS.values() if one.computes_in(precision)]
    return (
        f"--precision {precision} is not for --target {target.text}: tensor cores have it from compute capability "
        f"{'.'.join(map(str, _NEEDS[precision]))}, and {target.board.title} has {major}.{minor}; take fp16, int8 or "
        f"int4, or a board that has it ({', '.join(could)})"
    )


def opset_refused(releases: Iterable[Release], opset: int, by_precision: str | None = None) -> str | None:
    """Which of the releases does not read an ONNX opset, and what to do; None where all do.

    `by_precision` says which precision asks for the opset, where it is not `--opset`.
    """
    for one in releases:
        if one.opset is not None and opset > one.opset:
            less = f"give --opset {one.opset} or less" if by_precision is None else "give another --precision"
            return (
                f"{by_precision or f'--opset {opset}'}: {one} reads ONNX up to opset {one.opset}; {less}, or a "
                "--target whose TensorRT is newer (orin@10.16, thor)"
            )
    return None


def readers(opset: int) -> tuple[str, ...]:
    """The releases, by name, that read graphs of an ONNX opset."""
    return tuple(name for name, one in RELEASES.items() if one.opset is None or opset <= one.opset)


def unread(opset: int) -> list[str]:
    """A sentence on the releases that do not, where there are any."""
    left = [str(one) for name, one in RELEASES.items() if name not in readers(opset)]
    return [f"{', '.join(left)} cannot read these graphs, which are in opset {opset}"] if left else []
