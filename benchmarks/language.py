"""What methods save in the language model, on a model of honest size: prefill and decode, beside what FLOPs promise.

    python benchmarks/language.py [--tokens 64] [--max-new 256] [--repeats 5] [--threads 1] [METHOD ...]

Random weights shaped like CLIP-L/336 and Qwen2-0.5B, 576 visual tokens and 64 rows of text, ONNX Runtime, float32, one
graph beside the unpruned one in turn, so that ratios hold on a busy machine. "realised" is the measured speed-up of the
prefill over the one that the saved FLOPs promise; selector is the share of the prefill spent in its nodes; KV is what
the decode graph takes in as keys and values, which is compared with the prediction to the byte.
"""

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from speed import random_model
from vision import MAX_TEXT, RUNS, open_graph, write_graph

from tokcarve.exporters.device.timing import distribution, profiled_share, time_in_turn
from tokcarve.exporters.weights import WeightFile
from tokcarve.passes import families
from tokcarve.passes.errors import MethodError
from tokcarve.passes.flops import count_flops, decode_flops, kv_bytes, rows_of
from tokcarve.passes.graph import TokenGraphs, thread
from tokcarve.passes.insert import in_language, rewrite
from tokcarve.passes.invariants import propagate_language
from tokcarve.passes.methods import METHODS
from tokcarve.passes.stage import Stage

HEADER = (
    "| method | entering | mean | KV MiB | prefill ms | unpruned | speed-up | predicted | realised | selector "
    "| decode ms | unpruned | speed-up | predicted |\n|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|"
)
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {"flowcut language": ("flowcut", {"language_stage": True})}
KINDS: dict[str, Any] = {"tensor(float)": np.float32, "tensor(int64)": np.int64}


def inputs(session: Any, rows: int, start: int = 4) -> dict[str, np.ndarray]:
    """Seeded inputs of a prefill or decode graph whose prompts fill all of its `rows`."""
    draw = np.random.default_rng(0)
    given = {}
    for one in session.get_inputs():
        kind = KINDS[one.type]
        made = draw.standard_normal(one.shape) if kind is np.float32 else np.zeros(one.shape)
        given[one.name] = made.astype(kind)
    given["prompt_lengths"] += rows
    if "position_ids" in given:
        given["position_ids"] += np.arange(given["position_ids"].shape[1])
    if "visual_start" in given:
        given["visual_start"] += start
    return given


def planned(method: str, graphs: TokenGraphs, tokens: int) -> list[Stage]:
    """The stages of a method at `tokens`, or at all of them where it drops none before an exit."""
    name, params = VARIANTS.get(method, (method, {}))
    try:
        return list(METHODS[name](**params).stages(graphs.geometry, tokens, None))
    except MethodError:
        return list(METHODS[name](**params).stages(graphs.geometry, graphs.geometry.total, None))


def acts_inside(stages: list[Stage]) -> bool:
    """Whether any of them does something in the language model."""
    return any(in_language(stage.site) for stage in stages)


def measure(method: str, plain: TokenGraphs, model: Any, paths: dict[str, Path], options: argparse.Namespace) -> str:
    """One row of the table."""
    stages = planned(method, plain, options.tokens)
    result = rewrite(plain, stages)
    graphs, geometry = result.graphs, plain.geometry
    entering, folder = thread(graphs.vision).count, paths["prefill"].parent
    stored = [key.shape[2] for key in propagate_language(graphs, batch=1, text=MAX_TEXT).keys]
    rows, whole = (rows_of(geometry, cuts, MAX_TEXT) for cuts in (result.schedule, ()))
    capacities = [n + options.max_new for n in stored]
    times, share, kv = {}, 0.0, 0
    with WeightFile(folder / f"{method}.data") as weights:
        for part in ("prefill", "decode"):
            mine = folder / f"{method}.{part}.onnx"
            write_graph(part, graphs, model, entering, weights, mine, options.max_new)
            weights.flush()
            sessions = [open_graph(one, threads=options.threads) for one in (mine, paths[part])]
            given = [inputs(one, n + MAX_TEXT) for one, n in zip(sessions, (entering, geometry.total), strict=True)]
            if part == "decode":
                kv = sum(one.nbytes for name, one in given[0].items() if name.startswith("past_key_values."))
            ways = [lambda _, s=s, g=g: s.run(None, g) for s, g in zip(sessions, given, strict=True)]
            found = time_in_turn(ways, warm_up=1, repeats=options.repeats * (1 if part == "prefill" else 10), tick=int)
            times[part] = [distribution(one).p50 for one in found]
            del sessions, ways
            if part == "prefill":
                share = selector_share(mine, given[0], options.threads)
    for path in folder.glob(f"{method}.*"):
        path.unlink()
    assert kv == kv_bytes(geometry.text, capacities, element=4), (kv, capacities)
    prefill, decode = (times[part][1] / times[part][0] for part in ("prefill", "decode"))
    promised = count_flops(geometry, whole).prefill / count_flops(geometry, rows).prefill
    full = [n + options.max_new for n in whole.text]
    step = decode_flops(geometry.text, full) / decode_flops(geometry.text, capacities)
    mean = sum(rows.text) / len(rows.text) - MAX_TEXT
    (mine, theirs), (new, old) = times["prefill"], times["decode"]
    return (
        f"| {method} | {entering} | {mean:.1f} | {kv / 2**20:.1f} | {mine:.0f} | {theirs:.0f} "
        f"| {prefill:.2f} | {promised:.2f} | {prefill / promised:.2f} | {100 * share:.1f} % "
        f"| {new:.1f} | {old:.1f} | {decode:.2f} | {step:.2f} |"
    )


def selector_share(path: Path, given: dict[str, np.ndarray], threads: int) -> float:
    """The share of a prefill that selection takes, by the runtime's own node times."""
    with TemporaryDirectory() as folder:
        session = open_graph(path, profile=str(Path(folder) / "profile"), threads=threads)
        for _ in range(RUNS):
            session.run(None, given)
        return profiled_share(Path(session.end_profiling()), RUNS)


def main() -> None:
    """Print one row per method."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--max-new", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("methods", nargs="*")
    options = parser.parse_args()
    model = random_model()
    plain = families.capture(model)
    inside = options.methods or [
        name for name in (*METHODS, *VARIANTS) if acts_inside(planned(name, plain, options.tokens))
    ]
    with TemporaryDirectory() as folder, WeightFile(Path(folder) / "plain.data") as weights:
        paths = {part: Path(folder) / f"plain.{part}.onnx" for part in ("prefill", "decode")}
        for part, path in paths.items():
            write_graph(part, plain, model, plain.geometry.total, weights, path, options.max_new)
        weights.flush()
        print(HEADER, flush=True)
        for method in inside:
            print(measure(method, plain, model, paths, options), flush=True)


if __name__ == "__main__":
    main()
