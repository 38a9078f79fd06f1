"""`tokcarve doctor`: what works on this machine and what does not, and why.

`--json`: version, machine {system, python, cores, memory, memory_free and disk_free in GiB, gpus (a list of {name,
driver, memory, free}), jetson (L4T and JetPack, null elsewhere)}, providers of ONNX Runtime and tensorrt (lists of
{name, version, why, works}, each tried), packages (a list of {name, extra, least, found, works}; extra null: the base),
hub {reachable, found}, works (a list of {name, works, why, install}). The exit code is 0 whatever is missing.
"""

from typing import TYPE_CHECKING, Annotated

import typer

from tokcarve.cli.output import emit_json, print_facts, print_line, print_table

if TYPE_CHECKING:
    from tokcarve.exporters.device.doctor import Findings

__all__ = ["doctor"]


def doctor(as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False) -> None:
    """Say what works here and what does not, why, and what to install."""
    from tokcarve.cli.main import app
    from tokcarve.exporters.device.doctor import examine

    verbs = [str(command.name) for command in app.registered_commands]
    found = examine()
    if as_json:
        emit_json("doctor", found.record(verbs))
    else:
        _print(found, verbs)


def _print(found: "Findings", verbs: list[str]) -> None:
    from tokcarve import __version__
    from tokcarve.exporters.device.doctor import abilities

    host = found.host
    facts = {
        "python": f"{host.python} on {host.system}",
        "memory": f"{host.memory_free:.1f} of {host.memory:.1f} GiB free, {host.cores} cores",
        "disk": f"{host.disk_free:.1f} GiB free in the working directory",
        "GPU": "; ".join(map(str, host.gpus)) or "none that nvidia-smi tells of",
        "Jetson": host.jetson,
        "hub": found.hub[1],
    }
    print_facts(f"tokcarve {__version__}", facts)
    started = (*found.providers, *found.tensorrt)
    tried = [(one.name, one.version or "", one.why is None, one.why or "") for one in started]
    print_table("started here", ("provider or builder", "version", "starts", "why not"), tried)
    rows = [(one.name, one.extra or "(base)", one.found or "none", one.least, one.works) for one in found.packages]
    print_table("packages", ("package", "extra", "found", "at least", "works"), rows)
    able = abilities(found, verbs)
    print_table("what works", ("", "works"), [(one.name, one.why is None) for one in able])
    for one in able:
        if one.why is not None:
            print_line(f"{one.name}: {one.why}" + (f"; what would help: {one.install}" if one.install else ""))
