"""Several turns about one image: against torch, and, with nothing dropped, against one long prompt."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from exported import make_artifact
from models import SIDE
from PIL import Image
from processors import CHATML_TEMPLATE, LLAVA_TEMPLATE, STRING_TEMPLATE, llama_tokenizer
from transformers import LlavaForConditionalGeneration

from tokcarve.exporters.device.answer import Answerer
from tokcarve.exporters.device.conversation import Conversation, OrtVoice, converse
from tokcarve.exporters.export import export_artifact
from tokcarve.exporters.faces.kind import Request
from tokcarve.exporters.reply import converse_in_torch
from tokcarve.passes.errors import ModelError
from tokcarve.passes.inputs.prompt import DEFAULT_TEMPLATE, Prompter, PromptError
from tokcarve.recipes.artifact import read_artifact

QUESTIONS = ("a red cat?", "two", "and then?")
NEW = 5


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = make_artifact(tmp_path_factory.mktemp("turns"), "fastv", text_layers=3)
    export_artifact(made, Request(max_text=48, max_new=160))
    return made


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    noise = np.random.default_rng(1).integers(0, 256, (8, 8, 3), np.uint8)
    return Image.fromarray(noise).resize((SIDE, SIDE))


def test_ort_says_what_torch_says(artifact: Path, picture: Image.Image) -> None:
    _, ort = converse(artifact, picture)
    _, eager, _ = converse_in_torch(read_artifact(artifact), picture, None)
    for question in QUESTIONS:
        one, other = (talk.ask(question, NEW) for talk in (ort, eager))
        assert one == other
    assert ort.voice.kept.tolist() == eager.voice.kept.tolist() and len(ort.voice.kept) == 16


def test_turns_without_dropping_are_one_long_prompt(artifact: Path, picture: Image.Image) -> None:
    answerer = Answerer(artifact, baseline=True)
    talk = Conversation(answerer.prompter, OrtVoice(answerer, picture), (), answerer.side.tokens)
    base: Any = LlavaForConditionalGeneration.from_pretrained(artifact.parent / "base").eval()
    pixels = torch.from_numpy(answerer.images([picture]))
    fed = answerer.prompter.encode(QUESTIONS[0], answerer.side.tokens)
    for i, question in enumerate(QUESTIONS):
        if i:
            fed += answerer.prompter.encode_turn(talk.said, question)
        said = talk.ask(question, NEW)
        ids = torch.tensor([fed])
        whole = base.generate(
            input_ids=ids, pixel_values=pixels, max_new_tokens=NEW, do_sample=False, eos_token_id=None
        )
        assert list(said.tokens) == whole[0, ids.shape[1] :].tolist()
        fed += said.tokens


def test_a_later_question_hears_the_first(artifact: Path, picture: Image.Image) -> None:
    said = []
    for first in ("a red cat?", "no"):
        _, talk = converse(artifact, picture)
        talk.ask(first, NEW)
        said.append(talk.ask("two", NEW).tokens)
    assert said[0] != said[1]


def test_a_turn_that_does_not_fit_is_refused_before_it_is_fed(artifact: Path, picture: Image.Image) -> None:
    _, talk = converse(artifact, picture)
    talk.ask(QUESTIONS[0], NEW)
    room = talk.voice.room
    with pytest.raises(PromptError, match="turn 2 takes up to .* rows of the caches"):
        talk.ask("again", 160)
    assert talk.voice.room == room and len(talk.said) == 1
    with pytest.raises(PromptError, match="asks for no answer"):
        talk.ask("again", 0)
    with pytest.raises(PromptError, match="one image is seen, at first"):
        talk.ask("and <image>?", NEW)
    with pytest.raises(PromptError, match="this export holds 48"):
        converse(artifact, picture)[1].ask("long " * 40, NEW)


@pytest.fixture(params=["llava", "chatml", "default"])
def prompter(request: pytest.FixtureRequest) -> Iterator[Prompter]:
    template = {"llava": LLAVA_TEMPLATE, "chatml": CHATML_TEMPLATE, "default": DEFAULT_TEMPLATE}[request.param]
    yield Prompter(tokenizer=llama_tokenizer(), template=template, image_token="<image>", special={})


def test_a_turn_is_the_rest_of_the_whole_conversation(prompter: Prompter) -> None:
    turn = prompter.encode_turn([("a red cat?", "yes")], "two")
    text = prompter.tokenizer.decode(turn, skip_special_tokens=False)
    assert "two" in text and "yes" not in text and "red" not in text and "<image>" not in text


def test_a_template_without_a_second_turn_says_so() -> None:
    alone = Prompter(
        tokenizer=llama_tokenizer(), template="{{ messages[-1]['content'] }}", image_token="<image>", special={}
    )
    with pytest.raises(ModelError, match="no second turn"):
        alone.encode_turn([("a", "b")], "c")
    text = Prompter(tokenizer=llama_tokenizer(), template=STRING_TEMPLATE, image_token="<image>", special={})
    assert text.encode_turn([("a", "b")], "c")
