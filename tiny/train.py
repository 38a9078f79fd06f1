"""Train the checkpoint in four timed stages.

The vision tower learns alone from labels of patches; then the whole model answers questions about windows of the
frame, about full frames of which the patches around objects and some others are seen, and about full frames.

`python -m tokcarve.tiny.train --out DIR` resumes from `DIR/state.pt` where there is one.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import shutil
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import distributed, multiprocessing
from torch.nn import functional as F
from torch.utils.data import DataLoader
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from tokcarve.tiny.batch import Batch, Packer, Stream
from tokcarve.tiny.draw import FRAME
from tokcarve.tiny.forward import ATTENTION, Heads, answer_logits, keep_tokens, see, start_positions, vision_loss
from tokcarve.tiny.measure import held_out
from tokcarve.tiny.model import build_config, build_processor, build_tokenizer, save

TRAIN_SEED = 100_000_000
RANK_SEED = 50_000_000
WINDOW = 168
VISIBLE = 208
"""Patches that are seen of a full frame in the third stage."""
STAGES: tuple[str, ...] = ("dense", "window", "sparse", "frame")
EVERY: dict[str, float] = {"log": 30, "store": 120, "measure": 300}
"""Seconds between log lines, stored states and measurements."""


@dataclass(frozen=True)
class Stage:
    """One stage: its length, its image side and batch, how many questions share an image, and its learning rates."""

    name: str
    minutes: float
    size: int
    images: int
    asked: int
    start: float
    end: float
    visible: int | None = None

    @property
    def answers(self) -> bool:
        """Whether the stage asks questions or trains the vision tower alone."""
        return self.name != "dense"


class Run:
    """The state of a training run."""

    def __init__(self, args: argparse.Namespace, rank: int) -> None:
        self.args, self.rank, self.ranks = args, rank, args.ranks
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        torch.manual_seed(args.seed)
        tokenizer = build_tokenizer()
        self.packer = Packer(tokenizer)
        self.processor: LlavaProcessor = build_processor(tokenizer)
        model: Any = LlavaForConditionalGeneration(build_config(tokenizer))
        self.model: LlavaForConditionalGeneration = model.to(self.device)
        if self.device.type == "cpu":
            self.model.set_attn_implementation(ATTENTION)
        start_positions(self.model)
        self.heads = Heads(self.model.config.vision_config.hidden_size).to(self.device)
        self.parameters = [*self.model.parameters(), *self.heads.parameters()]
        self.optimizer = torch.optim.AdamW(self._groups(), lr=1e-3, betas=(0.9, 0.98), eps=1e-8)
        self.generator = torch.Generator().manual_seed(args.seed + 1000 * rank)
        self.worth = torch.ones(len(tokenizer), device=self.device)
        self.worth[tokenizer.eos_token_id] = 0.2
        # The second word of a place has to find the object once more and is learnt last.
        self.worth[tokenizer.encode(" left right", add_special_tokens=False)] = 3.0
        self.stage, self.elapsed, self.steps = 0, 0.0, [0, 0, 0, 0]
        self.agreed = 0.0
        self.seconds = [0.0, 0.0, 0.0, 0.0]
        self.measured: dict[str, Any] = {}

    def _groups(self) -> list[dict[str, Any]]:
        decayed = [p for p in self.parameters if p.ndim >= 2]
        plain = [p for p in self.parameters if p.ndim < 2]
        return [{"params": decayed, "weight_decay": 0.02}, {"params": plain, "weight_decay": 0.0}]

    def autocast(self) -> torch.autocast:
        """Mixed precision, which is the faster choice on both kinds of device."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=not self.args.fp32)

    def store(self) -> None:
        """Write the state so that an interruption loses little."""
        path = self.args.out / "state.pt"
        payload = {
            "model": self.model.state_dict(),
            "heads": self.heads.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "stage": self.stage,
            "elapsed": self.elapsed,
            "steps": self.steps,
            "seconds": self.seconds,
        }
        torch.save(payload, path.with_suffix(".new"))
        os.replace(path.with_suffix(".new"), path)

    def load(self) -> None:
        """Continue where a stored state stopped."""
        state = torch.load(self.args.out / "state.pt", map_location=self.device, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.heads.load_state_dict(state["heads"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.stage, self.elapsed = state["stage"], state["elapsed"]
        self.steps, self.seconds = state["steps"], state["seconds"]

    def export(self) -> None:
        """Put the checkpoint in place of the last one in one rename per file."""
        fresh, final = self.args.out / "export.new", self.args.out / "export"
        save(self.model, self.processor, fresh)
        record = {
            "seed": self.args.seed,
            "steps": dict(zip(STAGES, self.steps, strict=True)),
            "seconds": dict(zip(STAGES, [round(s) for s in self.seconds], strict=True)),
            "device": self.device.type,
            "ranks": self.ranks,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "numpy": np.__version__,
            "teacher_forced": self.measured,
        }
        (fresh / "training.json").write_text(json.dumps(record, indent=2) + "\n")
        final.mkdir(exist_ok=True)
        for path in fresh.iterdir():
            path.chmod(0o644)
            os.replace(path, final / path.name)
        shutil.rmtree(fresh)

    def loss(self, stage: Stage, batch: Batch, step: int) -> dict[str, torch.Tensor]:
        """The parts of the loss of one batch."""
        seen = see(self.model, batch, last=step % 4 == 0)
        dense, present = vision_loss(self.heads, seen, batch)
        if not stage.answers:
            return {"dense": dense, "present": present}
        draw = torch.rand(3, generator=self.generator).tolist()
        kept = None
        if draw[0] < self.args.dropped:
            kept = keep_tokens(seen.patches.shape[1], 0.3 + 0.7 * draw[1], self.generator).to(self.device)
        logits, labels = answer_logits(self.model, self.packer.prefix, seen, batch, kept, draw[2] < 0.5)
        answer = F.cross_entropy(logits, labels, weight=self.worth)
        return {"answer": answer, "dense": 0.5 * dense, "present": 0.5 * present}

    def step(self, stage: Stage, batch: Batch) -> dict[str, float]:
        """One update from one batch of every rank; returns the parts of this rank's loss."""
        number = self.stage
        part = min(1.0, self.agreed / (stage.minutes * 60))
        rate = stage.end + (stage.start - stage.end) * 0.5 * (1 + math.cos(math.pi * part))
        for group in self.optimizer.param_groups:
            group["lr"] = rate * min(1.0, (self.steps[number] + 1) / 200)
        with self.autocast():
            losses = self.loss(stage, batch.to(self.device), self.steps[number])
        self.optimizer.zero_grad(set_to_none=True)
        total: Any = torch.stack(list(losses.values())).sum()
        total.backward()
        self.share()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.steps[number] += 1
        return {name: value.item() for name, value in losses.items()}

    def share(self) -> None:
        """Average the gradients over the ranks, and the time with them so that all end a stage at one step."""
        if self.ranks == 1:
            self.agreed = self.elapsed
            return
        grads = [p.grad for p in self.parameters if p.grad is not None]
        flat = torch.cat([*(grad.flatten() for grad in grads), torch.tensor([self.elapsed])])
        distributed.all_reduce(flat)
        flat /= self.ranks
        self.elapsed = self.agreed = float(flat[-1])
        done = 0
        for grad in grads:
            grad.copy_(flat[done : done + grad.numel()].view_as(grad))
            done += grad.numel()

    def train(self, stage: Stage) -> None:
        """Run one stage until its time is used."""
        number, images = self.stage, stage.images // self.ranks
        first = TRAIN_SEED * (number + 1) + RANK_SEED * self.rank + self.steps[number] * images
        stream = Stream(self.packer, first, images, stage.size, stage.asked, stage.visible)
        loader = DataLoader(stream, batch_size=None)
        shown: Counter[str] = Counter()
        marks = {"log": time.monotonic(), "store": time.monotonic(), "measure": time.monotonic()}
        last, self.agreed = time.monotonic(), self.elapsed
        for batch in loader:
            shown.update(self.step(stage, batch))
            shown.update(["count"])
            now = time.monotonic()
            self.elapsed += now - last
            last, self.seconds[number] = now, self.elapsed
            due = {name for name, mark in marks.items() if self.rank == 0 and now - mark > EVERY[name]}
            if "log" in due:
                means = " ".join(f"{k} {v / shown['count']:.4f}" for k, v in shown.items() if k != "count")
                pace = shown["count"] * stage.images / (now - marks["log"])
                where = f"{stage.name} {self.elapsed:.0f}s step {self.steps[number]}"
                print(f"{where} {means} {pace:.1f} img/s", flush=True)
                shown = Counter()
            if "measure" in due and stage.answers:
                self.report(stage)
                self.export()
            if "store" in due:
                self.store()
            marks.update(dict.fromkeys(due, now))
            if self.agreed >= stage.minutes * 60:
                break
        if self.rank == 0:
            self.report(stage)
            self.export()
        self.stage, self.elapsed = self.stage + 1, 0.0
        if self.rank == 0:
            self.store()

    def report(self, stage: Stage) -> None:
        """Print held-out figures: windows in the window stage, and full frames always."""
        if not stage.answers:
            return
        with self.autocast():
            if stage.size != FRAME:
                print(stage.name, "windows", held_out(self.model, self.packer, WINDOW, 64), flush=True)
            self.measured = held_out(self.model, self.packer, FRAME, 96 if stage.size == FRAME else 64)
        print(stage.name, "frames", self.measured, flush=True)


def work(rank: int, args: argparse.Namespace) -> None:
    """Run the stages that are left, as one of several processes that share every batch."""
    torch.set_num_threads(args.threads)
    if args.ranks > 1:
        distributed.init_process_group(
            "gloo", init_method=f"file://{args.out.resolve()}/ranks", rank=rank, world_size=args.ranks
        )
    run = Run(args, rank)
    if (args.out / "state.pt").exists():
        run.load()
    stages = (
        Stage("dense", args.dense_minutes, WINDOW, 32, 1, 1.5e-3, 1e-3),
        Stage("window", args.window_minutes, WINDOW, 16, 10, 1.2e-3, 5e-4),
        Stage("sparse", args.sparse_minutes, FRAME, 16, 14, 6e-4, 4e-4, VISIBLE),
        Stage("frame", args.frame_minutes, FRAME, 8, 16, 4e-4, 1e-5),
    )
    for stage in stages[run.stage :]:
        run.train(stage)


def main() -> None:
    """Parse the command line and start the ranks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dense-minutes", type=float, default=14)
    parser.add_argument("--window-minutes", type=float, default=50)
    parser.add_argument("--sparse-minutes", type=float, default=25)
    parser.add_argument("--frame-minutes", type=float, default=15)
    parser.add_argument("--dropped", type=float, default=0.6, help="share of batches with dropped visual tokens")
    parser.add_argument("--ranks", type=int, default=2, help="processes; one on a CUDA device")
    parser.add_argument("--threads", type=int, default=1, help="threads of each process")
    parser.add_argument("--fp32", action="store_true")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "ranks").unlink(missing_ok=True)
    if args.ranks == 1:
        work(0, args)
    else:
        processes: Any = multiprocessing
        processes.spawn(work, args=(args,), nprocs=args.ranks)


if __name__ == "__main__":
    main()
