"""`trt/build_trt.sh`: the commands that build the engines of an export on the board that runs them."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from tokcarve.exporters.device.boards import RELEASES, Release, Target
from tokcarve.exporters.engines import build_peak

__all__ = ["SCRIPT", "build_script"]

SCRIPT = "build_trt.sh"

_HEAD = """\
#!/usr/bin/env bash
# Builds the TensorRT engines of this export. Run it on the device that will use them: an engine fits one GPU and one
# TensorRT version.
#
# For:      {board}
# TensorRT: {releases}
# Memory:   {memory}
#
# The graphs have constant shapes and say themselves which precision each number has, so that neither shape profiles nor
# precision flags are needed. Engines that are there already are left alone; --force builds them again.
set -euo pipefail
cd "$(dirname "$0")"

force=
case "${{1:-}}" in
  "") ;;
  --force) force=yes ;;
  *) echo "usage: $0 [--force]" >&2; exit 2 ;;
esac

trtexec=$(command -v trtexec || echo /usr/src/tensorrt/bin/trtexec)
if [ ! -x "$trtexec" ]; then
  echo "no trtexec here, neither on the PATH nor as $trtexec; JetPack has it in the package libnvinfer-bin" >&2
  exit 1
fi

# its help begins with a line that names the version as one number: 100300 is 10.3.0
said=$("$trtexec" --help 2>&1 || true)
number=$(sed -n 's/.*\\[TensorRT v\\([0-9][0-9]*\\)\\].*/\\1/p' <<< "$said" | head -n 1)
echo "meant for {short}"
version="TensorRT $((${{number:-0}} / 10000)).$((${{number:-0}} / 100 % 100))"
case "$number" in
  "") echo "this trtexec does not say its version; make sure that it is one of these" ;;
  {numbers}) echo "this is $version, which is meant" ;;
  *) echo "warning: this is $version, which the graphs were not checked for" >&2 ;;
esac
# that the graph decides about precision is a flag in TensorRT 10 and the only way since 11
typed=()
case "$number" in
  10????) typed=(--stronglyTyped) ;;
  "") if grep -q -- --stronglyTyped <<< "$said"; then typed=(--stronglyTyped); fi ;;
esac

build() {{ # GRAPH ENGINE MIB
  if [ -f "engines/$2" ] && [ -z "$force" ]; then
    echo "engines/$2 is there already; --force builds it again"
    return
  fi
  echo "building engines/$2; about $3 MiB of memory are expected at its peak"
  local free
  free=$(awk '/^MemAvailable:/ {{ print int($2 / 1024) }}' /proc/meminfo 2> /dev/null || true)
  if [ -n "$free" ] && [ "$free" -lt "$3" ]; then
    echo "warning: $free MiB are free; end what else runs, or add swap" >&2
  fi
  if ! "$trtexec" --onnx="../onnx/$1" --saveEngine="engines/$2.part" --timingCacheFile=engines/timing.cache \\
    ${{typed[@]+"${{typed[@]}}"}} --skipInference; then
    rm -f "engines/$2.part"
    echo "trtexec did not build engines/$2; what it said is above" >&2
    exit 1
  fi
  mv "engines/$2.part" "engines/$2"
}}

mkdir -p engines
{lines}
"""


def build_script(graphs: Sequence[Path], weight_bytes: Mapping[str, int], target: Target | None = None) -> str:
    """A bash script that builds one engine per graph, with the memory that each is expected to take.

    `weight_bytes` {graph file name: bytes of its weights}; without a `target` it is for every TensorRT of the table.
    """
    releases = [one for one in (target.releases if target is not None else RELEASES.values()) if one.jetpacks]
    peaks = {graph.name: build_peak(weight_bytes.get(graph.name, 0)) for graph in graphs}
    lines = []
    for graph in graphs:
        lines.append(
            f"# {graph.name}: about {peaks[graph.name]:.1f} GiB of memory at its peak (estimated, not measured)"
        )
        lines.append(f"build {graph.name} {graph.stem}.engine {round(1024 * peaks[graph.name])}")
    return _HEAD.format(
        board=target.board.title if target is not None else "any board whose TensorRT is below",
        releases=", ".join(f"{one.version} ({one.found})" for one in releases),
        short=", ".join(map(str, releases)),
        memory=_memory(target, max(peaks.values(), default=0)),
        numbers=" | ".join(_numbers(one) for one in releases),
        lines="\n".join(lines),
    )


def _numbers(release: Release) -> str:
    """The shell pattern of the numbers by which trtexec calls a release: major, two digits of minor, two of patch."""
    major, _, minor = release.name.partition(".")
    return f"{major}{int(minor):02}[0-9][0-9]" if minor else f"{major}[0-9][0-9][0-9][0-9]"


def _memory(target: Target | None, peak: float) -> str:
    said = f"about {peak:.1f} GiB at the peak of the largest engine (estimated, not measured)"
    sizes = target.board.memory if target is not None else ()
    short = [size for size in sizes if size < peak]
    return (
        f"{said}: too much for a {target.board.title} of {', '.join(map(str, short))} GiB" if short and target else said
    )
