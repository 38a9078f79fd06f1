"""The lint table: every rule goes red on a graph made for it, and a graph of the template stays green."""

import onnx_ir as ir
import pytest
from onnx.parser import parse_model

from tokcarve.exporters.device.boards import RELEASES
from tokcarve.exporters.lint import lint
from tokcarve.exporters.lint_rules import ALL, GRAPH_RULES, RULES

HEADER = '<ir_version: 10, opset_import: ["" : {opset}, "other" : 1]>'

RED = {
    "foreign-domain": "g (float[1,4] x) => (float[1,4] y) { y = other.Thing(x) }",
    "data-dependent-shape": "g (float[1,4] x) => (int64[2,n] y) { y = NonZero(x) }",
    "unsupported-operator": 'g (uint8[1,4] x) => (uint8[1,4] y) { y = BitShift<direction="LEFT">(x, x) }',
    "topk-limit": (
        "g (float[1,5000] x) => (float[1,3841] y, int64[1,3841] i) <int64[1] k = {3841}> { y, i = TopK(x, k) }"
    ),
    "topk-constant": "g (float[1,9] x, int64[1] k) => (float[1,n] y, int64[1,n] i) { y, i = TopK(x, k) }",
    "scatter-reduction": (
        "g (float[1,5] x, int64[1,2] i, float[1,2] u) => (float[1,5] y) "
        '{ y = ScatterElements<axis=1, reduction="add">(x, i, u) }'
    ),
    "arg-rank": "g (float[5] x) => (int64[1] y) { y = ArgMax(x) }",
    "mixed-precision": "g (float16[4] x, float[4] z) => (float[4] y) { y = Add(x, z) }",
    "float64": "g (float[4] x) => (float[4] y) { d = Cast<to=11>(x) y = Cast<to=1>(d) }",
    "dynamic-dimension": "g (float[n,4] x) => (float[n,4] y) { y = Relu(x) }",
    "unknown-shape": "g (float[1,4] x) => (float[1,4] y) { r = other.Thing(x) y = Relu(r) }",
    "einsum": 'g (float[2,3] x, float[3,4] z) => (float[2,4] y) { y = Einsum<equation="...ij,jk->...ik">(x, z) }',
    "cumsum-axis": "g (float[2,3] x, int64 a) => (float[2,3] y) { y = CumSum(x, a) }",
    "unused-input": "g (float[4] x, float[4] z) => (float[4] y) { y = Relu(x) }",
}
ATTENTION = (
    "g (float[1,2,4,16] q, float[1,2,4,16] k, float[1,2,4,16] v{more}) => (float[1,2,4,16] y) "
    "{{ y = Attention({args}) }}"
)
RED_24 = {
    "attention-missing": ATTENTION.format(more="", args="q, k, v"),
    "attention-float32": ATTENTION.format(more="", args="q, k, v"),
    "attention-cache": ATTENTION.format(more=", int64[1] n", args="q, k, v, , , , n"),
    "opset-23-operator": "g (float[1,4] x, float[4] s) => (float[1,4] y) { y = RMSNormalization(x, s) }",
    "swish": "g (float[4] x) => (float[4] y) { y = Swish(x) }",
    "opset": "g (float[4] x) => (float[4] y) { y = Relu(x) }",
}


def findings(text: str, opset: int = 18) -> dict[str, str]:
    model = ir.from_proto(parse_model(HEADER.format(opset=opset) + text))
    return {finding.rule: str(finding) for finding in lint(model)}


@pytest.mark.parametrize(("rule", "text"), RED.items(), ids=RED)
def test_rule_goes_red(rule: str, text: str) -> None:
    assert rule in findings(text)


@pytest.mark.parametrize(("rule", "text"), RED_24.items(), ids=RED_24)
def test_rule_of_new_operators_goes_red(rule: str, text: str) -> None:
    assert rule in findings(text, opset=24)


def test_every_rule_has_a_graph_that_breaks_it() -> None:
    assert {rule.name for rule in (*RULES, *GRAPH_RULES)} <= {*RED, *RED_24, "functions"}


@pytest.mark.parametrize("rule", [*RED, *RED_24])
def test_a_rule_goes_red_for_its_releases_alone(rule: str) -> None:
    text, opset = (RED[rule], 18) if rule in RED else (RED_24[rule], 24)
    model = ir.from_proto(parse_model(HEADER.format(opset=opset) + text))
    ranges = {one for entry in (*RULES, *GRAPH_RULES) if entry.name == rule for one in entry.ranges}
    assert {one for one in ALL if rule in {finding.rule for finding in lint(model, [one])}} == ranges


def test_the_rules_know_the_releases_of_the_boards() -> None:
    assert {one for rule in (*RULES, *GRAPH_RULES) for one in rule.ranges} <= set(RELEASES) == set(ALL)


def test_functions_are_found() -> None:
    function = '<domain: "own", opset_import: ["" : 18]> twice (x) => (y) { y = Add(x, x) }'
    text = '<ir_version: 10, opset_import: ["" : 18, "own" : 1]> g (float[4] x) => (float[4] y) { y = own.twice(x) }'
    assert {"functions", "foreign-domain"} <= {f.rule for f in lint(ir.from_proto(parse_model(text + function)))}


def test_the_template_of_a_selection_is_clean() -> None:
    text = """g (float[1,16] x, float[1,16,8] rows) => (float[1,4,8] y)
        <int64[1] k = {4}, int64[3] s = {1,4,8}, int64[1] a = {2}> {
        best, index = TopK(x, k)
        ordered, place = TopK<largest=0>(index, k)
        column = Unsqueeze(ordered, a)
        wide = Expand(column, s)
        y = GatherElements<axis=1>(rows, wide)
    }"""
    assert findings(text) == {}


def test_a_finding_names_node_rule_versions_and_remedy() -> None:
    text = findings(RED["topk-limit"])["topk-limit"]
    assert "TopK" in text
    assert "3841" in text
    assert "10.3" in text
    assert "choose per tile" in text


def test_only_the_wanted_versions_are_reported() -> None:
    model = ir.from_proto(parse_model(HEADER.format(opset=24) + RED_24["attention-missing"]))
    assert {finding.ranges for finding in lint(model, ["10.3"])} == {("10.3",)}


def test_rules_look_into_subgraphs() -> None:
    text = """g (float[1,4] x, bool c) => (int64[2,n] y) {
        y = If (c) <
            then_branch = t () => (int64[2,m] a) { a = NonZero(x) },
            else_branch = e () => (int64[2,o] b) { b = NonZero(x) }
        >
    }"""
    assert "data-dependent-shape" in findings(text)
