"""`tokcarve compress`: a model and a budget into an artifact; docs/json.md says what `--json` holds."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tokcarve.cli.choice import print_choice
from tokcarve.cli.options import METHOD, MODEL, RECIPE
from tokcarve.cli.output import emit_json, print_facts, print_line, print_table, progress_bars
from tokcarve.cli.recipe_flags import recipe_of
from tokcarve.cli.sets import print_set

if TYPE_CHECKING:
    from tokcarve.exporters.forecast import Forecast
    from tokcarve.recipes.manifest import Manifest

__all__ = ["compress", "manifest_facts", "print_schedule"]


def compress(
    model: MODEL = None,
    method: METHOD = None,
    keep: Annotated[str | None, typer.Option(help="Share of visual tokens in (0, 1], rounded to 8; or auto.")] = None,
    max_loss: Annotated[float | None, typer.Option(help="Of --keep auto: most KL and share of other answers.")] = None,
    tokens: Annotated[str | None, typer.Option(help="Count left behind the last stage; several: a set, N,N,N.")] = None,
    mean_tokens: Annotated[int | None, typer.Option(help="What a set comes to on average; the middle one.")] = None,
    avg_tokens: Annotated[int | None, typer.Option(help="Mean count over the language layers; the nearest.")] = None,
    kv_mib: Annotated[float | None, typer.Option(help="Most MiB of fp16 keys and values, text included.")] = None,
    prefill_flops: Annotated[float | None, typer.Option(help="Most FLOPs of a prefill, text included.")] = None,
    max_text: Annotated[int | None, typer.Option(help="Rows of text in --kv-mib, --prefill-flops; 64.")] = None,
    max_new: Annotated[int | None, typer.Option(help="Rows of the answer in --kv-mib; 64 unless told.")] = None,
    param: Annotated[list[str] | None, typer.Option(help="A hyper-parameter as name=value; repeatable.")] = None,
    samples: Annotated[str | None, typer.Option(help="Calibrate on `scenes`, a folder or a JSONL file.")] = None,
    limit: Annotated[int | None, typer.Option("--limit", "--count", help="How many samples; 64 unless told.")] = None,
    quantile: Annotated[float | None, typer.Option(help="Freeze this quantile of counts, not the mean.")] = None,
    trials: Annotated[int | None, typer.Option(help="Points a search for hyper-parameters tries; 50.")] = None,
    steps: Annotated[int | None, typer.Option(help="Of training, where a method trains a module; 512.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted calibration.")] = False,
    on: Annotated[str, typer.Option(help="Where to calibrate: local, ray or ray:ADDRESS.")] = "local",
    seed: Annotated[int, typer.Option(help="Of the choice of samples, and of random methods.")] = 0,
    positions: Annotated[str, typer.Option(help="Position ids: renumbered or original.")] = "renumbered",
    recipe: RECIPE = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Where to; NAME-METHOD-kN unless told.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing artifact.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Do all but write.")] = False,
    copy_weights: Annotated[bool, typer.Option("--copy-weights", help="Put the base weights inside.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Rewrite a model to fewer visual tokens, calibrate it, and write an artifact."""
    given = dict(locals())
    wanted = recipe_of(given)

    from tokcarve.recipes.calibration.bench import How
    from tokcarve.recipes.compress import compress_recipe, plan_recipe

    with progress_bars() as progress:
        how = How(on=on, resume=resume, tell=progress)
        if dry_run:
            plan = plan_recipe(wanted, out=out, force=force, how=how)
            place, manifest = plan.out.absolute(), plan.manifest
        else:
            artifact = compress_recipe(wanted, out=out, force=force, copy_weights=copy_weights, how=how)
            place, manifest = artifact.directory, artifact.manifest
    if as_json:
        emit_json("compress", {"written": not dry_run, "artifact": str(place), "manifest": _plain(manifest)})
    else:
        _print(place, manifest, written=not dry_run)


def manifest_facts(manifest: "Manifest") -> dict[str, Any]:
    """What every table says about an artifact: model, method, budget, and the three token numbers."""
    numbers, budget = manifest.numbers, manifest.budget
    params = ", ".join(f"{name}={value}" for name, value in manifest.method.params.items())
    return {
        "model": f"{manifest.model.name} ({manifest.model.architecture})",
        "method": manifest.method.name + (f" ({params})" if params else ""),
        "visual tokens": f"{budget.tokens} of {budget.total}, positions {manifest.positions}",
        "entering the language model": numbers.tokens_entering,
        "mean over its layers": numbers.tokens_mean,
        "KV of visual tokens": f"{numbers.kv_mib:.3f} MiB in fp16 (unpruned {numbers.kv_mib_unpruned:.3f} MiB)",
        "calibration": _calibration(manifest.calibration),
        "not checked": "; ".join(manifest.not_checked) or None,
    }


def print_schedule(manifest: "Manifest | Forecast") -> None:
    """Every stage of what has a schedule in a table, unless there is none."""
    rows = [(s.site, s.total, s.keep, s.how, s.positions or "") for s in manifest.schedule]
    if rows:
        print_table("schedule", ("site", "tokens before", "after", "how", "positions"), rows)


def _calibration(record: dict[str, Any] | None) -> str | None:
    if record is None:
        return None
    text = f"{record['count']} samples of {record['samples']}"
    if "search" in record:
        text += f"; {_searched(record['search'])}"
    fit = record.get("agreement")
    if fit:
        text += (
            f"; on {fit['images']} held-out images the static form keeps {fit['overlap']:.1%} of what the exact one "
            f"keeps, and the same set on {fit['identical']:.1%}"
        )
    if "decided" in record:
        text += f"; {_decided(record['decided'])}"
    if "proof" in record:
        text += f"; {_proof(record['proof'])}"
    if "training" in record:
        text += f"; {_trained(record['training'], record['report'])}"
    if "held_out_loss" in record:
        text += f"; of what varies within a held-out image, the learned merge loses {record['held_out_loss']:.1%}"
    return text


def _trained(training: dict[str, Any], report: dict[str, Any]) -> str:
    """What training did to its loss, and what came of it beside plain top-k."""
    loss, ours, plain = training["loss"], report["trained"], report["plain"]
    params = "".join(f", {name}={value}" for name, value in plain["params"].items())
    guide = training.get("guide")
    learned = "" if guide is None else f"learned from {guide['chosen']}, of {len(guide['kl'])} layers; "
    return (
        f"{learned}{training['steps']} steps take the loss from {loss['start']:.4g} to {loss['end']:.4g}, on samples "
        f"held out from {loss['held_out_before']:.4g} to {loss['held_out']:.4g}; on {report['samples']} of those the "
        f"KL is {ours['kl']:.4g} with loyalty {ours['loyalty']:.1%}, plain top-k ({plain['method']}{params}) at "
        f"{plain['tokens']} tokens {plain['kl']:.4g} with {plain['loyalty']:.1%}"
    )


def _searched(record: dict[str, Any]) -> str:
    seen, held = record["cosine"], record["held_out"]
    refused = sum("refused" in trial for trial in record["trials"])
    return (
        f"{len(record['trials'])} trials ({refused} refused) take the cosine to the full model from "
        f"{seen['default']:.4f} to {seen['best']:.4f}, on samples held out from {held['default']:.4f} to "
        f"{held['best']:.4f}"
    )


def _decided(decided: dict[str, Any]) -> str:
    """What was fixed, and how far the samples are apart on it."""
    fixed = ", ".join(f"{name}={value}" for name, value in decided["fixed"].items()) or "the defaults"
    spread = ", ".join(f"{name} {least:.3g}..{most:.3g}" for name, (least, most) in decided["spread"].items())
    return f"{fixed} by the {decided['by']} of {decided['samples']} samples ({spread})"


def _proof(proof: dict[str, Any]) -> str:
    """The frozen form beside the other, and their difference with its interval."""
    parts = []
    for name, percent in (("loyalty", True), ("kl", False), ("accuracy", True)):
        if name in proof:
            both = proof[name]
            frozen, other = (both[one][0] if percent else both[one] for one in ("frozen", "other"))
            spell = "{:.1%}".format if percent else "{:.3g}".format
            gap, low, high = map(spell, both["difference"])
            parts.append(f"{name} {spell(frozen)} beside {spell(other)} ({gap}, {low}..{high})")
    return f"on {proof['samples']} held-out samples the frozen form against {proof['against']}: {', '.join(parts)}"


def _plain(manifest: "Manifest") -> dict[str, Any]:
    return manifest.model_dump(mode="json")


def _print(place: Path, manifest: "Manifest", *, written: bool) -> None:
    print_facts(f"{place}" if written else f"{place} (dry run: nothing was written)", manifest_facts(manifest))
    print_schedule(manifest)
    print_set(manifest)
    print_choice(manifest.calibration)
    if written:
        print_line(f"next: tokcarve export {place}")
