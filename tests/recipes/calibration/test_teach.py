"""The layer that a module learns from: what each costs by plain loops over the model's own layers, and the choice."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from layerwise import embedded, ran, said
from models import TOTAL, build, write
from transformers import LlavaForConditionalGeneration

from tokcarve.passes.checkpoint import open_directory
from tokcarve.passes.families import geometry
from tokcarve.passes.families.load import read_config
from tokcarve.passes.methods.covipal import CoViPAL
from tokcarve.passes.trainee import Trainee
from tokcarve.recipes.calibration.bench import Bench, bench_of
from tokcarve.recipes.calibration.freeze import freeze
from tokcarve.recipes.calibration.journal import Journal, Record, Task
from tokcarve.recipes.calibration.pool import Pool, Runner
from tokcarve.recipes.calibration.teach import SAMPLES, taught
from tokcarve.recipes.calibration.work import Candidate, Worker
from tokcarve.recipes.carve import params_of
from tokcarve.recipes.schema import Calibration

LAYERS = 4
KEEP = 12
SMALL = CoViPAL(blocks=1, width=16)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(build("llama", text_layers=LAYERS), tmp_path_factory.mktemp("base") / "model")


def bench(base: Path, count: int = 8, steps: int = 2) -> Bench:
    asked = Calibration(samples="scenes", count=count, steps=steps)
    return bench_of(open_directory(base), geometry(read_config(base)), asked)


def trainee(stand: Bench, method: CoViPAL = SMALL) -> Trainee:
    made = method.trainable(stand.geometry, KEEP)
    assert made is not None
    return made


@pytest.mark.parametrize("positions", ["renumbered", "original"])
def test_costs_are_those_of_the_models_own_layers(base: Path, positions: str) -> None:
    worker = bench(base).runner.pool.here()
    loader: Any = LlavaForConditionalGeneration
    eager = loader.from_pretrained(base, attn_implementation="eager").eval()
    full, question = worker.full(1), worker.question(1)
    image, stops = worker.graphs.geometry.image_token_id, worker.graphs.geometry.eos_token_ids
    spoken = full.tokens[: next((i + 1 for i, one in enumerate(full.tokens) if one in stops), len(full.tokens))]
    rows, place = embedded(worker.model, torch.tensor(question.ids(image, TOTAL)), full.seen.features[0], image)
    answer = worker.model.get_input_embeddings()(torch.tensor(spoken[:-1], dtype=torch.long)).detach()
    with torch.no_grad():
        maps = eager.model.language_model(inputs_embeds=rows.unsqueeze(0), output_attentions=True).attentions

    def sure(kept: Sequence[int]) -> torch.Tensor:
        left = [i for i in range(len(rows)) if i not in range(place.start, place.stop) or i - place.start in kept]
        more = torch.cat([rows[left], answer])
        places = torch.tensor([*left, *range(len(rows), len(rows) + len(answer))])
        places = torch.arange(len(more)) if positions == "renumbered" else places
        logits = said(worker.model, ran(worker.model, range(LAYERS), more, places)[0])
        return torch.log_softmax(logits[len(left) - 1 :].double(), dim=1)

    wanted, expected = sure(range(TOTAL)), []
    for layer in range(LAYERS):
        paid = maps[layer][0][:, place.stop :, place].sum(dim=(0, 1))
        found = sure(paid.topk(KEEP).indices.tolist())
        expected.append(float((wanted.exp() * (wanted - found)).sum(dim=1).mean()))
    candidate = Candidate(method="covipal", params=params_of(SMALL), tokens=KEEP, positions=positions).plain()
    got = worker({"do": "guided", "sample": 1, "candidate": candidate})["kl"]
    assert got == pytest.approx(expected, rel=1e-3) and min(expected) > 1e-3
    assert len({round(one, 5) for one in expected}) > 1, "layers must differ in what they look at"


class Told(Pool):
    """Knows what the layers cost on each sample."""

    def __init__(self, costs: Sequence[Sequence[float]]) -> None:
        self.costs, self.asked = costs, list[Task]()

    def imap(self, tasks: Iterable[Task]) -> Iterator[tuple[int, Record]]:
        for number, task in enumerate(tasks):
            self.asked.append(task)
            yield number, {"kl": self.costs[task["sample"]]}

    def close(self) -> None:
        pass


def told(base: Path, costs: Sequence[Sequence[float]], count: int = 4) -> tuple[Bench, Told]:
    pool = Told(costs)
    return replace(bench(base, count), runner=Runner(pool, Journal(None, {}))), pool


@pytest.mark.parametrize(
    ("costs", "layer"),
    [
        ([[0.4, 0.2, 0.3, 0.5]] * 3, 1),
        ([[0.4, 0.2, 0.3, 0.5], [0.4, 0.9, 0.3, 0.5], [0.4, 0.1, 0.3, 0.5]], 2),  # means 0.4, 0.4, 0.3, 0.5
        ([[0.5, 0.25, 0.25, 0.5], [0.5, 0.5, 0.5, 0.5], [0.5, 0.5, 0.5, 0.5]], 1),  # the shallower of equal ones
        ([[0.5, 0.5, 0.5, 0.5]] * 3, 0),
    ],
)
def test_the_cheapest_is_chosen(base: Path, costs: list[list[float]], layer: int) -> None:
    stand, _ = told(base, costs)
    before = trainee(stand)
    found, record = taught(stand, SMALL, before, KEEP, "renumbered")
    site = f"language.layers.{layer}"
    assert found.teacher == (site, "text_attention") and before.teacher == before.teachers[0]
    means = [sum(one) / len(costs) for one in zip(*costs, strict=True)]
    kl = {f"language.layers.{i}": pytest.approx(mean) for i, mean in enumerate(means)}
    assert record == {"guide": {"chosen": site, "kl": kl, "samples": len(costs)}}


def test_few_samples_are_enough(base: Path) -> None:
    stand, pool = told(base, [[0.4, 0.2, 0.3, 0.5]] * SAMPLES + [[9.0, 9.0, 0.0, 9.0]] * 8, 96)
    found, record = taught(stand, SMALL, trainee(stand), KEEP, "renumbered")
    assert len(pool.asked) == 64 == SAMPLES == record["guide"]["samples"] and found.teacher is not None
    assert found.teacher[0] == "language.layers.1"


def test_a_layer_that_is_named_is_learned_from(base: Path) -> None:
    stand, pool = told(base, [])
    named = trainee(stand, CoViPAL(blocks=1, width=16, guide_layer=3))
    assert taught(stand, SMALL, named, KEEP, "renumbered") == (named, {})
    assert named.teacher == ("language.layers.3", "text_attention") and not pool.asked


def test_training_learns_from_the_chosen_layer(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if that layer had been named; what was found is recorded."""
    last = [0.4, 0.3, 0.3, 0.2]
    asked = list[Task]()
    work = Worker.__call__

    def told(self: Worker, task: Task) -> Record:
        asked.append(task)
        return {"kl": last} if task["do"] == "guided" else work(self, task)

    monkeypatch.setattr(Worker, "__call__", told)
    chosen, record = freeze(bench(base), SMALL, KEEP)
    assert [task["sample"] for task in asked if task["do"] == "guided"] == list(range(6))
    named, plain = freeze(bench(base), CoViPAL(blocks=1, width=16, guide_layer=3), KEEP)
    first, _ = freeze(bench(base), CoViPAL(blocks=1, width=16, guide_layer=0), KEEP)
    assert record["training"]["guide"]["chosen"] == "language.layers.3" and "guide" not in plain["training"]
    same = [torch.equal(one, named.tensors[name]) for name, one in chosen.tensors.items()]
    other = [torch.equal(one, first.tensors[name]) for name, one in chosen.tensors.items()]
    assert all(same) and not all(other)
    assert record["report"] == plain["report"]
