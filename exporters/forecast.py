"""What a compression would come to, from shapes alone: schedule, FLOPs, memory, and the least times on boards.

No weights, no samples and no device are asked. `Forecast.record()` is what `tokcarve plan --json` prints; the head of
cli/plan.py says what is where.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from tokcarve.exporters.device.boards import BOARDS, RELEASES, Board, Target, find_target, precision_refused, readers
from tokcarve.exporters.device.speeds import Module, modules_of
from tokcarve.exporters.engines import Room, room, weight_bytes
from tokcarve.exporters.precision import PRECISIONS, needed_opset
from tokcarve.exporters.roofline import ANSWERS, Times, least_times
from tokcarve.exporters.rows import check_rows
from tokcarve.passes.errors import ExportError
from tokcarve.passes.flops import Rows, conventions, count_flops, decode_flops, kv_bytes, rows_of, whole_model
from tokcarve.passes.geometry import Geometry
from tokcarve.passes.insert import StageRecord, schedule_of
from tokcarve.passes.scaling_law import Law, scaling_law
from tokcarve.passes.stage import Stage
from tokcarve.recipes.budgets import MIB, stored_rows

__all__ = ["WEIGHTS", "Forecast", "OnModule", "Setting", "Side", "both"]

WEIGHTS = ("fp32", "fp16", "int8", "int4")
"""The precisions whose weights are told, whatever was asked for."""
_SIDES = ("pruned", "unpruned")
_LEAST_OF_PEAK = 0.001  # of a board's peaks: nothing that runs reaches less


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What a forecast is for: a model, the precision of its graphs, rows of text and of the answer that they have room
    for, the board (every board where it is None), and the share of its peaks that is taken to be reached.

    ExportError for a precision, a size or a share that is none.
    """

    geometry: Geometry
    precision: str = "fp16"
    text: int = 64
    new: int = 64
    target: Target | None = None
    of_peak: float | int = 1.0

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise ExportError(f"--precision {self.precision} is none that export writes; give {', '.join(PRECISIONS)}")
        check_rows(self.geometry, max_text=self.text, max_new=self.new)
        if not _LEAST_OF_PEAK <= self.of_peak <= 1:
            raise ExportError(f"--of-peak {self.of_peak:g} is no share of a peak; give {_LEAST_OF_PEAK:g} to 1")

    @property
    def modules(self) -> tuple[Module, ...]:
        """The modules that times are told of."""
        return modules_of(self.target.board if self.target is not None else None)

    def side(self, stages: Sequence[Stage]) -> "Side":
        """What the model costs with `stages`; with none, the unpruned model."""
        stored = tuple(stored_rows(self.geometry, stages))
        return Side(setting=self, rows=rows_of(self.geometry, stages, self.text), stored=stored)


@dataclass(frozen=True, kw_only=True)
class Side:
    """One side of a forecast: `rows` that its parts compute, and visual rows that each language layer stores."""

    setting: Setting
    rows: Rows
    stored: tuple[int, ...]

    @property
    def mean(self) -> float:
        """Visual tokens per layer of the language model."""
        visual = [rows - self.rows.text_only for rows in self.rows.text]
        return sum(visual) / len(visual)

    @property
    def kv_mib(self) -> float:
        """MiB of fp16 keys and values of visual tokens, as every report counts them."""
        return kv_bytes(self.setting.geometry.text, self.stored) / MIB

    @cached_property
    def cached(self) -> tuple[int, ...]:
        """Rows that a decode step attends to in each layer: a static graph multiplies by the whole cache."""
        return tuple(rows + self.setting.text + self.setting.new for rows in self.stored)

    def times(self, module: Module) -> Times:
        """The least times on a module."""
        one = self.setting
        return least_times(one.geometry, self.rows, self.cached, module, one.precision, of_peak=one.of_peak)

    def room(self) -> Room:
        """What the four engines take, at batch 1."""
        one = self.setting
        element = 4 if PRECISIONS[one.precision].computes == "float32" else 2
        sizes = weight_bytes(one.geometry, one.precision)
        return room(sizes, one.geometry.text, self.cached, batch=1, element=element)


@dataclass(frozen=True, kw_only=True)
class OnModule:
    """A forecast on one module: whether its engines can be built there and run, and the TensorRT releases that read
    graphs of the precision."""

    module: Module
    builds: bool
    runs: bool
    releases: tuple[str, ...]
    pruned: Times
    unpruned: Times

    @property
    def speedup(self) -> dict[str, Any]:
        """Unpruned over pruned least times, by stage."""
        names = ("encoder", "prefill", "decode", "first_token")
        whole = {str(new): self.unpruned.answer(new) / self.pruned.answer(new) for new in ANSWERS}
        return {name: getattr(self.unpruned, name) / getattr(self.pruned, name) for name in names} | {
            "end_to_end": whole
        }

    def record(self) -> dict[str, Any]:
        """As JSON."""
        one = self.module
        return {
            "module": one.name,
            "memory_gib": one.memory,
            "peak_tflops": one.tflops,
            "bandwidth_gbps": one.gbps,
            "builds": self.builds,
            "runs": self.runs,
            "releases": list(self.releases),
            "least_ms": both([self.pruned.record(), self.unpruned.record()]),
            "possible_speedup": self.speedup,
        }


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What `stages` would come to in a setting, beside the unpruned model."""

    setting: Setting
    stages: tuple[Stage, ...]

    @cached_property
    def sides(self) -> tuple[Side, Side]:
        """(pruned, unpruned)."""
        return self.setting.side(self.stages), self.setting.side(())

    @property
    def schedule(self) -> tuple[StageRecord, ...]:
        """The reductions in order, as a manifest has them."""
        return schedule_of(self.stages, self.setting.geometry.total)

    @property
    def numbers(self) -> dict[str, int | float]:
        """The three token numbers, as a manifest has them."""
        pruned, unpruned = self.sides
        return {
            "tokens_entering": pruned.rows.text[0] - pruned.rows.text_only,
            "tokens_mean": pruned.mean,
            "kv_mib": pruned.kv_mib,
            "kv_mib_unpruned": unpruned.kv_mib,
        }

    @property
    def flops(self) -> dict[str, dict[str, int]]:
        """FLOPs by part of both sides; a decode step is one of a static graph, which multiplies by its whole cache."""
        geometry = self.setting.geometry
        counted = [count_flops(geometry, side.rows) for side in self.sides]
        steps = [decode_flops(geometry.text, side.cached) for side in self.sides]
        parts = ("encoder", "connector", "prefill")
        return {part: both([getattr(one, part) for one in counted]) for part in parts} | {"decode": both(steps)}

    @property
    def conventions(self) -> dict[str, dict[str, int]]:
        """FLOPs of the prefill of both sides by each way of counting that has a name."""
        named = [conventions(self.setting.geometry, side.rows) for side in self.sides]
        return {name: both([one[name] for one in named]) for name in named[0]}

    @property
    def law(self) -> Law:
        """What the scaling law of arXiv 2411.03312 says of it."""
        pruned, unpruned = self.sides
        return scaling_law(unpruned.mean, pruned.mean, self.setting.text)

    @cached_property
    def boards(self) -> tuple[OnModule, ...]:
        """The forecast on every module of the setting."""
        pruned, unpruned = self.sides
        wanted = pruned.room()
        return tuple(
            OnModule(
                module=module,
                builds=max(wanted.build.values()) <= module.memory,
                runs=wanted.run <= module.memory,
                releases=self._releases(BOARDS[module.board]),
                pruned=pruned.times(module),
                unpruned=unpruned.times(module),
            )
            for module in self.setting.modules
        )

    def _releases(self, board: Board) -> tuple[str, ...]:
        """TensorRT releases of a board that read the precision; none where its tensor cores do not have it."""
        target, precision = self.setting.target or find_target(board.name), self.setting.precision
        if precision_refused(target, precision) is not None:
            return ()
        able = readers(needed_opset(precision, "trt"))
        return tuple(RELEASES[name].number for name in target.names if name in able)

    def record(self) -> dict[str, Any]:
        """All of it as JSON, but what only a model, a method and a budget can say."""
        one = self.setting
        rooms = [side.room() for side in self.sides]
        return {
            "schedule": [asdict(stage) for stage in self.schedule],
            "numbers": self.numbers,
            "kv_rows": list(self.sides[0].stored),
            "precision": one.precision,
            "max_text": one.text,
            "max_new": one.new,
            "flops": {**self.flops, "conventions": self.conventions},
            "weights": {name: _sizes(one.geometry, name) for name in WEIGHTS},
            "memory": {"build_gib": dict(rooms[0].build), "run_gib": both([room.run for room in rooms])},
            "of_peak": one.of_peak,
            "boards": [board.record() for board in self.boards],
            "law": self.law.record(),
        }


def both(pair: Sequence[Any]) -> dict[str, Any]:
    """Two values by the names of their sides."""
    return dict(zip(_SIDES, pair, strict=True))


def _sizes(geometry: Geometry, precision: str) -> Mapping[str, int]:
    sizes = {part: round(size) for part, size in weight_bytes(geometry, precision).items()}
    return sizes | {"total": round(whole_model(sizes, geometry.text))}
