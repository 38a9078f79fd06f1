"""What `tokcarve plan` shows people: sizes, FLOPs, memory, bounds on boards, and who can meet a wish."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tokcarve.cli.compress import print_schedule
from tokcarve.cli.output import print_facts, print_line, print_table

if TYPE_CHECKING:
    from tokcarve.exporters.forecast import Forecast, OnModule, Setting
    from tokcarve.exporters.plan import PlannedRecipe
    from tokcarve.exporters.wish import Wished

__all__ = ["print_plan", "print_wish"]

_GIB = 2.0**30


def print_plan(model: str, made: "PlannedRecipe") -> None:
    """A plan in full."""
    forecast, recipe = made.forecast, made.recipe
    numbers, setting = forecast.numbers, forecast.setting
    params = ", ".join(f"{name}={value}" for name, value in recipe.method.parameters.items())
    facts = {
        "method": recipe.method.name + (f" ({params})" if params else ""),
        "visual tokens": f"{made.tokens} of {setting.geometry.total}, positions {recipe.positions}",
        "entering the language model": numbers["tokens_entering"],
        "mean over its layers": numbers["tokens_mean"],
        "KV of visual tokens": f"{numbers['kv_mib']:.3f} MiB in fp16 (unpruned {numbers['kv_mib_unpruned']:.3f} MiB)",
        "room for": f"{setting.text} rows of text and {setting.new} new ones, batch 1",
    }
    print_facts(f"{model} (a plan: nothing was read but its config)", facts)
    print_schedule(forecast)
    _print_flops(forecast)
    _print_memory(forecast)
    _print_boards(forecast)
    print_line(f"scaling law: {forecast.law.sentence}.")
    for note in made.notes:
        print_line(f"note: {note}.")


def print_wish(model: str, setting: "Setting", latency: float | int, found: Sequence["Wished"]) -> None:
    """By method the largest counts that can meet a wish, those that keep the most first."""
    names = [module.name for module in setting.modules]
    rows = []
    for one in found:
        counts = [one.counts[name] for name in names]
        if any(counts):
            cells = ["none" if count is None else f"{count[0]} ({_ms(count[1])} ms)" for count in counts]
            rows.append((one.method, one.where, "yes" if one.text_aware else "no", *cells))
    unpruned = [f"{_ms(setting.side(()).times(module).first_token)} ms on {module.name}" for module in setting.modules]
    if rows:
        title = f"most tokens whose first token can come in {latency:g} ms ({setting.precision})"
        print_table(title, ("method", "cuts", "reads the question", *names), rows)
    else:
        print_line(f"no method can give {model} a first token in {latency:g} ms in {setting.precision}.")
    print_line(f"unpruned, the first token takes at least {', '.join(unpruned)}.")
    print_line("note: computed from published peaks; a count that is listed can still miss the wish on the board.")


def _print_flops(forecast: "Forecast") -> None:
    named = {f"prefill, counted as {name}": pair for name, pair in forecast.conventions.items() if name != "all"}
    pairs = {**forecast.flops, **named}
    pairs["decode step"] = pairs.pop("decode")
    rows = [
        (name, *(_giga(pair[side]) for side in ("pruned", "unpruned")), _gain(pair)) for name, pair in pairs.items()
    ]
    print_table("GFLOP per image", ("", "pruned", "unpruned", "possible"), rows)


def _print_memory(forecast: "Forecast") -> None:
    from tokcarve.exporters.engines import weight_bytes
    from tokcarve.exporters.forecast import WEIGHTS
    from tokcarve.passes.flops import whole_model

    text = forecast.setting.geometry.text
    sizes = {name: weight_bytes(forecast.setting.geometry, name) for name in WEIGHTS}
    rows = [
        (
            name,
            *(_gib(found[part]) for part in ("encoder", "language", "embedding", "head")),
            _gib(whole_model(found, text)),
        )
        for name, found in sizes.items()
    ]
    print_table("GiB of weights", ("precision", "encoder", "layers", "embedding", "head", "all"), rows)
    pruned, unpruned = (side.room() for side in forecast.sides)
    peaks = ", ".join(f"{name} {size:.1f}" for name, size in pruned.build.items())
    print_facts(
        f"memory in {forecast.setting.precision}, estimated",
        {
            "to build each engine": f"{peaks} GiB at its peak",
            "to run all four": f"{pruned.run:.2f} GiB (unpruned {unpruned.run:.2f})",
        },
    )


def _print_boards(forecast: "Forecast") -> None:
    target = forecast.setting.target
    if not forecast.boards:
        if target is not None:
            print_line(f"{target.board.title}: cards differ too much for bounds on memory and time.")
        return
    fits = [(one.module.name, one.builds, one.runs, ", ".join(one.releases) or "none") for one in forecast.boards]
    print_table("boards", ("module", "builds the engines", "runs them", "TensorRT that reads them"), fits)
    share = "" if forecast.setting.of_peak == 1 else f", at {forecast.setting.of_peak:.0%} of the peaks"
    title = f"least milliseconds in {forecast.setting.precision} (unpruned){share}"
    print_table(
        title, ("module", "encoder", "prefill", "first token", "decode step"), [_times(one) for one in forecast.boards]
    )
    gains = [_gains(one) for one in forecast.boards]
    columns = ("module", "encoder", "prefill", "first token", "decode", *(f"{new} new" for new in _answers()))
    print_table("possible gain by stage, and end to end by new tokens", columns, gains)


def _times(one: "OnModule") -> tuple[str, ...]:
    names = ("encoder", "prefill", "first_token", "decode")
    return (
        one.module.name,
        *(f"{_ms(getattr(one.pruned, name))} ({_ms(getattr(one.unpruned, name))})" for name in names),
    )


def _gains(one: "OnModule") -> tuple[str, ...]:
    speedup = one.speedup
    stages = [speedup[name] for name in ("encoder", "prefill", "first_token", "decode")]
    return (one.module.name, *(f"{gain:.2f}x" for gain in (*stages, *speedup["end_to_end"].values())))


def _answers() -> tuple[int, ...]:
    from tokcarve.exporters.roofline import ANSWERS

    return ANSWERS


def _giga(flops: int) -> str:
    return f"{flops / 1e9:.4g}" if flops < 1e12 else f"{flops / 1e9:.0f}"


def _ms(value: float) -> str:
    return f"{value:.2g}" if value < 1 else f"{value:.1f}"


def _gib(size: float | int) -> str:
    return f"{size / _GIB:.3g}"


def _gain(pair: dict[str, Any]) -> str:
    return f"{pair['unpruned'] / pair['pruned']:.2f}x" if pair["pruned"] else ""
