"""Every method in the language model, three ways: the ragged reference, the rewritten graphs in torch, and the exported
prefill and decode in ONNX Runtime with caches of a fixed length per layer. 64 greedy tokens on 20 pictures, equal.
"""

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from greedy import answer
from models import TOTAL, build, pictures, prompt
from ragged import Ragged
from torch import Tensor

from tokcarve.exporters.modules import face_graphs, shapes
from tokcarve.exporters.onnx import lower, weight_names
from tokcarve.passes import families
from tokcarve.passes.flops import kv_bytes
from tokcarve.passes.graph import Seen, TokenGraphs, all_kept, thread
from tokcarve.passes.insert import in_language, rewrite
from tokcarve.passes.methods import METHODS
from tokcarve.passes.stage import Stage

LAYERS, SCENES, NEW, MAX_TEXT = 6, 20, 64, 26
Asked = tuple[str, dict[str, Any], int]
# every method, and a neighbour that must not say the same
CASES: dict[str, tuple[Asked, Asked]] = {
    "fastv": (("fastv", {}, 16), ("fastv", {}, 15)),
    "vla_pruner": (("vla_pruner", {}, 16), ("vla_pruner", {}, 15)),
    "redundancylens": (("redundancylens", {"window": 16}, TOTAL), ("redundancylens", {"window": 15}, TOTAL)),
    "pyramiddrop": (("pyramiddrop", {}, 12), ("pyramiddrop", {}, 11)),
    "sparsevlm": (("sparsevlm", {}, 12), ("sparsevlm", {}, 11)),
    "sparsevlm plus": (("sparsevlm", {"version": "plus"}, 12), ("sparsevlm", {"version": "plus"}, 11)),
    "dart": (("dart", {}, 16), ("dart", {}, 15)),
    "feather": (("feather", {}, 12), ("feather", {}, 11)),
    "tokencarve": (("tokencarve", {}, 16), ("tokencarve", {}, 15)),
    "visiondrop": (("visiondrop", {}, 12), ("visiondrop", {}, 11)),
    "vflowopt": (("vflowopt", {"cell": 4.0}, 12), ("vflowopt", {"cell": 4.0}, 11)),
    "todre": (("todre", {}, 16), ("todre", {"exit": False}, 16)),
    "dyvte": (("dyvte", {}, TOTAL), ("dyvte", {"layer": 1}, TOTAL)),
    "llavolta": (("llavolta", {}, 16), ("llavolta", {}, 8)),
    "flowcut": (("flowcut", {"language_stage": True}, 16), ("flowcut", {"language_stage": True}, 15)),
}


@functools.cache
def plain() -> TokenGraphs:
    return families.capture(build("llama", text_layers=LAYERS))


@functools.cache
def asked(visual: int) -> tuple[Tensor, Tensor]:
    """A question per picture, of lengths from 6 on."""
    return prompt([6 + i for i in range(SCENES)], visual=visual, seed=1)


def guide() -> Tensor:
    return torch.rand(1, TOTAL, generator=torch.Generator().manual_seed(7)).expand(SCENES, -1).contiguous()


@dataclass
class Case:
    """One method on the 20 pictures, in torch."""

    stages: list[Stage]
    graphs: TokenGraphs
    seen: Seen
    tokens: Tensor
    logits: Tensor
    kept: dict[str, Tensor]

    @property
    def given(self) -> dict[str, Tensor]:
        return {name: guide() for name in self.graphs.asks}


def run(name: str, params: dict[str, Any], tokens: int) -> Case:
    graphs = plain()
    stages = list(METHODS[name](**params).stages(graphs.geometry, tokens, None))
    carved = rewrite(graphs, stages).graphs
    with torch.no_grad():
        seen = carved.see(pictures(SCENES, seed=2), *asked(1))
        ids, lengths = asked(thread(carved.vision).count)
        given = {name: guide() for name in carved.asks}
        kept = all_kept(seen, carved.read(ids, seen, lengths, given)[0])
    logits, said = answer(carved, seen, ids, lengths, NEW, given=given)
    return Case([s for s in stages if in_language(s.site)], carved, seen, said, logits, kept)


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return run(*CASES[request.param][0])


def test_the_ragged_reference_says_the_same(case: Case) -> None:
    count = thread(case.graphs.vision).count
    ids, lengths = asked(count)
    embeds, _ = case.graphs.embedding(ids, case.seen.features)
    entered = list(case.seen.kept.values())[-1] if case.seen.kept else torch.arange(TOTAL).expand(SCENES, -1)
    model = build("llama", text_layers=LAYERS)
    cutting = [stage for stage in case.stages if stage.how != "observe"]
    for i in range(SCENES):
        ragged = Ragged(model, cutting, {name: one[i : i + 1] for name, one in case.given.items()})
        carry = {name: one[i : i + 1] for name, one in case.seen.handed.items()}
        said = ragged.say(embeds[i, : lengths[i]].detach(), 3, count, NEW, carry)
        assert said.tokens == case.tokens[i].tolist(), i
        torch.testing.assert_close(said.logits, case.logits[i], atol=1e-4, rtol=0)
        for site, kept in said.kept.items():
            if kept:
                assert entered[i, kept].tolist() == case.kept[site][i].tolist()


def test_onnx_runtime_says_the_same(case: Case) -> None:
    sizes = shapes(case.graphs, batch=SCENES, max_text=MAX_TEXT, max_new=NEW)
    pieces = face_graphs(case.graphs, sizes)
    prefill, decode = (session(case.graphs, pieces[name]) for name in ("prefill", "decode"))
    ids, lengths = asked(sizes.tokens)
    padded = torch.nn.functional.pad(ids, (0, sizes.prompt - ids.shape[1]))
    with torch.no_grad():
        embeds, positions = case.graphs.embedding(padded, case.seen.features)
    start = np.full(SCENES, 3)
    feeds = {"inputs_embeds": embeds, "position_ids": positions, "prompt_lengths": lengths}
    given = {name: tensor.numpy() for name, tensor in {**feeds, **case.seen.handed, **case.given}.items()}
    made = call(prefill, {**given, "visual_start": start})
    np.testing.assert_allclose(made["logits"][:, 0], case.logits.numpy(), atol=1e-4)
    caches = {}
    for layer, rows in enumerate(sizes.rows):
        for kind in ("key", "value"):
            rest = made[f"present.{layer}.{kind}"]
            assert rest.shape[2] == rows
            caches[f"past_key_values.{layer}.{kind}"] = np.pad(rest, ((0, 0), (0, 0), (0, NEW), (0, 0)))
    predicted = kv_bytes(case.graphs.geometry.text, sizes.capacities, element=4) * SCENES
    assert sum(cache.nbytes for cache in caches.values()) == predicted
    said = [made["logits"][:, 0].argmax(axis=1)]
    for step in range(NEW - 1):
        feeds = {"input_ids": said[-1][:, None], "position_ids": lengths.numpy()[:, None] + step}
        feeds |= {"prompt_lengths": lengths.numpy(), "step": np.array([step]), "visual_start": start}
        made = call(decode, {**feeds, **caches})
        for layer, rows in enumerate(sizes.rows):
            for kind in ("key", "value"):
                caches[f"past_key_values.{layer}.{kind}"][:, :, rows + step] = made[f"present.{layer}.{kind}"][:, :, 0]
        said.append(made["logits"][:, 0].argmax(axis=1))
    assert np.stack(said, axis=1).tolist() == case.tokens.tolist()


@pytest.mark.parametrize("name", ["pyramiddrop", "tokencarve"])
def test_hundreds_of_tokens(name: str) -> None:
    """Where positions are renumbered in every stage, and where caches of earlier layers are cut."""
    method, params, tokens = CASES[name][0]
    graphs = plain()
    stages = list(METHODS[method](**params).stages(graphs.geometry, tokens, None))
    carved = rewrite(graphs, stages).graphs
    ids, lengths = prompt([9], visual=TOTAL, seed=1)
    with torch.no_grad():
        seen = carved.see(pictures(1, seed=4))
        embeds, _ = carved.embedding(ids, seen.features)
    _, said = answer(carved, seen, ids, lengths, 300, room=320)
    ragged = Ragged(build("llama", text_layers=LAYERS), stages).say(embeds[0], 3, TOTAL, 300)
    assert said[0].tolist() == ragged.tokens and len(set(ragged.tokens)) > 20


def session(graphs: TokenGraphs, piece: Any) -> Any:
    model = build("llama", text_layers=LAYERS)
    names = {"input_names": piece.input_names, "output_names": piece.output_names, "names": weight_names(model)}
    made = lower(piece.module, piece.inputs, **names)
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    import onnx_ir as ir

    return ort.InferenceSession(ir.to_proto(made).SerializeToString(), options, providers=["CPUExecutionProvider"])


def call(graph: Any, feeds: dict[str, Any]) -> dict[str, Any]:
    found = graph.run(None, {one.name: feeds[one.name] for one in graph.get_inputs()})
    return dict(zip((one.name for one in graph.get_outputs()), found, strict=True))


@pytest.mark.parametrize("name", CASES)
def test_the_unpruned_model_and_the_neighbouring_budget_say_something_else(name: str) -> None:
    here, neighbour, whole = (run(*one) for one in (*CASES[name], ("none", {}, TOTAL)))
    for other in (neighbour, whole):
        assert (here.tokens != other.tokens).any(dim=1).sum() >= SCENES // 2
