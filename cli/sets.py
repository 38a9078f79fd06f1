"""What is said of a budget set: its budgets and its router, which one artifact has or has not."""

from typing import TYPE_CHECKING

from tokcarve.cli.output import print_facts, print_table

if TYPE_CHECKING:
    from tokcarve.recipes.manifest import Manifest

__all__ = ["print_set"]


def print_set(manifest: "Manifest") -> None:
    """Every budget with its numbers, and what the router did on held-out samples; nothing for one budget."""
    router = manifest.router
    if router is None:
        return
    held = router.held_out
    numbers = {one.tokens: one.numbers for one in manifest.budgets} | {manifest.budget.tokens: manifest.numbers}
    rows = [
        (tokens, round(numbers[tokens].tokens_mean, 1), round(numbers[tokens].kv_mib, 3), f"{share:.0%}", loss)
        for tokens, share, loss in zip(router.tokens, held.shares, held.fixed, strict=True)
    ]
    columns = ("tokens", "mean over layers", "KV MiB", "share", "loss alone")
    print_table("budgets; shares and losses (KL, nats) on held-out samples", columns, rows)
    facts = {
        "reads": f"vision layer {router.layer}",
        "asked for": f"{router.mean_tokens} tokens on average",
        "held-out samples": f"{held.images}, on which it takes {held.mean_tokens:.1f} tokens on average",
        "loss": f"{held.loss:.4g}; budgets at random with the same shares {held.random:.4g}; knowing the losses "
        f"{held.oracle:.4g}",
        "explains": f"{router.explained:.1%} of what varies of the loss, on samples left out",
    }
    print_facts("router", facts)
