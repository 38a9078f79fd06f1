"""`tokcarve compress`: a model and a budget into an artifact; docs/json.md says what `--json` holds."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tokcarve.cli.output import emit_json, print_facts, print_line, print_table, progress_bars
from tokcarve.cli.recipe_flags import recipe_of

if TYPE_CHECKING:
    from tokcarve.recipes.manifest import Manifest

__all__ = ["compress", "manifest_facts", "print_schedule"]


def compress(
    model: Annotated[str | None, typer.Argument(help="A directory, a hub id (owner/name) or an alias.")] = None,
    method: Annotated[str | None, typer.Option(help="How tokens are chosen; `tokcarve methods` lists them.")] = None,
    keep: Annotated[float | None, typer.Option(help="Share of visual tokens in (0, 1], rounded up to 8.")] = None,
    tokens: Annotated[int | None, typer.Option(help="Count left behind the last stage, taken exactly.")] = None,
    avg_tokens: Annotated[int | None, typer.Option(help="Mean count over the language layers; the nearest.")] = None,
    kv_mib: Annotated[float | None, typer.Option(help="Most MiB of fp16 keys and values, text included.")] = None,
    prefill_flops: Annotated[float | None, typer.Option(help="Most FLOPs of a prefill, text included.")] = None,
    max_text: Annotated[int | None, typer.Option(help="Rows of text in --kv-mib, --prefill-flops; 64.")] = None,
    max_new: Annotated[int | None, typer.Option(help="Rows of the answer in --kv-mib; 64 unless told.")] = None,
    param: Annotated[list[str] | None, typer.Option(help="A hyper-parameter as name=value; repeatable.")] = None,
    samples: Annotated[str | None, typer.Option(help="Calibrate on `scenes`, a folder or a JSONL file.")] = None,
    limit: Annotated[int | None, typer.Option("--limit", "--count", help="How many samples; 64 unless told.")] = None,
    quantile: Annotated[float | None, typer.Option(help="Freeze this quantile of counts, not the mean.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted calibration.")] = False,
    on: Annotated[str, typer.Option(help="Where to calibrate: local, ray or ray:ADDRESS.")] = "local",
    seed: Annotated[int, typer.Option(help="Of the choice of samples, and of random methods.")] = 0,
    positions: Annotated[str, typer.Option(help="Position ids: renumbered or original.")] = "renumbered",
    recipe: Annotated[str | None, typer.Option(help="A YAML file, or the name of a shipped recipe.")] = None,
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


def print_schedule(manifest: "Manifest") -> None:
    """Every stage in a table, unless there is none."""
    rows = [(s.site, s.total, s.keep, s.how, s.positions or "") for s in manifest.schedule]
    if rows:
        print_table("schedule", ("site", "tokens before", "after", "how", "positions"), rows)


def _calibration(record: dict[str, Any] | None) -> str | None:
    if record is None:
        return None
    text = f"{record['count']} samples of {record['samples']}"
    fit = record.get("agreement")
    if fit:
        text += (
            f"; on {fit['images']} held-out images the static form keeps {fit['overlap']:.1%} of what the exact one "
            f"keeps, and the same set on {fit['identical']:.1%}"
        )
    if "held_out_loss" in record:
        text += f"; of what varies within a held-out image, the learned merge loses {record['held_out_loss']:.1%}"
    return text


def _plain(manifest: "Manifest") -> dict[str, Any]:
    return manifest.model_dump(mode="json")


def _print(place: Path, manifest: "Manifest", *, written: bool) -> None:
    print_facts(f"{place}" if written else f"{place} (dry run: nothing was written)", manifest_facts(manifest))
    print_schedule(manifest)
    if written:
        print_line(f"next: tokcarve export {place}")
