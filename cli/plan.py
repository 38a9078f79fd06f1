"""`tokcarve plan`: what a compression would come to, from a config alone: no weights, no samples, no device.

`--json`: model; plan, null where only a wish was asked about: method {name, params}, budget {asked, tokens, total},
positions, schedule and numbers as in a manifest, kv_rows (visual rows that each layer stores), precision, max_text,
max_new, flops {encoder, connector, prefill, decode} x {pruned, unpruned} with the prefill under all conventions,
weights (bytes by part and total, in fp32, fp16, int8 and int4), memory {build_gib by engine, run_gib x {pruned,
unpruned}}, of_peak, boards, law, notes; of every module in boards memory_gib, peak_tflops and bandwidth_gbps as
published, whether it builds and runs the engines, the releases of TensorRT that read them, least_ms x {pruned,
unpruned} {encoder, prefill, decode, first_token, end_to_end by new tokens} and the possible_speedup of each; law is
what arXiv 2411.03312 says; wish, null without --latency: latency_ms and methods, where each cuts and by module the
largest count that can meet it.
"""

from typing import Annotated, Any

import typer

from tokcarve.cli.options import METHOD, MODEL, PRECISION, RECIPE, TARGET
from tokcarve.cli.output import emit_json
from tokcarve.cli.recipe_flags import plan_recipe_of

__all__ = ["plan"]


def plan(
    model: MODEL = None,
    method: METHOD = None,
    keep: Annotated[str | None, typer.Option(help="Share of visual tokens in (0, 1], rounded to 8.")] = None,
    tokens: Annotated[str | None, typer.Option(help="Count left behind the last stage.")] = None,
    avg_tokens: Annotated[int | None, typer.Option(help="Mean count over the language layers; the nearest.")] = None,
    kv_mib: Annotated[float | None, typer.Option(help="Most MiB of fp16 keys and values, text included.")] = None,
    prefill_flops: Annotated[float | None, typer.Option(help="Most FLOPs of a prefill, text included.")] = None,
    max_text: Annotated[int, typer.Option(help="Rows of text that the graphs have room for.")] = 64,
    max_new: Annotated[int, typer.Option(help="Rows of the answer that they have room for.")] = 64,
    param: Annotated[list[str] | None, typer.Option(help="A hyper-parameter as name=value; repeatable.")] = None,
    positions: Annotated[str, typer.Option(help="Position ids: renumbered or original.")] = "renumbered",
    recipe: RECIPE = None,
    target: TARGET = None,
    precision: PRECISION = "fp16",
    latency: Annotated[
        float | None, typer.Option(help="Which methods and counts can give a first token in so many ms on the target.")
    ] = None,
    of_peak: Annotated[float, typer.Option(help="Share of a board's peaks that is reached, in (0, 1].")] = 1.0,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Say what a compression would cost and save, without weights: FLOPs, memory, and bounds on boards."""
    given = dict(locals())
    asked, counted = plan_recipe_of(given)
    name = asked.model if asked is not None else str(model)

    from tokcarve.exporters.device.boards import find_target
    from tokcarve.exporters.forecast import Setting
    from tokcarve.exporters.plan import plan_recipe_in, record_of, with_count
    from tokcarve.exporters.wish import wished
    from tokcarve.recipes.shapes import shapes_of

    board = None if target is None else find_target(target)
    fixed: dict[str, Any] = {"precision": precision, "text": max_text, "new": max_new, "of_peak": of_peak}
    setting = Setting(geometry=shapes_of(name), target=board, **fixed)
    found = () if latency is None else wished(setting, latency)
    if asked is not None and not counted and latency is not None:
        asked = with_count(asked, setting, latency)
    made = None if asked is None else plan_recipe_in(asked, setting)
    if as_json:
        emit_json("plan", record_of(name, made, latency, found))
        return

    from tokcarve.cli.plan_tables import print_plan, print_wish

    if made is not None:
        print_plan(name, made)
    if latency is not None:
        print_wish(name, setting, latency, found)
