"""A trace is what Perfetto reads: complete events that lie within each other, stages in answers, nodes in stages."""

import json
from pathlib import Path
from typing import Any

import pytest
from toy_face import write_toy

from tokcarve.exporters.device.session import open_face
from tokcarve.exporters.device.trace import TRACED_TOKENS, check_trace, trace_answers, write_trace
from tokcarve.passes.errors import ExportError

SLACK = 0.01  # microseconds, for sums of floats


def faults(trace: dict[str, Any]) -> list[str]:
    """What is wrong with a trace by the Trace Event Format, and by what is promised of nesting."""
    found, open_events = [], list[dict[str, Any]]()
    for event in trace["traceEvents"]:
        if event["ph"] == "M":
            continue
        if event["ph"] != "X" or event["dur"] < 0 or event["ts"] < -SLACK or not isinstance(event["name"], str):
            found.append(f"{event} is no complete event")
        depth = ("answer", "stage", "node").index(event["cat"])
        open_events = [*open_events[:depth], event]
        if depth:
            outer = open_events[depth - 1]
            inside = (
                outer["ts"] - SLACK <= event["ts"] and event["ts"] + event["dur"] <= outer["ts"] + outer["dur"] + SLACK
            )
            if not inside or outer["pid"] != event["pid"]:
                found.append(f"{event['name']} is not within {outer['name']}")
    return found


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    directory = tmp_path_factory.mktemp("trace") / "toy"
    write_toy(directory, batch=2)
    made = trace_answers(open_face(directory, threads=1), new=12)
    write_trace(directory / "trace.json", made)
    read: dict[str, Any] = json.loads((directory / "trace.json").read_text())
    assert read == json.loads(json.dumps(made)) and not list(Path(directory).glob(".*part"))
    return read


def test_it_is_nested_as_promised(trace: dict[str, Any]) -> None:
    assert faults(trace) == []


def test_the_check_sees_a_node_outside_of_its_stage(trace: dict[str, Any]) -> None:
    moved = json.loads(json.dumps(trace))
    next(event for event in moved["traceEvents"] if event.get("cat") == "node")["ts"] -= 1e6
    assert len(faults(moved)) >= 1
    backwards = json.loads(json.dumps(trace))
    backwards["traceEvents"][-1]["dur"] = -1
    assert len(faults(backwards)) >= 1


def test_both_sides_tell_all_stages_and_the_nodes_of_their_graphs(trace: dict[str, Any]) -> None:
    events = trace["traceEvents"]
    names = {event["pid"]: event["args"]["name"] for event in events if event["name"] == "process_name"}
    assert names == {1: "pruned", 2: "unpruned"}
    for process in names:
        mine = [event for event in events if event["pid"] == process]
        stages = [event["name"] for event in mine if event.get("cat") == "stage"]
        assert stages == ["encoder", "embedding", "prefill", "cache", *["decode"] * (TRACED_TOKENS - 1)]
        assert sum(event.get("cat") == "answer" for event in mine) == 1
        nodes = [event["name"] for event in mine if event.get("cat") == "node"]
        assert nodes.count("own_logits") == TRACED_TOKENS  # the last node of prefill and of every decode step
        assert nodes.count("tokcarve_select_select_best") == 1
        assert next(event for event in mine if event["name"] == "own_logits")["args"]["op"] == "MatMul"


def test_an_answer_of_one_token_has_no_decode(tmp_path: Path) -> None:
    write_toy(tmp_path)
    made = trace_answers(open_face(tmp_path, threads=1), new=1)
    assert {event["name"] for event in made["traceEvents"] if event.get("cat") == "stage"} == {
        "encoder",
        "embedding",
        "prefill",
    }
    assert faults(made) == []


def test_a_place_that_cannot_be_written_is_named_before_anything_runs(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "missing" / "trace.json"):
        with pytest.raises(ExportError, match="--trace .*: no file can be written there"):
            check_trace(place)
    check_trace(tmp_path / "trace.json")
