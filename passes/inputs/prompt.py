"""Questions to token ids and back, from a checkpoint's own tokenizer files, without transformers.

The ids equal those of `processor(images=..., text=processor.apply_chat_template(..., add_generation_prompt=True))` of
transformers for LLaVA models: the tokenizer is `tokenizer.json` as it stands, its beginning-of-sequence rule included
(transformers ignores `add_bos_token` beside it), with the special tokens of `tokenizer_config.json` laid over it. A
template that writes the beginning-of-sequence token itself gets no second one. Templates are code from a model hub, so
they run in a sandbox.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, NoReturn

from jinja2 import Template, TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import AddedToken, Tokenizer

from tokcarve.passes.errors import ArtifactError, ModelError, TokcarveError
from tokcarve.passes.inputs.files import read_object

__all__ = ["DEFAULT_TEMPLATE", "PromptError", "Prompter", "load_prompter"]

DEFAULT_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'user' %}USER: {% for content in message['content'] %}"
    "{{ '<image>\\n' if content['type'] == 'image' else content['text'] }}{% endfor %} {% else %}"
    "ASSISTANT: {% for content in message['content'] %}{{ content['text'] }}{% endfor %}</s>{% endif %}{% endfor %}"
    "ASSISTANT:"
)
"""LLaVA-1.5's way of asking, for checkpoints that bring no template."""

_ANSWER = "\u241eanswer\u241e"  # stands for an answer in a template, and occurs in none
_NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class PromptError(TokcarveError):
    """A question cannot be put to this model."""


@dataclass(frozen=True, kw_only=True)
class Prompter:
    """A checkpoint's tokenizer and chat template; `special` maps names (`bos_token`, ...) to their texts."""

    tokenizer: Tokenizer
    template: str
    image_token: str
    special: Mapping[str, str]

    def render(self, question: str) -> str:
        """The whole prompt for one image and one question, with one image placeholder.

        Raises PromptError if the question holds a placeholder of its own, ModelError if the template fails on, or
        leaves out, the image.
        """
        if self.image_token in question:
            raise PromptError(
                f"the prompt {_short(question)} contains {self.image_token}; leave it out, the image is placed for you"
            )
        text, failure = self._filled([_user(question, image=True)])
        if text.count(self.image_token) != 1:
            text, failure = self._filled([{"role": "user", "content": f"{self.image_token}\n{question}"}])
        if text.count(self.image_token) != 1:
            reason = failure or f"it writes {self.image_token} {text.count(self.image_token)} times, not once"
            raise ModelError(f"the chat template of this model cannot ask about one image: {reason}")
        return text

    def encode_turn(self, said: Sequence[tuple[str, str]], question: str) -> list[int]:
        """Token ids of what comes behind the last answer of `said` (questions and answers) when `question` follows.

        Raises as `render`, and ModelError for a template without a place for a second question.
        """
        if self.image_token in question:
            raise PromptError(f"the prompt {_short(question)} contains {self.image_token}; one image is seen, at first")
        turns: list[dict[str, Any]] = []
        for asked, answer in [*said[:-1], (said[-1][0], _ANSWER)]:
            turns += [_user(asked, image=not turns), {"role": "assistant", "content": _text_part(answer)}]
        text, failure = self._filled(turns + [_user(question, image=False)])
        if text.count(_ANSWER) != 1:
            plain = [{**turn, "content": _plain(turn["content"], self.image_token)} for turn in turns]
            text, failure = self._filled([*plain, {"role": "user", "content": question}])
        if text.count(_ANSWER) != 1:
            raise ModelError(f"the chat template of this model has no second turn: {failure or 'it leaves turns out'}")
        before, behind = text.split(_ANSWER)
        before += said[-1][1].strip()
        whole, first = (self.tokenizer.encode(one, add_special_tokens=False).ids for one in (before + behind, before))
        if whole[: len(first)] == first:
            return [int(token) for token in whole[len(first) :]]
        return [int(token) for token in self.tokenizer.encode(behind, add_special_tokens=False).ids]

    def _filled(self, messages: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
        """(text, "") of the template for these messages, or ("", why not)."""
        try:
            text = _compiled(self.template).render(
                messages=messages, add_generation_prompt=True, tools=None, documents=None, **self.special
            )
        except (TemplateError, TypeError, ValueError, KeyError, AttributeError) as error:
            return "", str(error)
        return text, ""

    def encode(self, question: str, image_tokens: int) -> list[int]:
        """Token ids of the prompt for one image and `question`, its placeholder repeated `image_tokens` times."""
        text = self.render(question)
        bos = self.special.get("bos_token")
        expanded = text.replace(self.image_token, self.image_token * image_tokens)
        ids = self.tokenizer.encode(expanded, add_special_tokens=bos is None or not text.startswith(bos)).ids
        return [int(token) for token in ids]

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of generated tokens, special ones left out, as transformers decodes it."""
        return str(self.tokenizer.decode(list(tokens), skip_special_tokens=True))


def _user(question: str, *, image: bool) -> dict[str, Any]:
    return {"role": "user", "content": [*([{"type": "image"}] if image else []), *_text_part(question)]}


def _text_part(text: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text}]


def _plain(content: Sequence[Mapping[str, str]], image_token: str) -> str:
    """The same content for templates that take a text alone."""
    return "".join(f"{image_token}\n" if part["type"] == "image" else part["text"] for part in content)


def load_prompter(directory: Path, image_token_id: int) -> Prompter:
    """Tokenizer and template of the processor files in `directory`; `image_token_id` is the placeholder's id.

    Raises ArtifactError if a file is missing, broken or does not know that id.
    """
    path = directory / "tokenizer.json"
    if not path.is_file():
        raise ArtifactError(
            f"{directory} has no tokenizer.json; save the checkpoint's fast tokenizer and compress again"
        )
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises plain Exception
        raise ArtifactError(f"{path} is no tokenizer ({error}); take it from the checkpoint again") from None
    config = {**read_object(directory / "special_tokens_map.json"), **read_object(directory / "tokenizer_config.json")}
    special = _lay_over(tokenizer, config)
    image_token = tokenizer.id_to_token(image_token_id)
    if image_token is None:
        raise ArtifactError(f"{path} has no token {image_token_id}, which the model uses for images; use its own files")
    return Prompter(
        tokenizer=tokenizer, template=_template(directory, config), image_token=image_token, special=special
    )


def _lay_over(tokenizer: Tokenizer, config: Mapping[str, Any]) -> dict[str, str]:
    """Adds the special tokens of `config` to `tokenizer`, as transformers does; gives the named tokens' texts."""
    tokenizer.no_padding()
    tokenizer.no_truncation()
    missing = sorted(config.get("added_tokens_decoder", {}).items(), key=lambda item: int(item[0]))
    tokenizer.add_tokens([_added(token) for _, token in missing if tokenizer.token_to_id(_text(token)) is None])
    named = {name: config[name] for name in _NAMED if config.get(name) is not None}
    extra = config.get("extra_special_tokens") or config.get("additional_special_tokens") or []
    extras = list(extra.values()) if isinstance(extra, Mapping) else list(extra)
    tokenizer.add_special_tokens([_added(token) for token in [*named.values(), *extras]])
    return {name: _text(token) for name, token in named.items()}


def _text(token: Any) -> str:
    return str(token["content"]) if isinstance(token, Mapping) else str(token)


def _added(token: Any) -> AddedToken:
    flags = token if isinstance(token, Mapping) else {}
    names = ("single_word", "lstrip", "rstrip", "normalized", "special")
    kept = {name: bool(flags[name]) for name in names if name in flags}
    return AddedToken(_text(token), **{"normalized": False, "special": True, **kept})


def _template(directory: Path, config: Mapping[str, Any]) -> str:
    """The processor's template if it has one, else the tokenizer's, else LLaVA-1.5's."""
    raw = directory / "chat_template.jinja"
    candidates = [
        read_object(directory / "processor_config.json").get("chat_template"),
        read_object(directory / "chat_template.json").get("chat_template"),
        raw.read_text(encoding="utf-8") if raw.is_file() else None,
        config.get("chat_template"),
    ]
    found = next((candidate for candidate in candidates if candidate), None)
    if isinstance(found, list):
        found = next((entry["template"] for entry in found if entry.get("name") == "default"), None)
    if isinstance(found, Mapping):
        found = found.get("default")
    return str(found) if found else DEFAULT_TEMPLATE


class _Generation(Extension):
    """`{% generation %}` marks the assistant's words for training; here it only passes them through."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


@lru_cache(8)
def _compiled(template: str) -> Template:
    """Ready to be filled: compiling takes a hundred times as long as filling."""
    return _environment().from_string(template)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else f"{text[:37]}...")
