"""The whole evaluation on a toy export without torch: what is scored, kept, resumed, refused and written."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from toy_face import write_toy

from tokcarve.exporters.device.answer import Answerer
from tokcarve.exporters.device.route import Wish
from tokcarve.exporters.evaluation import Evaluation, answering, evaluate
from tokcarve.exporters.evaluation.cast import counted
from tokcarve.exporters.evaluation.files import journal_of
from tokcarve.exporters.evaluation.report import markdown
from tokcarve.exporters.evaluation.speaking import OrtSpeaker
from tokcarve.passes.errors import ArtifactError, BudgetError, EvaluationError, SampleError
from tokcarve.passes.inputs.prompt import PromptError
from tokcarve.recipes.artifact import read_artifact
from tokcarve.recipes.manifest import FurtherBudget, RoutedPart, RouterRecord

IMAGES = 8


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluate")
    write_toy(folder / "toy", batch=2)
    write_toy(folder / "other", tokens=5)
    for number in range(IMAGES):
        pixels = np.random.default_rng(number).integers(0, 256, (28, 28, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder / "toy"


def lines(toy: Path, name: str, answers: list[str] | None = None) -> Path:
    """A set of a question per image; `answers` are the right ones."""
    given = answers if answers is not None else ["x"] * IMAGES
    rows = [
        {"image": f"{number}.png", "question": "is there a cat?", "answer": answer, "family": "ab"[number % 2]}
        for number, answer in enumerate(given)
    ]
    path = toy.parent / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def ask(toy: Path, data: Path, **settings: object) -> Evaluation:
    return evaluate(toy, data=data, **{"max_new": 3, "gate": False, **settings})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def said(toy: Path) -> list[str]:
    """What the unpruned model says."""
    return [line["said"]["unpruned"] for line in ask(toy, lines(toy, "first.jsonl")).lines()]


def test_the_unpruned_model_agrees_with_itself_and_pruning_shows(toy: Path, said: list[str]) -> None:
    made = ask(toy, lines(toy, "right.jsonl", said))
    record = made.record()
    whole, pruned = record["sides"]["unpruned"], record["sides"]["pruned"]
    assert whole["score"] == whole["macro"] == whole["exact"] == whole["loyalty"] == 1 and whole["kl"] == 0
    assert pruned["score"] == pruned["loyalty"] < 1 and pruned["kl"] > 0
    other = [line["said"]["pruned"] for line in made.lines()]
    assert pruned["score"] == np.mean([one == two for one, two in zip(other, said, strict=True)])
    gap, low, high = record["differences"]["pruned - unpruned"]["score"]
    assert gap == pytest.approx(pruned["score"] - 1) and low <= gap <= high
    assert set(pruned["families"]) == {"a", "b"} and record["data"]["images"] == IMAGES
    assert pruned["tokens"] == 4 and whole["tokens"] == 16


def test_free_answers_are_those_of_a_model_that_was_left_to_itself(toy: Path, said: list[str]) -> None:
    answers = ask(toy, lines(toy, "first.jsonl")).answers["pruned"][0]
    assert not all(one.same for one in answers), "some are asked for again"
    alone = Answerer(toy)
    for number, one in enumerate(answers):
        image = Image.open(toy.parent / f"{number}.png").convert("RGB")
        assert alone.answer([image], ["is there a cat?"], 3).tokens[0] == one.tokens


def test_where_logits_are_not_held_they_are_computed_again(
    toy: Path, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = lines(toy, "first.jsonl")
    held = ask(toy, data).record()
    monkeypatch.setattr(answering, "_HELD", 0)
    assert ask(toy, data).record() == held


def test_a_closed_gate_reports_nothing(toy: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(EvaluationError, match="does not clear the gate, so no pruned score is reported"):
        ask(toy, lines(toy, "first.jsonl"), gate=True, out=out)
    assert not out.exists()
    record = ask(toy, lines(toy, "first.jsonl"), out=out).record()
    assert record["gate"]["ignored"] and not record["gate"]["passed"]
    assert "closed, and ignored as asked" in (out / "evaluation.md").read_text()


def test_files_are_the_record_a_page_and_a_line_per_question(toy: Path, tmp_path: Path, said: list[str]) -> None:
    out = tmp_path / "out"
    data = lines(toy, "right.jsonl", said)
    made = ask(toy, data, gate=True, out=out)
    assert json.loads((out / "evaluation.json").read_text()) == made.record()
    rows = [json.loads(line) for line in (out / "answers.jsonl").read_text().splitlines()]
    assert rows == made.lines() and len(rows) == IMAGES
    page = (out / "evaluation.md").read_text()
    assert "|  | unpruned | pruned |" in page and "| score | 100.0 | " in page and "gate (constant): open" in page
    assert {path.name for path in tmp_path.iterdir()} == {"out"}, "the journal is gone"
    ask(toy, data, out=out)
    (out / "mine.txt").write_text("x")
    with pytest.raises(ArtifactError, match=r"holds mine.txt, which is no part of an evaluation"):
        ask(toy, data, out=out)


def test_an_interrupted_run_goes_on(
    toy: Path, tmp_path: Path, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data, out = lines(toy, "right.jsonl", said), tmp_path / "out"
    whole = ask(toy, data).record()
    counted = count_free(monkeypatch)

    def stop(side: str, done: int, total: int) -> None:
        if side == "pruned" and done >= 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match="is kept, the same command goes on"):
        ask(toy, data, out=out, tell=stop)
    assert journal_of(out).is_file() and not out.exists()
    before = counted["unpruned"]
    record = ask(toy, data, out=out).record()
    assert counted["unpruned"] == before, "nothing of the unpruned model is answered again"
    assert record["sides"] == whole["sides"] and any("taken over" in note for note in record["notes"])
    assert not journal_of(out).exists()


def count_free(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    counted, free = {"unpruned": 0, "pruned": 0}, OrtSpeaker.free

    def counting(self: OrtSpeaker, asked: object, most: int) -> object:
        counted["unpruned" if self.pipeline.side.tokens == 16 else "pruned"] += 1
        return free(self, asked, most)  # type: ignore[arg-type]

    monkeypatch.setattr(OrtSpeaker, "free", counting)
    return counted


def test_other_questions_begin_anew_with_a_word(toy: Path, tmp_path: Path, said: list[str]) -> None:
    out = tmp_path / "out"

    def stop(side: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ask(toy, lines(toy, "first.jsonl"), out=out, tell=stop)
    notes = ask(toy, lines(toy, "right.jsonl", said), out=out).record()["notes"]
    assert any(note.startswith("begun anew, an earlier run's answers do not count: questions was") for note in notes)
    journal_of(out).write_text("{}\n")
    with pytest.raises(ArtifactError, match="is no journal of an evaluation"):
        ask(toy, lines(toy, "first.jsonl"), out=out)


def test_prompts_that_are_too_long_are_listed_and_bad_wishes_refused(toy: Path) -> None:
    data = lines(toy, "long.jsonl")
    rows = [json.loads(line) for line in data.read_text().splitlines()] * 2
    rows[3] = rows[3] | {"question": "why " * 60}
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    record = ask(toy, data).record()
    assert len(record["data"]["unanswerable"]) == 1 and "--max-text" in record["data"]["unanswerable"][0]
    with pytest.raises(PromptError, match=r"--max-new 99 does not fit; give 1..12"):
        ask(toy, data, max_new=99)
    with pytest.raises(SampleError, match="--limit 0"):
        ask(toy, data, limit=0)


def test_without_a_checkpoint_the_missing_controls_are_told_of(toy: Path) -> None:
    record = ask(toy, lines(toy, "first.jsonl")).record()
    assert any(note.startswith("no controls: ") and "--control DIR" in note for note in record["notes"])
    assert record["best_control"] is None and "no control says" in record["verdict"]


def test_a_divergence_that_is_no_number_is_left_blank(toy: Path) -> None:
    record = ask(toy, lines(toy, "first.jsonl")).record()
    for side in record["sides"].values():
        side |= {"kl": None, "kl_first": None}
    text = markdown(record)
    assert "| KL |  |  |" in text


def test_an_exported_control_stands_beside(toy: Path) -> None:
    record = ask(toy, lines(toy, "first.jsonl"), controls=[toy]).record()
    assert list(record["sides"]) == ["unpruned", "pruned", "uniform"] and record["best_control"] == "uniform"
    assert record["differences"]["pruned - uniform"]["kl"] == [0, 0, 0], "the toy is its own control"
    with pytest.raises(ArtifactError, match=r"keeps 5 tokens, and .* keeps 4; compress it with --tokens 4"):
        ask(toy, lines(toy, "first.jsonl"), controls=[toy.parent / "other"])


def test_a_budget_set_counts_by_what_its_router_chose(toy: Path) -> None:
    one = read_artifact(toy).manifest
    held = RoutedPart(images=4, shares=(0.5, 0.5), mean_tokens=3.0, loss=0.1, random=0.2, oracle=0.1, fixed=(0.3, 0.1))
    router = RouterRecord(
        layer=1,
        tokens=(2, 4),
        mean_tokens=3,
        price=0.1,
        prices=((3.0, 0.1),),
        penalty=1.0,
        explained=0.5,
        held_out=held,
    )
    numbers = one.numbers.model_copy(update={"tokens_mean": 2.0})
    less = FurtherBudget(tokens=2, schedule=one.schedule, numbers=numbers, kv_rows=(2, 2))
    several = one.model_copy(update={"router": router, "budgets": (less,)})
    mean = one.numbers.tokens_mean
    assert counted(several, Wish(tokens=2), None) == (2, 2.0)
    assert counted(several, Wish(tokens=4), None) == counted(one, Wish(), None) == (4, mean)
    assert counted(several, Wish(), {2: 0.25, 4: 0.75}) == (3.5, 0.5 + 0.75 * mean)
    with pytest.raises(BudgetError, match="known once it has seen the images"):
        counted(several, Wish(), None)
    with pytest.raises(BudgetError, match="--mean-tokens 3 is about a budget set"):
        ask(toy, lines(toy, "first.jsonl"), mean_tokens=3)
