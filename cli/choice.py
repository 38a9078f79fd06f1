"""What samples decided in place of the user, in tables: the count of `--keep auto`, the method of `--method auto`."""

from typing import Any

from tokcarve.cli.output import print_table

__all__ = ["print_choice"]


def print_choice(record: dict[str, Any] | None) -> None:
    """The curve of counts, or the methods beside one another, and what the samples held out say; else nothing.

    KL is in nats per token, changed the share of samples whose answers begin otherwise.
    """
    auto = (record or {}).get("auto", {})
    if "curve" in auto:
        held = {one["tokens"]: one for one in auto["held_out"]}
        rows = [
            (one["tokens"], _nats(one["kl"]), _share(one["changed"]), *_held(held.get(one["tokens"])))
            for one in auto["curve"]
        ]
        columns = ("tokens", "KL", "changed", "held-out KL", "changed")
        print_table(f"loss by count, at most {auto['max_loss']:g}", columns, rows)
    if "methods" in auto:
        held = {one["method"]: one for one in auto["held_out"]}
        lines = [
            (
                *(one[name] for name in ("method", "tokens", "tokens_entering", "tokens_mean")),
                _nats(one["kl"]),
                _share(one["changed"]),
                *_held(held.get(one["method"])),
            )
            for one in auto["methods"]
        ]
        heads = ("method", "left", "entering", "mean", "KL", "changed", "held-out KL", "changed")
        print_table("methods by loss", heads, lines)


def _held(one: dict[str, Any] | None) -> tuple[Any, str]:
    return ("", "") if one is None else (_nats(one["kl"]), _share(one["changed"]))


def _nats(value: float) -> str:
    return f"{value:.4f}"


def _share(value: float) -> str:
    return f"{value:.1%}"
