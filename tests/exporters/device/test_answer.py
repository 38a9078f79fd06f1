"""The runtime on a face whose answers can be computed by hand."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from toy_face import TOTAL, Toy, edit_record, write_toy

from tokcarve.exporters.device.answer import Answerer
from tokcarve.passes.errors import ArtifactError, ExportError
from tokcarve.passes.inputs.prompt import PromptError

QUESTIONS = ["is it red?", "how many squares are there at the top?", "why?", "what is it?", "no"]


def pictures(count: int) -> list[Image.Image]:
    rng = np.random.default_rng(3)
    return [Image.fromarray(rng.integers(0, 256, (28, 28, 3), dtype=np.uint8)) for _ in range(count)]


def expected(toy: Toy, answerer: Answerer, image: Image.Image, question: str, new: int) -> tuple[list[int], list[int]]:
    ids = answerer.prompter.encode(question, answerer.side.tokens)
    return toy.expect(answerer.images([image])[0], ids, new, answerer.side.tokens)


@pytest.mark.parametrize("positions", ["renumbered", "original"])
@pytest.mark.parametrize("baseline", [False, True])
@pytest.mark.parametrize("batch", [1, 3])
def test_answers_equal_a_row_by_row_reference(tmp_path: Path, batch: int, baseline: bool, positions: str) -> None:
    toy = write_toy(tmp_path, batch=batch, positions=positions)
    answerer = Answerer(tmp_path, baseline=baseline)
    images = pictures(5)
    made = answerer.answer(images, QUESTIONS, max_new=9)
    for row, (image, question) in enumerate(zip(images, QUESTIONS, strict=True)):
        tokens, kept = expected(toy, answerer, image, question, 9)
        assert list(made.tokens[row]) == tokens
        assert made.kept_indices[row].tolist() == kept
        assert made.text[row] == answerer.prompter.decode(tokens)
    assert made.kept_indices.shape == (5, TOTAL if baseline else 4)
    assert len(made.timings) == (5 if batch == 1 else 2)


def test_the_unpruned_side_answers_differently(tmp_path: Path) -> None:
    write_toy(tmp_path)
    images = pictures(5)
    pruned, full = (Answerer(tmp_path, baseline=side).answer(images, QUESTIONS) for side in (False, True))
    assert pruned.tokens != full.tokens


def test_all_that_was_exported_can_be_generated(tmp_path: Path) -> None:
    toy = write_toy(tmp_path, max_new=12)
    answerer = Answerer(tmp_path)
    image, question = pictures(1)[0], QUESTIONS[0]
    made = answerer.answer([image], [question])
    assert list(made.tokens[0]) == expected(toy, answerer, image, question, 12)[0]
    assert len(made.timings[0].decode) == len(made.tokens[0]) - 1


def test_a_prompt_may_fill_every_row(tmp_path: Path) -> None:
    toy = write_toy(tmp_path, batch=2, max_text=9)
    answerer = Answerer(tmp_path)
    pixels = answerer.images(pictures(2))
    image = [toy.image_token_id] * 4
    prompts = [[1, 7, *image, 30, 31, 32, 33, 34, 35, 36], [1, *image, 40]]
    made = answerer.generate(pixels, prompts)
    for row, ids in enumerate(prompts):
        assert list(made.tokens[row]) == toy.expect(pixels[row], ids, 12)[0]


def test_image_tokens_must_be_as_many_as_enter(tmp_path: Path) -> None:
    toy = write_toy(tmp_path)
    answerer = Answerer(tmp_path)
    pixels = answerer.images(pictures(1))
    with pytest.raises(PromptError, match="holds 16 image tokens, and 4 enter the language model"):
        answerer.generate(pixels, [[1, *[toy.image_token_id] * TOTAL]])
    with pytest.raises(ArtifactError, match="use the processor files of the model's own checkpoint"):
        answerer.generate(pixels[:, :, :14], [[1, *[toy.image_token_id] * 4]])


def test_rows_stop_at_a_stop_token_and_the_others_go_on(tmp_path: Path) -> None:
    toy = write_toy(tmp_path, batch=5)
    answerer = Answerer(tmp_path)
    images = pictures(5)
    free = answerer.answer(images, QUESTIONS, max_new=8).tokens
    stop = free[1][2]
    geometry = replace(answerer.record.geometry, eos_token_ids=(stop,))
    answerer.pipeline.record = answerer.record.model_copy(update={"geometry": geometry})
    made = answerer.answer(images, QUESTIONS, max_new=8)
    assert made.tokens[1] == free[1][:3]
    for before, after in zip(free, made.tokens, strict=True):
        assert after == (before[: before.index(stop) + 1] if stop in before else before)
    assert toy.batch == 5


def test_tokens_are_reported_as_they_come(tmp_path: Path) -> None:
    write_toy(tmp_path, batch=2)
    seen: dict[int, list[int]] = {}
    made = Answerer(tmp_path).answer(
        pictures(3), QUESTIONS[:3], max_new=4, on_token=lambda row, token: seen.setdefault(row, []).append(token)
    )
    assert [tuple(seen[row]) for row in range(3)] == list(made.tokens)


def test_timings_are_recorded(tmp_path: Path) -> None:
    write_toy(tmp_path)
    timings = Answerer(tmp_path).answer(pictures(1), ["why?"], max_new=3).timings[0]
    record = timings.record()
    assert record["first_token"] == pytest.approx(timings.vision + timings.embedding + timings.prefill)
    assert len(record["decode"]) == 2 and all(value > 0 for value in record["decode"])
    assert record["preprocess"] > 0


def test_too_long_a_prompt_names_the_way_out(tmp_path: Path) -> None:
    write_toy(tmp_path, max_text=12)
    with pytest.raises(PromptError, match=r"has \d+ tokens besides the image, and this export holds 12; .* --max-text"):
        Answerer(tmp_path).answer(pictures(1), ["why is the circle in the middle of everything?"])


@pytest.mark.parametrize("new", [0, -1, 13])
def test_too_many_new_tokens_are_refused(tmp_path: Path, new: int) -> None:
    write_toy(tmp_path, max_new=12)
    with pytest.raises(PromptError, match=rf"max_new={new} does not fit this export; ask for 1\.\.12"):
        Answerer(tmp_path).answer(pictures(1), ["why?"], max_new=new)


def test_unequal_lists_are_refused(tmp_path: Path) -> None:
    write_toy(tmp_path)
    with pytest.raises(PromptError, match="2 prompts for 1 images"):
        Answerer(tmp_path).answer(pictures(1), ["why?", "how?"])


def test_a_missing_export_is_named(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="has no export yet; write it with `tokcarve export"):
        Answerer(tmp_path)


def test_an_edited_record_is_refused(tmp_path: Path) -> None:
    write_toy(tmp_path)
    edit_record(tmp_path, max_new=99)
    with pytest.raises(ArtifactError, match="does not match its digest"):
        Answerer(tmp_path)


def test_a_newer_record_is_refused(tmp_path: Path) -> None:
    write_toy(tmp_path)
    edit_record(tmp_path, format=2)
    with pytest.raises(ArtifactError, match="has format 2, this version reads 1"):
        Answerer(tmp_path)


def test_a_changed_graph_is_refused(tmp_path: Path) -> None:
    write_toy(tmp_path)
    path = tmp_path / "export" / "onnx" / "decode.onnx"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(ArtifactError, match="decode.onnx is not the file that was exported"):
        Answerer(tmp_path)
    path.unlink()
    with pytest.raises(ArtifactError, match="decode.onnx is missing"):
        Answerer(tmp_path)


def test_a_bad_thread_count_is_refused(tmp_path: Path) -> None:
    write_toy(tmp_path)
    with pytest.raises(ExportError, match="threads=0 is no thread count"):
        Answerer(tmp_path, threads=0)
