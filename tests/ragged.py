"""A ragged reference: one prompt at a time, no padding, an eager loop whose layers hold caches of their own length.

Written from the Hugging Face modules and the definition of every tap alone; of the program under test it shares the
rules of the method, which have references of their own, and nothing else: no graph, tap, top-k, mask or cache.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tokcarve.passes.stage import Stage

__all__ = ["Ragged"]


@dataclass
class Said:
    """Greedy tokens, logits [vocab] of the last prompt row, patches kept behind each site, rows cached by layer."""

    tokens: list[int]
    logits: Tensor
    kept: dict[str, list[int]]
    cached: list[int]


def _turn(x: Tensor, positions: Tensor, theta: float) -> Tensor:
    """RoPE of x [heads, rows, dim] as complex numbers: dimension i and i + dim/2 are one."""
    half = x.shape[-1] // 2
    speed = theta ** (-torch.arange(half) * 2.0 / x.shape[-1])
    turned = torch.complex(x[..., :half], x[..., half:]) * torch.polar(
        torch.ones(len(positions), half), positions[:, None] * speed
    )
    return torch.cat([turned.real, turned.imag], dim=-1)


class Ragged:
    """A Hugging Face LLaVA with `stages` in its language model, by hand; `given` are inputs of the caller by name."""

    def __init__(self, model: Any, stages: list[Stage], given: dict[str, Tensor] | None = None) -> None:
        self.model, self.text = model, model.model.language_model
        self.stages = {int(stage.site.rsplit(".", 1)[1]): stage for stage in stages}
        self.theta = float(model.config.text_config.rope_parameters["rope_theta"])
        self.given = given or {}

    def heads(self, layer: int, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q [heads, rows, dim], k and v of every query head, before RoPE, of rows [rows, hidden]."""
        attention = self.text.layers[layer].self_attn
        x = self.text.layers[layer].input_layernorm(x)
        q, k, v = (
            getattr(attention, f"{name}_proj")(x).unflatten(-1, (-1, attention.head_dim)).transpose(0, 1)
            for name in "qkv"
        )
        return q, k, v

    def attention(self, layer: int, x: Tensor, positions: Tensor) -> Tensor:
        """Probabilities [heads, rows, rows] of a whole causal map."""
        q, k, _ = self.heads(layer, x)
        q, k = _turn(q, positions, self.theta), _turn(k, positions, self.theta)
        k = k.repeat_interleave(q.shape[0] // k.shape[0], dim=0)
        scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
        return scores.masked_fill(torch.ones_like(scores[0]).triu(1).bool(), -torch.inf).softmax(-1)

    def layer(
        self,
        layer: int,
        x: Tensor,
        positions: Tensor,
        past: tuple[Tensor, Tensor] | None,
        lean: Stage | None = None,
        image: slice = slice(0, 0),
    ) -> tuple[Any, ...]:
        """One decoder layer on rows that come behind `past`: rows, and all keys (after RoPE) and values. A `lean` one
        works less for the rows `image`."""
        q, k, v = self.heads(layer, x)
        q, k = _turn(q, positions, self.theta), _turn(k, positions, self.theta)
        if past is not None:
            k, v = torch.cat([past[0], k], dim=1), torch.cat([past[1], v], dim=1)
        every = (one.repeat_interleave(q.shape[0] // k.shape[0], dim=0) for one in (k, v))
        keys, values = every
        scores = q @ keys.transpose(-1, -2) / q.shape[-1] ** 0.5
        later = torch.ones_like(scores[0]).triu(1 + k.shape[1] - q.shape[1]).bool()
        for row in range(image.start, image.stop if lean is not None and lean.window is not None else image.start):
            later[row, image.start : max(image.start, row - lean.window + 1)] = True  # type: ignore[union-attr,operator]
        mixed = (scores.masked_fill(later, -torch.inf).softmax(-1) @ values).transpose(0, 1).flatten(1)
        block = self.text.layers[layer]
        x = x + block.self_attn.o_proj(mixed)
        rows = block.post_attention_layernorm(x)
        fed = block.mlp(rows)
        if lean is not None and lean.neurons is not None:
            count = image.stop - image.start
            probes = [image.start + (2 * i + 1) * count // (2 * (count // 10)) for i in range(count // 10)]
            mlp = block.mlp
            active = (torch.nn.functional.silu(mlp.gate_proj(rows)) * mlp.up_proj(rows))[:, :]
            chosen = active[probes].abs().mean(0).topk(lean.neurons).indices
            fed[image] = active[image][:, chosen] @ mlp.down_proj.weight[:, chosen].T
        return x + fed, (k, v)

    def taps(self, layer: int, before: Tensor, after: Tensor, entered: Tensor, positions: Tensor, image: slice) -> Any:
        """Every tap by name, as a function, of one prompt whose visual rows are `image`."""
        n, last = image.stop - image.start, len(after) - 1
        q, k, v = self.heads(layer, before)
        group = q.shape[0] // k.shape[0]
        turned = _turn(q, positions, self.theta), _turn(k, positions, self.theta)
        scale = q.shape[-1] ** 0.5
        places = len(after) - n

        def text(rows: Tensor, stop: int) -> Tensor:
            behind = rows[stop:]
            return torch.cat([behind, behind.new_zeros(places - len(behind), *behind.shape[1:])])

        def logits(q: Tensor, k: Tensor) -> Tensor:
            return (q[:, last:] @ k.repeat_interleave(group, dim=0).transpose(-1, -2))[:, 0, image] / scale

        def behind(rows: Tensor) -> Tensor:
            return text(rows.transpose(0, 1), image.stop).transpose(0, 1)

        ones = _turn(torch.ones(1, len(positions), q.shape[-1]), positions, self.theta)[0]
        first = entered.shape[0] - (len(after) - image.stop)
        return {
            "states": lambda: after[image],
            "text_states": lambda: text(after, image.stop),
            "normed_states": lambda: self.text.norm(after)[image],
            "normed_text": lambda: text(self.text.norm(after), image.stop),
            "asked": lambda: (torch.arange(places) < len(after) - image.stop).float(),
            "entered": lambda: entered[image.start : first],
            "entered_text": lambda: text(entered, first),
            "last_attention": lambda: self.attention(layer, before, positions)[:, -1, image],
            "last_logits": lambda: logits(*turned),
            "last_logits_unrotated": lambda: logits(q, k),
            "last_value": lambda: v[:, last:],
            "visual_values": lambda: v[:, image],
            "visual_keys": lambda: turned[1][:, image],
            "text_keys": lambda: behind(turned[1]),
            "text_attention": lambda: behind(self.attention(layer, before, positions)[:, :, image]),
            "text_gravity": lambda: text(ones, image.stop) @ ones[image].T / scale,
            "received_attention": lambda: self.attention(layer, before, positions).mean(0).mean(0)[image],
            "next_last_attention": lambda: self.attention(layer + 1, after, positions)[:, -1, image],
            "next_visual_attention": lambda: self.attention(layer + 1, after, positions).mean(0)[image, image],
            "next_visual_keys": lambda: _turn(self.heads(layer + 1, after)[1], positions, self.theta)[:, image],
        }

    @torch.no_grad()
    def say(self, embeds: Tensor, start: int, count: int, steps: int, carry: dict[str, Tensor] | None = None) -> Said:
        """`steps` greedy tokens behind embeds [rows, hidden] whose `count` visual rows begin at `start`; `carry`
        holds what the vision graph hands on, [1, count, ...]."""
        x, positions, patches = embeds, torch.arange(len(embeds)).float(), list(range(count))
        carry, kept, shift = dict(carry or {}), dict[str, list[int]](), 0
        caches, shifts = list[Any](), list[float]()
        for layer in range(len(self.text.layers)):
            before = x
            stage = self.stages.get(layer)
            image = slice(start, start + len(patches))
            lean = stage if stage is not None and stage.how == "lean" else None
            x, cache = self.layer(layer, x, positions, None, lean, image)
            caches.append(cache)
            shifts.append(shift)
            if stage is None or stage.how == "lean":
                continue
            rows = [*range(start), *range(image.stop, len(x))]
            if stage.how != "exit":
                taps = self.taps(layer, before, x, embeds, positions, image)
                signals = {n: self.given[n] if n in self.given else taps[n]().unsqueeze(0) for n in stage.reads}
                outcome = stage.rule(signals, carry)
                carry = {name: outcome[name] for name in stage.carries}
            if stage.how == "observe":
                continue
            index = list[int]()
            if stage.how == "choose":
                score = outcome["score"][0]
                index = sorted(sorted(range(len(patches)), key=lambda i: (-float(score[i]), i))[: stage.keep])
                carry = {name: one[:, index] for name, one in carry.items()}
            elif stage.how == "merge":
                index = outcome["index"][0].tolist()
                sources = outcome["sources"][0].tolist() if "sources" in outcome else range(len(patches))
                weights = outcome["weights"].expand(1, -1, -1)[0]
                tokens = weights @ x[[start + i for i in sources]]
                if "own" in outcome:
                    tokens = tokens + outcome["own"][0][:, None] * x[[start + i for i in index]]
            rows[start:start] = [start + i for i in index]
            made = x[rows]
            if stage.how == "merge":
                made[start : start + stage.keep] = tokens
            if stage.cuts_cache:
                caches = [tuple(one[:, rows] for one in cache) for cache in caches]
            x, patches = made, [patches[i] for i in index]
            kept[stage.site] = patches
            positions = positions[rows]
            if stage.positions == "renumbered":
                positions = torch.arange(len(rows)).float()
            shift = int(len(embeds) - 1 - positions[-1])
        logits = self.model.lm_head(self.text.norm(x[-1:]))[0]
        cached = [cache[0].shape[1] for cache in caches]
        return Said(self._go_on(logits, caches, shifts, len(embeds), steps), logits, kept, cached)

    def _go_on(self, logits: Tensor, caches: list[Any], shifts: list[float], position: int, steps: int) -> list[int]:
        said = [int(logits.argmax())]
        while len(said) < steps:
            x = self.text.embed_tokens(torch.tensor(said[-1:]))
            for layer, shift in enumerate(shifts):
                x, caches[layer] = self.layer(layer, x, torch.tensor([float(position - shift)]), caches[layer])
            said.append(int(self.model.lm_head(self.text.norm(x))[0].argmax()))
            position += 1
        return said
