"""Answers of the bundled checkpoint on its evaluation scenes, under any method: what the benchmarks share."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice

import torch

from tokcarve.exporters.eager import reduce_prompt
from tokcarve.passes.flops import kv_bytes
from tokcarve.passes.graph import Seen, TokenGraphs, thread, visual_start
from tokcarve.passes.invariants import propagate_language
from tokcarve.passes.stage import Method
from tokcarve.recipes.calibration.bench import bench_of
from tokcarve.recipes.calibration.freeze import freeze
from tokcarve.recipes.carve import rewritten
from tokcarve.recipes.schema import Calibration
from tokcarve.tiny import Sample

__all__ = ["Batch", "answers", "batches", "carved", "numbers", "talk"]

NEW_TOKENS = 6


@dataclass(frozen=True)
class Batch:
    """Scenes with their questions: pixels [scenes, 3, h, w], the scene of every question, ids and mask;
    `kept` holds what was seen once."""

    pixels: torch.Tensor
    scene: torch.Tensor
    ids: torch.Tensor
    mask: torch.Tensor
    kept: dict[str, Seen] = field(default_factory=dict)


def batches(samples: list[Sample], processor: object, scenes: int = 8) -> Iterator[Batch]:
    """Questions of `scenes` scenes at a time, so that an image is encoded once."""
    groups: dict[int, list[Sample]] = defaultdict(list)
    for sample in samples:
        groups[id(sample.image)].append(sample)
    waiting = iter(groups.values())
    while chunk := list(islice(waiting, scenes)):
        pixels = processor.image_processor(images=[g[0].image for g in chunk], return_tensors="pt")["pixel_values"]
        texts = [processor.apply_chat_template(talk(s.question), add_generation_prompt=True) for g in chunk for s in g]
        images = [s.image for g in chunk for s in g]
        made = processor(images=images, text=texts, return_tensors="pt", padding=True, padding_side="left")
        scene = torch.tensor([i for i, g in enumerate(chunk) for _ in g])
        yield Batch(pixels, scene, made["input_ids"], made["attention_mask"])


def talk(question: str) -> list[dict[str, object]]:
    """One user turn with an image, as chat templates take it."""
    return [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]


@torch.no_grad()
def answers(graphs: TokenGraphs, work: list[Batch], tokenizer: object) -> list[str]:
    """The greedy answer to every question, in order."""
    found: list[str] = []
    for batch in work:
        prompt = reduce_prompt(
            batch.ids,
            batch.mask,
            image_token_id=graphs.geometry.image_token_id,
            total=graphs.geometry.total,
            keep=thread(graphs.vision).count,
        )
        # an image is encoded once, unless what is kept depends on the question
        per = batch.scene if not graphs.reads_text else torch.arange(len(batch.scene))
        pixels = batch.pixels[batch.scene] if graphs.reads_text else batch.pixels
        prompts = (prompt.input_ids, prompt.lengths)
        seen = _seen(graphs, batch, pixels, prompts)
        kept, handed = ({name: one[per] for name, one in of.items()} for of in (seen.kept, seen.handed))
        seen = Seen(seen.features[per], kept, handed)
        # no history of actions: what a method with a state does of its own accord
        given = {name: torch.zeros(len(per), seen.features.shape[1]) for name in graphs.asks}
        read, positions = graphs.read(prompt.input_ids, seen, prompt.lengths, given)
        start = visual_start(prompt.input_ids, graphs.geometry.image_token_id)
        keys, values = read.keys, read.values
        last = prompt.lengths - 1 - (prompt.input_ids.shape[1] - read.logits.shape[1])
        row = torch.gather(read.logits, 1, last[:, None, None].expand(-1, 1, read.logits.shape[2]))
        end = torch.gather(positions, 1, prompt.lengths[:, None] - 1)
        token, tokens = row.argmax(-1), []
        for step in range(NEW_TOKENS):
            tokens.append(token)
            made = graphs.step(token, end + 1 + step, prompt.lengths, step, (keys, values), step, start)
            keys = [torch.cat(pair, dim=2) for pair in zip(keys, made.keys, strict=True)]
            values = [torch.cat(pair, dim=2) for pair in zip(values, made.values, strict=True)]
            token = made.logits.argmax(-1)
        found.extend(spell(tokenizer, row, graphs.geometry.eos_token_ids) for row in torch.cat(tokens, 1).tolist())
    return found


def _seen(graphs: TokenGraphs, batch: Batch, pixels: torch.Tensor, prompts: tuple[torch.Tensor, ...]) -> Seen:
    """What the vision graph gives; of one that reduces nothing it is the same for every method, and kept."""
    if graphs.reads_text or graphs.handed or thread(graphs.vision).index is not None:
        return graphs.see(pixels, *prompts)
    if "plain" not in batch.kept:
        batch.kept["plain"] = graphs.see(pixels)
    return batch.kept["plain"]


def numbers(graphs: TokenGraphs) -> dict[str, float]:
    """Visual tokens that enter the language model, their mean over its layers, MiB of their fp16 keys and values."""
    text = 1
    read = propagate_language(graphs, batch=1, text=text)
    layers = [node for node in graphs.language.graph.nodes if "layers" in str(node.target) and node.op == "call_module"]
    rows = [node.args[0].meta["val"].shape[1] - text for node in layers if not str(node.target).startswith("select_")]
    kv = kv_bytes(graphs.geometry.text, [key.shape[2] - text for key in read.keys])
    return {"entering": rows[0], "mean": sum(rows) / len(rows), "kv_mib": kv / 2**20}


def spell(tokenizer: object, tokens: list[int], stops: tuple[int, ...]) -> str:
    """The text before the first stop token."""
    end = next((i for i, token in enumerate(tokens) if token in stops), len(tokens))
    return str(tokenizer.decode(tokens[:end], skip_special_tokens=True)).strip().lower()


def carved(graphs: TokenGraphs, model: object, method: Method, tokens: int, checkpoint: object) -> TokenGraphs:
    """`graphs` under `method`, its open counts calibrated on the calibration scenes."""
    frozen = None
    if method.dynamic() is not None or method.learns(graphs.geometry, tokens):
        bench = bench_of(checkpoint, graphs.geometry, Calibration(count=64))
        frozen, _ = freeze(bench, method, tokens)
    return rewritten(graphs, method, tokens, frozen).graphs
